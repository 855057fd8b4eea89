"""The roll-out: each lead of an initialisation is handed to the sinks as soon as all members have it, and then forgotten."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from data_pipeline.errors import InputError
from data_pipeline.forcings import Forcings, standardised_static
from data_pipeline.store import version
from forecast import noise
from forecast.boundary import Boundary
from forecast.initial_states import InitialStates, check_inputs, one_analysis
from forecast.plan import ForecastPlan
from forecast.sinks import MemorySink, Sink, check_finite
from models.contract import Generator, Spec, device_of, flat_noise_size

BATCH_POINTS = 16384  # grid points through the network at once


@dataclass(frozen=True)
class Progress:
    """(initialisation, lead) pairs done and in all."""

    done: int
    total: int


def sample(
    generator: Generator, analysis: xr.Dataset, times: Sequence[Any] | np.ndarray, *, days: float = 10.0, members: int = 50,
    seed: int = 0, boundary: Boundary | None = None, initial: InitialStates | None = None,
) -> xr.Dataset:  # fmt: skip
    """An ensemble forecast in memory, in the forecast schema.

    times: initialisations; each needs the input frames in `analysis`, or in `initial`, from which members then start.
    Member numbers start at 1; member k is the same whatever `members` is. Raises InputError if frames, channels or grid do not
    fit. For large ones: `run`, a ZarrSink.
    """
    plan = make_plan(generator, analysis, times, days=days, members=members, seed=seed, boundary=boundary, initial=initial)
    sink = MemorySink()
    run(generator, analysis, plan, [sink], boundary=boundary, initial=initial)
    return sink.dataset


def make_plan(
    generator: Generator, analysis: xr.Dataset, times: Sequence[Any] | np.ndarray, *, days: float, members: int, seed: int,
    boundary: Boundary | None = None, name: str | None = None, noise_scale: float | None = None,
    initial: InitialStates | None = None,
) -> ForecastPlan:  # fmt: skip
    """The plan of a roll-out: every step up to `days`. noise_scale: that of the checkpoint's calibration unless given.

    Raises InputError before any heavy work.
    """
    spec = generator.spec
    inits = np.unique(np.array([np.datetime64(time, "ns") for time in times]))
    steps = int(np.timedelta64(round(days * 24), "h") / spec.step)
    if steps < 1 or members < 1 or not inits.size:
        raise InputError(
            f"forecast: {inits.size} initialisations, {members} members, {days:g} days; the step is {spec.step_hours} h"
        )
    numbers = tuple(range(1, members + 1))
    if initial is None:
        check_inputs(analysis, spec, list(inits))
    else:
        initial.check(spec, list(inits), numbers)
    leads = spec.step * np.arange(1, steps + 1)
    if boundary is not None:
        boundary.check(spec, inits, leads)
    attrs = {
        "model": name or f"{spec.family} {spec.options.get('preset', '')}".strip(),
        "checkpoint_sha256": generator.sha256,
        "seed": seed,
        "noise_scale": generator.provenance.get("noise_scale", 1.0) if noise_scale is None else noise_scale,
        "initial_state": "one analysis, all members alike" if initial is None else initial.described(spec, list(inits), numbers),
        "boundary": boundary.name if boundary is not None else "none",
        "training_period": spec.training_period,
        "validation_period": spec.validation_period,
        "source": str(analysis.attrs.get("source", "")),
        "attribution": str(analysis.attrs.get("attribution", "")),
        "source_recipe_hash": str(analysis.attrs.get("recipe_hash", "")),
        "micro_batch": micro_batch(spec),
        "versions": _versions(),
        "plumecast_version": version(),
    }
    return ForecastPlan(inits, leads, numbers, tuple(spec.parsed_channels), spec.grid, attrs)


def _versions() -> str:
    """Versions that decide the numbers of a forecast, as JSON."""
    return json.dumps({"numpy": np.__version__, "torch": torch.__version__, "threads": torch.get_num_threads()})


@torch.inference_mode()
def run(
    generator: Generator, analysis: xr.Dataset, plan: ForecastPlan, sinks: Sequence[Sink], *, boundary: Boundary | None = None,
    initial: InitialStates | None = None, report: Callable[[Progress], None] = lambda progress: None,
) -> None:  # fmt: skip
    """Make the forecast of `plan`, where the generator's weights lie, and feed it to `sinks`.

    Initialisations that every sink already holds are skipped.

    Memory: the states of one initialisation's members and one lead of fields. Raises GateError if a field is not finite.
    """
    spec = generator.spec
    forcings = Forcings(spec.forcings, spec.grid, spec.step, standardised_static(analysis, spec.forcings))
    held = set.intersection(*(sink.open(plan) for sink in sinks))
    todo = [time for time in plan.times if time not in held]
    total, done = plan.times.size * plan.leads.size, (plan.times.size - len(todo)) * plan.leads.size
    for time in todo:
        frames = one_analysis(analysis, spec, time) if initial is None else initial.load(spec, time, plan.members)
        members = _Members(generator, plan, time, frames)
        edge = boundary.load(spec, time, plan.leads) if boundary is not None else None
        for k, lead in enumerate(plan.leads):
            members.step(k + 1, forcings.at(time + lead), None if edge is None else edge[k], boundary)
            fields = spec.denormalise(members.fields())
            check_finite(plan, time, lead, fields)
            for sink in sinks:
                sink.take(time, lead, fields)
            done += 1
            report(Progress(done, total))
    for sink in sinks:
        sink.close()


def micro_batch(spec: Spec) -> int:
    """Members through the network at once: fixed by the grid alone, as matrix products differ in the last bit with it."""
    return int(np.clip(BATCH_POINTS // int(np.prod(spec.grid.shape)), 4, 32))


class _Members:
    """The states of all members of one initialisation, in micro-batches of one size; the last one is padded with idle rows."""

    def __init__(self, generator: Generator, plan: ForecastPlan, time: np.datetime64, frames: np.ndarray) -> None:
        self.generator, self.plan, self.time, self.device = generator, plan, time, device_of(generator)
        self.noise_size = flat_noise_size(generator.noise_shapes())
        self.rows = micro_batch(generator.spec)
        self.batches = [plan.members[i : i + self.rows] for i in range(0, len(plan.members), self.rows)]
        still = torch.zeros(self.rows, generator.spec.n_planes, *plan.grid.shape, device=self.device)
        self.states = [generator.initial(self._start(frames, batch), still, self._noise(batch, 0)) for batch in self.batches]

    def _start(self, frames: np.ndarray, batch: tuple[int, ...]) -> Tensor:
        """Rows (B, F, C, H, W) of a micro-batch: one analysis for all, or each its own frames; idle rows repeat the first."""
        if frames.ndim == 5:
            rows = [self.plan.members.index(member) for member in batch]
            frames = frames[rows + rows[:1] * (self.rows - len(rows))]
        start = torch.from_numpy(frames).to(self.device)
        return start.expand(self.rows, *start.shape[-4:])

    def step(self, k: int, planes: np.ndarray, edge: np.ndarray | None, boundary: Boundary | None) -> None:
        forcing = torch.from_numpy(planes).to(self.device).expand(self.rows, *planes.shape)
        for i, batch in enumerate(self.batches):
            state = self.generator.step(self.states[i], forcing, self._noise(batch, k))
            if edge is not None and boundary is not None:
                target = torch.from_numpy(boundary.for_members(edge, batch, self.rows)).to(self.device)
                weight = torch.from_numpy(boundary.weight(self.plan.grid)).to(self.device)
                state = self.generator.nudge(state, target, weight)
            self.states[i] = state

    def fields(self) -> np.ndarray:
        """Normalised fields (member, channel, latitude, longitude) of all members."""
        decoded = [self.generator.fields(state)[: len(batch)] for state, batch in zip(self.states, self.batches, strict=True)]
        return torch.cat(decoded).cpu().numpy()

    def _noise(self, batch: tuple[int, ...], step: int) -> Tensor:
        scale, seed = float(self.plan.attrs.get("noise_scale", 1.0)), int(self.plan.attrs["seed"])
        rows = np.zeros((self.rows, self.noise_size), np.float32)
        for row, member in enumerate(batch):
            rows[row] = scale * noise.draw(seed, self.time, member, step, self.noise_size)
        return torch.from_numpy(rows).to(self.device)
