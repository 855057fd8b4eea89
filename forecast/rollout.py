"""The roll-out: each lead of an initialisation is handed to the sinks as soon as all members have it, and then forgotten."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr

from data_pipeline.errors import InputError, PlumecastError
from data_pipeline.store import version
from forecast.boundary import Boundary
from forecast.initial_states import InitialStates, check_inputs, started_from
from forecast.members import check_together, micro_batch
from forecast.plan import ForecastPlan, checkpoint_attrs
from forecast.sampler import Sampler, TooLargeError
from forecast.sinks import MemorySink, Sink
from forecast.states import Restarts
from models.contract import Generator

Generators = Generator | Sequence[Generator]


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
    generator: Generators, analysis: xr.Dataset, times: Sequence[Any] | np.ndarray, *, days: float, members: int | Sequence[int],
    seed: int,
    boundary: Boundary | None = None, name: str | None = None, noise_scale: float | None = None,
    initial: InitialStates | None = None,
) -> ForecastPlan:  # fmt: skip
    """The plan of a roll-out: every step up to `days`. noise_scale: that of each checkpoint's calibration unless given.

    members: how many, from number 1 on, or their numbers. Raises InputError before any heavy work.
    """
    generators = listed(generator)
    spec = generators[0].spec
    check_together([each.spec for each in generators])
    inits = np.unique(np.array([np.datetime64(time, "ns") for time in times]))
    steps = int(np.timedelta64(round(days * 24), "h") / spec.step)
    numbers = tuple(range(1, members + 1)) if isinstance(members, int) else tuple(sorted(set(members)))
    if steps < 1 or not numbers or numbers[0] < 1 or not inits.size:
        raise InputError(
            f"forecast: {inits.size} initialisations, {len(numbers)} members{f' from {numbers[0]}' if numbers else ''}, {days:g} "
            f"days; members are numbered from 1, the step is {spec.step_hours} h"
        )
    leads = spec.step * np.arange(1, steps + 1)
    check_all(generators, analysis, inits, leads, numbers, boundary=boundary, initial=initial)
    attrs = {
        **checkpoint_attrs(generators, noise_scale),
        "seed": seed,
        "initial_state": started_from(generators, initial, list(inits), numbers),
        "boundary": boundary.name if boundary is not None else "none",
        "source": str(analysis.attrs.get("source", "")),
        "attribution": str(analysis.attrs.get("attribution", "")),
        "source_recipe_hash": str(analysis.attrs.get("recipe_hash", "")),
        "micro_batch": micro_batch(spec),
        "versions": versions(),
        "plumecast_version": version(),
    }
    if name:
        attrs["model"] = name
    return ForecastPlan(inits, leads, numbers, tuple(spec.parsed_channels), spec.grid, attrs)


def check_all(
    generators: Sequence[Generator], analysis: xr.Dataset, inits: np.ndarray, leads: np.ndarray, numbers: Sequence[int], *,
    boundary: Boundary | None = None, initial: InitialStates | None = None,
) -> None:  # fmt: skip
    """Raise InputError, listing everything, unless all that these initialisations, leads and members start from is there."""
    for each in generators:
        if initial is None:
            check_inputs(analysis, each.spec, list(inits))
        else:
            initial.check(each.spec, list(inits), numbers)
        if boundary is not None:
            boundary.check(each.spec, inits, leads)


def listed(generator: Generators) -> list[Generator]:
    """One generator or several, as a list."""
    return [generator] if isinstance(generator, Generator) else list(generator)


def versions() -> str:
    """Versions that decide the numbers of a forecast, as JSON."""
    return json.dumps({"numpy": np.__version__, "torch": torch.__version__, "threads": torch.get_num_threads()})


def run(
    generator: Generators, analysis: xr.Dataset, plan: ForecastPlan, sinks: Sequence[Sink], *, boundary: Boundary | None = None,
    initial: InitialStates | None = None, devices: Sequence[str] = (),
    restarts: Restarts | None = None, report: Callable[[Progress], None] = lambda progress: None,
    remark: Callable[[str], None] = warnings.warn,
) -> None:  # fmt: skip
    """Make the forecast of `plan` and feed it to `sinks`. What every sink already holds is not made.

    generator: one, or several: member k is made by number (k - 1) mod J of J (a deep ensemble), so that every prefix of the
    members is balanced. devices: micro-batches are shared out over them, with the same numbers on alike devices; without any, the
    generators run where they lie.

    restarts: where the states of the last lead are kept, and continued from when leads are added. remark: told when memory runs
    out, and fewer members go on together, see `Load`; what was made is not made again.

    Some member blocks of an initialisation are made at a time, or all its members, if a sink needs them at once. Memory: their
    states, one lead of their fields, and a block of the boundary's leads. Raises GateError if a field is not finite.
    """
    held = np.ones((plan.times.size, plan.leads.size, len(plan.members)), bool)
    for sink in sinks:
        has = sink.open(plan)
        held &= False if has is None else has
    options: dict[str, Any] = {"boundary": boundary, "initial": initial, "devices": devices, "restarts": restarts}
    with Sampler(listed(generator), analysis, plan, **options) as sampler:
        whole = any(sink.whole for sink in sinks)
        load = Load(len(plan.members) if whole else plan.chunks["number"] * sampler.blocks_at_once)
        while (unit := _next(plan, held, load.members, whole)) is not None:
            members = tuple(plan.members[place] for place in unit.places)
            try:
                for k, fields in sampler.leads(plan.times[unit.row], members, unit.wanted, load.pieces):
                    given = members
                    if not whole and not (new := ~held[unit.row, k, unit.places]).all():
                        given, fields = tuple(np.array(members)[new].tolist()), fields[new]
                    for sink in sinks:
                        sink.take(plan.times[unit.row], plan.leads[k], given, fields)
                    held[unit.row, k, unit.places] = True
                    report(Progress(int(held.sum()), held.size))
            except TooLargeError as error:
                load = load.less(micro_batch(sampler.specs[0]), whole, error)
                remark(load.said(error))
    for sink in sinks:
        sink.close()


@dataclass(frozen=True)
class Load:
    """Members that are made together, and the pieces in which a micro-batch goes through a network."""

    members: int
    pieces: int = 1

    def less(self, block: int, whole: bool, error: Exception) -> Load:
        """Half of it: fewer micro-batches first, which changes no bit, then smaller ones.

        Raises PlumecastError if that was one member alone.
        """
        if not whole and self.members > block:
            return Load(max(block, self.members // 2 // block * block), self.pieces)
        if self.pieces < block:
            return Load(self.members, 2 * self.pieces)
        raise PlumecastError(f"not even one member at a time fits the memory ({error}); use a device with more of it") from error

    def said(self, error: Exception) -> str:
        """For the person, and for the store."""
        how = f"{self.members} members at a time; the numbers stay the same"
        if self.pieces > 1:
            how = f"micro-batches in {self.pieces} pieces; from here on the numbers are those of enough memory to rounding only"
        return f"memory ran out ({str(error).splitlines()[0][:120]}): going on with {how}"


class _Unit(NamedTuple):
    """Members of one initialisation that are made together: positions in the plan. wanted: bool (lead,), what some sink lacks."""

    row: int
    places: np.ndarray
    wanted: np.ndarray


def _next(plan: ForecastPlan, held: np.ndarray, size: int, whole: bool) -> _Unit | None:
    """What is to be made next, `size` members of the plan at most; whole: with those that are held already."""
    for row in np.flatnonzero(~held.all(axis=(1, 2))):
        for first in range(0, len(plan.members), size):
            missing = ~held[row, :, first : first + size]
            lacking = np.flatnonzero(missing.any(axis=0))
            if lacking.size:
                places = np.arange(missing.shape[1]) if whole else lacking
                return _Unit(int(row), first + places, np.asarray(missing.any(axis=1)))
    return None
