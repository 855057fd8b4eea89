"""The CRPS family in a linear-Gaussian world, where the truth is known, and its score, which that truth minimises."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import xarray as xr

from models.losses import almost_fair_crps
from tests.models.gaussian_world import SHAPE, against_truth, exact, fields_of, predictive, world


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return world(2000)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_members_of_the_world_itself_have_the_closed_form_mean_and_covariance(data: xr.Dataset, steps: int) -> None:
    frames = fields_of(data)[[10, 300, 700]]
    found = against_truth([exact(x, steps, members=2000, seed=k) for k, x in enumerate(frames)], list(frames), steps)
    assert found.bias < 2 * found.bias_floor < 0.05
    assert found.spread == pytest.approx(1, abs=0.01)
    assert found.covariance < 1.5 * found.covariance_floor < 0.1


def test_the_analyses_follow_the_forecast_one_step_before_with_its_covariance(data: xr.Dataset) -> None:
    fields = fields_of(data)
    errors = np.stack([after - predictive(before)[0] for before, after in pairwise(fields)])
    std = np.sqrt(np.diag(predictive(fields[0])[1])).reshape(SHAPE)
    assert abs((errors / std).mean()) < 0.03
    np.testing.assert_allclose((errors / std).std(0), 1, atol=0.08)
    np.testing.assert_allclose((errors[1:] * errors[:-1] / std**2).mean((0, 2, 3)), 0, atol=0.03)


def test_a_comparison_sees_a_wrong_mean_a_wrong_spread_and_a_wrong_correlation(data: xr.Dataset) -> None:
    frames = fields_of(data)[[5]]
    members, (mean, covariance) = exact(frames[0], members=1000), predictive(frames[0])
    std = np.sqrt(np.diag(covariance)).reshape(SHAPE)
    assert against_truth([members + 0.5 * std], list(frames)).bias == pytest.approx(0.5, abs=0.05)
    assert against_truth([mean + 0.7 * (members - mean)], list(frames)).spread == pytest.approx(0.7, abs=0.02)
    white = mean + std * np.random.default_rng(0).standard_normal((1000, *SHAPE))
    found = against_truth([white], list(frames))
    assert found.spread == pytest.approx(1, abs=0.02)
    assert found.covariance > 0.7


def test_the_expected_fair_crps_of_fields_is_smallest_for_the_true_forecast(data: xr.Dataset) -> None:
    """Members of the true forecast, their mean moved or their deviations stretched: every change costs."""
    start = fields_of(data)[40]
    mean, covariance = predictive(start)
    std = np.sqrt(np.diag(covariance)).reshape(SHAPE)
    draws = (exact(start, members=5000, seed=3) - mean) / std
    truth, members = torch.from_numpy(draws[:1000]), torch.from_numpy(draws[1000:].reshape(4, 1000, *SHAPE))

    def score(shift: float, stretch: float, alpha: float = 1.0) -> float:
        return float(almost_fair_crps(stretch * members + shift, truth, alpha).mean())

    best = score(0, 1)
    assert best == pytest.approx(1 / np.sqrt(np.pi), rel=0.01)
    for shift, stretch in ((0.2, 1), (-0.2, 1), (0, 0.85), (0, 1.15), (0.2, 0.85)):
        assert score(shift, stretch) > best + 0.002
    assert score(0, 0.8, alpha=0.0) < score(0, 1, alpha=0.0)  # the ensemble CRPS of 4 members is not
