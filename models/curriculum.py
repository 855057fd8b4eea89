"""Section [training] of a recipe: the curriculum as data, and what each update draws from (seed, k) alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from data_pipeline.batches import Batch, Order
from data_pipeline.recipe import Section
from models.contract import Spec, Stage
from models.precision import Precision

Decay = Annotated[float, Field(ge=0, lt=1)]  # of an exponential average


class StageOptions(Section):
    """One stage of the curriculum: `iterations` updates of `batch` samples with `members` each, the rate falling on a cosine."""

    name: str
    iterations: int = Field(gt=0)
    batch: int = Field(gt=0)
    members: int = Field(default=2, ge=1, le=127)
    rollout: int = Field(default=1, ge=1)
    alpha: float = Field(default=0.95, ge=0, le=1)
    noise: bool = True
    target: Literal["forecast", "autoencoder"] = "forecast"
    bands: float = Field(default=0.0, ge=0)
    spectral: float = Field(default=0.0, ge=0)
    kl: float = Field(default=0.0, ge=0)
    posterior: float = Field(default=0.0, ge=0)
    recompute: bool = False
    rate: float = Field(gt=0)
    final_rate: float = Field(gt=0)
    warmup: int = Field(default=0, ge=0)

    def as_stage(self, position: int) -> Stage:
        """What the loss sees at an update of the stage."""
        own = {field.name: getattr(self, field.name) for field in fields(Stage) if field.name != "progress"}
        return Stage(**own, progress=position / self.iterations)

    def rate_at(self, position: int) -> float:
        """Learning rate: a linear warm-up times a cosine from `rate` to `final_rate`."""
        warm = min(1.0, (position + 1) / self.warmup) if self.warmup else 1.0
        fall = 0.5 + 0.5 * math.cos(math.pi * position / self.iterations)
        return warm * (self.final_rate + (self.rate - self.final_rate) * fall)

    @property
    def passes(self) -> int:
        """Network passes, forward and backward, of one update."""
        return self.batch * self.members * self.rollout


class TrainingOptions(Section):
    """Section [training].

    initial: a checkpoint of this very spec whose weights the run starts from (fine-tuning). warm_start: a checkpoint, also of
    another family, of which the tensors of equal name and shape are taken. order: of the samples; "chunks" where the analysis
    does not fit the memory. input_noise: std of white noise on the input frames, in tendency std, against overfitting. compile:
    the forward passes of networks through torch.compile, for long runs on a GPU: on a CPU compiling alone takes about a minute.
    The two halves of an autoencoder are no forward passes and stay as they are. members_over: processes that share the members of
    each sample. save_seconds: how often the state to resume from is written between validations. tensorboard: the metrics also as
    TensorBoard events.
    """

    seed: int = Field(default=0, ge=0, lt=2**32)
    order: Order = "random"
    initial: str = ""
    warm_start: str = ""
    stages: tuple[StageOptions, ...] = Field(min_length=1)
    precision: Precision = "float32"
    compile: bool = False
    members_over: int = Field(default=1, ge=1)
    weight_decay: float = Field(default=0.05, ge=0)
    input_noise: float = Field(default=0.0, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    clip: float = Field(default=1.0, gt=0)
    ema: Decay = 0.999
    validate_every: int = Field(default=500, gt=0)
    validation_inits: int = Field(default=12, gt=0)
    validation_members: int = Field(default=8, ge=2)
    validation_steps: int = Field(default=10, gt=0)
    save_seconds: float = Field(default=600.0, gt=0)
    tensorboard: bool = False
    checkpoint_dtype: Literal["float32", "float16"] = "float32"

    @model_validator(mode="after")
    def _one_start(self) -> TrainingOptions:
        if self.initial and self.warm_start:
            raise ValueError("initial and warm_start are both given; a run starts from one checkpoint")
        return self

    @property
    def iterations(self) -> int:
        """Updates in all."""
        return sum(stage.iterations for stage in self.stages)

    def decisive(self) -> dict[str, object]:
        """The options that decide the numbers of a run, as plain data."""
        return self.model_dump(mode="json", exclude={"save_seconds", "tensorboard"})


@dataclass(frozen=True)
class Update:
    """Update k of a run: the stage, the position in it, and whether another target was learned before."""

    k: int
    stage: StageOptions
    position: int
    new_target: bool


def updates(options: TrainingOptions, done: int) -> Iterator[tuple[StageOptions, list[Update]]]:
    """For each stage that is not finished after `done` updates: its updates that are still to do."""
    first, target = 0, options.stages[0].target
    for stage in options.stages:
        start = max(done - first, 0)
        left = [Update(first + i, stage, i, i == 0 and stage.target != target) for i in range(start, stage.iterations)]
        if left:
            yield stage, left
        first, target = first + stage.iterations, stage.target


def draw_noise(seed: int, k: int, shape: tuple[int, ...]) -> Tensor:
    """The noise of update k, standard normal float32."""
    return torch.from_numpy(_generator(seed, 1, k).standard_normal(shape, dtype=np.float32))


def disturbed(batch: Batch, spec: Spec, amplitude: float, seed: int, k: int, *, rank: int = 0, ranks: int = 1) -> Batch:
    """White noise on the frames; all members of a sample see the same frames, so it does not pass for ensemble spread.

    The noise is that of the joint batch, of which `batch` is the rows rank::ranks.
    """
    scale = amplitude * np.array(spec.tendency_std) / np.array(spec.std)
    joint = (len(batch.frames) * ranks, *batch.frames.shape[1:])
    noise = _generator(seed, 3, k).standard_normal(joint, dtype=np.float32)[rank::ranks]
    return replace(batch, frames=batch.frames + noise * scale.astype(np.float32)[:, None, None])


def _generator(seed: int, purpose: int, k: int) -> np.random.Generator:
    """Streams 0, 4 and 5 are those of `data_pipeline.batches`, 2 is that of the validation."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, purpose, k]))
