"""The CRPS taken apart: known answers, Hersbach's formulas written out, properties, missing values, dask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import InputError
from tests.verification.ensembles import FOUR_CASES, FOUR_TRUTHS, drawn, ensemble, rain
from verification import crps, crps_decomposition
from verification.decomposition import hersbach

PARTS = ("crps", "reliability", "potential", "resolution", "uncertainty")


def test_decomposition_known_answers() -> None:
    found = crps_decomposition(*ensemble(FOUR_CASES, FOUR_TRUTHS), dim="case")
    expected = {"crps": 1.71875, "reliability": 0.175, "potential": 1.54375, "uncertainty": 1.3125, "resolution": -0.23125}
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, abs=1e-12), name
    assert int(found["cases"]) == 4
    assert found["crps"].attrs["units"] == "K"


def by_hersbach(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> dict[str, float]:
    """Hersbach's formulas bin by bin, with his g and o of the outliers, in plain loops."""
    cases, size = x.shape
    alpha, beta = np.zeros((cases, size + 1)), np.zeros((cases, size + 1))
    for k in range(cases):
        ordered = np.sort(x[k])
        for i in range(1, size):
            low, high = ordered[i - 1], ordered[i]
            inside = min(max(y[k], low), high)
            alpha[k, i], beta[k, i] = inside - low, high - inside
        beta[k, 0], alpha[k, size] = max(ordered[0] - y[k], 0), max(y[k] - ordered[-1], 0)
    a, b = (w[:, None] * alpha).sum(0) / w.sum(), (w[:, None] * beta).sum(0) / w.sum()
    reliability = potential = 0.0
    for i in range(size + 1):
        if i == 0:
            o = (w * (y < x.min(1))).sum() / w.sum()
            g = b[0] / o if o > 0 else 0.0
        elif i == size:
            o = (w * (y <= x.max(1))).sum() / w.sum()
            g = a[size] / (1 - o) if o < 1 - 1e-12 else 0.0
        else:
            g = a[i] + b[i]
            o = b[i] / g if g > 0 else 0.0
        reliability += g * (o - i / size) ** 2
        potential += g * o * (1 - o)
    pooled = 0.5 * sum(w[i] * w[j] * abs(y[i] - y[j]) for i in range(cases) for j in range(cases)) / w.sum() ** 2
    return {"reliability": reliability, "potential": potential, "uncertainty": pooled, "resolution": pooled - potential}


@pytest.mark.parametrize("size", [1, 2, 50])
@pytest.mark.parametrize("draw", [drawn, rain])
@pytest.mark.parametrize("weighted", [False, True])
def test_decomposition_is_hersbachs(size: int, draw: Any, weighted: bool) -> None:
    forecast, truth = draw(size, cases=60)
    weights = xr.DataArray(np.random.default_rng(1).random(60), dims="case") if weighted else xr.ones_like(truth)
    found = crps_decomposition(forecast, truth, dim="case", weights=weights if weighted else None)
    for name, value in by_hersbach(forecast.values, truth.values, weights.values).items():
        assert float(found[name]) == pytest.approx(value, abs=1e-12), name
    mean = float(crps(forecast, truth, estimator="ecdf").weighted(weights).mean())
    assert float(found["crps"]) == pytest.approx(mean, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 1000))
def test_parts_add_up_to_the_crps(size: int, cases: int, seed: int) -> None:
    for forecast, truth in (drawn(size, cases, seed), rain(size, cases, seed)):
        found = crps_decomposition(forecast, truth, dim="case")
        mean = float(crps(forecast, truth, estimator="ecdf").mean())
        assert float(found["reliability"] + found["potential"]) == pytest.approx(mean, abs=1e-12)
        assert float(found["reliability"] - found["resolution"] + found["uncertainty"]) == pytest.approx(mean, abs=1e-12)
        assert float(found["reliability"]) >= -1e-14
        assert float(found["potential"]) >= -1e-14


def test_sums_of_two_halves_decompose_as_the_whole() -> None:
    rng = np.random.default_rng(2)
    alpha, beta = rng.random((2, 3, 5)), rng.random((2, 3, 5))
    below, not_above, weight = rng.random((2, 3)), 1 + rng.random((2, 3)), 3 + rng.random((2, 3))
    merged = hersbach(alpha.sum(0), beta.sum(0), below.sum(0), not_above.sum(0), weight.sum(0))
    tripled = hersbach(3 * alpha.sum(0), 3 * beta.sum(0), 3 * below.sum(0), 3 * not_above.sum(0), 3 * weight.sum(0))
    np.testing.assert_allclose(merged, tripled, rtol=1e-13)
    unread = alpha.sum(0), beta.sum(0)
    unread[0][:, 0], unread[1][:, -1] = 7, 7
    np.testing.assert_array_equal(merged, hersbach(*unread, below.sum(0), not_above.sum(0), weight.sum(0)))
    assert np.isnan(hersbach(np.zeros(5), np.zeros(5), np.zeros(()), np.zeros(()), np.zeros(()))).all()


def test_pooled_parts_are_not_the_mean_of_the_parts() -> None:
    forecast, truth = ensemble(FOUR_CASES, FOUR_TRUTHS)
    pooled = crps_decomposition(forecast, truth, dim="case")
    halves = [crps_decomposition(forecast[part], truth[part], dim="case") for part in (slice(0, 2), slice(2, 4))]
    assert float(pooled["crps"]) == pytest.approx(np.mean([float(half["crps"]) for half in halves]))
    assert float(pooled["reliability"]) != pytest.approx(np.mean([float(half["reliability"]) for half in halves]))


def test_decomposition_over_some_dims_keeps_the_others_and_drops_missing_cases() -> None:
    rng = np.random.default_rng(3)
    forecast = xr.DataArray(rng.normal(size=(6, 5, 4, 3)), dims=("time", "number", "lat", "lon"))
    truth = xr.DataArray(rng.normal(size=(4, 3, 6)), dims=("lat", "lon", "time"))
    weights = xr.DataArray([1.0, 2, 3, np.nan], dims="lat")
    truth[2, 1, 0], forecast[1, 4, 0, 1] = np.nan, np.nan
    found = crps_decomposition(forecast, truth, dim=("time", "lat"), weights=weights)
    np.testing.assert_array_equal(found["cases"], [24, 22, 24])
    kept = forecast[:, :, :3, 1].transpose("time", "lat", "number").values.reshape(18, 5)
    truths, used = truth[:3, 1].transpose("time", "lat").values.ravel(), np.tile([1.0, 2, 3], 6)
    good = ~np.isnan(truths) & ~np.isnan(kept).any(1)
    for name, value in by_hersbach(kept[good], truths[good], used[good]).items():
        assert float(found[name][1]) == pytest.approx(value, abs=1e-12), name


def test_decomposition_has_a_policy_for_missing_values() -> None:
    forecast, truth = ensemble([[1.0, np.nan], [1, 2]], [1.0, np.nan])
    nothing = crps_decomposition(forecast, truth, dim="case")
    assert all(np.isnan(nothing[name]) for name in PARTS)
    assert int(nothing["cases"]) == 0
    with pytest.raises(InputError, match="unequal size"):
        crps_decomposition(forecast, truth, dim="case", missing="omit")
    with pytest.raises(InputError, match="1 cases without truth, 1 with a missing member"):
        crps_decomposition(forecast, truth, dim="case", missing="raise")
    with pytest.raises(InputError, match="forecast holds infinite"):
        crps_decomposition(forecast.fillna(np.inf), truth, dim="case")
    with pytest.raises(InputError, match=r"dim \['time'\] is not in the data"):
        crps_decomposition(forecast, truth, dim="time")


def test_decomposition_of_float32_fields_near_1e5_loses_nothing() -> None:
    forecast, truth = drawn(20)
    forecast, truth = (forecast * 50 + 101325).astype(np.float32), (truth * 50 + 101325).astype(np.float32)
    shifted = crps_decomposition(forecast.astype(float) - 101325, truth.astype(float) - 101325, dim="case")
    xr.testing.assert_allclose(crps_decomposition(forecast, truth, dim="case"), shifted, rtol=1e-12, atol=1e-12)


def test_dask_input_stays_lazy_and_gives_the_same_parts() -> None:
    forecast, truth = rain(9)
    weights = xr.DataArray(np.random.default_rng(4).random(200), dims="case")
    found = crps_decomposition(forecast.chunk(case=37, number=4), truth.chunk(case=37), dim="case", weights=weights)
    assert all(found[name].chunks is not None for name in PARTS)
    xr.testing.assert_allclose(found.compute(), crps_decomposition(forecast, truth, dim="case", weights=weights), rtol=1e-12)
