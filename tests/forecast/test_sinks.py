"""Sinks: memory, store and score state tell the same story; a store that was cut off continues to the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import forecast
from data_pipeline import open_forecast
from data_pipeline.errors import InputError, NotReadyError
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel, channels_of, validate
from forecast import baselines
from forecast import plan as plans
from forecast.plan import ForecastPlan, plan_dates, plan_like
from forecast.sinks import MemorySink, ScoreSink, ZarrSink, write_lazy
from models.crps import CrpsGenerator
from tests.toys import network, spec_of, weather
from verification.evaluate import evaluate


class StoppedError(Exception):
    """What ends a run in the middle."""


@pytest.fixture(scope="module")
def analysis() -> xr.Dataset:
    return weather(steps=60)


@pytest.fixture(scope="module")
def generator(analysis: xr.Dataset) -> CrpsGenerator:
    return network(spec_of(analysis))


@pytest.fixture(scope="module")
def plan(generator: CrpsGenerator, analysis: xr.Dataset) -> ForecastPlan:
    return forecast.make_plan(generator, analysis, analysis["time"].values[[10, 25, 40]], days=2, members=3, seed=0)


def contents(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def stop_after(done: int) -> Any:
    def report(progress: forecast.rollout.Progress) -> None:
        if progress.done == 3 * done:
            raise StoppedError

    return report


def fill(path: Path, generator: CrpsGenerator, analysis: xr.Dataset, plan: ForecastPlan, **extra: Any) -> None:
    sink = ZarrSink(path)
    try:
        forecast.run(generator, analysis, plan, [sink], **extra)
    finally:
        sink.release()


def test_memory_store_and_scores_agree(
    generator: CrpsGenerator, analysis: xr.Dataset, plan: ForecastPlan, tmp_path: Path
) -> None:
    memory, zarr, scores = MemorySink(), ZarrSink(tmp_path / "f.zarr"), ScoreSink(analysis)
    forecast.run(generator, analysis, plan, [memory, zarr, scores])
    stored = open_forecast(tmp_path / "f.zarr")
    validate(stored, "forecast")
    xr.testing.assert_identical(stored.drop_attrs().load(), memory.dataset.drop_attrs())
    for data in (stored, memory.dataset):
        assert data.attrs["model"] == "crps"
        assert data.attrs["training_period"] == generator.spec.training_period
        assert json.loads(data.attrs["versions"])["threads"] >= 1
    after = evaluate(stored, analysis)
    assert set(after.data_vars) == set(scores.state.data_vars)
    for name, values in after.data_vars.items():
        np.testing.assert_allclose(scores.state[name], values, rtol=1e-12, err_msg=str(name))
    assert scores.state.attrs["model"] == "crps"


@pytest.mark.parametrize("chunk", [1, 3 * 3 * 8 * 16 * 4, 1 << 20])
def test_cut_off_it_is_refused_and_continued_to_the_same_bytes(
    generator: CrpsGenerator,
    analysis: xr.Dataset,
    plan: ForecastPlan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chunk: int,
) -> None:
    """Whether one lead, three, or all fit a chunk."""
    monkeypatch.setattr(plans, "CHUNK_BYTES", chunk)
    fill(tmp_path / "whole.zarr", generator, analysis, plan)
    for done in (2, 7):
        with pytest.raises(StoppedError):
            fill(tmp_path / "cut.zarr", generator, analysis, plan, report=stop_after(done))
        with pytest.raises(NotReadyError, match=f"{done // 4} of 3 parts written"):
            open_forecast(tmp_path / "cut.zarr")
    partial = open_forecast(tmp_path / "cut.zarr", allow_incomplete=True)["2m_temperature"]
    assert np.isfinite(partial[0]).all()
    assert np.isnan(partial[2]).all()
    counted: list[int] = []
    fill(tmp_path / "cut.zarr", generator, analysis, plan, report=lambda step: counted.append(step.done))
    assert counted == list(range(15, 37, 3))  # the finished initialisation was not made again
    assert contents(tmp_path / "cut.zarr") == contents(tmp_path / "whole.zarr")


def test_a_finished_store_is_left_alone_even_if_another_sink_must_see_it_again(
    generator: CrpsGenerator, analysis: xr.Dataset, plan: ForecastPlan, tmp_path: Path
) -> None:
    fill(tmp_path / "f.zarr", generator, analysis, plan)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    counted: list[int] = []
    fill(tmp_path / "f.zarr", generator, analysis, plan, report=lambda step: counted.append(step.done))
    assert counted == []
    memory = MemorySink()
    forecast.run(generator, analysis, plan, [ZarrSink(tmp_path / "f.zarr"), memory])
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before
    np.testing.assert_array_equal(memory.dataset["2m_temperature"], open_forecast(tmp_path / "f.zarr")["2m_temperature"])


def test_a_sink_that_comes_late_does_not_disturb_a_store_that_is_half_there(
    generator: CrpsGenerator, analysis: xr.Dataset, plan: ForecastPlan, tmp_path: Path
) -> None:
    fill(tmp_path / "whole.zarr", generator, analysis, plan)
    with pytest.raises(StoppedError):
        fill(tmp_path / "cut.zarr", generator, analysis, plan, report=stop_after(6))
    scores = ScoreSink(analysis)
    forecast.run(generator, analysis, plan, [ZarrSink(tmp_path / "cut.zarr"), scores])
    assert contents(tmp_path / "cut.zarr") == contents(tmp_path / "whole.zarr")
    assert bool((scores.state["weight"] > 0).any("cell").all())


def test_another_seed_at_the_same_place_is_refused_with_the_difference(
    generator: CrpsGenerator, analysis: xr.Dataset, plan: ForecastPlan, tmp_path: Path
) -> None:
    fill(tmp_path / "f.zarr", generator, analysis, plan)
    other = forecast.make_plan(generator, analysis, plan.times, days=2, members=3, seed=8)
    with pytest.raises(InputError, match=r"recipe\.seed: 0 -> 8"):
        fill(tmp_path / "f.zarr", generator, analysis, other)


def test_a_truth_that_ends_too_early_is_refused_before_the_first_step(
    generator: CrpsGenerator, analysis: xr.Dataset, plan: ForecastPlan
) -> None:
    steps: list[Any] = []
    with pytest.raises(InputError):
        forecast.run(generator, analysis, plan, [ScoreSink(analysis.isel(time=slice(42)))], report=steps.append)
    assert steps == []


def test_a_lazy_forecast_is_written_as_it_is(
    generator: CrpsGenerator, analysis: xr.Dataset, plan: ForecastPlan, tmp_path: Path
) -> None:
    memory = MemorySink()
    forecast.run(generator, analysis, plan, [memory])
    counted: list[tuple[int, int]] = []
    write_lazy(memory.dataset.chunk(time=1), tmp_path / "lazy.zarr", lambda done, total: counted.append((done, total)))
    assert counted == [(1, 3), (2, 3), (3, 3)]
    xr.testing.assert_identical(open_forecast(tmp_path / "lazy.zarr").drop_attrs().load(), memory.dataset.drop_attrs())
    write_lazy(memory.dataset.chunk(time=1), tmp_path / "lazy.zarr")


def test_levels_that_a_variable_lacks_stay_missing_and_unnamed(tmp_path: Path) -> None:
    channels = tuple(Channel.parse(label) for label in ("geopotential_500", "temperature_850", "temperature_500"))
    time = np.array(["2001-01-01"], "datetime64[ns]")
    grid = Grid.named("8x4")
    plan = ForecastPlan(time, np.array([12], "timedelta64[h]"), (1,), channels, grid, {"model": "m"})
    sink = MemorySink()
    sink.open(plan)
    sink.take(time[0], plan.leads[0], (1,), np.arange(3.0)[None, :, None, None] * np.ones((1, 3, 4, 8)))
    sink.close()
    validate(sink.dataset, "forecast")
    assert channels_of(sink.dataset) == [channels[0], channels[2], channels[1]]
    assert sink.dataset["geopotential"].sel(level=850).isnull().all()
    assert (sink.dataset["temperature"].sel(level=850) == 1).all()
    assert (sink.dataset["temperature"].sel(level=500) == 2).all()


def test_plans_from_a_forecast_or_from_dates(generator: CrpsGenerator, analysis: xr.Dataset, plan: ForecastPlan) -> None:
    memory = MemorySink()
    forecast.run(generator, analysis, plan, [memory])
    like = plan_like(memory.dataset, analysis.drop_vars("2m_temperature"))
    assert [channel.label for channel in like.channels] == [
        label for label in generator.spec.channels if label != "2m_temperature"
    ]
    assert (like.times == plan.times).all()
    dated = plan_dates(analysis, plan.times, 2)
    assert (dated.leads == plan.leads).all()
    with pytest.raises(
        InputError, match="1 of 1 initialisations are not in the analysis, first 2031-01-01T00; it has 2001-01-01"
    ):
        plan_dates(analysis, np.array(["2031-01-01"], "datetime64[ns]"), 2)


def test_sizes_are_counted_before_anything_is_made(plan: ForecastPlan) -> None:
    assert plan.lead_bytes == 3 * 4 * 8 * 16 * 4
    assert plan.bytes == 3 * 4 * plan.lead_bytes


def test_a_baseline_written_lazily_is_the_baseline_scored_lazily(
    analysis: xr.Dataset, plan: ForecastPlan, tmp_path: Path
) -> None:
    lazy = baselines.persistence(analysis, plan)
    write_lazy(lazy, tmp_path / "persistence.zarr")
    written = open_forecast(tmp_path / "persistence.zarr")
    assert written.attrs["model"] == "persistence"
    xr.testing.assert_identical(evaluate(written, analysis).drop_attrs(), evaluate(lazy, analysis).drop_attrs())
