"""Samplers of diffusion models: pure functions of a denoiser D(x, sigma) ~ E[x0 | x0 + sigma z = x], and EDM's preconditioning.

Everything here is float32 or float64 as it comes; levels are plain numbers, largest first, the last one 0.
Sources: Karras et al. 2022 (arXiv 2206.00364, algorithms 1 and 2, table 1); Lu et al. 2022 (arXiv 2211.01095, DPM-Solver++(2M)).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]


class Churn(NamedTuple):
    """Fresh noise between the steps of `heun`, in Karras's terms: S_churn, S_min, S_max, S_noise. rate 0: none."""

    rate: float = 0.0
    lowest: float = 0.75
    highest: float = 80.0
    inflation: float = 1.05

    def growth(self, sigmas: Sequence[float]) -> list[float]:
        """gamma of each step: by which share its level is raised before the step, at most sqrt(2) - 1."""
        gamma = min(self.rate / (len(sigmas) - 1), math.sqrt(2) - 1)
        return [gamma if self.lowest <= sigma <= self.highest else 0.0 for sigma in sigmas[:-1]]

    def draws(self, sigmas: Sequence[float]) -> int:
        """How many draws of noise, each like x, a run over these levels takes."""
        return sum(gamma > 0 for gamma in self.growth(sigmas))


def levels(count: int, *, sigma_max: float, sigma_min: float, rho: float = 7.0) -> list[float]:
    """`count` noise levels from sigma_max down to sigma_min, evenly spaced in sigma ** (1 / rho), then 0."""
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [(first + i / (count - 1) * (last - first)) ** rho for i in range(count)] + [0.0]


def heun(denoise: Denoise, x: Tensor, sigmas: Sequence[float], *, churn: Churn = Churn(), noise: Tensor | None = None) -> Tensor:
    """A sample from x = sigmas[0] * z: Heun's second-order method on dx/dsigma = (x - D(x, sigma)) / sigma.

    2 N - 1 evaluations for N levels before the 0. noise: (churn.draws(sigmas), *x.shape), standard normal, where `churn` asks
    for it; without it the sample is a deterministic function of x. Error O(1 / N^2).
    """
    fresh = iter(()) if noise is None else iter(noise)
    for (sigma, following), gamma in zip(itertools.pairwise(sigmas), churn.growth(sigmas), strict=True):
        raised = sigma * (1 + gamma)
        if gamma > 0:
            x = x + math.sqrt(raised**2 - sigma**2) * churn.inflation * next(fresh)
        slope = (x - denoise(x, raised)) / raised
        euler = x + (following - raised) * slope
        if following > 0:
            slope = (slope + (euler - denoise(euler, following)) / following) / 2
        x = x + (following - raised) * slope
    return x


def dpm_solver_2m(denoise: Denoise, x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """A sample from x = sigmas[0] * z by DPM-Solver++(2M): one evaluation a level, second order through the one before.

    The first and the last step are of first order. Error O(1 / N^2).
    """
    previous, step_before = None, 0.0
    for sigma, following in itertools.pairwise(sigmas):
        clean = denoise(x, sigma)
        guess = clean
        step = math.log(sigma / following) if following > 0 else math.inf
        if previous is not None and following > 0:
            share = step / (2 * step_before)
            guess = (1 + share) * clean - share * previous
        x = following / sigma * x + (1 - following / sigma) * guess
        previous, step_before = clean, step
    return x


class Preconditioning(NamedTuple):
    """D(x, sigma) = skip * x + out * F(into * x, level), for data of unit standard deviation (EDM, table 1)."""

    skip: Tensor
    out: Tensor
    into: Tensor
    level: Tensor


def preconditioning(sigma: Tensor) -> Preconditioning:
    """EDM's factors at noise levels sigma, of any shape; level = ln(sigma) / 4 is what the network is told."""
    total = (1 + sigma**2).sqrt()
    return Preconditioning(1 / total**2, sigma / total, 1 / total, sigma.log() / 4)


def regression_target(clean: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
    """What F is regressed on, (clean - skip * noisy) / out: of unit variance at every level.

    Its plain squared error is EDM's loss with the weight 1 / out^2 = (sigma^2 + 1) / sigma^2. sigma broadcasts against clean.
    """
    factors = preconditioning(sigma)
    return (clean - factors.skip * noisy) / factors.out
