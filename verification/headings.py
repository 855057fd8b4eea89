"""What stands over a figure: which forecast, when it began, how far ahead, when it is valid (UTC)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr


def dated(field: xr.DataArray | xr.Dataset) -> str:
    """`crps small from 2007-01-16 00 UTC, + 5 d, valid Sun 2007-01-21 00 UTC`, by attribute `model` and scalar coordinates."""
    model = str(field.attrs.get("model", ""))
    return " ".join(filter(None, (model, _when(field))))


def _when(field: xr.DataArray | xr.Dataset) -> str:
    start, lead = _scalar(field, "time"), _scalar(field, "prediction_timedelta")
    if start is None:
        return "" if lead is None else f"+ {lead_text(lead)}"
    if lead is None:
        name = "from " if "prediction_timedelta" in field.dims else ""
        return f"{name}{utc(start)}"
    return f"from {utc(start)}, + {lead_text(lead)}, valid {pd.Timestamp(start + lead):%a} {utc(start + lead)}"


def utc(stamp: np.datetime64) -> str:
    """`2007-01-16 00 UTC`; minutes where there are some."""
    time = pd.Timestamp(stamp)
    return f"{time:%Y-%m-%d %H:%M UTC}" if time.minute else f"{time:%Y-%m-%d %H UTC}"


def lead_text(lead: np.timedelta64) -> str:
    """`5 d`, `36 h`."""
    hours = float(lead / np.timedelta64(1, "h"))
    return f"{hours / 24:g} d" if hours % 24 == 0 else f"{hours:g} h"


def degrees(value: float, positive: str, negative: str) -> str:
    """`10.5°W`; longitudes from -180 to 180, and no side on 0 and 180."""
    value = (value + 180) % 360 - 180 if positive == "E" else value
    side = "" if value == 0 or abs(value) == 180 else positive if value > 0 else negative
    return f"{abs(value):g}°{side}"


def place(latitude: float, longitude: float) -> str:
    """`60.39°N 5.32°E`."""
    return f"{degrees(round(latitude, 2), 'N', 'S')} {degrees(round(longitude, 2), 'E', 'W')}"


def _scalar(field: xr.DataArray | xr.Dataset, name: str) -> Any:
    coord = field.coords.get(name)
    return None if coord is None or coord.ndim else coord.values[()]
