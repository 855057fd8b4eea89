"""The backbones behind one call: net(planes (B, n, H, W), vector (B, v), local (B, k, h, w)) -> (B, m, H, W)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from pydantic import Field, field_validator, model_validator
from torch import Tensor

from data_pipeline.recipe import Section
from models.backbones.sphere import has_polar_rows
from models.backbones.transformer import Transformer
from models.backbones.unet import UNet
from models.contract import Spec

PRESETS: dict[str, dict[str, dict[str, object]]] = {
    "unet": {
        "tiny": {"widths": (32, 48), "blocks": 1, "patch": 1},
        "small": {"widths": (96, 128, 192), "blocks": 1, "patch": 2},
        "base": {"widths": (192, 256, 384), "blocks": 2, "patch": 2},
        "large": {"widths": (320, 480, 640, 640), "blocks": 3, "patch": 2},
    },
    "transformer": {
        "tiny": {"widths": (64,), "blocks": 3, "patch": 2},
        "small": {"widths": (192,), "blocks": 6, "patch": 2},
        "base": {"widths": (512,), "blocks": 12, "patch": 2},
        "large": {"widths": (1024,), "blocks": 24, "patch": 2},
    },
}


class NetworkOptions(Section):
    """Which network, and how large. `preset` fills widths, blocks and patch where they are not given.

    widths: channels of each level of a U-Net, each level half as fine; the one width of a transformer. blocks: a level, or in
    all. patch: points along the side of what the network sees as one. position: learned planes beside the inputs.
    """

    backbone: Literal["unet", "transformer"] = "unet"
    preset: Literal["tiny", "small", "base", "large"] = "small"
    widths: tuple[int, ...] | None = None
    blocks: int | None = Field(default=None, ge=1)
    patch: Literal[1, 2, 4, 8] | None = None
    dropout: float = Field(default=0.0, ge=0, lt=1)
    position: int = Field(default=8, ge=0)

    @field_validator("widths")
    @classmethod
    def _whole_groups(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and (not value or any(width <= 0 or width % 8 for width in value)):
            raise ValueError(f"widths {list(value)}: each must be a multiple of 8, the groups of the normalisation")
        return value

    @model_validator(mode="after")
    def _fits_the_backbone(self) -> NetworkOptions:
        if self.backbone == "unet" and self.patch not in (None, 1, 2):
            raise ValueError(f"patch {self.patch}: the U-Net takes 1 or 2, as its levels coarsen the grid further")
        if self.backbone == "transformer" and self.widths is not None and len(self.widths) != 1:
            raise ValueError(f"widths {list(self.widths)}: the transformer has one width, as [192]")
        return self

    def filled(self) -> dict[str, object]:
        """The options as plain data with the preset's sizes filled in, so that a later change of a preset harms no checkpoint."""
        preset = PRESETS[self.backbone][self.preset]
        return self.model_dump(mode="json") | {key: value for key, value in preset.items() if getattr(self, key) is None}


Backbone = UNet | Transformer


def network(
    spec: Spec, options: NetworkOptions, planes: Sequence[str], n_out: int, *, vector: int, local: int, pole_signs: Tensor | None
) -> Backbone:
    """The backbone that `options` name, for input planes of these names on the spec's grid.

    vector: length of the vector that conditions every normalisation (noise, scalars). local: number of coarse fields that do so
    point by point; their resolution is the network's, in `.local_shape` (local, h, w). pole_signs: see `Increments`.
    """
    grid, sizes = spec.grid, cast(dict[str, Any], options.filled())
    widths, blocks, patch = tuple(sizes["widths"]), sizes["blocks"], sizes["patch"]
    polar_rows = has_polar_rows(grid)
    if options.backbone == "transformer":
        return Transformer(
            planes, n_out, grid, width=widths[0], blocks=blocks, patch=patch, vector=vector, local=local,
            dropout=options.dropout, position=options.position, pole_signs=pole_signs, polar_rows=polar_rows,
        )  # fmt: skip
    return UNet(
        len(planes), n_out, grid.shape, widths=widths, blocks=blocks, patch=patch, noise=vector, local_noise=local,
        is_global=grid.is_global, dropout=options.dropout, position=options.position, pole_signs=pole_signs,
        polar_rows=polar_rows,
    )  # fmt: skip
