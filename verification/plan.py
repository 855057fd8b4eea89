"""What will be scored: channels, initialisations, leads, events; checked against forecast and truth before they are scored."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel, channels_of, select
from verification import headings
from verification.regions import Cells, cells_of

MissingTruth = Literal["error", "skip"]

DRAWN_DAYS = (1, 3, 5, 7, 10)  # maps and spectra are kept for the leads nearest to these
LEVELS = (0.1, 0.5, 0.9)  # of the quantile scores
BINS = 64  # of the histogram of the truth
MOST_EVENTS = 4  # taken from a climatology unasked
EDGE_STAMPS, EDGE_STEP = 12, np.timedelta64(30, "D")  # analyses that place the bins
STAMP = re.compile(r"\d{4}-\d{2}-\d{2}(?:[T ]\d{2}(?::\d{2}(?::\d{2})?)?)?")
PLACES = {"London": (51.5, -0.1), "Singapore": (1.3, 103.8), "Buenos Aires": (-34.6, -58.4)}  # of plumes, unless others are given
EVENT = re.compile(r"\s*(\w*)\s*(>=|<=|>|<)\s*(q?)([-+0-9.eE]+)\s*")


@dataclass(frozen=True)
class Event:
    """A value beyond a threshold: fixed, in canonical units and for one channel, or a quantile of the climatology for any."""

    op: str
    value: float
    is_quantile: bool = False
    channel: str = ""

    @property
    def label(self) -> str:
        """`> q0.95` or `2m_temperature > 303.15`."""
        value = np.format_float_positional(self.value, trim="-")  # the shortest that reads back as the same number
        return f"{self.channel} {self.op} {'q' if self.is_quantile else ''}{value}".strip()

    @classmethod
    def parse(cls, text: str) -> Event:
        """The inverse of `label`. Raises InputError for anything else."""
        match = EVENT.fullmatch(text)
        try:
            event = cls(match[2], float(match[4]), bool(match[3]), match[1]) if match else None
        except ValueError:
            event = None
        if event is None or (event.is_quantile and not 0 < event.value < 1) or (not event.is_quantile and not event.channel):
            raise InputError(
                f"event {text!r}: expected a channel with a threshold in its SI units, as '2m_temperature > 303.15', or a "
                "quantile of the climatology, as '> q0.95'"
            )
        return event

    def applies_to(self, channel: str) -> bool:
        return self.channel in ("", channel)


@dataclass(frozen=True, eq=False)
class Plan:
    """What will be scored. channels: labels; times, leads: datetime64 and timedelta64; attrs: those of the forecast store.

    land: share of land (latitude, longitude), if known. edges: {channel: ascending edges between the bins of the truth's
    histogram}. radii: of the fractions skill score, km. cases: initialisations of which fields are kept, and points: {name:
    (latitude, longitude)} of which members are kept there. anomalies: a climatology will be given.
    """

    channels: tuple[str, ...]
    units: Mapping[str, str]
    times: np.ndarray
    leads: np.ndarray
    members: int
    grid: Grid
    attrs: Mapping[str, Any] = field(default_factory=dict)
    land: np.ndarray | None = None
    edges: Mapping[str, np.ndarray] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    radii: tuple[float, ...] = ()
    cases: tuple[np.datetime64, ...] = ()
    points: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    anomalies: bool = False

    @cached_property
    def cells(self) -> Cells:
        return cells_of(self.grid, self.land)

    @cached_property
    def drawn(self) -> np.ndarray:
        """Positions of the leads whose maps and spectra are kept."""
        days = self.leads / np.timedelta64(1, "D")
        near = {int(np.argmin(np.abs(days - day))) for day in DRAWN_DAYS}
        return np.array(sorted(near) if days.size > len(DRAWN_DAYS) else range(days.size), dtype=np.int64)

    @cached_property
    def bin_edges(self) -> dict[str, np.ndarray]:
        """The edges of every channel, all of one length: none given is one bin edge at 0, short ones end in infinity."""
        given = {channel: np.unique(self.edges.get(channel, np.zeros(1))) for channel in self.channels}
        longest = max(edges.size for edges in given.values())
        return {name: np.pad(edges, (0, longest - edges.size), constant_values=np.inf) for name, edges in given.items()}


def plan_for(
    forecast: xr.Dataset,
    truth: xr.Dataset,
    *,
    climatology: xr.Dataset | None = None,
    channels: Sequence[str] | None = None,
    leads: Sequence[np.timedelta64] | None = None,
    events: Sequence[str] | None = None,
    radii: Sequence[float] = (),
    cases: Sequence[np.datetime64] = (),
    points: Mapping[str, tuple[float, float]] | None = None,
) -> Plan:
    """What `evaluate` will score. Raises InputError, naming both sides, if grids, units, channels, leads or events do not fit.

    points: default, with cases, `default_points`. events: as `Event.parse` reads them; default: the outermost quantiles of the
    climatology, at most four, "<" below the median and ">" above it.
    """
    grid = Grid.of(forecast)
    for name, other in (("truth", truth), ("the climatology", climatology)):
        if other is not None and not grid.matches(Grid.of(other)):
            raise InputError(f"forecast is on {grid}, {name} on {Grid.of(other)}; regrid one of them, or ask for it (--regrid)")
    available = {channel.label: str(select(truth, channel).attrs["units"]) for channel in channels_of(truth)}
    offered = {channel.label: str(select(forecast, channel).attrs["units"]) for channel in channels_of(forecast)}
    wanted = _channels(offered, available, channels)
    chosen_events = _events(events, climatology, wanted)
    if climatology is not None:
        _check_climatology(climatology, {label: offered[label] for label in wanted}, chosen_events)
    if radii and not chosen_events:
        raise InputError("a radius of the fractions skill score, but no event to look for: give one (--event), or a climatology")
    check_points(grid, points or {})
    if points and not cases:
        raise InputError("points of plumes, but no case to keep them for: give an initialisation (--case)")
    places = points or (default_points(grid) if cases else {})
    chosen = _leads(forecast["prediction_timedelta"].values, leads)
    times = forecast["time"].values
    unknown = [case for case in cases if case not in times]
    if unknown:
        raise InputError(f"cases {[str(case)[:13] for case in unknown]} are not initialisations of the forecast")
    attrs = {
        **forecast.attrs,
        "model": forecast.attrs.get("model", "forecast"),
        "truth": truth.attrs.get("source", "analysis"),
        "truth_period": _period(times[:, None] + chosen[None]),
        "not_scored": ", ".join(label for label in offered if label not in wanted),
        "climatology": "none" if climatology is None else f"{climatology.attrs.get('period', 'period unknown')}",
    }
    mask = truth["land_sea_mask"].values if "land_sea_mask" in truth else None
    return Plan(
        tuple(wanted), {label: offered[label] for label in wanted}, times, chosen, forecast.sizes["number"], grid, attrs,
        land=mask, edges={label: truth_edges(truth, Channel.parse(label)) for label in wanted},
        events=chosen_events, radii=tuple(map(float, radii)), cases=tuple(np.unique(np.array(cases, "datetime64[ns]"))),
        points=dict(places), anomalies=climatology is not None,
    )  # fmt: skip


def truth_edges(truth: xr.Dataset, channel: Channel) -> np.ndarray:
    """Quantiles of twelve analyses, a month apart from the first of the truth store on, or spread over a store of less than that.

    They depend on the store's first year alone: states made before and after it grew still add.
    """
    times = truth["time"].values
    positions = np.searchsorted(times, times[0] + EDGE_STEP * np.arange(EDGE_STAMPS))
    if positions[-1] >= times.size:
        positions = np.linspace(0, times.size - 1, EDGE_STAMPS).astype(int)
    values = select(truth, channel).isel(time=np.unique(positions)).values.astype(np.float64)
    known = values[np.isfinite(values)]
    return np.unique(np.quantile(known, np.arange(1, BINS) / BINS)) if known.size else np.zeros(1)


def truth_rows(truth: xr.Dataset, times: np.ndarray, leads: np.ndarray, missing: MissingTruth = "error") -> np.ndarray:
    """Positions in the truth of every valid time, shape (time, lead); -1 where the truth lacks it and missing="skip".

    Raises InputError, with their number and the first, if valid times are missing.
    """
    valid = (times[:, None] + leads[None]).ravel()
    rows = pd.Index(truth["time"].values).get_indexer(pd.Index(valid))
    lacking = pd.DatetimeIndex(np.unique(valid[rows < 0]))
    if lacking.size and (missing == "error" or (rows < 0).all()):
        covered = pd.DatetimeIndex(truth["time"].values)
        raise InputError(
            f"truth lacks {lacking.size} of {np.unique(valid).size} valid times, first {lacking[0]:%Y-%m-%dT%H}; it covers "
            f"{covered[0]:%Y-%m-%dT%H} to {covered[-1]:%Y-%m-%dT%H}. Verify fewer leads or initialisations, or skip missing truth"
        )
    return rows.reshape(len(times), len(leads))


def training_flags(times: np.ndarray, leads: np.ndarray, attrs: Mapping[str, Any]) -> np.ndarray:
    """int8 (time, lead): 2 if initialisation or valid time lies in the training period of attrs, 1 in the validation period."""
    times = np.asarray(times, dtype="datetime64[ns]")
    valid = times[:, None] + np.asarray(leads, dtype="timedelta64[ns]")[None]
    flags = np.zeros(valid.shape, dtype=np.int8)
    for level, name in ((1, "validation_period"), (2, "training_period")):
        for start, stop in parse_periods(attrs.get(name), name):
            inside = [(stamps >= start) & (stamps <= stop) for stamps in (times[:, None], valid)]
            flags[inside[0] | inside[1]] = level
    return flags


def parse_periods(value: Any, name: str = "period") -> list[tuple[np.datetime64, np.datetime64]]:
    """Inclusive periods from "2001-01-01T00/2005-12-31T12", pairs of stamps in any notation, or several of them; [] if empty.

    An end without an hour includes its whole day. Raises InputError for anything else: an unread training period would pass
    contaminated scores as clean.
    """
    if value is None or not str(value).strip() or str(value).strip().lower() in ("none", "[]", "()"):
        return []
    stamps = STAMP.findall(str(value))
    if len(stamps) % 2 or not stamps:
        raise InputError(f"{name} is {value!r}; expected start/end, for example 2001-01-01T00/2005-12-31T12")
    periods = []
    for start, stop in zip(stamps[::2], stamps[1::2], strict=True):
        last = pd.Timestamp(stop) + (pd.Timedelta("1D") - pd.Timedelta("1ns") if len(stop) == 10 else pd.Timedelta(0))
        periods.append((pd.Timestamp(start).to_datetime64(), last.to_datetime64()))
    return periods


def _channels(offered: Mapping[str, str], available: Mapping[str, str], asked: Sequence[str] | None) -> list[str]:
    wanted = list(asked) if asked is not None else [label for label in offered if label in available]
    _refuse_repeated("channels", wanted)
    absent = [f"{label} not in the forecast" for label in wanted if label not in offered]
    absent += [f"{label} not in the truth" for label in wanted if label not in available]
    if absent or not wanted:
        have = f"the forecast has {', '.join(offered)}; the truth has {', '.join(available)}"
        raise InputError(f"channels to verify: {'; '.join(absent) or 'none in common'}; {have}")
    unlike = [
        f"{label}: forecast {offered[label]}, truth {available[label]}" for label in wanted if offered[label] != available[label]
    ]
    if unlike:
        raise InputError(f"forecast and truth have different units ({'; '.join(unlike)}); convert them at the source")
    return wanted


def _leads(available: np.ndarray, asked: Sequence[np.timedelta64] | None) -> np.ndarray:
    chosen = available if asked is None else np.array(asked, dtype="timedelta64[ns]")
    _refuse_repeated("leads", chosen.tolist())
    if not np.isin(chosen, available).all():
        raise InputError(
            f"leads {_hours(chosen[~np.isin(chosen, available)])} are not in the forecast, which has {_hours(available)}"
        )
    return chosen


def _check_climatology(climatology: xr.Dataset, units: Mapping[str, str], events: Sequence[Event]) -> None:
    def fault(label: str) -> str:
        channel = Channel.parse(label)
        needed = [channel.name]
        if any(event.is_quantile and event.applies_to(label) for event in events):
            needed.append(f"{channel.name}_quantile")
        for name in needed:
            array = climatology.get(name)
            if array is None or (channel.level is not None and channel.level not in np.atleast_1d(array["level"].values)):
                return f"{label}: no {name}" + ("" if channel.level is None else f" at {channel.level} hPa")
        given = climatology[channel.name].attrs.get("units", units[label])
        return "" if given == units[label] else f"{label}: in {given}, the forecast in {units[label]}"

    faults = [text for label in units if (text := fault(label))]
    if faults:
        raise InputError(
            f"the climatology does not fit ({'; '.join(faults)}); make one of all channels (plumecast data climatology), or "
            "choose those that it has (--channel)"
        )


def check_points(grid: Grid, points: Mapping[str, tuple[float, float]]) -> None:
    """Raise InputError for a point without a name, off the Earth, or outside a regional grid."""
    for name, (latitude, longitude) in points.items():
        row, column = nearest_point(grid, latitude, longitude) if np.isfinite([latitude, longitude]).all() else (0, 0)
        near = abs(grid.latitude[row] - latitude) <= grid.latitude[1] - grid.latitude[0]
        apart = abs((grid.longitude[column] - longitude + 180) % 360 - 180)
        if not name or not abs(latitude) <= 90 or not near or not apart <= grid.longitude[1] - grid.longitude[0]:
            raise InputError(f"point {name!r} at latitude {latitude:g}, longitude {longitude:g}: not on the grid {grid}")


def default_points(grid: Grid) -> dict[str, tuple[float, float]]:
    """{name: (latitude, longitude)} of three cities, one a belt; of those that a regional grid holds, or else of its middle."""
    held = {}
    for name, place in PLACES.items():
        with contextlib.suppress(InputError):
            check_points(grid, {name: place})
            held[name] = place
    row, column = (size // 2 for size in grid.shape)
    middle = (float(grid.latitude[row]), float(grid.longitude[column]))
    return held or {headings.place(*middle): middle}


def nearest_point(grid: Grid, latitude: float, longitude: float) -> tuple[int, int]:
    """Row and column of the grid point nearest in latitude and in longitude."""
    apart = np.abs((grid.longitude - longitude + 180) % 360 - 180)
    return int(np.argmin(np.abs(grid.latitude - latitude))), int(np.argmin(apart))


def _events(asked: Sequence[str] | None, climatology: xr.Dataset | None, channels: Sequence[str]) -> tuple[Event, ...]:
    levels = climatology["quantile"].values.tolist() if climatology is not None and "quantile" in climatology.dims else []
    if asked is None:
        outermost = sorted((level for level in levels if 0 < level < 1 and level != 0.5), key=lambda level: -abs(level - 0.5))
        return tuple(Event("<" if level < 0.5 else ">", level, True) for level in sorted(outermost[:MOST_EVENTS]))
    events = tuple(map(Event.parse, asked))
    _refuse_repeated("events", [event.label for event in events])
    for event in events:
        if event.is_quantile and not np.isclose(levels, event.value).any():
            raise InputError(
                f"event {event.label!r} needs that quantile of a climatology; it has {levels or 'no quantiles'}. Make one with "
                f"plumecast data climatology RECIPE --quantile {event.value:g}, and give it with --climatology"
            )
        if event.channel and event.channel not in channels:
            raise InputError(f"event {event.label!r}: {event.channel} is not verified; the channels are {', '.join(channels)}")
    return events


def _refuse_repeated(what: str, values: Sequence[Any]) -> None:
    twice = sorted({str(value) for value in values if list(values).count(value) > 1})
    if twice:
        raise InputError(f"{what} given more than once: {', '.join(twice)}")


def _period(valid: np.ndarray) -> str:
    return f"{pd.Timestamp(valid.min()):%Y-%m-%dT%H}/{pd.Timestamp(valid.max()):%Y-%m-%dT%H}"


def _hours(leads: np.ndarray) -> str:
    hours = (leads / np.timedelta64(1, "h")).tolist()
    return ", ".join(f"{hour:g} h" for hour in hours[:12]) + (" ..." if len(hours) > 12 else "")
