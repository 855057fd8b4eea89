"""The denoiser of latent diffusion: a transformer on the latent grid with one stream for the past and one for the noisy future.

Dual streams with joint attention, then single blocks, as in LaDCast (Zhuang and Duraisamy 2025, arXiv 2506.09193). Here the past
does not look at the noisy stream: it is then the same at every noise level and is computed once a step, not once an evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from data_pipeline.recipe import Section
from models.backbones.conditioning import Modulated, SphereRotary, heads_of, modulate, sinusoidal
from models.backbones.sphere import Pad
from models.backbones.unet import Conv

LEVEL_SCALE, LEVEL_WIDTH = 32.0, 64  # ln(sigma) / 4 runs from -1 to 1: times 32 the fastest of the 32 waves tells 3 % apart


class DenoiserOptions(Section):
    """Sizes: width of the tokens, blocks that both streams pass (dual) and the noisy one alone (single), hidden width of a
    block's perceptron in widths (expansion), length of the vector that modulates every block (conditioning)."""

    width: int = Field(default=160, gt=0, multiple_of=8)
    dual: int = Field(default=2, ge=1)
    single: int = Field(default=4, ge=0)
    expansion: int = Field(default=2, ge=1)
    conditioning: int = Field(default=64, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class Context(NamedTuple):
    """What a step knows before any noise: keys and values of the past in each dual block, its last tokens, planes and scalars."""

    beside: list[tuple[Tensor, Tensor]]
    tokens: Tensor
    fields: Tensor
    scalars: Tensor


class Denoiser(nn.Module):
    """F(x, level | past, forcing): latents in, latents out, on a latent grid of one token a point.

    shape: (k, h, w) of the latents; n_past: channels of the past latents, all frames; n_planes: forcing planes at the latent
    resolution, n_scalars: numbers that hold everywhere (season, hour). latitude (h,), longitude (w,): degrees of the tokens.
    The head is zero at first: an untrained denoiser answers 0.
    """

    def __init__(
        self, shape: tuple[int, int, int], n_past: int, n_planes: int, n_scalars: int, options: DenoiserOptions, *, pad: Pad,
        latitude: Sequence[float] | np.ndarray, longitude: Sequence[float] | np.ndarray,
    ) -> None:  # fmt: skip
        super().__init__()
        k, height, width = shape
        d, self.shape = options.width, shape
        heads = heads_of(d)

        def blocks(count: int) -> nn.ModuleList:
            sizes = (d, heads, options.conditioning)
            own = (Modulated(*sizes, dropout=options.dropout, expansion=options.expansion) for _ in range(count))
            return nn.ModuleList(own)

        self.rotary = SphereRotary(latitude, longitude, d // heads)
        self.position = nn.Parameter(0.02 * torch.randn(d, height, width))
        self.embed_past = Conv(n_past + n_planes, d, pad)
        self.embed_noisy = Conv(k, d, pad)
        self.enter = nn.Conv2d(n_past + n_planes, d, 1)
        self.scalars = nn.Linear(n_scalars, options.conditioning) if n_scalars else None
        self.level = nn.Linear(LEVEL_WIDTH, options.conditioning)
        self.mixed = nn.Linear(options.conditioning, options.conditioning)
        self.past, self.dual, self.single = blocks(options.dual), blocks(options.dual), blocks(options.single)
        self.join = nn.Linear(d, d)
        self.norm = nn.LayerNorm(d, elementwise_affine=False)
        self.to_affine = nn.Linear(options.conditioning, 2 * d)
        self.head = Conv(d, k, pad, zero=True)

    def context(self, past: Tensor, planes: Tensor, scalars: Tensor) -> Context:
        """The part of the network that no noise enters; past (B, n_past, h, w), planes (B, n_planes, h, w), scalars (B, s)."""
        fields = torch.cat([past, planes], 1)
        tokens = _tokens(self.embed_past(fields) + self.position)
        embedding = self._embedding(scalars)
        beside = []
        for block in self.past:
            tokens, own = block.joint(tokens, embedding, self.rotary, attend=_attention)  # type: ignore[operator]
            beside.append(own)
        return Context(beside, self.join(tokens), fields, scalars)

    def forward(self, noisy: Tensor, level: Tensor, context: Context) -> Tensor:
        """noisy (B, k, h, w), of unit variance; level (B,), ln(sigma) / 4. Returns (B, k, h, w)."""
        wave = sinusoidal(LEVEL_SCALE * level, LEVEL_WIDTH, longest=256.0).to(noisy.dtype)
        embedding = self._embedding(context.scalars, self.level(wave))
        tokens = _tokens(self.embed_noisy(noisy) + self.enter(context.fields) + self.position)
        for block, beside in zip(self.dual, context.beside, strict=True):
            tokens, _ = block.joint(tokens, embedding, self.rotary, beside=beside, attend=_attention)  # type: ignore[operator]
        tokens = tokens + context.tokens
        for block in self.single:
            tokens, _ = block.joint(tokens, embedding, self.rotary, attend=_attention)  # type: ignore[operator]
        shift, scale = self.to_affine(F.silu(embedding))[:, None].chunk(2, -1)
        tokens = modulate(self.norm(tokens), shift, scale)
        out: Tensor = self.head(tokens.transpose(1, 2).unflatten(2, self.shape[1:]))
        return out

    def _embedding(self, scalars: Tensor, level: Tensor | float = 0.0) -> Tensor:
        own = scalars.new_zeros(len(scalars), self.mixed.in_features) if self.scalars is None else self.scalars(scalars)
        out: Tensor = self.mixed(F.silu(own + level))
        return out


def _tokens(fields: Tensor) -> Tensor:
    return fields.flatten(2).transpose(1, 2)


def _attention(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax attention, written out on a CPU: over a few hundred tokens in bfloat16 the fused backward took half of all time."""
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, keys, values)
    scores = (query * query.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    return scores.softmax(-1) @ values
