"""The latent diffusion family: stages, statistics of latents, conditioning, sampling, and a world whose forecasts are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data_pipeline.errors import InputError
from models.checkpoint import build
from models.contract import Sample, Spec, Stage, flat_noise_size
from models.latent_diffusion import LatentDiffusionGenerator, LatentDiffusionOptions
from tests.models.gaussian_world import compare, fields_of, fit, world
from tests.toys import GLOBE, samples_of, spec_of, weather

RAIN = "total_precipitation_12hr"
SIZES: dict[str, Any] = {
    "ae_widths": (8, 8), "ae_blocks": (0, 1), "latents": 12, "bands": 2, "width": 32, "dual": 1, "single": 1, "conditioning": 16,
    "levels": 4,
}  # fmt: skip
JOINT, DECODER, FORECAST = Stage(target="autoencoder", noise=False), Stage(target="autoencoder"), Stage(members=1)
DATA = weather(steps=60)


def spec_with(**options: Any) -> Spec:
    return replace(spec_of(DATA, diagnostic=(RAIN,)), family="latent_diffusion", options={**SIZES, **options})


def analyses(spec: Spec) -> Tensor:
    samples = samples_of(DATA, spec)
    return torch.from_numpy(samples.batch(samples.starts(1), 1).targets[:, 0])


def generator_of(seed: int = 0, size: float = 0.1, **options: Any) -> LatentDiffusionGenerator:
    """A generator that began all its stages; its weights are random, for an untrained denoiser answers 0."""
    torch.manual_seed(seed)
    generator = build(spec_with(**options)).eval()
    assert isinstance(generator, LatentDiffusionGenerator)
    fields = analyses(generator.spec)
    generator.begin(JOINT, iter(fields.split(16)))
    with torch.no_grad():
        for value in generator.parameters():
            value.add_(size * torch.randn_like(value))
    generator.begin(FORECAST, iter(fields.split(16)))
    return generator


def sample_of(spec: Spec, size: int = 3) -> Sample:
    found = samples_of(DATA, spec).batch(np.arange(5, 5 + size), 1)
    return Sample(*(torch.from_numpy(array) for array in (found.frames, found.targets, found.forcings)))


def noise_for(generator: LatentDiffusionGenerator, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, flat_noise_size(generator.noise_shapes()), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def generator() -> LatentDiffusionGenerator:
    return generator_of()


@torch.no_grad()
def test_latents_and_their_changes_have_unit_variance_over_the_training_analyses(generator: LatentDiffusionGenerator) -> None:
    """Means over the globe by area, channel by channel: then sigma_data is 1."""
    latents = generator.initial(analyses(generator.spec)[:, None], torch.empty(0), torch.empty(0)).latents[:, 0]
    area = generator.autoencoder.area
    torch.testing.assert_close((latents * area).mean((0, 2, 3)), torch.zeros(12), rtol=0, atol=1e-4)
    torch.testing.assert_close((latents**2 * area).mean((0, 2, 3)), torch.ones(12), rtol=1e-3, atol=0)
    changes = latents.diff(dim=0) / generator.change
    torch.testing.assert_close((changes**2 * area).mean((0, 2, 3)), torch.ones(12), rtol=1e-3, atol=0)
    kept = generator.state_dict()
    assert {"mean", "std", "change", "autoencoder.centre", "autoencoder.basis"} <= set(kept)


@torch.no_grad()
def test_the_batches_in_which_analyses_come_do_not_matter(generator: LatentDiffusionGenerator) -> None:
    other = generator_of(size=0.0)
    other.load_state_dict(generator.state_dict())
    other.begin(FORECAST, iter(analyses(generator.spec).split(7)))
    torch.testing.assert_close(other.change, generator.change)
    torch.testing.assert_close(other.std, generator.std)


def with_gradient(generator: LatentDiffusionGenerator, stage: Stage) -> set[str]:
    generator.zero_grad()
    sample = sample_of(generator.spec)
    generator.loss(sample, noise_for(generator, stage.members, 3, 2), stage).total.backward()
    return {name for name, value in generator.named_parameters() if value.grad is not None and bool(value.grad.any())}


def test_each_stage_trains_its_own_part_and_all_of_it(generator: LatentDiffusionGenerator) -> None:
    names = [name for name, _ in generator.named_parameters()]
    autoencoder = {name for name in names if name.startswith("autoencoder.")}
    encoder = {name for name in autoencoder if name.split(".")[1] in ("stem", "down", "to_latent")}
    assert with_gradient(generator, replace(JOINT, members=1)) == autoencoder
    assert with_gradient(generator, replace(DECODER, members=1)) == autoencoder - encoder
    assert with_gradient(generator, FORECAST) == set(names) - autoencoder


def test_an_untrained_denoiser_has_a_loss_near_1_at_every_noise_level() -> None:
    generator = generator_of(size=0.0)
    sample = sample_of(generator.spec, 40)
    found = generator.loss(sample, noise_for(generator, 8, 40, 2), FORECAST)
    assert float(found.total.detach()) == pytest.approx(1, abs=0.15)
    assert len(found.parts) == 5
    assert all(0.4 < value < 1.8 for value in found.parts.values())


@torch.no_grad()
def test_the_decoder_is_trained_on_noisy_latents_and_reconstruction_is_without_noise(generator: LatentDiffusionGenerator) -> None:
    sample = sample_of(generator.spec)
    first, second = (float(generator.loss(sample, noise_for(generator, 1, 3, 2, seed=s), DECODER).total) for s in (0, 1))
    assert first != second
    fields = sample.frames[:, -1]
    state = generator.initial(sample.frames, sample.forcings[:, 0], torch.empty(3, 0))
    torch.testing.assert_close(generator.reconstruction(fields), generator.fields(state), rtol=0, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"sampler": "heun"}, {"sampler": "heun", "churn": 2.0}, {"one_pass": True}])
@torch.no_grad()
def test_a_member_is_a_function_of_its_own_noise_and_state(options: dict[str, Any]) -> None:
    generator = generator_of(**options)
    sample, noise = sample_of(generator.spec), noise_for(generator, 3)
    state = generator.initial(sample.frames, sample.forcings[:, 0], noise)
    new = generator.step(state, sample.forcings[:, 0], noise)
    assert new.latents.dtype == torch.float32
    assert torch.equal(new.latents[:, 0], state.latents[:, 1])
    again = generator.step(state, sample.forcings[:, 0], noise)
    assert torch.equal(new.latents, again.latents)
    changed = noise.clone()
    changed[1] += 1
    other = generator.step(state, sample.forcings[:, 0], changed).latents
    torch.testing.assert_close(other[[0, 2]], new.latents[[0, 2]])
    assert not torch.allclose(other[1], new.latents[1])
    assert generator.fields(new).shape == (3, 4, *GLOBE.shape)


@torch.no_grad()
def test_the_season_the_static_planes_and_both_frames_matter(generator: LatentDiffusionGenerator) -> None:
    sample, noise = sample_of(generator.spec), noise_for(generator, 3)

    def newest(frames: Tensor, forcing: Tensor) -> Tensor:
        return generator.step(generator.initial(frames, forcing, noise), forcing, noise).latents[:, -1]

    forcing, usual = sample.forcings[:, 0], newest(sample.frames, sample.forcings[:, 0])
    season, position = forcing.clone(), forcing.clone()
    season[:, 0] += 1
    position[:, 3] += 1
    older = sample.frames.clone()
    older[:, 0] += 0.5
    assert all(not torch.allclose(usual, found) for found in (newest(sample.frames, season), newest(sample.frames, position)))
    assert not torch.allclose(usual, newest(older, forcing))


@torch.no_grad()
def test_nudging_with_no_weight_leaves_what_the_autoencoder_keeps_and_with_full_weight_takes_the_target(
    generator: LatentDiffusionGenerator,
) -> None:
    sample = sample_of(generator.spec)
    state = generator.initial(sample.frames, sample.forcings[:, 0], torch.empty(3, 0))
    whole = generator.nudge(state, sample.targets[:, 0], torch.ones(GLOBE.shape))
    torch.testing.assert_close(generator.fields(whole), generator.reconstruction(sample.targets[:, 0]), rtol=0, atol=1e-4)
    assert torch.equal(whole.latents[:, 0], state.latents[:, 0])


def test_a_one_pass_network_learns_from_its_members_latents() -> None:
    generator = generator_of(one_pass=True)
    learned = with_gradient(generator, Stage(members=2))
    assert {name for name, _ in generator.named_parameters() if name.startswith("net.")} - learned <= {"net.level.weight"}


def test_members_of_one_pass_share_the_noise_on_their_past_and_samples_do_not() -> None:
    generator = generator_of(size=0.0, one_pass=True, past_noise=0.5)
    sample, noise = sample_of(generator.spec), noise_for(generator, 2, 3, 2)
    size = 12 * 2 * 4
    past = noise[:, :, 1, 1 + size : 1 + 3 * size]
    seen = {}

    def disturbed(latents: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        seen["draws"] = draws.unflatten(0, (2, 3))[..., : 2 * size]
        return type(generator)._disturbed(generator, latents, draws)

    generator._disturbed = disturbed  # type: ignore[method-assign]
    generator.loss(sample, noise, Stage(members=2))
    assert torch.equal(seen["draws"][0], past[0])
    assert torch.equal(seen["draws"][1], past[0])


@pytest.mark.parametrize("stage", [Stage(rollout=4), Stage(noise=False), Stage(target="autoencoder", rollout=2)])
def test_stages_that_it_would_not_follow_are_refused(generator: LatentDiffusionGenerator, stage: Stage) -> None:
    with pytest.raises(InputError, match=f"rollout = {stage.rollout}, noise = {str(stage.noise).lower()}"):
        generator.loss(sample_of(generator.spec), noise_for(generator, 2, 3, 5), stage)


def test_what_the_family_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="needs sampler"):
        LatentDiffusionOptions(churn=1.0)
    with pytest.raises(ValueError, match="sigma_min 3 is not below sigma_max 2"):
        LatentDiffusionOptions(sigma_min=3, sigma_max=2)
    with pytest.raises(InputError, match="conserve names salinity"):
        build(spec_with(conserve=("salinity",)))


@pytest.mark.campaign
def test_in_a_linear_gaussian_world_it_recovers_mean_and_covariance() -> None:
    """With as many latents as numbers the autoencoder loses nothing, so that what is tested is the diffusion."""
    data = world(3000)
    sizes = SIZES | {"ae_widths": (8,), "ae_blocks": (0,), "latents": 8, "width": 64, "single": 2, "levels": 20}
    spec = replace(spec_of(data, forcings=("position",)), family="latent_diffusion", options=sizes | {"past_noise": 0.0})
    torch.manual_seed(0)
    generator = build(spec)
    fields = torch.from_numpy(spec.normalise(fields_of(data).astype(np.float32)))
    generator.begin(JOINT, iter(fields.split(256)))
    generator.begin(FORECAST, iter(fields.split(256)))
    fit(generator, data, FORECAST, updates=300, batch=32)
    for steps in (1, 2):
        found = compare(generator, data, starts=[50, 500], steps=steps, members=300)
        assert found.bias < 0.25
        assert abs(found.spread - 1) < 0.15
        assert found.covariance < 0.7
