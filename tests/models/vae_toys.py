"""Toy VAEs, their samples and noise: what the tests of the family share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import xarray as xr

from models.checkpoint import build
from models.contract import Sample, Spec, Stage, flat_noise_size
from models.vae import VaeGenerator
from tests.toys import network, samples_of, spec_of, weather

RAIN = "total_precipitation_12hr"
COARSE = {"widths": (8, 16, 16), "local_noise": 2, "encoder_width": 16, "encoder_layers": 1}  # latents of 2 x 2 points
FULL = Stage(members=2, posterior=1.0, kl=0.5, progress=1.0)


def vae_spec(data: xr.Dataset | None = None, **options: object) -> Spec:
    """The spec of a tiny VAE on the toy world."""
    data = weather() if data is None else data
    diagnostic = (RAIN,) if RAIN in data else ()
    return replace(spec_of(data, diagnostic=diagnostic, **{**COARSE, **options}), family="vae")


def untrained(spec: Spec) -> VaeGenerator:
    generator = build(spec)
    assert isinstance(generator, VaeGenerator)
    return generator


def scrambled(spec: Spec, seed: int = 0, size: float = 0.2) -> VaeGenerator:
    generator = network(spec, seed, size)
    assert isinstance(generator, VaeGenerator)
    return generator


def noise_for(generator: VaeGenerator, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, flat_noise_size(generator.noise_shapes()), generator=torch.Generator().manual_seed(seed))


def three_dates(spec: Spec) -> Sample:
    """Two steps from three dates of the toy world."""
    found = samples_of(weather(), spec).batch(np.arange(5, 8), 2)
    return Sample(*(torch.from_numpy(array) for array in (found.frames, found.targets, found.forcings)))


def evenly(data: xr.Dataset, count: int) -> Sample:
    """One step from `count` dates spread over the data."""
    found = samples_of(data, vae_spec(data)).batch(np.linspace(5, data.sizes["time"] - 10, count).astype(int), 1)
    return Sample(*(torch.from_numpy(array) for array in (found.frames, found.targets, found.forcings)))


def diagnose(generator: VaeGenerator, data: xr.Dataset, count: int, members: int = 16) -> dict[str, float]:
    return generator.diagnostics(evenly(data, count), noise_for(generator, members, count, 2))
