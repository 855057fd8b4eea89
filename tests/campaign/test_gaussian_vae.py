"""The VAE family in a world whose forecasts are known in closed form: mean, covariance, a living latent, the initial spread."""

from __future__ import annotations

import pytest
import torch

from models.contract import Stage
from tests.models import gaussian_world
from tests.models.vae_toys import diagnose, untrained, vae_spec

pytestmark = pytest.mark.campaign


def test_it_recovers_mean_and_covariance_of_the_forecast_by_a_latent_that_lives() -> None:
    """After 150 updates, at both steps: mean within 0.3 true stds, spread within 15 %, covariance within 0.8 of its norm.

    Exact members would show 0.06 and 0.13 from their number alone.
    """
    data = gaussian_world.world(3000)
    torch.manual_seed(0)
    generator = untrained(vae_spec(data, widths=(16, 16), local_noise=4))
    stage = Stage(members=2, posterior=1.0, kl=0.2, progress=1.0)
    losses = gaussian_world.fit(generator, data, stage, updates=150, rate=1e-2)
    assert sum(losses[-20:]) / 20 < 0.6 * sum(losses[:10]) / 10
    for steps in (1, 2):
        found = gaussian_world.compare(generator, data, starts=[50, 500, 1500], steps=steps, members=300)
        assert found.bias < 0.3
        assert found.spread == pytest.approx(1, abs=0.15)
        assert found.covariance < 0.8
    latent = diagnose(generator, data, 24)
    assert latent["active_units"] > 0.9
    assert latent["kl_mean"] > generator.free_bits
    assert latent["crps_posterior"] < 0.6 * latent["crps_prior"]
    assert latent["ssr"] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("start", [0.02, 3.0])
def test_the_crps_of_the_first_step_teaches_the_size_of_the_initial_perturbation(start: float) -> None:
    """Under a network that persists without spread, perturbations grow or shrink to the spread of the world's own step."""
    data = gaussian_world.world(400, seed=1)
    generator = untrained(vae_spec(data, local_noise=4))
    for name, value in generator.named_parameters():
        value.requires_grad_(name.startswith("perturbation"))
    with torch.no_grad():
        generator.perturbation.to_local.weight.normal_(std=start / 6, generator=torch.Generator().manual_seed(0))
    gaussian_world.fit(generator, data, Stage(members=2, alpha=1.0), updates=60, batch=8, rate=0.06)
    found = diagnose(generator, data, 24)
    assert 0.85 < found["ssr"] < 1.15
    assert 0.5 < found["initial_spread"] < 1.1
