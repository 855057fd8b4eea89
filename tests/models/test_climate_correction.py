"""The climate correction: what it does to a field, where it is refused, and that its fit keeps the climate in long roll-outs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import models
from data_pipeline.errors import GateError, InputError
from models import climate_fit
from models.checkpoint import build, save
from models.climate_correction import ClimateCorrection
from models.climate_fit import FIRST_WAVE, Departure, fit_climate
from models.increments import FieldOptions, Increments
from tests import toys


@pytest.mark.parametrize("columns", [16, 15])
def test_each_wave_of_each_channel_is_multiplied_by_its_own_gain(columns: int) -> None:
    layer, angle = ClimateCorrection(2, columns), 2 * np.pi * torch.arange(columns) / columns
    waves = torch.stack([torch.cos(k * angle + 0.3) for k in range(columns // 2 + 1)])
    field = waves.sum(0).expand(3, 2, 4, columns)
    assert torch.allclose(layer(field), field, atol=1e-5)
    layer.gain[1] = torch.linspace(1.0, 0.1, columns // 2 + 1)
    found = layer(field)
    assert torch.allclose(found[:, 0], field[:, 0], atol=1e-5)
    assert torch.allclose(found[:, 1], (layer.gain[1][:, None] * waves).sum(0).expand(3, 4, columns), atol=1e-5)


def test_a_region_is_refused_as_its_rows_do_not_close() -> None:
    with pytest.raises(InputError, match="climate_correction needs a global grid"):
        Increments(toys.spec_of(toys.weather(toys.REGION)), FieldOptions(climate_correction=True))


@pytest.fixture(scope="module")
def smooth() -> xr.Dataset:
    """A world of three waves; next to no power beyond."""
    return toys.advection(90).map(
        lambda field: field + np.random.default_rng(1).normal(0, 0.05, field.shape).astype("f4"), keep_attrs=True
    )


@pytest.fixture
def path(smooth: xr.Dataset, tmp_path: Path) -> Path:
    """A network that adds noise of all wavelengths and forgets slowly."""
    spec = toys.spec_of(smooth, toys.period(smooth, 0, 79), toys.period(smooth, 80, 89), forcings=())
    return save(
        tmp_path / "rough.safetensors", spec, toys.network(spec, size=0.1).state_dict(), {"noise_scale": 1.2, "data": "toy"}
    )


def fitted(path: Path, data: xr.Dataset, rounds: int, **options: Any) -> tuple[models.Generator, list[Departure]]:
    seen: list[Departure] = []
    out = fit_climate(
        path, data, path.with_name("steady.safetensors"), inits=4, days=10, rounds=rounds,
        report=lambda _, found: seen.append(found), **options,
    )  # fmt: skip
    return models.load(out), seen


def test_the_fit_brings_power_and_means_to_those_of_the_truth(smooth: xr.Dataset, path: Path) -> None:
    generator, seen = fitted(path, smooth, rounds=12)
    assert seen[0].typical_factor > 3
    assert min(each.typical_factor for each in seen) < 1.3
    assert min(each.typical_drift for each in seen) < seen[0].typical_drift / 4
    gain = generator.get_buffer("increments.correction.gain")
    assert torch.equal(gain[:, :FIRST_WAVE], torch.ones_like(gain[:, :FIRST_WAVE]))
    assert float(gain[:, FIRST_WAVE:].max()) < 1
    source = models.load(path)
    assert all(torch.equal(value, generator.state_dict()[name]) for name, value in source.state_dict().items())
    about = generator.provenance["climate_fit"]
    assert about["checkpoint_sha256"] == source.sha256
    assert about["noise_scale"] == generator.provenance["noise_scale"] == 1.2
    assert about["misses"] == [each.miss for each in seen]
    assert generator.provenance["data"] == "toy"


def test_the_fit_is_the_same_twice_and_may_keep_global_means(smooth: xr.Dataset, path: Path) -> None:
    one, _ = fitted(path, smooth, 2, conserve=("2m_temperature",))
    other, _ = fitted(path, smooth, 2, conserve=("2m_temperature",))
    assert one.sha256 == other.sha256
    assert list(one.spec.options["conserve"]) == ["2m_temperature"]
    assert float(one.get_buffer("increments.correction.offset").abs().max()) == 0


def test_a_roll_out_that_is_not_finite_writes_nothing(smooth: xr.Dataset, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(climate_fit, "_late", lambda generator, sample, *_: torch.full_like(sample.targets[:, 10:], torch.nan))
    with pytest.raises(GateError, match="round 1 of the climate fit is not finite"):
        fitted(path, smooth, 2)
    assert not path.with_name("steady.safetensors").exists()


def test_latent_diffusion_decodes_with_the_gain_and_keeps_global_means() -> None:
    data = toys.weather()
    options = {"latents": 4, "ae_widths": (8, 8), "ae_blocks": (1, 1), "width": 32, "dual": 1, "single": 1, "levels": 2}
    kept = {"conserve": ("2m_temperature",), "climate_correction": True}
    spec = replace(toys.spec_of(data), family="latent_diffusion", options={**options, **kept})
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        generator = build(spec).eval()
        for value in generator.parameters():
            value.add_(0.2 * torch.randn_like(value))
    found = toys.samples_of(data, spec).batch(np.array([10, 20]), 2)
    frames, forcings = torch.from_numpy(found.frames), torch.from_numpy(found.forcings)
    noise = torch.randn(2, generator.noise_shapes()["step"][0], generator=torch.Generator().manual_seed(0))
    area = torch.from_numpy(spec.grid.area_weights).float()
    with torch.no_grad():
        state = generator.step(generator.initial(frames, forcings[:, 0], noise), forcings[:, 0], noise)
        plain = generator.fields(state)
        generator.get_buffer("increments.correction.gain")[:, 3:] = 0.0
        smoothed = generator.fields(state)
    i = spec.channels.index("2m_temperature")
    means = [(fields[:, i] * area).mean((-2, -1)) for fields in (frames[:, -1], plain, smoothed)]
    assert torch.allclose(means[1], means[0], atol=1e-5)
    assert torch.allclose(means[2], means[0], atol=1e-5)
    assert float(torch.fft.rfft(smoothed)[..., 3:].abs().max()) < 1e-4 < float(torch.fft.rfft(plain)[..., 3:].abs().max())
