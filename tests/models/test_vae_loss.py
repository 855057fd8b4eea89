"""The loss of the VAE family, term by term, and the diagnostics that tell a living latent from a dead one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.contract import Sample, Spec, Stage
from models.losses import ensemble_loss
from tests.models.vae_toys import FULL, diagnose, noise_for, scrambled, three_dates, untrained, vae_spec
from tests.toys import weather


@pytest.fixture(scope="module")
def spec() -> Spec:
    return vae_spec()


@pytest.fixture(scope="module")
def sample(spec: Spec) -> Sample:
    return three_dates(spec)


# --- the loss


def test_the_loss_is_prior_crps_and_weighted_posterior_crps_and_kl_a_point_and_field(spec: Spec, sample: Sample) -> None:
    generator = scrambled(vae_spec(free_bits=0.0), size=0.1)
    noise = noise_for(generator, 2, 3, 3)
    stage = Stage(members=2, rollout=2, posterior=0.5, kl=2.0, progress=0.7)
    loss = generator.loss(sample, noise, stage)
    n, weight = generator.latent_size, generator.increments.loss_weight()
    with torch.no_grad():
        prior, by_step = [], []
        state = [generator.initial(sample.frames, sample.forcings[:, 0], noise[j, :, 0]) for j in range(2)]
        for k in range(2):
            state = [generator.step(state[j], sample.forcings[:, k], noise[j, :, k + 1]) for j in range(2)]
            prior = torch.stack([generator.fields(each) for each in state])
            by_step.append(float(ensemble_loss(prior, sample.targets[:, k], weight, stage)))
        q = generator._encode(sample)[1]
        unperturbed = type(state[0])(sample.frames)
        seen = [generator.decode(unperturbed, sample.forcings[:, 0], q.draw(noise[j, :, 1, n : 2 * n])) for j in range(2)]
        posterior = float(ensemble_loss(torch.stack([generator.fields(x) for x in seen]), sample.targets[:, 0], weight, stage))
    assert [loss.parts["step_1"], loss.parts["step_2"], loss.parts["posterior"]] == pytest.approx([*by_step, posterior], rel=1e-4)
    expected = np.mean(by_step) + 0.5 * posterior + 2.0 * loss.parts["kl"] / (4 * 8 * 16)
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-4)


def test_the_weight_of_the_kl_divergence_rises_over_the_first_quarter_of_a_stage(sample: Sample) -> None:
    generator = scrambled(vae_spec(free_bits=0.0), size=0.1)
    noise = noise_for(generator, 2, 3, 2)

    def total(progress: float) -> float:
        return float(generator.loss(sample, noise, replace(FULL, kl=100.0, progress=progress)).total.detach())

    rise = [total(progress) - total(0.0) for progress in (0.125, 0.25, 1.0)]
    assert rise[0] == pytest.approx(rise[1] / 2, rel=1e-3)
    assert rise[1] == pytest.approx(rise[2], rel=1e-3)
    assert rise[2] > 0


def test_free_bits_leave_a_channel_of_little_divergence_alone(sample: Sample) -> None:
    """The divergence then has no gradient, and counts as much as the free nats of every latent number."""
    generator = scrambled(vae_spec(free_bits=50.0), size=0.05)
    noise = noise_for(generator, 2, 3, 2)
    with_kl, without = (generator.loss(sample, noise, replace(FULL, kl=kl)).total for kl in (1.0, 0.0))
    assert float((with_kl - without).detach()) == pytest.approx(50.0 * generator.latent_size / (4 * 8 * 16), rel=1e-4)
    names = [name for name, _ in generator.named_parameters()]
    for name, one, other in zip(
        names,
        *(torch.autograd.grad(each, list(generator.parameters()), retain_graph=True) for each in (with_kl, without)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, msg=name)


def test_every_weight_gets_a_gradient(spec: Spec, sample: Sample) -> None:
    generator = scrambled(spec)
    generator.loss(sample, noise_for(generator, 2, 3, 3), replace(FULL, rollout=2)).total.backward()
    assert [name for name, value in generator.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_recomputed_activations_give_the_same_gradients(spec: Spec, sample: Sample) -> None:
    generator = scrambled(spec)
    noise, stage = noise_for(generator, 2, 3, 3), replace(FULL, rollout=2)
    grads = [
        torch.autograd.grad(generator.loss(sample, noise, replace(stage, recompute=each)).total, list(generator.parameters()))
        for each in (False, True)
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_a_stage_without_noise_is_deterministic_and_has_no_posterior(spec: Spec, sample: Sample) -> None:
    generator = scrambled(spec)
    silent = replace(FULL, members=1, noise=False)
    found = [generator.loss(sample, noise_for(generator, 1, 3, 2, seed=seed), silent) for seed in (0, 1)]
    assert float(found[0].total.detach()) == float(found[1].total.detach())
    assert "posterior" not in found[0].parts


def test_lead_intervals_reach_prior_posterior_and_decoder(spec: Spec, sample: Sample) -> None:
    stds = (spec.tendency_std, tuple(1.4 * std for std in spec.tendency_std))
    generator = scrambled(replace(spec, intervals=(12, 24), tendency_stds=stds), size=0.1)
    noise = noise_for(generator, 2, 3, 2)
    found = [generator.loss(sample._replace(hours=torch.full((3,), hours)), noise, FULL).parts for hours in (12, 24)]
    plain = generator.loss(sample, noise, FULL).parts
    assert found[0] == pytest.approx(plain)
    assert found[1]["kl"] != pytest.approx(plain["kl"])
    assert found[1]["step_1"] != pytest.approx(plain["step_1"])


# --- does the latent live


def test_an_untrained_latent_is_reported_as_dead(spec: Spec) -> None:
    found = diagnose(untrained(spec), weather(), 6)
    assert [
        found[name] for name in ("kl_mean", "kl_max", "active_units", "sensitivity", "initial_spread", "crps_gap", "ssr")
    ] == [0] * 7
    assert found["crps_prior"] > 0


def test_what_the_prior_knows_already_is_no_activity(spec: Spec) -> None:
    """A prior whose mean follows the weather, and a posterior that adds nothing."""
    generator = scrambled(spec)
    with torch.no_grad():
        for head in (generator.posterior_net.to_fields.conv, generator.posterior_net.to_vector):
            head.weight.zero_()
            head.bias.zero_()
    found = diagnose(generator, weather(), 6)
    assert found["active_units"] == found["kl_max"] == 0
    assert found["sensitivity"] > 0
