"""Regridding between regular grids: conservative (exact overlap areas) and bilinear, lazily, missing values respected.

Both are separable, `Y = Wlat X Wlonᵀ`, with sparse float64 matrices and float64 sums; results have the dtype of the input. On
float64 fields the conservative area integral is kept to 1e-14 relative; float32 output is rounded once (6e-8 a value).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, TypeVar

import numpy as np
import scipy.sparse
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.variables import lookup

Method = Literal["conservative", "bilinear"]
Fields = TypeVar("Fields", xr.Dataset, xr.DataArray)

COVER_TOLERANCE = 1e-6  # of a target cell, or degrees, that a source may fall short by rounding
WIND_PAIRS = (
    ("u_component_of_wind", "v_component_of_wind"),
    ("10m_u_component_of_wind", "10m_v_component_of_wind"),
    ("100m_u_component_of_wind", "100m_v_component_of_wind"),
)
_WINDS = {name for pair in WIND_PAIRS for name in pair}


def regrid(data: Fields, target: Grid, method: Method = "conservative", *, min_valid: float = 0.5) -> Fields:
    """`data` (..., latitude, longitude) of the schema on another grid; other variables and coordinates are kept.

    conservative: each target value is the mean of the source cells weighted by the exact area of overlap on the sphere.
    bilinear: linear in latitude and longitude between points, around the date line and over the poles: there a scalar is the mean
    of the last row, a pair of wind components the mean vector in a Cartesian frame. Nothing is extrapolated. Accumulated water
    and radiation are always regridded conservatively.
    min_valid: least weight of finite source values for a value; below it the result is NaN, above it the mean of the finite ones.
    Raises InputError if the source does not cover the target (with both extents), or if a wind component alone would need a pole.
    """
    if not 0 < min_valid <= 1:
        raise InputError(f"min_valid is {min_valid}; expected above 0, at most 1")
    if isinstance(data, xr.DataArray):
        dataset = data.to_dataset(name=data.name if data.name is not None else "field")
        result = regrid(dataset, target, method, min_valid=min_valid)
        return result[next(iter(result.data_vars))].rename(data.name)
    source = Grid.of(data)
    if source.matches(target):
        return data.assign_coords(target.coords())
    fields = {str(name): array for name, array in data.data_vars.items() if {"latitude", "longitude"} <= set(array.dims)}
    bilinear = {name: array for name, array in fields.items() if method == "bilinear" and not _needs_conservation(name)}
    bilinear, axis = with_pole_rows(bilinear, source, target) if bilinear else (bilinear, source.latitude)
    done = {}
    for name, array in fields.items():
        if name in bilinear:
            latitude, longitude = _point_weights(source, target, axis)
            done[name] = _apply(bilinear[name], latitude, longitude, target, min_valid)
        else:
            latitude, longitude = _overlap_weights(_Pair(source, target))
            done[name] = _apply(array, latitude, longitude, target, min_valid)
    others = data.drop_dims([dim for dim in ("latitude", "longitude") if dim in data.dims])
    return others.assign({str(name): done.get(str(name), array) for name, array in data.data_vars.items()})


def valid_fraction(data: Fields, target: Grid) -> Fields:
    """How much of each target cell, by area, finite source values cover: 0 to 1, float32, under the names of the fields.

    It is what `min_valid` of a conservative regridding is held against. Raises InputError as `regrid`.
    """
    if isinstance(data, xr.DataArray):
        return valid_fraction(data.to_dataset(name="field"), target)["field"].rename(data.name)
    names = [name for name, array in data.items() if {"latitude", "longitude"} <= set(array.dims)]
    finite = {name: xr.apply_ufunc(np.isfinite, data[name], dask="allowed").astype(np.float32) for name in names}
    return regrid(data[names].assign({name: array.assign_attrs(units="1") for name, array in finite.items()}), target)


def overlap_matrices(source: Grid, target: Grid) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
    """The two conservative matrices (target rows, source rows) and (target columns, source columns), rows summing to 1.

    Raises InputError if a target cell is not covered.
    """
    return _overlap_weights(_Pair(source, target))


class _Pair:
    """Two grids as one hashable key, so that weights are made once."""

    def __init__(self, source: Grid, target: Grid) -> None:
        self.source, self.target = source, target
        self.key = (source.key, target.key)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Pair) and self.key == other.key


@lru_cache(maxsize=16)
def _overlap_weights(pair: _Pair) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
    source, target = pair.source, pair.target
    rows = _overlap(np.sin(np.deg2rad(source.latitude_bounds)), np.sin(np.deg2rad(target.latitude_bounds)))
    columns = np.zeros((target.longitude.size, source.longitude.size))
    for turn in (-360.0, 0.0, 360.0):
        columns += _overlap(source.longitude_bounds + turn, target.longitude_bounds)
    for shares in (rows, columns):
        if (shares.sum(axis=1) < 1 - COVER_TOLERANCE).any():
            raise InputError(_not_covered(source, target, "cells"))
    rows, columns = (shares / shares.sum(axis=1, keepdims=True) for shares in (rows, columns))
    return scipy.sparse.csr_array(rows), scipy.sparse.csr_array(columns)


def _overlap(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Share of each target interval that lies in each source interval, from their edges."""
    low = np.maximum(target[:-1, None], source[None, :-1])
    high = np.minimum(target[1:, None], source[None, 1:])
    return np.clip(high - low, 0, None) / np.diff(target)[:, None]


def _point_weights(source: Grid, target: Grid, axis: np.ndarray) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
    """Bilinear matrices; `axis` is the source latitude, pole rows included where they were added."""
    longitude, columns = source.longitude, np.arange(source.longitude.size)
    step = longitude[1] - longitude[0]
    wanted = np.mod(target.longitude - longitude[0], 360.0) + longitude[0]
    if source.circles:
        longitude, columns = np.append(longitude, longitude[0] + 360), np.append(columns, 0)
    else:
        wanted = np.where(wanted > longitude[0] + 360 - step * COVER_TOLERANCE, longitude[0], wanted)
    rows = _interpolation(axis, target.latitude, np.arange(axis.size), axis.size)
    across = _interpolation(longitude, wanted, columns, source.longitude.size)
    if rows is None or across is None:
        raise InputError(_not_covered(source, target, "points"))
    return rows, across


def _interpolation(points: np.ndarray, wanted: np.ndarray, index: np.ndarray, size: int) -> scipy.sparse.csr_array | None:
    """Linear weights of the two neighbours of each wanted place, or None if one lies outside."""
    if wanted.min() < points[0] - COVER_TOLERANCE or wanted.max() > points[-1] + COVER_TOLERANCE:
        return None
    left = np.clip(np.searchsorted(points, wanted, side="right") - 1, 0, points.size - 2)
    share = np.clip((wanted - points[left]) / (points[left + 1] - points[left]), 0, 1)
    places = np.arange(wanted.size)
    weights = np.concatenate([1 - share, share])
    where = (np.concatenate([places, places]), np.concatenate([index[left], index[left + 1]]))
    matrix = scipy.sparse.csr_array(scipy.sparse.coo_array((weights, where), shape=(wanted.size, size)))
    matrix.eliminate_zeros()  # a point on a source point must not depend on a missing neighbour
    return matrix


def _apply(
    array: xr.DataArray, rows: scipy.sparse.csr_array, columns: scipy.sparse.csr_array, target: Grid, min_valid: float
) -> xr.DataArray:
    if array.chunks is not None:
        array = array.chunk(latitude=-1, longitude=-1)
    shape = {"row": rows.shape[0], "column": columns.shape[0]}
    result = xr.apply_ufunc(
        _weighted, array.drop_vars(["latitude", "longitude"]), kwargs={"rows": rows, "columns": columns, "min_valid": min_valid},
        input_core_dims=[["latitude", "longitude"]], output_core_dims=[["row", "column"]], dask="parallelized",
        output_dtypes=[array.dtype], dask_gufunc_kwargs={"output_sizes": shape}, keep_attrs=True,
    )  # fmt: skip
    result = result.rename(row="latitude", column="longitude").transpose(*array.dims)
    regridded: xr.DataArray = result.assign_coords(target.coords())
    return regridded


def _weighted(block: np.ndarray, rows: scipy.sparse.csr_array, columns: scipy.sparse.csr_array, min_valid: float) -> np.ndarray:
    """Field by field: a field in float64 stays within the cache, and does not depend on what comes with it."""
    out = np.empty((*block.shape[:-2], rows.shape[0], columns.shape[0]), block.dtype)
    fields = block.reshape(-1, *block.shape[-2:])
    for field, result in zip(fields, out.reshape(-1, *out.shape[-2:]), strict=True):
        values = field.astype(np.float64)
        valid = np.isfinite(values)
        if valid.all():
            result[:] = _product(values, rows, columns)
            continue
        total = _product(np.where(valid, values, 0.0), rows, columns)
        weight = _product(valid.astype(np.float64), rows, columns)
        enough = weight >= min_valid - COVER_TOLERANCE
        result[:] = np.divide(total, weight, out=np.full_like(total, np.nan), where=enough)
    return out


def _product(field: np.ndarray, rows: scipy.sparse.csr_array, columns: scipy.sparse.csr_array) -> np.ndarray:
    """rows @ field @ columnsᵀ. Rows first: they are read as they lie in memory."""
    across: np.ndarray = (columns @ np.ascontiguousarray((rows @ field).T)).T
    return across


def _needs_conservation(name: str) -> bool:
    variable = lookup(name)
    return variable is not None and variable.accumulated and (variable.non_negative or variable.units == "J m-2")


def with_pole_rows(fields: dict[str, xr.DataArray], source: Grid, target: Grid) -> tuple[dict[str, xr.DataArray], np.ndarray]:
    """Fields with a row on each pole that the target needs and a global source lacks, and their latitudes."""
    reach = np.abs(source.latitude).max()
    needed = target.latitude.max() > source.latitude[-1] or target.latitude.min() < source.latitude[0]
    if not source.is_global or not needed or reach > 90 - COVER_TOLERANCE:
        return fields, source.latitude
    extended = {name: _between_poles(array, *_scalar_poles(array)) for name, array in fields.items() if name not in _WINDS}
    for pair in WIND_PAIRS:
        present = [name for name in pair if name in fields]
        if len(present) == 1:
            raise InputError(
                f"{present[0]} cannot be brought to the pole without {(set(pair) - set(present)).pop()}: both are needed"
            )
        if present:
            u, v = (fields[name] for name in pair)
            south, north = _vector_poles(u, v, 0), _vector_poles(u, v, -1)
            extended[pair[0]] = _between_poles(u, south[0], north[0])
            extended[pair[1]] = _between_poles(v, south[1], north[1])
    return extended, np.concatenate([[-90.0], source.latitude, [90.0]])


def _between_poles(array: xr.DataArray, south: xr.DataArray, north: xr.DataArray) -> xr.DataArray:
    pieces = [pole.expand_dims(latitude=[place]) for pole, place in ((south, -90.0), (north, 90.0))]
    pieces = [pieces[0].transpose(*array.dims), array, pieces[1].transpose(*array.dims)]
    joined = xr.concat(pieces, dim="latitude", coords="minimal", compat="override", join="exact", combine_attrs="override")
    return joined.astype(array.dtype).assign_attrs(array.attrs)


def _scalar_poles(array: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    south, north = (array.isel(latitude=row, drop=True).mean("longitude", dtype=np.float64) for row in (0, -1))
    ones = xr.ones_like(array["longitude"], dtype=np.float64)
    return south * ones, north * ones


def _vector_poles(u: xr.DataArray, v: xr.DataArray, row: int) -> tuple[xr.DataArray, xr.DataArray]:
    """The mean wind vector of the last row as (u, v) along each meridian at the pole: a mean of u alone would cancel the flow."""
    east, north = u.isel(latitude=row, drop=True).astype(np.float64), v.isel(latitude=row, drop=True).astype(np.float64)
    angle = np.deg2rad(u["longitude"])
    sine, cosine = np.sin(angle), np.cos(angle)
    # at the north pole the local north points along longitude + 180, at the south pole along the longitude itself
    poleward = 1.0 if row == -1 else -1.0
    x = (-east * sine - poleward * north * cosine).mean("longitude")
    y = (east * cosine - poleward * north * sine).mean("longitude")
    return -x * sine + y * cosine, poleward * (-x * cosine - y * sine)


def _not_covered(source: Grid, target: Grid, what: str) -> str:
    return f"the source grid does not cover the target's {what}:\n  - source: {source}\n  - target: {target}"
