"""Initial states around an analysis, one a member: from analysis members, from lagged forecasts, from differences of analyses.

Number 0 is the analysis itself. A kind gives either whole states, or departures e that make members in pairs, analysis + e and
analysis - e, so that an even number of members has the analysis as its mean. Every frame of a state is perturbed by the same
departure at its own time, so that a perturbation and its tendency belong together. Where a quantity cannot be negative a
departure is cut at the analysis' own value, on both sides alike: pairs stay centred, and where it is dry it stays dry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any, Protocol

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel, channels_of, stack
from data_pipeline.statistics import format_period, in_period
from data_pipeline.variables import lookup
from forecast import noise

APART_DAYS = 10  # between the two analyses of a difference: errors of the day, not of the hour
GUARD_DAYS = 30  # around an initialisation, in which no analysis of a difference lies: nothing is known of what verifies it
YEAR_DAYS = 365.2425
DRAWS = 1 << 40  # steps of the noise from which dates are drawn, far beyond those of a forecast with the same seed
DAY = np.timedelta64(24, "h")

Coords = dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, str]]]


@dataclass(frozen=True)
class Frames:
    """The frames of every initial state: `number` analyses, `step` apart, up to the initialisation.

    unperturbed: labels of channels that every member takes from the analysis.
    """

    analysis: xr.Dataset
    channels: tuple[Channel, ...]
    step: np.timedelta64
    number: int
    unperturbed: tuple[str, ...] = ()

    @property
    def lags(self) -> np.ndarray:
        """From the oldest frame to the initialisation: ..., 12 h, 0 h."""
        return self.step * np.arange(self.number - 1, -1, -1)

    def at(self, when: np.datetime64) -> np.ndarray:
        """Analyses (frame, channel, latitude, longitude) up to `when`, float64."""
        return read(self.analysis, self.channels, when - self.lags)

    @cached_property
    def grid(self) -> Grid:
        return Grid.of(self.analysis)

    def lacking(self, ends: np.ndarray) -> np.ndarray:
        """Stamps that the frames up to `ends` need and the analysis does not have."""
        return np.setdiff1d(ends[:, None] - self.lags, self.analysis["time"].values)


class Kind(Protocol):
    """Where the members come from. paired: `fields` are departures of pairs, else whole states of members."""

    @property
    def paired(self) -> bool: ...

    def faults(self, frames: Frames, inits: np.ndarray, number: int) -> list[str]:
        """All that stands in the way of `number` pairs (or members) of these initialisations."""

    def fields(self, frames: Frames, init: np.datetime64, place: int, control: np.ndarray) -> np.ndarray:
        """(frame, channel, latitude, longitude) of pair (or member) `place`, from 0."""

    def origins(self, frames: Frames, inits: np.ndarray, members: int) -> Coords:
        """What the members are made of, as coordinates of the store; number 0 included."""

    def said(self) -> dict[str, Any]:
        """Attributes of the store; `initial_state` is recorded in the forecasts made from it."""


def states(kind: Kind, frames: Frames, init: np.datetime64, members: int) -> Iterator[np.ndarray]:
    """The analysis and its members, each (frame, channel, latitude, longitude), float32; one is in memory at a time."""
    control = frames.at(init)
    yield control.astype(np.float32)
    kept = [frames.channels.index(Channel.parse(label)) for label in frames.unperturbed]
    for place in range(-(-members // 2) if kind.paired else members):
        fields = kind.fields(frames, init, place, control)
        if not kind.paired:
            fields[:, kept] = control[:, kept]
            yield fields.astype(np.float32)
            continue
        fields[:, kept] = 0
        departure = within_range(fields, control, frames.channels)
        yield (control + departure).astype(np.float32)
        if 2 * place + 1 < members:
            yield (control - departure).astype(np.float32)


def within_range(departure: np.ndarray, control: np.ndarray, channels: Sequence[Channel]) -> np.ndarray:
    """The departure, cut where control + or - it would leave what the quantity can be: below 0, or a fraction above 1."""
    departure = departure.copy()
    for i, channel in enumerate(channels):
        known = lookup(channel.name)
        if known is None or not known.non_negative:
            continue
        room = control[:, i] if known.units != "1" else np.minimum(control[:, i], 1 - control[:, i])
        room = np.maximum(room, 0)
        departure[:, i] = np.clip(departure[:, i], -room, room)
    return departure


def read(data: xr.Dataset, channels: Sequence[Channel], times: np.ndarray) -> np.ndarray:
    """Fields (time, channel, latitude, longitude) of an analysis, float64."""
    return np.asarray(stack(data.sel(time=times), list(channels)).values, np.float64)


@dataclass(frozen=True)
class Size:
    """The wanted rms of departures, {channel or variable: SI units}; a variable's holds for each of its levels.

    With one entry all channels are scaled by its factor, which keeps the balance of wind and mass; with several, those named have
    their own, and the others that of the first.
    """

    wanted: Mapping[str, float]

    def faults(self, channels: Sequence[Channel]) -> list[str]:
        known = {name for channel in channels for name in (channel.label, channel.name)}
        faults = [f"error of {name}: no such field; there are {_labels(channels)}" for name in self.wanted if name not in known]
        return faults + [f"error of {name}: {size:g}; it must be above 0" for name, size in self.wanted.items() if not size > 0]

    def scaled(self, departure: np.ndarray, channels: Sequence[Channel], grid: Grid) -> np.ndarray:
        """The departure (frame, channel, latitude, longitude) in this size at its last frame, area-weighted."""
        first = next(iter(self.wanted))
        place = next(i for i, channel in enumerate(channels) if first in (channel.label, channel.name))
        factors = np.full(len(channels), self.wanted[first] / _rms(departure[-1, place], grid, channels[place]))
        for i, channel in enumerate(channels):
            own = self.wanted.get(channel.label, self.wanted.get(channel.name))
            if own is not None:
                factors[i] = own / _rms(departure[-1, i], grid, channel)
        return departure * factors[:, None, None]

    def __str__(self) -> str:
        units = {name: known.units for name in self.wanted if (known := lookup(Channel.parse(name).name) or lookup(name))}
        return ", ".join(f"{name} {size:g} {units.get(name, '')}".rstrip() for name, size in self.wanted.items())


def _rms(field: np.ndarray, grid: Grid, channel: Channel) -> float:
    there = np.isfinite(field)  # the sea surface has no value on land
    weights = np.where(there, grid.area_weights, 0)
    size = float(np.sqrt((np.where(there, field, 0) ** 2 * weights).sum() / weights.sum()))
    if not size > 0:
        raise InputError(f"a departure of {channel} is 0 everywhere: no error of a stated size can be made from it")
    return size


@dataclass(frozen=True)
class Differences:
    """Departures s (a(t1) - a(t2)): random-field perturbations (Magnusson et al. 2009, Tellus A 61, 194-209).

    t1, t2 are drawn from `training`, at the hour of the initialisation and within `season_days` of its date in the year, ten days
    apart at least, and never within 30 days of the initialisation itself. They depend on (seed, initialisation, pair) and the
    dates that are there; no two pairs of an initialisation are the same. s is such that the departure has its `size`.
    """

    training: tuple[str, str]
    size: Size
    season_days: float = 30.0
    seed: int = 0
    paired = True

    def faults(self, frames: Frames, inits: np.ndarray, number: int) -> list[str]:
        return self.size.faults(frames.channels) + [fault for init in inits for fault in self._too_few(frames, init, number)]

    def _too_few(self, frames: Frames, init: np.datetime64, number: int) -> list[str]:
        dates = self.dates(frames, init)
        found = int((dates.size - np.searchsorted(dates, dates + APART_DAYS * DAY)).sum())
        if found >= number:
            return []
        return [
            f"{_hour(init)}: {found} pairs of {dates.size} analyses of {format_period(self.training)} are at this hour, within "
            f"{self.season_days:g} days of this date in the year and {APART_DAYS} days apart; {number} are needed"
        ]

    def dates(self, frames: Frames, init: np.datetime64) -> np.ndarray:
        """Stamps in season that have all their frames in the training period."""
        times = frames.analysis["time"].values.astype("datetime64[ns]")
        times = times[in_period(times, self.training)]
        whole = np.isin(times[:, None] - frames.lags, times).all(axis=1)
        apart = np.abs(times - init)
        in_year = (apart / DAY) % YEAR_DAYS
        season = np.minimum(in_year, YEAR_DAYS - in_year) <= self.season_days
        return times[whole & season & ((times - init) % DAY == np.timedelta64(0)) & (apart >= GUARD_DAYS * DAY)]

    def pairs(self, frames: Frames, init: np.datetime64, number: int) -> list[tuple[np.datetime64, np.datetime64]]:
        """(t1, t2) of the first `number` pairs; a longer list begins with the same. Raises InputError if there are fewer."""
        if faults := self._too_few(frames, init, number):
            raise InputError(faults[0])
        dates = self.dates(frames, init)
        drawn: list[tuple[int, int]] = []
        for place in range(number):
            for attempt in count():
                first, second = (
                    noise.pick(self.seed, init, place + 1, DRAWS + 2 * attempt + turn, dates.size) for turn in (0, 1)
                )
                used = (first, second) in drawn or (second, first) in drawn
                if abs(dates[first] - dates[second]) >= APART_DAYS * DAY and not used:
                    drawn.append((first, second))
                    break
        return [(dates[first], dates[second]) for first, second in drawn]

    def fields(self, frames: Frames, init: np.datetime64, place: int, control: np.ndarray) -> np.ndarray:  # noqa: ARG002
        first, second = self.pairs(frames, init, place + 1)[-1]
        return self.size.scaled(frames.at(first) - frames.at(second), frames.channels, frames.grid)

    def origins(self, frames: Frames, inits: np.ndarray, members: int) -> Coords:
        """The two dates of each member; the second of a pair has them exchanged, number 0 twice its own."""
        dates = np.empty((2, inits.size, members + 1), "datetime64[ns]")
        dates[:] = inits[:, None]
        for row, init in enumerate(inits):
            for place, pair in enumerate(self.pairs(frames, init, -(-members // 2))):
                dates[:, row, 1 + 2 * place] = pair
                dates[:, row, 2 + 2 * place : 3 + 2 * place] = np.array(pair[::-1])[:, None]
        texts = ("analysis added to this member's own", "analysis taken from it")
        return {
            name: (("time", "number"), own, {"long_name": text})
            for name, own, text in zip(("added_analysis", "subtracted_analysis"), dates, texts, strict=True)
        }

    def said(self) -> dict[str, Any]:
        return {
            "initial_state": (
                f"analysis +/- differences of two analyses of {format_period(self.training)}, within {self.season_days:g} days "
                f"of its date in the year and at its hour, scaled to rms {self.size}; seed {self.seed}"
            ),
            "training_period": format_period(self.training),
            "seed": self.seed,
        }


@dataclass(frozen=True)
class AnalysisMembers:
    """An ensemble of analyses, such as the ten members of ERA5, or its departures from its mean around the analysis.

    ensemble: in the forecast schema, stamps of analyses as `time`, lead 0, on the grid of the analysis. Member k starts from
    analysis member (k - 1) mod n of n; paired: pair p has `inflation` times the departure of member (p - 1) mod n. Beyond n (2 n)
    members the states repeat.
    """

    ensemble: xr.Dataset
    paired: bool = False
    inflation: float = 1.0
    _means: dict[np.datetime64, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def faults(self, frames: Frames, inits: np.ndarray, number: int) -> list[str]:  # noqa: ARG002
        wanted = self._wanted(frames)
        have = {channel.label for channel in channels_of(self.ensemble)}
        absent = [channel for channel in wanted if channel.label not in have]
        gone = np.setdiff1d(inits[:, None] - frames.lags, self.ensemble["time"].values)
        faults = [f"the analysis members lack {_labels(absent)}; they have {', '.join(sorted(have))}"] if absent else []
        faults += (
            [f"the analysis members lack {gone.size} of the stamps of the frames, first {_hour(gone[0])}"] if gone.size else []
        )
        if np.timedelta64(0) not in self.ensemble["prediction_timedelta"].values:
            faults.append("the analysis members have no lead 0: these are forecasts")
        if self.paired and self.ensemble.sizes["number"] < 2:
            faults.append("departures need two analysis members at least")
        if not Grid.of(self.ensemble).matches(frames.grid):
            faults.append(f"the analysis members are on {Grid.of(self.ensemble)}; the analysis on {frames.grid}")
        return faults

    def fields(self, frames: Frames, init: np.datetime64, place: int, control: np.ndarray) -> np.ndarray:
        wanted, n = self._wanted(frames), self.ensemble.sizes["number"]
        own = control.copy()
        rows = [frames.channels.index(channel) for channel in wanted]
        member = self._member(frames, wanted, init, place % n)
        if self.paired:
            own[:] = 0
            member = self.inflation * (member - self._mean(frames, wanted, init))
        own[:, rows] = member
        return own

    def _mean(self, frames: Frames, wanted: list[Channel], init: np.datetime64) -> np.ndarray:
        """Read once an initialisation, member by member: an ensemble of analyses need not fit into memory."""
        if init not in self._means:
            self._means.clear()
            total, n = self._member(frames, wanted, init, 0), self.ensemble.sizes["number"]
            for place in range(1, n):
                total = total + self._member(frames, wanted, init, place)
            self._means[init] = total / n
        return self._means[init]

    def _wanted(self, frames: Frames) -> list[Channel]:
        return [channel for channel in frames.channels if channel.label not in frames.unperturbed]

    def _member(self, frames: Frames, wanted: list[Channel], init: np.datetime64, place: int) -> np.ndarray:
        own = self.ensemble.isel(number=place).sel(prediction_timedelta=np.timedelta64(0, "ns"))
        return read(own, wanted, init - frames.lags)

    def origins(self, frames: Frames, inits: np.ndarray, members: int) -> Coords:  # noqa: ARG002
        numbers = self.ensemble["number"].values
        places = np.arange(members) // 2 if self.paired else np.arange(members)
        own = np.concatenate([[-1], numbers[places % numbers.size]])
        return {"analysis_member": (("number",), own, {"long_name": "analysis member of this number, -1: none"})}

    def said(self) -> dict[str, Any]:
        n = self.ensemble.sizes["number"]
        scale = "" if self.inflation == 1 else f"{self.inflation:g} times "
        plain, departures = f"{n} analysis members in turn", f"analysis +/- {scale}the departures of {n} analysis members"
        return {"initial_state": f"{departures} from their mean" if self.paired else plain}


@dataclass(frozen=True)
class Lagged:
    """Older information about the same time: forecasts valid at the initialisation, or the analyses of days before.

    forecast: a store of forecasts from the same analysis; states are its fields valid now, the youngest runs first and all
    members of a run before the next (lagged averages: Hoffman and Kalnay 1983, Tellus A 35, 100-118). A frame at or before the
    start of a run is the analysis. With a `size` the departures of these fields from the analysis are scaled to it, so that old
    runs err no more than young ones, and used in pairs (Ebisuzaki and Kalnay 1991). Without a forecast persistence takes its
    place: the analyses of the same hour 1, 2, 3 ... days before, always with a size.
    """

    forecast: xr.Dataset | None
    size: Size | None
    oldest: np.timedelta64 = 2 * DAY

    @property
    def paired(self) -> bool:
        return self.size is not None

    def faults(self, frames: Frames, inits: np.ndarray, number: int) -> list[str]:
        faults = self.size.faults(frames.channels) if self.size is not None else []
        if self.forecast is None:
            if self.size is None:
                return [*faults, "lagged analyses alone are no states of the time; give --error, or --forecast"]
            gone = frames.lacking((inits[:, None] - DAY * np.arange(1, number + 1)).ravel())
            first = f", first {_hour(gone[0])}" if gone.size else ""
            return faults + ([f"{gone.size} analyses of the {number} days before are not there{first}"] if gone.size else [])
        have = {channel.label for channel in channels_of(self.forecast)}
        absent = [channel for channel in frames.channels if channel.label not in {*have, *frames.unperturbed}]
        if absent:
            faults.append(f"the forecast lacks {_labels(absent)}; it has {', '.join(sorted(have))}")
        if not Grid.of(self.forecast).matches(frames.grid):
            faults.append(f"the forecast is on {Grid.of(self.forecast)}; the analysis on {frames.grid}")
        for init in inits:
            found = len(self.runs(frames, init)) * self.forecast.sizes["number"]
            if found < number:
                faults.append(
                    f"{_hour(init)}: {found} fields of runs up to {self.oldest / np.timedelta64(1, 'h'):g} h old are valid then, "
                    f"with all their frames; {number} are needed"
                )
        return faults

    def runs(self, frames: Frames, init: np.datetime64) -> list[np.datetime64]:
        """Initialisations of the runs that have every frame of `init`, the youngest first."""
        assert self.forecast is not None
        begins, leads = self.forecast["time"].values[::-1], self.forecast["prediction_timedelta"].values
        ages = init - begins
        found = begins[(ages > np.timedelta64(0)) & (ages <= self.oldest)]
        needed = [[lead for lead in init - begin - frames.lags if lead > np.timedelta64(0)] for begin in found]
        return [begin for begin, own in zip(found, needed, strict=True) if np.isin(own, leads).all()]

    def origin(self, frames: Frames, init: np.datetime64, place: int) -> tuple[np.datetime64, int]:
        """Run and member number of the state, or of the pair, `place`."""
        if self.forecast is None:
            return init - (place + 1) * DAY, 0
        numbers = self.forecast["number"].values
        return self.runs(frames, init)[place // numbers.size], int(numbers[place % numbers.size])

    def fields(self, frames: Frames, init: np.datetime64, place: int, control: np.ndarray) -> np.ndarray:
        begin, number = self.origin(frames, init, place)
        found = frames.at(begin) if self.forecast is None else self._valid(frames, init, begin, number, control)
        if self.size is None:
            return found
        return self.size.scaled(found - control, frames.channels, frames.grid)

    def _valid(self, frames: Frames, init: np.datetime64, begin: np.datetime64, number: int, control: np.ndarray) -> np.ndarray:
        assert self.forecast is not None
        found, leads = control.copy(), init - begin - frames.lags
        rows = [i for i, channel in enumerate(frames.channels) if channel.label not in frames.unperturbed]
        later = leads > np.timedelta64(0)
        own = self.forecast.sel(time=begin, number=number, prediction_timedelta=leads[later])
        fields = stack(own, [frames.channels[i] for i in rows]).values
        found[np.ix_(np.flatnonzero(later), np.array(rows))] = fields
        return found

    def origins(self, frames: Frames, inits: np.ndarray, members: int) -> Coords:
        each = 2 if self.paired else 1
        found = [[self.origin(frames, init, k // each) for k in range(members)] for init in inits]
        begins = np.array([[init, *(begin for begin, _ in row)] for init, row in zip(inits, found, strict=True)], "M8[ns]")
        numbers = np.array([[-1, *(number for _, number in row)] for row in found])
        both = ("time", "number")
        return {
            "lagged_time": (both, begins, {"long_name": "initialisation of the older run, or stamp of the older analysis"}),
            "lagged_number": (both, numbers, {"long_name": "member of the older run, -1: none"}),
        }

    def said(self) -> dict[str, Any]:
        hours = self.oldest / np.timedelta64(1, "h")
        if self.forecast is None:
            return {"initial_state": f"analysis +/- (analyses of 1, 2, 3 ... days before - analysis), scaled to rms {self.size}"}
        known = f"{self.forecast.attrs.get('model', 'a forecast')} [{self.forecast.attrs.get('recipe_hash', '')}]"
        runs = f"runs of {known} up to {hours:g} h old"
        if self.size is None:
            return {"initial_state": f"lagged forecasts: {runs}, valid at the initialisation"}
        return {"initial_state": f"analysis +/- ({runs}, valid at the initialisation - analysis), scaled to rms {self.size}"}


def _labels(channels: Sequence[Channel]) -> str:
    return ", ".join(channel.label for channel in channels)


def _hour(stamp: np.datetime64) -> str:
    return f"{pd.Timestamp(stamp):%Y-%m-%dT%H}"
