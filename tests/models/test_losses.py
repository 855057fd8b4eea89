"""The losses: closed forms, a peer, gradients by brute force, the spread that is taught, bands, spectra, several processes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import properscoring
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.contract import Stage
from models.losses import _compiled, _compiled_slope, _plain, _plain_slope, almost_fair_crps, ensemble_loss, kl_divergence
from tests.children import ROOT


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
@pytest.mark.parametrize("members", [1, 2, 3, 50, 127])
@pytest.mark.parametrize("alpha", [0.0, 0.95, 1.0])
def test_value_is_the_definition(members: int, alpha: float, tied: bool) -> None:
    x, y = draw(members, tied=tied)
    torch.testing.assert_close(almost_fair_crps(x, y, alpha).double(), pairwise(x, y, alpha), rtol=1e-9, atol=1e-12)


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


@pytest.mark.parametrize("alpha", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("members", [1, 2, 5, 33])
def test_gradcheck_passes_in_float64(members: int, alpha: float) -> None:
    x, y = draw(members, points=6)
    assert almost_fair_crps(x, y, alpha).dtype == torch.float64
    torch.autograd.gradcheck(lambda each: almost_fair_crps(each, y, alpha), x.requires_grad_())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("members", [1, 2, 7, 17, 40])
def test_compiled_kernels_and_tensor_operations_are_equal(members: int, tied: bool) -> None:
    x, y = (each.float() for each in draw(members, points=777, tied=tied))
    (one, codes), (other, same) = _compiled(x, y, 0.3), _plain(x, y, 0.3)
    assert torch.equal(codes, same)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * members)
    torch.testing.assert_close(_compiled_slope(codes, y, 0.3), _plain_slope(codes, y, 0.3))


def test_threads_change_nothing() -> None:
    x, y = (each.float() for each in draw(9, points=300_001))
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(_compiled(x, y, 0.1))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_members_may_lie_anyhow_in_memory() -> None:
    """A slice of frames, as the families hand them over, and an expanded truth."""
    frames, truth = torch.randn(4, 2, 3, 5, generator=torch.Generator().manual_seed(1)), torch.randn(1, 5)
    one, other = frames[:, 1].requires_grad_(), frames[:, 1].clone().requires_grad_()
    for each, y in ((one, truth), (other, truth.repeat(3, 1))):
        almost_fair_crps(each, y).sum().backward()
    assert torch.equal(one.grad, other.grad)


def test_a_missing_value_shows_in_the_loss_of_its_point_alone() -> None:
    x, y = draw(5, points=4)
    x[2, 1], y[3] = math.nan, math.nan
    for found in (almost_fair_crps(x, y), _plain(x, y, 0.1)[0]):
        assert found.isnan().tolist() == [False, True, False, True]


def fields(rows: int = 6, columns: int = 8, *, members: int = 3, batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    members_, truth = (torch.randn(*n, batch, 2, rows, columns, generator=rng) for n in ((members,), ()))
    return members_, truth, 0.5 + torch.rand(2, rows, columns, generator=rng)


def test_without_further_terms_it_is_the_weighted_mean_of_the_pointwise_score() -> None:
    x, y, weight = fields()
    expected = (pairwise(x, y, 0.95) * weight).mean()
    torch.testing.assert_close(ensemble_loss(x, y, weight, Stage()), expected)
    torch.testing.assert_close(ensemble_loss(x, y, weight.expand(2, -1, -1, -1), Stage()), expected)


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (8, 16)])
def test_bands_are_the_scores_of_block_means_and_of_what_they_leave(size: tuple[int, int]) -> None:
    """By loops: weighted means of blocks of 2 x 2 and 4 x 4 points, cut off at the edges, each as heavy as its points."""
    x, y, weight = fields(*size)

    def means(field: Tensor, side: int) -> Tensor:
        out = torch.empty_like(field)
        for r in range(0, size[0], side):
            for c in range(0, size[1], side):
                block = (..., slice(r, r + side), slice(c, c + side))
                out[block] = ((field * weight)[block].sum((-2, -1)) / weight[block].sum((-2, -1)))[..., None, None]
        return out

    parts = [(field - means(field, 2), means(field, 2) - means(field, 4), means(field, 4)) for field in (x, y)]
    banded = sum((pairwise(a, b, 0.95) * weight).mean() for a, b in zip(*parts, strict=True)) / 3
    both = ensemble_loss(x, y, weight, Stage(bands=0.7)) - ensemble_loss(x, y, weight, Stage())
    torch.testing.assert_close(both, 0.7 * banded, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("columns", [8, 7])
def test_the_spectral_term_is_the_score_of_magnitudes_of_all_coefficients_of_a_row(columns: int) -> None:
    x, y, weight = fields(columns=columns)
    one, other = (torch.fft.fft(field.double(), norm="ortho").abs() for field in (x, y))
    expected = (pairwise(one, other, 0.95) * weight.mean(-1, keepdim=True)).mean()
    both = ensemble_loss(x, y, weight, Stage(spectral=0.3)) - ensemble_loss(x, y, weight, Stage())
    torch.testing.assert_close(both.double(), 0.3 * expected, rtol=1e-4, atol=1e-6)


def test_the_spectral_term_is_the_same_wherever_the_pattern_lies() -> None:
    x, y, _ = fields()
    weight = torch.ones(2, 6, 8)
    only = [ensemble_loss(m, y, weight, Stage(spectral=1.0)) - ensemble_loss(m, y, weight, Stage()) for m in (x, x.roll(3, -1))]
    torch.testing.assert_close(*only, rtol=1e-4, atol=1e-6)


def test_terms_are_no_larger_than_a_few_pointwise_ones_and_none_of_weight_0_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, weight = fields(32, 64, members=2)
    base = ensemble_loss(x, y, weight, Stage())
    for stage in (Stage(bands=1.0), Stage(spectral=1.0)):
        assert 0.3 < (ensemble_loss(x, y, weight, stage) - base) / base < 1.2
    monkeypatch.setattr(torch.fft, "rfft", None)
    monkeypatch.setattr("models.losses._bands", None)
    assert ensemble_loss(x, y, weight, Stage()) == base


def test_bands_and_spectra_tell_white_noise_from_weather_where_the_pointwise_score_cannot() -> None:
    """Smooth members against smooth truth, or white noise of the same size at each point: alike for the point-wise fair CRPS."""
    rng = np.random.default_rng(3)

    def smooth(count: int) -> Tensor:
        white = np.fft.rfft2(rng.normal(size=(count, 1, 32, 64)))
        rows, columns = np.abs(np.fft.fftfreq(32, 1 / 32))[:, None], np.arange(33)
        found = np.fft.irfft2(white * np.exp(-((rows**2 + columns**2) / 8)), s=(32, 64))
        return torch.from_numpy((found / found.std((0, 2, 3), keepdims=True)).astype("float32"))

    truth, weather = smooth(60), smooth(240).view(4, 60, 1, 32, 64)
    white = torch.from_numpy(rng.normal(size=(4, 60, 1, 32, 64)).astype("float32"))
    weight = torch.ones(1, 32, 64)
    plain, banded, spectral = (
        np.array([float(ensemble_loss(members, truth, weight, stage)) for members in (weather, white)])
        for stage in (Stage(alpha=1.0), Stage(alpha=1.0, bands=1.0), Stage(alpha=1.0, spectral=1.0))
    )
    assert plain[1] == pytest.approx(plain[0], rel=0.02)
    for terms, times in ((banded - plain, 1.2), (spectral - plain, 5)):
        assert terms[1] > times * terms[0]


PROCESS = """
import os, sys
import torch
import torch.distributed as dist
from models.contract import Stage
from models.losses import ensemble_loss
torch.set_num_threads(1)
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/meeting", rank=rank, world_size=2)
data = torch.load(f"{sys.argv[2]}/data.pt")
mine = data["members"][2 * rank : 2 * rank + 2].requires_grad_()
stage = Stage(members=4, alpha=0.95, bands=0.2, spectral=0.1)
loss = ensemble_loss(mine, data["truth"], data["weight"], stage, dist.group.WORLD)
loss.backward()
torch.save((loss.detach(), mine.grad), f"{sys.argv[2]}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.campaign
def test_members_over_two_processes_have_the_loss_and_the_gradient_of_one_process(tmp_path: Path) -> None:
    """Gradients are averaged over processes afterwards, so each holds twice its own part: no pair loses half of its slope."""
    members, truth, weight = fields(members=4)
    torch.save({"members": members, "truth": truth, "weight": weight}, tmp_path / "data.pt")
    children = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(rank), str(tmp_path)], cwd=ROOT, env=os.environ) for rank in (0, 1)
    ]
    try:
        assert [child.wait(timeout=300) for child in children] == [0, 0]
    finally:
        for child in children:
            child.kill()
            child.wait()
    every = members.clone().requires_grad_()
    loss = ensemble_loss(every, truth, weight, Stage(members=4, alpha=0.95, bands=0.2, spectral=0.1))
    loss.backward()
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert all(torch.equal(one, loss.detach()) for one, _ in found)
    torch.testing.assert_close(torch.cat([grad for _, grad in found]) / 2, every.grad, rtol=1e-6, atol=1e-9)


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
