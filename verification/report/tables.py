"""The numbers of the report in one long table, and the tables made from it: scorecards, tables behind figures, CSV and JSON.

Everything that the page prints as a score is a row of `numbers`, in display units; nothing is computed twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from verification.styles import style_of

CARD_DAYS = (1, 3, 5, 7, 10)
SCORE_NAMES = {
    "crps": "fair CRPS",
    "crps_ecdf": "ecdf CRPS",
    "rmse": "RMSE of the mean",
    "spread": "spread",
    "ssr": "spread/skill ratio",
    "bias": "bias of the mean",
    "acc": "anomaly correlation",
    "crpss": "CRPS skill",
}


@dataclass(frozen=True)
class Table:
    """A plain table: caption, column names, rows of text (the first cell names the row)."""

    caption: str
    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Cell:
    """One cell of a scorecard. tone: "good", "poor" or ""; weight 0 to 1: depth of colour; sure: interval off neutral."""

    value: str
    interval: str = ""
    tone: str = ""
    weight: float = 0.0
    sure: bool = False
    title: str = ""


@dataclass(frozen=True)
class CardRow:
    label: str
    long_name: str
    units: str
    cells: list[Cell]


@dataclass(frozen=True)
class Card:
    """Channels x leads of one score, coloured."""

    caption: str
    columns: list[str]
    rows: list[CardRow] = field(default_factory=list)
    corner: str = ""


def card_leads(hours: Sequence[float], days: Sequence[float] = CARD_DAYS) -> list[float]:
    """The leads shown where not all fit: those nearest to days 1, 3, 5, 7, 10 and within half a day of them; all if few."""
    unique = sorted(set(hours))
    if len(unique) <= len(days):
        return unique
    near = {min(unique, key=lambda hour: abs(hour - 24 * day)) for day in days}
    chosen = sorted(hour for hour in near if min(abs(hour - 24 * day) for day in days) <= 12)
    return chosen or unique[: len(days)]


def lead_name(hours: float) -> str:
    """`12 h` below a day, `day 1.5` from there."""
    return f"{hours:g} h" if hours < 24 else f"day {hours / 24:g}"


def stamp_name(stamp: np.datetime64) -> str:
    """`2006-01-01 12 UTC`."""
    return pd.Timestamp(stamp).strftime("%Y-%m-%d %H UTC")


def number(value: float, signed: bool = False) -> str:
    """Three significant digits without exponents where people can read them; an en dash for what is not there."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    decimals = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 or signed else 3
    if 0 < size < 0.0095 and not signed:
        return f"{value:.2e}"
    text = f"{value:{'+' if signed else ''}.{decimals}f}"
    return text.replace("-", "−")


def interval(low: float, high: float, signed: bool = False) -> str:
    """`0.35–0.41`, `−0.10 to +0.20`, or nothing where there is no interval."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    if low >= 0:
        return f"{number(low, signed)}–{number(high, signed)}".replace("+", "")
    return f"{number(low, signed)} to {number(high, signed)}"


def pick(numbers: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Rows whose columns equal the wanted values, in lead order."""
    chosen = numbers
    for name, value in wanted.items():
        chosen = chosen[chosen[name] == value]
    return chosen.sort_values("lead_hours")


def card(numbers: pd.DataFrame, *, score: str, model: str, region: str, channels: Sequence[str], reference: str = "") -> Card:
    """The scorecard of one score of one model over channels and leads."""
    leads = card_leads(numbers["lead_hours"].tolist())
    rows = []
    for channel in channels:
        style = style_of(channel)
        chosen = pick(numbers, score=score, model=model, region=region, channel=channel, reference=reference)
        by_lead = {row.lead_hours: row for row in chosen.itertuples()}
        cells = [_cell(score, by_lead[lead]) if lead in by_lead else Cell("–") for lead in leads]
        rows.append(
            CardRow(style.label, style.long_name, style.difference_units if score in ("crps", "crps_ecdf") else "", cells)
        )
    used = pick(numbers, score=score, model=model, region=region, reference=reference)["n"]
    count = f"n = {used.min()}" if used.nunique() == 1 else f"n = {used.min()} to {used.max()}" if len(used) else "n = 0"
    name = SCORE_NAMES[score] + (f" against {reference}" if reference else "")
    return Card(f"{name}, {region}, 95 % intervals, {count} initialisations", [lead_name(lead) for lead in leads], rows)


def _cell(score: str, row: Any) -> Cell:
    signed = score in ("crpss", "bias")
    tone, weight, sure = "", 0.0, False
    if score == "crpss" and math.isfinite(row.value):
        tone, weight = ("good" if row.value > 0 else "poor"), min(abs(row.value), 1.0)
        sure = row.low > 0 or row.high < 0
    if score == "ssr" and math.isfinite(row.value) and row.value > 0:
        off = abs(math.log(row.value))
        tone = "good" if 0.9 <= row.value <= 1.1 else "poor"
        weight = 0.45 if tone == "good" else min(off, 1.0)
        sure = row.low > 1 or row.high < 1
    limits = interval(row.low, row.high, signed)
    parts = [f"{number(row.value, signed)} {row.units}".strip(), f"95 % interval {limits}" if limits else "", f"n = {row.n}"]
    title = ", ".join(part for part in parts if part)
    return Cell(number(row.value, signed), limits, tone, round(weight, 3), sure, title)


def leads_table(numbers: pd.DataFrame, *, channel: str, region: str, models: Sequence[str]) -> Table:
    """All scores of all models by lead, for one channel and region: the table behind its curves."""
    style = style_of(channel)
    here = pick(numbers, channel=channel, region=region)
    kinds = here.dropna(subset="value")[["model", "score", "reference"]].drop_duplicates()
    columns = [
        (model, str(kind.score), str(kind.reference))
        for model in models
        for kind in kinds[kinds["model"] == model].itertuples(index=False)
    ]
    values: dict[tuple[Any, ...], Any] = {(row.model, row.score, row.reference, row.lead_hours): row for row in here.itertuples()}
    rows = []
    for lead in sorted(here["lead_hours"].unique()):
        cells = [values.get((*column, lead)) for column in columns]
        count = max((cell.n for cell in cells if cell is not None), default=0)
        rows.append([lead_name(lead), *["–" if cell is None else _with_interval(cell) for cell in cells], str(count)])
    heads = [f"{model}: {SCORE_NAMES[score]}" + (f" vs {reference}" if reference else "") for model, score, reference in columns]
    caption = (
        f"{style.long_name}, {region}: scores in {style.difference_units}, skills and ratios without units; [95 % intervals]"
    )
    return Table(caption, ["lead", *heads, "n"], rows)


def _with_interval(row: Any) -> str:
    signed = row.score in ("crpss", "bias")
    limits = interval(row.low, row.high, signed)
    return number(row.value, signed) + (f" [{limits}]" if limits else "")


def write_numbers(numbers: pd.DataFrame, header: dict[str, Any], out: Path) -> tuple[Path, Path]:
    """Write the long table beside the page as CSV and, with the header, as JSON (missing values null). Returns both paths."""
    as_csv, as_json = out.with_suffix(".csv"), out.with_suffix(".json")
    numbers.to_csv(as_csv, index=False, float_format="%.10g", lineterminator="\n")
    rows = [{key: _plain(value) for key, value in row.items()} for row in numbers.to_dict(orient="records")]
    as_json.write_text(json.dumps({**header, "numbers": rows}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return as_csv, as_json


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.10g}") if math.isfinite(value) else None
    return value
