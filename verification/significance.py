"""How sure: intervals and paired tests that know that neighbouring initialisations are not independent.

The sample is the initialisation: rows of sums, already averaged over space, are resampled in blocks and every ratio is taken
after resampling (stationary bootstrap, Politis and Romano 1994: circular blocks of geometric length). Blocks are on average at
least as long as the lead, counted in initialisation steps, because forecasts that overlap in time share their errors. What is not
here: a test across correlated fields other than the false-discovery rate, and corrections for choosing among many models.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy.special import ndtr, stdtr

from data_pipeline.errors import InputError
from verification.state import paired_sums, ratios, region_sums

TOO_FEW = 30  # initialisations; below this an interval is shown with a warning

SCORES = ("crps", "rmse", "bias", "ssr")


def intervals(
    state: xr.Dataset,
    reference: xr.Dataset | None = None,
    *,
    region: str | None = None,
    n_boot: int = 1000,
    seed: int = 0,
    block: float | None = None,
    level: float = 0.95,
) -> xr.Dataset:
    """Percentile intervals of the scores by channel and lead, from resampled initialisations.

    Dataset (channel, prediction_timedelta) with <score>_lower and <score>_upper for crps (fair), rmse, bias and ssr, and for
    crpss if a reference is given (then all of them on the initialisations both have, resampled jointly); n, block (mean length
    in initialisations, by default `block_length`) and too_few (n < 30: the interval itself is unreliable). All channels of a
    lead share their resamples. NaN where fewer than two initialisations count.

    Block bootstrap intervals are a little narrow: on a simulated AR(1) series with coefficient 0.6 the 95 % interval of the mean
    covered it in 90 to 92 % of samples of 400, against 67 % for independent resampling.
    """
    if reference is None:
        ours, theirs = region_sums(state, region).drop_dims("rank"), None
    else:
        ours, theirs = paired_sums(state, reference, region)
    names = [*SCORES] + (["crpss"] if theirs is not None else [])
    shape = (ours.sizes["channel"], ours.sizes["prediction_timedelta"])
    bounds = {name: np.full((2, *shape), np.nan) for name in names}
    lengths = np.zeros(shape[1])
    tails = [(1 - level) / 2, (1 + level) / 2]
    for index, lead in enumerate(ours["prediction_timedelta"].values):
        lengths[index] = block or block_length(ours["time"].values, lead)
        rng = np.random.default_rng([seed, index])
        counts = resample_counts(ours.sizes["time"], lengths[index], n_boot, rng)
        drawn = ratios(_resampled(ours, index, counts), int(state.attrs["members"]))
        if theirs is not None and reference is not None:
            crps_reference = ratios(_resampled(theirs, index, counts), int(reference.attrs["members"]))["crps"]
            drawn["crpss"] = 1 - drawn["crps"] / crps_reference.where(crps_reference > 0)
        for name in names:
            values = drawn[name].transpose("channel", "sample").values
            known = np.isfinite(values).any(axis=1)
            bounds[name][:, known, index] = np.nanquantile(values[known], tails, axis=1)
    n = (ours["weight"] > 0).sum("time").transpose("channel", "prediction_timedelta")
    result = xr.Dataset({"n": n, "block": ("prediction_timedelta", lengths), "too_few": n < TOO_FEW})
    for name, (lower, upper) in bounds.items():
        result[f"{name}_lower"] = n.copy(data=lower).where(n > 1)
        result[f"{name}_upper"] = n.copy(data=upper).where(n > 1)
    result.attrs = {"method": "stationary bootstrap over initialisations", "level": level, "n_boot": n_boot, "seed": seed}
    return result


def paired_difference(state: xr.Dataset, reference: xr.Dataset, region: str | None = None) -> xr.DataArray:
    """CRPS of the forecast minus that of the reference, one number per initialisation: (channel, time, prediction_timedelta).

    Only initialisations that both have, each averaged over the region; negative where the forecast is better; NaN where unpaired.
    """
    ours, theirs = paired_sums(state, reference, region)
    difference = ratios(ours, int(state.attrs["members"]))["crps"] - ratios(theirs, int(reference.attrs["members"]))["crps"]
    names = (state.attrs.get("model", "forecast"), reference.attrs.get("model", "reference"))
    return difference.rename("crps_difference").assign_attrs(long_name=f"CRPS of {names[0]} minus CRPS of {names[1]}")


def compare(state: xr.Dataset, reference: xr.Dataset, *, region: str | None = None, rate: float = 0.1) -> xr.Dataset:
    """Is the forecast better than the reference? One Diebold-Mariano test per channel and lead over all initialisations.

    Dataset (channel, prediction_timedelta): difference (mean of `paired_difference`), statistic, p_value (two-sided, small-sample
    form with the horizon in initialisation steps and Newey-West variance), n, n_eff, significant (Benjamini-Hochberg at `rate`
    over all channels and leads of the table), too_few.
    """
    differences = paired_difference(state, reference, region).transpose("channel", "prediction_timedelta", "time")
    shape = differences.shape[:2]
    found = {name: np.full(shape, np.nan) for name in ("difference", "statistic", "p_value", "n_eff")}
    n = np.zeros(shape, dtype=np.int64)
    leads: list[np.timedelta64] = list(differences["prediction_timedelta"].values)
    for c, p in np.ndindex(shape):
        d = differences.values[c, p]
        d = d[np.isfinite(d)]
        n[c, p] = d.size
        steps = lead_steps(differences["time"].values, leads[p])
        if d.size < 2 or steps >= d.size:
            continue
        test = diebold_mariano(d, lag=steps - 1, horizon=steps)
        found["difference"][c, p], found["n_eff"][c, p] = d.mean(), effective_size(d)
        found["statistic"][c, p], found["p_value"][c, p] = test
    dims = ("channel", "prediction_timedelta")
    coords = {dim: differences[dim] for dim in dims}
    result = xr.Dataset({name: (dims, values) for name, values in found.items()}, coords=coords)
    result["n"] = (dims, n)
    result["too_few"] = result["n"] < TOO_FEW
    result["significant"] = (dims, discoveries(found["p_value"], rate))
    result.attrs = {"test": "Diebold-Mariano, Newey-West, Harvey-Leybourne-Newbold", "false_discovery_rate": rate}
    return result


def lead_steps(times: np.ndarray, lead: np.timedelta64) -> int:
    """A lead in initialisation steps (their median distance), rounded up, at least 1."""
    if times.size < 2:
        return 1
    step = np.median(np.diff(times).astype("timedelta64[ns]").astype(np.int64))
    return max(1, int(np.ceil(lead.astype("timedelta64[ns]").astype(np.int64) / step)))


def block_length(times: np.ndarray, lead: np.timedelta64) -> int:
    """Mean block length of the bootstrap: the lead in initialisation steps, at most the sample."""
    return min(lead_steps(times, lead), max(times.size, 1))


def stationary_bootstrap(n: int, length: float, n_boot: int, rng: np.random.Generator) -> np.ndarray:
    """Indices (n_boot, n) of the stationary bootstrap: each next index follows the last (circularly) or, with probability
    1/length, starts anew anywhere."""
    if n < 1 or length < 1:
        raise InputError(f"bootstrap: sample size {n} and mean block length {length}; both must be at least 1")
    fresh = rng.random((n_boot, n)) < 1 / length
    fresh[:, 0] = True
    starts = rng.integers(0, n, (n_boot, n))
    position = np.arange(n)
    begun = np.maximum.accumulate(np.where(fresh, position, 0), axis=1)
    return (np.take_along_axis(starts, begun, axis=1) + position - begun) % n


def resample_counts(n: int, length: float, n_boot: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of n rows is drawn in each resample, (n_boot, n): sums of a resample are one matrix product."""
    indices = stationary_bootstrap(n, length, n_boot, rng)
    flat = (indices + n * np.arange(n_boot)[:, None]).ravel()
    return np.bincount(flat, minlength=n_boot * n).reshape(n_boot, n).astype(np.float64)


def autocovariance(d: np.ndarray, lag: int) -> float:
    """Autocovariance of d at a lag, divided by n."""
    deviation = d - d.mean()
    return float(deviation[lag:] @ deviation[: d.size - lag]) / d.size


def effective_size(d: np.ndarray, order: int = 2) -> float:
    """Number of independent values with the same standard error of the mean, for an AR(1) or AR(2) series, at most n."""
    g0 = autocovariance(d, 0)
    if g0 == 0 or d.size < 4:
        return float(d.size)
    r1, r2 = autocovariance(d, 1) / g0, autocovariance(d, 2) / g0
    if order == 1:
        return float(min(d.size * (1 - r1) / (1 + r1), d.size))
    phi1, phi2 = r1 * (1 - r2) / (1 - r1**2), (r2 - r1**2) / (1 - r1**2)
    return float(min(d.size * (1 - phi1 - phi2) ** 2 / (1 - r1 * phi1 - r2 * phi2), d.size))


def stationary_standard_error(d: np.ndarray, length: float) -> float:
    """Standard error of mean d under the stationary bootstrap with mean block `length`, in closed form (no resampling)."""
    n, q = d.size, 1 - 1 / length
    k = np.arange(1, n)
    weights = (1 - k / n) * q**k + (k / n) * q ** (n - k)
    variance = autocovariance(d, 0) + 2 * float(weights @ np.array([autocovariance(d, int(lag)) for lag in k]))
    return float(np.sqrt(variance / n))


def diebold_mariano(d: np.ndarray, *, lag: int = 0, flat: bool = False, horizon: int | None = None) -> tuple[float, float]:
    """Diebold-Mariano statistic of mean d = 0 and its two-sided p-value.

    The long-run variance takes autocovariances up to `lag`, with Newey-West weights, or all alike if `flat` (then it may be
    negative: NaN). With a horizon h the small-sample form of Harvey, Leybourne and Newbold (1997), compared with t(n - 1);
    without, the normal distribution.
    """
    n = d.size
    weights = [1.0 if flat else 1 - k / (lag + 1) for k in range(1, lag + 1)]
    variance = autocovariance(d, 0) + 2 * sum(w * autocovariance(d, k) for k, w in enumerate(weights, start=1))
    if not variance > 0:
        return float("nan"), float("nan")
    statistic = float(d.mean() / np.sqrt(variance / n))
    if horizon is None:
        return statistic, float(2 * ndtr(-abs(statistic)))
    statistic *= float(np.sqrt((n + 1 - 2 * horizon + horizon * (horizon - 1) / n) / n))
    return statistic, float(2 * stdtr(n - 1, -abs(statistic)))


def discoveries(p_values: np.ndarray, rate: float) -> np.ndarray:
    """Which tests are significant at a false-discovery rate (Benjamini and Hochberg 1995); NaN never is."""
    flat = np.asarray(p_values, dtype=np.float64).ravel()
    tested = np.sort(flat[np.isfinite(flat)])
    passed = np.flatnonzero(tested <= rate * np.arange(1, tested.size + 1) / max(tested.size, 1))
    if passed.size == 0:
        return np.zeros(np.shape(p_values), dtype=bool)
    return (flat <= tested[passed[-1]]).reshape(np.shape(p_values))


def _resampled(sums: xr.Dataset, lead: int, counts: np.ndarray) -> xr.Dataset:
    """The sums of one lead in every resample, (channel, sample)."""
    rows = sums.isel(prediction_timedelta=lead).transpose("channel", "time", ...)
    resampled = {str(name): (("channel", "sample"), array.values @ counts.T) for name, array in rows.data_vars.items()}
    return xr.Dataset(resampled, coords={"channel": sums["channel"]})
