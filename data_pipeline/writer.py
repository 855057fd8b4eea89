"""The writers of a store: parts in any order, by threads and by processes side by side, published once by one of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import xarray as xr
import zarr

from data_pipeline.chunks import Region, check_box, chunk_keys, dims_of, open_arrays, span, write_box
from data_pipeline.disk import Lock, exchange, plain, read_json, sha256, sync, sync_files, write_json
from data_pipeline.errors import InputError, PlumecastError
from data_pipeline.manifest import (
    MANIFEST,
    is_spent,
    is_store,
    partial_path,
    preparing,
    read_manifest,
    read_plan,
    tidy,
    version,
)

Closing = Callable[[Path], tuple[Mapping[str, Any], Mapping[str, Any]]]


class StoreWriter:
    """A writer of a store; made by `store.create`. A context manager: leaving it drops the lock, not the data.

    parts: every part of the store. done: those safely on the disk. notes: {part: what `complete` was given}, of this process and
    those seen by `refresh`. finished: True once the store is published; there is then nothing to write. Threads may write
    different parts; where several processes write, a part is written by the one that could `claim` it.
    """

    def __init__(self, path: Path, parts: Sequence[str], template: xr.Dataset, lock: Lock | None) -> None:
        self.path, self.parts, self.finished = path, tuple(parts), lock is None
        self.notes: dict[str, Any] = {}
        self._lock = lock
        self._folder = partial_path(path)
        self._coords = {str(name): coord.values for name, coord in template.coords.items()}
        self._pending: dict[str, dict[str, list[Any]]] = {}
        self._files: dict[str, list[Any]] = {}
        self._claims: dict[str, Lock] = {}
        self._arrays = {} if lock is None else open_arrays(self._folder / "store", template)
        self.refresh()

    @property
    def done(self) -> set[str]:
        return set(self.parts) if self.finished else set(self.notes)

    def refresh(self, part: str | None = None) -> None:
        """Take note of the parts that other processes have finished, or of this one only, or that all is published."""
        if self._lock is None or self.finished or part in self.notes:
            return
        folder = self._folder / "parts"
        with contextlib.suppress(FileNotFoundError):  # not done yet; or published meanwhile
            for marker in sorted(folder.glob("*.json")) if part is None else [folder / f"{part}.json"]:
                if marker.stem not in self.notes:
                    self._take(marker)
        if not self._lock.is_current():  # looked at after the markers, as it is removed before them
            if not is_store(self.path):
                raise PlumecastError(f"{self._folder} has gone while it was written; run the same command again")
            self.finished = True

    def claim(self, part: str, *, wait: bool = False) -> bool:
        """Take a part for this process alone, until it is complete, released, or the process dies.

        False if it is done already, or if another process has it; with `wait` such a process is waited for.
        """
        self.refresh(part)
        if part in self.done:
            return False
        try:
            lock = Lock(self._folder / "claims" / part, "wait" if wait else "sole")
        except InputError:
            return False
        self.refresh(part)
        if part in self.done:
            lock.release()
            return False
        self._claims[part] = lock
        return True

    def release(self, part: str) -> None:
        """Let another process take a claimed part that was not completed."""
        self._pending.pop(part, None)
        if part in self._claims:
            self._claims.pop(part).release()

    def put(self, part: str, data: xr.Dataset, region: Region) -> None:
        """Write `data` into the box `region` (dim -> slice of positions; dims not named are whole).

        A part may take several boxes, also of some of the variables, none of them shared with another part. Raises InputError if
        the box cuts through chunks, if a variable is not of this store, or if sizes or coordinates differ from the store's.
        """
        self._check(part, data, region)
        files = self._pending.setdefault(part, {})
        for key, values in data.data_vars.items():
            name, array = str(key), self._arrays[str(key)]
            written = write_box(self._folder / "store" / name, array, region, values.transpose(*dims_of(array)).values)
            files.update({f"{name}/{key}": entry for key, entry in written.items()})

    def complete(self, part: str, note: Any = None) -> None:
        """Mark a part done once its chunks are on the disk. `note` (plain data) comes back as `notes[part]` after a restart."""
        files = self._pending.pop(part, None)
        if files is None:
            raise PlumecastError(f"{self.path}: part {part!r} has nothing written to it")
        self._mark(part, files, note)

    def write(self, part: str, data: xr.Dataset, region: Region, note: Any = None) -> None:
        """`put` and `complete` in one: the part is this one box, of all variables."""
        missing = [name for name in self._arrays if name not in data]
        if missing:
            raise InputError(
                f"{self.path}, part {part!r}: variables {missing} are missing; found {sorted(map(str, data.data_vars))}"
            )
        self.put(part, data, region)
        self.complete(part, note)

    def adopt(self, part: str, store: Path, region: Region, note: Any) -> None:
        """Take a part over from a published store with the same chunks, byte by byte, as other names of the same files."""
        self.share(part, store, read_manifest(store)["files"], region, region)
        self.complete(part, note)

    def share(self, part: str, store: Path, known: Mapping[str, list[Any]], source: Region, region: Region) -> None:
        """`put` chunks of a published store, which lie in its box `source`, as other names of the same files.

        known: files of its manifest. Both boxes have as many chunks, and the arrays the same chunks and dims.
        """
        root, files = self._folder / "store", self._pending.setdefault(part, {})
        for name, array in self._arrays.items():
            for old, new in zip(chunk_keys(array, source), chunk_keys(array, region), strict=True):
                file = f"{name}/{old}"
                if file not in known or (store / file).stat().st_size != known[file][0]:
                    raise InputError(f"{store}: {file} is missing or damaged; see plumecast data check {store}")
                files[f"{name}/{new}"] = known[file]
                _link(store / file, root / f"{name}/{new}")

    def finish(self, attrs: Mapping[str, Any] | Closing | None = None) -> Path:
        """Publish the store with these further attributes; returns its path.

        attrs: or a function of the whole zarr tree that gives the attributes, and JSON files {name: content} that lie in it. Done
        once, whoever calls it, and nothing if it is published already. Raises PlumecastError if parts are missing.
        """
        self.refresh()
        missing = [part for part in self.parts if part not in self.done]
        if missing:
            raise PlumecastError(f"{self.path}: {len(missing)} of {len(self.parts)} parts not written, first {missing[0]}")
        if not self.finished:
            with preparing(self.path):
                self.refresh()
                if not self.finished and not is_spent(self.path):  # else published by another writer while we waited
                    self._publish(*attrs(self._folder / "store") if callable(attrs) else (attrs or {}, {}))
            self.finished = True
        self.close()
        tidy(self.path)
        return self.path

    def close(self) -> None:
        """Let another writer continue. Whatever was completed stays."""
        for part in list(self._claims):
            self.release(part)
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _take(self, marker: Path) -> None:
        content = read_json(marker, "part", "note", "files")
        self._files.update(content["files"])
        self.notes[content["part"]] = content["note"]

    def _mark(self, part: str, files: dict[str, list[Any]], note: Any) -> None:
        root = self._folder / "store"
        sync_files([root / file for file in files], root)
        write_json(self._folder / "parts" / f"{part}.json", {"part": part, "note": plain(note), "files": files})
        self._files.update(files)
        self.notes[part] = plain(note)
        self.release(part)

    def _publish(self, attrs: Mapping[str, Any], beside: Mapping[str, Any]) -> None:
        root, plan = self._folder / "store", read_plan(self.path)
        assert plan is not None
        # temporary files, and those that an attempt to publish left: zarr is to see arrays only
        for debris in [*root.rglob("*.partial"), *(file for file in root.glob("*.json") if file.name != "zarr.json")]:
            debris.unlink()
        zarr.open_group(root, mode="r+", use_consolidated=False).attrs.update(plain(attrs))
        with warnings.catch_warnings():  # every reader we know understands it; zarr warns that the v3 text does not list it yet
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            zarr.consolidate_metadata(root)
        for name, content in beside.items():
            write_json(root / name, plain(content))
        extends = plan.pop("extends", None)
        plan.pop("parts")
        write_json(root / MANIFEST, {"format": 1, "plumecast_version": version(), **plan, "files": self._inventory(root)})
        sync_files([file for file in root.rglob("*") if file.name == "zarr.json"], root)
        if extends is None:
            root.rename(self.path)
        else:
            exchange(root, self.path)
        sync(self.path.parent)

    def _check(self, part: str, data: xr.Dataset, region: Region) -> None:
        where = f"{self.path}, part {part!r}"
        if part not in self.parts:
            raise InputError(f"{where}: not a part of this store ({self.parts[0]} .. {self.parts[-1]})")
        foreign = [name for name in data.data_vars if name not in self._arrays]
        if foreign:
            raise InputError(f"{where}: {foreign} are not variables of this store; it has {sorted(self._arrays)}")
        for dim, coord in data.coords.items():
            if coord.dims != (dim,) or dim not in self._coords:
                continue
            expected = self._coords[str(dim)][region.get(str(dim), slice(None))]
            if not np.array_equal(coord.values, expected):
                raise InputError(f"{where}: {dim} is {span(coord.values)}, but the box {dict(region)} holds {span(expected)}")
        for name in data.data_vars:
            check_box(f"{where}, {name}", self._arrays[str(name)], region, data[name].sizes)

    def _inventory(self, root: Path) -> dict[str, list[Any]]:
        """{file: [bytes, sha256]}. Raises PlumecastError if a chunk was never written, has gone or changed size."""
        expected = {f"{name}/{key}" for name, array in self._arrays.items() for key in chunk_keys(array, {})}
        unwritten = sorted(expected - set(self._files))
        if unwritten:
            raise PlumecastError(f"{self.path}: {len(unwritten)} chunks are in no part, first {unwritten[0]}")
        again = f"remove {self._folder} and start again"
        found: dict[str, list[Any]] = {}
        for file in sorted(_files_below(root)):
            key, size = file[len(str(root)) + 1 :], os.stat(file).st_size  # noqa: PTH116  pathlib is slow on many files
            known = self._files.get(key)
            if known is not None and known[0] != size:
                raise PlumecastError(f"{file} has {size} bytes, {known[0]} were written; {again}")
            found[key] = known or [size, sha256(Path(file))]
        gone = sorted(set(self._files) - set(found))
        if gone:
            raise PlumecastError(f"{root}: {len(gone)} chunks have gone, first {gone[0]}; {again}")
        return found


def _files_below(root: Path) -> Iterator[str]:
    for folder, _, names in os.walk(root):
        yield from (f"{folder}/{name}" for name in names)


def _link(old: Path, new: Path) -> None:
    """Another name for a file, a copy where the filesystem has none; what a kill left is replaced."""
    new.parent.mkdir(parents=True, exist_ok=True)
    new.unlink(missing_ok=True)
    try:
        new.hardlink_to(old)
    except OSError:
        shutil.copyfile(old, new)
