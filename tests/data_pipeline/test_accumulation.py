"""What is accumulated: each window is exactly the one its name and stamp say, and a window that is not whole is not made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel, validate
from data_pipeline.sources.accumulation import accumulate, deaccumulate, totals
from data_pipeline.sources.files import open_ensemble, open_files
from tests.toys import UNITS

GRID = Grid.named("8x4")
TP = "total_precipitation"


def rain(stamps: pd.DatetimeIndex, name: str = TP, seed: int = 0) -> xr.Dataset:
    """Wet and dry analyses of one accumulated variable."""
    values = np.maximum(np.random.default_rng(seed).normal(0, 1e-3, (len(stamps), *GRID.shape)), 0).astype("f4")
    dims = ("time", "latitude", "longitude")
    return xr.Dataset({name: (dims, values, {"units": UNITS.get(name, "m")})}, {"time": stamps.as_unit("ns"), **GRID.coords()})


def hourly(count: int = 72) -> xr.Dataset:
    return rain(pd.date_range("2020-01-01T01", periods=count, freq="h"))


def forecast(hours: list[int], values: np.ndarray | None = None, name: str = TP) -> xr.Dataset:
    """Two initialisations, three members; `values` of shape (2, leads, 3, latitude, longitude)."""
    shape = (2, len(hours), 3, *GRID.shape)
    if values is None:
        values = np.random.default_rng(1).gamma(0.5, 1e-3, shape)
    dims = ("time", "prediction_timedelta", "number", "latitude", "longitude")
    coords: dict[str, Any] = {
        "time": pd.date_range("2020-01-01", periods=2, freq="12h").as_unit("ns"),
        "prediction_timedelta": pd.to_timedelta(hours, unit="h").as_unit("ns"), "number": [0, 1, 2], **GRID.coords(),
    }  # fmt: skip
    return xr.Dataset({name: (dims, values.astype("f4"), {"units": UNITS.get(name, "m")})}, coords)


def mapping(data: xr.Dataset) -> str:
    return "\n".join(json.loads(data.attrs["mapping"]))


# --- windows of an analysis


@pytest.mark.parametrize("hours", [6, 12, 24])
@pytest.mark.parametrize("lazily", [False, True])
def test_hourly_rain_is_summed_over_the_hours_that_end_at_the_stamp(hours: int, lazily: bool) -> None:
    data = hourly()
    name = f"{TP}_{hours}hr"
    found = totals(data.chunk(time=1) if lazily else data, [name])
    assert (found[name].chunks is not None) == lazily
    validate(found)
    assert found["time"].values[0] == np.datetime64("2020-01-01T00") + np.timedelta64(hours, "h")
    every = data[TP].values.astype("f8")
    expected = [every[end - hours : end].sum(axis=0) for end in range(hours, 73)]
    np.testing.assert_allclose(found[name].values, expected, rtol=1e-6)
    assert f"{TP} -> {name} (sum of {hours} windows of 1 h that end in it)" in mapping(found)
    assert f"time: {hours - 1} stamps left out" in mapping(found)


def test_only_the_wanted_stamps_are_made() -> None:
    wanted = pd.date_range("2020-01-01T00", periods=8, freq="6h")
    found = totals(hourly(), [f"{TP}_12hr", "temperature_500"], times=wanted)
    np.testing.assert_array_equal(found["time"].values, wanted[2:].values)
    whole = totals(hourly(), [f"{TP}_12hr"])
    xr.testing.assert_equal(found, whole.sel(time=found["time"]))


@given(st.sets(st.integers(0, 47), max_size=8), st.sampled_from([2, 3, 6]))
def test_a_stamp_is_there_exactly_if_its_whole_window_is(holes: set[int], hours: int) -> None:
    name = f"{TP}_{hours}hr"
    data = hourly(48).isel(time=[i for i in range(48) if i not in holes])
    ends = [i for i in range(48) if i >= hours - 1 and not holes & set(range(i - hours + 1, i + 1))]
    found, whole = totals(data, [name]), totals(hourly(48), [name])
    np.testing.assert_array_equal(found["time"].values, hourly(48)["time"].values[ends])
    xr.testing.assert_equal(found[name], whole[name].sel(time=found["time"]))


def test_the_longest_windows_that_fit_are_added() -> None:
    data = hourly()
    with_six = totals(data, [f"{TP}_6hr"])
    found = totals(with_six, [f"{TP}_24hr", f"{TP}_9hr"])
    assert f"{TP}_6hr -> {TP}_24hr (sum of 4 windows of 6 h" in mapping(found)
    assert f"{TP} -> {TP}_9hr (sum of 9 windows of 1 h" in mapping(found)
    direct = totals(data, [f"{TP}_24hr"])[f"{TP}_24hr"]
    np.testing.assert_allclose(found[f"{TP}_24hr"].values, direct.sel(time=found["time"]).values, rtol=1e-6)


def test_six_hourly_windows_at_hourly_stamps_do_not_overlap() -> None:
    data = hourly()
    six = totals(data, [f"{TP}_6hr"])[[f"{TP}_6hr"]]
    found = totals(six, [f"{TP}_12hr"])
    direct = totals(data, [f"{TP}_12hr"])[f"{TP}_12hr"]
    np.testing.assert_allclose(found[f"{TP}_12hr"].values, direct.values, rtol=1e-6)


def test_a_step_that_is_the_window_is_the_same_field() -> None:
    data = rain(pd.date_range("2020-01-01", periods=4, freq="6h"))
    found = totals(data, [f"{TP}_6hr"])
    np.testing.assert_array_equal(found[f"{TP}_6hr"].values, data[TP].values)
    assert "the same window" in mapping(found)


def test_highest_and_lowest_values_are_not_summed() -> None:
    stamps = pd.date_range("2020-01-01", periods=6, freq="6h")
    data = rain(stamps, "maximum_2m_temperature_6hr").assign(rain(stamps, "minimum_2m_temperature_6hr", seed=1))
    found = totals(data, ["maximum_2m_temperature_12hr", "minimum_2m_temperature_12hr"])
    highest, lowest = (data[f"{name}_2m_temperature_6hr"].values for name in ("maximum", "minimum"))
    np.testing.assert_array_equal(found["maximum_2m_temperature_12hr"].values, np.maximum(highest[1:], highest[:-1]))
    np.testing.assert_array_equal(found["minimum_2m_temperature_12hr"].values, np.minimum(lowest[1:], lowest[:-1]))


def test_a_missing_value_is_missing_in_every_window_that_holds_it() -> None:
    data = hourly(12)
    data[TP].values[5, 0, 0] = np.nan
    found = totals(data, [f"{TP}_3hr"])[f"{TP}_3hr"]
    assert np.isnan(found.isel(latitude=0, longitude=0)).values.tolist() == [False] * 3 + [True] * 3 + [False] * 4


def test_what_cannot_be_made_is_left_to_the_caller() -> None:
    data = rain(pd.date_range("2020-01-01", periods=4, freq="6h"))
    found = totals(data, [Channel("geopotential", 500), f"{TP}_3hr", f"{TP}_9hr", "snowfall_12hr", TP, "nonsense_6hr"])
    xr.testing.assert_identical(found.drop_attrs(deep=False), data.drop_attrs(deep=False))


def test_no_whole_window_at_all_is_refused() -> None:
    data = rain(pd.date_range("2020-01-01", periods=4, freq="6h"))
    expected = "total_precipitation_48hr: no stamp has every 6 h of its window, first 2020-01-01T00:00; total_precipitation has 4"
    with pytest.raises(InputError, match=expected):
        totals(data, [f"{TP}_48hr"])


# --- windows of a forecast


def test_leads_without_a_whole_window_are_missing_and_named() -> None:
    data = forecast([6, 12, 18, 24, 36])
    found = totals(data, [f"{TP}_12hr"])
    validate(found, "forecast")
    twelve = found[f"{TP}_12hr"]
    assert twelve.attrs["hours_available"] == [12, 18, 24]
    assert np.isnan(twelve.isel(prediction_timedelta=[0, 4])).all()
    six = data[TP].values
    np.testing.assert_allclose(twelve.values[:, 1:4], six[:, :3] + six[:, 1:4], rtol=1e-6)
    assert "no whole window at 6 h, 36 h" in mapping(found)


def test_one_array_keeps_all_its_stamps() -> None:
    found = accumulate(hourly(6)[TP], 4)
    assert np.isnan(found.isel(time=slice(0, 3))).all()
    np.testing.assert_array_equal(found.isel(time=slice(3, 6)).values, totals(hourly(6), [f"{TP}_4hr"])[f"{TP}_4hr"].values)
    with pytest.raises(InputError, match="accumulated over 6 hours, which do not add up to 9"):
        accumulate(forecast([6, 12])[TP], 9)
    with pytest.raises(InputError, match="not accumulated"):
        accumulate(hourly(6).rename({TP: "2m_temperature"})["2m_temperature"], 6)


# --- values that run from a common start


def as_bucket(steps: np.ndarray, hours: list[int], length: int | None) -> np.ndarray:
    """Sums along axis 1 since the last full `length` hours (None: since the initialisation) from those of each step."""
    out = np.empty_like(steps)
    for i, hour in enumerate(hours):
        start = 0 if length is None else (hour - 1) // length * length
        out[:, i] = sum(steps[:, j] for j in range(i + 1) if hours[j] > start)
    return out


@pytest.mark.parametrize(("rule", "length"), [("init", None), ("bucket:6h", 6), ("bucket:12h", 12), ("step", 3)])
@pytest.mark.parametrize("lazily", [False, True])
def test_every_rule_gives_the_steps_back(rule: str, length: int | None, lazily: bool) -> None:
    hours = list(range(3, 37, 3))
    steps = np.random.default_rng(2).gamma(0.5, 1e-3, (2, len(hours), 3, *GRID.shape))
    data = forecast(hours, as_bucket(steps, hours, length))
    found = deaccumulate(data.chunk(prediction_timedelta=1) if lazily else data, accumulation=rule)
    validate(found, "forecast")
    name = TP if rule == "step" else f"{TP}_3hr"
    assert list(found.data_vars) == [name]
    assert (found[name].chunks is not None) == lazily
    np.testing.assert_allclose(found[name].values, steps, rtol=1e-4, atol=1e-8)
    assert repr(rule) in mapping(found)


def test_steps_that_grow_give_a_variable_each() -> None:
    hours = [0, 3, 6, 9, 12, 18, 24]
    run = np.linspace(0, 0.024, 25)[hours]
    data = forecast(hours, run[None, :, None, None, None] * np.ones((2, 7, 3, *GRID.shape)))
    found = deaccumulate(data, accumulation="init")
    assert sorted(map(str, found.data_vars)) == [f"{TP}_3hr", f"{TP}_6hr"]
    three, six = found[f"{TP}_3hr"], found[f"{TP}_6hr"]
    assert three.attrs["hours_available"] == [3, 6, 9, 12]
    assert six.attrs["hours_available"] == [6, 9, 12, 18, 24]
    np.testing.assert_allclose(three.sel(prediction_timedelta=three["prediction_timedelta"][1:5]), 0.003, rtol=1e-5)
    np.testing.assert_allclose(six.isel(prediction_timedelta=slice(2, None)), 0.006, rtol=1e-5)
    day = totals(found, [f"{TP}_24hr"])[f"{TP}_24hr"]
    np.testing.assert_allclose(day.isel(prediction_timedelta=-1), 0.024, rtol=1e-5)


def test_the_first_lead_is_there_only_if_it_is_one_step_long() -> None:
    found = deaccumulate(forecast([72, 78, 84], np.ones((2, 3, 3, *GRID.shape))), accumulation="init")
    assert found[f"{TP}_6hr"].attrs["hours_available"] == [78, 84]
    single = deaccumulate(forecast([24]), accumulation="init")
    np.testing.assert_array_equal(single[f"{TP}_24hr"].values, forecast([24])[TP].values)


def test_small_falls_are_packing_and_larger_ones_an_error() -> None:
    run = np.array([0.010, 0.010 - 5e-5, 0.012])[None, :, None, None, None] * np.ones((2, 3, 3, *GRID.shape))
    found = deaccumulate(forecast([6, 12, 18], run).chunk(), accumulation="init")
    assert (found[f"{TP}_6hr"].isel(prediction_timedelta=1).values == 0).all()
    assert "negatives to -0.0001 m (packing) become 0" in mapping(found)
    steps = deaccumulate(forecast([6, 12, 18], run[:, ::-1]).chunk(), accumulation="init")
    with pytest.raises(InputError, match=r"total_precipitation falls by 0.00205.* it is not accumulated as said"):
        steps.compute()


def test_net_radiation_may_fall() -> None:
    name = "surface_net_thermal_radiation"
    run = np.array([-1e5, -3e5])[None, :, None, None, None] * np.ones((2, 2, 3, *GRID.shape))
    found = deaccumulate(forecast([3, 6], run, name), accumulation="init")
    np.testing.assert_allclose(found[f"{name}_3hr"].isel(prediction_timedelta=1), -2e5)


def test_what_is_no_sum_or_has_its_hours_is_left_alone() -> None:
    data = forecast([6, 12], name=f"{TP}_6hr").assign(forecast([6, 12], name="2m_temperature"))
    found = deaccumulate(data, accumulation="init")
    xr.testing.assert_identical(found.drop_attrs(deep=False), data.drop_attrs(deep=False))


def test_a_day_of_era5_land_runs_from_00_and_ends_at_00() -> None:
    plain = hourly(72)  # 01 UTC of the first day to 00 UTC of the fourth
    hours = plain[TP].values.reshape(3, 24, *GRID.shape)
    data = plain.copy(data={TP: hours.cumsum(axis=1).reshape(72, *GRID.shape)})
    found = deaccumulate(data, accumulation="day")
    np.testing.assert_allclose(found[f"{TP}_1hr"].values, plain[TP].values, atol=1e-8)
    midnights = deaccumulate(data.isel(time=slice(23, None, 24)), accumulation="day")
    np.testing.assert_allclose(midnights[TP].values, hours.sum(axis=1), rtol=1e-5)  # the step is the day
    np.testing.assert_array_equal(totals(midnights, [f"{TP}_24hr"])[f"{TP}_24hr"].values, midnights[TP].values)


def test_an_hour_after_a_hole_is_lost_and_said() -> None:
    data = hourly(48)
    data = data.copy(data={TP: data[TP].values.reshape(2, 24, *GRID.shape).cumsum(axis=1).reshape(48, *GRID.shape)})
    found = deaccumulate(data.isel(time=[i for i in range(48) if i not in (5, 23)]), accumulation="day")
    lost = {5, 6, 23}  # 01 UTC, after the hole of 00, starts anew
    np.testing.assert_array_equal(found["time"].values, data["time"].values[[i for i in range(48) if i not in lost]])
    assert "time: 1 stamps left out" in mapping(found)


def test_nothing_stated_is_taken_as_the_step_and_said() -> None:
    found = deaccumulate(forecast([6, 12]))
    assert list(found.data_vars) == [TP]
    assert "nothing tells what it is accumulated over, taken as the step (source option accumulation)" in mapping(found)


@pytest.mark.parametrize(
    ("data", "rule", "message"),
    [
        (forecast([6, 12]), "day", '\'day\' of a forecast: the source option accumulation may be "init", "step"'),
        (hourly(6), "init", '\'init\' of an analysis: the source option accumulation may be "step", "day"'),
        (hourly(6), "bucket:0h", "'bucket:0h'"),
        (hourly(6), "sometimes", "'sometimes'"),
    ],
)
def test_a_rule_that_does_not_fit_is_refused(data: xr.Dataset, rule: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        deaccumulate(data, accumulation=rule)


# --- what files state


@pytest.mark.parametrize(
    ("windows", "names"),
    [
        ([(0, 3), (0, 6), (0, 9), (0, 12)], {f"{TP}_3hr"}),
        ([(0, 3), (0, 6), (6, 9), (6, 12)], {f"{TP}_3hr"}),
        ([(0, 3), (3, 6), (6, 9), (9, 12)], {TP}),
        ([(2, 3), (5, 6), (8, 9), (11, 12)], {f"{TP}_1hr"}),
    ],
)
def test_the_windows_of_messages_decide(windows: list[tuple[int, int]], names: set[str]) -> None:
    data = forecast([3, 6, 9, 12], np.cumsum(np.ones((2, 4, 3, *GRID.shape)), axis=1))
    data[TP].attrs["windows"] = windows
    found = deaccumulate(data)
    assert set(map(str, found.data_vars)) == names
    assert "accumulated as its messages state" in mapping(found)
    assert "windows" not in found[names.pop()].attrs
    if windows[-1][0] != 0:
        with pytest.raises(InputError, match=r"'init', but its messages state others: at . h over"):
            deaccumulate(data, accumulation="init")


def test_windows_of_other_lengths_are_no_analysis() -> None:
    data = rain(pd.date_range("2020-01-01", periods=4, freq="6h"))
    data[TP].attrs["windows"] = [(0, 6), (0, 12)]
    with pytest.raises(InputError, match="accumulated over 6 h, 12 h at stamps of one analysis"):
        deaccumulate(data)


@pytest.mark.parametrize(
    "attrs",
    [{"long_name": "Precipitation accumulated since initialisation"}, {"comment": "sum from the start of the forecast"}],
)
def test_a_file_that_says_since_the_initialisation_is_believed(tmp_path: Path, attrs: dict[str, str]) -> None:
    steps = np.random.default_rng(2).gamma(0.5, 1e-3, (2, 3, 3, *GRID.shape))
    data = forecast([6, 12, 18], as_bucket(steps, [6, 12, 18], None)).rename({TP: "tp"})
    data["tp"].attrs.update(attrs)
    data.to_netcdf(tmp_path / "run.nc")
    opened = open_ensemble(tmp_path / "run.nc")
    np.testing.assert_allclose(opened[f"{TP}_6hr"].values, steps, rtol=1e-4, atol=1e-8)
    assert "accumulated by 'init' (its attributes state)" in mapping(opened)
    asked = open_ensemble(tmp_path / "run.nc", variables=[f"{TP}_12hr"])
    assert list(asked.data_vars) == [f"{TP}_12hr"]


def test_the_option_of_the_source_reaches_the_files(tmp_path: Path) -> None:
    days = hourly(48)
    running = days[TP].values.reshape(2, 24, *GRID.shape).cumsum(axis=1).reshape(48, *GRID.shape)
    days.copy(data={TP: running}).rename({TP: "tp"}).to_netcdf(tmp_path / "land.nc")
    opened = open_files(tmp_path / "land.nc", accumulation="day", variables=[f"{TP}_6hr"])
    assert list(opened.data_vars) == [f"{TP}_6hr"]
    np.testing.assert_allclose(opened[f"{TP}_6hr"].values[-1], days[TP].values[-6:].sum(axis=0), atol=1e-7)
    assert "accumulated by 'day' (by the source option accumulation)" in mapping(opened)
    taken = open_files(tmp_path / "land.nc")
    assert "nothing tells what it is accumulated over" in mapping(taken)
