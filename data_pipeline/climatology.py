"""Climatology by hour and day of year (mean, std, quantiles), and climatological ensembles drawn from the training years.

Windows are counted in days either side of the day: `window_days=30` are the 61 days of WeatherBench 2. Method: per hour and day
of year, all years together, weighted by a triangle that falls to zero at `window_days`; days of year close into a circle of
366, of which the last has a sample only in leap years and weighs by its count.

Members of an ensemble are whole analyses of the same hour, at most `window_days` from an anniversary of the valid time: 11 a year
for 5 days, whatever the calendar. They keep the relations between points and variables, but not those between lead times.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Collection, Iterator, Sequence

import dask.array
import numba
import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.schema import Channel
from data_pipeline.schema import select as select_channel
from data_pipeline.statistics import format_period, in_period

DAYS = 366
MEMORY_BUDGET = 512 * 2**20  # bytes of accumulators, or of the sample, of one channel held at once
ENSEMBLE_BUDGET = 4 * 2**30  # bytes of training analyses kept in memory to draw from; above it they are read block by block
BLOCK = 256  # stamps read at once
YEAR = np.timedelta64(365, "D")


def compute(
    analysis: xr.Dataset,
    channels: Sequence[Channel],
    period: tuple[str, str],
    *,
    window_days: int = 30,
    quantiles: Sequence[float] = (),
) -> xr.Dataset:
    """Mean, standard deviation and quantiles of each channel on (hour, dayofyear 1..366, [level], latitude, longitude), float32.

    The mean has the variable's name, the rest suffixes `_std` and `_quantile` (dim quantile first), as in WeatherBench 2. Over
    the sample of an hour and day with weights w (see the module): mean = sum w x / sum w, std = sqrt(sum w (x - mean)^2 / sum
    w), exact for the windowed sample and summed in float64 about a first guess; quantiles interpolate linearly between weighted
    order statistics (type 7 with Kish's effective size; Akinshin 2023, arXiv:2304.07265), which are the usual ones for equal
    weights. Missing values are left out point by point; a point without any is NaN. Cost of quantiles: days x sample x points.
    Raises InputError for a period shorter than a year, or with hours and days that no window reaches.
    """
    require_year(analysis, period)
    data = analysis.isel(time=np.flatnonzero(in_period(analysis["time"].values, period)))
    hours, hour_index, days = _calendar(data["time"].values)
    weights = triangle(window_days)
    _check_coverage(hours, hour_index, days, weights)
    levels = np.asarray(quantiles, dtype="float64")
    coords = {"hour": hours, "dayofyear": np.arange(1, DAYS + 1), "latitude": data["latitude"], "longitude": data["longitude"]}
    found: dict[str, dict[Channel, xr.DataArray]] = {"": {}, "_std": {}, "_quantile": {}}
    for channel in channels:
        field = select_channel(data, channel)
        mean, std = _moments(field, hour_index, days, weights, len(hours))
        found[""][channel] = xr.DataArray(mean, dims=list(coords), coords=coords)
        found["_std"][channel] = xr.DataArray(std, dims=list(coords), coords=coords)
        if quantiles:
            values = _quantiles(field, hour_index, days, weights, len(hours), levels)
            found["_quantile"][channel] = xr.DataArray(values, dims=["quantile", *coords], coords={"quantile": levels, **coords})
    out = xr.Dataset(attrs={"period": format_period(period), "window_days": window_days, "window": "triangular"})
    for suffix, fields in found.items():
        gathered = _gather(fields, data)
        out = out.assign({f"{name}{suffix}": array for name, array in gathered.data_vars.items()})
    return out


def select(climatology: xr.Dataset, valid_times: xr.DataArray | pd.DatetimeIndex) -> xr.Dataset:
    """The climatology at each valid time: its hour and day of year, without interpolation.

    valid_times: any shape; its dims take the place of (hour, dayofyear). Raises InputError for an hour the climatology lacks.
    """
    stamps = _as_array(valid_times)
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
    stamps = _as_array(valid_times)
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


def triangle(window_days: int) -> np.ndarray:
    """Weights (366, 366) of day of year j for day i: 1 - |i - j| / window_days around the circle, not below 0."""
    if not 1 <= window_days <= DAYS // 2:
        raise InputError(f"window_days {window_days}: expected 1 to {DAYS // 2}")
    apart = np.abs(np.arange(DAYS)[:, None] - np.arange(DAYS)[None, :])
    return np.clip(1 - np.minimum(apart, DAYS - apart) / window_days, 0, None)


def _moments(
    field: xr.DataArray, hour_index: np.ndarray, days: np.ndarray, weights: np.ndarray, n_hours: int
) -> tuple[np.ndarray, np.ndarray]:
    mean = np.empty((n_hours, DAYS, *field.shape[1:]), dtype="float32")
    std = np.empty_like(mean)
    for band in _bands(field, 3 * 8 * n_hours * DAYS):
        rows = field.isel(latitude=band)
        guess = _first_guess(rows)
        count, total, square = (np.zeros((n_hours, DAYS, *rows.shape[1:])) for _ in range(3))
        for start in range(0, rows.sizes["time"], BLOCK):
            anomaly = rows.isel(time=slice(start, start + BLOCK)).values.astype("float64") - guess
            valid = np.isfinite(anomaly)
            anomaly[~valid] = 0.0
            for i in range(len(anomaly)):
                slot = hour_index[start + i], days[start + i]
                count[slot] += valid[i]
                total[slot] += anomaly[i]
                square[slot] += anomaly[i] ** 2
        n, first, second = (_smooth(weights, sums) for sums in (count, total, square))
        with np.errstate(invalid="ignore", divide="ignore"):
            departure = first / n
            mean[:, :, band] = guess + departure
            std[:, :, band] = np.sqrt(np.maximum(second / n - departure**2, 0.0))
    return mean, std


def _smooth(weights: np.ndarray, sums: np.ndarray) -> np.ndarray:
    flat = sums.reshape(len(sums), DAYS, -1)
    return np.matmul(weights, flat).reshape(sums.shape)


def _first_guess(rows: xr.DataArray) -> np.ndarray:
    """Any value near the mean removes the cancellation; a point that happens to be missing in all of these stamps gets 0."""
    some = rows.isel(time=np.unique(np.linspace(0, rows.sizes["time"] - 1, 12).astype(int))).values.astype("float64")
    valid = np.isfinite(some)
    guess: np.ndarray = np.where(valid, some, 0.0).sum(axis=0) / np.maximum(valid.sum(axis=0), 1)
    return guess


def _quantiles(
    field: xr.DataArray, hour_index: np.ndarray, days: np.ndarray, weights: np.ndarray, n_hours: int, levels: np.ndarray
) -> np.ndarray:
    out = np.empty((len(levels), n_hours, DAYS, *field.shape[1:]), dtype="float32")
    for band in _bands(field, 4 * field.sizes["time"] + 4 * len(levels) * DAYS):
        rows = field.isel(latitude=band).values.astype("float32")
        for hour in range(n_hours):
            own = np.flatnonzero(hour_index == hour)
            sample = np.ascontiguousarray(rows[own].reshape(len(own), -1).T)
            found = _weighted_quantiles(sample, days[own], weights, levels)
            out[:, hour, :, band] = found.transpose(2, 1, 0).reshape(len(levels), DAYS, *rows.shape[1:])
    return out


@numba.njit(nogil=True, cache=True)
def _weighted_quantiles(sample: np.ndarray, days: np.ndarray, weights: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Quantiles (point, day, level) of a sample (point, stamp): each point is sorted once, then walked for every day."""
    points, n_days = sample.shape[0], weights.shape[0]
    out = np.full((points, n_days, levels.size), np.nan, dtype=np.float32)
    for point in range(points):
        order = np.argsort(sample[point])
        while order.size and np.isnan(sample[point, order[-1]]):
            order = order[:-1]
        ordered, ordered_days = sample[point][order], days[order]
        values, shares = np.empty(order.size), np.empty(order.size)
        for day in range(n_days):
            count, total, squares = 0, 0.0, 0.0
            for i in range(order.size):
                weight = weights[day, ordered_days[i]]
                if weight > 0.0:
                    values[count], shares[count] = ordered[i], weight
                    count, total, squares = count + 1, total + weight, squares + weight * weight
            size = total * total / squares if count else 0.0
            for k in range(levels.size if count else 0):
                position = (size - 1) * levels[k]  # of the order statistic, from 0, as in type 7
                cumulative, reached, result = 0.0, 0.0, 0.0
                for i in range(count):
                    cumulative += shares[i] * size / total
                    share = min(max(cumulative - position, 0.0), 1.0)
                    result += (share - reached) * values[i]
                    reached = share
                    if share >= 1.0:
                        break
                out[point, day, k] = result / reached
    return out


def _bands(field: xr.DataArray, bytes_per_point: int) -> Iterator[slice]:
    """Slices of latitude whose accumulators fit the budget. Each one reads the period again: chunks hold whole fields."""
    rows = max(1, MEMORY_BUDGET // (bytes_per_point * field.sizes["longitude"]))
    for start in range(0, field.sizes["latitude"], rows):
        yield slice(start, start + rows)


def _calendar(times: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hours of the day that occur, the position of each stamp among them, and its day of year from 0."""
    stamps = pd.DatetimeIndex(times)
    hours, index = np.unique(stamps.hour.to_numpy(), return_inverse=True)
    return hours.astype("int64"), index, stamps.day_of_year.to_numpy().astype("int64") - 1


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
        variables[name] = array.assign_attrs(_variable_attrs(data, list(fields), name))
    return xr.Dataset(variables)


def _variable_attrs(data: xr.Dataset, channels: Sequence[Channel], name: str) -> dict[str, object]:
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


def _check_coverage(hours: np.ndarray, hour_index: np.ndarray, days: np.ndarray, weights: np.ndarray) -> None:
    for position, hour in enumerate(hours):
        count = np.bincount(days[hour_index == position], minlength=DAYS)
        empty = np.flatnonzero(weights @ count == 0)
        if len(empty):
            raise InputError(
                f"a climatology needs analyses all around the year: at {hour:02d} UTC no stamp of the period lies within the "
                f"window of day {empty[0] + 1} of the year ({len(empty)} such days); widen window_days, or complete the store"
            )


def _as_array(valid_times: xr.DataArray | pd.DatetimeIndex) -> xr.DataArray:
    if isinstance(valid_times, xr.DataArray):
        return valid_times
    return xr.DataArray(valid_times, dims="time", coords={"time": valid_times})
