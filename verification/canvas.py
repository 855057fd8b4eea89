"""The drawing surface of maps: panels in a projection with coastlines, a heading above, colour bars below, shades and lines.

No pyplot and no global state. Everything is placed by inches: exact, and ten times faster than a layout engine.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cartopy.crs as ccrs
import contourpy
import numpy as np
from cartopy.mpl.geoaxes import GeoAxes
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from verification import naturalearth
from verification.headings import degrees as in_degrees
from verification.pixels import Pixels
from verification.shadings import Shading

MISSING = "#d4d4d4"
INK, MUTED = "#222222", "#5c5c5c"
WIDE = 0.5  # share of the whole map's width from which the 110m coastline is detailed enough
BORDERS = 0.3  # share below which country borders are drawn: on a map of the world they hide the field
GRATICULE: dict[str, Any] = {"linewidth": 0.4, "alpha": 0.25, "zorder": 2, "color": INK}
LINE = 0.19  # inches of a line of the heading
POLEWARD = 20.0  # degrees: a polar map of the globe ends there
BEYOND = 30.0  # degrees across the equator to which a polar map of a region may reach; farther out it is all distortion
NARROWEST = 1 / 50  # of a map: its shorter by its longer side
SEAM = 1e-6  # degrees: a region that ends at the edge of a projection does not begin on its other side

Extent = tuple[float, float, float, float]


@dataclass(frozen=True)
class Canvas:
    """A figure, its maps in reading order and the empty strips for colour bars below them; all maps have the same pixels."""

    figure: Figure
    maps: list[GeoAxes]
    bars: list[Axes]
    pixels: Pixels


def canvas(
    grid: Grid,
    shape: tuple[int, int] = (1, 1),
    *,
    projection: ccrs.Projection | None = None,
    extent: Sequence[float] | None = None,
    width: float = 7.0,
    bars: int = 1,
    title: str = "",
    note: str = "",
    panels: int | None = None,
    titled: bool = False,
    degrees: bool = True,
    coast: str = INK,
) -> Canvas:
    """Rows x columns of empty maps with coastlines, fitted to the grid, and `bars` strips for colour bars.

    projection: PlateCarree by default, centred on a region. extent: (west, east, south, north) in degrees; a regional grid is
    shown to its outer cell edges, a global one whole (a polar stereographic map from 20 degrees to its pole). width: inches; the
    height follows from the maps. title, note: heading of the figure and what is said below it, wrapped to the width. panels: how
    many of the maps there are, the last row may be shorter. titled: leave room for a title on each map. degrees: draw the
    graticule, and label it where the projection has it on its edges (PlateCarree). coast: colour of the coastlines.

    Raises InputError for an extent that is none, and for one that the projection does not show.
    """
    frame = extent_of(grid, extent)
    whole = extent is None and grid.circles
    chosen = _centred(projection, None if whole else frame)
    ticks = degrees and isinstance(chosen, ccrs.PlateCarree)
    figure = Figure(figsize=(width, width), dpi=110)
    rows, columns = shape
    first = figure.add_subplot(projection=chosen)
    _frame_map(first, None if whole else frame)
    maps = [first]
    for _ in range((panels or rows * columns) - 1):
        ax = figure.add_subplot(projection=chosen)
        _like(ax, first)
        maps.append(ax)
    stretch = first.get_aspect()
    aspect = first.viewLim.height / first.viewLim.width * (1.0 if isinstance(stretch, str) else float(stretch))
    heading = wrapped(title, note, width)
    above = LINE * len(heading) + (0.08 if heading else 0.0)
    strips = _arrange(figure, maps, shape, aspect=aspect, ticks=ticks, bars=bars, title=0.22 if titled else 0.08, above=above)
    write_heading(figure, heading)
    drawn = _outlines(first, colour=coast)
    if degrees and not ticks:
        drawn.append((_within(first, project(chosen, _graticule(30.0))), GRATICULE))
    for index, ax in enumerate(maps):
        for points, style in drawn:
            ax.add_artist(Line2D(points[:, 0], points[:, 1], transform=ax.transData, **style))
        if ticks:
            _degree_ticks(ax, left=index % columns == 0, bottom=index + columns >= len(maps))
    return Canvas(figure, maps, strips, Pixels.of(first))


def write_heading(figure: Figure, heading: list[tuple[str, dict[str, Any]]], left: float = 0.06) -> None:
    """Lines of a heading in the upper left corner of a figure of final size; left: inches."""
    width, height = figure.get_size_inches()
    for row, (text, style) in enumerate(heading):
        figure.text(left / width, 1 - (0.07 + row * LINE) / height, text, ha="left", va="top", **style)


def wrapped(title: str, note: str, width: float) -> list[tuple[str, dict[str, Any]]]:
    """Lines of a heading with their looks: the title, and the note below it, as long as fit the width in inches."""
    strong, quiet = {"fontsize": 10, "color": INK, "weight": "bold"}, {"fontsize": 8, "color": MUTED}
    found = [(line, strong) for line in textwrap.wrap(title, max(int(width / 0.086), 12))]
    return found + [(line, quiet) for line in textwrap.wrap(note, max(int(width / 0.062), 12))]


def _centred(projection: ccrs.Projection | None, extent: Extent | None) -> ccrs.Projection:
    """PlateCarree with a region in its middle, where no seam cuts it: the map is the same from any centre. Others as given."""
    if extent is None:
        return projection or ccrs.PlateCarree()
    given = isinstance(projection, ccrs.PlateCarree)
    if projection is None or (given and extent[1] - extent[0] < 360):
        globe = projection.globe if projection is not None else None
        return ccrs.PlateCarree(central_longitude=(extent[0] + extent[1]) / 2, globe=globe)
    return projection


def _frame_map(ax: GeoAxes, extent: Extent | None) -> None:
    if extent is not None:
        _frame_region(ax, extent)
    elif side := _pole(ax.projection):
        radius = float(np.hypot(*ax.projection.transform_point(0.0, side * POLEWARD, ccrs.PlateCarree())))
        ax.set_xlim(-radius, radius)
        ax.set_ylim(-radius, radius)
        circle = Path.unit_circle()
        ax.set_boundary(Path(np.asarray(circle.vertices) * radius, circle.codes), transform=ax.transData)
    else:
        ax.set_global()
    _dress(ax)


def _pole(projection: ccrs.Projection) -> int:
    """1 for a map around the North Pole, -1 for one around the South Pole, 0 for another."""
    return int(isinstance(projection, ccrs.NorthPolarStereo)) - int(isinstance(projection, ccrs.SouthPolarStereo))


def _frame_region(ax: GeoAxes, extent: Extent) -> None:
    """Limits around all that the projection shows of a region. Raises InputError if that is nothing, or no map."""
    west, east, south, north = extent
    if isinstance(ax.projection, ccrs.PlateCarree):
        ax.set_xlim((west - east) / 2, (east - west) / 2)
        ax.set_ylim(south, north)
        ax.set_aspect(1 / max(float(np.cos(np.deg2rad((south + north) / 2))), 0.2))
        return
    name = type(ax.projection).__name__
    said = f"map of {west:g} to {east:g} degrees east, {south:g} to {north:g} degrees north: {name}"
    side = _pole(ax.projection)
    if side and min(side * south, side * north) < -BEYOND:
        raise InputError(f"{said} shows the other hemisphere; choose another projection for this region")
    # points all over it: a region may reach over the edge of the projection, and hold its farthest places inside
    around = np.meshgrid(np.linspace(west + SEAM, east - SEAM, 181), np.linspace(south, north, 61))
    x, y = np.moveaxis(ax.projection.transform_points(ccrs.PlateCarree(), *around)[..., :2], -1, 0)
    (x0, x1), (y0, y1) = ax.projection.x_limits, ax.projection.y_limits
    outside = ~((x >= x0) & (x <= x1) & (y >= y0) & (y <= y1))
    x[outside] = y[outside] = np.nan
    width, height = (0.0 if outside.all() else np.nanmax(along) - np.nanmin(along) for along in (x, y))
    torn = east - west < 360 and (np.abs(np.diff(x, axis=1)) > 0.5 * (x1 - x0)).any()
    if torn or min(width, height) <= NARROWEST * max(width, height):
        what = "tears it at its edges" if torn else "shows nothing of it" if outside.all() else "shows it as a strip"
        raise InputError(f"{said} {what}; choose a centre inside the region, or another projection")
    ax.set_xlim(np.nanmin(x), np.nanmax(x))
    ax.set_ylim(np.nanmin(y), np.nanmax(y))


def _like(ax: GeoAxes, first: GeoAxes) -> None:
    """The frame of the first map, which need not be computed again."""
    ax.set_xlim(first.get_xlim())
    ax.set_ylim(first.get_ylim())
    ax.set_aspect(first.get_aspect())
    if _pole(ax.projection):
        ax.set_boundary(first.spines["geo"].get_path(), transform=ax.transData)
    _dress(ax)


def _dress(ax: GeoAxes) -> None:
    ax.set_facecolor(MISSING)
    ax.spines["geo"].set(edgecolor=INK, linewidth=0.6)


def _arrange(
    figure: Figure,
    maps: list[GeoAxes],
    shape: tuple[int, int],
    *,
    aspect: float,
    ticks: bool,
    bars: int,
    title: float,
    above: float,
) -> list[Axes]:
    rows, columns = shape
    left, right, gap = (0.42 if ticks else 0.06), (0.18 if ticks else 0.06), 0.08
    below = (0.2 if ticks else 0.05) + (0.55 if bars else 0.0)
    width = figure.get_figwidth()
    wide = (width - left - right - gap * (columns - 1)) / columns
    tall = wide * aspect
    height = above + rows * (tall + title) + below
    figure.set_figheight(height)
    for index, ax in enumerate(maps):
        row, column = divmod(index, columns)
        bottom = height - above - (row + 1) * (tall + title)
        ax.set_position((left / width + column * (wide + gap) / width, bottom / height, wide / width, tall / height))
    span = (width - left - right) / max(bars, 1)
    inset = 0.07 * span
    strips = [
        ((left + index * span + inset) / width, 0.4 / height, (span - 2 * inset) / width, 0.11 / height) for index in range(bars)
    ]
    return [figure.add_axes(strip) for strip in strips]


def extent_of(grid: Grid, extent: Sequence[float] | None = None) -> Extent:
    """An extent that was asked for, checked; else the globe, or a regional grid to its outer cell edges. Raises InputError."""
    if extent is not None:
        sane = len(extent) == 4 and extent[0] < extent[1] <= extent[0] + 360 and -90 <= extent[2] < extent[3] <= 90
        if not sane:
            raise InputError(
                f"map extent {tuple(extent)}: expected (west, east, south, north) in degrees, ascending, at most 360 wide, "
                "latitudes from -90 to 90"
            )
        return extent[0], extent[1], extent[2], extent[3]
    if grid.circles:
        return -180.0, 180.0, -90.0, 90.0
    (west, east), (south, north) = grid.longitude_bounds[[0, -1]], grid.latitude_bounds[[0, -1]]
    return float(west), float(east), float(south), float(north)


def _degree_ticks(ax: GeoAxes, *, left: bool, bottom: bool) -> None:
    offset = ccrs.PlateCarree().transform_point(0.0, 0.0, ax.projection)[0]
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    count = int(np.clip(ax.get_position().width * ax.figure.get_figwidth(), 2, 6))
    locator = MaxNLocator(count, steps=[1, 1.5, 2, 3, 5, 6, 10])
    ax.set_xticks([value - offset for value in locator.tick_values(x0 + offset, x1 + offset) if x0 <= value - offset <= x1])
    ax.set_yticks([value for value in locator.tick_values(y0, y1) if y0 <= value <= y1])
    for draw, places in ((ax.axvline, ax.get_xticks()), (ax.axhline, ax.get_yticks())):
        for value in places:
            draw(value, **GRATICULE)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: in_degrees(x + offset, "E", "W")))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: in_degrees(y, "N", "S")))
    ax.tick_params(labelsize=7, length=2, width=0.5, color=INK, labelcolor=INK, labelleft=left, labelbottom=bottom)


def coastlines(
    ax: GeoAxes, *, resolution: naturalearth.Resolution | None = None, borders: bool | None = None, colour: str = INK
) -> None:
    """Draw packaged coastlines, and thinner country borders, in any projection; 110m on wide maps, 50m on narrow ones.

    borders: by default on narrow maps only; on a map of the world they hide the field. Points are projected together and lines
    broken where the projection tears them: far quicker than cartopy's own features.
    """
    for points, style in _outlines(ax, resolution, borders, colour):
        ax.add_artist(Line2D(points[:, 0], points[:, 1], transform=ax.transData, **style))


def _outlines(
    ax: GeoAxes, resolution: naturalearth.Resolution | None = None, borders: bool | None = None, colour: str = INK
) -> list[tuple[np.ndarray, dict[str, Any]]]:
    """Coasts and borders inside a map, in its coordinates, with their looks."""
    share = ax.viewLim.width / np.ptp(ax.projection.x_limits)
    chosen = resolution or ("110m" if share > WIDE else "50m")
    shown = share <= BORDERS if borders is None else borders
    found: list[tuple[np.ndarray, dict[str, Any]]] = []
    features: list[tuple[naturalearth.Feature, float]] = [("coast", 0.6), ("borders", 0.3)]
    for feature, thickness in features[: 2 if shown else 1]:
        look = {"linewidth": thickness, "alpha": 0.8, "zorder": 3, "color": colour}
        found.append((naturalearth.lines(chosen, feature), look))
    return [(_within(ax, project(ax.projection, points)), look) for points, look in found]


def _graticule(step: float) -> np.ndarray:
    """Meridians and parallels as lines ended by NaN rows, (n, 2) in degrees."""
    along = np.append(np.arange(-180.0, 181.0, 2.0), np.nan)
    up = np.append(np.arange(-90.0, 91.0, 2.0), np.nan)
    parallels = [np.stack([along, np.full_like(along, latitude)], axis=1) for latitude in np.arange(-90 + step, 90, step)]
    meridians = [np.stack([np.full_like(up, longitude), up], axis=1) for longitude in np.arange(-180, 180, step)]
    lines = np.concatenate(parallels + meridians)
    lines[np.isnan(lines).any(axis=1)] = np.nan
    return lines


def project(projection: ccrs.Projection, points: np.ndarray) -> np.ndarray:
    """Longitude and latitude (n, 2), lines ended by NaN rows, to map coordinates; NaN rows also where the map tears a line."""
    longitude, latitude = points.T.copy()  # cartopy's Robinson writes into its arguments
    moved = projection.transform_points(ccrs.PlateCarree(), longitude, latitude)[:, :2]
    moved[np.isnan(points).any(axis=1)] = np.nan
    moved[~np.isfinite(moved).all(axis=1)] = np.nan
    torn = np.abs(np.diff(moved[:, 0])) > 0.5 * np.ptp(projection.x_limits)
    torn |= np.abs(np.diff(moved[:, 1])) > 0.5 * np.ptp(projection.y_limits)
    return np.insert(moved, np.flatnonzero(torn) + 1, np.nan, axis=0)


def _within(ax: GeoAxes, points: np.ndarray) -> np.ndarray:
    """The parts of lines inside a map, each with the points just outside it."""
    view = ax.viewLim
    x, y = points.T
    inside = (x >= view.x0) & (x <= view.x1) & (y >= view.y0) & (y <= view.y1)
    near = inside | np.r_[inside[1:], False] | np.r_[False, inside[:-1]]
    cut = np.where(near[:, None], points, np.nan)
    empty = np.isnan(cut[:, 0])
    return cut[~(empty & np.r_[False, empty[:-1]])]


def shade(ax: GeoAxes, pixels: Pixels, values: np.ndarray, shading: Shading) -> QuadContourSet:
    """Filled contours of values on the pixels, in display units."""
    # matplotlib's own: the pixels are map coordinates already, and cartopy's would project each contour again, in seconds on some
    return Axes.contourf(
        ax, pixels.x, pixels.y, values, levels=list(shading.levels), cmap=shading.colour_map, norm=shading.norm,
        extend=shading.extend, zorder=1,
    )  # fmt: skip


def isolines(
    ax: GeoAxes, pixels: Pixels, values: np.ndarray, levels: Sequence[float], colour: str = INK, width: float = 0.8
) -> None:
    """Labelled contour lines of values on the pixels; no label is cut by the frame."""
    low, high = (np.nanmin(values), np.nanmax(values)) if np.isfinite(values).any() else (0.0, 0.0)
    there = [level for level in levels if low < level < high]
    if not there:
        return
    drawn = Axes.contour(
        ax, pixels.x, pixels.y, values, levels=there, colors=colour, linewidths=width, linestyles="solid", zorder=4,
    )  # fmt: skip
    for text in Axes.clabel(ax, drawn, fontsize=7, fmt="%g", inline=False):
        text.set_path_effects([withStroke(linewidth=2.4, foreground="white")])
        x, y = (text.get_position() - np.array([pixels.x[0], pixels.y[0]])) / (np.ptp(pixels.x), np.ptp(pixels.y))
        text.set_visible(0.02 < x < 0.98 and 0.02 < y < 0.98)


def contours(
    ax: GeoAxes, pixels: Pixels, fields: Sequence[np.ndarray], level: float, colour: str, *, width: float, alpha: float = 1.0
) -> None:
    """One contour line of each of many fields on the pixels, without labels: all as one collection."""
    lines: list[Any] = []
    for values in fields:
        lines += contourpy.contour_generator(pixels.x, pixels.y, np.ma.masked_invalid(values)).lines(level)
    ax.add_collection(LineCollection(lines, colors=colour, linewidths=width, alpha=alpha, zorder=4), autolim=False)


def label(ax: GeoAxes, title: str) -> None:
    """A small title over the left edge of a map."""
    ax.set_title(title, fontsize=8.5, loc="left", color=INK, pad=3)


def colour_bar(strip: Axes, drawn: Any, text: str, *, percent: bool = False) -> None:
    """Fill a strip of the canvas with the colour bar of a shaded map; as many numbers as fit."""
    figure = strip.get_figure(root=True)
    assert figure is not None
    bar = figure.colorbar(drawn, cax=strip, orientation="horizontal")
    levels = list(getattr(drawn, "levels", drawn.norm.boundaries))
    inches = strip.get_position().width * figure.get_figwidth()
    written = [f"{round(100 * level if percent else level, 10):g}".replace("-", "−") for level in levels]
    every = int(np.ceil(len(levels) * (0.09 + 0.062 * max(map(len, written))) / inches))
    zero = levels.index(0.0) % every if 0.0 in levels else 0  # zero is among the numbers
    bar.set_ticks(levels[zero::every], labels=written[zero::every])
    bar.set_label(text, fontsize=8, color=INK, labelpad=2)
    bar.ax.tick_params(labelsize=7, length=2, labelcolor=INK)
    bar.ax.minorticks_off()
    bar.outline.set_linewidth(0.4)
