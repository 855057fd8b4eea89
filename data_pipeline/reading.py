"""Normalised fields of an analysis, whole chunks at a time: from its files where it is a store as opened, else by xarray.

Each value is normalised once, in float64 registers, on its way from the decoded chunk to float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numba
import numpy as np
import xarray as xr
import zarr

from data_pipeline.direct import reader, stored_arrays
from data_pipeline.errors import InputError, reading
from data_pipeline.memory import Buffers
from data_pipeline.schema import Channel, select
from data_pipeline.statistics import in_period, to_model_space

BLOCK = 32  # stamps read together from an analysis without chunks


@dataclass(frozen=True)
class _Variable:
    """read(first, stop) gives (stamps, levels, latitude, longitude). places: (position among those levels, output channel)."""

    read: Callable[[int, int], np.ndarray]
    places: list[tuple[int, int]]


class Fields:
    """The fields of `channels` inside a period, less their mean and over their std, after the variable's transform.

    times: the stamps, ascending. shape: (time, channel, latitude, longitude). edges: positions of the first stamps of the blocks
    that decode whole chunks, and the end. direct: whether they are read from the store itself. Raises InputError for channels
    that the analysis lacks and for statistics that are missing or cannot divide.
    """

    def __init__(
        self, analysis: xr.Dataset, channels: Sequence[Channel], statistics: xr.Dataset, period: tuple[str, str]
    ) -> None:
        shapes = {select(analysis, channel).transpose("time", "latitude", "longitude").shape[1:] for channel in channels}
        inside = np.flatnonzero(in_period(analysis["time"].values, period))
        data = analysis.isel(time=slice(inside[0], inside[-1] + 1) if inside.size else slice(0))
        self.times = data["time"].values.astype("datetime64[ns]")
        self.channels, self.shape = list(channels), (self.times.size, len(channels), *shapes.pop())
        self._mean, self._std = _moments(self.channels, statistics)
        self._transformed = [to_model_space(_PROBE, channel) is not _PROBE for channel in channels]
        self._scratch = Buffers(4)
        names = list(dict.fromkeys(channel.name for channel in channels))
        stored = stored_arrays(data, names) if inside.size else None
        self.direct = stored is not None
        if stored is None:
            self.edges = _dask_edges(data, names)
            self._variables = [self._from_xarray(data[name]) for name in names]
        else:
            arrays, offset = stored
            chunk = max(array.chunks[0] for array in arrays.values())
            self.edges = np.unique([0, *range(-offset % chunk, self.times.size, chunk), self.times.size])
            self._variables = [self._from_zarr(data[name], arrays[name], offset) for name in names]

    def read(self, block: int, out: np.ndarray) -> None:
        """Fill `out` (stamps, channel, latitude, longitude), float32, C-contiguous, with a block.

        Raises InputError for missing or infinite values, naming channel and stamp, and for damaged chunks, naming the file.
        """
        first, stop = int(self.edges[block]), int(self.edges[block + 1])
        for variable in self._variables:
            raw = variable.read(first, stop)
            for level, channel in variable.places:
                for i in range(stop - first):
                    self._normalise(raw[i, level].reshape(-1), channel, first + i, out[i, channel].reshape(-1))

    def _normalise(self, values: np.ndarray, channel: int, position: int, out: np.ndarray) -> None:
        if self._transformed[channel]:
            values = to_model_space(values.astype(np.float64), self.channels[channel])
        faults = _scale(values, self._mean[channel], self._std[channel], out)
        if faults:
            stamp = np.datetime_as_string(self.times[position], "h")
            raise InputError(
                f"{self.channels[channel]} at {stamp}: {faults} of {out.size} values are missing or infinite; a network cannot "
                "be trained on them: leave the channel out, or choose a period without them"
            )

    def _from_xarray(self, array: xr.DataArray) -> _Variable:
        dims = [dim for dim in ("time", "level", "latitude", "longitude") if dim in array.dims]
        wanted = self._levels(array)
        if "level" in dims:
            array = array.sel(level=[level for level, _ in wanted])
        array = array.transpose(*dims)

        def read(first: int, stop: int) -> np.ndarray:
            with reading(f"{array.name}, stamps {first} to {stop - 1} of the period"):
                raw = np.ascontiguousarray(array.isel(time=slice(first, stop)).values)
            return raw if raw.ndim == 4 else raw[:, None]

        return _Variable(read, [(i, channel) for i, (_, channel) in enumerate(wanted)])

    def _from_zarr(self, array: xr.DataArray, source: zarr.Array, offset: int) -> _Variable:
        wanted, stored = self._levels(array), reader(source, self._scratch)
        levels = array["level"].values.tolist() if "level" in array.dims else [None]

        def read(first: int, stop: int) -> np.ndarray:
            raw = stored(offset + first, offset + stop)
            return raw if raw.ndim == 4 else raw[:, None]

        return _Variable(read, [(levels.index(level), channel) for level, channel in wanted])

    def _levels(self, array: xr.DataArray) -> list[tuple[int | None, int]]:
        return [(channel.level, i) for i, channel in enumerate(self.channels) if channel.name == array.name]


def _dask_edges(data: xr.Dataset, names: Sequence[str]) -> np.ndarray:
    chunks = [dict(data[name].variable.chunksizes).get("time") for name in names]
    known = [chunk for chunk in chunks if chunk is not None]
    if known:
        return np.cumsum([0, *min(known, key=len)])
    return np.unique([*range(0, data.sizes["time"], BLOCK), data.sizes["time"]])


def _moments(channels: Sequence[Channel], statistics: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    mean, std = (np.asarray(statistics[name].values, np.float64) for name in ("mean", "std"))
    if mean.shape != (len(channels),) or std.shape != mean.shape:
        raise InputError(f"the statistics are of {mean.size} channels; the samples have {len(channels)}")
    bad = [str(channel) for channel, m, s in zip(channels, mean, std, strict=True) if not (np.isfinite(m) and 0 < s < np.inf)]
    if bad:
        raise InputError(
            f"statistics of {', '.join(bad)}: mean or std is missing, infinite or 0, so nothing can be normalised; compute them "
            "again, or leave the channels out"
        )
    return mean, std


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _scale(values, mean, std, out):  # type: ignore[no-untyped-def]
    """out = (values - mean) / std, rounded once; the number of results that are not finite."""
    faults = 0
    for i in range(values.size):
        scaled = np.float32((values[i] - mean) / std)
        out[i] = scaled
        faults += (scaled - scaled) != 0.0
    return faults


_PROBE = np.zeros(1)  # a transform that changes nothing returns its very argument
