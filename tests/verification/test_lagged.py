"""Forecasts of one valid time, and how their signal is drawn."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import validate
from tests.toys import as_analysis
from tests.verification.pictures import pixels, texts
from verification import efi, lagged, sot

GRID = Grid.named("24x12")
DAY = np.timedelta64(24, "h").astype("timedelta64[ns]")
START = np.datetime64("2001-01-02", "ns")
LEVELS = [0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0]


def forecasts() -> xr.Dataset:
    """Four daily initialisations of three daily leads; the value says which: 10 * initialisation + lead + member / 10."""
    times, leads, number = START + DAY * np.arange(4), DAY * np.arange(1, 4), np.arange(5)
    value = 10 * np.arange(4)[:, None, None] + np.arange(1, 4)[:, None] + number / 10
    field = np.broadcast_to(value[..., None, None], (4, 3, 5, *GRID.shape)).astype("float32")
    dims = ("time", "prediction_timedelta", "number", "latitude", "longitude")
    coords = {"time": times, "prediction_timedelta": leads, "number": number, **GRID.coords()}
    data = xr.Dataset({"2m_temperature": (dims, field, {"units": "K"})}, coords)
    return data.assign_coords(valid_time=(("time", "prediction_timedelta"), times[:, None] + leads))


@pytest.mark.parametrize("chunks", [None, {"time": 1, "number": 2}])
def test_each_lead_of_a_valid_time_comes_from_its_own_initialisation(chunks: dict[str, int] | None) -> None:
    data = forecasts() if chunks is None else forecasts().chunk(chunks)
    found = lagged.valid_at(data, START + 3 * DAY)
    assert found["2m_temperature"].dims == ("prediction_timedelta", "number", "latitude", "longitude")
    np.testing.assert_allclose(found["2m_temperature"][:, 0, 0, 0], [21, 12, 3])
    assert (found["time"] + found["prediction_timedelta"] == START + 3 * DAY).all()
    assert found["valid_time"].item() == (START + 3 * DAY).item()
    assert found["2m_temperature"].attrs["units"] == "K"


def test_leads_without_an_initialisation_are_left_out_and_none_is_an_error() -> None:
    last = lagged.valid_at(forecasts(), "2001-01-07")
    np.testing.assert_allclose(last["2m_temperature"][:, 0, 0, 0], [32, 23])
    with pytest.raises(InputError, match=r"no initialisation .* valid at 2003-01-01 00 UTC: .* leads of 1 d to 3 d"):
        lagged.valid_at(forecasts(), "2003-01-01")


def test_the_truth_as_a_forecast_is_the_analysis_at_its_valid_times() -> None:
    analysis = as_analysis({"2m_temperature": np.random.default_rng(0).normal(280, 5, (12, *GRID.shape))}, GRID)
    analysis["land_sea_mask"] = (("latitude", "longitude"), np.zeros(GRID.shape, "float32"))
    found = lagged.as_forecast(analysis, START, [DAY, 2 * DAY])
    validate(found, "forecast")
    assert "land_sea_mask" not in found
    expected = analysis["2m_temperature"].sel(time=[START + DAY, START + 2 * DAY]).values
    np.testing.assert_array_equal(found["2m_temperature"][0, :, 0], expected)
    with pytest.raises(InputError, match=r"lacks 1 of 2 valid times from 2001-01-02 00 UTC, first 2001-01-12 00 UTC"):
        lagged.as_forecast(analysis, START, [DAY, 10 * DAY])


def signal() -> tuple[xr.DataArray, xr.DataArray]:
    """Members that grow colder than the climate as the event comes nearer."""
    rng = np.random.default_rng(3)
    values = 280 - np.array([12.0, 8.0, 2.0])[:, None] + rng.normal(size=(3, 9))
    coords = {"prediction_timedelta": DAY * np.array([1, 3, 5]), "latitude": 60.0, "longitude": 300.0, "valid_time": START}
    members = xr.DataArray(values, coords, ("prediction_timedelta", "number"), "2m_temperature", {"units": "K"})
    return members, xr.DataArray([270.0, 272, 276, 280, 284, 288, 290], {"quantile": LEVELS}, ("quantile",))


def test_a_signal_shows_members_climate_truth_index_and_the_tail_it_points_to() -> None:
    members, climate = signal()
    figure = lagged.plot_signal(members, climate, 266.0)
    top, middle, bottom = figure.axes
    np.testing.assert_allclose(middle.lines[0].get_ydata(), efi(members, climate))
    np.testing.assert_allclose(bottom.lines[0].get_ydata(), sot(members, climate, level=0.1))
    levels = [line.get_ydata()[0] for line in top.lines]
    np.testing.assert_allclose(levels, np.array([272, 276, 280, 284, 288, 266]) - 273.15)
    assert top.get_xlim()[0] > top.get_xlim()[1]  # the day before on the right
    medians = top.collections[1].get_segments()
    np.testing.assert_allclose([line[0][1] for line in medians], np.median(members, axis=1) - 273.15)
    written = texts(figure)
    for words in ("at 60°N 60°W, 9 members", "valid 2001-01-02 00 UTC", "shift of tails, lower", "days before", "1 %", "truth"):
        assert words in written
    assert "upper" in texts(lagged.plot_signal(members, climate, tail=0.9))
    assert pixels(figure, dpi=40).std() > 0.05
    with pytest.raises(InputError, match="of one place"):
        lagged.plot_signal(members.expand_dims("x"), climate)


def test_many_leads_have_few_ticks_and_several_valid_times_are_an_error() -> None:
    rng = np.random.default_rng(4)
    leads = np.timedelta64(6, "h").astype("timedelta64[ns]") * np.arange(1, 61)
    members = xr.DataArray(280 + rng.normal(size=(60, 9)), {"prediction_timedelta": leads}, ("prediction_timedelta", "number"))
    members, climate = members.rename("2m_temperature").assign_attrs(units="K"), signal()[1]
    along = members.assign_coords(valid_time=("prediction_timedelta", START + leads))
    with pytest.raises(InputError, match=r"60 valid times, 2001-01-02 06 UTC to 2001-01-17 00 UTC"):
        lagged.plot_signal(along, climate)
    one = members.assign_coords(valid_time=("prediction_timedelta", np.full(60, START)))
    figure = lagged.plot_signal(one, climate)
    assert "valid 2001-01-02 00 UTC" in texts(figure)
    ticks = figure.axes[2].get_xticks()
    assert 4 <= len(ticks) <= 12
    np.testing.assert_array_equal(ticks, ticks.round())


def test_maps_of_the_index_go_from_the_earliest_forecast_to_the_last() -> None:
    leads = DAY * np.array([1, 3])
    index = xr.DataArray(
        np.stack([np.full(GRID.shape, value) for value in (-0.95, 0.0)]),
        {"prediction_timedelta": leads, **GRID.coords(), "valid_time": START},
        ("prediction_timedelta", "latitude", "longitude"),
    )
    figure = lagged.plot_efi_by_lead(index, index + 1, mark=(10.0, 20.0), width=5)
    maps = [ax for ax in figure.axes if hasattr(ax, "projection")]
    assert [ax.get_title(loc="left") for ax in maps] == ["3 d before", "1 d before"]
    picture = pixels(figure, dpi=60)
    half = picture.shape[1] // 2
    assert picture[:, :half].mean() > picture[:, half:].mean() + 0.1  # the extreme one is dark
    with pytest.raises(InputError, match="expected prediction_timedelta, latitude, longitude"):
        lagged.plot_efi_by_lead(index.isel(prediction_timedelta=0))
