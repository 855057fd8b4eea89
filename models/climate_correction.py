"""Gains by zonal wavenumber and offsets of the global mean, fitted so that long roll-outs keep the climate of the analyses.

What a dynamical model does by its diffusion and, where it drifts, by a flux adjustment (Sausen et al. 1988).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ClimateCorrection(nn.Module):
    """Fields (..., C, H, W) times `gain` (C, W // 2 + 1) along every row of latitude, plus `offset` (C,).

    A network trained on a point-wise score hardly sees the shortest waves of a smooth field, where the truth has next to no
    power, and small errors of the mean of one step: over many steps, noise gathers and means drift. The gain of wavenumber 0 is
    1. Ones and zeros until fitted, see `models.climate_fit`.
    """

    gain: Tensor
    offset: Tensor

    def __init__(self, channels: int, columns: int) -> None:
        super().__init__()
        self.register_buffer("gain", torch.ones(channels, columns // 2 + 1))
        self.register_buffer("offset", torch.zeros(channels))

    def forward(self, fields: Tensor) -> Tensor:
        columns = fields.shape[-1]
        return torch.fft.irfft(torch.fft.rfft(fields) * self.gain[:, None, :], n=columns) + self.offset[:, None, None]
