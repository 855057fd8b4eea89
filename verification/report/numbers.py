"""The numbers of the report as one long table, read from the score states; display units.

Two kinds of rows: scores of a model, with the interval of the score; and differences of two models on the cases both have, with
the interval and p-value of the paired test. Regions are those that every state can be read for, seasons those of the
initialisation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline.errors import InputError
from verification import readout, significance
from verification.onepass import ANOMALIES
from verification.state import condensed
from verification.styles import style_of

SCORES = ("crps", "crps_ecdf", "rmse", "spread", "ssr", "bias", "acc")
PLAIN = ("ssr", "crpss", "acc", "acc_difference")  # without units
REGIONS = (  # of the page, where the grid has them; the state can be read for more
    "global", "domain", "northern extratropics", "tropics", "southern extratropics", "land", "sea", "domain land", "domain sea",
)  # fmt: skip
WHOLE_YEAR = "all year"
SEASONS = {"DJF": (12, 1, 2), "MAM": (3, 4, 5), "JJA": (6, 7, 8), "SON": (9, 10, 11)}
ENOUGH = 8  # initialisations of the first model from which a season is shown
COLUMNS = [
    "model", "channel", "region", "season", "lead_hours", "score", "reference", "value", "low", "high", "n", "units",
    "of_reference", "relative", "p_value", "n_eff", "significant",
]  # fmt: skip
ORDER = ("channel", "prediction_timedelta")


def collect(states: Sequence[xr.Dataset], pairs: Sequence[tuple[int, int]], *, n_boot: int, seed: int) -> pd.DataFrame:
    """Scores of every state by channel, region, season and lead, skill and differences of pairs over the whole year.

    Columns `COLUMNS`: scores `SCORES`, and of each pair (model, reference), by position among the states, crpss and
    <score>_difference for crps, rmse and, where both have anomalies from one climatology, acc. value and the limits of its 95 %
    interval, low and high, are in display units (NaN where there is none: the spread is printed without); n initialisations. Of
    differences also the score of the reference on the same cases, the difference in per cent of it (of acc: that of 1 - acc),
    the p-value, the effective size, and whether the difference is significant with the rate of false discoveries controlled
    over the pair.
    """
    small = [condensed(state) for state in states]
    regions = reported_regions(states)
    parts = []
    for season in (WHOLE_YEAR, *seasons_of(states)):
        for state in (part for each in small if (part := in_season(each, season)).sizes["time"] > 0):
            wanted = SCORES if season == WHOLE_YEAR else _seasonal(state)
            for region in regions:
                where = {"model": model_of(state), "region": region, "season": season}
                scores = readout.scores_table(state, region)
                limits = significance.intervals(state, region=region, n_boot=n_boot, seed=seed)
                parts += [_rows(scores, limits, name, **where) for name in wanted if name in scores]
    for ours, theirs in pairs:
        names = {"model": model_of(small[ours]), "reference": model_of(small[theirs]), "season": WHOLE_YEAR}
        for region in regions:
            skill = readout.skill(small[ours], small[theirs], region)
            limits = significance.intervals(small[ours], small[theirs], region=region, n_boot=n_boot, seed=seed)
            parts.append(_rows(skill, limits, "crpss", region=region, **names))
        parts += _differences(small[ours], small[theirs], regions, n_boot=n_boot, seed=seed)
    return pd.concat(parts, ignore_index=True).reindex(columns=COLUMNS)


def pairs_of(names: Sequence[str], reference: str | None = None) -> list[tuple[int, int]]:
    """Which models are compared, (model, reference) by position: every other with the reference; without one, the first with
    every other. Raises InputError for a name that no model bears."""
    if reference is None:
        return [(0, index) for index in range(1, len(names))]
    if reference not in names:
        raise InputError(f"--reference {reference!r}: no model of that name; the report has {', '.join(map(repr, names))}")
    chosen = names.index(reference)
    return [(index, chosen) for index in range(len(names)) if index != chosen]


def seasons_of(states: Sequence[xr.Dataset]) -> list[str]:
    """The seasons in which the first model has enough initialisations, and not all."""
    counts = {season: in_season(states[0][["in_training"]], season).sizes["time"] for season in SEASONS}
    return [season for season, count in counts.items() if ENOUGH <= count < states[0].sizes["time"]]


def in_season(state: xr.Dataset, season: str) -> xr.Dataset:
    """The part of a state whose initialisations lie in a season (DJF, MAM, JJA, SON); all of it for the whole year."""
    if season == WHOLE_YEAR:
        return state
    return state.isel(time=np.flatnonzero(np.isin(state["time"].dt.month.values, SEASONS[season])))


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


def _seasonal(state: xr.Dataset) -> list[str]:
    """The scores of seasons: one CRPS, the fair one where there is one."""
    return [name for name in SCORES if name != ("crps_ecdf" if int(state.attrs["members"]) > 1 else "crps")]


def _differences(
    state: xr.Dataset, reference: xr.Dataset, regions: Sequence[str], *, n_boot: int, seed: int
) -> list[pd.DataFrame]:
    """The paired tests of two states: one control of false discoveries over all scores, regions, channels and leads."""
    anomalies = all(ANOMALIES[0] in each for each in (state, reference)) and readout.same_climatology(state, reference)
    scores: list[significance.Score] = ["crps", "rmse", "acc"] if anomalies else ["crps", "rmse"]
    found = significance.scorecard(state, reference, regions=regions, scores=scores, n_boot=n_boot, seed=seed)
    names = {"model": model_of(state), "reference": model_of(reference), "season": WHOLE_YEAR}
    parts = []
    for score in scores:
        for region in regions:
            tests = found.sel(score=score, region=region, drop=True)
            name = f"{score}_difference"
            limits = {f"{name}_{side}": tests[side] for side in ("lower", "upper")}
            values = xr.Dataset({name: tests["difference"], "n": tests["n"], "of_reference": tests["of_reference"]})
            rows = _rows(values, xr.Dataset(limits), name, region=region, **names)
            extra = ("relative", "p_value", "n_eff", "significant")
            parts.append(rows.assign(**{key: tests[key].transpose(*ORDER).values.ravel() for key in extra}))
    return parts


def _rows(
    scores: xr.Dataset, limits: xr.Dataset, name: str, *, model: str, region: str, season: str, reference: str = ""
) -> pd.DataFrame:
    missing = xr.full_like(scores[name], np.nan, dtype=float)
    fields = {"value": scores[name], "n": scores["n"], "of_reference": scores.get("of_reference", missing)}
    fields |= {"low": limits.get(f"{name}_lower", missing), "high": limits.get(f"{name}_upper", missing)}
    table = pd.DataFrame({key: array.transpose(*ORDER).values.ravel() for key, array in fields.items()})
    labels, leads = (scores[dim].values for dim in ORDER)
    table["channel"] = np.repeat(labels.astype(str), leads.size)
    table["lead_hours"] = np.tile(leads / np.timedelta64(1, "h"), labels.size)
    styles = {str(label): style_of(str(label)) for label in labels}
    if name not in PLAIN:
        factor = table["channel"].map({label: style.factor for label, style in styles.items()})
        shown = ["value", "low", "high", "of_reference"]
        table[shown] = table[shown].mul(factor, axis=0)
    units = {label: "" if name in PLAIN else style.difference_units for label, style in styles.items()}
    where = {"score": name, "model": model, "region": region, "season": season, "reference": reference}
    return table.assign(units=table["channel"].map(units), **where)
