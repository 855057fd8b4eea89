"""`plumecast map`: every figure of `verification.maps` from a forecast or products store, as PNG, SVG or PDF."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import cartopy.crs as ccrs
    import numpy as np
    import xarray as xr
    from matplotlib.figure import Figure

    from data_pipeline.schema import Channel
    from verification.map_sources import Source

FORMATS = (".png", ".svg", ".pdf")
WIDTH = 8.0  # inches: with 160 dots an inch a picture is 1280 wide


@dataclass(frozen=True)
class Asked:
    """The options of the command that kinds share. frame: what every map takes."""

    channels: list[Channel]
    lead: np.timedelta64
    member: int | None
    thresholds: list[str]
    below: bool
    climatology: Path | None
    truth: Path | None
    point: str | None
    frame: dict[str, Any]

    @property
    def channel(self) -> Channel:
        """The one channel of a map."""
        return self.channels[0]


def draw_map(
    store: Annotated[Path, typer.Argument(help="forecast store, or products store (plumecast products)", metavar="F.zarr")],
    variable: Annotated[
        list[str] | None,
        typer.Option("--variable", "--channel", help="as 2m_temperature or geopotential_500; repeat it for a meteogram"),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="of those above; default: ensemble, with --truth stamps, with --point plume")
    ] = None,
    lead: Annotated[str, typer.Option(help="as 5d or 36h")] = "1d",
    init: Annotated[str | None, typer.Option(help="initialisation, as 2007-01-05T00; the first unless given")] = None,
    level: Annotated[int | None, typer.Option(help="hPa, if it is not in the variable's name")] = None,
    member: Annotated[int | None, typer.Option(help="field: this member instead of the ensemble mean")] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(help="303.15 (SI units), '30 degC', q95 (of the climatology); spaghetti: repeat it"),
    ] = None,
    below: Annotated[bool, typer.Option("--below", help="probability of falling below the threshold")] = False,
    climatology: Annotated[Path | None, typer.Option(help="climatology store with quantiles: efi, thresholds like q95")] = None,
    truth: Annotated[Path | None, typer.Option(help="analysis store; its field or values are drawn too")] = None,
    point: Annotated[str | None, typer.Option(help="[NAME,]LATITUDE,LONGITUDE; in a products store the name")] = None,
    projection: Annotated[
        str | None, typer.Option(help="any of cartopy with its centre: Robinson, PlateCarree:180, Orthographic:10,60")
    ] = None,
    region: Annotated[str | None, typer.Option(help="WEST,EAST,SOUTH,NORTH in degrees, or Europe, tropics, Arctic ...")] = None,
    title: Annotated[str | None, typer.Option(help="instead of what is shown; the dates stay below it")] = None,
    dpi: Annotated[int, typer.Option(min=30, max=1200, help="dots an inch of a PNG; the figure is 8 inches wide")] = 160,
    out: Annotated[Path, typer.Option(help="the picture: .png, .svg or .pdf")] = Path("map.png"),
) -> None:
    """Draw a map, plume or meteogram of a forecast; it works offline.

    Example: plumecast map F.zarr --variable 2m_temperature --lead 5d --kind probability --threshold "30 degC" --out map.png

    \b
    field        ensemble mean, or --member 3; any variable of products
    ensemble     mean shaded, spread as lines
    stamps       every member small, with mean, spread and --truth
    spaghetti    the same few contours of every member; --threshold
    probability  of passing --threshold, or --below it
    efi          extreme forecast index; of a forecast: --climatology
    plume        every member at a --point through all leads
    meteogram    box and whiskers at a --point, a panel a variable
    tracks       of lows in all members; of products alone

    plumecast map F.zarr --point Bergen,60.39,5.32 --kind meteogram --out bergen.pdf

    plumecast map F.zarr --variable geopotential_500 --lead 7d --kind spaghetti --projection NorthPolarStereo
    """
    import io

    from data_pipeline.disk import write_bytes
    from data_pipeline.errors import InputError
    from verification.headline import parse_leads
    from verification.map_sources import channel_of, open_source

    chosen = kind or ("plume" if point else "stamps" if truth else "ensemble")
    if chosen not in KINDS:
        raise InputError(f"--kind {kind!r} is not known; one of {', '.join(KINDS)}")
    if out.suffix.lower() not in FORMATS:
        raise InputError(f"--out {out}: expected a name that ends in {', '.join(FORMATS)}")
    frame: dict[str, Any] = {"extent": parse_region(region)} if region else {}
    if projection:
        frame["projection"] = parse_projection(projection, frame.get("extent"))
    if chosen != "stamps":
        frame["width"] = WIDTH
    source = open_source(store, init)
    if not variable and chosen not in ("meteogram", "tracks"):
        raise InputError(f"--variable is needed; {store} has {', '.join(source.labels)}")
    if variable and len(variable) > 1 and chosen != "meteogram":
        raise InputError(f"--kind {chosen} shows one --variable; a meteogram takes several")
    asked = Asked(
        [channel_of(label, level, source) for label in variable or []], parse_leads(lead)[0], member, threshold or [], below,
        climatology, truth, point, frame,
    )  # fmt: skip
    figure = KINDS[chosen](source, asked, title)
    picture = io.BytesIO()
    figure.savefig(picture, format=out.suffix[1:].lower(), dpi=dpi)
    write_bytes(out, picture.getvalue())
    typer.echo(f"map: {out}")


def _field(source: Source, asked: Asked, title: str | None) -> Figure:
    from data_pipeline.errors import InputError
    from verification import maps
    from verification.styles import style_of

    channel, name = asked.channel, asked.channel.label
    if source.products:
        if asked.member is not None:
            raise InputError(f"{source.path} holds products; --member needs the forecast store")
        whole = channel.name in source.data and "latitude" in source.data[channel.name].dims
        array = source.data[channel.name] if whole else source.product(channel, "mean", "ensemble mean")
        if whole and channel.level is not None:
            array = array.sel(level=channel.level)
        field = source.at(array, asked.lead)
        said = str(field.attrs.get("long_name", name))
        base = next((label for label in source.labels if name.startswith(label.rsplit("_", 1)[0])), name)
        return maps.plot_field(field, variable=base if whole else name, title=title or said, **asked.frame)
    members = source.at(source.members(channel), asked.lead)
    if asked.member is None:
        field, said = members.mean("number", keep_attrs=True), f"ensemble mean of {members.sizes['number']}"
    else:
        if asked.member not in members["number"].values:
            numbers = members["number"].values
            raise InputError(f"{source.path} has no member {asked.member}; it has {numbers[0]} to {numbers[-1]}")
        field, said = members.sel(number=asked.member), f"member {asked.member}"
    return maps.plot_field(field, variable=name, title=title or f"{style_of(name).long_name}, {said}", **asked.frame)


def _ensemble(source: Source, asked: Asked, title: str | None) -> Figure:
    from verification import maps

    channel = asked.channel
    if source.products:
        mean, spread = (source.at(source.product(channel, kind, kind), asked.lead) for kind in ("mean", "spread"))
        return maps.plot_ensemble(mean, spread, variable=channel.label, title=title, **asked.frame)
    return maps.plot_ensemble(source.at(source.members(channel), asked.lead), variable=channel.label, title=title, **asked.frame)


def _stamps(source: Source, asked: Asked, title: str | None) -> Figure:
    from verification import maps

    members, truth = _members(source, asked)
    return maps.plot_stamps(members, truth, variable=asked.channel.label, title=title, **asked.frame)


def _spaghetti(source: Source, asked: Asked, title: str | None) -> Figure:
    from data_pipeline.errors import InputError
    from verification import maps
    from verification.map_sources import parse_threshold

    members, truth = _members(source, asked)
    levels = [parse_threshold(text, asked.channel) for text in asked.thresholds]
    if any(is_quantile for _, is_quantile in levels):
        raise InputError("--kind spaghetti: a percentile is no contour; give values, as '5400 gpm'")
    values = [value for value, _ in levels] or None
    return maps.plot_spaghetti(members, values, truth, variable=asked.channel.label, title=title, **asked.frame)


def _probability(source: Source, asked: Asked, title: str | None) -> Figure:
    from data_pipeline.errors import InputError
    from verification import maps
    from verification.map_sources import climate_quantiles, parse_threshold, stored_probability

    channel = asked.channel
    if len(asked.thresholds) > 1:
        raise InputError("--kind probability takes one --threshold")
    if source.products:
        direct = str(channel.name) in source.data
        text = asked.thresholds[0] if asked.thresholds else None
        array = source.data[channel.name] if direct else stored_probability(source, channel, text, asked.below)
        return maps.plot_probability(source.at(array, asked.lead), variable=channel.label, title=title, **asked.frame)
    if not asked.thresholds:
        raise InputError("--kind probability needs --threshold, as 303.15, '30 degC' or q95")
    members, truth = _members(source, asked)
    value, is_quantile = parse_threshold(asked.thresholds[0], channel)
    threshold: float | xr.DataArray = value
    if is_quantile:
        quantiles = climate_quantiles(asked.climatology, channel, members, f"--threshold {asked.thresholds[0]}")
        levels = quantiles["quantile"].values
        if not abs(levels - value).min() < 1e-6:
            raise InputError(f"{asked.climatology} has no quantile {value:g}; it has {', '.join(f'{one:g}' for one in levels)}")
        threshold = quantiles.sel(quantile=value, method="nearest")
    return maps.plot_probability(
        members, threshold=threshold, below=asked.below, truth=truth, variable=channel.label, title=title, **asked.frame
    )


def _efi(source: Source, asked: Asked, title: str | None) -> Figure:
    from verification import maps
    from verification.map_sources import climate_quantiles
    from verification.quantiles import efi, sot

    channel = asked.channel
    if source.products:
        index = source.at(source.product(channel, "efi", "extreme forecast index"), asked.lead)
        tails = source.at(source.product(channel, "sot_90", ""), asked.lead) if f"{channel.name}_sot_90" in source.data else None
    else:
        members = source.at(source.members(channel), asked.lead)
        quantiles = climate_quantiles(asked.climatology, channel, members, "--kind efi")
        index = efi(members, quantiles)
        index = index.assign_attrs(source.named(index))
        has_tail = all(abs(quantiles["quantile"].values - level).min() < 1e-6 for level in (0.9, 0.99))
        tails = sot(members, quantiles) if has_tail else None
    return maps.plot_efi(index, tails, variable=channel.label, title=title, **asked.frame)


def _plume(source: Source, asked: Asked, title: str | None) -> Figure:
    from verification import maps
    from verification.map_sources import at_stored_point

    label = asked.channel.label
    if source.products:
        array = source.product(asked.channel, "plume", "plume")
        members = at_stored_point(source, array.to_dataset(name=label), asked.point)[label].load()
    else:
        members = _at(source.members(asked.channel), label, asked.point)
    return maps.plot_plume(
        members.assign_attrs(source.named(members)), _truth_there(asked, members, [asked.channel]).get(label), variable=label,
        title=title,
    )  # fmt: skip


def _meteogram(source: Source, asked: Asked, title: str | None) -> Figure:
    import xarray as xr

    from data_pipeline.schema import Channel
    from verification import maps
    from verification.map_sources import boxes
    from verification.plumes import default_channels

    channels = asked.channels or [Channel.parse(label) for label in default_channels(source.labels)]
    if source.products:
        data = boxes(source, channels, asked.point).load()
    else:
        data = xr.Dataset({one.label: _at(source.members(one), one.label, asked.point) for one in channels})
    data = data.assign_attrs({**source.named(data), **_size(source)})
    truth = _truth_there(asked, data, channels)
    return maps.plot_meteogram(data, truth if truth.data_vars else None, channels=[one.label for one in channels], title=title)


def _tracks(source: Source, asked: Asked, title: str | None) -> Figure:
    from data_pipeline.errors import InputError
    from data_pipeline.schema import Channel
    from verification import maps
    from verification.map_sources import parse_threshold

    if not source.products or "track_pressure" not in source.data:
        what = "has no tracks" if source.products else "holds members, not tracks"
        raise InputError(f"{source.path} {what}; make them: plumecast products FORECAST.zarr --out products.zarr")
    tracks = source.data[["track_pressure"]].reset_coords() if "track_latitude" in source.data.coords else source.data
    tracks = tracks[["track_latitude", "track_longitude", "track_pressure"]].assign_coords(time=source.data["time"]).load()
    deepest = [parse_threshold(text, Channel("mean_sea_level_pressure"))[0] for text in asked.thresholds]
    strike = source.at(source.data["strike_probability"], asked.lead)
    known = bool(strike.notnull().any())
    return maps.plot_tracks(
        tracks.assign_attrs(source.named(tracks)), strike=strike.assign_attrs(model="") if known else None,
        deeper_than=min(deepest) if deepest else None, title=title, **asked.frame,
    )  # fmt: skip


def _members(source: Source, asked: Asked) -> tuple[xr.DataArray, xr.DataArray | None]:
    from verification.map_sources import truth_at

    members = source.at(source.members(asked.channel), asked.lead)
    return members, truth_at(asked.truth, asked.channel, members)


def _at(members: xr.DataArray, label: str, point: str | None) -> xr.DataArray:
    from data_pipeline.errors import InputError
    from verification.map_sources import parse_point
    from verification.points import at_point

    if point is None:
        raise InputError("--point is needed: [NAME,]LATITUDE,LONGITUDE in degrees, as Bergen,60.39,5.32")
    name, latitude, longitude = parse_point(point)
    return at_point(members.to_dataset(name=members.name), latitude, longitude, name)[members.name].load().rename(label)


def _truth_there(asked: Asked, data: xr.DataArray | xr.Dataset, channels: list[Channel]) -> xr.Dataset:
    """{channel label: truth (time)} at the point of the data; empty without a truth."""
    import numpy as np
    import xarray as xr

    from data_pipeline import open_analysis
    from data_pipeline.schema import select
    from verification.points import at_point

    if asked.truth is None:
        return xr.Dataset()
    analysis = open_analysis(asked.truth)
    prefix = "point_" if "point_latitude" in data.coords else ""
    place = float(data[f"{prefix}latitude"]), float(data[f"{prefix}longitude"])
    valid = data["time"].values + data["prediction_timedelta"].values
    inside = analysis["time"].values[np.isin(analysis["time"].values, valid)]
    fields = {one.label: select(analysis, one).sel(time=inside) for one in channels if one.name in analysis}
    return at_point(xr.Dataset(fields), *place).load()


def _size(source: Source) -> dict[str, int]:
    size = source.data.sizes.get("number", source.data.attrs.get("ensemble_size"))
    return {} if size is None else {"ensemble_size": int(size)}


def parse_region(text: str) -> tuple[float, float, float, float] | None:
    """`-15,45,35,72`, or the name of a region with edges; None for the globe. Raises InputError naming the regions."""
    from data_pipeline.errors import InputError
    from verification.regions import REGIONS

    named = {name.lower(): box for name, box in REGIONS.items() if not box.surface}
    if text.lower() in named:
        box = named[text.lower()]
        return None if text.lower() == "global" else (box.west, box.east, box.south, box.north)
    try:
        west, east, south, north = map(float, text.split(","))
    except ValueError:
        names = ", ".join(name for name in REGIONS if name.lower() in named)
        raise InputError(
            f"--region {text!r}: expected WEST,EAST,SOUTH,NORTH in degrees, as -15,45,35,72, or one of {names}"
        ) from None
    return west, east + (360 if east < west else 0), south, north


def parse_projection(text: str, extent: tuple[float, ...] | None = None) -> ccrs.Projection:
    """`Robinson`, `PlateCarree:180`, `Orthographic:10,60`: a projection of cartopy with its central longitude and latitude.

    Without a centre it is that of the extent. Raises InputError naming the projections.
    """
    import inspect

    import cartopy.crs as ccrs

    from data_pipeline.errors import InputError

    known = {
        name.lower(): cls
        for name, cls in vars(ccrs).items()
        if inspect.isclass(cls) and issubclass(cls, ccrs.Projection) and not name.startswith("_")
        and all(one.default is not one.empty for one in list(inspect.signature(cls).parameters.values()))
    }  # fmt: skip
    name, _, centre = text.partition(":")
    if name.lower() not in known:
        names = ", ".join(sorted(cls.__name__ for cls in known.values()))
        raise InputError(f"--projection {name!r} is not known; one of {names}")
    try:
        given = [float(piece) for piece in centre.split(",")] if centre else []
    except ValueError:
        given = [0.0] * 3
    if not given and extent:
        given = [(extent[0] + extent[1]) / 2, (extent[2] + extent[3]) / 2]
    takes = inspect.signature(known[name.lower()]).parameters
    axes = [axis for axis in ("central_longitude", "central_latitude") if axis in takes]
    if centre and len(given) > len(axes):
        raise InputError(
            f"--projection {text!r}: expected NAME, NAME:LONGITUDE" + (" or NAME:LONGITUDE,LATITUDE" if len(axes) > 1 else "")
        )
    return known[name.lower()](**dict(zip(axes, given, strict=False)))


KINDS: dict[str, Callable[[Source, Asked, str | None], Figure]] = {
    "field": _field,
    "ensemble": _ensemble,
    "stamps": _stamps,
    "spaghetti": _spaghetti,
    "probability": _probability,
    "efi": _efi,
    "plume": _plume,
    "meteogram": _meteogram,
    "tracks": _tracks,
}
