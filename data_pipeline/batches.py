"""Samples for training: input frames, the following analyses and their forcings, from one in-memory or lazily read stack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.forcings import Forcings
from data_pipeline.schema import Channel, stack
from data_pipeline.statistics import format_period, in_period, to_model_space

MEMORY_BUDGET = 4 << 30  # bytes of normalised fields kept in memory; above it batches are read from the store


@dataclass(frozen=True)
class Batch:
    """frames (B, F, C, H, W), targets (B, steps, C, H, W), forcings (B, steps, P, H, W), normalised float32; valid (B, steps)."""

    frames: np.ndarray
    targets: np.ndarray
    forcings: np.ndarray
    valid: np.ndarray


class Samples:
    """Samples of an analysis inside a period, normalised with the given statistics.

    A sample starts at time i if frames i - F + 1 .. i and targets i + 1 .. i + steps all exist without a gap and, targets
    included, lie in the period. Raises InputError if the period holds none.
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
    ) -> None:
        fields = stack(analysis, list(channels)).transpose("time", "channel", "latitude", "longitude")
        self._fields = fields.isel(time=np.flatnonzero(in_period(fields["time"].values, period)))
        self.times = self._fields["time"].values.astype("datetime64[ns]")
        self.channels, self.forcings, self.step, self.frames = list(channels), forcings, step, frames
        self._mean = statistics["mean"].values[:, None, None]
        self._std = statistics["std"].values[:, None, None]
        self._period = period
        self._memory = self._load() if self._fields.size * 4 <= MEMORY_BUDGET else None

    def starts(self, steps: int) -> np.ndarray:
        """Indices of `times` from which `steps` steps can be made."""
        index = {stamp: i for i, stamp in enumerate(self.times)}
        offsets = np.arange(1 - self.frames, steps + 1) * self.step
        found = [i for i, stamp in enumerate(self.times) if all(stamp + offset in index for offset in offsets)]
        if not found:
            raise InputError(
                f"no sample of {self.frames} frames and {steps} steps of {self.step} in {format_period(self._period)}: "
                f"{self.times.size} analyses there"
            )
        return np.array(found)

    def batch(self, starts: np.ndarray, steps: int) -> Batch:
        """The samples that start at indices `starts`."""
        offsets = np.arange(1 - self.frames, steps + 1) * self.step
        stamps = self.times[starts][:, None] + offsets[None, :]
        block, valid = self._take(np.searchsorted(self.times, stamps)), stamps[:, self.frames :]
        planes = np.stack([np.stack([self.forcings.at(stamp) for stamp in row]) for row in valid])
        return Batch(block[:, : self.frames], block[:, self.frames :], planes, valid)

    def batches(self, seed: int, first: int, count: int, size: int, steps: int) -> Iterator[Batch]:
        """Batches `first` .. `first + count - 1` of the endless stream of `seed`, the next one prefetched.

        Batch k depends on (seed, k) alone, so training resumes at any k with the same samples.
        """
        starts = self.starts(steps)

        def draw(k: int) -> Batch:
            generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, k]))
            return self.batch(starts[generator.integers(0, len(starts), size)], steps)

        with ThreadPoolExecutor(1) as pool:
            pending: Future[Batch] = pool.submit(draw, first)
            for k in range(first, first + count):
                ready = pending.result()
                if k + 1 < first + count:
                    pending = pool.submit(draw, k + 1)
                yield ready

    def _take(self, index: np.ndarray) -> np.ndarray:
        if self._memory is not None:
            return self._memory[index]
        wanted, inverse = np.unique(index, return_inverse=True)
        return self._normalise(self._fields.isel(time=wanted).values)[inverse.reshape(index.shape)]

    def _load(self) -> np.ndarray:
        out = np.empty(self._fields.shape, np.float32)
        for start in range(0, len(out), 256):
            out[start : start + 256] = self._normalise(self._fields.isel(time=slice(start, start + 256)).values)
        return out

    def _normalise(self, block: np.ndarray) -> np.ndarray:
        columns = [to_model_space(block[:, i].astype(np.float64), channel) for i, channel in enumerate(self.channels)]
        return ((np.stack(columns, axis=1) - self._mean) / self._std).astype(np.float32)
