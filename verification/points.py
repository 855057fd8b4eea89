"""Fields at one named place, for plumes and meteograms."""

from __future__ import annotations

import numpy as np
import xarray as xr

from verification.headings import place
from verification.stations import at_stations


def at_point(data: xr.Dataset, latitude: float, longitude: float, name: str = "") -> xr.Dataset:
    """Fields of the schema at one place (degrees), bilinearly and lazily, as `verification.at_stations` does it.

    Returns the same variables without the dims latitude and longitude; these become scalar coordinates beside `point`, the name.
    Raises InputError for a place outside the grid.
    """
    where = xr.Dataset(
        coords={
            "time": np.empty(0, "datetime64[ns]"),
            "station": [name or place(latitude, longitude)],
            "latitude": ("station", [latitude]),
            "longitude": ("station", [longitude % 360]),
            "elevation": ("station", [np.nan]),
        }
    )
    return at_stations(data, where).isel(station=0).rename(station="point")
