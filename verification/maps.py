"""Maps of fields and ensembles: xarray in the schema goes in, a matplotlib Figure comes out.

    maps.plot_ensemble(members, title="Storm").savefig("storm.png")
    maps.plot_probability(members, threshold=303.15, projection=ccrs.Robinson())

Any cartopy projection, global and regional grids, levels and colours by variable (`data_pipeline.variables`), display units;
coastlines are packaged and nothing is downloaded. Every figure says what it shows, of which forecast and when, by the
coordinates of what it is given; `title` says it otherwise, "" says nothing. No pyplot and no global state: a figure is the
caller's to save. Matplotlib is not thread-safe: draw in one thread.

frame: what every map takes: `projection` (any cartopy one), `extent` (west, east, south, north) in degrees, `width` in inches,
`degrees` (False: no labels on the edges).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from verification.canvas import INK, Canvas, canvas, coastlines, colour_bar, contours, isolines, label, shade
from verification.headings import dated
from verification.plumes import plot_meteogram, plot_plume
from verification.shadings import (
    EFI,
    PROBABILITY,
    SOT_LEVELS,
    Shading,
    difference_shading,
    field_shading,
    line_levels,
    spread_shading,
)
from verification.styles import Style, in_sentence, readable_event, style_of
from verification.track_maps import plot_tracks

__all__ = [
    "EFI",
    "PROBABILITY",
    "Shading",
    "coastlines",
    "difference_shading",
    "field_shading",
    "plot_efi",
    "plot_ensemble",
    "plot_field",
    "plot_meteogram",
    "plot_plume",
    "plot_probability",
    "plot_spaghetti",
    "plot_stamps",
    "plot_tracks",
    "probability",
    "spread_shading",
]

TRUTH = "#c1272d"
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a5c00", "#56b4e9")  # Okabe and Ito (2008), the yellow darkened


def plot_field(
    field: xr.DataArray,
    *,
    variable: str | None = None,
    shading: Shading | None = None,
    lines: Sequence[float] = (),
    title: str | None = None,
    **frame: Any,
) -> Figure:
    """One field (latitude, longitude) in SI units, shaded in display units.

    variable: name or channel label (`geopotential_500`); the array's own name by default. shading: levels, colours and label
    instead of the variable's own; the field is then taken as it is. lines: levels of contour lines in display units. frame: see
    the module. Missing values are grey. Raises InputError for other dims.
    """
    style = style_of(_variable(field, variable), field.attrs.get("units"))
    page = _canvas(field, style.long_name, title, **frame)
    shown = page.pixels.values(field if shading else style.display(field))
    chosen = shading or field_shading(style, [shown])
    drawn = shade(page.maps[0], page.pixels, shown, chosen)
    isolines(page.maps[0], page.pixels, shown, lines)
    colour_bar(page.bars[0], drawn, chosen.label, percent=chosen.percent)
    return page.figure


def plot_ensemble(
    forecast: xr.DataArray,
    spread: xr.DataArray | None = None,
    *,
    variable: str | None = None,
    title: str | None = None,
    **frame: Any,
) -> Figure:
    """The mean of an ensemble (number, latitude, longitude) shaded, its spread (unbiased standard deviation) as contour lines.

    With `spread` the forecast is the mean already (latitude, longitude), as products hold them. Raises InputError for fewer than
    two members. Other arguments as `plot_field`.
    """
    style = style_of(_variable(forecast, variable), forecast.attrs.get("units"))
    if spread is None:
        _check_members(forecast)
        mean, spread = forecast.mean("number"), forecast.std("number", ddof=1)
    else:
        mean = forecast
    page = _canvas(forecast, f"{style.long_name}, ensemble mean and spread{_size(forecast)}", title, **frame)
    shown = page.pixels.values(style.display(mean))
    lines = page.pixels.values(style.display_difference(spread))
    drawn = shade(page.maps[0], page.pixels, shown, field_shading(style, [shown]))
    most = float(np.nanmax(lines)) if np.isfinite(lines).any() else 1.0
    isolines(page.maps[0], page.pixels, lines, MaxNLocator(8, steps=[1, 2, 5, 10]).tick_values(0, most)[1:])
    colour_bar(page.bars[0], drawn, f"{style.heading}, ensemble mean; lines: spread ({style.difference_units})")
    return page.figure


def plot_stamps(
    forecast: xr.DataArray,
    truth: xr.DataArray | None = None,
    *,
    variable: str | None = None,
    members: Sequence[int] | None = None,
    title: str | None = None,
    **frame: Any,
) -> Figure:
    """Truth, mean, spread and members of an ensemble (number, latitude, longitude); one scale for all but the spread.

    members: positions along `number`; all by default. Without `truth` its panel is left out. `width` is that of the figure. Other
    arguments as `plot_field`. Raises InputError for fewer than two members.
    """
    style = style_of(_variable(forecast, variable), forecast.attrs.get("units"))
    _check_members(forecast)
    size = forecast.sizes["number"]
    chosen = [index for index in (range(size) if members is None else members) if -size <= index < size]
    fields = {"truth": truth} if truth is not None else {}
    fields["ensemble mean"] = forecast.mean("number")
    fields |= {f"member {forecast['number'].values[index]}": forecast.isel(number=index) for index in chosen}
    names = list(fields)
    names.insert(names.index("ensemble mean") + 1, "spread")
    columns = _columns(len(names), _wide(forecast, frame), frame.get("width", 11.0))
    page = _canvas(
        forecast, f"{style.long_name}, {size} members", title, shape=(-(-len(names) // columns), columns), bars=2,
        panels=len(names), titled=True, **{"width": max(min(2.4 * columns, 11.0), 4.8), "degrees": False, **frame},
    )  # fmt: skip
    shown = {name: page.pixels.values(style.display(field)) for name, field in fields.items()}
    spread = page.pixels.values(style.display_difference(forecast.std("number", ddof=1)))
    shading, spread_levels = field_shading(style, list(shown.values())), spread_shading(style, [spread])
    for ax, name in zip(page.maps, names, strict=True):
        if name == "spread":
            drawn_spread = shade(ax, page.pixels, spread, spread_levels)
        else:
            drawn = shade(ax, page.pixels, shown[name], shading)
        label(ax, name)
    colour_bar(page.bars[0], drawn, shading.label)
    colour_bar(page.bars[1], drawn_spread, f"spread ({style.difference_units})")
    return page.figure


def plot_spaghetti(
    forecast: xr.DataArray,
    levels: Sequence[float] | None = None,
    truth: xr.DataArray | None = None,
    *,
    variable: str | None = None,
    title: str | None = None,
    **frame: Any,
) -> Figure:
    """The same few contours of every member (number, latitude, longitude): thin lines, one colour a level, the mean's thick.

    levels: in SI units; by default up to three round ones. truth: (latitude, longitude), its lines are black. Other arguments as
    `plot_field`. Raises InputError for fewer than two members, and for more levels than can be told apart (6).
    """
    style = style_of(_variable(forecast, variable), forecast.attrs.get("units"))
    _check_members(forecast)
    size = forecast.sizes["number"]
    page = _canvas(forecast, f"{style.long_name}, contours of {size} members", title, coast="#8a8a8a", **frame)
    ax, pixels = page.maps[0], page.pixels
    ax.set_facecolor("white")
    single = [pixels.values(style.display(forecast.isel(number=index))) for index in range(size)]
    mean = pixels.values(style.display(forecast.mean("number")))
    wanted = _display_levels(style, levels) if levels is not None else line_levels(style, [mean], 3)
    if not 0 < len(wanted) <= len(LINES):
        raise InputError(f"spaghetti of {style.long_name}: {len(wanted)} levels; give one to {len(LINES)}, in SI units")
    thin = float(np.clip(12 / len(single), 0.35, 0.8))
    for colour, level in zip(LINES, wanted, strict=False):
        contours(ax, pixels, single, level, colour, width=thin, alpha=0.7)
        contours(ax, pixels, [mean], level, colour, width=2.2)
        if truth is not None:
            contours(ax, pixels, [pixels.values(style.display(truth))], level, INK, width=1.4)
    key = [Line2D([], [], color=c, linewidth=2.2, label=f"{v:g} {style.units}") for c, v in zip(LINES, wanted, strict=False)]
    key.append(Line2D([], [], color="#777777", linewidth=0.8, label="members, thick: mean"))
    key += [Line2D([], [], color=INK, linewidth=1.4, label="truth")] if truth is not None else []
    _key(page, key)
    return page.figure


def plot_probability(
    forecast: xr.DataArray,
    *,
    threshold: float | xr.DataArray | None = None,
    below: bool = False,
    truth: xr.DataArray | None = None,
    variable: str | None = None,
    title: str | None = None,
    **frame: Any,
) -> Figure:
    """The share of members above (or `below`) a threshold in SI units, in per cent; a line shows where the truth crosses it.

    forecast: (number, latitude, longitude). threshold: one value, or a field (latitude, longitude), such as a quantile of the
    climate; none if the forecast is a probability already (latitude, longitude; 0 to 1), as products hold them: its attribute
    `long_name` is the title. Other arguments as `plot_field`.
    """
    name = _variable(forecast, variable)
    style = style_of(name, forecast.attrs.get("units"))
    if threshold is None:
        if "number" in forecast.dims:
            raise InputError(f"probability of {name}: give threshold=, in SI units; the forecast has members")
        chance, what = forecast, _sentence(readable_event(str(forecast.attrs.get("long_name", "probability")))) + _size(forecast)
    else:
        chance = probability(forecast, threshold, below=below)
        limit = _limit_name(style, threshold)
        what = f"Probability of {in_sentence(style.long_name)} {'<' if below else '>'} {limit}{_size(forecast)}"
    page = _canvas(forecast, what, title, **frame)
    drawn = shade(page.maps[0], page.pixels, page.pixels.values(chance), PROBABILITY)
    if truth is not None and threshold is not None:
        contours(page.maps[0], page.pixels, [page.pixels.values(truth - threshold)], 0.0, TRUTH, width=1.1)
    colour_bar(page.bars[0], drawn, "probability (%)" + ("; red line: truth" if truth is not None else ""), percent=True)
    return page.figure


def plot_efi(
    efi: xr.DataArray,
    sot: xr.DataArray | None = None,
    *,
    variable: str | None = None,
    title: str | None = None,
    **frame: Any,
) -> Figure:
    """Extreme forecast index (latitude, longitude), -1 to 1, shaded from 0.5 on; shift of tails as contour lines from 0 on.

    efi, sot: as `verification.efi` and `verification.sot` give them, or as products hold them. variable: what of; by default the
    name without `_efi`. Other arguments as `plot_field`.
    """
    name = _variable(efi, variable).removesuffix("_efi")
    what = "Extreme forecast index" + ("" if name == "efi" else f" of {in_sentence(style_of(name).long_name)}")
    page = _canvas(efi, what, title, **frame)
    drawn = shade(page.maps[0], page.pixels, page.pixels.values(efi.clip(-1, 1)), EFI)
    if sot is not None:
        isolines(page.maps[0], page.pixels, page.pixels.values(sot), SOT_LEVELS)
    colour_bar(page.bars[0], drawn, "extreme forecast index" + ("; lines: shift of tails" if sot is not None else ""))
    return page.figure


def probability(forecast: xr.DataArray, threshold: float | xr.DataArray, *, below: bool = False) -> xr.DataArray:
    """The share of members above (or `below`) a threshold; NaN where any member, or the threshold, is missing."""
    event = forecast < threshold if below else forecast > threshold
    known = forecast.notnull().all("number")
    if isinstance(threshold, xr.DataArray):
        known = known & threshold.notnull()
    return event.mean("number").where(known)


def _canvas(field: xr.DataArray, what: str, title: str | None, *, shape: tuple[int, int] = (1, 1), **frame: Any) -> Canvas:
    """A canvas whose heading says what is shown and when; a title given says it instead, an empty one leaves all out."""
    note = "" if title == "" else dated(field)
    return canvas(Grid.of(field), shape, title=what if title is None else title, note=note, **frame)


def _columns(panels: int, wide: float, width: float) -> int:
    """Columns of a sheet of panels `wide` times as wide as high: about 2:1, few empty places, none below 1.2 inches."""
    best = float(np.clip(np.sqrt(panels * 2.0 / wide), 2, 8))
    return min(range(2, max(int(width / 1.2), 2) + 1), key=lambda n: 0.5 * (-panels % n) + 1.5 * abs(n - best))


def _wide(field: xr.DataArray, frame: dict[str, Any]) -> float:
    if frame.get("projection") is not None:
        return 1.2
    grid = Grid.of(field)
    west, east, south, north = frame.get("extent") or (*grid.longitude_bounds[[0, -1]], *grid.latitude_bounds[[0, -1]])
    return float((east - west) / (north - south) * (1.0 if grid.circles else np.cos(np.deg2rad((south + north) / 2))))


def _key(page: Canvas, entries: list[Line2D]) -> None:
    """A legend in place of the colour bar."""
    strip = page.bars[0]
    strip.set_axis_off()
    strip.legend(
        handles=entries, loc="center", ncols=len(entries), fontsize=8, frameon=False, handlelength=1.6, columnspacing=1.4,
        labelcolor=INK, bbox_to_anchor=(0.5, 0.2),
    )  # fmt: skip


def _display_levels(style: Style, levels: Sequence[float]) -> tuple[float, ...]:
    return tuple(_shown(style, level) for level in levels)


def _shown(style: Style, value: float) -> float:
    """A single value in display units, without the noise of the conversion."""
    return float(f"{value * style.factor + style.offset:.8g}")


def _limit_name(style: Style, threshold: float | xr.DataArray) -> str:
    if not isinstance(threshold, xr.DataArray):
        return f"{_shown(style, threshold):g} {style.units}".removesuffix(" 1")
    quantile = threshold.coords.get("quantile")
    return "a threshold" if quantile is None or quantile.ndim else f"the climate's quantile {float(quantile):g}"


def _size(forecast: xr.DataArray) -> str:
    size = forecast.sizes.get("number", forecast.attrs.get("ensemble_size"))
    return "" if size is None else f", {int(size)} members"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _check_members(forecast: xr.DataArray) -> None:
    if forecast.sizes.get("number", 1) < 2:
        raise InputError("ensemble map: one member has no spread; draw it with plot_field")


def _variable(field: xr.DataArray, variable: str | None) -> str:
    if variable or field.name:
        return str(variable or field.name)
    raise InputError("map: the field has no name; give variable=, for example geopotential_500")
