"""The extremes of the report: rare events by lead and in tables, beside a reference; nothing where no event was scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from verification import readout
from verification.event_curves import event_counts, event_intervals, event_skill
from verification.report import details, diagrams
from verification.report.choice import channels_shown, event_name, events_shown, holders, hours_of
from verification.report.diagrams import Curve
from verification.report.tables import Table, card_leads, interval, lead_name, number
from verification.styles import style_of

FEWEST_EVENTS, FEWEST_INITS = 100, 10  # below which the scores of an event say little
CURVE_DAYS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15)
NOTE = (
    "An event is a value beyond a threshold; a quantile is that of the climatology at the valid time and point. twCRPS: "
    "fair CRPS that counts only what lies beyond the threshold (Gneiting and Ranjan 2011){against}. Brier skill: of the "
    "fair Brier score against always forecasting the base rate of this very sample, which no one knows beforehand. SEDI: of "
    "a warning by half of the members, 0 without skill, 1 at best (Ferro and Stephenson 2011). ROC area: 0.5 without skill. "
    "The scores of one member are not fair. Whole grid; {percent} % block bootstrap intervals in brackets and as bands; – "
    "where undefined; † where fewer than {events} events, in grid points of mean area, or events in fewer than {inits} "
    "initialisations say little."
)
WITH_INTERVAL = ("brier_skill", "auc", "sedi", "twcrps", "twcrps_skill")
COLUMNS = (
    ("base_rate", "base rate"),
    ("brier_skill", "Brier skill"),
    ("auc", "ROC area"),
    ("sedi", "SEDI"),
    ("twcrps", "twCRPS"),
    ("twcrps_skill", "twCRPS skill"),
)
SIGNED = ("brier_skill", "twcrps_skill")


def section(
    states: Sequence[xr.Dataset], *, reference: str | None = None, n_boot: int = 300, seed: int = 0, level: float = 0.95
) -> dict[str, Any] | None:
    """Curves and a table for each channel with the events of every model that has some; None where none has.

    reference: the model that skill is against; default the first climatology among the others, else the last of them.
    """
    known, names = holders(states, "event_table")
    if not known:
        return None
    against = _reference(names, reference)
    beside = None if against is None else known[against]
    scored = {index: _scores(state, None if index == against else beside, n_boot, seed, level) for index, state in known.items()}
    first = next(iter(known.values()))
    who = "" if against is None else names[against]
    found = [_channel(label, events_shown(first, label), scored, names, who) for label in channels_shown(first)]
    channels = [channel for channel in found if channel["groups"] or channel["tables"][0].rows]
    if not channels:
        return None
    told = f", and its skill against {who} on the initialisations of both" if who else ""
    apart = [names[i] for i, one in known.items() if beside is not None and not readout.same_climatology(one, beside)]
    told += f" (but not of quantiles for {', '.join(apart)}: of another climatology)" if apart else ""
    note = NOTE.format(against=told, percent=f"{100 * level:g}", events=FEWEST_EVENTS, inits=FEWEST_INITS)
    return {
        "id": "events",
        "title": "Extremes",
        "note": note,
        "channels": channels,
        "numbers": [_numbers(scores, names[index], who) for index, scores in scored.items()],
    }


def _reference(names: Mapping[int, str], wanted: str | None) -> int | None:
    others = [index for index in names if index != min(names)]
    if wanted is not None:
        others = [index for index, name in names.items() if name == wanted]
    climates = [index for index in others if "climatolog" in names[index].lower()]
    return next(iter(climates or others[-1:]), None)


def _scores(state: xr.Dataset, reference: xr.Dataset | None, n_boot: int, seed: int, level: float) -> xr.Dataset:
    """The scores at the leads of curves and tables, with their limits; the twCRPS of one member is the plain one."""
    leads = _leads(state)
    own = state.sel(prediction_timedelta=leads)
    scores = readout.event_scores(own)
    scores = scores.merge(event_intervals(state, leads=leads, n_boot=n_boot, seed=seed, level=level), join="exact")
    scores = scores.merge(event_counts(own))
    if int(state.attrs["members"]) == 1:
        scores = scores.assign({f"twcrps{side}": scores[f"twcrps_ecdf{side}"] for side in ("", "_lower", "_upper")})
    skills = [f"twcrps_skill{side}" for side in ("", "_lower", "_upper")]
    shared = ("channel", "event", "time", "prediction_timedelta")
    if reference is None or not all(np.isin(own[dim].values, reference[dim].values).any() for dim in shared):
        return scores.assign({name: xr.full_like(scores["base_rate"], np.nan) for name in skills})
    skill = event_skill(own, reference, n_boot=n_boot, seed=seed, level=level)
    return scores.merge(skill[skills], join="left")


def _leads(state: xr.Dataset) -> np.ndarray:
    """Leads of curves and tables."""
    leads = state["prediction_timedelta"].values
    hours = [hours_of(lead) for lead in leads]
    told = {*card_leads(hours, CURVE_DAYS), *card_leads(hours)}
    kept: np.ndarray = leads[[index for index, hour in enumerate(hours) if hour in told]]
    return kept


def _channel(
    label: str, shown: Sequence[str], scored: Mapping[int, xr.Dataset], names: Mapping[int, str], reference: str
) -> dict[str, Any]:
    style = style_of(label)
    groups = []
    for event in shown:
        of = f"{style.long_name} {event_name(event, label)}"
        own = {
            index: scores.sel(channel=label, event=event)
            for index, scores in scored.items()
            if label in scores["channel"].values and event in scores["event"].values
        }
        panels = [("twcrps_skill", f"twCRPS skill against {reference}")] if reference else []
        panels += [("brier_skill", "Brier skill"), ("sedi", "SEDI")]
        panels += [] if reference else [("twcrps", "twCRPS")]
        drawn = []
        for name, title in panels:
            curves = [curve for index, one in own.items() if (curve := _curve(index, one, name, style.factor)) is not None]
            if curves:
                units = style.difference_units if name == "twcrps" else ""
                alt = f"{title} of {of} by lead, of {', '.join(names[curve.model] for curve in curves)}"
                heading = "twCRPS skill" if name == "twcrps_skill" else title
                picture = diagrams.by_lead(curves, title=heading, units=units, alt=alt, zero=name in SIGNED)
                drawn.append({"svg": picture, "caption": [f"against {reference}"] if name == "twcrps_skill" else []})
        if drawn:
            groups.append({"title": of, "kind": "panels", "figures": drawn})
    table = _table(label, scored, names, reference)
    return {"label": style.label, "long_name": style.long_name, "groups": groups, "tables": [table]}


def _curve(index: int, one: xr.Dataset, name: str, factor: float) -> Curve | None:
    if not np.isfinite(one[name]).any():
        return None
    days = one["prediction_timedelta"].values / np.timedelta64(1, "D")
    scale = factor if name == "twcrps" else 1.0
    return Curve(index, days, *(scale * one[f"{name}{side}"].values for side in ("", "_lower", "_upper")))


def _table(label: str, scored: Mapping[int, xr.Dataset], names: Mapping[int, str], reference: str) -> Table:
    """The models under each other, for every event and lead."""
    style = style_of(label)
    columns = [(name, text) for name, text in COLUMNS if reference or name != "twcrps_skill"]
    rows = []
    first = next(iter(scored.values()))
    hours = [hours_of(lead) for lead in first["prediction_timedelta"].values]
    for event in map(str, first["event"].values):
        for told in card_leads(hours):
            at = {"channel": label, "event": event, "prediction_timedelta": pd.Timedelta(hours=told).to_timedelta64()}
            for index, scores in scored.items():
                if any(value not in scores[dim].values for dim, value in at.items()) or not np.isfinite(
                    scores["base_rate"].sel(at)
                ):
                    continue
                one = scores.sel(at)
                when = f"{event_name(event, label)}, {lead_name(told)}"
                rows.append([when, names[index], *_cells(one, columns, style.factor), _count(one)])
    heads = [
        text + (f" ({style.difference_units})" if name == "twcrps" else f" vs {reference}" if name == "twcrps_skill" else "")
        for name, text in columns
    ]
    return Table(f"{style.long_name}: events", ["event, lead", "model", *heads, "events"], rows)


def _cells(one: xr.Dataset, columns: Sequence[tuple[str, str]], factor: float) -> list[str]:
    cells = []
    for name, _ in columns:
        scale, signed = (factor if name == "twcrps" else 1.0), name in SIGNED
        value, low, high = (scale * float(one.get(f"{name}{side}", np.nan)) for side in ("", "_lower", "_upper"))
        limits = interval(low, high, signed) if name in WITH_INTERVAL else ""
        cells.append(number(value, signed) + (f" [{limits}]" if limits else ""))
    return cells


def _count(one: xr.Dataset) -> str:
    """`† 42 in 3 of 34 initialisations`."""
    events, inits, n = float(one["events"]), int(one["initialisations"]), int(one["n"])
    few = "† " if events < FEWEST_EVENTS or inits < min(FEWEST_INITS, n) or n < FEWEST_INITS else ""
    return f"{few}{events:,.0f} in {inits} of {n} initialisations"


def _numbers(scores: xr.Dataset, model: str, reference: str) -> pd.DataFrame:
    options: dict[str, Any] = {"section": "events", "model": model, "n": scores["n"]}
    scored = np.isfinite(scores["base_rate"])  # of events that do not apply to a channel nothing is counted either
    scores = scores.assign({name: scores[name].where(scored) for name in ("events", "initialisations")})
    plain = ["base_rate", "brier", "brier_ecdf", "brier_skill", "auc", "sedi", "events", "initialisations"]
    return pd.concat(
        [
            details.rows(scores, plain, **options),
            details.rows(scores, ["twcrps", "twcrps_ecdf"], power=1, **options),
            details.rows(scores, ["twcrps_skill"], reference=reference, **options),
        ]
    )
