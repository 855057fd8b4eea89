"""Before a report prints, the run proves its scores again: identities, simulated truths and packaged known answers.

Each check compares one number with what it must be. Simulations are seeded and held to three standard errors, everything else to
rounding; fields are float32, as those of forecasts. The whole takes less than two seconds once the kernels are compiled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numba
import numpy as np
import properscoring
import xarray as xr
from scipy.special import ndtr

from data_pipeline.errors import GateError, InputError
from data_pipeline.grid import Grid
from data_pipeline.store import version
from verification import readout
from verification.accumulate import Accumulator
from verification.casewise import weighted_mean
from verification.decomposition import crps_decomposition
from verification.distribution import crps, crps_gaussian, twcrps
from verification.events import brier, event_table
from verification.known_answers import EXACT, known_answers
from verification.plan import Event, Plan
from verification.policy import POLICY_KEYS, POLICY_TEXTS
from verification.scores import area_weights, bias, rank_histogram, rmse, spread_skill
from verification.state import units_of

__all__ = ["POLICY_KEYS", "POLICY_TEXTS", "Certificate", "Check", "certify", "check_policy", "require"]

SEED = 1922
SIZES = (2, 8, 50)
BATCHES, CASES = 25, 1600  # a standard error is that of the mean of the batches
DIM = ("batch", "case")
STANDARD_ERRORS = 3.0
THRESHOLD = 280.0  # of the event in the small campaign


@dataclass(frozen=True)
class Check:
    """One number, what it must be, and how far it may be from that. NaN never passes."""

    name: str
    expected: float
    found: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return bool(abs(self.found - self.expected) <= self.tolerance)


@dataclass(frozen=True)
class Certificate:
    """All checks of one run and the versions they hold for."""

    checks: tuple[Check, ...]
    versions: Mapping[str, str]

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)

    @property
    def passed(self) -> bool:
        return bool(self.checks) and not self.failed

    @property
    def summary(self) -> str:
        """`87 of 87 identities and known answers re-proved`."""
        total = len(self.checks)
        return f"{total - len(self.failed)} of {total} identities and known answers re-proved"


@lru_cache(maxsize=1)
def certify() -> Certificate:
    """Prove the scores of this installation again; once a process, the same numbers every time.

    Simulated perfect ensembles of 2, 8 and 50 members have a spread-skill ratio of 1 and one mean fair CRPS, and beat biased and
    mis-dispersed ones; half-zero ranks are flat; estimators and decompositions obey their identities and agree with
    properscoring; a missing truth has no score; float32 near 1e5 loses nothing; the answers of `verification.known_answers` are
    found; and what is read from a score state is what the public scores say of the fields.
    """
    simulated = (*_perfect_ensembles(), *_better_than_wrong_ones(), *_flat_ranks())
    identities = (*_estimators(), *_decompositions(), *_missing_truth(), *_large_offset(), *_engine())
    answers = (Check(*answer) for answer in known_answers())
    versions = {"plumecast": version(), "numba": numba.__version__, "numpy": np.__version__}
    return Certificate((*simulated, *identities, *answers), versions)


def require(certificate: Certificate) -> None:
    """Raise GateError, listing every failed check, unless all have passed."""
    if certificate.passed:
        return
    lines = [
        f"  {check.name}: expected {check.expected:.9g}, found {check.found:.9g}, tolerance {check.tolerance:.3g}"
        for check in certificate.failed
    ]
    versions = ", ".join(f"{name} {number}" for name, number in certificate.versions.items())
    raise GateError(
        f"only {certificate.summary}; with {versions} no score can be trusted. Reinstall plumecast with its pinned versions and "
        "run its tests:\n" + "\n".join(lines)
    )


def check_policy(state: xr.Dataset) -> None:
    """Raise InputError, naming what is missing, unless a score state says of how many members and in which units its scores are,
    and what it did with missing values, ties, events and weights (`POLICY_KEYS`)."""
    absent = [key for key in ("members", "units", *POLICY_KEYS) if state.attrs.get(key) in (None, "")]
    if "units" not in absent:
        units = units_of(state)
        absent += [f"units of {channel}" for channel in map(str, state["channel"].values) if not units.get(channel)]
    if absent:
        raise InputError(
            f"the score state of {state.attrs.get('model', '?')} does not say its {', '.join(absent)}; scores without a stated "
            "policy are not shown. Remove it and run `plumecast verify` again"
        )


def _normal(size: int, *, seed: int) -> tuple[xr.DataArray, xr.DataArray]:
    """A perfect ensemble: members (batch, case, number) and truth (batch, case), all N(0, 1)."""
    values = np.random.default_rng([SEED, seed]).standard_normal((BATCHES, CASES, size + 1), dtype=np.float32)
    return xr.DataArray(values[..., :size], dims=(*DIM, "number")), xr.DataArray(values[..., size], dims=DIM)


def _simulated(name: str, expected: float, batches: xr.DataArray) -> Check:
    error = float(batches.std("batch", ddof=1)) / BATCHES**0.5
    return Check(name, expected, float(batches.mean("batch")), STANDARD_ERRORS * error)


def _deviation(name: str, found: xr.DataArray | np.ndarray, expected: xr.DataArray | np.ndarray, scale: float = 1.0) -> Check:
    """The largest deviation of two arrays, in units of `scale`; NaN if anything is."""
    deviation = np.asarray(found, np.float64) - np.asarray(expected, np.float64)
    return Check(name, 0.0, float(np.abs(deviation).max()) / scale, EXACT)


def _perfect_ensembles() -> Iterator[Check]:
    for size in SIZES:
        forecast, truth = _normal(size, seed=size)
        ratio = spread_skill(forecast, truth, dim="case")["ssr"]
        yield _simulated(f"spread-skill ratio of a perfect ensemble of {size}", 1.0, ratio)
        yield _simulated(f"fair CRPS of a perfect normal ensemble of {size}", np.pi**-0.5, crps(forecast, truth).mean("case"))


def _better_than_wrong_ones() -> Iterator[Check]:
    """The fair CRPS of N(b, s^2) for truths N(0, 1) is E|N(b, 1 + s^2)| - s / sqrt(pi), least for b = 0, s = 1."""
    forecast, truth = _normal(10, seed=0)
    perfect = crps(forecast, truth)
    for name, b, s in (("biased", 0.5, 1.0), ("under-dispersed", 0.0, 0.5), ("over-dispersed", 0.0, 2.0)):
        v = 1 + s**2
        distance = np.sqrt(2 * v / np.pi) * np.exp(-(b**2) / (2 * v)) + b * (1 - 2 * ndtr(-b / np.sqrt(v)))
        loss = (crps(np.float32(b) + np.float32(s) * forecast, truth) - perfect).mean("case")
        expected = float(distance - (s + 1) / np.sqrt(np.pi))
        yield _simulated(f"fair CRPS lost by {name} ensembles", expected, loss)


def _flat_ranks() -> Iterator[Check]:
    forecast, truth = (values.clip(min=np.float32(0)) for values in _normal(9, seed=1))
    shares = rank_histogram(forecast, truth, dim="case")
    errors = shares.std("batch", ddof=1) / BATCHES**0.5
    worst = float((abs(shares.mean("batch") - 0.1) / errors).max())
    yield Check("ranks of half-zero calibrated ensembles: largest departure in standard errors", 0.0, worst, STANDARD_ERRORS)


def _rain() -> tuple[xr.DataArray, xr.DataArray]:
    """200 cases of 7 members with zeros and ties."""
    values = np.maximum(np.random.default_rng([SEED, 2]).standard_normal((200, 8)).round(1), 0).astype(np.float32)
    return xr.DataArray(values[:, :7], dims=("case", "number")), xr.DataArray(values[:, 7], dims="case")


def _estimators() -> Iterator[Check]:
    forecast, truth = _rain()
    members, y = forecast.values.astype(np.float64), truth.values.astype(np.float64)
    ecdf, fair = crps(forecast, truth, estimator="ecdf"), crps(forecast, truth)
    distances = np.abs(members[:, :, None] - members[:, None, :]).sum((1, 2)) / (7 * 6)
    yield _deviation("fair CRPS = ecdf CRPS - mean pair difference / (2 M)", fair, ecdf.values - distances / 14)
    yield _deviation("ecdf CRPS agrees with properscoring", ecdf, properscoring.crps_ensemble(y, members))
    both = twcrps(forecast, truth, lower=0.5) + twcrps(forecast, truth, upper=0.5)
    yield _deviation("twCRPS above and below a threshold adds up to the CRPS", both, fair)
    mean, std = forecast.mean("number").astype(np.float64), forecast.std("number").astype(np.float64) + 0.1
    found, z = crps_gaussian(mean, std, truth), (y - mean.values) / std.values
    closed = std.values * (z * (2 * ndtr(z) - 1) + np.sqrt(2 / np.pi) * np.exp(-(z**2) / 2) - np.pi**-0.5)
    yield _deviation("CRPS of normal distributions agrees with its closed form", found, closed)
    peer = properscoring.crps_gaussian(y, mean.values, std.values)
    yield _deviation("CRPS of normal distributions agrees with properscoring", found, peer)


def _decompositions() -> Iterator[Check]:
    forecast, truth = _rain()
    parts = crps_decomposition(forecast, truth, dim="case")
    mean = crps(forecast, truth, estimator="ecdf").mean()
    yield _deviation("reliability + potential = ecdf CRPS", parts["reliability"] + parts["potential"], mean)
    table = brier(event_table(forecast, truth, threshold=0.3, dim="case"), fair=False)
    each = brier(forecast, truth, threshold=0.3, fair=False).mean()
    murphy = table["reliability"] - table["resolution"] + table["uncertainty"]
    yield _deviation("reliability - resolution + uncertainty = Brier score", murphy, each)


def _missing_truth() -> Iterator[Check]:
    """A score where the truth is missing would be a perfect one, or nonsense; means must not see the case."""
    forecast, truth = _rain()
    holed, kept = truth.where(truth["case"] % 4 != 1), truth["case"] % 4 != 1
    cases = {
        "CRPS": crps(forecast, holed),
        "ecdf CRPS": crps(forecast, holed, estimator="ecdf"),
        "twCRPS": twcrps(forecast, holed, lower=0.5),
        "Brier score": brier(forecast, holed, threshold=0.3),
    }
    for name, scores in cases.items():
        wrong = int((scores.isnull() == kept).sum())
        yield Check(f"{name} of a missing truth: cases with a score they should not have, or without", 0.0, wrong, 0.0)
    means = {
        "spread-skill ratio": lambda x, y: spread_skill(x, y, dim="case")["ssr"],
        "RMSE": lambda x, y: rmse(x, y, dim="case"),
        "ranks": lambda x, y: rank_histogram(x, y, dim="case"),
        "CRPS decomposition": lambda x, y: crps_decomposition(x, y, dim="case")["potential"],
        "event table": lambda x, y: event_table(x, y, threshold=0.3, dim="case")["weight"],
    }
    for name, score in means.items():
        yield _deviation(f"{name} leaves out a missing truth", score(forecast, holed), score(forecast[kept], truth[kept]))


def _large_offset() -> Iterator[Check]:
    """Pressures: the float32 fields as they are, and less 1e5 in float64, which is exact."""
    forecast, truth = (values * np.float32(50) + np.float32(1e5) for values in _normal(8, seed=3))
    shifted = [values.astype(np.float64) - 1e5 for values in (forecast, truth)]
    yield _deviation("CRPS of float32 near 1e5", crps(forecast, truth), _crps_by_pairs(*shifted), 50.0)
    found = spread_skill(forecast, truth, dim=DIM)
    yield _deviation("variance of float32 near 1e5", found["variance"], shifted[0].var("number", ddof=1).mean(), 2500.0)
    yield _deviation("bias of float32 near 1e5", bias(forecast, truth, dim=DIM), (shifted[0] - shifted[1]).mean(), 50.0)


def _crps_by_pairs(members: xr.DataArray, truth: xr.DataArray) -> np.ndarray:
    x, y = members.values, truth.values
    size = x.shape[-1]
    pairs = np.abs(x[..., :, None] - x[..., None, :]).sum((-2, -1)) / (size * (size - 1))
    found: np.ndarray = np.abs(x - y[..., None]).mean(-1) - pairs / 2
    return found


def _engine() -> Iterator[Check]:
    """What is read from the state of a small campaign is what the public scores say of its fields."""
    state, forecast, truth, weights = _campaign()
    dims = ("time", "latitude", "longitude")
    table, parts, events = readout.scores_table(state), readout.decomposition(state), readout.event_scores(state).isel(event=0)
    pooled = spread_skill(forecast, truth, dim=dims, weights=weights)
    taken_apart = crps_decomposition(forecast, truth, dim=dims, weights=weights)
    counts = event_table(forecast, truth, threshold=THRESHOLD, dim=dims, weights=weights)
    ecdf, tail = crps(forecast, truth, estimator="ecdf"), twcrps(forecast, truth, lower=THRESHOLD)
    compared = {
        "CRPS": (table["crps"], weighted_mean(crps(forecast, truth), dims, weights)),
        "ecdf CRPS": (table["crps_ecdf"], weighted_mean(ecdf, dims, weights)),
        "RMSE": (table["rmse"], rmse(forecast, truth, dim=dims, weights=weights)),
        "bias": (table["bias"], bias(forecast, truth, dim=dims, weights=weights)),
        "spread": (table["spread"], pooled["spread"]),
        "spread-skill ratio": (table["ssr"], pooled["ssr"]),
        "ranks": (table["rank_histogram"], rank_histogram(forecast, truth, dim=dims, weights=weights)),
        "CRPS reliability": (parts["reliability"], taken_apart["reliability"]),
        "potential CRPS": (parts["potential"], taken_apart["potential"]),
        "event table": (readout.event_table(state).isel(event=0), counts["weight"]),
        "Brier score": (events["brier"], brier(counts)["brier"]),
        "twCRPS": (events["twcrps"], weighted_mean(tail, dims, weights)),
    }
    for name, (found, expected) in compared.items():
        yield _deviation(
            f"score state: {name}", found.isel(channel=0).transpose(*expected.dims), expected, float(abs(expected).max())
        )
    dropped = int(table["dropped"].sum())
    yield Check("score state: cases left out and counted", 2.0, dropped, 0.0)


def _campaign() -> tuple[xr.Dataset, xr.DataArray, xr.DataArray, xr.DataArray]:
    """A score state with ties, an event, a missing truth and a missing member; its forecast, truth and weights."""
    grid, hours = Grid.named("12x6"), np.timedelta64(1, "h").astype("timedelta64[ns]")
    coords = {
        "time": np.datetime64("2007-01-01", "ns") + 24 * hours * np.arange(2),
        "prediction_timedelta": 24 * hours * np.arange(1, 3),
        "number": np.arange(5),
        **grid.coords(),
    }
    values = np.random.default_rng([SEED, 4]).standard_normal((2, 2, 6, *grid.shape))
    values = (THRESHOLD + 3 * values).round().astype(np.float32)
    values[0, 0, 5, 2, 3] = values[1, 1, 4, 0, 0] = np.nan
    forecast = xr.DataArray(values[:, :, :5], coords, tuple(coords))
    truth = forecast.isel(number=0, drop=True).copy(data=values[:, :, 5])
    times, leads, units = coords["time"], coords["prediction_timedelta"], {"2m_temperature": "K"}
    events = (Event(">", THRESHOLD, channel="2m_temperature"),)
    accumulator = Accumulator(Plan(tuple(units), units, times, leads, 5, grid, {"model": "certificate"}, events=events))
    for t, lead in np.ndindex(2, 2):
        accumulator.add(times[t], leads[lead], values[t, lead, :5, None], values[t, lead, 5:])
    return accumulator.state(), forecast, truth, area_weights(grid)
