"""Lists of points: a latitude-longitude grid in any order becomes the grid, anything else is told for what it seems."""

from __future__ import annotations

import numpy as np
import xarray as xr

from data_pipeline.errors import InputError

_STATION_DIMS = ("location", "station", "station_id", "site", "stations", "locations", "nstation", "time")


def unflattened(data: xr.Dataset) -> tuple[xr.Dataset, str | None]:
    """`data` with points (latitude and longitude along one other dim) as a grid, and the name of that dim; lazily.

    Data that are no list of points are returned as they are, with None. Raises InputError if the points are no grid: stations, a
    reduced Gaussian or HEALPix grid, or scattered.
    """
    if "latitude" not in data.coords or "longitude" not in data.coords:
        return data, None
    dims = data["latitude"].dims
    if data["latitude"].ndim != 1 or dims != data["longitude"].dims or dims[0] in ("latitude", "longitude"):
        return data, None
    cells = str(dims[0])
    latitude, row = np.unique(data["latitude"].values, return_inverse=True)
    longitude, column = np.unique(data["longitude"].values, return_inverse=True)
    place = row * longitude.size + column
    order = np.argsort(place)
    if place.size != latitude.size * longitude.size or not np.array_equal(place[order], np.arange(place.size)):
        raise InputError(_what_else(cells, row))
    shape = (latitude.size, longitude.size)
    coords: dict[str, object] = {str(name): coord for name, coord in data.coords.items() if cells not in coord.dims}
    variables: dict[str, object] = {}
    for name, array in data.data_vars.items():
        if cells in array.dims:
            blocks = {dim: -1 if dim == cells else "auto" for dim in array.dims}
            last = array.chunk(blocks).isel({cells: order}).transpose(..., cells)
            variables[str(name)] = (
                (*last.dims[:-1], "latitude", "longitude"), last.data.reshape(*last.shape[:-1], *shape), last.attrs,
            )  # fmt: skip
        else:
            variables[str(name)] = array
    return xr.Dataset(variables, {**coords, "latitude": latitude, "longitude": longitude}, data.attrs), cells


def _what_else(cells: str, row: np.ndarray) -> str:
    """What a list of points seems to be, from the number of points in each of its rows (circles of latitude)."""
    if cells in _STATION_DIMS:
        return (
            f"{row.size} values at stations along {cells!r}, no grid: give gridded forecasts, and the observations as a table of "
            "stations to plumecast verify-stations"
        )
    lengths = np.bincount(row)
    half = lengths.size // 2
    symmetric = np.array_equal(lengths, lengths[::-1])
    if symmetric and not lengths.size % 2 and np.array_equal(lengths[:half], 20 + 4 * np.arange(half)):
        seems = f"the octahedral reduced Gaussian grid O{half}"
    elif symmetric and not lengths.size % 2 and lengths[0] < lengths[half] and (np.diff(lengths[:half]) >= 0).all():
        seems = f"a reduced Gaussian grid of {lengths.size} rows (N{half})"
    elif symmetric and lengths[0] == 4 and row.size == 12 * ((lengths.size + 1) // 4) ** 2:
        seems = f"a HEALPix grid with Nside {(lengths.size + 1) // 4}"
    else:
        seems = "scattered points"
    return (
        f"{row.size} points along {cells!r} are not a latitude-longitude grid, they seem {seems}; regrid them to a regular one "
        "first (for example by earthkit-regrid, or cdo remapbil)"
    )
