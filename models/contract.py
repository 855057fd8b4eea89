"""The contract between a generator family and whoever runs it: Spec, State, Generator.

The engine owns noise, batches, devices, time and memory; the family owns mathematics. A family never reads a file, a clock or a
global random state. Tensors are batch first and normalised by the checkpoint's own statistics.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from data_pipeline.errors import InputError
from data_pipeline.forcings import plane_names
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel
from data_pipeline.statistics import from_model_space, to_model_space


@dataclass(frozen=True)
class Spec:
    """Everything that names a generator's inputs and outputs; plain data, stored in the checkpoint.

    channels: labels of the output fields; diagnostic: those of them that are predicted directly and not fed back.
    mean, std, tendency_std: one number a channel, in model space (after the variable's transform); tendency_std over step_hours.
    periods: training and validation as `first/last`. options: the family's own resolved settings. intervals: the lead intervals
    in hours that it was trained on, each with its row of tendency_stds; none: step_hours alone.
    """

    family: str
    channels: tuple[str, ...]
    diagnostic: tuple[str, ...]
    forcings: tuple[str, ...]
    latitude: tuple[float, ...]
    longitude: tuple[float, ...]
    step_hours: int
    frames: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tendency_std: tuple[float, ...]
    training_period: str
    validation_period: str
    options: dict[str, Any] = field(default_factory=dict)
    intervals: tuple[int, ...] = ()
    tendency_stds: tuple[tuple[float, ...], ...] = ()

    @property
    def grid(self) -> Grid:
        """The grid of every field."""
        return Grid(np.array(self.latitude), np.array(self.longitude))

    @property
    def step(self) -> np.timedelta64:
        """Length of one model step."""
        return np.timedelta64(self.step_hours, "h")

    @property
    def parsed_channels(self) -> list[Channel]:
        """The channels as objects, in order."""
        return [Channel.parse(label) for label in self.channels]

    @property
    def n_planes(self) -> int:
        """Number of forcing planes."""
        return len(plane_names(self.forcings))

    def normalise(self, fields: np.ndarray) -> np.ndarray:
        """Physical fields (..., C, H, W) to model space, float32."""
        columns = [
            (to_model_space(fields[..., i, :, :].astype(np.float64), channel) - self.mean[i]) / self.std[i]
            for i, channel in enumerate(self.parsed_channels)
        ]
        return np.stack(columns, axis=-3).astype(np.float32)

    def denormalise(self, fields: np.ndarray) -> np.ndarray:
        """Model-space fields (..., C, H, W) to physical units, float32; non-negative variables are clipped at 0."""
        columns = [
            from_model_space(fields[..., i, :, :].astype(np.float64) * self.std[i] + self.mean[i], channel)
            for i, channel in enumerate(self.parsed_channels)
        ]
        return np.stack(columns, axis=-3).astype(np.float32)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Spec:
        """The inverse of `as_dict`."""
        fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        fields["tendency_stds"] = tuple(map(tuple, fields.get("tendency_stds", ())))
        return cls(**fields)


class Loss(NamedTuple):
    """A differentiable total and its named parts (plain numbers)."""

    total: Tensor
    parts: dict[str, float]


@dataclass(frozen=True)
class Stage:
    """One stage of a training curriculum, as the loss sees it.

    target: what is learned, a forecast or (latent diffusion) the autoencoder. bands, spectral: weights of the CRPS of pooled
    fields and of zonal spectra beside the point-wise one's 1. kl, posterior: weights of the KL divergence and of the CRPS of
    posterior samples (vae). progress: how far the stage is, 0 to 1. recompute: keep no activations of a roll-out step, compute
    them twice.
    """

    members: int = 2
    rollout: int = 1
    alpha: float = 0.95
    noise: bool = True
    target: Literal["forecast", "autoencoder"] = "forecast"
    bands: float = 0.0
    spectral: float = 0.0
    kl: float = 0.0
    posterior: float = 0.0
    progress: float = 0.0
    recompute: bool = False


class Sample(NamedTuple):
    """frames (B, F, C, H, W), targets (B, rollout, C, H, W), forcings (B, rollout, P, H, W).

    hours (B,): the lead interval of each sample, where the model has several; none: the spec's step.
    """

    frames: Tensor
    targets: Tensor
    forcings: Tensor
    hours: Tensor | None = None


class Generator(nn.Module, ABC):
    """What every family implements, and all that the engine may call. A State is opaque to the engine.

    provenance, sha256: of the checkpoint, empty for an untrained one. compute_dtype: what the networks compute in; states, losses
    and increments stay in float32. members_group: the processes that share the members of each sample in training. terms: weights
    of a Stage that the family's loss has a use for. steps_fields: whether a step starts from the fields of the state before, or
    from something that they are decoded of.
    """

    terms: tuple[str, ...] = ("bands", "spectral")
    steps_fields = True

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.provenance: dict[str, Any] = {}
        self.sha256 = ""
        self.compute_dtype = torch.float32
        self.members_group: ProcessGroup | None = None

    @property
    def perturbs_initial(self) -> bool:
        """True if `initial` draws states around the frames; most families start all members from the frames as they are."""
        return False

    @abstractmethod
    def noise_shapes(self) -> dict[str, tuple[int, ...]]:
        """Per member: the shape of the noise that `initial` and `step` need (standard normal), and `loss` if it needs more."""

    @abstractmethod
    def initial(self, frames: Tensor, forcing: Tensor, noise: Tensor) -> Any:
        """The state at lead 0 from frames (B, F, C, H, W), oldest first; noise as `noise_shapes()["initial"]`."""

    @abstractmethod
    def step(self, state: Any, forcing: Tensor, noise: Tensor) -> Any:
        """The state one step later; forcing (B, P, H, W) of the step, noise as `noise_shapes()["step"]`."""

    @abstractmethod
    def fields(self, state: Any) -> Tensor:
        """Decode to normalised fields (B, C, H, W); called only for leads that are wanted."""

    @abstractmethod
    def nudge(self, state: Any, target: Tensor, weight: Tensor) -> Any:
        """The state relaxed towards normalised fields `target` (B, C, H, W) by `weight` (H, W) in [0, 1]."""

    @abstractmethod
    def loss(self, sample: Sample, noise: Tensor, stage: Stage) -> Loss:
        """Differentiable loss; noise (members, B, rollout + 1, n), n at least every length in `noise_shapes()`: one draw for
        `initial`, one a step."""

    def begin(self, stage: Stage, fields: Iterator[Tensor]) -> None:
        """Called before the first update of a stage, with all normalised training analyses in the order of time, as batches
        (N, C, H, W): for statistics of a family's own, such as those of latents. Most families do nothing."""

    def reconstruction(self, fields: Tensor) -> Tensor:
        """Normalised fields (N, C, H, W) through the autoencoder of a family that has one, which stages of target "autoencoder"
        train. Raises InputError for the others."""
        raise InputError(f"model family {self.spec.family!r} has no autoencoder; give its stages target = 'forecast'")

    def diagnostics(self, sample: Sample, noise: Tensor) -> dict[str, float]:
        """Numbers of the family's own, logged at validations; noise as for `loss`, rollout 1. Most families have none."""
        return {}

    def forward(self, sample: Sample, noise: Tensor, stage: Stage) -> Loss:
        """The loss: what `torch.func.functional_call` calls with weights in low precision."""
        return self.loss(sample, noise, stage)


def device_of(generator: Generator) -> torch.device:
    """Where the generator's weights lie."""
    return next(generator.parameters()).device


def flat_noise_size(shapes: dict[str, tuple[int, ...]]) -> int:
    """Length of the longest draw in `noise_shapes`; both draws are cut from one vector of this length."""
    return max(int(torch.Size(shape).numel()) for shape in shapes.values())
