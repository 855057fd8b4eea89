"""Variables of a source: which one each is, its units, its level; what is not understood is left out and said."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch

import numpy as np
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.schema import ANALYSIS_DIMS, FORECAST_DIMS, Channel, Kind
from data_pipeline.sources import axes, layout
from data_pipeline.units import to_canonical_units
from data_pipeline.variables import UnknownVariableError, Variable, identify, lookup

_KEPT_ATTRS = ("quantisation_step", "cell_methods", "windows")
_SINCE_INIT = re.compile(r"(since|from) (the )?(init|forecast start|(start|beginning) of (the )?(forecast|run))", re.IGNORECASE)
_MONTHLY = {"frequency": ("mon", "month", "monthly"), "GRIB_stepType": ("avgua", "avgia", "avgid", "avgad", "avgas")}
_OTHER_LEVELS = (
    "hybrid", "theta", "sigma", "potentialVorticity", "depthBelowLand", "depthBelowLandLayer", "heightAboveGround", "height",
)  # fmt: skip
_HEIGHT_NAMES = ("gh", "HGT", "geopotential_height")


@dataclass(frozen=True)
class Hints:
    """What files do not tell. Keys are names of source variables, for levels also file names with wildcards.

    levels: pressure (hPa) of a variable whose level is only in the file name. names: canonical name of a variable that could be
    several, "" to leave one out. units: of a variable that states none, or wrong ones.
    """

    levels: Mapping[str, int] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)

    def level_of(self, variable: str, file: str) -> int | None:
        """The level named for a variable of a file, the variable's own name first."""
        if variable in self.levels:
            return int(self.levels[variable])
        return next((int(level) for pattern, level in self.levels.items() if fnmatch(file, pattern)), None)


@dataclass
class Found:
    """What one file gave: fields in the schema, the log of the mapping, and the variables left out with the reason."""

    fields: list[xr.DataArray]
    log: list[str]
    left_out: dict[str, str]


def read(raw: xr.Dataset, kind: Kind, hints: Hints, file: str) -> Found:
    """Every field of an opened file in the form of the schema. Raises InputError naming the file."""
    found = Found([], [], {})
    try:
        _check_not_monthly(raw)
        data, names = layout.rename_roles(raw)
        renamed = layout.renamings(names, kind)
        found.log += [renamed] if renamed else []
        data = layout.merge_expver(layout.chunked(data), found.log)
        if "level" in data.coords:
            data = axes.pressure_levels(data, names["level"], found.log)
        if kind == "analysis":
            data = axes.analysis_time(data, names, found.log)
        else:
            data = axes.forecast_time(data, names, found.log)
        data = axes.oriented(data, found.log)
        for name in data.data_vars:
            _take(str(name), data, kind, hints, file, found)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    return found


def _take(name: str, data: xr.Dataset, kind: Kind, hints: Hints, file: str, found: Found) -> None:
    array = data[name]
    if not {"latitude", "longitude"} & set(array.dims):
        return
    try:
        _check_field(array)
        canonical, level = _identity(name, array, hints, file)
        variable = lookup(canonical)
        assert variable is not None
        array = _placed(array, variable, level, kind)
        array, units = _in_units(name, array, variable, hints)
    except UnknownVariableError as reason:
        found.left_out[name] = str(reason)
        return
    where = f" at {level} hPa" if level is not None else ""
    found.log.append(f"{name} -> {canonical}{where} [{units}]")
    found.fields.append(array.rename(canonical))


def _check_not_monthly(raw: xr.Dataset) -> None:
    for attrs in [raw.attrs, *(array.attrs for array in raw.data_vars.values())]:
        told = [f"{key} {attrs[key]}" for key, values in _MONTHLY.items() if str(attrs.get(key)) in values]
        if told:
            raise InputError(f"monthly means ({told[0]}): expected instants, or sums over hours")


def _check_field(array: xr.DataArray) -> None:
    """Raise UnknownVariableError for what is no field of numbers on the grid, or on levels that are no pressures."""
    if not {"latitude", "longitude"} <= set(array.dims):
        raise UnknownVariableError(f"it has dims {', '.join(map(str, array.dims))}, no latitude and longitude")
    if not array.size:
        raise UnknownVariableError(f"it is empty along {', '.join(str(dim) for dim, size in array.sizes.items() if not size)}")
    if array.dtype.kind not in "fiu":
        raise UnknownVariableError(f"it holds {array.dtype}, no numbers")
    other = [dim for dim in _OTHER_LEVELS if array.sizes.get(dim, 1) > 1]
    if other:
        raise UnknownVariableError(f"it is on {other[0]} levels; expected pressures (interpolate it first) or one level")


def _identity(name: str, array: xr.DataArray, hints: Hints, file: str) -> tuple[str, int | None]:
    """Canonical name, and the level (hPa) if the array has no level dim of its own."""
    if name in hints.names:
        canonical = hints.names[name]
        if not canonical:
            raise UnknownVariableError("as the source option names wants it")
        if lookup(canonical) is None:
            raise InputError(f"source option names: {name!r} is to be {canonical!r}, which is not in the table of variables")
        return canonical, _scalar_level(name, array, hints, file)
    level = _scalar_level(name, array, hints, file)
    on_levels = "level" in array.dims or level is not None
    static = not {"time", "prediction_timedelta"} & set(array.coords)
    try:
        return identify(name, array.attrs, on_levels=on_levels, static=static, height=layout.height_of(array)), level
    except UnknownVariableError:
        labelled = _from_label(name, array)
        if labelled is None:
            raise
        return labelled.name, labelled.level


def _scalar_level(name: str, array: xr.DataArray, hints: Hints, file: str) -> int | None:
    if "level" in array.dims:
        return None
    hinted = hints.level_of(name, file)
    if hinted is not None:
        return hinted
    return int(array["level"]) if "level" in array.coords else None


def _from_label(name: str, array: xr.DataArray) -> Channel | None:
    """`z500` and `geopotential_500` name their level."""
    match = re.fullmatch(r"([A-Za-z_]*[A-Za-z])_?(\d{1,4})", name)
    if not match or "level" in array.dims:
        return None
    try:
        canonical = identify(match[1], {}, on_levels=True)
    except UnknownVariableError:
        return None
    known = lookup(canonical)
    return Channel(canonical, int(match[2])) if known is not None and known.on_levels else None


def _placed(array: xr.DataArray, variable: Variable, level: int | None, kind: Kind) -> xr.DataArray:
    """Dims of the schema, in its order, and nothing else."""
    if variable.on_levels and "level" not in array.dims:
        if level is None:
            raise UnknownVariableError(
                f'its pressure level is not in the file; name it by the source option levels, as {{"{array.name}" = 500}}'
            )
        array = array.drop_vars("level", errors="ignore").expand_dims(level=[level])
    elif not variable.on_levels and "level" in array.dims:
        if array.sizes["level"] > 1:
            raise UnknownVariableError(f"{variable.name} with {array.sizes['level']} levels; expected none")
        array = array.squeeze("level", drop=True)
    if "level" in array.dims and "levels_available" in array.attrs:
        held = np.isin(array["level"].values, np.atleast_1d(array.attrs["levels_available"]))
        if not held.any():
            raise UnknownVariableError("it has values on none of these levels")
        array = array.isel(level=held)
    order = ANALYSIS_DIMS if kind == "analysis" else FORECAST_DIMS
    if variable.static:
        array = array.isel({dim: 0 for dim in array.dims if dim in ("time", "prediction_timedelta", "number")}, drop=True)
    elif "time" not in array.coords:
        raise UnknownVariableError("it has no time")
    else:
        missing = [dim for dim in order if dim != "level" and dim not in array.dims]
        array = array.expand_dims(missing)
    other = [str(dim) for dim in array.dims if dim not in order]
    array = array.squeeze([dim for dim in other if array.sizes[dim] == 1], drop=True)
    other = [dim for dim in other if dim in array.dims]
    if other:
        raise UnknownVariableError(f"dim {', '.join(other)} is not understood")
    array = array.drop_vars([name for name in array.coords if name not in array.dims])
    return array.transpose(*[dim for dim in order if dim in array.dims])


def _in_units(name: str, array: xr.DataArray, variable: Variable, hints: Hints) -> tuple[xr.DataArray, str]:
    stated = hints.units.get(name, array.attrs.get("units", array.attrs.get("GRIB_units")))
    kept = {key: array.attrs[key] for key in _KEPT_ATTRS if key in array.attrs}
    shown = f"{stated} -> {variable.units}" if str(stated) != variable.units else variable.units
    if stated is None:
        if variable.name == "relative_humidity":
            raise UnknownVariableError("it states no units (% or 0-1?); name them by the source option units")
        stated = "gpm" if name in _HEIGHT_NAMES else variable.units
        shown = f"no units stated, taken as {stated}"
    converted = to_canonical_units(array, variable, str(stated))
    attrs = {"long_name": variable.long_name, "units": variable.units, "source_name": name, **kept}
    if variable.accumulated and any(_SINCE_INIT.search(str(text)) for text in array.attrs.values()):
        attrs["accumulation"] = "init"
    if array.attrs.get("GRIB_totalNumber", 0) > 1:
        attrs["ensemble_size"] = int(array.attrs["GRIB_totalNumber"])
    return converted.drop_attrs(deep=False).assign_attrs(attrs), shown
