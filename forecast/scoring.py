"""Scores while a forecast is made: the state that `plumecast verify` makes of the stored one, without the store."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.recipe import fingerprint
from data_pipeline.schema import Channel, stack
from forecast.extend import recipe_of
from forecast.plan import ForecastPlan, template
from verification.accumulate import Accumulator
from verification.evaluate import Part, stash, stash_of, whole_state
from verification.plan import MissingTruth, plan_for, truth_rows
from verification.state import FORMAT, is_state, open_state, save


class ScoreSink:
    """Scores each lead against an analysis while it is made; nothing but the score state remains (`.state` after close).

    truth, climatology, missing_truth and choice (channels, events, radii, cases, points) as for `verification.evaluate`. out:
    where the state is saved; the sums of each initialisation wait beside it until all are there, so that a killed run continues,
    and a finished one is read. Scores equal those of the stored forecast to rounding in float64.
    """

    whole = True

    def __init__(
        self, truth: xr.Dataset, climatology: xr.Dataset | None = None, *, out: str | Path | None = None,
        missing_truth: MissingTruth = "error", **choice: Any,
    ) -> None:  # fmt: skip
        self.truth, self.climatology, self.missing_truth, self.choice = truth, climatology, missing_truth, choice
        self.out = None if out is None else Path(out)
        self._held_open = ExitStack()

    def open(self, plan: ForecastPlan) -> np.ndarray | None:
        """What is scored already. Raises InputError, before anything is made, if the truth does not fit or lacks valid times."""
        self.plan = plan
        forecast = template(plan).assign_attrs(plan.attrs)
        self._scored = plan_for(forecast, self.truth, climatology=self.climatology, **self.choice)
        self._rows = truth_rows(self.truth, plan.times, plan.leads, self.missing_truth)
        order = [channel.label for channel in plan.channels]
        self._columns = [order.index(label) for label in self._scored.channels]
        self._channels = [Channel.parse(label) for label in self._scored.channels]
        self._accumulator: Accumulator | None = None
        held = np.zeros((plan.times.size, plan.leads.size, len(plan.members)), bool)
        self._parts, folder = [], None
        if self.out is not None:
            if is_state(self.out) and open_state(self.out).attrs.get("inputs") == self._identity():
                rmtree(stash_of(self.out), ignore_errors=True)  # killed between saving and tidying up
                return ~held
            if self.out.exists() and not is_state(self.out):
                raise InputError(f"{self.out} exists and is not a score state; choose another place (--scores)")
            folder = self._held_open.enter_context(stash(self.out, self._identity()))
        self._parts = [Part(self._scored, slice(row, row + 1), folder) for row in range(plan.times.size)]
        self._sums = {row: part.read() for row, part in enumerate(self._parts) if part.is_kept}
        held[list(self._sums)] = True
        return held

    def take(self, time: np.datetime64, lead: np.timedelta64, _: tuple[int, ...], fields: np.ndarray) -> None:
        if not self._parts:
            return
        row, k = int(np.flatnonzero(self.plan.times == time)[0]), int(np.flatnonzero(self.plan.leads == lead)[0])
        if row in self._sums:
            return
        if self._accumulator is None or self._accumulator.plan is not self._parts[row].plan:
            self._accumulator = Accumulator(self._parts[row].plan, self.climatology)
        if self._rows[row, k] >= 0:
            truth = stack(self.truth.isel(time=self._rows[row, k]), self._channels).values
            self._accumulator.add(time, lead, fields[:, self._columns], truth)
        if k == self.plan.leads.size - 1:
            self._parts[row].keep(self._accumulator.sums)
            self._sums[row] = self._accumulator.sums

    def close(self) -> None:
        if not self._parts:
            assert self.out is not None
            self.state = open_state(self.out)
            return
        self.state = whole_state(self._scored, (self._sums[row] for row in range(len(self._parts))))
        if self.out is not None:
            self.state.attrs |= {"inputs": self._identity()}
            save(self.state, self.out)
        self._held_open.close()

    def release(self) -> None:
        """Let another process continue; what was scored stays."""
        stopped = RuntimeError("released")
        self._held_open.__exit__(type(stopped), stopped, None)  # unlike `close`, which ends the work: the sums would go

    def _identity(self) -> str:
        """What a saved state is recognised by."""
        data = {name: None if each is None else str(each.attrs.get("recipe_hash", each.attrs)) for name, each in (
            ("truth", self.truth), ("climatology", self.climatology)
        )}  # fmt: skip
        choice = {key: None if value is None else list(map(str, value)) for key, value in self.choice.items()}
        return fingerprint(
            {"format": FORMAT, "forecast": recipe_of(self.plan), **data, "choice": choice, "skip": self.missing_truth}
        )
