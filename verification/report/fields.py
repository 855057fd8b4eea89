"""The map sections of the report: where scores are good and bad, and one forecast beside the truth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline.grid import Grid
from data_pipeline.schema import Channel, channels_of, select
from verification import maps, styles
from verification.report.figures import plume, png, png_size
from verification.report.tables import Table, lead_name, number, stamp_name

MAP_DAYS = (1, 5, 10)
CASE_DAYS = 5
WIDTH = 3.6  # inches; small, so that its text stays readable on a phone
RATIO = maps.Shading((0.4, 0.5, 0.67, 0.8, 0.9, 1.1, 1.25, 1.5, 2.0, 2.5), "PuOr", "spread / error")


@dataclass(frozen=True)
class Picture:
    """A map in the page: data URI, alternative text, caption and pixel size."""

    source: str
    alt: str
    caption: str
    width: int
    height: int


def picture(field: xr.DataArray, shading: maps.Shading, *, alt: str, caption: str) -> Picture:
    regional = not Grid.of(field).is_global  # the outline of the world needs no degrees
    source = png(maps.plot_field(field, shading=shading, width=WIDTH, degrees=regional, title=""))
    return Picture(source, alt, caption, *png_size(source))


def score_maps(fields: xr.Dataset, *, channels: Iterable[str], leads: list[float]) -> list[dict[str, Any]]:
    """Maps of fair CRPS, bias and spread/error of each channel at some leads, with the table of their area means.

    fields: `crps`, `bias`, `ssr` (channel, prediction_timedelta, latitude, longitude) in SI units.
    """
    return [_channel_maps(fields.sel(channel=channel), channel, leads) for channel in channels]


def _channel_maps(fields: xr.Dataset, channel: str, leads: list[float]) -> dict[str, Any]:
    style = styles.style_of(channel)
    at = [pd.Timedelta(hours=lead) for lead in leads]
    crps = [style.display_difference(fields["crps"].sel(prediction_timedelta=lead, drop=True)) for lead in at]
    bias = [style.display_difference(fields["bias"].sel(prediction_timedelta=lead, drop=True)) for lead in at]
    ssr = [fields["ssr"].sel(prediction_timedelta=lead, drop=True) for lead in at]
    units = style.difference_units
    kinds = [
        ("fair CRPS", units, crps, maps.spread_shading(style, crps, "fair CRPS")),
        ("bias of the mean", units, bias, maps.difference_shading(style, bias, "bias")),
        ("spread / error", "", ssr, RATIO),
    ]
    rows, lines = [], []
    for title, unit, arrays, shading in kinds:
        drawn = []
        for lead, array in zip(leads, arrays, strict=True):
            alt = f"Map of {title} of {style.long_name} at {lead_name(lead)}"
            drawn.append(picture(array, shading, alt=alt, caption=lead_name(lead)))
            lines.append([f"{title}, {lead_name(lead)}", *summary(array), unit])
        rows.append({"title": f"{style.long_name}: {title}", "figures": drawn})
    table = Table(f"{style.long_name}: what the maps hold", ["map", "area mean", "5 %", "95 %", "units"], lines)
    return {"label": style.label, "rows": rows, "table": table}


def summary(field: xr.DataArray) -> list[str]:
    """Area mean, 5th and 95th percentile of the finite points of a map, as text."""
    values, weights = field.transpose("latitude", "longitude").values, Grid.of(field).area_weights
    good = np.isfinite(values)
    if not good.any():
        return ["–", "–", "–"]
    low, high = np.percentile(values[good], [5, 95])
    return [number(float(np.average(values[good], weights=weights[good]))), number(float(low)), number(float(high))]


def case_section(case: xr.Dataset, truth: xr.Dataset | None, *, model: str) -> dict[str, Any]:
    """One initialisation of an ensemble at about day 5: truth, mean, spread, probability of an event and four members.

    case: schema "forecast", the first initialisation is shown. truth: schema "analysis"; its panels are left out where it lacks
    the valid time or the variable.
    """
    case = case.isel(time=0)
    leads = case["prediction_timedelta"].values
    lead = leads[np.argmin(np.abs(leads - np.timedelta64(CASE_DAYS, "D")))]
    start: np.datetime64 = case["time"].values.reshape(1)[0]
    valid = start + lead
    at_lead = case.sel(prediction_timedelta=lead, drop=True)
    shown = [_case_channel(at_lead, truth, channel, valid) for channel in channels_of(case.expand_dims("time"))]
    hours = float(lead / np.timedelta64(1, "h"))
    note = f"{model} from {stamp_name(start)}, {lead_name(hours)}, valid {stamp_name(valid)}, {case.sizes['number']} members. "
    note += "One forecast proves nothing; it shows what the scores are made of."
    return {"note": note, "channels": shown}


def case_of_state(state: xr.Dataset) -> dict[str, Any] | None:
    """The same for the first case that a score state keeps, with the plumes of its points; None if it keeps none."""
    if "case_mean" not in state:
        return None
    own = state.isel(case_time=0)
    leads = own["drawn_lead"].values
    lead = leads[np.argmin(np.abs(leads - np.timedelta64(CASE_DAYS, "D")))]
    start: np.datetime64 = own["case_time"].values.reshape(1)[0]
    shown = []
    for label in map(str, own["channel"].values):
        style, at = styles.style_of(label), own.sel(channel=label, drawn_lead=lead)
        fields = {"truth": style.display(at["case_truth"]), "ensemble mean": style.display(at["case_mean"])}
        single = {f"member {m.item()}": style.display(at["case_members"].sel(case_member=m)) for m in at["case_member"]}
        spread = style.display_difference(at["case_spread"]) if int(state.attrs["members"]) > 1 else None
        events = [] if "case_probability" not in at else [at["case_probability"].sel(event=event) for event in at["event"]]
        chances = [
            (f"probability of {event['event'].item()}", event, maps.PROBABILITY, "1") for event in events if event.notnull().any()
        ]
        channel = _drawn_case(style, fields, spread, chances, single)
        shown.append({**channel, "plumes": _plumes(own.sel(channel=label), style)})
    hours = float(lead / np.timedelta64(1, "h"))
    note = f"{state.attrs['model']} from {stamp_name(start)}, {lead_name(hours)}, valid {stamp_name(start + lead)}, "
    note += f"{state.attrs['members']} members. One forecast proves nothing; it shows what the scores are made of."
    return {"note": note, "channels": shown}


def _plumes(case: xr.Dataset, style: styles.Style) -> list[Any]:
    if "case_plume" not in case:
        return []
    days = case["prediction_timedelta"].values / np.timedelta64(1, "D")
    drawn = []
    for name in map(str, case["point"].values):
        members = style.display(case["case_plume"].sel(point=name)).transpose("prediction_timedelta", "number").values
        truth = style.display(case["case_plume_truth"].sel(point=name)).values
        title, alt = f"{name}: {style.label} ({style.units})", f"Members and truth of {style.long_name} at {name} by lead"
        drawn.append(plume(days, members, truth, title=title, alt=alt))
    return drawn


def _case_channel(forecast: xr.Dataset, truth: xr.Dataset | None, channel: Channel, valid: np.datetime64) -> dict[str, Any]:
    style = styles.style_of(channel.label)
    members = select(forecast, channel).astype(np.float64)
    observed = _truth_at(truth, channel, valid)
    fields = {} if observed is None else {"truth": style.display(observed)}
    fields["ensemble mean"] = style.display(members.mean("number"))
    chosen = members.isel(number=slice(4))
    single = {f"member {number.item()}": style.display(chosen.sel(number=number)) for number in chosen["number"]}
    if members.sizes["number"] == 1:
        return _drawn_case(style, fields, None, [], single)
    spread = style.display_difference(members.std("number", ddof=1))
    return _drawn_case(style, fields, spread, [_event(members, style, channel)], single)


def _drawn_case(
    style: styles.Style,
    fields: dict[str, xr.DataArray],
    spread: xr.DataArray | None,
    chances: list[tuple[str, xr.DataArray, maps.Shading, str]],
    single: dict[str, xr.DataArray],
) -> dict[str, Any]:
    """The pictures of one channel, fields and members on one scale, and the table behind them."""
    shading = maps.field_shading(style, [*fields.values(), *single.values()])
    drawn = [(name, field, shading, style.units) for name, field in fields.items()]
    if spread is not None:
        drawn.append(("spread", spread, maps.spread_shading(style, [spread]), style.difference_units))
    drawn += chances
    drawn += [(name, field, shading, style.units) for name, field in single.items()]
    figures = [picture(field, levels, alt=f"Map: {name}, {style.long_name}", caption=name) for name, field, levels, _ in drawn]
    rows = [[name, *summary(field), units] for name, field, _, units in drawn]
    table = Table(f"{style.long_name} in this forecast", ["map", "area mean", "5 %", "95 %", "units"], rows)
    return {"label": style.label, "figures": figures, "table": table, "plumes": []}


def _truth_at(truth: xr.Dataset | None, channel: Channel, valid: np.datetime64) -> xr.DataArray | None:
    if truth is None or channel.name not in truth or valid not in truth["time"].values:
        return None
    return select(truth, channel).sel(time=valid, drop=True).astype(np.float64).load()


def _event(members: xr.DataArray, style: styles.Style, channel: Channel) -> tuple[str, xr.DataArray, maps.Shading, str]:
    """Probability of the channel's event; where the ensemble is certain of that everywhere, of exceeding its own median."""
    threshold, side = styles.EVENTS.get(channel.label, (np.nan, "above"))
    chance = maps.probability(members, threshold, below=side == "below")
    if not np.isfinite(threshold) or float(chance.max()) < 0.05 or float(chance.min()) > 0.95:
        threshold, side = float(members.median()), "above"
        chance = maps.probability(members, threshold)
    sign = "<" if side == "below" else ">"
    name = f"probability of {style.label} {sign} {number(threshold * style.factor + style.offset)} {style.units}"
    return name, chance, maps.PROBABILITY, "1"
