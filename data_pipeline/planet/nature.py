"""A nature run: spin-up from rest, then an analysis store that grows while the model runs, with restart states beside it.

<folder>/analysis.zarr      the store (`analysis.zarr.partial` until the last stamp is there)
<folder>/restarts/          dynamics every `restart_days`, to start ensembles from (0.3 MB each)
<folder>/checkpoint.npz     the whole model, replaced every `restart_days`: where a killed run continues, to the same bits
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from pydantic import Field

from data_pipeline import store
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.planet import states, vertical
from data_pipeline.planet.model import TRUNCATIONS, Atmosphere, Raw, State
from data_pipeline.recipe import Hours, Section, Stamp, fingerprint
from data_pipeline.regrid import regrid
from data_pipeline.schema import Channel
from data_pipeline.templates import analysis_template

CHANNELS = [
    *(f"{name}_{level}" for name in ("geopotential", "temperature") for level in (250, 500, 700, 850)),
    *(f"{name}_component_of_wind_{level}" for name in ("u", "v") for level in (250, 500, 700, 850)),
    "specific_humidity_700", "specific_humidity_850", "2m_temperature", "10m_u_component_of_wind", "10m_v_component_of_wind",
    "mean_sea_level_pressure", "total_precipitation",
]  # fmt: skip
SECONDS_A_DAY = {21: 0.25, 31: 0.55, 42: 1.2, 63: 5.0}  # of one core a simulated day, measured at 21 and 31, for plans only
CHUNK_STAMPS = 10  # at most
RAW = "raw/"
Report = Callable[[int, int], None]


class NatureSection(Section):
    """[nature]: one continuous run of the simulated planet.

    seed: of the noise in surface pressure at rest, from which the whole run follows. start: first stamp of the store; the model
    starts spin_up_days before, and that part is not kept. years: calendar years kept. step: of the output. channels: of
    geopotential, temperature, winds and specific humidity at 250, 500, 700 and 850 hPa, and the surface;
    `total_precipitation` is that over a step. grid: any named grid.
    """

    seed: int = Field(0, ge=0)
    start: Stamp = "2001-01-01"
    spin_up_days: int = Field(153, ge=0)
    years: int = Field(1, ge=1)
    days: int | None = Field(None, ge=1)
    truncation: int = 31
    step: Hours = "6h"
    grid: str = "64x32"
    channels: list[str] = Field(default_factory=lambda: list(CHANNELS), min_length=1)
    restart_days: int = Field(10, ge=1)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run will make: `chunk` stamps between checkpoints."""

    section: NatureSection
    channels: list[Channel]
    times: pd.DatetimeIndex
    hours: int
    chunk: int
    grid: Grid

    @property
    def bytes(self) -> int:
        return 4 * len(self.times) * len(self.channels) * int(np.prod(self.grid.shape))

    @property
    def seconds(self) -> float:
        """A rough guess of the time on one core."""
        days = len(self.times) * self.hours / 24 + self.section.spin_up_days
        return days * SECONDS_A_DAY[self.section.truncation] + 40

    @property
    def parts(self) -> dict[str, slice]:
        starts = range(0, len(self.times), self.chunk)
        return {f"{self.times[i]:%Y-%m-%dT%H}": slice(i, min(i + self.chunk, len(self.times))) for i in starts}


def plan(section: NatureSection) -> Plan:
    """Check a recipe's section. Raises InputError."""
    hours = int(pd.Timedelta(section.step) / pd.Timedelta("1h"))
    if hours not in (1, 2, 3, 4, 6, 8, 12, 24) or hours * 3600 % 2400:
        raise InputError(f"nature.step {section.step!r}: expected 2h, 4h, 6h, 8h, 12h or 24h (the model steps 40 minutes)")
    if section.truncation not in TRUNCATIONS:
        raise InputError(f"nature.truncation {section.truncation}: expected {', '.join(map(str, TRUNCATIONS))}")
    labels = [vertical.rain_name(hours) if label == "total_precipitation" else label for label in section.channels]
    channels, offered = [Channel.parse(label) for label in labels], vertical.offered(hours)
    unknown = [channel.label for channel in channels if channel not in offered]
    if unknown or len(set(channels)) != len(channels):
        raise InputError(
            f"nature.channels: {', '.join(unknown) or 'repeated entries'}; the planet has {', '.join(c.label for c in offered)}"
        )
    start = pd.Timestamp(section.start)
    end = start + (pd.DateOffset(years=section.years) if section.days is None else pd.Timedelta(days=section.days))
    times = pd.date_range(start, end, freq=pd.Timedelta(hours=hours), inclusive="left")
    chunk = section.restart_days * 24 // hours
    return Plan(section, channels, times, hours, chunk, Grid.named(section.grid))


def simulate(planned: Plan, folder: Path, *, report: Report = lambda done, total: None) -> Path:
    """Run the planet into <folder>/analysis.zarr; returns its path. Stopped at any point and run again, it continues.

    Raises InputError if something else lies there, GateError if the model blows up.
    """
    out = folder / "analysis.zarr"
    identity = {"nature": planned.section.model_dump()}
    if store.is_finished(out, identity):
        return out
    atmosphere = Atmosphere(planned.section.truncation)
    template = _template(planned, atmosphere)
    attrs = _attrs(planned, atmosphere)
    chunks = {"time": max(size for size in range(1, CHUNK_STAMPS + 1) if planned.chunk % size == 0)}
    parts = planned.parts
    with store.create(out, template, parts=list(parts), attrs=attrs, chunks=chunks, recipe=identity) as writer:
        for name, box, raw in _blocks(planned, atmosphere, folder, writer.done, report):
            if name not in writer.done:
                data = vertical.gridded(raw, atmosphere.surroundings, planned.channels, planned.grid)
                data = data.isel(time=slice(box.stop - box.start))
                writer.write(name, data.assign_coords(planned.grid.coords()), {"time": box})
            report(box.stop, len(planned.times))
        return writer.finish()


def _blocks(
    planned: Plan, atmosphere: Atmosphere, folder: Path, done: Collection[str], report: Report
) -> Iterator[tuple[str, slice, Raw]]:
    """Parts of the store with their raw fields; the checkpoint moves on once the caller has written one.

    Raises InputError for a checkpoint that is ahead of the parts `done`: the store was removed, and it was not.
    """
    checkpoint, mark = folder / "checkpoint.npz", fingerprint(planned.section.model_dump())
    state, edge = _resume(checkpoint, mark) or _spun_up(planned, atmosphere, checkpoint, mark)
    report(int((state.time - planned.times[0]) / pd.Timedelta(hours=planned.hours)), len(planned.times))
    for name, box in planned.parts.items():
        if planned.times[box.start] < state.time:
            if name not in done:
                raise InputError(
                    f"{checkpoint} is at {state.time:%Y-%m-%dT%H}, but the store lacks {name}: it was removed, or is another's; "
                    "remove the checkpoint too, and the run starts again"
                )
            continue
        after, raw = atmosphere.run(state, planned.chunk, planned.hours)
        yield name, box, _joined(edge, raw)
        state, edge = after, _last(raw)
        states.save(folder / "restarts", dataclasses.replace(state, physics={}))
        _keep(checkpoint, mark, state, edge)


def _spun_up(planned: Plan, atmosphere: Atmosphere, checkpoint: Path, mark: str) -> tuple[State, Raw]:
    """The state at the first stamp, and the fields there. A spin-up is short: it is not resumed."""
    first = planned.times[0] - pd.Timedelta(days=planned.section.spin_up_days)
    state = atmosphere.at_rest(first, planned.section.seed)
    if planned.section.spin_up_days == 0:
        still = atmosphere.diagnose(state)
        edge = Raw(still.times, {**still.fields, "rain": np.zeros_like(still.fields["ps"])})
        return state, edge
    for _ in range(planned.section.spin_up_days):
        state, raw = atmosphere.run(state, 24 // planned.hours, planned.hours)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    states.save(checkpoint.parent / "restarts", dataclasses.replace(state, physics={}))
    _keep(checkpoint, mark, state, _last(raw))
    return state, _last(raw)


def _resume(checkpoint: Path, mark: str) -> tuple[State, Raw] | None:
    if not checkpoint.exists():
        return None
    arrays = states.read_arrays(checkpoint)
    if str(arrays["mark"]) != mark:
        raise InputError(f"{checkpoint} belongs to another run; choose another --out, or remove it")
    time = pd.Timestamp(str(arrays["time"]))
    physics = {name[len(states.PHYSICS) :]: array for name, array in arrays.items() if name.startswith(states.PHYSICS)}
    raw = {name[len(RAW) :]: array for name, array in arrays.items() if name.startswith(RAW)}
    return State(time, {name: arrays[name] for name in states.DYNAMICS}, physics), Raw(pd.DatetimeIndex([time]), raw)


def _keep(checkpoint: Path, mark: str, state: State, edge: Raw) -> None:
    arrays: dict[str, Any] = {"mark": np.array(mark), "time": np.array(str(state.time)), **state.dynamics}
    arrays |= {states.PHYSICS + name: array for name, array in state.physics.items()}
    arrays |= {RAW + name: array for name, array in edge.fields.items()}
    states.write_arrays(checkpoint, arrays)


def _joined(edge: Raw, raw: Raw) -> Raw:
    """The stamps of a part: the one it starts from, and all but the last that were run."""
    fields = {name: np.concatenate([edge.fields[name], array[:-1]]) for name, array in raw.fields.items()}
    return Raw(pd.DatetimeIndex(edge.times.append(raw.times[:-1])), fields)


def _last(raw: Raw) -> Raw:
    return Raw(raw.times[-1:], {name: array[-1:] for name, array in raw.fields.items()})


def _template(planned: Plan, atmosphere: Atmosphere) -> xr.Dataset:
    around = atmosphere.surroundings
    dims = ("latitude", "longitude")
    fixed = xr.Dataset(
        {
            "geopotential_at_surface": (dims, around.phis.T, {"units": "m2 s-2", "long_name": "Geopotential at the surface"}),
            "land_sea_mask": (dims, around.land.T, {"units": "1", "long_name": "Land fraction"}),
        },
        coords=around.grid.coords(),
    )
    fixed = regrid(fixed, planned.grid).astype(np.float32)
    template = analysis_template(planned.times.to_numpy(), planned.channels, planned.grid)
    return template.assign({name: (dims, array.values, array.attrs) for name, array in fixed.data_vars.items()})


def _attrs(planned: Plan, atmosphere: Atmosphere) -> dict[str, Any]:
    section = planned.section
    return {
        "Conventions": "CF-1.8",
        "source": f"Simulated planet: {atmosphere.versions} (SPEEDY physics, T{section.truncation}, 8 layers); not real weather",
        "recipe": json.dumps({"nature": section.model_dump()}, sort_keys=True),
        "channels": [channel.label for channel in planned.channels],
        "step": f"{planned.hours}h",
        "gaps": [],
        "regridding": "conservative",
        "seed": section.seed,
    }
