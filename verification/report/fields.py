"""The maps of scores in the report: where they are good and bad."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline.grid import Grid
from verification import maps, styles
from verification.report.figures import png, png_size
from verification.report.tables import Table, lead_name, number

MAP_DAYS = (1, 5, 10)
WIDTH = 3.6  # inches; small, so that its text stays readable on a phone
RATIO = maps.Shading((0.4, 0.5, 0.67, 0.8, 0.9, 1.1, 1.25, 1.5, 2.0, 2.5), "PuOr", "spread / error")


@dataclass(frozen=True)
class Picture:
    """A map in the page: data URI, alternative text, caption and pixel size."""

    source: str
    alt: str
    caption: str
    width: int
    height: int


def picture(field: xr.DataArray, shading: maps.Shading, *, alt: str, caption: str) -> Picture:
    regional = not Grid.of(field).is_global  # the outline of the world needs no degrees
    source = png(maps.plot_field(field, shading=shading, width=WIDTH, degrees=regional, title=""))
    return Picture(source, alt, caption, *png_size(source))


def score_maps(fields: xr.Dataset, *, channels: Iterable[str], leads: list[float], several: bool = True) -> list[dict[str, Any]]:
    """Maps of fair CRPS, bias and spread/error of each channel at some leads, with the table of their area means.

    fields: `crps`, `bias`, `ssr` (channel, prediction_timedelta, latitude, longitude) in SI units. several: False for one member,
    whose CRPS is the absolute error, and which has no spread.
    """
    return [_channel_maps(fields.sel(channel=channel), channel, leads, several) for channel in channels]


def _channel_maps(fields: xr.Dataset, channel: str, leads: list[float], several: bool) -> dict[str, Any]:
    style = styles.style_of(channel)
    at = [pd.Timedelta(hours=lead) for lead in leads]
    crps = [style.display_difference(fields["crps"].sel(prediction_timedelta=lead, drop=True)) for lead in at]
    bias = [style.display_difference(fields["bias"].sel(prediction_timedelta=lead, drop=True)) for lead in at]
    ssr = [fields["ssr"].sel(prediction_timedelta=lead, drop=True) for lead in at]
    units = style.difference_units
    score, mean = ("fair CRPS", "bias of the mean") if several else ("absolute error", "bias")
    kinds = [
        (score, units, crps, maps.spread_shading(style, crps, score)),
        (mean, units, bias, maps.difference_shading(style, bias, "bias")),
        *([("spread / error", "", ssr, RATIO)] if several else []),
    ]
    rows, lines = [], []
    for title, unit, arrays, shading in kinds:
        drawn = []
        for lead, array in zip(leads, arrays, strict=True):
            alt = f"Map of {title} of {style.long_name} at {lead_name(lead)}"
            drawn.append(picture(array, shading, alt=alt, caption=lead_name(lead)))
            lines.append([f"{title}, {lead_name(lead)}", *summary(array), unit])
        rows.append({"title": f"{style.long_name}: {title}", "figures": drawn})
    table = Table(f"{style.long_name}: what the maps hold", ["map", "area mean", "5 %", "95 %", "units"], lines)
    return {"label": style.label, "rows": rows, "table": table}


def summary(field: xr.DataArray) -> list[str]:
    """Area mean, 5th and 95th percentile of the finite points of a map, as text."""
    values, weights = field.transpose("latitude", "longitude").values, Grid.of(field).area_weights
    good = np.isfinite(values)
    if not good.any():
        return ["–", "–", "–"]
    low, high = np.percentile(values[good], [5, 95])
    return [number(float(np.average(values[good], weights=weights[good]))), number(float(low)), number(float(high))]
