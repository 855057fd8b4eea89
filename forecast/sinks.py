"""Sinks take each lead of a roll-out as it comes: open(plan), take(...), close(). A roll-out feeds any number of them.

Those that write a forecast store and a score state are in `forecast.writing` and `forecast.scoring`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import xarray as xr

from data_pipeline.errors import GateError
from data_pipeline.schema import Channel, stack
from forecast.plan import ForecastPlan, as_dataset, plan_of
from forecast.scoring import ScoreSink
from forecast.writing import ZarrSink

__all__ = ["MemorySink", "ScoreSink", "Sink", "ZarrSink", "check_finite", "write_lazy"]


class Sink(Protocol):
    """Takes what a roll-out makes. whole: True for a sink that needs all members of a lead at once, not block by block."""

    whole: bool

    def open(self, plan: ForecastPlan) -> np.ndarray | None:
        """Prepare; returns what this sink already holds, bool (time, lead, member), or None for nothing."""

    def take(self, time: np.datetime64, lead: np.timedelta64, members: tuple[int, ...], fields: np.ndarray) -> None:
        """Fields (member, channel, latitude, longitude), physical units, of these members for one initialisation and lead.

        Initialisations and member blocks come one after the other, the leads of each in order. What is held may come again.
        """

    def close(self) -> None:
        """Everything of the plan was taken, or is held."""


class MemorySink:
    """Keeps everything in memory, for small forecasts in notebooks and tests."""

    whole = False

    def open(self, plan: ForecastPlan) -> None:
        self.plan = plan
        self._places = {member: place for place, member in enumerate(plan.members)}
        shape = (plan.times.size, plan.leads.size, len(plan.members), len(plan.channels), *plan.grid.shape)
        self._fields = np.full(shape, np.nan, np.float32)

    def take(self, time: np.datetime64, lead: np.timedelta64, members: tuple[int, ...], fields: np.ndarray) -> None:
        row, column = np.flatnonzero(self.plan.times == time)[0], np.flatnonzero(self.plan.leads == lead)[0]
        self._fields[row, column, [self._places[member] for member in members]] = fields

    def close(self) -> None:
        self.dataset = as_dataset(self.plan, self._fields, self.plan.times, self.plan.leads).assign_attrs(self.plan.attrs)


def check_finite(
    channels: Sequence[Channel], time: np.datetime64, lead: np.timedelta64, members: tuple[int, ...], fields: np.ndarray
) -> None:
    """Raise GateError naming the first member and channel with a value that is not finite."""
    bad = ~np.isfinite(fields).all(axis=(-2, -1))
    if bad.any():
        member, channel = np.argwhere(bad)[0]
        hours = int(lead / np.timedelta64(1, "h"))
        raise GateError(
            f"forecast of {np.datetime_as_string(time, 'h')}: member {members[member]}, {channels[channel]} not finite "
            f"at +{hours} h ({int(bad.any(axis=1).sum())} of {len(members)} members affected); nothing was published"
        )


def write_lazy(forecast: xr.Dataset, path: str | Path, report: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Write a lazy dataset in the forecast schema as a store, one initialisation at a time; resumable like any forecast."""
    plan = plan_of(forecast)
    sink = ZarrSink(path)
    try:
        held = sink.open(plan)
        for i, time in enumerate(plan.times):
            if not held[i].all():
                whole = stack(forecast.isel(time=i), list(plan.channels))
                fields = whole.transpose("prediction_timedelta", "number", "channel", "latitude", "longitude").values
                for lead, each in zip(plan.leads, fields, strict=True):
                    sink.take(time, lead, plan.members, each)
            report(i + 1, plan.times.size)
        sink.close()
    finally:
        sink.release()
