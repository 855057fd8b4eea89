"""The spectra of the report: power of truth, members and ensemble means by zonal wavenumber."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from verification import readout
from verification.report import details, diagrams
from verification.report.choice import FEW_DAYS, channels_shown, holders, hours_of, leads_shown
from verification.report.diagrams import Curve
from verification.report.tables import Table, lead_name
from verification.styles import style_of

BELTS = {"20N-90N": "northern extratropics", "20S-20N": "tropics", "90S-20S": "southern extratropics"}
NOTE = (
    "Mean power by zonal wavenumber (waves round the circle of latitude) of the truth (black; that of the first model's "
    "initialisations), of the members (lines: the mean of the powers of single members) and of the ensemble mean (dotted), and "
    "below it over that of the truth at each model's own initialisations. Members "
    "should lie at 1: below it a forecast is too smooth, above it too rough; the mean loses what the members do not agree "
    "on, as it should. Northern and southern extratropics are poleward of 20°."
)
POWERS = ("forecast_power", "truth_power", "mean_power")
SHOWN_BELTS = ("20N-90N", "20S-20N")
TOLD = (1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120, 200)  # wavenumbers of the table


def section(states: Sequence[xr.Dataset]) -> dict[str, Any] | None:
    """Spectra of all models by channel, belt and lead; None where no state keeps any (a regional grid)."""
    known, names = holders(states, "forecast_power")
    leads = leads_shown(list(known.values()), FEW_DAYS, "drawn_lead")
    if not leads.size:
        return None
    read = {index: _read(state) for index, state in known.items()}
    channels = [_channel(label, leads, read, names) for label in channels_shown(next(iter(known.values())))]
    numbers = [_numbers(read[index].sel(drawn_lead=leads), names[index]) for index in known]
    return {"id": "spectra", "title": "Spectra", "note": NOTE, "channels": channels, "numbers": numbers}


def _read(state: xr.Dataset) -> xr.Dataset:
    power = readout.spectra(state)
    single = int(state.attrs["members"]) == 1  # whose mean is itself
    return power.drop_vars([name for name in ("mean_power", "mean_ratio") if single and name in power])


def _channel(label: str, leads: np.ndarray, read: Mapping[int, xr.Dataset], names: Mapping[int, str]) -> dict[str, Any]:
    style = style_of(label)
    units = details.units_of(style, 2) or "1"
    groups, tables = [], []
    for belt in SHOWN_BELTS:
        drawn, lines = [], []
        for lead in leads:
            at = {"channel": label, "belt": belt, "drawn_lead": lead}
            own = {i: whole.sel(at) for i, whole in read.items() if all(value in whole[dim].values for dim, value in at.items())}
            own = {index: one for index, one in own.items() if int(one["n"]) > 0}
            if not own:
                continue
            when = lead_name(hours_of(lead))

            def curve(index: int, name: str, own: Mapping[int, xr.Dataset] = own) -> Curve:
                power = own[index][name][1:] * (1.0 if name.endswith("ratio") else style.factor**2)
                return Curve(index, power["wavenumber"].values, power.values)

            truth = curve(next(iter(own)), "truth_power")
            averaged = [index for index, one in own.items() if "mean_power" in one]
            lines_of = [
                [curve(index, name) for index in which]
                for name, which in (("forecast_power", own), ("mean_power", averaged), ("ratio", own), ("mean_ratio", averaged))
            ]
            who = ", ".join(names[index] for index in own)
            alt = f"Spectra of {style.long_name}, {BELTS[belt]}, {when}, of {who} and the truth"
            picture = diagrams.spectrum(truth, *lines_of, units=units, title=when, alt=alt)
            drawn.append({"svg": picture, "caption": []})
            lines += [row for index, one in own.items() for row in _lines(one, f"{when}, {names[index]}")]
        if drawn:
            groups.append({"title": f"{style.long_name}, {BELTS[belt]}", "kind": "panels", "figures": drawn})
            largest = int(truth.x[-1])
            heads = ["lead, model", "", *[f"k = {k}" for k in TOLD if k <= largest]]
            tables.append(Table(f"{style.long_name}, {BELTS[belt]}: power over that of the truth by wavenumber", heads, lines))
    return {"label": style.label, "long_name": style.long_name, "groups": groups, "tables": tables}


def _lines(one: xr.Dataset, name: str) -> list[list[str]]:
    kinds = {"ratio": "members", "mean_ratio": "mean"}
    told = [k for k in TOLD if k < one.sizes["wavenumber"]]
    return [
        [name, text, *[f"{float(one[kind].sel(wavenumber=k)):.2f}" for k in told]] for kind, text in kinds.items() if kind in one
    ]


def _numbers(read: xr.Dataset, model: str) -> Any:
    known = [name for name in POWERS if name in read]
    return details.rows(read, known, section="spectra", model=model, at="wavenumber", n=read["n"], power=2)
