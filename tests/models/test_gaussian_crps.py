"""The CRPS family in a linear-Gaussian world, where the truth is known, and its score, which that truth minimises."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import xarray as xr

from models.checkpoint import build
from models.contract import Stage
from models.losses import almost_fair_crps
from tests.models.gaussian_world import SHAPE, against_truth, exact, fields_of, fit, predictive, sampled, world
from tests.toys import GLOBE, spec_of


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


def correlations(ensembles: list[np.ndarray], steps: int) -> np.ndarray:
    """Area-weighted correlation of members with their neighbours 1, 2 and 3 columns east, and between the channels."""
    std = np.sqrt(np.diag(predictive(np.zeros(SHAPE), steps)[1])).reshape(SHAPE)
    z = np.concatenate([(each - each.mean(0)) / std for each in ensembles]) * np.sqrt(GLOBE.area_weights)
    z /= np.sqrt((z**2).mean((0, 2, 3), keepdims=True))
    return np.array([*((z * np.roll(z, -lag, -1)).mean() for lag in (1, 2, 3)), (z[:, 0] * z[:, 1]).mean()])


@pytest.mark.campaign
def test_trained_members_have_the_mean_the_spread_and_the_correlations_of_the_true_forecast() -> None:
    """After 250 updates, at both steps: mean within 0.4 true stds, spread within 20 %, correlations within 0.2.

    Nothing in the score ties the channels or distant rows: over the whole covariance matrix so small a network stays too
    coherent, by about 1.25 of the matrix's norm.
    """
    data = world(3000)
    torch.manual_seed(0)
    generator = build(spec_of(data, frames=1, forcings=("position",), noise=4, local_noise=4, widths=(16, 16)))
    losses = fit(generator, data, Stage(members=2, bands=1.0, spectral=1.0), updates=250, rate=1e-2)
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:5])
    for steps in (1, 2):
        ensembles, frames = sampled(generator, data, starts=[50, 500, 1000], steps=steps, members=300)
        found = against_truth(ensembles, frames, steps)
        assert found.bias < 0.4
        assert found.spread == pytest.approx(1, abs=0.2)
        assert found.covariance < 1.5
        truth = correlations([exact(frames[0], steps, members=1000)], steps)
        np.testing.assert_allclose(correlations(ensembles, steps), truth, atol=0.2)
