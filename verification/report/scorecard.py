"""The scorecards of the report: variables x leads, coloured by how much better or worse than a reference, sure or not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from verification.report.numbers import WHOLE_YEAR
from verification.report.tables import SCORE_NAMES, card_leads, interval, lead_name, number, pick
from verification.styles import style_of

COMPARED = {"crps": "fair CRPS", "rmse": "RMSE of the mean", "acc": "1 − anomaly correlation"}
KEY = (-50, -20, -5, -1, 1, 5, 20, 50)  # per cent, the colours explained
DEEPEST = 50.0  # per cent
NOTE = (
    "Per-cent difference from the reference, over the cases both have: negative, blue, is better in every card, orange worse. A "
    "dot marks what is significant: a paired test over initialisations, with one false discovery in ten expected at most among "
    "all scores, regions, variables and leads of a comparison (Benjamini and Hochberg). Point at a cell, or move with the arrow "
    "keys, for its numbers."
)
RATIO_NOTE = "Blue within 0.9 to 1.1, orange outside; a dot where the 95 % interval excludes 1, which is calibrated."


@dataclass(frozen=True)
class Cell:
    """One cell of a card. tone: "good", "poor" or ""; weight 0 to 1: depth of colour; sure: significant, or interval off 1."""

    value: str
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


def section(
    numbers: pd.DataFrame, names: Sequence[str], pairs: Sequence[tuple[int, int]], regions: Sequence[str]
) -> dict[str, Any]:
    """For every region the cards of every pair (model, reference), then of the spread/skill ratio of every ensemble; the CRPS of
    the first model if it is alone."""
    year = numbers[numbers["season"] == WHOLE_YEAR]
    return {
        "note": NOTE if pairs else "",
        "ratio_note": RATIO_NOTE if (year.loc[year["score"] == "ssr", "value"].notna()).any() else "",
        "key": [{"text": f"{value:+d} %".replace("-", "−"), **_shade(value)} for value in KEY] if pairs else [],
        "regions": [{"name": region, **_region(year[year["region"] == region], names, pairs)} for region in regions],
    }


def _region(here: pd.DataFrame, names: Sequence[str], pairs: Sequence[tuple[int, int]]) -> dict[str, Any]:
    leads = card_leads(here["lead_hours"].tolist())
    compared = []
    for ours, theirs in pairs:
        rows = pick(here, model=names[ours], reference=names[theirs])
        cards = [_card(rows, f"{score}_difference", leads, title) for score, title in COMPARED.items()]
        tests = rows[rows["score"].str.endswith("_difference")]
        compared.append(
            {
                "model": names[ours],
                "reference": names[theirs],
                "n": _counted(rows),
                "cards": [card for card in cards if card.rows],
                "tested": len(tests),
                "sure": int(tests["significant"].astype(bool).sum()),
            }
        )
    own = []
    for name in names:
        rows = pick(here, model=name, reference="")
        if not pairs:
            own.append(_card(rows, "crps" if rows.loc[rows["score"] == "crps", "value"].notna().any() else "crps_ecdf", leads))
        if rows.loc[rows["score"] == "ssr", "value"].notna().any():
            own.append(_card(rows, "ssr", leads, name if pairs else None))
    return {"pairs": compared, "own": own}


def _card(rows: pd.DataFrame, score: str, leads: Sequence[float], title: str | None = None) -> Card:
    """The card of one score, from rows of one model, region and reference."""
    chosen = rows[rows["score"] == score]
    values = {(row.channel, row.lead_hours): row for row in chosen.itertuples()}
    shown = [
        CardRow(style.label, style.long_name, style.difference_units if score in ("crps", "crps_ecdf") else "", cells)
        for channel in dict.fromkeys(chosen["channel"])
        for style in [style_of(channel)]
        for cells in [[_cell(values[channel, lead]) if (channel, lead) in values else Cell("–") for lead in leads]]
    ]
    return Card(title or SCORE_NAMES[score], [lead_name(lead) for lead in leads], shown)


def _cell(row: Any) -> Cell:
    if row.score.endswith("_difference"):
        return _difference_cell(row)
    title = "\n".join(_own_title(row))
    if row.score != "ssr" or not row.value > 0:
        return Cell(number(row.value), title=title)
    shown = f"{row.value:.2f}"
    calibrated = 0.9 <= float(shown) <= 1.1
    weight = 0.35 if calibrated else min(abs(math.log(row.value)), 1.0)
    sure = bool(row.low > 1 or row.high < 1)
    return Cell(shown, "good" if calibrated else "poor", round(weight, 3), sure, title)


def _difference_cell(row: Any) -> Cell:
    if not math.isfinite(row.relative):
        return Cell("–", title="\n".join(_difference_title(row)))
    shade = _shade(row.relative)
    return Cell(percent(row.relative), shade["tone"], shade["weight"], bool(row.significant), "\n".join(_difference_title(row)))


def percent(value: float) -> str:
    """A signed per-cent difference as short as a cell: `−54`, `+3.2`, `0`."""
    text = f"{value:+.0f}" if abs(value) >= 9.95 else f"{value:+.1f}"
    return "0" if float(text) == 0 else text.replace("-", "−")


def _shade(relative: float) -> dict[str, Any]:
    """Colour and depth of a per-cent difference: small ones are seen too, beyond 50 % all are alike."""
    depth = min(abs(relative) / DEEPEST, 1.0) ** 0.6
    return {"tone": "good" if relative < 0 else "poor" if relative > 0 else "", "weight": round(depth, 3)}


def _own_title(row: Any) -> Iterator[str]:
    yield _place(row)
    limits = interval(row.low, row.high)
    yield f"{SCORE_NAMES[row.score]} {number(row.value)} {row.units}".strip() + (f", 95 % interval {limits}" if limits else "")
    yield f"n = {row.n}"


def _difference_title(row: Any) -> Iterator[str]:
    """What a reader wants to know of a cell, line by line."""
    yield _place(row)
    score = row.score.removesuffix("_difference")
    both = [number(value, signed=score == "acc") for value in (row.of_reference + row.value, row.of_reference)]
    name = "anomaly correlation" if score == "acc" else COMPARED[score]
    units = f" {row.units}" if row.units else ""
    yield f"{name}: {row.model} {both[0]}{units}, {row.reference} {both[1]}{units}"
    of = " of 1 − it" if score == "acc" else ""
    relative = f" ({percent(row.relative)} %{of})" if math.isfinite(row.relative) else ""
    limits = interval(row.low, row.high, signed=True)
    yield f"difference {number(row.value, signed=True)}{units}{relative}" + (f", 95 % interval {limits}" if limits else "")
    if math.isfinite(row.p_value):
        chance = "p < 0.001" if row.p_value < 0.001 else f"p = {row.p_value:.3f}"
        yield f"{chance}, {'significant' if row.significant else 'not significant'}, n = {row.n} ({row.n_eff:.0f} independent)"
    elif row.n < 2:
        yield f"n = {row.n}: too few to test"
    else:
        yield f"n = {row.n}: no test, as the differences are all alike or no more than overlap each other"


def _place(row: Any) -> str:
    return f"{style_of(row.channel).long_name}, {lead_name(row.lead_hours)}, {row.region}"


def _counted(rows: pd.DataFrame) -> str:
    """`34`, or `30 to 34` where leads differ."""
    counts = rows["n"]
    return "0" if counts.empty else f"{counts.min()}" if counts.nunique() == 1 else f"{counts.min()} to {counts.max()}"
