"""Grid: cell centres on the sphere, their exact areas, global or regional."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pyproj  # noqa: F401  before xarray looks for cfgrib: ecCodes brings a PROJ of its own, and maps crash if that one is first
import xarray as xr
from scipy.special import roots_legendre

from data_pipeline.errors import InputError

SPACING_TOLERANCE = 1e-3  # degrees; float32 coordinates of 0.1 degree grids are this far from uniform


@dataclass(frozen=True, eq=False)
class Grid:
    """A latitude-longitude grid of cell centres: uniform, or a full Gaussian one (all rows, equal longitudes).

    latitude: degrees north, ascending; Gauss-Legendre nodes are recognised within 1e-3 degrees, put on their exact places, and
    their rows have the quadrature weights as areas. longitude: degrees east, ascending; a global grid starts in [0, 360) and
    covers the circle once, a regional one may be anywhere (for example -20 .. 14.5). Raises InputError if the axes are not
    strictly ascending and finite, or neither uniform nor Gaussian.
    """

    latitude: np.ndarray
    longitude: np.ndarray

    def __post_init__(self) -> None:
        for name in ("latitude", "longitude"):
            axis = np.asarray(getattr(self, name), dtype=np.float64)
            _check_axis(name, axis)
            object.__setattr__(self, name, axis)
        if (nodes := _gaussian(self.latitude)) is not None:
            object.__setattr__(self, "latitude", nodes)
        else:
            _check_uniform("latitude", self.latitude)
        _check_uniform("longitude", self.longitude)
        if np.abs(self.latitude).max() > 90 + SPACING_TOLERANCE:
            raise InputError(f"grid: latitude reaches {np.abs(self.latitude).max():g}; expected -90 to 90 degrees north")
        if self.longitude[-1] - self.longitude[0] >= 360 - SPACING_TOLERANCE:
            raise InputError(
                f"grid: longitudes {self.longitude[0]:g} to {self.longitude[-1]:g} cover the circle more than once; "
                "drop the repeated column"
            )

    @classmethod
    def of(cls, data: xr.Dataset | xr.DataArray) -> Grid:
        """The grid of data in the schema (coordinates `latitude`, `longitude`)."""
        missing = [name for name in ("latitude", "longitude") if name not in data.coords]
        if missing:
            raise InputError(f"grid: coordinate {', '.join(missing)} not found; the data have {sorted(map(str, data.coords))}")
        return cls(data["latitude"].values, data["longitude"].values)

    @classmethod
    def named(cls, name: str) -> Grid:
        """A global grid by its size, longitudes x latitudes as WeatherBench 2 writes it: `64x32`, `240x121`, `1440x721`.

        An odd number of latitudes has points on the poles, an even number has cell centres half a cell off them. `F24` is the
        regular Gaussian grid with 24 rows between pole and equator and 96 longitudes.
        """
        if match := re.fullmatch(r"F([1-9]\d{0,3})", name):
            n = int(match[1])
            return cls(_nodes(2 * n)[0], np.arange(4 * n) * (90.0 / n))
        match = re.fullmatch(r"(\d+)x(\d+)", name)
        if not match:
            raise InputError(
                f"grid {name!r} is not known; give longitudes x latitudes, for example 64x32 or 240x121, or F<n> (F24) for a "
                "regular Gaussian grid"
            )
        n_lon, n_lat = int(match[1]), int(match[2])
        if n_lon < 4 or n_lat < 2:
            raise InputError(f"grid {name!r} is too small; at least 4x2")
        if n_lat % 2:
            latitude = np.linspace(-90.0, 90.0, n_lat)
        else:
            half = 90.0 / n_lat
            latitude = np.linspace(-90.0 + half, 90.0 - half, n_lat)
        return cls(latitude, np.arange(n_lon) * (360.0 / n_lon))

    @property
    def shape(self) -> tuple[int, int]:
        """(number of latitudes, number of longitudes)."""
        return self.latitude.size, self.longitude.size

    @cached_property
    def is_gaussian(self) -> bool:
        """True if the latitudes are all the nodes of Gauss-Legendre quadrature."""
        return _gaussian(self.latitude) is not None

    @cached_property
    def is_global(self) -> bool:
        """True if the cells close the circle of longitude and reach both poles."""
        return self.circles and bool(self.latitude_bounds[0] <= -90 + 1e-6 and self.latitude_bounds[-1] >= 90 - 1e-6)

    @cached_property
    def circles(self) -> bool:
        """True if the cells close the circle of longitude."""
        step = self.longitude[1] - self.longitude[0]
        return bool(abs(self.longitude.size * step - 360) < 10 * SPACING_TOLERANCE)

    @cached_property
    def latitude_bounds(self) -> np.ndarray:
        """Cell edges (n + 1), midpoints between centres; the outer edges half a cell beyond, never past a pole.

        Between Gaussian rows the edges are those that give each row its quadrature weight as area; midpoints would give the
        rows at the poles up to 6 % too much or too little.
        """
        if self.is_gaussian:
            weights = _nodes(self.latitude.size)[1]
            inner = np.rad2deg(np.arcsin(np.cumsum(weights)[:-1] - 1))
            return np.concatenate([[-90.0], (inner - inner[::-1]) / 2, [90.0]])
        return np.clip(_edges(self.latitude), -90.0, 90.0)

    @cached_property
    def longitude_bounds(self) -> np.ndarray:
        """Cell edges (n + 1) in degrees, midpoints between centres, the outer ones half a cell beyond."""
        return _edges(self.longitude)

    @cached_property
    def areas(self) -> np.ndarray:
        """Exact cell areas on the unit sphere (steradian), shape (latitude, longitude)."""
        rows = np.diff(np.sin(np.deg2rad(self.latitude_bounds)))
        columns = np.diff(np.deg2rad(self.longitude_bounds))
        return rows[:, None] * columns[None, :]

    @cached_property
    def area_weights(self) -> np.ndarray:
        """Cell areas scaled to mean 1, shape (latitude, longitude), float64."""
        return self.areas / self.areas.mean()

    @cached_property
    def key(self) -> str:
        """A short hash of the coordinates rounded to 1e-4 degrees: equal grids have equal keys."""
        rounded = [np.round(axis, 4) + 0.0 for axis in (self.latitude, self.longitude)]
        return hashlib.sha256(b"".join(axis.tobytes() for axis in rounded)).hexdigest()[:12]

    def matches(self, other: Grid) -> bool:
        """True if both grids have the same points (to 1e-4 degrees)."""
        return self.shape == other.shape and self.key == other.key

    def coords(self) -> dict[str, xr.Variable]:
        """The two coordinates as CF variables, ready for a Dataset."""
        return {
            "latitude": xr.Variable(
                "latitude", self.latitude, {"units": "degrees_north", "standard_name": "latitude", "axis": "Y"}
            ),
            "longitude": xr.Variable(
                "longitude", self.longitude, {"units": "degrees_east", "standard_name": "longitude", "axis": "X"}
            ),
        }

    def __str__(self) -> str:
        n_lat, n_lon = self.shape
        step = np.diff(self.latitude).mean()
        kind = ("Gaussian " if self.is_gaussian else "") + ("global" if self.is_global else "regional")
        return (
            f"{n_lon}x{n_lat} {kind}, {step:g} degrees, latitude {self.latitude[0]:g} to {self.latitude[-1]:g}, "
            f"longitude {self.longitude[0]:g} to {self.longitude[-1]:g}"
        )


def _check_axis(name: str, axis: np.ndarray) -> None:
    if axis.ndim != 1 or axis.size < 2 or not np.isfinite(axis).all():
        raise InputError(f"grid: {name} must be a finite 1-d axis of at least two points, found shape {axis.shape}")
    steps = np.diff(axis)
    if (steps <= 0).any():
        raise InputError(f"grid: {name} is not strictly ascending ({axis[0]:g}, {axis[1]:g} ... {axis[-1]:g})")


def _check_uniform(name: str, axis: np.ndarray) -> None:
    steps = np.diff(axis)
    if np.ptp(steps) > SPACING_TOLERANCE:
        nor = " nor Gaussian over both hemispheres" if name == "latitude" else ""
        raise InputError(
            f"grid: {name} is not uniform{nor} (steps {steps.min():g} to {steps.max():g} degrees); "
            "regrid it to a regular grid first"
        )


def _gaussian(latitude: np.ndarray) -> np.ndarray | None:
    """The Gaussian latitudes that these are within the tolerance, or None."""
    # near the pole the nodes lie at the zeros of J0 over n + 1/2: close enough to spare other axes the computation of roots
    first = 137.79 / (latitude.size + 0.5) - 90
    if abs(latitude[0] - first) > 1 / latitude.size + SPACING_TOLERANCE:
        return None
    nodes = _nodes(latitude.size)[0]
    return nodes if np.abs(latitude - nodes).max() < SPACING_TOLERANCE else None


@lru_cache(maxsize=8)
def _nodes(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre latitudes (degrees, ascending) and weights (of sum 2)."""
    sines, weights = roots_legendre(n)
    return np.rad2deg(np.arcsin(sines)), weights


def _edges(centres: np.ndarray) -> np.ndarray:
    inner = (centres[1:] + centres[:-1]) / 2
    step = centres[1] - centres[0]
    return np.concatenate([[centres[0] - step / 2], inner, [centres[-1] + step / 2]])
