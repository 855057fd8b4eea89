"""Fields from many files to one dataset: concatenated along time, members, leads and levels, variables side by side."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.schema import FORECAST_DIMS

JOINED = ("number", "level", "prediction_timedelta", "time")  # in this order: members of one run first, years last
AXES = ("latitude", "longitude")
_AVAILABLE = {"level": "levels_available", "prediction_timedelta": "hours_available"}


def join(fields: Sequence[xr.DataArray], log: list[str]) -> xr.Dataset:
    """One dataset. Levels and leads that a variable lacks are NaN (its attributes say so), members and times are the common ones.

    Raises InputError where grids differ, where a field is there twice, or where the pieces of a variable do not fill a block.
    """
    if not fields:
        raise InputError("no field was found")
    _check_grids(fields)
    by_name: dict[str, list[xr.DataArray]] = defaultdict(list)
    for array in fields:
        by_name[str(array.name)].append(array)
    whole = [_joined(name, pieces) for name, pieces in by_name.items()]
    for dim in ("time", "number"):
        whole = _common(whole, dim, log)
    for dim in _AVAILABLE:
        whole = _filled(whole, dim)
    coords = {dim: array[dim] for dim in FORECAST_DIMS for array in whole if dim in array.dims}
    return xr.Dataset({array.name: array for array in whole}, coords)


def _check_grids(fields: Sequence[xr.DataArray]) -> None:
    first = fields[0]
    for array in fields[1:]:
        for axis in AXES:
            mine, theirs = first[axis].values, array[axis].values
            if mine.size != theirs.size or not np.allclose(mine, theirs, rtol=0, atol=1e-4):
                raise InputError(
                    f"{array.name} is on another grid than {first.name}: {axis} {_extent(theirs)}, not {_extent(mine)}; "
                    "ingest each grid on its own"
                )


def _extent(axis: np.ndarray) -> str:
    return f"{axis.size} points {axis[0]:g} .. {axis[-1]:g}"


def _joined(name: str, pieces: list[xr.DataArray]) -> xr.DataArray:
    if "time" not in pieces[0].dims:  # static: any file will do
        return pieces[0]
    windows = sorted({tuple(pair) for piece in pieces for pair in piece.attrs.get("windows", [])})
    axes = {axis: pieces[0][axis] for axis in AXES}
    pieces = [piece if all(piece[axis].equals(axes[axis]) for axis in AXES) else piece.assign_coords(axes) for piece in pieces]
    for dim in JOINED:
        if dim in pieces[0].dims:
            pieces = [_concatenated(name, group, dim) for group in _alike(pieces, dim)]
    if len(pieces) > 1:
        raise InputError(f"{name}: its {len(pieces)} pieces do not fill a block; {_first_misfit(pieces)}")
    return pieces[0].assign_attrs(windows=windows) if windows else pieces[0]


def _alike(pieces: list[xr.DataArray], dim: str) -> list[list[xr.DataArray]]:
    """Pieces with equal coordinates along every joined dim but `dim`."""
    groups: dict[tuple[bytes, ...], list[xr.DataArray]] = defaultdict(list)
    for piece in pieces:
        others = [other for other in JOINED if other != dim and other in piece.dims]
        groups[tuple(piece[other].values.tobytes() for other in others)].append(piece)
    return list(groups.values())


def _concatenated(name: str, pieces: list[xr.DataArray], dim: str) -> xr.DataArray:
    pieces = sorted(pieces, key=lambda piece: piece[dim].values[0])
    values = np.concatenate([piece[dim].values for piece in pieces])
    distinct, counts = np.unique(values, return_counts=True)
    if (counts > 1).any():
        sources = sorted({str(piece.attrs.get("source_name")) for piece in pieces})
        what = f'as {", ".join(sources)}; leave one out by the source option names, as {{"{sources[-1]}" = ""}}'
        raise InputError(
            f"{name}: {dim} {shown(distinct[counts > 1][0])} is there {counts.max()} times"
            + (f", {what}" if len(sources) > 1 else "; keep one of them")
        )
    if len(pieces) == 1:
        return pieces[0]
    joined = xr.concat(pieces, dim=dim, coords="minimal", compat="override", join="exact", combine_attrs="override")
    return joined if (values[1:] > values[:-1]).all() else joined.sortby(dim)


def _first_misfit(pieces: list[xr.DataArray]) -> str:
    for dim in JOINED:
        if dim in pieces[0].dims:
            for piece in pieces[1:]:
                missing = np.setdiff1d(pieces[0][dim].values, piece[dim].values)
                if missing.size:
                    return f"one lacks {dim} {shown(missing[0])}"
    return "their coordinates differ"


def _common(whole: list[xr.DataArray], dim: str, log: list[str]) -> list[xr.DataArray]:
    with_dim = [array for array in whole if dim in array.dims]
    if not with_dim:
        return whole
    shared = with_dim[0][dim].values
    for array in with_dim[1:]:
        shared = np.intersect1d(shared, array[dim].values)
    if shared.size == 0:
        spans = "; ".join(f"{array.name} {shown(array[dim].values[0])} .. {shown(array[dim].values[-1])}" for array in with_dim)
        raise InputError(f"no {dim} is common to all variables: {spans}")
    longer = [str(array.name) for array in with_dim if array.sizes[dim] > shared.size]
    if not longer:
        return whole
    log.append(f"{dim}: {', '.join(longer)} have more; kept the {shared.size} common to all variables")
    return [array.sel({dim: shared}) if dim in array.dims else array for array in whole]


def _filled(whole: list[xr.DataArray], dim: str) -> list[xr.DataArray]:
    with_dim = [array for array in whole if dim in array.dims]
    if not with_dim:
        return whole
    union = np.unique(np.concatenate([array[dim].values for array in with_dim]))
    return [reindexed(array, dim, union) if dim in array.dims else array for array in whole]


def reindexed(array: xr.DataArray, dim: str, values: np.ndarray) -> xr.DataArray:
    """`array` at all `values` of a dim, NaN where it has none; an attribute names the levels or leads (hours) that it has."""
    own = array[dim].values
    if np.array_equal(own, values):
        return array
    listed = (own / np.timedelta64(1, "h")).tolist() if own.dtype.kind == "m" else own.tolist()
    said = {_AVAILABLE[dim]: listed} if dim in _AVAILABLE else {}
    return array.reindex({dim: values}).assign_attrs(said)


def noted(data: xr.Dataset, lines: Sequence[str]) -> xr.Dataset:
    """`data` with more lines in its mapping."""
    return data.assign_attrs(mapping=json.dumps([*json.loads(data.attrs.get("mapping", "[]")), *lines]))


def shown(value: object) -> str:
    """A coordinate value for a person: 2001-01-01T12:00, 78 h, 500."""
    if isinstance(value, np.datetime64):
        return str(value.astype("datetime64[m]"))
    if isinstance(value, np.timedelta64):
        return f"{value / np.timedelta64(1, 'h'):g} h"
    return f"{value}"
