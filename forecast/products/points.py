"""Named points, and the members' values at them: bilinear, around the date line and over the poles, or the nearest land cell."""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import xarray as xr
from pydantic import ValidationError

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.regrid import WIND_PAIRS, with_pole_rows
from forecast.products.recipe import Place

LAND = 0.5  # share of land from which a cell is land
PARTNERS = {name: pair for pair in WIND_PAIRS for name in pair}
_POLES = Grid(np.array([-90.0, 90.0]), np.array([0.0, 180.0]))
_COLUMNS = ("name", "latitude", "longitude")


def parse_place(text: str) -> Place:
    """`Bergen,60.39,5.32`: name, degrees north, degrees east. Raises InputError for anything else."""
    pieces = [piece.strip() for piece in text.rsplit(",", 2)]
    if len(pieces) != 3:
        raise InputError(f"--point {text!r}: expected NAME,LATITUDE,LONGITUDE in degrees, as Bergen,60.39,5.32")
    return _place(dict(zip(_COLUMNS, pieces, strict=True)), f"--point {text!r}")


def read_places(path: str | Path) -> list[Place]:
    """Points of a file: CSV with the columns name, latitude, longitude (others are left alone), or TOML with [[place]] tables.

    Raises InputError listing every line that is none, and for names that occur twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = tomllib.loads(text).get("place", []) if path.suffix == ".toml" else _csv_rows(path, text)
    except FileNotFoundError:
        raise InputError(f"points file {path} not found") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, csv.Error) as error:
        raise InputError(f"points file {path} cannot be read: {error}") from None
    places, faults = [], []
    for number, row in enumerate(rows, 1):
        try:
            places.append(_place(row, f"point {number}"))
        except InputError as error:
            faults.append(str(error))
    if faults or not places:
        raise InputError(f"points file {path}:\n" + "\n".join(f"  - {line}" for line in faults or ["it holds no point"]))
    return places


def _csv_rows(path: Path, text: str) -> list[dict[str, str]]:
    rows = csv.DictReader(text.splitlines(), skipinitialspace=True)
    names = [str(name).strip().lower() for name in rows.fieldnames or ()]
    rows.fieldnames = names
    absent = [name for name in _COLUMNS if name not in names]
    if absent:
        raise InputError(f"points file {path}: no column {', '.join(absent)}; its first line has {', '.join(names) or 'nothing'}")
    return [{name: row[name] or "" for name in _COLUMNS} for row in rows]


def _place(row: dict[str, str], where: str) -> Place:
    try:
        return Place.model_validate(row)
    except ValidationError as error:
        raise InputError(f"{where}: " + "; ".join(f"{fault['loc'][0]}: {fault['msg']}" for fault in error.errors())) from None


@dataclass(frozen=True, eq=False)
class Points:
    """Where each place takes its values from: four corners of a grid and their weights, over rows that may include the poles.

    latitude, longitude: of the places, or of the cells where they were moved to land. rows, columns, weights: (place, 4).
    """

    names: tuple[str, ...]
    latitude: np.ndarray
    longitude: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    weights: np.ndarray
    grid: Grid
    polar: bool
    method: str

    @cached_property
    def size(self) -> int:
        return len(self.names)

    def values(self, fields: np.ndarray, name: str = "", partner: np.ndarray | None = None) -> np.ndarray:
        """Values (..., place), float32, of fields (..., latitude, longitude); sums in float64.

        A corner with weight does not miss: a missing one makes the value NaN. name: of the variable; of a wind component that is
        to be taken over a pole, `partner` is the other one.
        """
        if self.polar:
            fields = _with_poles(fields, self.grid, name, partner)
        corners = fields[..., self.rows, self.columns].astype(np.float64)
        return np.where(self.weights > 0, corners * self.weights, 0.0).sum(axis=-1).astype(np.float32)


def locate(places: Sequence[Place], grid: Grid, land: np.ndarray | None = None) -> Points:
    """The points of places on a grid; with `land` (share of land, latitude, longitude) each is the nearest land cell.

    Bilinear in latitude and longitude, as `data_pipeline.regrid` does it: poleward of the last row of a global grid towards the
    mean of that row (of wind: its mean vector). Raises InputError, naming all, for places outside the grid and repeated names.
    """
    names = tuple(place.name for place in places)
    twice = sorted({name for name in names if names.count(name) > 1})
    latitude, longitude = (np.array([getattr(place, axis) for place in places]) for axis in ("latitude", "longitude"))
    polar = bool(grid.is_global and ((latitude > grid.latitude[-1]) | (latitude < grid.latitude[0])).any()) and land is None
    rows = np.concatenate([[-90.0], grid.latitude, [90.0]]) if polar else grid.latitude
    across = np.append(grid.longitude, grid.longitude[0] + 360) if grid.circles else grid.longitude
    wanted = np.mod(longitude - across[0], 360.0) + across[0]
    outside = (latitude < rows[0]) | (latitude > rows[-1]) | (wanted > across[-1])
    faults = [f"point {name!r} is there twice; give each its own name" for name in twice]
    faults += [
        f"point {name!r} at {place.latitude:g}, {place.longitude:g} is outside the grid ({grid})"
        for name, place, out in zip(names, places, outside, strict=True)
        if out and land is None
    ]
    if faults:
        raise InputError("\n".join(faults))
    if land is not None:
        return _on_land(names, latitude, longitude, grid, land)
    (south, y), (west, x) = _below(rows, latitude), _below(across, wanted)
    row = np.stack([south, south, south + 1, south + 1], axis=1)
    column = np.stack([west, west + 1, west, west + 1], axis=1) % grid.longitude.size
    weight = np.stack([(1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x], axis=1)
    return Points(names, latitude, longitude, row, column, weight, grid, polar, "bilinear")


def _below(axis: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The last point of the axis that is not beyond each wanted one (but the very last), and how far on the way to the next."""
    left = np.clip(np.searchsorted(axis, wanted, side="right") - 1, 0, axis.size - 2)
    return left, (wanted - axis[left]) / (axis[left + 1] - axis[left])


def _on_land(names: tuple[str, ...], latitude: np.ndarray, longitude: np.ndarray, grid: Grid, land: np.ndarray) -> Points:
    if land.shape != grid.shape or not (land >= LAND).any():
        raise InputError(f"nearest land: the land-sea mask has shape {land.shape} and {int((land >= LAND).sum())} cells of land")
    row, column = np.nonzero(land >= LAND)
    cells = unit_vectors(grid.latitude[row], grid.longitude[column])
    nearest = (unit_vectors(latitude, longitude) @ cells.T).argmax(axis=1)
    rows, columns = (np.repeat(index[nearest][:, None], 4, axis=1) for index in (row, column))
    weights = np.zeros(rows.shape)
    weights[:, 0] = 1.0
    place = grid.latitude[row[nearest]], grid.longitude[column[nearest]]
    return Points(names, *place, rows, columns, weights, grid, False, f"nearest cell with at least {LAND:.0%} land")


def unit_vectors(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Places in degrees as unit vectors (..., 3): their products are cosines of great-circle distances."""
    phi, lam = np.deg2rad(latitude), np.deg2rad(longitude)
    return np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], axis=-1)


def _with_poles(fields: np.ndarray, grid: Grid, name: str, partner: np.ndarray | None) -> np.ndarray:
    """Fields (..., latitude, longitude) with a row on each pole, as `regrid` makes them."""
    leading = [f"dim{i}" for i in range(fields.ndim - 2)]
    arrays = {name: fields} if partner is None else {name: fields, _other(name): partner}
    named = {
        key: xr.DataArray(values, dims=(*leading, "latitude", "longitude"), coords=grid.coords())
        for key, values in arrays.items()
    }
    extended, _ = with_pole_rows(named, grid, _POLES)
    return np.asarray(extended[name].transpose(*leading, "latitude", "longitude").values)


def _other(name: str) -> str:
    pair = PARTNERS[name]
    return pair[1] if name == pair[0] else pair[0]
