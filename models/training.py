"""The training loop: flat, resumable, its curriculum data.

Batch and noise k depend on (seed, k) alone, so a run that was killed continues with the numbers it would have had.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from data_pipeline.batches import Batch, Order, Samples
from data_pipeline.errors import GateError, InputError
from data_pipeline.recipe import Section, differences, fingerprint
from models.checkpoint import build, load, read_tensors, save, write_tensors
from models.contract import Generator, Sample, Spec, Stage, flat_noise_size
from models.validation import Validation, validate, validation_starts

MAX_SKIPPED = 20  # non-finite updates in a row before the run is given up


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
    warmup: int = 0

    def as_stage(self, position: int) -> Stage:
        """What the loss sees at an update of the stage."""
        own = {field.name: getattr(self, field.name) for field in fields(Stage) if field.name != "progress"}
        return Stage(**own, progress=position / self.iterations)


class TrainingOptions(Section):
    """Section [training]."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    order: Order = "random"  # of the samples; "chunks" where the analysis does not fit the memory
    initial: str = ""  # checkpoint whose weights the run starts from, for fine-tuning
    stages: tuple[StageOptions, ...] = Field(min_length=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    weight_decay: float = 0.05
    input_noise: float = Field(default=0.0, ge=0)  # std of white noise on the input frames, in tendency std: against overfitting
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    ema: float = 0.999
    validate_every: int = Field(default=500, gt=0)
    validation_inits: int = Field(default=12, gt=0)
    validation_members: int = Field(default=8, ge=2)
    validation_steps: int = Field(default=10, gt=0)
    checkpoint_dtype: Literal["float32", "float16"] = "float32"


@dataclass
class Progress:
    """What a caller may show after each update."""

    iteration: int
    iterations: int
    stage: str
    loss: float
    samples_per_second: float
    seconds_left: float
    validation: Validation | None


def train(
    spec: Spec,
    options: TrainingOptions,
    training: Samples,
    validation: Samples,
    out: Path,
    *,
    provenance: Mapping[str, Any],
    device: str = "cpu",
    report: Callable[[Progress], None] = lambda progress: None,
) -> Path:
    """Train a generator and write `out/checkpoint.safetensors`: the averaged weights of the best validation score.

    Resumes from `out/training/state.safetensors` if it is of the same spec and options; another recipe there is an InputError
    with the difference. A finished run is a no-op. `metrics.jsonl` beside it holds one line a validation. Raises GateError if the
    loss stays non-finite, InputError if memory runs out (saying what to lower).
    """
    run = _Run(spec, options, out, device, dict(provenance))
    size, total = flat_noise_size(run.model.noise_shapes()), sum(stage.iterations for stage in options.stages)
    chosen = validation_starts(validation, options.validation_steps, options.validation_inits)
    skipped = 0
    clock, clock_iteration = time.monotonic(), run.iteration
    for k, stage, position, batch in _plan(options, training, run.iteration):
        if position == 0:
            run.restart_average()
        torch.manual_seed((options.seed << 32) + k)  # dropout draws from torch's own generator
        rate = _rate(stage, position)
        noise = _noise(options.seed, k, (stage.members, len(batch.frames), stage.rollout + 1, size))
        if options.input_noise:
            batch = _disturbed(batch, spec, options.input_noise, options.seed, k)
        loss = _update(run, batch, noise, stage, position, rate)
        if math.isfinite(loss):
            skipped = 0
            run.average_weights(position)
        else:
            skipped += 1
            if skipped >= MAX_SKIPPED:
                raise GateError(
                    f"training: the loss was not finite {skipped} times in a row at iteration {k} (stage {stage.name})"
                )
        run.iteration = k + 1
        measured = None
        if run.iteration % options.validate_every == 0 or run.iteration == total:
            measured = validate(
                run.averaged, validation, chosen, options.validation_members, options.validation_steps, options.seed
            )
            run.keep(measured, stage.name, loss)
        rate_now = (run.iteration - clock_iteration) / max(time.monotonic() - clock, 1e-9)
        report(
            Progress(
                run.iteration, total, stage.name, loss, rate_now * stage.batch * stage.members,
                (total - run.iteration) / rate_now, measured,
            )
        )  # fmt: skip
    return run.checkpoint


def _plan(options: TrainingOptions, training: Samples, done: int) -> Iterator[tuple[int, StageOptions, int, Batch]]:
    """(iteration, stage, position in it, batch) for every update that is still to do."""
    first = 0
    for stage in options.stages:
        start = max(done - first, 0)
        if start < stage.iterations:
            left = stage.iterations - start
            stream = training.batches(options.seed, first + start, left, stage.batch, stage.rollout, order=options.order)
            for position, batch in enumerate(stream, start):
                yield first + position, stage, position, batch
        first += stage.iterations


def _rate(stage: StageOptions, position: int) -> float:
    warm = min(1.0, (position + 1) / stage.warmup) if stage.warmup else 1.0
    fall = 0.5 + 0.5 * math.cos(math.pi * position / stage.iterations)
    return warm * (stage.final_rate + (stage.rate - stage.final_rate) * fall)


def _noise(seed: int, k: int, shape: tuple[int, ...]) -> Tensor:
    generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 1, k]))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


def _disturbed(batch: Batch, spec: Spec, amplitude: float, seed: int, k: int) -> Batch:
    """White noise on the frames; all members of a sample see the same frames, so it does not pass for ensemble spread."""
    generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 3, k]))
    scale = amplitude * np.array(spec.tendency_std) / np.array(spec.std)
    noise = generator.standard_normal(batch.frames.shape, dtype=np.float32) * scale.astype(np.float32)[:, None, None]
    return replace(batch, frames=batch.frames + noise)


def _update(run: _Run, batch: Batch, noise: Tensor, stage: StageOptions, position: int, rate: float) -> float:
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    sample = Sample(*(torch.from_numpy(array).to(run.device) for array in (batch.frames, batch.targets, batch.forcings)))
    try:
        loss = run.loss(sample, noise.to(run.device), stage.as_stage(position))
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
    except torch.OutOfMemoryError:
        raise InputError(
            f"training: out of memory on {run.device} in stage {stage.name!r}; lower its batch ({stage.batch}), members "
            f"({stage.members}) or rollout ({stage.rollout})"
        ) from None
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.options.clip)
    value = float(loss.detach())
    if math.isfinite(value) and bool(torch.isfinite(norm)):
        run.optimizer.step()
        return value
    return math.nan


class _Run:
    """The mutable state of one training run and its files."""

    def __init__(self, spec: Spec, options: TrainingOptions, out: Path, device: str, provenance: dict[str, Any]) -> None:
        torch.manual_seed(options.seed)
        self.spec, self.options, self.device, self.provenance = spec, options, device, provenance
        self.checkpoint, self.folder = out / "checkpoint.safetensors", out / "training"
        self.model = build(spec).to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        if options.initial:
            initial = _fitting(options.initial, spec)
            self.model.load_state_dict(initial.state_dict())
            self.provenance["initial"] = {"sha256": initial.sha256, **initial.provenance}
        self.averaged = copy.deepcopy(self.model).eval()
        self.optimizer = torch.optim.AdamW(self._groups(), lr=1e-3, betas=options.betas)
        self.iteration, self.best = 0, math.inf
        self.recipe = {"spec": spec.as_dict(), "training": options.model_dump(mode="json")}
        self._resume()

    def loss(self, sample: Sample, noise: Tensor, stage: Stage) -> Tensor:
        if self.options.precision == "float32":
            return self.model.loss(sample, noise, stage).total
        # weights are cast once an update and gradients land on the float32 masters; autocast would cast at every layer
        self.model.compute_dtype = torch.bfloat16
        low = {name: value.to(torch.bfloat16) for name, value in self.model.named_parameters()}
        return torch.func.functional_call(self.model, low, (sample, noise, stage)).total

    def restart_average(self) -> None:
        """The average starts afresh from the weights that enter a stage."""
        self.averaged.load_state_dict(self.model.state_dict())

    @torch.no_grad()
    def average_weights(self, position: int) -> None:
        decay = min(self.options.ema, (1 + position) / (10 + position))
        for average, value in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
            average.lerp_(value, 1 - decay)

    def keep(self, measured: Validation, stage: str, loss: float) -> None:
        """Log a validation, write the checkpoint if it is the best so far, and the state to resume from."""
        if measured.score < self.best:
            self.best = measured.score
            scores = {"iteration": self.iteration, "validation": measured.as_dict()}
            dtype = getattr(torch, self.options.checkpoint_dtype)
            save(self.checkpoint, self.spec, self.averaged.state_dict(), {**self.provenance, **scores}, dtype)
        self.folder.mkdir(parents=True, exist_ok=True)
        line = {"iteration": self.iteration, "stage": stage, "loss": loss, "best": self.best, **measured.as_dict()}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._save_state()

    def _groups(self) -> list[dict[str, Any]]:
        """Weight decay for matrices and kernels only: on the noise maps' biases and gains it would put the noise to sleep."""
        groups: dict[bool, list[Tensor]] = {True: [], False: []}
        for name, value in self.model.named_parameters():
            groups[value.dim() > 1 and "to_local" not in name and "position" not in name].append(value)
        return [
            {"params": groups[True], "weight_decay": self.options.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ]

    def _save_state(self) -> None:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.averaged.state_dict().items()}
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in moments.items()}
        header = {
            "iteration": str(self.iteration), "best": repr(self.best),
            "recipe": json.dumps(self.recipe, sort_keys=True), "fingerprint": fingerprint(self.recipe),
        }  # fmt: skip
        write_tensors(self.folder / "state.safetensors", tensors, header)

    def _resume(self) -> None:
        path = self.folder / "state.safetensors"
        if not path.exists():
            return
        header, tensors = read_tensors(path)
        if header["fingerprint"] != fingerprint(self.recipe):
            plain = json.loads(json.dumps(self.recipe))
            changed = "\n".join(f"  - {line}" for line in differences(json.loads(header["recipe"]), plain))
            raise InputError(
                f"{self.folder} holds a run of another recipe; give another --out, or delete it. Changed:\n{changed}"
            )
        self.iteration, self.best = int(header["iteration"]), float(header["best"])
        self.model.load_state_dict(_below(tensors, "model."))
        self.averaged.load_state_dict(_below(tensors, "average."))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _below(tensors, "optimizer.").items():
            index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})


def _fitting(path: str, spec: Spec) -> Generator:
    """The generator of a checkpoint with this very spec, InputError otherwise.

    The periods must be equal too: a checkpoint has to name every year that its weights have seen.
    """
    other = load(path)
    theirs, ours = (json.loads(json.dumps(each.as_dict())) for each in (other.spec, spec))  # a list is a tuple in a file
    changed = "\n".join(f"  - {line}" for line in differences(theirs, ours))
    if changed:
        raise InputError(f"training.initial {path} does not fit this recipe:\n{changed}")
    return other


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
