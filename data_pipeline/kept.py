"""Moments over any run of stamps: put together from those that the ingest kept for each part, and read only where none fit.

`parts.json` in a published analysis store holds for each part its stamps, the note of its checks, its moments (see
`data_pipeline.moments`) with pairs inside the part, and as `edge` those of the pairs that reach back into earlier parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from data_pipeline.disk import read_json
from data_pipeline.errors import reading
from data_pipeline.grid import Grid
from data_pipeline.moments import NONE, Moment, Moments, partners, row_weights, scan
from data_pipeline.quality import judge
from data_pipeline.schema import Channel, levels_by_name
from data_pipeline.transform import is_log

PARTS = "parts.json"
NOTED = ("minimum", "mean", "maximum", "finite")
BLOCK = 256  # stamps read at once,
BLOCK_BYTES = 64 << 20  # or fewer


@dataclass(frozen=True)
class Kept:
    """What the ingest kept. hours: of the changes. starts, stops: positions of the parts. notes: see the module."""

    hours: tuple[int, ...]
    starts: np.ndarray
    stops: np.ndarray
    notes: list[dict[str, Any]]

    def inner(self, part: int, channel: Channel, rows: Sequence[int]) -> Moments:
        """Moments of one part, over the hours in these rows."""
        found = Moments.from_numbers(self.notes[part]["moments"][channel.label])
        return Moments(found.fields, [found.changes[row] for row in rows])

    def edge(self, part: int, channel: Channel, rows: Sequence[int]) -> Moments:
        """The pairs of one part with earlier ones."""
        found = Moments.from_numbers(self.notes[part]["edge"][channel.label])
        return Moments(Moment(), [found.changes[row] for row in rows])


def read_kept(path: str | Path) -> Kept | None:
    """What the ingest of the store at `path` kept; None if it kept nothing."""
    file = Path(path) / PARTS
    if not file.is_file():
        return None
    content = read_json(file, "hours", "parts")
    boxes = np.array([part["stamps"] for part in content["parts"]]).reshape(-1, 2)
    return Kept(tuple(content["hours"]), boxes[:, 0], boxes[:, 1], [part["note"] for part in content["parts"]])


def gather(
    analysis: xr.Dataset, channels: Sequence[Channel], box: tuple[int, int], hours: Sequence[int], kept: Kept | None
) -> list[Moments]:
    """Moments of each channel over the stamps `box`, and of the changes between any two of them that are `hours` apart."""
    first, stop = box
    whole = _whole_parts(kept, channels, box, hours, _reach(analysis["time"].values, hours))
    if kept is None or not whole:
        return read_moments(analysis, channels, box, hours, first)
    rows = [kept.hours.index(lag) for lag in hours]
    begin, end = int(kept.starts[whole[0]]), int(kept.stops[whole[-1]])
    found = read_moments(analysis, channels, (first, begin), hours, first)
    for part in whole:
        for moments, channel in zip(found, channels, strict=True):
            moments.add(kept.inner(part, channel, rows))
            if part != whole[0] or begin > first:
                moments.add(kept.edge(part, channel, rows))
    for moments, more in zip(found, read_moments(analysis, channels, (end, stop), hours, first), strict=True):
        moments.add(more)
    return found


def read_moments(
    analysis: xr.Dataset, channels: Sequence[Channel], box: tuple[int, int], hours: Sequence[int], first: int
) -> list[Moments]:
    """The same by reading: of the stamps `box`, with the changes since stamps from `first` on."""
    times, (start, stop) = analysis["time"].values, box
    weights, reach = row_weights(Grid.of(analysis)), _reach(times, hours)
    found = {channel: Moments(changes=[Moment() for _ in hours]) for channel in channels}
    for name, levels in levels_by_name(channels).items() if stop > start else ():
        places = np.searchsorted(analysis["level"].values, levels) if levels else [0]
        before = _fields(analysis[name], max(first, start - reach), start)[:, places]
        stamp_bytes = analysis[name].nbytes // times.size
        size = max(1, min(BLOCK, BLOCK_BYTES // stamp_bytes))
        for low in range(start, stop, size):
            high = min(low + size, stop)
            values = _fields(analysis[name], low, high)[:, places]
            pairs = partners(times[low:high], times[low - len(before) : low], hours)
            _, block = scan(values, before, pairs, weights, log=is_log(name))
            for channel, moments in zip(_own(name, levels), block, strict=True):
                found[channel].add(moments)
            before = np.concatenate([before, values])[-reach:] if reach else before
    return [found[channel] for channel in channels]


def read_edges(
    analysis: xr.Dataset, channels: Sequence[Channel], box: slice, hours: Sequence[int]
) -> dict[str, list[list[float]]]:
    """Moments of the changes of the stamps `box` since earlier ones, as plain data by channel."""
    times, weights = analysis["time"].values, row_weights(Grid.of(analysis))
    reach, start = _reach(times, hours), box.start
    low, high = max(0, start - reach), min(start + reach, box.stop)
    pairs = partners(times[start:high], times[low:start], hours)
    pairs[pairs >= 0] = NONE
    edges: dict[str, list[list[float]]] = {}
    for name, levels in levels_by_name(channels).items():
        fields = _fields(analysis[name], low, high)[:, np.searchsorted(analysis["level"].values, levels) if levels else [0]]
        _, found = scan(fields[start - low :], fields[: start - low], pairs, weights, log=is_log(name))
        edges |= {channel.label: moments.numbers() for channel, moments in zip(_own(name, levels), found, strict=True)}
    return edges


def _own(name: str, levels: Sequence[int]) -> list[Channel]:
    return [Channel(name, level) for level in levels] or [Channel(name)]


def _reach(times: np.ndarray, hours: Sequence[int]) -> int:
    """Stamps that the longest change may reach back."""
    step = np.diff(times).min() if times.size > 1 else np.timedelta64(1, "h")
    return int(max(hours, default=0) * np.timedelta64(1, "h") / step)


def _fields(array: xr.DataArray, start: int, stop: int) -> np.ndarray:
    """(time, level, latitude, longitude), level 1 where there is none."""
    with reading(f"{array.name}, stamps {start} to {stop - 1}"):
        values = array.isel(time=slice(start, stop)).transpose("time", ..., "latitude", "longitude").values
    return values if values.ndim == 4 else values[:, None]


def _whole_parts(
    kept: Kept | None, channels: Sequence[Channel], box: tuple[int, int], hours: Sequence[int], reach: int
) -> list[int]:
    """The parts inside the box whose moments, and edges, hold for it: every pair of them lies inside."""
    if kept is None or not set(hours) <= set(kept.hours):
        return []
    inside = np.flatnonzero((kept.starts >= box[0]) & (kept.stops <= box[1]))
    if inside.size and 0 < kept.starts[inside[0]] - box[0] < reach:
        inside = inside[1:]
    long_enough = (kept.stops - kept.starts)[inside][:-1] >= reach
    known = all(channel.label in kept.notes[part]["moments"] for part in inside[:1] for channel in channels)
    return [int(part) for part in inside] if long_enough.all() and known else []


def unlike(kept: Kept, measures: Mapping[Channel, xr.DataArray]) -> list[str]:
    """A line for each channel of each part that is not as it was noted: least and highest value, share of finite ones, mean."""
    lines = []
    for start, stop, note in zip(kept.starts, kept.stops, kept.notes, strict=True):
        table = judge({channel: values.isel(time=slice(start, stop)) for channel, values in measures.items()}).table
        for channel in measures:
            found: dict[Any, Any] = table.loc[channel.label].to_dict()
            noted = note["channels"][channel.label]
            differing = [name for name in NOTED if not _same(found[name], noted[name])]
            lines += [
                f"{channel}, stamps {start} to {stop - 1}: {name} is {found[name]:.9g}, {noted[name]} was noted"
                for name in differing
            ]
    return lines


def overall(kept: Kept, channels: Sequence[Channel]) -> dict[Channel, Moments]:
    """Moments of the whole store."""
    rows = range(len(kept.hours))
    found = {channel: Moments(changes=[Moment() for _ in kept.hours]) for channel in channels}
    for part in range(len(kept.notes)):
        for channel, moments in found.items():
            moments.add(kept.inner(part, channel, rows))
            if part:
                moments.add(kept.edge(part, channel, rows))
    return found


def _same(found: float, noted: float | None) -> bool:
    return np.isnan(found) if noted is None else abs(found - noted) <= 1e-9 * max(abs(found), abs(noted))


def content(hours: Sequence[int], parts: Mapping[str, slice], notes: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `parts.json`."""
    listed = [{"name": name, "stamps": [box.start, box.stop], "note": notes[name]} for name, box in parts.items()]
    return {"hours": list(hours), "parts": listed}
