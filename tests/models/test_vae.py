"""The VAE family: a learned latent, prior members only in a forecast, smooth perturbations of the initial state."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from torch.distributions import Normal, kl_divergence

from data_pipeline.errors import InputError
from forecast.rollout import sample as forecast
from models.checkpoint import build
from models.contract import Sample, Spec, Stage
from models.recipe import model_section
from models.vae import Gaussian, VaeOptions
from tests.models import gaussian_world
from tests.models.vae_toys import FULL, RAIN, evenly, noise_for, scrambled, three_dates, untrained, vae_spec
from tests.toys import GLOBE, REGION, samples_of, weather


@pytest.fixture(scope="module")
def spec() -> Spec:
    return vae_spec()


@pytest.fixture(scope="module")
def sample(spec: Spec) -> Sample:
    return three_dates(spec)


# --- the latent


@torch.no_grad()
def test_untrained_prior_and_posterior_are_standard_normal_and_tell_each_other_nothing(spec: Spec, sample: Sample) -> None:
    generator = untrained(spec)
    prior, posterior = generator._encode(sample)
    for each in (prior, posterior):
        assert not each.mean.any()
        assert not each.log_variance.any()
    assert generator.loss(sample, noise_for(generator, 2, 3, 3), FULL).parts["kl"] == 0


@torch.no_grad()
def test_the_latent_is_a_vector_and_fields_at_the_resolution_of_the_networks_local_noise(spec: Spec) -> None:
    generator = untrained(spec)
    assert generator.net.local_shape == (2, 4, 8)
    assert generator.noise_shapes() == {"initial": (68,), "step": (68,), "loss": (136,)}


@torch.no_grad()
def test_the_kl_divergence_is_that_of_torch_distributions_in_nats_summed_over_the_latent(spec: Spec, sample: Sample) -> None:
    generator = scrambled(spec)
    prior, posterior = generator._encode(sample)
    q, p = (Normal(each.mean.double(), (each.log_variance.double() / 2).exp()) for each in (posterior, prior))
    expected = kl_divergence(q, p).sum(1).mean()
    assert expected > 1
    loss = generator.loss(sample, noise_for(generator, 2, 3, 3), FULL)
    assert loss.parts["kl"] == pytest.approx(float(expected), rel=1e-4)


@torch.no_grad()
def test_the_posterior_is_an_offset_to_the_prior_in_units_of_its_std(spec: Spec, sample: Sample) -> None:
    """So the divergence of a given offset is the same wherever the prior lies and however wide it is."""
    generator = scrambled(spec, size=0.1)
    forcing, target = sample.forcings[:, 0], sample.targets[:, 0]
    n = (3, generator.latent_size)
    moved = Gaussian(torch.full(n, 2.0), torch.full(n, -1.0))
    plain = Gaussian(torch.zeros(n), torch.zeros(n))
    found = [generator._kl_by_channel(p, generator.posterior(p, sample.frames, target, forcing))[0] for p in (plain, moved)]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_log_variances_are_held_between_minus_8_and_4(spec: Spec, sample: Sample) -> None:
    generator = scrambled(spec)
    for encoder, bias in ((generator.prior_net, 50.0), (generator.posterior_net, -100.0)):
        encoder.to_fields.conv.bias[2:] = bias
    prior, posterior = generator._encode(sample)
    assert (prior.log_variance[:, 4:] == 4).all()
    assert (posterior.log_variance[:, 4:] == -8).all()


@torch.no_grad()
def test_the_posterior_sees_the_answer_and_the_prior_does_not(spec: Spec, sample: Sample) -> None:
    generator = scrambled(spec)
    other = sample._replace(
        targets=sample.targets + 0.1 * torch.randn(sample.targets.shape, generator=torch.Generator().manual_seed(1))
    )
    (prior, posterior), (prior_other, posterior_other) = generator._encode(sample), generator._encode(other)
    assert torch.equal(prior.mean, prior_other.mean)
    assert not torch.equal(posterior.mean, posterior_other.mean)


# --- the forecast


@torch.no_grad()
def test_untrained_it_is_persistence_from_the_analysis_itself(spec: Spec, sample: Sample) -> None:
    generator, noise = untrained(spec), noise_for(untrained(spec), 3)
    state = generator.initial(sample.frames, sample.forcings[:, 0], noise)
    assert torch.equal(state.frames, sample.frames)
    expected = sample.frames[:, -1].clone()
    expected[:, spec.channels.index(RAIN)] = 0
    assert torch.equal(generator.fields(generator.step(state, sample.forcings[:, 0], noise)), expected)


@torch.no_grad()
def test_a_forecast_draws_from_the_prior_alone(spec: Spec, sample: Sample) -> None:
    """Whatever the posterior holds, the same forecast; and a step is the decoder under the prior's draw."""
    generator, noise = scrambled(spec), noise_for(scrambled(spec), 3)
    state = generator.initial(sample.frames, sample.forcings[:, 0], noise)
    found = generator.step(state, sample.forcings[:, 0], noise)
    for value in generator.posterior_net.parameters():
        value.fill_(torch.nan)
    again = generator.initial(sample.frames, sample.forcings[:, 0], noise)
    assert torch.equal(generator.step(again, sample.forcings[:, 0], noise).frames, found.frames)
    latent = generator.prior(state.frames, sample.forcings[:, 0]).draw(noise[:, : generator.latent_size])
    assert torch.equal(generator.decode(state, sample.forcings[:, 0], latent).frames, found.frames)


def test_member_k_is_the_same_whatever_the_number_of_members(spec: Spec) -> None:
    generator, data = scrambled(spec, size=0.05), weather()
    init = data["time"].values[10:11]
    few, many = (forecast(generator, data, init, days=2, members=m, seed=3) for m in (2, 5))
    xr.testing.assert_identical(few.drop_attrs(), many.isel(number=[0, 1]).drop_attrs())
    assert float(many["2m_temperature"].isel(prediction_timedelta=0).std("number").mean()) > 0


@torch.no_grad()
def test_states_and_latents_stay_in_float32_when_the_networks_compute_in_bfloat16(spec: Spec, sample: Sample) -> None:
    exact, generator = scrambled(spec, size=0.05), scrambled(spec, size=0.05).to(torch.bfloat16)
    generator.compute_dtype = torch.bfloat16
    noise, forcing = noise_for(exact, 3), sample.forcings[:, 0]
    low, high = (each.step(each.initial(sample.frames, forcing, noise), forcing, noise).frames for each in (generator, exact))
    assert low.dtype == torch.float32
    assert generator.prior(sample.frames, forcing).mean.dtype == torch.float32
    assert float((low - high).std()) < 0.02 * float((high - sample.frames).std())
    losses = [float(each.loss(sample, noise_for(exact, 2, 3, 3), FULL).total) for each in (generator, exact)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.parametrize("grid", [GLOBE, REGION], ids=["globe", "region"])
@pytest.mark.parametrize(
    "options", [{}, {"patch": 2, "widths": (8, 16)}, {"widths": (8,)}], ids=["cells of 2", "patch", "points"]
)
def test_any_grid_and_any_resolution_of_the_latent(grid: object, options: dict[str, object]) -> None:
    """Also a region of 10 x 11 points, which no cell divides, and latents at every point."""
    spec = vae_spec(weather(grid, steps=12), **options)  # type: ignore[arg-type]
    generator, found = scrambled(spec, size=0.05), samples_of(weather(grid, steps=12), spec).batch(np.array([3]), 1)  # type: ignore[arg-type]
    sample = Sample(*(torch.from_numpy(array) for array in (found.frames, found.targets, found.forcings)))
    loss = generator.loss(sample, noise_for(generator, 2, 1, 2), FULL)
    assert math.isfinite(float(loss.total.detach()))
    assert loss.parts["kl"] > 0


# --- the perturbed initial state


@torch.no_grad()
def test_the_perturbation_is_centred_on_the_analysis_keeps_its_tendency_and_leaves_diagnostics_alone(
    spec: Spec, sample: Sample
) -> None:
    generator, noise = scrambled(spec), noise_for(scrambled(spec), 3)
    start, mirrored = (generator.initial(sample.frames, sample.forcings[:, 0], sign * noise).frames for sign in (1, -1))
    torch.testing.assert_close((start + mirrored) / 2, sample.frames, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(start[:, 1] - start[:, 0], sample.frames[:, 1] - sample.frames[:, 0], atol=1e-5, rtol=1e-4)
    rain = spec.channels.index(RAIN)
    assert torch.equal(start[:, :, rain], sample.frames[:, :, rain])
    others = [i for i in range(len(spec.channels)) if i != rain]
    assert (start != sample.frames)[:, :, others].any((-1, -2)).all()


@torch.no_grad()
def test_the_forcing_at_lead_0_is_not_looked_at(spec: Spec, sample: Sample) -> None:
    """There is no step yet whose forcing it could be: engines pass zeros, validation the first step's."""
    generator, noise = scrambled(spec), noise_for(scrambled(spec), 3)
    one, other = (
        generator.initial(sample.frames, forcing, noise) for forcing in (sample.forcings[:, 0], sample.forcings[:, 1] + 1)
    )
    assert torch.equal(one.frames, other.frames)


@torch.no_grad()
def test_the_perturbation_is_smooth_around_the_globe_and_across_the_poles(spec: Spec, sample: Sample) -> None:
    """Beyond the Nyquist wavenumber of the coarse cells is little of it, and no seam at 0 E or at the poles."""
    generator = scrambled(spec)
    for head in (generator.prior_net.to_fields.conv.weight, generator.prior_net.to_fields.conv.bias):
        head.zero_()  # a prior of the same width everywhere
    frames = sample.frames[:1].expand(200, -1, -1, -1, -1)
    start = generator.initial(frames, torch.zeros(200, 6, 8, 16), noise_for(generator, 200)).frames[:, -1] - frames[:, -1]
    temperature = start[:, spec.channels.index("2m_temperature")].double()
    power = (torch.fft.rfft(temperature, dim=-1).abs() ** 2).mean((0, 1))
    assert float(power[5:].sum() / power[1:].sum()) < 0.1  # white noise would have half of it there
    jumps = (temperature.roll(-1, -1) - temperature).square().mean((0, 1)).view(8, 2)
    assert float(jumps[:, 1].max() / jumps[:, 1].min()) < 2  # between cells, that across 0 E among them
    wind = start[:, spec.channels.index("10m_v_component_of_wind")].double()
    for field, sign in ((temperature, 1), (wind, -1)):
        across = (field[:, -1] * sign * field[:, -1].roll(8, -1)).mean() / field[:, -1].square().mean()
        along = (field[:, -1] * field[:, -2]).mean() / (field[:, -1].square().mean() * field[:, -2].square().mean()).sqrt()
        assert across > 0.4
        assert along > 0.4


@torch.no_grad()
def test_the_perturbation_keeps_the_global_means_that_steps_keep(sample: Sample) -> None:
    spec = vae_spec(conserve=["geopotential_500"])
    generator, noise = scrambled(spec), noise_for(scrambled(spec), 3)
    change = generator.initial(sample.frames, sample.forcings[:, 0], noise).frames - sample.frames
    means = (change * generator.increments.area).mean((-2, -1))
    assert float(means[:, :, spec.channels.index("geopotential_500")].abs().max()) < 1e-6
    assert float(means[:, :, spec.channels.index("2m_temperature")].abs().max()) > 1e-4


@torch.no_grad()
def test_the_perturbation_is_the_same_whichever_interval_is_stepped_then(spec: Spec, sample: Sample) -> None:
    stds = (spec.tendency_std, tuple(1.4 * std for std in spec.tendency_std))
    several = replace(spec, intervals=(12, 24), tendency_stds=stds)
    generators = [scrambled(each) for each in (several, replace(several, step_hours=24, tendency_std=stds[1]))]
    noise = noise_for(generators[0], 3)
    one, other = (each.initial(sample.frames, sample.forcings[:, 0], noise).frames for each in generators)
    assert torch.equal(one, other)


@torch.no_grad()
def test_it_can_be_left_out(sample: Sample) -> None:
    generator = scrambled(vae_spec(perturb_initial=False))
    assert torch.equal(generator.initial(sample.frames, sample.forcings[:, 0], noise_for(generator, 3)).frames, sample.frames)
    assert not [name for name, _ in generator.named_parameters() if name.startswith("perturbation")]


@torch.no_grad()
def test_the_crps_of_the_first_step_is_least_where_its_size_fits() -> None:
    """Under a network that persists without spread: none is too little, four tendency stds are too much."""
    data = gaussian_world.world(200, seed=1)
    generator, sample = untrained(vae_spec(data, local_noise=4)), evenly(data, 24)
    weight = 0.24 * torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    noise, found = noise_for(generator, 8, 24, 2), []
    for size in (0.0, 1.0, 4.0):
        generator.perturbation.to_local.weight.copy_(size * weight)
        found.append(float(generator.loss(sample, noise, Stage(members=8)).total))
    assert found[1] < 0.85 * found[0]
    assert found[1] < 0.75 * found[2]


def test_options_of_the_family_are_checked_and_kept(spec: Spec) -> None:
    filled = VaeOptions().filled()
    assert {"noise", "local_noise", "free_bits", "perturb_initial", "encoder_width", "widths"} <= filled.keys()
    with pytest.raises(InputError, match="model.options.encoder_width"):
        model_section({"model": {"family": "vae", "options": {"encoder_width": 20}}})
    with pytest.raises(InputError, match="model.options.local_noise"):
        model_section({"model": {"family": "vae", "options": {"local_noise": 0}}})


def test_the_decoder_takes_the_tensors_of_a_crps_network_of_the_same_options(spec: Spec) -> None:
    crps, vae = (
        build(replace(spec, family="crps", options={k: v for k, v in spec.options.items() if "encoder" not in k})),
        untrained(spec),
    )
    theirs, ours = crps.state_dict(), vae.state_dict()
    assert {name: value.shape for name, value in theirs.items()} == {
        name: value.shape for name, value in ours.items() if name.startswith("net.")
    }
