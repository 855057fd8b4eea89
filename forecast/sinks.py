"""Sinks take each lead of a roll-out as it comes: open(plan), take(...), close(). A roll-out feeds any number of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import xarray as xr

from data_pipeline import store
from data_pipeline.errors import GateError
from data_pipeline.schema import Channel, stack
from forecast.plan import ForecastPlan, as_dataset, plan_of, template
from verification.accumulate import Accumulator
from verification.plan import plan_for, truth_rows

BUFFER_BYTES = 96 << 20  # leads gathered before a chunk is written


class Sink(Protocol):
    """Takes fields (member, channel, latitude, longitude), physical units, of all members for one initialisation and lead."""

    def open(self, plan: ForecastPlan) -> set[np.datetime64]:
        """Prepare; returns the initialisations that this sink already holds."""

    def take(self, time: np.datetime64, lead: np.timedelta64, fields: np.ndarray) -> None:
        """One lead of one initialisation; leads come in order, initialisations one after the other."""

    def close(self) -> None:
        """All initialisations of the plan were taken."""


class ZarrSink:
    """Writes a forecast store; an initialisation is one part, so a killed run continues with the first unfinished one."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._writer: store.StoreWriter | None = None

    def open(self, plan: ForecastPlan) -> set[np.datetime64]:
        self.plan = plan
        self._run = min(plan.leads.size, max(1, BUFFER_BYTES // plan.lead_bytes))
        self._buffer: list[np.ndarray] = []
        self._first = 0
        self._parts = {time: np.datetime_as_string(time, "h") for time in plan.times}
        self._writer = store.create(
            self.path,
            template(plan),
            parts=list(self._parts.values()),
            attrs=plan.attrs,
            chunks={"time": 1, "prediction_timedelta": self._run},
            recipe={key: value for key, value in plan.attrs.items() if key != "plumecast_version"},
        )
        self._held = {time for time, part in self._parts.items() if part in self._writer.done}
        return self._held

    def take(self, time: np.datetime64, lead: np.timedelta64, fields: np.ndarray) -> None:
        if time in self._held:  # another sink has to see it again
            return
        self._buffer.append(fields)
        last = self._first + len(self._buffer)
        if len(self._buffer) < self._run and last < self.plan.leads.size:
            return
        row = int(np.flatnonzero(self.plan.times == time)[0])
        box = {"time": slice(row, row + 1), "prediction_timedelta": slice(self._first, last)}
        data = as_dataset(
            self.plan, np.stack(self._buffer)[None], self.plan.times[row : row + 1], self.plan.leads[self._first : last]
        )
        assert self._writer is not None, "take before open"
        self._writer.put(self._parts[time], data, box)
        self._buffer, self._first = [], last
        if last == self.plan.leads.size:
            self._writer.complete(self._parts[time])
            self._first = 0

    def close(self) -> None:
        assert self._writer is not None, "close before open"
        self._writer.finish()

    def release(self) -> None:
        """Drop the lock without publishing; what is complete stays."""
        if self._writer is not None:
            self._writer.close()


class MemorySink:
    """Keeps everything in memory, for small forecasts in notebooks and tests."""

    def open(self, plan: ForecastPlan) -> set[np.datetime64]:
        self.plan = plan
        shape = (plan.times.size, plan.leads.size, len(plan.members), len(plan.channels), *plan.grid.shape)
        self._fields = np.full(shape, np.nan, np.float32)
        return set()

    def take(self, time: np.datetime64, lead: np.timedelta64, fields: np.ndarray) -> None:
        row, column = np.flatnonzero(self.plan.times == time)[0], np.flatnonzero(self.plan.leads == lead)[0]
        self._fields[row, column] = fields

    def close(self) -> None:
        self.dataset = as_dataset(self.plan, self._fields, self.plan.times, self.plan.leads).assign_attrs(self.plan.attrs)


class ScoreSink:
    """Scores each lead against an analysis while it is made; nothing but the score state remains (`.state` after close)."""

    def __init__(self, truth: xr.Dataset) -> None:
        self.truth = truth

    def open(self, plan: ForecastPlan) -> set[np.datetime64]:
        self.plan = plan
        score_plan = plan_for(template(plan).assign_attrs(plan.attrs), self.truth)
        self._rows = truth_rows(self.truth, plan.times, plan.leads)
        self._accumulator = Accumulator(score_plan)
        order = [channel.label for channel in plan.channels]
        self._columns = [order.index(label) for label in score_plan.channels]
        self._channels = [Channel.parse(label) for label in score_plan.channels]
        return set()

    def take(self, time: np.datetime64, lead: np.timedelta64, fields: np.ndarray) -> None:
        row = self._rows[np.flatnonzero(self.plan.times == time)[0], np.flatnonzero(self.plan.leads == lead)[0]]
        truth = stack(self.truth.isel(time=row), self._channels).values
        self._accumulator.add(time, lead, fields[:, self._columns], truth)

    def close(self) -> None:
        self.state = self._accumulator.state()


def check_finite(plan: ForecastPlan, time: np.datetime64, lead: np.timedelta64, fields: np.ndarray) -> None:
    """Raise GateError naming the first member and channel with a value that is not finite."""
    bad = ~np.isfinite(fields).all(axis=(-2, -1))
    if bad.any():
        member, channel = np.argwhere(bad)[0]
        hours = int(lead / np.timedelta64(1, "h"))
        raise GateError(
            f"forecast of {np.datetime_as_string(time, 'h')}: member {plan.members[member]}, {plan.channels[channel]} not finite "
            f"at +{hours} h ({int(bad.any(axis=1).sum())} of {len(plan.members)} members affected); nothing was published"
        )


def write_lazy(forecast: xr.Dataset, path: str | Path, report: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Write a lazy dataset in the forecast schema as a store, one initialisation at a time; resumable like any forecast."""
    plan = plan_of(forecast)
    sink = ZarrSink(path)
    try:
        held = sink.open(plan)
        for i, time in enumerate(plan.times):
            if time not in held:
                whole = stack(forecast.isel(time=i), list(plan.channels))
                fields = whole.transpose("prediction_timedelta", "number", "channel", "latitude", "longitude").values
                for lead, members in zip(plan.leads, fields, strict=True):
                    sink.take(time, lead, members)
            report(i + 1, plan.times.size)
        sink.close()
    finally:
        sink.release()
