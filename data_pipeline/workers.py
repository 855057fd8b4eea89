"""Who does the work: threads of this process, or the workers of a dask cluster by its address. Same tasks, same results."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from data_pipeline.errors import InputError

if TYPE_CHECKING:
    from distributed import Client

AHEAD = 16  # tasks under way at a time
_Result = TypeVar("_Result")


def cores() -> int:
    """Threads a caller may use: PLUMECAST_THREADS, which the command line sets, else the cores of this process."""
    asked = os.environ.get("PLUMECAST_THREADS", "")
    if asked.isdecimal():
        return max(1, int(asked))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def pool(cluster: str | None, *, waiting: int = 0) -> Iterator[Executor]:
    """As many threads as cores and `waiting` more, or the workers of the dask scheduler at the address `cluster`.

    Tasks and their arguments travel to a cluster by pickle; a failed worker's tasks run again elsewhere. Raises InputError if no
    scheduler answers.
    """
    if cluster is None:
        with ThreadPoolExecutor(cores() + waiting) as threads:
            yield threads
        return
    with connected(cluster) as client:
        yield client.get_executor(pure=False)


@contextlib.contextmanager
def connected(cluster: str) -> Iterator[Client]:
    """A client of the dask scheduler at the address `cluster`. Raises InputError if none answers."""
    from distributed import Client

    try:
        client = Client(cluster)
    except (OSError, ValueError) as error:
        raise InputError(f"--cluster {cluster}: no dask scheduler answers there ({error})") from None
    with client:
        yield client


def in_order(
    workers: Executor, function: Callable[..., _Result], tasks: Iterable[tuple[Any, ...]], *, ahead: int = AHEAD
) -> Iterator[_Result]:
    """`function(*task)` of each task, in their order, at most `ahead` under way or waiting to be taken: memory is bounded."""
    waiting: deque[Any] = deque()
    try:
        for task in tasks:
            waiting.append(workers.submit(function, *task))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for task in waiting:  # after an error, or if the caller stops early
            task.cancel()
