"""Fields on the pixels of a map: bilinear in longitude and latitude, around the seam, over the poles, in any projection.

So one path serves every projection, seam and poles need no special case, and a map costs the same at 5 degrees and at 0.25.
"""

from __future__ import annotations

from dataclasses import dataclass

import cartopy.crs as ccrs
import numpy as np
import xarray as xr
from cartopy.mpl.geoaxes import GeoAxes
from scipy.ndimage import distance_transform_edt, map_coordinates

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid

PER_INCH = 75  # contour lines are placed to a third of a printed point
LEAST, MOST = 120, 480  # along the longer side of a map


@dataclass(frozen=True, eq=False)
class Pixels:
    """The pixels of a map and where they are on the sphere.

    x, y: map coordinates of columns and rows. longitude, latitude: (y, x) in degrees, not finite outside the projection. nearest:
    for each pixel the row and column of the nearest one inside; None if all are.
    """

    x: np.ndarray
    y: np.ndarray
    longitude: np.ndarray
    latitude: np.ndarray
    nearest: tuple[np.ndarray, ...] | None

    @classmethod
    def of(cls, ax: GeoAxes) -> Pixels:
        """Those of a map; it is laid out already."""
        (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
        box, size = ax.get_position(), ax.figure.get_size_inches()
        count = np.clip(PER_INCH * max(box.width * size[0], box.height * size[1]), LEAST, MOST)
        finer = count / max(x1 - x0, y1 - y0)
        x = np.linspace(x0, x1, max(int((x1 - x0) * finer), 16))
        y = np.linspace(y0, y1, max(int((y1 - y0) * finer), 16))
        lonlat = ccrs.PlateCarree().transform_points(ax.projection, *np.meshgrid(x, y))[..., :2]
        outside = ~np.isfinite(lonlat).all(axis=-1)
        nearest = None
        if outside.any() and not outside.all():
            nearest = tuple(distance_transform_edt(outside, return_distances=False, return_indices=True))
        return cls(x, y, lonlat[..., 0], lonlat[..., 1], nearest)

    def values(self, field: xr.DataArray) -> np.ndarray:
        """A field (latitude, longitude) on the pixels (y, x); NaN where data are missing or outside the grid.

        Pixels outside the projection repeat the nearest one inside, so that contours reach the frame, which clips them.
        """
        found = sample(field, self.longitude, self.latitude)
        return found if self.nearest is None else np.asarray(found[self.nearest])


def sample(field: xr.DataArray, longitude: np.ndarray, latitude: np.ndarray) -> np.ndarray:
    """Bilinear interpolation of a field (latitude, longitude) at points in degrees; NaN outside the grid's cells.

    A grid that closes in longitude has no seam; between its last row and the pole, the pole has the mean of that row.
    """
    if set(field.dims) != {"latitude", "longitude"}:
        raise InputError(
            f"map of {field.name or 'a field'}: dims {field.dims}, expected latitude and longitude; select the others first"
        )
    grid = Grid.of(field)
    values = field.transpose("latitude", "longitude").values.astype(np.float64)
    columns, rows = grid.longitude, grid.latitude
    if grid.circles:
        rows, values = _with_poles(grid, values)
        columns = np.concatenate([[columns[-1] - 360], columns, [columns[0] + 360]])
        values = np.concatenate([values[:, -1:], values, values[:, :1]], axis=1)
        longitude = (longitude - columns[0]) % 360 + columns[0]
    else:
        middle = (columns[0] + columns[-1]) / 2
        longitude = (longitude - middle + 180) % 360 - 180 + middle
    row = np.interp(latitude, rows, np.arange(rows.size))
    column = np.interp(longitude, columns, np.arange(columns.size))
    (west, east), (south, north) = grid.longitude_bounds[[0, -1]], grid.latitude_bounds[[0, -1]]
    inside = (latitude >= south - 1e-6) & (latitude <= north + 1e-6)
    if not grid.circles:
        inside &= (longitude >= west - 1e-6) & (longitude <= east + 1e-6)
    index = np.nan_to_num(np.stack([row, column]))
    return np.where(inside, map_coordinates(values, index, order=1, mode="nearest"), np.nan)


def _with_poles(grid: Grid, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = grid.latitude
    if grid.latitude_bounds[0] <= -90 < rows[0]:
        rows, values = np.insert(rows, 0, -90.0), np.concatenate([np.full_like(values[:1], values[0].mean()), values])
    if grid.latitude_bounds[-1] >= 90 > rows[-1]:
        rows, values = np.append(rows, 90.0), np.concatenate([values, np.full_like(values[:1], values[-1].mean())])
    return rows, values
