"""The CRPS taken apart into reliability, resolution and uncertainty: xarray in, xarray out, lazily on dask input.

`hersbach` is the last step alone, on sums that add across regions, months or chunks. Missing values follow the one policy of
`verification.casewise`.
"""

from __future__ import annotations

import numba
import numpy as np
import xarray as xr

from data_pipeline.errors import InputError
from verification.casewise import (
    Dims,
    Missing,
    apply_cases,
    apply_exact,
    check_arguments,
    check_terms,
    dims_of,
    members_leading,
    units_of,
)


def crps_decomposition(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    *,
    dim: Dims,
    weights: xr.DataArray | None = None,
    member_dim: str = "number",
    missing: Missing = "propagate",
) -> xr.Dataset:
    """Parts of the mean "ecdf" CRPS over `dim`: Dataset(crps, reliability, potential, resolution, uncertainty).

    crps = reliability + potential and resolution = uncertainty - potential (Hersbach 2000, with his outlier bins). The lengths
    below and above the truth in each gap between members are averaged over `dim` first, then the formula of `hersbach` follows:
    parts of two regions or months do not average to those of both. uncertainty is the CRPS of the (weighted) climatology of the
    verifying truths themselves, so that pooling unlike climates inflates it and the resolution (Hamill and Juras 2006);
    resolution may be negative. No fair form exists: reliability is biased high for small M, compare it at equal M.

    forecast: (..., member_dim, ...); truth: the same dims without member_dim, or fewer; weights: some of the dims of truth, NaN
    counts as 0. All parts are in the units of the variable. Ties need no care. Cases with missing values are left out of every
    part, their number is the coordinate `cases`; missing="omit" is an InputError, because ensembles of unequal size do not add.
    With one member only the outlier bins are left. Memory: 2 M + 5 float64 a case; give large forecasts as dask arrays.
    """
    check_arguments(forecast, truth, member_dim, missing)
    if missing == "omit":
        raise InputError(
            "crps_decomposition: missing='omit' would add bins of ensembles of unequal size; use 'propagate' or 'raise'"
        )
    size = forecast.sizes[member_dim]
    parts = apply_cases(_bins_block, forecast, truth, member_dim, {"missing": missing}, output="part", output_size=2 * size + 5)
    dims = dims_of(dim, parts)
    present = parts.isel(part=-1)
    weight = present if weights is None else apply_exact(np.multiply, present, weights.fillna(0.0).astype(np.float64))
    sums = xr.dot(parts, weight, dim=dims)
    terms = apply_exact(_hersbach_terms, sums, input_core_dims=[["part"]], output_core_dims=[["term"]], sizes={"term": 3})
    sample = truth.broadcast_like(present)
    uncertainty = apply_exact(_sample_crps, sample, weight, input_core_dims=[dims, dims], kwargs={"axes": len(dims)})
    reliability, potential, total = (terms.isel(term=index) for index in range(3))
    fields = {
        "crps": (total, "mean CRPS of the ensemble as it is"),
        "reliability": (reliability, "CRPS reliability"),
        "potential": (potential, "potential CRPS, of the perfectly reliable forecast"),
        "resolution": (uncertainty - potential, "CRPS resolution"),
        "uncertainty": (uncertainty, "CRPS of the climatology of the truths"),
    }
    units = units_of(forecast)
    arrays = {name: array.assign_attrs(long_name=text, units=units) for name, (array, text) in fields.items()}
    cases = (present > 0).sum(dims)
    return xr.Dataset(arrays, attrs={"estimator": "ecdf", "members": size, "missing": missing}).assign_coords(cases=cases)


def hersbach(
    alpha: np.ndarray, beta: np.ndarray, below: np.ndarray, not_above: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reliability, potential CRPS and CRPS, each (...), from sums over cases that add across any split (Hersbach 2000).

    With x_(1) <= ... <= x_(M) the sorted members of a case, y its truth and w its weight:

    alpha: (..., M + 1), sums of w * alpha_i. alpha_i is the part of the gap [x_(i), x_(i+1)] below y for i = 1 .. M - 1, and
        alpha_M = max(y - x_(M), 0); the slot alpha_0 is not read.
    beta: (..., M + 1), sums of w * beta_i, the part of the gap above y, and beta_0 = max(x_(1) - y, 0); beta_M is not read.
    below: (...), sum of w * 1{y < x_(1)}.
    not_above: (...), sum of w * 1{y <= x_(M)}.
    weight: (...), sum of w; NaN results where it is 0.

    With means a, b, o_i = b_i / (a_i + b_i) and p_i = i / M: reliability = sum of (a_i + b_i) (o_i - p_i)^2, potential = sum of
    (a_i + b_i) o_i (1 - o_i), CRPS = sum of a_i p_i^2 + b_i (1 - p_i)^2. In the outlier bins o_0 and o_M are the frequencies
    of y < x_(1) and y <= x_(M); his mean widths b_0 / o_0 and a_M / (1 - o_M) cancel, so nothing is divided there.
    """
    size = alpha.shape[-1] - 1
    norm = np.where(np.asarray(weight) > 0, weight, np.nan)
    means = [np.asarray(sums, dtype=np.float64) / norm[..., None] for sums in (alpha, beta)]
    a, b = (mean[..., 1:-1] for mean in means)
    under, over = means[1][..., 0], means[0][..., -1]
    outside_low, inside_high = below / norm, not_above / norm
    p = np.arange(1, size) / size
    width = a + b
    observed = b / np.where(width > 0, width, 1.0)
    reliability = (width * (observed - p) ** 2).sum(-1) + under * outside_low + over * (1 - inside_high)
    potential = (width * observed * (1 - observed)).sum(-1) + under * (1 - outside_low) + over * inside_high
    return reliability, potential, (a * p**2 + b * (1 - p) ** 2).sum(-1) + under + over


def _bins_block(members: np.ndarray, truth: np.ndarray, missing: str, **_: int) -> np.ndarray:
    members, truth, shape = members_leading(members, truth)
    ordered = np.sort(np.moveaxis(members, 1, -1), axis=-1).reshape(truth.size, -1)
    parts = np.zeros((truth.size, 2 * ordered.shape[1] + 5))
    abs_error = np.empty(truth.shape)
    _fill_bins(ordered, truth.reshape(-1), parts, abs_error.reshape(-1))
    check_terms(abs_error, truth, missing)
    return parts.reshape(*shape, -1)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _fill_bins(ordered, truth, parts, abs_error):  # type: ignore[no-untyped-def]
    """alpha_0 .. alpha_M, beta_0 .. beta_M, 1{y < x_(1)}, 1{y <= x_(M)}, 1 for each case; all 0 where something is missing."""
    cases, size = ordered.shape
    x = np.empty(size)
    for case in range(cases):
        y = np.float64(truth[case])
        total = 0.0
        for m in range(size):
            x[m] = ordered[case, m]
            total += abs(x[m] - y)
        abs_error[case] = total / size
        if np.isnan(total):
            continue
        row = parts[case]
        for i in range(1, size):
            inside = min(max(y, x[i - 1]), x[i])
            row[i] = inside - x[i - 1]
            row[size + 1 + i] = x[i] - inside
        row[size + 1] = max(x[0] - y, 0.0)
        row[size] = max(y - x[-1], 0.0)
        row[2 * size + 2] = 1.0 if y < x[0] else 0.0
        row[2 * size + 3] = 1.0 if y <= x[-1] else 0.0
        row[2 * size + 4] = 1.0


def _hersbach_terms(sums: np.ndarray) -> np.ndarray:
    bins = (sums.shape[-1] - 3) // 2
    return np.stack(hersbach(sums[..., :bins], sums[..., bins : 2 * bins], *np.moveaxis(sums[..., -3:], -1, 0)), axis=-1)


def _sample_crps(truth: np.ndarray, weight: np.ndarray, axes: int) -> np.ndarray:
    """CRPS of each weighted sample as its own climatology: sum of P_k (1 - P_k) (y_(k+1) - y_(k)) over the last `axes` axes."""
    truth, weight = np.broadcast_arrays(truth, weight)
    leading = truth.shape[: truth.ndim - axes]
    y, w = truth.reshape(*leading, -1).astype(np.float64), weight.reshape(*leading, -1)
    order = np.argsort(y, axis=-1)
    y, w = np.take_along_axis(y, order, -1), np.take_along_axis(w, order, -1)
    total = w.sum(-1)
    total = np.where(total > 0, total, np.nan)
    p = (np.cumsum(w, axis=-1) / total[..., None])[..., :-1]
    # missing truths come last, with weight 0; the last term is NaN where no case is left at all
    return (p * (1 - p) * np.nan_to_num(np.diff(y, axis=-1))).sum(-1) + 0 * total
