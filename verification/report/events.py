"""The events of the report: rare values, by table of each channel; nothing where no event was scored."""

from __future__ import annotations

from collections.abc import Sequence
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
    "of the members. twCRPS: fair CRPS that counts only what lies beyond the threshold. Whole grid; – where undefined."
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
    scored = [(str(state.attrs["model"]), state, readout.event_scores(state)) for state in states if "event_table" in state]
    if not scored:
        return None
    labels = [str(label) for label in scored[0][1]["channel"].values]
    return {"note": NOTE, "tables": [_table(label, scored) for label in labels]}


def _table(channel: str, scored: Sequence[tuple[str, xr.Dataset, xr.Dataset]]) -> Table:
    style = style_of(channel)
    rows = []
    for model, state, scores in scored:
        if channel not in scores["channel"].values:
            continue
        own = scores.sel(channel=channel)
        hours = (own["prediction_timedelta"].values / np.timedelta64(1, "h")).tolist()
        single = int(state.attrs["members"]) == 1
        for event in map(str, own["event"].values):
            for lead in card_leads(hours):
                at = own.sel(event=event).isel(prediction_timedelta=hours.index(lead))
                if not np.isfinite(at["base_rate"]):
                    continue
                values = [at["twcrps_ecdf" if name == "twcrps" and single else name] for name, _ in COLUMNS]
                factors = [style.factor if name == "twcrps" else 1.0 for name, _ in COLUMNS]
                cells = [number(float(value) * factor) for value, factor in zip(values, factors, strict=True)]
                rows.append([f"{event}, {lead_name(lead)}", model, *cells])
    heads = [text + (f" ({style.difference_units})" if name == "twcrps" else "") for name, text in COLUMNS]
    return Table(f"{style.long_name}: events", ["event, lead", "model", *heads], rows)
