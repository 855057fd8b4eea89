"""The autoencoder of latent diffusion: fields to a coarse latent and back, and what it loses on the way.

The shortcut between space and channels (DC-AE, Chen et al. 2024; LaDCast, arXiv 2506.09193) carries principal components here
instead of plain means: of all cells of a latitude band, in units in which every channel counts alike. Convolutions on the sphere
learn what they miss. No KL: latents are z-scored by their own statistics.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.recipe import Section
from models.backbones.sphere import Pad, extended, has_polar_rows, padding
from models.backbones.unet import Conv

POOLED, WAVES = 0.1, 0.1  # weights of these terms of the loss beside the point-wise one's 1
TYPICAL = 3.0  # a field's deviation from its mean, in 12 h tendencies: the convolutions see numbers of order 1


class AutoencoderOptions(Section):
    """Sizes: ae_widths and ae_blocks of residual convolutions at 1/2, 1/4 ... of the resolution, latent channels, and latitude
    bands that have principal components of their own."""

    ae_widths: tuple[int, ...] = (64, 112)
    ae_blocks: tuple[int, ...] = (1, 1)
    latents: int = Field(default=48, gt=0)
    bands: int = Field(default=8, gt=0)

    @field_validator("ae_widths")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1:
            raise ValueError(f"ae_widths {list(value)}: at least one positive width, finest first")
        return value

    @model_validator(mode="after")
    def _as_many(self) -> AutoencoderOptions:
        if len(self.ae_blocks) != len(self.ae_widths) or min(self.ae_blocks) < 0:
            raise ValueError(f"ae_blocks {list(self.ae_blocks)}: expected one for each of the {len(self.ae_widths)} ae_widths")
        return self


class Residual(nn.Module):
    """x + convolutions of x; the last one starts at zero, so that an untrained block passes its input on."""

    def __init__(self, width: int, pad: Pad) -> None:
        super().__init__()
        self.conv_in = Conv(width, width, pad)
        self.conv_out = Conv(width, width, pad, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv_out(F.silu(self.conv_in(F.silu(x))))
        return out


class Autoencoder(nn.Module):
    """Normalised fields (B, C, H, W) <-> latents (B, k, h, w), a cell of 2 ** levels points a side.

    centre (C, H, W): the training mean at each point. basis (bands, C * cell * cell, k): orthonormal principal components of
    cells of deviations from it, in units of `unit`. Both are set by `fit` and kept in the checkpoint. The grid is extended to
    whole cells and cropped at the end. unit: (C, 1, 1), deviations that count alike; pole_signs: (C,), -1 for components of
    vectors. Raises InputError for a globe whose longitudes are no whole cells or cannot be halved then, and for more latents than
    a cell has numbers.
    """

    centre: Tensor
    basis: Tensor
    unit: Tensor
    area: Tensor
    band: Tensor
    pole_signs: Tensor | None

    def __init__(
        self, n_channels: int, grid: Grid, options: AutoencoderOptions, *, unit: Tensor, pole_signs: Tensor | None
    ) -> None:
        super().__init__()
        widths, k = options.ae_widths, options.latents
        self.cell = cell = 2 ** len(widths)
        self.shape, self.is_global = grid.shape, grid.is_global
        if self.is_global and grid.shape[1] % (2 * cell):
            raise InputError(
                f"model: {grid.shape[1]} longitudes around the globe are not a multiple of {2 * cell}, twice the cell of "
                f"{len(widths)} ae_widths; give fewer ae_widths, or another analysis.grid"
            )
        numbers = n_channels * cell**2
        if k > numbers:
            raise InputError(f"model.options.latents {k}: a cell of {cell}x{cell} points has {numbers} numbers, no more to keep")
        self.polar_rows = has_polar_rows(grid)
        self.extra = ((-grid.shape[0]) % cell, (-grid.shape[1]) % cell)
        height, width = ((size + extra) // cell for size, extra in zip(grid.shape, self.extra, strict=True))
        self.latent_shape = (k, height, width)
        bands = min(options.bands, height)
        self.register_buffer("centre", torch.zeros(n_channels, *grid.shape))
        self.register_buffer("basis", torch.zeros(bands, numbers, k))
        self.register_buffer("unit", unit, persistent=False)
        self.register_buffer("band", torch.arange(height) * bands // height, persistent=False)
        area = torch.tensor(grid.area_weights, dtype=torch.float32)[None, None]
        self.register_buffer("area", self.pooled(area)[0, 0], persistent=False)
        self.register_buffer("pole_signs", pole_signs, persistent=False)
        self.pad, self.fine = padding(self.is_global), padding(self.is_global, self.polar_rows)
        coarser = list(itertools.pairwise(widths))
        blocks = [[Residual(width, self.pad) for _ in range(2 * n)] for width, n in zip(widths, options.ae_blocks, strict=True)]
        down, up = ([own[half::2] for own in blocks] for half in (0, 1))
        folds = [[], *([nn.PixelUnshuffle(2), nn.Conv2d(4 * a, b, 1)] for a, b in coarser)]
        unfolds = [[], *([nn.Conv2d(b, 4 * a, 1), nn.PixelShuffle(2)] for a, b in coarser)]
        self.stem = nn.Conv2d(n_channels, widths[0], 4, stride=2)
        self.down = nn.Sequential(*(layer for fold, own in zip(folds, down, strict=True) for layer in (*fold, *own)))
        self.to_latent = Conv(widths[-1], k, self.pad, zero=True)
        self.from_latent = Conv(k, widths[-1], self.pad)
        self.up = nn.Sequential(*(layer for own, unfold in [*zip(up, unfolds, strict=True)][::-1] for layer in (*own, *unfold)))
        self.position = nn.Parameter(torch.zeros(widths[0], height * cell // 2, width * cell // 2))
        self.head = Conv(widths[0], 4 * n_channels, self.pad, zero=True)

    def encode(self, fields: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Latents (B, k, h, w) in float32 of fields (B, C, H, W); the convolutions compute in `dtype`."""
        deviation = self._deviation(fields)
        linear = torch.einsum("bnhw,hnk->bkhw", self._cells(deviation), self.basis[self.band])
        x = self.fine((deviation / TYPICAL).to(dtype, memory_format=torch.channels_last), self.pole_signs)
        latents: Tensor = linear + self.to_latent(self.down(self.stem(x))).float()
        return latents

    def decode(self, latents: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Fields (B, C, H, W) in float32 of latents (B, k, h, w)."""
        height, width = self.shape
        linear = torch.einsum("bkhw,hnk->bnhw", latents, self.basis[self.band])
        x = self.up(self.from_latent((latents / TYPICAL).to(dtype, memory_format=torch.channels_last)))
        learned = F.pixel_shuffle(self.head(F.silu(x + self.position)), 2).float()
        deviation = F.pixel_shuffle(linear, self.cell) + learned
        return self.centre + self.unit * deviation[..., :height, :width]

    @torch.no_grad()
    def fit(self, fields: Iterable[Tensor]) -> None:
        """Set `centre` and `basis` from batches (N, C, H, W) of all training analyses.

        The components of every band are turned within their span towards those of the whole grid, so that a latent channel means
        the same at neighbouring latitudes as far as it can. Raises InputError if there are no analyses.
        """
        (k, height, width), numbers = self.latent_shape, self.basis.shape[1]
        count, first = 0, torch.zeros(numbers, height, width, dtype=torch.float64)
        second = torch.zeros(height, numbers, numbers, dtype=torch.float64)
        self.centre.zero_()
        for batch in fields:
            cells = self._cells(self._deviation(batch.to(self.centre.device))).cpu().double()
            count, first = count + len(cells), first + cells.sum(0)
            rows = cells.permute(2, 1, 0, 3).flatten(2)
            second += rows @ rows.mT
        if not count:
            raise InputError("autoencoder: no training analyses to take the climate from")
        mean = first / count
        covariance = second / count - torch.einsum("nhw,mhw->hnm", mean, mean)
        weighted = covariance * self.area.cpu().double().mean(1)[:, None, None]
        bands = torch.zeros(len(self.basis), numbers, numbers, dtype=torch.float64).index_add(0, self.band.cpu(), weighted)
        whole, own = (torch.linalg.eigh(matrix)[1][..., -k:].flip(-1) for matrix in (weighted.sum(0), bands))
        left, _, right = torch.linalg.svd(own.mT @ whole)
        self.basis.copy_(own @ (left @ right))
        climate = F.pixel_shuffle(mean[None].to(self.unit), self.cell)[0, :, : self.shape[0], : self.shape[1]]
        self.centre.copy_(self.unit * climate)

    def pooled(self, planes: Tensor) -> Tensor:
        """Means over the cells of planes (B, n, H, W), the last row and column repeated where the grid is extended."""
        rows, columns = self.extra
        return F.avg_pool2d(F.pad(planes, (0, columns, 0, rows), mode="replicate"), self.cell)

    def _deviation(self, fields: Tensor) -> Tensor:
        """Deviations from the centre in units that count alike, on the extended grid."""
        deviation = (fields - self.centre) / self.unit
        return extended(deviation, self.extra, is_global=self.is_global, pole_signs=self.pole_signs, polar_rows=self.polar_rows)

    def _cells(self, fields: Tensor) -> Tensor:
        """Fields (B, C, H, W) on the extended grid as (B, C * cell * cell, h, w)."""
        return F.pixel_unshuffle(fields, self.cell)


def reconstruction_loss(fields: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean absolute error of fields (B, C, H, W), plus 0.1 x that of 2x and 4x pooled errors and of their zonal waves.

    weight: (C, H, W), area, channel and one over the tendency std. The waves are those of the error, row by row, orthonormal, so
    that white noise has the same magnitude in each. Float32.
    """
    error = (fields - truth).float() * weight
    total = error.abs().mean() + WAVES * torch.fft.rfft(error, dim=-1, norm="ortho").abs().mean()
    for size in (2, 4):
        if min(error.shape[-2:]) >= size:
            total = total + POOLED * F.avg_pool2d(error, size).abs().mean()
    return total


def spectral_ratio(fields: Tensor, truth: Tensor, area: Tensor) -> Tensor:
    """Power of fields (B, C, H, W) over that of truth by channel and zonal wavenumber, (C, W / 2 + 1); 1: nothing smoothed.

    area: (H, W); rows are averaged with it. 1 as well where the truth has no power.
    """
    power = [(torch.fft.rfft(x.double(), dim=-1).abs().square() * area[:, :1]).mean((0, 2)) for x in (fields, truth)]
    return torch.where(power[1] > 0, power[0] / power[1].clamp_min(torch.finfo(torch.float64).tiny), 1.0).float()
