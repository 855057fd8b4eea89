"""The map of tracked lows: the path of every low in every member, coloured by lead, over the probability that one strikes."""

from __future__ import annotations

from typing import Any

import cartopy.crs as ccrs
import numpy as np
import xarray as xr
from cartopy.mpl.geoaxes import GeoAxes
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from verification.canvas import Canvas, canvas, colour_bar, project, shade
from verification.headings import dated
from verification.plumes import TRUTH
from verification.shadings import PROBABILITY

NEEDED = ("track_latitude", "track_longitude", "track_pressure")
BETWEEN = 6  # pieces of a great circle between two stamps
LEADS = "plasma_r"


def plot_tracks(
    tracks: xr.Dataset,
    *,
    strike: xr.DataArray | None = None,
    truth: xr.Dataset | None = None,
    deeper_than: float | None = None,
    title: str | None = None,
    **frame: Any,
) -> Figure:
    """Tracks of lows in all members, coloured by lead; dots are where they begin, or all that there is of them.

    tracks: `track_latitude`, `track_longitude` (degrees), `track_pressure` (Pa), each (number, track, prediction_timedelta), as
    products hold them, NaN where there is no low. strike: probability (latitude, longitude; 0 to 1) that a low strikes, shaded
    beneath, and its grid frames the map; without it the map is the globe. truth: tracks of the same form that were observed,
    drawn in red on white. deeper_than: only lows that get below it, in Pa. frame: as in `verification.maps`. Raises InputError
    for other variables or dims.
    """
    absent = [name for name in NEEDED if name not in tracks]
    dims = {"number", "track", "prediction_timedelta"}
    if absent or set(tracks["track_latitude"].dims) != dims:
        found = ", ".join(f"{name} {tuple(map(str, array.dims))}" for name, array in tracks.data_vars.items())
        raise InputError(f"map of tracks: expected {', '.join(NEEDED)} by number, track and prediction_timedelta; found {found}")
    paths, hours = _paths(tracks, deeper_than)
    lead_hours = tracks["prediction_timedelta"].values / np.timedelta64(1, "h")
    norm = BoundaryNorm(_day_edges(lead_hours), colormaps[LEADS].N)
    which = f"lows deeper than {deeper_than / 100:g} hPa" if deeper_than is not None else "lows"
    what = f"Tracks of {which}, {tracks.sizes['number']} members"
    grid = Grid.named("64x32") if strike is None else Grid.of(strike)
    notes = [dated(tracks)] + ([] if strike is None else [f"strike probability {dated(strike)}"])
    note = "" if title == "" else "; ".join(filter(None, notes))
    page = canvas(grid, title=what if title is None else title, note=note, **{"bars": 1 if strike is None else 2, **frame})
    page.maps[0].set_facecolor("white")
    if strike is not None:
        drawn = shade(page.maps[0], page.pixels, page.pixels.values(strike), PROBABILITY)
        text = str(strike.attrs.get("long_name", "probability of a strike"))
        colour_bar(page.bars[1], drawn, f"{text} (%)", percent=True)
    _lines(page, paths, hours, norm)
    if truth is not None:
        _observed(page, _paths(truth, deeper_than)[0])
    colour_bar(page.bars[0], ScalarMappable(norm, LEADS), "lead (days)" + ("; red: truth" if truth is not None else ""))
    return page.figure


def _paths(tracks: xr.Dataset, deeper_than: float | None) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Longitude and latitude (n, 2) of each track, and its leads in hours."""
    order = ("number", "track", "prediction_timedelta")
    latitude, longitude, pressure = (tracks[name].transpose(*order).values.astype(np.float64) for name in NEEDED)
    leads = tracks["prediction_timedelta"].values / np.timedelta64(1, "h")
    there = np.isfinite(latitude) & np.isfinite(longitude)
    paths, hours = [], []
    for place in np.argwhere(there.any(axis=2)):
        member, track = place
        own = there[member, track]
        if deeper_than is not None and not np.nanmin(pressure[member, track]) < deeper_than:
            continue
        paths.append(np.stack([longitude[member, track, own], latitude[member, track, own]], axis=1))
        hours.append(leads[own])
    return paths, hours


def _day_edges(hours: np.ndarray) -> np.ndarray:
    """Edges of the colours in days: whole days, at most some twelve of them."""
    days = max(int(np.ceil(hours.max() / 24)), 1)
    step = -(-days // 12)
    return np.arange(0, days + step, step, dtype=np.float64)


def _lines(page: Canvas, paths: list[np.ndarray], hours: list[np.ndarray], norm: BoundaryNorm) -> None:
    ax = page.maps[0]
    long = [(path, own / 24) for path, own in zip(paths, hours, strict=True) if len(path) > 1]
    if long:
        points = np.concatenate([_great_circles(path) for path, _ in long])
        days = np.concatenate([np.repeat((own[:-1] + own[1:]) / 2, BETWEEN) for _, own in long])
        drawn = _on_map(ax, points.reshape(-1, 2)).reshape(points.shape)
        jump = np.abs(drawn[:, 1] - drawn[:, 0])
        limits = 0.5 * np.array([np.ptp(ax.projection.x_limits), np.ptp(ax.projection.y_limits)])
        whole = np.isfinite(drawn).all(axis=(1, 2)) & (jump < limits).all(axis=1)  # not where the map tears a line
        lines = LineCollection(list(drawn[whole]), cmap=LEADS, norm=norm, linewidths=1.1, alpha=0.9, zorder=5, capstyle="round")
        lines.set_array(days[whole])
        ax.add_collection(lines, autolim=False)
    if paths:
        first = _on_map(ax, np.array([path[0] for path in paths]))
        colours = colormaps[LEADS](norm([own[0] / 24 for own in hours]))
        ax.scatter(first[:, 0], first[:, 1], s=7, c=colours, linewidths=0, zorder=6, transform=ax.transData)


def _observed(page: Canvas, paths: list[np.ndarray]) -> None:
    ax = page.maps[0]
    for path in paths:
        drawn = project(ax.projection, path)
        for colour, width, size in (("white", 4.0, 6.0), (TRUTH, 2.0, 4.0)):
            ax.plot(*drawn.T, color=colour, linewidth=width, marker="o", markersize=size, zorder=7, transform=ax.transData)


def _great_circles(path: np.ndarray) -> np.ndarray:
    """The steps of a path (n, 2) cut into pieces of great circles: (steps * BETWEEN, begin and end, 2), in degrees."""
    longitude, latitude = np.deg2rad(path).T
    places = np.stack([np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], axis=1)
    share = np.linspace(0, 1, BETWEEN + 1)[None, :, None]
    way = places[:-1, None] * (1 - share) + places[1:, None] * share
    east = np.rad2deg(np.arctan2(way[..., 1], way[..., 0]))
    north = np.rad2deg(np.arctan2(way[..., 2], np.hypot(way[..., 0], way[..., 1])))
    points = np.stack([east, north], axis=-1)
    return np.stack([points[:, :-1], points[:, 1:]], axis=2).reshape(-1, 2, 2)


def _on_map(ax: GeoAxes, points: np.ndarray) -> np.ndarray:
    """Longitude and latitude (n, 2) in coordinates of the map; NaN where it does not show them."""
    moved = ax.projection.transform_points(ccrs.PlateCarree(), *points.T.copy())[:, :2]
    moved[~np.isfinite(moved).all(axis=1)] = np.nan
    return np.asarray(moved)
