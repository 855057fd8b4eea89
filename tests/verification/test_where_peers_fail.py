"""Cases that some package in use scores wrongly: simulated truths whose score is known, held within three standard errors."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy.special import ndtr

from tests.verification.ensembles import ensemble
from verification import acc, bias, brier, crps, crps_gaussian, rank_histogram, rmse, spread_skill

PERFECT = 1 / np.sqrt(np.pi)  # the fair CRPS of a perfect standard normal ensemble of any size


def normal(size: int, cases: int = 40_000, seed: int = 0) -> tuple[xr.DataArray, xr.DataArray]:
    values = np.random.default_rng([seed, size]).normal(size=(cases, size + 1))
    return ensemble(values[:, :size], values[:, size])


def assert_mean(score: xr.DataArray, expected: float) -> None:
    assert abs(float(score.mean()) - expected) < 3 * float(score.std(ddof=1)) / score.size**0.5


def test_a_truth_tied_with_members_keeps_its_intervals() -> None:
    assert crps(*ensemble([0.0, 0, 1], 0), estimator="ecdf").item() == pytest.approx(1 / 9, abs=1e-15)
    assert crps(*ensemble([0.0, 0, 1], 0)).item() == pytest.approx(0, abs=1e-15)


def test_half_zero_rain_is_scored_in_full() -> None:
    forecast, truth = (np.maximum(array, 0) for array in normal(10))
    z = np.linspace(0, 10, 200_001)
    pair = 2 * np.trapezoid(ndtr(z) * (1 - ndtr(z)), z)  # E|X - X'| = 2 int F (1 - F), and F = 0 below 0
    assert_mean(crps(forecast, truth), pair / 2)
    assert_mean(crps(forecast, truth, estimator="ecdf"), pair / 2 * (1 + 1 / 10))


def test_one_missing_member_of_ten_does_not_double_the_score() -> None:
    forecast, truth = normal(10)
    holed = forecast.copy()
    holed[:, 9] = np.nan
    assert_mean(crps(holed, truth, missing="omit"), PERFECT)
    np.testing.assert_allclose(crps(holed, truth, missing="omit"), crps(forecast[:, :9], truth), rtol=1e-12, atol=1e-14)
    assert np.isnan(crps(holed, truth)).all()


def test_the_gaussian_score_has_the_root_of_pi() -> None:
    one = xr.DataArray(1.0)
    assert crps_gaussian(0 * one, one, 0 * one).item() == pytest.approx(0.233694977, abs=1e-9)


def test_ranks_of_calibrated_rain_are_flat_and_a_missing_member_is_no_rank() -> None:
    forecast, truth = (np.maximum(array, 0) for array in normal(9))
    frequency = rank_histogram(forecast, truth, dim="case").values
    np.testing.assert_allclose(frequency, 0.1, atol=3 * (0.1 * 0.9 / truth.size) ** 0.5)
    holed = forecast.copy()
    holed[0] = np.nan
    found = rank_histogram(holed, truth, dim="case")
    assert int(found["cases"]) == truth.size - 1
    np.testing.assert_allclose(found, rank_histogram(forecast[1:], truth[1:], dim="case"), rtol=1e-12)


@pytest.mark.parametrize("size", [2, 8, 50])
def test_a_perfect_ensemble_of_any_size_has_the_ratio_one_and_the_same_fair_score(size: int) -> None:
    forecast, truth = normal(size)
    assert float(spread_skill(forecast, truth, dim="case")["ssr"]) == pytest.approx(1, abs=3 / (2 * truth.size) ** 0.5)
    assert_mean(crps(forecast, truth), PERFECT)


def test_two_policies_in_one_session_give_two_answers() -> None:
    forecast, truth = normal(5, cases=100)
    forecast[3, 2] = np.nan
    strict, lenient = (crps(forecast, truth, missing=policy) for policy in ("propagate", "omit"))  # type: ignore[arg-type]
    assert np.isnan(strict[3])
    assert np.isfinite(lenient).all()
    np.testing.assert_array_equal(strict, crps(forecast, truth))


def test_missing_is_never_a_perfect_score_or_a_confident_no() -> None:
    forecast, truth = normal(5, cases=4)
    truth[:] = np.nan
    assert np.isnan(crps(forecast, truth)).all()
    assert np.isnan(brier(forecast, truth, threshold=0.0)).all()
    for score in (rmse, bias):
        assert np.isnan(score(forecast, truth, dim="case"))
    assert np.isnan(acc(forecast, truth, climatology=0 * truth.fillna(0), dim="case"))
