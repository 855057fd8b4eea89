"""Scores of several variables, places or leads at once: xarray in, xarray out, lazily on dask input.

The components are the points of one or several dims. Missing values follow the one policy of `verification.casewise`; one missing
component is a missing member or truth.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.workers import cores
from verification.casewise import Dims, Missing, apply_exact, check_arguments, check_terms, dims_of, refuse_infinite, units_of
from verification.distribution import pair_weight

COMPONENTS = 256  # copied together; 51 rows of float64 are 104 kB, within the second-level cache


def energy_score(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    *,
    dim: Dims,
    fair: bool = True,
    weights: xr.DataArray | None = None,
    member_dim: str = "number",
    missing: Missing = "propagate",
) -> xr.DataArray:
    """Energy score of each case, the CRPS of vectors, in the units of the variable; lower is better.

    mean ||x_i - y|| - 1/2 mean ||x_i - x_j||, the second mean over distinct pairs of the M members if fair, which is unbiased for
    the score of the distribution they are drawn from and NaN with one member; over all pairs if not, the score of the M-member
    product itself, ||x - y|| with one member (Gneiting et al. 2008; Ferro 2014). With one component it is the CRPS.

    forecast: (..., member_dim, dim); truth: the same dims without member_dim, or fewer, with all of `dim`, the components.
    weights: non-negative, over some dims of `dim`, inside the norm: ||d|| = sqrt(sum of w d^2). Bring components of unlike units
    to one scale first (divide by their climatological standard deviation), because the largest dominates the norm. The score is
    weak on wrong correlations: report `variogram_score` beside it. Returns the dims without member_dim and dim.

    A NaN component makes its member or truth missing; missing="omit" scores the members without any, which only the fair form
    allows. Raises InputError for a bad argument, unequal coordinates or infinite values. Differences are taken in float64. Cost
    O(M^2 d) a case for d components, one read of the members, M^2 floats of memory beside them.
    """
    check_arguments(forecast, truth, member_dim, missing)
    if missing == "omit" and not fair:
        raise InputError(
            "energy_score: missing='omit' mixes ensemble sizes, which biases the form with fair=False; use fair=True"
        )
    dims = _components(forecast, truth, dim, member_dim)
    factor = pair_weight("fair" if fair else "ecdf", forecast.sizes[member_dim])
    result = _apply_vectors(_energy_block, forecast, truth, member_dim, dims, {
        "weights": _component_weights(weights, forecast, dims),
        "pair_weight": factor,
        "missing": missing,
    })  # fmt: skip
    return result.rename("energy_score").assign_attrs(
        long_name="energy score",
        units=units_of(forecast),
        estimator="fair" if fair else "ecdf",
        members=forecast.sizes[member_dim],
        missing=missing,
    )


def variogram_score(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    *,
    dim: Dims,
    p: float = 0.5,
    weights: xr.DataArray | None = None,
    member_dim: str = "number",
    missing: Missing = "propagate",
) -> xr.DataArray:
    """Variogram score of order p of each case, in the units of the variable to the power 2 p; lower is better.

    Sum over all ordered pairs of components of w_ij (|y_i - y_j|^p - mean over members of |x_i - x_j|^p)^2 (Scheuerer and Hamill
    2015): wrong correlations cost, a bias common to all components does not, so report `energy_score` beside it. It is biased
    high for small M: compare ensembles of equal size.

    forecast: (..., member_dim, dim); truth: the same dims without member_dim, or fewer, with all of `dim`, the components.
    weights: over some dims of `dim`, one weight a component, and w_ij = w_i w_j; or over all of `dim` and their doubles named
    dim_2 (such as station, station_2), and w_ij is the weight of the pair. All are non-negative; 1 unless given. Returns the
    dims without member_dim and dim.

    A case with a NaN component is NaN; missing="omit" is an InputError, because scores of ensembles of unequal size do not
    compare. Raises InputError for a bad argument, unequal coordinates or infinite values. Differences are taken in float64. Cost
    O(M d^2) a case for d components, M d floats of memory beside them, and d^2 for weights of pairs.
    """
    check_arguments(forecast, truth, member_dim, missing)
    if missing == "omit":
        raise InputError("variogram_score: missing='omit' would compare ensembles of unequal size; use 'propagate' or 'raise'")
    if not p > 0:
        raise InputError(f"variogram_score: p={p!r}; expected a positive order, such as 0.5")
    dims = _components(forecast, truth, dim, member_dim)
    if np.prod([forecast.sizes[name] for name in dims]) < 2:
        raise InputError(f"variogram_score: dim {dims} has one component; expected at least two, between which members vary")
    if weights is None or set(weights.dims) <= set(dims):
        each, pairs = _component_weights(weights, forecast, dims), np.empty((0, 0))
    else:
        each, pairs = np.empty(0), _pair_weights(weights, forecast, dims)
    result = _apply_vectors(
        _variogram_block, forecast, truth, member_dim, dims, {"weights": each, "pairs": pairs, "p": float(p), "missing": missing}
    )
    units = units_of(forecast)
    return result.rename("variogram_score").assign_attrs(
        long_name=f"variogram score of order {p:g}",
        units=units if p == 0.5 else f"({units})^{2 * p:g}",
        order=p,
        members=forecast.sizes[member_dim],
        missing=missing,
    )


def _components(forecast: xr.DataArray, truth: xr.DataArray, dim: Dims, member_dim: str) -> list[Any]:
    dims = dims_of(dim, forecast)
    if member_dim in dims:
        raise InputError(f"dim {dims} holds the member dim {member_dim!r}; expected the dims of the components alone")
    return dims_of(dims, truth)


def _component_weights(weights: xr.DataArray | None, forecast: xr.DataArray, dims: list[Any]) -> np.ndarray:
    """One weight a component, (d,), in the order of `dims`."""
    if weights is not None and not set(weights.dims) <= set(dims):
        raise InputError(f"weights has dims {tuple(weights.dims)}; expected some of the component dims {dims}")
    ones = _ones({name: name for name in dims}, forecast)
    return _checked(ones if weights is None else apply_exact(np.multiply, ones, weights).transpose(*dims)).ravel()


def _pair_weights(weights: xr.DataArray, forecast: xr.DataArray, dims: list[Any]) -> np.ndarray:
    """The symmetric weights of all pairs, (d, d)."""
    sources = {**{name: name for name in dims}, **{f"{name}_2": name for name in dims}}
    order = list(sources)
    if set(weights.dims) != set(order):
        raise InputError(f"weights has dims {tuple(weights.dims)}; expected some of {dims} for components, or {order} for pairs")
    ones = _ones(sources, forecast)
    values = _checked(apply_exact(np.multiply, ones, weights).transpose(*order))
    square = values.reshape(2 * [int(np.sqrt(values.size))])
    return (square + square.T) / 2


def _ones(sources: dict[Any, Any], forecast: xr.DataArray) -> xr.DataArray:
    """Ones on the dims that are the keys, with the coordinates of the forecast's dims that are the values."""
    indexes = {name: forecast.indexes[source] for name, source in sources.items() if source in forecast.indexes}
    coords = {name: index for name, index in indexes.items() if index.nlevels == 1}  # stacked dims are matched by their size
    return xr.DataArray(np.ones([forecast.sizes[source] for source in sources.values()]), dims=list(sources), coords=coords)


def _checked(weights: xr.DataArray) -> np.ndarray:
    values = np.asarray(weights.values, dtype=np.float64)
    if not (np.isfinite(values) & (values >= 0)).all():
        raise InputError("weights holds missing, infinite or negative values; expected finite ones, 0 or larger")
    return values


def _apply_vectors(
    block: Callable[..., np.ndarray],
    forecast: xr.DataArray,
    truth: xr.DataArray,
    member_dim: str,
    dims: list[Any],
    arguments: dict[str, Any],
) -> xr.DataArray:
    """`block(members (cases, M, d), truth (cases, d), ...)` on every block; dask runs the blocks, else threads run the cases."""
    lazy = forecast.chunks is not None or truth.chunks is not None

    def flattened(members: np.ndarray, truth: np.ndarray) -> np.ndarray:
        refuse_infinite(forecast=members, truth=truth)
        vector = truth.shape[truth.ndim - len(dims) :]
        shape = np.broadcast_shapes(members.shape[: -len(dims) - 1], truth.shape[: truth.ndim - len(dims)])
        size, components = members.shape[-len(dims) - 1], int(np.prod(vector))
        every = np.broadcast_to(members, (*shape, size, *vector)).reshape(-1, size, components)
        truths = np.broadcast_to(truth, (*shape, *vector)).reshape(-1, components).astype(np.float64)
        precision = np.float32 if every.dtype == np.float32 else np.float64
        every = np.ascontiguousarray(every, dtype=precision)
        return block(every, truths, threads=1 if lazy else cores(), **arguments).reshape(shape)

    return apply_exact(flattened, forecast, truth, input_core_dims=[[member_dim, *dims], dims])


def _over_cases(run: Callable[[int, int], None], cases: int, threads: int) -> None:
    edges = np.linspace(0, cases, min(threads, cases) + 1).astype(int)
    if edges.size <= 2:
        run(0, cases)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, edges[:-1], edges[1:]))


def _energy_block(
    members: np.ndarray, truth: np.ndarray, weights: np.ndarray, pair_weight: float, missing: str, threads: int
) -> np.ndarray:
    terms = np.empty((2, truth.shape[0]))
    _over_cases(
        lambda first, last: _energy_terms(members, truth, weights, missing == "omit", first, last, terms), truth.shape[0], threads
    )
    check_terms(terms[0], truth.sum(axis=-1), missing)
    return terms[0] - pair_weight * terms[1] / 2


def _variogram_block(
    members: np.ndarray, truth: np.ndarray, weights: np.ndarray, pairs: np.ndarray, p: float, missing: str, threads: int
) -> np.ndarray:
    scores = np.where(np.isnan(members).any(axis=(1, 2)) | np.isnan(truth).any(axis=-1), np.nan, 0.0)
    check_terms(scores, truth.sum(axis=-1), missing)
    _over_cases(
        lambda first, last: _variogram_scores(members, truth, weights, pairs, p, first, last, scores), truth.shape[0], threads
    )
    return scores


# Sums may be reordered, which vectorises them; missing values stay what they are.
@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})
def _energy_terms(members, truth, weights, omit, first, last, terms):  # type: ignore[no-untyped-def]
    """terms (2, cases): mean distance to the truth, and between distinct pairs of members (0 with one member).

    The truth is the last row. Components are taken in blocks, so that each is read once and the pairs find it in the cache.
    """
    size, components = members.shape[1], members.shape[2]
    rows = np.empty((size + 1, COMPONENTS))
    squares = np.empty((size + 1, size + 1))
    for case in range(first, last):
        squares[:] = 0.0
        for start in range(0, components, COMPONENTS):
            count = min(COMPONENTS, components - start)
            weight = weights[start : start + count]
            for m in range(size):
                rows[m, :count] = members[case, m, start : start + count]
            rows[size, :count] = truth[case, start : start + count]
            for i in range(1, size + 1):
                for j in range(i):
                    total = 0.0
                    for c in range(count):
                        difference = rows[i, c] - rows[j, c]
                        total += weight[c] * difference * difference
                    squares[i, j] += total
        to_truth, between, present = 0.0, 0.0, 0
        for i in range(size):
            if omit and np.isnan(squares[size, i]):
                continue
            present += 1
            to_truth += np.sqrt(squares[size, i])
            for j in range(i):
                if not (omit and np.isnan(squares[size, j])):
                    between += np.sqrt(squares[i, j])
        terms[0, case] = to_truth / present
        terms[1, case] = 2 * between / (present * (present - 1)) if size > 1 else 0.0


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})
def _variogram_scores(members, truth, weights, pairs, p, first, last, scores):  # type: ignore[no-untyped-def]
    """The score of each case that is not NaN already, twice the sum over the pairs i > j."""
    size, components = members.shape[1], members.shape[2]
    columns = np.empty((components, size))
    for case in range(first, last):
        if np.isnan(scores[case]):
            continue
        for m in range(size):
            for i in range(components):
                columns[i, m] = members[case, m, i]
        total = 0.0
        for i in range(components):
            for j in range(i):
                weight = pairs[i, j] if pairs.size > 0 else weights[i] * weights[j]
                gap = abs(truth[case, i] - truth[case, j]) ** p - _mean_power(columns[i], columns[j], p)
                total += weight * gap * gap
        scores[case] = 2 * total


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})
def _mean_power(a, b, p):  # type: ignore[no-untyped-def]
    """Mean of |a - b|^p; the two usual orders have loops of their own, which vectorise."""
    total = 0.0
    if p == 0.5:
        for m in range(a.size):
            total += np.sqrt(abs(a[m] - b[m]))
    elif p == 1.0:
        for m in range(a.size):
            total += abs(a[m] - b[m])
    else:
        for m in range(a.size):
            total += abs(a[m] - b[m]) ** p
    return total / a.size
