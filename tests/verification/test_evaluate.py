"""Pairing forecasts with truth: what does not fit is named before anything is read, the rest is scored exactly once."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.regrid import regrid
from data_pipeline.store import write_dataset
from verification import area_weights, crps, evaluate, rmse
from verification.accumulate import Accumulator
from verification.evaluate import evaluate as score
from verification.evaluate import score_store
from verification.onepass import SUMS
from verification.plan import parse_periods, plan_for, training_flags, truth_rows
from verification.readout import scores_table
from verification.state import merge

GRID = Grid.named("12x6")
HOUR = np.timedelta64(1, "h").astype("timedelta64[ns]")
UNITS = {"geopotential": "m2 s-2", "2m_temperature": "K"}


def analysis(steps: int = 40, grid: Grid = GRID) -> xr.Dataset:
    rng = np.random.default_rng(0)
    times = np.datetime64("2007-01-01", "ns") + 12 * HOUR * np.arange(steps)
    coords = {"time": times, "level": [500, 850], **grid.coords()}
    shape = (steps, 2, *grid.shape)
    data = xr.Dataset(
        {
            "geopotential": (("time", "level", "latitude", "longitude"), rng.normal(5e4, 1e3, shape).astype(np.float32)),
            "2m_temperature": (("time", "latitude", "longitude"), rng.normal(280, 5, (steps, *grid.shape)).astype(np.float32)),
        },
        coords=coords,
        attrs={"source": "a simulated planet"},
    )
    return with_units(data)


def with_units(data: xr.Dataset) -> xr.Dataset:
    for name, array in data.data_vars.items():
        array.attrs["units"] = UNITS[str(name)]
    return data


def forecast(inits: int = 4, members: int = 5, grid: Grid = GRID, **attrs: Any) -> xr.Dataset:
    """Truth plus noise from every second day, leads 12 to 48 h."""
    truth, rng = analysis(grid=grid), np.random.default_rng(1)
    times = np.datetime64("2007-01-02", "ns") + 48 * HOUR * np.arange(inits)
    leads = 12 * HOUR * np.arange(1, 5)
    valid = xr.DataArray(times[:, None] + leads, dims=("time", "prediction_timedelta"))
    at_valid = truth.sel(time=valid).drop_vars("time").assign_coords(time=times, prediction_timedelta=leads)
    data = at_valid.expand_dims(number=np.arange(members))
    data = data.map(lambda field: field + rng.normal(0, 3, field.shape).astype(np.float32))
    data = data.transpose("time", "prediction_timedelta", "number", "level", "latitude", "longitude")
    data.attrs = {"model": "noisy", **attrs}
    return with_units(data)


@pytest.mark.parametrize("lazily", [False, True])
def test_the_state_holds_the_scores_of_every_pair(lazily: bool) -> None:
    data, truth = forecast(), analysis()
    chunked = data.chunk(time=1, number=2) if lazily else data
    table = scores_table(score(chunked, truth.chunk(time=3) if lazily else truth))
    assert list(table["channel"].values) == ["geopotential_500", "geopotential_850", "2m_temperature"]
    at_valid = truth.sel(time=data["time"] + data["prediction_timedelta"]).drop_vars("time")
    dims, weights = ["time", "latitude", "longitude"], area_weights(GRID)
    pairs = {
        "geopotential_500": (data["geopotential"].sel(level=500), at_valid["geopotential"].sel(level=500)),
        "geopotential_850": (data["geopotential"].sel(level=850), at_valid["geopotential"].sel(level=850)),
        "2m_temperature": (data["2m_temperature"], at_valid["2m_temperature"]),
    }
    for name, (members, observed) in pairs.items():
        observed = observed.assign_coords(time=data["time"])
        found = table.sel(channel=name)
        np.testing.assert_allclose(found["crps"], crps(members, observed).weighted(weights).mean(dims), rtol=1e-12)
        np.testing.assert_allclose(found["rmse"], rmse(members, observed, dim=dims, weights=weights), rtol=1e-12)
    assert table.attrs["model"] == "noisy"
    assert table.attrs["truth"] == "a simulated planet"
    assert table.attrs["truth_period"] == "2007-01-02T12/2007-01-10T00"


def test_online_and_stored_scoring_give_the_same_bits() -> None:
    data, truth = forecast(), analysis()
    accumulator = Accumulator(plan_for(data, truth))
    for time in data["time"].values:
        for lead in data["prediction_timedelta"].values:
            at, observed = data.sel(time=time, prediction_timedelta=lead), truth.sel(time=time + lead)
            fields = np.concatenate([at["geopotential"].values, at["2m_temperature"].values[:, None]], axis=1)
            accumulator.add(
                time, lead, fields, np.concatenate([observed["geopotential"], observed["2m_temperature"].values[None]])
            )
    xr.testing.assert_identical(accumulator.state(), score(data, truth))


def test_memory_blocks_and_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score(forecast(), analysis())
    monkeypatch.setattr(evaluate, "BLOCK_BYTES", 1)
    monkeypatch.setenv("PLUMECAST_THREADS", "3")
    xr.testing.assert_identical(score(forecast(), analysis()), whole)


def test_parts_of_a_forecast_are_merged() -> None:
    data, truth = forecast(), analysis()
    whole, parts = score(data, truth), score((data.isel(time=[i]) for i in range(4)), truth)
    for name in (*SUMS, "ranks"):
        np.testing.assert_array_equal(parts[name], whole[name])
    xr.testing.assert_allclose(merge([score(data.isel(time=[i]), truth) for i in (3, 0, 2, 1)]), parts)


def test_chosen_channels_and_leads() -> None:
    state = score(forecast(), analysis(), channels=["geopotential_850"], leads=[np.timedelta64(1, "D")])
    assert state.sizes["channel"] == state.sizes["prediction_timedelta"] == 1
    assert state.attrs["not_scored"] == "geopotential_500, 2m_temperature"
    whole = score(forecast(), analysis()).sel(channel=["geopotential_850"], prediction_timedelta=state["prediction_timedelta"])
    np.testing.assert_array_equal(state["abs_error"], whole["abs_error"])


def test_what_the_truth_lacks_is_left_out_and_said() -> None:
    state = score(forecast(), analysis().drop_vars("2m_temperature"))
    assert list(state["channel"].values) == ["geopotential_500", "geopotential_850"]
    assert state.attrs["not_scored"] == "2m_temperature"


def misfits() -> dict[str, tuple[xr.Dataset, xr.Dataset, dict[str, Any]]]:
    data, truth = forecast(), analysis()
    other_grid = Grid.named("16x8")
    regional = truth.sel(latitude=slice(0, 80))
    gap = truth.isel(time=[i for i in range(40) if i not in (5, 9)])
    return {
        "forecast is on 12x6 .*, truth on 16x8 .*regrid": (data, analysis(grid=other_grid), {}),
        "truth on 12x3 regional": (data, regional, {}),
        "truth lacks 2 of 16 valid times, first 2007-01-03T12": (data, gap, {}),
        "truth lacks 4 of 16 valid times, first 2007-01-02T12": (data, truth.isel(time=slice(7, None)), {}),
        "vorticity_850 not in the forecast": (data, truth, {"channels": ["vorticity_850"]}),
        "2m_temperature not in the truth": (data, truth.drop_vars("2m_temperature"), {"channels": ["2m_temperature"]}),
        "none in common": (data.drop_vars("2m_temperature"), truth.drop_vars("geopotential").drop_vars("level"), {}),
        "leads 240 h are not in the forecast, which has 12 h, 24 h": (data, truth, {"leads": [np.timedelta64(240, "h")]}),
    }


@pytest.mark.parametrize("message", list(misfits()))
def test_what_does_not_fit_is_named_before_anything_is_read(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, truth, arguments = misfits()[message]
    monkeypatch.setattr(evaluate, "_values", lambda *_: pytest.fail("fields were read"))
    with pytest.raises(InputError, match=message):
        score(data, truth, **arguments)


def test_units_must_agree() -> None:
    truth = analysis()
    truth["2m_temperature"].attrs["units"] = "degC"
    with pytest.raises(InputError, match="2m_temperature"):
        score(forecast(), truth)


def test_missing_truth_can_be_skipped() -> None:
    data, truth = forecast(), analysis()
    gap = truth.isel(time=[i for i in range(40) if i not in (5, 9)])
    state, whole = score(data, gap, missing_truth="skip"), score(data, truth)
    n = scores_table(state)["n"].sel(channel="2m_temperature").values
    assert n.sum() == 16 - 2
    kept = (state["weight"] > 0).values
    for name in SUMS:
        np.testing.assert_array_equal(state[name].values[kept], whole[name].values[kept])
    with pytest.raises(InputError, match="lacks 16 of 16"):
        score(data, truth.isel(time=slice(0, 2)), missing_truth="skip")


def test_valid_times_are_found_where_they_are() -> None:
    data, truth = forecast(), analysis()
    rows = truth_rows(truth, data["time"].values, data["prediction_timedelta"].values)
    np.testing.assert_array_equal(truth["time"].values[rows], data["time"].values[:, None] + data["prediction_timedelta"].values)


def test_the_accumulator_refuses_what_would_count_twice_or_is_not_planned() -> None:
    data, truth = forecast(), analysis()
    accumulator = Accumulator(plan_for(data, truth, channels=["2m_temperature"]))
    time, lead = data["time"].values[0], data["prediction_timedelta"].values[0]
    fields = data["2m_temperature"].values[0, 0][:, None]
    observed = truth["2m_temperature"].sel(time=time + lead).values[None]
    accumulator.add(time, lead, fields, observed)
    with pytest.raises(InputError, match="was added before"):
        accumulator.add(time, lead, fields, observed)
    with pytest.raises(InputError, match="not in the plan"):
        accumulator.add(time + HOUR, lead, fields, observed)
    with pytest.raises(InputError, match=re.escape("fields (1, 3, 1, 6, 12)")):
        accumulator.add(time, data["prediction_timedelta"].values[1], fields[:3], observed)
    with pytest.raises(InputError, match="infinite"):
        accumulator.add(time, data["prediction_timedelta"].values[1], np.full_like(fields, np.inf), observed)


@pytest.mark.parametrize(
    "value",
    [
        "2001-01-01T00/2005-12-31T12",
        "2001-01-01 to 2005-12-31T12:00",
        ["2001-01-01", "2005-12-31T12"],
        "['2001-01-01 00', '2005-12-31 12']",
    ],
)
def test_periods_are_read_in_any_notation(value: Any) -> None:
    assert parse_periods(value) == [(np.datetime64("2001-01-01T00", "ns"), np.datetime64("2005-12-31T12", "ns"))]


def test_a_period_that_ends_on_a_day_includes_it_and_nonsense_is_an_error() -> None:
    ((_, stop),) = parse_periods("2001-01-01/2005-12-31")
    assert np.datetime64("2005-12-31T23") < stop < np.datetime64("2006-01-01T00")
    assert len(parse_periods("2001-01-01/2001-12-31, 2003-01-01/2003-12-31")) == 2
    assert parse_periods(None) == parse_periods("") == parse_periods("none") == []
    with pytest.raises(InputError, match=r"training_period is 'five years'; expected start/end"):
        parse_periods("five years", "training_period")
    with pytest.raises(InputError, match="expected start/end"):
        parse_periods("2001-01-01")


def test_initialisation_and_valid_time_are_both_held_against_the_periods() -> None:
    times = np.array(["2005-12-30T12", "2006-01-01T00", "2007-12-31T00"], dtype="datetime64[ns]")
    leads = 24 * HOUR * np.arange(1, 4)
    attrs = {"training_period": "2001-01-01T00/2005-12-31T12", "validation_period": "2008-01-01T12/2008-12-31T12"}
    np.testing.assert_array_equal(training_flags(times, leads, attrs), [[2, 2, 2], [0, 0, 0], [0, 1, 1]])
    assert (training_flags(times, leads, {}) == 0).all()


def test_a_stored_forecast_is_scored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "noisy.zarr", forecast())
    write_dataset(tmp_path / "analysis.zarr", analysis())
    places = (tmp_path / "noisy.zarr", tmp_path / "analysis.zarr", tmp_path / "noisy.scores.zarr")
    steps: list[tuple[int, int]] = []
    state = score_store(*places, progress=lambda *step: steps.append(step))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    xr.testing.assert_equal(state, score(forecast(), analysis()))
    monkeypatch.setattr(evaluate, "evaluate", lambda *_, **__: pytest.fail("scored again"))
    xr.testing.assert_equal(score_store(*places), state)


def test_a_changed_truth_is_scored_again(tmp_path: Path) -> None:
    write_dataset(tmp_path / "noisy.zarr", forecast())
    states = []
    for index in range(2):
        path = write_dataset(tmp_path / f"{index}" / "analysis.zarr", analysis() + np.float32(index), {"source": "x"})
        states.append(score_store(tmp_path / "noisy.zarr", path, tmp_path / "noisy.scores.zarr"))
    bias = [float(scores_table(state)["bias"].sel(channel="2m_temperature")[0]) for state in states]
    assert bias[1] == pytest.approx(bias[0] - 1, abs=1e-4)


def test_parts_on_the_disk_are_not_scored_again_and_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "noisy.zarr", forecast())
    write_dataset(tmp_path / "analysis.zarr", analysis())
    places = (tmp_path / "noisy.zarr", tmp_path / "analysis.zarr")
    monkeypatch.setattr(evaluate, "PART_BYTES", 1)  # an initialisation is a part
    whole = score_store(*places, tmp_path / "whole.scores.zarr")
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_store(*places, tmp_path / "cut.scores.zarr", progress=stop)
    assert not (tmp_path / "cut.scores.zarr").exists()
    scored: list[Any] = []
    block = evaluate.score_block
    monkeypatch.setattr(evaluate, "score_block", lambda *inputs: scored.append(inputs[-1].time) or block(*inputs))
    again = score_store(*places, tmp_path / "cut.scores.zarr")
    assert set(scored) <= set(forecast()["time"].values[2:])
    xr.testing.assert_identical(again.drop_attrs(), whole.drop_attrs())
    assert not (tmp_path / "cut.scores.zarr.parts").exists()


@pytest.mark.parametrize("finer", ["forecast", "truth"])
def test_the_finer_side_is_regridded_on_request_only(finer: str, tmp_path: Path) -> None:
    fine, coarse = Grid.named("24x12"), GRID
    data = forecast(grid=fine if finer == "forecast" else coarse, inits=2)
    truth = analysis(grid=fine if finer == "truth" else coarse)
    write_dataset(tmp_path / "noisy.zarr", data)
    write_dataset(tmp_path / "analysis.zarr", truth)
    places = (tmp_path / "noisy.zarr", tmp_path / "analysis.zarr", tmp_path / "noisy.scores.zarr")
    with pytest.raises(InputError, match=re.escape("regrid one of them, or ask for it (--regrid)")):
        score_store(*places)
    expected = scores_table(score(regrid(data, coarse), regrid(truth, coarse)))
    xr.testing.assert_allclose(scores_table(score_store(*places, regrid=True)), expected, rtol=1e-12)


def test_a_weatherbench_ensemble_is_scored_as_it_is(tmp_path: Path) -> None:
    ours = forecast()
    theirs = ours.rename(number="realization").transpose(
        "realization", "time", "prediction_timedelta", "level", "longitude", "latitude"
    )
    theirs = theirs.isel(latitude=slice(None, None, -1)).drop_attrs(deep=False)
    theirs.to_zarr(tmp_path / "neural.zarr", zarr_format=2)
    write_dataset(tmp_path / "noisy.zarr", ours)
    write_dataset(tmp_path / "analysis.zarr", analysis())
    states = [
        score_store(tmp_path / f"{name}.zarr", tmp_path / "analysis.zarr", tmp_path / f"{name}.scores.zarr")
        for name in ("noisy", "neural")
    ]
    expected, found = (scores_table(state)[["crps", "ssr", "bias"]].drop_attrs() for state in states)
    xr.testing.assert_allclose(found.sel(channel=expected["channel"]), expected, rtol=1e-12)


def test_a_cluster_gives_the_same_bits_as_threads(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    write_dataset(tmp_path / "noisy.zarr", forecast())
    write_dataset(tmp_path / "analysis.zarr", analysis())
    places = (tmp_path / "noisy.zarr", tmp_path / "analysis.zarr")
    here = score_store(*places, tmp_path / "here.scores.zarr")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, protocol="tcp://", host="127.0.0.1"
    ) as cluster:
        there = score_store(*places, tmp_path / "there.scores.zarr", cluster=cluster.scheduler_address)
    xr.testing.assert_identical(there, here)


def stored(folder: Path, data: xr.Dataset, truth: xr.Dataset) -> tuple[Path, Path, Path]:
    for name, dataset in (("noisy.zarr", data), ("analysis.zarr", truth)):
        shutil.rmtree(folder / name, ignore_errors=True)
        write_dataset(folder / name, dataset)
    return folder / "noisy.zarr", folder / "analysis.zarr", folder / "noisy.scores.zarr"


def test_another_forecast_at_the_same_place_is_read_anew(tmp_path: Path) -> None:
    score_store(*stored(tmp_path, forecast(), analysis()))
    later = forecast().isel(time=slice(1, 3))
    places = stored(tmp_path, later, analysis())
    xr.testing.assert_identical(score_store(*places)["time"], score(later, analysis())["time"])
    xr.testing.assert_allclose(scores_table(score_store(*places)), scores_table(score(later, analysis())))


def test_cases_in_any_order_keep_their_own_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "PART_BYTES", 1)
    data, truth = forecast(), analysis()
    times = data["time"].values
    state = score(data, truth, cases=[times[3], times[1], times[3]])
    np.testing.assert_array_equal(state["case_time"], times[[1, 3]])
    for time in times[[1, 3]]:
        observed = truth["2m_temperature"].sel(time=time + state["drawn_lead"].values)
        np.testing.assert_array_equal(state["case_truth"].sel(case_time=time, channel="2m_temperature"), observed)
    parts = [score(data.isel(time=[k]), truth, cases=[times[k]] if k else []) for k in range(2)]
    np.testing.assert_array_equal(merge(parts)["case_time"], times[[1]])


def test_a_state_with_more_cases_than_asked_is_kept(tmp_path: Path) -> None:
    places = stored(tmp_path, forecast(), analysis())
    time = forecast()["time"].values[1]
    assert "case_mean" in score_store(*places, cases=[time])
    assert "case_mean" in score_store(*places)
    assert "case_plume" in score_store(*places, cases=[time], points={"here": (10.0, 30.0)})


def test_no_events_and_the_default_events_are_different_things(tmp_path: Path) -> None:
    places = stored(tmp_path, forecast(), analysis())
    assert score_store(*places).attrs["inputs"] != score_store(*places, events=[]).attrs["inputs"]


def test_something_else_at_the_place_of_the_state_is_refused_before_any_work(tmp_path: Path) -> None:
    places = stored(tmp_path, forecast(), analysis())
    places[2].mkdir()
    with pytest.raises(InputError, match="exists and is not a score state"):
        score_store(*places, progress=lambda *_: pytest.fail("scored"))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"channels": ["2m_temperature", "2m_temperature"]}, "channels given more than once: 2m_temperature"),
        ({"events": ["2m_temperature > 280"] * 2}, "events given more than once: 2m_temperature > 280"),
        ({"radii": [500.0]}, "but no event to look for"),
        ({"points": {"here": (10.0, 20.0)}}, "but no case to keep them for"),
        ({"points": {"here": (np.nan, 20.0)}}, "point 'here' at latitude nan"),
        ({"points": {"here": (100.0, 20.0)}}, "point 'here' at latitude 100"),
    ],
)
def test_choices_that_mean_nothing_are_refused(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        score(forecast(), analysis(), **choice)


def test_a_block_is_split_by_levels_where_one_lead_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score(forecast(), analysis())
    monkeypatch.setattr(evaluate, "BLOCK_BYTES", 1)
    xr.testing.assert_identical(score(forecast(), analysis()), whole)


def test_progress_ends_with_the_last_initialisation_whatever_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "PART_BYTES", 1)
    truth = analysis(16)  # valid times of the later initialisations are missing
    steps: list[tuple[int, int]] = []
    score(forecast(), truth, missing_truth="skip", progress=lambda *step: steps.append(step))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_an_address_without_a_scheduler_is_named(tmp_path: Path) -> None:
    dask = pytest.importorskip("dask")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(InputError, match="no dask scheduler answers"),
    ):
        score_store(*stored(tmp_path, forecast(), analysis()), cluster="tcp://127.0.0.1:9")
