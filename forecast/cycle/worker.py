"""tick: whatever is due, once. serve: tick after tick, asleep in between. run_one: one cycle, whatever comes of it."""

from __future__ import annotations

import contextlib
import datetime as dt
import sqlite3
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from data_pipeline.disk import Lock
from data_pipeline.errors import GateError, InputError, NotReadyError, PlumecastError
from forecast import archive, retention
from forecast.archive import Run, init_name
from forecast.cycle import schedule
from forecast.cycle.hooks import When, run_hooks
from forecast.cycle.job import Job, Stopped
from forecast.cycle.ledger import LABELS, Cycle, Lease, LeaseLost, StateName, boot
from forecast.retention import SpaceError

CODES: tuple[tuple[int, str], ...] = (
    (130, "stopped"), (4, "gate"), (2, "bad data"), (1, "failed"), (1, "retry"), (3, "waiting"), (0, "published"), (0, "held"),
)  # fmt: skip
AWAKE_SECONDS = 60.0  # the longest sleep: the clock may have been set
JUMP_SECONDS = 90.0


@dataclass(frozen=True)
class Outcome:
    """What came of one cycle. kind: one of `CODES`."""

    init: dt.datetime
    kind: str
    reason: str

    @property
    def code(self) -> int:
        return next(code for code, kind in CODES if kind == self.kind)


def exit_code(outcomes: list[Outcome]) -> int:
    """The gravest code of several outcomes; 0 where nothing was due."""
    kinds = {outcome.kind for outcome in outcomes}
    return next((code for code, kind in CODES if kind in kinds), 0)


def tick(job: Job, show: Callable[[Job], None] = lambda job: None) -> list[Outcome]:
    """Do what is due: take up, make, publish, tidy; returns what came of each cycle that was tried.

    show: writes the status; called after each change. Raises Stopped when that was asked for.
    """
    now = job.clock.now()
    _notice_jump(job, now)
    settle(job)
    _tell_skipped(job, schedule.update(job, now))
    show(job)
    outcomes, ready = [], schedule.ready(job, now)
    if ready:
        _check_recipe(job)
    for cycle in ready:
        job.stop.check()
        try:
            outcomes.append(run_one(job, cycle.init))
            _run_due_hooks(job)
        finally:  # stopped too: nothing may be told to run that does not
            show(job)
    _tidy(job)
    show(job)
    return outcomes


def _check_recipe(job: Job) -> None:
    """Raise InputError for what is wrong with the schedule itself, before a cycle is blamed for it."""
    from forecast.cycle.stages import content_recipe

    content_recipe(job)


def serve(job: Job, show: Callable[[Job], None] = lambda job: None, remark: Callable[[str], None] = lambda text: None) -> None:
    """Tick for ever, asleep until the next due time. Returns when asked to stop. remark: told what could not even be logged."""
    while not job.stop.reason:
        try:
            tick(job, show)
            seconds = seconds_to_next(job)
        except Stopped:
            break
        except (OSError, sqlite3.OperationalError) as error:  # a full disk, say: nothing can be noted, but it may pass
            remark(f"{type(error).__name__}: {error}; trying again in {AWAKE_SECONDS:g} s")
            seconds = AWAKE_SECONDS
        job.stop.wait(seconds)
    job.log(None, "stopped", reason=job.stop.reason)
    show(job)


def seconds_to_next(job: Job) -> float:
    """Seconds of sleep: until the next due time or the end of a wait; never longer than a minute, for a clock may be set."""
    now = job.clock.now()
    waits = [cycle.next_try for cycle in job.ledger.cycles() if cycle.state in ("pending", "waiting") and cycle.next_try]
    next_time = min([schedule.next_due(job.recipe.schedule, now)[1], *waits])
    return min(AWAKE_SECONDS, max(0.2, (next_time - now).total_seconds() / (job.clock.speed or 1.0)))


def ask(job: Job, init: dt.datetime, *, force: bool = False) -> Run | None:
    """Enter a cycle asked for by hand; returns the run if it is published already by the same recipe and not to be made again.

    force: make a revision beside what is published. Raises InputError for an initialisation that the schedule does not have, or a
    published run of another recipe, with the differences.
    """
    from forecast.cycle.stages import content_recipe

    if not schedule.is_on_grid(job.recipe.schedule, init):
        every = job.recipe.schedule.every / dt.timedelta(hours=1)
        raise InputError(
            f"{init_name(init)} is no initialisation of this schedule: every {every:g} h from {job.recipe.schedule.offset}"
        )
    settle(job)
    published = job.archive.find(init)
    if published is not None and not force:
        archive.require_same_recipe(published, content_recipe(job))
        return published
    job.ledger.register(init, reason="asked for by hand")
    revision = 1 if published is None else published.revision + 1
    if job.ledger.move(init, "pending", "asked for by hand", next_try=None, attempts=0):
        job.ledger.set(init, asked=1, revision=revision)
    return None


def run_one(job: Job, init: dt.datetime) -> Outcome:
    """Run one cycle that is entered in the ledger; every ending is a state with its reason."""
    lease = job.ledger.take(init)
    if lease is None:
        return Outcome(init, "held", "another scheduler runs it")
    cycle = job.ledger.cycle(init)
    assert cycle is not None
    if cycle.state not in schedule.OPEN or job.archive.run(init, cycle.revision).exists():  # by another, between look and take
        job.ledger.move(init, cycle.state, cycle.reason, lease=lease)
        settle(job)
        return Outcome(init, "held", "done by another scheduler")
    try:
        return _run(job, lease, cycle)
    except BaseException:  # a second signal, say: what is staged stays
        job.ledger.move(init, "pending", "aborted", lease=lease)
        raise


def _run(job: Job, lease: Lease, cycle: Cycle) -> Outcome:
    from forecast.cycle.stages import make_run

    try:
        run = make_run(job, lease, cycle.revision)
    except NotReadyError as error:
        return _wait(job, lease, cycle, str(error))
    except (GateError, InputError) as error:
        kind = "gate" if isinstance(error, GateError) else "bad data"
        return _end(job, lease, "failed", kind, str(error), hook="failure", asked=0)
    except Stopped as error:
        job.ledger.move(lease.init, "pending", str(error), lease=lease, next_try=None)
        job.log(lease.init, "stopped", reason=str(error))
        raise
    except LeaseLost as error:
        return _lost(job, lease, str(error))
    except (SpaceError, OSError, MemoryError, PlumecastError) as error:
        return _retry(job, lease, cycle, str(error) or type(error).__name__)
    except Exception as error:  # a fault of ours: in the log with its trace, and not the end of the schedule
        job.log(lease.init, "error", trace=traceback.format_exc())
        return _retry(job, lease, cycle, f"{type(error).__name__}: {error}")
    job.ledger.set(lease.init, asked=0)
    job.log(lease.init, "published", run=run.name)
    return Outcome(lease.init, "published", str(run.path))


def _wait(job: Job, lease: Lease, cycle: Cycle, reason: str) -> Outcome:
    """The data are not there: try again later, or give the cycle up."""
    now = job.clock.now()
    if now > schedule.deadline(job, lease.init) and not cycle.asked:
        return _end(job, lease, "skipped", "waiting", f"given up: {reason}", hook="stale")
    later = now + schedule.wait(job.recipe.retry, f"{job.archive.model} {init_name(lease.init)}", cycle.waits)
    if not job.ledger.move(lease.init, "waiting", reason, lease=lease, waits=cycle.waits + 1, next_try=later):
        return _lost(job, lease, reason)
    job.log(lease.init, "waiting for data", reason=reason, next_try=later.isoformat(timespec="seconds"))
    return Outcome(lease.init, "waiting", reason)


def _retry(job: Job, lease: Lease, cycle: Cycle, reason: str) -> Outcome:
    """No fault of the data: try again, a few times; what is staged stays."""
    attempts = cycle.attempts + 1
    if attempts >= job.recipe.retry.attempts:
        return _end(job, lease, "failed", "failed", f"{reason} ({attempts} attempts)", hook="failure", attempts=attempts, asked=0)
    later = job.clock.now() + schedule.wait(job.recipe.retry, f"{job.archive.model} {init_name(lease.init)}", attempts - 1)
    reason = f"attempt {attempts} of {job.recipe.retry.attempts}: {reason}"
    if not job.ledger.move(lease.init, "pending", reason, lease=lease, attempts=attempts, next_try=later):
        return _lost(job, lease, reason)
    job.log(lease.init, "to be tried again", reason=reason, next_try=later.isoformat(timespec="seconds"))
    return Outcome(lease.init, "retry", reason)


def _lost(job: Job, lease: Lease, reason: str) -> Outcome:
    """Another scheduler has the cycle, and our staging: whatever went wrong here is no matter of the cycle's."""
    job.log(lease.init, "lease lost", reason=reason)
    return Outcome(lease.init, "held", f"another scheduler took it over; here: {reason}")


def _end(job: Job, lease: Lease, state: StateName, kind: str, reason: str, **columns: object) -> Outcome:
    if not job.ledger.move(lease.init, state, reason, lease=lease, ended=job.clock.now(), phase="", **columns):
        return _lost(job, lease, reason)
    job.log(lease.init, LABELS[state], reason=reason)
    return Outcome(lease.init, kind, reason)


def settle(job: Job) -> None:
    """Let ledger and `latest` agree with what is published: a process may have been killed between the two."""
    with job.ledger.exclusive():  # what was the newest run when we looked must not take the link from one published since
        archive.point_latest(job.archive)
    published = {run.init: run for run in job.archive.runs()}
    for init, run in published.items():
        job.ledger.register(init, "published", "found in the archive")
        cycle = job.ledger.cycle(init)
        done = cycle is not None and cycle.state in schedule.OPEN and cycle.revision <= run.revision
        reason = f"published as {run.name}, then interrupted"
        if done and job.ledger.move(init, "published", reason, hook="success", asked=0):
            job.log(init, "published", run=run.name, interrupted=True)
    _run_due_hooks(job)


def _run_due_hooks(job: Job) -> None:
    """Each once, whoever comes first; again only if it was killed in the midst."""
    with _alone(job, "hooks") as alone:
        for cycle in job.ledger.cycles() if alone else ():
            if cycle.hook in ("success", "failure", "stale"):
                run = job.archive.find(cycle.init) if cycle.hook == "success" else None
                when: When = cycle.hook  # type: ignore[assignment]
                run_hooks(job, when, cycle.init, path=str(run.path) if run else "", state=cycle.state, reason=cycle.reason)
                job.ledger.set(cycle.init, hook=None)


@contextlib.contextmanager
def _alone(job: Job, task: str) -> Iterator[bool]:
    """True while no other scheduler is at the same task; it will see to all of it, or the next tick does."""
    try:
        lock = Lock(job.state_folder / f"{task}.lock")
    except InputError:
        yield False
        return
    except OSError:  # a full disk: rather twice than never
        yield True
        return
    with lock:
        yield True


def _tell_skipped(job: Job, skipped: list[dt.datetime]) -> None:
    """A log line for each, the hook once for all that were skipped together."""
    for init in skipped:
        cycle = job.ledger.cycle(init)
        job.log(init, LABELS["skipped"], reason=cycle.reason if cycle else "")
    if skipped:
        names = ", ".join(init_name(init) for init in skipped)
        run_hooks(job, "stale", skipped[-1], state="skipped", reason=f"skipped as stale: {names}")


def _tidy(job: Job) -> None:
    """Retention, and staging that no cycle will come back to."""
    with _alone(job, "tidy") as alone:
        if alone:
            _tidy_up(job)


def _tidy_up(job: Job) -> None:
    for run in retention.retain(job.archive, job.recipe.retention.policy, job.clock.now()):
        job.log(run.init, "removed by retention", run=run.name)
    archive.empty_trash(job.archive)
    final = {init_name(cycle.init) for cycle in job.ledger.cycles() if cycle.state not in schedule.OPEN}
    for path in job.archive.staging.iterdir() if job.archive.staging.is_dir() else ():
        if path.name.partition(".")[0] in final:
            if path.is_dir():
                archive.discard(job.archive, path)
            else:
                path.unlink(missing_ok=True)


def _notice_jump(job: Job, now: dt.datetime) -> None:
    """A line in the log when the clock went otherwise than time did."""
    elapsed, before = job.clock.elapsed(), job.ledger.noted("clock")
    if job.clock.speed and before and before["boot"] == boot():
        passed = (now - dt.datetime.fromisoformat(before["now"])).total_seconds()
        jump = passed - job.clock.speed * (elapsed - before["elapsed"])
        if abs(jump) > JUMP_SECONDS * max(1.0, job.clock.speed):
            job.log(None, "the clock jumped", seconds=round(jump), now=now.isoformat(timespec="seconds"))
    job.ledger.note("clock", {"now": now.isoformat(), "elapsed": elapsed, "boot": boot()})
