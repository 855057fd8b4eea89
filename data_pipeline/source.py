"""[source]: where the data of an ingest come from. One function opens them by kind, one tells what they are recognised by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import xarray as xr
from pydantic import Field, model_validator

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.recipe import Section
from data_pipeline.region import cut, widened
from data_pipeline.schema import Channel, channels_of
from data_pipeline.sources.accumulation import totals
from data_pipeline.sources.files import expand, open_files

Region = tuple[float, float, float, float]
Kind = Literal["files", "weatherbench"]

ONLY: dict[Kind, tuple[str, ...]] = {  # what a kind alone knows; its first is required
    "files": ("path", "pattern", "static", "levels", "names", "units", "accumulation"),
    "weatherbench": ("url", "storage"),
}
COARSEST = 6.0  # degrees: more than a cell of any archive


class SourceSection(Section):
    """[source]: where the data come from.

    kind = "files": path, a file, a zarr store, a glob or a folder (of it, the files that fit `pattern`). Only names and sizes of
    the files identify them, so a moved folder is the same source. static: a file with fields that have no time, in that folder.
    levels, names, units: what the files do not tell, by variable or file; accumulation: what accumulated values start from, see
    `sources.files.open_files`.
    kind = "weatherbench": url, a WeatherBench 2 or ARCO-ERA5 zarr archive, gs:// s3:// https:// or a folder. storage: options of
    the access, such as `requests` at once, see `sources.remote.connect`; they are not part of what identifies a store, nor shown.
    gaps: whether missing stamps are an error, or holes of the store. faults: whether missing or impossible values stop the
    ingest, or are only recorded. description, attribution: carried into the store and every report.
    """

    kind: Kind = "files"
    path: str | None = None
    pattern: str | None = None
    static: str | None = None
    levels: dict[str, int] = Field(default_factory=dict)
    names: dict[str, str] = Field(default_factory=dict)
    units: dict[str, str] = Field(default_factory=dict)
    accumulation: str | None = None
    url: str | None = None
    storage: dict[str, Any] = Field(default_factory=dict)
    gaps: Literal["error", "allow"] = "error"
    faults: Literal["error", "allow"] = "error"
    description: str = ""
    attribution: str = ""

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        required = ONLY[self.kind][0]
        if getattr(self, required) is None:
            raise ValueError(f'kind = "{self.kind}" needs source.{required}')
        foreign = {key: kind for kind, keys in ONLY.items() if kind != self.kind for key in keys if getattr(self, key)}
        if foreign:
            told = ", ".join(f'{key} (of kind = "{kind}")' for key, kind in foreign.items())
            raise ValueError(f'kind = "{self.kind}" has no {told}')
        return self


def open_source(
    source: SourceSection,
    channels: Sequence[Channel],
    *,
    start: str | None = None,
    stop: str | None = None,
    region: Region | None = None,
    target: Grid | None = None,
) -> xr.Dataset:
    """The source in the analysis schema, lazily; more channels and stamps than asked for may come with it.

    region: its points inside; with those around that regridding to `target` needs, if that is given. Accumulations that the
    source has over fewer hours only are summed. Raises InputError if a channel is not in the source, naming what is, and whatever
    the source raises.
    """
    if source.kind == "weatherbench":
        from data_pipeline.sources.weatherbench import open_archive

        box = None if region is None else widened(region, _margin(target, COARSEST))
        data = open_archive(str(source.url), channels, start=start, stop=stop, region=box, storage=source.storage)
    else:
        data = totals(_open_files(source), channels)
        if region is not None:
            grid = Grid.of(data)
            box = widened(region, _margin(target, max(np.diff(grid.latitude).max(), np.diff(grid.longitude).max())))
            # a part of Gaussian rows is no grid that could be regridded
            data = cut(data, (-90.0, 90.0, *box[2:]) if grid.is_gaussian else box)
    found = set(channels_of(data))
    absent = [channel.label for channel in channels if channel not in found]
    if absent:
        raise InputError(
            f"analysis.channels: the source has no {', '.join(absent)}; it has {', '.join(sorted(c.label for c in found))}"
        )
    return data


def identify_source(source: SourceSection) -> dict[str, Any]:
    """What the content of a store depends on: the options, and what the files or the archive are recognised by."""
    described = source.model_dump(exclude={"path", "pattern", "url", "storage", "description", "attribution"})
    if source.kind == "weatherbench":
        from data_pipeline.sources.weatherbench import identity

        return {**described, "archive": identity(str(source.url), storage=source.storage)}
    files, static = find_files(source)
    return {**described, "files": {file.name: _size(file) for file in [*files, *([static] if static else [])]}}


def shown_source(source: SourceSection) -> dict[str, Any]:
    """The section as stores keep it: without folders, and without what gives access."""
    shown = source.model_dump(exclude={"path", "storage"})
    if source.url is not None:
        from data_pipeline.sources.remote import public

        shown["url"] = public(source.url)
    return shown


def find_files(source: SourceSection) -> tuple[list[Path], Path | None]:
    """The source's files with fields of time, and the static one. Raises InputError if they are not there."""
    path = str(source.path)
    try:
        found = expand(path, source.pattern)
        if source.static is None:
            return found, None
        folder = Path(path).expanduser()
        static = expand((folder if folder.is_dir() else folder.parent) / source.static)[0]
    except InputError as error:
        raise InputError(f"[source] {error}; the place is set by --set source.path=FOLDER") from None
    return [file for file in found if file != static], static


def _open_files(source: SourceSection) -> xr.Dataset:
    files, static = find_files(source)
    known = {"accumulation": source.accumulation} if source.accumulation else {}
    return open_files(files, static=static, levels=source.levels, names=source.names, units=source.units, **known)


def _margin(target: Grid | None, cell: float) -> float:
    """Degrees around a region: half a target cell, and every source cell that touches it."""
    if target is None:
        return 0.0
    return max(np.diff(target.latitude).max(), np.diff(target.longitude).max()) / 2 + cell


def _size(file: Path) -> int:
    try:
        if file.is_dir():
            return sum(item.stat().st_size for item in file.rglob("*") if item.is_file())
        return file.stat().st_size
    except OSError as error:
        raise InputError(f"[source] {file} cannot be read: {error.strerror}; get it again, or leave it out") from None
