"""From a source to a published analysis store: chosen channels, one grid, one step, checked block by block, resumable."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from pydantic import Field

from data_pipeline import quality, store
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.recipe import Section, section
from data_pipeline.region import Box, grid_inside
from data_pipeline.regrid import Method, regrid
from data_pipeline.schema import Channel, levels_by_name
from data_pipeline.source import SourceSection, identify_source, open_source
from data_pipeline.variables import lookup

PART_STAMPS = 128
PART_BYTES = 512 * 2**20  # of one part in memory, at the finer of the two grids
CHUNK_BYTES = 2**20  # small chunks cost more than they save: about one 0.5-degree field
FINDINGS = 20  # kept in the store
HOUR = np.timedelta64(1, "h")


class AnalysisSection(Section):
    """[analysis]: what the store holds. Stamps are inclusive; without them, all of the source.

    region: (south, north, west, east) in degrees, the points of the grid inside; without it, all of the grid.
    """

    channels: list[str] = Field(min_length=1)
    grid: str = "native"
    region: Box | None = None
    method: Method = "conservative"
    step: str
    start: str | None = None
    stop: str | None = None


@dataclass(frozen=True)
class Plan:
    """What an ingest will read and write. `missing` are the stamps of the period that the source lacks."""

    source: xr.Dataset
    channels: list[Channel]
    positions: np.ndarray
    times: pd.DatetimeIndex
    missing: pd.DatetimeIndex
    step: pd.Timedelta
    grid: Grid
    method: Method
    chunk: int
    part: int

    @property
    def bytes(self) -> int:
        """Uncompressed size of the fields of the store."""
        return 4 * len(self.times) * len(self.channels) * self.grid.shape[0] * self.grid.shape[1]

    @property
    def parts(self) -> dict[str, slice]:
        """{part name: positions in the store}."""
        starts = range(0, len(self.times), self.part)
        return {f"{self.times[i]:%Y-%m-%dT%H}": slice(i, min(i + self.part, len(self.times))) for i in starts}


def ingest(recipe: Mapping[str, Any], out: Path, *, progress: Callable[[int, int], None] | None = None) -> Path:
    """Build the analysis store that `recipe` describes at `out`; returns its path.

    Killed at any point and run again, it continues; the result has the same bytes. A finished one is left untouched. `progress`
    is called with (stamps done, stamps in all). Every block passes `quality.check`; its table and findings are the attribute
    `quality`. Raises InputError for anything wrong with the recipe or the source, before the first block is written where it
    can be known; for an `out` made by another recipe, with the differences.
    """
    source, analysis = section(recipe, "source", SourceSection), section(recipe, "analysis", AnalysisSection)
    identity = identify(source, analysis)
    if store.is_finished(out, identity):
        return out
    planned = plan(source, analysis)
    attrs = _attrs(source, analysis, planned)
    parts = planned.parts
    with store.create(
        out, _template(planned), parts=list(parts), attrs=attrs, chunks={"time": planned.chunk}, recipe=identity
    ) as writer:
        for name, box in parts.items():
            if name not in writer.done:
                block = read_block(planned, box)
                writer.write(name, block, {"time": box}, note=_inspect(block, planned.channels, source.faults))
            if progress is not None:
                progress(box.stop, len(planned.times))
        return writer.finish({"quality": json.dumps(_merge(planned.channels, [writer.notes[name] for name in parts]))})


def identify(source: SourceSection, analysis: AnalysisSection) -> dict[str, Any]:
    """What decides the content of the store: both sections, with the place of the source replaced by what it is recognised by."""
    return {"source": identify_source(source), "analysis": analysis.model_dump(mode="json")}


def plan(source: SourceSection, analysis: AnalysisSection) -> Plan:
    """Open the source and check all that can be known before reading fields. Raises InputError."""
    channels = [Channel.parse(label) for label in analysis.channels]
    if len(set(channels)) != len(channels):
        raise InputError(f"analysis.channels: repeated entries in {analysis.channels}")
    step = _parse_step(analysis.step)
    target = None if analysis.grid == "native" else Grid.named(analysis.grid)
    if target is not None and analysis.region is not None:
        target = grid_inside(target, analysis.region)
    data = open_source(source, channels, start=analysis.start, stop=analysis.stop, region=analysis.region, target=target)
    target = target or Grid.of(data)
    positions, missing = _schedule(data, step, analysis, source.gaps)
    chunk, part = _sizes(channels, max(Grid.of(data).areas.size, target.areas.size), target.areas.size)
    times = pd.DatetimeIndex(data["time"].values[positions])
    return Plan(data, channels, positions, times, missing, step, target, analysis.method, chunk, part)


def read_block(planned: Plan, box: slice) -> xr.Dataset:
    """The planned stamps `box` in the layout of the store: float32, on the target grid; absent levels of a variable are NaN."""
    every = _levels(planned.channels)
    arrays: dict[str, xr.DataArray] = {}
    for name, levels in levels_by_name(planned.channels).items():
        array = planned.source[name].isel(time=planned.positions[box])
        arrays[name] = array.sel(level=levels).reindex(level=every) if levels else array
    # together: wind components are regridded as a pair
    return _to_grid(xr.Dataset(arrays), planned).load().astype("float32")


def _inspect(block: xr.Dataset, channels: Sequence[Channel], faults: str) -> dict[str, Any]:
    """Check a block: plain data for the done-marker. Raises InputError for errors, unless they are allowed."""
    report = quality.check(block, channels=channels, gaps="allow")
    table = report.table.assign(stamps=block.sizes["time"])
    errors = [str(finding) for finding in report.errors if not _is_dry(finding.where, table)]
    if errors and faults == "error":
        raise InputError(
            "the source fails its checks:\n" + "\n".join(f"  - {line}" for line in errors)
            + '\ncorrect it, leave the channel out, or accept it with source.faults="allow"'
        )  # fmt: skip
    return {"findings": errors, "table": table.to_dict(orient="index")}


def _is_dry(label: str, table: pd.DataFrame) -> bool:
    """No rain, snow or ice in a block is weather, not a fault."""
    known = lookup(Channel.parse(label).name)
    return known is not None and known.non_negative and not table.loc[label, ["minimum", "maximum"]].any()


def _merge(channels: Sequence[Channel], notes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One table for the store from those of its parts; means weigh by finite values."""
    table: dict[str, dict[str, Any]] = {}
    for label in (channel.label for channel in channels):
        rows = pd.DataFrame([note["table"][label] for note in notes])
        weights = (rows["stamps"] * rows["finite"]).to_numpy()
        table[label] = {
            "units": rows["units"].iloc[0],
            "minimum": float(rows["minimum"].min()),
            "mean": float(np.average(rows["mean"].fillna(0), weights=weights)) if weights.sum() else None,
            "maximum": float(rows["maximum"].max()),
            "finite": float(weights.sum() / rows["stamps"].sum()),
        }
    return {"table": table, "findings": [line for note in notes for line in note["findings"]][:FINDINGS]}


def _to_grid(data: xr.Dataset, planned: Plan) -> xr.Dataset:
    if planned.grid.matches(Grid.of(data)):
        return data.assign_coords(planned.grid.coords())
    return regrid(data, planned.grid, method=planned.method)


def _template(planned: Plan) -> xr.Dataset:
    levels = _levels(planned.channels)
    coords: dict[str, Any] = {"time": ("time", planned.times, {"standard_name": "time", "axis": "T"})}
    if levels:
        coords["level"] = ("level", np.array(levels, "int32"), {"units": "hPa", "positive": "down", "axis": "Z"})
    coords |= planned.grid.coords()
    variables: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {}
    for name, own in levels_by_name(planned.channels).items():
        attrs = {"units": planned.source[name].attrs.get("units")}
        known = lookup(name)
        if known is not None:
            attrs["long_name"] = known.long_name
            attrs |= {"standard_name": known.standard_name} if known.standard_name else {}
        if own:
            attrs["levels_available"] = own
        variables[name] = (("time", *(["level"] if own else []), "latitude", "longitude"), attrs)
    template = store.blank(coords, variables)
    statics = [name for name, array in planned.source.data_vars.items() if set(array.dims) == {"latitude", "longitude"}]
    if statics:
        fixed = _to_grid(planned.source[statics].drop_vars(["time", "level"], errors="ignore"), planned)
        template = template.assign(fixed.load().astype("float32").drop_vars(["latitude", "longitude"]))
    return template


def _attrs(source: SourceSection, analysis: AnalysisSection, planned: Plan) -> dict[str, Any]:
    shown = {"source": source.model_dump(exclude={"path"}), "analysis": analysis.model_dump(mode="json")}
    attrs = {
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
    return {key: value for key, value in attrs.items() if value != ""}


def spans(stamps: pd.DatetimeIndex, step: pd.Timedelta) -> list[str]:
    """`first/last` of each unbroken run of stamps."""
    breaks = np.flatnonzero(np.diff(stamps.to_numpy()) > step.to_timedelta64()) + 1
    return [f"{run[0]:%Y-%m-%dT%H}/{run[-1]:%Y-%m-%dT%H}" for run in map(pd.DatetimeIndex, np.split(stamps, breaks)) if len(run)]


def step_text(step: pd.Timedelta) -> str:
    """`12h`: a step in whole hours."""
    return f"{int(step / HOUR)}h"


def _parse_step(text: str) -> pd.Timedelta:
    if not re.fullmatch(r"[1-9]\d*h", text):
        raise InputError(f"analysis.step {text!r}: expected whole hours, for example 6h, 12h or 24h")
    return pd.Timedelta(text)


def _schedule(data: xr.Dataset, step: pd.Timedelta, analysis: AnalysisSection, gaps: str) -> tuple[np.ndarray, pd.DatetimeIndex]:
    """Positions of the wanted stamps in the source, and the wanted stamps it lacks."""
    available = pd.DatetimeIndex(data["time"].values)
    start = _stamp("analysis.start", analysis.start) or available[0]
    stop = _stamp("analysis.stop", analysis.stop) or available[-1]
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


def _stamp(key: str, text: str | None) -> pd.Timestamp | None:
    if text is None:
        return None
    try:
        return pd.Timestamp(text)
    except ValueError:
        raise InputError(f"{key} {text!r}: expected an ISO stamp, for example 2001-01-01T12") from None


def _sizes(channels: Sequence[Channel], worst_points: int, points: int) -> tuple[int, int]:
    """Stamps a chunk and stamps a part."""
    part = int(np.clip(PART_BYTES // (4 * len(channels) * worst_points), 1, PART_STAMPS))
    levels = max(len(_levels(channels)), 1)
    chunk = int(np.clip(CHUNK_BYTES // (4 * levels * points), 1, part))
    return chunk, part // chunk * chunk


def _levels(channels: Sequence[Channel]) -> list[int]:
    return sorted({channel.level for channel in channels if channel.level is not None})
