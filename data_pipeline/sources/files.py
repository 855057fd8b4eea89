"""Files of any archive in the schema: NetCDF (classic and 4), GRIB (1 and 2), zarr (2 and 3) and zips, one or many, lazily.

`open_files` gives analyses, `open_ensemble` forecasts or analysis members. Names, units and orientation are mapped to the schema
(`data_pipeline.variables`, `data_pipeline.sources.layout`); what was done is in `attrs["mapping"]`, a JSON list of lines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from data_pipeline import schema
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.sources.accumulation import deaccumulate, totals
from data_pipeline.sources.fields import Found, Hints, read
from data_pipeline.sources.join import join, noted
from data_pipeline.sources.raw import SUFFIXES, is_zarr, open_raw
from data_pipeline.variables import lookup

Paths = str | Path | Sequence[str | Path]


def open_files(
    paths: Paths,
    *,
    pattern: str | None = None,
    static: Paths | None = None,
    variables: Sequence[str] | None = None,
    levels: Mapping[str, int] | None = None,
    names: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    accumulation: str | None = None,
) -> xr.Dataset:
    """Analyses as a lazy dataset (time, [level], latitude, longitude), static fields (latitude, longitude), float32.

    paths: a file, a zarr store, a folder, a glob, or a list of these; pattern: of the files of a folder. static: more files whose
    fields have no time. variables: canonical names to take (default: all that are known). levels, names, units: what files do not
    tell, see `Hints`. accumulation: since when accumulated variables run, see `accumulation.deaccumulate`; asked sums over more
    hours (`total_precipitation_12hr`) are made from shorter ones. Missing values stay NaN; a level that only other variables have
    is NaN and not in `levels_available`.
    Raises InputError for files that are missing, cut, on another grid, ambiguous, or lack an asked variable.
    """
    hints = Hints(levels or {}, names or {}, units or {})
    opened = [found for path in expand(paths, pattern) for found in _read(path, "analysis", hints)]
    if static is not None:
        extra = [found for path in expand(static) for found in _read(path, "analysis", hints)]
        for found in extra:
            found.fields = [array for array in found.fields if "time" not in array.dims]
        opened += extra
    return as_analysis(opened, variables=variables, accumulation=accumulation)


def open_ensemble(
    paths: Paths,
    *,
    pattern: str | None = None,
    variables: Sequence[str] | None = None,
    levels: Mapping[str, int] | None = None,
    names: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    accumulation: str | None = None,
) -> xr.Dataset:
    """Forecasts as a lazy dataset (time, prediction_timedelta, number, [level], latitude, longitude) with `valid_time`.

    Arguments as in `open_files`. `attrs["form"]` is "forecast", or "analysis members" where the files have no lead times: then
    prediction_timedelta is 0. A deterministic run is one member, number 0. A lead that only other variables have is NaN, those
    present are in `hours_available`. No verifying analysis is added or guessed.
    """
    hints = Hints(levels or {}, names or {}, units or {})
    opened = [found for path in expand(paths, pattern) for found in _read(path, "forecast", hints)]
    return as_forecast(opened, variables=variables, accumulation=accumulation)


def open_static(paths: Paths) -> xr.Dataset:
    """The fields of files or stores that have no time (orography, land-sea mask), (latitude, longitude), float32, lazily.

    Raises InputError for files that are missing or cut, on different grids, or without such a field.
    """
    opened = [found for path in expand(paths) for found in _read(path, "analysis", Hints({}, {}, {}))]
    fields = [array for found in opened for array in found.fields if "time" not in array.dims]
    if not fields:
        raise InputError(f"{paths}: no static field of the table, such as land_sea_mask, was found")
    data = join(fields, [])
    return data.assign_coords(Grid.of(data).coords())


def as_analysis(
    opened: Sequence[Found], *, variables: Sequence[str] | None = None, accumulation: str | None = None
) -> xr.Dataset:
    """Fields that `fields.read` found as one analysis; arguments, result and errors as of `open_files`."""
    return _checked(_assemble(opened, variables, accumulation), "analysis")


def as_forecast(
    opened: Sequence[Found], *, variables: Sequence[str] | None = None, accumulation: str | None = None
) -> xr.Dataset:
    """Fields that `fields.read` found as one forecast; arguments, result and errors as of `open_ensemble`."""
    for found in opened:
        static = [str(array.attrs["source_name"]) for array in found.fields if "time" not in array.dims]
        found.left_out |= dict.fromkeys(static, "it has no time, so it is no part of a forecast")
        found.fields = [array for array in found.fields if "time" in array.dims]
    data = _assemble(opened, variables, accumulation)
    valid = data["time"].values[:, None] + data["prediction_timedelta"].values[None, :]
    data = data.assign_coords(valid_time=(("time", "prediction_timedelta"), valid))
    has_leads = bool((data["prediction_timedelta"].values != np.timedelta64(0)).any())
    data.attrs["form"] = "forecast" if has_leads else "analysis members"
    _note_absent_members(data)
    return _checked(data, "forecast")


def expand(paths: Paths, pattern: str | None = None) -> list[Path]:
    """The files behind a file, folder, glob or list, sorted. Raises InputError if there are none."""
    if not isinstance(paths, str | Path):
        return [found for path in paths for found in expand(path, pattern)]
    try:
        path = Path(paths).expanduser()
    except RuntimeError as error:
        raise InputError(f"{paths}: {error}".rstrip(".") + "; give the whole path") from None
    if path.is_dir() and not is_zarr(path):
        found = _globbed(path, pattern or "*")
        found = [file for file in found if pattern or file.suffix in SUFFIXES]
        if not found:
            raise InputError(f"{path} holds no file {pattern or 'with a known ending (' + ' '.join(SUFFIXES) + ')'}")
        return found
    if path.exists():
        return [path]
    root = Path(path.anchor)
    matches = _globbed(root, str(path.relative_to(root))) if _has_wildcard(path) else []
    if not matches:
        raise InputError(f"{path} not found; give a file, a folder, a glob or a zarr store")
    return matches


def _globbed(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except (ValueError, NotImplementedError) as error:
        raise InputError(f"{pattern!r} is no pattern of files: {error}; expected names with *, ? or [], as *.nc") from None


def _has_wildcard(path: Path) -> bool:
    return any(sign in str(path) for sign in "*?[")


def _read(path: Path, kind: schema.Kind, hints: Hints) -> list[Found]:
    return [read(raw, kind, hints, name) for name, raw in open_raw(path)]


def _assemble(opened: Sequence[Found], variables: Sequence[str] | None, accumulation: str | None) -> xr.Dataset:
    fields = [array for found in opened for array in found.fields]
    left_out = {name: reason for found in opened for name, reason in found.left_out.items()}
    there = {str(array.name): array for array in fields}
    if variables is not None:
        wanted = {name for name in there if name in variables or _is_part(name, variables)}
        fields = [array for array in fields if array.name in wanted]
    log = list(dict.fromkeys(line for found in opened for line in found.log))
    if not fields:
        asked = f"{', '.join(variables)} not in the source; found {', '.join(sorted(there)) or 'none'}" if variables else ""
        raise InputError((asked or "no field of the table was found") + _reasons(left_out))
    data = join(fields, log)
    data.attrs["mapping"] = json.dumps(log + [f"{name}: left out, {reason}" for name, reason in left_out.items()])
    data = deaccumulate(data, accumulation=accumulation)
    if variables is None:
        return data
    data = totals(data, variables)
    missing = [name for name in variables if name not in data]
    if missing:
        found = sorted({*there, *map(str, data.data_vars)})
        raise InputError(f"{', '.join(missing)} not in the source; found {', '.join(found)}" + _reasons(left_out))
    return data[[name for name in data.data_vars if name in variables]]


def _is_part(name: str, variables: Sequence[str]) -> bool:
    """Whether an accumulated field may be what an asked one over other hours is made from."""
    entry = lookup(name)
    return entry is not None and entry.accumulated and any(lookup(asked) is entry for asked in variables)


def _note_absent_members(data: xr.Dataset) -> None:
    """GRIB headers tell the size of the ensemble; a part of it may be wanted, or a file may have been cut: it is said."""
    size = max((array.attrs.get("ensemble_size", 0) for array in data.data_vars.values()), default=0)
    numbers = data["number"].values
    if numbers.size < size:
        data.attrs = noted(data, [f"members {numbers[0]} .. {numbers[-1]}: {numbers.size} of the {size} of this ensemble"]).attrs


def _reasons(left_out: Mapping[str, str]) -> str:
    return "".join(f"\n  - {name}: left out, {reason}" for name, reason in left_out.items())


def _checked(data: xr.Dataset, kind: schema.Kind) -> xr.Dataset:
    data = data.assign_coords(Grid.of(data).coords())
    if "level" in data.coords:
        data["level"].attrs.update(units="hPa", standard_name="air_pressure", positive="down")
    schema.validate(data, kind)
    return data
