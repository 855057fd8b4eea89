"""Variables made per member before scoring."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import validate
from tests.toys import UNITS, as_analysis
from verification.derive import derive

GRID = Grid.named("8x4")
HOURS = np.timedelta64(12, "h").astype("timedelta64[ns]")


def analysis(steps: int = 10) -> xr.Dataset:
    rng = np.random.default_rng(0)
    data = as_analysis({"total_precipitation_12hr": rng.gamma(1, 1e-3, (steps, *GRID.shape))}, GRID)
    for name in ("10m_u_component_of_wind", "10m_v_component_of_wind"):
        data[name] = (
            ("time", "latitude", "longitude"),
            rng.normal(size=(steps, *GRID.shape)).astype("float32"),
            {"units": "m s-1"},
        )
    return data


def ensemble() -> xr.Dataset:
    rng = np.random.default_rng(1)
    coords = {
        "time": np.array(["2001-01-01"], "datetime64[ns]"),
        "prediction_timedelta": HOURS * np.arange(1, 7),
        "number": np.arange(3),
        **GRID.coords(),
    }
    dims = ("time", "prediction_timedelta", "number", "latitude", "longitude")
    values = rng.gamma(1, 1e-3, [len(coords[dim]) for dim in dims]).astype("float32")
    return xr.Dataset({"total_precipitation_12hr": (dims, values, {"units": UNITS["total_precipitation_12hr"]})}, coords=coords)


def test_wind_speed_is_the_length_of_each_members_vector() -> None:
    data = analysis()
    found = derive(data, ["10m_wind_speed"])
    validate(found, "analysis")
    expected = np.sqrt(data["10m_u_component_of_wind"].astype(float) ** 2 + data["10m_v_component_of_wind"].astype(float) ** 2)
    np.testing.assert_allclose(found["10m_wind_speed"], expected, rtol=1e-6)
    assert derive(data.chunk(time=2), ["10m_wind_speed"])["10m_wind_speed"].chunks is not None


@pytest.mark.parametrize("lazily", [False, True])
def test_a_day_of_rain_is_the_sum_of_its_halves_of_each_member(lazily: bool) -> None:
    data = ensemble().chunk(prediction_timedelta=2) if lazily else ensemble()
    day = derive(data, ["total_precipitation_24hr"])
    validate(day, "forecast")
    half, whole = data["total_precipitation_12hr"].values, day["total_precipitation_24hr"].values
    np.testing.assert_allclose(whole[:, 1:], half[:, 1:] + half[:, :-1], rtol=1e-6)
    assert np.isnan(whole[:, 0]).all()


def test_a_gap_in_the_analysis_is_no_rain_from_another_week() -> None:
    data = analysis().isel(time=[0, 1, 2, 6, 7])
    day = derive(data, ["total_precipitation_24hr"])["total_precipitation_24hr"]
    np.testing.assert_array_equal(np.isnan(day).all(["latitude", "longitude"]), [True, False, False, True, False])


def test_what_is_there_stays_and_what_cannot_be_made_is_named() -> None:
    data = analysis()
    assert derive(data, ["total_precipitation_12hr"]) is not None
    with pytest.raises(InputError, match="wind_speed needs u_component_of_wind and v_component_of_wind; the data have"):
        derive(data, ["wind_speed"])
    with pytest.raises(
        InputError, match="needs total_precipitation over a part of 18 hours; the data have total_precipitation_12hr"
    ):
        derive(data, ["total_precipitation_18hr"])
    with pytest.raises(InputError, match="'humidex' cannot be derived; known are wind_speed"):
        derive(data, ["humidex"])
