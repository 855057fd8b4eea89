"""What diagrams of events are drawn from, read from a score state: scores and reliability with intervals, skill against another.

Intervals are from resampled initialisations, the draws of `verification.significance`: neighbouring points and days are alike, so
that bars for independent cases would be far too short.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from verification.events import BINS
from verification.plan import Event
from verification.readout import check_units, event_ratios, event_sums, on_common_cases, region_sums, same_climatology
from verification.significance import draws_of_lead, limits
from verification.timeseries import check_draws, check_share

PROBABILITIES = 11  # bins of a diagram, around 0, 0.1 .. 1: more are not read, and hold too few cases
DIMS = ("channel", "prediction_timedelta", "event")

Leads = Sequence[np.timedelta64] | np.ndarray


def probability_bin(members: int, bins: int = PROBABILITIES) -> np.ndarray:
    """The bin of each number of members 0 .. M, (M + 1,): the nearest of `bins` even steps from 0 to 1, halves upwards.

    In whole numbers: no probability is misfiled by the rounding of i / M.
    """
    i = np.arange(members + 1)
    found: np.ndarray = (2 * i * (bins - 1) + members) // (2 * members)
    return found


def reliability_bins(
    state: xr.Dataset,
    *,
    leads: Leads,
    bins: int = PROBABILITIES,
    region: str | None = None,
    n_boot: int = 300,
    seed: int = 0,
    level: float = 0.95,
) -> xr.Dataset:
    """A reliability diagram of few bins: Dataset (channel, prediction_timedelta, event, bin).

    probability: mean of the forecasts in the bin (`probability_bin`), never its centre; frequency: how often the event followed,
    with frequency_lower and frequency_upper (NaN from fewer than two initialisations); share: of all weight, the sharpness;
    cases: weight, in grid points of mean area; initialisations that have some. NaN in empty bins.
    """
    sums = event_sums(state.sel(prediction_timedelta=leads), region)
    members = int(state.attrs["members"])
    inside = probability_bin(members, bins)[:, None] == np.arange(bins)
    binned = xr.dot(
        sums["event_table"], xr.DataArray(inside * 1.0, dims=("members_forecasting", "bin")), dim="members_forecasting"
    )
    shares = inside * np.arange(members + 1)[:, None] / members
    forecast = xr.dot(
        sums["event_table"].sum("observed"), xr.DataArray(shares, dims=("members_forecasting", "bin")), dim="members_forecasting"
    )
    total = binned.sum("time")
    weight = total.sum("observed")
    whole = weight.sum("bin")
    holders = (binned.sum("observed") > 0).sum("time")
    found = xr.Dataset(
        {
            "probability": forecast.sum("time") / weight.where(weight > 0),
            "frequency": total.isel(observed=1) / weight.where(weight > 0),
            "share": weight / whole.where(whole > 0),
            "cases": weight,
            "initialisations": holders,
        }
    )
    bounds = []
    for lead in np.asarray(leads):
        draws = draws_of_lead(state, lead, n_boot=n_boot, seed=seed)
        drawn = xr.dot(binned.sel(prediction_timedelta=[lead]), draws, dim="time")
        both = drawn.sum("observed")
        bounds.append(limits(xr.Dataset({"frequency": drawn.isel(observed=1) / both.where(both > 0)}), (*DIMS, "bin"), level))
    return found.merge(xr.concat(bounds, "prediction_timedelta").where(holders > 1)).transpose(*DIMS, "bin")


def event_intervals(
    state: xr.Dataset,
    *,
    region: str | None = None,
    leads: Leads | None = None,
    n_boot: int = 300,
    seed: int = 0,
    level: float = 0.95,
) -> xr.Dataset:
    """Percentile intervals of `readout.event_scores`, from resampled initialisations as in `significance.intervals`.

    Dataset (channel, prediction_timedelta, event) with <score>_lower and <score>_upper. leads: default all; each costs time. NaN
    where fewer than two initialisations count.
    """
    check_share("level", level)
    check_draws(n_boot)
    wanted = state["prediction_timedelta"].values if leads is None else np.asarray(leads, "timedelta64[ns]")
    sums = event_sums(state.sel(prediction_timedelta=wanted), region)
    members = int(state.attrs["members"])
    found = []
    for lead in wanted:
        rows = sums.sel(prediction_timedelta=[lead])
        draws = draws_of_lead(state, lead, n_boot=n_boot, seed=seed)
        found.append(limits(event_ratios(rows.map(xr.dot, args=(draws,), dim="time"), members), DIMS, level))
    several = (sums["tail_weight"] > 0).sum("time") > 1
    result = xr.concat(found, "prediction_timedelta").where(several)
    attrs = {"method": "stationary bootstrap over initialisations", "level": level, "n_boot": n_boot, "seed": seed}
    return result.transpose(*DIMS).assign_attrs(attrs)


def event_counts(state: xr.Dataset, region: str | None = None) -> xr.Dataset:
    """How often each event happened, (channel, prediction_timedelta, event).

    events: weight, in grid points of mean area; initialisations with an event somewhere; n, initialisations that count.
    """
    sums = event_sums(state, region)
    happened = sums["event_table"].isel(observed=1).sum("members_forecasting")
    fields = {
        "events": happened.sum("time"),
        "initialisations": (happened > 0).sum("time"),
        "n": (sums["tail_weight"] > 0).sum("time"),
    }
    return xr.Dataset(fields).transpose(*DIMS)


def event_skill(
    state: xr.Dataset,
    reference: xr.Dataset,
    *,
    leads: Leads | None = None,
    region: str | None = None,
    n_boot: int = 300,
    seed: int = 0,
    level: float = 0.95,
) -> xr.Dataset:
    """Skill for events against another model, on the initialisations both have: Dataset (channel, prediction_timedelta, event).

    twcrps_skill and brier_skill, 1 - score / score of the reference, of the fair scores (of one member: those of the members as
    they are), with <skill>_lower and <skill>_upper from joint resamples; n, common initialisations. leads: default all that both
    have. A row in which the two hold different cases counts for neither (`readout.on_common_cases`), and none does of quantiles
    of unlike climatologies: they are different events. Raises InputError if units differ.
    """
    wanted = [lead for lead in state["prediction_timedelta"].values if leads is None or lead in np.asarray(leads)]
    both = [
        _losses(which, [lead for lead in wanted if lead in which["prediction_timedelta"].values], region)
        for which in (state, reference)
    ]
    ours, theirs = xr.align(*both, join="inner")
    check_units(state, reference, ours["channel"].values)
    if not same_climatology(state, reference):
        fixed = [str(event) for event in ours["event"].values if not Event.parse(str(event)).is_quantile]
        ours = ours.where(ours["event"].isin(np.array(fixed, dtype=object)), 0.0)
    cleared = on_common_cases(ours, theirs)
    n = (cleared[0]["weight"] > 0).sum("time")
    pair = [losses[["twcrps", "brier"]] for losses in cleared]
    skills = _skills(*(losses.sum("time") for losses in pair))
    bounds = []
    for lead in ours["prediction_timedelta"].values:
        draws = draws_of_lead(ours, lead, n_boot=n_boot, seed=seed)
        rows = [losses.sel(prediction_timedelta=[lead]).map(xr.dot, args=(draws,), dim="time") for losses in pair]
        bounds.append(limits(_skills(*rows), DIMS, level))
    return skills.merge(xr.concat(bounds, "prediction_timedelta").where(n > 1)).assign(n=n).transpose(*DIMS)


def _losses(state: xr.Dataset, leads: Leads, region: str | None) -> xr.Dataset:
    """Weighted sums of Brier score and twCRPS, fair where they can be, of each initialisation, and what tells its cases."""
    sums, members = event_sums(state.sel(prediction_timedelta=leads), region), int(state.attrs["members"])
    i = np.arange(members + 1.0)
    wrong = np.stack([i, members - i], axis=1)  # members that the outcome, no or yes, speaks against
    penalty = wrong * (wrong - 1) / (members * (members - 1)) if members > 1 else wrong**2
    pairs = sums["tail_gini"] / 2 if members > 1 else 0.0
    fields = {
        "twcrps": sums["tail_abs_error"] - pairs,
        "brier": xr.dot(sums["event_table"], xr.DataArray(penalty, dims=BINS), dim=BINS),
        "weight": sums["tail_weight"],
    }
    told = region_sums(state.sel(prediction_timedelta=leads), region)[["dropped", "dropped_marks"]]
    return xr.Dataset(fields).merge(told)


def _skills(ours: xr.Dataset, theirs: xr.Dataset) -> xr.Dataset:
    return xr.Dataset({f"{name}_skill": 1 - ours[name] / theirs[name].where(theirs[name] > 0) for name in ("twcrps", "brier")})
