"""What the parts of a schedule share: recipe, ledger, clock, the request to stop, the logs."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import queue
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from data_pipeline.disk import plain
from data_pipeline.errors import PlumecastError
from forecast.archive import Archive, init_name
from forecast.cycle.clock import Clock
from forecast.cycle.ledger import Ledger
from forecast.cycle.recipe import CycleRecipe

STATE_FOLDER = ".cycle"


class Stopped(PlumecastError):  # noqa: N818 - no error: it was asked for
    """The schedule was asked to stop; what is staged is resumed."""

    exit_code = 130


class Stop:
    """A request to stop, made by a signal or a thread, and a wait that it ends.

    Not an Event: setting one inside a signal handler can block on the lock of the very wait that was interrupted.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()

    def request(self, reason: str) -> None:
        self.reason = reason
        self._bell.put(None)

    def check(self) -> None:
        """Raise Stopped once it was requested."""
        if self.reason:
            raise Stopped(f"stopped by {self.reason}")

    def wait(self, seconds: float) -> None:
        """Sleep, but no longer than until the request."""
        if not self.reason:
            with contextlib.suppress(queue.Empty):
                self._bell.get(timeout=max(0.0, seconds))

    def on_signals(self) -> None:
        """SIGTERM and SIGINT ask to stop after the current step; the second one aborts."""

        def handle(number: int, _: FrameType | None) -> None:
            if self.reason:
                raise KeyboardInterrupt
            self.request(signal.Signals(number).name)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handle)


@dataclass(frozen=True)
class Job:
    """One process's view of a schedule."""

    recipe: CycleRecipe
    ledger: Ledger
    clock: Clock
    stop: Stop = field(default_factory=Stop)
    on_progress: Callable[[Job], None] = lambda job: None

    @property
    def archive(self) -> Archive:
        return self.recipe.place

    @property
    def state_folder(self) -> Path:
        return self.archive.folder / STATE_FOLDER

    def log_path(self, init: dt.datetime | None) -> Path:
        """JSON lines of one cycle; of the schedule itself without one."""
        return self.state_folder / "logs" / f"{'schedule' if init is None else init_name(init)}.jsonl"

    def log(self, init: dt.datetime | None, event: str, **facts: Any) -> None:
        """Append one line, in one write: those of two processes do not mix. A full disk keeps no line, and stops nothing."""
        path = self.log_path(init)
        line = {"at": self.clock.now().isoformat(timespec="seconds"), "event": event, **plain(facts)}
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab", buffering=0) as file:
                file.write(json.dumps(line).encode() + b"\n")


def ledger_path(archive: Archive) -> Path:
    return archive.folder / STATE_FOLDER / "state.sqlite"
