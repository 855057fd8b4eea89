"""Scores of paired ensembles and observations, with intervals: ensembles that come at stations, with no grid.

Per-case statistics of `verification.kernels` are summed over the stations of a place, initialisation by initialisation; ratios
are taken last, from the sums of all initialisations or of a resample of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from data_pipeline.errors import InputError
from verification import kernels
from verification.casewise import Missing, apply_cases, check_arguments, check_terms, members_leading, units_of
from verification.regions import REGIONS, Box
from verification.significance import TOO_FEW, block_length, resample_counts

POOLED = "all"
COUNTS = ("n", "no_truth", "no_member")
STATISTICS = ("abs_error", "gini", "variance", "squared_error", "error", "median_error", "below", "above")
SCORES = {
    "crps": "fair CRPS",
    "crps_ecdf": "ecdf CRPS",
    "mae": "mean absolute error of the ensemble median",
    "rmse": "RMSE of the ensemble mean",
    "bias": "bias of the ensemble mean, forecast minus observation",
    "spread": "ensemble spread",
    "ssr": "spread-skill ratio with (M + 1) / M",
    "below": "share of observations below all members",
    "above": "share of observations above all members",
    "rank_histogram": "frequency of the rank of the observation",
}
UNITLESS = ("ssr", "below", "above", "rank_histogram")
RESAMPLED_BYTES = 64 << 20  # sums of all resamples that are held at once


def score_cases(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    *,
    lead: np.timedelta64 | None = None,
    block: float | None = None,
    member_dim: str = "number",
    missing: Missing = "propagate",
    n_boot: int = 1000,
    seed: int | Sequence[int] = 0,
    level: float = 0.95,
) -> xr.Dataset:
    """Scores of paired ensembles and observations, (time, member_dim[, station]) and (time[, station]), with intervals.

    Dataset (place[, rank]). The places are "all" and, with a dim `station`, the regions that hold some (by the coordinate
    `region`, else the boxes of `verification.regions` by latitude and longitude, a station on an edge in both) and each station;
    `kind` is pooled, region or station. All cases weigh alike, so a dense network dominates the pooled score.

    - n, no_truth, no_member: cases used, without observation, with an observation but a missing member.
    - crps: fair, A - B / 2 with A the mean of |x_i - y| and B that of |x_i - x_j| (Ferro 2014); crps_ecdf: A - (1 - 1/M) B / 2
      (Hersbach 2000), biased high for small M. mae: of the ensemble median. rmse, bias: of the ensemble mean.
    - spread: root of the mean unbiased member variance. ssr: sqrt((M + 1) / M) spread / rmse (Fortin et al. 2014).
    - below, above: share of observations strictly below, above all members. rank_histogram: frequencies of the M + 1 ranks, the
      weight of a tie shared evenly over its ranks.
    - <score>_lower, <score>_upper: percentile interval at `level` from `n_boot` resamples of the initialisations (dim time) by
      stationary bootstrap in blocks of mean length `block`, by default the lead in initialisation steps. inits: initialisations
      with a case; intervals are NaN below 2 of them, and unreliable below 30 (too_few).

    Scores have the units of the variable. With one member crps, spread and ssr are NaN. Observation error is not modelled: it
    counts as forecast error, and a calibrated ensemble looks under-dispersive. missing="propagate" leaves out cases with a
    missing member or observation, "raise" is an InputError for them, "omit" is refused: ranks and the ecdf CRPS would mix
    ensemble sizes. Raises InputError for other dims, unequal coordinates or units, and infinite values.
    """
    _check(forecast, truth, member_dim, missing, n_boot, level)
    members = forecast.sizes[member_dim]
    sums = _place_sums(forecast, truth, member_dim, missing)
    size = truth.sizes["time"]
    times = truth["time"].values if "time" in truth.coords else np.arange(size).astype("timedelta64[ns]")
    length = block if block is not None else block_length(times, np.timedelta64(0, "ns") if lead is None else lead)
    counts = resample_counts(size, length, n_boot, np.random.default_rng(seed))
    inits = (sums["n"] > 0).sum("time")
    limits = _limits(sums, members, counts, [(1 - level) / 2, (1 + level) / 2]).where(inits > 1)
    totals = sums.sum("time")
    result = totals[list(COUNTS)].astype(np.int64).assign(inits=inits, too_few=inits < TOO_FEW)
    result = result.assign(_ratios(totals, members).data_vars).assign(limits.data_vars)
    for name, array in result.data_vars.items():
        score = str(name).removesuffix("_lower").removesuffix("_upper")
        if score in SCORES:
            array.attrs = {"long_name": SCORES[score], "units": "1" if score in UNITLESS else units_of(forecast)}
    result.attrs = {
        "members": members, "missing": missing, "method": "stationary bootstrap over initialisations", "level": level,
        "n_boot": n_boot, "block": float(length), "observation_error": "not modelled",
    }  # fmt: skip
    return result


def _ratios(sums: xr.Dataset, members: int) -> xr.Dataset:
    """The scores from sums over cases; NaN where there is no case."""
    count = sums["n"].where(sums["n"] > 0)
    mean = {name: sums[name] / count for name in (*STATISTICS, "ranks")}
    mse = mean["squared_error"]
    variance = mean["variance"] if members > 1 else mean["variance"] * np.nan
    pairs = mean["gini"] / 2
    return xr.Dataset(
        {
            "crps": mean["abs_error"] - (pairs if members > 1 else pairs * np.nan),
            "crps_ecdf": mean["abs_error"] - (1 - 1 / members) * pairs,
            "mae": mean["median_error"],
            "rmse": mse**0.5,
            "bias": mean["error"],
            "spread": variance**0.5,
            "ssr": ((members + 1) / members * variance / mse.where(mse > 0)) ** 0.5,
            "below": mean["below"],
            "above": mean["above"],
            "rank_histogram": mean["ranks"],
        }
    )


def _check(forecast: xr.DataArray, truth: xr.DataArray, member_dim: str, missing: str, n_boot: int, level: float) -> None:
    check_arguments(forecast, truth, member_dim, missing)
    if missing == "omit":
        raise InputError(
            "score_cases: missing='omit' would mix ensemble sizes in ranks and ecdf CRPS; use 'propagate' or 'raise'"
        )
    if n_boot < 1 or not 0 < level < 1:
        raise InputError(f"score_cases: n_boot={n_boot!r}, level={level!r}; expected at least 1, and between 0 and 1")
    dims = set(map(str, truth.dims))
    if dims not in ({"time"}, {"time", "station"}) or set(map(str, forecast.dims)) != dims | {member_dim}:
        raise InputError(
            f"score_cases: forecast has dims {forecast.dims}, truth {truth.dims}; expected (time, {member_dim}[, station]) and "
            "(time[, station])"
        )
    units = sorted({str(array.attrs["units"]) for array in (forecast, truth) if "units" in array.attrs})
    if len(units) > 1:
        raise InputError(f"score_cases: forecast and truth have different units ({', '.join(units)}); convert one of them")


def _place_sums(forecast: xr.DataArray, truth: xr.DataArray, member_dim: str, missing: Missing) -> xr.Dataset:
    """Counts and sums of statistics by initialisation and place, (time, place[, rank])."""
    columns = len(STATISTICS) + forecast.sizes[member_dim] + 1
    cases = apply_cases(
        _case_block, forecast, truth, member_dim, {"missing": missing}, output="statistic", output_size=columns
    ).compute()
    coords = {name: truth[name] for name in ("station", "latitude", "longitude", "region") if name in truth.coords}
    cases = cases.assign_coords({name: coord for name, coord in coords.items() if coord.dims == ("station",)})
    single = "station" not in cases.dims
    values = (cases.expand_dims("station") if single else cases).transpose("time", "station", "statistic").values
    present = ~np.isnan(values[..., 0])
    no_truth = (truth.expand_dims("station") if single else truth).transpose("time", "station").isnull().values
    counted = np.stack([present, no_truth, ~present & ~no_truth], axis=-1)
    rows = np.concatenate([counted, np.where(present[..., None], values, 0.0)], axis=-1)
    regions = {} if single else _regions(cases)
    membership = np.stack([np.ones(values.shape[1]), *regions.values()])
    summed = membership @ rows if single else np.concatenate([membership @ rows, rows], axis=1)
    stations = [] if single else [str(name) for name in cases["station"].values]
    kinds = ["pooled"] + ["region"] * len(regions) + ["station"] * len(stations)
    names = (*COUNTS, *STATISTICS)
    result = xr.Dataset({name: (("time", "place"), summed[..., index]) for index, name in enumerate(names)})
    result["ranks"] = (("time", "place", "rank"), summed[..., len(names) :])
    result = result.assign_coords(
        place=np.array([POOLED, *regions, *stations], dtype=object),
        kind=("place", np.array(kinds, dtype=object)),
        rank=np.arange(summed.shape[-1] - len(names)),
    )
    for name in ("latitude", "longitude"):
        if name in cases.coords:
            unknown = np.full(len(regions) + 1, np.nan)
            result = result.assign_coords({name: ("place", np.concatenate([unknown, cases[name].values]))})
    return result


def _regions(cases: xr.DataArray) -> dict[str, np.ndarray]:
    """{region: 1 for each of its stations, else 0}, without regions that hold none."""
    if "region" in cases.coords:
        labels = cases["region"].values
        return {str(label): (labels == label).astype(np.float64) for label in np.unique(labels.astype(str))}
    if "latitude" not in cases.coords or "longitude" not in cases.coords:
        return {}
    points = [Box(lat, lat, lon, lon) for lat, lon in zip(cases["latitude"].values, cases["longitude"].values, strict=True)]
    boxes = {name: box for name, box in REGIONS.items() if box != Box() and not box.surface}
    held = {name: np.array([box.holds(point) for point in points], dtype=np.float64) for name, box in boxes.items()}
    return {name: inside for name, inside in held.items() if inside.any()}


def _case_block(members: np.ndarray, truth: np.ndarray, missing: str, threads: int) -> np.ndarray:
    """(..., M), (...) -> (..., statistic): STATISTICS, then the share of each rank; NaN where the case is incomplete."""
    members, truth, shape = members_leading(members, truth)
    found = kernels.point_statistics(members, truth, threads)
    check_terms(found.abs_error, truth, missing)
    size = members.shape[1]
    below, ties = found.below, found.ties
    with np.errstate(invalid="ignore"):  # the missing value of R is a signalling NaN
        median_error = np.abs(np.median(members.astype(np.float64), axis=1) - truth)
    outside = (below == 0) & (ties == 0), below == size
    columns = [found.abs_error, found.gini, found.variance, found.error**2, found.error, median_error, *outside]
    rank = np.arange(size + 1)
    shares = np.where((rank >= below[..., None]) & (rank <= (below + ties)[..., None]), 1 / (ties[..., None] + 1), 0.0)
    cases = np.concatenate([np.stack(columns, axis=-1), shares], axis=-1)
    cases[np.isnan(found.abs_error)] = np.nan
    return cases.reshape(*shape, cases.shape[-1])


def _limits(sums: xr.Dataset, members: int, counts: np.ndarray, tails: list[float]) -> xr.Dataset:
    """<score>_lower and <score>_upper by place: quantiles of the scores of resampled initialisations, some places at a time."""
    row_bytes = 8 * counts.shape[0] * (len(COUNTS) + len(STATISTICS) + sums.sizes["rank"])
    step = max(1, RESAMPLED_BYTES // row_bytes)
    parts = []
    for first in range(0, sums.sizes["place"], step):
        some = sums.isel(place=slice(first, first + step))
        drawn = {
            str(name): (("sample", *array.dims[1:]), np.tensordot(counts, array, 1)) for name, array in some.data_vars.items()
        }
        scores = _ratios(xr.Dataset(drawn, coords={"place": some["place"]}), members)
        part = xr.Dataset(coords={"place": some["place"]})
        for name, array in scores.data_vars.items():
            bounds = _quantiles(array.values, tails)
            part[f"{name}_lower"], part[f"{name}_upper"] = ((array.dims[1:], bound) for bound in bounds)
        parts.append(part)
    return xr.concat(parts, "place")


def _quantiles(values: np.ndarray, tails: list[float]) -> np.ndarray:
    """Quantiles over the first axis of what is finite, NaN where nothing is."""
    flat = values.reshape(values.shape[0], -1)
    known = np.isfinite(flat).any(axis=0)
    result = np.full((len(tails), flat.shape[1]), np.nan)
    columns = flat[:, known]
    quantile = np.quantile if np.isfinite(columns).all() else np.nanquantile  # the latter is far slower
    result[:, known] = quantile(columns, tails, axis=0)
    return result.reshape(len(tails), *values.shape[1:])
