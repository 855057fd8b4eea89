"""Climatology against brute force and xarray's weighted quantile; members of climatological ensembles by their definition."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import climatological, climatology, store, windows
from data_pipeline.errors import InputError, NotReadyError
from data_pipeline.schema import Channel, validate
from tests.children import contents

PERIOD = ("2003-01-01T00", "2005-12-31T12")
CHANNELS = [Channel("geopotential", 500), Channel("2m_temperature")]


@pytest.fixture(scope="module")
def analysis() -> xr.Dataset:
    """Four years, 12-hourly, with a seasonal cycle, a large mean and a level that only one variable has."""
    times = pd.date_range("2003-01-01", "2006-12-31T12", freq="12h")
    draws = np.random.default_rng(3)
    season = np.cos(2 * np.pi * times.day_of_year.to_numpy() / 365.25)[:, None, None]
    z = 5.5e4 + 800 * season + 500 * draws.normal(size=(len(times), 3, 4))
    t = 280 + 10 * season + 3 * times.hour.to_numpy()[:, None, None] / 12 + draws.gumbel(size=(len(times), 3, 4))
    levels = np.stack([z, np.full_like(z, np.nan)], axis=1)
    return xr.Dataset(
        {
            "geopotential": (("time", "level", "latitude", "longitude"), levels.astype("float32"),
                             {"units": "m2 s-2", "levels_available": [500]}),
            "2m_temperature": (("time", "latitude", "longitude"), t.astype("float32"), {"units": "K"}),
        },
        coords={"time": times, "level": [500, 850], "latitude": [-20.0, 0.0, 20.0], "longitude": [0.0, 90.0, 180.0, 270.0]},
    )  # fmt: skip


def window(analysis: xr.Dataset, hour: int, day: int, window_days: int) -> tuple[xr.DataArray, xr.DataArray]:
    """The sample of an hour and day of year, and its weights, stamp by stamp."""
    field = analysis["2m_temperature"].sel(time=slice(*PERIOD))
    field = field[field["time"].dt.hour == hour]
    apart = np.abs(field["time"].dt.dayofyear - day)
    weights = (1 - np.minimum(apart, 366 - apart) / window_days).clip(0, None)
    return field.astype("float64"), weights


@pytest.mark.parametrize(("hour", "day"), [(0, 1), (12, 60), (0, 200), (12, 366)])
@pytest.mark.parametrize("window_days", [1, 7, 30])
def test_mean_and_std_are_those_of_the_windowed_sample(analysis: xr.Dataset, hour: int, day: int, window_days: int) -> None:
    found = climatology.compute(analysis, CHANNELS, PERIOD, window_days=window_days).sel(hour=hour, dayofyear=day)
    field, weights = window(analysis, hour, day, window_days)
    mean = (field * weights).sum("time") / weights.sum()
    std = np.sqrt(((field - mean) ** 2 * weights).sum("time") / weights.sum())
    np.testing.assert_allclose(found["2m_temperature"], mean, rtol=1e-7)
    np.testing.assert_allclose(found["2m_temperature_std"], std, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("hour", "day"), [(0, 1), (12, 183), (0, 366)])
def test_quantiles_agree_with_xarray(analysis: xr.Dataset, hour: int, day: int) -> None:
    levels = (0.0, 0.1, 0.5, 0.95, 1.0)
    found = climatology.compute(analysis, CHANNELS, PERIOD, window_days=9, quantiles=levels).sel(hour=hour, dayofyear=day)
    field, weights = window(analysis, hour, day, 9)
    np.testing.assert_allclose(found["2m_temperature_quantile"], field.weighted(weights).quantile(levels, dim="time"), rtol=1e-6)


def test_equal_weights_give_the_usual_quantile() -> None:
    sample = np.random.default_rng(2).normal(size=(17, 3)).astype("float32")
    levels, found = np.array([0.0, 0.25, 0.5, 0.99]), np.empty((4, 366, 3), "float32")
    windows.quantiles(sample, np.full(17, 40), 5, levels, found)
    np.testing.assert_allclose(found[:, 40], np.quantile(sample, levels, axis=0), rtol=1e-6)
    assert np.isnan(found[:, 40 + 5]).all()


def test_the_layout_is_that_of_weatherbench(analysis: xr.Dataset) -> None:
    found = climatology.compute(analysis, CHANNELS, PERIOD, quantiles=(0.5,))
    assert found["geopotential"].dims == ("hour", "dayofyear", "level", "latitude", "longitude")
    assert found["2m_temperature_quantile"].dims == ("quantile", "hour", "dayofyear", "latitude", "longitude")
    assert found["hour"].values.tolist() == [0, 12]
    assert found["dayofyear"].values.tolist() == list(range(1, 367))
    assert found["geopotential"].attrs["units"] == "m2 s-2"
    assert {array.dtype for array in found.data_vars.values()} == {np.dtype("float32")}


def test_missing_values_are_left_out_point_by_point(analysis: xr.Dataset) -> None:
    holed = analysis.copy(deep=True)
    holed["2m_temperature"][::3, 1, 2] = np.nan
    holed["2m_temperature"][:, 0, 0] = np.nan
    found = climatology.compute(holed, CHANNELS[1:], PERIOD, window_days=9, quantiles=(0.5,)).sel(hour=12, dayofyear=40)
    field, weights = window(holed, 12, 40, 9)
    point = field[:, 1, 2].dropna("time")
    own = weights.sel(time=point["time"])
    assert float(found["2m_temperature"][1, 2]) == pytest.approx(float((point * own).sum() / own.sum()), rel=1e-6)
    expected = float(point.weighted(own).quantile(0.5))
    assert float(found["2m_temperature_quantile"][0, 1, 2]) == pytest.approx(expected, rel=1e-6)
    assert all(bool(array[..., 0, 0].isnull().all()) for array in found.data_vars.values())
    assert bool(found["2m_temperature"][1:].notnull().all())


@pytest.mark.parametrize("chunks", [{"time": 61}, {"time": 500, "latitude": 2}, {"time": -1, "longitude": 3, "level": 1}])
@pytest.mark.parametrize("budget", [1, 2 * 10**6])
def test_chunks_and_memory_budgets_change_nothing(
    analysis: xr.Dataset, monkeypatch: pytest.MonkeyPatch, chunks: dict[str, int], budget: int
) -> None:
    whole = climatology.compute(analysis, CHANNELS, PERIOD, quantiles=(0.1, 0.9))
    monkeypatch.setattr(climatology, "MEMORY_BUDGET", budget)
    monkeypatch.setattr(climatology, "BLOCK_BYTES", 1000)
    found = climatology.compute(analysis.chunk(chunks), CHANNELS, PERIOD, quantiles=(0.1, 0.9))
    xr.testing.assert_identical(found, whole)


def written(analysis: xr.Dataset, path: Path, **options: Any) -> xr.Dataset:
    path = climatology.write(analysis, CHANNELS, PERIOD, path, quantiles=(0.1, 0.9), **options)
    assert store.verify_store(path) == []
    return store.open_store(path).drop_attrs(deep=False).load()


@pytest.mark.parametrize("budget", [150_000, 2**27])
def test_a_store_written_box_by_box_holds_the_same(
    analysis: xr.Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, budget: int
) -> None:
    # a level that only one variable has is all missing in the other
    two = analysis.assign({"temperature": analysis["geopotential"].fillna(250.0).assign_attrs(units="K", levels_available=[850])})
    channels = [*CHANNELS, Channel("temperature", 850)]
    whole = climatology.compute(two, channels, PERIOD, quantiles=(0.1,))
    assert whole["level"].values.tolist() == [500, 850]
    assert bool(whole["temperature_std"].sel(level=500).isnull().all())
    monkeypatch.setattr(climatology, "MEMORY_BUDGET", budget)
    done: list[tuple[int, int]] = []
    path = climatology.write(
        two, channels, PERIOD, tmp_path / "climate.zarr", quantiles=(0.1,), progress=lambda *state: done.append(state)
    )
    found = store.open_store(path)
    assert list(found.data_vars) == list(whole.data_vars)
    assert {key: found.attrs[key] for key in whole.attrs} == whole.attrs
    xr.testing.assert_equal(found.load(), whole)
    assert done == [(i + 1, len(done)) for i in range(len(done))]
    assert len(done) == {150_000: 9, 2**27: 3}[budget]


def test_stopped_at_any_box_it_continues_to_the_same_bytes(
    analysis: xr.Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(climatology, "MEMORY_BUDGET", 200_000)
    undisturbed = written(analysis, tmp_path / "once.zarr")
    for last in (1, 5):

        def stop(done: int, _: int, last: int = last) -> None:
            if done == last:
                raise KeyboardInterrupt

        path = tmp_path / f"{last}.zarr"
        with pytest.raises(KeyboardInterrupt):
            written(analysis, path, progress=stop)
        with pytest.raises(NotReadyError, match=f"{last} of"):
            store.open_store(path)
        left: list[tuple[int, int]] = []
        xr.testing.assert_identical(written(analysis, path, progress=lambda *state, left=left: left.append(state)), undisturbed)
        assert left == [(done, 6) for done in range(last + 1, 7)]
        assert contents(path) == contents(tmp_path / "once.zarr")
        assert written(analysis, path, progress=lambda *_: pytest.fail("nothing is left to do")).equals(undisturbed)


def test_another_window_is_not_written_over_the_first(analysis: xr.Dataset, tmp_path: Path) -> None:
    written(analysis, tmp_path / "climate.zarr")
    with pytest.raises(InputError, match="window_days: 30 -> 9"):
        written(analysis, tmp_path / "climate.zarr", window_days=9)


def test_two_workers_of_a_cluster_give_the_same_bytes_as_threads(
    analysis: xr.Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(climatology, "MEMORY_BUDGET", 10**6)
    store.write_dataset(tmp_path / "analysis.zarr", analysis, chunks={"time": 365})
    stored = store.open_store(tmp_path / "analysis.zarr")
    written(stored, tmp_path / "here.zarr")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp://", host="127.0.0.1"
    ) as cluster:
        written(stored, tmp_path / "there.zarr", cluster=cluster.scheduler_address)
    assert contents(tmp_path / "there.zarr") == contents(tmp_path / "here.zarr")


def test_a_quantile_is_the_same_whatever_else_is_asked_for(analysis: xr.Dataset) -> None:
    one = climatology.compute(analysis, CHANNELS, PERIOD, quantiles=(0.5,))
    three = climatology.compute(analysis, CHANNELS, PERIOD, quantiles=(0.1, 0.5, 0.9))
    xr.testing.assert_identical(three.sel(quantile=[0.5]), one)


@settings(max_examples=20)
@given(
    n=st.integers(1, 400), window_days=st.integers(1, 183), share=st.floats(0, 0.9), seed=st.integers(0, 100),
    level=st.floats(0, 1),
)  # fmt: skip
def test_quantiles_follow_their_definition_for_any_sample(
    n: int, window_days: int, share: float, seed: int, level: float
) -> None:
    draws = np.random.default_rng(seed)
    sample = np.round(draws.normal(size=(n, 2)), 1).astype("float32")  # with ties
    sample[draws.random((n, 2)) < share] = np.nan
    sample[0, 0] = np.inf
    days = draws.integers(0, 366, n)
    found = np.empty((1, 366, 2), "float32")
    windows.quantiles(sample, days, window_days, np.array([level]), found)
    sample[0, 0] = np.nan
    for day in draws.integers(0, 366, 5):
        apart = np.abs(days - day)
        weights = xr.DataArray(np.clip(window_days - np.minimum(apart, 366 - apart), 0, None), dims="stamp")
        for point in range(2):
            values = xr.DataArray(sample[:, point].astype("float64"), dims="stamp")
            own = values.notnull() & (weights > 0)
            if not own.any():
                assert np.isnan(found[0, day, point])
                continue
            expected = values[own].weighted(weights[own]).quantile(level)
            assert found[0, day, point] == pytest.approx(float(expected), rel=1e-5, abs=1e-5)


def test_select_looks_up_hour_and_day_of_each_valid_time(analysis: xr.Dataset) -> None:
    table = climatology.compute(analysis, CHANNELS, PERIOD)
    times = pd.DatetimeIndex(["2007-03-01T12", "2008-03-01T00", "2008-12-31T12"])
    found = climatology.select(table, times)
    assert found["2m_temperature"].dims == ("time", "latitude", "longitude")
    for i, (hour, day) in enumerate([(12, 60), (0, 61), (12, 366)]):
        expected = table["2m_temperature"].sel(hour=hour, dayofyear=day).values
        np.testing.assert_array_equal(found["2m_temperature"][i], expected)
    with pytest.raises(InputError, match=r"hours \[0, 12\] UTC; \[6\] are asked"):
        climatology.select(table, pd.DatetimeIndex(["2007-03-01T06"]))


def test_two_months_are_too_short_and_the_message_says_what_is_there(analysis: xr.Dataset) -> None:
    winter = analysis.sel(time=slice("2003-12-01", "2004-01-31"))
    for ask in (climatology.compute, lambda *a: climatological.climatological_ensemble(a[0], a[1], winter.indexes["time"], a[2])):
        with pytest.raises(InputError, match=r"at least one full year.*the store has 2003-12-01..2004-01-31"):
            ask(winter, CHANNELS, PERIOD)


def test_a_season_without_analyses_is_named(analysis: xr.Dataset) -> None:
    summerless = analysis.isel(time=np.flatnonzero(~analysis["time"].dt.month.isin([6, 7, 8])))
    with pytest.raises(InputError, match=r"at 00 UTC no stamp of the period lies within the window of day 15\d"):
        climatology.compute(summerless, CHANNELS, PERIOD, window_days=5)


AVAILABLE = pd.date_range("2001-01-01", "2005-12-31T12", freq="12h")


def by_definition(available: pd.DatetimeIndex, valid: pd.Timestamp, window_days: int, exclude: set[int]) -> list[pd.Timestamp]:
    """Stamp by stamp in plain Python: same hour, near the anniversary of a year that is not excluded."""
    found = []
    for year in range(available[0].year - 1, available[-1].year + 2):
        is_date = valid.month != 2 or valid.day != 29 or year % 4 == 0
        day = dt.date(year, valid.month, valid.day) if is_date else dt.date(year, 3, 1)
        near = [day + dt.timedelta(days=offset) for offset in range(-window_days, window_days + 1)]
        found += [stamp for stamp in available if stamp.date() in near and stamp.hour == valid.hour and year not in exclude]
    return sorted(found)


@settings(max_examples=25)
@given(
    day=st.dates(dt.date(1999, 1, 1), dt.date(2010, 12, 31)), hour=st.sampled_from([0, 12]),
    window_days=st.integers(0, 12), exclude=st.sets(st.integers(2000, 2006), max_size=2),
)  # fmt: skip
def test_members_are_those_around_the_anniversaries(day: dt.date, hour: int, window_days: int, exclude: set[int]) -> None:
    valid = pd.Timestamp(day) + pd.Timedelta(hours=hour)
    found = climatological.member_times(AVAILABLE, valid, window_days=window_days, min_members=1, exclude=exclude)
    assert found.tolist() == by_definition(AVAILABLE, valid, window_days, exclude)


@given(day=st.dates(dt.date(2007, 1, 1), dt.date(2012, 12, 31)), hour=st.sampled_from([0, 12]))
def test_whole_training_years_give_eleven_members_a_year_on_every_date(day: dt.date, hour: int) -> None:
    found = climatological.member_times(AVAILABLE, pd.Timestamp(day) + pd.Timedelta(hours=hour))
    assert len(found) == len(found.unique()) == 55
    assert found.is_monotonic_increasing
    assert set(found.hour) == {hour}


@given(years=st.integers(1, 5), wanted=st.integers(1, 60), day=st.dates(dt.date(2007, 1, 1), dt.date(2008, 12, 31)))
def test_the_window_widens_no_further_than_needed(years: int, wanted: int, day: dt.date) -> None:
    available = pd.date_range("2001-01-01", f"{2000 + years}-12-31", freq="24h")
    found = climatological.member_times(available, pd.Timestamp(day), window_days=5, min_members=wanted)
    assert len(found) >= wanted
    assert len(found) == years * 11 or len(found) < wanted + 2 * years


def test_too_few_analyses_of_an_hour_are_an_error() -> None:
    with pytest.raises(InputError, match="needs 30 analyses of 06 UTC"):
        climatological.member_times(AVAILABLE, pd.Timestamp("2007-01-01T06"))


def forecast_times(first: str, count: int) -> xr.DataArray:
    inits = pd.date_range(first, periods=count, freq="5D")
    leads = pd.to_timedelta([12, 24, 36], "h")
    stamps = inits.to_numpy()[:, None] + leads.to_numpy()[None, :]
    dims = ("time", "prediction_timedelta")
    return xr.DataArray(stamps, dims=dims, coords={"time": inits, "prediction_timedelta": leads})


def test_an_ensemble_holds_the_members_analyses_in_the_forecast_schema(analysis: xr.Dataset) -> None:
    valid = forecast_times("2006-12-20", 4)
    found = climatological.climatological_ensemble(analysis, CHANNELS, valid, PERIOD)
    validate(found, "forecast")
    assert found["2m_temperature"].chunks is not None
    assert found.attrs == {"members": 33, "window_days": 5, "period": "2003-01-01T00/2005-12-31T12"}
    training = analysis.sel(time=slice(*PERIOD))
    for i, j in [(0, 0), (2, 1), (3, 2)]:
        stamp = pd.Timestamp(valid.values[i, j])
        members = climatological.member_times(training.indexes["time"], stamp)
        expected = training.sel(time=members, level=[500])
        for name in ("2m_temperature", "geopotential"):
            np.testing.assert_array_equal(found[name][i, j], expected[name])
    np.testing.assert_array_equal(found["valid_time"], valid)


def test_drawing_from_disk_gives_the_same_members(analysis: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    valid = forecast_times("2006-02-20", 3)
    in_memory = climatological.climatological_ensemble(analysis, CHANNELS, valid, PERIOD).load()
    monkeypatch.setattr(climatological, "ENSEMBLE_BUDGET", 0)
    lazy = climatological.climatological_ensemble(analysis.chunk(time=50), CHANNELS, valid, PERIOD)
    xr.testing.assert_identical(lazy.load(), in_memory)


def test_a_valid_time_inside_the_period_never_meets_its_own_year(analysis: xr.Dataset) -> None:
    times = pd.DatetimeIndex(["2004-07-01T00", "2003-01-02T00"])
    found = climatological.climatological_ensemble(analysis, CHANNELS[1:], times, PERIOD, min_members=20)
    assert found.attrs["members"] == 22
    truth = analysis["2m_temperature"].sel(time=times[0])
    assert not (found["2m_temperature"].isel(time=0) == truth).all(("latitude", "longitude")).any()
    held = analysis["2m_temperature"].sel(time=slice(*PERIOD))
    own = held.sel(time=slice("2002-12-28", "2003-01-07"))
    second = found["2m_temperature"].isel(time=1).values
    assert not any((second == field).all(axis=(-2, -1)).any() for field in own.values)


def test_two_training_years_widen_the_window_to_thirty_members(analysis: xr.Dataset) -> None:
    found = climatological.climatological_ensemble(
        analysis, CHANNELS[1:], forecast_times("2006-06-01", 2), ("2003-01-01", "2004-12-31T12")
    )
    assert found.attrs["members"] == 30
    assert found.attrs["window_days"] == 7
