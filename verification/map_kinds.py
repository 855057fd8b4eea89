"""Which figure shows what of a source: one function a kind, for the command `plumecast map` and for notebooks.

What may be asked is `Asked`; its words are those of the command's options, and so are those of the messages.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from data_pipeline import open_analysis
from data_pipeline.errors import InputError
from data_pipeline.schema import Channel, select
from verification import maps
from verification.map_sources import (
    Source,
    at_stored_point,
    boxes,
    climate_quantile,
    climate_quantiles,
    parse_point,
    parse_threshold,
    stored_probability,
    truth_at,
    with_derived,
)
from verification.plumes import default_channels
from verification.points import at_point
from verification.quantiles import coarse, efi, sot
from verification.styles import style_of


@dataclass(frozen=True)
class Asked:
    """The options of the command that kinds share. frame: what every map takes."""

    channels: list[Channel]
    lead: np.timedelta64
    member: int | None
    thresholds: list[str]
    below: bool
    climatology: Path | xr.Dataset | None
    truth: Path | xr.Dataset | None
    point: str | None
    frame: dict[str, Any]

    @property
    def channel(self) -> Channel:
        """The one channel of a map."""
        return self.channels[0]


def _field(source: Source, asked: Asked, title: str | None) -> Figure:
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
    channel = asked.channel
    if source.products:
        mean, spread = (source.at(source.product(channel, kind, kind), asked.lead) for kind in ("mean", "spread"))
        return maps.plot_ensemble(mean, spread, variable=channel.label, title=title, **asked.frame)
    return maps.plot_ensemble(source.at(source.members(channel), asked.lead), variable=channel.label, title=title, **asked.frame)


def _stamps(source: Source, asked: Asked, title: str | None) -> Figure:
    members, truth = _members(source, asked)
    return maps.plot_stamps(members, truth, variable=asked.channel.label, title=title, **asked.frame)


def _spaghetti(source: Source, asked: Asked, title: str | None) -> Figure:
    members, truth = _members(source, asked)
    levels = [parse_threshold(text, asked.channel) for text in asked.thresholds]
    if any(is_quantile for _, is_quantile in levels):
        raise InputError("--kind spaghetti: a percentile is no contour; give values, as '5400 gpm'")
    values = [value for value, _ in levels] or None
    return maps.plot_spaghetti(members, values, truth, variable=asked.channel.label, title=title, **asked.frame)


def _probability(source: Source, asked: Asked, title: str | None) -> Figure:
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
        threshold = climate_quantile(quantiles, value)
    return maps.plot_probability(
        members, threshold=threshold, below=asked.below, truth=truth, variable=channel.label, title=title, **asked.frame
    )


def _efi(source: Source, asked: Asked, title: str | None) -> Figure:
    channel = asked.channel
    if source.products:
        index = source.at(source.product(channel, "efi", "extreme forecast index"), asked.lead)
        tails = source.at(source.product(channel, "sot_90", ""), asked.lead) if f"{channel.name}_sot_90" in source.data else None
    else:
        members = source.at(source.members(channel), asked.lead)
        quantiles = climate_quantiles(asked.climatology, channel, members, "--kind efi")
        if fault := coarse(np.sort(quantiles["quantile"].values)):
            raise InputError(f"--kind efi: {fault}")
        index = efi(members, quantiles)
        index = index.assign_attrs(source.named(index))
        has_tail = all(abs(quantiles["quantile"].values - level).min() < 1e-6 for level in (0.9, 0.99))
        tails = sot(members, quantiles) if has_tail else None
    return maps.plot_efi(index, tails, variable=channel.label, title=title, **asked.frame)


def _plume(source: Source, asked: Asked, title: str | None) -> Figure:
    label = asked.channel.label
    if source.products:
        array = source.product(asked.channel, "plume", "plume")
        members = at_stored_point(source, array.to_dataset(name=label), asked.point)[label].load()
    else:
        members = _at(source.members(asked.channel), label, asked.point)
    return maps.plot_plume(
        members.assign_attrs(source.named(members)), _truth_there(asked, members, [asked.channel]).get(label), variable=label,
        title=title, width=asked.frame.get("width", 8.0),
    )  # fmt: skip


def _meteogram(source: Source, asked: Asked, title: str | None) -> Figure:
    channels = asked.channels or [Channel.parse(label) for label in default_channels(source.labels)]
    if source.products:
        data = boxes(source, channels, asked.point).load()
    else:
        data = xr.Dataset({one.label: _at(source.members(one), one.label, asked.point) for one in channels})
    data = data.assign_attrs({**source.named(data), **_size(source)})
    truth = _truth_there(asked, data, channels)
    return maps.plot_meteogram(
        data, truth if truth.data_vars else None, channels=[one.label for one in channels], title=title,
        width=asked.frame.get("width", 8.0),
    )  # fmt: skip


def _tracks(source: Source, asked: Asked, title: str | None) -> Figure:
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
    members = source.at(source.members(asked.channel), asked.lead)
    return members, truth_at(asked.truth, asked.channel, members)


def _at(members: xr.DataArray, label: str, point: str | None) -> xr.DataArray:
    if point is None:
        raise InputError("--point is needed: [NAME,]LATITUDE,LONGITUDE in degrees, as Bergen,60.39,5.32")
    name, latitude, longitude = parse_point(point)
    return at_point(members.to_dataset(name=members.name), latitude, longitude, name)[members.name].load().rename(label)


def _truth_there(asked: Asked, data: xr.DataArray | xr.Dataset, channels: list[Channel]) -> xr.Dataset:
    """{channel label: truth (time)} at the point of the data; empty without a truth."""
    if asked.truth is None:
        return xr.Dataset()
    analysis = open_analysis(asked.truth) if isinstance(asked.truth, Path) else asked.truth
    prefix = "point_" if "point_latitude" in data.coords else ""
    place = float(data[f"{prefix}latitude"]), float(data[f"{prefix}longitude"])
    valid = data["time"].values + data["prediction_timedelta"].values
    inside = analysis["time"].values[np.isin(analysis["time"].values, valid)]
    fields = {}
    for one in channels:
        with contextlib.suppress(InputError):  # what the analysis lacks is not drawn
            fields[one.label] = select(with_derived(analysis, one), one).sel(time=inside)
    return at_point(xr.Dataset(fields), *place).load() if fields else xr.Dataset()


def _size(source: Source) -> dict[str, int]:
    size = source.data.sizes.get("number", source.data.attrs.get("ensemble_size"))
    return {} if size is None else {"ensemble_size": int(size)}


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
