"""Where analyses come from: the input frames of one initialisation, or word that they are not there yet, or why they are bad.

Whatever the source, what a run starts from is checked, copied into the run and known by its hash: a later attempt starts from the
same numbers, and a published run can be made again from itself.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline import open_analysis, quality, store
from data_pipeline.errors import InputError, NotReadyError, PlumecastError
from data_pipeline.forcings import STATIC
from data_pipeline.recipe import fingerprint
from data_pipeline.schema import stack
from data_pipeline.sources.files import open_files, open_static
from forecast.cycle.recipe import AnalysesSection, ScheduleSection
from forecast.initial_states import check_inputs, frame_times

if TYPE_CHECKING:
    from models.contract import Spec

NO_DELAY = dt.timedelta(0)
DOWNLOADED = "live.zarr"  # beside the frames while a run is made


def fetch(
    analyses: AnalysesSection, schedule: ScheduleSection, spec: Spec, init: dt.datetime, now: dt.datetime, target: Path
) -> xr.Dataset:
    """The input frames of `init`, checked and kept as an analysis store at `target`; read from there if they are there already.

    Raises NotReadyError, naming the stamps, for what is not there at `now`; InputError for what no waiting mends: another grid,
    absent channels, values missing or out of their range.
    """
    if not store.is_store(target):
        stamps = frame_times(spec, np.datetime64(init, "ns"))
        frames = _open(analyses, schedule, spec, init, stamps, now, target)
        _check(frames, spec, init)
        _keep(frames, spec, stamps, target)
    return open_analysis(target)


def available(analyses: AnalysesSection, schedule: ScheduleSection, now: dt.datetime, truth: Path | None) -> xr.Dataset:
    """The analyses that forecasts are verified against, up to those that are there at `now`.

    Raises InputError if the source keeps none: then the recipe has to name a store (verification.truth).
    """
    path = truth or (analyses.path if analyses.kind in ("store", "replay") else None)
    if path is None:
        raise InputError(
            f'verification: analyses of kind "{analyses.kind}" are not kept; name an analysis store as verification.truth'
        )
    data = open_analysis(path)
    return data if truth is not None or analyses.kind == "store" else data.isel(time=_released(analyses, schedule, data, now))


def _open(
    analyses: AnalysesSection, schedule: ScheduleSection, spec: Spec, init: dt.datetime, stamps: np.ndarray, now: dt.datetime,
    target: Path,
) -> xr.Dataset:  # fmt: skip
    if analyses.kind == "ecmwf_live":
        return _live(analyses, spec, init, target)
    if analyses.kind == "folder":
        data = _files(analyses, stamps)
    else:
        assert analyses.path is not None
        if not (analyses.path.exists() or store.partial_path(analyses.path).exists()):
            raise NotReadyError(f"the analysis store {analyses.path} is not there yet; plumecast data ingest makes one")
        data = open_analysis(analyses.path)
    held = data["time"].values
    if analyses.kind == "replay":
        held = held[_released(analyses, schedule, data, now)]
    absent = np.setdiff1d(stamps, held)
    if absent.size:
        raise NotReadyError(f"the analysis of {_text(absent)} is not there yet in {analyses.path}")
    frames = data.sel(time=stamps)
    if analyses.static is not None:
        given = open_static(analyses.static)
        frames = frames.assign({name: given[name] for name in spec.forcings if name in given})
    return frames if analyses.kind != "replay" else _spoiled(frames, analyses.corrupt)


def _files(analyses: AnalysesSection, stamps: np.ndarray) -> xr.Dataset:
    """The files of some stamps, each there once its marker is. Raises NotReadyError naming those that are not."""
    assert analyses.path is not None
    paths = [analyses.path / pd.Timestamp(stamp).strftime(analyses.pattern) for stamp in stamps]
    absent = [path for path in paths if not path.exists() or not path.with_name(path.name + analyses.marker).exists()]
    if absent:
        raise NotReadyError(f"{', '.join(str(path) for path in absent)}: not there yet")
    parts = [open_analysis(path) if store.is_store(path) else open_files(path) for path in dict.fromkeys(paths)]
    if len(parts) == 1:
        return parts[0]
    static = [name for name, array in parts[0].data_vars.items() if "time" not in array.dims]
    joined = xr.concat([part.drop_vars(static, errors="ignore") for part in parts], dim="time", join="exact")
    return joined.assign({name: parts[0][name] for name in static}).sortby("time")


def _live(analyses: AnalysesSection, spec: Spec, init: dt.datetime, target: Path) -> xr.Dataset:
    from data_pipeline.sources.ecmwf_live import write_cycle
    from data_pipeline.sources.ecmwf_server import Server
    from forecast.live import wanted_by

    path = target.with_name(DOWNLOADED)
    write_cycle(path, pd.Timestamp(init), wanted_by(spec, analyses.static), server=Server(analyses.server))
    return open_analysis(path)


def _released(analyses: AnalysesSection, schedule: ScheduleSection, data: xr.Dataset, now: dt.datetime) -> np.ndarray:
    """Which stamps of a replayed store are there at `now`: those whose latency and own delay have passed."""
    delays = {pd.Timestamp(stamp): delay for stamp, delay in analyses.delays.items()}
    never = {pd.Timestamp(stamp) for stamp in analyses.missing}
    latest = pd.Timestamp(now) - schedule.latency
    stamps = pd.DatetimeIndex(data["time"].values)
    return np.array([stamp not in never and stamp + delays.get(stamp, NO_DELAY) <= latest for stamp in stamps], dtype=bool)


def _spoiled(frames: xr.Dataset, corrupt: Sequence[str]) -> xr.Dataset:
    """A bad transmission: a block of the fields of these stamps is filled with 9999."""
    bad = frames["time"].isin(np.array([np.datetime64(stamp, "ns") for stamp in corrupt]))
    hit = bad & (frames["latitude"] > 0) & (frames["longitude"] < 90)
    return frames.map(lambda array: array.where(~hit, np.float32(9999)) if "time" in array.dims else array)


def _check(frames: xr.Dataset, spec: Spec, init: dt.datetime) -> None:
    """Raise InputError, with all that is found, unless grid, channels, units and values are fit to start from."""
    check_inputs(frames, spec, [np.datetime64(init, "ns")])
    absent = [name for name in spec.forcings if name in STATIC and name not in frames]
    if absent:
        raise InputError(f"the analysis lacks {', '.join(absent)}, which the checkpoint needs; name a file that has them: static")
    try:
        quality.check(frames, channels=spec.parsed_channels, gaps="allow").raise_if_bad()
    except PlumecastError:
        raise
    except Exception as error:  # readers raise what they like
        raise InputError(f"the analysis cannot be read: {type(error).__name__}: {error}") from error


def _keep(frames: xr.Dataset, spec: Spec, stamps: np.ndarray, target: Path) -> None:
    names = list(dict.fromkeys(channel.name for channel in spec.parsed_channels))
    static = [name for name in spec.forcings if name in STATIC]
    kept = frames[[*names, *static]].sel(time=stamps).load()
    values = hashlib.sha256(np.ascontiguousarray(stack(kept, spec.parsed_channels).values).tobytes())
    for name in static:
        values.update(np.ascontiguousarray(kept[name].values).tobytes())
    about = {name: str(kept.attrs[name]) for name in ("source", "attribution", "recipe_hash") if name in kept.attrs}
    attrs = {**about, "source_recipe_hash": about.get("recipe_hash", ""), "values_sha256": values.hexdigest()}
    recipe = {"frames": [_text(stamp) for stamp in stamps[:, None]], "values": values.hexdigest(), **about}
    store.write_dataset(target, kept.drop_attrs(deep=False).drop_encoding(), attrs, chunks={"time": 1}, recipe=recipe)


def _text(stamps: np.ndarray) -> str:
    return ", ".join(np.datetime_as_string(np.atleast_1d(stamps).astype("datetime64[h]"), "h"))


def identity(analyses: AnalysesSection) -> str:
    """What the source is known by in a run's recipe; releases and delays of a replay change no number."""
    place = "" if analyses.path is None else os.fspath(analyses.path)
    return f"{analyses.kind}:{place or analyses.server}:{fingerprint({'static': str(analyses.static)})}"
