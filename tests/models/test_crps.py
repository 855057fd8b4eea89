"""The CRPS family and its Spec: normalisation, increments, what is fed back, and the loss worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from data_pipeline.errors import InputError
from data_pipeline.schema import stack
from models.checkpoint import build
from models.contract import Sample, Spec, Stage, flat_noise_size
from models.crps import CrpsGenerator, CrpsOptions
from models.increments import channel_weight
from models.recipe import model_section
from tests.toys import GLOBE, REGION, network, samples_of, spec_of, weather

RAIN = "total_precipitation_12hr"


@pytest.fixture(scope="module")
def spec() -> Spec:
    return spec_of(weather(), diagnostic=(RAIN,))


def batch(spec: Spec, steps: int = 2, size: int = 3) -> Sample:
    found = samples_of(weather(), spec).batch(np.arange(5, 5 + size), steps)
    return Sample(*(torch.from_numpy(array) for array in (found.frames, found.targets, found.forcings)))


def noise_for(generator: CrpsGenerator, *shape: int, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randn(*shape, flat_noise_size(generator.noise_shapes()))


def test_a_spec_survives_json(spec: Spec) -> None:
    again = Spec.from_dict(json.loads(json.dumps(spec.as_dict())))
    assert again.as_dict() == json.loads(json.dumps(spec.as_dict())) | {
        key: value for key, value in spec.as_dict().items() if isinstance(value, tuple)
    }
    assert again.grid.matches(GLOBE)
    assert again.parsed_channels == spec.parsed_channels
    assert (again.step, again.n_planes) == (np.timedelta64(12, "h"), 6)


def test_normalised_channels_have_mean_0_and_std_1_and_come_back(spec: Spec) -> None:
    data = weather()
    fields = stack(data, spec.parsed_channels).values
    normal = spec.normalise(fields)
    assert normal.dtype == np.float32
    weights = GLOBE.area_weights
    np.testing.assert_allclose((normal * weights).mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose((normal**2 * weights).mean((0, 2, 3)), 1, atol=1e-4)
    np.testing.assert_allclose(spec.denormalise(normal), fields, rtol=3e-6, atol=1e-5)


def test_precipitation_is_never_negative_and_temperature_may_be_anything(spec: Spec) -> None:
    physical = spec.denormalise(np.full((1, 4, 8, 16), -30, np.float32))
    assert (physical[:, spec.channels.index(RAIN)] == 0).all()
    assert (physical[:, spec.channels.index("2m_temperature")] < 200).all()


@torch.no_grad()
def test_untrained_it_is_persistence_and_diagnostic_channels_are_at_their_mean(spec: Spec) -> None:
    generator, sample = build(spec), batch(spec)
    state = generator.initial(sample.frames, sample.forcings[:, 0], noise_for(generator, 3))
    new = generator.fields(generator.step(state, sample.forcings[:, 0], noise_for(generator, 3)))
    rain = spec.channels.index(RAIN)
    expected = sample.frames[:, -1].clone()
    expected[:, rain] = 0
    assert torch.equal(new, expected)


@torch.no_grad()
def test_the_network_speaks_in_units_of_the_tendency_std(spec: Spec) -> None:
    generator, sample = build(spec), batch(spec)
    generator.net.head.conv.bias.fill_(1.0)
    state = generator.initial(sample.frames, sample.forcings[:, 0], noise_for(generator, 3))
    new = generator.step(state, sample.forcings[:, 0], noise_for(generator, 3))
    change = spec.denormalise(new.frames[:, -1].numpy()) - spec.denormalise(sample.frames[:, -1].numpy())
    for i, label in enumerate(spec.channels):
        if label != RAIN:
            np.testing.assert_allclose(change[:, i], spec.tendency_std[i], rtol=1e-2)
    assert torch.equal(new.frames[:, 0], sample.frames[:, 1])


@torch.no_grad()
def test_diagnostic_channels_are_not_fed_back(spec: Spec) -> None:
    generator, sample = network(spec), batch(spec)
    noise = noise_for(generator, 3)
    changed = sample.frames.clone()
    changed[:, :, spec.channels.index(RAIN)] += 9
    one, other = (
        generator.step(generator.initial(frames, sample.forcings[:, 0], noise), sample.forcings[:, 0], noise)
        for frames in (sample.frames, changed)
    )
    assert torch.equal(generator.fields(one), generator.fields(other))


@torch.no_grad()
def test_nudging_is_a_weighted_mean_with_the_target_and_touches_the_newest_frame_only(spec: Spec) -> None:
    generator, sample = network(spec), batch(spec)
    state = generator.initial(sample.frames, sample.forcings[:, 0], noise_for(generator, 3))
    weight = torch.linspace(0, 1, 8 * 16).view(8, 16)
    nudged = generator.nudge(state, sample.targets[:, 0], weight)
    expected = (1 - weight) * sample.frames[:, -1] + weight * sample.targets[:, 0]
    torch.testing.assert_close(generator.fields(nudged), expected)
    assert torch.equal(nudged.frames[:, 0], sample.frames[:, 0])
    assert torch.equal(generator.fields(generator.nudge(state, sample.targets[:, 0], 0 * weight)), sample.frames[:, -1])


def test_the_loss_of_persistence_worked_out_by_hand(spec: Spec) -> None:
    """Members alike: the mean absolute error over the tendency std, weighted by area and channel, averaged over both steps."""
    options = spec.options | {"variable_weights": {"2m_temperature": 3.0, RAIN: 0.2}}
    weighted = Spec.from_dict({**spec.as_dict(), "options": options})
    generator, sample = build(weighted), batch(weighted)
    loss = generator.loss(sample, noise_for(generator, 2, 3, 3), Stage(members=2, rollout=2, alpha=0.95))
    weights = np.array([0.5, 3.0, 1.0, 0.2])  # 500 hPa counts half
    weights /= weights.mean()
    unit = np.array([t / s for t, s in zip(weighted.tendency_std, weighted.std, strict=True)])
    unit[3] = 1.0
    last = sample.frames[:, -1].double().numpy()
    last[:, 3] = 0
    error = np.abs(sample.targets.double().numpy() - last[:, None])
    by_step = (error * (weights / unit)[:, None, None] * GLOBE.area_weights).mean((0, 2, 3, 4))
    assert float(loss.total.detach()) == pytest.approx(by_step.mean(), rel=1e-5)
    assert [loss.parts["step_1"], loss.parts["step_2"]] == pytest.approx(by_step.tolist(), rel=1e-5)


def test_in_a_roll_out_members_are_compared_as_full_states(spec: Spec) -> None:
    """From the second step on members start apart: the loss is the CRPS of the fields that the steps make."""
    generator, sample = network(spec), batch(spec)
    noise = noise_for(generator, 2, 3, 3)
    fields = []
    with torch.no_grad():
        for member in range(2):
            state = generator.initial(sample.frames, sample.forcings[:, 0], noise[member, :, 0])
            for k in range(2):
                state = generator.step(state, sample.forcings[:, k], noise[member, :, k + 1])
            fields.append(generator.fields(state))
    one, other = (field - sample.targets[:, 1] for field in fields)
    fair = (one.abs() + other.abs()) / 2 - (one - other).abs() / 2
    expected = (fair * generator.increments.loss_weight()).mean()
    loss = generator.loss(sample, noise, Stage(members=2, rollout=2, alpha=1.0))
    assert loss.parts["step_2"] == pytest.approx(float(expected), rel=1e-4)


def test_a_stage_without_noise_is_deterministic(spec: Spec) -> None:
    generator, sample = network(spec), batch(spec)
    silent, loud = Stage(members=1, noise=False), Stage(members=1)
    losses = [float(generator.loss(sample, noise_for(generator, 1, 3, 2, seed=s), silent).total.detach()) for s in (0, 1)]
    assert losses[0] == losses[1]
    noisy = [float(generator.loss(sample, noise_for(generator, 1, 3, 2, seed=s), loud).total.detach()) for s in (0, 1)]
    assert noisy[0] != noisy[1]


def test_every_weight_gets_a_gradient(spec: Spec) -> None:
    generator, sample = network(spec), batch(spec)
    generator.loss(sample, noise_for(generator, 2, 3, 2), Stage()).total.backward()
    assert [name for name, value in generator.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_the_state_stays_in_float32_when_the_network_computes_in_bfloat16(spec: Spec) -> None:
    generator, sample = network(spec).to(torch.bfloat16), batch(spec)
    generator.compute_dtype = torch.bfloat16
    noise = noise_for(generator, 3)
    with torch.no_grad():
        state = generator.step(generator.initial(sample.frames, sample.forcings[:, 0], noise), sample.forcings[:, 0], noise)
    assert state.frames.dtype == torch.float32


def test_winds_turn_at_the_poles_of_a_globe_in_every_frame_and_regions_have_no_poles(spec: Spec) -> None:
    signs = build(spec).net.pole_signs
    assert signs.tolist() == [1, 1, -1] * 2 + [1] * 6 + [1] * 2  # frames, forcing planes, position planes
    assert build(spec_of(weather(REGION))).net.pole_signs is None


def test_channel_weights_fall_with_pressure_and_follow_the_recipe() -> None:
    options = CrpsOptions(variable_weights={"geopotential": 3.0, "geopotential_850": 5.0})
    labels = ["geopotential_500", "geopotential_850", "temperature_100", "2m_temperature"]
    assert [channel_weight(label, options) for label in labels] == pytest.approx([1.5, 4.25, 0.2, 1.0])
    flat = CrpsOptions(level_weights=False)
    assert channel_weight("temperature_100", flat) == 1.0


def test_a_model_of_diagnostic_channels_alone_is_refused() -> None:
    data = weather()[[RAIN]]
    with pytest.raises(InputError, match="every channel is diagnostic"):
        build(spec_of(data, diagnostic=(RAIN,)))
    with pytest.raises(InputError, match="model.diagnostic names snowfall; the channels are geopotential_500"):
        spec_of(weather(), diagnostic=("snowfall",))


def test_faults_of_the_model_section_are_all_listed() -> None:
    recipe = {"name": "job", "model": {"step": "7.5h", "frames": 0, "width": 3, "options": {"widths": [12], "dropout": 1.5}}}
    with pytest.raises(InputError) as error:
        model_section(recipe)
    for key in ("model.step", "model.frames", "model.width: unknown key", "model.options.widths", "model.options.dropout"):
        assert key in str(error.value)
    assert "multiple of 8" in str(error.value)


@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_presets_fill_what_is_not_given(preset: str) -> None:
    options = CrpsOptions(preset=preset, patch=1).filled()
    assert options["patch"] == 1
    assert options["widths"] == {"tiny": (32, 48), "small": (96, 128, 192)}[preset]
    assert options["blocks"] == 1
