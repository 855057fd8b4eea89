"""Maps of fields and ensembles: xarray in the schema goes in, a matplotlib Figure comes out.

Any cartopy projection, global and regional grids, levels and colours by variable, display units; coastlines are packaged and
nothing is downloaded. No pyplot and no global state: a figure is the caller's to save. Matplotlib is not thread-safe: draw in
one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from verification.canvas import INK, Shading, canvas, coastlines, colour_bar, isolines, label, shade
from verification.styles import Style, style_of

__all__ = [
    "Shading",
    "coastlines",
    "difference_shading",
    "field_shading",
    "plot_ensemble",
    "plot_field",
    "plot_probability",
    "plot_stamps",
    "probability",
    "spread_shading",
]

PROBABILITY = Shading((0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0), "YlGnBu", "probability", "neither")


def plot_field(
    field: xr.DataArray, *, variable: str | None = None, shading: Shading | None = None, title: str = "", **frame: Any
) -> Figure:
    """One field (latitude, longitude) in SI units, shaded in display units.

    variable: name or channel label (`geopotential_500`); the array's own name by default. shading: levels, colours and label
    instead of the variable's own; the field is then taken as it is. frame: `projection` (any cartopy one), `extent` (west, east,
    south, north) in degrees, `width` in inches, `degrees` (False: no labels on the edges). Missing values are grey. Raises
    InputError for other dims.
    """
    style = style_of(_variable(field, variable), field.attrs.get("units"))
    shown = field if shading else style.display(field)
    chosen = shading or field_shading(style, [shown])
    page = canvas(Grid.of(field), titled=bool(title), **frame)
    drawn = shade(page.maps[0], shown, chosen)
    label(page.maps[0], title)
    colour_bar(page.bars[0], drawn, chosen.label)
    return page.figure


def plot_ensemble(forecast: xr.DataArray, *, variable: str | None = None, title: str = "", **frame: Any) -> Figure:
    """The mean of an ensemble (number, latitude, longitude) shaded, its spread (unbiased standard deviation) as contour lines.

    Raises InputError for fewer than two members. Other arguments as `plot_field`.
    """
    style = style_of(_variable(forecast, variable), forecast.attrs.get("units"))
    _check_members(forecast)
    mean = style.display(forecast.mean("number"))
    spread = style.display_difference(forecast.std("number", ddof=1))
    shading = field_shading(style, [mean])
    page = canvas(Grid.of(forecast), **frame)
    drawn = shade(page.maps[0], mean, shading)
    levels = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(0, float(spread.max()))[1:]
    isolines(page.maps[0], spread, levels)
    label(page.maps[0], title)
    colour_bar(page.bars[0], drawn, f"{style.label} ensemble mean ({style.units}); lines: spread ({style.difference_units})")
    return page.figure


def plot_stamps(
    forecast: xr.DataArray,
    truth: xr.DataArray | None = None,
    *,
    variable: str | None = None,
    members: Sequence[int] = (0, 1, 2, 3),
    title: str = "",
    **frame: Any,
) -> Figure:
    """Truth, mean, spread and members of an ensemble (number, latitude, longitude); one scale for all but the spread.

    members: positions along `number`. Without `truth` its panel is left out. Other arguments as `plot_field`.
    """
    style = style_of(_variable(forecast, variable), forecast.attrs.get("units"))
    _check_members(forecast)
    chosen = [index for index in members if index < forecast.sizes["number"]]
    fields = {"truth": truth} if truth is not None else {}
    fields["ensemble mean"] = forecast.mean("number")
    fields |= {f"member {forecast['number'].values[index]}": forecast.isel(number=index) for index in chosen}
    shown = {name: style.display(field) for name, field in fields.items()}
    spread = style.display_difference(forecast.std("number", ddof=1))
    shading, spread_levels = field_shading(style, list(shown.values())), spread_shading(style, [spread])
    top = len(shown) - len(chosen) + 1
    columns = max(len(chosen), top)
    page = canvas(Grid.of(forecast), (2 if chosen else 1, columns), bars=2, **{"width": 3.0 * columns, **frame})
    upper, lower = page.maps[:columns], page.maps[columns:]
    for ax in upper[top:] + lower[len(chosen) :]:
        ax.remove()
    for ax, name in zip(upper[: top - 1] + lower, shown, strict=False):
        drawn = shade(ax, shown[name], shading)
        label(ax, name)
    drawn_spread = shade(upper[top - 1], spread, spread_levels)
    label(upper[top - 1], "spread")
    page.figure.text(0.99, 0.99, title, fontsize=10, ha="right", va="top", color=INK)
    colour_bar(page.bars[0], drawn, shading.label)
    colour_bar(page.bars[1], drawn_spread, spread_levels.label)
    return page.figure


def plot_probability(
    forecast: xr.DataArray,
    *,
    threshold: float,
    below: bool = False,
    truth: xr.DataArray | None = None,
    variable: str | None = None,
    title: str = "",
    **frame: Any,
) -> Figure:
    """The share of members above (or `below`) a threshold in SI units; a line shows where the truth crosses it.

    forecast: (number, latitude, longitude). Other arguments as `plot_field`.
    """
    style = style_of(_variable(forecast, variable), forecast.attrs.get("units"))
    page = canvas(Grid.of(forecast), **frame)
    drawn = shade(page.maps[0], probability(forecast, threshold, below=below), PROBABILITY)
    if truth is not None:
        isolines(page.maps[0], style.display(truth), [round(threshold * style.factor + style.offset, 6)], colour="#c1272d")
    label(page.maps[0], title)
    event = f"{style.label} {'<' if below else '>'} {threshold * style.factor + style.offset:g} {style.units}"
    colour_bar(page.bars[0], drawn, f"probability of {event}" + ("; red line: truth" if truth is not None else ""))
    return page.figure


def probability(forecast: xr.DataArray, threshold: float, *, below: bool = False) -> xr.DataArray:
    """The share of members above (or `below`) a threshold; NaN where any member is missing."""
    event = forecast < threshold if below else forecast > threshold
    return event.mean("number").where(forecast.notnull().all("number"))


def field_shading(style: Style, fields: Sequence[xr.DataArray]) -> Shading:
    """Shared levels for fields in display units: round numbers over the middle 99 % of their values."""
    low, high = _range(fields, 0.5, 99.5)
    if style.symmetric:
        high = max(abs(low), abs(high))
        low = -high
    return Shading(_levels(low, high, 12), style.colours, f"{style.label} ({style.units})")


def spread_shading(style: Style, fields: Sequence[xr.DataArray], label: str = "spread") -> Shading:
    """Levels from zero for spreads, errors and CRPS in display units."""
    _, high = _range(fields, 0, 99.5)
    return Shading(_levels(0.0, high, 8), "YlOrRd", f"{style.label} {label} ({style.difference_units})", "max")


def difference_shading(style: Style, fields: Sequence[xr.DataArray], label: str = "difference") -> Shading:
    """Levels around zero for biases and differences in display units."""
    low, high = _range(fields, 1, 99)
    size = max(abs(low), abs(high))
    return Shading(_levels(-size, size, 9), "PuOr_r", f"{style.label} {label} ({style.difference_units})")


def _check_members(forecast: xr.DataArray) -> None:
    if forecast.sizes.get("number", 1) < 2:
        raise InputError("ensemble map: one member has no spread; draw it with plot_field")


def _range(fields: Sequence[xr.DataArray], low: float, high: float) -> tuple[float, float]:
    values = np.concatenate([np.ravel(field.values) for field in fields])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    first, last = np.percentile(values, [low, high])
    return float(first), float(last)


def _levels(low: float, high: float, count: int) -> tuple[float, ...]:
    if high <= low:
        high = low + max(abs(low), 1.0) * 1e-3
    return tuple(np.round(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high), 10).tolist())


def _variable(field: xr.DataArray, variable: str | None) -> str:
    if variable or field.name:
        return str(variable or field.name)
    raise InputError("map: the field has no name; give variable=, for example geopotential_500")
