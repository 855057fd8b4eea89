"""Forcings: what is computed, never downloaded. Insolation, season, hour, position; and the analysis's own static fields.

Each forcing is a plane (latitude, longitude) of order one, given for the step that ends at a valid time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid

SOLAR_CONSTANT = 1361.0  # W m-2
PLANES = {"season": 2, "hour": 2, "insolation": 1, "position": 4}
STATIC = ("geopotential_at_surface", "land_sea_mask")
YEAR_DAYS = 365.2425


def plane_names(names: Sequence[str]) -> list[str]:
    """One name a plane, in the order `Forcings` gives them. Raises InputError for an unknown forcing."""
    known = [*PLANES, *STATIC]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"forcing {', '.join(unknown)} is not known; choose from {', '.join(known)}")
    counts = {**PLANES, **dict.fromkeys(STATIC, 1)}
    return [f"{name}_{i}" if counts[name] > 1 else name for name in names for i in range(counts[name])]


class Forcings:
    """Planes of the named forcings on a grid.

    static: fields (latitude, longitude) for the static names, already standardised (`standardised_static`).
    step: length of the model step; insolation is its mean over (valid - step, valid].
    """

    def __init__(
        self, names: Sequence[str], grid: Grid, step: np.timedelta64, static: Mapping[str, np.ndarray] | None = None
    ) -> None:
        self.names, self.grid, self.step = tuple(names), grid, step
        self.n_planes = len(plane_names(names))
        self._static = dict(static or {})
        absent = [name for name in names if name in STATIC and name not in self._static]
        if absent:
            raise InputError(f"forcing {', '.join(absent)}: the analysis has no such static field; drop it from model.forcings")
        self._at = lru_cache(maxsize=1024)(self._planes)

    def at(self, valid: np.datetime64) -> np.ndarray:
        """Planes (n_planes, latitude, longitude), float32, for the step that ends at `valid`."""
        return self._at(valid.astype("datetime64[ns]"))

    def _planes(self, valid: np.datetime64) -> np.ndarray:
        shape = self.grid.shape
        planes: list[np.ndarray] = []
        for name in self.names:
            if name == "season":
                angle = 2 * np.pi * _days(valid) / YEAR_DAYS
                planes += [np.full(shape, np.cos(angle)), np.full(shape, np.sin(angle))]
            elif name == "hour":
                angle = 2 * np.pi * (_days(valid) % 1.0) + np.deg2rad(self.grid.longitude)
                planes += [np.broadcast_to(np.cos(angle), shape), np.broadcast_to(np.sin(angle), shape)]
            elif name == "insolation":
                mean = insolation(valid - self.step, self.step, self.grid)
                planes.append(mean / (SOLAR_CONSTANT / 4) - 1)
            elif name == "position":
                lat, lon = np.deg2rad(self.grid.latitude)[:, None], np.deg2rad(self.grid.longitude)[None, :]
                planes += [np.broadcast_to(plane, shape) for plane in (np.sin(lat), np.cos(lat), np.cos(lon), np.sin(lon))]
            else:
                planes.append(self._static[name])
        return np.stack(planes).astype(np.float32) if planes else np.zeros((0, *shape), np.float32)


def standardised_static(analysis: xr.Dataset, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The static fields among `names` as float32 of zero mean and unit std, those the analysis has."""
    found = {}
    for name in names:
        if name in STATIC and name in analysis:
            values = analysis[name].values.astype(np.float64)
            found[name] = ((values - values.mean()) / max(values.std(), 1e-12)).astype(np.float32)
    return found


def insolation(start: np.datetime64, length: np.timedelta64, grid: Grid) -> np.ndarray:
    """Mean insolation at the top of the atmosphere over [start, start + length], W m-2, shape (latitude, longitude).

    Closed form in the hour angle, declination and distance of mid-interval (low-precision solar coordinates of the Astronomical
    Almanac); S = 1361 W m-2. Good to 2.4e-4 of the maximum for 6 h.
    """
    days = (_days(start) + 0.5 * (length / np.timedelta64(1, "D"))) - 0.5  # since 2000-01-01 12 UTC, mid-interval
    anomaly = np.deg2rad(357.529 + 0.98560028 * days)
    mean_longitude = 280.459 + 0.98564736 * days
    ecliptic = np.deg2rad(mean_longitude + 1.915 * np.sin(anomaly) + 0.020 * np.sin(2 * anomaly))
    obliquity = np.deg2rad(23.439 - 3.6e-7 * days)
    distance = 1.00014 - 0.01671 * np.cos(anomaly) - 0.00014 * np.cos(2 * anomaly)
    sin_declination = np.sin(obliquity) * np.sin(ecliptic)
    cos_declination = np.sqrt(1 - sin_declination**2)
    ascension = np.rad2deg(np.arctan2(np.cos(obliquity) * np.sin(ecliptic), np.cos(ecliptic)))
    equation_of_time = (mean_longitude - ascension + 180) % 360 - 180
    first_angle = np.deg2rad(360 * (_days(start) % 1.0 - 0.5) + grid.longitude + equation_of_time)[None, :]
    turn = 2 * np.pi * (length / np.timedelta64(1, "D"))
    lat = np.deg2rad(grid.latitude)[:, None]
    s, c = np.sin(lat) * sin_declination, np.cos(lat) * cos_declination
    sunset = np.arccos(np.clip(-s / np.maximum(c, 1e-12), -1, 1))

    def integral(angle: np.ndarray) -> np.ndarray:
        turns = np.floor((angle + np.pi) / (2 * np.pi))
        lit = np.clip(angle - 2 * np.pi * turns, -sunset, sunset)
        return s * lit + c * np.sin(lit) + 2 * turns * (s * sunset + c * np.sin(sunset))

    return SOLAR_CONSTANT / distance**2 * (integral(first_angle + turn) - integral(first_angle)) / turn


def _days(stamp: np.datetime64) -> float:
    return float((stamp - np.datetime64("2000-01-01", "ns")) / np.timedelta64(1, "ns")) / 86400e9
