"""The tables of docs/results.md: the tuned generators by lead, and every score at day 5; the rest is in docs/generators."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xarray as xr

from tests.benchmarks import _generator_docs as docs
from tests.benchmarks._campaign import DAY
from tests.benchmarks._generator_docs import CHANNELS
from tests.benchmarks._generator_tables import LEADS, by_model, crps_cell, ratio_cell
from tests.benchmarks._scores import numbers, of_tail
from tests.benchmarks.physics import table
from verification.styles import readable_units, style_of

LEAD = 5 * DAY


def readme(folder: Path) -> str:
    """Both tables, in Markdown."""
    states = {name: state for name, state in docs.kept_states(folder, "test").items() if not name.endswith(", raw")}
    climatology = docs.of_channels(states["climatology"], CHANNELS)
    found = {name: numbers(state, climatology) for name, state in states.items()}
    leads = {name: each for name, each in found.items() if name.endswith(", tuned")}
    parts = [table(short(leads), ratio_cell, channels=CHANNELS, leads=LEADS, units=False)]
    physics = folder / "physics_curves.nc"
    if physics.exists():
        shown = by_model(docs.read(physics), without=("climatology",))
        shown = {name: each for name, each in shown.items() if name.endswith(", tuned") or ", " not in name}
        parts.append(table(short(shown), ratio_cell, channels=CHANNELS, leads=LEADS, units=False))
    return "\n\n".join([*parts, every_score(folder, states, found)]) + "\n"


def short(found: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    return {name.removesuffix(", tuned"): each for name, each in found.items()}


def every_score(folder: Path, states: Mapping[str, xr.Dataset], found: Mapping[str, xr.Dataset]) -> str:
    """All scores at one lead: a row for each variable and model."""
    climatology = states["climatology"]
    events = [str(event) for event in climatology["event"].values]
    tails = {
        event: {name: numbers(of_tail(state, event), of_tail(climatology, event)) for name, state in states.items()}
        for event in events
    }
    spectra = by_model(docs.read(folder / "spectra.nc"), without=())
    head = [
        "",
        "",
        "CRPS · **over climatology's**",
        "SSR",
        "RMSE of the mean",
        *(f"twCRPS {event}" for event in events),
        "SpecDiv",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for channel in CHANNELS:
        style = style_of(channel)
        label = f"{style.label} ({readable_units(style.difference_units)})"
        for name, each in found.items():
            if channel not in each["channel"].values:
                continue
            one = each.sel(channel=channel, prediction_timedelta=LEAD)
            spread = "" if np.isnan(one.ssr) else f"{float(one.ssr):.2f} [{float(one.ssr_lower):.2f}, {float(one.ssr_upper):.2f}]"
            extremes = [f"{crps_ratio(tails[event][name], channel)}" for event in events]
            shape = float(spectra[name].sel(channel=channel, drawn_lead=LEAD)["divergence"])
            cells = [crps_cell(each, channel, LEAD), spread, f"{float(one.rmse) * style.factor:.3g}", *extremes, f"{shape:.3f}"]
            lines.append(f"| {label} | {name} | " + " | ".join(cells) + " |")
            label = ""
    return "\n".join(lines)


def crps_ratio(found: xr.Dataset, channel: str) -> str:
    return ratio_cell(found, channel, LEAD).partition(" · ")[0]
