"""The roll-out: each lead of an initialisation is handed to the sinks as soon as all members have it, and then forgotten."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.forcings import Forcings, standardised_static
from data_pipeline.store import version
from forecast.boundary import Boundary
from forecast.initial_states import InitialStates, check_inputs, one_analysis
from forecast.members import MicroBatch, check_together, micro_batch, on_devices, share, share_out
from forecast.plan import ForecastPlan, checkpoint_attrs
from forecast.sinks import MemorySink, Sink, check_finite
from models.contract import Generator, Spec, device_of

Generators = Generator | Sequence[Generator]

BUFFER_BYTES = 96 << 20  # leads of a boundary read at once
IN_FLIGHT = 4  # micro-batches of a checkpoint on an accelerator: it works on one while the next is set going


@dataclass(frozen=True)
class Progress:
    """Fields of all channels, one for each initialisation, lead and member: done and in all."""

    done: int
    total: int


def sample(
    generator: Generators, analysis: xr.Dataset, times: Sequence[Any] | np.ndarray, *, days: float = 10.0, members: int = 50,
    seed: int = 0, boundary: Boundary | None = None, initial: InitialStates | None = None,
) -> xr.Dataset:  # fmt: skip
    """An ensemble forecast in memory, in the forecast schema.

    generator: one, or several that share out the members (see `run`). times: initialisations; each needs the input frames in
    `analysis`, or in `initial`, from which members then start. Member numbers start at 1; member k is the same whatever `members`
    is. Raises InputError if frames, channels or grid do not fit. For large ones: `run`, a ZarrSink.
    """
    plan = make_plan(generator, analysis, times, days=days, members=members, seed=seed, boundary=boundary, initial=initial)
    sink = MemorySink()
    run(generator, analysis, plan, [sink], boundary=boundary, initial=initial)
    return sink.dataset


def make_plan(
    generator: Generators, analysis: xr.Dataset, times: Sequence[Any] | np.ndarray, *, days: float, members: int, seed: int,
    boundary: Boundary | None = None, name: str | None = None, noise_scale: float | None = None,
    initial: InitialStates | None = None,
) -> ForecastPlan:  # fmt: skip
    """The plan of a roll-out: every step up to `days`. noise_scale: that of each checkpoint's calibration unless given.

    Raises InputError before any heavy work.
    """
    generators = listed(generator)
    spec = generators[0].spec
    check_together([each.spec for each in generators])
    inits = np.unique(np.array([np.datetime64(time, "ns") for time in times]))
    steps = int(np.timedelta64(round(days * 24), "h") / spec.step)
    if steps < 1 or members < 1 or not inits.size:
        raise InputError(
            f"forecast: {inits.size} initialisations, {members} members, {days:g} days; the step is {spec.step_hours} h"
        )
    numbers = tuple(range(1, members + 1))
    leads = spec.step * np.arange(1, steps + 1)
    for each in generators:
        if initial is None:
            check_inputs(analysis, each.spec, list(inits))
        else:
            initial.check(each.spec, list(inits), numbers)
        if boundary is not None:
            boundary.check(each.spec, inits, leads)
    attrs = {
        **checkpoint_attrs(generators, noise_scale),
        "seed": seed,
        "initial_state": "one analysis, all members alike" if initial is None else initial.described(spec, list(inits), numbers),
        "boundary": boundary.name if boundary is not None else "none",
        "source": str(analysis.attrs.get("source", "")),
        "attribution": str(analysis.attrs.get("attribution", "")),
        "source_recipe_hash": str(analysis.attrs.get("recipe_hash", "")),
        "micro_batch": micro_batch(spec),
        "versions": _versions(),
        "plumecast_version": version(),
    }
    if name:
        attrs["model"] = name
    return ForecastPlan(inits, leads, numbers, tuple(spec.parsed_channels), spec.grid, attrs)


def listed(generator: Generators) -> list[Generator]:
    """One generator or several, as a list."""
    return [generator] if isinstance(generator, Generator) else list(generator)


def _versions() -> str:
    """Versions that decide the numbers of a forecast, as JSON."""
    return json.dumps({"numpy": np.__version__, "torch": torch.__version__, "threads": torch.get_num_threads()})


def run(
    generator: Generators, analysis: xr.Dataset, plan: ForecastPlan, sinks: Sequence[Sink], *, boundary: Boundary | None = None,
    initial: InitialStates | None = None, devices: Sequence[str] = (),
    report: Callable[[Progress], None] = lambda progress: None,
) -> None:  # fmt: skip
    """Make the forecast of `plan` and feed it to `sinks`. Initialisations that every sink already holds are skipped.

    generator: one, or several: member k is made by number (k - 1) mod J of J (a deep ensemble), so that every prefix of the
    members is balanced. devices: micro-batches are shared out over them, with the same numbers on alike devices; without any, the
    generators run where they lie.

    Some member blocks of an initialisation are made at a time, or all its members, if a sink needs them at once. Memory: their
    states, one lead of their fields, and a block of the boundary's leads. Raises GateError if a field is not finite.
    """
    generators = listed(generator)
    specs = [each.spec for each in generators]
    planes_of = _Planes(specs, analysis)
    lanes = on_devices(generators, devices)
    held = np.ones((plan.times.size, plan.leads.size, len(plan.members)), bool)
    for sink in sinks:
        has = sink.open(plan)
        held &= False if has is None else has
    whole = any(sink.whole for sink in sinks)
    size = len(plan.members) if whole else plan.chunks["number"] * _blocks_at_once(lanes)
    total, done = held.size, int(held.sum())
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(len(lanes))) if len(lanes) > 1 else None
        for unit in _units(plan, held, size, whole):
            time, members = unit.time, unit.members
            shared = share_out(lanes, plan, members)
            frames = [_frames(analysis, initial, members, time, specs, part) for part in range(len(specs))]
            _everywhere(pool, shared, _begin(plan, time, frames, planes_of(time + plan.leads[0])))
            edges = _Edges(boundary, specs, plan, time)
            for k, lead in enumerate(plan.leads):
                planes = planes_of(time + lead)
                _everywhere(pool, shared, _step(plan, time, k + 1, planes, edges.at(k), boundary))
                if not unit.wanted[k].any():
                    continue
                fields = np.empty((len(members), len(plan.channels), *plan.grid.shape), np.float32)
                _everywhere(pool, shared, _decode(fields))
                check_finite(plan, time, lead, members, fields)
                for sink in sinks:
                    sink.take(time, lead, members, fields)
                done += int(unit.wanted[k].sum())
                report(Progress(done, total))
    for sink in sinks:
        sink.close()


class _Unit(NamedTuple):
    """Members of one initialisation that are made together. wanted: bool (lead, member), what some sink lacks."""

    time: np.datetime64
    members: tuple[int, ...]
    wanted: np.ndarray


def _units(plan: ForecastPlan, held: np.ndarray, size: int, whole: bool) -> Iterator[_Unit]:
    """What is to be made, `size` members of the plan at most at a time; whole: with those that are held already."""
    for row, time in enumerate(plan.times):
        for first in range(0, len(plan.members), size):
            wanted = ~held[row, :, first : first + size]
            lacking = np.asarray(wanted.any(axis=0))
            if whole:
                lacking = np.full_like(lacking, lacking.any())
            places = first + np.flatnonzero(lacking)
            if places.size:
                yield _Unit(time, tuple(plan.members[place] for place in places), wanted[:, lacking])


def _blocks_at_once(lanes: Sequence[Sequence[Generator]]) -> int:
    """Member blocks that keep every checkpoint and device busy."""
    accelerated = any(device_of(each).type != "cpu" for lane in lanes for each in lane)
    return len(lanes) * len(lanes[0]) * (IN_FLIGHT if accelerated else 1)


def _frames(
    analysis: xr.Dataset, initial: InitialStates | None, members: tuple[int, ...], time: np.datetime64, specs: list[Spec],
    part: int,
) -> np.ndarray:  # fmt: skip
    """Input frames of the members of checkpoint `part`, normalised by its own statistics."""
    if initial is None:
        return one_analysis(analysis, specs[part], time)
    return initial.load(specs[part], time, share(members, part, len(specs)) or members[:1])


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

    def __init__(self, boundary: Boundary | None, specs: Sequence[Spec], plan: ForecastPlan, time: np.datetime64) -> None:
        self.boundary, self.specs, self.plan, self.time = boundary, specs, plan, time
        members = boundary.data.sizes["number"] if boundary is not None and boundary.is_forecast else 1
        lead_bytes = members * len(specs[0].channels) * int(np.prod(specs[0].grid.shape)) * 4
        self.block = max(1, BUFFER_BYTES // lead_bytes)
        self.first, self.values = -self.block, [np.empty(0)] * len(specs)

    def at(self, k: int) -> list[np.ndarray] | None:
        """Of lead k (from 0); leads are asked for in order."""
        if self.boundary is None:
            return None
        if k >= self.first + self.block:
            self.first = k
            leads = self.plan.leads[k : k + self.block]
            self.values = [self.boundary.load(spec, self.time, leads) for spec in self.specs]
        return [values[k - self.first] for values in self.values]


Lane = list[MicroBatch]


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


def _decode(fields: np.ndarray) -> Callable[[Lane], None]:
    def decode(lane: Lane) -> None:
        for batch in lane:
            fields[batch.places] = batch.fields()

    return decode


def _everywhere(pool: ThreadPoolExecutor | None, lanes: Sequence[Lane], call: Callable[[Lane], None]) -> None:
    """`call` each device's micro-batches, every device on a thread of its own."""

    @torch.inference_mode()  # holds for one thread only
    def called(lane: Lane) -> None:
        call(lane)

    for _ in map(called, lanes) if pool is None else pool.map(called, lanes):
        pass
