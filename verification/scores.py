"""Error, bias, correlation, spread and ranks of ensemble forecasts: xarray in, xarray out, lazily on dask input.

Missing values follow the one policy of `verification.casewise`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from verification import kernels
from verification.casewise import (
    Dims,
    Missing,
    apply_cases,
    apply_exact,
    check_arguments,
    check_terms,
    coarser,
    members_leading,
    refuse_infinite,
    units_of,
    weighted_mean,
)


def rmse(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    *,
    dim: Dims,
    weights: xr.DataArray | None = None,
    member_dim: str = "number",
    missing: Missing = "propagate",
) -> xr.DataArray:
    """Root-mean-square error of the ensemble mean, the square root taken after the whole weighted mean over `dim`.

    A forecast without member_dim is scored as it is. Units of the variable; NaN where no case is left.
    """
    error = _error_and_variance(forecast, truth, member_dim, missing)[0]
    result = weighted_mean(error**2, dim, weights) ** 0.5
    return result.rename("rmse").assign_attrs(long_name="RMSE of the ensemble mean", units=units_of(forecast), missing=missing)


def bias(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    *,
    dim: Dims,
    weights: xr.DataArray | None = None,
    member_dim: str = "number",
    missing: Missing = "propagate",
) -> xr.DataArray:
    """Mean of forecast minus truth (of the ensemble mean if there are members), weighted over `dim`; the target is 0."""
    error = _error_and_variance(forecast, truth, member_dim, missing)[0]
    result = weighted_mean(error, dim, weights)
    return result.rename("bias").assign_attrs(long_name="bias, forecast minus truth", units=units_of(forecast), missing=missing)


def acc(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    *,
    climatology: xr.DataArray,
    dim: Dims,
    weights: xr.DataArray | None = None,
    member_dim: str = "number",
    missing: Missing = "propagate",
) -> xr.DataArray:
    """Anomaly correlation of the ensemble mean, from -1 to 1, uncentred; higher is better.

    sum w f' o' / sqrt(sum w f'^2 sum w o'^2) with f' = forecast - climatology and o' = truth - climatology, all sums over the
    whole of `dim`. Over space and time at once this is the pooled ACC. The mean of the ACC of each time, which is as common, is
    another score: acc(..., dim=("latitude", "longitude")).mean("time"). The two differ; say which one a table holds.

    climatology: at the valid times of the truth, by day of year and hour, from years outside the test; its dims are those of the
    truth, or fewer. A forecast without member_dim is scored as it is. Blind to the amplitude of errors: give `rmse` and `bias`
    beside it. A case with missing forecast, truth or climatology is left out of all sums, their number is the coordinate `cases`;
    NaN where all anomalies of either are 0. Raises InputError for unequal coordinates or infinite values.
    """
    error = _error_and_variance(forecast, truth, member_dim, missing)[0]
    observed = apply_exact(_anomaly_block, truth, climatology, kwargs={"missing": missing})
    predicted = apply_exact(np.add, error, observed)
    product = weighted_mean(predicted * observed, dim, weights)
    predicted_power = weighted_mean(predicted**2, dim, weights).drop_vars("cases")
    observed_power = weighted_mean((observed**2).where(predicted.notnull()), dim, weights).drop_vars("cases")
    norm = (predicted_power * observed_power) ** 0.5
    # rounding may lift a perfect correlation above 1
    result = (product / norm.where(norm > 0)).clip(-1, 1)
    return result.rename("acc").assign_attrs(
        long_name="anomaly correlation of the ensemble mean", units="1", anomalies="uncentred", missing=missing
    )


def spread_skill(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    *,
    dim: Dims,
    weights: xr.DataArray | None = None,
    member_dim: str = "number",
    missing: Missing = "propagate",
) -> xr.Dataset:
    """Spread, error and their ratio: Dataset(spread, rmse, ssr, variance, mse).

    variance = mean of the unbiased member variance, mse = mean squared error of the ensemble mean, spread and rmse their square
    roots, ssr = sqrt((M + 1) / M) * spread / rmse (Fortin et al. 2014): 1 if members and truth are exchangeable, less if the
    ensemble is under-dispersive. Variances are averaged before any root. spread, variance and ssr are NaN with one member. With
    missing="omit" each case's variance takes its own (M + 1) / M.
    """
    check_arguments(forecast, truth, member_dim, missing)
    error, variance, inflation = _error_and_variance(forecast, truth, member_dim, missing)
    size = forecast.sizes[member_dim]
    if size > 1:
        error = error.where(variance.notnull())
    result = _pooled_spread_skill(error, variance, inflation, dim, weights, units_of(forecast))
    return result.assign_attrs(members=size, missing=missing)


def conditional_spread_skill(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    *,
    bins: Sequence[float] | np.ndarray,
    dim: Dims,
    weights: xr.DataArray | None = None,
    member_dim: str = "number",
    missing: Missing = "propagate",
) -> xr.Dataset:
    """`spread_skill` of the cases in each bin of spread: Dataset(spread, rmse, ssr, variance, mse, cases) with dim `bin`.

    Does a larger spread mean a larger error? A calibrated ensemble has ssr 1 in every bin, which ssr 1 over all cases does not
    promise. A case belongs to the bin with lower <= standard deviation < upper, by its unbiased member variance.

    bins: increasing edges in the units of the variable, fixed beforehand and not from the same cases; the last may be infinite.
    Cases beyond the edges are left out. Returned are also the coordinates lower and upper of each bin; `cases` is the number in
    it, and NaN stands where it is 0, as it is throughout with one member. The other arguments are those of `spread_skill`. Raises
    InputError for edges that do not increase.
    """
    check_arguments(forecast, truth, member_dim, missing)
    edges = np.asarray(bins, dtype=np.float64)
    if edges.ndim != 1 or edges.size < 2 or not (np.diff(edges) > 0).all():
        raise InputError(f"conditional_spread_skill: bins={bins!r}; expected at least two increasing edges")
    error, variance, inflation = _error_and_variance(forecast, truth, member_dim, missing)
    spread, units = variance**0.5, units_of(forecast)
    parts = [
        _pooled_spread_skill(error.where((spread >= low) & (spread < high)), variance, inflation, dim, weights, units)
        for low, high in pairwise(edges)
    ]
    result = xr.concat([part.reset_coords("cases") for part in parts], dim="bin")
    result["cases"].attrs = {"long_name": "cases in the bin", "units": "1"}
    limits = {"lower": ("bin", edges[:-1], {"units": units}), "upper": ("bin", edges[1:], {"units": units})}
    return result.assign_coords(limits).assign_attrs(members=forecast.sizes[member_dim], missing=missing)


def rank_histogram(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    *,
    dim: Dims,
    weights: xr.DataArray | None = None,
    member_dim: str = "number",
    missing: Missing = "propagate",
) -> xr.DataArray:
    """Frequencies of the rank of the truth among the M members, dim `rank` of size M + 1, summing to 1.

    A truth equal to t members shares its weight evenly over its t + 1 possible ranks, so half-zero precipitation of a calibrated
    ensemble stays flat. Ties are found in the coarser precision of forecast and truth. Flat is necessary for calibration, not
    sufficient (Hamill 2001). missing="omit" is an InputError: ranks of ensembles of unequal size do not add.
    """
    check_arguments(forecast, truth, member_dim, missing)
    if missing == "omit":
        raise InputError(
            "rank_histogram: missing='omit' would add ranks of ensembles of unequal size; use 'propagate' or 'raise'"
        )
    size = forecast.sizes[member_dim]
    shares = apply_cases(_rank_block, forecast, truth, member_dim, {"missing": missing}, output="rank", output_size=size + 1)
    result = weighted_mean(shares, dim, weights)
    return (
        result.assign_coords(rank=np.arange(size + 1))
        .rename("rank_histogram")
        .assign_attrs(
            long_name="frequency of the rank of the truth", units="1", members=size, missing=missing, ties="shared evenly"
        )
    )


def area_weights(grid_or_latitude: Grid | xr.DataArray | np.ndarray) -> xr.DataArray:
    """Exact cell areas scaled to mean 1: (latitude, longitude) of a Grid, (latitude) of latitudes in either order.

    Cell edges lie midway between latitudes; the outer ones half a cell beyond, never past a pole. A regional grid's outer rows
    hence do not own the cap.
    """
    if isinstance(grid_or_latitude, Grid):
        grid = grid_or_latitude
        return xr.DataArray(grid.area_weights, dims=("latitude", "longitude"), coords=grid.coords(), name="area_weights")
    latitude = np.asarray(grid_or_latitude, dtype=np.float64)
    if latitude.ndim != 1 or latitude.size < 2 or np.unique(np.sign(np.diff(latitude))).size != 1 or np.abs(latitude).max() > 90:
        raise InputError(f"area_weights: expected at least two monotonic latitudes in degrees, found {latitude!r}")
    middle = (latitude[1:] + latitude[:-1]) / 2
    first, last = latitude[0] - (latitude[1] - latitude[0]) / 2, latitude[-1] + (latitude[-1] - latitude[-2]) / 2
    edges = np.clip(np.concatenate([[first], middle, [last]]), -90, 90)
    area = np.abs(np.diff(np.sin(np.deg2rad(edges))))
    coords = grid_or_latitude.coords if isinstance(grid_or_latitude, xr.DataArray) else {"latitude": latitude}
    dims = grid_or_latitude.dims if isinstance(grid_or_latitude, xr.DataArray) else ("latitude",)
    return xr.DataArray(area / area.mean(), dims=dims, coords=coords, name="area_weights")


def _error_and_variance(
    forecast: xr.DataArray, truth: xr.DataArray, member_dim: str, missing: Missing
) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    """Per case: ensemble mean minus truth, unbiased variance (NaN with one member), and (M + 1) / M."""
    if member_dim not in forecast.dims:
        forecast = forecast.expand_dims(member_dim)
    check_arguments(forecast, truth, member_dim, missing)
    stacked = apply_cases(_moment_block, forecast, truth, member_dim, {"missing": missing}, output="moment", output_size=3)
    error, variance, inflation = (stacked.isel(moment=index) for index in range(3))
    return error, variance, inflation


def _pooled_spread_skill(
    error: xr.DataArray, variance: xr.DataArray, inflation: xr.DataArray, dim: Dims, weights: xr.DataArray | None, units: str
) -> xr.Dataset:
    """The scores of `spread_skill` from the moments of each case, of the cases that have an error."""
    used = error.notnull()
    mse = weighted_mean(error**2, dim, weights)
    mean_variance = weighted_mean(variance.where(used), dim, weights).drop_vars("cases")
    expected = weighted_mean((variance * inflation).where(used), dim, weights).drop_vars("cases")
    fields = {
        "spread": (mean_variance**0.5, "ensemble spread", units),
        "rmse": (mse**0.5, "RMSE of the ensemble mean", units),
        "ssr": ((expected / mse.where(mse > 0)) ** 0.5, "spread-skill ratio with (M + 1) / M", "1"),
        "variance": (mean_variance, "mean unbiased ensemble variance", f"({units})^2"),
        "mse": (mse, "mean squared error of the ensemble mean", f"({units})^2"),
    }
    return xr.Dataset({name: array.assign_attrs(long_name=text, units=unit) for name, (array, text, unit) in fields.items()})


def _moment_block(members: np.ndarray, truth: np.ndarray, missing: str, threads: int) -> np.ndarray:
    members, truth, shape = members_leading(members, truth)
    size = members.shape[1]
    found = kernels.point_statistics(members, truth, threads)
    check_terms(found.abs_error, truth, missing)
    moments = np.stack([found.error, found.variance, np.full(truth.shape, (size + 1) / size)], axis=-1)
    if size == 1:
        moments[..., 1] = np.nan
    if missing == "omit":
        gaps = np.isnan(found.error) & ~np.isnan(truth)
        moments[gaps] = _present_moments(np.moveaxis(members, 1, -1)[gaps], truth[gaps])
    return moments.reshape(*shape, 3)


def _present_moments(members: np.ndarray, truth: np.ndarray) -> np.ndarray:
    deviation = members.astype(np.float64) - truth[:, None]
    count = np.isfinite(deviation).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.nansum(deviation, axis=-1) / count
        variance = np.nansum((deviation - error[:, None]) ** 2, axis=-1) / np.where(count > 1, count - 1, np.nan)
        return np.stack([error, variance, (count + 1) / count], axis=-1)


def _anomaly_block(truth: np.ndarray, climatology: np.ndarray, missing: str) -> np.ndarray:
    refuse_infinite(climatology=climatology)
    if missing == "raise" and np.isnan(climatology).any():
        raise InputError(
            f"missing values: climatology holds {int(np.isnan(climatology).sum())}; missing='propagate' or 'omit' allows them"
        )
    return truth.astype(np.float64) - climatology.astype(np.float64)


def _rank_block(members: np.ndarray, truth: np.ndarray, missing: str, threads: int) -> np.ndarray:
    precision = coarser(members, truth)
    members, truth, shape = members_leading(members.astype(precision, copy=False), truth.astype(precision, copy=False))
    found = kernels.point_statistics(members, truth, threads)
    check_terms(found.abs_error, truth, missing)
    rank = np.arange(members.shape[1] + 1)
    below, ties = found.below[..., None], found.ties[..., None]
    shares = np.where((rank >= below) & (rank <= below + ties), 1.0 / (ties + 1), 0.0)
    shares[found.below < 0] = np.nan
    return shares.reshape(*shape, rank.size)
