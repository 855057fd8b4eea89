"""What is accumulated over time, over the window that is wanted: since the start of a run or day to steps, steps to windows.

In the schema an accumulated variable holds what fell (or shone, or was the highest) over the step that ends at the stamp, or over
the hours in its name: `total_precipitation_12hr`. All stays lazy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.schema import Channel
from data_pipeline.sources.join import noted, reindexed, shown
from data_pipeline.variables import Variable, lookup

HOUR = np.timedelta64(1, "h").astype("timedelta64[ns]")
MARKS = ("windows", "accumulation")  # attributes of a field: [start, end] hours of its messages, the rule that a file states
_COMBINE: dict[str, Callable[[Any, Any], Any]] = {"sum": np.add, "maximum": np.maximum, "minimum": np.minimum}


def totals(data: xr.Dataset, channels: Sequence[Channel | str], *, times: Any = None) -> xr.Dataset:
    """`data` (analysis or forecast schema) with the asked `<name>_<h>hr` that it lacks, from windows of fewer hours; lazily.

    channels: only those that are accumulated are looked at; what cannot be made is not added, and what is there stays. times:
    stamps of an analysis that are wanted (default: all); the result has no others. The source is the longest window that divides
    h, and each stamp of the wanted window must be there: otherwise an analysis loses the stamp, a forecast has NaN at that lead,
    which its attribute `hours_available` leaves out. What was done is said in the mapping. Sums are made in float64.
    Raises InputError if no stamp has a whole window.
    """
    names = dict.fromkeys(channel.name if isinstance(channel, Channel) else str(channel) for channel in channels)
    sources = {name: source for name in names if name not in data and (source := _finer(data, name)) is not None}
    forecast = _axis(data) != "time"
    wanted = data["time"].values
    if times is not None and not forecast:
        wanted = np.intersect1d(np.asarray(times, "M8[ns]"), wanted)
    made = {name: _windows(source, named_hours(name) or 0, None if forecast else wanted) for name, source in sources.items()}
    lines = [_line(data, name, sources[name], array) for name, array in made.items()]
    return _beside(data if wanted.size == data.sizes["time"] else data.sel(time=wanted), made, lines)


def deaccumulate(data: xr.Dataset, *, accumulation: str | None = None) -> xr.Dataset:
    """`data` (analysis or forecast schema) with what is accumulated from a common start as `<name>_<h>hr`, by difference; lazily.

    accumulation: "init" (forecasts: since the initialisation, as IFS), "bucket:6h" (since the last full 6 hours, as GEFS), "day"
    (analyses: since 00 UTC, the stamp 00 ends the day before, as ERA5-Land), "step" (nothing to do). None: what the files state,
    otherwise "step". h are the steps between the stamps: forecasts that go from 3 to 6 hours give both, each missing where it
    cannot be made (`hours_available`); an analysis loses such stamps. Names that carry hours are taken at their word.
    Where a variable cannot be negative, negative differences to the lower end of its valid range (packing: 0.1 mm of rain) become
    0; a larger one raises InputError when it is computed. Raises InputError for an option that the files contradict.
    """
    lines: list[str] = []
    made: dict[str, xr.DataArray] = {}
    for name, array in [(str(name), array) for name, array in data.data_vars.items()]:
        variable = lookup(name)
        if variable is None or not variable.accumulated or named_hours(name) or "time" not in array.dims:
            continue
        starts, said = _starts(array, accumulation)
        steps = {} if starts is None else _by_step(array, variable, starts)
        if steps:
            noise = f"; negatives to {variable.valid_range[0]:g} {variable.units} (packing) become 0" * variable.non_negative
            lines.append(f"{name}: {said} -> {', '.join(steps)}, by difference{noise}")
            data = data.drop_vars(name)
        else:
            lines.append(f"{name}: {said}")
        made |= steps
    data = _beside(data, made, lines)
    return data.assign({name: _unmarked(array) for name, array in data.data_vars.items()})


def accumulate(array: xr.DataArray, hours: int) -> xr.DataArray:
    """An accumulated variable over the last `hours` at each of its stamps, NaN where a stamp of the window is not there.

    array: (time, ...) of an analysis or (time, prediction_timedelta, ...) of a forecast, accumulated over the hours in its name,
    or over its step. Sums, or the highest or lowest value, as the variable is. Raises InputError if `hours` are not a multiple
    of the windows of `array`, or if no stamp has a whole window.
    """
    dim = _axis(array)
    return reindexed(_windows(array, hours), dim, array[dim].values)


def _starts(array: xr.DataArray, accumulation: str | None) -> tuple[np.ndarray | None, str]:
    """Where the window of each stamp begins (as `_since`), None for at the stamp before; and how that is known."""
    since, forecast = _since(array), _axis(array) != "time"
    told = _told_by_windows(array, since, forecast)
    if accumulation is None and told is not None:
        return told, "accumulated as its messages state"
    rule = accumulation or array.attrs.get("accumulation")
    if rule is None:
        return None, "nothing tells what it is accumulated over, taken as the step (source option accumulation)"
    starts = _by_rule(rule, since, forecast)
    if told is not None and not np.array_equal(told, since if starts is None else starts):
        first = int(np.argmax(told != (since if starts is None else starts)))
        raise InputError(
            f"{array.name}: source option accumulation is {rule!r}, but its messages state others: at "
            f"{shown(array[_axis(array)].values[first])} over {shown(since[first] - told[first])}; leave the option out"
        )
    by = "by the source option accumulation" if accumulation else "its attributes state"
    return starts, f"accumulated by {rule!r} ({by})"


def _by_rule(rule: str, since: np.ndarray, forecast: bool) -> np.ndarray | None:
    bucket = re.fullmatch(r"bucket:([1-9]\d*)h", rule)
    if rule == "step":
        return None
    if rule == "init" and forecast:
        return np.zeros_like(since)
    if (rule == "day" and not forecast) or bucket:
        length = (int(bucket[1]) if bucket else 24) * HOUR
        return (since - np.timedelta64(1, "ns")) // length * length
    known = '"init", "step", "bucket:6h" and the like' if forecast else '"step", "day", "bucket:6h" and the like'
    raise InputError(
        f"accumulation {rule!r} of {'a forecast' if forecast else 'an analysis'}: the source option accumulation may be {known}"
    )


def _told_by_windows(array: xr.DataArray, since: np.ndarray, forecast: bool) -> np.ndarray | None:
    """`windows` (attribute) are [start, end] in hours of a run, from the messages of a GRIB file."""
    windows = [tuple(pair) for pair in array.attrs.get("windows", [])]
    if forecast:
        begins = {end * HOUR: start * HOUR for start, end in windows}
        return np.array([begins[end] for end in since]) if all(end in begins for end in since) else None
    lengths = sorted({end - start for start, end in windows})
    if len(lengths) > 1:
        raise InputError(
            f"{array.name} is accumulated over {', '.join(f'{length} h' for length in lengths)} at stamps of one analysis (since "
            "the start of each run); expected one length. Open it as an ensemble, or take one step of each run"
        )
    return since - lengths[0] * HOUR if lengths else None


def _since(array: xr.DataArray) -> np.ndarray:
    """The stamps from the initialisation, or from a midnight: as differences."""
    ends = array[_axis(array)].values
    return ends if ends.dtype.kind == "m" else ends - np.datetime64("1970-01-01", "ns")


def _by_step(array: xr.DataArray, variable: Variable, starts: np.ndarray) -> dict[str, xr.DataArray]:
    """{name with hours: values over those hours}, from values since `starts`; none if they are already over the step."""
    since, dim = _since(array), _axis(array)
    apart, lengths = np.unique(np.diff(since)), np.unique(since - starts)
    if dim == "time":
        apart = apart[:1]  # longer ones are holes
    if apart.size == 1 and np.array_equal(lengths, apart):
        return {}
    sums = variable.window == "sum"
    made = {name: part for step in apart if sums for name, part in _over(step, array, variable, starts).items()}
    return made or {name: part for step in lengths for name, part in _over(step, array, variable, starts).items()}


def _over(step: np.timedelta64, array: xr.DataArray, variable: Variable, starts: np.ndarray) -> dict[str, xr.DataArray]:
    """{name: values over `step`}, at the stamps where values since `starts` give them; empty if there are none."""
    since, dim = _since(array), _axis(array)
    before = pd.Index(since).get_indexer(pd.Index(since - step))
    whole = since - step == starts
    partly = (before >= 0) & (starts[before] == starts) & ~whole & (variable.window == "sum")
    there = (whole | partly) & (step > np.timedelta64(0))
    if not there.any():
        return {}
    if step % HOUR:
        raise InputError(f"{array.name}: stamps {step / HOUR:g} h apart; expected whole hours")
    fields = array.isel({dim: there})
    if partly.any():
        lower = array.isel({dim: np.where(partly, before, 0)[there]}).assign_coords({dim: fields[dim]})
        fields = _without_noise(fields - lower.where(xr.DataArray(partly[there], dims=dim), 0), variable)
    name = f"{variable.name}_{step // HOUR}hr"
    return {name: fields.assign_attrs(array.attrs).rename(name)}


def _without_noise(array: xr.DataArray, variable: Variable) -> xr.DataArray:
    if not variable.non_negative:
        return array
    options = {"name": variable.name, "limit": -variable.valid_range[0]}
    return xr.apply_ufunc(_cleaned, array, kwargs=options, dask="parallelized", output_dtypes=[np.float32])


def _cleaned(values: np.ndarray, name: str, limit: float) -> np.ndarray:
    if (values < -limit).any():
        raise InputError(
            f"{name} falls by {-np.nanmin(values):g} from one stamp to the next, of which packing explains {limit:g}: it is not "
            "accumulated as said; see the source option accumulation"
        )
    return np.maximum(values, 0, dtype=np.float32)


def _unmarked(array: xr.DataArray) -> xr.DataArray:
    """Without the attributes by which fields tell `deaccumulate` what they hold."""
    return array.drop_attrs(deep=False).assign_attrs({k: v for k, v in array.attrs.items() if k not in MARKS})


def named_hours(name: str) -> int | None:
    """6 of `total_precipitation_6hr`; None of a name that tells no hours."""
    match = re.fullmatch(r".+_(\d+)hr", name)
    return int(match[1]) if match else None


def _axis(array: xr.DataArray | xr.Dataset) -> str:
    return "prediction_timedelta" if "prediction_timedelta" in array.dims else "time"


def _finer(data: xr.Dataset, name: str) -> xr.DataArray | None:
    """The longest windows that `name` can be put together from."""
    variable, hours = lookup(name), named_hours(name)
    if variable is None or not hours:
        return None
    arrays = [array for key, array in data.data_vars.items() if lookup(str(key)) is variable]
    known = {own: array for array in arrays if (own := own_hours(array))}
    return next((known[own] for own in sorted(known, reverse=True) if hours % own == 0), None)


def own_hours(array: xr.DataArray) -> int | None:
    """Hours that the values are accumulated over: those of the name, else the (shortest) step; None for a single stamp."""
    ends = array[_axis(array)].values
    whole = (np.diff(ends).min() if ends.size > 1 else HOUR * 0) / HOUR
    return named_hours(str(array.name)) or (int(whole) if whole and whole == int(whole) else None)


def _beside(data: xr.Dataset, made: Mapping[str, xr.DataArray], lines: list[str]) -> xr.Dataset:
    """`made`, that have some of the stamps, in `data`: leads that one lacks are NaN, an analysis keeps the common times."""
    dim = _axis(data)
    if dim != "time":
        return noted(data.assign({name: reindexed(array, dim, data[dim].values) for name, array in made.items()}), lines)
    kept = reduce(np.intersect1d, [array["time"].values for array in made.values()], data["time"].values)
    lacking = data.sizes["time"] - kept.size
    if lacking:
        lines = [*lines, f"time: {lacking} stamps left out, their windows are not whole; kept {kept.size}"]
        data = data.sel(time=kept)
    return noted(data.assign({name: array.sel(time=kept) for name, array in made.items()}), lines)


def _windows(array: xr.DataArray, hours: int, ends: np.ndarray | None = None) -> xr.DataArray:
    """`array` over `hours`, at those of its stamps (or of `ends`) that have a whole window."""
    variable, own, dim = _known(array), own_hours(array), _axis(array)
    if not own or hours % own:
        raise InputError(f"{array.name} is accumulated over {own or 'unknown'} hours, which do not add up to {hours}")
    array = _available(array, own)
    have = pd.Index(array[dim].values)
    ends = have.to_numpy() if ends is None else ends
    places = np.array([have.get_indexer(pd.Index(ends - back * own * HOUR)) for back in range(hours // own)])
    whole = (places >= 0).all(axis=0)
    if not whole.any():
        first = shown(ends[0]) if ends.size else "none"
        raise InputError(
            f"{variable.name}_{hours}hr: no stamp has every {own} h of its window, first {first}; {array.name} has "
            f"{have.size} stamps {shown(have[0].to_numpy())} .. {shown(have[-1].to_numpy())}"
        )
    parts = [array.isel({dim: _positions(row[whole])}).astype(np.float64).assign_coords({dim: ends[whole]}) for row in places]
    total = reduce(_COMBINE[variable.window], parts).astype(np.float32)
    attrs = {key: value for key, value in array.attrs.items() if key != "hours_available"}
    return total.assign_attrs(attrs).rename(f"{variable.name}_{hours}hr")


def _available(array: xr.DataArray, own: int) -> xr.DataArray:
    """The stamps at which windows of `own` hours really end."""
    if "prediction_timedelta" not in array.dims:
        return array
    leads = array["prediction_timedelta"].values
    keep = leads >= own * HOUR
    if "hours_available" in array.attrs:
        keep &= np.isin(leads, [hours * HOUR for hours in np.atleast_1d(array.attrs["hours_available"])])
    elif named_hours(str(array.name)) is None:  # over the step, and forecasts have longer ones later
        keep &= np.diff(leads, prepend=leads[0] - own * HOUR) == own * HOUR
    return array.isel(prediction_timedelta=keep)


def _positions(row: np.ndarray) -> slice | np.ndarray:
    """Neighbours as a slice: cheap for dask."""
    return slice(int(row[0]), int(row[-1]) + 1) if (np.diff(row) == 1).all() else row


def _known(array: xr.DataArray) -> Variable:
    variable = lookup(str(array.name))
    if variable is None or not variable.accumulated:
        raise InputError(f"{array.name} is not accumulated over time")
    return variable


def _line(data: xr.Dataset, name: str, source: xr.DataArray, made: xr.DataArray) -> str:
    own, hours, dim = own_hours(source) or 0, named_hours(name) or 0, _axis(made)
    how = "the same window" if own == hours else f"{_known(source).window} of {hours // own} windows of {own} h"
    absent = [shown(lead) for lead in np.setdiff1d(data[dim].values, made[dim].values)] if dim != "time" else []
    missing = f"; no whole window at {', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}" if absent else ""
    return f"{source.name} -> {name} ({how} that end in it{missing})"
