"""One run, from data to publication, stage by stage; what is finished in staging is not done again.

analysis -> initial states -> space -> forecast -> gate -> products -> publish
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

import models
from data_pipeline import open_forecast, store
from data_pipeline.disk import read_json, write_json
from data_pipeline.errors import GateError
from data_pipeline.recipe import fingerprint
from forecast import archive, retention
from forecast.archive import Run, init_name
from forecast.cycle import source, states
from forecast.cycle.job import Job
from forecast.cycle.ledger import LEASE_SECONDS, Lease, LeaseLost
from forecast.cycle.recipe import ForecastSection, ProductsSection

if TYPE_CHECKING:
    from forecast.initial_states import InitialStates
    from forecast.plan import ForecastPlan
    from models.contract import Generator, Spec

FORECAST, INITIAL, STATES, LOG = "forecast.zarr", "initial.zarr", "states.zarr", "log.jsonl"
SHOWN_SECONDS = 1.0  # between two notes of how far a run is


@dataclass
class Stage:
    """A run being made. folder: its staging; timings: seconds by stage, over all attempts."""

    job: Job
    lease: Lease
    revision: int
    folder: Path
    generators: list[Generator]
    timings: dict[str, float]
    lost: threading.Event = field(default_factory=threading.Event)

    @property
    def init(self) -> dt.datetime:
        return self.lease.init

    @property
    def work_file(self) -> Path:
        """Beside the staging, not part of the run: the recipe it is made by, and the seconds spent."""
        return self.folder.with_name(f"{init_name(self.init)}.json")

    def note(self) -> None:
        recipe_hash = fingerprint(content_recipe(self.job))
        write_json(self.work_file, {"recipe_hash": recipe_hash, "timings": self.timings})

    def check(self) -> None:
        """Raise Stopped if it was asked for, LeaseLost if another scheduler has taken over."""
        if self.lost.is_set():
            raise LeaseLost(f"{init_name(self.init)}: another scheduler took this cycle over")
        self.job.stop.check()


def make_run(job: Job, lease: Lease, revision: int) -> Run:
    """Make and publish the run of a cycle; resumes what an earlier attempt left in staging.

    Raises NotReadyError if its data are not there yet, InputError for bad data, GateError for a run that fails its gate (it lies
    in quarantine then), SpaceError or OSError for a disk that is full, Stopped, LeaseLost.
    """
    generators = loaded(job.recipe.forecast)
    stage = Stage(job, lease, revision, job.archive.staging / f"{init_name(lease.init)}.t{lease.token}", generators, {})
    with _beating(stage):
        _adopt(stage)
        with _timed(stage, "analysis"):
            frames = source.fetch(
                job.recipe.analyses, job.recipe.schedule, generators[0].spec, lease.init, job.clock.now(), stage.folder / INITIAL
            )
            if (wanted := job.recipe.forecast.initial_states) is not None and not store.is_store(stage.folder / STATES):
                states.check(wanted, frames, generators[0].spec, np.datetime64(lease.init, "ns"), job.recipe.forecast.members)
        job.ledger.begin(lease, "data are there", data_at=job.clock.now(), begun=job.clock.now(), waits=0)
        with _timed(stage, "initial states"):
            initial = _initial(stage, frames)
        plan = planned(job.recipe.forecast, generators, frames, lease.init, job.archive.model, initial)
        with _timed(stage, "space"):
            _require_space(stage, plan)
        try:
            with _timed(stage, "forecast"):
                _forecast(stage, frames, plan, initial)
            with _timed(stage, "gate"):
                report = gate(stage.folder / FORECAST, plan, generators[0].spec, frames)
        except GateError as error:
            aside = archive.set_aside(job.archive, stage.folder, {"reason": str(error), "init": init_name(lease.init)})
            raise GateError(f"{error}\nquarantined: {aside}") from None
        with _timed(stage, "products"):
            _products(stage, frames)
        return _publish(stage, plan, frames, report)


def loaded(section: ForecastSection) -> list[Generator]:
    """The generators of a recipe, kept between cycles."""
    return _loaded(section.checkpoints or models.SHIPPED[:1], section.device, section.precision)


@functools.lru_cache(maxsize=2)
def _loaded(names: tuple[str, ...], device: str, precision: Literal["float32", "bfloat16"]) -> list[Generator]:
    paths = [models.shipped(name) if name in models.SHIPPED else Path(name) for name in names]
    return [models.load(path, device, precision=precision) for path in paths]


def planned(
    section: ForecastSection, generators: list[Generator], frames: xr.Dataset, init: dt.datetime, name: str,
    initial: InitialStates | None = None,
) -> ForecastPlan:  # fmt: skip
    """The plan of a cycle's roll-out."""
    from forecast.rollout import make_plan

    return make_plan(
        generators, frames, [init], days=section.days, members=section.members, seed=section.seed, name=name, initial=initial
    )


def content_recipe(job: Job) -> dict[str, Any]:
    """What decides the content of a run: two runs of one initialisation with equal ones are equal."""
    section = job.recipe.forecast
    return {
        "model": job.archive.model,
        "forecast": {
            **section.model_dump(mode="json", exclude={"checkpoints", "device"}),
            "initial_states": states.content(section.initial_states),
        },
        "checkpoints": [generator.sha256 for generator in loaded(section)],
        "analyses": source.identity(job.recipe.analyses),
        "products": _products_content(job.recipe.products),
    }


def _products_content(section: ProductsSection | None) -> dict[str, Any] | None:
    """What is asked for and of which climate, wherever it lies. Raises InputError for a recipe or a climatology that is none."""
    if section is None:
        return None
    from forecast.products.reading import opened_climatology
    from forecast.products.recipe import read_products

    asked = None if section.recipe is None else read_products(section.recipe).model_dump(mode="json")
    return {"recipe": asked, "climatology": opened_climatology(section.climatology)[1], "format": section.format}


def gate(path: Path, plan: ForecastPlan, spec: Spec, frames: xr.Dataset) -> dict[str, Any]:
    """Open a finished forecast again and examine it against its plan and by `forecast.gate`; the report as plain data.

    Raises GateError for other initialisations, leads or members than planned, and for what the gate refuses.
    """
    from forecast import gate as gates

    data = open_forecast(path)
    wanted = {"time": plan.times, "prediction_timedelta": plan.leads, "number": np.array(plan.members)}
    faults = [
        f"{dim}: {data.sizes[dim]} found, not those {values.size} that were planned"
        for dim, values in wanted.items()
        if not np.array_equal(data[dim].values, values)
    ]
    if faults:
        raise GateError("the forecast is not what was planned:\n" + "\n".join(f"  - {fault}" for fault in faults))
    report = gates.check(data, spec=spec, analysis=frames)
    report.raise_if_bad()
    return report.as_dict()


def _adopt(stage: Stage) -> None:
    """Take over what an earlier attempt left, under a name of our own: who held it before finds nothing to write to any more."""
    folder, parent = stage.folder, stage.folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    earlier = sorted(parent.glob(f"{init_name(stage.init)}.t*"), key=lambda path: int(path.name.rpartition(".t")[2]))
    if earlier:
        earlier.pop().rename(folder)
        for pattern in ("lock", "preparing", "claims/*"):  # held by one that is stopped, not dead, they would keep us out
            for lock in folder.glob(f"*.partial/{pattern}"):
                lock.unlink()
    for path in earlier:
        archive.discard(stage.job.archive, path)
    with contextlib.suppress(FileNotFoundError):
        work = read_json(stage.work_file, "recipe_hash", "timings")
        if folder.is_dir() and work["recipe_hash"] == fingerprint(content_recipe(stage.job)):
            stage.timings.update(work["timings"])
            staged = sorted(path.name for path in folder.iterdir())
            if staged:
                stage.job.log(stage.init, "resumed", staged=staged)
            return
    if folder.is_dir():
        stage.job.log(stage.init, "staging of another recipe removed")
        archive.discard(stage.job.archive, folder)
    folder.mkdir()
    stage.note()


@contextlib.contextmanager
def _timed(stage: Stage, name: str) -> Iterator[None]:
    stage.check()
    stage.job.ledger.beat(stage.lease, phase=name, done=0, total=0, phase_beat=stage.job.clock.elapsed())
    begun = time.perf_counter()
    yield
    seconds = time.perf_counter() - begun
    stage.timings[name] = round(stage.timings.get(name, 0.0) + seconds, 3)
    stage.note()
    stage.job.log(stage.init, "stage done", stage=name, seconds=round(seconds, 3))


@contextlib.contextmanager
def _beating(stage: Stage) -> Iterator[None]:
    """A thread that says we are alive, four times within the life of a lease."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(LEASE_SECONDS / 4):
            with contextlib.suppress(sqlite3.OperationalError):  # a full disk, or a file locked for long: the next beat may do
                if not stage.job.ledger.beat(stage.lease):
                    stage.lost.set()
                    return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _require_space(stage: Stage, plan: ForecastPlan) -> None:
    """Raise SpaceError unless the rest of the run fits; what discarding was killed at goes first."""
    archive.empty_trash(stage.job.archive)
    staged = sum(path.stat().st_size for path in stage.folder.rglob("*") if path.is_file())
    products = plan.bytes if stage.job.recipe.products is not None else 0
    files = 200 + 2 * plan.leads.size * len(plan.channels)
    retention.require_space(stage.folder, max(0, plan.bytes + products - staged), files)


def _initial(stage: Stage, frames: xr.Dataset) -> InitialStates | None:
    """The states of the members, part of the run; None if all start from the analysis."""
    section = stage.job.recipe.forecast
    if section.initial_states is None:
        return None
    init = np.datetime64(stage.init, "ns")
    return states.make(section.initial_states, frames, stage.generators[0].spec, init, section.members, stage.folder / STATES)


def _forecast(stage: Stage, frames: xr.Dataset, plan: ForecastPlan, initial: InitialStates | None) -> None:
    from forecast.rollout import Progress, run
    from forecast.sinks import ZarrSink

    ledger, clock, shown = stage.job.ledger, stage.job.clock, -SHOWN_SECONDS

    def report(progress: Progress) -> None:
        nonlocal shown
        if time.monotonic() - shown >= SHOWN_SECONDS or progress.done == progress.total:
            shown = time.monotonic()
            ledger.beat(stage.lease, done=progress.done, total=progress.total)
            stage.job.on_progress(stage.job)
        if progress.done < progress.total:
            stage.check()

    ledger.beat(stage.lease, phase_beat=clock.elapsed(), total=int(plan.leads.size))
    sink = ZarrSink(stage.folder / FORECAST)
    try:
        run(
            stage.generators, frames, plan, [sink], initial=initial, report=report,
            remark=lambda text: stage.job.log(stage.init, "remark", text=text),
        )  # fmt: skip
    finally:
        sink.release()


def _products(stage: Stage, frames: xr.Dataset) -> None:
    """Products of the staged forecast, if the recipe asks for them."""
    section = stage.job.recipe.products
    if section is None:
        return
    from forecast import products

    def report(done: int, total: int) -> None:
        stage.check()
        stage.job.ledger.beat(stage.lease, done=done, total=total)
        stage.job.on_progress(stage.job)

    out = stage.folder / f"products.{section.format}"
    static = frames if "land_sea_mask" in frames else None
    products.make(stage.folder / FORECAST, out, section.recipe, section.climatology, static=static, report=report)


def _publish(stage: Stage, plan: ForecastPlan, frames: xr.Dataset, report: dict[str, Any]) -> Run:
    job, folder, target = stage.job, stage.folder, stage.job.archive.run(stage.init, stage.revision)
    stage.check()
    job.ledger.beat(stage.lease, phase="publish", done=0, total=0, phase_beat=job.clock.elapsed())
    recipe, now = content_recipe(job), job.clock.now()
    seconds = round(sum(stage.timings.values()), 3)
    job.log(stage.init, "publishing", run=target.name, seconds=seconds)
    shutil.rmtree(folder / source.DOWNLOADED, ignore_errors=True)
    shutil.copyfile(job.log_path(stage.init), folder / LOG)
    archive.seal(folder, _about(stage, plan, frames, report) | {"recipe": recipe, "recipe_hash": fingerprint(recipe)})
    with job.ledger.publishing(
        stage.lease, f"published as {target.name}", ended=now, seconds=seconds, hook="success", phase="", next_try=None
    ):
        archive.publish(folder, target)
        archive.point_latest(job.archive)
    stage.work_file.unlink(missing_ok=True)
    return Run(stage.init, stage.revision, target)


def _about(stage: Stage, plan: ForecastPlan, frames: xr.Dataset, report: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says beside files and recipe."""
    now = stage.job.clock.now()
    return {
        "model": stage.job.archive.model,
        "init": init_name(stage.init),
        "revision": stage.revision,
        "published_at": now.isoformat(timespec="seconds"),
        "hours_after_init": round((now - stage.init) / dt.timedelta(hours=1), 3),
        "members": len(plan.members),
        "lead_hours": int(plan.leads[-1] / np.timedelta64(1, "h")),
        "step_hours": int(plan.leads[0] / np.timedelta64(1, "h")),
        "channels": [channel.label for channel in plan.channels],
        "grid": str(plan.grid),
        "initial_state": plan.attrs["initial_state"],
        "initial_values_sha256": frames.attrs.get("values_sha256", ""),
        "source": plan.attrs["source"],
        "attribution": plan.attrs["attribution"],
        "training_period": plan.attrs["training_period"],
        "validation_period": plan.attrs["validation_period"],
        "versions": plan.attrs["versions"],
        "seconds": stage.timings,
        "gate": report,
        "contents": {"forecast": FORECAST, "initial": INITIAL, "format": f"zarr v3, {store.MANIFEST} inside"},
    }
