"""What is exported to which file; whole files only, each with its hash in a manifest; a killed export continues.

x.nc, x.grib2     one file with all initialisations, and x.nc.json beside it
folder            one file an initialisation, 2007010100.nc ..., and manifest.json; folder.partial until all are there
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from data_pipeline.disk import Lock, plain, read_json, sha256, sync, write_json
from data_pipeline.errors import InputError
from data_pipeline.manifest import MANIFEST, compare, partial_path
from forecast.export import grib, netcdf
from forecast.export.blocks import Field
from forecast.plan import ForecastPlan

Format = Literal["netcdf", "grib2"]
SUFFIXES: dict[str, Format] = {".nc": "netcdf", ".nc4": "netcdf", ".grib2": "grib2", ".grib": "grib2", ".grb2": "grib2"}
ENDINGS: dict[Format, str] = {"netcdf": ".nc", "grib2": ".grib2"}


@dataclass(frozen=True)
class Settings:
    """format: of a folder's files; of one file its ending tells. packing: of GRIB2."""

    format: Format = "netcdf"
    packing: grib.Packing = field(default_factory=grib.Packing)

    @classmethod
    def of(cls, out: Path, format: Format | None, packing: grib.Packing) -> Settings:  # noqa: A002
        """Raises InputError where the ending of a file and the format contradict each other."""
        told = SUFFIXES.get(out.suffix.lower())
        if told and format and told != format:
            raise InputError(f"{out} ends as {told}, asked for is {format}; leave --format out, or name another file")
        return cls(told or format or "netcdf", packing)


def export(
    forecast: xr.Dataset, plan: ForecastPlan, out: Path, settings: Settings,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Path:  # fmt: skip
    """Write what the plan has of a forecast; a finished export of the same settings is left alone.

    Raises InputError, listing all, for fields that the format cannot name; if something else lies at `out`, or is being written.
    """
    fields = check(forecast, plan, settings)
    with Lock(out.with_name(out.name + ".lock")) as lock:
        try:
            return _export(forecast, plan, out, fields, settings, report)
        finally:
            lock.path.unlink(missing_ok=True)


def _export(
    forecast: xr.Dataset, plan: ForecastPlan, out: Path, fields: list[Field], settings: Settings,
    report: Callable[[int, int], None],
) -> Path:  # fmt: skip
    recipe = _recipe(plan, settings)
    single = out.suffix.lower() in SUFFIXES
    manifest = out.with_name(out.name + ".json") if single else out / MANIFEST
    if manifest.is_file() and out.exists():
        compare(out, {"recipe": read_json(manifest, "recipe", "files")["recipe"]}, {"recipe": recipe})
        report(plan.times.size, plan.times.size)
        return out
    if out.exists():
        raise InputError(f"{out} exists and has no {manifest.name}: not an export of plumecast; choose another place")
    if single:
        done = _write_file(out, forecast, plan, fields, list(range(plan.times.size)), settings, report)
        write_json(manifest, {"recipe": recipe, "files": done})
        return out
    return _write_folder(out, forecast, plan, fields, settings, recipe, report)


def check(forecast: xr.Dataset, plan: ForecastPlan, settings: Settings) -> list[Field]:
    """The fields of the plan. Raises InputError, listing everything, for those that cannot be written."""
    fields, faults = [], []
    for channel in plan.channels:
        try:
            fields.append(Field.of(forecast, channel, plan))
        except InputError as error:
            faults.append(str(error))
    faults += grib.check(fields, settings.packing) if settings.format == "grib2" else []
    if faults:
        raise InputError(
            f"this forecast cannot be written as {settings.format}:\n" + "\n".join(f"  - {fault}" for fault in faults)
        )
    return fields


def _write_folder(
    out: Path, forecast: xr.Dataset, plan: ForecastPlan, fields: list[Field], settings: Settings, recipe: dict[str, Any],
    report: Callable[[int, int], None],
) -> Path:  # fmt: skip
    folder = partial_path(out)
    folder.mkdir(parents=True, exist_ok=True)
    manifest, files = folder / MANIFEST, {}
    if manifest.is_file():
        known = read_json(manifest, "recipe", "files")
        compare(folder, {"recipe": known["recipe"]}, {"recipe": recipe})
        files = known["files"]
    for row, time in enumerate(plan.times):
        stamp = time.astype("datetime64[m]").item()
        path = folder / f"{stamp:%Y%m%d%H}{f'{stamp:%M}' if stamp.minute else ''}{ENDINGS[settings.format]}"
        if path.name not in files:
            files |= _write_file(path, forecast, plan, fields, [row], settings)
            write_json(manifest, {"recipe": recipe, "files": files})
        report(row + 1, plan.times.size)
    folder.rename(out)
    sync(out.parent)
    return out


def _write_file(
    path: Path, forecast: xr.Dataset, plan: ForecastPlan, fields: list[Field], rows: list[int], settings: Settings,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[Any]]:  # fmt: skip
    """Under another name until it is whole; {name: [bytes, sha256]}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial_path(path)
    try:
        if settings.format == "netcdf":
            netcdf.write(temporary, forecast, plan, fields, rows)
        else:
            with temporary.open("wb") as file:
                for row in rows:
                    grib.write(file, forecast, plan, fields, row, settings.packing)
                    report(row, plan.times.size)
        sync(temporary)
        entry = [temporary.stat().st_size, sha256(temporary)]
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    report(plan.times.size, plan.times.size)
    return {path.name: entry}


def _recipe(plan: ForecastPlan, settings: Settings) -> dict[str, Any]:
    """What decides the content of the files."""
    hours = plan.leads / np.timedelta64(1, "h")
    recipe: dict[str, Any] = plain(
        {
            "forecast": plan.attrs.get("recipe_hash", plan.attrs.get("model", "")),
            "initialisations": np.datetime_as_string(plan.times, "m").tolist(),
            "hours": hours.tolist(),
            "members": list(plan.members),
            "fields": [channel.label for channel in plan.channels],
            "grid": f"{plan.grid} [{plan.grid.key}]",
            "format": settings.format,
            **(asdict(settings.packing) if settings.format == "grib2" else {}),
        }
    )
    return recipe
