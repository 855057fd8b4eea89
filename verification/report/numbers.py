"""The numbers of the report as one long table, read from the score states; display units."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from verification import readout
from verification.significance import intervals
from verification.styles import style_of

SCORES = ("crps", "crps_ecdf", "rmse", "spread", "ssr", "bias", "acc")
PLAIN = ("ssr", "crpss", "acc")  # without units
REGIONS = (  # of the page, where the grid has them; the state can be read for more
    "global", "domain", "northern extratropics", "tropics", "southern extratropics", "land", "sea", "domain land", "domain sea",
)  # fmt: skip
COLUMNS = ["model", "channel", "region", "lead_hours", "score", "reference", "value", "low", "high", "n", "units"]
ORDER = ("channel", "prediction_timedelta")


def collect(states: Sequence[xr.Dataset], *, n_boot: int, seed: int) -> pd.DataFrame:
    """Every score of every state and the skill of the first against each other, by channel, region and lead.

    Columns `COLUMNS`: scores `SCORES`, and crpss with its reference; value and the limits of its 95 % interval, low and high, in
    display units (NaN where there is none: the spread is printed without); n initialisations.
    """
    parts = []
    for region in reported_regions(states):
        for state in states:
            scores = readout.scores_table(state, region)
            limits = intervals(state, region=region, n_boot=n_boot, seed=seed)
            known = [name for name in SCORES if name in scores]
            parts += [_rows(scores, limits, name, model=model_of(state), region=region) for name in known]
        for reference in states[1:]:
            skill = readout.skill(states[0], reference, region)
            limits = intervals(states[0], reference, region=region, n_boot=n_boot, seed=seed)
            parts.append(_rows(skill, limits, "crpss", model=model_of(states[0]), region=region, reference=model_of(reference)))
    return pd.concat(parts, ignore_index=True)[COLUMNS]


def _rows(scores: xr.Dataset, limits: xr.Dataset, name: str, *, model: str, region: str, reference: str = "") -> pd.DataFrame:
    missing = xr.full_like(scores[name], np.nan)
    fields = {"value": scores[name], "n": scores["n"]}
    fields |= {"low": limits.get(f"{name}_lower", missing), "high": limits.get(f"{name}_upper", missing)}
    table = pd.DataFrame({key: array.transpose(*ORDER).values.ravel() for key, array in fields.items()})
    labels, leads = (scores[dim].values for dim in ORDER)
    table["channel"] = np.repeat(labels.astype(str), leads.size)
    table["lead_hours"] = np.tile(leads / np.timedelta64(1, "h"), labels.size)
    styles = {str(label): style_of(str(label)) for label in labels}
    if name not in PLAIN:
        factor = table["channel"].map({label: style.factor for label, style in styles.items()})
        table[["value", "low", "high"]] = table[["value", "low", "high"]].mul(factor, axis=0)
    units = {label: "" if name in PLAIN else style.difference_units for label, style in styles.items()}
    return table.assign(units=table["channel"].map(units), score=name, model=model, region=region, reference=reference)


def reported_regions(states: Sequence[xr.Dataset]) -> list[str]:
    """The regions of the page that every state can be read for, the whole grid first."""
    known = [readout.regions_of(state) for state in states]
    return [region for region in known[0] if region in REGIONS and all(region in each for each in known)]


def model_of(state: xr.Dataset) -> str:
    return str(state.attrs["model"])


def map_fields(state: xr.Dataset) -> xr.Dataset:
    """`crps`, `bias` and `ssr` of each grid point (channel, prediction_timedelta, latitude, longitude) in SI units."""
    means = readout.maps(state)
    members = int(state.attrs["members"])
    ratio = np.sqrt((members + 1) / members) * means["spread"] / means["rmse"].where(means["rmse"] > 0)
    return means[["crps", "bias"]].assign(ssr=ratio)
