"""A forecast shared out over processes: who makes which parts of the one store that all of them write.

Processes of a job array or of torchrun do not talk to each other: a share is known from its number, and whoever completes the
last part publishes the store. The workers of a dask cluster (`forecast.cluster`) are handed the same tasks one by one.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline import store
from data_pipeline.errors import InputError
from forecast.plan import ForecastPlan
from forecast.sampler import IN_FLIGHT

Task = tuple[str, ...]  # names of parts that are made together


@dataclass(frozen=True)
class Share:
    """One of `count` processes, numbered from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, tasks: Sequence[Task]) -> Task:
        """The parts of this process: a run of tasks, at most one task longer than another's."""
        first, last = (len(tasks) * edge // self.count for edge in (self.number - 1, self.number))
        return tuple(itertools.chain.from_iterable(tasks[first:last]))


def tasks_of(plan: ForecastPlan, checkpoints: int, device: str = "cpu") -> list[Task]:
    """The parts of a plan in tasks: as many member blocks of one initialisation as keep every checkpoint and the device busy."""
    size = checkpoints * (1 if device == "cpu" else IN_FLIGHT)
    tasks: list[Task] = []
    for _, parts in itertools.groupby(plan.parts, key=lambda part: part.row):
        names = [part.name for part in parts]
        tasks += [tuple(names[first : first + size]) for first in range(0, len(names), size)]
    return tasks


def share_of(text: str | None, device: str) -> tuple[Share | None, str]:
    """The share and the device of this process: of --share I/N, and of what torchrun says, which deals each rank a part of it.

    None: it makes everything. Under torchrun every rank has a GPU of its own where the device is `cuda`. Raises InputError for
    anything else than I/N with 1 <= I <= N, or a numbered device under torchrun.
    """
    whole = Share(1, 1)
    if text is not None:
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(f"--share {text!r}: expected I/N, the I-th of N shares, as 3/10")
        whole = Share(int(found[1]), int(found[2]))
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        return (None if text is None else whole), device
    if device not in ("cpu", "cuda"):
        raise InputError(f"--device {device}: torchrun gives every process a GPU of its own; use --device cuda")
    own = f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" else device
    return Share((whole.number - 1) * ranks + int(os.environ["RANK"]) + 1, whole.count * ranks), own


def still_missing(path: Path) -> str | None:
    """What a store lacks, in words; None if it is published."""
    found = store.progress_of(path)
    if found is None:
        return None
    done, total, writers = found
    others = f", being written: {', '.join(writers[:8])}{' ...' if len(writers) > 8 else ''}" if writers else ""
    return f"{done} of {total} parts are there{others}"
