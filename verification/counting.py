"""Members and truths with an event (a value beyond a threshold), counted case by case and summed into tables.

A decimal fraction is not the same number in float32 and float64 (float32(0.1) > 0.1). Members, truth and threshold are hence
compared in the coarser precision of forecast and truth, so that 0.1 mm ties with 0.1 mm. A missing value never decides a
comparison.
"""

from __future__ import annotations

from typing import Any, Literal

import dask.array as da
import numba
import numpy as np
import xarray as xr

from data_pipeline.errors import InputError
from verification.casewise import (
    Missing,
    apply_cases,
    apply_exact,
    check_arguments,
    check_terms,
    coarser,
    members_leading,
    refuse_infinite,
)

Op = Literal[">", ">=", "<", "<="]

OPS = (">", ">=", "<", "<=")


def count_events(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    *,
    threshold: float | xr.DataArray,
    op: Op,
    member_dim: str,
    missing: Missing,
) -> xr.Dataset:
    """Of each case: members with the event `value op threshold`, size (members that count), observed (0, 1).

    All three are NaN where the case does not count: without truth or threshold, or with a missing member unless missing="omit".
    Dims of the threshold that the data lack are dims of the result.
    """
    check_arguments(forecast, truth, member_dim, missing)
    if op not in OPS:
        raise InputError(f"op {op!r} is not known; one of {' '.join(OPS)}")
    limit = threshold if isinstance(threshold, xr.DataArray) else xr.DataArray(threshold)
    if member_dim in limit.dims:
        raise InputError(f"threshold has the member dim {member_dim!r}; a threshold must not depend on the forecast")
    own = [name for name in limit.dims if name not in (*forecast.dims, *truth.dims)]
    if own:
        # one by one: an array of members repeated for each threshold would be large
        limits = [limit.isel({own[0]: k}) for k in range(limit.sizes[own[0]])]
        counts = [count_events(forecast, truth, threshold=one, op=op, member_dim=member_dim, missing=missing) for one in limits]
        return xr.concat(counts, own[0], data_vars="all", coords="minimal", compat="override", join="exact")
    precision = coarser(forecast, truth)
    forecast, truth, limit = (array.astype(precision, copy=False) for array in (forecast, truth, limit))
    observed = apply_exact(_observed_block, truth, limit, kwargs={"op": op, "missing": missing})
    limit = limit.where(observed.notnull())
    counted = apply_cases(
        _members_block, forecast, limit, member_dim, {"op": op, "missing": missing}, output="count", output_size=2
    )
    members, size = counted.isel(count=0), counted.isel(count=1)
    return xr.Dataset({"members": members, "size": size, "observed": observed.where(size.notnull())})


def compare(values: Any, threshold: Any, op: str) -> Any:
    """`values op threshold`, element by element, of arrays of numpy or xarray; both in one precision (`casewise.coarser`)."""
    return {">": np.greater, ">=": np.greater_equal, "<": np.less, "<=": np.less_equal}[op](values, threshold)


def tally(code: Any, *weight: Any, axes: int, members: int) -> Any:
    """Weights (default 1) summed by code 2 i + o over the last `axes` axes: (..., M + 1, 2). NaN codes do not count.

    Arrays of numpy or dask; blocks of dask are summed one by one, then the sums.
    """
    kept = code.ndim - axes
    summed = tuple(range(kept, code.ndim))
    if any(isinstance(array, da.Array) for array in (code, *weight)):
        labels = tuple(range(code.ndim))
        sums = da.blockwise(
            _tally_block, (*labels, code.ndim), *[item for array in (code, *weight) for item in (array, labels)],
            axes=axes, members=members, dtype=np.float64,
            new_axes={code.ndim: 2 * (members + 1)}, adjust_chunks=dict.fromkeys(summed, 1),
        )  # fmt: skip
    else:
        sums = _tally_block(code, *weight, axes=axes, members=members)
    return sums.sum(axis=summed).reshape(*code.shape[:kept], members + 1, 2)


def _observed_block(truth: np.ndarray, threshold: np.ndarray, op: Op, missing: Missing) -> np.ndarray:
    refuse_infinite(threshold=threshold, truth=truth)
    check_terms(np.where(np.isnan(truth), np.nan, 0.0), truth, missing)
    above = truth > threshold if op in (">", "<=") else truth >= threshold
    return np.where(np.isnan(truth) | np.isnan(threshold), np.nan, above ^ op.startswith("<"))


def _members_block(
    members: np.ndarray,
    threshold: np.ndarray,
    op: Op,
    missing: Missing,
    threads: int,  # noqa: ARG001  counting waits for memory, not for a core
) -> np.ndarray:
    members, threshold, shape = members_leading(members, threshold)
    above, present, infinite = (np.zeros(threshold.shape, dtype=np.int32) for _ in range(3))
    _count(members, threshold, op in (">", "<="), above, present, infinite)
    unused = np.isnan(threshold)
    gaps = (present < members.shape[1]) & ~unused
    check_terms(np.select([infinite > 0, gaps], [np.inf, np.nan], 0.0), np.zeros(threshold.shape), missing)
    # "<" is what is left of the members that are there: a missing one is neither above nor below
    found = np.stack([present - above if op.startswith("<") else above, present], axis=-1).astype(np.float64)
    found[unused | (present == 0) | (gaps & (missing == "propagate"))] = np.nan
    return found.reshape(*shape, 2)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _count(members, threshold, strict, above, present, infinite):  # type: ignore[no-untyped-def]
    for case in range(members.shape[0]):
        for m in range(members.shape[1]):
            for p in range(members.shape[2]):
                x, t = members[case, m, p], threshold[case, p]
                above[case, p] += (x > t) if strict else (x >= t)
                present[case, p] += x == x
                infinite[case, p] += abs(x) == np.inf


def _tally_block(code: np.ndarray, *weight: np.ndarray, axes: int, members: int) -> np.ndarray:
    """Dims (..., 1 for each summed axis, 2 (M + 1))."""
    bins = 2 * (members + 1)
    kept = code.shape[: code.ndim - axes]
    rows = int(np.prod(kept))
    index = np.where(np.isnan(code), bins, code).astype(np.intp).reshape(rows, -1)
    index += (bins + 1) * np.arange(rows)[:, None]
    weights = weight[0].ravel() if weight else None
    sums = np.bincount(index.ravel(), weights, minlength=rows * (bins + 1)).reshape(rows, bins + 1)[:, :bins]
    return sums.astype(np.float64).reshape(*kept, *(1,) * axes, bins)
