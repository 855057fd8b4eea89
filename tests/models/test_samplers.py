"""The samplers on distributions whose denoiser is known in closed form: Gaussians exactly, mixtures within a stated error."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.samplers import Churn, Denoise, dpm_solver_2m, heun, levels, preconditioning, regression_target

SAMPLERS = [heun, dpm_solver_2m]
MEANS, STDS, WEIGHTS = torch.tensor([-1.0, 1.5]).double(), torch.tensor([0.3, 0.5]).double(), torch.tensor([0.3, 0.7]).double()


def gaussian(mean: float, std: float) -> Denoise:
    """E[x0 | x] for x0 ~ N(mean, std^2)."""
    return lambda x, sigma: (std**2 * x + sigma**2 * mean) / (std**2 + sigma**2)


def mixture(x: Tensor, sigma: float) -> Tensor:
    """E[x0 | x] for the mixture of the two Gaussians above."""
    variance = STDS**2 + sigma**2
    log_odds = WEIGHTS.log() - variance.log() / 2 - (x[..., None] - MEANS) ** 2 / 2 / variance
    return (log_odds.softmax(-1) * (STDS**2 * x[..., None] + sigma**2 * MEANS) / variance).sum(-1)


def draws(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_levels_fall_from_the_largest_to_the_smallest_and_end_at_0() -> None:
    found = levels(20, sigma_max=80, sigma_min=0.03)
    assert (len(found), found[-1]) == (21, 0)
    assert found[0] == pytest.approx(80)
    assert found[-2] == pytest.approx(0.03)
    assert sorted(found, reverse=True) == found
    assert levels(3, sigma_max=4, sigma_min=1, rho=1) == pytest.approx([4, 2.5, 1, 0])
    assert levels(3, sigma_max=9, sigma_min=1, rho=2)[1] == pytest.approx(4)


@pytest.mark.parametrize(("sampler", "evaluations"), [(heun, 2 * 12 - 1), (dpm_solver_2m, 12)])
def test_evaluations_of_the_denoiser(sampler: Callable[..., Tensor], evaluations: int) -> None:
    seen: list[float] = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        seen.append(sigma)
        return gaussian(0, 1)(x, sigma)

    sampler(denoise, draws(3), levels(12, sigma_max=80, sigma_min=0.03))
    assert len(seen) == evaluations
    assert min(seen) > 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_single_point_is_hit_exactly(sampler: Callable[..., Tensor]) -> None:
    sigmas = levels(5, sigma_max=10, sigma_min=0.1)
    found = sampler(lambda x, sigma: torch.full_like(x, 3.0), 10 * draws(7), sigmas)
    torch.testing.assert_close(found, torch.full((7,), 3.0).double())


@pytest.mark.parametrize(("count", "error"), [(15, 0.05), (20, 0.03), (40, 0.006)])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_of_a_gaussian_every_sample_is_where_the_exact_flow_takes_it(
    sampler: Callable[..., Tensor], count: int, error: float
) -> None:
    """x(0) = mean + (x(T) - mean) * std / sqrt(std^2 + sigma_max^2); coarse levels make the spread too large by `error`."""
    mean, std, top = 0.7, 0.4, 20.0
    z, sigmas = draws(1000), levels(count, sigma_max=top, sigma_min=0.02)
    found = sampler(gaussian(mean, std), top * z, sigmas)
    exact = mean + (top * z - mean) * std / math.hypot(std, top)
    assert float((found - exact).square().mean().sqrt()) < error * std
    assert float(found.std() / exact.std()) == pytest.approx(1, abs=error)
    wide = sampler(gaussian(mean, std), 1.1 * top * z, sigmas)
    assert float(wide.std() / found.std()) == pytest.approx(1.1)  # the knob of the spread: the initial noise


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_error_falls_with_the_square_of_the_number_of_levels(sampler: Callable[..., Tensor]) -> None:
    x = 10 * draws(200)
    reference = heun(mixture, x, levels(2000, sigma_max=10, sigma_min=0.05)[:-1])
    errors = [
        float((sampler(mixture, x, levels(n, sigma_max=10, sigma_min=0.05)[:-1]) - reference).square().mean().sqrt())
        for n in (50, 100, 200)
    ]
    ratios = [errors[0] / errors[1], errors[1] / errors[2]]
    assert all(3.2 < ratio < 5.0 for ratio in ratios), ratios


@pytest.mark.parametrize(("sampler", "count"), [(heun, 24), (dpm_solver_2m, 30)])
def test_a_mixture_of_gaussians_is_recovered(sampler: Callable[..., Tensor], count: int) -> None:
    """Weights of the modes within 0.01, means within 0.03, standard deviations within 5 %, of 40,000 samples."""
    found = sampler(mixture, 80 * draws(40_000), levels(count, sigma_max=80, sigma_min=0.03))
    low = found < 0
    truth = torch.where(
        torch.rand(400_000, generator=torch.Generator().manual_seed(1)).double() < WEIGHTS[0],
        MEANS[0] + STDS[0] * draws(400_000, 2), MEANS[1] + STDS[1] * draws(400_000, 3),
    )  # fmt: skip
    assert float(low.double().mean()) == pytest.approx(float((truth < 0).double().mean()), abs=0.01)
    for inside, right in ((found[low], truth[truth < 0]), (found[~low], truth[truth >= 0])):
        assert float(inside.mean()) == pytest.approx(float(right.mean()), abs=0.03)
        assert float(inside.std()) == pytest.approx(float(right.std()), rel=0.05)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_correlated_gaussians_in_many_dimensions_keep_their_covariance(sampler: Callable[..., Tensor]) -> None:
    n = 12
    index = torch.arange(n).double()
    covariance = torch.exp(-(index[:, None] - index).abs() / 3)
    x = 80 * draws(20_000 * n).view(-1, n)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return x @ torch.linalg.solve(covariance + sigma**2 * torch.eye(n).double(), covariance)

    found = sampler(denoise, x, levels(30, sigma_max=80, sigma_min=0.03))
    assert float((found.T.cov() - covariance).norm() / covariance.norm()) < 0.03


def test_churn_keeps_the_distribution_and_inflated_noise_widens_it() -> None:
    sigmas = levels(60, sigma_max=80, sigma_min=0.03)
    spreads = {}
    for inflation in (1.0, 1.1):
        churn = Churn(rate=10, lowest=0.05, highest=50, inflation=inflation)
        fresh = draws(churn.draws(sigmas) * 20_000, 5).view(-1, 20_000)
        spreads[inflation] = float(heun(gaussian(0.2, 1.0), 80 * draws(20_000), sigmas, churn=churn, noise=fresh).std())
    assert spreads[1.0] == pytest.approx(1, abs=0.02)
    assert spreads[1.1] > spreads[1.0] + 0.03


def test_churn_counts_the_draws_it_needs_and_no_more_than_sqrt_2_is_added() -> None:
    sigmas = levels(10, sigma_max=80, sigma_min=0.03)
    assert Churn().draws(sigmas) == 0
    churn = Churn(rate=2.5, lowest=0.75, highest=80)
    assert churn.draws(sigmas) == sum(sigma >= 0.75 for sigma in sigmas)
    assert max(churn.growth(sigmas)) == 0.25
    assert max(Churn(rate=100).growth(sigmas)) == pytest.approx(math.sqrt(2) - 1)


def test_preconditioning_is_edms_and_its_target_has_unit_variance_at_every_level() -> None:
    sigma = torch.tensor([0.01, 0.5, 1.0, 20.0]).double()
    factors = preconditioning(sigma)
    torch.testing.assert_close(factors.skip, 1 / (sigma**2 + 1))
    torch.testing.assert_close(factors.out**2, sigma**2 / (sigma**2 + 1))
    torch.testing.assert_close(factors.into, 1 / (sigma**2 + 1).sqrt())
    torch.testing.assert_close(factors.level, sigma.log() / 4)
    clean = draws(100_000)[:, None]
    noisy = clean + sigma * draws(400_000, 1).view(-1, 4)
    torch.testing.assert_close(regression_target(clean, noisy, sigma).var(0), torch.ones(4).double(), rtol=0.02, atol=0)
    torch.testing.assert_close((factors.into * noisy).var(0), torch.ones(4).double(), rtol=0.02, atol=0)
    out = regression_target(clean, noisy, sigma)
    torch.testing.assert_close(factors.skip * noisy + factors.out * out, clean.expand(-1, 4))
