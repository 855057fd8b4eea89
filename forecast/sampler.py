"""The members of one initialisation, step by step through the networks, on one device or several."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import xarray as xr

from data_pipeline.forcings import Forcings, standardised_static
from forecast.boundary import Boundary
from forecast.initial_states import InitialStates, one_analysis
from forecast.members import MicroBatch, on_devices, share, share_out
from forecast.plan import ForecastPlan
from forecast.sinks import check_finite
from forecast.states import Restarts
from forecast.subset import Cut
from models.contract import Generator, Spec, device_of

BUFFER_BYTES = 96 << 20  # leads of a boundary read at once
IN_FLIGHT = 4  # micro-batches of a checkpoint on an accelerator: it works on one while the next is set going
MEMORY_WORDS = re.compile(r"out of memory|not enough memory|can't allocate memory|alloc_failed|allocation failed", re.IGNORECASE)


Lane = list[MicroBatch]


class TooLargeError(Exception):
    """The micro-batches do not fit the memory."""


class Sampler:
    """Checkpoints, devices, and what all initialisations of a plan share. A context manager."""

    def __init__(
        self, generators: Sequence[Generator], analysis: xr.Dataset, plan: ForecastPlan, *, boundary: Boundary | None = None,
        initial: InitialStates | None = None, devices: Sequence[str] = (), restarts: Restarts | None = None,
    ) -> None:  # fmt: skip
        self.analysis, self.plan, self.boundary, self.initial, self.restarts = analysis, plan, boundary, initial, restarts
        self.specs = [each.spec for each in generators]
        self.lanes = on_devices(generators, devices)
        self._cuts = [Cut.of(spec, plan) for spec in self.specs]
        self._planes = _Planes(self.specs, analysis)
        self._pool = ThreadPoolExecutor(len(self.lanes)) if len(self.lanes) > 1 else None

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    @property
    def blocks_at_once(self) -> int:
        """Member blocks that keep every checkpoint and device busy."""
        accelerated = any(device_of(each).type != "cpu" for lane in self.lanes for each in lane)
        return len(self.lanes) * len(self.specs) * (IN_FLIGHT if accelerated else 1)

    def leads(
        self, time: np.datetime64, members: tuple[int, ...], wanted: np.ndarray, pieces: int = 1
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(position of the lead, fields (member, channel, latitude, longitude)) of the leads that are wanted, bool (lead,).

        pieces: a micro-batch goes through the networks in so many. Raises GateError if a field is not finite.
        """
        plan, step = self.plan, self.specs[0].step
        numbers = np.round(plan.leads / step).astype(int)  # of the step that reaches each lead
        first, last = int(numbers[wanted].min()), int(numbers[wanted].max())
        shared = share_out(self.lanes, plan, members, pieces)
        frames = [self._frames(members, time, part) for part in range(len(self.specs))]
        self._everywhere(shared, _begin(plan, time, frames, self._planes(time + step)))
        batches = [batch for lane in shared for batch in lane]
        done = 0 if self.restarts is None else self.restarts.resume(plan, time, batches, first - 1)
        edges = _Edges(self.boundary, self.specs, time, last)
        for k in range(done + 1, last + 1):
            self._everywhere(shared, _step(plan, time, k, self._planes(time + k * step), edges.at(k), self.boundary))
            place = np.flatnonzero((numbers == k) & wanted)
            if place.size:
                yield int(place[0]), self._decoded(time, k * step, members, shared)
        if self.restarts is not None:
            for batch in batches:
                self.restarts.keep(plan, time, batch, last)

    def _decoded(self, time: np.datetime64, lead: np.timedelta64, members: tuple[int, ...], shared: list[Lane]) -> np.ndarray:
        fields = np.empty((len(members), len(self.plan.channels), *self.plan.grid.shape), np.float32)

        def decode(lane: Lane) -> None:
            for batch in lane:
                whole, cut = batch.decoded(), self._cuts[batch.part]
                if cut.drops:  # also where nobody looks: the next step would carry it everywhere
                    check_finite(self.specs[batch.part].parsed_channels, time, lead, batch.members, whole)
                fields[batch.places] = cut(whole)

        self._everywhere(shared, decode)
        check_finite(self.plan.channels, time, lead, members, fields)
        return fields

    def _frames(self, members: tuple[int, ...], time: np.datetime64, part: int) -> np.ndarray:
        """Input frames of the members of checkpoint `part`, normalised by its own statistics."""
        if self.initial is None:
            return one_analysis(self.analysis, self.specs[part], time)
        return self.initial.load(self.specs[part], time, share(members, part, len(self.specs)) or members[:1])

    def _everywhere(self, lanes: Sequence[Lane], call: Callable[[Lane], None]) -> None:
        """`call` each device's micro-batches, every device on a thread of its own."""

        @torch.inference_mode()  # holds for one thread only
        def called(lane: Lane) -> None:
            try:
                call(lane)
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                raise TooLargeError(str(error) or type(error).__name__) from error

        for _ in map(called, lanes) if self._pool is None else self._pool.map(called, lanes):
            pass


def _is_out_of_memory(error: Exception) -> bool:
    """True for what numpy, torch and its devices raise when they cannot have the memory that they ask for."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or MEMORY_WORDS.search(str(error)) is not None


class _Planes:
    """Forcing planes of a valid time for each checkpoint; those that ask for the same share them."""

    def __init__(self, specs: Sequence[Spec], analysis: xr.Dataset) -> None:
        self.names = [spec.forcings for spec in specs]
        self.forcings = {
            spec.forcings: Forcings(spec.forcings, spec.grid, spec.step, standardised_static(analysis, spec.forcings))
            for spec in specs
        }

    def __call__(self, valid: np.datetime64) -> list[np.ndarray]:
        made = {names: forcings.at(valid) for names, forcings in self.forcings.items()}
        return [made[names] for names in self.names]


class _Edges:
    """Ring values of one initialisation for each checkpoint, read in blocks of leads as stores keep them, not all at once."""

    def __init__(self, boundary: Boundary | None, specs: Sequence[Spec], time: np.datetime64, last: int) -> None:
        self.boundary, self.specs, self.time, self.last = boundary, specs, time, last
        members = boundary.data.sizes["number"] if boundary is not None and boundary.is_forecast else 1
        lead_bytes = members * len(specs[0].channels) * int(np.prod(specs[0].grid.shape)) * 4
        self.block = max(1, BUFFER_BYTES // lead_bytes)
        self.first, self.values = -self.block, [np.empty(0)] * len(specs)

    def at(self, k: int) -> list[np.ndarray] | None:
        """Of step k (from 1); steps are asked for in order."""
        if self.boundary is None:
            return None
        if k >= self.first + self.block:
            self.first = k
            leads = self.specs[0].step * np.arange(k, min(k + self.block, self.last + 1))
            self.values = [self.boundary.load(spec, self.time, leads.astype("timedelta64[ns]")) for spec in self.specs]
        return [values[k - self.first] for values in self.values]


def _begin(plan: ForecastPlan, time: np.datetime64, frames: list[np.ndarray], planes: list[np.ndarray]) -> Callable[[Lane], None]:
    def begin(lane: Lane) -> None:
        for batch in lane:
            batch.begin(plan, time, frames[batch.part], planes[batch.part])

    return begin


def _step(
    plan: ForecastPlan, time: np.datetime64, k: int, planes: list[np.ndarray], edges: list[np.ndarray] | None,
    boundary: Boundary | None,
) -> Callable[[Lane], None]:  # fmt: skip
    """Step k of a device's micro-batches; all are set going before the first is waited for."""

    def step(lane: Lane) -> None:
        for batch in lane:
            batch.step(plan, time, k, planes[batch.part], None if edges is None else edges[batch.part], boundary)

    return step
