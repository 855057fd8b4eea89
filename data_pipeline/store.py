"""Crash-safe zarr v3 stores: absent, visibly unfinished, or whole, at whatever point a writer is killed.

    <path>.partial/        while it is being written: not a zarr store, plain readers refuse it
        lock               held by the one writer, or shared by several; gone once the store is published
        preparing          held by the one process that makes, publishes or removes all this
        plan.json          recipe, layout and parts; there once the empty store below is on the disk
        store/             the zarr tree
        claims/<part>      held by the writer of a part, where several write
        parts/<part>.json  one done-marker a part, written after its chunks are on the disk, with their hashes
    <path>                 `store/`, renamed when every part is there, with manifest.json (files, sizes, hashes, recipe)

An extended store is built in the same way beside the old one, whose whole parts it shares as files, and changes places with it.
A published store opens with plain `xarray.open_zarr` and looks like a WeatherBench 2 store.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import dask.array
import numpy as np
import xarray as xr

from data_pipeline.chunks import canonical, encoding, layout
from data_pipeline.disk import Lock, holder, plain, sha256, sync_files, write_json
from data_pipeline.errors import InputError, NotReadyError
from data_pipeline.manifest import (
    MANIFEST,
    compare,
    is_spent,
    is_store,
    partial_path,
    preparing,
    read_manifest,
    read_plan,
    tidy,
    version,
)
from data_pipeline.recipe import fingerprint
from data_pipeline.writer import StoreWriter

__all__ = [
    "MANIFEST",
    "StoreWriter",
    "blank",
    "create",
    "is_finished",
    "is_store",
    "open_store",
    "open_tree",
    "partial_path",
    "progress_of",
    "read_manifest",
    "verify_store",
    "version",
    "write_dataset",
]

PART_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,120}")


def create(
    path: str | Path,
    template: xr.Dataset,
    *,
    parts: Sequence[str],
    attrs: Mapping[str, Any],
    chunks: Mapping[str, int] | None = None,
    recipe: Mapping[str, Any] | None = None,
    writers: Literal["one", "many"] = "one",
    extends: Mapping[str, Any] | None = None,
) -> StoreWriter:
    """A writer for the store at `path`: new, continued, or already finished (`writer.finished`).

    template: coordinates and small static variables as numpy arrays, written at once; variables to be filled part by part
    backed by dask (see `blank`), of which only dims, shape, dtype and attributes count. chunks: dim -> chunk size; dims not
    named are whole; coordinates are always whole. recipe: plain data that decide the content, `attrs` where not given. writers:
    one process alone, or many that each claim their parts. extends: recipe of the finished store that this one takes the place of
    when it is published. Raises InputError, with the differences, if something made by another recipe or layout lies there; or if
    a writer is alive that does not share.
    """
    path = Path(path)
    bad = [part for part in parts if not PART_NAME.fullmatch(part)]
    if bad or len(set(parts)) != len(parts):
        raise InputError(f"{path}: part names must be plain and unique; found {bad or sorted(parts)}")
    template = canonical(template)
    plan = plain({"recipe": attrs if recipe is None else recipe, "layout": layout(template, chunks or {}), "parts": list(parts)})
    if extends is not None:
        plan["extends"] = fingerprint(plain(extends))
    if not _is_there(path, plan):
        tidy(path)  # before it is extended
        with preparing(path):
            if not _is_there(path, plan):  # else published by another writer while we waited
                lock = Lock(partial_path(path) / "lock", "sole" if writers == "one" else "shared")
                try:
                    _prepare(path, plan, template, attrs, chunks or {})
                    return StoreWriter(path, parts, template, lock)
                except BaseException:
                    lock.release()
                    raise
    return _finished(path, plan, template)


def write_dataset(
    path: str | Path,
    data: xr.Dataset,
    attrs: Mapping[str, Any] | None = None,
    *,
    chunks: Mapping[str, int] | None = None,
    recipe: Mapping[str, Any] | None = None,
    extends: Mapping[str, Any] | None = None,
) -> Path:
    """A small dataset as a whole store, atomically. Same rules as `create` for what lies there already."""
    attributes = {**data.attrs, **(attrs or {})}
    with create(path, data.load(), parts=(), attrs=attributes, chunks=chunks, recipe=recipe, extends=extends) as writer:
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


def is_finished(path: str | Path, recipe: Mapping[str, Any], *, hint: str = "") -> bool:
    """True if a store made by this recipe is published at `path`, False if nothing is.

    What a kill after publishing left beside it is removed. Raises InputError for another recipe, with the differences and the
    hint.
    """
    path = Path(path)
    if not is_store(path):
        return False
    compare(path, {"recipe": read_manifest(path)["recipe"]}, {"recipe": plain(recipe)}, hint)
    tidy(path)
    return True


def progress_of(path: str | Path) -> tuple[int, int, list[str]] | None:
    """Of an unfinished store: parts done, parts in all, and the processes that write it; None if there is none."""
    folder, plan = partial_path(path), read_plan(path)
    if plan is None or is_spent(path):
        return None
    claims = sorted((folder / "claims").iterdir()) if (folder / "claims").is_dir() else []
    held = [(holder(claim), claim.name) for claim in claims]
    writers = [f"{who} (part {part})" for who, part in held if who is not None]
    alone = holder(folder / "lock")
    return len(list((folder / "parts").glob("*.json"))), len(plan["parts"]), writers or ([alone] if alone else [])


def open_store(path: str | Path, *, allow_incomplete: bool = False) -> xr.Dataset:
    """A published store, lazily. With `allow_incomplete` also an unfinished one: what is not written yet reads as NaN.

    Raises InputError if there is nothing or no manifest, NotReadyError if the store is unfinished.
    """
    path = Path(path)
    if is_store(path):
        manifest = read_manifest(path)
        try:
            return _open(path, consolidated=True)[manifest["layout"]["order"]]
        except InputError:
            if read_manifest(path) == manifest:
                raise
            return open_store(path)  # a longer one took its place between the reading of metadata and of coordinates
    if path.exists():
        raise InputError(f"{path} has no {MANIFEST}: it was not finished by plumecast; other people's data go through a recipe")
    found = progress_of(path)
    if found is None:
        raise InputError(f"{path} not found")
    if allow_incomplete:
        return open_tree(partial_path(path) / "store")
    raise NotReadyError(f"{path} is unfinished ({found[0]} of {found[1]} parts written); run the command that makes it again")


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


def open_tree(root: Path) -> xr.Dataset:
    """The zarr tree of a store, also of an unfinished one, where it lies."""
    with warnings.catch_warnings():  # zarr on the JSON files beside the arrays that a kill while publishing left
        warnings.filterwarnings("ignore", message="Object at .* is not recognized")
        return _open(root, consolidated=False)


def _open(path: Path, *, consolidated: bool) -> xr.Dataset:
    try:
        data: xr.Dataset = xr.open_zarr(path, consolidated=consolidated)
    except Exception as error:  # zarr raises what it likes
        raise InputError(f"{path} is damaged ({error}); copy the store again, or remove it and make it again") from None
    texts = {name: array for name, array in data.variables.items() if array.dtype.kind == "T"}
    return data.assign({name: (array.dims, np.array(array.values.tolist()), array.attrs) for name, array in texts.items()})


def _is_there(path: Path, plan: Mapping[str, Any]) -> bool:
    """True if something is published at `path`, other than what is to be extended."""
    if "extends" not in plan or not is_store(path):
        return path.exists()
    return fingerprint(read_manifest(path)["recipe"]) != plan["extends"]


def _finished(path: Path, plan: Mapping[str, Any], template: xr.Dataset) -> StoreWriter:
    if not is_store(path):
        raise InputError(f"{path} exists and is not a store of plumecast; choose another place, or move it away")
    manifest = read_manifest(path)
    compare(path, {key: manifest[key] for key in ("recipe", "layout")}, {key: plan[key] for key in ("recipe", "layout")})
    tidy(path)
    return StoreWriter(path, plan["parts"], template, None)


def _prepare(
    path: Path, plan: Mapping[str, Any], template: xr.Dataset, attrs: Mapping[str, Any], chunks: Mapping[str, int]
) -> None:
    folder = partial_path(path)
    root, staged = folder / "store", read_plan(path)
    if staged is not None:
        compare(folder, staged, plan)
        return
    shutil.rmtree(root, ignore_errors=True)  # of a preparation that was killed
    template.attrs = plain({**attrs, "recipe_hash": fingerprint(plan["recipe"]), "plumecast_version": version()})
    template.to_zarr(
        root, mode="w-", compute=False, consolidated=False, zarr_format=3, encoding=encoding(template, chunks),
        write_empty_chunks=True,
    )  # fmt: skip
    for name in ("parts", "claims"):
        (folder / name).mkdir(exist_ok=True)
    sync_files([file for file in root.rglob("*") if file.is_file()], root)
    write_json(folder / "plan.json", plan)
