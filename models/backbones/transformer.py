"""A noise-conditioned transformer with the call of the U-Net: patches of every variable, attention over the whole sphere.

Variables are embedded apart and aggregated by attention, blocks are modulated by the conditioning vector, as in Stormer (Nguyen
et al. 2024, arXiv 2312.03876); positions are rotary on the sphere. The answer is put together at full resolution by a
convolution that sees the input planes, so that patches leave no seams.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from models.backbones.conditioning import Modulated, SphereRotary, cell_centres, heads_of, modulate, zero_
from models.backbones.sphere import extended, padding
from models.backbones.unet import Conv


class VariableEmbedding(nn.Module):
    """Planes (B, n, H, W) to tokens (B, T, width): patches of each variable embedded apart, aggregated by cross attention.

    names: one a plane; planes of one name are one variable, its frames. A learned query of each head attends to the variables of
    a token (Nguyen et al. 2023, arXiv 2301.10343). Query and embedding are linear, so keys and values fold into one matrix each:
    scores and tokens come straight from the patches, and the embeddings of all variables are never stored.
    """

    membership: Tensor

    def __init__(self, names: Sequence[str], width: int, heads: int, patch: int) -> None:
        super().__init__()
        self.patch, variables = patch, list(dict.fromkeys(names))
        belongs = [[float(name == variable) for name in names] for variable in variables]
        self.register_buffer("membership", torch.tensor(belongs), persistent=False)
        size = len(names) * patch**2
        self.to_score = nn.Parameter(0.02 * torch.randn(len(names), patch**2, heads))
        self.score_of_variable = nn.Parameter(torch.zeros(len(variables), heads))
        self.to_token = nn.Parameter(torch.randn(heads, size, width // heads) / size**0.5)
        self.token_of_variable = nn.Parameter(0.02 * torch.randn(heads, len(variables), width // heads))

    def forward(self, planes: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(planes, self.patch).flatten(2).transpose(1, 2).unflatten(-1, (-1, self.patch**2))
        belongs = self.membership.to(planes.dtype)
        scores = torch.einsum("btpk,pkh,vp->bthv", patches, self.to_score, belongs) + self.score_of_variable.t()
        share = len(belongs) * scores.softmax(-1).movedim(2, 0)  # 1 for every variable where scores are equal
        weighted = ((share @ belongs)[..., None] * patches).flatten(-2)
        tokens = weighted.flatten(1, 2) @ self.to_token + share.flatten(1, 2) @ self.token_of_variable
        return tokens.unflatten(1, patches.shape[:2]).permute(1, 2, 0, 3).flatten(-2)


class Transformer(nn.Module):
    """Fields in, fields out, at the same resolution.

    planes: names of the input planes. The grid is extended to a multiple of two patches and cropped at the end. vector: length of
    the conditioning vector; local: number of coarse conditioning fields, each value for 2 x 2 tokens. position: number of learned
    planes beside the inputs. pole_signs, polar_rows: as for the U-Net. Raises InputError for a globe whose longitudes two patches
    do not divide: cutting the circle would leave a seam.
    """

    pole_signs: Tensor | None

    def __init__(
        self,
        planes: Sequence[str],
        n_out: int,
        grid: Grid,
        *,
        width: int,
        blocks: int,
        patch: int,
        vector: int,
        local: int,
        dropout: float = 0.0,
        position: int = 8,
        pole_signs: Tensor | None = None,
        polar_rows: bool = False,
    ) -> None:
        super().__init__()
        self.shape, self.is_global, self.polar_rows, cell = grid.shape, grid.is_global, polar_rows, 2 * patch
        if grid.is_global and grid.shape[1] % cell:
            raise InputError(
                f"model: {grid.shape[1]} longitudes around the globe are not a multiple of {cell}, two patches of {patch}; give "
                f"a smaller model.options.patch, or another analysis.grid"
            )
        self.patch, self.extra = patch, tuple((-size) % cell for size in grid.shape)
        rows, columns = ((size + extra) // patch for size, extra in zip(grid.shape, self.extra, strict=True))
        self.local_shape = (local, rows // 2, columns // 2)
        self.position = nn.Parameter(0.02 * torch.randn(position, *grid.shape))
        signs = None if pole_signs is None else torch.cat([pole_signs, torch.ones(position)])
        self.register_buffer("pole_signs", signs, persistent=False)
        heads, embedding = heads_of(width, 32 if width < 128 else 64), max(64, width // 2)  # wide heads are the cheap ones
        self.embed = nn.Sequential(nn.Linear(vector, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        names = [*planes, *(f"learned position {i}" for i in range(position))]
        self.enter = VariableEmbedding(names, width, heads, patch)
        latitude, longitude = cell_centres(grid.latitude, rows, patch), cell_centres(grid.longitude, columns, patch)
        self.rotary = SphereRotary(latitude, longitude, width // heads)
        self.blocks = nn.ModuleList(Modulated(width, heads, embedding, local=local, dropout=dropout) for _ in range(blocks))
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False)
        self.to_affine = nn.Linear(embedding, 2 * width)
        zero_(self.to_affine)
        n_fine = max(8, width // patch**2)
        self.leave = nn.Linear(width, n_fine * patch**2)
        fine_signs = None if signs is None else torch.cat([torch.ones(n_fine), signs])
        self.head = Conv(n_fine + len(names), n_out, padding(grid.is_global, polar_rows), fine_signs, zero=True)

    def forward(self, x: Tensor, vector: Tensor, local: Tensor) -> Tensor:
        """x: (B, n, H, W); vector: (B, vector); local: (B, local, h, w). Returns (B, n_out, H, W)."""
        height, width = self.shape
        planes = self._extended(torch.cat([x, self.position.expand(x.shape[0], -1, -1, -1)], 1))
        tokens, conditioning = self.enter(planes), self.embed(vector)
        noise = F.interpolate(local, scale_factor=2).flatten(2).transpose(1, 2) if self.local_shape[0] else None
        for block in self.blocks:
            tokens = block(tokens, conditioning, self.rotary, noise)
        shift, scale = self.to_affine(F.silu(conditioning))[:, None].chunk(2, -1)
        tokens = self.leave(modulate(self.norm_out(tokens), shift, scale))
        folded = tokens.transpose(1, 2).unflatten(-1, (planes.shape[-2] // self.patch, -1))
        fine = F.pixel_shuffle(F.silu(folded), self.patch)
        return self.head(torch.cat([fine, planes], 1))[..., :height, :width]

    def _extended(self, planes: Tensor) -> Tensor:
        return extended(planes, self.extra, is_global=self.is_global, pole_signs=self.pole_signs, polar_rows=self.polar_rows)
