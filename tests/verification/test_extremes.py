"""The most extreme event is the one that was put there, and the map is around it."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from data_pipeline import climatology as climatologies
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel
from tests.toys import as_analysis
from verification import extremes

GRID = Grid.named("24x12")
NAME = "2m_temperature"


@pytest.fixture(scope="module")
def world() -> tuple[xr.DataArray, xr.Dataset]:
    """An analysis with a calm and a lively half, one cold cell in the calm one; and its climate of the first year."""
    rng = np.random.default_rng(0)
    size = np.where(np.arange(GRID.shape[1]) < 12, 0.5, 8.0)
    values = 280 + size * rng.normal(size=(760, *GRID.shape))
    values[750, 8, 3] = 280 - 6.0
    analysis = as_analysis({NAME: values}, GRID)
    climate = climatologies.compute(analysis, [Channel(NAME)], ("2001-01-01T00", "2001-12-31T12"))
    return analysis[NAME].isel(time=slice(740, 760)), climate


def test_departures_count_in_standard_deviations_of_the_place(world: tuple[xr.DataArray, xr.Dataset]) -> None:
    field, climate = world
    found = extremes.departures(field, climate)
    usual = climatologies.select(climate, field["time"])
    expected = (field.values[10, 8, 3] - usual[NAME].values[10, 8, 3]) / usual[f"{NAME}_std"].values[10, 8, 3]
    assert found.values[10, 8, 3] == pytest.approx(expected)
    where = extremes.most_extreme(found, "low")  # by far not the lowest temperature, which the lively half has
    assert where["time"] == field["time"][10]
    assert (float(where["latitude"]), float(where["longitude"])) == (GRID.latitude[8], GRID.longitude[3])
    assert float(where) == pytest.approx(float(found.min()))
    assert float(extremes.most_extreme(found, "high")) == pytest.approx(float(found.max()))


def test_a_mask_leaves_places_out_and_a_mask_of_all_is_an_error(world: tuple[xr.DataArray, xr.Dataset]) -> None:
    found = extremes.departures(*world)
    south = found.where(found["latitude"] < 0)
    assert float(extremes.most_extreme(south, "low")["latitude"]) < 0
    with pytest.raises(InputError, match="no departure is left"):
        extremes.most_extreme(found.where(found["latitude"] > 100), "low")
    with pytest.raises(InputError, match=f"departures of {NAME}: the climatology has no {NAME}_std; it has"):
        extremes.departures(world[0], world[1].drop_vars(f"{NAME}_std"))


@pytest.mark.parametrize(("latitude", "longitude"), [(60.0, 300.0), (-85.0, 10.0), (88.0, 179.0), (0.0, 181.0)])
def test_the_frame_holds_the_place_and_stays_on_the_globe(latitude: float, longitude: float) -> None:
    west, east, south, north = extremes.extent_around(latitude, longitude, high=40)
    assert north - south == pytest.approx(40)
    assert -90 <= south <= latitude <= north <= 90
    assert (longitude - west) % 360 == pytest.approx((east - west) / 2)
    assert east - west <= 180


def test_only_what_the_frame_shows_counts_across_the_date_line() -> None:
    field = xr.DataArray(np.ones(GRID.shape), GRID.coords(), ("latitude", "longitude"))
    kept = extremes.within(field, (150.0, 210.0, 0.0, 40.0)).stack(cell=("latitude", "longitude")).dropna("cell")
    assert set(kept["longitude"].values.tolist()) == {150.0, 165.0, 180.0, 195.0, 210.0}
    assert kept["latitude"].min() > 0
    assert kept["latitude"].max() < 40
    assert extremes.within(field, (-30.0, 30.0, -90.0, 90.0)).sel(longitude=330.0).notnull().all()
