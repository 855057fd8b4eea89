"""Post-hoc calibration: bias and wrong spread that the noise scale leaves, taken out by channel, lead and latitude band.

Member by member (Van Schaeybroeck and Vannitsem 2015): x'_k = c + a + b (m - c) + g (x_k - m), m the mean of the members, c a
mean field. Ranks and fields of the members stay. a, b, g minimise the CRPS of the transformed members as an empirical
distribution (the standard form, pairs over M^2), not the fair one: the deviations share m, and the fair form, which takes members
for independent, would inflate even a perfect ensemble by sqrt((1 + 1/M) / ((1 - 1/M)(1 - 2/M))), 24 % at M = 10.

EMOS (Gneiting et al. 2005): N(c + a + b (m - c), f + d s^2), s^2 the members' variance (M - 1), by the CRPS of the normal
distribution; members are its quantiles k / (M + 1) in the order of the raw ones (ensemble copula coupling, Schefzik et al. 2013).

Precipitation, with either: quantile mapping of log(1 + x / 1 mm). Dry stays dry, and drizzle that the analyses lack becomes dry.

Members of both are coupled: score them with the standard CRPS, or with the fair one at the number of members of the fit, not fair
scores at several. Coefficients are smoothed over leads and drawn towards identity by their own error (jackknife over dates).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import xarray as xr
from scipy.optimize import minimize
from scipy.special import erf, ndtri

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel
from data_pipeline.transform import from_model_space, is_log, log_space
from data_pipeline.variables import lookup

Method = Literal["mbm", "emos"]

COEFFICIENTS: dict[str, tuple[str, ...]] = {
    "mbm": ("offset", "slope", "spread"),
    "emos": ("offset", "slope", "floor", "spread"),
}
BAND_EDGES = (-90.0, -50.0, -20.0, 20.0, 50.0, 90.0)
LEVELS = np.array([*np.linspace(0, 0.9, 19), 0.925, 0.95, 0.97, 0.98, 0.99, 0.995])  # of the quantile maps
KINK = 0.02  # of the error of the mean
FOLDS = 6  # groups of neighbouring dates of the jackknife
SCORE_WITH = "the standard CRPS, or any score at the number of members of the fit: the members are coupled through their mean"


class Pairs(NamedTuple):
    """Members (L, B, D, P, M) and truth (L, B, D, P) of one channel: leads, latitude bands, dates in order, points of a band."""

    members: np.ndarray
    truth: np.ndarray


class Fitting(NamedTuple):
    """What is calibrated: channels, leads (timedelta64), mean latitudes of the bands, grid."""

    channels: Sequence[Channel]
    leads: np.ndarray
    bands: np.ndarray
    grid: Grid


def band_of(latitude: np.ndarray) -> np.ndarray:
    """The latitude band of each row, counted from 0 over the bands that have rows."""
    index = np.clip(np.digitize(latitude, BAND_EDGES) - 1, 0, len(BAND_EDGES) - 2)
    return np.unique(index, return_inverse=True)[1]


def fit(
    pairs: Sequence[Pairs], points: np.ndarray, centre: np.ndarray, plan: Fitting, method: Method
) -> xr.Dataset:  # fmt: skip
    """The table that `Correction` applies, from the pairs (physical units) of each channel.

    points (B, D, P): flat positions of the pairs on the grid; centre (C, H, W): the mean fields that anomalies are taken from.
    """
    linear = [i for i, channel in enumerate(plan.channels) if not is_log(channel.name)]
    mapped = [i for i, channel in enumerate(plan.channels) if is_log(channel.name)]
    shape, names = (plan.leads.size, plan.bands.size), COEFFICIENTS[method]
    coefficients = [fit_linear(_anomalies(pairs[i], centre[i].ravel()[points]), method) for i in linear]
    quantiles = [fit_quantiles(pairs[i]) for i in mapped]
    return xr.Dataset(
        {
            "coefficients": (
                ("channel", "prediction_timedelta", "band", "coefficient"),
                np.array(coefficients).reshape(-1, *shape, len(names)),
            ),
            "quantiles": (
                ("log_channel", "kind", "prediction_timedelta", "band", "level"),
                np.array(quantiles).reshape(-1, 2, *shape, LEVELS.size),
            ),
            "centre": (("channel", "latitude", "longitude"), centre[linear].astype(np.float32)),
        },
        coords={
            "channel": np.array([plan.channels[i].label for i in linear], dtype=str),
            "log_channel": np.array([plan.channels[i].label for i in mapped], dtype=str),
            "prediction_timedelta": plan.leads.astype("timedelta64[ns]"),
            "band": ("band", plan.bands, {"long_name": "mean latitude of the band"}),
            "coefficient": list(names),
            "kind": ["forecast", "calibrated"],
            "level": LEVELS,
            **plan.grid.coords(),
        },
        attrs={
            "method": method,
            "members": pairs[0].members.shape[-1],
            "n": int(pairs[0].truth[0, 0].size),
            "score_with": SCORE_WITH,
        },
    )


def _anomalies(pairs: Pairs, centre: np.ndarray) -> Pairs:
    return Pairs((pairs.members - centre[..., None]).astype(np.float32), (pairs.truth - centre).astype(np.float32))


def fit_linear(pairs: Pairs, method: Method) -> np.ndarray:
    """Coefficients (L, B, n) named in `COEFFICIENTS`, from anomalies to the mean field: offset and floor in the units of these.

    Without spread, or without dates that differ, what they cannot tell stays identity.
    """
    n_members = pairs.members.shape[-1]
    mean = pairs.members.mean(-1, dtype=np.float64)
    unit = np.sqrt(((pairs.truth - mean) ** 2).mean((-2, -1)))
    unit = np.where(unit > 0, unit, 1.0)
    identity = np.array([0.0, 1.0, 1.0] if method == "mbm" else [0.0, 1.0, 0.0, 1.0 + 1.0 / n_members])

    def fit(dates: np.ndarray, start: np.ndarray) -> np.ndarray:
        found = np.empty(start.shape)
        for cell in np.ndindex(start.shape[:-1]):
            objective = OBJECTIVES[method](pairs.members[cell][dates] / unit[cell], pairs.truth[cell][dates] / unit[cell])
            found[cell] = _minimum(objective, start[cell], len(identity))
        return smooth(found)

    coefficients = _shrunk(fit, np.broadcast_to(identity, (*unit.shape, identity.size)), pairs.truth.shape[2])
    coefficients[..., 0] *= unit
    if method == "emos":
        coefficients[..., 2] *= unit**2
    return coefficients


def fit_quantiles(pairs: Pairs) -> np.ndarray:
    """Quantiles (2, L, B, levels) of members and of what they are mapped to, both in log(1 + x / 1 mm), ascending.

    Where no member is wet the map is identity.
    """
    members, truth = log_space(pairs.members.astype(np.float64)), log_space(pairs.truth.astype(np.float64))

    def quantiles(values: np.ndarray, dates: np.ndarray) -> np.ndarray:
        pooled = values[:, :, dates].reshape(*values.shape[:2], -1)
        return smooth(np.moveaxis(np.quantile(pooled, LEVELS, axis=-1), 0, -1))

    def fit(dates: np.ndarray, start: np.ndarray) -> np.ndarray:
        return quantiles(truth, dates) - quantiles(members, dates) + 0 * start

    every = np.arange(truth.shape[2])
    own = quantiles(members, every)
    change = _shrunk(fit, np.zeros(own.shape), truth.shape[2])
    change = np.where(own[..., -1:] > 0, change, 0.0)
    mapped = np.maximum(own + change, 0.0)
    dry = (quantiles(truth, every) == 0) & (mapped < 0.5 * own)  # shrinkage would leave a trace of the drizzle
    mapped[np.maximum.accumulate(dry[..., ::-1], axis=-1)[..., ::-1]] = 0.0
    return np.stack([own, np.maximum.accumulate(mapped, axis=-1)])


def smooth(values: np.ndarray) -> np.ndarray:
    """Values (L, ...) averaged over neighbouring leads with weights 1 4 6 4 1, fewer at the ends."""
    out, total = np.zeros(values.shape), np.zeros(len(values))
    for shift, weight in zip(range(-2, 3), (1, 4, 6, 4, 1), strict=True):
        rows = np.arange(len(values)) + shift
        inside = (rows >= 0) & (rows < len(values))
        out[inside] += weight * values[rows[inside]]
        total[inside] += weight
    return out / total.reshape(-1, *[1] * (values.ndim - 1))


def _shrunk(fit: Callable[[np.ndarray, np.ndarray], np.ndarray], identity: np.ndarray, dates: int) -> np.ndarray:
    """The fit of all dates, drawn towards identity: a deviation d with the squared error e counts max(0, 1 - e / d^2).

    e is that of a jackknife over groups of neighbouring dates, as weather of one week counts once; both are averaged over
    neighbouring leads. The form is the positive part of James and Stein (1961).
    """
    every = np.arange(dates)
    whole = fit(every, identity)
    groups = np.array_split(every, min(FOLDS, dates))
    without = np.stack([fit(np.setdiff1d(every, group), whole) for group in groups])
    error = smooth((len(groups) - 1) * without.var(0))
    deviation = whole - identity
    return identity + deviation * np.maximum(0.0, 1.0 - error / np.maximum(smooth(deviation**2), 1e-30))


Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]


def _minimum(objective: Objective, start: np.ndarray, n: int) -> np.ndarray:
    bounds = [(None, None)] * 2 + [(0.0, None)] * (n - 2)
    found: np.ndarray = minimize(
        objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-7, "gtol": 1e-4}
    ).x
    return found


def _mbm_crps(members: np.ndarray, truth: np.ndarray) -> Objective:
    """Mean CRPS of x' in (a, b, g) and its gradient; convex, as the distance to the truth is and the pair term is linear in g.

    The distance is rounded off at its kink, on a scale that many members share, so that a quasi-Newton method takes few steps.
    """
    n = members.shape[-1]
    mean = members.mean(-1, dtype=np.float64)
    apart = members - mean[..., None]
    weights = (2 * np.arange(1, n + 1) - n - 1) / n**2
    pair = float((np.sort(apart, -1) @ weights).mean())

    def objective(at: np.ndarray) -> tuple[float, np.ndarray]:
        error = at[2] * apart + (at[0] + at[1] * mean - truth)[..., None]
        distance = np.sqrt(error * error + KINK**2)
        sign = error / distance
        own = sign.mean(-1)
        value = float(distance.mean()) - at[2] * pair
        return value, np.array([own.mean(), (own * mean).mean(), (sign * apart).mean() - pair])

    return objective


def _emos_crps(members: np.ndarray, truth: np.ndarray) -> Objective:
    """Mean CRPS of the normal distribution in (a, b, f, d) and its gradient (Gneiting et al. 2005, equation 5)."""
    mean = members.mean(-1, dtype=np.float64)
    variance = members.var(-1, ddof=1, dtype=np.float64) if members.shape[-1] > 1 else np.zeros(mean.shape)

    def objective(at: np.ndarray) -> tuple[float, np.ndarray]:
        sigma = np.sqrt(np.maximum(at[2] + at[3] * variance, 1e-8))
        z = (truth - at[0] - at[1] * mean) / sigma
        within, density = erf(z / np.sqrt(2)), np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
        by_sigma = 2 * density - 1 / np.sqrt(np.pi)
        by_variance = by_sigma / (2 * sigma)
        gradient = [-within.mean(), -(within * mean).mean(), by_variance.mean(), (by_variance * variance).mean()]
        return float((sigma * (z * within + by_sigma)).mean()), np.array(gradient)

    return objective


OBJECTIVES: dict[str, Callable[[np.ndarray, np.ndarray], Objective]] = {"mbm": _mbm_crps, "emos": _emos_crps}


class Correction:
    """A fitted table on the rows of a grid: applied to all members of one initialisation and lead at once.

    table: Dataset of `coefficients` (channel, prediction_timedelta, band, coefficient), `quantiles` (log_channel, kind,
    prediction_timedelta, band, level) and `centre` (channel, latitude, longitude); interpolated between the bands' centres.
    """

    def __init__(self, table: xr.Dataset) -> None:
        self.method: Method = table.attrs["method"]
        self.leads = table["prediction_timedelta"].values
        self.linear = [str(label) for label in table["channel"].values]
        self.mapped = [str(label) for label in table["log_channel"].values]
        self.centre = table["centre"].values
        weights = _row_weights(table["band"].values, table["latitude"].values)
        self.coefficients = np.einsum("clbn,bh->lchn", table["coefficients"].values, weights)
        self.quantiles = np.einsum("cklbq,bh->lkchq", table["quantiles"].values, weights)

    def __call__(self, lead: np.timedelta64, channels: Sequence[Channel], fields: np.ndarray) -> np.ndarray:
        """Fields (M, C, H, W), physical units, calibrated; non-negative ones are kept so. Other channels pass as they are."""
        row = int(np.flatnonzero(self.leads == lead)[0])
        out = fields.copy()
        for place, channel in enumerate(channels):
            if channel.label in self.linear:
                own = self.linear.index(channel.label)
                made = LINEAR[self.method](fields[:, place], self.centre[own], self.coefficients[row, own][:, :, None])
                known = lookup(channel.name)
                out[:, place] = np.maximum(made, 0.0) if known is not None and known.non_negative else made
            elif channel.label in self.mapped:
                out[:, place] = _mapped(fields[:, place], self.quantiles[row, :, self.mapped.index(channel.label)], channel)
        return out


def _mbm(members: np.ndarray, centre: np.ndarray, at: np.ndarray) -> np.ndarray:
    anomaly = members.astype(np.float64) - centre
    mean = anomaly.mean(0)
    return centre + at[:, 0] + at[:, 1] * mean + at[:, 2] * (anomaly - mean)


def _emos(members: np.ndarray, centre: np.ndarray, at: np.ndarray) -> np.ndarray:
    anomaly = members.astype(np.float64) - centre
    n = len(members)
    variance = anomaly.var(0, ddof=1) if n > 1 else np.zeros(centre.shape)
    ranks = anomaly.argsort(0, kind="stable").argsort(0, kind="stable") + 1
    sigma = np.sqrt(at[:, 2] + at[:, 3] * variance)
    return centre + at[:, 0] + at[:, 1] * anomaly.mean(0) + sigma * ndtri(np.arange(n + 1) / (n + 1))[ranks]


LINEAR: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {"mbm": _mbm, "emos": _emos}


def _mapped(members: np.ndarray, quantiles: np.ndarray, channel: Channel) -> np.ndarray:
    """Members (M, H, W) through the monotone map of their row; beyond the highest quantile the change stays what it is there."""
    values = log_space(members.astype(np.float64))
    out = np.empty(values.shape)
    steps = 1e-9 * np.arange(LEVELS.size)  # levels that share a value, as many dry ones do, must ascend
    for h in range(values.shape[1]):
        old, new = quantiles[0, h] + steps, quantiles[1, h] + steps
        own = values[:, h]
        out[:, h] = np.where(own > old[-1], own + new[-1] - old[-1], np.interp(own, old, new))
    return from_model_space(np.where(values > 0, np.where(out > 2 * steps[-1], out, 0.0), 0.0), channel)


def _row_weights(bands: np.ndarray, latitude: np.ndarray) -> np.ndarray:
    """Weights (band, row) of a linear interpolation between the bands' centres, constant beyond the outer ones."""
    return np.stack([np.interp(latitude, bands, unit) for unit in np.eye(bands.size)])


def write_table(path: str | Path, table: xr.Dataset) -> Path:
    """Write a table as NetCDF: complete or not at all."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    table.to_netcdf(partial, engine="netcdf4")
    partial.replace(path)
    return path


def read_table(path: str | Path) -> xr.Dataset:
    """A table that `write_table` wrote. Raises InputError if there is none, or for another file."""
    if not Path(path).exists():
        raise InputError(f"calibration {path} not found; fit one with `plumecast fit-post-processing CHECKPOINT ANALYSIS`")
    try:
        table = xr.load_dataset(path, engine="netcdf4")
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} cannot be opened as NetCDF: {error}") from None
    if table.attrs.get("method") not in COEFFICIENTS:
        raise InputError(f"{path} is not a calibration (method {table.attrs.get('method')!r}, expected mbm or emos)")
    return table
