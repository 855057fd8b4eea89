"""States: a forecast that is continued from the state of its last lead is the one made in one go, and shorter work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import xarray as xr

import forecast
from forecast.plan import ForecastPlan
from forecast.sinks import ZarrSink
from forecast.states import Restarts, folder_of
from models.crps import CrpsGenerator
from tests.children import contents
from tests.toys import network, spec_of, weather


@pytest.fixture(scope="module")
def analysis() -> xr.Dataset:
    return weather(steps=40)


@pytest.fixture
def generator(analysis: xr.Dataset) -> CrpsGenerator:
    return network(spec_of(analysis))


def plan_for(generator: CrpsGenerator, analysis: xr.Dataset, days: float, members: int, seed: int = 0) -> ForecastPlan:
    return forecast.make_plan(generator, analysis, analysis["time"].values[[10]], days=days, members=members, seed=seed)


def make(path: Path, generator: CrpsGenerator, analysis: xr.Dataset, plan: ForecastPlan, kept: bool = True) -> None:
    sink = ZarrSink(path)
    try:
        forecast.run(generator, analysis, plan, [sink], restarts=Restarts(folder_of(path)) if kept else None)
    finally:
        sink.release()


def counting(generator: CrpsGenerator, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Network passes, one entry each."""
    seen: list[int] = []
    plain = generator.step

    def counted(*arguments: Any) -> Any:
        seen.append(1)
        return plain(*arguments)

    monkeypatch.setattr(generator, "step", counted)
    return seen


def test_leads_are_added_from_the_last_state_with_the_same_bits(
    generator: CrpsGenerator, analysis: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = plan_for(generator, analysis, 3, 40)
    make(tmp_path / "whole.zarr", generator, analysis, longer, kept=False)
    assert not folder_of(tmp_path / "whole.zarr").exists()
    make(tmp_path / "grown.zarr", generator, analysis, plan_for(generator, analysis, 2, 40))
    seen = counting(generator, monkeypatch)
    make(tmp_path / "grown.zarr", generator, analysis, longer)
    assert len(seen) == 2 * 2, "two steps of two micro-batches"
    assert contents(tmp_path / "grown.zarr") == contents(tmp_path / "whole.zarr")


def test_members_added_later_join_those_that_were_kept(
    generator: CrpsGenerator, analysis: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for members in (3, 5):
        make(tmp_path / "grown.zarr", generator, analysis, plan_for(generator, analysis, 2, members))
    seen = counting(generator, monkeypatch)
    make(tmp_path / "grown.zarr", generator, analysis, plan_for(generator, analysis, 2.5, 5))
    assert len(seen) == 1
    make(tmp_path / "whole.zarr", generator, analysis, plan_for(generator, analysis, 2.5, 5))
    assert contents(tmp_path / "grown.zarr") == contents(tmp_path / "whole.zarr")


def test_states_of_others_or_damaged_ones_are_not_used(
    generator: CrpsGenerator, analysis: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "f.zarr"
    make(out, generator, analysis, plan_for(generator, analysis, 2, 3))
    make(tmp_path / "whole.zarr", generator, analysis, plan_for(generator, analysis, 3, 3), kept=False)
    file = next(folder_of(out).iterdir())
    file.write_bytes(file.read_bytes()[:-100])
    seen = counting(generator, monkeypatch)
    make(out, generator, analysis, plan_for(generator, analysis, 3, 3))
    assert len(seen) == 6, "from the start"
    assert contents(out) == contents(tmp_path / "whole.zarr")
    other = tmp_path / "other.zarr"
    folder_of(out).rename(folder_of(other))
    make(other, generator, analysis, plan_for(generator, analysis, 4, 3, seed=5))
    assert len(seen) == 6 + 8, "of another seed"
