"""What the panel shows, without its widgets: data, a selection, the picture of a selection and where on Earth its pixels are."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import cartopy.crs as ccrs
import numpy as np
import pandas as pd
import xarray as xr
from cartopy.mpl.geoaxes import GeoAxes
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.transforms import Affine2D, Transform

from data_pipeline import open_analysis
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel, levels_of, select, validate
from data_pipeline.sources.climatologies import open_climatology
from verification import maps
from verification.canvas import extent_of
from verification.derive import WINDS
from verification.headings import utc
from verification.map_kinds import KINDS, Asked
from verification.map_sources import Source, events, open_either, parse_projection, parse_region, truth_at, with_derived
from verification.plumes import default_channels
from verification.quantiles import coarse
from verification.regions import DOMAIN, REGIONS
from verification.shadings import line_levels
from verification.styles import EVENTS, style_of

Data = xr.Dataset | str | FilePath | None

PRODUCTS = {
    "ensemble": "mean and spread",
    "field": "ensemble mean",
    "member": "one member",
    "stamps": "all members, small",
    "spaghetti": "spaghetti",
    "probability": "probability",
    "efi": "extreme forecast index",
    "tracks": "tracks of lows",
    "event": "stored probability",
    "truth": "truth",
}
PROJECTIONS = ("PlateCarree", "PlateCarree:180", "Robinson", "Orthographic:0,50", "NorthPolarStereo", "SouthPolarStereo")
WIDTH, ROUND, SHEET, SERIES = 7.0, 5.0, 8.0, 4.8  # inches: of a map, of a round one, of stamps, of a plume
PANELS = 4  # of a meteogram


@dataclass(frozen=True, eq=False)
class Material:
    """A forecast, and what may lie beside it. Datasets in the schema, lazily."""

    forecast: xr.Dataset
    truth: xr.Dataset | None = None
    climatology: xr.Dataset | None = None
    products: xr.Dataset | None = None

    @classmethod
    def of(cls, forecast: Data, truth: Data = None, climatology: Data = None, products: Data = None) -> Material:
        """From datasets or paths. Raises InputError for what is something else."""
        members = _opened(forecast, _open_forecast)
        assert members is not None
        if "time" in members.coords and members["time"].ndim == 0:
            members = members.expand_dims("time")
        validate(members, "forecast")
        kept = _opened(products, _open_products)
        if kept is not None and "products_recipe" not in kept.attrs:
            raise InputError("explore(products=...): a store of plumecast products is expected; this dataset is none")
        if kept is not None and "time" in kept.coords and kept["time"].ndim == 0:
            kept = kept.expand_dims("time")
        analysis = _opened(truth, open_analysis)
        if analysis is not None:
            validate(analysis, "analysis")
        climate = _opened(climatology, open_climatology)
        if climate is not None and not {"hour", "dayofyear"} <= set(climate.dims):
            raise InputError(f"explore(climatology=...): dims {tuple(map(str, climate.dims))}; expected hour and dayofyear")
        return cls(members, analysis, climate, kept)

    def levels(self) -> dict[str, list[int]]:
        """{variable: its levels in hPa, none at the surface}; wind speeds too where their parts are there."""
        fields = {name: array for name, array in self.forecast.data_vars.items() if "prediction_timedelta" in array.dims}
        found = {str(name): levels_of(array) if "level" in array.dims else [] for name, array in fields.items()}
        speeds = {name: found[east] for name, (east, north) in WINDS.items() if east in found and north in found}
        return found | {name: levels for name, levels in speeds.items() if name not in found}

    def offered(self) -> dict[str, str]:
        """{kind: its name} of the products that can be drawn of these data."""
        climate, kept = self.climatology, self.products
        quantiles = climate is not None and "quantile" in climate.coords and coarse(np.sort(climate["quantile"].values)) is None
        names = [] if kept is None else [str(name) for name in kept.data_vars]
        there = {
            "efi": quantiles or any(name.endswith("_efi") for name in names),
            "tracks": "track_pressure" in names,
            "event": any(name.startswith("probability_") for name in names),
            "truth": self.truth is not None,
        }
        single = self.forecast.sizes["number"] < 2
        needs_more = ("ensemble", "stamps", "spaghetti")
        return {kind: name for kind, name in PRODUCTS.items() if there.get(kind, True) and not (single and kind in needs_more)}

    def regions(self) -> list[str]:
        """The regions that a map can be cut to: of a regional grid itself alone."""
        if not Grid.of(self.forecast).circles:
            return [DOMAIN]
        return [name for name, box in REGIONS.items() if not box.surface]

    def source(self, init: np.datetime64, products: bool = False) -> Source:
        """One initialisation, of members or of products. Raises InputError if products lack it."""
        data = self.products if products else self.forecast
        assert data is not None
        if init not in data["time"].values:
            raise InputError(f"there are no products of the initialisation {str(init)[:13]}; explore() got those of another run")
        return Source(FilePath("the products" if products else "the forecast"), data.sel(time=init), products)

    def events(self, label: str) -> list[str]:
        """The events of a channel whose probabilities the products hold."""
        if self.products is None:
            return []
        return list(events(Source(FilePath("the products"), self.products, True), Channel.parse(label)))


@dataclass(frozen=True)
class View:
    """All that a map depends on; None and "" for what its kind does not ask for, so that equal pictures are equal views."""

    kind: str
    label: str
    init: np.datetime64
    lead: np.timedelta64
    member: int | None = None
    threshold: str = ""
    below: bool = False
    projection: str = "PlateCarree"
    region: str = "global"


@dataclass(frozen=True)
class Series:
    """All that a plume or meteogram depends on. point: as `--point` takes it, `Bergen,60.39,5.32`."""

    kind: str
    label: str
    init: np.datetime64
    point: str


@dataclass(frozen=True, eq=False)
class Frame:
    """One map of a picture. transform: from map coordinates to shares of the picture's width and height from its upper left."""

    projection: ccrs.Projection
    transform: Transform
    outline: Path

    def place(self, across: float, down: float) -> tuple[float, float] | None:
        """Degrees north and east at a share of the picture; None outside the map, or outside the Earth on it."""
        if not self.outline.contains_point((across, down)):
            return None
        x, y = self.transform.inverted().transform((across, down))
        longitude, latitude = ccrs.PlateCarree().transform_point(x, y, self.projection)
        back = self.projection.transform_point(longitude, latitude, ccrs.PlateCarree())
        size = np.ptp(self.projection.x_limits)
        # outside the globe a projection gives nothing, or the place of another pixel
        if not np.isfinite([longitude, latitude, *back]).all() or np.hypot(back[0] - x, back[1] - y) > 1e-3 * size:
            return None
        return float(latitude), float((longitude + 180) % 360 - 180)

    def spot(self, latitude: float, longitude: float) -> tuple[float, float] | None:
        """The share of the picture at which a place lies; None if this map does not show it."""
        x, y = self.projection.transform_point(longitude, latitude, ccrs.PlateCarree())
        if not np.isfinite([x, y]).all():
            return None
        across, down = map(float, self.transform.transform((x, y)))
        return (across, down) if self.outline.contains_point((across, down)) else None


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure as PNG, what its heading says, and its maps."""

    png: bytes
    said: str
    frames: tuple[Frame, ...] = ()

    def place(self, across: float, down: float) -> tuple[float, float] | None:
        """Degrees north and east at a share of the width and height; None where there is no map."""
        found = (frame.place(across, down) for frame in self.frames)
        return next((place for place in found if place is not None), None)

    def spots(self, latitude: float, longitude: float) -> list[tuple[float, float]]:
        """Where a place lies on every map that shows it."""
        found = (frame.spot(latitude, longitude) for frame in self.frames)
        return [spot for spot in found if spot is not None]


def draw_view(material: Material, view: View) -> Picture:
    """The map of a view. Raises InputError saying what is not there."""
    channel = Channel.parse(view.label)
    kept = material.products is not None and view.kind == "efi" and not _has_quantiles(material, channel)
    from_products = kept or view.kind in ("tracks", "event")
    source = material.source(view.init, from_products)
    if view.kind == "event" and not view.threshold:
        raise InputError(f"the products hold no probability of {view.label}; choose one that events were asked of")
    if view.kind == "probability" and view.threshold.strip().startswith("q") and material.climatology is None:
        raise InputError(
            f"threshold {view.threshold}: a percentile of the climate needs a climatology with quantiles "
            "(plumecast data climatology), given as explore(..., climatology=...)"
        )
    frame = _frame(material, view)
    if view.kind == "truth":
        return _rendered(_truth(material, source, channel, view, frame))
    kind = {"member": "field", "event": "probability"}.get(view.kind, view.kind)
    asked = Asked(
        [channel], view.lead, view.member, [view.threshold] if view.threshold else [], view.below, material.climatology,
        _truth_if_there(material, channel, view), None, frame,
    )  # fmt: skip
    return _rendered(KINDS[kind](source, asked, None))


def draw_series(material: Material, series: Series) -> Picture:
    """The plume or meteogram of a point. Raises InputError for a point that is none, or outside the grid."""
    source = material.source(series.init)
    labels = [series.label]
    if series.kind == "meteogram":  # that of the map first, then what a meteogram usually shows
        labels += [label for label in default_channels(source.labels) if label != series.label][: PANELS - 1]
    channels = [Channel.parse(label) for label in labels]
    leads = material.forecast["prediction_timedelta"].values
    asked = Asked(channels, leads[0], None, [], False, None, material.truth, series.point, {"width": SERIES})
    return _rendered(KINDS[series.kind](source, asked, None))


def first_threshold(material: Material, view: View) -> tuple[str, bool]:
    """A threshold worth asking for, in display units, and whether falling below it is the event."""
    style = style_of(view.label)
    if view.label in EVENTS:
        value, side = EVENTS[view.label]
        return f"{float(f'{value * style.factor + style.offset:.6g}'):g} {style.units}", side == "below"
    source = material.source(view.init)
    shown = style.display(source.at(source.members(Channel.parse(view.label)), view.lead))
    return f"{(line_levels(style, [shown], 3) or (float(shown.mean()),))[-1]:g} {style.units}".strip(), False


def lead_of(data: xr.Dataset, index: int) -> np.timedelta64:
    """The lead at a position."""
    lead: np.timedelta64 = data["prediction_timedelta"].values[index]
    return lead


def _frame(material: Material, view: View) -> dict[str, Any]:
    extent = None if view.region == DOMAIN else parse_region(view.region)
    projection = centred(view.projection, extent_of(Grid.of(material.forecast)) if view.region == DOMAIN else extent)
    rounded = isinstance(projection, ccrs.Orthographic | ccrs.NorthPolarStereo | ccrs.SouthPolarStereo | ccrs.Geostationary)
    width = SHEET if view.kind == "stamps" else ROUND if rounded and extent is None else WIDTH
    return {"projection": projection, "width": width} | ({} if extent is None else {"extent": extent})


def centred(text: str, extent: tuple[float, ...] | None) -> ccrs.Projection:
    """A projection of the menu over a region: its own centre is that of the globe, and only its meridian of a whole belt."""
    if extent is None:
        return parse_projection(text)
    name, _, centre = text.partition(":")
    west, east, south, north = extent
    if east - west >= 360:
        west = east = float(centre.split(",")[0] or 0)
    return parse_projection(name, (west, east, south, north))


def _truth_if_there(material: Material, channel: Channel, view: View) -> xr.Dataset | None:
    truth = material.truth
    if truth is None or view.init + view.lead not in truth["time"].values:
        return None
    try:
        select(with_derived(truth, channel), channel)
    except InputError:
        return None
    return truth


def _truth(material: Material, source: Source, channel: Channel, view: View, frame: dict[str, Any]) -> Figure:
    array = source.at(source.members(channel), view.lead)
    field = truth_at(material.truth, channel, array)
    assert field is not None
    said = f"{style_of(channel.label).long_name}, truth"
    dated = field.assign_coords(time=view.init + view.lead).assign_attrs(model="")
    return maps.plot_field(dated, variable=channel.label, title=said, **frame)


def _has_quantiles(material: Material, channel: Channel) -> bool:
    climate = material.climatology
    there = climate is not None and f"{channel.name}_quantile" in climate
    return climate is not None and there and coarse(np.sort(climate["quantile"].values)) is None


def _rendered(figure: Figure) -> Picture:
    stream = io.BytesIO()
    # little compression: the picture goes no further than the browser, and is there sooner
    figure.savefig(stream, format="png", pil_kwargs={"compress_level": 1})
    width, height = figure.bbox.width, figure.bbox.height
    to_shares = Affine2D().scale(1 / width, -1 / height).translate(0, 1)
    frames = tuple(
        Frame(
            ax.projection,
            (ax.transData + to_shares).frozen(),
            to_shares.transform_path(ax.patch.get_transform().transform_path(ax.patch.get_path())),
        )
        for ax in figure.axes
        if isinstance(ax, GeoAxes)
    )
    said = ". ".join(text.get_text() for text in figure.texts)
    return Picture(stream.getvalue(), said, frames)


def _opened(data: Data, reader: Callable[[FilePath], xr.Dataset]) -> xr.Dataset | None:
    return reader(FilePath(data)) if isinstance(data, str | FilePath) else data


def _open_forecast(path: FilePath) -> xr.Dataset:
    data, products = open_either(path)
    if products:
        raise InputError(f"{path} holds products; give the forecast first, explore(FORECAST, products={str(path)!r})")
    return data


def _open_products(path: FilePath) -> xr.Dataset:
    return open_either(path)[0]


def init_text(init: np.datetime64) -> str:
    """`Tue 2007-01-16 00 UTC`."""
    return f"{pd.Timestamp(init):%a} {utc(init)}"
