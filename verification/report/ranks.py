"""The rank histograms of the report: of every ensemble, with how far from flat they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from verification.readout import regions_of, zone_sums
from verification.report import details
from verification.report.choice import FEW_DAYS, channels_shown, holders, hours_of, leads_shown
from verification.report.figures import rank_histogram
from verification.report.tables import Table, interval, lead_name
from verification.significance import draws_of_lead, limits
from verification.styles import style_of

NOTE = (
    "How often the truth fell below, between and above the sorted members, relative to a flat histogram (dashed, 1). A U "
    "shape means too little spread, a dome too much, a slope a bias; flat is necessary, not sufficient (Hamill 2001). Ties "
    "are shared among the ranks they span. Outside: share of truths beyond all members, over the share 2 / (M + 1) that "
    "chance would leave there; tilt: share of truths above the middle of the ensemble less that below it; reliability "
    "index: sum of the departures from flat (Delle Monache et al. 2006; noise alone makes it positive). Whole grid; "
    "{percent} % block bootstrap intervals in brackets."
)
SUMMARIES = ("outside", "tilt", "reliability_index")


def section(states: Sequence[xr.Dataset], *, n_boot: int = 300, seed: int = 0, level: float = 0.95) -> dict[str, Any] | None:
    """Rank histograms of every ensemble of two members or more; None where there is none, or no state keeps ranks."""
    known, names = holders(states, "ranks", fewest=2)
    leads = leads_shown(list(known.values()), FEW_DAYS)
    if not leads.size:
        return None
    read = {index: rank_shares(state, leads, n_boot=n_boot, seed=seed, level=level) for index, state in known.items()}
    channels = [_channel(label, read, names) for label in channels_shown(next(iter(known.values())))]
    numbers = [_numbers(read[index], names[index]) for index in known]
    note = NOTE.format(percent=f"{100 * level:g}")
    return {"id": "ranks", "title": "Rank histograms", "note": note, "channels": channels, "numbers": numbers}


def rank_shares(
    state: xr.Dataset, leads: np.ndarray, *, region: str | None = None, n_boot: int = 300, seed: int = 0, level: float = 0.95
) -> xr.Dataset:
    """Share of each rank, and how flat they are: Dataset (channel, prediction_timedelta[, rank]).

    shares (..., rank), summing to 1; reliability_index; outside, the share of the two outer ranks over 2 / (M + 1), and tilt, the
    share above the middle less that below, with <name>_lower and _upper from resampled initialisations; n, initialisations.
    """
    own = zone_sums(state.sel(prediction_timedelta=leads), ["ranks"], region or regions_of(state)[0])
    shares = _shares(own["ranks"].sum("time"))
    found = _flatness(shares).assign(shares=shares, n=(own["ranks"].sum("rank") > 0).sum("time"))
    found["reliability_index"] = abs(shares - 1 / shares.sizes["rank"]).sum("rank", skipna=False)
    bounds = []
    for lead in leads:
        draws = draws_of_lead(state, lead, n_boot=n_boot, seed=seed)
        drawn = xr.dot(own["ranks"].sel(prediction_timedelta=[lead]), draws, dim="time")
        bounds.append(limits(_flatness(_shares(drawn)), ("channel", "prediction_timedelta"), level))
    return found.merge(xr.concat(bounds, "prediction_timedelta").where(found["n"] > 1))


def _shares(counts: xr.DataArray) -> xr.DataArray:
    total = counts.sum("rank")
    return counts / total.where(total > 0)


def _flatness(shares: xr.DataArray) -> xr.Dataset:
    ranks = shares.sizes["rank"]
    side = xr.DataArray(np.sign(np.arange(ranks) - (ranks - 1) / 2), dims="rank")
    outer = (shares.isel(rank=0) + shares.isel(rank=-1)) * ranks / 2
    return xr.Dataset({"outside": outer.drop_vars("rank", errors="ignore"), "tilt": (shares * side).sum("rank", skipna=False)})


def _channel(label: str, read: dict[int, xr.Dataset], names: dict[int, str]) -> dict[str, Any]:
    style = style_of(label)
    groups, summary, tables = [], [], []
    for index, whole in read.items():
        if label not in whole["channel"].values:
            continue
        own = whole.sel(channel=label)
        drawn, lines = [], []
        for lead in own["prediction_timedelta"].values:
            at = own.sel(prediction_timedelta=lead)
            hours, values = hours_of(lead), at["shares"].values
            where = f"{style.long_name}, {names[index]}, {lead_name(hours)}"
            alt = f"Rank histogram of {where}: outer ranks {values[0]:.3f}, {values[-1]:.3f}"
            if np.isfinite(values).all():
                picture = rank_histogram(values, title=lead_name(hours), model=index, alt=alt)
                drawn.append({"svg": picture, "caption": ["outside {}, tilt {}".format(*_summary(at))]})
            summary.append([f"{names[index]}, {lead_name(hours)}", *_summary(at), str(int(at["n"]))])
            lines.append([lead_name(hours), *[f"{share:.4f}" for share in values]])
        groups.append({"title": f"{names[index]}, M = {values.size - 1}", "kind": "panels", "figures": drawn})
        heads = ["lead", *map(str, range(values.size))]
        tables.append(Table(f"{style.long_name}, {names[index]}: share of each rank", heads, lines))
    heads = ["model, lead", "outside / expected", "tilt", "reliability index", "n"]
    tables.insert(0, Table(f"{style.long_name}: how flat the rank histograms are", heads, summary))
    return {"label": style.label, "long_name": style.long_name, "groups": groups, "tables": tables}


def _summary(at: xr.Dataset) -> list[str]:
    cells = []
    for name, signed in (("outside", False), ("tilt", True)):
        bounds = interval(float(at[f"{name}_lower"]), float(at[f"{name}_upper"]), signed)
        value = f"{float(at[name]):{'+' if signed else ''}.2f}".replace("-", "−")
        cells.append(f"{value} [{bounds}]" if bounds else value)
    return [*cells, f"{float(at['reliability_index']):.2f}"]


def _numbers(read: xr.Dataset, model: str) -> pd.DataFrame:
    options: dict[str, Any] = {"section": "ranks", "model": model, "n": read["n"]}
    return pd.concat([details.rows(read, ["shares"], at="rank", **options), details.rows(read, SUMMARIES, **options)])
