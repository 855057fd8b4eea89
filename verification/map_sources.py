"""What maps of the command line and of notebooks are drawn from: a forecast store or a products store.

One initialisation of it, in the form that figures take.
A store tells by its content which it is. Every fault says what is there instead.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cartopy.crs as ccrs
import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline import open_analysis, open_forecast
from data_pipeline.errors import InputError
from data_pipeline.schema import Channel, channels_of, levels_of, select
from data_pipeline.sources.climatologies import open_climatology
from data_pipeline.store import is_store, open_store
from data_pipeline.units import conversion
from data_pipeline.variables import lookup
from verification.derive import WINDS, derive
from verification.headings import lead_text
from verification.plumes import BOX
from verification.regions import REGIONS

KINDS = ("_mean", "_spread", "_quantile", "_plume", "_stamp", "_efi")  # of products, by the end of their names
STAMP = {"stamp_latitude": "latitude", "stamp_longitude": "longitude", "stamp_lead": "prediction_timedelta"}


@dataclass(frozen=True)
class Source:
    """One initialisation: `data` with a scalar `time`. products: a store of `plumecast products`, not of members."""

    path: Path
    data: xr.Dataset
    products: bool

    @property
    def labels(self) -> list[str]:
        """The channels that it holds: of fields, or of quantities that products were made of."""
        if not self.products:
            return [channel.label for channel in channels_of(self.data.expand_dims("time"))]
        found = set()
        for name, array in self.data.data_vars.items():
            base = next((str(name).removesuffix(kind) for kind in KINDS if str(name).endswith(kind)), None)
            levels = levels_of(array) if "level" in array.dims else [None]
            found |= {Channel(base, level).label for level in levels} if base else set()
        return sorted(found)

    def at(self, array: xr.DataArray, lead: np.timedelta64) -> xr.DataArray:
        """The array at a lead. Raises InputError naming the leads that are there."""
        if lead not in array["prediction_timedelta"].values:
            there = [lead_text(one) for one in array["prediction_timedelta"].values]
            listed = ", ".join(there) if len(there) <= 24 else f"{', '.join(there[:3])} ... {there[-1]} ({len(there)} leads)"
            raise InputError(f"{self.path} has no lead {lead_text(lead)}; it has {listed}")
        found = array.sel(prediction_timedelta=lead).load()
        return found.assign_attrs(self.named(found))

    def named(self, array: xr.DataArray | xr.Dataset) -> dict[str, Any]:
        """The attributes of an array with the model's name, for the heading."""
        return {**array.attrs, "model": str(self.data.attrs.get("model", self.path.stem))}

    def members(self, channel: Channel) -> xr.DataArray:
        """(lead, number, latitude, longitude); of products, the fields of members that they keep (stamps)."""
        if not self.products:
            return self._channel(channel)
        return self.product(channel, "stamp", "fields of members ([products.stamps] of the recipe)").rename(STAMP)

    def product(self, channel: Channel, kind: str, what: str) -> xr.DataArray:
        """A product of a channel, `<name>_<kind>`. Raises InputError naming the channels that have one."""
        name = f"{channel.name}_{kind}"
        if name not in self.data:
            have = [str(other).removesuffix(f"_{kind}") for other in self.data.data_vars if str(other).endswith(f"_{kind}")]
            raise InputError(
                f"{self.path} has no {what} of {channel.name}; "
                f"{'it has them of ' + ', '.join(have) if have else 'nor of anything else'}"
            )
        array = self.data[name]
        if "level" in array.dims and channel.level is None:
            levels = array["level"].values.tolist()
            raise InputError(f"{name} has levels {levels} hPa; name one by --level, or as {channel.name}_{levels[0]}")
        return select(self.data, Channel(name, channel.level))

    def _channel(self, channel: Channel) -> xr.DataArray:
        data = with_derived(self.data, channel)
        if channel.name not in data:
            raise InputError(f"{self.path} has no {channel.label}; it has {', '.join(self.labels)}")
        return select(data, channel)


def open_source(path: Path, init: str | None) -> Source:
    """One initialisation of a forecast or products store; the first unless `init` (a stamp) names one.

    Raises InputError for another store, and for an initialisation that is not there.
    """
    data, products = open_either(path)
    if init is None:
        return Source(path, data.isel(time=0), products)
    try:
        stamp = np.datetime64(init, "ns")
    except ValueError:
        raise InputError(f"--init {init!r} is no stamp; expected for example 2007-01-05T00") from None
    if stamp not in data["time"].values:
        there = [str(time)[:13] for time in data["time"].values]
        listed = ", ".join(there) if len(there) <= 12 else f"{there[0]} to {there[-1]} ({len(there)} of them)"
        raise InputError(f"{path} has no initialisation {init}; it has {listed}")
    return Source(path, data.sel(time=stamp), products)


def open_either(path: Path) -> tuple[xr.Dataset, bool]:
    """A forecast store, or products and True. Raises InputError for another store."""
    if is_store(path):
        data = open_store(path)
        if "products_recipe" in data.attrs:
            return data, True
        if "prediction_timedelta" not in data.dims:
            raise InputError(
                f"{path} is neither a forecast nor a products store: dims {', '.join(map(str, data.dims))}; make one by "
                "plumecast forecast, then plumecast products"
            )
    elif path.suffix == ".nc" and path.is_file():
        with xr.open_dataset(path) as data:
            if "products_recipe" in data.attrs:
                return data.load(), True
    return open_forecast(path), False


def channel_of(label: str, level: int | None, source: Source) -> Channel:
    """The channel of `geopotential_500`, or of `geopotential` and a level. Raises InputError if the two disagree."""
    exact = Channel(label) if lookup(label) is not None or label in source.data else Channel.parse(label)
    if level is None:
        return exact
    if exact.level not in (None, level):
        raise InputError(f"--variable {label} and --level {level} name two levels")
    return Channel(exact.name, level)


def parse_threshold(text: str, channel: Channel) -> tuple[float, bool]:
    """`303`, `30 degC`, `q95`: the value in SI units and False, or the level of a quantile and True.

    Raises InputError for another text, or a unit that does not fit the variable.
    """
    match = re.fullmatch(r"\s*(q?)([-+]?\d*\.?\d+(?:[eE][-+]?\d+)?)\s*(.*?)\s*", text)
    if match is None or (match[1] and match[3]):
        raise InputError(
            f"--threshold {text!r}: expected a number in SI units (303.15), with a unit (30 degC), or a percentile (q95)"
        )
    value = float(match[2])
    if match[1]:
        level = value / 100 if value >= 1 else value
        if not 0 < level < 1:
            raise InputError(f"--threshold {text!r}: a percentile lies between 0 and 100")
        return round(level, 12), True
    known = lookup(channel.name)
    if match[3]:
        if known is None:
            raise InputError(
                f"--threshold {text!r}: {channel.name} is not in the table of variables; give its own units, no name"
            )
        factor, offset = conversion(match[3], known)
        value = value * factor + offset
    if known is not None and not known.valid_range[0] <= value <= known.valid_range[1]:
        low, high = known.valid_range
        raise InputError(
            f"--threshold {text!r}: {value:g} {known.units} is outside what {channel.name} can be ({low:g} to {high:g}); give "
            "the unit that you mean, as '30 degC' or '10 mm'"
        )
    return value, False


def events(source: Source, channel: Channel) -> dict[str, str]:
    """{event: variable} of the probabilities of a channel that a products store holds."""
    start = f"{channel.label} "
    found = {}
    for name, array in source.data.data_vars.items():
        event = str(array.attrs.get("event", ""))
        about = event.replace("(", " ").replace(",", " ").split()
        if str(name).startswith("probability_") and (event.startswith(start) or channel.label in about):
            suffix = " (neighbourhood)" if str(name).endswith("_neighbourhood") else ""
            found[event + suffix] = str(name)
    return found


def stored_probability(source: Source, channel: Channel, threshold: str | None, below: bool) -> xr.DataArray:
    """The probability of an event that a products store holds: the one with this threshold, or the only one.

    Raises InputError naming the events that are there.
    """
    there = events(source, channel)
    listed = "; ".join(there) or "none of it"
    if threshold is None:
        if len(there) == 1:
            return source.data[next(iter(there.values()))]
        raise InputError(f"{source.path} has the probabilities: {listed}; name one by --threshold (and --below)")
    if threshold in there:
        return source.data[there[threshold]]
    value, is_quantile = parse_threshold(threshold, channel)
    for event, name in there.items():
        attrs = source.data[name].attrs
        stored = np.atleast_1d(attrs.get("threshold_quantile" if is_quantile else "threshold", [])).astype(np.float64)
        simple = stored.size == 1 and event.startswith(f"{channel.label} ") and len(np.atleast_1d(attrs["comparison"])) == 1
        if simple and np.isclose(stored[0], value, rtol=1e-6) and ("<" in str(attrs["comparison"])) == below:
            return source.data[name]
    side = "<" if below else ">"
    raise InputError(f"{source.path} has no probability of {channel.label} {side} {threshold}; it has: {listed}")


def boxes(source: Source, channels: Sequence[Channel], point: str | None) -> xr.Dataset:
    """{channel label: (lead, box)} at a point of a products store. Raises InputError naming its points."""
    arrays = {channel.label: source.product(channel, "plume_box", "plume") for channel in channels}
    data = at_stored_point(source, xr.Dataset(arrays), point)
    levels = tuple(np.round(data["box"].values.astype(np.float64), 6).tolist())
    assert levels == BOX
    return data


def at_stored_point(source: Source, data: xr.Dataset, point: str | None) -> xr.Dataset:
    """The data at one of the points of a products store; it may be left out if there is one only."""
    names = [str(name) for name in source.data["point"].values]
    name = (point or "").split(",")[0].split("=")[0].strip()
    if not name and len(names) == 1:
        name = names[0]
    if name not in names:
        raise InputError(
            f"{source.path} has plumes at {', '.join(names)}; name one by --point (a forecast store has them anywhere)"
        )
    return data.isel(point=names.index(name))


def parse_point(text: str) -> tuple[str, float, float]:
    """`60.39,5.32`, `Bergen,60.39,5.32` or `Bergen=60.39,5.32`: name, degrees north, degrees east. Raises InputError."""
    pieces = [piece.strip() for piece in re.split(r"[,=]", text)]
    name = ",".join(pieces[:-2])
    try:
        latitude, longitude = map(float, pieces[-2:])
        if not (-90 <= latitude <= 90 and -360 <= longitude <= 360):
            raise ValueError
    except ValueError:
        raise InputError(
            f"--point {text!r}: expected LATITUDE,LONGITUDE in degrees, with a name if you like: Bergen,60.39,5.32"
        ) from None
    return name, latitude, longitude


def parse_region(text: str) -> tuple[float, float, float, float] | None:
    """`-15,45,35,72`, or the name of a region with edges; None for the globe. Raises InputError naming the regions."""
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


def with_derived(data: xr.Dataset, channel: Channel) -> xr.Dataset:
    """The data with a wind speed or longer accumulation that they only hold the parts of. Raises InputError without the parts."""
    if channel.name not in data and (channel.name in WINDS or re.fullmatch(r".+_\d+hr", channel.name)):
        return derive(data, [channel.name])
    return data


def truth_at(truth: Path | xr.Dataset | None, channel: Channel, array: xr.DataArray) -> xr.DataArray | None:
    """The analysis (latitude, longitude) at the valid time of an array; None without one. Raises InputError if absent."""
    if truth is None:
        return None
    analysis = with_derived(open_analysis(truth) if isinstance(truth, Path) else truth, channel)
    valid = array["time"].values + array["prediction_timedelta"].values
    if valid not in analysis["time"].values:
        raise InputError(f"{_said(truth, 'the analysis')} has no {str(valid)[:13]}, the valid time of {channel.label}")
    return select(analysis, channel).sel(time=valid).load()


def climate_quantiles(climatology: Path | xr.Dataset | None, channel: Channel, array: xr.DataArray, need: str) -> xr.DataArray:
    """Quantiles of a climatology at the valid time of an array: (quantile, latitude, longitude). Raises InputError."""
    if climatology is None:
        raise InputError(
            f"{need} needs --climatology: a store with quantiles (plumecast data climatology RECIPE --quantile 0.01 ...)"
        )
    climate = open_climatology(climatology) if isinstance(climatology, Path) else climatology
    where = _said(climatology, "the climatology")
    name = f"{channel.name}_quantile"
    if name not in climate:
        have = [str(one).removesuffix("_quantile") for one in climate.data_vars if str(one).endswith("_quantile")]
        raise InputError(
            f"{where} has no quantiles of {channel.name}; {'it has them of ' + ', '.join(have) if have else 'nor any'}"
        )
    valid = pd.Timestamp(array["time"].values + array["prediction_timedelta"].values)
    if valid.hour not in climate["hour"].values:
        raise InputError(f"{where} has the hours {climate['hour'].values.tolist()} UTC; the forecast is valid at {valid.hour}")
    chosen = select(climate, Channel(name, channel.level)).sel(hour=valid.hour, dayofyear=valid.day_of_year, drop=True)
    return chosen.load()


def climate_quantile(quantiles: xr.DataArray, level: float) -> xr.DataArray:
    """One quantile (latitude, longitude) of `climate_quantiles`. Raises InputError, naming those that are there."""
    levels = quantiles["quantile"].values
    if not abs(levels - level).min() < 1e-6:
        raise InputError(f"the climatology has no quantile {level:g}; it has {', '.join(f'{one:g}' for one in levels)}")
    return quantiles.sel(quantile=level, method="nearest")


def _said(data: Path | xr.Dataset, what: str) -> str:
    return str(data) if isinstance(data, Path) else what
