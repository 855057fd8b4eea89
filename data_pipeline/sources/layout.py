"""Dims and coordinates of anybody's files, mapped to those of the schema, lazily.

Coordinates are recognised by name first (ERA5, WeatherBench 2 and X, cfgrib, CDS, earth2studio, climpred, verif, anemoi), then by
CF attributes: standard_name, units, axis. What cannot be told apart is refused. Every change is a line in the log that callers
show.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.schema import Kind
from data_pipeline.sources.axes import PRESSURE_UNITS
from data_pipeline.sources.points import unflattened

# Roles of coordinates and the names they go by. `init`, `lead`, `valid` and `time` become time and prediction_timedelta later.
ROLES: dict[str, tuple[str, ...]] = {
    "latitude": ("latitude", "lat", "latitudes", "nav_lat"),
    "longitude": ("longitude", "lon", "longitudes", "nav_lon"),
    "level": (
        "level", "lev", "levels", "plev", "pressure_level", "isobaricInhPa", "isobaricInPa", "isobaric", "pressure",
        "air_pressure",
    ),
    "number": ("number", "member", "realization", "ensemble", "sample", "ens", "ensemble_member", "idx"),
    "init": ("init_time", "forecast_reference_time", "reference_time", "init", "initial_time", "initialization_time"),
    "lead": ("prediction_timedelta", "lead_time", "step", "fhour", "lead", "leadtime", "forecast_period", "forecast_hour"),
    "valid": ("valid_time",),
    "time": ("time", "dates", "date"),
}  # fmt: skip
_WEAK_NAMES = {"y": "latitude", "x": "longitude"}  # names that attributes overrule
CHANNEL_DIMS = ("variable", "variables", "channel")
_STANDARD_NAMES = {
    "latitude": "latitude", "longitude": "longitude", "air_pressure": "level", "realization": "number",
    "forecast_reference_time": "init", "forecast_period": "lead", "time": "time",
}  # fmt: skip
_AXES = {"Y": "latitude", "X": "longitude", "T": "time", "E": "number"}
_OTHER_GRIDS = ("grid_latitude", "grid_longitude", "projection_x_coordinate", "projection_y_coordinate")
_HEIGHTS = ("heightAboveGround", "height", "height_above_ground")
BLOCK_BYTES = 64 * 2**20  # of float32 in one dask chunk: leading dims are cut to it, fields and levels stay whole


def rename_roles(raw: xr.Dataset) -> tuple[xr.Dataset, dict[str, str]]:
    """`raw` with its coordinates and dims named by role, and {role: source name}.

    Raises InputError if two dims could play one role, or if latitude and longitude are missing or not axes of a grid.
    """
    raw = _split_channels(_promoted(raw))
    found: dict[str, list[str]] = {}
    for name in [*map(str, raw.coords), *(str(dim) for dim in raw.dims if dim not in raw.coords)]:
        role = _role(name, raw)
        if role:
            found.setdefault(role, []).append(name)
    names: dict[str, str] = {}
    for role, candidates in found.items():
        dims = [name for name in candidates if name in raw.dims]
        if len(dims) > 1:
            raise InputError(f"dims {', '.join(dims)} could each be {role}; rename or drop one")
        names[role] = (dims or candidates)[0]
    _check_projection(raw, names)
    spare = [name for role, candidates in found.items() for name in candidates if name != names[role]]
    renamed = raw.drop_vars([name for name in spare if name in raw.coords])
    renamed = renamed.rename({name: role for role, name in names.items() if name != role})
    renamed, cells = unflattened(renamed)
    reference = _reference_date(renamed) if cells == "values" else None
    if reference is not None and not {"init", "lead"} & set(names):
        renamed = renamed.assign_coords(init=reference[0])
        names["init"] = f"its reference date ({reference[1]})"
    return _separable(renamed), names


def renamings(names: Mapping[str, str], kind: Kind) -> str:
    """`lat -> latitude, lead_time -> prediction_timedelta`: what `rename_roles` found, as far as names differ."""
    final = {role: role for role in ("latitude", "longitude", "level", "number")}
    if kind == "forecast":
        final = {"init" if "init" in names else "time": "time", "lead": "prediction_timedelta", **final}
    elif "valid" not in names:
        final = {"time": "time", **final}
    changed = {
        names[role]: name for role, name in final.items() if role in names and names[role] != name and " " not in names[role]
    }
    return ", ".join(f"{old} -> {new}" for old, new in changed.items())


def _check_projection(raw: xr.Dataset, names: Mapping[str, str]) -> None:
    mappings = {str(array.attrs.get("grid_mapping_name")): name for name, array in raw.variables.items()}
    other = [kind for kind in mappings if kind not in ("None", "latitude_longitude")]
    standard = [str(raw[names[axis]].attrs.get("standard_name")) for axis in ("latitude", "longitude") if axis in names]
    if other or any(name in _OTHER_GRIDS for name in standard):
        what = f"grid mapping {other[0]}" if other else f"coordinates are {' and '.join(standard)}"
        raise InputError(f"{what}: a rotated or projected grid; regrid it first, with its winds turned to the east and the north")


def _reference_date(data: xr.Dataset) -> tuple[np.datetime64, str] | None:
    """The date that anemoi-inference counts the seconds of a run from, its initialisation: at most a step before the first."""
    units = str(data["time"].encoding.get("units", "")) if "time" in data.coords else ""
    match = re.fullmatch(r"seconds since (\d{4}-\d{2}-\d{2})[T ]?([\d:.]*)", units)
    if not match or data["time"].dtype.kind != "M" or data["time"].ndim != 1:
        return None
    times = data["time"].values
    reference = np.datetime64(f"{match[1]}T{match[2] or '00:00'}").astype(times.dtype)
    step = np.diff(times).min() if times.size > 1 else np.timedelta64(1, "D")
    return (reference, units) if np.timedelta64(0) <= times.min() - reference <= step else None


def _promoted(raw: xr.Dataset) -> xr.Dataset:
    """Coordinates that a file without CF attributes holds as plain variables."""
    places = {alias for role, aliases in ROLES.items() if role != "level" for alias in aliases}
    plain = [name for name, array in raw.data_vars.items() if name in places and array.ndim <= 2]
    raw = raw.set_coords(plain)
    dates = {str(name): raw[name] for name in plain if name in ROLES["time"] and raw[name].ndim == 1}
    for name, coord in dates.items():
        dim = str(coord.dims[0])
        if dim != name and dim not in raw.coords:
            raw = raw.drop_vars(name).assign_coords({dim: (dim, coord.values, coord.attrs)})
    return raw


def _split_channels(raw: xr.Dataset) -> xr.Dataset:
    """One array with a dim of variables (anemoi, earth2studio) as one variable each, named as that dim or `variables` tells."""
    for dim in (name for name in CHANNEL_DIMS if name in raw.dims):
        names = [str(name) for name in (raw[dim].values if dim in raw.coords else raw.attrs.get("variables", []))]
        if len(names) != raw.sizes[dim]:
            raise InputError(f"dim {dim!r} holds {raw.sizes[dim]} variables, their names are not in the file")
        for holder in [str(name) for name, array in raw.data_vars.items() if dim in array.dims and array.ndim > 2]:
            fields = {name: raw[holder].isel({dim: i}, drop=True).drop_attrs(deep=False) for i, name in enumerate(names)}
            raw = raw.drop_vars(holder).assign(fields)
    return raw


def _role(name: str, raw: xr.Dataset) -> str | None:
    for role, aliases in ROLES.items():
        if name in aliases:
            return role
    if name not in raw.variables:
        return _WEAK_NAMES.get(name)
    coord = raw[name]
    by_axis = _role_of_axis(coord) if coord.ndim <= 1 else None
    return _STANDARD_NAMES.get(str(coord.attrs.get("standard_name"))) or by_axis or _WEAK_NAMES.get(name)


def _role_of_axis(coord: xr.DataArray) -> str | None:
    """By units and axis; heights are no levels."""
    units = str(coord.attrs.get("units", ""))
    if re.fullmatch(r"degrees?_?(n|north)", units, re.IGNORECASE):
        return "latitude"
    if re.fullmatch(r"degrees?_?(e|east)", units, re.IGNORECASE):
        return "longitude"
    if units in PRESSURE_UNITS and ("positive" in coord.attrs or coord.attrs.get("axis") == "Z"):
        return "level"
    if coord.dtype.kind == "M" and coord.name in coord.dims:
        return "time"
    return _AXES.get(str(coord.attrs.get("axis")).upper()) if coord.name in coord.dims else None


def _separable(data: xr.Dataset) -> xr.Dataset:
    """Latitude and longitude as 1-d axes, also where a file gives them as 2-d fields that do not vary across."""
    for name in ("latitude", "longitude"):
        if name not in data.coords:
            raise InputError(
                f"no {name} found; coordinates are {sorted(map(str, data.coords))}, dims {sorted(map(str, data.dims))}"
            )
        if str(data[name].attrs.get("units", "")).lower() in ("m", "metre", "meter", "km", "metres", "meters"):
            raise InputError(
                f"{name} is in {data[name].attrs['units']}: a map projection; regrid to latitude and longitude first"
            )
    if data["latitude"].ndim == 2 and data["latitude"].dims == data["longitude"].dims:
        rows, columns = data["latitude"].dims
        latitude, longitude = data["latitude"].values, data["longitude"].values
        if np.ptp(latitude, axis=1).max() > 1e-5 or np.ptp(longitude, axis=0).max() > 1e-5:
            raise InputError("latitude and longitude are 2-d: a rotated or curvilinear grid; regrid it to a regular one first")
        data = data.drop_vars(["latitude", "longitude"]).rename({rows: "latitude", columns: "longitude"})
        data = data.assign_coords(latitude=latitude[:, 0], longitude=longitude[0, :])
    for name in ("latitude", "longitude"):
        if data[name].dims != (name,):
            raise InputError(f"{name} goes along {', '.join(map(str, data[name].dims)) or 'no dim'}, it is no axis of a grid")
    return data


def chunked(data: xr.Dataset) -> xr.Dataset:
    """Lazy arrays as dask: whole fields and levels, leading dims cut to about 64 MB, aligned with the stored chunks."""
    arrays = {}
    for name, array in data.data_vars.items():
        if array.chunks is not None:
            continue
        stored = dict(zip(array.dims, array.encoding.get("chunksizes") or array.shape, strict=False))
        budget = BLOCK_BYTES // 4
        sizes: dict[str, int] = {}
        for dim in sorted(array.dims, key=lambda dim: dim not in ("latitude", "longitude", "level")):
            length = array.sizes[dim]
            if dim in ("latitude", "longitude", "level"):
                sizes[str(dim)] = max(length, 1)
            else:
                block = min(stored[dim], length) if stored[dim] < length else 1
                sizes[str(dim)] = max(1, min(length, max(budget // block, 1) * block))
            budget = max(1, budget // max(sizes[str(dim)], 1))
        arrays[name] = array.variable.chunk(sizes)
    return data.assign(arrays)


def merge_expver(data: xr.Dataset, log: list[str]) -> xr.Dataset:
    """ERA5 and its preliminary form ERA5T as one: a dim `expver` with complementary missing values is merged, a label dropped."""
    if "expver" in data.dims:
        versions = data["expver"].values.tolist()
        merged = data.isel(expver=0, drop=True)
        for i in range(1, len(versions)):
            merged = merged.combine_first(data.isel(expver=i, drop=True))
        log.append(f"expver {versions}: merged, the first where both have data")
        return merged.assign({name: merged[name].assign_attrs(data[name].attrs) for name in merged.data_vars})
    if "expver" in data.coords:
        found = sorted({str(version) for version in np.atleast_1d(data["expver"].values)})
        log.append(f"expver {', '.join(found)}: dropped" + (" (0005 is preliminary ERA5T)" if "0005" in found else ""))
        return data.drop_vars("expver")
    return data


def height_of(array: xr.DataArray) -> float | None:
    """Metres above ground of a variable where the file says so; 0 for the surface."""
    kind = array.attrs.get("GRIB_typeOfLevel")
    for name in _HEIGHTS:
        if name in array.coords and array[name].size == 1 and math.isfinite(float(array[name].values.flat[0])):
            return float(array[name].values.flat[0])
    return 0.0 if kind == "surface" or "surface" in array.coords else None
