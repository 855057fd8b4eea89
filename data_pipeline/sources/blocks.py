"""Stored arrays as dask, one block a stored chunk; a block that cannot be read says which field and stamps it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dask.array
import numpy as np
import xarray as xr

from data_pipeline.errors import InputError, PlumecastError
from data_pipeline.sources.join import shown

WHOLE = ("latitude", "lat", "longitude", "lon")  # in one block: what is done with fields takes whole ones


def as_blocks(raw: xr.Dataset, places: Mapping[str, np.ndarray], axis: str) -> xr.Dataset:
    """`raw` (lazy, not dask) at the positions `places` of its dims (those not named: all), as dask.

    A block holds what is wanted of one stored chunk, fields whole. axis: the dim whose stamps errors name.
    """
    chosen = raw.isel({dim: _compact(place) for dim, place in places.items() if dim in raw.dims})
    arrays = {}
    for name, array in chosen.data_vars.items():
        stored = raw[name].encoding.get("preferred_chunks", {})
        sizes = tuple(
            (array.sizes[dim],)
            if dim in WHOLE
            else _runs(places.get(str(dim), np.arange(array.sizes[dim])), stored.get(dim, array.sizes[dim]))
            for dim in array.dims
        )
        data = dask.array.from_array(_Stored(str(name), array, axis), chunks=sizes, name=False, fancy=False, asarray=False)
        arrays[name] = (array.dims, data, array.attrs)
    return chosen.assign(arrays)


def _compact(places: np.ndarray) -> slice | np.ndarray:
    """Neighbours as a slice: read in one piece."""
    if places.size and (np.diff(places) == 1).all():
        return slice(int(places[0]), int(places[-1]) + 1)
    return places


def _runs(places: np.ndarray, stored: int) -> tuple[int, ...]:
    """Lengths of the runs of positions that lie in one stored chunk."""
    breaks = np.flatnonzero(np.diff(places // max(stored, 1))) + 1
    return tuple(np.diff([0, *breaks, places.size]).tolist())


class _Stored:
    """What dask slices: the lazy array, and the words for what fails."""

    def __init__(self, name: str, array: xr.DataArray, axis: str) -> None:
        self.name, self.variable = name, array.variable
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim
        self.place = array.dims.index(axis) if axis in array.dims else None
        self.stamps = array[axis].values if self.place is not None else np.array([])

    def __getitem__(self, key: Any) -> np.ndarray:
        try:
            return np.asarray(self.variable[key].values)
        except PlumecastError as error:
            raise type(error)(f"{self._said(key)}: {error}") from None
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            raise InputError(
                f"{self._said(key)}: what is stored does not decode ({error}); it is damaged, get it again"
            ) from None

    def _said(self, key: Any) -> str:
        if self.place is None:
            return self.name
        wanted = np.atleast_1d(self.stamps[key[self.place]])
        return f"{self.name}, {shown(wanted[0])}" + (f" .. {shown(wanted[-1])}" if wanted.size > 1 else "")
