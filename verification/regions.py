"""Where scores are summed: disjoint cells, fine ones for moments and coarse zones for tables, and the regions made of them.

A cell is a latitude band x a longitude sector x land or sea; a zone is a belt x land or sea and a union of cells. Regions are
chosen after scoring, as unions of cells; tables (ranks, events, ...) are known for those regions that are unions of zones. A
regional grid is one domain, split into land and sea if there is a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid

BANDS = ((-90, -60), (-60, -35), (-35, -20), (-20, 20), (20, 35), (35, 60), (60, 90))
BELTS = ((-90, -20), (-20, 20), (20, 90))
SECTORS = tuple((west, west + 30) for west in range(-15, 345, 30))
LAND = 0.5  # share of land from which a point is land
DOMAIN = "domain"


class Box(NamedTuple):
    """Edges in degrees (longitudes may pass 180), and "land", "sea" or "" for both."""

    south: float = -90
    north: float = 90
    west: float = -15
    east: float = 345
    surface: str = ""

    def holds(self, other: Box) -> bool:
        """True if `other` lies inside."""
        width = (other.east - other.west, self.east - self.west)
        offset = (other.west - self.west) % 360
        inside = self.south <= other.south and other.north <= self.north and offset + width[0] <= width[1]
        return inside and self.surface in ("", other.surface)

    def meets(self, other: Box) -> bool:
        """True if the two have points in common."""
        apart = (other.west - self.west) % 360 >= self.east - self.west and (
            self.west - other.west
        ) % 360 >= other.east - other.west
        surfaces = "" in (self.surface, other.surface) or self.surface == other.surface
        return max(self.south, other.south) < min(self.north, other.north) and not apart and surfaces


REGIONS = {
    "global": Box(),
    "northern extratropics": Box(south=20),
    "tropics": Box(-20, 20),
    "southern extratropics": Box(north=-20),
    "land": Box(surface="land"),
    "sea": Box(surface="sea"),
    "northern extratropics, land": Box(south=20, surface="land"),
    "northern extratropics, sea": Box(south=20, surface="sea"),
    "Arctic": Box(south=60),
    "Antarctic": Box(north=-60),
    "Europe": Box(35, 60, -15, 45),
    "East Asia": Box(20, 60, 105, 165),
    "North America": Box(35, 60, 225, 285),
    "North Atlantic": Box(35, 60, 285, 345),
    "North Pacific": Box(35, 60, 165, 225),
}


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells that hold points. index: (latitude, longitude), the cell of each point. zone_of: (cell,), its zone."""

    names: tuple[str, ...]
    zones: tuple[str, ...]
    index: np.ndarray
    zone_of: np.ndarray


def cells_of(grid: Grid, land: np.ndarray | None = None) -> Cells:
    """The cells of a grid; with `land` (latitude, longitude), the share of land, each is land or sea.

    Points on 20 degrees belong to the tropics, points on 35 and 60 degrees to the band on the poleward side. Raises InputError
    for a mask of another shape or with missing values.
    """
    surface = _surfaces(grid, land)
    if not grid.is_global:
        boxes = [Box(surface=name) for name in ("land", "sea")] if land is not None else [Box()]
        return _present(boxes, boxes, np.where(surface == 2, 0, surface))
    band = np.digitize(_poleward(grid.latitude), [edge for edge, _ in BANDS[1:]])
    sector = ((grid.longitude + 15) % 360 // 30).astype(np.int64)
    surfaces = ("land", "sea") if land is not None else ("",)
    boxes = [Box(*b, *s, surface=name) for b, s, name in product(BANDS, SECTORS, surfaces)]
    belts = [Box(*b, surface=name) for b, name in product(BELTS, surfaces)]
    index = (band[:, None] * len(SECTORS) + sector[None, :]) * len(surfaces) + np.where(surface == 2, 0, surface)
    return _present(boxes, belts, index)


def name_of(box: Box) -> str:
    """`35N-60N 15W-15E land`; "domain" for the box without edges of a regional grid."""
    whole = (box.west, box.east) == (-15, 345)
    if (box.south, box.north) == (-90, 90) and whole:
        return f"{DOMAIN} {box.surface}".strip()
    parts = [f"{_degrees(box.south, 'SN')}-{_degrees(box.north, 'SN')}"]
    if not whole:
        parts.append(f"{_degrees(_within(box.west), 'WE')}-{_degrees(_within(box.east), 'WE')}")
    return " ".join(parts + ([box.surface] if box.surface else []))


def box_of(name: str) -> Box:
    """The inverse of `name_of`."""
    parts = name.split()
    surface = parts.pop() if parts[-1] in ("land", "sea") else ""
    if parts == [DOMAIN]:
        return Box(surface=surface)
    south, north = (_parse(text) for text in parts[0].split("-"))
    west, east = (_parse(text) for text in parts[1].split("-")) if len(parts) > 1 else (-15.0, 345.0)
    return Box(south, north, west, east if east > west else east + 360, surface)


def regions_in(cells: Sequence[str]) -> list[str]:
    """The regions that cells of these names make up, the whole grid first. Regions of land or sea need a mask."""
    boxes = [box_of(name) for name in cells]
    masked = any(box.surface for box in boxes)
    if all(name.startswith(DOMAIN) for name in cells):
        return [DOMAIN] + ([f"{DOMAIN} {box.surface}" for box in boxes] if masked else [])
    return [
        name
        for name, region in REGIONS.items()
        if (masked or not region.surface) and all(region.holds(box) or not region.meets(box) for box in boxes)
    ]


def members_of(region: str, cells: Sequence[str]) -> np.ndarray:
    """Positions of the cells that make up a region. Raises InputError for one that is unknown or not made up by them."""
    known = regions_in(cells)
    if region not in known:
        raise InputError(f"region {region!r} is not known here; the regions are {', '.join(known)}")
    return inside(region, cells)


def inside(region: str, cells: Sequence[str]) -> np.ndarray:
    """Positions of the cells (or zones) inside a region, whether or not they fill it."""
    box = REGIONS[region] if region in REGIONS else box_of(region)
    return np.flatnonzero([box.holds(box_of(name)) for name in cells])


def _surfaces(grid: Grid, land: np.ndarray | None) -> np.ndarray:
    """0 land, 1 sea, 2 where nothing is known."""
    if land is None:
        return np.full(grid.shape, 2)
    if land.shape != grid.shape or not np.isfinite(land).all():
        raise InputError(f"land-sea mask: shape {land.shape}, {int(np.isnan(land).sum())} missing; expected {grid.shape}, none")
    return np.where(land >= LAND, 0, 1)


def _poleward(latitude: np.ndarray) -> np.ndarray:
    """Latitudes moved off the edges of bands, to the side a point on an edge belongs to."""
    rounded = np.round(latitude, 6)
    on_edge = np.isin(np.abs(rounded), [35, 60])
    off: np.ndarray = np.where(on_edge, rounded + 1e-6 * np.sign(rounded), rounded)
    return np.where(np.abs(rounded) == 20, rounded - 1e-6 * np.sign(rounded), off)


def _present(boxes: Sequence[Box], zones: Sequence[Box], index: np.ndarray) -> Cells:
    """Only the cells and zones that hold points, renumbered."""
    used, cell = np.unique(index, return_inverse=True)
    inside = [boxes[i] for i in used]
    zone = [next(z for z, candidate in enumerate(zones) if candidate.holds(box)) for box in inside]
    used_zones, zone_of = np.unique(zone, return_inverse=True)
    names, zone_names = (tuple(name_of(box) for box in found) for found in (inside, [zones[z] for z in used_zones]))
    return Cells(names, zone_names, cell.reshape(index.shape).astype(np.int64), zone_of.astype(np.int64))


def _within(degrees: float) -> float:
    return (degrees + 180) % 360 - 180


def _degrees(value: float, sides: str) -> str:
    return f"{abs(value):g}{sides[int(value > 0)] if value else ''}"


def _parse(text: str) -> float:
    side, number = text[-1], text.rstrip("NSEW")
    return -float(number) if side in "SW" else float(number)
