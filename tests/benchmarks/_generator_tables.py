"""The tables of docs/generators and of docs/results.md, in Markdown, from what the folder holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from tests.benchmarks import _generator_docs as docs
from tests.benchmarks._campaign import DAY
from tests.benchmarks._generator_bars import bars
from tests.benchmarks._generator_docs import BINS, CHANNELS, DAYS
from tests.benchmarks._scores import numbers, of_tail
from tests.benchmarks.physics import table
from verification.styles import readable_units, style_of

LEADS = {f"day {day}": day * DAY for day in DAYS}
EUROPE_DAYS = {f"day {day}": day * DAY for day in (1, 2, 3, 5, 7, 10)}
PHYSICS_COST = {"perfect": 0.54, "imperfect": 0.27}  # core-seconds a member-day: docs/results.md
Cell = Callable[[xr.Dataset, str, np.timedelta64], str]


def tables(folder: Path) -> str:
    """Everything that the folder has, as one Markdown text."""
    parts = []
    if any(folder.glob("test-*.scores.nc")):
        parts += test_tables(folder)
    if any(folder.glob("physics-*.scores.nc")):
        parts += physics_tables(folder)
    if (folder / "costs.json").exists():
        parts.append(cost_table(folder))
    if (folder / "long.nc").exists():
        parts += long_tables(docs.read(folder / "long.nc"))
    if (folder / "europe.nc").exists():
        parts += europe_tables(docs.read(folder / "europe.nc"))
    return "\n\n".join(["# The generators side by side", *parts, bars(folder)]) + "\n"


def test_tables(folder: Path) -> list[str]:
    """The test year, truth as initial state: all scores of all models."""
    states = docs.kept_states(folder, "test")
    climatology = states["climatology"]
    found = {name: numbers(state, docs.of_channels(climatology, CHANNELS)) for name, state in states.items()}
    parts = [
        "## The simulated planet, test year 2007, truth as initial state",
        about(folder, states),
        "### Fair CRPS, and **its ratio to the climatology's** (CRPSS = 1 - ratio)",
        table(found, crps_cell, channels=CHANNELS, leads=LEADS),
        "### Spread-skill ratio",
        table(ensembles(found), ssr_cell, channels=CHANNELS, leads=LEADS, units=False),
        "### RMSE of the ensemble mean",
        table(found, rmse_cell, channels=CHANNELS, leads=LEADS),
    ]
    events = [str(event) for event in climatology["event"].values] if "event" in climatology.dims else []
    for event in events:
        reference = of_tail(climatology, event)
        tails = {name: numbers(of_tail(state, event), reference) for name, state in states.items()}
        parts += [
            f"### Fair twCRPS, {event} of the climatology by date, and **its ratio to the climatological ensemble's**",
            table(tails, crps_cell, channels=CHANNELS, leads=LEADS),
        ]
    spectra = by_model(docs.read(folder / "spectra.nc"))
    parts += [
        "### Spectral divergence of single members (0: the truth's shape), wavenumbers 29 to 32",
        table(spectra, divergence_cell, channels=CHANNELS, leads=LEADS, units=False),
        "### Power of single members over the truth's at wavenumbers 1 to 8, 9 to 16, 17 to 24, 25 to 30",
        table(spectra, power_cell, channels=CHANNELS, leads=LEADS, units=False),
    ]
    if (folder / "ranks.nc").exists():
        ranks = docs.read(folder / "ranks.nc")
        parts += [f"### Rank histograms in {BINS} bins, flat is 1; mean of days 1 to 10: largest departure, and the two ends"]
        parts.append(rank_table(ranks))
    return parts


def about(folder: Path, states: Mapping[str, xr.Dataset]) -> str:
    """What was done, once, before the numbers."""
    known = json.loads((folder / "models.json").read_text())
    first = next(iter(states.values()))
    models = "; ".join(
        f"**{name}**: {each['family']}, trained {each['training_period']}, noise scale "
        f"{', '.join(f'{scale:g}' for scale in each['noise_scale'])}, sha256 {', '.join(each['checkpoint_sha256'])}"
        for name, each in known.items()
    )
    climate = states["climatology"]
    return (
        f"{first.sizes['time']} initialisations, {stamp(first, 0)} to {stamp(first, -1)} (those with a valid time in 2007: n = "
        f"{fewest(first)} at day 15), {first.attrs['members']} members, "
        f"seed {first.attrs.get('seed', 0)}; climatology: {climate.attrs['members']} members of "
        f"{climate.attrs.get('training_period', '')}. Fair estimators (persistence: MAE); area-weighted means over the "
        "globe; in brackets 95 % intervals from a stationary bootstrap over initialisations in blocks as long as the lead, "
        "paired for ratios. Raw: knobs at 1; tuned: noise scale chosen on 2006; calibrated: the tuned members "
        f"post-processed, fitted on 2006. No raw row: the scale stayed at 1. {models}."
    )


def fewest(state: xr.Dataset) -> int:
    """Initialisations that count at the longest lead."""
    return int((state["weight"].isel(channel=0, cell=0, prediction_timedelta=-1) > 0).sum())


def stamp(state: xr.Dataset, place: int) -> str:
    return f"{pd.Timestamp(state['time'].values[place]):%Y-%m-%d}"


def ensembles(found: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """Those of more than one member."""
    return {name: each for name, each in found.items() if int(each.attrs.get("members", 2)) > 1}


def by_model(data: xr.Dataset, *, without: Sequence[str] = ("climatology", "persistence")) -> dict[str, xr.Dataset]:
    return {str(name): data.sel(model=name) for name in data["model"].values if name not in without}


def crps_cell(found: xr.Dataset, channel: str, lead: np.timedelta64) -> str:
    one = at(found, channel, lead)
    return (
        f"{float(one.crps) * style_of(channel).factor:.3g} · **{one.ratio:.3f}** [{one.ratio_lower:.3f}, {one.ratio_upper:.3f}]"
    )


def ratio_cell(found: xr.Dataset, channel: str, lead: np.timedelta64) -> str:
    one = at(found, channel, lead)
    spread = "" if np.isnan(one.ssr) else f" · {one.ssr:.2f}"
    return f"**{one.ratio:.3f}** [{one.ratio_lower:.3f}, {one.ratio_upper:.3f}]{spread}"


def ssr_cell(found: xr.Dataset, channel: str, lead: np.timedelta64) -> str:
    one = at(found, channel, lead)
    return f"{one.ssr:.2f} [{one.ssr_lower:.2f}, {one.ssr_upper:.2f}]"


def rmse_cell(found: xr.Dataset, channel: str, lead: np.timedelta64) -> str:
    value, low, high = (float(at(found, channel, lead)[name]) * style_of(channel).factor for name in RMSE)
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"


RMSE = ("rmse", "rmse_lower", "rmse_upper")


def divergence_cell(found: xr.Dataset, channel: str, lead: np.timedelta64) -> str:
    one = found.sel(channel=channel, drawn_lead=lead)
    return f"{float(one.divergence):.3f} [{float(one.divergence_lower):.3f}, {float(one.divergence_upper):.3f}]"


def power_cell(found: xr.Dataset, channel: str, lead: np.timedelta64) -> str:
    one = found.sel(channel=channel, drawn_lead=lead)
    sums = [one.sel(wavenumber=slice(*band)).sum("wavenumber", skipna=False) for band in ((1, 8), (9, 16), (17, 24), (25, 30))]
    return ", ".join(f"{float(band.forecast_power / band.truth_power):.2f}" for band in sums)


def at(found: xr.Dataset, channel: str, lead: np.timedelta64) -> xr.Dataset:
    return found.sel(channel=channel, prediction_timedelta=lead)


def rank_table(ranks: xr.Dataset) -> str:
    channels = [channel for channel in CHANNELS if channel in ranks["channel"].values]
    lines = ["| | " + " | ".join(style_of(channel).label for channel in channels) + " |", "|---|" + "---|" * len(channels)]
    for name in docs.ordered([str(model) for model in ranks["model"].values]):
        cells = []
        for channel in channels:
            bins = ranks["ranks"].sel(model=name, channel=channel).values
            cells.append(f"**{np.abs(bins - 1).max():.2f}** ({bins[0]:.2f}, {bins[-1]:.2f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def physics_tables(folder: Path) -> list[str]:
    """Beside the physics ensembles: the same analyses, dates and number of members."""
    states = docs.kept_states(folder, "physics")
    climatology = states.pop("climatology")
    found = {name: numbers(state, climatology) for name, state in states.items()}
    first = next(iter(states.values()))
    parts = [
        "## Beside physics: the dates and analyses of docs/physics",
        f"{first.sizes['time']} initialisations, {stamp(first, 0)} to {stamp(first, -1)}; {first.attrs['members']} members, "
        "each from its own perturbed analysis (truth + error, z500 80 m² s⁻² rms); verified against the truth; intervals "
        "as above.",
        "### **Fair CRPS over the climatology's** · spread-skill ratio",
        table(found, ratio_cell, channels=CHANNELS, leads=LEADS, units=False),
    ]
    for rival in ("perfect", "imperfect"):
        if rival in states:
            paired = {name: numbers(state, states[rival]) for name, state in states.items() if name not in ("perfect", rival)}
            parts += [
                f"### **Fair CRPS over that of the {rival} model's ensemble**, paired",
                table(paired, lambda *which: ratio_cell(*which).partition(" · ")[0], channels=CHANNELS, leads=LEADS, units=False),
            ]
    parts += [
        "### Variable x lead cells ahead of the imperfect ensemble (all channels, every 12 h to day 15)",
        ahead_table(folder),
    ]
    return parts


def ahead_table(folder: Path) -> str:
    known = json.loads((folder / "ahead.json").read_text())
    lines = ["| | cells | ahead | significantly (false-discovery rate 0.1) | behind in |", "|---|---|---|---|---|"]
    for name in docs.ordered(known):
        one = known[name]
        share, sure = one["ahead"] / one["cells"], one["significantly"] / one["cells"]
        behind = ", ".join(one["not"][:6]) + (" ..." if len(one["not"]) > 6 else "")
        lines.append(f"| {name} | {one['cells']} | **{share:.1%}** | {sure:.1%} | {behind or 'none'} |")
    return "\n".join(lines)


def cost_table(folder: Path) -> str:
    costs = json.loads((folder / "costs.json").read_text())
    lines = [
        "## Cost of a member-day, core-seconds", "",
        "| | core-seconds | of the imperfect physics' | parameters |", "|---|---|---|---|",
    ]  # fmt: skip
    for name, each in costs.items():
        share = each["core_seconds"] / PHYSICS_COST["imperfect"]
        lines.append(f"| {name} | **{each['core_seconds']:.4f}** | {share:.1%} | {each['parameters'] / 1e6:.2f} M |")
    lines += [
        f"| {name} physics | {value:.2f} | {value / PHYSICS_COST['imperfect']:.0%} | |" for name, value in PHYSICS_COST.items()
    ]
    one = next(iter(costs.values()))
    text = (
        f"Processor time of the whole engine, all threads ({one['threads']:g}), {one['members']:g} members, {one['days']:g} "
        f"days, the least of {one['turns']:g} turns."
    )
    return "\n".join([*lines, "", text])


def long_tables(found: xr.Dataset) -> list[str]:
    """Sixty days: drift, range, spectra, memory."""
    parts = [
        "## Sixty days: 8 initialisations of 2007, 4 members, noise scale of the checkpoint",
        "Drift: mean of days 31 to 60 of the global mean's departure from the usual one of the date, over half the range of the "
        "training years within 15 days of it. Outside: share of (run, lead) whose global mean lies outside that range; excess: "
        "how far the mean over the runs leaves it at worst, over its width. Beyond: share of values outside all those of the "
        "training years. Spectrum: largest departure from 1 of the members' zonal power, days 31 to 60, over the truth's on the "
        "same dates of 2001 to 2007, at wavenumbers 1 to 15, and at all where the truth's power is ten times that of its "
        "rounding (the wavenumber in brackets). Memory: correlation of anomalies a day apart in single members, days 1 to 10 "
        "and 31 to 60. The truth's values stand behind the slashes.",
    ]
    lines = [
        "| | | drift | outside | excess | beyond | range | spectrum 1 to 15 | spectrum, all | memory, early | late |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for channel in found["channel"].values:
        label = style_of(str(channel)).label
        for name in found["model"].values:
            lines.append(
                f"| {label} | {name} | " + " | ".join(long_cells(found.sel(model=name, channel=channel), str(channel))) + " |"
            )
            label = ""
    return [*parts, "\n".join(lines)]


def long_cells(one: xr.Dataset, channel: str) -> list[str]:
    own, truth = one.sel(source="forecast"), one.sel(source="truth")
    style = style_of(channel)
    low, high, true_low, true_high = (
        float(style.display(value)) for value in (own.least, own.most, truth.least, truth.most)
    )  # fmt: skip
    near = one["ratio"].sel(wavenumber=slice(1, 15))
    return [
        f"{float(own.drift):+.2f} / {float(truth.drift):+.2f}",
        f"{float(own.outside):.1%} / {float(truth.outside):.1%}",
        f"{float(own.excess):.2f} / {float(truth.excess):.2f}",
        f"{float(own.beyond):.1e} / {float(truth.beyond):.1e}",
        f"{low:.4g} to {high:.4g} / {true_low:.4g} to {true_high:.4g} {readable_units(style.units)}",
        departure(near),
        departure(one["ratio"]),
        f"{float(own.early):.3f} / {float(truth.early):.3f}",
        f"{float(own.late):.3f} / {float(truth.late):.3f}",
    ]


def departure(ratio: xr.DataArray) -> str:
    away = abs(ratio - 1)
    if not bool(away.notnull().any()):
        return ""
    place = int(away.argmax("wavenumber"))
    return f"{float(ratio[place]) - 1:+.2f} ({int(ratio['wavenumber'][place])})"


def europe_tables(found: xr.Dataset) -> list[str]:
    """The regional reanalysis."""
    channels = [str(channel) for channel in found["channel"].values]
    models: dict[str, Any] = by_model(found, without=("climatology",))
    n = int(found["n"].max())
    return [
        "## ERA-Interim, western Europe",
        f"Every {found.attrs['every']} days from {found.attrs['first']} to {found.attrs['last']} (n = {n}); the boundary is "
        "open. Cells as above; linear: regression on EOFs with resampled residuals.",
        "### Fair CRPS, and **its ratio to the climatology's**",
        table(models, crps_cell, channels=channels, leads=EUROPE_DAYS),
        "### Spread-skill ratio",
        table({name: each for name, each in models.items() if name != "persistence"}, ssr_cell, channels=channels,
              leads=EUROPE_DAYS, units=False),
    ]  # fmt: skip
