"""Datasets in the form of the schema: coordinates, variables and their attributes, from channels and a grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from data_pipeline import store
from data_pipeline.grid import Grid
from data_pipeline.schema import ANALYSIS_DIMS, FORECAST_DIMS, Channel, levels_by_name
from data_pipeline.variables import lookup


def analysis_template(times: np.ndarray, channels: Sequence[Channel], grid: Grid) -> xr.Dataset:
    """An empty analysis of these stamps, taking no memory."""
    coords = {"time": ("time", times, {"standard_name": "time", "axis": "T"}), **_level(channels), **grid.coords()}
    return store.blank(coords, _variables(channels, ANALYSIS_DIMS))


def forecast_template(
    times: np.ndarray, leads: np.ndarray, members: Sequence[int], channels: Sequence[Channel], grid: Grid
) -> xr.Dataset:
    """An empty forecast of these initialisations, leads (timedelta64) and member numbers, taking no memory."""
    return store.blank(_forecast_coords(times, leads, members, channels, grid), _variables(channels, FORECAST_DIMS))


def forecast_dataset(
    fields: np.ndarray, times: np.ndarray, leads: np.ndarray, members: Sequence[int], channels: Sequence[Channel], grid: Grid
) -> xr.Dataset:
    """Fields (time, lead, member, channel, latitude, longitude) as a forecast; levels that a variable lacks are NaN."""
    out = xr.Dataset(coords=_forecast_coords(times, leads, members, channels, grid))
    labels = [channel.label for channel in channels]
    own = levels_by_name(channels)
    for name, (dims, attrs) in _variables(channels, FORECAST_DIMS).items():
        if own[name]:
            every = out["level"].values.tolist()
            values = np.full((*fields.shape[:3], len(every), *fields.shape[-2:]), np.nan, np.float32)
            for level in own[name]:
                values[:, :, :, every.index(level)] = fields[:, :, :, labels.index(Channel(name, level).label)]
        else:
            values = fields[:, :, :, labels.index(name)]
        out[name] = (dims, values, attrs)
    return out


def _variables(channels: Sequence[Channel], order: Sequence[str]) -> dict[str, tuple[list[str], dict[str, Any]]]:
    found: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for name, levels in levels_by_name(channels).items():
        known = lookup(name)
        attrs: dict[str, Any] = {"units": known.units, "long_name": known.long_name} if known is not None else {}
        attrs |= {"standard_name": known.standard_name} if known is not None and known.standard_name else {}
        attrs |= {"levels_available": list(levels)} if levels else {}
        found[name] = ([dim for dim in order if dim != "level" or levels], attrs)
    return found


def _forecast_coords(
    times: np.ndarray, leads: np.ndarray, members: Sequence[int], channels: Sequence[Channel], grid: Grid
) -> dict[str, Any]:
    return {
        "time": times,
        "prediction_timedelta": leads.astype("timedelta64[ns]"),
        "number": np.array(members),
        **_level(channels),
        **grid.coords(),
        "valid_time": (("time", "prediction_timedelta"), times[:, None] + leads[None, :]),
    }


def _level(channels: Sequence[Channel]) -> dict[str, Any]:
    levels = sorted({channel.level for channel in channels if channel.level is not None})
    return {"level": ("level", np.array(levels), {"units": "hPa", "positive": "down", "axis": "Z"})} if levels else {}
