"""A gain for each channel and zonal wavenumber, fitted to the climate's power: what a dynamical model does by its diffusion."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SpectralGain(nn.Module):
    """Fields (..., C, H, W) times `gain` (C, W // 2 + 1) along every row of latitude; that of wavenumber 0 is 1: means stay.

    A network trained on a point-wise score hardly sees the shortest waves of a smooth field, where the truth has next to no
    power, and its roll-out gathers noise there. Ones until fitted, see `models.spectrum_fit`.
    """

    gain: Tensor

    def __init__(self, channels: int, columns: int) -> None:
        super().__init__()
        self.register_buffer("gain", torch.ones(channels, columns // 2 + 1))

    def forward(self, fields: Tensor) -> Tensor:
        columns = fields.shape[-1]
        return torch.fft.irfft(torch.fft.rfft(fields) * self.gain[:, None, :], n=columns)
