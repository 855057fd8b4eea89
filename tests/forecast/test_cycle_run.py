"""Cycles end to end on a toy: published once, resumed, retried, refused, quarantined, stopped, told about."""

from __future__ import annotations

import datetime as dt
import errno
import json
import sqlite3
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr

from data_pipeline import open_forecast
from data_pipeline.disk import Lock
from data_pipeline.errors import GateError, InputError
from data_pipeline.recipe import fingerprint
from data_pipeline.store import open_store
from forecast import archive
from forecast.cycle import stages, status, worker
from forecast.cycle.job import Job, Stopped
from forecast.cycle.ledger import Cycle, LeaseLost
from forecast.retention import SpaceError
from tests.children import contents
from tests.forecast.cycles import FIRST, HALF_DAY, World

HOUR = dt.timedelta(hours=1)


def kinds(outcomes: list[worker.Outcome]) -> list[tuple[str, str]]:
    return [(outcome.init.strftime("%dT%H"), outcome.kind) for outcome in outcomes]


def cycle_of(job: Job, init: dt.datetime = FIRST) -> Cycle:
    found = job.ledger.cycle(init)
    assert found is not None
    return found


def logged(job: Job, event: str, init: dt.datetime = FIRST) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in job.log_path(init).read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def test_a_due_cycle_is_published_with_what_it_was_made_from(world: World, jobs: Callable[..., Job]) -> None:
    job = jobs()
    assert kinds(worker.tick(job)) == [("03T00", "published")]
    run = job.archive.latest()
    assert run is not None
    about = run.manifest()
    assert about["members"] == 2
    assert about["lead_hours"] == 24
    assert about["recipe"]["checkpoints"] == [stages.loaded(job.recipe.forecast)[0].sha256]
    assert about["source"] == "a toy world"
    assert set(about["seconds"]) >= {"analysis", "forecast", "gate"}
    assert archive.faults_of(run) == []
    data = open_forecast(run.path / "forecast.zarr")
    assert data["time"].values == np.datetime64(FIRST, "ns")
    assert (run.path / "log.jsonl").read_text().count("\n") >= 4
    assert list(job.archive.staging.iterdir()) == []


def test_products_are_made_and_published_with_it(jobs: Callable[..., Job]) -> None:
    job = jobs(products={})
    assert kinds(worker.tick(job)) == [("03T00", "published")]
    run = job.archive.latest()
    assert run is not None
    data = open_store(run.path / "products.zarr")
    assert data.data_vars
    assert any(name.startswith("products.zarr/") for name in run.manifest()["files"])


def test_nothing_is_done_twice(jobs: Callable[..., Job]) -> None:
    job = jobs()
    worker.tick(job)
    before = contents(job.archive.folder / "20010103T00")
    assert worker.tick(job) == []
    again = worker.ask(job, FIRST)
    assert again is not None
    assert contents(again.path) == before


def test_a_lost_ledger_is_made_anew_from_what_is_published(world: World, jobs: Callable[..., Job]) -> None:
    job = jobs()
    worker.tick(job)
    job.ledger.close()
    for file in job.state_folder.glob("state.sqlite*"):
        file.unlink()
    second = jobs()
    assert worker.tick(second) == []
    assert cycle_of(second).state == "published"


def test_late_data_are_waited_for_and_the_log_says_so(world: World, jobs: Callable[..., Job]) -> None:
    job = jobs(analyses={"delays": {"2001-01-03T00": "2h"}})
    assert kinds(worker.tick(job)) == [("03T00", "waiting")]
    assert worker.exit_code(worker.tick(job)) == 0, "it does not ask again at once"
    for _ in range(6):
        world.hands.pass_by(dt.timedelta(minutes=30))
        outcomes = worker.tick(job)
    assert cycle_of(job).state == "published"
    assert kinds(outcomes) == []
    waits = logged(job, "waiting for data")
    assert 2 <= len(waits) <= 6
    assert "2001-01-03T00 is not there yet" in waits[0]["reason"]
    assert worker.exit_code([worker.Outcome(FIRST, "waiting", "")]) == 3


def test_data_that_never_come_are_given_up(world: World, jobs: Callable[..., Job]) -> None:
    job = jobs(
        analyses={"missing": ("2001-01-03T00",)}, schedule={"stale_after": "100h", "catch_up": 9}, retry={"deadline": "10h"}
    )
    worker.tick(job)
    world.hands.pass_by(11 * HOUR)
    worker.tick(job)
    assert cycle_of(job).state == "skipped"
    assert "given up" in cycle_of(job).reason


@pytest.mark.parametrize("spoiled", ["2001-01-03T00", "2001-01-02T12"])
def test_bad_data_fail_at_once_with_the_reason_and_the_last_run_stays(
    world: World, jobs: Callable[..., Job], spoiled: str
) -> None:
    world.hands.now -= 2 * HALF_DAY
    job = jobs(analyses={"corrupt": (spoiled,)})
    worker.tick(job)
    world.hands.pass_by(2 * HALF_DAY)
    outcomes = worker.tick(job)
    assert ("03T00", "bad data") in kinds(outcomes)
    assert worker.exit_code(outcomes) == 2
    assert "9999" in cycle_of(job).reason
    latest = job.archive.latest()
    assert latest is not None
    assert latest.init == FIRST - (1 if spoiled == "2001-01-03T00" else 2) * HALF_DAY


def test_a_run_that_fails_its_gate_lies_in_quarantine_with_its_report(
    jobs: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = jobs()

    def refuse(*_: object) -> dict[str, Any]:
        raise GateError("member 2 blows up")

    monkeypatch.setattr(stages, "gate", refuse)
    outcomes = worker.tick(job)
    assert worker.exit_code(outcomes) == 4
    aside = job.archive.quarantine / "20010103T00"
    assert "member 2 blows up" in json.loads((aside / "gate.json").read_text())["reason"]
    assert (aside / "forecast.zarr").is_dir()
    assert job.archive.runs() == []
    assert cycle_of(job).state == "failed"


def test_members_that_are_copies_fail_the_gate(world: World, jobs: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    from forecast import noise

    real = noise.draw
    monkeypatch.setattr(noise, "draw", lambda seed, init, member, *rest: real(seed, init, 1, *rest))
    job = jobs()
    outcomes = worker.tick(job)
    assert kinds(outcomes) == [("03T00", "gate")]
    assert "equal to another member" in outcomes[0].reason


def test_a_full_disk_is_tried_again_and_what_is_staged_stays(
    world: World, jobs: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, calls = jobs(), []
    real = stages._products

    def full(stage: stages.Stage, frames: xr.Dataset) -> None:
        calls.append(stage)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(stage, frames)

    monkeypatch.setattr(stages, "_products", full)
    assert kinds(worker.tick(job)) == [("03T00", "retry")]
    assert "No space left" in cycle_of(job).reason
    staged = next(path for path in job.archive.staging.iterdir() if path.is_dir())
    written = {name: (staged / name).stat().st_mtime_ns for name in contents(staged)}
    assert any(name.startswith("forecast.zarr/") for name in written)
    world.hands.pass_by(HOUR)
    assert kinds(worker.tick(job)) == [("03T00", "published")]
    run = job.archive.latest()
    assert run is not None
    same = {name for name in written if name.startswith(("forecast", "initial"))}
    assert {name: (run.path / name).stat().st_mtime_ns for name in same} == {name: written[name] for name in same}


def test_a_run_that_cannot_succeed_is_given_up_after_its_attempts(
    world: World, jobs: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = jobs(retry={"attempts": 2})

    def full(*_: object) -> None:
        raise SpaceError("12 MB free")

    monkeypatch.setattr(stages.retention, "require_space", full)
    assert worker.exit_code(worker.tick(job)) == 1
    world.hands.pass_by(HOUR)
    assert kinds(worker.tick(job)) == [("03T00", "failed")]
    assert "2 attempts" in cycle_of(job).reason


def test_a_fault_of_ours_is_in_the_log_and_does_not_end_the_schedule(
    jobs: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = jobs()
    monkeypatch.setattr(stages, "gate", lambda *_: 1 // 0)
    assert kinds(worker.tick(job)) == [("03T00", "retry")]
    assert "ZeroDivisionError" in logged(job, "error")[0]["trace"]


@pytest.mark.parametrize("text", ["[products]\nefis = []\n", "[products]\nquantiles = [2]\n"])
def test_a_fault_of_the_products_recipe_blames_no_cycle(world: World, jobs: Callable[..., Job], text: str) -> None:
    (world.folder / "products.toml").write_text(f'name = "p"\n{text}')
    job = jobs(products={"recipe": world.folder / "products.toml"})
    with pytest.raises(InputError, match="products"):
        worker.tick(job)
    assert cycle_of(job).state == "pending"


def test_another_products_recipe_is_another_run(world: World, jobs: Callable[..., Job]) -> None:
    path = world.folder / "products.toml"
    hashes = []
    for level in (0.5, 0.9, 0.5):
        path.write_text(f"name = 'p'\n[products]\nquantiles = [{level}]\n")
        hashes.append(fingerprint(stages.content_recipe(jobs(products={"recipe": path}))))
    assert hashes[0] == hashes[2] != hashes[1]


def test_a_fault_of_the_recipe_blames_no_cycle(jobs: Callable[..., Job]) -> None:
    job = jobs(forecast={"checkpoints": ("nowhere.safetensors",)})
    with pytest.raises(InputError, match=r"nowhere\.safetensors not found"):
        worker.tick(job)
    assert cycle_of(job).state == "pending"


def test_a_stop_leaves_staging_that_the_next_tick_goes_on_from(world: World, jobs: Callable[..., Job]) -> None:
    job = jobs()
    job.stop.request("SIGTERM")
    with pytest.raises(Stopped):
        worker.tick(job)
    job = jobs()
    stopping = Job(job.recipe, job.ledger, job.clock, on_progress=lambda job: job.stop.request("SIGTERM"))
    with pytest.raises(Stopped):
        worker.tick(stopping)
    assert cycle_of(job).state == "pending"
    assert cycle_of(job).owner is None
    assert "SIGTERM" in cycle_of(job).reason
    assert kinds(worker.tick(job)) == [("03T00", "published")]
    assert logged(job, "resumed")


def test_a_kill_between_rename_and_ledger_is_settled(jobs: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    job = jobs()

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(archive, "point_latest", killed)
    job.ledger.register(FIRST)
    with pytest.raises(Killed):
        worker.run_one(job, FIRST)
    assert job.archive.find(FIRST) is not None
    assert job.archive.latest() is None
    monkeypatch.undo()
    assert worker.tick(job) == []
    assert cycle_of(job).state == "published"
    assert job.archive.latest() == job.archive.find(FIRST)


@pytest.mark.parametrize("when", ["forecast", "products"])
def test_who_lost_the_lease_in_mid_run_publishes_nothing(
    world: World, jobs: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    second, overtaken = jobs(), []

    def overtake() -> None:
        if not overtaken:
            overtaken.append(True)
            world.hands.elapsed += 1000  # no beat for that long
            overtaken.append(kinds(worker.tick(second)))

    real = stages._products
    if when == "products":
        monkeypatch.setattr(stages, "_products", lambda *arguments: (overtake(), real(*arguments)))
    progress = overtake if when == "forecast" else lambda: None
    first = jobs()
    outcomes = worker.tick(Job(first.recipe, first.ledger, first.clock, on_progress=lambda job: progress()))
    assert overtaken == [True, [("03T00", "published")]]
    assert kinds(outcomes) == [("03T00", "held")]
    assert [run.name for run in first.archive.runs()] == ["20010103T00"]
    run = first.archive.latest()
    assert run is not None
    assert archive.faults_of(run) == []
    assert cycle_of(first).state == "published"


def test_a_forced_run_is_a_revision_with_the_same_fields(world: World, jobs: Callable[..., Job]) -> None:
    job = jobs()
    worker.tick(job)
    assert worker.ask(job, FIRST, force=True) is None
    assert kinds([worker.run_one(job, FIRST)]) == [("03T00", "published")]
    first, second = job.archive.runs()
    assert second.name == "20010103T00.r2"
    assert job.archive.latest() == second
    assert contents(first.path / "forecast.zarr") == contents(second.path / "forecast.zarr")


def test_another_recipe_at_a_published_run_is_refused_with_the_difference(jobs: Callable[..., Job]) -> None:
    worker.tick(jobs())
    with pytest.raises(InputError, match=r"forecast\.members: 2 -> 3"):
        worker.ask(jobs(forecast={"members": 3}), FIRST)


def test_a_cycle_asked_for_by_hand_is_made_though_stale_and_only_on_the_grid(world: World, jobs: Callable[..., Job]) -> None:
    job = jobs()
    world.hands.pass_by(dt.timedelta(days=9))
    worker.ask(job, FIRST)
    worker.tick(job)
    assert cycle_of(job).state == "published"
    with pytest.raises(InputError, match="every 12 h"):
        worker.ask(job, FIRST + HOUR)


def test_staging_of_another_recipe_is_not_mixed_in(
    world: World, jobs: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = jobs()
    monkeypatch.setattr(stages, "gate", lambda *_: 1 // 0)
    worker.tick(job)
    monkeypatch.undo()
    world.hands.pass_by(HOUR)
    other = jobs(forecast={"seed": 7})
    assert kinds(worker.tick(other)) == [("03T00", "published")]
    run = other.archive.latest()
    assert run is not None
    assert open_forecast(run.path / "forecast.zarr").attrs["seed"] == 7


TELL = "import os, sys; print(os.environ['PLUMECAST_EVENT'], os.environ['PLUMECAST_RUN'], '\\x1b[31m', sys.argv[1])"
HOOK = ("python3", "-c", TELL)


def test_hooks_hear_of_it_and_cannot_harm_it(world: World, jobs: Callable[..., Job]) -> None:
    hooks = {"success": (("/no/such/command",), (*HOOK, "$HOME; x"), ("python3", "-c", "raise SystemExit(3)")), "stale": (HOOK,)}
    job = jobs(hooks=hooks)
    worker.tick(job)
    first, second, third = logged(job, "hook on success")
    assert "cannot be run" in first["error"]
    assert second["output"].split() == ["success", str(job.archive.run(FIRST)), "[31m", "$HOME;", "x"]
    assert third["code"] == 3
    assert cycle_of(job).hook is None
    worker.tick(job)
    assert len(logged(job, "hook on success")) == 3


def test_hooks_that_another_scheduler_runs_are_left_to_it(world: World, jobs: Callable[..., Job]) -> None:
    mark = world.folder / "hooked"
    job = jobs(hooks={"success": [["sh", "-c", f"echo >> {mark}"]]})
    with Lock(job.state_folder / "hooks.lock"):
        worker.tick(job)
        assert not mark.exists()
    worker.settle(job)
    worker.settle(job)
    assert mark.read_text() == "\n"


def test_a_damaged_manifest_of_the_latest_run_stops_no_schedule(world: World, jobs: Callable[..., Job]) -> None:
    job = jobs()
    write = status.Writer()
    worker.tick(job, write)
    (job.archive.folder / "20010103T00" / "manifest.json").write_text("{")
    world.hands.pass_by(HALF_DAY)
    assert kinds(worker.tick(job, write)) == [("03T12", "published")]


def test_the_link_does_not_go_back_to_a_run_that_was_the_newest_before(
    jobs: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, other = jobs(), jobs()
    real = archive.point_latest

    def blocked(place: archive.Archive) -> archive.Run | None:
        other.ledger._db.execute("PRAGMA busy_timeout = 0")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.ledger.note("publishing", 1)
        return real(place)

    monkeypatch.setattr(archive, "point_latest", blocked)
    worker.settle(job)


def test_a_hook_that_hangs_is_stopped(jobs: Callable[..., Job]) -> None:
    job = jobs(hooks={"success": (("sleep", "60"),), "timeout": "0.2s"})
    worker.tick(job)
    assert "stopped after" in logged(job, "hook on success")[0]["error"]


def test_a_jump_of_the_clock_is_logged(world: World, jobs: Callable[..., Job]) -> None:
    job = jobs()
    worker.tick(job)
    world.hands.pass_by(HOUR)
    worker.tick(job)
    assert not job.log_path(None).exists()
    world.hands.now -= 5 * HOUR
    worker.tick(job)
    (line,) = job.log_path(None).read_text().splitlines()
    assert json.loads(line)["seconds"] == -5 * 3600


def test_retention_follows_each_tick(world: World, jobs: Callable[..., Job]) -> None:
    job = jobs(retention={"keep": 2, "grace": "0s"})
    for _ in range(4):
        worker.tick(job)
        world.hands.pass_by(HALF_DAY)
    assert [run.name for run in job.archive.runs()] == ["20010104T00", "20010104T12"]
    assert logged(job, "removed by retention")
    assert worker.tick(job) == [] or job.archive.find(FIRST) is None


def test_serve_wakes_for_what_is_due_and_sleeps_till_then(
    world: World, jobs: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, slept = jobs(), []

    def wait(seconds: float) -> None:
        slept.append(seconds)
        world.hands.pass_by(4 * HOUR)
        if len(slept) == 4:
            job.stop.request("SIGTERM")

    monkeypatch.setattr(job.stop, "wait", wait)
    worker.serve(job)
    assert [run.name for run in job.archive.runs()] == ["20010103T00", "20010103T12"]
    assert all(0 < seconds <= worker.AWAKE_SECONDS for seconds in slept)
    assert "stopped" in job.log_path(None).read_text()


def test_a_lost_lease_is_an_error_of_its_own() -> None:
    assert not issubclass(LeaseLost, OSError)
    assert LeaseLost("x").exit_code == 1
