"""Metrics of a training run: means since the last validation, one JSON line a validation, on request TensorBoard events."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.errors import InputError


@dataclass
class Tally:
    """Sums over the updates since the last validation; plain data, so that a resumed run continues it to the bit.

    skipped: updates that were not made because loss or gradient was not finite; in_a_row: the last of them without a break.
    """

    updates: int = 0
    skipped: int = 0
    in_a_row: int = 0
    loss: float = 0.0
    gradient_norm: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)

    def add(self, loss: float, gradient_norm: float, parts: Mapping[str, float]) -> None:
        """Count an update that was made."""
        self.updates, self.in_a_row = self.updates + 1, 0
        self.loss += loss
        self.gradient_norm += gradient_norm
        for name, value in parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + value

    def skip(self) -> None:
        """Count an update that was not."""
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1

    def means(self) -> dict[str, Any]:
        """Mean loss, gradient norm before clipping and named parts of the loss, None where every update was skipped.

        A part that some updates lack (another stage's) is divided by all of them.
        """
        count = self.updates or None
        return {
            "loss": count and self.loss / count,
            "gradient_norm": count and self.gradient_norm / count,
            "parts": {name: value / (count or 1) for name, value in self.parts.items()},
            "skipped": self.skipped,
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain data; `Tally(**data)` is the inverse."""
        return asdict(self)

    def renewed(self) -> Tally:
        """An empty tally that still knows how many updates in a row were skipped."""
        return Tally(in_a_row=self.in_a_row)


class MetricsLog:
    """`metrics.jsonl` in a folder, and TensorBoard events below `tensorboard/`.

    Lines of updates after `iteration`, written by a run that was killed before its state was saved, are taken away first, so no
    line appears twice. Raises InputError if tensorboard is asked for and not installed.
    """

    def __init__(self, folder: Path, iteration: int, *, tensorboard: bool) -> None:
        self.path = folder / "metrics.jsonl"
        self.events = _events(folder / "tensorboard", iteration) if tensorboard else None
        if self.path.exists():
            text = self.path.read_text()
            kept = "".join(line for line in _whole_lines(text) if json.loads(line)["iteration"] <= iteration)
            if kept != text:
                partial = self.path.with_suffix(".partial")
                partial.write_text(kept)
                partial.replace(self.path)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line, on the disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(_without_nan(line)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self.events is not None:
            for name, value in _scalars(line):
                self.events.add_scalar(name, value, line["iteration"])
            self.events.flush()


def _whole_lines(text: str) -> Iterator[str]:
    return (line for line in text.splitlines(keepends=True) if line.endswith("\n"))


def _without_nan(value: Any) -> Any:
    """NaN and infinities as null: they are no JSON."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a nested line by name, lists numbered from 1; lists of lists are left to the JSON."""
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, list):
            yield from ((f"{prefix}{name}/{i}", item) for i, item in enumerate(value, 1) if isinstance(item, int | float))
        elif isinstance(value, int | float) and name != "iteration":
            yield prefix + name, float(value)


def _events(folder: Path, iteration: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "training.tensorboard = true needs the package tensorboard: pip install 'plumecast[tensorboard]', or leave it out"
        ) from None
    return SummaryWriter(folder, purge_step=iteration + 1 if iteration else None)
