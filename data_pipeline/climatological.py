"""Climatological ensembles: whole analyses of the training years as members of a forecast.

A member is an analysis of the same hour, at most `window_days` from an anniversary of the valid time: 11 a year for 5 days,
whatever the calendar. Members keep the relations between points and variables, but not those between lead times.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Collection, Sequence

import dask.array
import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline.climatology import as_array, require_year, variable_attrs
from data_pipeline.errors import InputError
from data_pipeline.schema import Channel
from data_pipeline.schema import select as select_channel
from data_pipeline.statistics import format_period, in_period
from data_pipeline.windows import DAYS

ENSEMBLE_BUDGET = 4 * 2**30  # bytes of training analyses kept in memory to draw from; above it they are read block by block


def member_times(
    available: pd.DatetimeIndex,
    valid_time: pd.Timestamp,
    *,
    window_days: int = 5,
    min_members: int = 30,
    exclude: Collection[int] = (),
) -> pd.DatetimeIndex:
    """The stamps of `available` that make the climatological ensemble of `valid_time`, ascending.

    Same hour, at most `window_days` from an anniversary of the valid time (of 29 February: 1 March in other years). The window is
    widened day by day until `min_members` are found. exclude: years whose anniversary is left out. Raises InputError if a window
    of half a year does not hold that many.
    """
    positions, _ = _members(available, pd.Timestamp(valid_time), window_days, min_members, frozenset(exclude))
    return available[np.sort(positions)]


def climatological_ensemble(
    analysis: xr.Dataset,
    channels: Sequence[Channel],
    valid_times: xr.DataArray | pd.DatetimeIndex,
    period: tuple[str, str],
    *,
    window_days: int = 5,
    min_members: int = 30,
) -> xr.Dataset:
    """For each valid time the analyses of `period` around its anniversaries, lazily: (*dims of valid_times, number, fields).

    valid_times: dims (time, prediction_timedelta) give a forecast in the schema; `time` and further coordinates are kept. All
    valid times get the same number of members, the least that any of them has (the nearest days are kept). The anniversary that
    is the valid time itself is never drawn from: a valid time inside the period, or within the window of its ends, has one year
    less. attrs: members, window_days (the widest that was needed), period. Raises InputError as `compute` and `member_times`.
    """
    require_year(analysis, period)
    data = analysis.isel(time=np.flatnonzero(in_period(analysis["time"].values, period)))
    stamps = as_array(valid_times)
    index, window = _member_index(pd.DatetimeIndex(data["time"].values), stamps.values, window_days, min_members)
    fields = [select_channel(data, channel) for channel in channels]
    in_memory = sum(field.size for field in fields) * 4 <= ENSEMBLE_BUDGET
    coords = {**stamps.coords, "number": np.arange(1, index.shape[-1] + 1)}
    if "prediction_timedelta" in stamps.dims:
        coords["valid_time"] = (stamps.dims, stamps.values)
    drawn = {}
    for channel, field in zip(channels, fields, strict=True):
        source = field.astype("float32").load() if in_memory else field
        array = xr.DataArray(_draw(index, source), dims=(*stamps.dims, "number", "latitude", "longitude"), coords=coords)
        drawn[channel] = array.assign_coords(latitude=field["latitude"], longitude=field["longitude"])
    out = _gather(drawn, data)
    out.attrs = {"members": index.shape[-1], "window_days": window, "period": format_period(period)}
    return out


def _draw(index: np.ndarray, source: xr.DataArray) -> dask.array.Array:
    """`source[index]` with one task for each position along the first dim of `index`."""
    blocks = dask.array.from_array(index, chunks=(1, *index.shape[1:]), name=f"members-{uuid.uuid4().hex}")
    grid = source.shape[1:]
    new_axes = list(range(index.ndim, index.ndim + 2))
    return dask.array.map_blocks(
        functools.partial(_take, source=source), blocks, dtype="float32", new_axis=new_axes,
        chunks=(*blocks.chunks, (grid[0],), (grid[1],)), name=f"climatology-{uuid.uuid4().hex}",
        meta=np.empty((0,) * (index.ndim + 2), dtype="float32"),
    )  # fmt: skip


def _take(index: np.ndarray, *, source: xr.DataArray) -> np.ndarray:
    wanted, inverse = np.unique(index, return_inverse=True)
    fields: np.ndarray = source.isel(time=wanted).values.astype("float32", copy=False)
    return fields[inverse.reshape(index.shape)]


def _member_index(available: pd.DatetimeIndex, valid: np.ndarray, window_days: int, min_members: int) -> tuple[np.ndarray, int]:
    """Positions in `available`, shape (*valid.shape, members), ascending along members, and the widest window needed."""
    unique, inverse = np.unique(valid, return_inverse=True)
    found = [_members(available, stamp, window_days, min_members, frozenset([stamp.year])) for stamp in pd.DatetimeIndex(unique)]
    count = min(len(positions) for positions, _ in found)
    rows = np.stack([np.sort(positions[:count]) for positions, _ in found])
    return rows[inverse.reshape(valid.shape)], max(window for _, window in found)


def _members(
    available: pd.DatetimeIndex, valid: pd.Timestamp, window_days: int, min_members: int, exclude: frozenset[int]
) -> tuple[np.ndarray, int]:
    """Positions of the members, nearest days first (then by time), and the window that held them."""
    candidates = np.flatnonzero(_hours(available) == valid - valid.normalize())
    distance = np.full(len(candidates), DAYS)
    dates = available.normalize().to_numpy()[candidates]
    for year in range(available[0].year - 1, available[-1].year + 2):
        apart = np.abs((dates - _anniversary(valid, year)) / np.timedelta64(1, "D")).astype(int)
        own = apart < distance
        distance[own] = DAYS if year in exclude else apart[own]
    for window in range(window_days, DAYS // 2 + 1):
        inside = np.flatnonzero(distance <= window)
        if len(inside) >= max(min_members, 1):
            order = np.argsort(distance[inside], kind="stable")
            return candidates[inside[order]], window
    raise InputError(
        f"a climatological ensemble for {valid:%Y-%m-%dT%H} needs {min_members} analyses of {valid:%H} UTC; the training period "
        f"{available[0]:%Y-%m-%d}..{available[-1]:%Y-%m-%d} has {int((distance < DAYS).sum())}"
    )


def _hours(stamps: pd.DatetimeIndex) -> pd.TimedeltaIndex:
    return stamps - stamps.normalize()


def _anniversary(valid: pd.Timestamp, year: int) -> np.datetime64:
    first = np.datetime64(f"{year:04d}-{valid.month:02d}-01", "D")
    return first + np.timedelta64(valid.day - 1, "D")  # 29 February runs over to 1 March


def _gather(fields: dict[Channel, xr.DataArray], data: xr.Dataset) -> xr.Dataset:
    """Channels as variables with the units of `data`; levels that a variable lacks are NaN, as in an analysis store."""
    every = sorted({channel.level for channel in fields if channel.level is not None})
    variables = {}
    for name in dict.fromkeys(channel.name for channel in fields):
        own = {channel.level: array for channel, array in fields.items() if channel.name == name}
        if None in own:
            array = own[None]
        else:
            absent = xr.full_like(next(iter(own.values())), np.nan)
            array = xr.concat([own.get(level, absent) for level in every], dim=pd.Index(every, name="level"), join="exact")
            array = array.transpose(..., "level", "latitude", "longitude")
        variables[name] = array.assign_attrs(variable_attrs(data, list(fields), name))
    return xr.Dataset(variables)
