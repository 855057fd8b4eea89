"""Generator states: cut and joined along the rows of a batch, and kept beside a store so that its leads can be added to.

A state is a named tuple of float32 tensors, batch first (or None), whatever the family.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.errors import InputError
from data_pipeline.recipe import fingerprint
from forecast.extend import settings
from forecast.plan import ForecastPlan
from models.checkpoint import read_tensors, write_tensors

if TYPE_CHECKING:
    from forecast.members import MicroBatch


def rows_of(state: Any, rows: slice) -> Any:
    """Some rows of a state."""
    return type(state)(*(None if value is None else value[rows] for value in state))


def joined(states: Sequence[Any]) -> Any:
    """The rows of several states, one after the other."""
    return type(states[0])(*(None if values[0] is None else torch.cat(values) for values in zip(*states, strict=True)))


def folder_of(store: str | Path) -> Path:
    """Where the states of a store's last lead lie."""
    return Path(store).with_name(Path(store).name + ".states")


class Restarts:
    """Exact states of the last lead of each initialisation and member, one small file a micro-batch.

    Those of other settings, or of members that are not wanted, are not used: a forecast without them has the same numbers, and
    takes longer.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def bytes_of(self, plan: ForecastPlan, state_bytes: int) -> int:
        return plan.times.size * len(plan.members) * state_bytes

    def resume(self, plan: ForecastPlan, time: np.datetime64, lane: Sequence[MicroBatch], before: int) -> int:
        """Put micro-batches that have begun into the state of the same step, at most `before`; 0 if there is none for all."""
        found = [self._read(plan, time, batch) for batch in lane]
        steps = {step for step, _, _ in found}
        if len(steps) != 1 or not 0 < (step := steps.pop()) <= before:
            return 0
        if any(not set(batch.members) <= set(members) for batch, (_, members, _) in zip(lane, found, strict=True)):
            return 0
        for batch, (_, _, tensors) in zip(lane, found, strict=True):
            batch.state = batch.state._replace(**{name: value.to(batch.device) for name, value in tensors.items()})
        return step

    def keep(self, plan: ForecastPlan, time: np.datetime64, batch: MicroBatch, step: int) -> None:
        """Write the state of a micro-batch; members that another call has kept at the same step stay."""
        tensors = {name: value.detach().cpu() for name, value in batch.state._asdict().items() if value is not None}
        old_step, old_members, old = self._read(plan, time, batch)
        members = set(batch.members)
        if old_step == step and old.keys() == tensors.keys():
            members |= set(old_members)
            for name, value in tensors.items():
                kept = old[name].clone()
                kept[batch.lines] = value[batch.lines]
                tensors[name] = kept
        header = {"identity": self._identity(plan), "step": str(step), "members": json.dumps(sorted(members))}
        write_tensors(self._path(time, batch), tensors, header)

    def _read(self, plan: ForecastPlan, time: np.datetime64, batch: MicroBatch) -> tuple[int, Sequence[int], dict[str, Tensor]]:
        path = self._path(time, batch)
        if not path.exists():
            return 0, (), {}
        try:
            header, tensors = read_tensors(path)
            if header["identity"] != self._identity(plan):
                return 0, (), {}
            return int(header["step"]), json.loads(header["members"]), tensors
        except (InputError, KeyError, ValueError):  # damaged: as if it were not there
            return 0, (), {}

    def _path(self, time: np.datetime64, batch: MicroBatch) -> Path:
        stamp = np.datetime_as_string(time, "h")
        return self.folder / f"{stamp}.c{batch.part}.b{batch.group:04d}.safetensors"

    def _identity(self, plan: ForecastPlan) -> str:
        return fingerprint(settings(plan.attrs))
