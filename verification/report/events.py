"""The events of the report: rare values, by table of each channel; nothing where no event was scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import xarray as xr

from verification import readout
from verification.report.tables import Table, card_leads, interval, lead_name, number
from verification.significance import event_intervals
from verification.styles import style_of

NOTE = (
    "An event is a value beyond a threshold; q0.95 is the 95 % quantile of the climatology at the valid time. Base rate: how "
    "often it happened. Brier skill: of the fair Brier score against always forecasting that base rate, which no one knows "
    "beforehand. ROC area: chance that an event had more members than a non-event, 0.5 without skill. SEDI: of a warning by half "
    "of the members. twCRPS: fair CRPS that counts only what lies beyond the threshold. Brier skill and twCRPS of one member are "
    "not fair. Whole grid; 95 % block bootstrap intervals in brackets; – where undefined."
)
WITH_INTERVAL = ("brier_skill", "auc", "twcrps")
COLUMNS = (
    ("base_rate", "base rate"),
    ("brier_skill", "Brier skill"),
    ("auc", "ROC area"),
    ("sedi", "SEDI"),
    ("twcrps", "twCRPS"),
)


def section(states: Sequence[xr.Dataset], *, n_boot: int = 300, seed: int = 0) -> dict[str, Any] | None:
    """A table for each channel with the events of every model that has some."""
    scored = {str(state.attrs["model"]): _scores(state, n_boot, seed) for state in states if "event_table" in state}
    if not scored:
        return None
    labels = [str(label) for label in next(iter(scored.values()))["channel"].values]
    return {"note": NOTE, "tables": [_table(label, scored) for label in labels]}


def _scores(state: xr.Dataset, n_boot: int, seed: int) -> xr.Dataset:
    """The scores at the leads of the card, with their limits; the twCRPS of one member is the plain one."""
    hours = (state["prediction_timedelta"].values / np.timedelta64(1, "h")).tolist()
    leads = state["prediction_timedelta"].values[[hours.index(lead) for lead in card_leads(hours)]]
    limits = event_intervals(state, leads=leads, n_boot=n_boot, seed=seed)
    scores = readout.event_scores(state).sel(prediction_timedelta=leads).merge(limits, join="exact")
    if int(state.attrs["members"]) > 1:
        return scores
    return scores.assign({f"twcrps{side}": scores[f"twcrps_ecdf{side}"] for side in ("", "_lower", "_upper")})


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
    cells = []
    for name, _ in COLUMNS:
        scale, signed = (factor if name == "twcrps" else 1.0), name == "brier_skill"
        value, low, high = (scale * float(scores[f"{name}{side}"]) for side in ("", "_lower", "_upper"))
        limits = interval(low, high, signed) if name in WITH_INTERVAL else ""
        cells.append(number(value, signed) + (f" [{limits}]" if limits else ""))
    return cells
