"""Which fields of which runs make the input frames of a forecast, which cycle has them all, and what to say where one has not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import xarray as xr

from data_pipeline.errors import InputError, NotReadyError, PlumecastError
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel
from data_pipeline.sources.accumulation import named_hours
from data_pipeline.sources.ecmwf_server import Field, Gap, Server
from data_pipeline.sources.files import open_static
from data_pipeline.variables import Variable, lookup

CYCLE_HOURS = (0, 6, 12, 18)
STEP_HOURS = 3  # between the steps of a forecast, up to 90 h of every cycle
LOOK_BACK = pd.Timedelta("48h")
USUAL = (pd.Timedelta("7h"), pd.Timedelta("9h"))  # after its initialisation a cycle appears: its first step, its last
KEPT = pd.Timedelta("72h")  # on ECMWF's own server
MIRRORED_SINCE = pd.Timestamp("2024-03-01")  # in this layout
SHOWN = 20  # fields that a message names


@dataclass(frozen=True)
class Wanted:
    """What a forecast needs: channels and static fields on a grid, in `frames` stamps `step_hours` apart.

    static_file: a file or store, on any grid, whose static fields are taken rather than those of ECMWF.
    """

    channels: tuple[Channel, ...]
    grid: Grid
    frames: int = 1
    step_hours: int = 12
    static: tuple[str, ...] = ()
    static_file: Path | None = None

    def stamps(self, init: pd.Timestamp) -> list[pd.Timestamp]:
        """Of the frames, oldest first; the last is the initialisation."""
        return [init - back * pd.Timedelta(hours=self.step_hours) for back in range(self.frames - 1, -1, -1)]

    @cached_property
    def given(self) -> xr.Dataset:
        """The static fields that `static_file` has."""
        found = xr.Dataset() if self.static_file is None else open_static(self.static_file)
        return found[[name for name in self.static if name in found]]

    @cached_property
    def accumulated(self) -> dict[str, tuple[Variable, int]]:
        """{channel: (its variable, hours of its window)}; where the name tells no hours, the window is the step."""
        known = {channel.name: lookup(channel.name) for channel in self.channels}
        return {
            name: (variable, named_hours(name) or self.step_hours)
            for name, variable in known.items()
            if variable is not None and variable.accumulated
        }


def latest_cycle(
    wanted: Wanted, server: Server, *, hours: Iterable[int] = CYCLE_HOURS, now: pd.Timestamp | None = None
) -> pd.Timestamp:
    """The newest initialisation of which every field is there, at one of these hours of the day, at most two days back.

    Raises NotReadyError, naming what is missing, if no cycle is whole; InputError if waiting will not help.
    """
    now = utc_now() if now is None else now
    newest, hours = now.floor("6h"), set(hours)
    candidates = [cycle for cycle in pd.date_range(newest - LOOK_BACK, newest, freq="6h")[::-1] if cycle.hour in hours]
    if not candidates:
        raise InputError(f"no cycle at {sorted(hours)} UTC: ECMWF runs at 0, 6, 12 and 18 UTC")
    troubles: dict[pd.Timestamp, PlumecastError] = {}
    for cycle in candidates:
        gaps = server.gaps(fields(wanted, cycle))
        if not gaps:
            return cycle
        server.report(f"{cycle:%Y-%m-%dT%H} is not whole: {gaps[-1].field} is not there")
        troubles[cycle] = refusal(gaps, server.source, now)
    overdue = [cycle for cycle in candidates if now - cycle > USUAL[1]]
    raise troubles[(overdue or candidates)[0]]


def fields(wanted: Wanted, init: pd.Timestamp) -> list[Field]:
    """Every field that an initialisation needs from the server. Raises InputError for what it never has."""
    stamps = wanted.stamps(init)
    if any(stamp != stamp.floor("6h") for stamp in stamps):
        raise InputError(
            f"{init:%Y-%m-%dT%H:%M} with {wanted.frames} frames {wanted.step_hours} h apart: ECMWF has analyses at "
            "00, 06, 12 and 18 UTC only"
        )
    instant = [channel for channel in wanted.channels if channel.name not in wanted.accumulated]
    needed = [Field(stamp, 0, channel) for stamp in stamps for channel in instant]
    for name, (variable, hours) in wanted.accumulated.items():
        if variable.window != "sum" or hours % STEP_HOURS:
            raise InputError(f"{name}: the open data have sums over multiples of {STEP_HOURS} h only; use another checkpoint")
        for cycle, last, first in (run_of(stamp, hours) for stamp in stamps):
            needed += [Field(cycle, step, Channel(variable.name)) for step in (last, first) if step > 0]
    return needed + [Field(init, 0, Channel(name)) for name in wanted.static if name not in wanted.given]


def present_fields(wanted: Wanted, init: pd.Timestamp, server: Server, now: pd.Timestamp | None = None) -> list[Field]:
    """`fields`, if all of them are there. Raises NotReadyError if some will be, InputError if not."""
    needed = fields(wanted, init)
    gaps = server.gaps(needed)
    if gaps:
        raise refusal(gaps, server.source, now)
    return needed


def run_of(stamp: pd.Timestamp, hours: int) -> tuple[pd.Timestamp, int, int]:
    """(cycle, last step, first step) of the forecast for a window that ends at `stamp`: the newest that covers it."""
    cycle = (stamp - pd.Timedelta(hours=hours)).floor("6h")
    last = int((stamp - cycle) / pd.Timedelta("1h"))
    return cycle, last, last - hours


def refusal(gaps: Sequence[Gap], source: str, now: pd.Timestamp | None = None) -> PlumecastError:
    """The error for fields that are not there: InputError if waiting will not help, else NotReadyError."""
    now = utc_now() if now is None else now
    unfiled = [gap for gap in gaps if not gap.filed]
    absent = [gap.field.cycle for gap in unfiled or gaps]
    first, last = min(absent), max(absent)
    lines = [f"  - {gap.field}" + ("" if gap.filed else " (no file)") for gap in gaps[:SHOWN]]
    lines += [f"  - and {len(gaps) - SHOWN} more"] if len(gaps) > SHOWN else []
    named, age = "\n".join(lines), now - first
    if unfiled and (age > KEPT or first < MIRRORED_SINCE):
        return InputError(
            f"{source} does not have, and will not have any more:\n{named}\nECMWF's own server keeps about {KEPT.days} days; the "
            f"mirrors keep every cycle since {MIRRORED_SINCE:%Y-%m-%d}: --source aws or --source google"
        )
    if not unfiled and age > USUAL[1]:
        static = any(variable is not None and variable.static for variable in (lookup(gap.field.channel.name) for gap in gaps))
        advice = "name a file that has the static ones, --static FILE, or" if static else "use another checkpoint, or"
        return InputError(f"the files of {source} are there, but without:\n{named}\n{advice} another --source")
    usual = " and ".join(f"{last + after:%Y-%m-%dT%H}" for after in USUAL)
    late = ", so it is late" if now - last > USUAL[1] else ""
    return NotReadyError(
        f"not there yet on {source}:\n{named}\n{last:%Y-%m-%dT%H} normally appears between {usual} UTC, stepwise{late}. "
        "Run again later, or take --init latest"
    )


def utc_now() -> pd.Timestamp:
    """The clock, UTC."""
    return pd.Timestamp.now("UTC").tz_localize(None)
