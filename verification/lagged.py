"""Forecasts of one valid time from earlier and earlier initialisations: how a signal came up, and how sure it became.

lagged = valid_at(forecast, np.datetime64("2007-11-01T12"))
plot_signal(lagged["2m_temperature"].sel(latitude=60, longitude=300, method="nearest"), climate, truth)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cartopy.crs as ccrs
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from verification.canvas import INK, canvas, colour_bar, isolines, label, shade
from verification.headings import lead_text, place, utc
from verification.panels import MODELS, dress, key, panels
from verification.plumes import BOX, EDGE, MIDDLE, SHADE, TRUTH
from verification.quantiles import SAME_LEVEL, efi, sot
from verification.shadings import EFI, SOT_LEVELS
from verification.styles import style_of

CLIMATE = {0.01: "1 %", 0.1: "10 %", 0.5: "median", 0.9: "90 %", 0.99: "99 %"}  # quantiles that are drawn where they are known
CLIMATE_COLOUR = "#8a6d00"
DAY = np.timedelta64(1, "D")
MOST_TICKS = 10


def valid_at(forecast: xr.Dataset, when: np.datetime64 | str) -> xr.Dataset:
    """What each initialisation of a forecast says of one valid time, in the order of the leads, without the dim `time`.

    forecast: in the forecast schema, lazily if it is. Returns its variables by (prediction_timedelta, number, ...), only leads of
    which there is an initialisation; the coordinate `time` (prediction_timedelta) is the initialisation, `valid_time` is `when`.
    Raises InputError if no initialisation reaches it.
    """
    when = pd.Timestamp(when).to_datetime64()
    times, leads = forecast["time"].values, forecast["prediction_timedelta"].values
    rows = pd.Index(times).get_indexer(pd.Index(when - leads))
    if (rows < 0).all():
        raise InputError(
            f"no initialisation of the forecast has a lead valid at {utc(when)}: it has {utc(times[0])} to {utc(times[-1])} with "
            f"leads of {lead_text(leads[0])} to {lead_text(leads[-1])}"
        )
    columns = np.flatnonzero(rows >= 0)
    places = {"time": rows[columns], "prediction_timedelta": columns}
    pointwise = {dim: xr.DataArray(values, dims="prediction_timedelta") for dim, values in places.items()}
    return forecast.drop_vars("valid_time", errors="ignore").isel(pointwise).assign_coords(valid_time=when)


def as_forecast(analysis: xr.Dataset, init: np.datetime64 | str, leads: Sequence[np.timedelta64] | np.ndarray) -> xr.Dataset:
    """The truth in the form of a forecast of one member: (time, prediction_timedelta, number, ...), lazily.

    analysis: in the analysis schema. What is made of forecasts, as tracks, can then be made of the truth. Raises InputError for
    valid times that the analysis does not have.
    """
    start, ahead = pd.Timestamp(init).to_datetime64(), np.asarray(leads, "timedelta64[ns]")
    rows = pd.Index(analysis["time"].values).get_indexer(pd.Index(start + ahead))
    if (rows < 0).any():
        gone = start + ahead[rows < 0]
        raise InputError(f"the analysis lacks {gone.size} of {ahead.size} valid times from {utc(start)}, first {utc(gone[0])}")
    moving = analysis[[name for name, array in analysis.data_vars.items() if "time" in array.dims]].isel(time=rows)
    truth = moving.rename(time="prediction_timedelta").assign_coords(prediction_timedelta=ahead)
    truth = truth.expand_dims(time=[start], number=[1]).transpose("time", "prediction_timedelta", "number", ...)
    return truth.assign_coords(valid_time=(("time", "prediction_timedelta"), (start + ahead)[None])).assign_attrs(model="truth")


def plot_signal(
    members: xr.DataArray,
    climate: xr.DataArray,
    truth: float | xr.DataArray | None = None,
    *,
    tail: float | None = None,
    variable: str | None = None,
    title: str | None = None,
    width: float = 7.0,
) -> Figure:
    """How a signal came up at one place: members, extreme forecast index and shift of tails by days before the valid time.

    members: (prediction_timedelta, number), SI units, of one valid time, as `valid_at` gives them. climate: (quantile) of that
    time and place, with the levels that `verification.efi` and `verification.sot` ask for; quantiles of 1, 10, 50, 90 and 99 per
    cent are drawn as lines. truth: what came. tail: of the shift of tails, 0.9 or 0.1; by default that to which the index of the
    shortest lead points. Boxes hold the middle 50 and 80 % of the members, whiskers all. Raises InputError as those two,
    for other dims, and for several valid times.
    """
    if set(members.dims) != {"prediction_timedelta", "number"} or climate.dims != ("quantile",):
        raise InputError(
            f"plot_signal: members by {members.dims}, climate by {climate.dims}; expected (prediction_timedelta, number) of one "
            "place and (quantile,)"
        )
    style = style_of(variable or str(members.name or "value"), members.attrs.get("units"))
    index = efi(members, climate).transpose("prediction_timedelta")
    side = tail or (0.9 if float(index.isel(prediction_timedelta=0)) >= 0 else 0.1)
    shift = sot(members, climate, level=side)
    what = f"{style.long_name} {_where(members)}, {members.sizes['number']} members"
    heading = what if title is None else title
    figure, (top, middle, bottom) = panels([2.3, 0.8, 0.8], width=width, title=heading, note=_valid(members), right=0.55)
    days = index["prediction_timedelta"].values / DAY
    _boxes(top, days, style.display(members.astype(np.float64)).transpose("number", ...).values)
    for level, text in CLIMATE.items():
        near = np.abs(climate["quantile"].values - level)
        if near.min() <= SAME_LEVEL:
            value = float(style.display(climate.isel(quantile=int(near.argmin()))))
            top.axhline(value, color=CLIMATE_COLOUR, linewidth=0.9, linestyle=(0, (5, 2)), zorder=1)
            _beside(top, value, text)
    if truth is not None:
        top.axhline(float(style.display(xr.DataArray(truth))), color=TRUTH, linewidth=1.5, zorder=1)
    _indices(middle, days, index.values, (-1.05, 1.05), "extreme forecast index", [-1, -0.5, 0, 0.5, 1])
    spread = shift.values[np.isfinite(shift.values)]
    limits = (min(-1.0, *spread) - 0.1, max(1.0, *spread) + 0.1) if spread.size else (-1.1, 1.1)
    _indices(bottom, days, shift.values, limits, f"shift of tails, {'upper' if side > 0.5 else 'lower'}", None)
    for ax in (top, middle, bottom):
        ax.set_xlim(days.max() + 0.6, days.min() - 0.6)
        if days.size <= MOST_TICKS:
            ax.set_xticks(days, [f"{day:g}" for day in days])
        else:
            ax.xaxis.set_major_locator(MaxNLocator(MOST_TICKS, integer=True))
        ax.tick_params(labelbottom=ax is bottom)
    dress(top, style.heading)
    bottom.set_xlabel("days before", fontsize=8, color=INK, labelpad=2)
    entries: list[Any] = [
        Patch(facecolor=MIDDLE, edgecolor=EDGE, linewidth=0.5, label="middle 50 %"),
        Patch(facecolor=SHADE, edgecolor=EDGE, linewidth=0.5, label="middle 80 %"),
        Line2D([], [], color=EDGE, linewidth=0.8, label="all members"),
        Line2D([], [], color=CLIMATE_COLOUR, linewidth=0.9, linestyle=(0, (5, 2)), label="climate"),
    ]
    if truth is not None:
        entries.append(Line2D([], [], color=TRUTH, linewidth=1.5, label="truth"))
    key(figure, entries)
    return figure


def plot_efi_by_lead(
    index: xr.DataArray,
    shift: xr.DataArray | None = None,
    *,
    columns: int = 2,
    mark: tuple[float, float] | None = None,
    title: str | None = None,
    **frame: Any,
) -> Figure:
    """Maps of the extreme forecast index of one valid time, the earliest forecast first; shift of tails as lines from 0 on.

    index, shift: (prediction_timedelta, latitude, longitude), as `verification.efi` and `verification.sot` make them of
    `valid_at`. mark: a place (latitude, longitude) that gets a ring. frame: as in `verification.maps`. Raises InputError for
    other dims and for several valid times.
    """
    if set(index.dims) != {"prediction_timedelta", "latitude", "longitude"}:
        raise InputError(f"plot_efi_by_lead: dims {index.dims}; expected prediction_timedelta, latitude, longitude")
    leads = index["prediction_timedelta"].values[::-1]
    rows, what = -(-len(leads) // columns), "Extreme forecast index" if title is None else title
    page = canvas(
        Grid.of(index), (rows, columns), title=what, note=_valid(index), panels=len(leads),
        titled=True, **{"width": 8.0, "degrees": False, **frame},
    )  # fmt: skip
    for ax, lead in zip(page.maps, leads, strict=True):
        field = index.sel(prediction_timedelta=lead)
        drawn = shade(ax, page.pixels, page.pixels.values(field.clip(-1, 1)), EFI)
        if shift is not None:
            isolines(ax, page.pixels, page.pixels.values(shift.sel(prediction_timedelta=lead)), SOT_LEVELS)
        if mark is not None:
            x, y = ax.projection.transform_point(mark[1], mark[0], ccrs.PlateCarree())
            ax.plot(
                [x], [y], marker="o", markersize=9, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.2, zorder=6
            )
        label(ax, f"{lead_text(lead)} before")
    colour_bar(page.bars[0], drawn, "extreme forecast index" + ("; lines: shift of tails" if shift is not None else ""))
    return page.figure


def _boxes(ax: Axes, days: np.ndarray, values: np.ndarray) -> None:
    """Whiskers over all members, boxes over the middle half and 80 %, the median."""
    wide = 0.5 * (np.diff(days).min() if days.size > 1 else 1.0)
    low, tenth, first, middle, last, ninth, high = np.quantile(values, BOX, axis=0)
    ax.vlines(days, low, high, color=EDGE, linewidth=0.8, zorder=2)
    for bottom, top, share, colour in ((tenth, ninth, 0.6, SHADE), (first, last, 1.0, MIDDLE)):
        ax.bar(days, top - bottom, share * wide, bottom, color=colour, edgecolor=EDGE, linewidth=0.5, zorder=3)
    ax.hlines(middle, days - 0.5 * wide, days + 0.5 * wide, color=INK, linewidth=1.6, zorder=4)


def _beside(ax: Axes, value: float, text: str) -> None:
    """The name of a line right of its end."""
    place, shift = ("axes fraction", "data"), "offset points"
    ax.annotate(text, (1.0, value), (3, 0), place, shift, fontsize=7, color=CLIMATE_COLOUR, va="center")


def _indices(
    ax: Axes, days: np.ndarray, values: np.ndarray, limits: tuple[float, float], title: str, ticks: Sequence[float] | None
) -> None:
    ax.plot(days, values, color=MODELS[0], marker="o", markersize=3.5, linewidth=1.6)
    ax.axhline(0.0, color=INK, linewidth=0.8)
    dress(ax, title)
    ax.set_ylim(limits)
    if ticks is not None:
        ax.set_yticks(ticks)


def _where(members: xr.DataArray) -> str:
    axes = [members.coords.get(name) for name in ("latitude", "longitude")]
    found = [float(axis) for axis in axes if axis is not None and axis.ndim == 0]
    return f"at {place(*found)}" if len(found) == 2 else "at one place"


def _valid(array: xr.DataArray) -> str:
    """`valid 2007-11-01 12 UTC`, where it is known; several valid times, as along a single forecast, are an error."""
    if "valid_time" not in array.coords:
        return ""
    times = np.unique(array["valid_time"].values)
    if times.size != 1:
        raise InputError(
            f"{array.name}: {times.size} valid times, {utc(times[0])} to {utc(times[-1])}; expected one (`valid_at`)"
        )
    return f"valid {utc(times[0])}"
