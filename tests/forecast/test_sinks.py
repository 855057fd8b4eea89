"""Sinks agree with each other; a killed run continues; other settings at the same place are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from data_pipeline import open_forecast
from data_pipeline.errors import InputError, NotReadyError
from forecast import baselines
from forecast.rollout import Progress, make_plan, run
from forecast.sinks import MemorySink, ScoreSink, ZarrSink, plan_dates, plan_like, write_lazy
from models.crps import CrpsGenerator
from tests import toys
from verification.evaluate import evaluate


@pytest.fixture(scope="module")
def analysis() -> xr.Dataset:
    return toys.weather()


@pytest.fixture(scope="module")
def generator(analysis: xr.Dataset) -> CrpsGenerator:
    return toys.network(toys.spec_of(analysis))


class StoppedError(Exception):
    """Stands for a kill."""


def test_memory_store_and_online_scores_hold_the_same_forecast(
    generator: CrpsGenerator, analysis: xr.Dataset, tmp_path: Path
) -> None:
    plan = make_plan(generator, analysis, analysis["time"].values[[4, 9]], days=2, members=5, seed=3)
    memory, stored, scored = MemorySink(), ZarrSink(tmp_path / "forecast.zarr"), ScoreSink(analysis)
    run(generator, analysis, plan, [memory, stored, scored])
    opened = open_forecast(tmp_path / "forecast.zarr").load()
    for name in memory.dataset.data_vars:
        np.testing.assert_array_equal(opened[name].values, memory.dataset[name].values)
    xr.testing.assert_identical(scored.state.drop_attrs(), evaluate(opened, analysis).drop_attrs())


def test_a_run_that_stops_is_not_visible_continues_and_has_the_same_numbers(
    generator: CrpsGenerator, analysis: xr.Dataset, tmp_path: Path
) -> None:
    plan = make_plan(generator, analysis, analysis["time"].values[[4, 9, 12]], days=1, members=3, seed=0)
    whole, path = MemorySink(), tmp_path / "forecast.zarr"
    run(generator, analysis, plan, [whole])

    def stop(step: Progress) -> None:
        if step.done == 3:
            raise StoppedError

    sink = ZarrSink(path)
    with pytest.raises(StoppedError):
        run(generator, analysis, plan, [sink], report=stop)
    sink.release()
    with pytest.raises(NotReadyError, match="1 of 3 parts"):
        open_forecast(path)
    seen: list[int] = []
    run(generator, analysis, plan, [ZarrSink(path)], report=lambda step: seen.append(step.done))
    assert seen == [3, 4, 5, 6], "the finished initialisation was made again"
    np.testing.assert_array_equal(open_forecast(path)["2m_temperature"].values, whole.dataset["2m_temperature"].values)


def test_a_finished_store_is_left_alone_and_another_seed_is_refused_with_the_difference(
    generator: CrpsGenerator, analysis: xr.Dataset, tmp_path: Path
) -> None:
    path, times = tmp_path / "forecast.zarr", analysis["time"].values[[4]]
    plan = make_plan(generator, analysis, times, days=1, members=2, seed=0)
    run(generator, analysis, plan, [ZarrSink(path)])
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    seen: list[int] = []
    run(generator, analysis, plan, [ZarrSink(path)], report=lambda step: seen.append(step.done))
    assert seen == []
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before
    other = make_plan(generator, analysis, times, days=1, members=2, seed=7)
    with pytest.raises(InputError, match=r"seed: 0 -> 7"):
        run(generator, analysis, other, [ZarrSink(path)])


def test_a_baseline_written_lazily_is_the_baseline_scored_lazily(
    generator: CrpsGenerator, analysis: xr.Dataset, tmp_path: Path
) -> None:
    plan = make_plan(generator, analysis, analysis["time"].values[[4, 9]], days=2, members=5, seed=3)
    model = MemorySink()
    run(generator, analysis, plan, [model])
    lazy = baselines.persistence(analysis, plan_like(model.dataset, analysis))
    write_lazy(lazy, tmp_path / "persistence.zarr")
    written = open_forecast(tmp_path / "persistence.zarr")
    assert written.attrs["model"] == "persistence"
    xr.testing.assert_identical(evaluate(written, analysis).drop_attrs(), evaluate(lazy, analysis).drop_attrs())


def test_dates_that_the_analysis_lacks_are_refused(analysis: xr.Dataset) -> None:
    with pytest.raises(InputError, match="1 of 1 initialisations are not in the analysis, first 1999-01-01T00"):
        plan_dates(analysis, np.array(["1999-01-01"], "datetime64[ns]"), 2.0)
