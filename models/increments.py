"""What the families that step fields share: network inputs, the state update in units of the tendency, weights of the loss."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from data_pipeline.errors import InputError
from data_pipeline.forcings import plane_names
from data_pipeline.recipe import Section
from data_pipeline.schema import Channel
from models.climate_correction import ClimateCorrection
from models.contract import Spec

VECTORS_ACROSS_POLE = ("u_component_of_wind", "v_component_of_wind")  # and the same at 10 m and 100 m


class FieldOptions(Section):
    """Weights of the loss, and what the state update keeps.

    variable_weights: by variable or channel, 1 where absent. level_weights: pressure / 1000 hPa (at least 0.2) on levels.
    conserve: channels whose global mean a step leaves as it is: mass, as mean_sea_level_pressure; geopotential and temperature
    have a season, and only short forecasts may keep theirs. climate_correction: a gain for each zonal wavenumber and an offset
    for each channel on every new state, ones and zeros until `plumecast fit-climate` fits them.
    """

    variable_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    level_weights: bool = True
    conserve: tuple[str, ...] = ()
    climate_correction: bool = False


class Increments(nn.Module):
    """x(t + dt) = x(t) + s * f(...), s the tendency std of the interval; diagnostic channels are f itself, not fed back.

    Raises InputError where the options name channels that the model has not, or conserve means on a region.
    """

    prognostic: Tensor
    carried: Tensor
    conserved: Tensor
    scales: Tensor
    intervals: Tensor
    area: Tensor
    weight: Tensor

    def __init__(self, spec: Spec, options: FieldOptions) -> None:
        super().__init__()
        labels = [label for label in spec.channels if label not in spec.diagnostic]
        if not labels:
            raise InputError("model: every channel is diagnostic; at least one must be fed back")
        unknown = [label for label in options.conserve if label not in labels]
        if unknown:
            raise InputError(f"model.options.conserve names {', '.join(unknown)}; fed back are {', '.join(labels)}")
        known = {*spec.channels, *(channel.name for channel in spec.parsed_channels)}
        if strange := [name for name in options.variable_weights if name not in known]:
            raise InputError(f"model.options.variable_weights names {', '.join(strange)}; expected of {', '.join(sorted(known))}")
        if options.conserve and not spec.grid.is_global:
            raise InputError("model.options.conserve needs a global grid: a region exchanges mass with its surroundings")
        if options.climate_correction and not spec.grid.is_global:
            raise InputError("model.options.climate_correction needs a global grid: the rows of a region do not close")
        self.planes = (*labels * spec.frames, *plane_names(spec.forcings))
        names = [Channel.parse(label).name for label in labels] * spec.frames
        signs = [-1.0 if name.endswith(VECTORS_ACROSS_POLE) else 1.0 for name in names] + [1.0] * spec.n_planes
        self.pole_signs = torch.tensor(signs) if spec.grid.is_global else None
        self.step_hours = spec.step_hours
        self.own_interval = (spec.intervals or (spec.step_hours,)).index(spec.step_hours)
        self.conserves = bool(options.conserve)
        self.n_scalars = len(spec.intervals) if len(spec.intervals) > 1 else 0
        is_prognostic = torch.tensor([label in labels for label in spec.channels])
        rows = torch.tensor(spec.tendency_stds or (spec.tendency_std,), dtype=torch.float64)
        relative = rows / torch.tensor(spec.std, dtype=torch.float64)
        scales = torch.where(is_prognostic, relative, torch.ones_like(relative)).float()
        weights = torch.tensor([channel_weight(label, options) for label in spec.channels])
        self.correction = ClimateCorrection(len(spec.channels), len(spec.longitude)) if options.climate_correction else None
        self._buffer("prognostic", torch.tensor([i for i, label in enumerate(spec.channels) if label in labels]))
        self._buffer("carried", is_prognostic.float().view(-1, 1, 1))
        self._buffer("conserved", torch.tensor([float(label in options.conserve) for label in spec.channels]).view(-1, 1, 1))
        self._buffer("scales", scales[..., None, None])
        self._buffer("intervals", torch.tensor(spec.intervals or (spec.step_hours,)))
        self._buffer("area", torch.tensor(spec.grid.area_weights, dtype=torch.float32))
        self._buffer("weight", (weights / weights.mean()).view(-1, 1, 1))

    def _buffer(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def inputs(self, frames: Tensor, forcing: Tensor) -> Tensor:
        """Planes (B, n, H, W) for a network: what is fed back of frames (B, F, C, H, W), oldest first, then the forcing."""
        return torch.cat([frames.index_select(2, self.prognostic).flatten(1, 2), forcing], 1)

    def scale(self, hours: Tensor | None) -> Tensor:
        """Tendency std over std, 1 for diagnostic channels: (C, 1, 1) for the spec's own step, (B, C, 1, 1) for hours (B,)."""
        if hours is None:
            return self.scales[self.own_interval]
        return self.scales[torch.searchsorted(self.intervals, hours)]

    def interval(self, hours: Tensor | None, rows: int) -> list[Tensor]:
        """One-hot intervals (B, n) for a network's vector if the model has several, nothing otherwise."""
        if not self.n_scalars:
            return []
        if hours is None:
            hours = self.intervals.new_full((rows,), self.step_hours)
        return [(hours[:, None] == self.intervals).float()]

    def advance(self, frames: Tensor, out: Tensor, hours: Tensor | None = None) -> Tensor:
        """Frames one step later, in float32 as increments are small beside the state; out (B, C, H, W): the network's answer."""
        out = out.float()
        if self.conserves:
            out = out - self.conserved * (out * self.area).mean((-2, -1), keepdim=True)
        new = frames[:, -1] * self.carried + self.scale(hours) * out
        if self.correction is not None:
            new = self.correction(new)
        return torch.cat([frames[:, 1:], new.unsqueeze(1)], 1)

    def loss_weight(self, hours: Tensor | None = None) -> Tensor:
        """Weights of a point-wise loss: area, channel, and one over the tendency std, so that every channel counts alike."""
        return self.weight * self.area / self.scale(hours)


def channel_weight(label: str, options: FieldOptions) -> float:
    """Loss weight of a channel: the variable's own times pressure / 1000 hPa (at least 0.2) on levels."""
    channel = Channel.parse(label)
    weight = options.variable_weights.get(label, options.variable_weights.get(channel.name, 1.0))
    if channel.level is not None and options.level_weights:
        weight *= max(0.2, channel.level / 1000)
    return weight
