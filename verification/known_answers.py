"""Small ensembles whose scores are known by hand: what the public scores say of them, beside what they must say.

The members are small integers, exact in float32, the precision of the fields that are scored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from verification.decomposition import crps_decomposition
from verification.distribution import crps, crps_gaussian, twcrps
from verification.events import BINS, brier, economic_value, event_table, roc, sedi
from verification.scores import rank_histogram, spread_skill

EXACT = 1e-12
ROUNDED = 1e-6  # answers known to six decimals

X, Y = (2, 5, 3, 9), 4
CRPS: list[tuple[tuple[int, ...], int, dict[str, Any], float]] = [
    (X, Y, {"estimator": "ecdf"}, 0.8125),
    (X, Y, {"estimator": "fair"}, 1 / 3),
    (X, Y, {"estimator": "almost_fair", "alpha": 0.95}, 0.05 * 0.8125 + 0.95 / 3),
    (X, Y, {"estimator": "size", "size": 2}, 2.25 - 23 / 24),
    (X, Y, {"estimator": "size", "size": 50}, 2.25 - 0.98 * 23 / 12),
    ((0, 1, 2), 1, {"estimator": "ecdf"}, 2 / 9),
    ((0, 1, 2), 1, {"estimator": "fair"}, 0.0),
    ((0, 0, 0, 3), 0, {"estimator": "ecdf"}, 0.1875),
    ((4, 4, 4, 9), 4, {"estimator": "ecdf"}, 0.3125),
    ((4, 4, 4, 9), 4, {"estimator": "almost_fair", "alpha": 0.95}, 0.015625),
    ((4, 4, 4, 9), 4, {"estimator": "fair"}, 0.0),
    ((0, 0, 1), 0, {"estimator": "ecdf"}, 1 / 9),
]
TWCRPS: list[tuple[dict[str, Any], float]] = [
    ({"lower": 4, "estimator": "ecdf"}, 0.5),
    ({"lower": 4, "estimator": "fair"}, 1 / 6),
    ({"upper": 4, "estimator": "ecdf"}, 0.3125),
    ({"upper": 4, "estimator": "fair"}, 1 / 6),
    ({"lower": 3, "upper": 6, "estimator": "ecdf"}, 0.5625),
    ({"lower": 3, "upper": 6, "estimator": "fair"}, 1 / 3),
]
GAUSSIAN = [((0, 1, 0), 0.2336949772551091), ((0, 1, 1), 0.6024413576)]  # (mean, standard deviation, truth)
FOUR_CASES = ((2, 5, 3, 9), (1, 2, 4, 4), (0, 1, 3, 6), (2, 4, 6, 8))
FOUR_TRUTHS = (4, 0, 7, 4)
DECOMPOSITION = {"crps": 1.71875, "reliability": 0.175, "potential": 1.54375, "resolution": -0.23125, "uncertainty": 1.3125}
SPREAD_SKILL = {"spread": 2.524876, "rmse": 2.709935, "ssr": 1.041684}
RANKS: list[tuple[tuple[int, ...], int, tuple[float, ...]]] = [
    ((0, 0, 1, 3), 0, (1 / 3, 1 / 3, 1 / 3, 0, 0)),
    ((5, 5, 5, 5), 5, (0.2,) * 5),
    (X, 6, (0, 0, 0, 1, 0)),
]
EVENT_MEMBERS, EVENT_OBSERVED = (0, 1, 1, 2, 3, 4, 2, 1), (0, 0, 1, 1, 1, 1, 0, 0)  # of 4 members
BRIER = {"brier": 0.15625, "reliability": 1 / 96, "resolution": 5 / 48, "uncertainty": 0.25}
FAIR_BRIER = 5 / 48
ROC = ((1, 2, 1, 0, 0), (0, 1, 1, 1, 1), 0.84375)
VALUE = {0.3: 0.6, 0.1: 1 / 35, 0.6: 0.1}  # by cost ratio, with hit rate 0.8, false alarm rate 0.2, base rate 0.3
SEDI = [((0.8, 0.2), 0.756471), ((0.5, 0.05), 0.664161)]  # (hit rate, false alarm rate)


class Answer(NamedTuple):
    name: str
    expected: float
    found: float
    tolerance: float


def known_answers() -> Iterator[Answer]:
    """Every packaged answer and what the public scores find."""
    yield from _crps_answers()
    yield from _pooled_answers()
    yield from _event_answers()


def _crps_answers() -> Iterator[Answer]:
    for members, truth, options, expected in CRPS:
        yield _answer(f"CRPS of {members}, truth {truth}, {_say(options)}", expected, crps(*case(members, truth), **options))
    for options, expected in TWCRPS:
        yield _answer(f"twCRPS of {X}, truth {Y}, {_say(options)}", expected, twcrps(*case(X, Y), **options))
    for parameters, expected in GAUSSIAN:
        found = crps_gaussian(*(xr.DataArray(float(value)) for value in parameters))
        yield _answer(f"CRPS of N({parameters[0]}, {parameters[1]}), truth {parameters[2]}", expected, found, 1e-9)


def _pooled_answers() -> Iterator[Answer]:
    forecast, truth = case(FOUR_CASES, FOUR_TRUTHS)
    parts = crps_decomposition(forecast, truth, dim="case")
    for name, expected in DECOMPOSITION.items():
        yield _answer(f"decomposition of four cases: {name}", expected, parts[name])
    pooled = spread_skill(forecast, truth, dim="case")
    for name, expected in SPREAD_SKILL.items():
        yield _answer(f"spread-skill of four cases: {name}", expected, pooled[name], ROUNDED)
    debiased = pooled["mse"] - pooled["variance"] / 4
    yield _answer("spread-skill of four cases: debiased squared error", 5.75, debiased)
    for members, y, shares in RANKS:
        found = rank_histogram(*case(members, y), dim="case").values
        worst = float(np.abs(found - shares).max())
        yield Answer(f"ranks of {members}, truth {y}: largest error", 0.0, worst, EXACT)


def _event_answers() -> Iterator[Answer]:
    members = np.less.outer(np.arange(4), EVENT_MEMBERS).T
    forecast, truth = case(members, EVENT_OBSERVED)
    table = event_table(forecast, truth, threshold=0.5, dim="case")
    parts = brier(table, fair=False)
    for name, expected in BRIER.items():
        yield _answer(f"Brier score of eight cases: {name}", expected, parts[name])
    yield _answer("Brier score of eight cases: fair", FAIR_BRIER, brier(table)["brier"])
    each = brier(forecast, truth, threshold=0.5)
    yield _answer("fair Brier score of 1 of 4 members, no event", 0.0, each[1])
    yield _answer("fair Brier score of 1 of 4 members, event", 0.5, each[2])
    yield _answer("area under the ROC curve", ROC[2], roc(_table(*ROC[:2]))["auc"])
    value = economic_value(_rates(0.8, 0.2, base=0.3), list(VALUE))["value"]
    for index, (ratio, expected) in enumerate(VALUE.items()):
        yield _answer(f"economic value at cost ratio {ratio}", expected, value[index], 1e-9)
    for (hits, alarms), expected in SEDI:
        yield _answer(f"SEDI of hit rate {hits}, false alarm rate {alarms}", expected, sedi(_rates(hits, alarms))[0], ROUNDED)


def case(members: Any, truth: Any) -> tuple[xr.DataArray, xr.DataArray]:
    """One case (M,) or several (case, M), in float32."""
    values = np.atleast_2d(np.asarray(members, np.float32))
    return xr.DataArray(values, dims=("case", "number")), xr.DataArray(np.atleast_1d(np.asarray(truth, np.float32)), dims="case")


def _table(without: tuple[float, ...], having: tuple[float, ...]) -> xr.DataArray:
    return xr.DataArray(np.array([without, having], dtype=np.float64).T, dims=BINS)


def _rates(hits: float, alarms: float, base: float = 0.5) -> xr.DataArray:
    """The event table of a forecast of one member."""
    return _table(((1 - base) * (1 - alarms), (1 - base) * alarms), (base * (1 - hits), base * hits))


def _answer(name: str, expected: float, found: xr.DataArray, tolerance: float = EXACT) -> Answer:
    return Answer(name, expected, float(found.squeeze()), tolerance)


def _say(options: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())
