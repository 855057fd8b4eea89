"""One part of an ingest: read, regridded, written, checked and summed up, a few variables and a bounded block at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from data_pipeline import quality
from data_pipeline.errors import InputError, NotReadyError, PlumecastError
from data_pipeline.moments import Moment, Moments, partners, row_weights, scan
from data_pipeline.plan import Plan
from data_pipeline.schema import Channel, levels_by_name
from data_pipeline.store import StoreWriter
from data_pipeline.transform import is_log

READERS = 8  # blocks of a remote source under way at once, for each part


def make_part(
    planned: Plan, writer: StoreWriter, part: str, *, faults: Literal["error", "allow"] = "error", wait: bool = False
) -> bool:
    """Write one part of the store and mark it done, with a note of its checks and moments. False if another process does.

    wait: for such a process to end. Raises InputError for faults of the data, unless they are allowed.
    """
    if not writer.claim(part, wait=wait):
        return False
    try:
        box = planned.parts[part]
        scans: dict[Channel, _Scan] = {channel: _Scan(planned.hours) for channel in planned.channels}
        for group in planned.groups:
            before: dict[str, np.ndarray] = {}
            for piece in planned.blocks(box, group):
                block = read_block(planned, group, piece)
                writer.put(part, block, {"time": piece})
                _sum_up(planned, block, before, scans)
        writer.complete(part, _note(planned, box, scans, faults))
    finally:
        writer.release(part)
    return True


def read_block(planned: Plan, group: dict[str, xr.DataArray], box: slice) -> xr.Dataset:
    """The stamps `box` of some variables in the layout of the store: float32, on its grid; absent levels are NaN."""
    lazy = planned.regridded(xr.Dataset({name: array.isel(time=box) for name, array in group.items()}))
    options = {"scheduler": "threads", "num_workers": READERS} if planned.remote else {"scheduler": "synchronous"}
    try:
        return lazy.load(**options).astype("float32", copy=False)
    except (PlumecastError, MemoryError):
        raise
    except Exception as error:  # readers raise what they like
        stamps = f"{planned.times[box.start]:%Y-%m-%dT%H} .. {planned.times[box.stop - 1]:%Y-%m-%dT%H}"
        raise NotReadyError(
            f"{', '.join(group)} at {stamps} cannot be read: {type(error).__name__}: {error}\n"
            "run the same command again: it continues with the parts that are not there yet"
        ) from error


class _Scan:
    """Measures and moments of one channel over the blocks of a part."""

    def __init__(self, hours: Sequence[int]) -> None:
        self.measures: list[np.ndarray] = []
        self.moments = Moments(changes=[Moment() for _ in hours])


def _sum_up(planned: Plan, block: xr.Dataset, before: dict[str, np.ndarray], scans: dict[Channel, _Scan]) -> None:
    """Measures and moments of a block; `before` holds the last fields of the block before it, and then those of this one."""
    times, weights = block["time"].values, row_weights(planned.grid)
    reach = int(max(planned.hours) * np.timedelta64(1, "h") / planned.step.to_timedelta64())
    for name, levels in levels_by_name(planned.channels).items():
        if name not in block:
            continue
        values = block[name].values
        values = values[:, None] if not levels else values if levels == planned.levels else values[:, _rows(planned, levels)]
        earlier = before.get(name, values[:0])
        start = int(np.searchsorted(planned.times.to_numpy(), times[0]))
        pairs = partners(times, planned.times[start - len(earlier) : start].to_numpy(), planned.hours)
        measures, moments = scan(values, earlier, pairs, weights, log=is_log(name))
        for row, channel in enumerate([Channel(name, level) for level in levels] or [Channel(name)]):
            scans[channel].measures.append(measures[:, row])
            scans[channel].moments.add(moments[row])
        before[name] = np.concatenate([earlier, values])[-reach:] if len(values) < reach else values[-reach:].copy()


def _rows(planned: Plan, levels: Sequence[int]) -> list[int]:
    return [planned.levels.index(level) for level in levels]


def _note(planned: Plan, box: slice, scans: dict[Channel, _Scan], faults: str) -> dict[str, Any]:
    """Checks and moments of a part as plain data. Raises InputError for errors, unless they are allowed."""
    points, times = planned.grid.areas.size, planned.times[box]
    measures = {
        channel: quality.label_measures(
            xr.DataArray(np.concatenate(scan.measures), dims=("time", "measure"), coords={"time": times}), points
        )
        for channel, scan in scans.items()
    }
    report = quality.judge(measures)
    report.findings = report.errors
    if report.findings and faults == "error":
        raise InputError(
            "the source fails its checks:\n" + "\n".join(f"  - {finding}" for finding in report.findings)
            + '\ncorrect it, leave the channel out, or accept it with source.faults="allow"'
        )  # fmt: skip
    return {**quality.summary(report), "moments": {channel.label: scan.moments.numbers() for channel, scan in scans.items()}}
