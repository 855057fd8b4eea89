"""ROC curves and economic value of the report: what warnings from the ensemble are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from verification import readout
from verification.event_curves import DIMS
from verification.events import economic_value, roc
from verification.report import details, diagrams
from verification.report.choice import event_channels, event_name, hours_of
from verification.report.diagrams import Curve
from verification.report.tables import Table, interval, lead_name
from verification.significance import draws_of_lead, limits
from verification.styles import style_of

RATIOS = np.array(
    [0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
)
TOLD_RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
TOLD_PROBABILITIES = (0.1, 0.3, 0.5, 0.7, 0.9)
NOTE = (
    "ROC: hits against false alarms of warning when at least 0, 1, … M members have the event; the area is the chance that "
    "an event had more members than a non-event (0.5 without skill; blind to calibration, higher for larger ensembles). "
    "Economic value: what a user saves who pays the cost to avert a loss whenever enough members have the event, of what a "
    "perfect forecast would save; 0 is the better of always and never acting (Richardson 2000). Each user takes the number "
    "of members that was best in this very sample. Value is highest where cost / loss is the base rate (dotted). Whole "
    "grid; {percent} % block bootstrap intervals in brackets."
)


def section(states: Sequence[xr.Dataset], *, n_boot: int = 300, seed: int = 0, level: float = 0.95) -> dict[str, Any] | None:
    """ROC and economic value of all models for the events of each channel; None where no state keeps events."""
    options: dict[str, Any] = {"n_boot": n_boot, "seed": seed, "level": level}
    read, names, channels = event_channels(states, partial(_read, **options), _channel)
    if not channels:
        return None
    numbers = []
    for index, whole in read.items():
        told: dict[str, Any] = {"section": "decisions", "model": names[index], "n": whole["n"]}
        numbers.append(details.rows(whole, ["hit_rate", "false_alarm_rate"], at="members_required", **told))
        numbers.append(details.rows(whole, ["value"], at="cost_loss", **told))
        numbers.append(details.rows(whole, ["auc"], **told))
    note = NOTE.format(percent=f"{100 * level:g}")
    return {"id": "decisions", "title": "ROC and economic value", "note": note, "channels": channels, "numbers": numbers}


def _read(state: xr.Dataset, leads: np.ndarray, *, n_boot: int, seed: int, level: float) -> xr.Dataset:
    sums = readout.event_sums(state.sel(prediction_timedelta=leads))
    table = sums["event_table"].sum("time")
    total = table.sum(("members_forecasting", "observed"))
    curves = roc(table).merge(economic_value(table, RATIOS.tolist())[["value"]])
    base = table.isel(observed=1).sum("members_forecasting") / total.where(total > 0)
    n = (sums["tail_weight"] > 0).sum("time")
    bounds = []
    for lead in leads:
        draws = draws_of_lead(state, lead, n_boot=n_boot, seed=seed)
        drawn = roc(xr.dot(sums["event_table"].sel(prediction_timedelta=[lead]), draws, dim="time"))[["auc"]]
        bounds.append(limits(drawn, DIMS, level))
    return curves.merge(xr.concat(bounds, "prediction_timedelta").where(n > 1)).assign(base_rate=base, n=n)


def _channel(label: str, events: Sequence[str], read: Mapping[int, xr.Dataset], names: Mapping[int, str]) -> dict[str, Any]:
    style = style_of(label)
    groups, tables = [], []
    for event in events:
        name = event_name(event, label)
        of = f"{style.long_name} {name}"
        rocs, values, rates, worth = [], [], [], []
        for lead in next(iter(read.values()))["prediction_timedelta"].values:
            at = {"channel": label, "event": event, "prediction_timedelta": lead}
            own = {i: one for i, whole in read.items() if (one := _at(whole, at)) is not None}
            if not own:
                continue
            when, who = lead_name(hours_of(lead)), ", ".join(names[index] for index in own)
            curves = [Curve(index, one["false_alarm_rate"].values, one["hit_rate"].values) for index, one in own.items()]
            picture = diagrams.roc(curves, title=when, alt=f"ROC of {of}, {when}, of {who}")
            rocs.append({"svg": picture, "caption": [f"{names[index]}: area {_area(one)}" for index, one in own.items()]})
            curves = [Curve(index, RATIOS, one["value"].values) for index, one in own.items()]
            base = float(next(iter(own.values()))["base_rate"])
            picture = diagrams.value(curves, base, title=when, alt=f"Economic value of {of}, {when}, of {who}")
            values.append({"svg": picture, "caption": [f"base rate {100 * base:.3g} %"]})
            rates += [[f"{when}, {names[index]}", _area(one), *_warnings(one)] for index, one in own.items()]
            told = {i: one["value"].sel(cost_loss=list(TOLD_RATIOS), method="nearest").values for i, one in own.items()}
            worth += [[f"{when}, {names[index]}", *[f"{v:.2f}" for v in told[index]]] for index in own]
        if rocs:
            groups.append({"title": f"ROC, {of}", "kind": "panels", "figures": rocs})
            groups.append({"title": f"Economic value, {of}", "kind": "panels", "figures": values})
            heads = ["lead, model", "ROC area", *[f"warn at {100 * p:.0f} %" for p in TOLD_PROBABILITIES]]
            tables.append(Table(f"{of}: area, and hit rate / false-alarm rate of warning from a probability on", heads, rates))
            heads = ["lead, model", *[f"{ratio:g}" for ratio in TOLD_RATIOS]]
            tables.append(Table(f"{of}: economic value by cost / loss", heads, worth))
    return {"label": style.label, "long_name": style.long_name, "groups": groups, "tables": tables}


def _at(whole: xr.Dataset, at: Mapping[str, Any]) -> xr.Dataset | None:
    """A model's curves for an event, if it has both events and non-events there."""
    if any(value not in whole[dim].values for dim, value in at.items()):
        return None
    one = whole.sel(at)
    return one if np.isfinite(one["auc"]) else None


def _area(one: xr.Dataset) -> str:
    bounds = interval(float(one["auc_lower"]), float(one["auc_upper"]))
    return f"{float(one['auc']):.3f}" + (f" [{bounds}]" if bounds else "")


def _warnings(one: xr.Dataset) -> list[str]:
    members = one.sizes["members_required"] - 2
    cells = []
    for probability in TOLD_PROBABILITIES:
        at = one.sel(members_required=int(np.ceil(round(probability * members, 9))))
        cells.append(f"{float(at['hit_rate']):.2f} / {float(at['false_alarm_rate']):.2g}")
    return cells
