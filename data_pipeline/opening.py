"""Open what the other packages work on: an analysis store, a forecast store, anybody's ensemble files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from data_pipeline.schema import validate
from data_pipeline.sources.files import open_ensemble
from data_pipeline.store import is_store, open_store, partial_path


def open_analysis(path: str | Path, *, allow_incomplete: bool = False) -> xr.Dataset:
    """An analysis store, lazily: (time, [level], latitude, longitude), static fields (latitude, longitude), float32.

    Raises InputError if there is none or it is no analysis, NotReadyError if its ingest has not finished (unless
    `allow_incomplete`: then what is not written yet is NaN).
    """
    data = open_store(path, allow_incomplete=allow_incomplete)
    validate(data, "analysis")
    return data


def open_forecast(paths: str | Path | Sequence[str | Path], *, allow_incomplete: bool = False) -> xr.Dataset:
    """A forecast store, or anybody's ensemble files (GRIB, NetCDF, zarr), lazily and in the forecast schema.

    Raises InputError or NotReadyError as `open_analysis`, and what `sources.files.open_ensemble` raises.
    """
    if isinstance(paths, str | Path) and (is_store(paths) or partial_path(paths).exists()):
        data = open_store(paths, allow_incomplete=allow_incomplete)
        validate(data, "forecast")
        return data
    return open_ensemble(paths)
