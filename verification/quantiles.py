"""Scores of quantiles and intervals, and how extreme a forecast is in its climate: xarray in, xarray out, lazily on dask input.

Missing values follow the one policy of `verification.casewise`.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
import xarray as xr

from data_pipeline.errors import InputError
from verification.casewise import MISSING, Missing, apply_exact, check_arguments, coarser, refuse_infinite, units_of

SAME_LEVEL = 1e-6  # levels kept in float32 are still found
FINEST_GAP, OUTERMOST = 0.1, 0.02  # levels of a climate that EFI is read from: neighbours, and the distance of the ends from 0, 1


def quantile_score(
    quantiles: xr.DataArray, truth: xr.DataArray, *, quantile_dim: str = "quantile", missing: Missing = "propagate"
) -> xr.DataArray:
    """Pinball loss of each forecast quantile, (1{y < q} - tau) (q - y), in the units of the variable; lower is better.

    Twice its integral over the levels tau is the CRPS; some packages return the double (Gneiting and Raftery 2007).

    quantiles: (..., quantile_dim), whose coordinate gives the levels between 0 and 1; truth: the dims without quantile_dim, or
    fewer. Returns the dims of quantiles. Quantiles are scored one by one, so missing="omit" is the same as "propagate". Raises
    InputError for levels that are absent or outside [0, 1], unequal coordinates and infinite values.
    """
    _check(missing, quantiles, quantile_dim, truth)
    levels = xr.DataArray(_levels(quantiles, quantile_dim), dims=quantile_dim)
    result = apply_exact(_pinball_block, quantiles, truth, levels, kwargs={"missing": missing})
    return result.rename("quantile_score").assign_attrs(
        long_name="pinball loss of the quantile", units=units_of(quantiles), missing=missing
    )


def interval_score(
    lower: xr.DataArray, upper: xr.DataArray, truth: xr.DataArray, *, alpha: float, missing: Missing = "propagate"
) -> xr.DataArray:
    """Interval score of the central 1 - alpha interval [lower, upper], in the units of the variable; lower is better.

    (u - l) + 2 / alpha max(l - y, 0) + 2 / alpha max(y - u, 0): its width, and a penalty for a truth outside (Gneiting and
    Raftery 2007). lower and upper are the quantiles alpha / 2 and 1 - alpha / 2. A missing bound cannot be omitted: "omit" is the
    same as "propagate". Raises InputError for lower above upper, alpha outside (0, 1), unequal coordinates, infinite values.
    """
    if not 0 < alpha < 1:
        raise InputError(f"interval_score: alpha={alpha!r}; expected a number between 0 and 1, 0.1 for the central 90 % interval")
    _check(missing)
    result = apply_exact(_interval_block, lower, upper, truth, kwargs={"alpha": alpha, "missing": missing})
    return result.rename("interval_score").assign_attrs(
        long_name=f"interval score of the central {1 - alpha:.6g} interval", units=units_of(lower), alpha=alpha, missing=missing
    )


def wis(
    quantiles: xr.DataArray, truth: xr.DataArray, *, quantile_dim: str = "quantile", missing: Missing = "propagate"
) -> xr.DataArray:
    """Weighted interval score of a median and K central intervals, in the units of the variable; lower is better.

    [|y - median| / 2 + sum over k of alpha_k / 2 IS_k] / (K + 1/2), which is twice the mean pinball loss of the 2 K + 1 quantiles
    (Bracher et al. 2021, equation 1). It approximates the CRPS where the levels are equally spaced.

    quantiles: (..., quantile_dim), levels in its coordinate in any order, symmetric about the median; truth: the dims without
    quantile_dim, or fewer. Returns the dims without quantile_dim. A case with a missing quantile is NaN; missing="omit" is an
    InputError, because another set of levels is another score. Raises InputError for levels that are not symmetric or lack the
    median, for quantiles that cross, unequal coordinates and infinite values.
    """
    _check(missing, quantiles, quantile_dim, truth)
    if missing == "omit":
        raise InputError("wis: missing='omit' would score different levels in different cases; use 'propagate' or 'raise'")
    levels = np.sort(_levels(quantiles, quantile_dim))
    if levels.size % 2 == 0 or not np.allclose(levels + levels[::-1], 1, rtol=0, atol=SAME_LEVEL):
        raise InputError(f"wis: found levels {levels.tolist()}; expected the median and pairs such as 0.1 and 0.9 around it")
    result = apply_exact(
        _wis_block,
        quantiles.sortby(quantile_dim),
        truth,
        input_core_dims=[[quantile_dim], []],
        kwargs={"levels": levels, "missing": missing},
    )
    return result.rename("wis").assign_attrs(
        long_name="weighted interval score", units=units_of(quantiles), levels=levels.tolist(), missing=missing
    )


def efi(
    forecast: xr.DataArray,
    climatology_quantiles: xr.DataArray,
    *,
    quantile_dim: str = "quantile",
    member_dim: str = "number",
    missing: Missing = "propagate",
) -> xr.DataArray:
    """Extreme forecast index, from -1 (all members below the climate) over 0 (as the climate) to 1 (all above); no units.

    2 / pi times the integral of (p - F(p)) / sqrt(p (1 - p)) over p, F(p) the share of members below the climate's quantile p
    (Lalaurette 2003; Zsoter 2006), in closed form: 4 / pi mean(asin(sqrt(q_m))) - 1 with q_m the climate probability of member m,
    linear between the stored quantiles, 0 and 1 beyond them. Where climate quantiles are equal (dry days) a member on them takes
    the mean of asin(sqrt(q)) over the step, so that a forecast like the climate has index 0 there too.

    forecast: (..., member_dim); climatology_quantiles: (..., quantile_dim), for the same valid times, levels in its coordinate;
    keep levels 0 and 1, or close to them, because a sparse climate saturates early. The two broadcast. Returns the dims without
    either. A forecast product, not a score: verify it by how well it tells extreme events apart. A NaN quantile makes the case
    NaN; missing="omit" uses the members that are there. Raises InputError for levels that are absent, repeated or outside [0, 1],
    quantiles that cross, unequal coordinates and infinite values. Cost O(M log K) for K levels.
    """
    result = _against_climate(_efi_block, forecast, climatology_quantiles, quantile_dim, member_dim, missing)
    return result.rename("efi").assign_attrs(long_name="extreme forecast index", units="1", missing=missing)


def coarse(levels: np.ndarray) -> str | None:
    """Why an extreme forecast index of a climate with these ascending quantile levels would mislead; None if it would not."""
    fine = levels.size > 0 and levels[0] <= OUTERMOST + SAME_LEVEL and levels[-1] >= 1 - OUTERMOST - SAME_LEVEL
    if fine and np.diff(levels).max(initial=0) <= FINEST_GAP + SAME_LEVEL:
        return None
    return (
        f"the climatology has the quantiles {np.round(levels, 6).tolist()}, too few: EFI wants them at most "
        f"{FINEST_GAP:g} apart from {OUTERMOST:g} to {1 - OUTERMOST:g} or farther out, as 0.01, 0.1, 0.2 ... 0.9, 0.99"
    )


def sot(
    forecast: xr.DataArray,
    climatology_quantiles: xr.DataArray,
    *,
    level: float = 0.9,
    quantile_dim: str = "quantile",
    member_dim: str = "number",
    missing: Missing = "propagate",
) -> xr.DataArray:
    """Shift of tails: how far the forecast's tail lies beyond the climate's, in units of the climate's own tail; no units.

    (Q_f(0.9) - Q_c(0.99)) / (Q_c(0.99) - Q_c(0.9)) for level 0.9, (Q_f(0.1) - Q_c(0.01)) / (Q_c(0.01) - Q_c(0.1)) for level 0.1
    (Zsoter 2006): above 0 if a tenth of the members lie beyond the extreme quantile. Q_f interpolates linearly between sorted
    members (Hyndman and Fan 1996, type 7): take the climate's quantiles the same way. NaN where the climate has no tail.

    forecast: (..., member_dim); climatology_quantiles: (..., quantile_dim), with the two levels in its coordinate. The two
    broadcast. Returns the dims without either. A NaN quantile makes the case NaN; missing="omit" uses the members that are there.
    Raises InputError for another level, a climate that lacks a level, quantiles that cross, unequal coordinates, infinite values.
    """
    extremes = {0.9: 0.99, 0.1: 0.01}
    if level not in extremes:
        raise InputError(f"sot: level={level!r}; defined for 0.9 (upper tail) and 0.1 (lower tail)")
    _check(missing, climatology_quantiles, quantile_dim)
    levels = _levels(climatology_quantiles, quantile_dim)
    positions = [int(np.abs(levels - wanted).argmin()) for wanted in (extremes[level], level)]
    if not np.allclose(levels[positions], (extremes[level], level), rtol=0, atol=SAME_LEVEL):
        raise InputError(
            f"sot: climatology_quantiles has levels {levels.tolist()}; expected {extremes[level]:g} and {level:g} among them"
        )
    tail = climatology_quantiles.isel({quantile_dim: positions})
    result = _against_climate(_sot_block, forecast, tail, quantile_dim, member_dim, missing)
    return result.rename("sot").assign_attrs(
        long_name=f"shift of tails at {level:g}", units="1", level=level, quantiles="linear between members", missing=missing
    )


def _check(
    missing: str, quantiles: xr.DataArray | None = None, quantile_dim: str = "", truth: xr.DataArray | None = None
) -> None:
    if missing not in MISSING:
        raise InputError(f"missing={missing!r} is not known; one of {', '.join(MISSING)}")
    if quantiles is not None and quantile_dim not in quantiles.dims:
        raise InputError(f"quantiles has dims {tuple(quantiles.dims)}; expected a dim {quantile_dim!r} (argument quantile_dim)")
    if truth is not None and quantile_dim in truth.dims:
        raise InputError(f"truth has the dim {quantile_dim!r}, which only the quantiles may have")


def _levels(quantiles: xr.DataArray, quantile_dim: str) -> np.ndarray:
    """The levels in float64, as they lie."""
    if quantile_dim not in quantiles.coords:
        raise InputError(f"quantiles has no coordinate {quantile_dim!r}; give it the levels, such as 0.1, 0.5, 0.9")
    levels = np.asarray(quantiles[quantile_dim].values, dtype=np.float64)
    if not ((levels >= 0) & (levels <= 1)).all() or np.unique(levels).size < levels.size:
        raise InputError(f"coordinate {quantile_dim!r} holds {levels.tolist()}; expected different levels between 0 and 1")
    return levels


def _refuse_unknown(missing: str, **arrays: np.ndarray) -> None:
    """Raise InputError for infinite values, and for missing ones where the policy forbids them."""
    refuse_infinite(**arrays)
    for name, array in arrays.items():
        if missing == "raise" and np.isnan(array).any():
            raise InputError(f"missing values: {name} holds {int(np.isnan(array).sum())}; missing='propagate' allows them")


def _refuse_crossing(crossing: np.ndarray, what: str) -> None:
    if crossing.any():
        raise InputError(f"{what} in {int(crossing.sum())} places; a larger level must not have a smaller value")


def _pinball(quantiles: np.ndarray, truth: np.ndarray, levels: np.ndarray) -> np.ndarray:
    error = truth.astype(np.float64) - quantiles.astype(np.float64)
    return np.maximum(levels * error, (levels - 1) * error)


def _pinball_block(quantiles: np.ndarray, truth: np.ndarray, levels: np.ndarray, missing: str) -> np.ndarray:
    _refuse_unknown(missing, quantiles=quantiles, truth=truth)
    return _pinball(quantiles, truth, levels)


def _interval_block(lower: np.ndarray, upper: np.ndarray, truth: np.ndarray, alpha: float, missing: str) -> np.ndarray:
    _refuse_unknown(missing, lower=lower, upper=upper, truth=truth)
    _refuse_crossing(lower > upper, "interval_score: lower lies above upper")
    lower, upper, truth = (array.astype(np.float64) for array in (lower, upper, truth))
    return (upper - lower) + 2 / alpha * (np.maximum(lower - truth, 0) + np.maximum(truth - upper, 0))


def _wis_block(quantiles: np.ndarray, truth: np.ndarray, levels: np.ndarray, missing: str) -> np.ndarray:
    _refuse_unknown(missing, quantiles=quantiles, truth=truth)
    _refuse_crossing(np.diff(quantiles, axis=-1) < 0, "wis: quantiles cross")
    return 2 * _pinball(quantiles, truth[..., None], levels).mean(-1)


def _against_climate(
    block: Callable[..., np.ndarray],
    forecast: xr.DataArray,
    climate: xr.DataArray,
    quantile_dim: str,
    member_dim: str,
    missing: Missing,
) -> xr.DataArray:
    """`block(members (..., M), climate (..., K), levels (K,), missing)`, the climate in the order of its levels."""
    _check(missing, climate, quantile_dim)
    if member_dim in climate.dims:
        raise InputError(f"climatology_quantiles has the member dim {member_dim!r}; expected quantiles of the climate alone")
    check_arguments(forecast, climate, member_dim, missing)
    levels = np.sort(_levels(climate, quantile_dim))
    return apply_exact(
        block,
        forecast,
        climate.sortby(quantile_dim),
        input_core_dims=[[member_dim], [quantile_dim]],
        kwargs={"levels": levels, "missing": missing},
    )


def _refuse_climate(members: np.ndarray, climate: np.ndarray, missing: str) -> None:
    _refuse_unknown(missing, forecast=members, climatology_quantiles=climate)
    _refuse_crossing(np.diff(climate, axis=-1) < 0, "climatology_quantiles cross")


def _efi_block(members: np.ndarray, climate: np.ndarray, levels: np.ndarray, missing: str) -> np.ndarray:
    _refuse_climate(members, climate, missing)
    precision = coarser(members, climate)
    members, climate = members.astype(precision, copy=False), climate.astype(precision, copy=False)
    shape = np.broadcast_shapes(members.shape[:-1], climate.shape[:-1])
    angles = np.empty(shape)
    _mean_angles(*_rows(members, shape), *_rows(climate, shape), levels, missing == "omit", angles.reshape(-1))
    return angles * 4 / np.pi - 1


def _rows(array: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The array as (rows, last dim), and the row of each case of `shape`: broadcasting without a copy of the climate."""
    leading = array.shape[:-1]
    rows = np.arange(int(np.prod(leading))).reshape(leading)
    whole = np.ascontiguousarray(array, dtype=np.result_type(array, np.float32))
    return whole.reshape(-1, array.shape[-1]), np.broadcast_to(rows, shape).reshape(-1)


def _sot_block(members: np.ndarray, climate: np.ndarray, levels: np.ndarray, missing: str) -> np.ndarray:
    _refuse_climate(members, climate, missing)
    outer, inner, level = (1, 0, 0.9) if levels[0] > 0.5 else (0, 1, 0.1)
    extreme = climate[..., outer].astype(np.float64)
    tail = extreme - climate[..., inner].astype(np.float64)
    return _quantile_beyond(extreme, members, level, missing) / np.where(tail == 0, np.nan, tail)


def _quantile_beyond(origin: np.ndarray, members: np.ndarray, level: float, missing: str) -> np.ndarray:
    """Type 7 quantile of the members (..., M) minus `origin`, of those that are not NaN if they may be omitted."""
    ordered = np.sort(members, axis=-1)
    count = (~np.isnan(ordered)).sum(axis=-1, keepdims=True)
    position = np.maximum(count - 1, 0) * level
    first = np.floor(position).astype(np.int64)
    low, high = (
        np.take_along_axis(ordered, np.minimum(index, np.maximum(count - 1, 0)), -1).astype(np.float64)
        for index in (first, first + 1)
    )
    complete = count > 0 if missing == "omit" else count == members.shape[-1]
    return np.where(complete, (low - origin[..., None]) + (position - first) * (high - low), np.nan)[..., 0]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _mean_angles(members, member_rows, climate, climate_rows, levels, omit, angles):  # type: ignore[no-untyped-def]
    """Mean over members of asin(sqrt(q)) for each case."""
    for case in range(angles.size):
        quantiles = climate[climate_rows[case]]
        unknown = False
        for k in range(levels.size):
            unknown |= np.isnan(quantiles[k])
        total, count = 0.0, 0
        for value in members[member_rows[case]]:
            if not np.isnan(value):
                total += _angle(value, quantiles, levels)
                count += 1
        unknown |= count == 0 or (count < members.shape[1] and not omit)
        angles[case] = np.nan if unknown else total / count


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _angle(value, quantiles, levels):  # type: ignore[no-untyped-def]
    """asin(sqrt(q)) at the climate probability q of a value, its mean over the levels that share the value."""
    first = np.searchsorted(quantiles, value)
    last = first
    while last < levels.size and quantiles[last] == value:
        last += 1
    if last - first > 1:
        step = levels[last - 1] - levels[first]
        return (_integrated_angle(levels[last - 1]) - _integrated_angle(levels[first])) / step
    if last > first:
        return np.arcsin(np.sqrt(levels[first]))
    if first == 0:
        return 0.0
    if first == levels.size:
        return np.pi / 2
    below, above = np.float64(quantiles[first - 1]), np.float64(quantiles[first])
    share = (value - below) / (above - below)
    q = levels[first - 1] + share * (levels[first] - levels[first - 1])
    return np.arcsin(np.sqrt(min(q, 1.0)))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _integrated_angle(q):  # type: ignore[no-untyped-def]
    return (q - 0.5) * np.arcsin(np.sqrt(q)) + np.sqrt(q * (1 - q)) / 2
