"""[analysis]: what an ingest will read and write, settled before any field is read; how it is cut into parts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from pydantic import Field

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.recipe import Hours, Section, Stamp
from data_pipeline.region import Box, grid_inside
from data_pipeline.regrid import WIND_PAIRS, Method, regrid
from data_pipeline.schema import Channel, levels_by_name
from data_pipeline.source import SourceSection, open_source, shown_source
from data_pipeline.sources.accumulation import named_hours, own_hours
from data_pipeline.templates import analysis_template
from data_pipeline.variables import lookup

PART_STAMPS = 128
PART_BYTES = 4 << 30  # of a part, all channels; a killed run reads at most this again for each part under way
BLOCK_BYTES = 64 << 20  # read at once, at the finer of the two grids
CHUNK_BYTES = 2**20  # small chunks cost more than they save: about one 0.5-degree field
LONGEST = 1024  # stamps of a part that is as long as a block of a remote source
TENDENCIES = (6, 12, 24)  # hours over which changes are summed up, besides the analysis step
HOUR = np.timedelta64(1, "h")


class AnalysisSection(Section):
    """[analysis]: what the store holds. Stamps are inclusive; without them, all of the source.

    region: (south, north, west, east) in degrees, the points of the grid inside; without it, all of the grid.
    """

    channels: list[str] = Field(min_length=1)
    grid: str = "native"
    region: Box | None = None
    method: Method = "conservative"
    step: Hours
    start: Stamp | None = None
    stop: Stamp | None = None


@dataclass(frozen=True)
class Plan:
    """What an ingest will read and write.

    source: on the stamps that are wanted. missing: the stamps of the period that the source lacks. chunk: stamps a chunk.
    parts: {part name: positions}; they begin with a chunk, and where they can with a block of the source.
    """

    source: xr.Dataset
    channels: list[Channel]
    missing: pd.DatetimeIndex
    step: pd.Timedelta
    grid: Grid
    method: Method
    chunk: int
    parts: dict[str, slice]
    remote: bool

    @cached_property
    def times(self) -> pd.DatetimeIndex:
        """The stamps of the store."""
        return pd.DatetimeIndex(self.source["time"].values)

    @property
    def bytes(self) -> int:
        """Uncompressed size of the fields of the store."""
        return 4 * len(self.times) * len(self.channels) * self.grid.areas.size

    @property
    def hours(self) -> tuple[int, ...]:
        """Hours over which changes are summed up: the step, and longer multiples of it."""
        own = int(self.step / HOUR)
        return (own, *(hours for hours in TENDENCIES if hours > own and hours % own == 0))

    @cached_property
    def groups(self) -> list[dict[str, xr.DataArray]]:
        """Variables that are read together, on the levels of the store: one, or the components of a wind, regridded as a pair."""
        every, arrays = self.levels, {}
        for name, levels in levels_by_name(self.channels).items():
            array = self.source[name]
            if levels and array["level"].values.tolist() != levels:
                array = array.sel(level=levels)
            arrays[name] = array.reindex(level=every) if levels and levels != every else array
        pairs = [pair for pair in WIND_PAIRS if set(pair) <= set(arrays)]
        paired = {name for pair in pairs for name in pair}
        return [
            *({name: arrays[name] for name in pair} for pair in pairs),
            *({n: a} for n, a in arrays.items() if n not in paired),
        ]

    @property
    def levels(self) -> list[int]:
        """The levels of the store: those of any channel."""
        return sorted({channel.level for channel in self.channels if channel.level is not None})

    def blocks(self, box: slice, group: dict[str, xr.DataArray]) -> list[slice]:
        """A part in pieces that are read at once: whole chunks, and whole blocks of a remote source."""
        worst = max(Grid.of(self.source).areas.size, self.grid.areas.size)
        size = BLOCK_BYTES // (4 * worst * len(group) * max(len(self.levels), 1))
        size = max(size // self.chunk * self.chunk, self.chunk, _longest_block(self.source) if self.remote else 0)
        size = -(-size // self.chunk) * self.chunk
        return [slice(start, min(start + size, box.stop)) for start in range(box.start, box.stop, size)]

    def regridded(self, data: xr.Dataset) -> xr.Dataset:
        """Data of the source on the grid of the store, lazily."""
        if self.grid.matches(Grid.of(data)):
            return data.assign_coords(self.grid.coords())
        return regrid(data, self.grid, method=self.method)


def plan(source: SourceSection, analysis: AnalysisSection) -> Plan:
    """Open the source and check all that can be known before reading fields. Raises InputError."""
    channels = [Channel.parse(label) for label in analysis.channels]
    if len(set(channels)) != len(channels):
        raise InputError(f"analysis.channels: repeated entries in {analysis.channels}")
    step = pd.Timedelta(analysis.step)
    target = None if analysis.grid == "native" else Grid.named(analysis.grid)
    if target is not None and analysis.region is not None:
        target = grid_inside(target, analysis.region)
    data = open_source(source, channels, start=analysis.start, stop=analysis.stop, region=analysis.region, target=target)
    _check_windows(data, channels, step)
    target, remote = target or Grid.of(data), source.kind != "files"
    positions, missing = _schedule(data, step, analysis, source.gaps)
    data = data.isel(time=_as_slice(positions))
    chunk, part = _sizes(channels, target.areas.size, _longest_block(data) if remote else 0)
    parts = _parts(pd.DatetimeIndex(data["time"].values), chunk, part, _block_ends(data))
    return Plan(data, channels, missing, step, target, analysis.method, chunk, parts, remote)


def _check_windows(data: xr.Dataset, channels: Sequence[Channel], step: pd.Timedelta) -> None:
    """An accumulation that does not tell its hours is over the step; thinning a finer one would make it a part of that."""
    hours = int(step / pd.Timedelta("1h"))
    for name in dict.fromkeys(channel.name for channel in channels):
        known, own = lookup(name), own_hours(data[name])
        if known is not None and known.accumulated and named_hours(name) is None and own not in (None, hours):
            raise InputError(
                f"analysis.channels: {name} of the source is over {own} h and the step {hours} h; ask for {name}_{hours}hr, "
                "which is put together from every window in it"
            )


def template(planned: Plan) -> xr.Dataset:
    """The empty store, with its static fields."""
    empty = analysis_template(planned.times.to_numpy(), planned.channels, planned.grid)
    if planned.levels:
        empty = empty.assign_coords(level=empty["level"].astype("int32"))
    statics = [name for name, array in planned.source.data_vars.items() if set(array.dims) == {"latitude", "longitude"}]
    if statics:
        fixed = planned.regridded(planned.source[statics].drop_vars(["time", "level"], errors="ignore"))
        empty = empty.assign(fixed.load().astype("float32").drop_vars(["latitude", "longitude"]))
    return empty


def attributes(source: SourceSection, analysis: AnalysisSection, planned: Plan) -> dict[str, Any]:
    """Attributes of the store: where it comes from and what was done."""
    shown = {"source": shown_source(source), "analysis": analysis.model_dump(mode="json")}
    found = {
        "Conventions": "CF-1.8",
        "source": source.description or str(planned.source.attrs.get("title", "")),
        "attribution": source.attribution,
        "recipe": json.dumps(shown, sort_keys=True),
        "channels": [channel.label for channel in planned.channels],
        "step": step_text(planned.step),
        "gaps": spans(planned.missing, planned.step),
        "regridding": "none" if planned.grid.matches(Grid.of(planned.source)) else analysis.method,
        "mapping": planned.source.attrs.get("mapping", "[]"),
    }
    return {key: value for key, value in found.items() if value != ""}


def spans(stamps: pd.DatetimeIndex, step: pd.Timedelta) -> list[str]:
    """`first/last` of each unbroken run of stamps."""
    breaks = np.flatnonzero(np.diff(stamps.to_numpy()) > step.to_timedelta64()) + 1
    return [f"{run[0]:%Y-%m-%dT%H}/{run[-1]:%Y-%m-%dT%H}" for run in map(pd.DatetimeIndex, np.split(stamps, breaks)) if len(run)]


def step_text(step: pd.Timedelta) -> str:
    """`12h`: a step in whole hours."""
    return f"{int(step / HOUR)}h"


def _schedule(data: xr.Dataset, step: pd.Timedelta, analysis: AnalysisSection, gaps: str) -> tuple[np.ndarray, pd.DatetimeIndex]:
    """Positions of the wanted stamps in the source, and the wanted stamps it lacks."""
    available = pd.DatetimeIndex(data["time"].values)
    start = available[0] if analysis.start is None else pd.Timestamp(analysis.start)
    stop = available[-1] if analysis.stop is None else pd.Timestamp(analysis.stop)
    inside = available[(available >= start) & (available <= stop)]
    span = f"the source has {available[0]:%Y-%m-%dT%H} .. {available[-1]:%Y-%m-%dT%H}"
    if not len(inside):
        raise InputError(f"analysis: no stamp of the source lies in {start} .. {stop}; {span}")
    # the hours of the day are the source's: 12 UTC analyses stay at 12 UTC even if `start` says 00
    first = inside[0] - (inside[0] - start) // step * step
    wanted = pd.date_range(first, stop, freq=step)
    missing = wanted.difference(available)
    if len(missing) and gaps == "error":
        shown = ", ".join(f"{stamp:%Y-%m-%dT%H}" for stamp in missing[:5]) + (" ..." if len(missing) > 5 else "")
        raise InputError(
            f"the source lacks {len(missing)} of {len(wanted)} stamps every {step_text(step)}: {shown}; {span}. Complete it, "
            'choose analysis.start, stop or step to fit, or accept the holes with source.gaps="allow"' + _shorter(data)
        )
    present = wanted.intersection(available)
    return available.get_indexer(present), missing


def _shorter(data: xr.Dataset) -> str:
    """Which variables cut the times, as the mapping of the source tells it."""
    lines = [line for line in json.loads(data.attrs.get("mapping", "[]")) if line.startswith("time: ")]
    return "".join(f"\n  - {line}" for line in lines)


def _sizes(channels: Sequence[Channel], points: int, block: int) -> tuple[int, int]:
    """Stamps a chunk, and at most a part: as many as a block of a remote source has, so that each is read once."""
    longest = max(PART_STAMPS, min(block, LONGEST))
    part = int(np.clip(PART_BYTES // (4 * len(channels) * points), 1, longest))
    levels = max(len({channel.level for channel in channels if channel.level is not None}), 1)
    chunk = int(np.clip(CHUNK_BYTES // (4 * levels * points), 1, part))
    return chunk, part // chunk * chunk


def _parts(times: pd.DatetimeIndex, chunk: int, part: int, ends: np.ndarray) -> dict[str, slice]:
    """Runs of at most `part` stamps that begin with a chunk: each ends with a block of the source, if that is not too short."""
    cuts, places = [0], np.unique(ends // chunk * chunk)
    while cuts[-1] < len(times):
        near = places[(places >= cuts[-1] + max(part // 2, 1)) & (places <= cuts[-1] + part)]
        cuts.append(min(int(near[-1]) if near.size else cuts[-1] + part, len(times)))
    return {f"{times[start]:%Y-%m-%dT%H}": slice(start, stop) for start, stop in itertools.pairwise(cuts)}


def _block_ends(data: xr.Dataset) -> np.ndarray:
    """Where blocks of the source end, as positions in time: those of the variable with the longest."""
    found = [array.chunksizes["time"] for array in data.data_vars.values() if "time" in array.chunksizes]
    return np.cumsum(max(found, key=max)) if found else np.array([], int)


def _longest_block(data: xr.Dataset) -> int:
    return int(max(np.diff(_block_ends(data), prepend=0), default=0))


def _as_slice(positions: np.ndarray) -> slice | np.ndarray:
    """Regular positions as a slice: cheap for dask."""
    strides = np.unique(np.diff(positions))
    if strides.size > 1:
        return positions
    stride = int(strides[0]) if strides.size else 1
    return slice(int(positions[0]), int(positions[-1]) + 1, stride)
