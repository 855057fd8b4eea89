"""Forty cycles in a row while everything goes wrong: each is published once, whole at every moment, as if nothing had happened.

The packaged planet's training years stand in for live data, with a clock that is set by hand. Schedulers run in processes of
their own and are killed with SIGKILL at a chosen stage of a chosen cycle; two of them work on one archive at the same time; a
reader hashes everything that is visible, all the while.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import open_forecast
from data_pipeline.ingest import ingest
from forecast.archive import Archive, Run, faults_of, init_name, parse_init
from forecast.cycle.clock import Clock
from forecast.cycle.ledger import Ledger
from forecast.demo import sample_recipe
from tests.children import ROOT, contents

pytestmark = pytest.mark.campaign

FULL = bool(os.environ.get("PLUMECAST_FULL"))
CYCLES = 40 if FULL else 12
FIRST = dt.datetime(2005, 3, 1)
HALF_DAY = dt.timedelta(hours=12)
INITS = [FIRST + k * HALF_DAY for k in range(CYCLES)]

# Cycles by position. What is killed where: every stage, and the gaps between stages.
KILLS = {
    1: "analysis", 2: "forecast", 3: "products", 4: "sealed", 5: "renamed",
    **({12: "data", 14: "space", 16: "lead", 18: "gate", 20: "seal", 22: "linked", 25: "hook", 26: "tidy"} if FULL else {}),
}  # fmt: skip
LATE = {6: 7, **({13: 2, 23: 30} if FULL else {})}  # position: hours
MISSING = (8,) if not FULL else (29,)
CORRUPT = () if not FULL else (33,)
FULL_DISK = 7
TOGETHER = (10, 11) if not FULL else (30, 31, 36, 37)
JUMPS = {3: 400, 7: -90} if not FULL else {17: 400, 28: -90, 35: 3}  # position: days, for one tick

# One scheduler: ticks at the times that it reads from its input, and says what came of each. `kill` names a place to die at.
CHILD = """
import datetime as dt, errno, json, os, signal, sys
import xarray as xr
xr.set_options(arithmetic_join="exact", use_bottleneck=False)
from forecast import archive
from forecast.cycle import stages, worker, source, status
from forecast.cycle.clock import Clock
from forecast.cycle.job import Job, ledger_path
from forecast.cycle.ledger import Ledger
from forecast.cycle.recipe import CycleRecipe

recipe = CycleRecipe.model_validate(json.loads(sys.argv[1]))
now, kill = [dt.datetime(2005, 1, 1)], [""]
clock = Clock(now=lambda: now[0])
job = Job(recipe, Ledger(ledger_path(recipe.place), clock), clock)

def die(place):
    if place and kill[0] == place:
        os.kill(os.getpid(), signal.SIGKILL)

def wrapped(module, name, before="", after=""):
    real = getattr(module, name)
    def call(*arguments, **options):
        die(before)
        if before == "products" and kill[0] == "full disk":
            kill[0] = ""
            raise OSError(errno.ENOSPC, "No space left on device")
        result = real(*arguments, **options)
        die(after)
        return result
    setattr(module, name, call)

wrapped(source, "fetch", "analysis", "data")
wrapped(stages, "_require_space", "space")
wrapped(stages, "_forecast", "forecast", "")
wrapped(stages, "gate", "gate")
wrapped(stages, "_products", "products")
wrapped(archive, "seal", "seal", "sealed")
renaming, linking, renamed = archive.publish, archive.point_latest, []

def publish(*arguments):
    renaming(*arguments)
    renamed.append(arguments)
    die("renamed")

def link(*arguments):
    linking(*arguments)
    die("linked" if renamed else "")  # and not where a tick begins by looking after the link

archive.publish, archive.point_latest = publish, link
wrapped(worker, "run_hooks", "hook")
wrapped(worker, "_tidy", "tidy")
job = Job(job.recipe, job.ledger, job.clock, on_progress=lambda job: die("lead"))
stages.loaded(recipe.forecast)
print("ready", flush=True)
for line in sys.stdin:
    at, kill[0] = json.loads(line)
    now[0] = dt.datetime.fromisoformat(at)
    renamed.clear()
    outcomes = worker.tick(job)
    kill[0] = ""
    print(json.dumps([[archive.init_name(o.init), o.kind, o.reason] for o in outcomes]), flush=True)
"""


def recipe_of(folder: Path, analysis: Path, *, disturbed: bool) -> str:
    """The schedule as JSON; without disturbances for the reference."""
    analyses: dict[str, object] = {"kind": "replay", "path": str(analysis)}
    if disturbed:
        analyses |= {
            "delays": {INITS[k].isoformat(): f"{hours}h" for k, hours in LATE.items()},
            "missing": [INITS[k].isoformat() for k in MISSING],
            "corrupt": [INITS[k].isoformat() for k in CORRUPT],
        }
    return json.dumps(
        {
            "name": "campaign",
            "archive": {"root": str(folder), "model": "planet"},
            "analyses": analyses,
            "forecast": {"members": 2, "days": 1.0},
            "schedule": {"start": FIRST.isoformat(), "catch_up": 3, "stale_after": "48h"},
            "retry": {"first": "30m", "longest": "2h", "deadline": "36h"},
            "retention": {"keep": 1000},
            "hooks": {"success": [["true"]]},
        }
    )


class Scheduler:
    """A child process that ticks when told."""

    def __init__(self, recipe: str) -> None:
        environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self.child = subprocess.Popen(
            [sys.executable, "-c", CHILD, recipe],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        assert self.child.stdout is not None
        assert self.child.stdout.readline() == "ready\n"

    def send(self, now: dt.datetime, kill: str = "") -> None:
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps([now.isoformat(), kill]) + "\n")
        self.child.stdin.flush()

    def answer(self) -> list[list[str]] | None:
        """What came of the tick; None if it was killed in it."""
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        if line:
            return list(json.loads(line))
        assert self.child.wait() == -signal.SIGKILL
        return None

    def end(self) -> None:
        for pipe in (self.child.stdin, self.child.stdout):
            assert pipe is not None
            pipe.close()
        self.child.wait()


class Reader(threading.Thread):
    """Looks at everything visible, all the time: whole, never changed, never gone, `latest` only forward."""

    def __init__(self, place: Archive) -> None:
        super().__init__(daemon=True)
        self.place, self.faults, self.looks = place, list[str](), 0
        self.seen: dict[str, str] = {}
        self._ended = threading.Event()
        self._newest = ""

    def run(self) -> None:
        while not self._ended.wait(0.05):
            self.look()

    def look(self) -> None:
        self.looks += 1
        link = self.place.folder / "latest"
        target = str(link.readlink()) if link.is_symlink() else ""
        if target < self._newest:
            self.faults.append(f"latest went back from {self._newest} to {target}")
        if target and not (self.place.folder / target / "manifest.json").exists():
            self.faults.append(f"latest points to {target}, which is not whole")
        self._newest = max(target, self._newest)
        runs = {run.name: run for run in self.place.runs()}
        self.faults += [f"{name} is gone" for name in self.seen if name not in runs]
        for name, run in runs.items():
            manifest = (run.path / "manifest.json").read_text() if (run.path / "manifest.json").exists() else ""
            if self.seen.get(name) != manifest:  # new, or changed
                faults = ["it changed"] if name in self.seen else [*faults_of(run), *_unlike_a_forecast(run)]
                self.faults += [f"{name}: {fault}" for fault in faults]
                self.seen[name] = manifest

    def end(self) -> None:
        self._ended.set()
        self.join()
        self.look()


def _unlike_a_forecast(run: Run) -> list[str]:
    """What a user finds who opens it and reads a field."""
    data = open_forecast(run.path / "forecast.zarr")
    whole = bool(np.isfinite(data["2m_temperature"].values).all()) and data.sizes["number"] == 2
    return [] if whole else ["it is not whole"]


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = sample_recipe()
    recipe["analysis"] |= {"start": "2005-02-28T00", "stop": "2005-04-05T12"}
    return ingest(recipe, tmp_path_factory.mktemp("sample") / "analysis.zarr")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, analysis: Path) -> Archive:
    """The same cycles, one after the other, in one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    scheduler = Scheduler(recipe_of(folder, analysis, disturbed=False))
    for init in INITS:
        scheduler.send(init + HALF_DAY / 2)
        assert scheduler.answer() == [[init_name(init), "published", str(folder / "planet" / init_name(init))]]
    scheduler.end()
    return Archive(folder, "planet")


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory, analysis: Path) -> tuple[Archive, Reader, list[str]]:
    """(archive, what the reader saw, what happened in order)."""
    folder = tmp_path_factory.mktemp("disturbed")
    recipe, place, story = recipe_of(folder, analysis, disturbed=True), Archive(folder, "planet"), list[str]()
    reader, began = Reader(place), time.monotonic()
    reader.start()
    one, other = Scheduler(recipe), None
    for k, init in enumerate(INITS):
        now = init + HALF_DAY / 2
        if k in JUMPS:
            one.send(now + dt.timedelta(days=JUMPS[k]))
            story.append(f"{init_name(init)}: jump of {JUMPS[k]} days: {one.answer()}")
        if k in TOGETHER:
            other = other or Scheduler(recipe)
            one.send(now)
            other.send(now)
            story.append(f"{init_name(init)}: together: {one.answer()} {other.answer()}")
        kill = "full disk" if k == FULL_DISK else KILLS.get(k, "")
        one.send(now, kill)
        outcome = one.answer()
        story.append(f"{init_name(init)}: {kill or 'tick'}: {outcome}")
        if outcome is None:
            one.end()
            one = Scheduler(recipe)
        for hours in (1, 3, 7, 10):  # cron comes by now and then
            one.send(now + dt.timedelta(hours=hours))
            outcome = one.answer()
            if outcome:
                story.append(f"{init_name(init)} +{hours} h: {outcome}")
    for hours in (18, 30, 42):  # until the last that waits is stale
        one.send(INITS[-1] + dt.timedelta(hours=hours))
        one.answer()
    for scheduler in filter(None, (one, other)):
        scheduler.end()
    reader.end()
    print("\n".join(story), f"\n{CYCLES} cycles in {time.monotonic() - began:.0f} s, {reader.looks} looks of the reader")
    return place, reader, story


def whose_data_came() -> list[dt.datetime]:
    """A cycle needs the analyses of its own time and of the one before."""
    bad = {INITS[k] for k in (*MISSING, *CORRUPT)}
    return [init for init in INITS if init not in bad and init - HALF_DAY not in bad]


def test_every_cycle_whose_data_came_is_published_exactly_once(disturbed: tuple[Archive, Reader, list[str]]) -> None:
    place, _, _ = disturbed
    ours = [run.name for run in place.runs() if run.init <= INITS[-1]]
    assert ours == [init_name(init) for init in whose_data_came()]
    book = Ledger(place.folder / ".cycle" / "state.sqlite", Clock())
    for init in whose_data_came():
        published = [event for event in book.events(init) if event.after == "published"]
        assert len(published) == 1, init
    book.close()


def test_each_equals_the_run_of_a_day_without_trouble(undisturbed: Archive, disturbed: tuple[Archive, Reader, list[str]]) -> None:
    place, _, _ = disturbed
    for init in whose_data_came():
        for name in ("forecast.zarr", "initial.zarr"):
            assert contents(place.run(init) / name) == contents(undisturbed.run(init) / name), (init, name)


def test_nothing_was_half_visible_at_any_moment(disturbed: tuple[Archive, Reader, list[str]]) -> None:
    place, reader, _ = disturbed
    assert reader.faults == []
    assert reader.looks > CYCLES
    assert [faults_of(run) for run in place.runs()] == [[]] * len(place.runs())
    assert not list(place.folder.rglob("*.partial"))
    assert not list(place.trash.iterdir())
    latest = place.latest()
    assert latest is not None
    assert latest == max(place.runs())


def test_each_disturbance_happened_and_the_log_explains_each_delay(disturbed: tuple[Archive, Reader, list[str]]) -> None:
    place, _, story = disturbed
    logs = {path.stem: path.read_text() for path in (place.folder / ".cycle" / "logs").iterdir()}
    assert sum(line.endswith("None") for line in story) == len(KILLS), "a kill did not happen"
    for k, stage in KILLS.items():
        name = init_name(INITS[k])
        log = logs[name]
        if stage in ("analysis", "data", "space", "forecast", "lead", "gate", "products", "seal", "sealed"):
            assert '"taken over"' in log or '"resumed"' in log or stage == "analysis", (name, stage)
        elif stage in ("renamed", "linked"):
            assert '"interrupted": true' in log, (name, stage)
    for k in LATE:
        assert "is not there yet" in logs[init_name(INITS[k])]
    for k in MISSING:
        assert "is not there yet" in logs[init_name(INITS[k])]
        assert "skipped as stale" in logs[init_name(INITS[k])]
    for k in CORRUPT:
        assert "9999" in logs[init_name(INITS[k])]
        assert '"failed"' in logs[init_name(INITS[k])]
    assert "No space left" in logs[init_name(INITS[FULL_DISK])]
    jumps = [json.loads(line) for line in logs["schedule"].splitlines() if "the clock jumped" in line]
    for days in JUMPS.values():
        assert any(abs(jump["seconds"] - days * 86400) < 86400 for jump in jumps), days
    # what was due by a wrong clock was made by it; ticks hours apart look like small jumps
    jumped_at = {dt.datetime.fromisoformat(jump["at"]) for jump in jumps if jump["seconds"] > 86400}
    book = Ledger(place.folder / ".cycle" / "state.sqlite", Clock())
    for cycle in book.cycles():
        late = cycle.ended is not None and cycle.state == "published" and cycle.ended - cycle.init > HALF_DAY / 2
        if late and cycle.init in whose_data_came():
            told = [event.reason for event in book.events(cycle.init)]
            words = ("not there yet", "taken over", "interrupted", "No space left", "stale")
            assert cycle.ended in jumped_at or any(word in reason for reason in told for word in words), (cycle.init, told)
    book.close()


def test_the_names_of_the_campaign_are_cycles_of_the_schedule() -> None:
    assert parse_init(init_name(INITS[0])) == FIRST
    assert max([*KILLS, *LATE, *MISSING, *CORRUPT, FULL_DISK, *TOGETHER, *JUMPS]) < CYCLES
