"""What becomes of a forecast: a store, a score state, or both, behind the gate; plain data that travel to other processes."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xarray as xr

from data_pipeline import open_analysis
from data_pipeline.sources.climatologies import open_climatology
from forecast.gate import Gate, GateSink, Report
from forecast.inputs import Opened
from forecast.plan import ForecastPlan
from forecast.retention import SpaceError
from forecast.rollout import Progress, run
from forecast.sinks import ScoreSink, Sink, ZarrSink
from forecast.states import Restarts, folder_of
from verification.plan import MissingTruth

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
CLIMATOLOGY_BYTES = 512 << 20  # a climatology up to this size is kept in memory


@dataclass(frozen=True)
class Scores:
    """A score state made while sampling, as `plumecast verify` would make it of the store."""

    out: Path
    truth: Path
    climatology: Path | None = None
    events: tuple[str, ...] | None = None
    missing_truth: MissingTruth = "error"

    def sink(self) -> ScoreSink:
        climatology = None if self.climatology is None else open_climatology(self.climatology)
        if climatology is not None and climatology.nbytes <= CLIMATOLOGY_BYTES:
            climatology = climatology.load()
        events = None if self.events is None else list(self.events)
        return ScoreSink(
            open_analysis(self.truth), climatology, out=self.out, missing_truth=self.missing_truth, events=events
        )  # fmt: skip


@dataclass(frozen=True)
class Outputs:
    """store: where fields are kept, None for nowhere. strict: the gate refuses, not only warns. keep_states: for later leads."""

    store: Path | None
    strict: bool = True
    keep_states: bool = False
    scores: Scores | None = None

    def absolute(self) -> Outputs:
        """The same places for a process in another folder."""
        return replace(self, store=None if self.store is None else self.store.resolve())


@dataclass(frozen=True)
class Made:
    """What `make` found on its way: the gate's report of what this process made, and the score state, if one was asked for."""

    report: Report
    state: xr.Dataset | None = None


def make(
    plan: ForecastPlan, opened: Opened, outputs: Outputs, *, only: Collection[str] | None = None, gate: Gate | None = None,
    devices: Sequence[str] = (),
    report: Callable[[Progress], None] = lambda progress: None, remark: Callable[[str], None] = lambda text: None,
) -> Made:  # fmt: skip
    """Carry out a plan: the gate first, then whatever keeps something. only: the parts of this process, see `ZarrSink`. gate: of
    this plan, where there is one already.

    remark: told when memory runs out; the store keeps it too. Raises GateError, and publishes nothing, if the gate refuses.
    """
    gates = GateSink(gate or Gate.of(opened.generators[0].spec, plan, opened.analysis), strict=outputs.strict)
    store = None if outputs.store is None else ZarrSink(outputs.store, only=only, gate=gates)
    scores = None if outputs.scores is None else outputs.scores.sink()
    sinks: list[Sink] = [sink for sink in (gates, store, scores) if sink is not None]

    def remarked(text: str) -> None:
        remark(text)
        if store is not None:
            store.remarks.append(text)

    restarts = Restarts(folder_of(outputs.store)) if outputs.keep_states and outputs.store is not None else None
    options: dict[str, Any] = {"boundary": opened.boundary, "initial": opened.initial, "devices": devices}
    try:
        run(opened.generators, opened.analysis, plan, sinks, restarts=restarts, report=report, remark=remarked, **options)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise SpaceError(
            f"{outputs.store or 'scores'}: {error.strerror}; what is done stays, and the same command continues once there "
            "is room"
        ) from error
    finally:
        for sink in (store, scores):
            if sink is not None:
                sink.release()
    return Made(gates.report, None if scores is None else scores.state)
