"""Coarse latents beside a backbone: from fields down to them, and from them up to smooth fields."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_pipeline.grid import Grid
from models.backbones.conditioning import zero_
from models.backbones.network import Backbone
from models.backbones.sphere import extended, padding
from models.backbones.unet import Conv


class Domain(NamedTuple):
    """Where coarse fields live: the grid, the rows and columns that extend it, and how many points of it a coarse cell has."""

    shape: tuple[int, ...]
    extra: tuple[int, ...]
    cell: tuple[int, ...]
    is_global: bool
    polar_rows: bool

    @classmethod
    def of(cls, grid: Grid, net: Backbone) -> Domain:
        """The domain of a backbone's local fields."""
        cell = tuple((size + more) // n for size, more, n in zip(grid.shape, net.extra, net.local_shape[1:], strict=True))
        return cls(grid.shape, net.extra, cell, grid.is_global, net.polar_rows)

    def extended(self, fields: Tensor, signs: Tensor | None) -> Tensor:
        """Fields (B, n, H, W) on whole coarse cells; signs: -1 for what turns at the poles."""
        return extended(fields, self.extra, is_global=self.is_global, pole_signs=signs, polar_rows=self.polar_rows)

    def pad(self, fields: Tensor, signs: Tensor | None = None) -> Tensor:
        """One ring around coarse fields."""
        return padding(self.is_global, self.polar_rows and self.cell == (1, 1))(fields, signs)


class Encoder(nn.Module):
    """Planes (B, n_in, H, W) to two numbers a latent, (B, 2, vector + local * h * w): zeros at the start.

    signs: -1 where a plane turns at the poles. The points of a coarse cell fold into channels, so that every convolution is
    coarse: a small part of the decoder's cost.
    """

    signs: Tensor | None

    def __init__(
        self, n_in: int, domain: Domain, signs: Tensor | None, *, vector: int, local: int, width: int, layers: int
    ) -> None:
        super().__init__()
        self.domain = domain
        self.register_buffer("signs", signs, persistent=False)
        self.enter = nn.Conv2d(n_in * math.prod(domain.cell), width, 1)
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for _ in range(layers + 1))
        self.convs = nn.ModuleList(Conv(width, width, domain.pad) for _ in range(layers))
        self.to_vector = nn.Linear(width, 2 * vector) if vector else None
        self.to_fields = Conv(width, 2 * local, domain.pad, zero=True)
        if self.to_vector is not None:
            zero_(self.to_vector)

    def forward(self, planes: Tensor) -> Tensor:
        rows, columns = self.domain.cell
        folded = self.domain.extended(planes, self.signs).unflatten(-1, (-1, columns)).unflatten(-3, (-1, rows))
        h = self.enter(folded.permute(0, 1, 3, 5, 2, 4).flatten(1, 3))
        for norm, conv in zip(self.norms, self.convs, strict=False):
            h = h + conv(F.silu(norm(h)))
        h = F.silu(self.norms[-1](h))
        found = [self.to_fields(h).unflatten(1, (2, -1)).flatten(2)]
        if self.to_vector is not None:
            found.insert(0, self.to_vector(h.mean((-2, -1))).unflatten(1, (2, -1)))
        return torch.cat(found, 2).float()


class Perturbation(nn.Module):
    """Coarse fields to smooth ones: a linear map of 3x3 coarse cells, zero at the start, then bilinear interpolation.

    Called to_local as every map of noise in the networks, which weight decay would put to sleep.
    """

    signs: Tensor | None

    def __init__(self, n_in: int, n_out: int, domain: Domain, signs: Tensor | None) -> None:
        super().__init__()
        self.domain = domain
        self.to_local = nn.Conv2d(n_in, n_out, 3, bias=False)
        self.register_buffer("signs", signs, persistent=False)
        nn.init.zeros_(self.to_local.weight)

    def forward(self, coarse: Tensor) -> Tensor:
        """coarse: (B, n_in, h, w), float32. Returns (B, n_out, H, W)."""
        mixed = F.conv2d(self.domain.pad(coarse), self.to_local.weight.float())
        (height, width), (rows, columns) = self.domain.shape, self.domain.cell
        fine = F.interpolate(
            self.domain.pad(mixed, self.signs), scale_factor=(float(rows), float(columns)), mode="bilinear", align_corners=False
        )
        return fine[..., rows : rows + height, columns : columns + width]
