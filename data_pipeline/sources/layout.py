"""Dims and coordinates of anybody's files, mapped to those of the schema, lazily.

Coordinates are recognised by name first (ERA5, WeatherBench 2 and X, cfgrib, CDS, earth2studio, climpred, anemoi), then by CF
attributes. What cannot be told apart is refused. Every change is a line in the log that callers show.
"""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from data_pipeline.errors import InputError

# Roles of coordinates and the names they go by. `init`, `lead`, `valid` and `time` become time and prediction_timedelta later.
ROLES: dict[str, tuple[str, ...]] = {
    "latitude": ("latitude", "lat", "latitudes", "y", "nav_lat"),
    "longitude": ("longitude", "lon", "longitudes", "x", "nav_lon"),
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
CHANNEL_DIMS = ("variable", "variables", "channel")
_STANDARD_NAMES = {
    "latitude": "latitude", "longitude": "longitude", "air_pressure": "level", "realization": "number",
    "forecast_reference_time": "init", "forecast_period": "lead", "time": "time",
}  # fmt: skip
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
    spare = [name for role, candidates in found.items() for name in candidates if name != names[role]]
    renamed = raw.drop_vars([name for name in spare if name in raw.coords])
    renamed = renamed.rename({name: role for role, name in names.items() if name != role})
    return _separable(_unflattened(renamed)), names


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
            fields = {name: raw[holder].isel({dim: i}, drop=True).drop_attrs() for i, name in enumerate(names)}
            raw = raw.drop_vars(holder).assign(fields)
    return raw


def _role(name: str, raw: xr.Dataset) -> str | None:
    for role, aliases in ROLES.items():
        if name in aliases:
            return role
    attrs = raw[name].attrs if name in raw.variables else {}
    return _STANDARD_NAMES.get(str(attrs.get("standard_name")))


def _unflattened(data: xr.Dataset) -> xr.Dataset:
    """A flat list of points (latitude and longitude along one other dim) as a grid, if it is one."""
    if "latitude" not in data.coords or "longitude" not in data.coords:
        return data
    dims = data["latitude"].dims
    if data["latitude"].ndim != 1 or dims != data["longitude"].dims or dims[0] in ("latitude", "longitude"):
        return data
    cells = dims[0]
    latitude, row = np.unique(data["latitude"].values, return_inverse=True)
    longitude, column = np.unique(data["longitude"].values, return_inverse=True)
    place = row * longitude.size + column
    order = np.argsort(place)
    if place.size != latitude.size * longitude.size or not np.array_equal(place[order], np.arange(place.size)):
        raise InputError(f"{place.size} points along {cells!r} are not a latitude-longitude grid; regrid them to one first")
    shape = (latitude.size, longitude.size)
    coords: dict[str, object] = {str(name): coord for name, coord in data.coords.items() if cells not in coord.dims}
    variables: dict[str, object] = {}
    for name, array in data.data_vars.items():
        if cells in array.dims:
            last = array.isel({cells: order}).transpose(..., cells)
            variables[str(name)] = (
                (*last.dims[:-1], "latitude", "longitude"), last.data.reshape(*last.shape[:-1], *shape), last.attrs,
            )  # fmt: skip
        else:
            variables[str(name)] = array
    return xr.Dataset(variables, {**coords, "latitude": latitude, "longitude": longitude}, data.attrs)


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
    return data


def chunked(data: xr.Dataset) -> xr.Dataset:
    """Lazy arrays as dask: whole fields and levels, leading dims cut to about 64 MB, aligned with the stored chunks."""
    arrays = {}
    for name, array in data.data_vars.items():
        if array.chunks is not None:
            arrays[name] = array
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
        arrays[name] = array.chunk(sizes)
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
