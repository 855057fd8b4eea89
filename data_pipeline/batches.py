"""Samples for training: input frames, the analyses that follow and their forcings; from memory, or straight from the store.

A batch depends on (seed, k) alone: not on threads, on what was read before, or on where the fields are kept.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeVar

import numpy as np
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.forcings import Forcings
from data_pipeline.memory import Buffers
from data_pipeline.reading import Fields
from data_pipeline.schema import Channel
from data_pipeline.statistics import format_period

Order = Literal["random", "epochs", "chunks"]

MEMORY_BUDGET = 4 << 30  # bytes of normalised fields
LANES = 8  # windows of chunks that are mixed at any time in the order "chunks", fewer if `mixed` holds fewer chunks
LOADERS = 2  # threads that fill the memory

_T = TypeVar("_T")


@dataclass(frozen=True)
class Batch:
    """frames (B, F, C, H, W), targets (B, steps, C, H, W), forcings (B, steps, P, H, W), normalised float32; valid (B, steps),
    the stamps of the targets; intervals (B,), the time between the steps of a sample.

    frames and targets are views of one block; its memory is used again once nobody holds them or a view of them (a tensor made by
    `torch.from_numpy` holds them).
    """

    frames: np.ndarray
    targets: np.ndarray
    forcings: np.ndarray
    valid: np.ndarray
    intervals: np.ndarray


class Samples:
    """Samples of an analysis inside a period, normalised with the given statistics.

    A sample starts at time i if its frames, `interval` apart and the last at time i, and its targets, at i + interval ..
    i + steps * interval, all exist and, targets included, lie in the period. The interval is `step` unless others are asked for:
    any time after which there are analyses.

    memory: bytes of fields that may be held. If all fit they are read at once; else they are read batch by batch, whole chunks of
    the store, and the chunks used last are kept. Raises InputError, naming channel and stamp, for missing or infinite values:
    when the memory is filled, or with the batch that needs the chunk that holds them.
    """

    def __init__(
        self,
        analysis: xr.Dataset,
        channels: Sequence[Channel],
        statistics: xr.Dataset,
        forcings: Forcings,
        period: tuple[str, str],
        *,
        step: np.timedelta64,
        frames: int,
        memory: int = MEMORY_BUDGET,
    ) -> None:
        self._fields = Fields(analysis, channels, statistics, period)
        self.times, self.channels = self._fields.times, self._fields.channels
        self.forcings, self.step, self.frames = forcings, np.timedelta64(step, "ns"), frames
        self._period = period
        edges, stamp = self._fields.edges, 4 * int(np.prod(self._fields.shape[1:]))
        longest = stamp * int(np.diff(edges, prepend=0).max(initial=1))
        self._memory = self._load() if self.times.size * stamp <= memory else None
        self._buffers = Buffers(max(4, LOADERS))
        self._blocks = _Kept(self._read, max(1, memory // longest))

    def starts(self, steps: int, interval: np.timedelta64 | None = None) -> np.ndarray:
        """Indices of `times` from which `steps` steps of `interval` can be made. Raises InputError if there are none."""
        interval = self.step if interval is None else interval
        whole = np.ones(self.times.size, bool)
        for offset in self._offsets(steps):
            _, exists = self._find(self.times + offset * interval)
            whole &= exists
        if not whole.any():
            raise InputError(
                f"no sample of {self.frames} frames and {steps} steps of {interval / np.timedelta64(1, 'h'):g} hours in "
                f"{format_period(self._period)}: {self.times.size} analyses there"
            )
        return np.flatnonzero(whole)

    def batch(self, starts: np.ndarray, steps: int, intervals: np.ndarray | np.timedelta64 | None = None) -> Batch:
        """The samples that start at indices `starts`, with one interval for all or one each. Raises InputError if one cannot."""
        apart = np.broadcast_to(np.asarray(self.step if intervals is None else intervals, "timedelta64[ns]"), starts.shape)
        stamps = self.times[starts][:, None] + self._offsets(steps)[None, :] * apart[:, None]
        positions, exists = self._find(stamps)
        if not exists.all():
            lost = ", ".join(np.datetime_as_string(np.unique(stamps[~exists])[:3], "h"))
            raise InputError(f"no analysis at {lost} in {format_period(self._period)}; take starts from `starts`")
        block, valid = self._take(positions), stamps[:, self.frames :]
        return Batch(block[:, : self.frames], block[:, self.frames :], self._planes(valid, apart), valid, apart)

    def batches(
        self,
        seed: int,
        first: int,
        count: int,
        size: int,
        steps: int,
        *,
        order: Order = "random",
        intervals: Sequence[np.timedelta64] = (),
        rank: int = 0,
        ranks: int = 1,
        mixed: int = 512,
        threads: int = 2,
        ahead: int = 2,
    ) -> Iterator[Batch]:
        """Batches `first` .. `first + count - 1` of the endless stream of `seed`, `ahead` prefetched on `threads` threads.

        Batch k depends on (seed, k) and the options up to `mixed` alone, so training resumes at any k with the same samples.

        order: "random" draws with replacement; "epochs" gives every sample once before any comes again; "chunks" does so too, but
        walks through windows of neighbouring stamps, `mixed` stamps being mixed at any time: chunks that hold several stamps are
        decoded once an epoch if twice `mixed` stamps fit the memory, where the other orders decode them for every sample.
        intervals: one is drawn for each sample, of those that are possible from its start; `step` unless given. rank, ranks: rows
        rank::ranks of each batch, for training in several processes. Raises InputError if `ranks` does not divide `size`.
        """
        if size % ranks or not 0 <= rank < ranks:
            raise InputError(f"a batch of {size} samples, rank {rank} of {ranks}: every rank must get as many")
        choices = np.array(intervals or [self.step], "timedelta64[ns]")
        possible = np.stack([np.isin(np.arange(self.times.size), self.starts(steps, interval)) for interval in choices])
        starts = np.flatnonzero(possible.any(0))
        windows, lanes = self._windows(starts, mixed) if order == "chunks" else (np.zeros(starts.size), 1)
        shuffled = lru_cache(maxsize=2)(lambda epoch: _shuffled(seed, epoch, windows, lanes))

        def draw(k: int) -> Batch:
            if order == "random":
                rows = starts[_generator(seed, 0, k).integers(0, starts.size, size)]
            else:
                epochs, places = np.divmod(np.arange(k * size, (k + 1) * size), starts.size)
                rows = starts[[shuffled(int(epoch))[place] for epoch, place in zip(epochs, places, strict=True)]]
            chosen = _one_possible(possible[:, rows], _generator(seed, 5, k)) if len(choices) > 1 else np.zeros(size, int)
            mine = slice(rank, None, ranks)
            return self.batch(rows[mine], steps, choices[chosen[mine]])

        return _prefetched(draw, range(first, first + count), threads, ahead)

    def sequence(
        self,
        stamps: np.ndarray,
        steps: int,
        *,
        interval: np.timedelta64 | None = None,
        size: int = 1,
        threads: int = 2,
        ahead: int = 2,
    ) -> Iterator[Batch]:
        """The samples that start at `stamps` (datetime64), in this order, `size` a batch (the last may be smaller), prefetched.

        Raises InputError, naming them, if samples cannot start at some.
        """
        starts, exists = self._find(stamps.astype("datetime64[ns]"))
        if not exists.all():
            lost = ", ".join(np.datetime_as_string(stamps[~exists][:3], "h"))
            raise InputError(f"no analysis at {lost} in {format_period(self._period)} to start from")
        groups = [starts[i : i + size] for i in range(0, starts.size, size)]
        return _prefetched(lambda rows: self.batch(rows, steps, interval), groups, threads, ahead)

    def _offsets(self, steps: int) -> np.ndarray:
        return np.arange(1 - self.frames, steps + 1)

    def _find(self, stamps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions of stamps, and whether they exist."""
        positions = np.minimum(np.searchsorted(self.times, stamps), max(self.times.size - 1, 0))
        return positions, self.times[positions] == stamps if self.times.size else np.zeros(stamps.shape, bool)

    def _planes(self, valid: np.ndarray, apart: np.ndarray) -> np.ndarray:
        """Forcings of steps that end at `valid`; insolation is a mean over the sample's own interval."""
        shape = (self.forcings.n_planes, *self.forcings.grid.shape)
        planes = np.empty((*valid.shape, *shape), np.float32)
        for interval in np.unique(apart):
            own = copy.copy(self.forcings)
            own.step = interval
            rows = apart == interval
            found = own.many(valid[rows].reshape(-1)).reshape(int(rows.sum()), valid.shape[1], *shape)
            if rows.all():
                return found
            planes[rows] = found
        return planes

    def _take(self, positions: np.ndarray) -> np.ndarray:
        out = self._buffers.lend((*positions.shape, *self._fields.shape[1:]))
        if self._memory is not None:
            np.take(self._memory, positions, axis=0, out=out, mode="clip")  # other modes go through a copy
            return out
        edges = self._fields.edges
        homes = np.searchsorted(edges, positions, side="right") - 1
        for home in np.unique(homes):
            block = self._blocks.get(int(home))
            for row, column in np.argwhere(homes == home):
                out[row, column] = block[positions[row, column] - edges[home]]
        return out

    def _read(self, block: int) -> np.ndarray:
        edges = self._fields.edges
        out = self._buffers.lend((int(edges[block + 1] - edges[block]), *self._fields.shape[1:]))
        self._fields.read(block, out)
        return out

    def _load(self) -> np.ndarray:
        out, edges = np.empty(self._fields.shape, np.float32), self._fields.edges
        with ThreadPoolExecutor(LOADERS if self._fields.direct else 1) as pool:  # what others opened may not stand threads
            list(pool.map(lambda i: self._fields.read(i, out[edges[i] : edges[i + 1]]), range(edges.size - 1)))
        return out

    def _windows(self, starts: np.ndarray, mixed: int) -> tuple[np.ndarray, int]:
        """For each start the window of whole chunks that it lies in, and how many of them are mixed: together `mixed` stamps."""
        edges = self._fields.edges
        chunk = int(np.diff(edges).max())
        homes = np.searchsorted(edges, starts, side="right") - 1
        lanes = int(np.clip(mixed // chunk, 1, LANES))
        return homes // max(1, mixed // (lanes * chunk)), lanes


class _Kept:
    """The results of `read(key)` used last; what several threads ask for at once is read once."""

    def __init__(self, read: Callable[[int], np.ndarray], count: int) -> None:
        self._read, self._count = read, count
        self._kept: OrderedDict[int, Future[np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: int) -> np.ndarray:
        with self._lock:
            found = self._kept.get(key)
            mine = self._kept[key] = Future() if found is None else found
            self._kept.move_to_end(key)
            while len(self._kept) > self._count:
                self._kept.popitem(last=False)
        if found is None:
            try:
                mine.set_result(self._read(key))
            except BaseException as error:
                mine.set_exception(error)
                with self._lock:
                    self._kept.pop(key, None)
        return mine.result()


def _generator(seed: int, purpose: int, k: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, purpose, k]))


def _shuffled(seed: int, epoch: int, windows: np.ndarray, lanes: int) -> np.ndarray:
    """A permutation of samples that leaves those of a window, which is named for each sample, near each other.

    The windows come in random order, one after the other; the samples of window w are spread over w / lanes .. w / lanes + 1:
    `lanes` windows are mixed at any time, and one comes as another goes. Samples of one window are shuffled altogether.
    """
    generator = _generator(seed, 4, epoch)
    names, own = np.unique(windows, return_inverse=True)
    return np.argsort(generator.permutation(names.size)[own] / lanes + generator.random(windows.size), kind="stable")


def _one_possible(possible: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """For each column the index of one of its True rows, each as likely."""
    rank = (generator.random(possible.shape[1]) * possible.sum(0)).astype(int)
    return np.argmax(np.cumsum(possible, 0) == rank + 1, axis=0)


def _prefetched(make: Callable[[_T], Batch], items: Iterable[_T], threads: int, ahead: int) -> Iterator[Batch]:
    pending: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                pending.append(pool.submit(make, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
