"""Today's analyses: the input frames of a forecast from ECMWF's open data (IFS, step 0 of the high-resolution run).

Each frame comes from the cycle of its own hour. There is no analysis of what is accumulated: it is taken from the short forecast
of the cycle that starts the window, and the store says so. Nothing is filled: what is not there is named and refused.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline import quality, store
from data_pipeline.disk import Lock
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.regrid import regrid
from data_pipeline.schema import levels_by_name
from data_pipeline.sources.ecmwf_plan import Wanted, present_fields, run_of
from data_pipeline.sources.ecmwf_server import Server, stream
from data_pipeline.sources.files import open_files
from data_pipeline.sources.remote import public
from data_pipeline.variables import Variable, lookup

ATTRIBUTION = (
    "Copyright (c) {year} European Centre for Medium-Range Weather Forecasts (ECMWF), www.ecmwf.int; published under CC BY 4.0, "
    "https://creativecommons.org/licenses/by/4.0/. Modified: regridded, units converted, precipitation differenced. ECMWF does "
    "not accept any liability for errors or omissions in the data, their availability, or any loss or damage from their use."
)

Downloads = dict[tuple[pd.Timestamp, int], list[Path]]


def open_cycle(
    init: pd.Timestamp, wanted: Wanted, *, folder: Path, server: Server | None = None, now: pd.Timestamp | None = None
) -> xr.Dataset:
    """The input frames of one initialisation: (time, [level], latitude, longitude) in the schema on `wanted.grid`, lazily.

    The GRIB files go to `folder` and must stay there while the dataset is used; those that are there already are kept.
    Accumulated channels end at the stamp, in the forecast of an earlier cycle (`attrs["short_forecasts"]`). Raises NotReadyError
    for fields that are not there yet, InputError for those that waiting will not bring.
    """
    server = Server() if server is None else server
    needed = present_fields(wanted, init, server, now)
    folder.mkdir(parents=True, exist_ok=True)
    files = server.fetch(needed, folder)
    analyses = _analyses(wanted, init, files)
    totals = {name: _totals(name, wanted, init, files) for name in wanted.accumulated}
    data = regrid(analyses.assign(totals), wanted.grid)
    if wanted.given:
        data = data.assign(regrid(wanted.given, wanted.grid).data_vars)
    order = [*levels_by_name(wanted.channels), *wanted.static]
    regridding = "none" if Grid.of(analyses).matches(wanted.grid) else "conservative"
    return data[order].assign_attrs(_attrs(wanted, init, server, analyses.attrs["mapping"]) | {"regridding": regridding})


def write_cycle(
    path: Path, init: pd.Timestamp, wanted: Wanted, *, server: Server | None = None, now: pd.Timestamp | None = None
) -> Path:
    """`open_cycle` as a published analysis store at `path`, checked; does nothing if that store is there already.

    Downloads are kept in `<path>.downloads` until the store is published, so that a run that was stopped goes on. Raises what
    `open_cycle` and `store.create` raise, and InputError for missing or impossible values.
    """
    recipe = _recipe(init, wanted)
    folder = path.with_name(path.name + ".downloads")
    if store.is_finished(path, recipe):
        shutil.rmtree(folder, ignore_errors=True)
        return path
    server = Server() if server is None else server
    present_fields(wanted, init, server, now)  # a refusal leaves no folder behind
    lock = Lock(folder / "lock")
    try:
        data = open_cycle(init, wanted, folder=folder, server=server, now=now).load()
        _check(data, wanted)
        store.write_dataset(path, data, chunks={"time": 1}, recipe=recipe)
        shutil.rmtree(folder)
    finally:
        lock.release()
    return path


def _analyses(wanted: Wanted, init: pd.Timestamp, files: Downloads) -> xr.Dataset:
    """Instantaneous and static fields of every frame, on ECMWF's grid."""
    stamps = wanted.stamps(init)
    data = open_files([path for stamp in stamps for path in files[stamp, 0]])
    asked = [name for name in levels_by_name(wanted.channels) if name not in wanted.accumulated]
    static = [name for name in wanted.static if name not in wanted.given]
    return data[[*asked, *static]].sel(time=np.array(stamps, "datetime64[ns]"))


def _totals(name: str, wanted: Wanted, init: pd.Timestamp, files: Downloads) -> xr.DataArray:
    """An accumulated channel at every frame: the later step of a run minus the earlier, both counted from its start."""
    variable, hours = wanted.accumulated[name]
    frames = []
    for stamp in wanted.stamps(init):
        cycle, last, first = run_of(stamp, hours)
        total = _from_start(files[cycle, last], variable)
        if first > 0:
            total = total.copy(data=total.data - _from_start(files[cycle, first], variable).data)
        frames.append(total.assign_coords(time=np.array([stamp], "datetime64[ns]")))
    joined = xr.concat(frames, dim="time", coords="minimal", compat="override", join="exact", combine_attrs="override")
    if variable.non_negative:
        least = variable.valid_range[0]
        joined = joined.copy(data=joined.data.map_blocks(partial(_clipped, name=name, least=least), dtype=joined.dtype))
    return joined.astype("float32").rename(name)


def _from_start(paths: Sequence[Path], variable: Variable) -> xr.DataArray:
    """The one step of a variable in these files, float64: whatever window its name tells, it counts from the start of the run."""
    found = [array for array in open_files(paths).data_vars.values() if lookup(str(array.name)) is variable]
    return found[0].astype(np.float64)


def _clipped(block: np.ndarray, *, name: str, least: float) -> np.ndarray:
    """Packing makes a sum fall by its rounding; by more than that it is no sum."""
    if block.size and np.nanmin(block) < least:
        raise InputError(f"{name}: falls by {-np.nanmin(block):g} from one step to the next; it does not count from the start")
    return np.maximum(block, 0.0)


def _attrs(wanted: Wanted, init: pd.Timestamp, server: Server, mapping: str) -> dict[str, Any]:
    stamps = wanted.stamps(init)
    short = [
        f"{name} at {stamp:%Y-%m-%dT%H}: step {last} minus step {first} of the forecast from {cycle:%Y-%m-%dT%H}"
        for name, (_, hours) in wanted.accumulated.items()
        for stamp, (cycle, last, first) in ((stamp, run_of(stamp, hours)) for stamp in stamps)
    ]
    own = wanted.static_file.name if wanted.static_file else ""
    return {
        "Conventions": "CF-1.8",
        "source": "ECMWF open data, IFS high-resolution analyses (step 0)",
        "attribution": ATTRIBUTION.format(year=init.year),
        "server": public(server.client.url),
        "cycles": [f"{stamp:%Y-%m-%dT%H} {stream(stamp)}" for stamp in stamps],
        "short_forecasts": short,
        "static_source": {name: own if name in wanted.given else "ECMWF open data" for name in wanted.static},
        "channels": [channel.label for channel in wanted.channels],
        "step": f"{wanted.step_hours}h",
        "mapping": json.dumps([*json.loads(mapping), *short]),
    }


def _recipe(init: pd.Timestamp, wanted: Wanted) -> dict[str, Any]:
    """What decides the content; every mirror has the same."""
    given = {str(name): hashlib.sha256(array.values.tobytes()).hexdigest()[:16] for name, array in wanted.given.items()}
    return {
        "source": {"kind": "ecmwf_live", "model": "ifs", "static": given},
        "init": f"{init:%Y-%m-%dT%H}",
        "frames": wanted.frames,
        "step_hours": wanted.step_hours,
        "channels": [channel.label for channel in wanted.channels],
        "static": list(wanted.static),
        "grid": wanted.grid.key,
    }


def _check(data: xr.Dataset, wanted: Wanted) -> None:
    report = quality.check(data, channels=wanted.channels, gaps="allow")
    dry = {name for name in wanted.accumulated if not data[name].any()}  # no rain over two frames of a small region
    errors = [str(finding) for finding in report.errors if finding.where not in dry]
    errors += [f"{name}: holds missing values" for name in wanted.static if not np.isfinite(data[name].values).all()]
    if errors:
        raise InputError("the open data fail their checks:\n" + "\n".join(f"  - {line}" for line in errors))
