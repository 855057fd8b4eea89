"""Generators beside physics ensembles of the simulated planet: tables of docs/results.md, from the score states in docs/physics.

    python -m tests.benchmarks physics
    python -m tests.benchmarks.physics FOLDER     # first condense FOLDER/scores/*.scores.zarr, made by `plumecast verify`

All start from the same analyses, or from members around them (recipes/planet_physics.toml), on the same dates, and are verified
against the truth. Every skill is paired: on common dates, intervals from joint resamples.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline.grid import Grid  # noqa: F401  PROJ before ecCodes
from verification.readout import scores_table, skill
from verification.significance import compare, intervals
from verification.state import condensed, open_state
from verification.styles import readable_units, style_of

STATES = Path("docs/physics")
LEADS = {f"day {day}": np.timedelta64(24 * day, "h") for day in (1, 3, 5, 7, 10, 15)}
CHANNELS = (
    "geopotential_500", "mean_sea_level_pressure", "temperature_850", "2m_temperature", "u_component_of_wind_850",
    "specific_humidity_850", "total_precipitation_12hr",
)  # fmt: skip
MODELS = {"perfect": "perfect (T31)", "imperfect": "imperfect (T21)", "members": "crps, members", "analysis": "crps, analysis"}


def main() -> None:
    states = {name: open_state(STATES / f"{name}.scores.nc") for name in (*MODELS, "climatology")}
    first = states["perfect"]
    print(
        f"{first.sizes['time']} initialisations, {pd.Timestamp(first['time'].values[0]):%Y-%m-%d} to "
        f"{pd.Timestamp(first['time'].values[-1]):%Y-%m-%d}; {first.attrs['members']} members; fair CRPS; 95 % intervals\n"
    )
    shown = {label: states[name] for name, label in MODELS.items()}
    print("## CRPS, and its ratio to the climatology's\n")
    print(table(shown, lambda state, channel, lead: against(state, states["climatology"], channel, lead)))
    print("\n## Spread-skill ratio\n")
    print(table(shown, spread_skill))
    for reference in ("perfect", "imperfect"):
        print(f"\n## CRPS over that of the {reference} model, paired (p of the test)\n")
        chosen = {label: states[name] for name, label in MODELS.items() if name not in ("perfect", reference)}
        print(table(chosen, functools.partial(paired_cell, states[reference])))


def paired_cell(reference: xr.Dataset, state: xr.Dataset, channel: str, lead: np.timedelta64) -> str:
    return over(state, reference, channel, lead)


def table(
    states: Mapping[str, xr.Dataset],
    cell: Callable[[xr.Dataset, str, np.timedelta64], str],
    *,
    channels: Sequence[str] = CHANNELS,
    leads: Mapping[str, np.timedelta64] = LEADS,
    units: bool = True,
) -> str:
    """Markdown: a row for each channel and model {label: state} that has it; cells: cell(state, channel, lead)."""
    lines = ["| | | " + " | ".join(leads) + " |", "|---|---|" + "---|" * len(leads)]
    for channel in channels:
        style = style_of(channel)
        label = f"{style.label} ({readable_units(style.difference_units)})" if units else style.label
        for name, state in states.items():
            if channel in state["channel"].values:
                cells = [cell(state, channel, lead) for lead in leads.values()]
                lines.append(f"| {label} | {name} | " + " | ".join(cells) + " |")
                label = ""
    return "\n".join(lines)


def against(state: xr.Dataset, climatology: xr.Dataset, channel: str, lead: np.timedelta64) -> str:
    at = {"channel": channel, "prediction_timedelta": lead}
    value = float(scores_table(state).crps.sel(at)) * style_of(channel).factor
    return f"{value:.3g} · {ratio(state, climatology, at)}"


def ratio(state: xr.Dataset, reference: xr.Dataset, at: dict[str, object]) -> str:
    own, reference = (
        one.sel(channel=[at["channel"]], prediction_timedelta=[at["prediction_timedelta"]]) for one in (state, reference)
    )
    limits = intervals(own, reference).squeeze()
    value = 1 - float(skill(own, reference).crpss.squeeze())
    return f"**{value:.3f}** [{1 - float(limits.crpss_upper):.3f}, {1 - float(limits.crpss_lower):.3f}]"


def over(state: xr.Dataset, reference: xr.Dataset, channel: str, lead: np.timedelta64) -> str:
    at = {"channel": channel, "prediction_timedelta": lead}
    p = float(compare(state, reference).p_value.sel(at))
    return f"{ratio(state, reference, at)} ({'< 0.001' if p < 1e-3 else f'{p:.3f}'})"


def spread_skill(state: xr.Dataset, channel: str, lead: np.timedelta64) -> str:
    at = {"channel": channel, "prediction_timedelta": lead}
    limits = intervals(state).sel(at)
    return f"{float(scores_table(state).ssr.sel(at)):.2f} [{float(limits.ssr_lower):.2f}, {float(limits.ssr_upper):.2f}]"


def condense(folder: Path) -> None:
    """The states of a campaign as small files."""
    STATES.mkdir(parents=True, exist_ok=True)
    for name in (*MODELS, "climatology"):
        state = condensed(open_state(folder / "scores" / f"{name}.scores.zarr"), list(LEADS.values()))
        if name == "climatology":
            state = state.drop_dims("rank")  # as large as all the rest
        encoding = {str(variable): {"zlib": True, "complevel": 9, "shuffle": True} for variable in state.data_vars}
        state.to_netcdf(STATES / f"{name}.scores.nc", engine="netcdf4", encoding=encoding)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        condense(Path(sys.argv[1]))
    main()
