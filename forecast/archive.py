"""Published runs: `<root>/<model>/<init>/`, absent or whole, never changed, each with a manifest of every byte.

    <root>/.staging/<model>/<init>.t<token>/   while it is made; on the same filesystem
    <root>/<model>/20070711T00/                forecast.zarr, initial.zarr, products.zarr, log.jsonl, manifest.json
    <root>/<model>/20070711T00.r2/             a revision, where a run was made again on purpose; the first one stays
    <root>/<model>/latest                      link to the newest run; resolve it once (realpath) and read below the result
    <root>/.quarantine/<model>/20070711T00/    a run that failed its gate, with the report
    <root>/.trash/                             what retention takes away, until it is gone

Names from outside are checked by pattern and no link is followed below the root, so that nothing is written elsewhere.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.disk import plain, read_json, sha256, sync, sync_files, write_json
from data_pipeline.errors import InputError, NotReadyError
from data_pipeline.recipe import differences
from data_pipeline.store import MANIFEST, version

FORMAT = 1
INIT = "%Y%m%dT%H"
MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
RUN_NAME = re.compile(r"(\d{8}T\d{2})(?:\.r([2-9]|[1-9]\d{1,3}))?")
LATEST = "latest"


@dataclass(frozen=True, order=True)
class Run:
    """A published run. init: UTC without a zone; revision: 1 for the first."""

    init: dt.datetime
    revision: int
    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def manifest(self) -> dict[str, Any]:
        """What it says of itself. Raises InputError if it is damaged."""
        return read_json(self.path / MANIFEST, "files", "recipe_hash", "published_at")


@dataclass(frozen=True)
class Archive:
    """The runs of one model below one root."""

    root: Path
    model: str

    def __post_init__(self) -> None:
        if not MODEL_NAME.fullmatch(self.model) or ".." in self.model:
            raise InputError(
                f"archive: model {self.model!r}; expected at most 64 small letters, digits, . _ -, a letter or digit first"
            )
        object.__setattr__(self, "root", Path(self.root).absolute())

    @property
    def folder(self) -> Path:
        """Where the published runs lie."""
        return self._below(self.model)

    @property
    def staging(self) -> Path:
        return self._below(".staging", self.model)

    @property
    def quarantine(self) -> Path:
        return self._below(".quarantine", self.model)

    @property
    def trash(self) -> Path:
        return self._below(".trash")

    def run(self, init: dt.datetime, revision: int = 1) -> Path:
        """Where a run is published."""
        return self._below(self.model, init_name(init) + (f".r{revision}" if revision > 1 else ""))

    def runs(self) -> list[Run]:
        """Published runs, oldest initialisation first, revisions in order."""
        found = []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            match = RUN_NAME.fullmatch(path.name)
            if match and path.is_dir() and not path.is_symlink():
                found.append(Run(parse_init(match[1]), int(match[2] or 1), path))
        return sorted(found)

    def find(self, init: dt.datetime) -> Run | None:
        """The newest revision of an initialisation's run; None if it was not published."""
        return max((run for run in self.runs() if run.init == init), default=None)

    def latest(self) -> Run | None:
        """The run that `latest` points to."""
        link = self.folder / LATEST
        if not link.is_symlink():
            return None
        name = str(link.readlink())
        return next((run for run in self.runs() if run.name == name), None)

    def _below(self, *parts: str) -> Path:
        """A place below the root. Raises InputError where a link would lead elsewhere."""
        path = self.root
        for part in parts:
            path = path / part
            if path.is_symlink():
                raise InputError(f"{path} is a link to {path.readlink()}; below the root of an archive only `latest` may be one")
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise InputError(f"{path} lies outside the archive {self.root}")
        return path


def init_name(init: dt.datetime) -> str:
    """`20070711T00`."""
    return init.strftime(INIT)


def parse_init(text: str) -> dt.datetime:
    """An initialisation from 20070711T00 or 2007-07-11T00, UTC without a zone. Raises InputError for anything else."""
    for form in (INIT, "%Y-%m-%dT%H", "%Y-%m-%dT%H:%M"):
        with contextlib.suppress(ValueError):
            found = dt.datetime.strptime(text, form)
            if found.minute == 0:
                return found
    raise InputError(f"initialisation {text!r}: expected a stamp of a whole hour in UTC, as 2007-07-11T00")


def seal(staged: Path, about: Mapping[str, Any]) -> None:
    """Write the manifest of a staged run and force everything to the disk: it can be published.

    about: what the run says of itself (recipe, recipe_hash, published_at ...). Raises InputError for a link, or for something
    that is visibly unfinished.
    """
    (staged / MANIFEST).unlink(missing_ok=True)  # of an attempt that was killed here
    files = _files(staged)
    unfinished = sorted(name for name in files if ".partial" in name)
    if unfinished:
        raise InputError(f"{staged}: {unfinished[0]} is unfinished; nothing was published")
    sums = {name: [path.stat().st_size, sha256(path)] for name, path in sorted(files.items())}
    sync_files(files.values(), staged)
    write_json(staged / MANIFEST, plain({**about, "format": FORMAT, "plumecast_version": version(), "files": sums}))


def publish(staged: Path, target: Path) -> None:
    """A sealed run becomes visible, whole, at once: a rename, then the parent is forced to the disk.

    Raises InputError if a run lies there: what is published is never replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(target):
        raise InputError(f"{target} is published already and is never replaced; make a revision (--force)")
    staged.rename(target)
    sync(target.parent)
    sync(staged.parent)


def point_latest(archive: Archive) -> Run | None:
    """Let `latest` point to the newest run; returns it. A reader sees the old link or the new one."""
    newest = max(archive.runs(), default=None)
    if newest is None:
        return None
    link = archive.folder / LATEST
    if not link.is_symlink() or str(link.readlink()) != newest.name:
        temporary = archive.folder / f".{LATEST}.{os.getpid()}.partial"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(newest.name)
        temporary.replace(link)
        sync(archive.folder)
    return newest


def set_aside(archive: Archive, staged: Path, report: Mapping[str, Any]) -> Path:
    """Move a run that failed its gate to quarantine, with its report; one that lies there already goes to the trash."""
    write_json(staged / "gate.json", plain(report))
    target = archive.quarantine / staged.name.partition(".")[0]
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        discard(archive, target)
    staged.rename(target)
    sync(target.parent)
    return target


def discard(archive: Archive, path: Path) -> None:
    """Take a folder away: it disappears at once, its bytes afterwards."""
    archive.trash.mkdir(parents=True, exist_ok=True)
    gone = archive.trash / f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}"
    path.rename(gone)
    sync(path.parent)
    shutil.rmtree(gone, ignore_errors=True)


def empty_trash(archive: Archive) -> None:
    """What a kill while discarding left."""
    for path in archive.trash.iterdir() if archive.trash.is_dir() else ():
        shutil.rmtree(path, ignore_errors=True)


def faults_of(run: Run) -> list[str]:
    """Read every file of a published run again; one line for each that is missing, changed or unknown. Empty: all well."""
    try:
        expected = run.manifest()["files"]
        found = _files(run.path)
    except FileNotFoundError:
        return [f"{MANIFEST}: missing"]
    except InputError as error:
        return [str(error)]
    found.pop(MANIFEST, None)
    faults = [f"{name}: missing" for name in sorted(set(expected) - set(found))]
    faults += [f"{name}: not in the manifest" for name in sorted(set(found) - set(expected))]
    for name in sorted(set(found) & set(expected)):
        if [found[name].stat().st_size, sha256(found[name])] != expected[name]:
            faults.append(f"{name}: bytes differ from those published")
    return faults


def require_same_recipe(run: Run, recipe: Mapping[str, Any]) -> None:
    """Raise InputError, with the differences, unless a published run was made by this recipe."""
    lines = list(differences(run.manifest().get("recipe", {}), json.loads(json.dumps(plain(recipe)))))
    if lines:
        raise InputError(
            f"{run.path} was made by another recipe:\n"
            + "\n".join(f"  - {line}" for line in lines)
            + "\n--force makes a revision beside it; the published one stays"
        )


def resolved(archive: Archive, name: str = LATEST) -> Run:
    """The run called `name`, or the one that `latest` points to now. Raises NotReadyError if nothing is published."""
    run = archive.latest() if name == LATEST else next((run for run in archive.runs() if run.name == name), None)
    if run is None:
        have = ", ".join(run.name for run in archive.runs()[-5:]) or "nothing"
        raise NotReadyError(f"{archive.folder} has no run {name}; the newest published: {have}")
    return run


def _files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in _walk(folder)}


def _walk(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                raise InputError(f"{entry.path} is a link; a run holds files and folders only")
            if entry.is_dir():
                yield from _walk(Path(entry.path))
            else:
                yield Path(entry.path)
