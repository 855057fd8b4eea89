"""A linear-Gaussian world, x(t + dt) = A x(t) + e(t), whose predictive distribution is known in closed form.

Two channels on a 16 x 8 globe. A moves the pattern one column east and mixes the channels (COUPLING); e is white in time, its
covariance Q correlated in longitude, latitude and between the channels, its size falling from the equator to the poles. So from
any state the forecast at step k is Gaussian with mean A^k x and covariance Q + A Q A' + ... + A^(k-1) Q A'^(k-1).

    data = world(3000)                                                  an analysis in the schema
    mean, covariance = predictive(fields_of(data)[100], steps=2)        the truth, physical units
    spec = spec_of(data)                                                tests.toys; dataclasses.replace(spec, family=...)
    fit(generator, data, Stage(members=2), updates=300)                 a plain training
    found = compare(generator, data, starts=[50, 500], steps=2, members=500)
    assert found.bias < 0.2 and abs(found.spread - 1) < 0.1 and found.covariance < 0.3
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr

from models.contract import Generator, Sample, Stage, flat_noise_size
from tests.toys import GLOBE, as_analysis, samples_of

CHANNELS = ("geopotential_500", "2m_temperature")
MEAN = np.array([5.5e4, 280.0])[:, None, None]
SCALE = np.array([800.0, 5.0])[:, None, None]
COUPLING = np.array([[0.8, 0.0], [0.3, 0.6]])
SHAPE = (len(CHANNELS), *GLOBE.shape)
WIDTH = 0.9  # radians: how far the noise is correlated


@cache
def _factors() -> list[np.ndarray]:
    """The noise covariance by channel, latitude, longitude: Q is their Kronecker product."""
    latitude, longitude = np.deg2rad(GLOBE.latitude), np.deg2rad(GLOBE.longitude)
    size = 0.5 * (0.5 + 0.5 * np.cos(latitude))
    near = [np.exp((np.cos(angle[:, None] - angle) - 1) / WIDTH**2) for angle in (latitude, longitude)]
    return [np.array([[1.0, 0.5], [0.5, 1.0]]), size[:, None] * size * near[0], near[1]]


def _kron(factors: Sequence[np.ndarray]) -> np.ndarray:
    return np.kron(np.kron(factors[0], factors[1]), factors[2])


def _noise(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draws of e, (count, C, H, W)."""
    roots = [np.linalg.cholesky(factor + 1e-12 * np.eye(len(factor))) for factor in _factors()]
    return np.einsum("ca,hb,wd,nabd->nchw", *roots, rng.standard_normal((count, *SHAPE)), optimize=True)


@cache
def _operator() -> np.ndarray:
    """A, (n, n)."""
    latitudes, longitudes = GLOBE.shape
    return _kron([COUPLING, np.eye(latitudes), np.roll(np.eye(longitudes), 1, axis=0)])


def _advance(state: np.ndarray) -> np.ndarray:
    """A x for states (count, C, H, W)."""
    return (state.reshape(len(state), -1) @ _operator().T).reshape(state.shape)


def world(steps: int, seed: int = 0) -> xr.Dataset:
    """`steps` 12-hourly analyses of the world in its stationary climate, in the analysis schema."""
    rng = np.random.default_rng(seed)
    states, operator = _noise(rng, steps + 60).reshape(steps + 60, -1), _operator()
    for i in range(1, len(states)):
        states[i] += operator @ states[i - 1]
    fields = MEAN + SCALE * states[60:].reshape(steps, *SHAPE)
    return as_analysis({label: fields[:, i] for i, label in enumerate(CHANNELS)}, GLOBE)


def fields_of(data: xr.Dataset) -> np.ndarray:
    """All analyses (time, C, H, W), physical units, channels in the order of CHANNELS."""
    return np.stack([data["geopotential"].values[:, 0], data["2m_temperature"].values], axis=1).astype(np.float64)


def predictive(frames: np.ndarray, steps: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The true forecast `steps` steps after the last of frames (..., C, H, W), physical units.

    Returns its mean (C, H, W) and covariance (C * H * W, C * H * W); the covariance is the same from every state.
    """
    state = ((frames.reshape(-1, *SHAPE)[-1] - MEAN) / SCALE).ravel()
    for _ in range(steps):
        state = _operator() @ state
    return MEAN + SCALE * state.reshape(SHAPE), _covariance(steps)


@cache
def _covariance(steps: int) -> np.ndarray:
    noise = covariance = _kron(_factors())
    for _ in range(steps - 1):
        noise = _operator() @ noise @ _operator().T
        covariance = covariance + noise
    scale = np.broadcast_to(SCALE, SHAPE).ravel()
    return covariance * scale[:, None] * scale


def exact(frames: np.ndarray, steps: int = 1, *, members: int, seed: int = 0) -> np.ndarray:
    """Members (M, C, H, W) drawn from the true forecast, by the world's own steps."""
    rng = np.random.default_rng(seed)
    state = np.repeat(((frames.reshape(-1, *SHAPE)[-1] - MEAN) / SCALE)[None], members, axis=0)
    for _ in range(steps):
        state = _advance(state) + _noise(rng, members)
    return MEAN + SCALE * state


class Comparison(NamedTuple):
    """Sampled moments beside the true ones, all in units of the true standard deviation at each point and channel.

    bias: rms error of the mean. spread: root of the mean variance, 1 if right. covariance: error of the correlation-like matrix
    D^-1 C D^-1 (D the true standard deviations), Frobenius norm, relative to the true one's. bias_floor, covariance_floor: what
    exact members would show on average, from their number alone.
    """

    bias: float
    spread: float
    covariance: float
    bias_floor: float
    covariance_floor: float


def against_truth(members: Sequence[np.ndarray], frames: Sequence[np.ndarray], steps: int = 1) -> Comparison:
    """Members (M, C, H, W), an ensemble for each of `frames`; covariances are averaged over the ensembles."""
    covariance = predictive(frames[0], steps)[1]
    std = np.sqrt(np.diag(covariance))
    right = covariance / (std[:, None] * std)
    sampled, errors = np.zeros_like(right), []
    for ensemble, start in zip(members, frames, strict=True):
        mean = ensemble.mean(0)
        errors.append(np.mean(((mean - predictive(start, steps)[0]).ravel() / std) ** 2))
        deviations = (ensemble - mean).reshape(len(ensemble), -1) / std
        sampled += deviations.T @ deviations / (len(ensemble) - 1) / len(frames)
    count, norm = len(frames) * (len(members[0]) - 1), np.linalg.norm(right)
    return Comparison(
        bias=float(np.sqrt(np.mean(errors))),
        spread=float(np.sqrt(np.trace(sampled) / len(std))),
        covariance=float(np.linalg.norm(sampled - right) / norm),
        bias_floor=float(1 / np.sqrt(len(members[0]))),
        covariance_floor=float(np.sqrt((1 + (np.trace(right) / norm) ** 2) / count)),
    )


@torch.no_grad()
def sampled(
    generator: Generator, data: xr.Dataset, *, starts: Sequence[int], steps: int = 1, members: int = 500, seed: int = 0
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Members (M, C, H, W) of a generator `steps` steps after each of the analyses at positions `starts`, and those analyses."""
    spec, samples = generator.spec, samples_of(data, generator.spec)
    rng = torch.Generator().manual_seed(seed)
    assert spec.channels == CHANNELS
    ensembles, frames = [], []
    for start in starts:
        batch = samples.batch(np.array([start]), steps)
        draws = torch.randn((steps + 1, members, flat_noise_size(generator.noise_shapes())), generator=rng)
        first, forcings = (torch.from_numpy(array).expand(members, *array.shape[1:]) for array in (batch.frames, batch.forcings))
        state = generator.initial(first, forcings[:, 0], draws[0])
        for k in range(steps):
            state = generator.step(state, forcings[:, k], draws[k + 1])
        ensembles.append(spec.denormalise(generator.fields(state).numpy()).astype(np.float64))
        frames.append(spec.denormalise(batch.frames[0]).astype(np.float64))
    return ensembles, frames


def compare(generator: Generator, data: xr.Dataset, *, steps: int = 1, **options: Any) -> Comparison:
    """The members of `sampled` beside the true forecast."""
    return against_truth(*sampled(generator, data, steps=steps, **options), steps)


def fit(
    generator: Generator, data: xr.Dataset, stage: Stage, *, updates: int, batch: int = 16, rate: float = 3e-3, seed: int = 0
) -> list[float]:
    """Train by Adam on random samples of `data`, the rate falling on a cosine to a hundredth; returns the losses."""
    samples, rng = samples_of(data, generator.spec), np.random.default_rng(seed)
    draws, size = torch.Generator().manual_seed(seed), flat_noise_size(generator.noise_shapes())
    optimizer = torch.optim.Adam([value for value in generator.parameters() if value.requires_grad], lr=rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates, eta_min=rate / 100)
    starts, losses = samples.starts(stage.rollout), []
    generator.train()
    for _ in range(updates):
        found = samples.batch(rng.choice(starts, batch), stage.rollout)
        sample = Sample(*(torch.from_numpy(array) for array in (found.frames, found.targets, found.forcings)))
        loss = generator.loss(sample, torch.randn((stage.members, batch, stage.rollout + 1, size), generator=draws), stage).total
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    generator.eval()
    return losses
