"""The CRPS family: a noise-conditioned network trained on the almost-fair CRPS of its own small ensembles."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from data_pipeline.errors import InputError
from data_pipeline.recipe import Section
from data_pipeline.schema import Channel
from models.backbones.unet import UNet
from models.contract import Loss, Sample, Spec, Stage
from models.losses import almost_fair_crps

PRESETS: dict[str, dict[str, object]] = {
    "tiny": {"widths": (32, 48), "blocks": 1, "patch": 1},
    "small": {"widths": (96, 128, 192), "blocks": 1, "patch": 2},
    "base": {"widths": (192, 256, 384), "blocks": 2, "patch": 2},
    "large": {"widths": (320, 480, 640, 640), "blocks": 3, "patch": 2},
}
VECTORS_ACROSS_POLE = ("u_component_of_wind", "v_component_of_wind")  # and the same at 10 m and 100 m


class CrpsOptions(Section):
    """Settings of the family. `preset` fills widths, blocks and patch where they are not given."""

    preset: Literal["tiny", "small", "base", "large"] = "small"
    widths: tuple[int, ...] | None = None
    blocks: int | None = Field(default=None, ge=1)
    patch: Literal[1, 2] | None = None
    noise: int = Field(default=32, ge=1)
    local_noise: int = Field(default=4, ge=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    position: int = Field(default=8, ge=0)
    variable_weights: dict[str, float] = Field(default_factory=dict)
    level_weights: bool = True

    @field_validator("widths")
    @classmethod
    def _whole_groups(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and (not value or any(width <= 0 or width % 8 for width in value)):
            raise ValueError(f"widths {list(value)}: each must be a multiple of 8, the groups of the normalisation")
        return value

    def resolved(self) -> CrpsOptions:
        """The same with the preset filled in."""
        preset = PRESETS[self.preset]
        given = {key: value for key in preset if (value := getattr(self, key)) is not None}
        return self.model_copy(update={**preset, **given})


class CrpsState(NamedTuple):
    """The last frames (B, F, C, H, W), oldest first, normalised."""

    frames: Tensor


class CrpsGenerator(nn.Module):
    """x(t + dt) = x(t) + s * f(x(t - dt), x(t), forcing, noise), s the tendency std; diagnostic channels are f itself."""

    prognostic: Tensor
    carried: Tensor
    scale: Tensor
    loss_weight: Tensor

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.provenance: dict[str, Any] = {}
        self.sha256 = ""
        options = CrpsOptions.model_validate(spec.options).resolved()
        assert options.widths is not None
        assert options.blocks is not None
        assert options.patch is not None
        grid = spec.grid
        prognostic = [label for label in spec.channels if label not in spec.diagnostic]
        if not prognostic:
            raise InputError("model: every channel is diagnostic; at least one must be fed back")
        names = [Channel.parse(label).name for label in prognostic] * spec.frames
        signs = torch.tensor([-1.0 if name.endswith(VECTORS_ACROSS_POLE) else 1.0 for name in names] + [1.0] * spec.n_planes)
        self.net = UNet(
            len(prognostic) * spec.frames + spec.n_planes,
            len(spec.channels),
            grid.shape,
            widths=options.widths,
            blocks=options.blocks,
            patch=options.patch,
            noise=options.noise,
            local_noise=options.local_noise,
            is_global=grid.is_global,
            dropout=options.dropout,
            position=options.position,
            pole_signs=signs if grid.is_global else None,
            polar_rows=grid.is_global and bool(np.isclose(grid.latitude[-1], 90)),
        )
        is_prognostic = torch.tensor([label not in spec.diagnostic for label in spec.channels])
        tendency = torch.tensor(spec.tendency_std, dtype=torch.float64) / torch.tensor(spec.std, dtype=torch.float64)
        scale = torch.where(is_prognostic, tendency, torch.ones_like(tendency)).float()
        self._buffer("prognostic", torch.nonzero(is_prognostic)[:, 0])
        self._buffer("carried", is_prognostic.float().view(-1, 1, 1))
        self._buffer("scale", scale.view(-1, 1, 1))
        weights = torch.tensor([channel_weight(label, options) for label in spec.channels])
        area = torch.tensor(grid.area_weights, dtype=torch.float32)
        self._buffer("loss_weight", (weights / weights.mean()).view(-1, 1, 1) / scale.view(-1, 1, 1) * area)
        self.compute_dtype = torch.float32

    def _buffer(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def noise_shapes(self) -> dict[str, tuple[int, ...]]:
        local = self.net.local_shape
        return {"initial": (0,), "step": (self.net.noise + local[0] * local[1] * local[2],)}

    def initial(self, frames: Tensor, forcing: Tensor, noise: Tensor) -> CrpsState:
        return CrpsState(frames)

    def step(self, state: CrpsState, forcing: Tensor, noise: Tensor) -> CrpsState:
        frames = state.frames
        inputs = torch.cat([frames.index_select(2, self.prognostic).flatten(1, 2), forcing], 1)
        vector, local = noise[:, : self.net.noise], noise[:, self.net.noise :]
        local = local.view(len(noise), *self.net.local_shape)
        dtype = self.compute_dtype
        out = self.net(inputs.to(dtype, memory_format=torch.channels_last), vector.to(dtype), local.to(dtype))
        # the state stays in float32: increments are small beside it
        new = frames[:, -1] * self.carried + self.scale * out.float()
        return CrpsState(torch.cat([frames[:, 1:], new.unsqueeze(1)], 1))

    def fields(self, state: CrpsState) -> Tensor:
        return state.frames[:, -1]

    def nudge(self, state: CrpsState, target: Tensor, weight: Tensor) -> CrpsState:
        new = torch.lerp(state.frames[:, -1], target, weight.expand_as(target))
        return CrpsState(torch.cat([state.frames[:, :-1], new.unsqueeze(1)], 1))

    def forward(self, sample: Sample, noise: Tensor, stage: Stage) -> Loss:
        """The loss: what `torch.func.functional_call` calls with weights in low precision."""
        return self.loss(sample, noise, stage)

    def loss(self, sample: Sample, noise: Tensor, stage: Stage) -> Loss:
        """Mean almost-fair CRPS over the roll-out, in units of the tendency std, area- and channel-weighted."""
        m, b = noise.shape[:2]
        if not stage.noise:
            noise = torch.zeros_like(noise)

        def repeat(x: Tensor) -> Tensor:
            return x.repeat(m, *[1] * (x.dim() - 1))

        state = self.initial(repeat(sample.frames), repeat(sample.forcings[:, 0]), noise[:, :, 0].flatten(0, 1))
        total = sample.frames.new_zeros(())
        parts: dict[str, float] = {}
        for k in range(stage.rollout):
            state = self.step(state, repeat(sample.forcings[:, k]), noise[:, :, k + 1].flatten(0, 1))
            members = self.fields(state).unflatten(0, (m, b))
            crps = (almost_fair_crps(members, sample.targets[:, k], stage.alpha) * self.loss_weight).mean()
            parts[f"step_{k + 1}"] = float(crps.detach())
            total = total + crps / stage.rollout
        return Loss(total, parts)


def channel_weight(label: str, options: CrpsOptions) -> float:
    """Loss weight of a channel: the variable's own times pressure / 1000 hPa (at least 0.2) on levels."""
    channel = Channel.parse(label)
    weight = options.variable_weights.get(label, options.variable_weights.get(channel.name, 1.0))
    if channel.level is not None and options.level_weights:
        weight *= max(0.2, channel.level / 1000)
    return weight
