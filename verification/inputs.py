"""What a verification reads: forecast, truth and climatology by path, opened as they are needed, recognised by their bytes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import xarray as xr

import data_pipeline
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.recipe import fingerprint
from data_pipeline.regrid import regrid as to_grid
from data_pipeline.sources.climatologies import open_climatology
from data_pipeline.store import MANIFEST, is_store
from verification.derive import derive

CLIMATOLOGY_BYTES = 512 << 20  # a climatology up to this size is kept in memory


class Inputs(NamedTuple):
    """Datasets in the schema, forecast and truth on one grid; the climatology is that of `data_pipeline.climatology`, or None."""

    forecast: xr.Dataset
    truth: xr.Dataset
    climatology: xr.Dataset | None = None


@dataclass(frozen=True)
class Request:
    """What is scored, by path. derived: further variables made per member; regrid: the finer side is put on the other's grid.

    identity: of the bytes at the paths, so that what was opened before is not taken for what lies there now.
    """

    forecast: Path
    truth: Path
    climatology: Path | None = None
    derived: tuple[str, ...] = ()
    regrid: bool = False
    identity: str = ""


def request(
    forecast: str | Path, truth: str | Path, climatology: str | Path | None, derived: Sequence[str], regrid: bool
) -> Request:
    """The request for these paths, with the identity of what lies there now. Raises InputError for a path that is not there."""
    paths = [None if path is None else Path(path).absolute() for path in (forecast, truth, climatology)]
    assert paths[0] is not None
    assert paths[1] is not None
    identity = fingerprint({"inputs": [_identity(path) for path in paths if path is not None]})
    return Request(paths[0], paths[1], paths[2], tuple(derived), regrid, identity)


@functools.lru_cache(maxsize=2)
def open_inputs(request: Request) -> Inputs:
    """The datasets of a request, lazily, derived and regridded as it asks. Raises InputError for what does not fit."""
    forecast = data_pipeline.open_forecast(request.forecast)
    forecast.attrs.setdefault("model", request.forecast.stem)
    truth = data_pipeline.open_analysis(request.truth)
    if not (request.derived or request.regrid):
        forecast, truth = _without_dask(request.forecast, forecast), _without_dask(request.truth, truth)
    climatology = _climatology(request.climatology)
    forecast, truth = (derive(data, request.derived) for data in (forecast, truth))
    if request.regrid:
        forecast, truth = _on_one_grid(forecast, truth)
        target = Grid.of(truth)
        climatology = None if climatology is None else to_grid(climatology, target)
    return Inputs(forecast, truth, climatology)


def _without_dask(path: Path, data: xr.Dataset) -> xr.Dataset:
    """The fields of one of our stores read straight from zarr: blocks are whole chunks, and dask's copies cost like decoding."""
    if not is_store(path):
        return data
    plain = xr.open_zarr(path, chunks=None)
    return data.assign({name: plain[name] for name in data.data_vars if data[name].chunks is not None})


def _climatology(path: Path | None) -> xr.Dataset | None:
    if path is None:
        return None
    data = open_climatology(path)
    return data.load() if data.nbytes <= CLIMATOLOGY_BYTES else data


def _on_one_grid(forecast: xr.Dataset, truth: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    ours, theirs = Grid.of(forecast), Grid.of(truth)
    if ours.matches(theirs):
        return forecast, truth
    if ours.areas.mean() < theirs.areas.mean():
        return to_grid(forecast, theirs), truth
    return forecast, to_grid(truth, ours)


def _identity(path: Path) -> str:
    """What a rerun recognises its input by: the manifest with its hashes, or sizes and times of other people's files."""
    if is_store(path):
        return fingerprint({MANIFEST: (path / MANIFEST).read_text()})
    if not path.exists():
        raise InputError(f"{path} not found")
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return fingerprint({str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in files})
