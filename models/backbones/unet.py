"""A noise-conditioned U-Net: convolutions that know the sphere, conditional normalisation that carries the noise.

The noise enters as in FGN (Alet et al. 2025): one global vector per member and step scales and shifts every normalisation; as
in AIFS-CRPS (Lang et al. 2024): coarse independent fields add a local part. Both act on hidden features, never on pixels of
the output grid, so perturbations come out smooth.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_pipeline.errors import InputError
from models.backbones.sphere import Pad, extended, padding


class Conv(nn.Module):
    """A 3x3 convolution after the domain's own padding."""

    pole_signs: Tensor | None

    def __init__(self, n_in: int, n_out: int, pad: Pad, pole_signs: Tensor | None = None, zero: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, 3)
        self.pad = pad
        self.register_buffer("pole_signs", pole_signs, persistent=False)
        if zero:
            nn.init.zeros_(self.conv.weight)
            nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.pad(x, self.pole_signs))


class Block(nn.Module):
    """Residual block; the second normalisation is scaled and shifted by the noise, globally and locally."""

    def __init__(self, n_in: int, n_out: int, embedding: int, local: int, pad: Pad, dropout: float) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(8, n_in)
        self.conv_in = Conv(n_in, n_out, pad)
        self.norm = nn.GroupNorm(8, n_out, affine=False)
        self.to_affine = nn.Linear(embedding, 2 * n_out)
        self.to_local = nn.Conv2d(local, 2 * n_out, 1, bias=False) if local else None
        self.dropout = nn.Dropout2d(dropout)
        self.conv_out = Conv(n_out, n_out, pad, zero=True)
        self.skip = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        if self.to_local is not None:
            nn.init.normal_(self.to_local.weight, std=0.05)

    def forward(self, x: Tensor, embedding: Tensor, local: Tensor | None) -> Tensor:
        h = self.norm(self.conv_in(F.silu(self.norm_in(x))))
        affine = self.to_affine(embedding)[..., None, None]
        if self.to_local is not None and local is not None:
            affine = affine + self.to_local(local)
        scale, shift = affine.chunk(2, 1)
        return self.skip(x) + self.conv_out(self.dropout(F.silu(h * (1 + scale) + shift)))


class UNet(nn.Module):
    """Fields in, fields out, at the same resolution.

    shape: (H, W) of the grid; it is extended to a multiple of the coarsest cell and cropped at the end. patch 2 folds 2x2 points
    into channels before the trunk (fewer, wider convolutions). widths: channels of each level, each level half as fine.
    noise: length of the global vector; local_noise: number of coarse noise fields, at the resolution of the last level but one.
    pole_signs: (n_in,) with -1 where an input is a vector component (it flips across a pole). polar_rows: the first and the last
    row lie on the poles. Raises InputError for a globe whose longitudes cannot be halved: cutting the circle would leave a seam.
    """

    pole_signs: Tensor | None

    def __init__(
        self,
        n_in: int,
        n_out: int,
        shape: tuple[int, int],
        *,
        widths: tuple[int, ...],
        blocks: int,
        patch: int,
        noise: int,
        local_noise: int,
        is_global: bool,
        dropout: float = 0.0,
        position: int = 8,
        pole_signs: Tensor | None = None,
        polar_rows: bool = False,
    ) -> None:
        super().__init__()
        pad, fine = padding(is_global), padding(is_global, polar_rows)
        self.shape, self.patch, self.is_global, self.polar_rows = shape, patch, is_global, polar_rows
        cell = patch * 2 ** (len(widths) - 1)
        if is_global and shape[1] % cell:
            raise InputError(
                f"model: {shape[1]} longitudes around the globe are not a multiple of {cell}, the coarsest cell of patch {patch} "
                f"and {len(widths)} widths; give fewer widths, patch = 1, or another analysis.grid"
            )
        self.extra = tuple((-size) % cell for size in shape)
        full = tuple(size + extra for size, extra in zip(shape, self.extra, strict=True))
        self.noise = noise
        self.local_level = max(len(widths) - 2, 0)
        local_cell = patch * 2**self.local_level
        self.local_shape = (local_noise, full[0] // local_cell, full[1] // local_cell)
        embedding = 2 * widths[0]
        self.embed = nn.Sequential(nn.Linear(noise, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.position = nn.Parameter(0.02 * torch.randn(position, *shape))
        signs = None if pole_signs is None else torch.cat([pole_signs, torch.ones(position)])
        self.register_buffer("pole_signs", signs, persistent=False)
        n_stem = n_in + position
        self.stem = Conv(n_stem, widths[0] // patch**2 * 2 if patch > 1 else widths[0], fine, signs)
        n_trunk = self.stem.conv.out_channels * patch**2
        self.enter = nn.Conv2d(n_trunk, widths[0], 1) if patch > 1 else nn.Identity()

        def stage(n_from: int, n_to: int, level: int) -> nn.ModuleList:
            sizes, own = [n_from] + [n_to] * blocks, fine if level == 0 and patch == 1 else pad
            return nn.ModuleList(Block(a, b, embedding, local_noise, own, dropout) for a, b in itertools.pairwise(sizes))

        self.down = nn.ModuleList(stage(widths[max(i - 1, 0)], width, i) for i, width in enumerate(widths))
        self.middle = stage(widths[-1], widths[-1], len(widths) - 1)
        self.up = nn.ModuleList(stage(widths[i + 1] + widths[i], widths[i], i) for i in reversed(range(len(widths) - 1)))
        self.norm_out = nn.GroupNorm(8, widths[0])
        n_fine = widths[0] // patch**2 if patch > 1 else widths[0]
        self.leave = nn.Conv2d(widths[0], n_fine * patch**2, 1) if patch > 1 else nn.Identity()
        n_last = n_fine + self.stem.conv.out_channels if patch > 1 else n_fine
        self.head = Conv(n_last, n_out, fine, zero=True)

    def forward(self, x: Tensor, noise: Tensor, local: Tensor) -> Tensor:
        """x: (B, n_in, H, W); noise: (B, noise); local: (B, local_noise, h, w). Returns (B, n_out, H, W)."""
        height, width = self.shape
        embedding = self.embed(noise)
        position = self.position.expand(x.shape[0], -1, -1, -1)
        fine = self.stem(self._extended(torch.cat([x, position], 1)))
        h = self.enter(F.pixel_unshuffle(fine, self.patch)) if self.patch > 1 else fine
        locals_ = self._local_pyramid(local)
        skips: list[Tensor] = []
        for i, stage in enumerate(self.down):
            h = h if i == 0 else F.avg_pool2d(h, 2)
            for block in stage:  # type: ignore[attr-defined]
                h = block(h, embedding, locals_[i])
            skips.append(h)
        for block in self.middle:
            h = block(h, embedding, locals_[-1])
        skips.pop()
        for stage in self.up:
            level = len(skips) - 1
            h = torch.cat([F.interpolate(h, scale_factor=2), skips.pop()], 1)
            for block in stage:  # type: ignore[attr-defined]
                h = block(h, embedding, locals_[level])
        h = F.silu(self.norm_out(h))
        if self.patch > 1:
            h = torch.cat([F.silu(F.pixel_shuffle(self.leave(h), self.patch)), fine], 1)
        return self.head(h)[..., :height, :width]

    def _extended(self, x: Tensor) -> Tensor:
        return extended(x, self.extra, is_global=self.is_global, pole_signs=self.pole_signs, polar_rows=self.polar_rows)

    def _local_pyramid(self, local: Tensor) -> list[Tensor | None]:
        """The coarse noise fields at the resolution of every level, finest first, each of unit variance at a point."""
        if not self.local_shape[0]:
            return [None] * len(self.down)
        finer = [F.interpolate(local, scale_factor=2 ** (self.local_level - i)) for i in range(self.local_level)]
        coarser = [2 * F.avg_pool2d(local, 2)] if self.local_level < len(self.down) - 1 else []
        return [*finer, local, *coarser]
