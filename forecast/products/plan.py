"""What products will be made of a forecast: everything is checked, and every fault listed, before a field is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.regrid import regrid
from data_pipeline.schema import channels_of
from forecast.products.checks import Levels, efi_of, events_of, quantity_of, resolve
from forecast.products.conditions import Event, How, parse_all
from forecast.products.points import Points, locate, read_places
from forecast.products.reading import Climate, Members, opened_climatology, opened_forecast
from forecast.products.recipe import Place, ProductsSection, StampSection, TrackSection
from forecast.products.statistics import LOWER, UPPER, position_of

BLOCK_BYTES = 96 << 20  # of the members of one variable that are held at once
PRESSURE = "mean_sea_level_pressure"
MOST_TRACK_STEP = 12  # hours between stamps over which lows can be followed


@dataclass(frozen=True)
class Task:
    """What is made from one quantity, read once. how, hours: of a window, see `Quantity`.

    stored, efi, stamps: the levels (hPa; () at the surface) that statistics and plumes, EFI and SOT, and stamps are made of; None
    for none. events: of one condition, of this quantity. tails: levels of SOT.
    """

    name: str
    how: How | None = None
    hours: int = 0
    stored: tuple[int, ...] | None = None
    events: tuple[Event, ...] = ()
    efi: tuple[int, ...] | None = None
    tails: tuple[tuple[float, float], ...] = ()
    stamps: tuple[int, ...] | None = None

    @property
    def levels(self) -> tuple[int, ...]:
        """Every level that is read."""
        single = [level for event in self.events if (level := quantity_of(event).channel.level) is not None]
        return tuple(sorted({*(self.stored or ()), *(self.efi or ()), *(self.stamps or ()), *single}))

    @property
    def label(self) -> str:
        """What progress and plans call it."""
        return f"{self.how}({self.name}, {self.hours}h)" if self.how else self.name


@dataclass(frozen=True, eq=False)
class Plan:
    """What will be made. tasks: quantities; joint: events of several; tracks: or None.

    blocks: positions [first, stop) of leads that are read together. stamp_leads: positions of the leads of stamps. recipe: plain
    data that decide the content. notes: what was left out or falls short, and why.
    """

    forecast: xr.Dataset
    members: Members
    climate: Climate | None
    section: ProductsSection
    inits: np.ndarray
    tasks: tuple[Task, ...]
    joint: tuple[Event, ...]
    tracks: TrackSection | None
    points: Points | None
    stamps: StampSection | None
    stamp_grid: Grid | None
    stamp_leads: np.ndarray
    recipe: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def block(self) -> int:
        """Leads that are read together: whole chunks of the forecast where they fit."""
        arrays = [array for array in self.forecast.data_vars.values() if "prediction_timedelta" in array.dims]
        levels = max((array.sizes.get("level", 1) for array in arrays), default=1)
        fit = max(1, BLOCK_BYTES // (4 * self.members.size * levels * self.members.grid.areas.size))
        stored = max((_chunk(array) for array in arrays), default=1)
        fit = fit // stored * stored if fit >= stored else fit
        return min(fit, self.members.hours.size)

    @property
    def blocks(self) -> list[tuple[int, int]]:
        leads = self.members.hours.size
        return [(first, min(first + self.block, leads)) for first in range(0, leads, self.block)]


def make_plan(
    forecast: str | Path | xr.Dataset,
    section: ProductsSection,
    climatology: str | Path | xr.Dataset | None = None,
    *,
    thresholds: Sequence[str] = (),
    places: Sequence[Place] = (),
    static: xr.Dataset | None = None,
    inits: Sequence[np.datetime64] | None = None,
) -> Plan:
    """The plan for a forecast, see `products.make` for the arguments. Raises InputError listing every fault."""
    data, identity = opened_forecast(forecast)
    climate_data, climate_identity = opened_climatology(climatology)
    members = Members(data)
    times = data["time"].values if inits is None else np.array(inits, "datetime64[ns]")
    faults = [f"initialisation {str(each)[:16]} is not in the forecast" for each in times if each not in data["time"].values]
    climate = None
    if climate_data is not None:
        climate = Climate(climate_data, data["time"].values, data["prediction_timedelta"].values)
        faults += _climate_faults(climate, members)
    wanted, lacking = _channels(members, section)
    faults += lacking
    events, joint, lacking, notes = events_of(members, climate, section.thresholds, thresholds, wanted)
    faults += lacking
    efi, lacking, left = efi_of(members, climate, section, wanted)
    faults, notes = faults + lacking, notes + left
    tasks = _tasks(members, climate, wanted, events, efi, section.stamps.channels if section.stamps else ())
    tracks, lacking, left = _tracks(members, section)
    faults, notes = faults + lacking, notes + left
    points, stamp_grid, stamp_leads = None, None, np.empty(0, np.int64)
    try:
        points = _points(members.grid, section, places, static)
    except InputError as error:
        faults += str(error).split("\n")
    if section.stamps is not None:
        stamp_grid, stamp_leads, lacking = _stamps(members, section.stamps)
        faults += lacking
    if not faults and not (tasks or joint or tracks):
        faults.append("nothing is asked for: every kind of product is switched off")
    if faults:
        raise InputError("products:\n" + "\n".join(f"  - {fault}" for fault in faults))
    recipe = {
        "forecast": identity, "climatology": climate_identity, "inits": [str(each) for each in times],
        "products": section.model_dump(exclude={"points", "place", "thresholds"}),
        "thresholds": [event.label for event in (*events, *joint)],
        "points": [] if points is None else [[*row] for row in zip(points.names, points.latitude, points.longitude, strict=True)],
    }  # fmt: skip
    return Plan(
        data, members, climate, section, times, tuple(tasks), tuple(joint), tracks, points, section.stamps, stamp_grid,
        stamp_leads, recipe, tuple(notes),
    )  # fmt: skip


def _climate_faults(climate: Climate, members: Members) -> list[str]:
    faults = [] if (hour := climate.hour_fault()) is None else [hour]
    if not climate.grid.matches(members.grid):
        faults.append(f"the forecast is on {members.grid}, the climatology on {climate.grid}; make one on the forecast's grid")
    return faults


def _channels(members: Members, section: ProductsSection) -> tuple[Levels, list[str]]:
    """{variable: levels} to make statistics of, and what cannot be made."""
    stored = [channel.label for channel in channels_of(members.data)]
    found: dict[str, set[int]] = {}
    faults = []
    for label in [*(stored if section.channels is None else section.channels), *section.derived]:
        name, levels, fault = resolve(members, label)
        if fault:
            faults.append(fault)
        else:
            found.setdefault(name, set()).update(levels)
    return {name: tuple(sorted(levels)) for name, levels in found.items()}, faults


def _tasks(
    members: Members,
    climate: Climate | None,
    wanted: Levels,
    events: Sequence[Event],
    efi: Levels,
    stamps: Sequence[str],
) -> list[Task]:
    """Tasks by quantity: whatever needs the same members is one task."""
    tasks: dict[tuple[str, str | None, int], Task] = {}

    def extend(name: str, how: How | None = None, hours: int = 0, **more: Any) -> None:
        tasks[name, how, hours] = replace(tasks.get((name, how, hours), Task(name, how, hours)), **more)

    for name, levels in wanted.items():
        extend(name, stored=levels)
    for event in events:
        quantity = quantity_of(event)
        key = (quantity.channel.name, quantity.how, quantity.hours)
        extend(*key, events=(*(tasks[key].events if key in tasks else ()), event))
    tails = [tail for tail in (UPPER, LOWER) if climate and all(position_of(level, climate.levels) >= 0 for level in tail)]
    for name, levels in efi.items():
        extend(name, efi=levels, tails=tuple(tails))
    for label in stamps:
        name, levels, fault = resolve(members, label)
        if not fault:
            held = tasks.get((name, None, 0), Task(name)).stamps or ()
            extend(name, stamps=tuple(sorted({*levels, *held})))
    return list(tasks.values())


def _tracks(members: Members, section: ProductsSection) -> tuple[TrackSection | None, list[str], list[str]]:
    if section.tracks is False:
        return None, [], []
    chosen = TrackSection() if section.tracks is True else section.tracks
    steps = np.diff(members.hours)
    if PRESSURE not in members.data:
        lack = f"tracks: the forecast has no {PRESSURE}"
    elif not steps.size or steps.max() > MOST_TRACK_STEP:
        lack = f"tracks: {steps.max(initial=0):g} h between leads; lows are followed over {MOST_TRACK_STEP} h at most"
    elif np.ptp(steps) > 1e-6:
        lack = f"tracks: leads are {steps.min():g} to {steps.max():g} h apart; expected one step"
    else:
        apart = 111 * np.hypot(*(np.diff(axis).mean() for axis in (members.grid.latitude, members.grid.longitude)))
        near = (
            f"strikes within {chosen.strike_km:g} km: cells are up to {apart:.0f} km apart, so that some centres strike no cell"
        )
        return chosen, [], [near] if 2 * chosen.strike_km < apart else []
    # asked for by name it is a fault, left at the default a note
    return None, *(([], [lack]) if section.tracks is True else ([lack], []))


def _points(grid: Grid, section: ProductsSection, places: Sequence[Place], static: xr.Dataset | None) -> Points | None:
    every = [*section.place, *(read_places(section.points) if section.points else []), *places]
    if not every:
        return None
    if not section.nearest_land:
        return locate(every, grid)
    if static is None or "land_sea_mask" not in static:
        raise InputError("nearest_land needs a land-sea mask: give the analysis store that has one (--static)")
    mask = static[["land_sea_mask"]]
    if "time" in mask["land_sea_mask"].dims:
        mask = mask.isel(time=0, drop=True)
    return locate(every, grid, regrid(mask, grid)["land_sea_mask"].transpose("latitude", "longitude").values)


def _stamps(members: Members, stamps: StampSection) -> tuple[Grid, np.ndarray, list[str]]:
    """Grid and positions of the leads of stamps, and what cannot be made."""
    faults = []
    for label in stamps.channels:
        fault = resolve(members, label)[2]
        if fault:
            faults.append(f"stamps of {fault}")
    for label, texts in stamps.contours.items():
        faults += parse_all([f"{label} > {text}" for text in texts])[1]
    every = float(stamps.every.removesuffix("h"))
    leads = np.flatnonzero(np.abs(np.mod(members.hours + every / 2, every) - every / 2) < 1e-6)
    if not leads.size:
        faults.append(f"stamps: no lead is a multiple of {stamps.every}")
    grid = members.grid
    try:
        grid = grid if stamps.grid is None else Grid.named(stamps.grid)
    except InputError as error:
        faults.append(f"stamps: {error}")
    return grid, leads, faults


def _chunk(array: xr.DataArray) -> int:
    """Leads in a stored chunk."""
    axis = array.dims.index("prediction_timedelta")
    if array.chunks is not None:
        return int(max(array.chunks[axis]))
    chunks = array.encoding.get("chunks")
    return int(chunks[axis]) if chunks else 1
