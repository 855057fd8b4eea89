"""The almost-fair CRPS: closed forms, a peer, its gradient by brute force, and the spread that it teaches."""

from __future__ import annotations

import math

import numpy as np
import properscoring
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.losses import almost_fair_crps, kl_divergence


def pairwise(members: Tensor, truth: Tensor, alpha: float) -> Tensor:
    """The definition (Lang et al. 2024, eq. 3-4), every pair spelled out; torch differentiates it with sign(0) = 0."""
    m = len(members)
    skill = (members - truth).abs().mean(0)
    if m == 1:
        return skill
    pairs = (members[:, None] - members[None, :]).abs().sum((0, 1))
    return skill - (1 - (1 - alpha) / m) / (2 * m * (m - 1)) * pairs


def draw(members: int, points: int = 200, *, tied: bool = False, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(members, points)), rng.normal(size=points)
    if tied:  # members that tie with each other and with the truth
        x, y = np.round(x), np.round(y)
    return torch.from_numpy(x), torch.from_numpy(y)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("members", [1, 2, 3, 8, 50, 127])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.95, 1.0])
def test_value_is_the_definition(members: int, alpha: float, tied: bool) -> None:
    x, y = draw(members, tied=tied)
    torch.testing.assert_close(almost_fair_crps(x, y, alpha).double(), pairwise(x, y, alpha), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("members", [2, 5, 50])
def test_alpha_0_is_properscoring_and_alpha_1_is_less_by_half_the_mean_difference_over_m(members: int, tied: bool) -> None:
    x, y = draw(members, tied=tied)
    ecdf = properscoring.crps_ensemble(y.numpy(), x.numpy(), axis=0)
    difference = (x[:, None] - x[None, :]).abs().sum((0, 1)) / (members * (members - 1))
    np.testing.assert_allclose(almost_fair_crps(x, y, 0.0), ecdf, rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(almost_fair_crps(x, y, 1.0), ecdf - difference.numpy() / (2 * members), rtol=1e-4, atol=2e-6)


def test_one_member_is_the_absolute_error_with_the_sign_as_gradient() -> None:
    x, y = draw(1, tied=True)
    x = x.requires_grad_()
    loss = almost_fair_crps(x, y, 0.95)
    torch.testing.assert_close(loss.double(), (x - y)[0].abs())
    loss.sum().backward()
    torch.testing.assert_close(x.grad, (x - y).detach().sign())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("members", [2, 3, 8, 127])
@pytest.mark.parametrize("alpha", [0.0, 0.95, 1.0])
def test_gradient_is_that_of_the_pairwise_form_ties_included(members: int, alpha: float, tied: bool) -> None:
    x, y = draw(members, points=40, tied=tied)
    scale = torch.linspace(-1, 2, 40)
    ours, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    (almost_fair_crps(ours, y, alpha) * scale).sum().backward()
    (pairwise(plain, y, alpha) * scale).sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-5, atol=1e-7)


@settings(max_examples=40)
@given(st.lists(st.integers(-3, 3), min_size=2, max_size=9), st.integers(-3, 3), st.sampled_from([0.0, 0.3, 0.95, 1.0]))
def test_gradients_sum_to_members_above_minus_members_below_the_truth(values: list[int], truth: int, alpha: float) -> None:
    x = torch.tensor(values, dtype=torch.float64).requires_grad_()
    almost_fair_crps(x, torch.tensor(float(truth)), alpha).backward()
    balance = sum(value > truth for value in values) - sum(value < truth for value in values)
    assert float(x.grad.sum()) == pytest.approx(balance / len(values), abs=1e-6)


def test_members_that_tie_are_pushed_alike() -> None:
    x = torch.tensor([[1.0], [1.0], [1.0], [-2.0]], requires_grad=True)
    almost_fair_crps(x, torch.tensor([0.3]), 0.95).sum().backward()
    assert x.grad[0] == x.grad[1] == x.grad[2]


def test_the_outlier_that_fair_crps_cannot_see_costs_something_under_almost_fair() -> None:
    x = torch.zeros(4, 1)
    x[3] = 7.0
    assert float(almost_fair_crps(x, torch.zeros(1), 1.0)) == pytest.approx(0, abs=1e-6)
    assert float(almost_fair_crps(x, torch.zeros(1), 0.95)) == pytest.approx(0.003125 * 7, rel=1e-4)


def test_a_pair_that_straddles_the_truth_is_pulled_in_only_below_alpha_1() -> None:
    for alpha, pull in ((1.0, 0.0), (0.95, 0.0125)):
        x = torch.tensor([[-1.0], [2.0]], requires_grad=True)
        almost_fair_crps(x, torch.zeros(1), alpha).backward()
        torch.testing.assert_close(x.grad, torch.tensor([[-pull], [pull]]))


def test_low_precision_gets_a_float32_loss_and_a_gradient_of_its_own_dtype() -> None:
    x, y = draw(2)
    low = x.to(torch.bfloat16).requires_grad_()
    loss = almost_fair_crps(low, y.float())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), pairwise(low.detach().double(), y, 0.95), rtol=1e-4, atol=1e-6)
    loss.sum().backward()
    assert low.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(("members", "bytes_each"), [(16, 1), (32, 1), (33, 2), (50, 2)])
def test_what_is_kept_for_backward_is_one_byte_a_member_and_point_up_to_32_members_and_two_above(
    members: int, bytes_each: int
) -> None:
    x, y = draw(members, points=1000)
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.element_size() * tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        almost_fair_crps(x.float().requires_grad_(), y.float())
    assert sum(kept) == bytes_each * members * 1000


def test_more_members_than_the_ranks_can_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="8192 members; at least 1 and at most 8191"):
        almost_fair_crps(torch.zeros(8192, 1), torch.zeros(1))


@pytest.mark.parametrize(
    ("members", "alpha", "spread"),
    [(2, 0.0, 0.378), (2, 0.95, 0.952), (2, 1.0, 1.0), (4, 0.0, 0.626), (4, 0.95, 0.975), (8, 0.0, 0.788), (8, 1.0, 1.0)],
)
def test_the_spread_it_teaches_in_a_gaussian_world(members: int, alpha: float, spread: float) -> None:
    """s^2 = q^2 / (2 - q^2), q = 1 - (1 - alpha) / M: standard CRPS with few members teaches under-dispersion, ours hardly."""
    q = 1 - (1 - alpha) / members
    assert math.sqrt(q**2 / (2 - q**2)) == pytest.approx(spread, abs=6e-4)
    rng = np.random.default_rng(5)
    z = torch.from_numpy(rng.normal(size=(members, 100_000)).astype("float32"))
    y = torch.from_numpy(rng.normal(size=100_000).astype("float32"))

    def slope(s: float) -> float:
        scale = torch.tensor(s, requires_grad=True)
        almost_fair_crps(scale * z, y, alpha).mean().backward()
        return float(scale.grad)

    low, high = 0.1, 1.5
    for _ in range(9):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    assert (low + high) / 2 == pytest.approx(spread, abs=0.012)


def test_kl_divergence_is_that_of_torch_and_zero_for_equal_gaussians() -> None:
    rng = torch.Generator().manual_seed(0)
    mean_q, log_var_q, mean_p, log_var_p = (2 * torch.randn(500, generator=rng, dtype=torch.float64) for _ in range(4))
    q, p = (torch.distributions.Normal(mean, (log_var / 2).exp()) for mean, log_var in ((mean_q, log_var_q), (mean_p, log_var_p)))
    ours = kl_divergence(mean_q, log_var_q, mean_p, log_var_p)
    torch.testing.assert_close(ours, torch.distributions.kl_divergence(q, p))
    assert bool((ours >= 0).all())
    assert not kl_divergence(mean_q, log_var_q, mean_q, log_var_q).any()


def test_kl_divergence_of_nearly_equal_gaussians_keeps_its_digits_in_float32() -> None:
    """Half the square of a shift, a quarter of the square of a change of the log-variance: 1 + x - e^x would lose them."""
    zero, small = torch.zeros(1), torch.full((1,), 1e-3)
    assert float(kl_divergence(small, zero, zero, zero)) == pytest.approx(5e-7, rel=1e-5)
    assert float(kl_divergence(zero, small, zero, zero)) == pytest.approx(2.5e-7, rel=1e-3)
    assert kl_divergence(*[small.bfloat16()] * 4).dtype == torch.float32
