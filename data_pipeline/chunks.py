"""Layout of a store: coordinates whole, variables in compressed chunks with checksums, and the bytes of one chunk.

Chunks are encoded here and not by zarr, whose one event loop would hold up threads that write side by side. The bytes are the
same.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from google_crc32c import value as crc32c
from numcodecs.blosc import Blosc  # type: ignore[import-untyped]
from zarr.codecs import BloscCodec, Crc32cCodec

from data_pipeline.disk import plain, write_bytes
from data_pipeline.errors import InputError
from data_pipeline.recipe import fingerprint

TIME_ENCODING = {"units": "hours since 1900-01-01", "dtype": "int64", "calendar": "proleptic_gregorian"}
LEAD_ENCODING = {"units": "hours", "dtype": "int64"}
LEVEL = 3  # of zstd: 5 gains 2 % and takes half as long again

Region = Mapping[str, slice]
Array = zarr.Array[Any]


def canonical(template: xr.Dataset) -> xr.Dataset:
    """Without foreign encodings; stamps and leads in nanoseconds, text as objects (fixed-width text is outside zarr's text)."""
    template = template.drop_encoding()
    kinds = {"M": "datetime64[ns]", "m": "timedelta64[ns]", "U": "object"}
    for name, variable in template.variables.items():
        variable.attrs = plain(variable.attrs)
        if variable.dtype.kind in kinds:
            template[name] = template[name].astype(kinds[variable.dtype.kind])
    return template


def encoding(template: xr.Dataset, chunks: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """The zarr encoding of every variable; chunks: dim -> chunk size, dims not named are whole."""
    found: dict[str, dict[str, Any]] = {}
    for key, variable in template.variables.items():
        name = str(key)
        whole = name in template.coords
        # a chunk may be longer than the data: a store that is extended later has the same chunks
        shape = tuple(size if whole else chunks.get(str(dim), size) for dim, size in variable.sizes.items())
        entry: dict[str, Any] = {"chunks": shape} if shape else {}
        if variable.dtype.kind != "O":
            entry["compressors"] = [BloscCodec(cname="zstd", clevel=LEVEL, shuffle="shuffle"), Crc32cCodec()]
        if variable.dtype.kind == "f":
            entry["_FillValue"] = np.nan
        entry |= {"M": TIME_ENCODING, "m": LEAD_ENCODING}.get(variable.dtype.kind, {})
        found[name] = entry
    return found


def layout(template: xr.Dataset, chunks: Mapping[str, int]) -> dict[str, Any]:
    """The layout as plain data, in lines that a person can compare."""
    variables = {
        str(name): f"{array.dtype} {', '.join(f'{dim}={size}' for dim, size in array.sizes.items())}"
        for name, array in template.data_vars.items()
    }
    coords = {
        str(name): f"{span(coord.values)} [{fingerprint({'values': coord.values.tolist()})}]"
        for name, coord in template.coords.items()
    }
    return {"variables": variables, "order": list(variables), "coords": coords, "chunks": dict(chunks)}


def span(values: np.ndarray) -> str:
    """First and last value and their number."""
    flat = values.ravel()
    if flat.size == 0:
        return "empty"
    return f"{flat[0]}" if flat.size == 1 else f"{flat[0]} .. {flat[-1]} ({flat.size})"


def open_arrays(root: Path, template: xr.Dataset) -> dict[str, Array]:
    """The variables to be filled part by part: numbers, as `encoding` stores them."""
    group = zarr.open_group(root, mode="r+", use_consolidated=False)
    arrays = {str(name): group[str(name)] for name, array in template.data_vars.items() if array.chunks is not None}
    return {name: array for name, array in arrays.items() if isinstance(array, zarr.Array)}


def dims_of(array: Array) -> list[str]:
    """The dims of a zarr array."""
    return [str(dim) for dim in array.metadata.dimension_names or ()]  # type: ignore[union-attr]


def check_box(where: str, array: Array, region: Region, sizes: Mapping[Any, int]) -> None:
    """Raise InputError unless data of these sizes fill a box of whole chunks."""
    dims = dims_of(array)
    if set(sizes) != set(dims):
        raise InputError(f"{where}: dims {list(sizes)}, expected {dims}")
    for dim, size, chunk in zip(dims, array.shape, array.chunks, strict=True):
        start, stop, _ = region.get(dim, slice(None)).indices(size)
        if stop - start != sizes[dim]:
            raise InputError(f"{where}: {sizes[dim]} values along {dim} for the box {start}:{stop}")
        if start % chunk or (stop % chunk and stop != size):
            raise InputError(f"{where}: the box {start}:{stop} along {dim} cuts chunks of {chunk}; align the parts with them")


def chunk_keys(array: Array, region: Region) -> Iterator[str]:
    """The files of the chunks in a box."""
    for position in itertools.product(*_chunk_ranges(array, region)):
        yield array.metadata.encode_chunk_key(position)


def write_box(folder: Path, array: Array, region: Region, values: np.ndarray) -> dict[str, list[Any]]:
    """Write the chunks of a box, see `check_box`, into the folder of the array; {file: [bytes, sha256]}. Not durable yet."""
    files: dict[str, list[Any]] = {}
    starts = [region.get(dim, slice(None)).indices(size)[0] for dim, size in zip(dims_of(array), array.shape, strict=True)]
    values = values.astype(array.dtype, copy=False)
    for position in itertools.product(*_chunk_ranges(array, region)):
        lows = [place * chunk - start for place, chunk, start in zip(position, array.chunks, starts, strict=True)]
        piece = values[tuple(slice(low, low + chunk) for low, chunk in zip(lows, array.chunks, strict=True))]
        content = encoded(_filled_up(piece, array))
        key = array.metadata.encode_chunk_key(position)
        write_bytes(folder / key, content)
        files[key] = [len(content), hashlib.sha256(content).hexdigest()]
    return files


def encoded(chunk: np.ndarray) -> bytes:
    """The bytes of a chunk under the codecs of `encoding`."""
    little = np.ascontiguousarray(chunk, chunk.dtype.newbyteorder("<"))
    packed: bytes = Blosc(cname="zstd", clevel=LEVEL, shuffle=Blosc.SHUFFLE, typesize=little.itemsize).encode(little)
    return packed + crc32c(packed).to_bytes(4, "little")


def _filled_up(piece: np.ndarray, array: Array) -> np.ndarray:
    """The last chunk along a dim reaches over its end: there it holds the fill value."""
    if piece.shape == array.chunks:
        return piece
    whole = np.full(array.chunks, array.fill_value, array.dtype)
    whole[tuple(slice(size) for size in piece.shape)] = piece
    return whole


def _chunk_ranges(array: Array, region: Region) -> list[range]:
    ranges = []
    for dim, size, chunk in zip(dims_of(array), array.shape, array.chunks, strict=True):
        start, stop, _ = region.get(dim, slice(None)).indices(size)
        ranges.append(range(start // chunk, -(-stop // chunk)))
    return ranges
