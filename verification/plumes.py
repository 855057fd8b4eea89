"""Time series of an ensemble at one point: the plume of its members, and the box-and-whisker meteogram.

As maps: xarray goes in, a Figure comes out, in display units, with dates in UTC; no pyplot and no global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from data_pipeline.errors import InputError
from data_pipeline.schema import Channel, levels_of, select
from data_pipeline.variables import lookup
from verification.canvas import INK, LINE, MUTED, wrapped, write_heading
from verification.headings import dated, place
from verification.panels import lighten
from verification.styles import Style, style_of

BOX = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # quantiles of box and whiskers, linear between sorted members
SHADE, MIDDLE, EDGE = "#9ecae1", "#3182bd", "#08519c"
TRUTH = "#c1272d"
HOUR = np.timedelta64(1, "h")
ONE_ROW = 6.4  # inches from which the key fits one row
# the order in which a meteogram shows what it has: sky, rain, wind, temperature, then the rest
ORDER = (
    "total_cloud_cover",
    "total_precipitation",
    "10m_wind_gust",
    "10m_wind_speed",
    "2m_temperature",
    "mean_sea_level_pressure",
)


class Series(NamedTuple):
    """One quantity at a point, in display units: hours of lead, quantiles BOX (lead, 7), members (lead, number) or None."""

    hours: np.ndarray
    box: np.ndarray
    members: np.ndarray | None
    style: Style


def plot_plume(
    members: xr.DataArray,
    truth: xr.DataArray | None = None,
    *,
    variable: str | None = None,
    title: str | None = None,
    width: float = 8.0,
) -> Figure:
    """Every member at a point by lead: thin lines over the bands that hold the middle 50 and 80 % of them, and the median.

    members: (prediction_timedelta, number) in SI units, or (prediction_timedelta, box) with the quantiles of `BOX`, as products
    hold them; the coordinates `time` (initialisation), `point`, `latitude` and `longitude` are said where they are there. truth:
    (prediction_timedelta) or (time), valid times; drawn where it has the leads. variable: as `maps.plot_field`. width: inches.
    Raises InputError for other dims.
    """
    name = variable or str(members.name or "")
    series = _series(members, name)
    figure = Figure(figsize=(width, 1.0), dpi=110)
    heading = wrapped(
        _title(members, f"{series.style.long_name} {_where(members)}") if title is None else title, _note(title, members), width
    )
    (ax,) = _panels(figure, heading, 1, 2.9)
    low, first, middle, last, high = (series.box[:, index] for index in (1, 2, 3, 4, 5))
    ax.fill_between(series.hours, low, high, color=SHADE, alpha=0.45, linewidth=0)
    ax.fill_between(series.hours, first, last, color=MIDDLE, alpha=0.45, linewidth=0)
    key: list[Line2D | Patch] = [
        Patch(color=SHADE, alpha=0.45, label="middle 80 %"),
        Patch(color=MIDDLE, alpha=0.6, label="middle 50 %"),
    ]
    if series.members is not None:
        ax.plot(series.hours, series.members, color=EDGE, linewidth=0.5, alpha=0.5)
        key.insert(0, Line2D([], [], color=EDGE, linewidth=0.7, alpha=0.7, label="members"))
    else:
        ax.plot(series.hours, series.box[:, [0, -1]], color=EDGE, linewidth=0.6)
        key.insert(0, Line2D([], [], color=EDGE, linewidth=0.7, label="lowest, highest"))
    ax.plot(series.hours, middle, color=INK, linewidth=1.8)
    key.append(Line2D([], [], color=INK, linewidth=1.8, label="median"))
    if truth is not None:
        hours, values = _observed(truth, members, series)
        ax.plot(hours, values, color=TRUTH, linewidth=1.4, marker="o", markersize=2.5)
        key.append(Line2D([], [], color=TRUTH, linewidth=1.4, marker="o", markersize=2.5, label="truth"))
    _dress(ax, series, _start(members), name)
    _legend(figure, key)
    return figure


def plot_meteogram(
    data: xr.Dataset,
    truth: xr.Dataset | None = None,
    *,
    channels: Sequence[str] | None = None,
    title: str | None = None,
    width: float = 8.0,
) -> Figure:
    """Box and whiskers of an ensemble at a point, one panel a channel (an EPSgram): by lead the extremes, quantiles and median.

    data: variables (prediction_timedelta, number, [level]) in SI units, as `points.at_point` gives them; or
    (prediction_timedelta, box, [level]) with the quantiles of `BOX`, as products hold them. truth: the same variables by
    prediction_timedelta or time; drawn as dots. channels: labels, top to bottom; by default sky, rain, wind, temperature and
    pressure, then others, six at most. Raises InputError for channels that are not there, naming those that are.
    """
    chosen = [
        Channel.parse(label) if label not in data else Channel(label) for label in channels or default_channels(_labels(data))
    ]
    if not chosen:
        raise InputError("meteogram: the data hold no variable by prediction_timedelta and number (or box)")
    arrays = [select(data, channel) for channel in chosen]
    figure = Figure(figsize=(width, 1.0), dpi=110)
    heading = wrapped(_title(data, f"Meteogram {_where(data)}") if title is None else title, _note(title, data), width)
    axes = _panels(figure, heading, len(chosen), 1.55 if len(chosen) > 1 else 2.6)
    for ax, channel, array in zip(axes, chosen, arrays, strict=True):
        series = _series(array, channel.label)
        _boxes(ax, series)
        if truth is not None and channel.name in truth:
            ax.plot(
                *_observed(select(truth, channel), array, series),
                color=TRUTH,
                linestyle="none",
                marker="o",
                markersize=3,
                zorder=5,
            )
        _dress(ax, series, _start(data), channel.label)
        ax.tick_params(labelbottom=ax is axes[-1])
    key: list[Line2D | Patch] = [
        Line2D([], [], color=EDGE, linewidth=0.8, label="all members"),
        Patch(facecolor=SHADE, edgecolor=EDGE, linewidth=0.5, label="10 to 90 %"),
        Patch(facecolor=MIDDLE, edgecolor=EDGE, linewidth=0.5, label="25 to 75 %"),
        Line2D([], [], color=INK, linewidth=1.6, label="median"),
    ]
    if truth is not None:
        key.append(Line2D([], [], color=TRUTH, linestyle="none", marker="o", markersize=3, label="truth"))
    _legend(figure, key)
    return figure


def _series(array: xr.DataArray, name: str) -> Series:
    style = style_of(name or "value", array.attrs.get("units"))
    rest = set(map(str, array.dims)) - {"prediction_timedelta"}
    if "prediction_timedelta" not in array.dims or rest not in ({"number"}, {"box"}):
        raise InputError(
            f"plume of {name}: dims {tuple(map(str, array.dims))}, expected prediction_timedelta and number (or box); take a "
            "point with verification.points.at_point, one initialisation and one level"
        )
    shown = style.display(array.astype(np.float64)).transpose("prediction_timedelta", *rest)
    hours = array["prediction_timedelta"].values / HOUR
    if rest == {"box"}:
        levels = tuple(np.round(array["box"].values.astype(np.float64), 6).tolist())
        if levels != BOX:
            raise InputError(f"plume of {name}: box has the quantiles {levels}, expected {BOX}")
        return Series(hours, shown.values, None, style)
    box = np.full((hours.size, len(BOX)), np.nan)
    known = np.isfinite(shown.values).all(axis=1)
    box[known] = np.quantile(shown.values[known], BOX, axis=1).T
    return Series(hours, box, shown.values, style)


def _observed(truth: xr.DataArray, members: xr.DataArray, series: Series) -> tuple[np.ndarray, np.ndarray]:
    """Hours of lead and values in display units of the truth within the forecast."""
    if "prediction_timedelta" in truth.dims:
        return truth["prediction_timedelta"].values / HOUR, series.style.display(truth).values
    start = _start(members)
    if truth.dims != ("time",) or start is None:
        raise InputError(
            f"truth of a plume: dims {truth.dims}; expected prediction_timedelta, or time for a forecast with `time`"
        )
    hours = (truth["time"].values - start) / HOUR
    inside = (hours >= series.hours[0]) & (hours <= series.hours[-1])
    return hours[inside], series.style.display(truth).values[inside]


def _boxes(ax: Axes, series: Series) -> None:
    step = float(np.diff(series.hours).min()) if series.hours.size > 1 else 6.0
    lowest, tenth, quarter, middle, upper, ninth, highest = series.box.T
    x = series.hours
    ax.vlines(x, lowest, highest, color=EDGE, linewidth=0.8, zorder=2)
    for low, high, wide, colour in ((tenth, ninth, 0.36, SHADE), (quarter, upper, 0.64, MIDDLE)):
        ax.bar(x, high - low, wide * step, low, color=colour, edgecolor=EDGE, linewidth=0.5, zorder=3)
    ax.hlines(middle, x - 0.32 * step, x + 0.32 * step, color=INK, linewidth=1.6, zorder=4)


def _panels(figure: Figure, heading: list[Any], count: int, tall: float) -> list[Axes]:
    """Axes above each other, placed by inches: the heading above them, dates and the key below."""
    left, right, between = 0.62, 0.16, 0.3
    below = 0.82 if figure.get_figwidth() >= ONE_ROW else 1.0
    above = LINE * len(heading) + (0.02 if heading else 0.0)
    width = figure.get_figwidth()
    height = above + count * (tall + between) + below
    figure.set_figheight(height)
    axes = []
    for row in range(count):
        bottom = height - above - (row + 1) * (tall + between)
        axes.append(figure.add_axes((left / width, bottom / height, (width - left - right) / width, tall / height)))
    write_heading(figure, heading)
    return axes


def _dress(ax: Axes, series: Series, start: np.datetime64 | None, name: str) -> None:
    known = lookup(Channel.parse(name).name) or lookup(name)
    ax.set_title(series.style.heading, fontsize=8.5, loc="left", color=INK, pad=4)
    step = float(np.diff(series.hours).min()) if series.hours.size > 1 else 6.0
    ax.set_xlim(series.hours[0] - 0.5 * step, series.hours[-1] + 0.5 * step)
    if known is not None and known.non_negative:
        ax.set_ylim(bottom=0, top=max(ax.get_ylim()[1], series.style.levels[2] if series.style.levels else 0.0))
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    ax.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    at, texts = _days(series.hours, start, ax.get_window_extent().width / 110)
    ax.set_xticks(at, texts)
    lighten(ax)


def _days(hours: np.ndarray, start: np.datetime64 | None, width: float) -> tuple[list[float], list[str]]:
    """Where to write which dates on the axis of leads: midnights (UTC), as many as fit; whole days of lead without a start."""
    clock = 0.0 if start is None else (pd.Timestamp(start) - pd.Timestamp(start).normalize()) / pd.Timedelta(hours=1)
    first = np.ceil((hours[0] + clock) / 24) * 24 - clock
    midnights = np.arange(first, hours[-1] + 1e-6, 24.0)
    every = next(n for n in (1, 2, 3, 5, 7, 10, 15, 30, 60, 10**9) if midnights.size / n <= max(width / 0.66, 2))
    chosen = midnights[::every].tolist()
    if start is None:
        return chosen, [f"+{hour / 24:g} d" for hour in chosen]
    dates = [pd.Timestamp(start) + pd.Timedelta(hours=hour) for hour in chosen]
    return chosen, [f"{date:%a}\n{date.day} {date:%b}" for date in dates]


def _legend(figure: Figure, key: Sequence[Line2D | Patch]) -> None:
    height = figure.get_figheight()
    columns = len(key) if figure.get_figwidth() >= ONE_ROW else 3
    figure.legend(
        handles=list(key), loc="lower left", ncols=columns, fontsize=8, frameon=False, labelcolor=INK, handlelength=1.5,
        columnspacing=1.4, bbox_to_anchor=(0.05, 0.02 / height),
    )  # fmt: skip
    figure.text(0.98, 0.14 / height, "dates: 00 UTC", fontsize=7.5, color=MUTED, ha="right", va="bottom")


def default_channels(labels: Sequence[str]) -> list[str]:
    """The channels of a meteogram: sky, rain, wind, temperature and pressure first, six at most."""
    rank = {name: next((k for k, start in enumerate(ORDER) if name.startswith(start)), len(ORDER)) for name in labels}
    return sorted(labels, key=lambda name: rank[name])[:6]


def _labels(data: xr.Dataset) -> list[str]:
    labels = []
    for name, array in data.data_vars.items():
        if "prediction_timedelta" in array.dims and {"number", "box"} & set(array.dims):
            levels = levels_of(array) if "level" in array.dims else [None]
            labels += [Channel(str(name), level).label for level in levels]
    return labels


def _start(data: xr.DataArray | xr.Dataset) -> np.datetime64 | None:
    known = "time" in data.coords and data["time"].ndim == 0
    return data["time"].values.reshape(1)[0] if known else None


def _where(data: xr.DataArray | xr.Dataset) -> str:
    name = str(data["point"].values) if "point" in data.coords and data["point"].ndim == 0 else ""
    axes = [data.coords.get(prefix + axis) for prefix in ("", "point_") for axis in ("latitude", "longitude")]
    found = [float(axis) for axis in axes if axis is not None and axis.ndim == 0][:2]
    spot = place(*found) if len(found) == 2 else ""
    if not name or name == spot:
        return f"at {spot}" if spot else "at a point"
    return f"at {name} ({spot})" if spot else f"at {name}"


def _title(data: xr.DataArray | xr.Dataset, text: str) -> str:
    size = data.sizes.get("number", data.attrs.get("ensemble_size"))
    return text if size is None else f"{text}, {int(size)} members"


def _note(title: str | None, data: xr.DataArray | xr.Dataset) -> str:
    return "" if title == "" else dated(data)
