"""Fractions skill score: was the event forecast in the right neighbourhood, on the sphere, in kilometres."""

from __future__ import annotations

import math
from functools import lru_cache

import numba
import numpy as np
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from verification.casewise import Dims, Missing, apply_exact, describe_threshold, weighted_mean
from verification.counting import Op, count_events
from verification.scores import area_weights

EARTH_RADIUS_KM = 6371.0
TIE = 1e-9  # relative: a cell exactly on the circle is inside, however its distance is rounded

PLANE = ("latitude", "longitude")


def fss(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    *,
    threshold: float | xr.DataArray,
    op: Op = ">",
    radius_km: float,
    dim: Dims | None = None,
    weights: xr.DataArray | None = None,
    member_dim: str = "number",
    missing: Missing = "propagate",
) -> xr.DataArray:
    """Fractions skill score of the event `value op threshold` in neighbourhoods of `radius_km`; higher is better, 1 at best.

        FSS = 1 - sum w (P_f - P_o)^2 / sum w (P_f^2 + P_o^2)

    (Roberts and Lean 2008), with P_o the area fraction of the neighbourhood in which the event occurred and P_f the mean of that
    fraction over the members. The neighbourhood of a cell is all cells of the grid whose centres lie within the great-circle
    distance `radius_km`: across the date line and the poles, the same size everywhere. Both sums run over `dim` (default
    latitude and longitude; add time to merge cases) before they are divided: scores of days do not average.

    forecast: (..., latitude, longitude) with member_dim or without it, on a regular grid in either order of latitude; truth: the
    same without member_dim. threshold, op as for `event_table`; climatological quantiles take the bias out of the score. weights:
    default the exact cell areas.

    Cells without truth or threshold or with a missing member are left out of fractions, areas and both sums, for forecast and
    truth alike; the number of the others is the coordinate `cases`. missing="omit" is an InputError: the score rises with M, so
    compare it at equal M. NaN where neither forecast nor truth has an event. A forecast is said to be useful above 0.5 + f / 2
    with f the frequency of the event. Cost O(cells x rows within the radius).
    """
    if missing == "omit":
        raise InputError("fss: missing='omit' would mix ensembles of unequal size; use 'propagate' or 'raise'")
    if member_dim not in forecast.dims:
        forecast = forecast.expand_dims(member_dim)
    lacking = [name for name in PLANE if name not in forecast.indexes or name not in truth.dims]
    if lacking:
        raise InputError(
            f"fss: no dim {', '.join(lacking)} with coordinates in forecast and truth; expected latitude and longitude"
        )
    latitude = forecast["latitude"].values
    grid = Grid(np.sort(latitude), forecast["longitude"].values)
    _check_radius(radius_km)
    events = count_events(forecast, truth, threshold=threshold, op=op, member_dim=member_dim, missing=missing)
    options = {"grid": grid, "radius_km": radius_km, "descending": bool(latitude[0] > latitude[-1])}
    # members are averaged before the neighbourhood: both are sums, and whole numbers of members add without rounding
    predicted, observed = (
        apply_exact(_fractions_block, events[name], input_core_dims=[PLANE], output_core_dims=[PLANE], kwargs=options)
        for name in ("members", "observed")
    )
    predicted = predicted / forecast.sizes[member_dim]
    weights = area_weights(forecast["latitude"]) if weights is None else weights
    dims = PLANE if dim is None else dim
    error = weighted_mean((predicted - observed) ** 2, dims, weights)
    worst = weighted_mean(predicted**2 + observed**2, dims, weights).drop_vars("cases")
    return (
        (1 - error / worst.where(worst > 0))
        .rename("fss")
        .assign_attrs(
            long_name="fractions skill score",
            units="1",
            radius_km=radius_km,
            op=op,
            threshold=describe_threshold(threshold),
            members=forecast.sizes[member_dim],
            missing=missing,
        )
    )


def fractions(values: np.ndarray, grid: Grid, radius_km: float) -> np.ndarray:
    """Area-weighted mean of values (..., latitude, longitude) over the cells of `grid` within `radius_km` of each cell.

    Values may be probabilities, 0 and 1, or numbers of members. NaN cells are left out of mean and area, and stay NaN.
    """
    _check_radius(radius_km)
    if values.shape[-2:] != grid.shape:
        raise InputError(f"fractions: values have shape {values.shape}; expected (..., {grid.shape[0]}, {grid.shape[1]})")
    fields = np.ascontiguousarray(values, dtype=np.float64).reshape(-1, *grid.shape)
    near, wrapped = _reach(grid, radius_km)
    result = np.empty(fields.shape)
    _average(fields, grid.areas[:, 0].copy(), near, wrapped, result)
    return result.reshape(values.shape)


def _check_radius(radius_km: float) -> None:
    if not 0 <= radius_km < math.inf:
        raise InputError(f"radius_km={radius_km!r}; expected kilometres, 0 for each cell by itself")


def _fractions_block(values: np.ndarray, grid: Grid, radius_km: float, descending: bool) -> np.ndarray:
    if descending:
        return fractions(values[..., ::-1, :], grid, radius_km)[..., ::-1, :]
    return fractions(values, grid, radius_km)


@lru_cache(maxsize=8)
def _reach(grid: Grid, radius_km: float) -> tuple[np.ndarray, np.ndarray]:
    """For each target row and source row, the columns within the radius: up to `near` away, or at least `wrapped` away.

    near is -1 where the row is out of reach. Columns `wrapped` or more away are near the other way round the Earth; on a grid
    that closes the circle they are those beyond its edge, on a region they seldom exist. Where the two meet, near is the whole
    row. By haversines, which keep short distances exact.
    """
    latitude = np.deg2rad(grid.latitude)
    radius = min(radius_km / EARTH_RADIUS_KM * (1 + TIE), np.pi)
    columns = grid.longitude.size
    step = (grid.longitude[-1] - grid.longitude[0]) / (columns - 1)
    apart = np.abs(latitude[:, None] - latitude[None, :])
    spare = np.sin(radius / 2) ** 2 - np.sin(apart / 2) ** 2
    cosines = np.maximum(np.cos(latitude)[:, None] * np.cos(latitude)[None, :], np.finfo(np.float64).tiny)
    half_width = np.rad2deg(2 * np.arcsin(np.sqrt(np.clip(spare / cosines, 0, 1))))
    near = np.floor(half_width / step * (1 + TIE)).astype(np.int64)
    wrapped = np.ceil((360 - half_width * (1 + TIE)) / step * (1 - TIE)).astype(np.int64)
    near = np.where((wrapped <= near) | (radius >= np.pi), columns, np.minimum(near, columns))
    near[apart > radius] = -1
    return near, np.minimum(wrapped, columns)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _average(fields, row_area, near, wrapped, result):  # type: ignore[no-untyped-def]
    """By sums along each row up to each column, so that any stretch of a row is a difference of two."""
    rows, columns = fields.shape[1], fields.shape[2]
    value, count = np.zeros((rows, columns + 1)), np.zeros((rows, columns + 1))
    total, area = np.empty(columns), np.empty(columns)
    for field in range(fields.shape[0]):
        for row in range(rows):
            for j in range(columns):
                x = fields[field, row, j]
                there = x == x
                value[row, j + 1] = value[row, j] + (x if there else 0.0)
                count[row, j + 1] = count[row, j] + (1.0 if there else 0.0)
        for target in range(rows):
            total[:], area[:] = 0.0, 0.0
            for row in range(rows):
                reach, far = near[target, row], wrapped[target, row]
                if reach < 0:
                    continue
                v, c, a = value[row], count[row], row_area[row]
                for j in range(columns):
                    first, last = max(j - reach, 0), min(j + reach + 1, columns)
                    total[j] += a * (v[last] - v[first])
                    area[j] += a * (c[last] - c[first])
                if reach >= columns:
                    continue
                for j in range(columns - far):
                    total[j] += a * (v[columns] - v[j + far])
                    area[j] += a * (c[columns] - c[j + far])
                for j in range(far, columns):
                    total[j] += a * v[j - far + 1]
                    area[j] += a * c[j - far + 1]
            for j in range(columns):
                x = fields[field, target, j]
                result[field, target, j] = total[j] / area[j] if x == x else np.nan
