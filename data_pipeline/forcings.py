"""Forcings: what is computed, never downloaded. Insolation, season, hour, position; and the analysis's own static fields.

Each forcing is a plane (latitude, longitude) of order one, given for the step that ends at a valid time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid

SOLAR_CONSTANT = 1361.0  # W m-2
PLANES = {"season": 2, "hour": 2, "insolation": 1, "position": 4}
STATIC = ("geopotential_at_surface", "land_sea_mask")
YEAR_DAYS = 365.2425
LONGEST_PIECE = np.timedelta64(6, "h")  # over which the declination may stand still
BLOCK_POINTS = 1 << 16  # of insolation computed at once: temporaries stay in the cache


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
        static = static or {}
        absent = [name for name in names if name in STATIC and name not in static]
        if absent:
            raise InputError(f"forcing {', '.join(absent)}: the analysis has no such static field; drop it from model.forcings")
        self._fixed = {name: np.asarray(static[name], np.float32)[None] for name in names if name in STATIC}
        if "position" in names:
            self._fixed["position"] = _position(grid)

    def at(self, valid: np.datetime64) -> np.ndarray:
        """Planes (n_planes, latitude, longitude), float32, for the step that ends at `valid`."""
        planes: np.ndarray = self.many(np.asarray(valid)[None])[0]
        return planes

    def many(self, valid: np.ndarray) -> np.ndarray:
        """Planes (n, n_planes, latitude, longitude), float32, for the steps that end at the n stamps `valid` (datetime64).

        Row i equals `at(valid[i])` to the bit. Repeated stamps are computed once; memory is that of the result and one block.
        """
        stamps, inverse = np.unique(valid.astype("datetime64[ns]"), return_inverse=True)
        out = np.empty((stamps.size, self.n_planes, *self.grid.shape), np.float32)
        first = 0
        for name in self.names:
            own = out[:, first : first + PLANES.get(name, 1)]
            first += own.shape[1]
            if name == "season":
                angle = 2 * np.pi * _days(stamps)[:, None, None] / YEAR_DAYS
                own[:, 0], own[:, 1] = np.cos(angle), np.sin(angle)
            elif name == "hour":
                angle = 2 * np.pi * (_days(stamps) % 1.0)[:, None, None] + np.deg2rad(self.grid.longitude)
                own[:, 0], own[:, 1] = np.cos(angle), np.sin(angle)
            elif name == "insolation":
                size = max(1, BLOCK_POINTS // self.grid.areas.size)
                for block in (slice(i, i + size) for i in range(0, stamps.size, size)):
                    own[block, 0] = insolation(stamps[block] - self.step, self.step, self.grid) / (SOLAR_CONSTANT / 4) - 1
            else:
                own[:] = self._fixed[name]
        return out if np.array_equal(stamps, valid) else out[inverse]


def _position(grid: Grid) -> np.ndarray:
    lat, lon = np.deg2rad(grid.latitude)[:, None], np.deg2rad(grid.longitude)[None, :]
    planes = (np.sin(lat), np.cos(lat), np.cos(lon), np.sin(lon))
    return np.stack([np.broadcast_to(plane, grid.shape) for plane in planes]).astype(np.float32)


def standardised_static(analysis: xr.Dataset, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The static fields among `names` as float32 of zero mean and unit std, those the analysis has."""
    found = {}
    for name in names:
        if name in STATIC and name in analysis:
            values = analysis[name].values.astype(np.float64)
            found[name] = ((values - values.mean()) / max(values.std(), 1e-12)).astype(np.float32)
    return found


def insolation(start: np.datetime64 | np.ndarray, length: np.timedelta64, grid: Grid) -> np.ndarray:
    """Mean insolation at the top of the atmosphere over [start, start + length], W m-2: (*start.shape, latitude, longitude).

    Closed form in the hour angle, with declination, distance and equation of time of the middle of each piece of at most 6 h
    (low-precision solar coordinates of the Astronomical Almanac); S = 1361 W m-2. Good to 2.4e-4 of the maximum.
    """
    pieces = max(1, int(np.ceil(length / LONGEST_PIECE)))
    days, piece = _days(np.asarray(start)), length / np.timedelta64(1, "D") / pieces
    mean: np.ndarray = np.mean([_piece(days + i * piece, piece, grid) for i in range(pieces)], axis=0)
    return mean


def _piece(first: np.ndarray, length: float, grid: Grid) -> np.ndarray:
    """`insolation` over [first, first + length] days since 2000-01-01 00 UTC with the sun of its middle."""
    days = first + 0.5 * length - 0.5  # since 12 UTC
    anomaly = np.deg2rad(357.529 + 0.98560028 * days)
    mean_longitude = 280.459 + 0.98564736 * days
    ecliptic = np.deg2rad(mean_longitude + 1.915 * np.sin(anomaly) + 0.020 * np.sin(2 * anomaly))
    obliquity = np.deg2rad(23.439 - 3.6e-7 * days)
    distance = 1.00014 - 0.01671 * np.cos(anomaly) - 0.00014 * np.cos(2 * anomaly)
    sin_declination = np.sin(obliquity) * np.sin(ecliptic)
    cos_declination = np.sqrt(1 - sin_declination**2)
    ascension = np.rad2deg(np.arctan2(np.cos(obliquity) * np.sin(ecliptic), np.cos(ecliptic)))
    equation_of_time = (mean_longitude - ascension + 180) % 360 - 180
    rising = np.deg2rad((360 * (first % 1.0 - 0.5) + equation_of_time)[..., None, None] + grid.longitude)
    turn = 2 * np.pi * length
    lat = np.deg2rad(grid.latitude)
    s, c = (lat_part * sun[..., None] for lat_part, sun in ((np.sin(lat), sin_declination), (np.cos(lat), cos_declination)))
    sunset = np.arccos(np.clip(-s / np.maximum(c, 1e-12), -1, 1))
    s, c, sunset = s[..., None], c[..., None], sunset[..., None]
    sin_sunset = np.sin(sunset)
    whole = 2 * (s * sunset + c * sin_sunset)  # of one day

    def integral(angle: np.ndarray) -> np.ndarray:
        turns = np.floor((angle + np.pi) / (2 * np.pi))
        within = angle - 2 * np.pi * turns
        # the sine of the lit angle, from sines of longitudes and of rows alone
        sine = np.where(np.abs(within) < sunset, np.sin(within), np.copysign(sin_sunset, within))
        return s * np.clip(within, -sunset, sunset) + c * sine + turns * whole

    return SOLAR_CONSTANT / distance[..., None, None] ** 2 * (integral(rising + turn) - integral(rising)) / turn


def _days(stamps: np.ndarray) -> np.ndarray:
    days: np.ndarray = (stamps - np.datetime64("2000-01-01", "ns")) / np.timedelta64(1, "ns") / 86400e9
    return days
