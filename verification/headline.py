"""The headline table of a verification in the terminal: what a forecaster looks at first, with its policy beneath."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_pipeline.errors import InputError
from verification.certify import check_policy
from verification.readout import in_training, scores_table, skill
from verification.report.tables import card_leads, lead_name, number
from verification.significance import TOO_FEW, intervals
from verification.styles import readable_units, style_of


@dataclass(frozen=True)
class Line:
    """One variable and lead. Scores in display units with their interval; crpss: {reference: (value, low, high)}."""

    channel: str
    lead: np.timedelta64
    crps: tuple[float, float, float]
    crpss: dict[str, tuple[float, float, float]]
    ssr: tuple[float, float, float]
    n: int
    contaminated: bool


def parse_leads(text: str) -> list[np.timedelta64]:
    """`1d,36h,5d` as leads. Raises InputError for anything else."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    wrong = [part for part in parts if not re.fullmatch(r"\d+(\.\d+)?[dh]", part)]
    if wrong or not parts:
        raise InputError(f"--leads {text!r}: {', '.join(wrong) or 'nothing'} is no lead; expected days or hours, as 1d,36h,5d")
    hours = {"d": 24.0, "h": 1.0}
    return [pd.Timedelta(hours=float(part[:-1]) * hours[part[-1]]).to_timedelta64() for part in parts]


def headline(
    state: xr.Dataset,
    references: Sequence[xr.Dataset] = (),
    *,
    leads: Sequence[np.timedelta64] | None = None,
    region: str | None = None,
    size: float | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> list[Line]:
    """The lines of the table: every channel at some leads (default: those nearest to days 1, 3, 5, 7 and 10).

    Skill is over the initialisations shared with each reference. size: CRPS as if every ensemble had so many
    members. Raises InputError if a lead is not in the state.
    """
    available = state["prediction_timedelta"].values
    if leads is None:
        hours = card_leads((available / np.timedelta64(1, "h")).tolist())
        leads = [pd.Timedelta(hour, "h").to_timedelta64() for hour in hours]
    absent = [lead_name(lead / np.timedelta64(1, "h")) for lead in leads if lead not in available]
    if absent:
        have = ", ".join(lead_name(lead / np.timedelta64(1, "h")) for lead in available)
        raise InputError(f"lead {', '.join(absent)} is not in the scores of {state.attrs['model']}, which have {have}")
    scores = scores_table(state, region, size=size)
    limits = intervals(state, region=region, size=size, n_boot=n_boot, seed=seed)
    against = {
        str(reference.attrs["model"]): (
            skill(state, reference, region, size=size),
            intervals(state, reference, region=region, size=size, n_boot=n_boot, seed=seed),
        )
        for reference in references
    }
    crps = "crps" if state.attrs["members"] > 1 else "crps_ecdf"
    lines = []
    for channel in map(str, state["channel"].values):
        for lead in leads:
            at = {"channel": channel, "prediction_timedelta": lead}
            flags = state["in_training"].sel(prediction_timedelta=lead)
            lines.append(
                Line(
                    channel,
                    lead,
                    _triple(scores, limits, crps, at, style_of(channel).factor),
                    {name: _triple(*pair, "crpss", at) for name, pair in against.items()},
                    _triple(scores, limits, "ssr", at),
                    int(scores["n"].sel(at)),
                    bool((flags > 0).any()),
                )
            )
    return lines


def show(
    console: Console,
    state: xr.Dataset,
    references: Sequence[xr.Dataset] = (),
    *,
    leads: Sequence[np.timedelta64] | None = None,
    region: str | None = None,
    size: float | None = None,
) -> None:
    """Print the table of one state, its policy, and in red what touches the training or validation period."""
    names = [str(each.attrs["model"]) for each in (state, *references)]
    if len(set(names)) < len(names):
        raise InputError(f"the models compared are named {', '.join(names)}; give each forecast store its own attribute `model`")
    for each in (state, *references):
        check_policy(each)
    lines = headline(state, references, leads=leads, region=region, size=size)
    fair = "fair CRPS" if size is None else f"CRPS at {size:g} members"
    estimator = fair if state.attrs["members"] > 1 else "MAE (one member)"
    table = Table(title=f"{state.attrs['model']}: {estimator}, mean and 95 % interval", title_justify="left", box=None)
    table.add_column("variable")
    for name in ("lead", estimator, *(f"skill vs {reference.attrs['model']}" for reference in references), "spread/skill", "n"):
        table.add_column(name, justify="right")
    previous = ""
    for line in lines:
        style = style_of(line.channel)
        name = f"{style.label} ({readable_units(style.difference_units)})" if line.channel != previous else ""
        previous = line.channel
        cells = [_cell(line.crps), *(_cell(triple, signed=True) for triple in line.crpss.values()), _cell(line.ssr)]
        count = Text(f"{line.n}{'*' if line.n < TOO_FEW else ''}", style="red" if line.contaminated else "")
        table.add_row(name, lead_name(line.lead / np.timedelta64(1, "h")), *cells, count)
    console.print(table)
    console.print(Text(_policy(state, region, few=any(line.n < TOO_FEW for line in lines)), style="dim"), soft_wrap=True)
    for sentence in (in_training(each) for each in (state, *references)):
        if sentence:
            console.print(Text(sentence, style="bold red"), soft_wrap=True)


def _policy(state: xr.Dataset, region: str | None, *, few: bool) -> str:
    attrs = scores_table(state, region).attrs
    boundary = attrs.get("boundary", "none")
    parts = [
        f"{attrs['members']} members, region {attrs['region']}",
        f"truth {attrs.get('truth', 'analysis')}, {attrs.get('truth_period', 'period unknown')}",
        attrs["policy"],
        "intervals by stationary bootstrap over initialisations in blocks as long as the lead; skill over common initialisations",
    ]
    parts += [f"boundary: {boundary}"] if boundary not in ("none", "", None) else []
    parts += [f"* fewer than {TOO_FEW} initialisations: too few for firm intervals"] if few else []
    return "; ".join(parts)


def _triple(
    scores: xr.Dataset, limits: xr.Dataset, name: str, at: dict[str, object], factor: float = 1.0
) -> tuple[float, float, float]:
    low, high = (factor * float(limits[f"{name}_{side}"].sel(at)) for side in ("lower", "upper"))
    return factor * float(scores[name].sel(at)), low, high


def _cell(triple: tuple[float, float, float], signed: bool = False) -> str:
    value, low, high = (number(part, signed) for part in triple)
    return value if not np.isfinite(triple[1]) else f"{value} [{low}, {high}]"
