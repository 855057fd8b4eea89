"""From the model's sigma layers to the fields of the schema: pressure levels, 2 m, 10 m, mean sea level; on the model's grid.

Level variables are linear in ln p between layers; geopotential adds the quadratic term that follows from a temperature linear in
ln p. Below the lowest layer temperature falls with 6.5 K/km, geopotential is hydrostatic with it, wind and humidity are constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import xarray as xr

from data_pipeline.errors import GateError
from data_pipeline.grid import Grid
from data_pipeline.planet.model import GRAVITY, Raw, Surroundings
from data_pipeline.regrid import regrid
from data_pipeline.schema import Channel
from data_pipeline.variables import lookup

GAS = 1004.64 * 2.0 / 7.0  # J kg-1 K-1, dry air
LAPSE = 0.0065  # K m-1
EXPONENT = GAS * LAPSE / GRAVITY
TROPICAL, POLAR = 290.5, 255.0  # K, bounds of the temperature below ground (Trenberth et al. 1993, NCAR/TN-396)
LEVELS = (250, 500, 700, 850)  # hPa offered
ON_LEVELS = {
    "geopotential": "z",
    "temperature": "t",
    "u_component_of_wind": "u",
    "v_component_of_wind": "v",
    "specific_humidity": "q",
}
PBL_SIGMA = 0.835  # the layer above the lowest

Columns = Mapping[str, np.ndarray]


def offered(hours: int) -> list[Channel]:
    """Every channel the planet can give at an interval of `hours`."""
    levels = [Channel(name, level) for name in ON_LEVELS for level in LEVELS]
    return levels + [Channel(name) for name in (*_SURFACE, rain_name(hours))]


def rain_name(hours: int) -> str:
    """The canonical name of precipitation over an interval: `total_precipitation_12hr`."""
    return f"total_precipitation_{hours}hr"


def to_schema(raw: Raw, around: Surroundings, channels: Sequence[Channel]) -> xr.Dataset:
    """The channels (time, [level], latitude, longitude) on the model's own grid, float64; levels only others have are NaN."""
    columns = _columns(raw)
    levels = sorted({channel.level for channel in channels if channel.level is not None})
    coords = {"time": raw.times, **({"level": levels} if levels else {}), **around.grid.coords()}
    out = xr.Dataset(coords=coords)
    for name in dict.fromkeys(channel.name for channel in channels):
        known = lookup(name)
        attrs = {"units": known.units if known else ""}
        own = [channel.level for channel in channels if channel.name == name and channel.level is not None]
        if not own:
            out[name] = (("time", "latitude", "longitude"), _turned(_surface(name, columns, raw, around)), attrs)
            continue
        block = np.full((len(raw.times), len(levels), *around.grid.shape), np.nan)
        for level in own:
            block[:, levels.index(level)] = _turned(at_pressure(columns, around, 100.0 * level, ON_LEVELS[name]))
        out[name] = (("time", "level", "latitude", "longitude"), block, attrs)
    return out


def gridded(raw: Raw, around: Surroundings, channels: Sequence[Channel], grid: Grid) -> xr.Dataset:
    """The channels on `grid` by conservative regridding, float32; water that spectral undershoots left negative is cut at 0.

    Raises GateError if the model blew up.
    """
    bad = [name for name in ("t", "u", "v", "ps") if not np.isfinite(raw.fields[name]).all()]
    if bad:
        raise GateError(f"the simulated planet blew up before {raw.times[-1]}: {', '.join(bad)} not finite")
    fields = regrid(to_schema(raw, around, channels), grid)
    cut = {str(name): array.clip(min=0.0) for name, array in fields.data_vars.items() if _is_water(str(name))}
    return fields.assign(cut).astype(np.float32)


def at_pressure(columns: Columns, around: Surroundings, pressure: float, field: str) -> np.ndarray:
    """One of u, v, t, q, z at `pressure` (Pa), shape (time, longitude, latitude)."""
    log_p = np.log(around.sigma)[None, :, None, None] + np.log(columns["ps"])[:, None]
    wanted = np.log(pressure)
    above = np.clip((log_p < wanted).sum(axis=1) - 1, 0, log_p.shape[1] - 2)[:, None]

    def layer(values: np.ndarray, offset: int) -> np.ndarray:
        return np.take_along_axis(values, above + offset, axis=1)[:, 0]

    upper, lower = layer(log_p, 0), layer(log_p, 1)
    share = (wanted - upper) / (lower - upper)
    values = columns[field]
    found = layer(values, 0) * (1 - share) + layer(values, 1) * share
    lowest, ratio = values[:, -1], pressure / np.exp(log_p[:, -1])
    if field == "z":
        virtual = columns["tv"]
        slope = (layer(virtual, 1) - layer(virtual, 0)) / (lower - upper)
        found = found + 0.5 * GAS * slope * (wanted - upper) * (lower - wanted)
        lowest = lowest - GAS * virtual[:, -1] / EXPONENT * (ratio**EXPONENT - 1)
    elif field == "t":
        lowest = lowest * ratio**EXPONENT
    return np.where(wanted > log_p[:, -1], lowest, found)


def two_metre_temperature(columns: Columns, around: Surroundings) -> np.ndarray:
    """SPEEDY's near-surface temperature: extrapolated from the two lowest layers, or the lowest where these are inverted."""
    lowest, next_layer = columns["t"][:, -1], columns["t"][:, -2]
    log_sigma = np.log(around.sigma[-1])
    change = (np.log(0.99) - log_sigma) / (log_sigma - np.log(PBL_SIGMA)) * (lowest - next_layer)
    over_land = lowest + change
    over_sea = over_land - around.orography * GRAVITY * change / (GAS * 288.0 * log_sigma)
    unstable = lowest > next_layer
    land, sea = (np.where(unstable, value, lowest) for value in (over_land, over_sea))
    return sea + around.land * (land - sea)


def sea_level_pressure(columns: Columns, around: Surroundings) -> np.ndarray:
    """Mean sea level pressure (Pa) as ECMWF reduces it (Trenberth et al. 1993)."""
    ps, phis = columns["ps"], around.phis[None]
    surface = columns["t"][:, -1] * (1 + EXPONENT * (1 / around.sigma[-1] - 1))
    sea_level = surface + LAPSE * phis / GRAVITY
    exponent = np.full_like(surface, EXPONENT)
    height = np.where(np.abs(phis) > 1.0, phis, 1.0)
    warm_below, warm = (surface <= TROPICAL) & (sea_level > TROPICAL), (surface > TROPICAL) & (sea_level > TROPICAL)
    exponent = np.where(warm_below, GAS * (TROPICAL - surface) / height, exponent)
    exponent = np.where(warm, 0.0, exponent)
    surface = np.where(warm, 0.5 * (TROPICAL + surface), surface)
    surface = np.where(surface < POLAR, 0.5 * (POLAR + surface), surface)
    x = phis / (GAS * surface)
    y = exponent * x
    return np.where(np.abs(phis) < 1e-3, ps, ps * np.exp(x * (1 - y / 2 + y * y / 3)))


def _wind(component: str) -> Callable[[Columns, Surroundings], np.ndarray]:
    return lambda columns, around: 0.95 * columns[component][:, -1]  # SPEEDY's near-surface wind


_SURFACE: dict[str, Callable[[Columns, Surroundings], np.ndarray]] = {
    "2m_temperature": two_metre_temperature,
    "10m_u_component_of_wind": _wind("u"),
    "10m_v_component_of_wind": _wind("v"),
    "mean_sea_level_pressure": sea_level_pressure,
}


def _surface(name: str, columns: Columns, raw: Raw, around: Surroundings) -> np.ndarray:
    if name in _SURFACE:
        return _SURFACE[name](columns, around)
    return np.maximum(np.asarray(raw.fields["rain"], np.float64), 0.0)


def _is_water(name: str) -> bool:
    known = lookup(name)
    return known is not None and known.non_negative


def _columns(raw: Raw) -> dict[str, np.ndarray]:
    columns = {name: np.asarray(raw.fields[name], np.float64) for name in ("u", "v", "t", "q", "z", "ps")}
    return {**columns, "tv": columns["t"] * (1 + 0.608 * columns["q"])}


def _turned(values: np.ndarray) -> np.ndarray:
    """(time, longitude, latitude) to (time, latitude, longitude)."""
    return np.swapaxes(values, -1, -2)
