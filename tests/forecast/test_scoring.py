"""Scores made while sampling are those of the stored forecast; a run that was stopped goes on without losing what was scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import forecast
from data_pipeline import climatology as climatologies
from data_pipeline.errors import InputError
from data_pipeline.schema import channels_of
from data_pipeline.store import write_dataset
from forecast.plan import ForecastPlan
from forecast.sinks import ScoreSink, ZarrSink
from models.crps import CrpsGenerator
from tests.toys import network, period, spec_of, weather
from verification.evaluate import score_store
from verification.readout import scores_table
from verification.state import open_state


@pytest.fixture(scope="module")
def analysis() -> xr.Dataset:
    return weather(steps=60)


@pytest.fixture(scope="module")
def generator(analysis: xr.Dataset) -> CrpsGenerator:
    return network(spec_of(analysis))


@pytest.fixture(scope="module")
def plan(generator: CrpsGenerator, analysis: xr.Dataset) -> ForecastPlan:
    return forecast.make_plan(generator, analysis, analysis["time"].values[[10, 25, 40]], days=2, members=5, seed=0)


def score(sink: ScoreSink, generator: CrpsGenerator, analysis: xr.Dataset, plan: ForecastPlan, **extra: Any) -> None:
    try:
        forecast.run(generator, analysis, plan, [sink], **extra)
    finally:
        sink.release()


@pytest.fixture(scope="module")
def climatology() -> xr.Dataset:
    """Of a year of the toy world."""
    year = weather(steps=740, seed=3)
    return climatologies.compute(year, channels_of(year), period(year), quantiles=(0.1, 0.9), window_days=15).load()


@pytest.mark.parametrize("with_climatology", [False, True], ids=["fixed event", "climatology"])
def test_the_state_is_that_of_the_stored_forecast(
    generator: CrpsGenerator, analysis: xr.Dataset, plan: ForecastPlan, climatology: xr.Dataset, tmp_path: Path,
    with_climatology: bool,
) -> None:  # fmt: skip
    """Every sum, to rounding in float64: events, anomalies, maps, spectra, a case with a plume, cells of land and sea."""
    case = plan.times[1]
    choice: dict[str, Any] = {"radii": [2000.0], "cases": [case], "points": {"here": (20.0, 40.0)}}
    if not with_climatology:
        choice["events"] = ["2m_temperature > 283"]
    given = climatology if with_climatology else None
    both = ScoreSink(analysis, given, **choice)
    store = ZarrSink(tmp_path / "f.zarr")
    forecast.run(generator, analysis, plan, [store, both])
    write_dataset(tmp_path / "analysis.zarr", analysis)
    place = None
    if given is not None:
        place = tmp_path / "climatology.zarr"
        write_dataset(place, given)
    after = score_store(tmp_path / "f.zarr", tmp_path / "analysis.zarr", tmp_path / "s.zarr", climatology_path=place, **choice)
    assert set(after.data_vars) == set(both.state.data_vars)
    for name, values in after.data_vars.items():
        largest = float(abs(values.where(np.isfinite(values))).max())
        np.testing.assert_allclose(both.state[name], values, rtol=1e-12, atol=1e-12 * largest, err_msg=str(name))
    ours, theirs = (scores_table(state).drop_attrs() for state in (both.state, after))
    xr.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=0)
    assert np.isfinite(ours["crps"]).all()


class StoppedError(Exception):
    """What ends a run in the middle."""


def test_a_run_that_was_stopped_continues_and_a_finished_one_is_read(
    generator: CrpsGenerator, analysis: xr.Dataset, plan: ForecastPlan, tmp_path: Path
) -> None:
    whole = ScoreSink(analysis, out=tmp_path / "whole.scores.zarr")
    score(whole, generator, analysis, plan)

    def stop(progress: forecast.rollout.Progress) -> None:
        if progress.done == 7 * 5:
            raise StoppedError

    out = tmp_path / "cut.scores.zarr"
    with pytest.raises(StoppedError):
        score(ScoreSink(analysis, out=out), generator, analysis, plan, report=stop)
    assert not out.exists()
    seen: list[int] = []
    again = ScoreSink(analysis, out=out)
    score(again, generator, analysis, plan, report=lambda step: seen.append(step.done))
    assert seen == list(range(5 * 5, 13 * 5, 5)), "the first initialisation was not made again"
    xr.testing.assert_identical(again.state.drop_attrs(), whole.state.drop_attrs())
    xr.testing.assert_identical(open_state(out).drop_attrs().load(), whole.state.drop_attrs())
    assert not list(tmp_path.glob("*.parts"))
    seen.clear()
    third = ScoreSink(analysis, out=out)
    score(third, generator, analysis, plan, report=lambda step: seen.append(step.done))
    assert seen == []
    xr.testing.assert_identical(third.state.drop_attrs().load(), whole.state.drop_attrs())


def test_two_processes_do_not_score_into_one_place(
    generator: CrpsGenerator, analysis: xr.Dataset, plan: ForecastPlan, tmp_path: Path
) -> None:
    first, second = (ScoreSink(analysis, out=tmp_path / "s.scores.zarr") for _ in range(2))
    first.open(plan)
    with pytest.raises(InputError, match="is being written by"):
        second.open(plan)
    first.release()
    score(second, generator, analysis, plan)


def test_valid_times_without_truth_are_an_error_or_left_out(
    generator: CrpsGenerator, analysis: xr.Dataset, plan: ForecastPlan
) -> None:
    short = analysis.isel(time=slice(43))
    with pytest.raises(InputError, match="truth lacks 2 of"):
        score(ScoreSink(short), generator, analysis, plan)
    left_out = ScoreSink(short, missing_truth="skip")
    score(left_out, generator, analysis, plan)
    n = (left_out.state["weight"].sum("cell") > 0).sum("time").isel(channel=0)
    assert n.values.tolist() == [3, 3, 2, 2]
