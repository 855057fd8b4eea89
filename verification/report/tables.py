"""The tables of the report, how it prints numbers, and the files beside the page, CSV and JSON.

Everything that the page prints as a score is a row of `numbers`, in display units; nothing is computed twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data_pipeline.disk import write_bytes
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
    size = abs(float(f"{value:.3g}"))  # 0.9996 is printed as 1.00
    decimals = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 or signed else 3
    if 0 < size < 0.0095 and not signed:
        return ("−" if value < 0 else "") + f"{abs(value):.2e}"
    text = f"{value:{'+' if signed else ''}.{decimals}f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def interval(low: float, high: float, signed: bool = False) -> str:
    """`0.35–0.41`, `−0.10 to +0.20`, or nothing where there is no interval."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    if not number(low, signed).startswith("−"):
        return f"{number(low, signed)}–{number(high, signed)}".replace("+", "")
    return f"{number(low, signed)} to {number(high, signed)}"


def pick(numbers: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Rows whose columns equal the wanted values, in lead order."""
    chosen = numbers
    for name, value in wanted.items():
        chosen = chosen[chosen[name] == value]
    return chosen.sort_values("lead_hours", kind="stable")


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


def write_numbers(numbers: pd.DataFrame, header: dict[str, Any], out: Path) -> list[Path]:
    """Write the long table beside the page as CSV and, with the header, as JSON by columns (missing values null)."""
    paths = [out.with_suffix(".csv"), out.with_suffix(".json")]
    write_table(numbers, *paths, digits=8, header=header)
    return paths


def write_table(
    table: pd.DataFrame, as_csv: Path, as_json: Path, *, digits: int, header: Mapping[str, Any] | None = None
) -> None:
    """Write a table as CSV and by columns as JSON, missing values null; with a header the columns are its `numbers`."""

    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.{digits}g}") if math.isfinite(value) else None
        return value

    columns = {str(name): [plain(value) for value in column.tolist()] for name, column in table.items()}
    text = json.dumps(columns if header is None else {**header, "numbers": columns}, ensure_ascii=False, separators=(",", ":"))
    write_bytes(as_csv, table.to_csv(index=False, float_format=f"%.{digits}g", lineterminator="\n").encode("utf-8"))
    write_bytes(as_json, (text + "\n").encode("utf-8"))


def tables_in(content: Any) -> Iterator[Table]:
    """Every table in dicts and lists, in their order."""
    if isinstance(content, Table):
        yield content
    elif isinstance(content, Mapping | list):
        for part in content.values() if isinstance(content, Mapping) else content:
            yield from tables_in(part)


def write_tables(found: Sequence[Table], out: Path) -> list[Path]:
    """Write tables as they are printed, one cell a row: table, row, column, value. [] of none; an earlier file goes."""
    rows = [
        (table.caption, row[0], column, value)
        for table in found
        for row in table.rows
        for column, value in zip(table.columns[1:], row[1:], strict=True)
    ]
    if not rows:
        out.unlink(missing_ok=True)
        return []
    long = pd.DataFrame(rows, columns=["table", "row", "column", "value"])
    write_bytes(out, long.to_csv(index=False, lineterminator="\n").encode("utf-8"))
    return [out]
