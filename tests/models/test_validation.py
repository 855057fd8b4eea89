"""Validation while training: held to float64 brute force, and to a generator whose skill and spread are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import properscoring
import pytest
import torch
import xarray as xr
from torch import Tensor

from data_pipeline.batches import Samples
from models.contract import Spec
from models.validation import validate
from tests.toys import GLOBE, as_analysis, network, samples_of, spec_of, weather


class Known(torch.nn.Module):
    """Members drawn around 0 with standard deviation `spread`, whatever the past."""

    def __init__(self, spec: Spec, spread: float) -> None:
        super().__init__()
        self.spec, self.spread, self.anchor = spec, spread, torch.nn.Parameter(torch.zeros(1))

    def noise_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"initial": (0,), "step": (len(self.spec.channels), *self.spec.grid.shape)}

    def initial(self, frames: Tensor, forcing: Tensor, noise: Tensor) -> Tensor:
        return frames[:, -1]

    def step(self, state: Tensor, forcing: Tensor, noise: Tensor) -> Tensor:
        return self.spread * noise.view_as(state)

    def fields(self, state: Tensor) -> Tensor:
        return state


@pytest.fixture(scope="module")
def white() -> tuple[Spec, Samples]:
    """Independent standard normal numbers everywhere: a truth that nothing predicts."""
    data = as_analysis({"2m_temperature": np.random.default_rng(0).normal(280, 3, (60, *GLOBE.shape))}, GLOBE)
    spec = spec_of(data, forcings=())
    return spec, samples_of(data, spec)


@pytest.mark.parametrize(("spread", "ssr"), [(1.0, 1.0), (0.5, 0.5), (2.0, 2.0)])
def test_spread_and_skill_of_a_known_ensemble(white: tuple[Spec, Samples], spread: float, ssr: float) -> None:
    spec, samples = white
    found = validate(Known(spec, spread), samples, np.arange(1, 50), 8, 3, 0)
    # mean |x - y| - 1/2 mean |x - x'| of normals, over the tendency std sqrt(2) of white noise
    crps = (np.sqrt(2 * (1 + spread**2) / np.pi) - spread / np.sqrt(np.pi)) / np.sqrt(2)
    np.testing.assert_allclose(found.crps, crps, rtol=0.03)
    # error^2 of the mean is 1 + s^2 / M: the factor (M + 1) / M makes 1 of a perfect ensemble, whatever M
    expected = ssr * np.sqrt((9 / 8) / (1 + spread**2 / 8))
    np.testing.assert_allclose(np.array(found.ssr)[:, 0], expected, rtol=0.05)
    assert found.score == pytest.approx(np.mean(found.crps))


def test_the_numbers_are_those_of_brute_force() -> None:
    data = weather(steps=40)
    spec = spec_of(data)
    samples, generator = samples_of(data, spec), network(spec)
    seen: list[np.ndarray] = []
    plain = generator.fields

    def watched(state: Any) -> Tensor:
        seen.append(plain(state).double().numpy())
        return plain(state)

    generator.fields = watched  # type: ignore[method-assign]
    starts = np.array([3, 17])
    found = validate(generator, samples, starts, 5, 2, 1)
    members = np.stack(seen).reshape(2, 2, 5, 4, *GLOBE.shape)  # start, step, member, channel
    truth = samples.batch(starts, 2).targets.astype("float64")
    ecdf = properscoring.crps_ensemble(truth, np.moveaxis(members, 2, -1))
    difference = np.abs(members[:, :, :, None] - members[:, :, None, :]).sum((2, 3)) / 20
    fair = ((ecdf - difference / 10) * GLOBE.area_weights).mean((-2, -1))
    unit = np.array(spec.std) / np.array(spec.tendency_std)
    np.testing.assert_allclose(found.crps, (fair.mean(0) * unit).mean(-1), rtol=1e-5)
    variance = (members.var(2, ddof=1) * GLOBE.area_weights).mean((0, -2, -1))
    error = ((members.mean(2) - truth) ** 2 * GLOBE.area_weights).mean((0, -2, -1))
    np.testing.assert_allclose(found.ssr, np.sqrt(6 / 5 * variance / error), rtol=1e-4)


def test_it_draws_the_same_noise_every_time_and_leaves_no_gradient() -> None:
    data: xr.Dataset = weather(steps=40)
    spec = spec_of(data)
    samples, generator = samples_of(data, spec), network(spec)
    one, again = (validate(generator, samples, np.array([3, 9]), 4, 2, 5) for _ in range(2))
    other = validate(generator, samples, np.array([3, 9]), 4, 2, 6)
    assert one == again
    assert one.score != other.score
    assert all(value.grad is None for value in generator.parameters())
