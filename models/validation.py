"""Scores of a generator on the validation period while it trains: few dates, few members; they choose the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from data_pipeline.batches import Samples
from data_pipeline.forcings import Forcings, standardised_static
from models.contract import Generator, Sample, Spec, device_of, flat_noise_size
from models.distributed import ALONE, Ranks


@dataclass(frozen=True)
class Validation:
    """score: mean over channels and leads of fair CRPS / tendency std (lower is better). crps: that ratio by lead, mean over
    channels; ssr: spread-skill ratio by lead and channel, with the (M + 1) / M factor."""

    score: float
    crps: list[float]
    ssr: list[list[float]]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Reconstruction:
    """Of an autoencoder: rmse by channel, area-weighted, over the tendency std; score: its mean (lower is better)."""

    score: float
    rmse: list[float]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"score": self.score, "reconstruction_rmse": self.rmse}


def samples_of(spec: Spec, analysis: xr.Dataset, period: str) -> Samples:
    """The samples of a period, `first/last`, normalised as by a checkpoint of this spec. Raises InputError if there are none."""
    first, _, last = period.partition("/")
    moments = xr.Dataset({"mean": ("channel", list(spec.mean)), "std": ("channel", list(spec.std))})
    forcings = Forcings(spec.forcings, spec.grid, spec.step, standardised_static(analysis, spec.forcings))
    return Samples(analysis, spec.parsed_channels, moments, forcings, (first, last), step=spec.step, frames=spec.frames)


def validation_starts(samples: Samples, steps: int, count: int) -> np.ndarray:
    """`count` starts (fewer if there are fewer) spread evenly over the samples from which `steps` steps can be scored."""
    starts = samples.starts(steps)
    return starts[np.linspace(0, len(starts) - 1, min(count, len(starts))).astype(int)]


@torch.no_grad()
def validate(
    generator: Generator,
    samples: Samples,
    starts: np.ndarray,
    members: int,
    steps: int,
    seed: int,
    noise_scale: float = 1.0,
    *,
    ranks: Ranks = ALONE,
) -> Validation:
    """Roll `members` members over `steps` steps from each of the samples `starts` and score every step against the analysis.

    Means are area-weighted; variance and squared error are averaged over space and dates before the ratio. Several processes
    share the starts.
    """
    spec = generator.spec
    device = device_of(generator)
    weight = torch.tensor(spec.grid.area_weights, device=device, dtype=torch.float32)
    size = flat_noise_size(generator.noise_shapes())
    sums = torch.zeros(3, steps, len(spec.channels), dtype=torch.float64)
    mine = starts[ranks.rank :: ranks.size]
    for start, sample in zip(mine, _sequence(samples, mine, steps, device), strict=True):
        frames, targets, forcings = sample[:3]
        draws = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 2, int(start)]))
        noise = noise_scale * torch.from_numpy(draws.standard_normal((steps + 1, members, size), dtype=np.float32)).to(device)
        state = generator.initial(frames.expand(members, *frames.shape[1:]), forcings[:, 0].expand(members, -1, -1, -1), noise[0])
        for k in range(steps):
            state = generator.step(state, forcings[:, k].expand(members, -1, -1, -1), noise[k + 1])
            sums[:, k] += _point_scores(generator.fields(state), targets[0, k], weight)
    crps, variance, error = (ranks.sum_(sums.to(device)).cpu() / len(starts)).float()
    ratio = (crps * _unit(generator)).mean(1)
    ssr = ((members + 1) / members * variance / error).sqrt()
    return Validation(float(ratio.mean()), ratio.tolist(), ssr.tolist())


@torch.no_grad()
def validate_autoencoder(
    generator: Generator, samples: Samples, starts: np.ndarray, steps: int, *, ranks: Ranks = ALONE
) -> Reconstruction:
    """Reconstruct the `steps` analyses after each of the samples `starts`; several processes share the starts."""
    device = device_of(generator)
    weight = torch.tensor(generator.spec.grid.area_weights, device=device, dtype=torch.float32)
    sums = torch.zeros(len(generator.spec.channels), dtype=torch.float64)
    for sample in _sequence(samples, starts[ranks.rank :: ranks.size], steps, device):
        truth = sample.targets[0]
        sums += (((generator.reconstruction(truth) - truth) ** 2) * weight).mean((0, -2, -1)).double().cpu()
    rmse = (ranks.sum_(sums.to(device)).cpu() / len(starts)).sqrt() * _unit(generator).double()
    return Reconstruction(float(rmse.mean()), rmse.tolist())


@torch.no_grad()
def diagnose(generator: Generator, samples: Samples, starts: np.ndarray, members: int, seed: int) -> dict[str, float]:
    """The family's own diagnostics on the first step from the samples `starts`, as one batch."""
    device = device_of(generator)
    batch = samples.batch(starts, 1)
    arrays = (torch.from_numpy(array).to(device) for array in (batch.frames, batch.targets, batch.forcings))
    draws = np.random.Generator(np.random.Philox(key=seed, counter=[0, 1, 2, 0]))
    shape = (members, len(starts), 2, flat_noise_size(generator.noise_shapes()))
    noise = torch.from_numpy(draws.standard_normal(shape, dtype=np.float32)).to(device)
    return generator.diagnostics(Sample(*arrays), noise)


def _sequence(samples: Samples, starts: np.ndarray, steps: int, device: torch.device) -> Iterator[Sample]:
    for batch in samples.sequence(samples.times[starts], steps):
        yield Sample(*(torch.from_numpy(array).to(device) for array in (batch.frames, batch.targets, batch.forcings)))


def _unit(generator: Generator) -> Tensor:
    """Std over tendency std, a channel: what normalised differences are multiplied by."""
    spec = generator.spec
    return torch.tensor(np.array(spec.std) / np.array(spec.tendency_std), dtype=torch.float32)


def _point_scores(fields: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Area means of (fair CRPS, variance, squared error of the mean) a channel, float64 on the CPU, shape (3, C)."""
    m = len(fields)
    ordered = fields.sort(0).values
    rank = torch.arange(m, device=fields.device, dtype=fields.dtype).view(-1, 1, 1, 1)
    fair = (fields - truth).abs().mean(0) - ((2 * rank + 1 - m) * ordered).sum(0) / (m * (m - 1))
    stacked = torch.stack([fair, fields.var(0), (fields.mean(0) - truth) ** 2])
    return (stacked * weight).mean((-2, -1)).double().cpu()
