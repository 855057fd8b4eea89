"""What all public scores share: arguments checked, blocks applied lazily, weighted means that count their cases.

One missing-value policy for all. A case is one point of all dims but `member_dim`; a case whose truth is NaN never counts.
`missing` says what a NaN member does: "propagate" (the case is NaN; a mean over `dim` leaves it out of numerator and denominator
and reports the number of cases used as coordinate `cases`), "omit" (the case is scored with the members it has), "raise"
(InputError). Infinite values are always an InputError. Means run in float64; weights need not be normalised.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, Literal

import numpy as np
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.workers import cores

Missing = Literal["propagate", "omit", "raise"]
Dims = Hashable | Iterable[Hashable]

MISSING = ("propagate", "omit", "raise")


def check_arguments(forecast: xr.DataArray, truth: xr.DataArray, member_dim: str, missing: str) -> None:
    """Raise InputError for a forecast without members, a truth with them, or an unknown policy."""
    if member_dim not in forecast.dims:
        raise InputError(f"forecast has dims {tuple(forecast.dims)}; expected a member dim {member_dim!r} (argument member_dim)")
    if forecast.sizes[member_dim] == 0:
        raise InputError(f"forecast has no members: its dim {member_dim!r} is empty")
    if member_dim in truth.dims:
        raise InputError(f"truth has the member dim {member_dim!r}; score it member by member, or average it first")
    if missing not in MISSING:
        raise InputError(f"missing={missing!r} is not known; one of {', '.join(MISSING)}")


def units_of(array: xr.DataArray) -> str:
    """The attribute `units`, "1" if there is none."""
    return str(array.attrs.get("units", "1"))


def apply_cases(
    function: Any,
    forecast: xr.DataArray,
    truth: xr.DataArray,
    member_dim: str,
    arguments: dict[str, Any],
    output: str | None = None,
    output_size: int = 0,
) -> xr.DataArray:
    """`function(members (..., M), truth (...), ...)` on every block; dask runs the blocks, else the kernel runs on all cores."""
    lazy = forecast.chunks is not None or truth.chunks is not None
    if forecast.chunks is not None:
        forecast = forecast.chunk({member_dim: -1})
    try:
        return xr.apply_ufunc(
            function,
            forecast,
            truth,
            input_core_dims=[[member_dim], []],
            output_core_dims=[[output] if output else []],
            kwargs={**arguments, "threads": 1 if lazy else cores()},
            join="exact",
            dask="parallelized",
            output_dtypes=[np.float64],
            dask_gufunc_kwargs={"output_sizes": {output: output_size}} if output else None,
        )
    except xr.AlignmentError as error:
        raise InputError(
            f"forecast and truth lie on different coordinates; select or regrid them to the same ones first: {error}"
        ) from None


def members_leading(members: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Members (cases, M, points) and truth (cases, points), views where memory allows, and the shape they came from.

    The member axis stays where it lies in memory: the kernel reads any (cases, M, points).
    """
    shape = np.broadcast_shapes(members.shape[:-1], truth.shape)
    dtype = np.result_type(members, truth, np.float32)
    if members.shape[:-1] != shape:
        members = np.broadcast_to(members, (*shape, members.shape[-1]))
    before = sum(stride > members.strides[-1] for stride in members.strides[:-1])
    ordered = np.ascontiguousarray(np.moveaxis(members, -1, before), dtype=dtype)
    cases = int(np.prod(shape[:before]))
    points = int(np.prod(shape[before:]))
    if truth.shape != shape:
        truth = np.broadcast_to(truth, shape).copy()
    truths = np.ascontiguousarray(truth, dtype=dtype).reshape(cases, points)
    if np.isinf(truths).any():
        raise InputError(f"truth holds {int(np.isinf(truths).sum())} infinite values; mask them as NaN at the source")
    return ordered.reshape(cases, members.shape[-1], points), truths, shape


def check_terms(abs_error: np.ndarray, truth: np.ndarray, missing: str) -> None:
    """Raise InputError if `abs_error` (NaN where a member or the truth is missing) betrays what the policy forbids."""
    if np.isinf(abs_error).any():
        raise InputError(
            f"forecast holds infinite values in {int(np.isinf(abs_error).sum())} cases; mask them as NaN at the source"
        )
    if missing == "raise" and np.isnan(abs_error).any():
        no_truth = int(np.isnan(truth).sum())
        no_member = int(np.isnan(abs_error).sum()) - no_truth
        raise InputError(
            f"missing values: {no_truth} cases without truth, {no_member} with a missing member; "
            "missing='propagate' or 'omit' allows them"
        )


def apply_exact(function: Callable[..., Any], *arrays: Any, sizes: dict[str, int] | None = None, **options: Any) -> xr.DataArray:
    """`xr.apply_ufunc`, block by block on dask; core dims are made whole, unequal coordinates are an InputError.

    sizes: of the new core dims in the output. The result is float64 unless output_dtypes says otherwise.
    """
    core = options.get("input_core_dims", [[] for _ in arrays])
    whole = [
        array.chunk(dict.fromkeys(dims, -1)) if dims and array.chunks is not None else array
        for array, dims in zip(arrays, core, strict=True)
    ]
    options = {"output_dtypes": [np.float64], "dask_gufunc_kwargs": {"output_sizes": sizes} if sizes else None, **options}
    try:
        return xr.apply_ufunc(function, *whole, join="exact", dask="parallelized", keep_attrs=False, **options)
    except xr.AlignmentError as error:
        raise InputError(
            f"the arrays lie on different coordinates; select or regrid them to the same ones first: {error}"
        ) from None


def dims_of(dim: Dims, array: xr.DataArray) -> list[Any]:
    """`dim` as a list of names; InputError for one that the array lacks."""
    dims = list(dim) if isinstance(dim, Iterable) and not isinstance(dim, str) else [dim]
    unknown = [name for name in dims if name not in array.dims]
    if unknown or not dims:
        raise InputError(f"dim {unknown or dims} is not in the data, which have {tuple(array.dims)}")
    return dims


def coarser(*arrays: np.ndarray | xr.DataArray) -> type[np.floating]:
    """The precision in which values of these arrays are compared: float32 if one of them is no finer, else float64.

    0.1 as float32 is more than 0.1 as float64; compared in the coarser precision they tie.
    """
    coarse = any(array.dtype.kind == "f" and array.dtype.itemsize <= 4 for array in arrays)
    return np.float32 if coarse else np.float64


def refuse_infinite(**arrays: np.ndarray) -> None:
    """Raise InputError, naming the array, for infinite values."""
    for name, array in arrays.items():
        if np.isinf(array).any():
            raise InputError(f"{name} holds {int(np.isinf(array).sum())} infinite values; mask them as NaN at the source")


def describe_threshold(threshold: float | xr.DataArray) -> str:
    """The threshold as an attribute: its value, or its name and dims."""
    if isinstance(threshold, xr.DataArray) and threshold.ndim:
        return f"{threshold.name or 'values'} by {', '.join(map(str, threshold.dims))}"
    return repr(float(threshold))


def weighted_mean(values: xr.DataArray, dim: Dims, weights: xr.DataArray | None) -> xr.DataArray:
    """Weighted mean over `dim` of the cases that are not NaN; their number is the coordinate `cases`.

    Raises InputError for weights on other coordinates than the values: joining what they share would drop cases unseen.
    """
    dims = dims_of(dim, values)
    present = values.notnull()
    weight = present.astype(np.float64)
    if weights is not None:
        weight = apply_exact(np.multiply, present, weights.astype(np.float64))
    total = (values.fillna(0.0) * weight).sum(dims)
    norm = weight.sum(dims)
    cases = present.any("rank") if "rank" in values.dims else present
    return (total / norm.where(norm > 0)).assign_coords(cases=cases.sum(dims))
