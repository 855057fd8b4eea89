"""An extreme event found in an analysis: when and where it departed most from its climate, and the map around it.

An event chosen because the truth was extreme makes a story, never a verification: scores averaged over such cases reward
forecasts that always warn (Lerch et al. 2017).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline import climatology as climates
from data_pipeline.errors import InputError

Extent = tuple[float, float, float, float]


def departures(analysis: xr.DataArray, climatology: xr.Dataset) -> xr.DataArray:
    """Departures from the climate of the hour and day of year, in its standard deviations; no units.

    analysis: (time, latitude, longitude) with the name of its variable. climatology: mean and `_std` of that name, as
    `data_pipeline.climatology` makes them, on the same grid and, if it has levels, with the one of the analysis chosen. NaN where
    the climate does not vary. Raises InputError if the climatology lacks the variable.
    """
    name = str(analysis.name)
    absent = [wanted for wanted in (name, f"{name}_std") if wanted not in climatology]
    if absent:
        raise InputError(
            f"departures of {name}: the climatology has no {', '.join(absent)}; it has {', '.join(map(str, climatology))}"
        )
    usual = climates.select(climatology[[name, f"{name}_std"]], pd.DatetimeIndex(analysis["time"].values))
    spread = usual[f"{name}_std"]
    found = (analysis - usual[name]) / spread.where(spread > 0)
    return found.rename("departure").assign_attrs(units="1", long_name="departure from the climate in its standard deviations")


def most_extreme(departure: xr.DataArray, side: Literal["low", "high"]) -> xr.DataArray:
    """The lowest or highest value of departures (time, latitude, longitude) as a scalar whose coordinates say when and where.

    NaN never counts: mask with `where` to leave out regions or times. Raises InputError if nothing is left.
    """
    if not bool(departure.notnull().any()):
        raise InputError("most_extreme: no departure is left; the mask covers everything, or all values are missing")
    ranked = departure if side == "high" else -departure
    where = ranked.argmax(departure.dims)
    assert isinstance(where, dict)
    return departure.isel(where)


def extent_around(latitude: float, longitude: float, *, high: float = 46.0, aspect: float = 1.6) -> Extent:
    """The frame (west, east, south, north) of a map about a place, in degrees, `high` from south to north.

    It is `aspect` times as wide as high where the place is, half the globe at most; moved, not cut, to lie between the poles.
    """
    south = float(np.clip(latitude - high / 2, -90, 90 - high))
    wide = float(min(aspect * high / max(np.cos(np.deg2rad(south + high / 2)), 0.2), 180.0))
    west = (longitude - wide / 2 + 180) % 360 - 180
    return west, west + wide, south, south + high


def within(field: xr.DataArray, extent: Extent) -> xr.DataArray:
    """The field with NaN outside a frame (west, east, south, north); for means over what a map shows."""
    west, east, south, north = extent
    inside = (field["longitude"] - west) % 360 <= east - west
    return field.where(inside & (field["latitude"] >= south) & (field["latitude"] <= north))
