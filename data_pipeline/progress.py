"""Progress that a person can read: a bar with rate and time left on a terminal, a plain line now and then when piped."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS = 10.0
PIPED_WIDTH = 140


def table_console() -> Console:
    """A console as wide as the terminal; wide enough for our tables where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPED_WIDTH)


class ProgressDisplay:
    """Call it with (done, total); a context manager. What was done before the first call does not count into the rate."""

    def __init__(self, label: str, unit: str, console: Console | None = None) -> None:
        self._console = console or Console()
        self._label, self._unit = label, unit
        self._bar = Progress(
            TextColumn(label), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
            console=self._console, disable=not self._console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task(label, total=None, rate="")
        self._start: tuple[float, int] | None = None
        self._last_line = 0.0

    def __enter__(self) -> ProgressDisplay:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._start is None:
            self._start = (now, done)
        seconds, work = now - self._start[0], done - self._start[1]
        rate = f"{work / seconds:.0f} {self._unit}/s" if work and seconds else ""
        self._bar.update(self._task, completed=done, total=total, rate=rate)
        due = now - self._last_line >= LINE_SECONDS or done == total
        if due and not self._console.is_terminal:
            left = f", {(total - done) * seconds / work:.0f} s left" if rate and done < total else ""
            line = f"{self._label}: {done}/{total} {self._unit}" + (f", {rate}{left}" if rate else "")
            self._console.print(line, soft_wrap=True, highlight=False)
            self._last_line = now
