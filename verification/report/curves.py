"""The curves of the report by lead: the default view drawn here, every region and season packed for the page's script.

Both read the same rows of the numbers; what the script prints is rounded as the tables are.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from verification.report import figures, tables
from verification.report.numbers import WHOLE_YEAR
from verification.styles import style_of

SIGNED = ("crpss", "bias")


@dataclass(frozen=True)
class Panel:
    """One picture of a variable: scores by lead. reference: the value that its axis is centred on; top: where its axis ends."""

    title: str
    scores: tuple[str, ...]
    caption: str
    units: bool = True
    reference: float | None = None
    top: float | None = None


PANELS = (
    Panel("fair CRPS", ("crps",), "lower is better"),
    Panel("RMSE, spread", ("rmse", "spread"), "RMSE of the mean with markers, spread dashed; equal is calibrated"),
    Panel("spread/skill ratio", ("ssr",), "1 is calibrated, below 1 too confident", units=False, reference=1.0),
    Panel("anomaly correlation", ("acc",), "of the mean; higher is better", units=False, top=1.0),
)
DASHED = ("spread",)
MAE = "; of one member the MAE"


@dataclass(frozen=True)
class Series:
    """One column of the numbers: a score of a model, or its skill against a reference."""

    model: str
    score: str
    reference: str

    @property
    def head(self) -> str:
        return f"{self.model}: {tables.SCORE_NAMES[self.score]}" + (f" vs {self.reference}" if self.reference else "")


def section(numbers: pd.DataFrame, names: Sequence[str], regions: Sequence[str]) -> dict[str, Any]:
    """The default view as pictures and tables, the choices, and all views packed; `numbers` as `numbers.collect` makes them."""
    numbers = numbers[~numbers["score"].str.endswith("_difference")]
    known = numbers.dropna(subset="value")[["model", "score", "reference"]].drop_duplicates()
    series = [Series(*map(str, row)) for name in names for row in known[known["model"] == name].itertuples(index=False)]
    panels = [(panel, lines) for panel in PANELS if (lines := _lines(panel, series, names))]
    seasons = [{"name": season, "n": _count(numbers, season, names)} for season in dict.fromkeys(numbers["season"])]
    default = numbers[(numbers["region"] == regions[0]) & (numbers["season"] == WHOLE_YEAR)]
    channels = list(dict.fromkeys(numbers["channel"]))
    drawn = [_channel(rows, names, series, panels) for channel in channels for rows in [default[default["channel"] == channel]]]
    views = {
        "models": list(names),
        "regions": list(regions),
        "seasons": seasons,
        "leads": sorted(numbers["lead_hours"].unique().tolist()),
        "channels": [{key: channel[key] for key in ("label", "long_name", "units")} for channel in drawn],
        "series": [{"head": one.head, "signed": one.score in SIGNED} for one in series],
        "panels": [_described(panel, lines) for panel, lines in panels],
        "compared": any(one.score == "crpss" for one in series),
        "dashes": [figures.css_dash(index, 1.5) for index in range(len(names))],
        "shapes": [figures.SHAPES[figures.marker_of(index)] for index in range(len(names))],
        "values": _values(numbers, series, regions, [season["name"] for season in seasons], channels),
    }
    return {
        "channels": drawn,
        "regions": [{"name": region} for region in regions],
        "seasons": seasons,
        "view": f"{regions[0]}, {WHOLE_YEAR}",
        "packed": packed(views),
    }


def packed(content: Any) -> str:
    """JSON, deflated, in base64: a quarter of its size, and no sign that a page could take for markup."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    return base64.b64encode(zlib.compress(text.encode("utf-8"), 9)).decode("ascii")


def _lines(panel: Panel, series: Sequence[Series], names: Sequence[str]) -> list[tuple[int, int, bool]]:
    """(series, model, dashed) of each line; where a model has no fair CRPS, its MAE."""
    found = []
    for model, name in enumerate(names):
        for score in panel.scores:
            wanted = [Series(name, score, "")] + ([Series(name, "crps_ecdf", "")] if score == "crps" else [])
            chosen = next((one for one in wanted if one in series), None)
            if chosen is not None:
                found.append((series.index(chosen), model, score in DASHED))
    return found


def _caption(panel: Panel, lines: Sequence[tuple[int, int, bool]], series: Sequence[Series]) -> str:
    single = panel.scores == ("crps",) and any(series[line[0]].score == "crps_ecdf" for line in lines)
    return panel.caption + (MAE if single else "")


def _described(panel: Panel, lines: Sequence[tuple[int, int, bool]]) -> dict[str, Any]:
    shown = {"title": panel.title, "units": panel.units, "reference": panel.reference, "top": panel.top}
    return {**shown, "lines": [{"series": index, "model": model, "dashed": dashed} for index, model, dashed in lines]}


def _channel(
    rows: pd.DataFrame,
    names: Sequence[str],
    series: Sequence[Series],
    panels: Sequence[tuple[Panel, Sequence[tuple[int, int, bool]]]],
) -> dict[str, Any]:
    """The pictures and the table of one variable in the default view."""
    channel, region = rows["channel"].iloc[0], rows["region"].iloc[0]
    style = style_of(channel)
    of_series = {Series(*map(str, key)): part for key, part in rows.groupby(["model", "score", "reference"], sort=False)}
    drawn = []
    for panel, lines in panels:
        content = [
            figures.Line(of_series[series[index]].sort_values("lead_hours"), model, dashed)
            for index, model, dashed in lines
            if series[index] in of_series and of_series[series[index]]["value"].notna().any()
        ]
        alt = f"{panel.title} of {style.long_name} by lead, {region}, for {', '.join(names)}; the numbers are in the table below"
        units = style.difference_units if panel.units else ""
        svg = figures.curves(content, title=panel.title, units=units, alt=alt, reference=panel.reference, top=panel.top)
        drawn.append({"svg": svg, "caption": _caption(panel, lines, series)})
    table = tables.leads_table(rows, channel=channel, region=region, models=names)
    texts = {"label": style.label, "long_name": style.long_name, "units": style.difference_units}
    return {**texts, "figures": drawn, "table": table}


def _count(numbers: pd.DataFrame, season: str, names: Sequence[str]) -> list[int]:
    """Initialisations of each model in a season: the most that any lead has."""
    here = numbers[(numbers["season"] == season) & (numbers["reference"] == "")]
    most = here.groupby("model")["n"].max()
    return [int(most.get(name, 0)) for name in names]


def _values(
    numbers: pd.DataFrame, series: Sequence[Series], regions: Sequence[str], seasons: Sequence[str], channels: Sequence[str]
) -> dict[str, list[Any]]:
    """{"series.region.season.channel": [values, low, high, n]} by lead; a column without values is 0, an equal n one number."""
    places = {lead: index for index, lead in enumerate(sorted(numbers["lead_hours"].unique().tolist()))}
    positions = [{one: index for index, one in enumerate(several)} for several in (series, regions, seasons, channels)]
    found = {}
    for key, rows in numbers.groupby(["model", "score", "reference", "region", "season", "channel"], sort=False):
        one = Series(*map(str, key[:3]))
        if one not in positions[0]:
            continue
        where = [positions[0][one], *(place[name] for place, name in zip(positions[1:], key[3:], strict=True))]
        at = [places[lead] for lead in rows["lead_hours"]]
        signed = one.score in SIGNED
        columns: list[Any] = [_column(rows[name].tolist(), at, len(places), signed) for name in ("value", "low", "high")]
        counts = [0] * len(places)
        for index, n in zip(at, rows["n"].tolist(), strict=True):
            counts[index] = int(n)
        found[".".join(map(str, where))] = [*columns, counts[0] if len(set(counts)) == 1 else counts]
    return found


def _column(values: Sequence[float], at: Sequence[int], size: int, signed: bool) -> list[float | None] | int:
    """Values in order of lead, as `tables.number` prints them; those that are not there None."""
    column: list[float | None] = [None] * size
    for index, value in zip(at, values, strict=True):
        if math.isfinite(value):
            short = float(tables.number(value, signed).replace("−", "-"))
            column[index] = int(short) if short == int(short) else short
    return column if any(value is not None for value in column) else 0
