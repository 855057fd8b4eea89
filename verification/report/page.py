"""The verification report: one self-contained HTML page, with CSV and JSON of its numbers beside it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import xarray as xr
from markupsafe import Markup

from data_pipeline.disk import write_bytes
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from verification.certify import certify, check_policy, require
from verification.report import case as of_case
from verification.report import (
    curves,
    decisions,
    details,
    events,
    fields,
    figures,
    provenance,
    ranks,
    reliability,
    scorecard,
    spectra,
    tables,
)
from verification.report.choice import MAPPED, channels_shown, hours_of
from verification.report.numbers import collect, map_fields, pairs_of, reported_regions
from verification.report.tables import card_leads

LEVEL = 95  # per cent of the intervals
DRAWS = 300  # at most, of the sections that resample whole tables
MAPS = (
    "Means over all initialisations at each grid point; one scale for the leads of a row. Few initialisations leave noise at "
    "single points."
)
RATIO_MAPS = "Where spread / error is below 1 (orange) the ensemble is too confident, above 1 (purple) too cautious."


def write_report(
    states: Sequence[xr.Dataset],
    out: Path,
    *,
    reference: str | None = None,
    case: xr.Dataset | None = None,
    truth: xr.Dataset | None = None,
    case_choice: Mapping[str, Any] | None = None,
    title: str = "Verification report",
    n_boot: int = 1000,
    seed: int = 0,
) -> Path:
    """Write the report of score states to `out` (.html), and `out` with .csv and .json beside it. Returns `out`.

    states: the model first, then baselines or other models; scores are taken over the initialisations and leads each has,
    differences and skill over those in common. reference: the name of the model that every other is compared with; without one
    the first is compared with every other. case: one initialisation of the model's ensemble in the schema, shown as maps beside
    `truth` (schema "analysis"); default the first case that the state keeps. case_choice: events, climatology
    and points, as `verification.report.case.case_section` takes them. n_boot, seed: bootstrap of the intervals.

    The page asks for nothing from a network; equal arguments give equal bytes. What is first seen needs no script; its script
    switches the theme, draws the curves of other regions and seasons, and unpacks other scorecards and diagrams.

    The numbers of the diagrams go to .details.csv and .details.json, those of the tables of maps to .maps.csv. The scores are
    certified first (`verification.certify`). Raises GateError if that fails, InputError if a state is not a score state or does
    not state its policy, if two states bear the same model name, if they are too many to be told apart, if two are on
    different grids, or if none is the reference.
    """
    names = _names(states)
    states = [state.assign_attrs(model=name) for state, name in zip(states, names, strict=True)]
    _check_grids(states)
    pairs = pairs_of(names, reference)
    certificate, draws = certify(), min(n_boot, DRAWS)
    require(certificate)
    for state in states:
        check_policy(state)
    numbers = collect(states, pairs, n_boot=n_boot, seed=seed)
    facts = provenance.facts(states, certificate, reference=reference, n_boot=n_boot, draws=draws, seed=seed)
    shown = _sections(states, reference, n_boot=draws, seed=seed)
    maps = {
        "score_maps": _score_maps(states[0]),
        "case": of_case.case_of_state(states[0].sel(channel=channels_shown(states[0], MAPPED)))
        if case is None
        else of_case.case_section(case, truth, model=names[0], **case_choice or {}),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    header = {"title": title, "verified": dict(facts.head + facts.rest), "models": provenance.models(states)}
    beside = tables.write_numbers(numbers, header, out)
    beside += details.write_details([part for section in shown for part in section["numbers"]], out)
    beside += tables.write_tables(list(tables.tables_in(maps)), out.with_suffix(".maps.csv"))
    script = _script()
    regions = reported_regions(states)
    context = {
        "title": title,
        "policy": _policy(script),
        "script": Markup(script),
        "summary": facts.summary,
        "head": facts.head,
        "facts": facts.rest,
        "alarms": provenance.alarms(states),
        "models": [_model(index, name) for index, name in enumerate(names)],
        "longest_switch": max(len(names), len(regions), *(len(part["channels"]) for part in (*shown, *maps.values()) if part)),
        "models_table": provenance.models_table(states),
        "level": LEVEL,
        "beside": [path.name for path in beside],
        "notes": provenance.NOTES,
        "scorecard": scorecard.section(numbers, names, pairs, regions),
        "curves": curves.section(numbers, names, regions),
        "sections": shown,
        **maps,
    }
    page = _environment().get_template("template.html").render(context)
    write_bytes(out, page.encode("utf-8"))
    return out


def _sections(states: Sequence[xr.Dataset], reference: str | None, *, n_boot: int, seed: int) -> list[dict[str, Any]]:
    """The diagrams that the states have something for."""
    options: dict[str, Any] = {"n_boot": n_boot, "seed": seed}
    found = [
        ranks.section(states, **options),
        reliability.section(states, **options),
        decisions.section(states, **options),
        events.section(states, reference=reference, **options),
        spectra.section(states),
    ]
    return [section for section in found if section is not None and section["channels"]]


def _model(index: int, name: str) -> dict[str, Any]:
    """A model in the key and in the style of the diagrams."""
    dashes = figures.css_dash(index, 1.3)
    return {"name": name, "swatch": figures.swatch(index), "colour": index % figures.COLOURS, "dashes": dashes}


def _script() -> str:
    return resources.files("verification.report").joinpath("script.js").read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """The Content-Security-Policy: nothing from anywhere, and no script but this one."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    own = f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f"default-src 'none'; img-src data:; {own}; base-uri 'none'; form-action 'none'"


def _names(states: Sequence[xr.Dataset]) -> list[str]:
    if not states:
        raise InputError("report: no score state given; expected at least one")
    if len(states) > figures.MOST_MODELS:
        most = f"{figures.MOST_MODELS} can be told apart by colour and dashes"
        raise InputError(f"report: {len(states)} score states given, but no more than {most}; write several reports")
    strange = [index for index, state in enumerate(states) if state.attrs.get("kind") != "score_state"]
    if strange:
        raise InputError(f"report: input {strange[0] + 1} is not a score state (attrs kind); make one with `plumecast verify`")
    names = [str(state.attrs.get("model", f"model {index + 1}")) for index, state in enumerate(states)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"report: two states are named {', '.join(twice)}; give each forecast store its own attribute `model`")
    return names


def _check_grids(states: Sequence[xr.Dataset]) -> None:
    """Raise InputError, naming them, unless all grids are alike; condensed states keep none."""
    grids = [(state.attrs["model"], Grid.of(state)) for state in states if "latitude" in state.coords]
    unlike = [f"{name} on {grid}" for name, grid in grids if not grid.matches(grids[0][1])]
    if unlike:
        name, grid = grids[0]
        raise InputError(
            f"report: {name} is on {grid}, {', '.join(unlike)}; models are compared on one grid: verify them on it "
            "(--regrid), or write a report of each"
        )


def _environment() -> jinja2.Environment:
    loader = jinja2.PackageLoader("verification.report", ".")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["packed"] = _packed
    return environment


def _packed(html: str, keep: bool = False) -> Markup:
    """Part of the page for its script to unpack, an eighth of the size; as it is if `keep`: what is first seen needs none."""
    if keep:
        return Markup(html)
    note = "This part is unpacked by the script of the page; its numbers are in the files beside it."
    return Markup(f'<div data-packed="{curves.packed(str(html))}"><p class="muted">{note}</p></div>')


def _score_maps(state: xr.Dataset) -> dict[str, Any] | None:
    """The maps of a model's scores; None of a condensed state, which keeps none."""
    if "map_count" not in state:
        return None
    means, several = map_fields(state), int(state.attrs["members"]) > 1
    leads = card_leads([hours_of(lead) for lead in means["prediction_timedelta"].values], fields.MAP_DAYS)
    maps = fields.score_maps(means, channels=channels_shown(state, MAPPED), leads=leads, several=several)
    return {"note": f"{MAPS} {RATIO_MAPS}" if several else MAPS, "channels": maps}
