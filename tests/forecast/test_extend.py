"""A published forecast is added to: members, leads, initialisations; what was there is shared, and all is as if made at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import xarray as xr

import forecast
from data_pipeline import open_forecast
from data_pipeline.errors import InputError
from data_pipeline.store import verify_store
from forecast import plan as plans
from forecast.extend import extended
from forecast.plan import ForecastPlan
from forecast.sinks import ZarrSink
from models.crps import CrpsGenerator
from tests.children import contents
from tests.toys import network, spec_of, weather


@pytest.fixture(scope="module")
def analysis() -> xr.Dataset:
    return weather(steps=60)


@pytest.fixture(scope="module")
def generator(analysis: xr.Dataset) -> CrpsGenerator:
    return network(spec_of(analysis))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 4 members, chunks of 3 leads."""
    monkeypatch.setattr(plans, "BATCH_POINTS", 4 * 8 * 16)
    monkeypatch.setattr(plans, "CHUNK_BYTES", 3 * 4 * 8 * 16 * 4)


def plan_for(generator: CrpsGenerator, analysis: xr.Dataset, inits: int, days: float, members: int, **extra: Any) -> ForecastPlan:
    times = analysis["time"].values[[25, 10, 40][:inits]]  # the second lies before the first
    return forecast.make_plan(generator, analysis, times, days=days, members=members, **{"seed": 0, **extra})


def make(path: Path, generator: CrpsGenerator, analysis: xr.Dataset, plan: ForecastPlan, **sink: Any) -> int:
    """Member leads that were sampled."""
    seen: list[int] = []
    writer = ZarrSink(path, **sink)
    try:
        forecast.run(generator, analysis, plan, [writer], report=lambda step: seen.append(step.done))
    finally:
        writer.release()
    return len(seen)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1, 3, 4), (1, 3, 9)),
        ((2, 3, 6), (2, 3, 9)),
        ((2, 3, 2), (2, 3, 4)),
        ((1, 2, 5), (1, 3.5, 5)),
        ((1, 3, 5), (3, 3, 5)),
        ((1, 2, 3), (2, 4.5, 9)),
    ],
    ids=["whole blocks", "a cut block", "a small ensemble", "leads", "initialisations", "everything"],
)
def test_what_is_added_later_is_as_if_made_at_once(
    generator: CrpsGenerator, analysis: xr.Dataset, tmp_path: Path, before: Any, after: Any
) -> None:
    first, second = plan_for(generator, analysis, *before), plan_for(generator, analysis, *after)
    make(tmp_path / "grown.zarr", generator, analysis, first)
    make(tmp_path / "grown.zarr", generator, analysis, second)
    make(tmp_path / "whole.zarr", generator, analysis, second)
    assert verify_store(tmp_path / "grown.zarr") == []
    assert contents(tmp_path / "grown.zarr") == contents(tmp_path / "whole.zarr")
    assert list(tmp_path.glob("*.partial")) == []


def test_only_what_is_new_is_made_and_chunks_are_shared(generator: CrpsGenerator, analysis: xr.Dataset, tmp_path: Path) -> None:
    out = tmp_path / "f.zarr"
    make(out, generator, analysis, plan_for(generator, analysis, 1, 3, 6))
    chunk = out / "2m_temperature/c/0/0/0/0/0"
    kept = chunk.stat().st_ino
    assert make(out, generator, analysis, plan_for(generator, analysis, 1, 3, 9)) == 2 * 6, "the cut block, and the third"
    assert chunk.stat().st_ino == kept, "the same file"
    assert make(out, generator, analysis, plan_for(generator, analysis, 2, 3, 9)) == 3 * 6, "the other initialisation"
    assert (out / "2m_temperature/c/1/0/0/0/0").stat().st_ino == kept, "in the second place now"


def test_fewer_or_the_same_is_there_already(generator: CrpsGenerator, analysis: xr.Dataset, tmp_path: Path) -> None:
    out = tmp_path / "f.zarr"
    make(out, generator, analysis, plan_for(generator, analysis, 2, 3, 6))
    before = contents(out)
    assert make(out, generator, analysis, plan_for(generator, analysis, 1, 2, 5)) == 0
    assert contents(out) == before


def test_more_and_fewer_at_once_asks_for_all(generator: CrpsGenerator, analysis: xr.Dataset, tmp_path: Path) -> None:
    out = tmp_path / "f.zarr"
    make(out, generator, analysis, plan_for(generator, analysis, 1, 3, 6))
    other = plan_for(generator, analysis, 1, 4, 3)
    with pytest.raises(InputError, match=r"holds 1 initialisations, 6 members, 6 leads up to 72 h; asked for .* up to 96 h"):
        make(out, generator, analysis, other)
    both = extended(other, out)
    assert (len(both.members), both.leads.size) == (6, 8)
    make(out, generator, analysis, both)
    assert dict(open_forecast(out).sizes)["number"] == 6


def test_another_seed_is_refused_and_nothing_is_touched(generator: CrpsGenerator, analysis: xr.Dataset, tmp_path: Path) -> None:
    out = tmp_path / "f.zarr"
    make(out, generator, analysis, plan_for(generator, analysis, 1, 1, 2))
    with pytest.raises(InputError, match=r"recipe\.seed: 0 -> 7"):
        make(out, generator, analysis, plan_for(generator, analysis, 1, 1, 4, seed=7))
    assert list(tmp_path.iterdir()) == [out]


def test_several_writers_each_write_their_parts_and_the_last_publishes(
    generator: CrpsGenerator, analysis: xr.Dataset, tmp_path: Path
) -> None:
    plan = plan_for(generator, analysis, 2, 2, 9)
    names = [part.name for part in plan.parts]
    assert names[:4] == ["2001-01-06T00.m0001", "2001-01-06T00.m0005", "2001-01-06T00.m0009", "2001-01-13T12.m0001"]
    out = tmp_path / "f.zarr"
    assert make(out, generator, analysis, plan, only=names[1::2]) == 3 * 4
    assert not out.exists()
    assert make(out, generator, analysis, plan, only=names[1:3]) == 4, "what another has done is not made again"
    make(out, generator, analysis, plan, only=names)
    make(tmp_path / "alone.zarr", generator, analysis, plan)
    assert contents(out) == contents(tmp_path / "alone.zarr")
    more = plan_for(generator, analysis, 2, 2, 10)
    for part in more.parts:
        assert dict(open_forecast(out).sizes)["number"] == 9, "as it was, until all is there"
        make(out, generator, analysis, more, only=[part.name])
    assert dict(open_forecast(out).sizes)["number"] == 10
