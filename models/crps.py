"""The CRPS family: a noise-conditioned network trained on the almost-fair CRPS of its own small ensembles."""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.backbones.network import NetworkOptions, network
from models.contract import Generator, Loss, Sample, Spec, Stage
from models.increments import FieldOptions, Increments
from models.losses import ensemble_loss


class CrpsOptions(NetworkOptions, FieldOptions):
    """Settings of the family: `noise` numbers for all points (FGN), `local_noise` coarse fields (AIFS-CRPS)."""

    noise: int = Field(default=32, ge=0)
    local_noise: int = Field(default=4, ge=0)


class CrpsState(NamedTuple):
    """The last frames (B, F, C, H, W), oldest first, normalised; hours (B,) if the sample's interval is not the spec's step."""

    frames: Tensor
    hours: Tensor | None = None


class CrpsGenerator(Generator):
    """x(t + dt) = x(t) + s * f(x(t - dt), x(t), forcing, noise), s the tendency std; diagnostic channels are f itself."""

    def __init__(self, spec: Spec, options: CrpsOptions | None = None) -> None:
        super().__init__(spec)
        options = options or CrpsOptions.model_validate(spec.options)
        self.increments = Increments(spec, options)
        self.net = network(
            spec, options, self.increments.planes, len(spec.channels), vector=options.noise + self.increments.n_scalars,
            local=options.local_noise, pole_signs=self.increments.pole_signs,
        )  # fmt: skip
        self.vector = options.noise

    def noise_shapes(self) -> dict[str, tuple[int, ...]]:
        local = self.net.local_shape
        return {"initial": (0,), "step": (self.vector + local[0] * local[1] * local[2],)}

    def initial(self, frames: Tensor, forcing: Tensor, noise: Tensor) -> CrpsState:
        return CrpsState(frames)

    def step(self, state: CrpsState, forcing: Tensor, noise: Tensor) -> CrpsState:
        inputs = self.increments.inputs(state.frames, forcing)
        vector = torch.cat([noise[:, : self.vector], *self.increments.interval(state.hours, len(noise))], 1)
        local = noise[:, self.vector :].view(len(noise), *self.net.local_shape)
        dtype = self.compute_dtype
        out = self.net(inputs.to(dtype, memory_format=torch.channels_last), vector.to(dtype), local.to(dtype))
        return CrpsState(self.increments.advance(state.frames, out, state.hours), state.hours)

    def fields(self, state: CrpsState) -> Tensor:
        return state.frames[:, -1]

    def nudge(self, state: CrpsState, target: Tensor, weight: Tensor) -> CrpsState:
        new = torch.lerp(state.frames[:, -1], target, weight.expand_as(target))
        return state._replace(frames=torch.cat([state.frames[:, :-1], new.unsqueeze(1)], 1))

    def loss(self, sample: Sample, noise: Tensor, stage: Stage) -> Loss:
        """Mean almost-fair CRPS over the roll-out, in units of the tendency std, area- and channel-weighted."""
        m, b = noise.shape[:2]
        if not stage.noise:
            noise = torch.zeros_like(noise)

        def repeat(x: Tensor) -> Tensor:
            return x.repeat(m, *[1] * (x.dim() - 1))

        hours = None if sample.hours is None else repeat(sample.hours)
        start = self.initial(repeat(sample.frames), repeat(sample.forcings[:, 0]), noise[:, :, 0].flatten(0, 1))
        state = start._replace(hours=hours)
        weight = self.increments.loss_weight(sample.hours)
        total, parts = sample.frames.new_zeros(()), {}
        for k in range(stage.rollout):
            forcing, draw = repeat(sample.forcings[:, k]), noise[:, :, k + 1].flatten(0, 1)
            state = (
                checkpoint(self.step, state, forcing, draw, use_reentrant=False)
                if stage.recompute
                else self.step(state, forcing, draw)
            )
            members = self.fields(state).unflatten(0, (m, b))
            found = ensemble_loss(members, sample.targets[:, k], weight, stage, self.members_group)
            parts[f"step_{k + 1}"] = float(found.detach())
            total = total + found / stage.rollout
        return Loss(total, parts)
