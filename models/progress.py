"""What a person sees while a model trains."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from data_pipeline.batches import Samples
from models.checkpoint import build
from models.contract import Spec
from models.training import Progress as Update
from models.training import TrainingOptions


class TrainingDisplay:
    """A bar with rate and time left on a terminal, a line a validation everywhere."""

    def __init__(self) -> None:
        self.console = Console()
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
        note = f"loss {update.loss:.4f}  {update.samples_per_second:.0f} members/s  {update.seconds_left / 60:.0f} min left"
        self.bar.update(
            self.task, total=update.iterations, completed=update.iteration, description=update.stage, note=note, refresh=False
        )
        if update.validation is not None:
            crps, ssr = update.validation.crps, update.validation.ssr
            last = sum(ssr[-1]) / len(ssr[-1])
            self.console.print(
                f"{update.iteration:>7}/{update.iterations} {update.stage:<10} {note}  validation: fair CRPS / tendency std "
                f"{crps[0]:.4f} (first step) {crps[-1]:.4f} (last), mean {update.validation.score:.4f}, "
                f"SSR {sum(ssr[0]) / len(ssr[0]):.2f} to {last:.2f}",
                highlight=False, soft_wrap=True,
            )  # fmt: skip


def show_plan(spec: Spec, options: TrainingOptions, training: Samples) -> None:
    """Print what a training would do."""
    console = Console()
    parameters = sum(value.numel() for value in build(spec).parameters())
    console.print(f"{spec.family} generator, {parameters:,} parameters, {len(spec.channels)} channels on {spec.grid}")
    console.print(f"training period {spec.training_period}, {training.times.size} analyses, step {spec.step_hours} h")
    passes = 0
    for stage in options.stages:
        work = stage.iterations * stage.batch * stage.members * stage.rollout
        passes += work
        console.print(
            f"  {stage.name}: {stage.iterations} updates of {stage.batch} samples x {stage.members} members x "
            f"{stage.rollout} steps = {work:,} network passes, rate {stage.rate:g} to {stage.final_rate:g}"
        )
    console.print(f"{passes:,} network passes forward and backward in all")
