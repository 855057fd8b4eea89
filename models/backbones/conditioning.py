"""What transformers on the sphere share: rotary positions, embeddings of scalars, attention and the adaLN-zero block.

Tokens are (B, T, d), T = rows x columns of the token grid, row by row from the south.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # queries, keys, values (B, heads, T, width / heads)


class SphereRotary(nn.Module):
    """Rotary positions of a latitude-longitude grid of tokens: queries and keys (B, heads, T, head_width) are turned by position.

    latitude (h,), longitude (w,): centres of the tokens in degrees; T = h * w. head_width: a multiple of 4. Half of its pairs
    turn with longitude, by whole wavenumbers up to a quarter of the tokens on a full circle, the other half with latitude.
    Because they are whole, the product of a query and a key depends on the difference of their longitudes alone, also across
    the date line: attention does not know where the circle was cut. Two axes as in LaDCast (Zhuang and Duraisamy 2025).
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, latitude: Sequence[float] | np.ndarray, longitude: Sequence[float] | np.ndarray, head_width: int) -> None:
        super().__init__()
        if head_width % 4:
            raise ValueError(f"SphereRotary: heads of {head_width} numbers; expected a multiple of 4")
        lat, lon = (np.deg2rad(np.asarray(axis, np.float64)) for axis in (latitude, longitude))
        across = lat[:, None] * _wavenumbers(lat, head_width // 4)
        along = lon[:, None] * np.round(_wavenumbers(lon, head_width // 4))
        shape = (lat.size, lon.size, head_width // 4)
        angle = np.concatenate([np.broadcast_to(across[:, None], shape), np.broadcast_to(along[None], shape)], -1)
        flat = angle.reshape(-1, head_width // 2)
        self.register_buffer("cos", torch.tensor(np.cos(flat), dtype=torch.float32), persistent=False)
        self.register_buffer("sin", torch.tensor(np.sin(flat), dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Queries or keys (B, heads, T, head_width), turned; pairs are (i, i + head_width / 2)."""
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        first, second = x.chunk(2, -1)
        return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


def _wavenumbers(axis: np.ndarray, count: int) -> np.ndarray:
    """`count` wavenumbers of a full circle, evenly spaced in their logarithm from 1 to a quarter of the tokens that fit on it."""
    spacing = float(np.abs(np.diff(axis)).mean()) if axis.size > 1 else np.pi / 2
    return np.geomspace(1.0, max(np.pi / 2 / spacing, 1.0), count)


def cell_centres(axis: np.ndarray, count: int, cell: int) -> np.ndarray:
    """Centres of `count` cells of `cell` neighbouring coordinates; beyond its end the axis goes on as it ended."""
    beyond = axis[-1] + (axis[-1] - axis[-2]) * np.arange(1, cell * count - axis.size + 1)
    centres: np.ndarray = np.concatenate([axis, beyond]).reshape(count, cell).mean(1)
    return centres


def sinusoidal(values: Tensor, width: int, longest: float = 1e4) -> Tensor:
    """Numbers (B,) as (B, width) cosines and sines of them times rates from 1 to 1 / longest (Vaswani et al. 2017); float32.

    width: even. Numbers that differ by about 1 must be told apart: scale small ones (ln(sigma) / 4) up first.
    """
    rates = torch.logspace(0, -float(np.log10(longest)), width // 2, device=values.device)
    angle = values.float()[:, None] * rates
    return torch.cat([angle.cos(), angle.sin()], -1)


def heads_of(width: int, least: int = 32) -> int:
    """Number of attention heads for a width: each at least `least` wide, and a multiple of 4 as `SphereRotary` needs."""
    return next(heads for heads in range(max(1, width // least), 0, -1) if width % (4 * heads) == 0)


class Attention(nn.Module):
    """Self-attention over all tokens. `split` and `merge` are its two ends, for streams that attend jointly."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def split(self, tokens: Tensor, rotary: SphereRotary | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, heads, T, width / heads) of tokens (B, T, width), the first two turned by position."""
        q, k, v = self.to_qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return (q, k, v) if rotary is None else (rotary(q), rotary(k), v)

    def merge(self, attended: Tensor) -> Tensor:
        """(B, heads, T, width / heads) to (B, T, width)."""
        return self.out(attended.transpose(1, 2).flatten(-2))

    def forward(self, tokens: Tensor, rotary: SphereRotary | None) -> Tensor:
        return self.merge(F.scaled_dot_product_attention(*self.split(tokens, rotary)))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, T, d), scaled and shifted by (B, 1, d) for all tokens alike, or by (B, T, d) token by token."""
    return x * (1 + scale) + shift


class Modulated(nn.Module):
    """Transformer block whose normalisations and gates follow a conditioning vector: adaLN-zero (Peebles and Xie 2023).

    The modulation starts at zero: the block is the identity until it is trained. conditioning: length of the vector. local:
    number of fields that shift and scale the second normalisation token by token (AIFS-CRPS, Lang et al. 2024).
    """

    def __init__(
        self, width: int, heads: int, conditioning: int, *, local: int = 0, dropout: float = 0.0, expansion: int = 4
    ) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = Attention(width, heads)
        self.norm_mlp = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, expansion * width), nn.GELU(approximate="tanh"), nn.Linear(expansion * width, width)
        )
        self.dropout = nn.Dropout(dropout)
        self.to_affine = nn.Linear(conditioning, 6 * width)
        self.to_local = nn.Linear(local, 2 * width, bias=False) if local else None
        zero_(self.to_affine)
        if self.to_local is not None:
            nn.init.normal_(self.to_local.weight, std=0.05)

    def forward(
        self, tokens: Tensor, conditioning: Tensor, rotary: SphereRotary | None = None, local: Tensor | None = None
    ) -> Tensor:
        """tokens (B, T, width), conditioning (B, conditioning), local (B, T, local); returns (B, T, width)."""
        return self.joint(tokens, conditioning, rotary, local=local)[0]

    def joint(
        self, tokens: Tensor, conditioning: Tensor, rotary: SphereRotary | None = None, *, local: Tensor | None = None,
        beside: tuple[Tensor, Tensor] | None = None, attend: Attend = F.scaled_dot_product_attention,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # fmt: skip
        """The same, the tokens attending to the keys and values `beside` (B, heads, T', width / heads) too; and their own."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.to_affine(F.silu(conditioning))[:, None].chunk(6, -1)
        query, *own = self.attention.split(modulate(self.norm_attention(tokens), shift, scale), rotary)
        keys, values = own if beside is None else (torch.cat([mine, other], 2) for mine, other in zip(own, beside, strict=True))
        tokens = tokens + gate * self.dropout(self.attention.merge(attend(query, keys, values)))
        if self.to_local is not None and local is not None:
            own_shift, own_scale = self.to_local(local).chunk(2, -1)
            shift_mlp, scale_mlp = shift_mlp + own_shift, scale_mlp + own_scale
        tokens = tokens + gate_mlp * self.dropout(self.mlp(modulate(self.norm_mlp(tokens), shift_mlp, scale_mlp)))
        return tokens, (own[0], own[1])


def zero_(layer: nn.Linear | nn.Conv2d) -> None:
    """Start a layer at zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
