"""Read a published store past xarray and, where its chunks are as `data_pipeline.store` writes them, past zarr's event loop.

zarr hands every chunk from thread to thread several times. Chunks of about a megabyte, as analyses have them, cost about half
the time if the thread that wants them opens the file, checks the sum and calls the codec itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import google_crc32c
import numpy as np
import xarray as xr
import zarr
from numcodecs.blosc import Blosc  # type: ignore[import-untyped]
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec
from zarr.storage import LocalStore

from data_pipeline.errors import InputError, reading
from data_pipeline.memory import Buffers
from data_pipeline.store import is_store

CRC_BYTES = 4  # little-endian, after the compressed bytes


def stored_arrays(data: xr.Dataset, names: Sequence[str]) -> tuple[Mapping[str, zarr.Array], int] | None:
    """The zarr arrays behind a dataset that is a run of stamps of a published store, and the position of its first stamp.

    None otherwise. Arithmetic drops the encoding of a variable; for what keeps it (other stamps assigned, values replaced) the
    coordinates and the first and last fields are compared with those of the store.
    """
    source = Path(data.encoding.get("source", "nowhere"))
    if not is_store(source) or not all(_looks_stored(data[name]) for name in names):
        return None
    stored = xr.open_zarr(source, chunks=None, consolidated=True)
    if any(name not in stored or stored[name].dims != data[name].dims for name in names):
        return None
    if any(not np.array_equal(stored[dim], data[dim]) for dim in data[names].dims if dim != "time"):
        return None
    times = data["time"].values
    offset = int(np.searchsorted(stored["time"].values, times[0]))
    if not np.array_equal(stored["time"].values[offset : offset + times.size], times):
        return None
    group = zarr.open_group(source, mode="r", use_consolidated=True)
    arrays = {name: array for name in names if isinstance(array := group[name], zarr.Array)}
    for name, array in arrays.items():
        for i in (0, times.size - 1):
            with reading(f"{source}, {name} at {np.datetime_as_string(times[i], 'h')}"):
                stored_field, field = array[offset + i], data[name].isel(time=i).values
            if not np.array_equal(stored_field, field, equal_nan=True):
                return None
    return arrays, offset


def reader(array: zarr.Array, buffers: Buffers) -> Callable[[int, int], np.ndarray]:
    """read(first, stop): the fields of a run of stamps, float32, in memory lent by `buffers`.

    `read` raises InputError for a chunk whose checksum is wrong; a chunk that is not there reads as missing values.
    """
    if not _is_plain(array):
        return lambda first, stop: np.asarray(array[first:stop], np.float32)
    root, length = Path(array.store.root) / array.path, array.chunks[0]  # type: ignore[attr-defined]

    def read(first: int, stop: int) -> np.ndarray:
        chunks = range(first // length, -(-stop // length))
        out = buffers.lend((len(chunks) * length, *array.shape[1:]))
        for i, chunk in enumerate(chunks):
            key = array.metadata.encode_chunk_key((chunk, *(0,) * (array.ndim - 1)))
            _decode(root / key, out[i * length : (i + 1) * length])
        return out[first - chunks[0] * length :][: stop - first]

    return read


def _decode(file: Path, out: np.ndarray) -> None:
    try:
        with file.open("rb", buffering=0) as stream:
            packed, written = stream.read(file.stat().st_size - CRC_BYTES), stream.read()
    except FileNotFoundError:
        out[:] = np.nan
        return
    if google_crc32c.value(packed).to_bytes(CRC_BYTES, "little") != written:
        raise InputError(f"{file} is damaged: its checksum differs from the one written; make the store again, or copy it again")
    Blosc().decode(packed, out)


def _looks_stored(array: xr.DataArray) -> bool:
    packed = {"scale_factor", "add_offset"} & array.encoding.keys()
    ordered = array.dims in (("time", "latitude", "longitude"), ("time", "level", "latitude", "longitude"))
    return array.chunks is not None and "chunks" in array.encoding and not packed and ordered


def _is_plain(array: zarr.Array) -> bool:
    kinds = tuple(type(codec) for codec in getattr(array.metadata, "codecs", ()))
    whole = array.chunks[1:] == array.shape[1:] and array.dtype == np.dtype("<f4")
    return kinds == (BytesCodec, BloscCodec, Crc32cCodec) and whole and isinstance(array.store, LocalStore)
