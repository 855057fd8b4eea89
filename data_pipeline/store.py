"""Crash-safe zarr v3 stores: absent, visibly unfinished, or whole, at whatever point the writer is killed.

    <path>.partial/        while it is being written: not a zarr store, plain readers refuse it
        lock               held by the one writer
        plan.json          recipe, layout and parts; there once the empty store below is on the disk
        store/             the zarr tree
        parts/<part>.json  one done-marker a part, written after its chunks are on the disk, with their hashes
    <path>                 `store/`, renamed when every part is there, with manifest.json (files, sizes, hashes, recipe)

A published store opens with plain `xarray.open_zarr` and looks like a WeatherBench 2 store.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import dask.array
import numpy as np
import xarray as xr
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from data_pipeline.disk import Lock, plain, sha256, sync, sync_files, write_json
from data_pipeline.errors import InputError, NotReadyError, PlumecastError
from data_pipeline.recipe import differences, fingerprint

MANIFEST = "manifest.json"
TIME_ENCODING = {"units": "hours since 1900-01-01", "dtype": "int64", "calendar": "proleptic_gregorian"}
LEAD_ENCODING = {"units": "hours", "dtype": "int64"}
PART_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,120}")


class StoreWriter:
    """The one writer of a store; made by `create`. A context manager: leaving it drops the lock, not the data.

    parts: every part of the store. done: those safely on the disk. notes: {part: what `complete` was given}. finished: True
    once the store is published; there is then nothing to write.
    """

    def __init__(self, path: Path, parts: Sequence[str], template: xr.Dataset, lock: Lock | None) -> None:
        self.path, self.parts, self.finished = path, tuple(parts), lock is None
        self.notes: dict[str, Any] = {}
        self._lock = lock
        self._folder = partial_path(path)
        self._coords = {str(name): coord.values for name, coord in template.coords.items()}
        self._pending: dict[str, dict[str, list[Any]]] = {}
        self._files: dict[str, list[Any]] = {}
        self._arrays: dict[str, zarr.Array[Any]] = {}
        if lock is not None:
            self._arrays = _open_arrays(self._folder / "store", template)
            self._read_markers()

    @property
    def done(self) -> set[str]:
        return set(self.parts) if self.finished else set(self.notes)

    def put(self, part: str, data: xr.Dataset, region: Mapping[str, slice]) -> None:
        """Write `data` into the box `region` (dim -> slice of positions; dims not named are whole).

        A part may take several boxes, none of them shared with another part. Raises InputError if the box cuts through chunks, if
        variables are missing, or if sizes or coordinates differ from those of the store.
        """
        self._check(part, data, region)
        files = self._pending.setdefault(part, {})
        for name, array in self._arrays.items():
            dims = _dims(array)
            array[tuple(region.get(dim, slice(None)) for dim in dims)] = data[name].transpose(*dims).values
            for key in _chunk_keys(array, region):
                file = self._folder / "store" / name / key
                files[f"{name}/{key}"] = [file.stat().st_size, sha256(file)]

    def complete(self, part: str, note: Any = None) -> None:
        """Mark a part done once its chunks are on the disk. `note` (plain data) comes back as `notes[part]` after a restart."""
        files = self._pending.pop(part, None)
        if files is None:
            raise PlumecastError(f"{self.path}: part {part!r} has nothing written to it")
        root = self._folder / "store"
        sync_files([root / file for file in files], root)
        write_json(self._folder / "parts" / f"{part}.json", {"part": part, "note": plain(note), "files": files})
        self._files.update(files)
        self.notes[part] = plain(note)

    def write(self, part: str, data: xr.Dataset, region: Mapping[str, slice], note: Any = None) -> None:
        """`put` and `complete` in one: the part is this one box."""
        self.put(part, data, region)
        self.complete(part, note)

    def finish(self, attrs: Mapping[str, Any] | None = None) -> Path:
        """Publish the store with these further attributes; returns its path. Does nothing if it is published already.

        Raises PlumecastError if parts are missing.
        """
        if self.finished:
            return self.path
        missing = [part for part in self.parts if part not in self.notes]
        if missing:
            raise PlumecastError(f"{self.path}: {len(missing)} of {len(self.parts)} parts not written, first {missing[0]}")
        root = self._folder / "store"
        (root / MANIFEST).unlink(missing_ok=True)
        zarr.open_group(root, mode="r+", use_consolidated=False).attrs.update(plain(attrs or {}))
        with warnings.catch_warnings():  # every reader we know understands it; zarr warns that the v3 text does not list it yet
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            zarr.consolidate_metadata(root)
        plan = json.loads((self._folder / "plan.json").read_text())
        plan.pop("parts")
        content = {"format": 1, "plumecast_version": version(), **plan, "files": self._inventory(root)}
        write_json(root / MANIFEST, content)
        sync_files([file for file in root.rglob("*") if file.name == "zarr.json"], root)
        root.rename(self.path)
        sync(self.path.parent)
        shutil.rmtree(self._folder)
        self.finished = True
        self.close()
        return self.path

    def close(self) -> None:
        """Let another writer continue. Whatever was completed stays."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _check(self, part: str, data: xr.Dataset, region: Mapping[str, slice]) -> None:
        where = f"{self.path}, part {part!r}"
        if part not in self.parts:
            raise InputError(f"{where}: not a part of this store ({self.parts[0]} .. {self.parts[-1]})")
        missing = [name for name in self._arrays if name not in data]
        if missing:
            raise InputError(f"{where}: variables {missing} are missing; found {sorted(map(str, data.data_vars))}")
        for dim, coord in data.coords.items():
            if coord.dims != (dim,) or dim not in self._coords:
                continue
            expected = self._coords[str(dim)][region.get(str(dim), slice(None))]
            if not np.array_equal(coord.values, expected):
                raise InputError(f"{where}: {dim} is {_span(coord.values)}, but the box {dict(region)} holds {_span(expected)}")
        for name, array in self._arrays.items():
            _check_box(f"{where}, {name}", array, region, data[name].sizes)

    def _read_markers(self) -> None:
        for marker in sorted((self._folder / "parts").glob("*.json")):
            content = json.loads(marker.read_text())
            self.notes[content["part"]] = content["note"]
            self._files.update(content["files"])

    def _inventory(self, root: Path) -> dict[str, list[Any]]:
        """{file: [bytes, sha256]}. Raises PlumecastError if a chunk of a finished part has gone or changed size."""
        found: dict[str, list[Any]] = {}
        for file in sorted(path for path in root.rglob("*") if path.is_file()):
            key, size = file.relative_to(root).as_posix(), file.stat().st_size
            known = self._files.get(key)
            if known is not None and known[0] != size:
                raise PlumecastError(f"{file} has {size} bytes, {known[0]} were written; remove {self._folder} and start again")
            found[key] = known or [size, sha256(file)]
        gone = sorted(set(self._files) - set(found))
        if gone:
            raise PlumecastError(f"{root}: {len(gone)} chunks have gone, first {gone[0]}; remove {self._folder} and start again")
        return found


def create(
    path: str | Path,
    template: xr.Dataset,
    *,
    parts: Sequence[str],
    attrs: Mapping[str, Any],
    chunks: Mapping[str, int] | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> StoreWriter:
    """A writer for the store at `path`: new, continued, or already finished (`writer.finished`).

    template: coordinates and small static variables as numpy arrays, written at once; variables to be filled part by part
    backed by dask (see `blank`), of which only dims, shape, dtype and attributes count. chunks: dim -> chunk size; dims not
    named are whole; coordinates are always whole. recipe: plain data that decide the content, `attrs` where not given. Raises
    InputError, with the differences, if something made by another recipe or layout lies there; or if a writer is alive.
    """
    path = Path(path)
    bad = [part for part in parts if not PART_NAME.fullmatch(part)]
    if bad or len(set(parts)) != len(parts):
        raise InputError(f"{path}: part names must be plain and unique; found {bad or sorted(parts)}")
    template = _canonical(template)
    plan = plain({"recipe": attrs if recipe is None else recipe, "layout": _layout(template, chunks or {}), "parts": list(parts)})
    if path.exists():
        return _finished(path, plan, template)
    lock = Lock(partial_path(path) / "lock")
    try:
        if path.exists():  # published by another writer while we waited for the lock
            return _finished(path, plan, template)
        _prepare(path, plan, template, attrs, chunks or {})
        return StoreWriter(path, parts, template, lock)
    except BaseException:
        lock.release()
        raise


def write_dataset(
    path: str | Path,
    data: xr.Dataset,
    attrs: Mapping[str, Any] | None = None,
    *,
    chunks: Mapping[str, int] | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> Path:
    """A small dataset as a whole store, atomically. Same rules as `create` for what lies there already."""
    attributes = {**data.attrs, **(attrs or {})}
    with create(path, data.load(), parts=(), attrs=attributes, chunks=chunks, recipe=recipe) as writer:
        return writer.finish()


def blank(
    coords: Mapping[str, Any], variables: Mapping[str, tuple[Sequence[str], Mapping[str, Any]]], dtype: str = "float32"
) -> xr.Dataset:
    """A template for `create`: coordinates, and variables {name: (dims, attrs)} of the given dtype that take no memory."""
    template = xr.Dataset(coords=dict(coords))
    for name, (dims, attrs) in variables.items():
        shape = tuple(template.sizes[dim] for dim in dims)
        template[name] = xr.Variable(dims, dask.array.zeros(shape, dtype=dtype, chunks=shape), dict(attrs))
    return template


def is_finished(path: str | Path, recipe: Mapping[str, Any]) -> bool:
    """True if a store made by this recipe is published at `path`, False if nothing is. Raises InputError for another recipe."""
    path = Path(path)
    if not is_store(path):
        return False
    _compare(path, {"recipe": read_manifest(path)["recipe"]}, {"recipe": plain(recipe)})
    return True


def partial_path(path: str | Path) -> Path:
    """Where a store is while it is unfinished."""
    path = Path(path)
    return path.with_name(path.name + ".partial")


def is_store(path: str | Path) -> bool:
    """True for a store published by `StoreWriter.finish`."""
    return (Path(path) / MANIFEST).is_file()


def open_store(path: str | Path, *, allow_incomplete: bool = False) -> xr.Dataset:
    """A published store, lazily. With `allow_incomplete` also an unfinished one: what is not written yet reads as NaN.

    Raises InputError if there is nothing or no manifest, NotReadyError if the store is unfinished.
    """
    path = Path(path)
    if is_store(path):
        return _open(path, consolidated=True)[read_manifest(path)["layout"]["order"]]
    if path.exists():
        raise InputError(f"{path} has no {MANIFEST}: it was not finished by plumecast; other people's data go through a recipe")
    staged = partial_path(path)
    if not (staged / "plan.json").is_file():
        raise InputError(f"{path} not found")
    if allow_incomplete:
        return _open(staged / "store", consolidated=False)
    parts = json.loads((staged / "plan.json").read_text())["parts"]
    written = len(list((staged / "parts").glob("*.json")))
    raise NotReadyError(f"{path} is unfinished ({written} of {len(parts)} parts written); run the command that makes it again")


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a published store: format, plumecast_version, recipe, layout, files {name: [bytes, sha256]}."""
    content: dict[str, Any] = json.loads((Path(path) / MANIFEST).read_text())
    return content


def verify_store(path: str | Path) -> list[str]:
    """Read every file of a published store again; one line for each that is missing, changed or unknown. Empty: all well."""
    path = Path(path)
    if not is_store(path):
        open_store(path)
    expected = read_manifest(path)["files"]
    found = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()} - {MANIFEST}
    faults = [f"{name}: missing" for name in sorted(set(expected) - found)]
    faults += [f"{name}: not in the manifest" for name in sorted(found - set(expected))]
    for name in sorted(found & set(expected)):
        if [(path / name).stat().st_size, sha256(path / name)] != expected[name]:
            faults.append(f"{name}: bytes differ from those written")
    return faults


def version() -> str:
    """The installed version of plumecast."""
    try:
        return metadata.version("plumecast")
    except metadata.PackageNotFoundError:
        return "0+source"


def _open(path: Path, *, consolidated: bool) -> xr.Dataset:
    data: xr.Dataset = xr.open_zarr(path, consolidated=consolidated)
    texts = {name: array for name, array in data.variables.items() if array.dtype.kind == "T"}
    return data.assign({name: (array.dims, np.array(array.values.tolist()), array.attrs) for name, array in texts.items()})


def _open_arrays(root: Path, template: xr.Dataset) -> dict[str, zarr.Array[Any]]:
    """The variables to be filled part by part."""
    names = [str(name) for name, array in template.data_vars.items() if array.chunks is not None]
    # "all missing" must differ from "never written": by default zarr does not store chunks that hold only fill values
    with zarr.config.set({"array.write_empty_chunks": True}):
        group = zarr.open_group(root, mode="r+", use_consolidated=False)
        arrays = {name: group[name] for name in names}
    return {name: array for name, array in arrays.items() if isinstance(array, zarr.Array)}


def _finished(path: Path, plan: Mapping[str, Any], template: xr.Dataset) -> StoreWriter:
    if not is_store(path):
        raise InputError(f"{path} exists and is not a store of plumecast; choose another place, or move it away")
    manifest = read_manifest(path)
    _compare(path, {key: manifest[key] for key in ("recipe", "layout")}, {key: plan[key] for key in ("recipe", "layout")})
    leftover = partial_path(path)
    if leftover.exists() and not (leftover / "store").exists():  # killed between publishing and tidying up
        shutil.rmtree(leftover)
    return StoreWriter(path, plan["parts"], template, None)


def _prepare(
    path: Path, plan: Mapping[str, Any], template: xr.Dataset, attrs: Mapping[str, Any], chunks: Mapping[str, int]
) -> None:
    folder = partial_path(path)
    root, plan_file = folder / "store", folder / "plan.json"
    if plan_file.exists():
        _compare(path, json.loads(plan_file.read_text()), plan)
        for debris in root.rglob("*.partial"):  # zarr's own temporary files, left by a kill
            debris.unlink()
        return
    shutil.rmtree(root, ignore_errors=True)
    template.attrs = plain({**attrs, "recipe_hash": fingerprint(plan["recipe"]), "plumecast_version": version()})
    template.to_zarr(
        root, mode="w-", compute=False, consolidated=False, zarr_format=3, encoding=_encoding(template, chunks),
        write_empty_chunks=True,
    )  # fmt: skip
    (folder / "parts").mkdir(exist_ok=True)
    sync_files([file for file in root.rglob("*") if file.is_file()], root)
    write_json(plan_file, plan)


def _compare(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    lines = list(itertools.islice(differences(old, new), 20))
    if lines:
        raise InputError(
            f"{path} was made by another recipe:\n"
            + "\n".join(f"  - {line}" for line in lines)
            + "\nwrite to another place (--out), or remove the old one first"
        )


def _canonical(template: xr.Dataset) -> xr.Dataset:
    """Without foreign encodings; stamps and leads in nanoseconds, text as objects (fixed-width text is outside zarr's text)."""
    template = template.drop_encoding()
    kinds = {"M": "datetime64[ns]", "m": "timedelta64[ns]", "U": "object"}
    for name, variable in template.variables.items():
        variable.attrs = plain(variable.attrs)
        if variable.dtype.kind in kinds:
            template[name] = template[name].astype(kinds[variable.dtype.kind])
    return template


def _encoding(template: xr.Dataset, chunks: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    encoding: dict[str, dict[str, Any]] = {}
    for key, variable in template.variables.items():
        name = str(key)
        whole = name in template.coords
        shape = tuple(size if whole else min(size, chunks.get(str(dim), size)) for dim, size in variable.sizes.items())
        entry: dict[str, Any] = {"chunks": shape} if shape else {}
        if variable.dtype.kind != "O":
            entry["compressors"] = [BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"), Crc32cCodec()]
        if variable.dtype.kind == "f":
            entry["_FillValue"] = np.nan
        entry |= {"M": TIME_ENCODING, "m": LEAD_ENCODING}.get(variable.dtype.kind, {})
        encoding[name] = entry
    return encoding


def _layout(template: xr.Dataset, chunks: Mapping[str, int]) -> dict[str, Any]:
    variables = {
        str(name): f"{array.dtype} {', '.join(f'{dim}={size}' for dim, size in array.sizes.items())}"
        for name, array in template.data_vars.items()
    }
    coords = {
        str(name): f"{_span(coord.values)} [{fingerprint({'values': coord.values.tolist()})}]"
        for name, coord in template.coords.items()
    }
    return {"variables": variables, "order": list(variables), "coords": coords, "chunks": dict(chunks)}


def _span(values: np.ndarray) -> str:
    flat = values.ravel()
    if flat.size == 0:
        return "empty"
    return f"{flat[0]}" if flat.size == 1 else f"{flat[0]} .. {flat[-1]} ({flat.size})"


def _dims(array: zarr.Array[Any]) -> list[str]:
    return [str(dim) for dim in array.metadata.dimension_names or ()]  # type: ignore[union-attr]


def _check_box(where: str, array: zarr.Array[Any], region: Mapping[str, slice], sizes: Mapping[Any, int]) -> None:
    dims = _dims(array)
    if set(sizes) != set(dims):
        raise InputError(f"{where}: dims {list(sizes)}, expected {dims}")
    for dim, size, chunk in zip(dims, array.shape, array.chunks, strict=True):
        start, stop, _ = region.get(dim, slice(None)).indices(size)
        if stop - start != sizes[dim]:
            raise InputError(f"{where}: {sizes[dim]} values along {dim} for the box {start}:{stop}")
        if start % chunk or (stop % chunk and stop != size):
            raise InputError(f"{where}: the box {start}:{stop} along {dim} cuts chunks of {chunk}; align the parts with them")


def _chunk_keys(array: zarr.Array[Any], region: Mapping[str, slice]) -> Iterator[str]:
    ranges = []
    for dim, size, chunk in zip(_dims(array), array.shape, array.chunks, strict=True):
        start, stop, _ = region.get(dim, slice(None)).indices(size)
        ranges.append(range(start // chunk, -(-stop // chunk)))
    for position in itertools.product(*ranges):
        yield array.metadata.encode_chunk_key(position)
