"""Scores of ensemble forecasts and their means: xarray in, xarray out, lazily on dask input.

Missing values follow the one policy of `verification.casewise`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import properscoring
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from verification import kernels
from verification.casewise import (
    Dims,
    Missing,
    apply_cases,
    check_arguments,
    check_terms,
    members_leading,
    units_of,
    weighted_mean,
)

Estimator = Literal["fair", "ecdf", "almost_fair", "size"]

ESTIMATORS = ("fair", "ecdf", "almost_fair", "size")


def crps(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    *,
    member_dim: str = "number",
    estimator: Estimator = "fair",
    alpha: float = 0.95,
    size: float | None = None,
    missing: Missing = "propagate",
) -> xr.DataArray:
    """Continuous ranked probability score of each case, in the units of the variable; lower is better.

    With A the mean of |x_i - y| and B the mean of |x_i - x_j| over distinct pairs of the M members:

    - "fair": A - B / 2, unbiased for the score of the distribution the members are drawn from (Ferro 2014); NaN with one member.
    - "ecdf": A - (1 - 1/M) B / 2, the score of the M-member product itself (Hersbach 2000); |x - y| with one member. Biased
      high for small M: compare ensembles of different size with "fair".
    - "almost_fair": alpha * fair + (1 - alpha) * ecdf (Lang et al. 2024).
    - "size": A - (1 - 1/size) B / 2, what `size` members would score by "ecdf" (Ferro, Richardson and Weigel 2008).

    forecast: (..., member_dim, ...); truth: the same dims without member_dim, or fewer. Returns the dims without member_dim. Ties
    between members or with the truth need no care. missing="omit" uses each case's own M, which only "fair" and "size" allow: the
    others would mix biases. Raises InputError for a bad argument, unequal coordinates or infinite values. Cost O(M log^2 M), no
    copy of the members when they are contiguous.
    """
    check_arguments(forecast, truth, member_dim, missing)
    if estimator not in ESTIMATORS:
        raise InputError(f"crps: estimator {estimator!r} is not known; one of {', '.join(ESTIMATORS)}")
    if (estimator == "size") != (size is not None) or (size is not None and not size >= 1):
        raise InputError(
            f"crps: size={size!r} with estimator {estimator!r}; estimator 'size' takes a size of at least 1, no other does"
        )
    if missing == "omit" and estimator in ("ecdf", "almost_fair"):
        raise InputError(f"crps: missing='omit' mixes ensemble sizes, which biases {estimator!r}; use estimator 'fair' or 'size'")
    members = forecast.sizes[member_dim]
    result = apply_cases(
        _crps_block,
        forecast,
        truth,
        member_dim,
        {"pair_weight": _pair_weight(estimator, members, alpha, size), "missing": missing},
    )
    return result.rename("crps").assign_attrs(
        long_name="continuous ranked probability score",
        units=units_of(forecast),
        estimator=estimator if estimator != "size" else f"size {size:g}",
        members=members,
        missing=missing,
    )


def crps_gaussian(mean: xr.DataArray, std: xr.DataArray, truth: xr.DataArray) -> xr.DataArray:
    """CRPS of the normal distribution N(mean, std^2) (Gneiting et al. 2005), in the units of the variable, by properscoring.

    A standard deviation of 0 is the point forecast, scored by |mean - truth|; a negative one is an InputError. NaN in, NaN out.
    """
    result = xr.apply_ufunc(_gaussian_block, mean, std, truth, join="exact", dask="parallelized", output_dtypes=[np.float64])
    return result.rename("crps").assign_attrs(
        long_name="continuous ranked probability score", units=units_of(mean), estimator="gaussian"
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
    used = error.notnull() & (variance.notnull() if size > 1 else True)
    mse = weighted_mean((error**2).where(used), dim, weights)
    mean_variance = weighted_mean(variance.where(used), dim, weights).drop_vars("cases")
    expected = weighted_mean((variance * inflation).where(used), dim, weights).drop_vars("cases")
    units = units_of(forecast)
    fields = {
        "spread": (mean_variance**0.5, "ensemble spread", units),
        "rmse": (mse**0.5, "RMSE of the ensemble mean", units),
        "ssr": ((expected / mse) ** 0.5, "spread-skill ratio with (M + 1) / M", "1"),
        "variance": (mean_variance, "mean unbiased ensemble variance", f"({units})^2"),
        "mse": (mse, "mean squared error of the ensemble mean", f"({units})^2"),
    }
    arrays = {name: array.assign_attrs(long_name=text, units=unit) for name, (array, text, unit) in fields.items()}
    return xr.Dataset(arrays, attrs={"members": size, "missing": missing})


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
    ensemble stays flat. Flat is necessary for calibration, not sufficient (Hamill 2001). missing="omit" is an InputError: ranks
    of ensembles of unequal size do not add.
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


def _pair_weight(estimator: str, members: int, alpha: float, size: float | None) -> float:
    """The factor of B / 2 in every estimator; NaN where a single member leaves it undefined."""
    if estimator == "ecdf":
        return 1 - 1 / members
    if members == 1:
        return np.nan
    if estimator == "almost_fair":
        return 1 - (1 - alpha) / members
    return 1.0 if size is None else 1 - 1 / size


def _crps_block(members: np.ndarray, truth: np.ndarray, pair_weight: float, missing: str, threads: int) -> np.ndarray:
    members, truth, shape = members_leading(members, truth)
    abs_error, gini = kernels.crps_terms(members, truth, threads)
    check_terms(abs_error, truth, missing)
    if missing == "omit":
        gaps = np.isnan(abs_error) & ~np.isnan(truth)
        abs_error[gaps], gini[gaps] = _present_terms(np.moveaxis(members, 1, -1)[gaps], truth[gaps])
    return (abs_error - pair_weight * gini / 2).reshape(shape)


def _present_terms(members: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A and B from the members (cases, M) that are not NaN; B is NaN where fewer than two are left."""
    ordered = np.sort(members.astype(np.float64), axis=-1)
    count = np.isfinite(ordered).sum(axis=-1)
    weight = 2 * np.arange(ordered.shape[-1]) + 1 - count[:, None]
    pairs = 2 * np.nansum(weight * (ordered - ordered[:, :1]), axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        abs_error = np.nansum(np.abs(ordered - truth[:, None]), axis=-1) / count
        return abs_error, pairs / (count * (count - 1))


def _gaussian_block(mean: np.ndarray, std: np.ndarray, truth: np.ndarray) -> np.ndarray:
    mean, std, truth = (np.asarray(array, dtype=np.float64) for array in (mean, std, truth))
    if (std < 0).any():
        raise InputError(f"crps_gaussian: {int((std < 0).sum())} standard deviations are negative")
    point = std == 0
    result = properscoring.crps_gaussian(truth, mean, np.where(point, 1.0, std))
    return np.where(point, np.abs(mean - truth), result)


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


def _rank_block(members: np.ndarray, truth: np.ndarray, missing: str, threads: int) -> np.ndarray:
    members, truth, shape = members_leading(members, truth)
    found = kernels.point_statistics(members, truth, threads)
    check_terms(found.abs_error, truth, missing)
    rank = np.arange(members.shape[1] + 1)
    below, ties = found.below[..., None], found.ties[..., None]
    shares = np.where((rank >= below) & (rank <= below + ties), 1.0 / (ties + 1), 0.0)
    shares[found.below < 0] = np.nan
    return shares.reshape(*shape, rank.size)
