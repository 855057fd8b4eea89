"""What a person sees while a model trains."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from data_pipeline.batches import Samples
from models.checkpoint import build
from models.contract import Spec
from models.curriculum import TrainingOptions
from models.training import Progress as Update
from models.validation import Reconstruction, Validation

if TYPE_CHECKING:
    from models.planning import TrainingPlan

QUIET_SECONDS = 60.0  # a line at least as often where there is no bar


class TrainingDisplay:
    """A bar with rate and time left on a terminal; a line a validation everywhere, and one a minute where there is no bar."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet)
        self.loss: float | None = None  # smoothed
        self.told = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[note]}"),
            console=self.console, disable=not self.console.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task("training", total=None, note="")

    def __enter__(self) -> TrainingDisplay:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()

    def __call__(self, update: Update) -> None:
        self.loss = update.loss if self.loss is None else 0.98 * self.loss + 0.02 * update.loss
        if not math.isfinite(self.loss):  # an update that was skipped
            self.loss = None
        shown = update.loss if self.loss is None else self.loss
        pace = f"{update.samples_per_second:.0f} members/s  {_duration(update.seconds_left)} left"
        self.bar.update(
            self.task, total=update.iterations, completed=update.iteration, description=update.stage,
            note=f"loss {shown:.4f}  {pace}", refresh=False,
        )  # fmt: skip
        if update.validation is not None and update.logged is not None:
            self._line(update, pace, _scores(update.validation), update.logged)
        elif not self.console.is_terminal and time.monotonic() - self.told > QUIET_SECONDS:
            self._line(update, pace, "", {"loss": shown})

    def _line(self, update: Update, pace: str, scores: str, logged: Mapping[str, Any]) -> None:
        self.told = time.monotonic()
        skipped = f"  {logged['skipped']} updates skipped" if logged.get("skipped") else ""
        loss = math.nan if logged["loss"] is None else logged["loss"]
        self.console.print(
            f"{update.iteration:>7}/{update.iterations} {update.stage:<10} loss {loss:.4f}  {pace}{skipped}{scores}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


def _scores(found: Validation | Reconstruction) -> str:
    if isinstance(found, Reconstruction):
        return f"  validation: reconstruction RMSE / tendency std {found.score:.4f}, worst channel {max(found.rmse):.4f}"
    first, last = (sum(row) / len(row) for row in (found.ssr[0], found.ssr[-1]))
    return (
        f"  validation: fair CRPS / tendency std {found.crps[0]:.4f} (first step) {found.crps[-1]:.4f} (last), "
        f"mean {found.score:.4f}, SSR {first:.2f} to {last:.2f}"
    )


def _duration(seconds: float) -> str:
    """Minutes below three hours, hours and minutes above: `48 min`, `5 h 12 min`."""
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 180 else f"{minutes // 60} h {minutes % 60} min"


def show_plan(spec: Spec, options: TrainingOptions, training: Samples) -> None:
    """Print what a training would do."""
    console = Console()
    with torch.device("meta"):  # shapes alone
        parameters = sum(value.numel() for value in build(spec).parameters())
    console.print(f"{spec.family} generator, {parameters:,} parameters, {len(spec.channels)} channels on {spec.grid}")
    console.print(f"training period {spec.training_period}, {training.times.size} analyses, step {spec.step_hours} h")
    passes = 0
    for stage in options.stages:
        work = stage.iterations * stage.passes
        passes += work
        console.print(
            f"  {stage.name}: {stage.iterations} updates of {stage.batch} samples x {stage.members} members x "
            f"{stage.rollout} steps = {work:,} network passes, rate {stage.rate:g} to {stage.final_rate:g}"
        )
    console.print(f"{passes:,} network passes forward and backward in all")


def show_requirements(plan: TrainingPlan, *, tflops: float, utilisation: float) -> None:
    """Print what a training takes on each GPU, and how long."""
    console = Console(soft_wrap=True, highlight=False)
    spec, options = plan.spec, plan.spec.options
    console.print(
        f"{spec.family} generator, preset {options.get('preset', '-')}: {plan.parameters:,} parameters, "
        f"{len(spec.channels)} channels on {spec.grid}, {spec.frames} frames, {spec.n_planes} forcing planes"
    )
    console.print(
        f"on each of {plan.gpus} GPUs: weights {_size(plan.weights)}, average {_size(plan.average)}, gradients "
        f"{_size(plan.gradients)}, AdamW moments {_size(plan.moments)}"
    )
    for each in plan.stages:
        stage = each.stage
        console.print(
            f"  {stage.name}: {stage.iterations:,} updates of {stage.batch} samples x {stage.members} members x "
            f"{stage.rollout} steps; {each.pass_flops / 1e9:,.1f} GFLOP a step of a member, {each.flops / 1e12:,.2f} TFLOP "
            f"an update, activations {_size(each.activations)}"
        )
    console.print(
        f"{_size(plan.peak)} at the peak, temporaries not counted; {plan.flops / 1e15:,.3g} PFLOP in all: "
        f"{plan.hours(tflops, utilisation):,.2g} hours at {utilisation:.0%} of {tflops:g} TFLOP/s, validations not counted"
    )


def show_sizes(plans: Mapping[str, TrainingPlan], *, tflops: float, utilisation: float) -> None:
    """Print what each preset would take, a line each."""
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{'preset':<8}{'parameters':>14}{'GFLOP a step':>14}{'activations':>13}{'peak':>11}{'hours':>9}")
    for preset, plan in plans.items():
        largest = max(plan.stages, key=lambda each: each.activations)
        console.print(
            f"{preset:<8}{plan.parameters:>14,}{largest.pass_flops / 1e9:>14,.1f}{_size(largest.activations):>13}"
            f"{_size(plan.peak):>11}{plan.hours(tflops, utilisation):>9,.2g}"
        )


def _size(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
