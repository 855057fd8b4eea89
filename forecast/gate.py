"""The gate: what is physically wrong with a forecast, lead by lead, before anybody sees it.

fail: values that are not finite or outside the physical range, a member that has blown up, members that are one, fields that have
stopped. warn: the edge of the climate, spurious drizzle, one field that has stopped. note: levels under the terrain. Limits are
generous: a sound forecast passes, an unsound one does not reach the archive.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import xarray as xr

from data_pipeline.errors import GateError
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel, channels_of, select, stack
from data_pipeline.transform import from_model_space, to_model_space
from data_pipeline.variables import lookup
from forecast.plan import ForecastPlan, plan_of
from forecast.subset import Cut
from models.contract import Spec

Severity = Literal["fail", "warn", "note"]

FARTHEST = 8.0  # standard deviations of the climate that no channel is refused for
MARGIN = 1.5  # beyond the farthest that a sample of analyses shows
SAMPLE_BYTES, SAMPLE_STAMPS = 64 << 20, 48
DRIZZLE_METRES, DRIZZLE_EXCESS = 1e-4, 0.25  # rain below 0.1 mm; its share of the points beyond that in the analyses
GRAVITY, SHOWN = 9.80665, 8

HINTS = {
    "range": "outside the physical range", "blow-up": "one member far outside the others and the climate",
    "climate": "far outside the climate of the analyses", "identical": "equal to another member in every value",
    "stopped": "every field equal to the lead before", "still": "equal to the lead before",
    "drizzle": "share of points with rain below 0.1 mm", "terrain": "share of the area where the level lies under the terrain",
    "finite": "values that are not finite",
}  # fmt: skip


@dataclass(frozen=True, order=True)
class Finding:
    """One thing found: where, the value, and the limit that it passes. lead in hours; units those of the channel."""

    init: str
    lead: int
    member: int
    channel: str
    check: str
    severity: Severity
    value: float
    limit: float

    def __str__(self) -> str:
        where = f"{self.init} +{self.lead} h, member {self.member}" + (f", {self.channel}" if self.channel else "")
        limit = "" if self.severity == "note" else f", limit {self.limit:.6g}"
        return f"{where}: {HINTS[self.check]} (found {self.value:.6g}{limit})"


@dataclass
class Report:
    """What was examined and found. checked: (init, lead, member) examined; found: {check channel: (how often, the first)}."""

    checked: int = 0
    found: dict[str, tuple[int, Finding]] = field(default_factory=dict)

    def add(self, findings: Iterable[Finding], count: int = 1) -> None:
        for each in findings:
            key = f"{each.severity} {each.check} {each.channel}"
            times, first = self.found.get(key, (0, each))
            self.found[key] = (times + count, min(first, each))

    def merge(self, other: Report) -> None:
        self.checked += other.checked
        for times, first in other.found.values():
            self.add([first], times)

    def of(self, severity: Severity) -> list[Finding]:
        return sorted(first for _, first in self.found.values() if first.severity == severity)

    def raise_if_bad(self) -> None:
        """Raise GateError, naming what fails, if anything does."""
        refuse(self.of("fail"))

    def as_dict(self) -> dict[str, Any]:
        rows = [{**asdict(first), "times": times} for times, first in self.found.values()]
        return {"checked": self.checked, "found": sorted(rows, key=lambda row: (row["severity"], row["check"], row["channel"]))}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Report:
        """The inverse of `as_dict`."""
        report = cls(int(content["checked"]))
        for row in content["found"]:
            report.add([Finding(**{key: value for key, value in row.items() if key != "times"})], row["times"])
        return report

    def lines(self) -> list[str]:
        """For the person: what is worth knowing, and how often it was found."""
        order = {"fail": 0, "warn": 1, "note": 2}
        rows = sorted(self.found.values(), key=lambda row: (order[row[1].severity], row[1]))
        return [f"{first.severity}: {first}" + (f", {times} times" if times > 1 else "") for times, first in rows]


def refuse(failing: Sequence[Finding]) -> None:
    """Raise GateError if something fails."""
    if failing:
        lines = [f"  - {finding}" for finding in failing[:SHOWN]]
        more = f"\n  - and {len(failing) - SHOWN} more" if len(failing) > SHOWN else ""
        raise GateError("the forecast fails its gate; nothing was published:\n" + "\n".join(lines) + more)


@dataclass(frozen=True)
class Climate:
    """What analyses look like, by channel label: mean and std (model space), the farthest departure in stds, share of drizzle."""

    mean: Mapping[str, float]
    std: Mapping[str, float]
    farthest: Mapping[str, float] = field(default_factory=dict)
    drizzle: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: Spec, analysis: xr.Dataset | None = None) -> Climate:
        """The training statistics of a checkpoint, and some analyses spread over the store, at most `SAMPLE_BYTES` of them."""
        mean, std = (dict(zip(spec.channels, values, strict=True)) for values in (spec.mean, spec.std))
        if analysis is None:
            return cls(mean, std)
        each = len(spec.channels) * spec.grid.areas.size * 4
        count = min(int(np.clip(SAMPLE_BYTES // each, 2, SAMPLE_STAMPS)), analysis.sizes["time"])
        rows = np.unique(np.linspace(0, analysis.sizes["time"] - 1, count).round().astype(int))
        fields = stack(analysis.isel(time=rows), spec.parsed_channels).values
        apart = np.nanmax(np.abs(spec.normalise(fields)), axis=(0, 2, 3))
        rain = {
            label: float(_drizzle(fields[:, i]).mean()) for i, label in enumerate(spec.channels) if _is_rain(Channel.parse(label))
        }
        return cls(mean, std, dict(zip(spec.channels, apart.tolist(), strict=True)), rain)

    def limit(self, label: str) -> float:
        """Standard deviations that no sound field is beyond."""
        return max(FARTHEST, MARGIN * self.farthest.get(label, 0.0))


class Gate:
    """Examines the leads of one plan. Without a climate, orography or spread to expect, what needs them is left out.

    orography: geopotential of the surface (latitude, longitude), m2 s-2. spread: False where members may be equal.
    """

    def __init__(
        self, plan: ForecastPlan, climate: Climate | None = None, orography: np.ndarray | None = None, *, spread: bool = True
    ) -> None:
        self.plan, self.climate, self.orography, self.spread = plan, climate, orography, spread
        self._areas = plan.grid.areas / plan.grid.areas.sum()
        self._seen: tuple[str, dict[tuple[int, bytes], int]] = ("", {})

    @classmethod
    def of(cls, spec: Spec, plan: ForecastPlan, analysis: xr.Dataset) -> Gate:
        """For forecasts of a checkpoint from an analysis."""
        surface = None
        if "geopotential_at_surface" in analysis:
            cut = Cut.of(spec, plan)
            surface = analysis["geopotential_at_surface"].values[cut.rows[:, None], cut.columns]
        scales = np.atleast_1d(np.asarray(plan.attrs.get("noise_scale", 1.0), float))
        return cls(plan, Climate.of(spec, analysis), surface, spread=bool(scales.all()))

    def examine(
        self, time: np.datetime64, lead: np.timedelta64, members: Sequence[int], fields: np.ndarray,
        before: np.ndarray | None = None,
    ) -> list[Finding]:  # fmt: skip
        """What is found in fields (member, channel, latitude, longitude); before: those of the lead before, if known."""
        where = _Where(str(np.datetime_as_string(time, "h")), int(lead / np.timedelta64(1, "h")), members, self.plan.channels)
        finite = np.isfinite(fields).all(axis=(-2, -1))
        if not finite.all():
            return where.found("finite", "fail", ~finite, np.isnan(fields).sum(axis=(-2, -1)), 0)
        low, high = fields.min(axis=(-2, -1)), fields.max(axis=(-2, -1))
        under = self._under(fields)
        findings = self._ranges(where, fields, low, high, under)
        if self.climate is not None:
            findings += self._extremes(where, low, high)
        findings += self._identical(where, fields)
        if before is not None:
            findings += _still(where, fields, before, low, high)
        findings += self._drizzle(where, fields)
        for c, points in under.items():
            shares = (points * self._areas).sum(axis=(-2, -1))
            findings += [where.one("terrain", "note", m, c, shares[m], 0) for m in np.flatnonzero(shares)]
        return findings

    def _ranges(
        self, where: _Where, fields: np.ndarray, low: np.ndarray, high: np.ndarray, under: Mapping[int, np.ndarray]
    ) -> list[Finding]:
        found = []
        for c, channel in enumerate(self.plan.channels):
            known = lookup(channel.name)
            if known is None:
                continue
            for extreme, limit, beyond in (
                (low, known.valid_range[0], np.less), (high, known.valid_range[1], np.greater)
            ):  # fmt: skip
                for m in np.flatnonzero(beyond(extreme[:, c], limit)):
                    hidden = c in under and not beyond(fields[m, c][~under[c][m]], limit).any()  # extrapolated, in the rock
                    found.append(where.one("range", "note" if hidden else "fail", m, c, float(extreme[m, c]), limit))
        return found

    def _extremes(self, where: _Where, low: np.ndarray, high: np.ndarray) -> list[Finding]:
        """Members beyond the climate; fails far beyond it, or where the others are not beyond it with them."""
        assert self.climate is not None
        found = []
        for c, channel in enumerate(self.plan.channels):
            if channel.label not in self.climate.std:
                continue
            mean, std, limit = (
                self.climate.mean[channel.label],
                self.climate.std[channel.label],
                self.climate.limit(channel.label),
            )
            for extreme, sign in ((low, -1), (high, 1)):
                apart = sign * (to_model_space(extreme[:, c].astype(np.float64), channel) - mean) / std
                for m in np.flatnonzero(apart > limit):
                    others = np.delete(apart, m)
                    alone = others.size > 0 and apart[m] - others.max() > limit / 2
                    check = "blow-up" if alone else "climate"
                    severity: Severity = "fail" if alone or apart[m] > 2 * limit else "warn"
                    edge = float(from_model_space(np.array(mean + sign * limit * std), channel))
                    found.append(where.one(check, severity, m, c, float(extreme[m, c]), edge))
        return found

    def _identical(self, where: _Where, fields: np.ndarray) -> list[Finding]:
        """Members of one initialisation and lead that are one, whichever block they came in."""
        if self._seen[0] != where.init:
            self._seen = (where.init, {})
        seen, found = self._seen[1], []
        for m, each in enumerate(fields):
            key = (where.lead, hashlib.blake2b(each.tobytes(), digest_size=16).digest())
            other = seen.setdefault(key, where.members[m])
            if other != where.members[m]:
                found.append(where.one("identical", "fail" if self.spread else "note", m, None, other, 0))
        return found

    def _drizzle(self, where: _Where, fields: np.ndarray) -> list[Finding]:
        known = {} if self.climate is None else self.climate.drizzle
        found = []
        for c, channel in enumerate(self.plan.channels):
            if channel.label in known:
                share, limit = _drizzle(fields[:, c]), known[channel.label] + DRIZZLE_EXCESS
                found += [where.one("drizzle", "warn", m, c, share[m], limit) for m in np.flatnonzero(share > limit)]
        return found

    def _under(self, fields: np.ndarray) -> dict[int, np.ndarray]:
        """Points (member, ...) of each channel on a pressure level that lie under the terrain.

        By the member's own geopotential, or that of a standard atmosphere.
        """
        if self.orography is None:
            return {}
        places = {channel.label: c for c, channel in enumerate(self.plan.channels)}
        found = {}
        for c, channel in enumerate(self.plan.channels):
            if channel.level is not None:
                own = places.get(f"geopotential_{channel.level}")
                height = standard_geopotential(channel.level) if own is None else fields[:, own]
                found[c] = np.broadcast_to(self.orography > height, (len(fields), *self.plan.grid.shape))
        return found


@dataclass(frozen=True)
class _Where:
    init: str
    lead: int
    members: Sequence[int]
    channels: Sequence[Channel]

    def one(self, check: str, severity: Severity, m: Any, c: int | None, value: float, limit: float) -> Finding:
        label = "" if c is None else self.channels[c].label
        return Finding(self.init, self.lead, int(self.members[int(m)]), label, check, severity, float(value), float(limit))

    def found(self, check: str, severity: Severity, bad: np.ndarray, values: np.ndarray, limit: float) -> list[Finding]:
        """One for each (member, channel) that is bad."""
        return [self.one(check, severity, m, int(c), values[m, c], limit) for m, c in np.argwhere(bad)]


class GateSink:
    """The gate as a sink: put it before the one that writes. Refused leads are never written, so that nothing is published.

    strict: False turns failures into warnings; values that are not finite are refused by the roll-out itself. report: of all that
    came by.
    """

    whole = False

    def __init__(self, gate: Gate, *, strict: bool = True) -> None:
        self.gate, self.strict, self.report = gate, strict, Report()
        self._before: tuple[Any, np.ndarray | None] = (None, None)
        self._notes: dict[tuple[str, int], Report] = {}

    def open(self, plan: ForecastPlan) -> np.ndarray:
        return np.ones((plan.times.size, plan.leads.size, len(plan.members)), bool)  # asks for nothing itself

    def take(self, time: np.datetime64, lead: np.timedelta64, members: tuple[int, ...], fields: np.ndarray) -> None:
        block = (time, members)
        before = self._before[1] if self._before[0] == block else None
        findings = self.gate.examine(time, lead, members, fields, before)
        self._before = (block, fields)
        failing = [finding for finding in findings if finding.severity == "fail"]
        if self.strict:
            refuse(failing)
        findings = [Finding(**{**asdict(each), "severity": "warn"}) if each in failing else each for each in findings]
        self.report.add(findings)
        self.report.checked += len(members)
        for member in members:
            note = self._notes.setdefault((str(np.datetime_as_string(time, "h")), member), Report())
            note.checked += 1
            note.add(finding for finding in findings if finding.member == member)

    def close(self) -> None:
        pass

    def note(self, time: np.datetime64, members: Sequence[int]) -> dict[str, Any]:
        """What was found in some members of an initialisation, as plain data; forgotten here."""
        report = Report()
        for member in members:
            report.merge(self._notes.pop((str(np.datetime_as_string(time, "h")), member), Report()))
        return report.as_dict()


def merged(notes: Iterable[Mapping[str, Any] | None]) -> Report:
    """The report of a store from the notes of its parts."""
    report = Report()
    for note in notes:
        if note:
            report.merge(Report.from_dict(note))
    return report


def report_of(forecast: xr.Dataset) -> Report | None:
    """What the gate found when a stored forecast was made; None if it did not look."""
    text = forecast.attrs.get("gate")
    return Report.from_dict(json.loads(text)) if text else None


def check(forecast: xr.Dataset, *, spec: Spec | None = None, analysis: xr.Dataset | None = None, spread: bool = True) -> Report:
    """Examine a forecast in the schema, lead by lead in bounded memory. It does not raise: see `Report.raise_if_bad`.

    spec: of the checkpoint that made it, for the climate; analysis: for the climate's edge, drizzle, terrain. spread: False
    where members may be equal.
    """
    plan = plan_of(forecast)
    surface = None
    if analysis is not None and "geopotential_at_surface" in analysis and Grid.of(analysis).matches(plan.grid):
        surface = select(analysis, Channel("geopotential_at_surface")).values
    gate = Gate(plan, None if spec is None else Climate.of(spec, analysis), surface, spread=spread)
    report, order = Report(), channels_of(forecast)
    for time in plan.times:
        before = None
        for lead in plan.leads:
            one = stack(forecast.sel(time=time, prediction_timedelta=lead), order)
            fields = one.transpose("number", "channel", "latitude", "longitude").values
            report.add(gate.examine(time, lead, plan.members, fields, before))
            report.checked += len(plan.members)
            before = fields
    return report


def standard_geopotential(level: float) -> float:
    """Geopotential of a pressure level (hPa) in the ICAO standard atmosphere, below 20 km."""
    if level > 226.32:
        return float(GRAVITY * 44330.77 * (1 - (level / 1013.25) ** 0.190263))
    return float(GRAVITY * (11000 + 6341.62 * np.log(226.32 / level)))


def _still(where: _Where, fields: np.ndarray, before: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[Finding]:
    """Fields that have not changed since the lead before, other than those of one value only (no rain anywhere)."""
    changes = low < high
    same = (fields == before).all(axis=(-2, -1)) & changes
    found = []
    for m in np.flatnonzero(same.any(axis=1)):
        if (same[m] | ~changes[m]).all():
            found.append(where.one("stopped", "fail", m, None, int(same[m].sum()), 0))
        else:
            found += [where.one("still", "warn", m, int(c), float(high[m, c]), 0) for c in np.flatnonzero(same[m])]
    return found


def _drizzle(rain: np.ndarray) -> np.ndarray:
    """Share of points with rain, but less than 0.1 mm; over the last two dims."""
    return np.asarray(((rain > 0) & (rain < DRIZZLE_METRES)).mean(axis=(-2, -1)))


def _is_rain(channel: Channel) -> bool:
    return channel.name.startswith("total_precipitation")
