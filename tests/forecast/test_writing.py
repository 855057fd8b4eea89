"""The writer beside the roll-out: bounded, in order, and its faults come to light; a full disk leaves what is done."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

import forecast
from data_pipeline import open_forecast
from data_pipeline.store import StoreWriter, progress_of
from forecast.inputs import Opened
from forecast.outputs import Outputs, make
from forecast.retention import SpaceError
from forecast.writing import WAITING, Background
from tests.toys import network, spec_of, weather


def test_calls_are_made_in_order_and_no_more_wait_than_allowed() -> None:
    background, gate, made = Background(), threading.Event(), list[int]()
    background.put(gate.wait)
    for number in range(WAITING):
        background.put(made.append, number)
    started = threading.Event()

    def one_more() -> None:
        started.set()
        background.put(made.append, WAITING)

    waiting = threading.Thread(target=one_more)
    waiting.start()
    started.wait()
    assert made == []
    gate.set()
    waiting.join()
    background.flush()
    background.stop()
    assert made == [0, 1, 2]


def test_a_fault_of_the_writer_ends_the_next_call() -> None:
    def broken() -> None:
        raise OSError(errno.EIO, "a bad disk")

    background = Background()
    background.put(broken)
    with pytest.raises(OSError, match="a bad disk"):
        background.flush()
    background.put(broken)
    background._waiting[0].exception()  # waits for it
    with pytest.raises(OSError, match="a bad disk"):
        background.put(int)
    background.stop()


def test_a_full_disk_ends_the_run_and_the_same_command_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = weather(steps=40)
    made = network(spec_of(data), size=0.1)
    plan = forecast.make_plan(made, data, data["time"].values[[10, 20]], days=1, members=2, seed=0)
    opened, outputs, plain = Opened([made], data, None, None), Outputs(tmp_path / "f.zarr"), StoreWriter.put

    def full(self: StoreWriter, part: str, *arguments: Any) -> None:
        if part == plan.parts[1].name:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(self, part, *arguments)

    monkeypatch.setattr(StoreWriter, "put", full)
    with pytest.raises(SpaceError, match="No space left on device; what is done stays"):
        make(plan, opened, outputs)
    found = progress_of(tmp_path / "f.zarr")
    assert found is not None
    assert found[:2] == (1, 2)
    monkeypatch.setattr(StoreWriter, "put", plain)
    seen: list[int] = []
    make(plan, opened, outputs, report=lambda step: seen.append(step.done))
    assert seen == [6, 8], "the first initialisation was not made again"
    whole = forecast.sample(made, data, plan.times, days=1, members=2)
    xr.testing.assert_identical(open_forecast(tmp_path / "f.zarr").drop_attrs().load(), whole.drop_attrs())
