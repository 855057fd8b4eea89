"""What the comparison has to show, as bars that are met or not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr

from tests.benchmarks import _generator_docs as docs
from tests.benchmarks._campaign import DAY
from verification.styles import style_of

Z500_RATIO = {3: 0.32, 5: 0.52, 7: 0.68}
JUDGED = ("geopotential_500", "temperature_850", "2m_temperature")
IMPERFECT_COST = 0.27
SSR, SPECTRUM, RANKS, CELLS, COST = 0.1, 0.2, 0.2, 0.9, 0.25


class Bar(NamedTuple):
    """What was asked, who was measured, what was found, and whether it is enough."""

    asked: str
    model: str
    found: str
    met: bool


def bars(folder: Path) -> str:
    """All bars as a table; those whose figures are not there are not shown."""
    found = [*test_bars(folder), *rank_bars(folder), *physics_bars(folder), *long_bars(folder)]
    lines = ["## Bars", "", "| asked | model | found | met |", "|---|---|---|---|"]
    lines += [f"| {bar.asked} | {bar.model} | {bar.found} | {'yes' if bar.met else '**no**'} |" for bar in found]
    return "\n".join(lines)


def test_bars(folder: Path) -> Iterator[Bar]:
    if not (folder / "curves.nc").exists():
        return
    curves = docs.read(folder / "curves.nc")
    for name in shown(curves):
        one = curves.sel(model=name)
        leads = [day * DAY for day in Z500_RATIO]
        values = one["ratio"].sel(channel="geopotential_500", prediction_timedelta=leads).values
        met = bool((values <= np.array([*Z500_RATIO.values()])).all())
        text = ", ".join(f"{value:.3f}" for value in values)
        yield Bar("best: z500 CRPS over climatology's at most 0.32, 0.52, 0.68 at days 3, 5, 7", name, text, met)
    for name in shown(curves):
        ten = curves.sel(model=name, prediction_timedelta=slice(DAY, 10 * DAY))
        ssr = ten["ssr"].sel(channel=[channel for channel in JUDGED if channel in ten["channel"].values])
        text = f"{float(ssr.min()):.3f} to {float(ssr.max()):.3f}"
        met = abs(float(ssr.min()) - 1) <= SSR and abs(float(ssr.max()) - 1) <= SSR
        yield Bar("spread-skill ratio of z500, t850, t2m 0.9 to 1.1, days 1 to 10", name, text, met)
    for name in shown(curves):
        ratio = curves["ratio"].sel(model=name, prediction_timedelta=slice(None, 10 * DAY))
        worst = ratio.where(ratio == ratio.max(), drop=True)
        channel, lead = style_of(str(worst["channel"].values[0])).label, worst["prediction_timedelta"].values[0] / DAY
        text = f"at most {float(ratio.max()):.3f} ({channel}, day {lead:g})"
        yield Bar("CRPS ahead of the climatology's at every lead to day 10", name, text, float(ratio.max()) < 1)


def rank_bars(folder: Path) -> Iterator[Bar]:
    if not (folder / "ranks.nc").exists():
        return
    ranks = docs.read(folder / "ranks.nc")
    for name in shown(ranks):
        away = abs(ranks["ranks"].sel(model=name) - 1).max("bin")
        found = ", ".join(f"{style_of(str(c)).label} {float(away.sel(channel=c)):.2f}" for c in away["channel"].values)
        yield Bar("ranks in 17 bins within 20 % of flat, mean of days 1 to 10", name, found, bool((away <= RANKS).all()))


def physics_bars(folder: Path) -> Iterator[Bar]:
    costs = json.loads((folder / "costs.json").read_text()) if (folder / "costs.json").exists() else {}
    ahead = json.loads((folder / "ahead.json").read_text()) if (folder / "ahead.json").exists() else {}
    for name in docs.ordered([name for name in ahead if ", " in name]):
        share = ahead[name]["ahead"] / ahead[name]["cells"]
        yield Bar("ahead of the imperfect physics ensemble in 90 % of cells", name, f"{share:.1%}", share >= CELLS)
    for name, each in costs.items():
        share = each["core_seconds"] / IMPERFECT_COST
        yield Bar("at under 1/4 of its core-seconds a member-day", name, f"{share:.1%}", share < COST)


def long_bars(folder: Path) -> Iterator[Bar]:
    if not (folder / "long.nc").exists():
        return
    found = docs.read(folder / "long.nc")
    for name in (str(model) for model in found["model"].values):
        own = found.sel(model=name, source="forecast")
        excess = own["excess"]
        worst = style_of(str(excess["channel"].values[excess.values.argmax()])).label
        text = "never" if float(excess.max()) == 0 else f"by {float(excess.max()):.2f} of its width ({worst})"
        yield Bar("60 days: mean global means never outside the climate's range", name, text, float(excess.max()) == 0)
        away = abs(own["ratio"] - 1).max("wavenumber")
        text = ", ".join(f"{style_of(str(c)).label} {float(away.sel(channel=c)):.2f}" for c in away["channel"].values)
        yield Bar("days 31 to 60: zonal power within 20 % of the truth's", name, text, bool((away <= SPECTRUM).all()))


def shown(data: xr.Dataset) -> list[str]:
    """Models, not baselines."""
    names = [str(name) for name in np.atleast_1d(data["model"].values)]
    return docs.ordered([name for name in names if name not in ("climatology", "persistence")])
