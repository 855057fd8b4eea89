"""The backbones behind one call: net(planes (B, n, H, W), vector (B, v), local (B, k, h, w)) -> (B, m, H, W)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field, field_validator
from torch import Tensor

from data_pipeline.recipe import Section
from models.backbones.unet import UNet
from models.contract import Spec

PRESETS: dict[str, dict[str, dict[str, object]]] = {
    "unet": {
        "tiny": {"widths": (32, 48), "blocks": 1, "patch": 1},
        "small": {"widths": (96, 128, 192), "blocks": 1, "patch": 2},
        "base": {"widths": (192, 256, 384), "blocks": 2, "patch": 2},
        "large": {"widths": (320, 480, 640, 640), "blocks": 3, "patch": 2},
    },
}


class NetworkOptions(Section):
    """Which network, and how large. `preset` fills widths, blocks and patch where they are not given."""

    backbone: Literal["unet"] = "unet"
    preset: Literal["tiny", "small", "base", "large"] = "small"
    widths: tuple[int, ...] | None = None
    blocks: int | None = Field(default=None, ge=1)
    patch: Literal[1, 2] | None = None
    dropout: float = Field(default=0.0, ge=0, lt=1)
    position: int = Field(default=8, ge=0)

    @field_validator("widths")
    @classmethod
    def _whole_groups(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and (not value or any(width <= 0 or width % 8 for width in value)):
            raise ValueError(f"widths {list(value)}: each must be a multiple of 8, the groups of the normalisation")
        return value

    def filled(self) -> dict[str, object]:
        """The options as plain data with the preset's sizes filled in, so that a later change of a preset harms no checkpoint."""
        preset = PRESETS[self.backbone][self.preset]
        return self.model_dump(mode="json") | {key: value for key, value in preset.items() if getattr(self, key) is None}


def network(
    spec: Spec, options: NetworkOptions, planes: Sequence[str], n_out: int, *, vector: int, local: int, pole_signs: Tensor | None
) -> UNet:
    """The backbone that `options` name, for input planes of these names on the spec's grid.

    vector: length of the vector that conditions every normalisation (noise, scalars). local: number of coarse fields that do so
    point by point; their resolution is the network's, in `.local_shape` (local, h, w). pole_signs: see `Increments`.
    """
    grid, sizes = spec.grid, options.filled()
    return UNet(
        len(planes),
        n_out,
        grid.shape,
        widths=tuple(sizes["widths"]),  # type: ignore[arg-type]
        blocks=int(sizes["blocks"]),  # type: ignore[call-overload]
        patch=int(sizes["patch"]),  # type: ignore[call-overload]
        noise=vector,
        local_noise=local,
        is_global=grid.is_global,
        dropout=options.dropout,
        position=options.position,
        pole_signs=pole_signs,
        polar_rows=grid.is_global and bool(np.isclose(grid.latitude[-1], 90)),
    )
