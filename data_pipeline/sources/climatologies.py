"""Climatologies by hour and day of year: our own stores, and those of WeatherBench 2 as they lie there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.sources import axes, layout, remote
from data_pipeline.sources.blocks import as_blocks
from data_pipeline.sources.weatherbench import UNSTATED
from data_pipeline.store import is_store, open_store, partial_path
from data_pipeline.units import conversion, to_canonical_units
from data_pipeline.variables import UnknownVariableError, identify, lookup
from data_pipeline.windows import DAYS

DIMS = ("quantile", "hour", "dayofyear", "level", "latitude", "longitude")
SUFFIXES = ("_std", "_quantile", "_seeps_threshold", "_seeps_dry_fraction")


def open_climatology(path: str | Path, *, storage: Mapping[str, Any] | None = None) -> xr.Dataset:
    """A climatology as `climatology.compute` makes it, lazily: hour, dayofyear, [level], latitude, longitude; quantile first.

    path: a store of ours, or a zarr store (format 2 or 3) in WeatherBench 2's form, in a folder or at gs://, s3:// or http(s)://:
    the mean under the plain name, suffixes `_std`, `_quantile`, `_seeps_threshold`, `_seeps_dry_fraction`; longitude or latitude
    first, latitude from either side; names and units of the table of variables. attrs["mapping"] says what was done. storage:
    options of the access, see `remote.connect`. Raises InputError if it is no climatology of every day of the year, NotReadyError
    for a store of ours that is unfinished, and as `remote.connect`.
    """
    ours = "://" not in str(path) and (is_store(path) or partial_path(path).exists())
    data = open_store(path) if ours else _foreign(str(path), storage)
    if not {"hour", "dayofyear"} <= set(data.dims):
        raise InputError(f"{path} is not a climatology (dims {tuple(map(str, data.dims))}); make one: plumecast data climatology")
    hours, days = data["hour"].values, data["dayofyear"].values
    if not np.array_equal(days, np.arange(1, DAYS + 1)) or (np.diff(hours) <= 0).any():
        raise InputError(
            f"{path} has days {days[0]} .. {days[-1]} ({days.size}) and hours {hours.tolist()}; "
            f"expected every day from 1 to {DAYS}, and ascending hours"
        )
    return data


def _foreign(url: str, storage: Mapping[str, Any] | None) -> xr.Dataset:
    source = remote.connect(url, storage)
    raw = remote.open_raw(source)
    if not {"hour", "dayofyear"} <= set(raw.dims):
        return raw
    log: list[str] = []
    try:
        data, names = layout.rename_roles(as_blocks(raw, {}, "dayofyear"))
        if "level" in data.coords:
            data = axes.pressure_levels(data, names["level"], log)
        data = axes.oriented(data, log)
        fields = dict(field for name in map(str, data.data_vars) if (field := _field(name, data[name], log)) is not None)
    except InputError as error:
        raise InputError(f"{source.url}: {error}") from None
    if not fields:
        raise InputError(f"{source.url}: no field of the table of variables; it has {', '.join(map(str, raw.data_vars))}")
    coords = {name: coord.variable for name, coord in data.coords.items() if name in DIMS and coord.ndim == 1}
    years = re.search(r"(\d{4})-(\d{4})", source.url.rpartition("/")[2])
    period = {"period": f"{years[1]}-{years[2]}, by its name"} if years else {}
    return xr.Dataset(fields, coords, {"source": source.url, "mapping": json.dumps(log), **period})


def _field(name: str, array: xr.DataArray, log: list[str]) -> tuple[str, xr.Variable] | None:
    """Its name in the table, with the suffix, and the values in the table's units; None for what is not in the table."""
    if not {"hour", "dayofyear", "latitude", "longitude"} <= set(array.dims) <= set(DIMS):
        return None
    suffix = next((ending for ending in SUFFIXES if name.endswith(ending)), "")
    try:
        known = identify(name.removesuffix(suffix), array.attrs, on_levels="level" in array.dims)
    except UnknownVariableError as reason:
        log.append(f"{name}: left out, {reason}")
        return None
    variable = lookup(known)
    assert variable is not None
    units = str(array.attrs.get("units", UNSTATED.get(known, variable.units)))
    array = array.drop_attrs(deep=False)
    if suffix == "_seeps_dry_fraction":
        array = array.astype(np.float32).assign_attrs(units="1")
    elif suffix == "_std":  # a difference: 0 degrees Celsius of it are 0 kelvin
        factor, _ = conversion(units, variable)
        array = (array if factor == 1 else array * factor).astype(np.float32).assign_attrs(units=variable.units)
    else:
        array = to_canonical_units(array, variable, units)
    if f"{known}{suffix}" != name or units != variable.units:
        log.append(f"{name} [{units}] -> {known}{suffix} [{array.attrs['units']}]")
    return f"{known}{suffix}", array.transpose(*[dim for dim in DIMS if dim in array.dims]).variable
