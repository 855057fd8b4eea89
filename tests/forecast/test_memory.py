"""Memory that runs out: fewer members go on together, nothing is made twice, and what that means for the numbers is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import forecast
from forecast.sinks import MemorySink
from models.contract import Generator
from tests.toys import network, spec_of, weather


@pytest.fixture(scope="module")
def analysis() -> xr.Dataset:
    return weather(steps=40)


def failing(made: Generator, monkeypatch: pytest.MonkeyPatch, fails: Any) -> list[int]:
    """Rows of the network passes that were not refused."""
    seen: list[int] = []
    plain = made.step

    def limited(state: Any, forcing: torch.Tensor, noise: torch.Tensor) -> Any:
        if fails(len(forcing)):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        seen.append(len(forcing))
        return plain(state, forcing, noise)

    monkeypatch.setattr(made, "step", limited)
    return seen


class Counting(MemorySink):
    """Counts what it takes."""

    taken = 0

    def take(self, time: np.datetime64, lead: np.timedelta64, members: tuple[int, ...], fields: np.ndarray) -> None:
        self.taken += len(members)
        super().take(time, lead, members, fields)


def run(made: Any, analysis: xr.Dataset, members: int) -> tuple[xr.Dataset, list[str], int]:
    plan = forecast.make_plan(made, analysis, analysis["time"].values[[10]], days=1.5, members=members, seed=0)
    sink, said = Counting(), list[str]()
    forecast.run(made, analysis, plan, [sink], remark=said.append)
    return sink.dataset, said, sink.taken


def test_fewer_micro_batches_at_a_time_change_no_bit(analysis: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = [network(spec_of(analysis), seed=seed) for seed in (1, 2)]
    whole, said, _ = run(pair, analysis, 70)
    assert said == []
    calls: list[int] = []  # the second step of the first members fails once
    failing(pair[1], monkeypatch, lambda rows: (calls.append(rows), len(calls) == 2)[1])
    found, said, taken = run(pair, analysis, 70)
    xr.testing.assert_identical(found, whole)
    assert said == [
        "memory ran out (CUDA out of memory. Tried to allocate 2 GiB): "
        "going on with 32 members at a time; the numbers stay the same"
    ]
    assert taken == 3 * 70, "no sink sees a lead twice"


def test_smaller_micro_batches_are_equal_to_rounding_and_say_so(analysis: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    made = network(spec_of(analysis))
    whole, _, _ = run(made, analysis, 20)
    seen = failing(made, monkeypatch, lambda rows: rows > 8)
    found, said, _ = run(made, analysis, 20)
    assert set(seen) == {8}
    assert len(said) == 2
    assert "micro-batches in 4 pieces; from here on the numbers are those of enough memory to rounding only" in said[-1]
    for name in whole.data_vars:
        np.testing.assert_allclose(found[name], whole[name], rtol=1e-4, atol=1e-4 * float(abs(whole[name]).max()))


def test_other_faults_are_not_taken_for_want_of_memory(analysis: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    made = network(spec_of(analysis))

    def broken(*_: Any) -> Any:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(made, "step", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        run(made, analysis, 2)
