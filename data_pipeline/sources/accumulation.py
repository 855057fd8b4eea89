"""What is accumulated over time, over the window that is wanted: since the start of a run or day to steps, steps to windows.

In the schema an accumulated variable holds what fell (or shone, or was the highest) over the step that ends at the stamp, or over
the hours in its name: `total_precipitation_12hr`. All stays lazy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
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
    forecast = "prediction_timedelta" in data.dims
    kept = data["time"].values if times is None or forecast else np.intersect1d(np.asarray(times, "M8[ns]"), data["time"].values)
    made = {name: _windows(source, named_hours(name) or 0, None if forecast else kept) for name, source in sources.items()}
    lines = [_line(data, name, sources[name], array) for name, array in made.items()]
    if forecast:
        leads = data["prediction_timedelta"].values
        return noted(data.assign({name: reindexed(array, "prediction_timedelta", leads) for name, array in made.items()}), lines)
    asked = kept.size
    for array in made.values():
        kept = np.intersect1d(kept, array["time"].values)
    if kept.size < asked:
        lines.append(f"time: {asked - kept.size} stamps left out, their windows are not whole; kept {kept.size}")
    if times is not None or kept.size < asked:
        data = data.sel(time=kept)
    return noted(data.assign({name: array.sel(time=kept) for name, array in made.items()}), lines)


def accumulate(array: xr.DataArray, hours: int) -> xr.DataArray:
    """An accumulated variable over the last `hours` at each of its stamps, NaN where a stamp of the window is not there.

    array: (time, ...) of an analysis or (time, prediction_timedelta, ...) of a forecast, accumulated over the hours in its name,
    or over its step. Sums, or the highest or lowest value, as the variable is. Raises InputError if `hours` are not a multiple
    of the windows of `array`, or if no stamp has a whole window.
    """
    dim = _axis(array)
    return reindexed(_windows(array, hours), dim, array[dim].values)


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
