"""The verification report: one self-contained HTML page, with CSV and JSON of its numbers beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline.errors import InputError
from verification.certify import certify, check_policy, require
from verification.readout import scores_table
from verification.report import events, fields, figures, provenance, tables
from verification.report.numbers import collect, map_fields, reported_regions
from verification.report.tables import Table, card_leads, lead_name, pick
from verification.styles import Style, style_of

LEVEL = 95  # per cent of the intervals
RANKS = (
    "How often the truth fell below, between and above the {members} members of {name}, relative to a flat one (dashed, 1). "
    "A U shape means too little spread, a dome too much, a slope a bias. Ties are shared among the ranks they span. Whole domain."
)
MAPS = (
    "Means over all initialisations at each grid point; one scale for the leads of a row. Where spread / error is below 1 "
    "(orange) the ensemble is too confident, above 1 (purple) too cautious. Few initialisations leave noise at single points."
)
SCORECARD = (
    "Blue is better than the reference, orange worse; bold where the 95 % interval excludes no difference. The spread/skill "
    "ratio is blue within 0.9 to 1.1, orange outside; bold where its interval excludes 1."
)


def write_report(
    states: Sequence[xr.Dataset],
    out: Path,
    *,
    case: xr.Dataset | None = None,
    truth: xr.Dataset | None = None,
    title: str = "Verification report",
    n_boot: int = 1000,
    seed: int = 0,
) -> Path:
    """Write the report of score states to `out` (.html), and `out` with .csv and .json beside it. Returns `out`.

    states: the model first, then baselines or other models; scores are taken over the initialisations and leads each has, skills
    over those in common. case: one initialisation of the model's ensemble in the schema, shown as maps beside `truth` (schema
    "analysis"); default the first case that the state keeps. n_boot, seed: bootstrap of the intervals. The page has no script and
    asks for nothing from a network; equal arguments give equal bytes. The scores are certified first (`verification.certify`).
    Raises GateError if that fails, InputError if a state is not a score state or does not state its policy, or if two states bear
    the same model name.
    """
    names = _names(states)
    certificate = certify()
    require(certificate)
    for state in states:
        check_policy(state)
    numbers = collect(states, n_boot=n_boot, seed=seed)
    facts = provenance.facts(states, certificate, n_boot=n_boot, seed=seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    header = {"title": title, "verified": dict(facts.head + facts.rest), "models": provenance.models(states)}
    as_csv, as_json = tables.write_numbers(numbers, header, out)
    context = {
        "title": title,
        "summary": facts.summary,
        "head": facts.head,
        "facts": facts.rest,
        "alarms": provenance.alarms(states),
        "models": [{"name": name, "swatch": figures.swatch(index)} for index, name in enumerate(names)],
        "models_table": provenance.models_table(states),
        "level": LEVEL,
        "csv_name": as_csv.name,
        "json_name": as_json.name,
        "notes": provenance.NOTES,
        "score_maps": _score_maps(states[0]),
        "events": events.section(states, n_boot=min(n_boot, 300), seed=seed),
        "case": fields.case_of_state(states[0]) if case is None else fields.case_section(case, truth, model=names[0]),
        **_scorecard(numbers, names),
        **_by_lead(numbers, names, reported_regions(states)),
        **_ranks(states[0], names[0]),
    }
    page = _environment().get_template("template.html").render(context)
    fresh = out.with_name(f".{out.name}.{os.getpid()}.partial")
    fresh.write_text(page, encoding="utf-8")
    fresh.replace(out)
    return out


def _names(states: Sequence[xr.Dataset]) -> list[str]:
    if not states:
        raise InputError("report: no score state given; expected at least one")
    strange = [index for index, state in enumerate(states) if state.attrs.get("kind") != "score_state"]
    if strange:
        raise InputError(f"report: input {strange[0] + 1} is not a score state (attrs kind); make one with `plumecast verify`")
    names = [str(state.attrs.get("model", f"model {index + 1}")) for index, state in enumerate(states)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"report: two states are named {', '.join(twice)}; give each forecast store its own attribute `model`")
    return names


def _environment() -> jinja2.Environment:
    loader = jinja2.PackageLoader("verification.report", ".")
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)


def _scorecard(numbers: pd.DataFrame, names: Sequence[str]) -> dict[str, Any]:
    here = numbers[numbers["model"] == names[0]]
    region = here["region"].iloc[0]
    channels = list(dict.fromkeys(here["channel"]))
    single = here.loc[here["score"] == "crps", "value"].isna().all()
    own = [("crps_ecdf", "")] if single else [("crps", ""), ("ssr", "")]
    wanted = [("crpss", reference) for reference in names[1:]] + own
    cards = [
        tables.card(numbers, score=score, reference=reference, model=names[0], region=region, channels=channels)
        for score, reference in wanted
    ]
    return {"cards": cards, "scorecard_note": SCORECARD}


def _by_lead(numbers: pd.DataFrame, names: Sequence[str], regions: Sequence[str]) -> dict[str, Any]:
    channels = list(dict.fromkeys(numbers["channel"]))
    return {
        "regions": [
            {"name": region, "channels": [_channel_curves(numbers, channel, region, names) for channel in channels]}
            for region in regions
        ]
    }


def _channel_curves(numbers: pd.DataFrame, channel: str, region: str, names: Sequence[str]) -> dict[str, Any]:
    style, here = style_of(channel), pick(numbers, channel=channel, region=region)

    def lines(score: str, dashed: bool = False) -> list[figures.Line]:
        rows = [(index, pick(here, model=name, score=score)) for index, name in enumerate(names)]
        return [figures.Line(chosen, index, dashed) for index, chosen in rows if chosen["value"].notna().any()]

    fair = lines("crps")
    single = [line for line in lines("crps_ecdf") if line.model not in {other.model for other in fair}]
    note = "lower is better" + (f"; of {_named(single, names)} (one member) the MAE" if single else "")
    both = lines("rmse") + lines("spread", dashed=True)
    panels = [
        ("fair CRPS", style.difference_units, [*fair, *single], None, note),
        ("RMSE, spread", style.difference_units, both, None, "RMSE of the mean with markers, spread dashed; equal is calibrated"),
        ("spread/skill ratio", "", lines("ssr"), 1.0, "1 is calibrated, below 1 too confident"),
    ]
    drawn = []
    for title, units, content, reference, caption in panels:
        alt = f"{title} of {style.long_name} by lead, {region}, for {', '.join(names)}; the numbers are in the table below"
        picture = figures.curves(content, title=title, units=units, alt=alt, reference=reference)
        drawn.append({"svg": picture, "caption": caption})
    table = tables.leads_table(numbers, channel=channel, region=region, models=names)
    return {"label": style.label, "long_name": style.long_name, "figures": drawn, "table": table}


def _named(lines: Sequence[figures.Line], names: Sequence[str]) -> str:
    return ", ".join(names[line.model] for line in lines)


def _ranks(state: xr.Dataset, name: str) -> dict[str, Any]:
    shares = scores_table(state)["rank_histogram"]
    members = shares.sizes["rank"] - 1
    if members == 1:
        return {"ranks": [], "ranks_note": "One member has no ranks to count."}
    leads = card_leads(_hours(state))
    channels = [_channel_ranks(shares.sel(channel=label), style_of(str(label)), leads) for label in shares["channel"].values]
    return {"ranks": channels, "ranks_note": RANKS.format(members=members, name=name)}


def _channel_ranks(shares: xr.DataArray, style: Style, leads: Sequence[float]) -> dict[str, Any]:
    drawn, rows = [], []
    for lead in leads:
        values = shares.sel(prediction_timedelta=pd.Timedelta(hours=lead)).values
        alt = f"Rank histogram of {style.long_name} at {lead_name(lead)}: outer ranks {values[0]:.3f} and {values[-1]:.3f}"
        drawn.append(figures.rank_histogram(values, title=lead_name(lead), model=0, alt=alt))
        rows.append([lead_name(lead), *[f"{value:.4f}" for value in values]])
    table = Table(f"{style.long_name}: relative frequency of each rank", ["lead", *map(str, range(shares.sizes["rank"]))], rows)
    return {"label": style.label, "long_name": style.long_name, "figures": drawn, "table": table}


def _score_maps(state: xr.Dataset) -> dict[str, Any]:
    means = map_fields(state)
    leads = card_leads(_hours(means), fields.MAP_DAYS)
    labels = [str(label) for label in state["channel"].values]
    return {"note": MAPS, "channels": fields.score_maps(means, channels=labels, leads=leads)}


def _hours(state: xr.Dataset) -> list[float]:
    return [float(lead / np.timedelta64(1, "h")) for lead in state["prediction_timedelta"].values]
