"""Units: any usual spelling to those of the variables table.

A unit is read as a factor and powers of kg, m, s and K, so that `m**2 s**-2`, `m^2/s^2` and `m2 s-2` are one unit; what is not a
plain factor is spelled out: temperature in Celsius, geopotential height, water as mass or depth, and fractions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.variables import Variable

STANDARD_GRAVITY = 9.80665  # m s-2, the value behind geopotential height (WMO)
WATER_DENSITY = 1000.0  # kg m-3, the value behind precipitation in metres (ECMWF)

Powers = tuple[int, int, int, int]  # of kg, m, s, K

DIMENSIONLESS: Powers = (0, 0, 0, 0)
LENGTH: Powers = (0, 1, 0, 0)
DENSITY: Powers = (1, -3, 0, 0)
GEOPOTENTIAL: Powers = (0, 2, -2, 0)

_BASE: dict[str, tuple[float, Powers]] = {
    "kg": (1.0, (1, 0, 0, 0)),
    "g": (1e-3, (1, 0, 0, 0)),
    "m": (1.0, LENGTH),
    "gpm": (1.0, LENGTH),
    "km": (1e3, LENGTH),
    "cm": (1e-2, LENGTH),
    "mm": (1e-3, LENGTH),
    "dam": (10.0, LENGTH),
    "gpdm": (10.0, LENGTH),
    "s": (1.0, (0, 0, 1, 0)),
    "h": (3600.0, (0, 0, 1, 0)),
    "hr": (3600.0, (0, 0, 1, 0)),
    "hour": (3600.0, (0, 0, 1, 0)),
    "day": (86400.0, (0, 0, 1, 0)),
    "k": (1.0, (0, 0, 0, 1)),
    "kelvin": (1.0, (0, 0, 0, 1)),
    "pa": (1.0, (1, -1, -2, 0)),
    "hpa": (1e2, (1, -1, -2, 0)),
    "kpa": (1e3, (1, -1, -2, 0)),
    "mb": (1e2, (1, -1, -2, 0)),
    "mbar": (1e2, (1, -1, -2, 0)),
    "millibar": (1e2, (1, -1, -2, 0)),
    "millibars": (1e2, (1, -1, -2, 0)),
    "j": (1.0, (1, 2, -2, 0)),
    "w": (1.0, (1, 2, -3, 0)),
    "knot": (0.514444, (0, 1, -1, 0)),
    "knots": (0.514444, (0, 1, -1, 0)),
    "kt": (0.514444, (0, 1, -1, 0)),
    "kts": (0.514444, (0, 1, -1, 0)),
    "%": (1e-2, DIMENSIONLESS),
    "percent": (1e-2, DIMENSIONLESS),
    "1": (1.0, DIMENSIONLESS),
}
_FRACTIONS = {"(0 - 1)", "(0-1)", "0-1", "fraction", "numeric", "dimensionless", "proportion", "~"}
_CELSIUS = {"degc", "deg c", "celsius", "degree_celsius", "degrees_celsius", "degree celsius", "degrees celsius", "°c", "c"}
_WORDS = {
    "metres": "m", "meters": "m", "metre": "m", "meter": "m", "seconds": "s", "second": "s", "sec": "s", "kelvins": "K",
    "degk": "K", "pascal": "Pa", "pascals": "Pa", "joules": "J", "hours": "h",
}  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_TOKEN = re.compile(r"([a-z%]+|1)(-?\d+)?")


@dataclass(frozen=True)
class Unit:
    """`value_SI = value * factor + offset`, and the powers of kg, m, s, K."""

    factor: float
    powers: Powers
    offset: float = 0.0


def parse_unit(text: str) -> Unit:
    """The unit behind one of its usual spellings. Raises ValueError for one that is not known."""
    plain = " ".join(str(text).translate(_SUPERSCRIPTS).strip().lower().split())
    if plain in _CELSIUS:
        return Unit(1.0, (0, 0, 0, 1), 273.15)
    if plain in _FRACTIONS:
        return Unit(1.0, DIMENSIONLESS)
    plain = re.sub(r" of water( equivalent)?| w\.?e\.?$| water equivalent", "", plain)
    for word, sign in _WORDS.items():
        plain = re.sub(rf"\b{word}\b", sign.lower(), plain)
    plain = re.sub(r"\*\*|\^", "", plain).replace("·", " ").replace("*", " ").replace(".", " ")
    plain = re.sub(r"/\s*([a-z]+)(\d*)", lambda match: f" {match[1]}-{match[2] or 1}", plain)
    factor, powers = 1.0, np.zeros(4, int)
    tokens = plain.split()
    if not tokens:
        raise ValueError("no unit")
    for token in tokens:
        match = _TOKEN.fullmatch(token)
        if not match or match[1] not in _BASE:
            raise ValueError(f"unit {text!r} is not known (at {token!r})")
        base_factor, base_powers = _BASE[match[1]]
        exponent = int(match[2] or 1)
        factor *= base_factor**exponent
        powers += exponent * np.array(base_powers)
    return Unit(factor, tuple(int(power) for power in powers))  # type: ignore[arg-type]


def conversion(units: str, variable: Variable) -> tuple[float, float]:
    """(factor, offset) with `canonical = factor * value + offset` for values in `units`.

    Raises InputError naming the variable, the units found and those expected, if there is no such conversion.
    """
    try:
        source, target = parse_unit(units), parse_unit(variable.units)
    except ValueError as error:
        raise InputError(f"{variable.name}: {error}; expected {variable.units!r} or one convertible to it") from None
    bridge = _bridge(source.powers, target.powers)
    if bridge is None:
        raise InputError(f"{variable.name}: units {units!r} cannot be converted to {variable.units!r}; {_hint(variable)}")
    factor = source.factor * bridge / target.factor
    offset = (source.offset - target.offset) / target.factor
    return factor, offset


def to_canonical_units(array: xr.DataArray, variable: Variable, units: str | None = None) -> xr.DataArray:
    """`array` in the units of the table, lazily, as float32 with `units` set; conversions are done in float64.

    units: of the values; by default `array.attrs["units"]`. NaN stays NaN. Raises InputError for missing or inconvertible units.
    """
    found = units if units is not None else array.attrs.get("units")
    if found is None:
        raise InputError(f"{variable.name}: no units; name them by the source option units, for example {variable.units!r}")
    factor, offset = conversion(str(found), variable)
    attrs = {**array.attrs, "units": variable.units}
    if (factor, offset) != (1.0, 0.0):
        array = array.astype(np.float64) * factor + offset
    return array.astype(np.float32).assign_attrs(attrs)


def _bridge(source: Powers, target: Powers) -> float | None:
    if source == target:
        return 1.0
    if source == LENGTH and target == GEOPOTENTIAL:
        return STANDARD_GRAVITY
    missing = tuple(wanted - found for wanted, found in zip(target, source, strict=True))
    if missing == DENSITY:  # a depth of water (or its rate) to a mass per area
        return WATER_DENSITY
    if missing == tuple(-power for power in DENSITY):
        return 1 / WATER_DENSITY
    return None


def _hint(variable: Variable) -> str:
    if variable.units == "J m-2":
        return "a flux in W m-2 needs its accumulation time: multiply by its seconds before ingest"
    if variable.accumulated:
        return "a rate needs its accumulation time: multiply by its seconds before ingest"
    return "correct the units attribute, or name the right variable"
