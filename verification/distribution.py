"""Scores of the whole forecast distribution, the CRPS family: xarray in, xarray out, lazily on dask input.

Missing values follow the one policy of `verification.casewise`.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import properscoring
import xarray as xr
from scipy.integrate import IntegrationWarning

from data_pipeline.errors import InputError
from verification import kernels
from verification.casewise import (
    Missing,
    apply_cases,
    apply_exact,
    check_arguments,
    check_terms,
    describe_threshold,
    members_leading,
    refuse_infinite,
    units_of,
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
    if not 0 <= alpha <= 1:
        raise InputError(f"crps: alpha={alpha!r}; expected a share between 0 (ecdf) and 1 (fair)")
    if missing == "omit" and estimator in ("ecdf", "almost_fair"):
        raise InputError(f"crps: missing='omit' mixes ensemble sizes, which biases {estimator!r}; use estimator 'fair' or 'size'")
    members = forecast.sizes[member_dim]
    result = apply_cases(
        _crps_block,
        forecast,
        truth,
        member_dim,
        {"pair_weight": pair_weight(estimator, members, alpha, size), "missing": missing},
    )
    return result.rename("crps").assign_attrs(
        long_name="continuous ranked probability score",
        units=units_of(forecast),
        estimator=estimator if estimator != "size" else f"size {size:g}",
        members=members,
        missing=missing,
    )


def twcrps(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    *,
    lower: float | xr.DataArray | None = None,
    upper: float | xr.DataArray | None = None,
    member_dim: str = "number",
    estimator: Estimator = "fair",
    alpha: float = 0.95,
    size: float | None = None,
    missing: Missing = "propagate",
) -> xr.DataArray:
    """Threshold-weighted CRPS of each case: the CRPS that counts only values between `lower` and `upper`; lower is better.

    The integral of (F(z) - 1{y <= z})^2 over lower <= z <= upper (Gneiting and Ranjan 2011), which is the CRPS of members and
    truth clipped to [lower, upper] (chaining; Allen, Ginsbourger and Ziegel 2023). lower=t alone is the upper tail, upper=t alone
    the lower tail, and the two add up to the CRPS by "ecdf" and by "fair". It is proper, unlike a CRPS averaged over the cases
    in which the truth was extreme (Lerch et al. 2017).

    forecast, truth, estimator, alpha, size, missing: as for `crps`. lower, upper: numbers in the units of the variable, or arrays
    that broadcast against the forecast, such as climatological quantiles at the valid time; they must not depend on forecast or
    truth. They are rounded to the type of the data, so that values on the threshold stay on it. A NaN threshold leaves the case
    out, as a NaN truth does; -inf as lower and inf as upper are no threshold. Raises InputError as `crps` does, and for a lower
    threshold above the upper one. Cost: that of `crps` and one copy of the members.
    """
    check_arguments(forecast, truth, member_dim, missing)
    thresholds = {"lower": lower, "upper": upper}
    for name, threshold in thresholds.items():
        if isinstance(threshold, xr.DataArray) and member_dim in threshold.dims:
            raise InputError(f"twcrps: {name} has the member dim {member_dim!r}; a threshold must not depend on the forecast")
    bounds = [-np.inf if lower is None else lower, np.inf if upper is None else upper]
    dtype = np.result_type(forecast.dtype, truth.dtype, np.float32)
    clipped = [
        apply_exact(_clip_block, values, *bounds, kwargs={"what": what, "dtype": dtype}, output_dtypes=[dtype])
        for what, values in (("forecast", forecast), ("truth", truth))
    ]
    result = crps(*clipped, member_dim=member_dim, estimator=estimator, alpha=alpha, size=size, missing=missing)
    described = {name: describe_threshold(threshold) for name, threshold in thresholds.items() if threshold is not None}
    return result.rename("twcrps").assign_attrs(long_name="threshold-weighted CRPS", units=units_of(forecast), **described)


def crps_gaussian(mean: xr.DataArray, std: xr.DataArray, truth: xr.DataArray) -> xr.DataArray:
    """CRPS of the normal distribution N(mean, std^2) (Gneiting et al. 2005), in the units of the variable, by properscoring.

    A standard deviation of 0 is the point forecast, scored by |mean - truth|; a negative one is an InputError. NaN in, NaN out.
    """
    result = apply_exact(_gaussian_block, mean, std, truth)
    return result.rename("crps").assign_attrs(
        long_name="continuous ranked probability score", units=units_of(mean), estimator="gaussian"
    )


def crps_quadrature(
    distribution: Any,
    truth: xr.DataArray,
    *,
    lower: float | None = None,
    upper: float | None = None,
    tolerance: float = 1e-6,
) -> xr.DataArray:
    """CRPS of any continuous distribution, the integral of (F(z) - 1{y <= z})^2 over z, by properscoring's quadrature.

    distribution: a frozen scipy distribution, whose parameters are numbers or arrays that broadcast against the truth's shape; or
    a function z -> F(z), the same for all cases; or a DataArray of such objects, one a case. lower, upper: where F is 0 and 1
    within `tolerance`, found by root search unless both are given; infinite ones are allowed, and slower. The result, in the
    units of the truth, is right to `tolerance`, an absolute error in those units: scale the variable if they are unfit. NaN truth
    or parameters give NaN. Raises InputError for infinite truths and where the tolerance is not reached, as at a distribution
    with a point mass. Cost: some milliseconds a case; where there is a closed form, use it.
    """
    if not tolerance > 0:
        raise InputError(f"crps_quadrature: tolerance={tolerance!r}; expected a positive error in the units of the truth")
    if (lower is None) != (upper is None):
        raise InputError(f"crps_quadrature: lower={lower!r}, upper={upper!r}; give both (an infinite one is allowed) or neither")
    if not isinstance(distribution, xr.DataArray):
        each = _one_each(distribution)
        try:
            each = np.broadcast_to(each, truth.shape) if each.ndim else each
        except ValueError:
            raise InputError(
                f"crps_quadrature: distribution has parameters of shape {each.shape}, truth has {truth.shape}; "
                "give parameters that broadcast against the truth, or a DataArray of distributions"
            ) from None
        distribution = xr.DataArray(each, dims=truth.dims if each.ndim else ())
    result = apply_exact(_quadrature_block, truth, distribution, kwargs={"lower": lower, "upper": upper, "tolerance": tolerance})
    return result.rename("crps").assign_attrs(
        long_name="continuous ranked probability score", units=units_of(truth), estimator="quadrature", tolerance=tolerance
    )


def pair_weight(estimator: str, members: int, alpha: float = 0.95, size: float | None = None) -> float:
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


def _clip_block(values: np.ndarray, lower: Any, upper: Any, what: str, dtype: np.dtype) -> np.ndarray:
    # checked here, because clipping makes an infinite value finite
    refuse_infinite(**{what: values})
    lower, upper = np.asarray(lower, dtype), np.asarray(upper, dtype)
    if (lower > upper).any():
        raise InputError(f"twcrps: lower lies above upper in {int((lower > upper).sum())} places; expected lower <= upper")
    return np.clip(values.astype(dtype, copy=False), lower, upper)


def _gaussian_block(mean: np.ndarray, std: np.ndarray, truth: np.ndarray) -> np.ndarray:
    mean, std, truth = (np.asarray(array, dtype=np.float64) for array in (mean, std, truth))
    if (std < 0).any():
        raise InputError(f"crps_gaussian: {int((std < 0).sum())} standard deviations are negative")
    point = std == 0
    result = properscoring.crps_gaussian(truth, mean, np.where(point, 1.0, std))
    return np.where(point, np.abs(mean - truth), result)


def _one_each(distribution: Any) -> np.ndarray:
    """An array of distributions with scalar parameters, of the shape of the parameters."""
    frozen = hasattr(distribution, "dist")
    args, named = (distribution.args, distribution.kwds) if frozen else ((), {})

    def freeze(*values: float) -> Any:
        return distribution.dist(*values[: len(args)], **dict(zip(named, values[len(args) :], strict=True)))

    if any(np.ndim(value) for value in (*args, *named.values())):
        return np.vectorize(freeze, otypes=[object])(*args, *named.values())
    each = np.empty((), dtype=object)
    each[()] = distribution
    return each


def _quadrature_block(
    truth: np.ndarray, distribution: np.ndarray, lower: float | None, upper: float | None, tolerance: float
) -> np.ndarray:
    refuse_infinite(truth=truth)

    def score(y: float, each: Any) -> float:
        if np.isnan(y) or np.isnan(getattr(each, "cdf", each)(y)):
            return np.nan
        try:
            return properscoring.crps_quadrature(y, each, lower, upper, tolerance)
        except ValueError as error:
            raise InputError(
                f"crps_quadrature: tolerance {tolerance:g} is not reached at truth {y:g} ({str(error).strip()}); "
                "give lower and upper, a larger tolerance, or a continuous distribution"
            ) from None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IntegrationWarning)  # properscoring checks the tolerance afterwards
        return np.vectorize(score, otypes=[np.float64])(truth.astype(np.float64), distribution)
