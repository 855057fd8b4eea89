"""The events of the report: rare values, by table of each channel; nothing where no event was scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import xarray as xr

from verification import readout
from verification.report.tables import Table, card_leads, lead_name, number
from verification.styles import style_of

NOTE = (
    "An event is a value beyond a threshold; q0.95 is the 95 % quantile of the climatology at the valid time. Base rate: how "
    "often it happened. Brier skill: of the fair Brier score against always forecasting that base rate, which no one knows "
    "beforehand. ROC area: chance that an event had more members than a non-event, 0.5 without skill. SEDI: of a warning by half "
    "of the members. twCRPS: fair CRPS that counts only what lies beyond the threshold. Brier skill and twCRPS of one member are "
    "not fair. Whole grid; – where undefined."
)
COLUMNS = (
    ("base_rate", "base rate"),
    ("brier_skill", "Brier skill"),
    ("auc", "ROC area"),
    ("sedi", "SEDI"),
    ("twcrps", "twCRPS"),
)


def section(states: Sequence[xr.Dataset]) -> dict[str, Any] | None:
    """A table for each channel with the events of every model that has some."""
    scored = {str(state.attrs["model"]): _scores(state) for state in states if "event_table" in state}
    if not scored:
        return None
    labels = [str(label) for label in next(iter(scored.values()))["channel"].values]
    return {"note": NOTE, "tables": [_table(label, scored) for label in labels]}


def _scores(state: xr.Dataset) -> xr.Dataset:
    scores = readout.event_scores(state)
    return scores if int(state.attrs["members"]) > 1 else scores.assign(twcrps=scores["twcrps_ecdf"])


def _table(channel: str, scored: Mapping[str, xr.Dataset]) -> Table:
    """The models under each other, for every event and lead."""
    style = style_of(channel)
    first = next(iter(scored.values()))
    hours = (first["prediction_timedelta"].values / np.timedelta64(1, "h")).tolist()
    rows = []
    for event, lead in product(map(str, first["event"].values), card_leads(hours)):
        at = {"channel": channel, "event": event, "prediction_timedelta": first["prediction_timedelta"].values[hours.index(lead)]}
        for model, scores in scored.items():
            if any(value not in scores[dim].values for dim, value in at.items()) or not np.isfinite(scores["base_rate"].sel(at)):
                continue
            rows.append([f"{event}, {lead_name(lead)}", model, *_cells(scores.sel(at), style.factor)])
    heads = [text + (f" ({style.difference_units})" if name == "twcrps" else "") for name, text in COLUMNS]
    return Table(f"{style.long_name}: events", ["event, lead", "model", *heads], rows)


def _cells(scores: xr.Dataset, factor: float) -> list[str]:
    values = {name: float(scores[name]) * (factor if name == "twcrps" else 1.0) for name, _ in COLUMNS}
    return [number(value, signed=name == "brier_skill") for name, value in values.items()]
