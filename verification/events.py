"""Scores of events (a value beyond a threshold): counts that add, and what is read from them.

An event table holds the weight of the cases in which i of M members and the truth (0 or 1) have the event. Tables of two months
add with `+` to the table of both; Brier score, reliability, ROC, economic value and SEDI are read from the sum, because most of
them do not average. Members are counted, never binned by a probability: no case is misfiled by the rounding of i / M.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import scipy.stats
import xarray as xr

from data_pipeline.errors import InputError
from verification.casewise import Dims, Missing, apply_exact, describe_threshold, dims_of
from verification.counting import Op, count_events, tally

BINS = ("members_forecasting", "observed")


def event_table(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    *,
    threshold: float | xr.DataArray,
    op: Op = ">",
    dim: Dims,
    weights: xr.DataArray | None = None,
    member_dim: str = "number",
    missing: Missing = "propagate",
) -> xr.Dataset:
    """Weight of the cases over `dim` by members with the event (0..M) and by its occurrence (0, 1): Dataset(weight, cases).

    The event is `value op threshold`, the same for members and truth; with ">" a value on the threshold has no event. All are
    compared in the coarser precision of forecast and truth, so that a float32 of 0.1 lies on the threshold 0.1. threshold: a
    number, or an array over dims of the data (a climatological quantile) or dims of its own, which the table then has too.
    weights: any dims (a dim of its own, such as a region, stays); default 1 a case.

    weight has dims (..., members_forecasting, observed), whose positions are their values: without an index, `+` refuses tables
    of unequal M instead of joining what they share. cases is the number of cases, unweighted; it is a variable, not a coordinate,
    because `+` adds only variables. A case without truth, with a missing member or without threshold does not count;
    missing="omit" is an InputError, because counts of ensembles of unequal size do not add.
    """
    if missing == "omit":
        raise InputError("event_table: missing='omit' would add counts of ensembles of unequal size; use 'propagate' or 'raise'")
    events = count_events(forecast, truth, threshold=threshold, op=op, member_dim=member_dim, missing=missing)
    members = forecast.sizes[member_dim]
    code = 2 * events["members"] + events["observed"]
    dims = dims_of(dim, code)
    arrays: list[xr.DataArray] = [code]
    if weights is not None:
        on_cases = apply_exact(np.multiply, code.notnull(), weights.fillna(0.0).astype(np.float64))
        arrays = list(xr.broadcast(code, on_cases))
    weight = xr.apply_ufunc(
        tally,
        *arrays,
        input_core_dims=[dims] * len(arrays),
        output_core_dims=[BINS],
        kwargs={"axes": len(dims), "members": members},
        dask="allowed",
    )
    attrs = {"op": op, "threshold": describe_threshold(threshold), "members": members, "missing": missing}
    weight = weight.assign_attrs(long_name="weight of cases by members with the event and by its occurrence", units="1")
    cases = code.notnull().sum(dims).assign_attrs(long_name="number of cases", units="1")
    return xr.Dataset({"weight": weight, "cases": cases}, attrs=attrs)


@overload
def brier(table: xr.DataArray | xr.Dataset, /, *, fair: bool = True) -> xr.Dataset: ...
@overload
def brier(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    *,
    threshold: float | xr.DataArray,
    op: Op = ">",
    fair: bool = True,
    member_dim: str = "number",
    missing: Missing = "propagate",
) -> xr.DataArray: ...
def brier(
    forecast: Any,
    truth: xr.DataArray | None = None,
    *,
    threshold: float | xr.DataArray | None = None,
    op: Op = ">",
    fair: bool = True,
    member_dim: str = "number",
    missing: Missing = "propagate",
) -> xr.DataArray | xr.Dataset:
    """Brier score of an event, of each case from fields or of all cases from an event table; lower is better.

    With k of M members on the wrong side (those with the event if it did not occur, else those without it):

    - fair: k (k - 1) / (M (M - 1)), unbiased for the score of the distribution the members are drawn from (Ferro 2014); 0 with a
      single wrong member, NaN with one member.
    - fair=False: (k / M)^2, the score of the M-member product itself (Brier 1950), biased high for small M.

    `brier(forecast, truth, threshold=..., op=...)` returns a DataArray of the cases; threshold as for `event_table`. NaN truth or
    threshold gives NaN; missing="omit" takes each case's own M, which only the fair score allows.

    `brier(table)` returns Dataset(brier, reliability, resolution, uncertainty): the weighted mean score, fair or not as asked,
    and the decomposition of the score that is not fair, always: reliability - resolution + uncertainty = brier(table,
    fair=False) exactly, with one bin for each number of members (Murphy 1973). Reliability and resolution are biased high where
    bins hold few cases. NaN where the table is empty.
    """
    if truth is None:
        if threshold is not None:
            raise InputError("brier: a threshold but no truth; give forecast, truth and threshold, or an event table alone")
        return _brier_of_table(forecast, fair)
    if threshold is None:
        raise InputError("brier: forecast and truth but no threshold; give threshold=..., or an event table alone")
    if missing == "omit" and not fair:
        raise InputError("brier: missing='omit' mixes ensemble sizes, which biases fair=False; use the fair score")
    events = count_events(forecast, truth, threshold=threshold, op=op, member_dim=member_dim, missing=missing)
    size = events["size"]
    wrong = abs(size * events["observed"] - events["members"])
    score = wrong * (wrong - 1) / (size * (size - 1)).where(size > 1) if fair else (wrong / size) ** 2
    return score.rename("brier").assign_attrs(
        long_name="fair Brier score" if fair else "Brier score",
        units="1",
        op=op,
        threshold=describe_threshold(threshold),
        members=forecast.sizes[member_dim],
        missing=missing,
    )


def reliability(
    table: xr.DataArray | xr.Dataset,
    *,
    quantiles: Sequence[float] = (0.05, 0.95),
    n_eff: float | xr.DataArray | None = None,
) -> xr.Dataset:
    """Reliability diagram of an event table: Dataset over members_forecasting, one bin for each number of members.

    forecast_probability: i / M. observed_frequency: NaN in an empty bin. share: the bin's part of all weight, the sharpness
    histogram. consistency (..., quantile): where the observed frequency would lie by chance if the probability were right,
    quantiles of the binomial distribution of the bin's cases (Broecker and Smith 2007), NaN in bins of less than half a case.

    n_eff: the number of independent cases in the whole table, of which each bin has its share, rounded. Default: all cases of the
    table, or the sum of a DataArray. Neighbouring points and days are not independent: without n_eff the bars are far too short.
    Bins of fewer than 10 cases should not be drawn.
    """
    counts = _counts(table)
    levels = np.asarray(quantiles, dtype=np.float64)
    if levels.ndim != 1 or not ((levels > 0) & (levels < 1)).all():
        raise InputError(f"reliability: quantiles {quantiles!r}; expected numbers between 0 and 1, for example (0.05, 0.95)")
    probability = _probability(counts)
    weight = counts.sum("observed", skipna=False)
    total = weight.sum("members_forecasting", skipna=False)
    share = weight / total.where(total != 0)
    if n_eff is None:
        n_eff = table["cases"] if isinstance(table, xr.Dataset) and "cases" in table else total
    bars = apply_exact(
        _binomial_quantiles,
        share * n_eff,
        probability,
        input_core_dims=[[], []],
        output_core_dims=[["quantile"]],
        kwargs={"levels": levels},
        sizes={"quantile": levels.size},
    )
    return _labelled(
        table,
        {
            "forecast_probability": (probability, "forecast probability"),
            "observed_frequency": (counts.isel(observed=1) / weight.where(weight != 0), "observed frequency"),
            "share": (share, "share of the weight of all cases"),
            "consistency": (bars, "observed frequency if the forecast probability were right"),
        },
        members_forecasting=np.arange(probability.size),
        quantile=levels,
    )


def roc(table: xr.DataArray | xr.Dataset) -> xr.Dataset:
    """Relative operating characteristic of an event table: Dataset(hit_rate, false_alarm_rate, auc).

    Warning when at least j members have the event, j = M + 1 (never) down to 0 (always) along dim members_required: all M + 2
    points of the curve, none lost to rounded thresholds. auc is the area under straight lines between them, the probability that
    an event has more members than a non-event, ties counted half (Mason and Graham 2002): 0.5 without skill, 1 at best, blind to
    calibration, higher for larger M. NaN without events or without non-events. Pool tables before the curve, never average areas.
    """
    rates = _rates(_counts(table))
    hits, alarms = rates.isel(observed=1), rates.isel(observed=0)
    later, earlier = {"members_required": slice(1, None)}, {"members_required": slice(None, -1)}
    widths = alarms.isel(later) - alarms.isel(earlier)
    area = (widths * (hits.isel(later) + hits.isel(earlier)) / 2).sum("members_required", skipna=False)
    fields = {
        "hit_rate": (hits, "events with at least so many members"),
        "false_alarm_rate": (alarms, "non-events with at least so many members"),
        "auc": (area, "area under the ROC curve"),
    }
    return _labelled(table, fields, members_required=np.arange(hits.sizes["members_required"])[::-1])


def economic_value(table: xr.DataArray | xr.Dataset, cost_loss: Sequence[float] | None = None) -> xr.Dataset:
    """Relative economic value of acting on the forecast: Dataset(value, members_required) over cost_loss.

    For a user who can avert a loss at the cost ratio c, acting when at least j members have the event,

        V(c) = (min(c, s) - F c (1 - s) + H s (1 - c) - s) / (min(c, s) - s c)

    with base rate s, hit rate H and false alarm rate F of j (Richardson 2000): 1 is a perfect forecast, 0 the better of always
    and never acting. value is the best over all j = M + 1 (never) .. 0 (always), hence not negative; members_required is that j,
    the largest of equals. cost_loss: ratios between 0 and 1, default 0.01 to 0.99. NaN without events or without non-events.
    """
    ratios = np.arange(1, 100) / 100 if cost_loss is None else np.asarray(cost_loss, dtype=np.float64)
    if ratios.ndim != 1 or not ((ratios > 0) & (ratios < 1)).all():
        raise InputError(f"economic_value: cost_loss {cost_loss!r}; expected ratios between 0 and 1, both excluded")
    counts = _counts(table)
    rates = _rates(counts)
    sums = counts.sum("members_forecasting", skipna=False)
    total = sums.sum("observed", skipna=False)
    base = sums.isel(observed=1) / total.where(total != 0)
    c = xr.DataArray(ratios, dims="cost_loss")
    climate = xr.where(c < base, c, base)
    gain = climate - rates.isel(observed=0) * c * (1 - base) + rates.isel(observed=1) * base * (1 - c) - base
    value = gain / (climate - base * c).where(rates.notnull().all(("observed", "members_required")))
    best = value.max("members_required", skipna=False)
    required = value.sizes["members_required"] - 1 - value.fillna(-np.inf).argmax("members_required")
    fields = {
        "value": (best, "relative economic value"),
        "members_required": (required.where(best.notnull()), "members required to act"),
    }
    return _labelled(table, fields, cost_loss=ratios)


def sedi(table: xr.DataArray | xr.Dataset) -> xr.DataArray:
    """Symmetric extremal dependence index of warning when at least j of M members have the event, dim members_required (1..M).

        SEDI = (ln F - ln H + ln(1 - H) - ln(1 - F)) / (ln F + ln H + ln(1 - H) + ln(1 - F))

    with hit rate H and false alarm rate F (Ferro and Stephenson 2011): 1 at best, 0 without skill, meaningful for rare events.
    NaN where H or F is 0 or 1, where it is undefined. Compare calibrated forecasts: only then is the base rate out of it.
    """
    rates = _rates(_counts(table)).isel(members_required=slice(-2, 0, -1))
    result = apply_exact(_sedi_block, rates, input_core_dims=[["observed"]])
    fields = {"sedi": (result, "symmetric extremal dependence index")}
    return _labelled(table, fields, members_required=np.arange(1, result.sizes["members_required"] + 1))["sedi"]


def rps(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    *,
    thresholds: Sequence[float] | xr.DataArray,
    fair: bool = True,
    member_dim: str = "number",
    missing: Missing = "propagate",
) -> xr.DataArray:
    """Ranked probability score of each case: the sum of the Brier scores of `value <= threshold`; lower is better.

    "<=" for every threshold, in forecast and truth; a sum, not divided by the number of thresholds (Epstein 1969; fair: Ferro
    2014). thresholds: numbers, or an array with a dim `threshold` and any dims of the data. fair, missing, NaN and precision as
    for `brier`; a case without one of its thresholds is NaN.
    """
    if isinstance(thresholds, xr.DataArray):
        edges, text = thresholds, describe_threshold(thresholds)
    else:
        edges = xr.DataArray(np.asarray(thresholds, dtype=np.float64), dims="threshold")
        text = ", ".join(map(repr, edges.values.tolist()))
    if "threshold" not in edges.dims or edges.sizes["threshold"] == 0:
        raise InputError(f"rps: thresholds have dims {dict(edges.sizes)}; expected a dim 'threshold' of at least one value")
    scores = brier(forecast, truth, threshold=edges, op="<=", fair=fair, member_dim=member_dim, missing=missing)
    name = "fair ranked probability score" if fair else "ranked probability score"
    result = scores.sum("threshold", skipna=False).rename("rps")
    return result.assign_attrs(scores.attrs, long_name=name, threshold=text)


def _counts(table: xr.DataArray | xr.Dataset) -> xr.DataArray:
    """The weights of a table (a Dataset of `event_table`, or their DataArray) by position."""
    counts = table["weight"] if isinstance(table, xr.Dataset) and "weight" in table else table
    if not isinstance(counts, xr.DataArray) or not set(BINS) <= set(counts.dims) or counts.sizes["observed"] != 2:
        raise InputError(f"expected an event table with dims (..., {', '.join(BINS)}), found {dict(table.sizes)}")
    if counts.sizes["members_forecasting"] < 2:
        raise InputError("an event table of M members has M + 1 counts along members_forecasting, found only 1")
    return counts.drop_vars(BINS, errors="ignore").astype(np.float64)


def _probability(counts: xr.DataArray) -> xr.DataArray:
    size = counts.sizes["members_forecasting"]
    return xr.DataArray(np.arange(size) / (size - 1), dims="members_forecasting")


def _brier_of_table(table: xr.DataArray | xr.Dataset, fair: bool) -> xr.Dataset:
    counts = _counts(table)
    members = counts.sizes["members_forecasting"] - 1
    i = xr.DataArray(np.arange(members + 1.0), dims="members_forecasting")
    wrong = xr.concat([i, members - i], "observed")
    if fair:
        penalty = wrong * (wrong - 1) / (members * (members - 1)) if members > 1 else xr.full_like(wrong, np.nan)
    else:
        penalty = (wrong / members) ** 2
    weight = counts.sum("observed", skipna=False)
    total = weight.sum("members_forecasting", skipna=False)
    total = total.where(total != 0)
    frequency = counts.isel(observed=1) / weight.where(weight != 0)
    base = counts.isel(observed=1).sum("members_forecasting", skipna=False) / total

    def over_bins(departure: xr.DataArray) -> xr.DataArray:
        # empty bins have no frequency and no weight
        return (weight * departure**2).where(weight != 0, 0.0).sum("members_forecasting", skipna=False) / total

    name = "fair Brier score" if fair else "Brier score"
    return _labelled(
        table,
        {
            "brier": ((counts * penalty).sum(BINS, skipna=False) / total, name),
            "reliability": (over_bins(_probability(counts) - frequency), "reliability of the Brier score that is not fair"),
            "resolution": (over_bins(frequency - base), "resolution of the Brier score that is not fair"),
            "uncertainty": (base * (1 - base), "uncertainty"),
        },
    )


def _rates(counts: xr.DataArray) -> xr.DataArray:
    """Parts of non-events and events with at least j = M + 1 .. 0 members, dims (..., members_required, observed)."""
    return apply_exact(
        _rates_block,
        counts,
        input_core_dims=[BINS],
        output_core_dims=[["members_required", "observed"]],
        sizes={"members_required": counts.sizes["members_forecasting"] + 1},
    )


def _rates_block(counts: np.ndarray) -> np.ndarray:
    reached = np.cumsum(counts[..., ::-1, :], axis=-2)
    reached = np.concatenate([np.zeros_like(reached[..., :1, :]), reached], axis=-2)
    total = reached[..., -1:, :]
    return reached / np.where(total != 0, total, np.nan)


def _sedi_block(rates: np.ndarray) -> np.ndarray:
    inside = np.where((rates > 0) & (rates < 1), rates, np.nan)
    log, log_rest = np.log(inside), np.log(1 - inside)
    alarms, hits = (log - log_rest)[..., 0], (log - log_rest)[..., 1]
    return (alarms - hits) / (log + log_rest).sum(axis=-1)


def _binomial_quantiles(cases: np.ndarray, probability: np.ndarray, levels: np.ndarray) -> np.ndarray:
    whole = np.where(cases >= 0.5, np.rint(cases), np.nan)[..., None]
    quantiles = scipy.stats.binom.ppf(levels, np.where(np.isnan(whole), 1.0, whole), probability[..., None])
    return quantiles / whole


def _labelled(table: xr.DataArray | xr.Dataset, fields: dict[str, tuple[xr.DataArray, str]], **coords: np.ndarray) -> xr.Dataset:
    """Fields with names, coordinates, and what the table knows of itself."""
    arrays = {name: array.assign_attrs(long_name=text, units="1") for name, (array, text) in fields.items()}
    attrs = {name: table.attrs[name] for name in ("op", "threshold", "members", "missing") if name in table.attrs}
    result = xr.Dataset(arrays, attrs=attrs).assign_coords({name: (name, values) for name, values in coords.items()})
    return result.assign_coords(cases=table["cases"]) if isinstance(table, xr.Dataset) and "cases" in table else result
