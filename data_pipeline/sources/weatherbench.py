"""WeatherBench 2, ARCO-ERA5 and archives like them: zarr stores read where they lie, in the schema, lazily.

Names of fields, dims and units are mapped as those of files are (`sources.fields`); dims may come in any order, latitude from
either side. What is not asked for is not read: fields, levels, stamps and region are chosen before blocks are made, and a block
is one stored chunk, or what is wanted of it. How reads are tried again, and what is said of a chunk that is not there, is the
matter of `sources.remote`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline.errors import InputError, NotReadyError
from data_pipeline.region import TOLERANCE, cut
from data_pipeline.schema import Channel, Kind
from data_pipeline.sources import axes, layout, remote
from data_pipeline.sources.accumulation import HOUR, named_hours, totals
from data_pipeline.sources.blocks import as_blocks
from data_pipeline.sources.fields import Hints, read
from data_pipeline.sources.files import as_analysis, as_forecast
from data_pipeline.sources.join import noted, shown
from data_pipeline.variables import VARIABLES, lookup

Box = tuple[float, float, float, float]
Fields = dict[str, list[xr.DataArray]]
STATIC = tuple(name for name, variable in VARIABLES.items() if variable.static)
UNSTATED = {"relative_humidity": "1"}  # WeatherBench 2 derives it as a fraction and states no units


def open_archive(
    url: str,
    channels: Sequence[Channel],
    *,
    start: str | None = None,
    stop: str | None = None,
    region: Box | None = None,
    storage: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Analyses of an archive: (time, [level], latitude, longitude), static fields (latitude, longitude), float32, as dask.

    url: of a zarr store (format 2 or 3) at gs://, s3://, http(s):// or in a folder. start, stop: ISO stamps, inclusive. region:
    (south, north, west, east) in degrees, edges included. storage: options of the access, see `remote.connect`. Static fields
    come along where the store has them. `total_precipitation_12hr` and the like are summed from windows of fewer hours where only
    those are there; `total_precipitation` of an hourly archive is that of one hour. attrs["mapping"] says what was done.
    Computing a block raises InputError for a chunk that the store lacks or that does not decode, NotReadyError where the server
    gives up, both with field and stamps.

    Raises InputError for a store, field, level, period or region that is not there; NotReadyError for stamps after the last day
    that the archive states as valid (ARCO-ERA5 keeps room for days to come, which reads as missing).
    """
    store = remote.connect(url, storage)
    raw = remote.open_raw(store)
    dims, there, left_out = _survey(raw, "analysis", store.url)
    name = _axis(raw, dims, ("valid", "time"), store.url)
    stamps = _stamps(raw, name, store.url)
    hourly = stamps.size > 1 and np.diff(stamps[:2])[0] == HOUR
    wanted, reach = _needed(channels, there, left_out, hourly=hourly, url=store.url)
    first, last, line = _valid(raw.attrs, stamps, stop, store.url)
    begin, end = _stamp("start", start, first), _stamp("stop", stop, last)
    if "valid_time_start" in raw.attrs and begin < first:
        raise InputError(f"{store.url} is valid from {shown(first)} on; asked from {shown(begin)}")
    times = _between(stamps, begin, end, store.url)
    places = {name: _run(stamps, max(begin - reach * HOUR, first), end), **_places(raw, dims, channels, region, store.url)}
    found = read(as_blocks(raw[wanted], places, name), "analysis", _hints(raw), store.url)
    data = _totalled(as_analysis([found], accumulation="step"), channels, times, region)
    return noted(data, [line]) if line else data


def open_archive_forecast(
    url: str,
    channels: Sequence[Channel],
    *,
    start: str | None = None,
    stop: str | None = None,
    region: Box | None = None,
    storage: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Forecasts of an archive: (time, prediction_timedelta, number, [level], latitude, longitude), as dask, with `valid_time`.

    start, stop: of the initialisations. Members may be called number, realization, sample ...; a run without members is member 0.
    Otherwise as `open_archive`, without static fields. A block is one stored chunk, often every member at one lead.
    """
    store = remote.connect(url, storage)
    raw = remote.open_raw(store)
    dims, there, left_out = _survey(raw, "forecast", store.url)
    wanted, _ = _needed(channels, there, left_out, hourly=False, static=(), url=store.url)
    name = _axis(raw, dims, ("init", "time"), store.url)
    stamps = _stamps(raw, name, store.url)
    begin, end = _stamp("start", start, stamps[0]), _stamp("stop", stop, stamps[-1])
    _between(stamps, begin, end, store.url)
    places = {name: _run(stamps, begin, end), **_places(raw, dims, channels, region, store.url)}
    found = read(as_blocks(raw[wanted], places, name), "forecast", _hints(raw), store.url)
    return _totalled(as_forecast([found], accumulation="step"), channels, None, region)


def identity(url: str, *, storage: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What identifies an archive in a recipe: its address, and a hash of what its metadata say of the fields.

    Days added to the archive do not change it. Raises as `remote.connect`.
    """
    store = remote.connect(url, storage)
    return {"url": store.url, "metadata": remote.fingerprint(store)}


def _survey(raw: xr.Dataset, kind: Kind, url: str) -> tuple[dict[str, str], Fields, dict[str, str]]:
    """{role: name of the coordinate}; fields of the table at their first stamp, nothing of them read; what is left out."""
    try:
        _, dims = layout.rename_roles(raw)
    except InputError as error:
        raise InputError(f"{url}: {error}") from None
    whole = [dims.get(role) for role in ("latitude", "longitude", "level")]
    found = read(raw.isel({dim: slice(0, 1) for dim in raw.dims if dim not in whole}), kind, _hints(raw), url)
    there: Fields = {}
    for array in found.fields:
        if array.attrs["source_name"] in raw.data_vars:
            there.setdefault(str(array.name), []).append(array)
    # a field under the name of the table goes before one that was recognised
    exact = {name: [array for array in arrays if array.attrs["source_name"] == name] for name, arrays in there.items()}
    return dims, {name: exact[name] or arrays for name, arrays in there.items()}, found.left_out


def _hints(raw: xr.Dataset) -> Hints:
    return Hints(units={name: units for name, units in UNSTATED.items() if name in raw and "units" not in raw[name].attrs})


def _axis(raw: xr.Dataset, dims: Mapping[str, str], roles: Sequence[str], url: str) -> str:
    for role in roles:
        if dims.get(role) in raw.dims:
            return dims[role]
    raise InputError(f"{url} has no axis of time; its dims are {', '.join(map(str, raw.dims))}")


def _stamps(raw: xr.Dataset, name: str, url: str) -> np.ndarray:
    stamps = axes.stamps(raw[name], name)
    if not stamps.size or np.isnat(stamps).any() or (np.diff(stamps) <= np.timedelta64(0)).any():
        raise InputError(f"{url}: {name} is empty, holds missing stamps, or does not ascend; it cannot be searched")
    return stamps


def _needed(
    channels: Sequence[Channel],
    there: Fields,
    left_out: Mapping[str, str],
    *,
    hourly: bool,
    static: Sequence[str] = STATIC,
    url: str,
) -> tuple[list[str], int]:
    """Names in the store of the fields to open, and the hours before a stamp that sums reach back. Raises InputError."""
    names, absent, reach = dict.fromkeys(static), [], 0
    for channel in channels:
        if channel.name in there:
            names[channel.name] = None
            absent += [] if any(_has(array, channel) for array in there[channel.name]) else [channel]
        elif parts := _parts(channel.name, there, hourly):
            names |= dict.fromkeys(parts)
            reach = max(reach, named_hours(channel.name) or 0)
        else:
            absent.append(channel)
    if absent:
        lines = [f"\n  - {channel.name}: left out, {left_out[channel.name]}" for channel in absent if channel.name in left_out]
        raise InputError(f"{url} has no {', '.join(map(str, absent))}; it has {_listed(there)}" + "".join(lines))
    return [array.attrs["source_name"] for name in names for array in there.get(name, [])], reach


def _has(array: xr.DataArray, channel: Channel) -> bool:
    return channel.level in array["level"].values if "level" in array.dims else channel.level is None


def _parts(name: str, there: Fields, hourly: bool) -> list[str]:
    """Accumulated fields over fewer hours that add up to those of `name`; without hours in its name, one of an hourly archive."""
    hours, variable = named_hours(name), lookup(name)
    if not hours or variable is None:
        return []
    own = {other: named_hours(other) or int(hourly) for other in there if lookup(other) is variable}
    return [other for other, part in own.items() if part and hours % part == 0]


def _listed(there: Fields) -> str:
    labels = [
        name + "".join(f" {array['level'].values.tolist()}" for array in arrays if "level" in array.dims)
        for name, arrays in sorted(there.items())
    ]
    return ", ".join(labels) or "no field of the table"


def _valid(attrs: Mapping[str, Any], stamps: np.ndarray, stop: str | None, url: str) -> tuple[np.datetime64, np.datetime64, str]:
    """First and last stamp with data, and a line on preliminary ones. Raises NotReadyError for a `stop` after the last."""
    first, last = stamps[0], stamps[-1]
    if attrs.get("valid_time_start"):
        first = stamps[stamps >= _day("valid_time_start", attrs, url)].min(initial=last)
    stated = {key: _day(key, attrs, url) + 24 * HOUR for key in ("valid_time_stop", "valid_time_stop_era5t") if attrs.get(key)}
    if not stated:
        return first, last, ""
    key = max(stated, key=stated.__getitem__)
    last = stamps[stamps < stated[key]].max(initial=first)
    end = _stamp("stop", stop, last)
    if end >= stated[key]:
        raise NotReadyError(
            f"{url} is valid to {attrs[key]} ({key}), with stamps to {shown(last)}; asked to {shown(end)}. "
            "Wait for it, or choose an earlier stop"
        )
    final = stated.get("valid_time_stop", stated[key])
    return first, last, f"stamps after {attrs.get('valid_time_stop')}: preliminary ERA5T" if end >= final else ""


def _day(key: str, attrs: Mapping[str, Any], url: str) -> np.datetime64:
    try:
        return pd.Timestamp(str(attrs[key])).tz_localize(None).normalize().to_datetime64().astype("M8[ns]")
    except ValueError:
        raise InputError(f"{url} says {key} {attrs[key]!r}, which is no day: its period cannot be told") from None


def _stamp(key: str, text: str | None, otherwise: np.datetime64) -> np.datetime64:
    try:
        return otherwise if text is None else pd.Timestamp(text).to_datetime64().astype("M8[ns]")
    except ValueError:
        raise InputError(f"{key} {text!r}: expected an ISO stamp, for example 2001-01-01T12") from None


def _run(stamps: np.ndarray, begin: np.datetime64, end: np.datetime64) -> np.ndarray:
    return np.flatnonzero((stamps >= begin) & (stamps <= end))


def _between(stamps: np.ndarray, begin: np.datetime64, end: np.datetime64, url: str) -> np.ndarray:
    inside = stamps[_run(stamps, begin, end)]
    if not inside.size:
        span = f"{shown(stamps[0])} .. {shown(stamps[-1])}"
        raise InputError(f"{url} has no stamp in {shown(begin)} .. {shown(end)}; its axis has {span}")
    return inside


def _places(
    raw: xr.Dataset, dims: Mapping[str, str], channels: Sequence[Channel], region: Box | None, url: str
) -> dict[str, np.ndarray]:
    """{dim of the store: positions wanted} of levels, and of latitude and longitude inside the region."""
    places: dict[str, np.ndarray] = {}
    if dims.get("level") in raw.dims:
        stored = raw[dims["level"]]
        axis = xr.Dataset(coords={"level": ("level", stored.values, stored.attrs)})
        pressures = axes.pressure_levels(axis, dims["level"], [])["level"].values  # ascending
        order = np.argsort(stored.values)  # of pressures, in whatever units
        wanted = [channel.level for channel in channels if channel.level is not None]
        places[dims["level"]] = np.sort(order[np.isin(pressures, wanted)])
    if region is None:
        return places
    south, north, west, east = region
    latitude, longitude = (raw[dims[role]].values for role in ("latitude", "longitude"))
    rows = np.flatnonzero((latitude >= south - TOLERANCE) & (latitude <= north + TOLERANCE))
    columns = np.flatnonzero(np.mod(longitude - west + TOLERANCE, 360.0) <= east - west + 2 * TOLERANCE)
    if rows.size < 2 or columns.size < 2:
        found = f"{rows.size} latitudes of {latitude[0]:g} .. {latitude[-1]:g}, {columns.size} longitudes of {longitude[0]:g} .. "
        raise InputError(
            f"{url}: the region {[*region]} (south, north, west, east) holds {found}{longitude[-1]:g}; it takes two of each"
        )
    return {**places, dims["latitude"]: rows, dims["longitude"]: columns}


def _totalled(data: xr.Dataset, channels: Sequence[Channel], times: np.ndarray | None, region: Box | None) -> xr.Dataset:
    """What was asked for: sums made, what only they needed dropped, the region in one piece."""
    data = totals(data, channels, times=times)
    names = dict.fromkeys([*(channel.name for channel in channels), *STATIC])
    data = data[[name for name in names if name in data]]
    return data if region is None else cut(data, region)
