"""Variables made from others before scoring: wind speed, and precipitation over longer times, of each member by itself."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.sources.accumulation import accumulate

WINDS = {
    "wind_speed": ("u_component_of_wind", "v_component_of_wind"),
    "10m_wind_speed": ("10m_u_component_of_wind", "10m_v_component_of_wind"),
    "100m_wind_speed": ("100m_u_component_of_wind", "100m_v_component_of_wind"),
}
ACCUMULATED = re.compile(r"(.+)_(\d+)hr")


def derive(data: xr.Dataset, names: Sequence[str]) -> xr.Dataset:
    """`data` (schema "forecast" or "analysis") with further variables, lazily.

    wind_speed, 10m_wind_speed, 100m_wind_speed: the length of the wind vector. NAME_24hr and the like: the sum of the NAME_12hr
    or NAME_6hr ... that end within the period, missing where one of them is. The sum or speed of an ensemble mean is another
    thing: hence before scoring. Raises InputError if the parts are not there.
    """
    found = {name: _wind(data, name) if name in WINDS else _accumulated(data, name) for name in names if name not in data}
    return data.assign(found)


def _wind(data: xr.Dataset, name: str) -> xr.DataArray:
    east, north = WINDS[name]
    absent = [part for part in (east, north) if part not in data]
    if absent:
        raise InputError(f"{name} needs {' and '.join(absent)}; the data have {', '.join(map(str, data.data_vars))}")
    speed = xr.apply_ufunc(np.hypot, data[east], data[north], dask="parallelized", output_dtypes=[data[east].dtype])
    levels = {key: value for key, value in data[east].attrs.items() if key == "levels_available"}
    return speed.assign_attrs(units=data[east].attrs.get("units", "m s-1"), long_name=name.replace("_", " "), **levels)


def _accumulated(data: xr.Dataset, name: str) -> xr.DataArray:
    match = ACCUMULATED.fullmatch(name)
    if match is None:
        raise InputError(f"{name!r} cannot be derived; known are {', '.join(WINDS)} and sums such as total_precipitation_24hr")
    base, hours = match[1], int(match[2])
    parts = {int(m[2]): key for key in map(str, data.data_vars) if (m := ACCUMULATED.fullmatch(key)) and m[1] == base}
    shorter = [step for step in sorted(parts, reverse=True) if hours > step and hours % step == 0]
    if not shorter:
        raise InputError(f"{name} needs {base} over a part of {hours} hours; the data have {', '.join(parts.values()) or 'none'}")
    return accumulate(data[parts[shorter[0]]], hours)
