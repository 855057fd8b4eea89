"""The training loop: flat, resumable, its curriculum data.

Batch and noise k depend on (seed, k) alone, so a run that was killed continues with the numbers it would have had, and several
processes that share each batch make the updates that one would make.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.batches import Batch, Samples
from data_pipeline.errors import GateError, InputError
from models.contract import Sample, Spec, flat_noise_size
from models.curriculum import StageOptions, TrainingOptions, Update, disturbed, draw_noise, updates
from models.distributed import ALONE, Ranks
from models.proof import attach
from models.run_state import Run
from models.validation import Reconstruction, Validation, diagnose, validate, validate_autoencoder, validation_starts

MAX_SKIPPED = 20  # non-finite updates in a row before the run is given up
ANALYSES = 32  # analyses at once that a family gets before a stage


@dataclass
class Progress:
    """What a caller may show after each update; samples_per_second counts members and steps; the last two: at validations."""

    iteration: int
    iterations: int
    stage: str
    loss: float
    samples_per_second: float
    seconds_left: float
    validation: Validation | Reconstruction | None
    logged: Mapping[str, Any] | None = None


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
    ranks: Ranks = ALONE,
) -> Path:
    """Train a generator and write `out/checkpoint.safetensors`: the averaged weights of the best validation of the last target.

    Resumes from `out/training/state.safetensors` if it is of the same spec and options, or of fewer stages at the end; another
    recipe there is an InputError with the difference. A finished run is a no-op. `metrics.jsonl` beside it holds one line a
    validation: means since the last one, and scores. ranks: the place of this process where several train together
    (`models.distributed.joined`).

    Raises GateError if the loss stays non-finite, InputError if memory runs out (saying what to lower).
    """
    for stage in options.stages:
        ranks.check(stage.name, stage.batch, stage.members)
    run = Run(spec, options, out, device, provenance, ranks)
    chosen = validation_starts(validation, options.validation_steps, options.validation_inits)
    clock = _Clock(options, run.iteration)
    for stage, todo in updates(options, run.iteration):
        if todo[0].position == 0:
            _begin(run, todo[0], training)
        for update, batch in zip(todo, _batches(run, stage, todo, training), strict=True):
            loss = _update(run, update, batch)
            run.iteration = update.k + 1
            measured = logged = None
            if run.iteration % options.validate_every == 0 or run.iteration == options.iterations:
                measured = _measured(run, stage, validation, chosen)
                logged = run.keep(measured, update, _diagnosed(run, stage, validation, chosen))
            else:
                run.save_if_due()
            rate, left = clock.after(update)
            report(Progress(run.iteration, options.iterations, stage.name, loss, rate, left, measured, logged))
    checkpoint = run.finish()
    if ranks.leads:
        attach(checkpoint)
    return checkpoint


def _batches(run: Run, stage: StageOptions, todo: list[Update], training: Samples) -> Iterator[Batch]:
    rank, ranks = run.ranks.samples
    return training.batches(
        run.options.seed, todo[0].k, len(todo), stage.batch, stage.rollout, order=run.options.order,
        intervals=[np.timedelta64(hours, "h") for hours in run.spec.intervals], rank=rank, ranks=ranks,
    )  # fmt: skip


def _begin(run: Run, update: Update, training: Samples) -> None:
    if run.ranks.leads:
        run.model.eval()
        run.model.begin(update.stage.as_stage(0), _analyses(training, run.device))
        run.model.train()
    run.begin(update)


def _analyses(training: Samples, device: torch.device) -> Iterator[Tensor]:
    """All normalised training analyses in the order of time, as batches (N, C, H, W)."""
    single = copy.copy(training)
    single.frames = 1
    for batch in single.sequence(single.times, 0, size=ANALYSES):
        yield torch.from_numpy(batch.frames[:, 0]).to(device)


def _update(run: Run, update: Update, batch: Batch) -> float:
    """One update of the weights and their average; returns the loss, NaN for an update that was skipped."""
    options, stage, k = run.options, update.stage, update.k
    (row, rows), device = run.ranks.samples, run.device
    torch.manual_seed(_dropout_seed(options.seed, k, run.ranks.rank))
    shape = (stage.members, stage.batch, stage.rollout + 1, flat_noise_size(run.model.noise_shapes()))
    noise = run.ranks.share(draw_noise(options.seed, k, shape))
    if options.input_noise:
        batch = disturbed(batch, run.spec, options.input_noise, options.seed, k, rank=row, ranks=rows)
    try:
        loss = run.gradients(_sample(run.spec, batch, device), noise.to(device), stage.as_stage(update.position))
        value = run.step(loss, stage.rate_at(update.position))
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        raise InputError(
            f"training: out of memory on {device} in stage {stage.name!r}; lower its batch ({stage.batch}), members "
            f"({stage.members}) or rollout ({stage.rollout}), or set recompute = true"
        ) from None
    if math.isfinite(value):
        run.average_weights(update.position)
    elif run.tally.in_a_row >= MAX_SKIPPED:
        raise GateError(f"training: the loss was not finite {MAX_SKIPPED} times in a row at iteration {k} (stage {stage.name})")
    return value


def _out_of_memory(error: BaseException) -> bool:
    """A GPU has an exception of its own; on a CPU torch raises a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _sample(spec: Spec, batch: Batch, device: torch.device) -> Sample:
    arrays = [batch.frames, batch.targets, batch.forcings]
    if spec.intervals:
        arrays.append(batch.intervals // np.timedelta64(1, "h"))
    return Sample(*(torch.from_numpy(array).to(device) for array in arrays))


def _dropout_seed(seed: int, k: int, rank: int) -> int:
    """Dropout draws from torch's own generator: seeded for each update, and apart for each process."""
    if rank == 0:
        return (seed << 32) + k
    return int(np.random.SeedSequence([seed, k, rank]).generate_state(1, np.uint64)[0])


def _measured(run: Run, stage: StageOptions, validation: Samples, chosen: np.ndarray) -> Validation | Reconstruction:
    options = run.options
    if stage.target == "autoencoder":
        return validate_autoencoder(run.averaged, validation, chosen, options.validation_steps, ranks=run.ranks)
    return validate(
        run.averaged, validation, chosen, options.validation_members, options.validation_steps, options.seed, ranks=run.ranks
    )


def _diagnosed(run: Run, stage: StageOptions, validation: Samples, chosen: np.ndarray) -> dict[str, float]:
    if stage.target == "autoencoder" or not run.ranks.leads:
        return {}
    return diagnose(run.averaged, validation, chosen, run.options.validation_members, run.options.seed)


class _Clock:
    """Rate and time left, from the network passes still to do: updates of different stages cost differently."""

    def __init__(self, options: TrainingOptions, done: int) -> None:
        self.left = sum(update.stage.passes for _, todo in updates(options, done) for update in todo)
        self.stage, self.passes = "", 0
        self.began = self.last = time.monotonic()

    def after(self, update: Update) -> tuple[float, float]:
        """(passes a second in this stage, seconds left) after an update."""
        if update.stage.name != self.stage:
            self.stage, self.passes, self.began = update.stage.name, 0, self.last
        self.last = time.monotonic()
        self.passes += update.stage.passes
        self.left -= update.stage.passes
        rate = self.passes / max(self.last - self.began, 1e-9)
        return rate, self.left / rate
