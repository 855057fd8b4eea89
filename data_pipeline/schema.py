"""The data contract at every border of plumecast: dims, names, units and order, and `validate` that holds it.

Analysis:  (time, [level], latitude, longitude), static fields (latitude, longitude)
Forecast:  (time, prediction_timedelta, number, [level], latitude, longitude), `time` is the initialisation

Names are those of WeatherBench 2, units those of ERA5 (see `data_pipeline.variables`); latitude ascends; a global grid runs from
longitude 0 eastward, a regional one stays as one piece; level is in hPa, ascending; fields are float32.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.variables import lookup

Kind = Literal["analysis", "forecast"]

ANALYSIS_DIMS = ("time", "level", "latitude", "longitude")
FORECAST_DIMS = ("time", "prediction_timedelta", "number", "level", "latitude", "longitude")
DIMS: dict[str, tuple[str, ...]] = {"analysis": ANALYSIS_DIMS, "forecast": FORECAST_DIMS}


class SchemaError(InputError):
    """Data do not satisfy the schema; the message lists every fault found."""


@dataclass(frozen=True, order=True)
class Channel:
    """One 2-d field of the state: a variable, and its pressure level in hPa if it has one."""

    name: str
    level: int | None = None

    @property
    def label(self) -> str:
        """`geopotential_500` or `2m_temperature`."""
        return self.name if self.level is None else f"{self.name}_{self.level}"

    @classmethod
    def parse(cls, label: str) -> Channel:
        """The inverse of `label`: digits after the last underscore are a level."""
        match = re.fullmatch(r"(.+)_(\d+)", label)
        return cls(match[1], int(match[2])) if match else cls(label)

    def __str__(self) -> str:
        return self.label


def channels_of(data: xr.Dataset) -> list[Channel]:
    """Every field of a dataset in the schema, static ones left out, in the order of the variables and levels.

    Where variables of one store have different levels, `levels_available` (attribute) names those that a variable really has.
    """
    found: list[Channel] = []
    for name, array in data.data_vars.items():
        if "time" not in array.dims:
            continue
        levels = levels_of(array) if "level" in array.dims else [None]
        found += [Channel(str(name), level) for level in levels]
    return found


def levels_by_name(channels: Sequence[Channel]) -> dict[str, list[int]]:
    """{variable: its levels, ascending; empty for a surface variable}, in the order of the channels."""
    names: dict[str, list[int]] = {}
    for channel in channels:
        own = names.setdefault(channel.name, [])
        if channel.level is not None:
            own.append(channel.level)
    return {name: sorted(levels) for name, levels in names.items()}


def levels_of(array: xr.DataArray) -> list[int]:
    """The levels (hPa) at which a variable has data: those of its attribute `levels_available`, else of its `level` dim."""
    available = array.attrs.get("levels_available")
    return [int(level) for level in np.atleast_1d(array["level"].values if available is None else available)]


def select(data: xr.Dataset, channel: Channel) -> xr.DataArray:
    """One channel of a dataset in the schema, without the level dim. Raises InputError naming what is there."""
    if channel.name not in data:
        raise InputError(f"variable {channel.name!r} is not in the data; found {sorted(map(str, data.data_vars))}")
    array = data[channel.name]
    if channel.level is None:
        if "level" in array.dims:
            raise InputError(f"{channel.name} has levels {levels_of(array)}; name one, as {channel.name}_{levels_of(array)[0]}")
        return array
    if "level" not in array.dims:
        raise InputError(f"{channel.name} has no level dim; asked for {channel.level} hPa")
    if channel.level not in levels_of(array) or channel.level not in array["level"].values:
        raise InputError(f"{channel.name} has levels {levels_of(array)} hPa; {channel.level} is not there")
    return array.sel(level=channel.level, drop=True)


def stack(data: xr.Dataset, channels: Sequence[Channel]) -> xr.DataArray:
    """Fields as one array with a `channel` dim before latitude: (..., channel, latitude, longitude), lazily."""
    arrays = [select(data, channel) for channel in channels]
    index = pd.Index([channel.label for channel in channels], name="channel")
    joined = xr.concat(arrays, dim=index, coords="minimal", compat="override", join="exact")
    return joined.transpose(..., "channel", "latitude", "longitude").rename("fields")


def unstack(fields: xr.DataArray) -> xr.Dataset:
    """The inverse of `stack`: one variable a name, levels gathered and ascending, dims in the schema's order."""
    by_name: dict[str, list[Channel]] = {}
    for label in fields["channel"].values:
        channel = Channel.parse(str(label))
        by_name.setdefault(channel.name, []).append(channel)
    variables: dict[str, xr.DataArray] = {}
    for name, channels in by_name.items():
        if channels == [Channel(name)]:
            variables[name] = fields.sel(channel=name, drop=True)
            continue
        channels = sorted(channels, key=lambda channel: channel.level or 0)
        picked = fields.sel(channel=[channel.label for channel in channels])
        levels = [channel.level for channel in channels]
        variables[name] = picked.assign_coords(channel=levels).rename(channel="level")
    order = [dim for dim in FORECAST_DIMS if dim in fields.dims or dim == "level"]
    ordered = {name: array.transpose(*[dim for dim in order if dim in array.dims]) for name, array in variables.items()}
    return xr.Dataset({name: array.rename(name) for name, array in ordered.items()})


def validate(data: xr.Dataset, kind: Kind = "analysis") -> None:
    """Raise SchemaError, listing every fault, unless `data` satisfies the schema. Looks at metadata only."""
    faults = _dim_faults(data, kind) + _coord_faults(data, kind)
    faults += [fault for name, array in data.data_vars.items() for fault in _variable_faults(str(name), array)]
    if faults:
        raise SchemaError(f"not a valid {kind} dataset:\n" + "\n".join(f"  - {fault}" for fault in faults))


def _dim_faults(data: xr.Dataset, kind: Kind) -> list[str]:
    allowed = DIMS[kind]
    required = [dim for dim in allowed if dim != "level"]
    faults = [f"dim {dim!r} is missing (found {list(map(str, data.dims))})" for dim in required if dim not in data.dims]
    for name, array in data.data_vars.items():
        dims = tuple(map(str, array.dims))
        if set(dims) == {"latitude", "longitude"}:
            expected: tuple[str, ...] = ("latitude", "longitude")
        else:
            expected = tuple(dim for dim in allowed if dim in dims or dim != "level")
        if dims != expected:
            faults.append(f"{name}: dims {dims}, expected {expected}")
    return faults


def _coord_faults(data: xr.Dataset, kind: Kind) -> list[str]:
    faults: list[str] = []
    absent = [dim for dim in DIMS[kind] if dim in data.dims and dim not in data.coords]
    faults += [f"dim {dim!r} has no coordinate" for dim in absent]
    if "latitude" in data.coords and "longitude" in data.coords:
        try:
            grid = Grid.of(data)
        except InputError as error:
            faults.append(str(error))
        else:
            if grid.is_global and not 0 <= grid.longitude[0] < 360:
                faults.append(f"longitude starts at {grid.longitude[0]:g}; a global grid runs from 0 eastward")
    if "time" in data.coords and data["time"].ndim == 1:
        faults += _ascending_faults("time", data["time"], "M")
    if "prediction_timedelta" in data.coords and data["prediction_timedelta"].ndim == 1:
        faults += _ascending_faults("prediction_timedelta", data["prediction_timedelta"], "m")
    if "level" in data.coords and data["level"].ndim == 1:
        levels = data["level"].values
        if (np.diff(levels) <= 0).any() or (levels <= 0).any() or levels.max() > 1100:
            faults.append(f"level {levels.tolist()}: expected hPa, ascending")
    return faults


def _ascending_faults(name: str, coord: xr.DataArray, kind: str) -> list[str]:
    if coord.dtype.kind != kind:
        wanted = "dates" if kind == "M" else "time differences"
        return [f"{name} has dtype {coord.dtype}; expected {wanted}"]
    if np.isnat(coord.values).any():
        return [f"{name} holds missing values"]
    if (np.diff(coord.values).astype("int64") <= 0).any():
        return [f"{name} is not strictly ascending (repeated or unordered stamps)"]
    return []


def _variable_faults(name: str, array: xr.DataArray) -> list[str]:
    faults = []
    if array.dtype.kind != "f":
        faults.append(f"{name}: dtype {array.dtype}, expected float32")
    known = lookup(name)
    units = array.attrs.get("units")
    if known is None:
        faults.append(f"{name}: not a name of the schema; map it at the source (data_pipeline/variables.py)")
    elif units is None:
        faults.append(f"{name}: no units; expected {known.units!r}")
    elif units != known.units:
        faults.append(f"{name}: units {units!r}, expected {known.units!r}")
    return faults
