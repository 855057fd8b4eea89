"""The one pass against the public scores and definitions: every sum, with ties, gaps, thresholds and any ensemble size."""

from __future__ import annotations

import numpy as np
import properscoring
import pytest
import xarray as xr

from verification import crps, crps_decomposition, event_table, quantile_score, rank_histogram, spread_skill, twcrps
from verification.decomposition import hersbach
from verification.onepass import ANOMALIES, MAPS, SUMS, TAILS, FieldSums, field_sums

LEVELS = np.array([0.1, 0.5, 0.9])
EDGES = np.linspace(-2, 2, 7)
OPS = (">", ">=", "<", "<=")


def block(
    members: int, *, leads: int = 2, points: int = 300, seed: int = 0, dtype: type = np.float64
) -> tuple[np.ndarray, np.ndarray]:
    """Members and truth rounded to halves: many ties, some of them on the thresholds."""
    rng = np.random.default_rng(seed)
    rounded = [np.round(2 * rng.normal(size=shape)) / 2 for shape in ((leads, members, points), (leads, points))]
    return rounded[0].astype(dtype), rounded[1].astype(dtype)


def arrays(members: np.ndarray, truth: np.ndarray) -> tuple[xr.DataArray, xr.DataArray]:
    return xr.DataArray(members, dims=("lead", "number", "point")), xr.DataArray(truth, dims=("lead", "point"))


def sums_of(members: np.ndarray, truth: np.ndarray, **options: object) -> tuple[FieldSums, np.ndarray, np.ndarray]:
    """Five cells in two zones, unequal weights; the sums, the weights and the cell of each point."""
    points = truth.shape[1]
    rng = np.random.default_rng(9)
    weights, cells = rng.uniform(0.5, 2, points), rng.integers(0, 5, points)
    found = field_sums(members, truth, weights, cells, np.array([0, 0, 1, 1, 1]), edges=EDGES, levels=LEVELS, **options)  # type: ignore[arg-type]
    return found, weights, cells


def weighted(values: np.ndarray, weights: np.ndarray, group: np.ndarray, count: int) -> np.ndarray:
    """Sums of weight x value (lead, point, ...) over the points of each group, NaN left out: (lead, group, ...)."""
    filled = np.nan_to_num(values) * weights[:, None] if values.ndim == 3 else np.nan_to_num(values) * weights
    return np.stack([filled[:, group == g].sum(axis=1) for g in range(count)], axis=1)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 16, 50, 130])
def test_moments_and_ranks_are_those_of_the_public_scores(size: int) -> None:
    members, truth = block(size)
    members[0, size // 2, 17] = np.nan
    truth[1, 200] = np.nan
    found, weights, cells = sums_of(members, truth)
    forecast, observed = arrays(members, truth)
    known = np.isfinite(truth) & np.isfinite(members).all(axis=1)
    mean = members.mean(axis=1)
    ecdf = crps(forecast, observed, estimator="ecdf").values
    single = np.where(known, 1.0, np.nan)
    pointwise = {
        "weight": single,
        "abs_error": np.abs(members - truth[:, None]).mean(axis=1),
        "squared_error": (mean - truth) ** 2,
        "error": mean - truth,
        "mean_abs_error": np.abs(mean - truth),
        "variance": single * members.var(axis=1, ddof=1) if size > 1 else 0 * single,
    }
    for name, values in pointwise.items():
        np.testing.assert_allclose(found.sums[:, SUMS.index(name)], weighted(values, weights, cells, 5), rtol=1e-12, err_msg=name)
    pair = found.sums[:, SUMS.index("abs_error")] - (1 - 1 / size) * found.sums[:, SUMS.index("gini")] / 2
    np.testing.assert_allclose(pair, weighted(ecdf, weights, cells, 5), rtol=1e-12, atol=1e-12)
    assert found.sums[:, SUMS.index("dropped")].sum() == 2
    zones = np.array([0, 0, 1, 1, 1])[cells]
    for z in range(2):
        shares = rank_histogram(forecast, observed, dim="point", weights=xr.DataArray(weights * (zones == z), dims="point"))
        np.testing.assert_allclose(
            found.ranks[:, z] / found.ranks[:, z].sum(axis=-1, keepdims=True), shares, rtol=1e-12, atol=1e-15
        )


@pytest.mark.parametrize("size", [1, 2, 8, 50])
def test_the_decomposition_is_that_of_the_public_function(size: int) -> None:
    members, truth = block(size, seed=1)
    found, weights, cells = sums_of(members, truth)
    zones = np.array([0, 0, 1, 1, 1])[cells]
    for z in range(2):
        expected = crps_decomposition(
            *arrays(members, truth), dim="point", weights=xr.DataArray(weights * (zones == z), dims="point")
        )
        alpha, beta = found.hersbach[:, z, 0], found.hersbach[:, z, 1]
        parts = hersbach(alpha, beta, found.outliers[:, z, 0], found.outliers[:, z, 1], weights[zones == z].sum())
        for name, values in zip(("reliability", "potential", "crps"), parts, strict=True):
            np.testing.assert_allclose(values, expected[name], rtol=1e-12, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("size", [1, 2, 5, 8, 50])
def test_events_and_tails_are_those_of_the_public_functions(size: int) -> None:
    members, truth = block(size, seed=2)
    members[1, 0, 3] = np.nan
    thresholds = np.random.default_rng(3).choice([-0.5, 0.0, 1.0], size=(4, 2, 300))
    thresholds[1, 0, 7] = np.nan
    found, weights, cells = sums_of(members, truth, thresholds=thresholds, ops=np.arange(4), keep_counts=True)
    zones = np.array([0, 0, 1, 1, 1])[cells]
    forecast, observed = arrays(members, truth)
    for e, op in enumerate(OPS):
        threshold = xr.DataArray(thresholds[e], dims=("lead", "point"))
        clip = {"lower": threshold} if op.startswith(">") else {"upper": threshold}
        tail = twcrps(forecast, observed, estimator="ecdf", **clip).values
        happened = {">": np.greater, ">=": np.greater_equal, "<": np.less, "<=": np.less_equal}[op](
            members, thresholds[e][:, None]
        )
        missing = np.isnan(thresholds[e]) | np.isnan(members).any(axis=1)
        np.testing.assert_array_equal(found.counts[:, e], np.where(missing, -1, happened.sum(axis=1)))
        for z in range(2):
            inside = xr.DataArray(weights * (zones == z), dims="point")
            table = event_table(forecast, observed, threshold=threshold, op=op, dim="point", weights=inside)["weight"]
            np.testing.assert_allclose(found.table[:, e, z], table, rtol=1e-12, atol=1e-14, err_msg=op)
        terms = {name: found.tails[:, e, :, TAILS.index(name)] for name in TAILS}
        score = terms["abs_error"] - (1 - 1 / size) * terms["gini"] / 2
        np.testing.assert_allclose(score, weighted(tail, weights, zones, 2), rtol=1e-12, atol=1e-12, err_msg=op)
        np.testing.assert_allclose(terms["weight"], weighted(np.where(missing, np.nan, 1.0), weights, zones, 2), rtol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 10, 51])
def test_quantiles_anomalies_bins_and_maps(size: int) -> None:
    members, truth = block(size, seed=4)
    climatology = np.random.default_rng(5).normal(size=truth.shape)
    climatology[0, 11] = np.nan
    found, weights, cells = sums_of(members, truth, climatology=climatology)
    zones = np.array([0, 0, 1, 1, 1])[cells]
    quantiles = xr.DataArray(
        np.quantile(members, LEVELS, axis=1), dims=("quantile", "lead", "point"), coords={"quantile": LEVELS}
    )
    pinball = quantile_score(quantiles, xr.DataArray(truth, dims=("lead", "point"))).transpose("lead", "point", "quantile").values
    np.testing.assert_allclose(found.quantiles, weighted(pinball, weights, zones, 2), rtol=1e-12, atol=1e-12)
    ours, theirs = members.mean(axis=1) - climatology, truth - climatology
    for name, values in zip(ANOMALIES, (ours * theirs, ours**2, theirs**2), strict=True):
        np.testing.assert_allclose(found.anomalies[:, ANOMALIES.index(name)], weighted(values, weights, cells, 5), rtol=1e-11)
    slots = np.digitize(truth, EDGES)
    for k in range(EDGES.size + 1):
        inside = np.where(slots == k, 1.0, 0.0)
        np.testing.assert_allclose(found.truth[:, :, k, 0], weighted(inside, weights, zones, 2), rtol=1e-12)
        np.testing.assert_allclose(
            found.truth[:, :, k, 1], weighted(inside * (truth - EDGES[0]), weights, zones, 2), rtol=1e-12, atol=1e-12
        )
    fair = crps(*arrays(members, truth)).values if size > 1 else np.abs(members[:, 0] - truth)
    np.testing.assert_allclose(found.maps[:, MAPS.index("crps")], fair, rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(found.maps[:, MAPS.index("count")], 1.0)


def test_agrees_with_properscoring_on_pressures_in_float32() -> None:
    rng = np.random.default_rng(6)
    members = (101325 + 5 * rng.normal(size=(2, 50, 400))).astype(np.float32)
    truth = (101325 + 5 * rng.normal(size=(2, 400))).astype(np.float32)
    found, weights, cells = sums_of(members, truth)
    reference = properscoring.crps_ensemble(truth.astype(float), np.moveaxis(members, 1, -1).astype(float))
    score = found.sums[:, SUMS.index("abs_error")] - (1 - 1 / 50) * found.sums[:, SUMS.index("gini")] / 2
    np.testing.assert_allclose(score, weighted(reference, weights, cells, 5), rtol=1e-11)
    spread = spread_skill(*arrays(members, truth), dim="point", weights=xr.DataArray(weights, dims="point"))
    variance = found.sums[:, SUMS.index("variance")].sum(axis=-1) / weights.sum()
    np.testing.assert_allclose(variance, spread["variance"], rtol=1e-11)


def test_channels_in_one_block_are_scored_where_they_lie() -> None:
    members, truth = block(6, points=400, seed=7)
    both, _, _ = sums_of(members, np.ascontiguousarray(truth[:, 150:350]), first=150)
    alone, _, _ = sums_of(np.ascontiguousarray(members[:, :, 150:350]), np.ascontiguousarray(truth[:, 150:350]))
    for name, values in both._asdict().items():
        np.testing.assert_array_equal(values, getattr(alone, name), err_msg=name)


def test_infinite_values_are_counted_and_reach_no_sum() -> None:
    members, truth = block(4, seed=8)
    members[0, 1, 5], truth[1, 9] = np.inf, -np.inf
    found, _, _ = sums_of(members, truth)
    assert found.infinite[0] == 2
    assert all(np.isfinite(values).all() for values in found)


def test_all_missing_is_all_zero() -> None:
    members, truth = block(5)
    found, _, _ = sums_of(np.full_like(members, np.nan), truth)
    assert found.sums[:, SUMS.index("dropped")].sum() == truth.size
    for name in ("ranks", "hersbach", "outliers", "truth", "quantiles", "maps"):
        assert (getattr(found, name) == 0).all(), name
