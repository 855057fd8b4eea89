"""A toy schedule for tests: red-noise weather as the source, an untrained network, clocks that are set by hand."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.store import is_store, write_dataset
from forecast.cycle.clock import Clock
from forecast.cycle.job import Job, Stop, ledger_path
from forecast.cycle.ledger import Ledger
from forecast.cycle.recipe import CycleRecipe
from models import checkpoint
from tests import toys

FIRST = dt.datetime(2001, 1, 3)  # an initialisation with both its frames
HALF_DAY = dt.timedelta(hours=12)


@dataclass
class Hands:
    """Both clocks, moved by hand."""

    now: dt.datetime = FIRST + dt.timedelta(hours=6)
    elapsed: float = 1000.0

    def pass_by(self, span: dt.timedelta) -> None:
        """Time passes, and both clocks show it."""
        self.now += span
        self.elapsed += span.total_seconds()

    @property
    def clock(self) -> Clock:
        return Clock(now=lambda: self.now, elapsed=lambda: self.elapsed)


@dataclass
class World:
    """A folder with a source, a checkpoint and a schedule that runs on them."""

    folder: Path
    hands: Hands = field(default_factory=Hands)

    def __post_init__(self) -> None:
        self.analysis, self.checkpoint = self.folder / "analysis.zarr", self.folder / "toy.safetensors"
        if not is_store(self.analysis):
            data = toys.weather(steps=60)
            generator = toys.network(toys.spec_of(data, toys.period(data, 0, 9)))
            checkpoint.save(self.checkpoint, generator.spec, generator.state_dict(), {})
            write_dataset(self.analysis, data)

    def recipe(self, **sections: Any) -> CycleRecipe:
        given: dict[str, Any] = {
            "name": "toy",
            "archive": {"root": self.folder / "archive", "model": "toy"},
            "analyses": {"kind": "replay", "path": self.analysis},
            "forecast": {"checkpoints": (str(self.checkpoint),), "members": 2, "days": 1.0},
            "retry": {"first": "10m", "longest": "1h"},
            "retention": {"keep": 100},
            "verification": {"channels": ("geopotential_500", "2m_temperature")},
        }  # fmt: skip
        return CycleRecipe.model_validate(
            {**given, **{name: {**given.get(name, {}), **value} for name, value in sections.items()}}
        )

    def job(self, **sections: Any) -> Job:
        recipe = self.recipe(**sections)
        return Job(recipe, Ledger(ledger_path(recipe.place), self.hands.clock), self.hands.clock, Stop())
