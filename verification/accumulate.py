"""Fields in, sums out: `score_fields` makes the sums of a block, `Accumulator` keeps those of a plan, nothing else remains.

An accumulator takes blocks in any order; where blocks come from a store, `verification.evaluate` feeds them, and a roll-out feeds
it lead by lead while it is sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline import climatology as climatologies
from data_pipeline.errors import InputError
from data_pipeline.schema import Channel, levels_by_name
from verification.casewise import coarser
from verification.counting import OPS, compare
from verification.neighbourhood import fractions
from verification.onepass import ANOMALIES, MAPS, SUMS, TAILS, FieldSums, field_sums
from verification.plan import LEVELS, Plan, nearest_point
from verification.regions import BELTS
from verification.spectra import zonal_power
from verification.state import CASE_MEMBERS, CASES, SPECTRA, SPECTRUM_MEMBERS, assemble, variables, zeros


class Block(NamedTuple):
    """Fields of one initialisation: its time, some leads, and the levels of one variable or several channels."""

    time: np.datetime64
    leads: np.ndarray
    channels: tuple[str, ...]


class Fields(NamedTuple):
    """What a block is scored from, in the order of the block.

    members: (lead, member, channel, latitude, longitude). truth, mean: (lead, channel, latitude, longitude), the climatology's
    mean or None. quantiles: (event, lead, channel, latitude, longitude), its quantiles for the events of the plan that need one.
    """

    members: np.ndarray
    truth: np.ndarray
    mean: np.ndarray | None = None
    quantiles: np.ndarray | None = None


Sums = dict[str, np.ndarray]  # {variable of the state: (channel, [drawn] lead, ...)}


def score_fields(plan: Plan, block: Block, fields: Fields) -> Sums:
    """The sums of one block. Raises InputError for infinite values or shapes that are not those of the plan."""
    shape = (block.leads.size, plan.members, len(block.channels), *plan.grid.shape)
    if fields.members.shape != shape or fields.truth.shape != (shape[0], *shape[2:]):
        raise InputError(
            f"score state: fields {fields.members.shape} and truth {fields.truth.shape}; planned are {shape} (lead, member, ...)"
        )
    dtype = np.dtype(coarser(fields.members, fields.truth))
    points = plan.grid.areas.size
    members = np.ascontiguousarray(fields.members, dtype=dtype).reshape(*shape[:2], -1)
    drawn = np.isin(block.leads, plan.leads[plan.drawn])
    found: list[Sums] = []
    for index, channel in enumerate(block.channels):
        truth = np.ascontiguousarray(fields.truth[:, index], dtype=dtype).reshape(shape[0], points)
        applied, thresholds = _thresholds(plan, channel, fields.quantiles, index, (shape[0], points), dtype)
        mean = None if fields.mean is None else np.ascontiguousarray(fields.mean[:, index], np.float64).reshape(shape[0], points)
        sums = field_sums(
            members, truth, plan.grid.area_weights.ravel(), plan.cells.index.ravel(), plan.cells.zone_of,
            edges=plan.bin_edges[channel], levels=np.array(LEVELS), climatology=mean, thresholds=thresholds,
            ops=np.array([OPS.index(plan.events[e].op) for e in applied], np.int64), first=index * points, drawn=drawn,
            keep_counts=bool(plan.radii or block.time in plan.cases),
        )  # fmt: skip
        if sums.infinite[0]:
            raise InputError(
                f"{channel} of {str(block.time)[:13]}: infinite values in forecast or truth; mask them as NaN at the source"
            )
        named = _named(plan, sums, applied)
        named |= {f"map_{name}": sums.maps[:, k].reshape(-1, *plan.grid.shape) for k, name in enumerate(MAPS)}
        ensemble = members[:, :, index * points : (index + 1) * points].reshape(*shape[:2], *plan.grid.shape)
        observed = truth.reshape(shape[0], *plan.grid.shape)
        if plan.radii and applied:
            named |= _fss(plan, sums.counts, truth, thresholds, applied)
        if plan.grid.is_global and drawn.any():
            named |= _spectra(plan, ensemble[drawn], observed[drawn])
        if block.time in plan.cases:
            named |= _case(plan, ensemble, observed, sums.counts, applied, drawn)
        found.append(named)
    return {name: np.stack([sums[name] for sums in found]) for name in found[0]}


class Accumulator:
    """The score state in the making: one `add` for each initialisation and lead, in any order, from one thread at a time."""

    def __init__(self, plan: Plan, climatology: xr.Dataset | None = None) -> None:
        self.plan = plan
        self.climatology = climatology
        self._times = pd.Index(np.asarray(plan.times, dtype="datetime64[ns]"))
        self._leads = pd.Index(np.asarray(plan.leads, dtype="timedelta64[ns]"))
        self._added = np.zeros((len(plan.channels), len(plan.times), len(plan.leads)), dtype=bool)
        self._sums = zeros(plan)

    def add(self, time: np.datetime64, lead: np.timedelta64, fields: np.ndarray, truth: np.ndarray) -> None:
        """Score one lead of one initialisation.

        fields: (member, channel, latitude, longitude), truth: (channel, latitude, longitude), in the units and order of the plan.
        A point with a missing member or truth is dropped and counted. Raises InputError if the stamp is not in the plan or was
        added before, if shapes differ, or if values are infinite.
        """
        if time not in self._times or lead not in self._leads:
            raise InputError(f"score state: {time} + {pd.Timedelta(lead)} is not in the plan")
        block = Block(time, np.array([lead]), self.plan.channels)
        self._refuse_twice(block)
        climate = climate_of(self.plan, self.climatology, block)
        self.put(block, score_fields(self.plan, block, Fields(fields[None], truth[None], *climate)))

    def put(self, block: Block, sums: Sums) -> None:
        """Take what `score_fields` made of a block. Raises InputError if part of it was taken before."""
        self._refuse_twice(block)
        channels, t, leads = self._place(block)
        self._added[channels[:, None], t, leads] = True
        in_drawn = np.searchsorted(self.plan.drawn, leads[np.isin(leads, self.plan.drawn)])
        for name, values in sums.items():
            target = self._sums[name]
            if name.startswith("map_"):
                target[channels[:, None], in_drawn] += values
                continue
            row = list(self.plan.cases).index(block.time) if name in CASES else t
            columns = in_drawn if name in (*SPECTRA, "power_count") or "drawn_lead" in CASES.get(name, ()) else leads
            target[channels[:, None], row, columns] = values

    def state(self) -> xr.Dataset:
        """The state of what was added so far; what was not has weight 0. See `verification.state` for its form."""
        return assemble(self.plan, {name: values.copy() for name, values in self._sums.items()})

    @property
    def sums(self) -> Sums:
        """The sums so far, by variable of the state."""
        return self._sums

    def _place(self, block: Block) -> tuple[np.ndarray, int, np.ndarray]:
        channels = np.array([self.plan.channels.index(channel) for channel in block.channels])
        return channels, int(self._times.get_loc(block.time)), self._leads.get_indexer(pd.Index(block.leads))

    def _refuse_twice(self, block: Block) -> None:
        channels, t, leads = self._place(block)
        twice = np.argwhere(self._added[channels[:, None], t, leads])
        if twice.size:
            channel, lead = block.channels[twice[0][0]], pd.Timedelta(block.leads[twice[0][1]])
            raise InputError(f"score state: {channel} of {block.time} + {lead} was added before")


def climate_of(plan: Plan, climatology: xr.Dataset | None, block: Block) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Mean and quantiles of the climatology at the valid times of a block, as `Fields` wants them; (None, None) without one."""
    if climatology is None or not plan.anomalies:
        return None, None
    channels = [Channel.parse(label) for label in block.channels]
    names = [f"{name}{suffix}" for name in levels_by_name(channels) for suffix in ("", "_quantile")]
    picked = climatologies.select(
        climatology[[name for name in names if name in climatology]], pd.DatetimeIndex(block.time + block.leads)
    )
    levels = [event.value for event in plan.events if event.is_quantile]
    order = ("quantile", "time", "latitude", "longitude")

    def field(channel: Channel, suffix: str) -> xr.DataArray:
        array = picked[f"{channel.name}{suffix}"]
        array = array.sel(level=channel.level) if "level" in array.dims else array
        return array.transpose(*[dim for dim in order if dim in array.dims])

    mean = np.stack([field(channel, "").values for channel in channels], axis=1)
    if not levels:
        return mean, None
    quantiles = [
        field(channel, "_quantile").sel(quantile=levels, method="nearest").values
        if f"{channel.name}_quantile" in picked
        else np.full((len(levels), *mean.shape[:1], *mean.shape[2:]), np.nan, np.float32)
        for channel in channels
    ]
    return mean, np.stack(quantiles, axis=2)


def _thresholds(
    plan: Plan, channel: str, quantiles: np.ndarray | None, index: int, shape: tuple[int, int], dtype: np.dtype[Any]
) -> tuple[list[int], np.ndarray]:
    """Positions of the events that apply to a channel, and their thresholds (event, lead, point), as precise as the fields."""
    applied, thresholds, position = [], [], 0
    for e, event in enumerate(plan.events):
        if event.is_quantile:
            position += 1
        if not event.applies_to(channel):
            continue
        applied.append(e)
        if not event.is_quantile:
            thresholds.append(np.full(shape, event.value, dtype))
        elif quantiles is not None:
            thresholds.append(quantiles[position - 1, :, index].reshape(shape).astype(dtype))
        else:
            raise InputError(f"event {event.label!r} needs a climatology, and none was given")
    return applied, np.stack(thresholds) if thresholds else np.empty((0, *shape), dtype)


def _named(plan: Plan, sums: FieldSums, applied: Sequence[int]) -> Sums:
    """The sums of one channel by variable of the state, (lead, ...); events that do not apply are zero."""
    named = {name: sums.sums[:, k] for k, name in enumerate(SUMS)}
    if plan.anomalies:
        named |= {name: sums.anomalies[:, k] for k, name in enumerate(ANOMALIES)}
    named["ranks"] = sums.ranks
    named["hersbach_alpha"], named["hersbach_beta"] = sums.hersbach[:, :, 0], sums.hersbach[:, :, 1]
    named["below_all"], named["not_above_all"] = sums.outliers[..., 0], sums.outliers[..., 1]
    named["truth_weight"], named["truth_sum"] = sums.truth[..., 0], sums.truth[..., 1]
    named["quantile_score"] = sums.quantiles
    if plan.events:
        named["event_table"] = _spread_out(plan, sums.table, applied)
        tails = _spread_out(plan, sums.tails, applied)
        named |= {f"tail_{name}": tails[..., k] for k, name in enumerate(TAILS)}
    if plan.events and plan.radii:
        zero = np.zeros((sums.sums.shape[0], len(plan.events), len(plan.radii), len(plan.cells.zones)))
        named |= {"fss_numerator": zero, "fss_denominator": zero.copy()}
    return named


def _spread_out(plan: Plan, values: np.ndarray, applied: Sequence[int]) -> np.ndarray:
    whole = np.zeros((values.shape[0], len(plan.events), *values.shape[2:]))
    whole[:, list(applied)] = values
    return whole


def _fss(plan: Plan, counts: np.ndarray, truth: np.ndarray, thresholds: np.ndarray, applied: Sequence[int]) -> Sums:
    """Numerator and denominator of the fractions skill score, summed over the points of each zone."""
    leads = truth.shape[0]
    zone = plan.cells.zone_of[plan.cells.index.ravel()]
    weights = plan.grid.area_weights.ravel()
    found = np.zeros((2, leads, len(plan.events), len(plan.radii), len(plan.cells.zones)))
    for k, e in enumerate(applied):
        known = counts[:, k] >= 0
        forecast = np.where(known, counts[:, k] / plan.members, np.nan)
        event = np.where(known, compare(truth, thresholds[k], plan.events[e].op), np.nan)
        for r, radius in enumerate(plan.radii):
            both = [fractions(field.reshape(leads, *plan.grid.shape), plan.grid, radius) for field in (forecast, event)]
            share, observed = (field.reshape(leads, -1) for field in both)
            terms = ((share - observed) ** 2, share**2 + observed**2)
            for part, term in enumerate(terms):
                for lead in range(leads):
                    weighted = np.where(known[lead], weights * term[lead], 0.0)
                    found[part, lead, e, r] = np.bincount(zone, weighted, minlength=found.shape[-1])
    return {"fss_numerator": found[0], "fss_denominator": found[1]}


def _spectra(plan: Plan, members: np.ndarray, truth: np.ndarray) -> Sums:
    """Zonal power by belt and wavenumber: the mean over members of their powers, and beside it the power of their mean."""
    latitude, areas = plan.grid.latitude, plan.grid.areas[:, 0]
    belts = [np.flatnonzero((latitude >= south) & (latitude <= north)) for south, north in BELTS]
    mean = members.mean(axis=1, keepdims=True, dtype=np.float64)
    names = dict(zip(SPECTRA, (members[:, :SPECTRUM_MEMBERS], truth[:, None], mean), strict=True))
    powers = {
        name: np.stack([zonal_power(fields[:, :, rows], areas[rows]).mean(axis=1) for rows in belts], axis=1)
        for name, fields in names.items()
    }
    whole = np.all([np.isfinite(power).all(axis=-1) for power in powers.values()], axis=0)  # a gap leaves a belt without spectrum
    kept: Sums = {name: np.where(whole[..., None], power, 0.0) for name, power in powers.items()}
    return kept | {"power_count": whole.astype(np.float64)}


def _case(
    plan: Plan, members: np.ndarray, truth: np.ndarray, counts: np.ndarray, applied: Sequence[int], drawn: np.ndarray
) -> Sums:
    """Fields of the drawn leads and plumes of all leads, float32; the probability of an event that does not apply is missing."""
    probability = np.full((int(drawn.sum()), len(plan.events), *plan.grid.shape), np.nan)
    for k, e in enumerate(applied):
        known = counts[drawn, k].reshape(-1, *plan.grid.shape)
        probability[:, e] = np.where(known >= 0, known / plan.members, np.nan)
    places = [nearest_point(plan.grid, *place) for place in plan.points.values()]
    rows, columns = np.array(places, dtype=np.int64).reshape(-1, 2).T
    fields = {
        "case_truth": truth[drawn],
        "case_mean": members[drawn].mean(axis=1, dtype=np.float64),
        "case_spread": members[drawn].std(axis=1, ddof=min(1, plan.members - 1), dtype=np.float64),
        "case_members": members[drawn, :CASE_MEMBERS],
        "case_probability": probability,
        "case_plume": members[:, :, rows, columns],
        "case_plume_truth": truth[:, rows, columns],
    }
    return {name: np.asarray(values, np.float32) for name, values in fields.items() if name in variables(plan)}
