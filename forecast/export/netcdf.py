"""CF-1.11 NetCDF-4 files: standard names, cell methods with bounds, members as realizations, valid times, compression.

One initialisation has a dim `time` (valid times) and scalar forecast_reference_time, as in CF's own examples; several have the
dims forecast_reference_time and forecast_period, and the valid times as a coordinate of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr

from data_pipeline.manifest import version
from data_pipeline.schema import levels_by_name
from forecast.export.blocks import HOUR, Field, blocks, lead_hours
from forecast.plan import ForecastPlan

SINCE = "hours since 1900-01-01 00:00:00"
EPOCH = np.datetime64("1900-01-01", "ns")
SHUFFLED: dict[str, Any] = {"compression": "zlib", "complevel": 3, "shuffle": True, "fletcher32": True}
TABLE = "CF Standard Name Table v85"
# energies over a time that the table of standard names has; the others of our J m-2 have no name there
_INTEGRALS = (
    "surface_downwelling_longwave_flux_in_air", "surface_downwelling_shortwave_flux_in_air",
    "surface_net_downward_shortwave_flux", "toa_outgoing_longwave_flux",
)  # fmt: skip
_EXTREMES = {"maximum_2m_temperature": "air_temperature", "minimum_2m_temperature": "air_temperature"}


def write(path: Path, forecast: xr.Dataset, plan: ForecastPlan, fields: list[Field], rows: Sequence[int]) -> None:
    """The initialisations `rows` of the plan in one file; one block of a field is in memory at a time."""
    with netCDF4.Dataset(path, "w", format="NETCDF4") as file:
        file.setncatts(_attributes(plan))
        leading = _axes(file, plan, fields, rows)
        names = _variables(file, plan, fields, leading)
        levels = _levels(plan)
        for place, row in enumerate(rows):
            for block in blocks(forecast, plan, fields, row):
                level = block.field.channel.level
                at: list[Any] = [slice(block.members[0], block.members[-1] + 1), *([place] if len(rows) > 1 else [])]
                at += [list(block.leads), *([levels.index(level)] if level is not None else [])]
                file[names[block.field.channel.name]][tuple(at)] = block.values.swapaxes(0, 1)


def name_of(field: Field) -> str:
    """Names of variables begin with a letter: t2m for 2m_temperature."""
    own = field.channel.name
    return own if own[0].isalpha() else field.variable.short + own.removeprefix(field.variable.name)


def _levels(plan: ForecastPlan) -> list[int]:
    return sorted({channel.level for channel in plan.channels if channel.level is not None})


def _axes(file: netCDF4.Dataset, plan: ForecastPlan, fields: list[Field], rows: Sequence[int]) -> list[str]:
    """Dims and coordinates; the dims of a field before its level."""
    several = len(rows) > 1
    clock = {"calendar": "standard", "units_metadata": "leap_seconds: none"}
    begins = (plan.times[list(rows)] - EPOCH) / HOUR
    leads = np.array(lead_hours(plan), float)
    init = {"standard_name": "forecast_reference_time", "long_name": "initialisation", "units": SINCE, **clock}
    period = {"standard_name": "forecast_period", "long_name": "lead time", "units": "hours"}
    valid = {"standard_name": "time", "long_name": "valid time", "units": SINCE, **clock}
    lead_dim, axis = ("forecast_period", "forecast_period") if several else ("time", "time")
    file.createDimension(lead_dim, leads.size)
    if several:
        file.createDimension("forecast_reference_time", len(rows))
        _coordinate(file, "forecast_reference_time", ("forecast_reference_time",), begins, init | {"axis": "T"})
        _coordinate(file, "forecast_period", ("forecast_period",), leads, period)
        _coordinate(file, "time", ("forecast_reference_time", "forecast_period"), begins[:, None] + leads, valid)
    else:
        _coordinate(file, "forecast_reference_time", (), begins[0], init)
        _coordinate(file, "time", ("time",), begins[0] + leads, valid | {"axis": "T"})
        _coordinate(file, "forecast_period", ("time",), leads, period)
    hours = {field.hours for field in fields if field.hours is not None}
    if len(hours) == 1:  # one axis has one set of bounds; fields over other hours tell them in their cell methods alone
        file.createDimension("bnds", 2)
        edges = np.stack([leads - hours.pop(), leads], axis=-1) + (0 if several else begins[0])
        file[axis].bounds = f"{axis}_bnds"
        file.createVariable(f"{axis}_bnds", "f8", (lead_dim, "bnds"))[:] = edges
    file.createDimension("realization", len(plan.members))
    member = {"standard_name": "realization", "long_name": "ensemble member", "units": "1"}
    _coordinate(file, "realization", ("realization",), np.array(plan.members, "i4"), member)
    if levels := _levels(plan):
        file.createDimension("level", len(levels))
        about = {"standard_name": "air_pressure", "long_name": "pressure level", "units": "hPa", "positive": "down", "axis": "Z"}
        _coordinate(file, "level", ("level",), np.array(levels, "i4"), about)
    for name, coord in plan.grid.coords().items():
        file.createDimension(name, coord.size)
        _coordinate(file, name, (name,), coord.values, {**coord.attrs, "long_name": name})
    for height in sorted({field.variable.height for field in fields if field.variable.height}):
        about = {"standard_name": "height", "long_name": "height above ground", "units": "m", "positive": "up"}
        _coordinate(file, f"height_{height:g}m", (), np.float64(height), about)
    return ["realization", "forecast_reference_time", "forecast_period"] if several else ["realization", "time"]


def _coordinate(file: netCDF4.Dataset, name: str, dims: tuple[str, ...], values: Any, attrs: Mapping[str, Any]) -> None:
    variable = file.createVariable(name, np.asarray(values).dtype, dims)
    variable.setncatts(attrs)
    variable[...] = values


def _variables(file: netCDF4.Dataset, plan: ForecastPlan, fields: list[Field], leading: list[str]) -> dict[str, str]:
    """{canonical name: name in the file} of the variables, made empty; a level or lead that one lacks stays missing."""
    names: dict[str, str] = {}
    own_levels = levels_by_name(plan.channels)
    for field in fields:
        if field.channel.name in names:
            continue
        name = names[field.channel.name] = name_of(field)
        dims = [*leading, *(["level"] if field.channel.level is not None else []), "latitude", "longitude"]
        whole = [1] * (len(dims) - 2) + list(plan.grid.shape)
        variable = file.createVariable(name, "f4", dims, fill_value=np.float32(np.nan), chunksizes=whole, **SHUFFLED)
        variable.setncatts(_about(field, leading, own_levels[field.channel.name]))
    return names


def _about(field: Field, leading: list[str], levels: list[int]) -> dict[str, Any]:
    known = field.variable
    axis = leading[-1]
    standard = _EXTREMES.get(known.name, known.standard_name)
    if known.units == "J m-2":
        standard = f"integral_wrt_time_of_{standard}" if standard in _INTEGRALS else None
    attrs: dict[str, Any] = {"long_name": known.long_name, "units": known.units}
    attrs |= {"standard_name": standard} if standard else {}
    attrs |= {"units_metadata": "temperature: on_scale"} if known.units == "K" else {}
    if field.hours is None:
        attrs["cell_methods"] = f"{axis}: point"
    else:
        over = f"(over the {field.hours} hours that end at the valid time)"
        attrs["cell_methods"] = f"{axis}: {known.window} {over}"
    auxiliary = ["time"] if axis == "forecast_period" else ["forecast_reference_time", "forecast_period"]
    height = [f"height_{known.height:g}m"] if known.height else []
    attrs["coordinates"] = " ".join([*auxiliary, *height])
    return attrs | ({"levels_available": np.array(levels, "i4")} if levels else {})


def _attributes(plan: ForecastPlan) -> dict[str, Any]:
    own = {key: value if isinstance(value, int | float | str) else str(value) for key, value in plan.attrs.items()}
    own = {key: value for key, value in own.items() if value != ""}
    title = f"Ensemble forecast by {own.get('model', 'an unnamed model')}, {len(plan.members)} members"
    history = f"exported by plumecast {version()} from forecast {own.get('recipe_hash', '?')}"
    first = {"Conventions": "CF-1.11", "title": title, "history": history, "standard_name_vocabulary": TABLE}
    return {**first, **{key: value for key, value in own.items() if key not in first}}
