"""What a forecast command is about to do, before it does it: how much is to be made, written and waited for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from data_pipeline import store
from data_pipeline.disk import plain
from data_pipeline.manifest import partial_path, read_plan
from forecast.extend import Published, published, recipe_of
from forecast.inputs import Opened
from forecast.outputs import Outputs
from forecast.plan import ForecastPlan
from forecast.retention import SpaceError, free_bytes
from forecast.sampler import Sampler
from forecast.states import folder_of

RATE_STEPS = 3  # that are made for the rate; the first warms up
MANIFEST_BYTES = 200  # of a chunk, in the manifest and the markers


@dataclass(frozen=True)
class Work:
    """What is left of a plan. held: bool (time, lead, member), what is on the disk. has_states: of the last leads, beside it."""

    plan: ForecastPlan
    held: np.ndarray
    step: np.timedelta64
    old: Published | None
    parts_done: int
    has_states: bool = False

    @property
    def passes(self) -> int:
        """Members through a network for one step: up to the last lead that is missing, from the first step or a kept state on."""
        steps = np.round(self.plan.leads / self.step).astype(int)[None, :, None]
        last = np.where(self.held, 0, steps).max(axis=1)
        begun = np.where(self.held, steps, 0).max(axis=1) if self.has_states else np.zeros_like(last)
        return int((last - np.where(begun < last, begun, 0))[last > 0].sum())

    @property
    def goes_on(self) -> bool:
        """True if leads are added to members that have others."""
        return bool((self.held.any(axis=1) & ~self.held.all(axis=1)).any())

    @property
    def bytes(self) -> int:
        """Of new fields, before compression, which takes a third of it or more: enough is free if this is."""
        each = self.plan.lead_bytes // len(self.plan.members)
        return int((~self.held).sum()) * each

    @property
    def times(self) -> np.ndarray:
        """The initialisations that are not done."""
        return np.asarray(self.plan.times[~self.held.all(axis=(1, 2))])

    @property
    def is_done(self) -> bool:
        return bool(self.held.all())


def work_left(plan: ForecastPlan, path: Path | None, step: np.timedelta64) -> Work:
    """What is to be made of a plan at `path`. Raises InputError, with the differences, for a store of other settings there."""
    held = np.zeros((plan.times.size, plan.leads.size, len(plan.members)), bool)
    if path is None:
        return Work(plan, held, step, None, 0)
    old, done = published(path, plan), 0
    if old is not None:
        held |= old.held(plan)
    staged = read_plan(path)
    if not held.all() and staged is not None and staged["recipe"] == plain(recipe_of(plan)):
        names = {marker.stem for marker in (partial_path(path) / "parts").glob("*.json")}
        for part in plan.parts:
            if part.name in names:
                done += 1
                held[part.row, :, part.members] = True
    return Work(plan, held, step, old, done, folder_of(path).is_dir())


def require_space(work: Work, path: Path) -> None:
    """Raise SpaceError, before anything is computed, unless what is left fits the disk."""
    needed, free = work.bytes, free_bytes(path.parent)
    if needed > free:
        raise SpaceError(
            f"{path.parent}: {needed / 1e6:,.1f} MB are needed for the fields that are left (before compression), "
            f"{free / 1e6:,.1f} MB are free; make room, choose another place (--out), or keep less (--variable, --level, "
            "--output-lead, --region, --no-store)"
        )


def measured_seconds(work: Work, opened: Opened, devices: Sequence[str]) -> float:
    """Seconds that the network passes will take, from a few steps of the first members."""
    plan = work.plan
    options = {"boundary": opened.boundary, "initial": opened.initial, "devices": devices}
    with Sampler(opened.generators, opened.analysis, plan, **options) as sampler:  # type: ignore[arg-type]
        members = plan.members[: plan.chunks["number"] * sampler.blocks_at_once]
        wanted = np.zeros(plan.leads.size, bool)
        wanted[:RATE_STEPS] = True
        stamps = [time.perf_counter() for _ in sampler.leads(plan.times[0], members, wanted)]
        steps = np.round(plan.leads / work.step)[: len(stamps)]
    if len(stamps) < 2:
        return float("nan")
    rate = (stamps[-1] - stamps[0]) / float(steps[-1] - steps[0]) / len(members)
    return rate * work.passes


def headline(plan: ForecastPlan, target: object) -> str:
    """The plan in one line."""
    return (
        f"{plan.attrs['model']}: {plan.times.size} initialisations x {len(plan.members)} members x {plan.leads.size} leads of "
        f"{len(plan.channels)} fields on {plan.grid}; {plan.bytes / 1e6:,.0f} MB before compression -> {target}"
    )


def show(console: Console, work: Work, outputs: Outputs, seconds: float | None) -> None:
    """The plan as a table."""
    plan, hours = work.plan, work.plan.leads / np.timedelta64(1, "h")
    stamps = np.datetime_as_string(plan.times, "h")
    numbers = f"{plan.members[0]} .. {plan.members[-1]} ({len(plan.members)})" if len(plan.members) > 1 else str(plan.members[0])
    rows = {
        "initialisations": f"{stamps[0]} .. {stamps[-1]} ({stamps.size})" if stamps.size > 1 else str(stamps[0]),
        "members": numbers,
        "leads": f"{hours[0]:g} .. {hours[-1]:g} h ({hours.size})" if hours.size > 1 else f"{hours[0]:g} h",
        "fields": ", ".join(channel.label for channel in plan.channels),
        "grid": str(plan.grid),
        "network passes": f"{work.passes:,} of a member and a step",
        "time": "nothing to wait for" if work.is_done else _time(seconds),
    }
    if outputs.store is not None:
        free = free_bytes(outputs.store.parent)
        rows["store"] = str(outputs.store)
        rows[""] = _state(work, outputs.store)
        rows["disk"] = f"{work.bytes / 1e6:,.1f} MB at most (before compression), {free / 1e6:,.0f} MB free"
    if outputs.scores is not None:
        rows["scores"] = f"{outputs.scores.out}, against {outputs.scores.truth}"
    rows["gate"] = "refuses what is unsound" if outputs.strict else "warns only; values that are not finite are refused"
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, text in rows.items():
        table.add_row(name, text)
    console.print(table, highlight=False)


def _time(seconds: float | None) -> str:
    if seconds is None or not np.isfinite(seconds):
        return "not measured"
    text = f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
    return f"about {text}, from {RATE_STEPS} steps measured just now (sampling only)"


def _state(work: Work, path: Path) -> str:
    if work.is_done and work.old is not None:
        return "holds all of this already"
    if store.is_store(path) and work.old is not None:
        before = work.old.plan
        changes = [
            f"{name} {len(own)} -> {len(new)}"
            for name, own, new in (
                ("initialisations", before.times, work.plan.times), ("members", before.members, work.plan.members),
                ("leads", before.leads, work.plan.leads),
            )
            if len(own) != len(new)
        ]  # fmt: skip
        text = f"would be extended: {', '.join(changes)}; what is there is not made again"
    else:
        text = "would be written"
    return text + (f"; {work.parts_done} of {len(work.plan.parts)} parts are there" if work.parts_done else "")
