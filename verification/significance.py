"""How sure: intervals and paired tests that know that neighbouring initialisations are not independent.

The sample is the initialisation: rows of sums, already averaged over space, are tested as a series or resampled in blocks, and
every ratio is taken after resampling. Blocks are on average at least as long as the lead, counted in initialisation steps,
because forecasts that overlap in time share their errors. What is tested is the mean of the paired difference, never whether two
intervals overlap. What is not here: corrections for choosing among many models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from data_pipeline.errors import InputError
from verification.onepass import ANOMALIES, SUMS
from verification.readout import (
    anomaly_correlation,
    comparable_crps,
    on_common_cases,
    paired_sums,
    ratios,
    region_sums,
    regions_of,
)
from verification.regions import members_of
from verification.timeseries import (
    METHODS,
    Method,
    automatic_lag,
    block_length,
    check_draws,
    check_share,
    effective_size,
    in_steps,
    lead_steps,
    mean_test,
    optimal_block_length,
    resample_counts,
    stationary_bootstrap,
)

__all__ = [
    "SCORES", "TOO_FEW", "block_length", "compare", "compare_cells", "discoveries", "intervals", "lead_steps",
    "optimal_block_length", "paired_difference", "resample_counts", "scorecard", "stationary_bootstrap",
]  # fmt: skip

TOO_FEW = 30  # initialisations; below this an interval is shown with a warning

SCORES = ("crps", "crps_ecdf", "rmse", "bias", "ssr")

Score = Literal["crps", "rmse", "acc"]
Block = float | Literal["auto"] | None

COMPARED = ("crps", "rmse", "acc")
RESULTS = {
    "difference": "score of the forecast minus that of the reference",
    "of_reference": "score of the reference, on the cases both have",
    "relative": "difference in per cent of the score of the reference",
    "lower": "lower limit of the difference",
    "upper": "upper limit of the difference",
    "statistic": "test statistic",
    "p_value": "p-value, two-sided",
    "n": "initialisations that both have",
    "n_eff": "effective number of initialisations (AR(2), at most n)",
}


def intervals(
    state: xr.Dataset,
    reference: xr.Dataset | None = None,
    *,
    region: str | None = None,
    size: float | None = None,
    n_boot: int = 1000,
    seed: int = 0,
    block: Block = None,
    level: float = 0.95,
) -> xr.Dataset:
    """Percentile intervals of the scores by channel and lead, from resampled initialisations.

    Dataset (channel, prediction_timedelta) with <score>_lower and <score>_upper for crps (fair, or at `size` members), crps_ecdf,
    rmse, bias, ssr and, with a climatology, acc, or, if a reference is given, for crpss and all but acc on the initialisations
    both have, resampled jointly; n, block (mean length in initialisations) and too_few (n < 30: the interval itself is
    unreliable). All channels of a lead share their resamples (stationary bootstrap, Politis and Romano 1994). NaN where fewer
    than two initialisations count.

    block: mean length; by default `block_length`, that of the lead; "auto": the longest `optimal_block_length` of the CRPS (less
    that of the reference) among the channels, if that is longer.

    Block bootstrap intervals are a little narrow: on a simulated AR(1) series with coefficient 0.6 the 95 % interval of the mean
    covered it in 90 to 92 % of samples of 400, against 67 % for independent resampling.
    """
    check_share("level", level)
    check_draws(n_boot)
    if reference is None:
        ours, theirs = region_sums(state, region), None
    else:
        ours, theirs = paired_sums(state, reference, region)
    members = [int(which.attrs["members"]) for which in (state, reference) if which is not None]
    lengths, counts = np.zeros(ours.sizes["prediction_timedelta"]), []
    for index, lead in enumerate(ours["prediction_timedelta"].values):
        rows = [sums.isel(prediction_timedelta=index) for sums in (ours, theirs) if sums is not None]
        lengths[index] = _mean_block(rows, members, block, block_length(ours["time"].values, lead), size)
        rng = np.random.default_rng([seed, index])
        counts.append(resample_counts(ours.sizes["time"], lengths[index], n_boot, rng))
    resampled = [_resampled(sums, np.stack(counts)) for sums in (ours, theirs) if sums is not None]
    drawn = ratios(resampled[0], members[0], size)[[*SCORES]]
    if ANOMALIES[0] in ours:
        drawn["acc"] = anomaly_correlation(resampled[0])
    if theirs is not None:
        crps, crps_reference = (comparable_crps(sums, m, size) for sums, m in zip(resampled, members, strict=True))
        drawn["crpss"] = 1 - crps / crps_reference.where(crps_reference > 0)
    bounds = {str(name): _limits(values.values, level) for name, values in drawn.data_vars.items()}
    n = (ours["weight"] > 0).sum("time").transpose("channel", "prediction_timedelta")
    result = xr.Dataset({"n": n, "block": ("prediction_timedelta", lengths), "too_few": n < TOO_FEW})
    for name, (lower, upper) in bounds.items():
        result[f"{name}_lower"] = n.copy(data=lower).where(n > 1)
        result[f"{name}_upper"] = n.copy(data=upper).where(n > 1)
    result.attrs = {"method": "stationary bootstrap over initialisations", "level": level, "n_boot": n_boot, "seed": seed}
    return result


def draws_of_lead(state: xr.Dataset, lead: np.timedelta64, *, n_boot: int, seed: int) -> xr.DataArray:
    """How often each resample (sample, time) holds each initialisation of a state: at a lead the same draws as `intervals`."""
    index = int(np.flatnonzero(state["prediction_timedelta"].values == lead)[0])
    rng = np.random.default_rng([seed, index])
    times = state["time"].values
    return xr.DataArray(resample_counts(times.size, block_length(times, lead), n_boot, rng), dims=("sample", "time"))


def limits(drawn: xr.Dataset, dims: Sequence[str], level: float) -> xr.Dataset:
    """<name>_lower and <name>_upper (*dims) of the resamples along `sample`; NaN where none is finite."""
    ordered = drawn.transpose(*dims, "sample")
    bounds = {
        f"{name}_{side}": (tuple(dims), values)
        for name, array in ordered.items()
        for side, values in zip(("lower", "upper"), _limits(array.values, level), strict=True)
    }
    return xr.Dataset(bounds, coords={dim: ordered[dim] for dim in dims if dim in ordered.coords})


def paired_difference(state: xr.Dataset, reference: xr.Dataset, region: str | None = None) -> xr.DataArray:
    """CRPS of the forecast minus that of the reference, one number per initialisation: (channel, time, prediction_timedelta).

    Only initialisations that both have, each averaged over the region; negative where the forecast is better; NaN where unpaired.
    """
    rows = paired_sums(state, reference, region)
    ours, theirs = (_comparable(sums, which) for sums, which in zip(rows, (state, reference), strict=True))
    names = (state.attrs.get("model", "forecast"), reference.attrs.get("model", "reference"))
    return (ours - theirs).rename("crps_difference").assign_attrs(long_name=f"CRPS of {names[0]} minus CRPS of {names[1]}")


def compare(
    state: xr.Dataset,
    reference: xr.Dataset,
    *,
    region: str | None = None,
    method: Method = "ar2",
    rate: float = 0.1,
    level: float = 0.95,
    block: Block = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Is the forecast better than the reference? One paired test of the CRPS per channel and lead over all initialisations.

    Dataset (channel, prediction_timedelta): difference (mean of `paired_difference`, negative where the forecast is better) with
    its interval at `level`, lower and upper; relative (the difference in per cent of the reference's CRPS); statistic; p_value,
    two-sided; n; n_eff (`effective_size`, AR(2)); significant (Benjamini and Hochberg 1995 at `rate` over all channels and leads
    of the table); too_few (n < 30).

    method, block, n_boot: as `verification.timeseries.mean_test` says, whose `steps` are the lead in initialisation steps. "dm"
    takes errors for independent beyond the overlap of the forecasts: at leads of few steps it is too bold where d itself
    persists, and "ar2" is right; "hac" and "bootstrap" lie between. Initialisations that are missing keep their place in the
    series; the bootstrap draws from those that are there. Each CRPS is fair, of one member the absolute error. Raises InputError
    if nothing is common, units differ, or an argument is unknown.
    """
    ours, theirs = _paired(state, reference, [region or regions_of(state)[0]])
    options = {"method": method, "level": level, "block": block, "n_boot": n_boot}
    found = _tests(ours, theirs, state, reference, ("crps",), options, seed).isel(score=0, place=0, drop=True)
    return found.assign(significant=_significant(found, rate)).assign_attrs(false_discovery_rate=rate)


def scorecard(
    state: xr.Dataset,
    reference: xr.Dataset,
    *,
    regions: Sequence[str] | None = None,
    scores: Sequence[Score] = ("crps", "rmse"),
    method: Method = "ar2",
    rate: float = 0.1,
    level: float = 0.95,
    block: Block = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """`compare` for every region and score: Dataset (score, region, channel, prediction_timedelta) of the same variables.

    regions: default, all that both states can be read for. The RMSE is that of the ensemble mean over all initialisations; the
    difference of two is tested by the delta method, as the mean of its linear part, which adds for each initialisation the
    departure of its mean squared error, divided by twice the RMSE, of the one less that of the other. So is that of two pooled
    ACC, of states with a climatology; its `relative` is the change of 1 - ACC in per cent of that of the reference, so that what
    is negative is better in each score. significant: one control of the false-discovery rate over all
    cells of the card. Other arguments and errors as for `compare`.
    """
    unknown = [score for score in scores if score not in COMPARED]
    if unknown or not len(scores):
        raise InputError(f"scorecard: scores {list(scores)}; expected some of {', '.join(COMPARED)}")
    if "acc" in scores:
        lacking = [str(which.attrs.get("model", "?")) for which in (state, reference) if ANOMALIES[0] not in which]
        if lacking:
            raise InputError(
                f"scorecard: {', '.join(lacking)} was scored without a climatology; give one to verify, or leave out acc"
            )
    common = [region for region in regions_of(state) if region in regions_of(reference)]
    ours, theirs = _paired(state, reference, common if regions is None else regions)
    options = {"method": method, "level": level, "block": block, "n_boot": n_boot}
    found = _tests(ours, theirs, state, reference, scores, options, seed).rename(place="region")
    return found.assign(significant=_significant(found, rate)).assign_attrs(false_discovery_rate=rate)


def compare_cells(
    state: xr.Dataset,
    reference: xr.Dataset,
    *,
    method: Method = "ar2",
    rate: float = 0.1,
    level: float = 0.95,
    block: Block = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Where is the forecast better? `compare` for every cell of `verification.regions`.

    Dataset (channel, prediction_timedelta, cell). significant: Benjamini and Hochberg over the cells of each channel and lead, a
    map. Fields are correlated in space, and then a rate of 0.1 is a test of the whole map at 5 % (Wilks 2016: the rate is twice
    the level): if no cell truly differs, a map has significant cells in about 5 % of cases. Other arguments and errors as for
    `compare`.
    """
    ours, theirs = _paired(state, reference, None)
    options = {"method": method, "level": level, "block": block, "n_boot": n_boot}
    found = _tests(ours, theirs, state, reference, ("crps",), options, seed).isel(score=0, drop=True).rename(place="cell")
    found = found.transpose("channel", "prediction_timedelta", "cell")
    significant = np.zeros(found["p_value"].shape, dtype=bool)
    for index in np.ndindex(significant.shape[:2]):
        significant[index] = discoveries(found["p_value"].values[index], rate)
    return found.assign(significant=(found["p_value"].dims, significant)).assign_attrs(false_discovery_rate=rate)


def discoveries(p_values: np.ndarray, rate: float) -> np.ndarray:
    """Which tests are significant at a false-discovery rate (Benjamini and Hochberg 1995); NaN never is."""
    check_share("rate", rate)
    flat = np.asarray(p_values, dtype=np.float64).ravel()
    tested = np.sort(flat[np.isfinite(flat)])
    passed = np.flatnonzero(tested <= rate * np.arange(1, tested.size + 1) / max(tested.size, 1))
    if passed.size == 0:
        return np.zeros(np.shape(p_values), dtype=bool)
    return (flat <= tested[passed[-1]]).reshape(np.shape(p_values))


def _paired(state: xr.Dataset, reference: xr.Dataset, regions: Sequence[str] | None) -> list[xr.Dataset]:
    """Sums of both on what they share, (place, channel, time, prediction_timedelta): of regions, or of the cells both have."""
    probes = [which.isel(cell=slice(0, 1)) for which in (state, reference)]
    paired_sums(probes[0], probes[1])  # refuses what cannot be paired, at little cost
    names = [*SUMS, *(ANOMALIES if all(ANOMALIES[0] in which for which in (state, reference)) else ())]
    both = [_of_places(which[names], regions) for which in (state, reference)]
    ours, theirs = xr.align(*both, join="inner", copy=False)
    if ours.sizes["place"] == 0:
        raise InputError("the states have no cell or region in common; verify both on one grid, with the same land mask")
    return [ours, theirs]


def _of_places(sums: xr.Dataset, regions: Sequence[str] | None) -> xr.Dataset:
    if regions is None:
        return sums.rename(cell="place").drop_vars("zone_of", errors="ignore")
    cells = [str(cell) for cell in sums["cell"].values]
    inside = np.zeros((len(cells), len(regions)))
    for index, region in enumerate(regions):
        inside[members_of(region, cells), index] = 1.0
    # a product reads the cells once for all regions
    dims = ("channel", "time", "prediction_timedelta")
    totals = {name: ((*dims, "place"), array.transpose(*dims, "cell").values @ inside) for name, array in sums.data_vars.items()}
    return xr.Dataset(totals, coords={**{dim: sums[dim] for dim in dims}, "place": np.array(regions, dtype=object)})


def _tests(
    ours: xr.Dataset,
    theirs: xr.Dataset,
    state: xr.Dataset,
    reference: xr.Dataset,
    scores: Sequence[Score],
    options: dict[str, Any],
    seed: int,
) -> xr.Dataset:
    """The paired tests of all places, lead by lead: (score, place, channel, prediction_timedelta)."""
    times, leads = ours["time"].values, ours["prediction_timedelta"].values
    dims = ("score", "place", "channel", "prediction_timedelta")
    shape = (len(scores), ours.sizes["place"], ours.sizes["channel"], leads.size)
    found = {name: np.full(shape, np.nan) for name in RESULTS}
    for index, lead in enumerate(leads):
        rows = [sums.isel(prediction_timedelta=index).transpose("place", "channel", "time") for sums in (ours, theirs)]
        rows = [*on_common_cases(*rows)]
        steps = lead_steps(times, lead)
        for s, score in enumerate(scores):
            d, of_reference = _differences(rows, state, reference, score)
            placed = in_steps(d, times, max(2, automatic_lag(times.size, steps)))
            test = mean_test(d if options["method"] == "bootstrap" else placed, steps=steps, seed=[seed, index], **options)
            named = {name: getattr(test, name) for name in ("lower", "upper", "statistic", "p_value")}
            named |= {"difference": test.mean, "n": np.isfinite(d).sum(-1), "n_eff": effective_size(placed)}
            named["of_reference"] = of_reference
            with np.errstate(invalid="ignore", divide="ignore"):
                named["relative"] = 100 * (test.mean / of_reference if score != "acc" else -test.mean / (1 - of_reference))
            for name, values in named.items():
                found[name][s, :, :, index] = values
    coords = {dim: ours[dim].values for dim in dims[1:]}
    result = xr.Dataset({name: (dims, found[name], {"long_name": text}) for name, text in RESULTS.items()}, coords)
    result["n"] = result["n"].astype(np.int64)
    result["too_few"] = result["n"] < TOO_FEW
    result.attrs = {
        "test": METHODS[options["method"]],
        "level": options["level"],
        "model": state.attrs.get("model", "forecast"),
        "reference": reference.attrs.get("model", "reference"),
        "units": state.attrs["units"],
    }
    return result.assign_coords(score=np.array(scores, dtype=object))


def _differences(
    rows: Sequence[xr.Dataset], state: xr.Dataset, reference: xr.Dataset, score: str
) -> tuple[np.ndarray, np.ndarray]:
    """Series (place, channel, time) whose mean is the difference of the scores, and the score of the reference."""
    with np.errstate(invalid="ignore", divide="ignore"):
        if score == "crps":
            ours, theirs = (_comparable(sums, which) for sums, which in zip(rows, (state, reference), strict=True))
            return (ours - theirs).values, theirs.mean("time").values
        if score == "acc":
            ours, theirs = (_linear_acc(sums) for sums in rows)
            return (ours - theirs).values, theirs.mean("time").values
        squares = [sums["squared_error"] / sums["weight"].where(sums["weight"] > 0) for sums in rows]
        errors = [square.mean("time") ** 0.5 for square in squares]
        parts = [(square + error**2) / (2 * error) for square, error in zip(squares, errors, strict=True)]
        return (parts[0] - parts[1]).values, errors[1].values


def _linear_acc(sums: xr.Dataset) -> xr.DataArray:
    """A series (..., time) whose mean is the pooled ACC, and whose departures from it are the linear part of each row's share."""
    rows = sums[list(ANOMALIES)].where(sums["weight"] > 0)
    product, forecast, truth = (rows[name] for name in ANOMALIES)
    scale = (forecast.mean("time") * truth.mean("time")) ** 0.5
    acc = product.mean("time") / scale.where(scale > 0)
    linear = product / scale - 0.5 * acc * (forecast / forecast.mean("time") + truth / truth.mean("time"))
    return linear + acc


def _comparable(sums: xr.Dataset, state: xr.Dataset) -> xr.DataArray:
    return comparable_crps(sums, int(state.attrs["members"]))


def _significant(found: xr.Dataset, rate: float) -> tuple[tuple[Any, ...], np.ndarray]:
    return found["p_value"].dims, discoveries(found["p_value"].values, rate)


def _mean_block(rows: Sequence[xr.Dataset], members: Sequence[int], block: Block, shortest: int, size: float | None) -> float:
    if block != "auto":
        return float(shortest if block is None else block)
    scores = [comparable_crps(sums, m, size).transpose("channel", "time") for sums, m in zip(rows, members, strict=True)]
    d = scores[0] if len(scores) == 1 else scores[0] - scores[1]
    return max(float(shortest), float(np.ceil(optimal_block_length(d.values).max())))


def _resampled(rows: xr.Dataset, counts: np.ndarray) -> xr.Dataset:
    """The sums in every resample, (channel, prediction_timedelta, sample); counts: (lead, sample, time)."""
    dims = ("channel", "prediction_timedelta", "sample")
    rows = rows.transpose("prediction_timedelta", "channel", "time")
    drawn = counts.transpose(0, 2, 1)  # a matrix product for each lead
    sums = {str(name): (dims, (array.values @ drawn).transpose(1, 0, 2)) for name, array in rows.items()}
    return xr.Dataset(sums, coords={dim: rows[dim] for dim in dims[:2]})


def _limits(values: np.ndarray, level: float) -> np.ndarray:
    """Both limits (2, channel, lead) of the samples along the last axis; NaN where none is finite."""
    limits = np.full((2, *values.shape[:-1]), np.nan)
    known = np.isfinite(values).any(axis=-1)
    whole = np.isfinite(values).all(axis=-1)
    for those, quantile in ((whole, np.quantile), (known & ~whole, np.nanquantile)):  # the latter is far slower
        limits[:, those] = quantile(values[those], [(1 - level) / 2, (1 + level) / 2], axis=-1)
    return limits
