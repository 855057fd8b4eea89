"""What a store is recognised by: its manifest when it is published, its plan while it is unfinished."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from data_pipeline.disk import Lock, read_json
from data_pipeline.errors import InputError
from data_pipeline.recipe import differences

MANIFEST = "manifest.json"


def partial_path(path: str | Path) -> Path:
    """Where a store is while it is unfinished."""
    path = Path(path) if Path(path).name else Path(path).absolute()  # `.` has no name
    return path.with_name(path.name + ".partial")


def is_store(path: str | Path) -> bool:
    """True for a store published by `StoreWriter.finish`."""
    return (Path(path) / MANIFEST).is_file()


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a published store: format, plumecast_version, recipe, layout, files {name: [bytes, sha256]}."""
    return read_json(Path(path) / MANIFEST, "recipe", "layout", "files")


def read_plan(path: str | Path) -> dict[str, Any] | None:
    """Recipe, layout and parts of the unfinished store of `path`; None if there is none."""
    try:
        return read_json(partial_path(path) / "plan.json", "recipe", "layout", "parts")
    except (FileNotFoundError, NotADirectoryError):
        return None


def preparing(path: str | Path) -> Lock:
    """Held by the one process that makes, publishes or removes the unfinished store of `path`; others wait."""
    return Lock(partial_path(path) / "preparing", "wait")


def is_spent(path: str | Path) -> bool:
    """True if what lies beside a published store was published, or is not even a plan: it can be tidied away."""
    if not is_store(path) or not partial_path(path).is_dir():
        return False
    plan = read_plan(path)
    return plan is None or plan["recipe"] == read_manifest(path)["recipe"]


def tidy(path: str | Path) -> None:
    """Remove what lies beside a published store, if it is spent; not what somebody else put there.

    First the lock, from which its writers learn that all is published; last the file that holds off who would begin anew.
    """
    if not is_spent(path):
        return
    folder = partial_path(path)
    with contextlib.suppress(OSError), preparing(path):  # what cannot be removed stays
        if is_spent(path):
            (folder / "lock").unlink(missing_ok=True)
            for name in ("store", "parts", "claims"):
                shutil.rmtree(folder / name, ignore_errors=True)
            for file in (*folder.glob("plan.json*"), folder / "preparing"):
                file.unlink(missing_ok=True)
            folder.rmdir()


def compare(path: Path, old: Mapping[str, Any], new: Mapping[str, Any], hint: str = "") -> None:
    """Raise InputError, with the differences, unless both are equal."""
    lines = list(itertools.islice(differences(old, new), 20))
    if lines:
        raise InputError(
            f"{path} was made by another recipe:\n"
            + "\n".join(f"  - {line}" for line in lines)
            + f"\n{hint}write to another place (--out), or remove the old one first"
        )


def version() -> str:
    """The installed version of plumecast."""
    try:
        return metadata.version("plumecast")
    except metadata.PackageNotFoundError:
        return "0+source"
