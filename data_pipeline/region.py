"""Regions: boxes of latitude and longitude, and the points of a grid inside them."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import xarray as xr
from pydantic import AfterValidator

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid

TOLERANCE = 1e-4  # degrees: points on the edge are inside, also where coordinates are float32


def _checked(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    south, north, west, east = box
    if not -90 <= south < north <= 90:
        raise ValueError(f"south {south:g} and north {north:g}: expected -90 <= south < north <= 90")
    if not (-360 <= west < 360 and west < east <= west + 360):
        raise ValueError(f"west {west:g} and east {east:g}: expected west < east <= west + 360, for example -20 and 14.5")
    return box


Box = Annotated[tuple[float, float, float, float], AfterValidator(_checked)]
"""(south, north, west, east) in degrees; over the date line as 170, 190."""


def grid_inside(grid: Grid, box: tuple[float, float, float, float]) -> Grid:
    """The points of `grid` inside the box, edges included. Raises InputError if there are fewer than two a side."""
    rows, columns, longitude = _places(grid, box)
    return Grid(grid.latitude[rows], longitude) if rows.size < grid.latitude.size or columns is not None else grid


def cut(data: xr.Dataset, box: tuple[float, float, float, float]) -> xr.Dataset:
    """Data of the schema at its points inside the box, in one piece that runs eastward from the box's west side; lazily.

    A box that holds the whole circle keeps the longitudes as they are. Raises InputError if there are fewer than two points a
    side.
    """
    grid = Grid.of(data)
    rows, columns, longitude = _places(grid, box)
    data = data.isel(latitude=slice(int(rows[0]), int(rows[-1]) + 1))
    if columns is None:
        return data
    run = slice(int(columns[0]), int(columns[-1]) + 1) if (np.diff(columns) == 1).all() else columns
    return data.isel(longitude=run).assign_coords(longitude=("longitude", longitude, data["longitude"].attrs))


def widened(box: tuple[float, float, float, float], degrees: float) -> tuple[float, float, float, float]:
    """The box with a margin all around, the whole circle where its sides meet."""
    south, north, west, east = box
    circle = east - west + 2 * degrees >= 360
    sides = (west, west + 360.0) if circle else (west - degrees, east + degrees)
    return max(south - degrees, -90.0), min(north + degrees, 90.0), *sides


def _places(grid: Grid, box: tuple[float, float, float, float]) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Rows, columns (None: all, as they are) and the longitudes of the columns."""
    south, north, west, east = box
    rows = np.flatnonzero((grid.latitude >= south - TOLERANCE) & (grid.latitude <= north + TOLERANCE))
    east_of = np.mod(grid.longitude - west + TOLERANCE, 360.0) - TOLERANCE
    columns = np.flatnonzero(east_of <= east - west + TOLERANCE)
    if rows.size < 2 or columns.size < 2:
        raise InputError(
            f"analysis.region [{south:g}, {north:g}, {west:g}, {east:g}] (south, north, west, east) holds {rows.size} latitudes "
            f"and {columns.size} longitudes of the grid {grid}; it takes two of each"
        )
    if columns.size == grid.longitude.size and (grid.circles or east - west >= 360 - TOLERANCE):
        return rows, None, grid.longitude
    columns = columns[np.argsort(east_of[columns], kind="stable")]
    turns = np.round((west + east_of[columns] - grid.longitude[columns]) / 360.0)
    return rows, columns, grid.longitude[columns] + 360.0 * turns
