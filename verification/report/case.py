"""One forecast in the report, beside what came of it: maps of truth, ensemble and probabilities, and plumes at points.

Its fields come from a score state that keeps a case, or from a forecast store; both are drawn alike. Fields are in SI units
until they are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel, channels_of, select
from verification import maps, styles
from verification.casewise import coarser
from verification.counting import compare
from verification.map_sources import climate_quantile, climate_quantiles
from verification.plan import Event, check_points, default_points, nearest_point
from verification.report import diagrams
from verification.report.choice import MAPPED, event_name, events_shown, hours_of, labels_shown
from verification.report.fields import picture, summary
from verification.report.tables import Table, lead_name, number, stamp_name

DAYS = 5  # the lead of the maps, or the nearest
MEMBERS = 4
CAUTION = (
    "One forecast proves nothing; it shows what the scores are made of. Plumes: all members (pale), 10 to 90 % of them (darker), "
    "their median, and what came (dashed)."
)

Points = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Fields:
    """One variable of a case. truth, spread: None where there is none; chances: {what: probability}; plumes: {name: (members
    (lead, number), truth (lead,))}."""

    truth: xr.DataArray | None
    mean: xr.DataArray
    spread: xr.DataArray | None
    members: Mapping[str, xr.DataArray]
    chances: Mapping[str, xr.DataArray]
    plumes: Mapping[str, tuple[np.ndarray, np.ndarray]]


def case_section(
    case: xr.Dataset,
    truth: xr.Dataset | None,
    *,
    model: str,
    events: Sequence[str] = (),
    climatology: xr.Dataset | None = None,
    points: Points | None = None,
) -> dict[str, Any]:
    """One initialisation of an ensemble at about day 5: truth, mean, spread, probability of events, four members, plumes.

    case: schema "forecast", the first initialisation is shown. truth: schema "analysis"; its panels are left out where it lacks
    the valid time or the variable. events: as `Event.parse` reads them, quantiles of `climatology`; for a variable without any
    the event that forecasters ask for. points: {name: (latitude, longitude)}, default `default_points`. Of many channels those
    are shown that a score state shows. Raises InputError for truth or climatology on another grid, for events without their
    climatology or a quantile that it lacks, and for points off the grid.
    """
    case = case.isel(time=0)
    grid = _common_grid(case, truth, climatology)
    places = points or default_points(grid)
    check_points(grid, places)
    parsed = [Event.parse(text) for text in events]
    if climatology is None and any(event.is_quantile for event in parsed):
        raise InputError("a quantile of the climatology as event of the case, but no climatology: give one (--climatology)")
    leads = case["prediction_timedelta"].values
    lead = _nearest(leads)
    start: np.datetime64 = case["time"].values.reshape(1)[0]
    found = {}
    channels = {channel.label: channel for channel in channels_of(case.expand_dims("time"))}
    for channel in (channels[label] for label in labels_shown(list(channels), MAPPED)):
        members = select(case, channel)
        at = members.sel(prediction_timedelta=lead).astype(np.float64)
        several = at.sizes["number"] > 1
        own = [event for event in parsed if event.applies_to(channel.label)]
        precision = coarser(members, *([select(truth, channel)] if truth is not None and channel.name in truth else []))
        counted = at.astype(precision)
        chances = [_chance(counted, event, channel, climatology) for event in own] or [_usual_chance(counted, channel)]
        found[channel.label] = Fields(
            truth=_truth_at(truth, channel, start + lead),
            mean=at.mean("number"),
            spread=at.std("number", ddof=1) if several else None,
            members={f"member {one['number'].item()}": one for one in at.isel(number=slice(MEMBERS)).transpose("number", ...)},
            chances=dict(chances) if several else {},
            plumes={
                name: _plume(members, truth, channel, start + leads, nearest_point(grid, *at)) for name, at in places.items()
            },
        )
    return _drawn(found, f"{model} from {stamp_name(start)}", leads, lead, start, case.sizes["number"])


def case_of_state(state: xr.Dataset) -> dict[str, Any] | None:
    """The same for the first case that a score state keeps, with its events and points; None if it keeps none."""
    if "case_mean" not in state:
        return None
    whole = state.isel(case_time=0)
    lead = _nearest(whole["drawn_lead"].values)
    start: np.datetime64 = whole["case_time"].values.reshape(1)[0]
    several = int(state.attrs["members"]) > 1
    found = {}
    for label in map(str, whole["channel"].values):
        own = whole.sel(channel=label)
        at = own.sel(drawn_lead=lead)
        events = events_shown(state, label) if "case_probability" in at and several else []
        plumes = {}
        for name in map(str, own["point"].values) if "case_plume" in own else ():
            members = own["case_plume"].sel(point=name).transpose("prediction_timedelta", "number")
            plumes[name] = (members.values, own["case_plume_truth"].sel(point=name).values)
        found[label] = Fields(
            truth=at["case_truth"],
            mean=at["case_mean"],
            spread=at["case_spread"] if several else None,
            members={f"member {m.item()}": at["case_members"].sel(case_member=m) for m in at["case_member"]},
            chances={f"probability {event_name(event, label)}": at["case_probability"].sel(event=event) for event in events},
            plumes=plumes,
        )
    leads = whole["prediction_timedelta"].values
    return _drawn(found, f"{state.attrs['model']} from {stamp_name(start)}", leads, lead, start, int(state.attrs["members"]))


def _drawn(
    found: Mapping[str, Fields], origin: str, leads: np.ndarray, lead: np.timedelta64, start: np.datetime64, members: int
) -> dict[str, Any]:
    when = f"{lead_name(hours_of(lead))}, valid {stamp_name(start + lead)}"
    note = f"{origin}, {when}, {members} member{'s' if members > 1 else ''}. {CAUTION}"
    return {"note": note, "channels": [_channel(label, fields, leads) for label, fields in found.items()]}


def _channel(label: str, fields: Fields, leads: np.ndarray) -> dict[str, Any]:
    """The pictures of one variable, fields and members on one scale, and the tables behind them."""
    style = styles.style_of(label)
    shown = {"truth": fields.truth, "ensemble mean": fields.mean, **fields.members}
    values = {name: style.display(field) for name, field in shown.items() if field is not None}
    shading = maps.field_shading(style, list(values.values()))
    drawn = [(name, field, shading, style.units) for name, field in values.items()]
    between = []
    if fields.spread is not None:
        spread = style.display_difference(fields.spread)
        between.append(("spread", spread, maps.spread_shading(style, [spread]), style.difference_units))
    between += [(name, chance, maps.PROBABILITY, "1") for name, chance in fields.chances.items()]
    first = len(values) - len(fields.members)
    drawn[first:first] = between
    figures = [picture(field, levels, alt=f"Map: {name}, {style.long_name}", caption=name) for name, field, levels, _ in drawn]
    rows = [[name, *summary(field), units] for name, field, _, units in drawn]
    table = Table(f"{style.long_name} in this forecast", ["map", "area mean", "5 %", "95 %", "units"], rows)
    known = {name: pair for name, pair in fields.plumes.items() if np.isfinite(pair[0]).any()}
    plumes = [_plume_picture(name, *pair, leads, style) for name, pair in known.items()]
    tables = [_plume_table(name, *pair, leads, style) for name, pair in known.items()]
    return {"label": style.label, "figures": figures, "table": table, "plumes": plumes, "plume_tables": tables}


def _plume_picture(name: str, members: np.ndarray, truth: np.ndarray, leads: np.ndarray, style: styles.Style) -> Any:
    days = leads / np.timedelta64(1, "D")
    shown = [values * style.factor + style.offset for values in (members, truth)]
    alt = f"Members and truth of {style.long_name} at {name} by lead"
    return diagrams.plume(days, *shown, title=f"{name}: {style.label} ({style.units})", alt=alt)


def _plume_table(name: str, members: np.ndarray, truth: np.ndarray, leads: np.ndarray, style: styles.Style) -> Table:
    levels = np.quantile(members, [0.0, 0.1, 0.5, 0.9, 1.0], axis=1)
    rows = []
    for index, lead in enumerate(leads):
        values = [truth[index], *levels[:, index]]
        rows.append([lead_name(hours_of(lead)), *[number(float(v * style.factor + style.offset)) for v in values]])
    heads = ["lead", "truth", "lowest member", "10 %", "median", "90 %", "highest member"]
    return Table(f"{style.long_name} at {name} ({style.units})", heads, rows)


def _common_grid(case: xr.Dataset, truth: xr.Dataset | None, climatology: xr.Dataset | None) -> Grid:
    grid = Grid.of(case)
    others = {"truth": truth, "the climatology": climatology}
    unlike = [
        f"{name} on {there}" for name, data in others.items() if data is not None and not grid.matches(there := Grid.of(data))
    ]
    if unlike:
        raise InputError(
            f"the forecast of the case is on {grid}, {' and '.join(unlike)}; give them on its grid, or leave them out"
        )
    return grid


def _nearest(leads: np.ndarray) -> np.timedelta64:
    found: np.timedelta64 = leads[np.argmin(np.abs(leads - np.timedelta64(DAYS, "D")))]
    return found


def _truth_at(truth: xr.Dataset | None, channel: Channel, valid: np.datetime64) -> xr.DataArray | None:
    if truth is None or channel.name not in truth or valid not in truth["time"].values:
        return None
    return select(truth, channel).sel(time=valid, drop=True).astype(np.float64).load()


def _plume(
    members: xr.DataArray, truth: xr.Dataset | None, channel: Channel, valid: np.ndarray, place: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Members (lead, number) and truth (lead,), NaN where the truth lacks a time, at a row and column."""
    at = dict(zip(("latitude", "longitude"), place, strict=True))
    drawn = members.isel(at).transpose("prediction_timedelta", "number").values.astype(np.float64)
    if truth is None or channel.name not in truth:
        return drawn, np.full(valid.size, np.nan)
    known = valid[np.isin(valid, truth["time"].values)]
    series = select(truth, channel).isel(at).sel(time=known).astype(np.float64).load()
    return drawn, series.reindex(time=valid).values


def _chance(members: xr.DataArray, event: Event, channel: Channel, climatology: xr.Dataset | None) -> tuple[str, xr.DataArray]:
    """What an event is called, and the share of members that have it, compared as `policy_operator` of a state says."""
    known = members.notnull().all("number")
    limit = xr.DataArray(event.value)
    if event.is_quantile:
        quantiles = climate_quantiles(climatology, channel, members, f"event {event.label!r} of the case")
        limit = climate_quantile(quantiles, event.value).drop_vars("quantile").reindex_like(known, method="nearest")
        known = known & limit.notnull()
    chance = compare(members, limit.astype(members.dtype), event.op).mean("number").where(known)
    name = f"probability {event_name(event.label, channel.label)}"
    return name, chance.rename(channel.name)


def _usual_chance(members: xr.DataArray, channel: Channel) -> tuple[str, xr.DataArray]:
    """Probability of the channel's event; where the ensemble is certain of that everywhere, of exceeding its own median."""
    threshold, side = styles.EVENTS.get(channel.label, (np.nan, "above"))
    chance = maps.probability(members, threshold, below=side == "below")
    if not np.isfinite(threshold) or float(chance.max()) < 0.05 or float(chance.min()) > 0.95:
        threshold, side = float(members.median()), "above"
        chance = maps.probability(members, threshold)
    style = styles.style_of(channel.label)
    sign = "<" if side == "below" else ">"
    name = f"probability of {style.label} {sign} {number(threshold * style.factor + style.offset)} {style.units}"
    return name, chance
