"""Climatology by hour and day of year: mean, standard deviation and quantiles, of any size, in memory or as a store.

Windows are counted in days either side of the day: `window_days=30` are the 61 days of WeatherBench 2. Method: per hour and day
of year, all years together, weighted by a triangle that falls to zero at `window_days`; days of year close into a circle of
366, of which the last has a sample only in leap years and weighs by its count.

The work is cut into boxes of levels and points that agree with the chunks of the analysis. For a box the period is read once,
some stamps at a time, and `MEMORY_BUDGET` bytes of sums, sample and results are held, besides the chunks that are being read. If
one chunk of the analysis covers more points than that, it is read again for each of the boxes in it. Boxes run side by side, on
threads or on a dask cluster; results do not depend on how the analysis is chunked, nor on who computes them, to the last bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline import store, windows
from data_pipeline.errors import InputError, reading
from data_pipeline.schema import Channel, levels_by_name
from data_pipeline.schema import select as select_channel
from data_pipeline.statistics import format_period, in_period
from data_pipeline.windows import DAYS
from data_pipeline.workers import AHEAD, cores, in_order, pool

MEMORY_BUDGET = 128 * 2**20  # bytes of one box: sums, sample, results
BLOCK_BYTES = 16 * 2**20  # of one box read at once, in whole chunks of stamps
YEAR = np.timedelta64(365, "D")
CHUNK_BYTES = 8 * 2**20  # of a chunk of the store: the whole year where it fits, else a sixth of it
SUFFIXES = ("", "_std", "_quantile")

Progress = Callable[[int, int], None]


def compute(
    analysis: xr.Dataset,
    channels: Sequence[Channel],
    period: tuple[str, str],
    *,
    window_days: int = 30,
    quantiles: Sequence[float] = (),
    cluster: str | None = None,
) -> xr.Dataset:
    """Mean, standard deviation and quantiles of each channel on (hour, dayofyear 1..366, [level], latitude, longitude), float32.

    The mean has the variable's name, the rest suffixes `_std` and `_quantile` (dim quantile first), as in WeatherBench 2. Over
    the sample of an hour and day with weights w (see the module): mean = sum w x / sum w, std = sqrt(sum w (x - mean)^2 / sum
    w), exact for the windowed sample and summed in float64 about a first guess; quantiles interpolate linearly between weighted
    order statistics (type 7 with Kish's effective size; Akinshin 2023, arXiv:2304.07265), which are the usual ones for equal
    weights. Missing values are left out point by point; a point without any is NaN. cluster: address of a dask scheduler.
    Raises InputError for a period shorter than a year, or with hours and days that no window reaches.
    """
    plan = _plan(analysis, channels, period, window_days, quantiles)
    blank = {name: (array.dims, np.full(array.shape, np.nan, "float32"), array.attrs) for name, array in plan.template.items()}
    out = plan.template.assign(blank)
    for piece, found in _results(plan, plan.pieces, cluster):
        for name, box, values in _boxes_of(plan, piece, found):
            array = out[name]
            array.values[tuple(box.get(str(dim), slice(None)) for dim in array.dims)] = values
    return out


def write(
    analysis: xr.Dataset,
    channels: Sequence[Channel],
    period: tuple[str, str],
    path: str | Path,
    *,
    window_days: int = 30,
    quantiles: Sequence[float] = (),
    recipe: Mapping[str, Any] | None = None,
    extends: Mapping[str, Any] | None = None,
    cluster: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """The dataset of `compute` as a store at `path`, of any size, written box by box; returns the path.

    Killed and run again, it continues with the boxes that are missing; the result has the same bytes. A finished one is left
    untouched. recipe: plain data that decide the content, extends: the recipe of a store that is replaced, for `store.create`.
    progress: called with (boxes done, of how many).
    Raises InputError as `compute` and `store.create`.
    """
    plan = _plan(analysis, channels, period, window_days, quantiles)
    parts = [piece.part for piece in plan.pieces]
    attrs = plan.template.attrs
    with store.create(
        path, plan.template, parts=parts, attrs=attrs, chunks=plan.chunks, recipe=recipe, extends=extends
    ) as writer:
        wanted = [piece for piece in plan.pieces if piece.part not in writer.done]
        for piece, found in _results(plan, wanted, cluster):
            for name, box, values in _boxes_of(plan, piece, found):
                writer.put(piece.part, xr.Dataset({name: (plan.template[name].dims, values)}), box)
            writer.complete(piece.part)
            if progress is not None:
                progress(len(writer.done), len(parts))
        return writer.finish()


def select(climatology: xr.Dataset, valid_times: xr.DataArray | pd.DatetimeIndex) -> xr.Dataset:
    """The climatology at each valid time: its hour and day of year, without interpolation.

    valid_times: any shape; its dims take the place of (hour, dayofyear). Raises InputError for an hour the climatology lacks.
    """
    stamps = as_array(valid_times)
    hours = climatology["hour"].values
    absent = sorted(set(np.unique(stamps.dt.hour).tolist()) - set(hours.tolist()))
    if absent:
        raise InputError(f"the climatology has the hours {hours.tolist()} UTC; {absent} are asked for")
    if not np.array_equal(climatology["dayofyear"].values, np.arange(1, DAYS + 1)) or (np.diff(hours) <= 0).any():
        raise InputError(
            f"the climatology has days {climatology['dayofyear'].values[[0, -1]].tolist()} and hours {hours.tolist()}; "
            f"expected every day from 1 to {DAYS}, and ascending hours"
        )
    position = xr.DataArray(np.searchsorted(hours, stamps.dt.hour), dims=stamps.dims, coords=stamps.coords)
    picked = climatology.isel(hour=position, dayofyear=stamps.dt.dayofyear - 1).drop_vars(["hour", "dayofyear"])
    return picked.transpose(*stamps.dims, ...)


class _Piece(NamedTuple):
    """A box of one variable. levels: of those asked for, or () for a surface variable."""

    part: str
    name: str
    levels: tuple[int, ...]
    latitude: slice
    longitude: slice


@dataclass(frozen=True)
class _Plan:
    """period: positions in the analysis. slots: hour * 366 + day of each stamp of the period. template: see `store.blank`."""

    analysis: xr.Dataset
    period: slice
    slots: np.ndarray
    window_days: int
    quantiles: np.ndarray
    template: xr.Dataset
    chunks: dict[str, int]
    pieces: list[_Piece]


def _plan(
    analysis: xr.Dataset, channels: Sequence[Channel], period: tuple[str, str], window_days: int, quantiles: Sequence[float]
) -> _Plan:
    require_year(analysis, period)
    if not 1 <= window_days <= DAYS // 2:
        raise InputError(f"window_days {window_days}: expected 1 to {DAYS // 2}")
    places = np.flatnonzero(in_period(analysis["time"].values, period))
    hours, slots = _calendar(analysis["time"].values[places])
    _check_coverage(hours, slots, window_days)
    for channel in channels:
        select_channel(analysis, channel)
    names = levels_by_name(channels)
    point = len(hours) * DAYS * (20 + 4 * (2 + len(quantiles))) + (4 * len(places) if quantiles else 0)
    pieces, box = _pieces(analysis, names, max(1, MEMORY_BUDGET // point))
    template = _template(analysis, channels, names, hours, quantiles)
    template.attrs = {"period": format_period(period), "window_days": window_days, "window": "triangular"}
    days = DAYS if 4 * DAYS * box[0] * box[1] <= CHUNK_BYTES else DAYS // 6
    chunks = {"hour": 1, "dayofyear": days, "quantile": 1, "level": 1, "latitude": box[0], "longitude": box[1]}
    span = slice(int(places[0]), int(places[-1]) + 1)
    return _Plan(analysis, span, slots, window_days, np.asarray(quantiles, "float64"), template, chunks, pieces)


def _template(
    analysis: xr.Dataset,
    channels: Sequence[Channel],
    names: Mapping[str, list[int]],
    hours: np.ndarray,
    quantiles: Sequence[float],
) -> xr.Dataset:
    coords: dict[str, Any] = {"hour": hours, "dayofyear": np.arange(1, DAYS + 1)}
    if every := sorted({level for levels in names.values() for level in levels}):
        coords["level"] = ("level", every, analysis["level"].attrs)
    coords |= {axis: (axis, analysis[axis].values, analysis[axis].attrs) for axis in ("latitude", "longitude")}
    if quantiles:
        coords["quantile"] = np.asarray(quantiles, "float64")
    variables = {}
    for suffix in SUFFIXES[: 3 if quantiles else 2]:
        first = ("quantile",) if suffix == "_quantile" else ()
        for name, levels in names.items():
            dims = (*first, "hour", "dayofyear", *(("level",) if levels else ()), "latitude", "longitude")
            variables[f"{name}{suffix}"] = (dims, variable_attrs(analysis, channels, name))
    return store.blank(coords, variables)


def _pieces(analysis: xr.Dataset, names: Mapping[str, list[int]], most: int) -> tuple[list[_Piece], tuple[int, int]]:
    """The boxes of every variable, of at most `most` points, and the rows and columns that are a chunk of the result."""
    groups = {name: _level_groups(analysis[name], levels, most) for name, levels in names.items()}
    deepest = max(max(len(group), 1) for found in groups.values() for group in found)
    n_lat, n_lon = analysis.sizes["latitude"], analysis.sizes["longitude"]
    stored = [_stored(analysis[name]) for name in names]
    rows, columns = (min(sizes[axis] for sizes in stored) for axis in ("latitude", "longitude"))
    columns = min(columns, max(1, most // deepest))
    rows = min(rows, max(1, most // (deepest * columns)))
    columns = min(n_lon, columns * max(1, most // (deepest * rows * columns)))  # whole chunks, as many as fit
    rows = min(n_lat, rows * max(1, most // (deepest * rows * columns)))
    pieces = []
    for name, found in groups.items():
        counter = itertools.count()
        for group in found:
            taller = rows * max(1, most // (max(len(group), 1) * rows * columns))
            for south, west in itertools.product(range(0, n_lat, taller), range(0, n_lon, columns)):
                box = slice(south, min(south + taller, n_lat)), slice(west, min(west + columns, n_lon))
                pieces.append(_Piece(f"{name}.{next(counter):05d}", name, group, *box))
    return pieces, (rows, columns)


def _level_groups(array: xr.DataArray, levels: Sequence[int], most: int) -> list[tuple[int, ...]]:
    """Levels that lie in one chunk are read together, if one point of them fits."""
    if not levels:
        return [()]
    run, positions = _stored(array)["level"], {int(level): i for i, level in enumerate(array["level"].values)}
    together = itertools.groupby(levels, lambda level: positions[level] // run)
    groups = [tuple(group) for _, group in together]
    return [group[first : first + most] for group in groups for first in range(0, len(group), most)]


def _stored(array: xr.DataArray) -> dict[str, int]:
    """Sizes of what is read at once: dask blocks, else the stored chunks; of an array in memory whole fields, stamp by stamp."""
    if array.chunks is not None:
        return {str(dim): max(sizes) for dim, sizes in zip(array.dims, array.chunks, strict=True)}
    chunks = array.encoding.get("chunks") or ()
    if len(chunks) == array.ndim:
        return {str(dim): int(size) for dim, size in zip(array.dims, chunks, strict=True)}
    return {**{str(dim): size for dim, size in array.sizes.items()}, "time": 1}


def _results(plan: _Plan, pieces: Sequence[_Piece], cluster: str | None) -> Iterator[tuple[_Piece, list[np.ndarray]]]:
    """Pieces and what `_climate` makes of them, in order; few of them wait, as each holds its results."""
    tasks = ((*_fields(plan, piece), plan.slots, plan.window_days, plan.quantiles) for piece in pieces)
    with pool(cluster) as workers:
        ahead = cores() + 1 if cluster is None else AHEAD
        yield from zip(pieces, in_order(workers, _climate, tasks, ahead=ahead), strict=True)


def _fields(plan: _Plan, piece: _Piece) -> tuple[xr.DataArray, list[slice]]:
    """What a piece reads, lazily, (time, [level], latitude, longitude), and the runs of stamps that it is to be read by."""
    array = plan.analysis[piece.name]
    field = array.isel(time=plan.period, latitude=piece.latitude, longitude=piece.longitude)
    if piece.levels:
        levels = array["level"].values.tolist()
        field = field.isel(level=[levels.index(level) for level in piece.levels])
    field = field.transpose("time", ..., "latitude", "longitude").drop_vars(list(field.coords))
    axis, run = array.get_axis_num("time"), _stored(array)["time"]
    ends = np.arange(run, array.sizes["time"] + run, run) if array.chunks is None else np.cumsum(array.chunks[axis])
    ends = np.unique(np.clip(ends - plan.period.start, 0, field.sizes["time"]))
    most = max(1, BLOCK_BYTES // (4 * field[0].size))
    blocks, start = [], 0
    for end, following in itertools.pairwise([*ends.tolist(), np.inf]):
        if end > start and following - start > most:
            blocks.append(slice(start, end))
            start = end
    return field, blocks


def _climate(
    field: xr.DataArray, blocks: Sequence[slice], slots: np.ndarray, window_days: int, levels: np.ndarray
) -> list[np.ndarray]:
    """Mean and standard deviation (hour, day, *fields), and quantiles (level, hour, day, *fields) if any are asked for."""
    n_hours, shape = slots.max() // DAYS + 1, field.shape[1:]
    points = int(np.prod(shape))
    sums = windows.new_sums(n_hours * DAYS, points)
    by_hour = np.argsort(slots // DAYS, kind="stable")
    place = np.argsort(by_hour)  # of each stamp in the sample, which holds hour after hour
    sample = np.empty((len(slots) if len(levels) else 0, points), "float32")
    for block in blocks:
        # in this thread: the tasks are the parallel work
        with reading(f"{field.name}, stamps {block.start} to {block.stop - 1} of the period"):
            values = field.isel(time=block).compute(scheduler="synchronous").values.reshape(-1, points)
        windows.add(np.ascontiguousarray(values), slots[block], *sums)
        if len(levels):
            sample[place[block]] = values
    found = list(windows.moments(*sums, window_days))
    if len(levels):
        quantiles = np.empty((len(levels), n_hours, DAYS, points), "float32")
        for hour in range(n_hours):
            own = np.flatnonzero(slots // DAYS == hour)
            some = slice(place[own[0]], place[own[-1]] + 1)
            windows.quantiles(sample[some], slots[own] % DAYS, window_days, levels, quantiles[:, hour])
        found.append(quantiles)
    return [values.reshape(*values.shape[:-1], *shape) for values in found]


def _boxes_of(plan: _Plan, piece: _Piece, found: Sequence[np.ndarray]) -> Iterator[tuple[str, dict[str, slice], np.ndarray]]:
    """What a piece gives to the result: variable, its box (positions), values. The first of a variable fills absent levels."""
    box = {"latitude": piece.latitude, "longitude": piece.longitude}
    for suffix, values in zip(SUFFIXES, found, strict=False):
        name = f"{piece.name}{suffix}"
        if not piece.levels:
            yield name, box, values
            continue
        every = plan.template["level"].values.tolist()
        for i, level in enumerate(piece.levels):
            position = every.index(level)
            yield name, {**box, "level": slice(position, position + 1)}, values[..., i : i + 1, :, :]
        own = np.atleast_1d(plan.template[name].attrs["levels_available"]).tolist()
        for position in (i for i, level in enumerate(every) if piece.levels[0] == own[0] and level not in own):
            yield name, {**box, "level": slice(position, position + 1)}, np.full_like(values[..., :1, :, :], np.nan)


def _calendar(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hours of the day that occur, and for each stamp the position of its hour among them * 366 + its day of year from 0."""
    stamps = pd.DatetimeIndex(times)
    hours, index = np.unique(stamps.hour.to_numpy(), return_inverse=True)
    return hours.astype("int64"), index * DAYS + stamps.day_of_year.to_numpy().astype("int64") - 1


def variable_attrs(data: xr.Dataset, channels: Sequence[Channel], name: str) -> dict[str, object]:
    """Units of a variable of `data`, and those of its levels that are among the channels."""
    levels = sorted(channel.level for channel in channels if channel.name == name and channel.level is not None)
    return {"units": data[name].attrs.get("units", ""), **({"levels_available": levels} if levels else {})}


def require_year(analysis: xr.Dataset, period: tuple[str, str] | None = None) -> None:
    """Raise InputError, saying what is there, unless the analysis (its part in `period`) spans a full year."""
    held = analysis["time"].values
    times = held if period is None else held[in_period(held, period)]
    if len(times) > 1 and times[-1] - times[0] + np.diff(times).min() >= YEAR:
        return
    there = f"the store has {_span(held)}"
    if period is not None:
        there += f", of it {_span(times)} in the training period {format_period(period)}"
    raise InputError(f"a climatology needs at least one full year, better several; {there}")


def _span(times: np.ndarray) -> str:
    if not len(times):
        return "nothing"
    first, last = pd.Timestamp(times[0]), pd.Timestamp(times[-1])
    return f"{first:%Y-%m-%d}..{last:%Y-%m-%d}"


def _check_coverage(hours: np.ndarray, slots: np.ndarray, window_days: int) -> None:
    for position, hour in enumerate(hours):
        own = slots[slots // DAYS == position] % DAYS
        empty = np.flatnonzero(windows.weights_of(windows.starts_of(own), window_days)[0] == 0)
        if len(empty):
            raise InputError(
                f"a climatology needs analyses all around the year: at {hour:02d} UTC no stamp of the period lies within the "
                f"window of day {empty[0] + 1} of the year ({len(empty)} such days); widen window_days, or complete the store"
            )


def as_array(valid_times: xr.DataArray | pd.DatetimeIndex) -> xr.DataArray:
    """Valid times as an array; an index has the dim `time`."""
    if isinstance(valid_times, xr.DataArray):
        return valid_times
    return xr.DataArray(valid_times, dims="time", coords={"time": valid_times})
