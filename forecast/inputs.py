"""What a roll-out reads, by path: plain data that travel to other processes, where they are opened again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import xarray as xr

from data_pipeline import open_analysis, open_forecast
from data_pipeline.errors import InputError
from forecast.boundary import Boundary
from forecast.initial_states import InitialStates
from models.checkpoint import load, outline
from models.contract import Generator
from models.precision import Precision


class Opened(NamedTuple):
    """The arguments of `forecast.run`, as their paths say."""

    generators: list[Generator]
    analysis: xr.Dataset
    boundary: Boundary | None
    initial: InitialStates | None


@dataclass(frozen=True)
class Inputs:
    """Checkpoints and stores.

    step_hours: lead interval of the checkpoints; theirs unless given. boundary: "truth", the analysis itself, or a host forecast;
    ring: its width in cells. initial_number: the state that every member starts from; without it member k from number k.
    """

    analysis: Path
    checkpoints: tuple[Path, ...]
    step_hours: int | None = None
    precision: Precision = "float32"
    boundary: str | None = None
    ring: int = 3
    initial_states: Path | None = None
    initial_number: int | None = None

    def open(self, device: str = "cpu", *, weights: bool = True) -> Opened:
        """Everything, the stores lazily; without weights what plans and checks need of the checkpoints, at once.

        Raises InputError for what is not there or not what it should be.
        """
        if self.initial_number is not None and self.initial_states is None:
            raise InputError("--initial-number chooses a state of a store: give --initial-states too")
        options: dict[str, Any] = {"step_hours": self.step_hours, "precision": self.precision}
        generators = [load(path, device, **options) if weights else outline(path, **options) for path in self.checkpoints]
        analysis = open_analysis(self.analysis)
        initial = None if self.initial_states is None else InitialStates(open_forecast(self.initial_states), self.initial_number)
        return Opened(generators, analysis, self._boundary(analysis), initial)

    def absolute(self) -> Inputs:
        """The same paths for a process in another folder."""
        host = self.boundary if self.boundary in (None, "truth") else str(Path(self.boundary).resolve())
        states = None if self.initial_states is None else self.initial_states.resolve()
        checkpoints = tuple(path.resolve() for path in self.checkpoints)
        return replace(self, analysis=self.analysis.resolve(), checkpoints=checkpoints, boundary=host, initial_states=states)

    def _boundary(self, analysis: xr.Dataset) -> Boundary | None:
        if self.boundary is None:
            return None
        if self.boundary == "truth":
            return Boundary(analysis, self.ring)
        return Boundary(open_forecast(self.boundary), self.ring, Path(self.boundary).stem)
