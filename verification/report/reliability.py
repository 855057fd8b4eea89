"""The reliability diagrams of the report: what followed when an event was forecast with some probability, and how often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from verification import readout
from verification.event_curves import PROBABILITIES, reliability_bins
from verification.report import details, diagrams
from verification.report.choice import event_channels, event_name, hours_of
from verification.report.diagrams import Curve
from verification.report.tables import Table, lead_name
from verification.styles import style_of

FEWEST_CASES = 10  # in a bin that is drawn
NOTE = (
    "Of the cases in which about so many members had the event, how often it happened: on the diagonal a probability means "
    "what it says. Bars are {percent} % block bootstrap intervals of the frequency; bins of fewer than {fewest} cases are "
    "not drawn. Dotted: how often the event happens at all; points beyond the grey line add to the Brier skill, points "
    "between it and the dotted line take from it. Below: sharpness, the share of all forecasts in each bin, on a log axis. "
    "Brier score (of the members as they are) = reliability (lower is better) − resolution (higher is better) + "
    "uncertainty, over all M + 1 probabilities. Whole grid."
)
PARTS = ("brier_ecdf", "reliability", "resolution", "uncertainty")


def section(states: Sequence[xr.Dataset], *, n_boot: int = 300, seed: int = 0, level: float = 0.95) -> dict[str, Any] | None:
    """Reliability diagrams of all models for the events of each channel; None where no state keeps events."""
    options: dict[str, Any] = {"n_boot": n_boot, "seed": seed, "level": level}
    read, names, channels = event_channels(states, partial(_read, **options), _channel)
    if not channels:
        return None
    numbers = []
    for index, whole in read.items():
        told: dict[str, Any] = {"section": "reliability", "model": names[index]}
        bins = whole.assign_coords(bin=np.arange(PROBABILITIES) / (PROBABILITIES - 1))
        bins_of = ["probability", "frequency", "share", "cases"]
        numbers.append(details.rows(bins, bins_of, at="bin", n=whole["initialisations"].assign_coords(bin=bins["bin"]), **told))
        numbers.append(details.rows(whole, ["base_rate", *PARTS], n=whole["n"], **told))
    note = NOTE.format(percent=f"{100 * level:g}", fewest=FEWEST_CASES)
    return {"id": "reliability", "title": "Reliability", "note": note, "channels": channels, "numbers": numbers}


def _read(state: xr.Dataset, leads: np.ndarray, *, n_boot: int, seed: int, level: float) -> xr.Dataset:
    sums = readout.event_sums(state.sel(prediction_timedelta=leads))
    scores = readout.event_ratios(sums.sum("time"), int(state.attrs["members"]))
    parts = scores[["base_rate", *PARTS]]
    bins = reliability_bins(state, leads=leads, n_boot=n_boot, seed=seed, level=level)
    return bins.merge(parts).assign(n=(sums["tail_weight"] > 0).sum("time"))


def _channel(label: str, events: Sequence[str], read: Mapping[int, xr.Dataset], names: Mapping[int, str]) -> dict[str, Any]:
    style = style_of(label)
    groups, tables = [], []
    for event in events:
        name = event_name(event, label)
        drawn, lines = [], []
        for lead in next(iter(read.values()))["prediction_timedelta"].values:
            at = {"channel": label, "event": event, "prediction_timedelta": lead}
            own = {index: whole.sel(at) for index, whole in read.items() if _has(whole, at)}
            if not own:
                continue
            when = lead_name(hours_of(lead))
            alt = f"Reliability of {style.long_name} {name}, {when}, of {', '.join(names[index] for index in own)}"
            drawn.append(
                {"svg": _picture(own, title=when, alt=alt), "caption": [_decomposed(names[i], one) for i, one in own.items()]}
            )
            lines += [[f"{when}, {names[index]}", *_cells(one), _decomposition(one)] for index, one in own.items()]
        if drawn:
            groups.append({"title": f"{style.long_name} {name}", "kind": "panels", "figures": drawn})
            heads = [
                "lead, model",
                *[f"{100 * k / (PROBABILITIES - 1):.0f} %" for k in range(PROBABILITIES)],
                "Brier = rel − res + unc",
            ]
            caption = f"{style.long_name} {name}: observed frequency by forecast probability (share of the forecasts)"
            tables.append(Table(caption, heads, lines))
    return {"label": style.label, "long_name": style.long_name, "groups": groups, "tables": tables}


def _has(whole: xr.Dataset, at: Mapping[str, Any]) -> bool:
    """True if a model has cases of an event there."""
    return all(value in whole[dim].values for dim, value in at.items()) and bool(np.isfinite(whole["base_rate"].sel(at)))


def _picture(own: Mapping[int, xr.Dataset], *, title: str, alt: str) -> Any:
    curves, shares = [], []
    for index, one in own.items():
        kept = (one["cases"] >= FEWEST_CASES).values
        columns = [one[name].values[kept] for name in ("probability", "frequency", "frequency_lower", "frequency_upper", "share")]
        curves.append(Curve(index, *columns[:4]))
        shares.append(columns[4])
    base = float(next(iter(own.values()))["base_rate"])
    return diagrams.reliability(curves, shares, base, title=title, alt=alt)


def _cells(one: xr.Dataset) -> list[str]:
    cells = []
    for frequency, share, cases in zip(one["frequency"].values, one["share"].values, one["cases"].values, strict=True):
        few = "" if cases >= FEWEST_CASES else "few: "
        cells.append(f"{few}{frequency:.2f} ({100 * share:.2g} %)" if cases > 0 else "–")
    return cells


def _decomposition(one: xr.Dataset) -> str:
    total, reliability, resolution, uncertainty = (float(one[name]) for name in PARTS)
    return f"{total:.4f} = {reliability:.4f} − {resolution:.4f} + {uncertainty:.4f}"


def _decomposed(name: str, one: xr.Dataset) -> str:
    return f"{name}: {_decomposition(one)}"
