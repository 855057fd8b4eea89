"""Scores read from a score state: every division, root and ratio happens here, last, after all sums.

Regions are unions of cells, chosen here; ranks, events, spectra and the like are kept on coarser zones and belts and are known
for those regions that zones make up. The estimator, policy and number of initialisations stand in the attributes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import xarray as xr

from data_pipeline.errors import InputError
from verification.decomposition import hersbach
from verification.events import BINS, brier, roc, sedi
from verification.onepass import ANOMALIES, MAPS, SUMS, TAILS
from verification.policy import POLICY_TEXTS
from verification.regions import inside, members_of, regions_in
from verification.state import SPECTRA, units_of

POLICY = "; ".join([*POLICY_TEXTS.values(), "spread-skill ratio with (M + 1) / M"])
ONE_MEMBER = "one member: the fair CRPS is undefined (0/0); its ecdf form, which is the MAE, stands beside"


def regions_of(state: xr.Dataset) -> list[str]:
    """The regions a state can be read for; the first is the whole grid."""
    return regions_in([str(cell) for cell in state["cell"].values])


def scores_table(state: xr.Dataset, region: str | None = None, *, size: float | None = None) -> xr.Dataset:
    """The scores by channel and lead, averaged over a region (default: the whole grid) and all initialisations.

    Dataset (channel, prediction_timedelta): crps (fair; NaN with one member), crps_ecdf (of the members as they are; with one
    member the MAE), rmse, mae (of the ensemble mean), bias, spread, ssr (NaN with one member), acc (with a climatology: pooled
    over points and initialisations) and acc_mean (the mean over initialisations of the ACC of each), n (initialisations that
    count), dropped (cases left out), and, where zones make up the region, rank_histogram (..., rank) summing to 1. size: crps is
    then what `size` members would score by ecdf (Ferro et al. 2008), to compare ensembles of unequal size. Units in
    attrs["units"]. Raises InputError for an unknown region.
    """
    rows = region_sums(state, region)
    pooled = rows.sum("time")
    members = int(state.attrs["members"])
    check_size(size)
    scores = ratios(pooled, members, size)
    scores["n"] = (rows["weight"] > 0).sum("time")
    scores["dropped"] = pooled["dropped"].astype(np.int64)
    if ANOMALIES[0] in rows:
        scores["acc"] = anomaly_correlation(pooled)
        scores["acc_mean"] = anomaly_correlation(rows).mean("time")
    if "ranks" in state and has_zones(state, region):
        ranks = zone_sums(state, ["ranks"], region)["ranks"].sum("time")
        scores["rank_histogram"] = ranks / pooled["weight"].where(pooled["weight"] > 0)
    estimator = "none" if members == 1 else "fair" if size is None else f"size {size:g}"
    scores.attrs = {**state.attrs, "region": region or regions_of(state)[0], "estimator": estimator, "policy": POLICY}
    scores["crps"].attrs["estimator"] = estimator
    if members == 1:
        scores["crps"].attrs["note"] = scores.attrs["note"] = ONE_MEMBER
    return scores


def check_size(size: float | None) -> None:
    """Raise InputError for a size that no ensemble has."""
    if size is not None and not size >= 1:
        raise InputError(f"size {size}: expected at least 1 member")


def ratios(sums: xr.Dataset, members: int, size: float | None = None) -> xr.Dataset:
    """crps, crps_ecdf, rmse, mae, bias, spread and ssr from sums of any region and any initialisations."""
    weight = sums["weight"].where(sums["weight"] > 0)
    mse = sums["squared_error"] / weight
    undefined = mse * np.nan
    pairs = sums["gini"] / 2
    variance = sums["variance"] / weight if members > 1 else undefined
    share = 1.0 if size is None else 1 - 1 / size
    return xr.Dataset(
        {
            "crps": (sums["abs_error"] - share * pairs) / weight if members > 1 else undefined,
            "crps_ecdf": (sums["abs_error"] - (1 - 1 / members) * pairs) / weight,
            "rmse": mse**0.5,
            "mae": sums["mean_abs_error"] / weight,
            "bias": sums["error"] / weight,
            "spread": variance**0.5,
            "ssr": ((members + 1) / members * variance / mse.where(mse > 0)) ** 0.5,
        }
    )


def comparable_crps(sums: xr.Dataset, members: int, size: float | None = None) -> xr.DataArray:
    """The CRPS that skill compares: fair, or at `size` members; of a single-member forecast its absolute error."""
    return ratios(sums, members, size)["crps" if members > 1 else "crps_ecdf"]


def region_sums(state: xr.Dataset, region: str | None = None) -> xr.Dataset:
    """The sums of a region's cells, (channel, time, prediction_timedelta)."""
    region = region or regions_of(state)[0]
    names = [name for name in (*SUMS, *ANOMALIES) if name in state]
    cells = members_of(region, [str(cell) for cell in state["cell"].values])
    return state[names].isel(cell=cells).sum("cell")


def has_zones(state: xr.Dataset, region: str | None = None) -> bool:
    """True if the region is a union of zones, so that its tables are known."""
    region = region or regions_of(state)[0]
    cells = members_of(region, [str(cell) for cell in state["cell"].values])
    zones = inside(region, [str(zone) for zone in state["zone"].values])
    return bool(np.isin(state["zone_of"].values[cells], zones).all())


def zone_sums(state: xr.Dataset, names: Sequence[str], region: str | None = None) -> xr.Dataset:
    """The tables of a region's zones, summed over them. Raises InputError for a region that zones do not make up."""
    region = region or regions_of(state)[0]
    if not has_zones(state, region):
        fitting = [name for name in regions_of(state) if has_zones(state, name)]
        raise InputError(f"ranks, events and spectra are not kept for {region!r}, only for {', '.join(fitting)}")
    absent = [name for name in names if name not in state]
    if absent:
        raise InputError(f"the state of {state.attrs.get('model', '?')} has no {', '.join(absent)}: nothing was asked to fill it")
    zones = inside(region, [str(zone) for zone in state["zone"].values])
    return state[list(names)].isel(zone=zones).sum("zone")


def decomposition(state: xr.Dataset, region: str | None = None) -> xr.Dataset:
    """Parts of the ecdf CRPS (Hersbach 2000): crps, reliability, potential, resolution, uncertainty, by channel and lead.

    The uncertainty is read from a histogram of the truth with its means in each bin, which leaves out the spread inside the bins:
    it is low by less than one per cent with the 64 bins that are kept.
    """
    names = ["hersbach_alpha", "hersbach_beta", "below_all", "not_above_all", "truth_weight", "truth_sum"]
    sums = zone_sums(state, names, region).sum("time")
    dims = ("channel", "prediction_timedelta")
    alpha, beta = (sums[name].transpose(*dims, "rank").values for name in names[:2])
    below, not_above = (sums[name].transpose(*dims).values for name in names[2:4])
    weight, total = (sums[name].transpose(*dims, "bin").values for name in names[4:])
    reliability, potential, crps = hersbach(alpha, beta, below, not_above, weight.sum(-1))
    uncertainty = binned_crps(weight, total) if state.sizes["bin"] > 2 else np.full(crps.shape, np.nan)
    fields = {
        "crps": crps,
        "reliability": reliability,
        "potential": potential,
        "resolution": uncertainty - potential,
        "uncertainty": uncertainty,
    }
    return xr.Dataset({name: (dims, values) for name, values in fields.items()}, coords={dim: sums[dim] for dim in dims})


def binned_crps(weight: np.ndarray, total: np.ndarray) -> np.ndarray:
    """CRPS of a sample by its own distribution, from weights and sums of ascending bins along the last axis."""
    norm = np.where(weight.sum(-1) > 0, weight.sum(-1), np.nan)
    # an empty bin takes the mean of the one before: its step is zero
    filled = np.where(weight > 0, np.arange(weight.shape[-1]), -1)
    last = np.maximum.accumulate(filled, axis=-1)
    means = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
    centre = np.take_along_axis(means, np.maximum(last, 0), axis=-1)
    below = np.cumsum(weight, axis=-1)[..., :-1] / norm[..., None]
    steps = np.where(last[..., :-1] >= 0, np.diff(centre, axis=-1), 0.0)
    result: np.ndarray = (below * (1 - below) * steps).sum(-1)
    return result


def event_table(state: xr.Dataset, region: str | None = None) -> xr.DataArray:
    """Weight by members with the event and its occurrence: (channel, prediction_timedelta, event, members_forecasting, observed).

    What `verification.reliability`, `roc`, `economic_value` and `sedi` read.
    """
    table = zone_sums(state, ["event_table"], region)["event_table"].sum("time")
    return table.transpose("channel", "prediction_timedelta", "event", *BINS).drop_vars(BINS)


def event_scores(state: xr.Dataset, region: str | None = None) -> xr.Dataset:
    """Scores of each event, (channel, prediction_timedelta, event): NaN where the event does not apply or never occurred.

    base_rate; brier (fair; NaN with one member), brier_ecdf and its parts reliability, resolution, uncertainty; brier_skill, that
    of brier (one member: brier_ecdf) against the base rate of this very sample, a hard reference, because it knows the sample;
    auc; sedi, of the warning by at least half of the members; twcrps (fair; threshold-weighted on the event's side) and
    twcrps_ecdf.
    """
    sums = event_sums(state, region).sum("time")
    return event_ratios(sums, int(state.attrs["members"])).transpose("channel", "prediction_timedelta", "event")


def event_sums(state: xr.Dataset, region: str | None = None) -> xr.Dataset:
    """The event tables and tails of a region, (channel, time, prediction_timedelta, event, ...)."""
    sums = zone_sums(state, ["event_table", *(f"tail_{name}" for name in TAILS)], region)
    return sums.drop_vars(BINS)


def event_ratios(sums: xr.Dataset, members: int) -> xr.Dataset:
    """The scores of `event_scores` from event sums with any further dims."""
    table = sums["event_table"]
    total = table.sum(BINS)
    base = table.isel(observed=1).sum(BINS[0]) / total.where(total > 0)
    parts = brier(table)
    uncertainty = parts["uncertainty"]
    plain = parts["reliability"] - parts["resolution"] + uncertainty  # equal by definition, and cheaper than a second reading
    weight = sums["tail_weight"].where(sums["tail_weight"] > 0)
    pairs = sums["tail_gini"] / 2
    return xr.Dataset(
        {
            "base_rate": base,
            "brier": parts["brier"],
            "brier_ecdf": plain,
            "brier_skill": 1 - (parts["brier"] if members > 1 else plain) / uncertainty.where(uncertainty > 0),
            "reliability": parts["reliability"],
            "resolution": parts["resolution"],
            "uncertainty": uncertainty,
            "auc": roc(table)["auc"],
            "sedi": sedi(table).isel(members_required=(members - 1) // 2, drop=True),
            "twcrps": (sums["tail_abs_error"] - pairs) / weight if members > 1 else weight * np.nan,
            "twcrps_ecdf": (sums["tail_abs_error"] - (1 - 1 / members) * pairs) / weight,
        }
    )


def binned_ranks(shares: xr.DataArray, bins: int) -> xr.DataArray:
    """A rank histogram (..., rank) in `bins` bins of as many neighbouring ranks each, (..., bin), scaled so that flat is 1.

    Bins show the shape of a histogram of few cases, whose single ranks show noise. Raises InputError unless M + 1 ranks fill
    `bins` bins of one size.
    """
    ranks = shares.sizes["rank"]
    if bins < 1 or ranks % bins:
        raise InputError(f"binned_ranks: {ranks} ranks do not fill {bins} bins of one size; expected a divisor of {ranks}")
    grouped = shares.coarsen(rank=ranks // bins).reduce(np.sum).rename(rank="bin").assign_coords(bin=np.arange(bins))
    return (grouped * bins).rename("binned_ranks").assign_attrs(ranks_per_bin=ranks // bins)


def quantile_scores(state: xr.Dataset, region: str | None = None) -> xr.DataArray:
    """Mean pinball of the ensemble's quantiles (type 7), (channel, prediction_timedelta, quantile), in units of the channel."""
    sums = zone_sums(state, ["quantile_score", "truth_weight"], region).sum("time")
    weight = sums["truth_weight"].sum("bin")
    return (sums["quantile_score"] / weight.where(weight > 0)).rename("quantile_score")


def fss(state: xr.Dataset, region: str | None = None) -> xr.DataArray:
    """Fractions skill score, (channel, prediction_timedelta, event, radius); NaN where neither has the event."""
    sums = zone_sums(state, ["fss_numerator", "fss_denominator"], region).sum("time")
    denominator = sums["fss_denominator"]
    return (1 - sums["fss_numerator"] / denominator.where(denominator > 0)).rename("fss")


def spectra(state: xr.Dataset) -> xr.Dataset:
    """Mean zonal power (channel, drawn_lead, belt, wavenumber): forecast_power, truth_power, mean_power; n initialisations.

    ratio, mean_ratio: of the first and the last to that of the truth. The forecast's is the mean of the powers of its members, of
    attrs["spectrum_members"] of them; mean_power is that of the mean of all members, smaller by what they do not agree on. A
    field with a gap in a belt has no spectrum there and does not count.
    """
    count = state["power_count"].sum("time")
    power = state[[name for name in SPECTRA if name in state]].sum("time") / count.where(count > 0)
    truth = power["truth_power"].where(power["truth_power"] > 0)
    power["ratio"] = power["forecast_power"] / truth
    if "mean_power" in power:
        power["mean_ratio"] = power["mean_power"] / truth
    return power.assign(n=count.astype(np.int64)).assign_attrs(spectrum_members=state.attrs["spectrum_members"])


def paired_sums(state: xr.Dataset, reference: xr.Dataset, region: str | None = None) -> tuple[xr.Dataset, xr.Dataset]:
    """The region's sums of both on the initialisations and leads they share, cleared where either of them has nothing.

    A row in which the two hold different cases (because one of them lacks points) is cleared in both: skill compares identical
    cases only. Raises InputError if they share no channel, lead or initialisation, or if units differ.
    """
    sums = [region_sums(which, region)[list(SUMS)] for which in (state, reference)]
    ours, theirs = xr.align(*sums, join="inner")
    empty_dims = [dim for dim in ("channel", "time", "prediction_timedelta") if ours.sizes[dim] == 0]
    names = f"{state.attrs.get('model', 'forecast')} and {reference.attrs.get('model', 'reference')}"
    if empty_dims:
        raise InputError(f"{names} share no {empty_dims[0]}; verify both on the same initialisations, leads and channels")
    check_units(state, reference, ours["channel"].values)
    return on_common_cases(ours, theirs)


def check_units(state: xr.Dataset, reference: xr.Dataset, channels: Iterable[str]) -> None:
    """Raise InputError, naming both, for channels that two states hold in different units."""
    units, other_units = units_of(state), units_of(reference)
    unlike = [f"{c}: {units[c]} and {other_units[c]}" for c in map(str, channels) if units[c] != other_units[c]]
    if unlike:
        names = f"{state.attrs.get('model', 'forecast')} and {reference.attrs.get('model', 'reference')}"
        raise InputError(f"{names} have different units ({'; '.join(unlike)})")


def same_climatology(state: xr.Dataset, reference: xr.Dataset) -> bool:
    """Whether anomalies and quantiles of two states are from one climatology, as far as they say."""
    return bool(state.attrs.get("climatology") == reference.attrs.get("climatology"))


def on_common_cases(ours: xr.Dataset, theirs: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """Both sums with those rows cleared in which the two hold different cases, or one of them none.

    Cases are the same if they weigh the same, as many points were left out, and the sums of their marks are equal.
    """
    same = (ours["weight"] > 0) & (abs(ours["weight"] - theirs["weight"]) <= 1e-9 * ours["weight"])
    for name in ("dropped", "dropped_marks"):
        same = same & (ours[name] == theirs[name])
    return ours.where(same, 0.0), theirs.where(same, 0.0)


def skill(state: xr.Dataset, reference: xr.Dataset, region: str | None = None, *, size: float | None = None) -> xr.Dataset:
    """CRPS skill score 1 - CRPS / CRPS of the reference, both over identical initialisations and weights.

    Dataset (channel, prediction_timedelta): crpss, crps, crps_reference, n (common initialisations). Each CRPS is the fair one,
    or both at `size` members; that of a single-member forecast is its MAE. NaN where there is no common initialisation or the
    reference is perfect.
    """
    ours, theirs = paired_sums(state, reference, region)
    crps = comparable_crps(ours.sum("time"), int(state.attrs["members"]), size)
    crps_reference = comparable_crps(theirs.sum("time"), int(reference.attrs["members"]), size)
    crpss = 1 - crps / crps_reference.where(crps_reference > 0)
    result = xr.Dataset({"crpss": crpss, "crps": crps, "crps_reference": crps_reference, "n": (ours["weight"] > 0).sum("time")})
    result.attrs = {"model": state.attrs.get("model", ""), "reference": reference.attrs.get("model", "")}
    return result


def maps(state: xr.Dataset) -> xr.Dataset:
    """Mean scores of each grid point over all initialisations: crps, rmse, bias, spread.

    Dims (channel, prediction_timedelta, latitude, longitude), the leads those that are drawn;
    crps is the fair one, with one member the absolute error.
    """
    sums = xr.Dataset({name: state[f"map_{name}"] for name in MAPS})
    count = sums["count"].where(sums["count"] > 0)
    variance = sums["variance"] / count if int(state.attrs["members"]) > 1 else count * np.nan
    fields = xr.Dataset(
        {
            "crps": sums["crps"] / count,
            "rmse": (sums["squared_error"] / count) ** 0.5,
            "bias": sums["error"] / count,
            "spread": variance**0.5,
        }
    )
    fields.attrs = state.attrs
    return fields.rename(drawn_lead="prediction_timedelta")


def in_training(state: xr.Dataset) -> str:
    """A sentence that says how many initialisations touch the training or validation period; empty if none does."""
    flags = state["in_training"].max("prediction_timedelta")
    found = [(name, int((flags == level).sum())) for level, name in ((2, "training"), (1, "validation"))]
    parts = [f"{count} with an initialisation or valid time in the {name} period" for name, count in found if count]
    if not parts:
        return ""
    model = state.attrs.get("model", "forecast")
    return f"{model}: of {flags.size} initialisations {' and '.join(parts)}; these scores are not independent of training"


def anomaly_correlation(sums: xr.Dataset) -> xr.DataArray:
    """Uncentred anomaly correlation from sums of products."""
    power = sums["forecast_anomaly"] * sums["truth_anomaly"]
    return sums["anomaly_product"] / power.where(power > 0) ** 0.5
