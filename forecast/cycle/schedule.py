"""Which cycles are due, which are stale, which come back: decided from the clock and the ledger anew at every tick.

Nothing that a wrong clock decided is final. A cycle skipped while the clock was ahead is taken up again when it has come back, a
wait that ends absurdly late is over, and ages of leases are not read from this clock at all.
"""

from __future__ import annotations

import datetime as dt
import random

from forecast.cycle.job import Job
from forecast.cycle.ledger import Cycle
from forecast.cycle.recipe import RetrySection, ScheduleSection

EPOCH = dt.datetime(1970, 1, 1)
OPEN = ("pending", "waiting", "running")
MOST_SKIPPED = 60  # rows entered for cycles missed in a long pause; earlier ones leave no trace


def newest_due(schedule: ScheduleSection, now: dt.datetime) -> dt.datetime:
    """The newest initialisation whose data are expected at `now`."""
    steps = (now - schedule.latency - schedule.offset - EPOCH) // schedule.every
    return EPOCH + schedule.offset + steps * schedule.every


def next_due(schedule: ScheduleSection, now: dt.datetime) -> tuple[dt.datetime, dt.datetime]:
    """The initialisation that comes next, and when it is due."""
    init = newest_due(schedule, now) + schedule.every
    return init, init + schedule.latency


def is_on_grid(schedule: ScheduleSection, init: dt.datetime) -> bool:
    """True for an initialisation that the schedule has."""
    return (init - schedule.offset - EPOCH) % schedule.every == dt.timedelta(0)


def deadline(job: Job, init: dt.datetime) -> dt.datetime:
    """When a cycle without data is given up."""
    return init + job.recipe.schedule.latency + job.recipe.retry.deadline


def open_inits(job: Job, now: dt.datetime) -> tuple[list[dt.datetime], list[dt.datetime]]:
    """Initialisations that may be made at `now`, and those due that are too late, both newest first."""
    schedule = job.recipe.schedule
    newest, first = newest_due(schedule, now), _first(job, now)
    due = [newest - k * schedule.every for k in range(schedule.catch_up + 1 + MOST_SKIPPED)]
    due = [init for init in due if init >= first]
    fresh = [init for init in due if now - init <= schedule.stale_after][: schedule.catch_up + 1]
    return fresh, [init for init in due if init not in fresh]


def update(job: Job, now: dt.datetime) -> list[dt.datetime]:
    """Enter new cycles, skip stale ones, take up those that are not stale after all; returns the newly skipped."""
    fresh, late = open_inits(job, now)
    newest = newest_due(job.recipe.schedule, now)
    known = {cycle.init: cycle for cycle in job.ledger.cycles()}
    for init in fresh:
        cycle = known.get(init)
        if cycle is None:
            job.ledger.register(init, reason="due")
        elif cycle.state == "skipped" and now <= deadline(job, init):
            job.ledger.move(init, "pending", "not stale by the clock as it is now", next_try=None)
    skipped = [init for init in late if init not in known and job.ledger.register(init, "skipped", _why(job, init, now))]
    for init, cycle in known.items():
        if init > newest and cycle.state in ("pending", "waiting", "skipped") and not cycle.asked:
            job.ledger.forget(init, "entered while the clock was ahead")
        gone_by = init <= newest and init not in fresh
        if gone_by and cycle.state in OPEN and not cycle.asked and job.ledger.move(init, "skipped", _why(job, init, now, cycle)):
            skipped.append(init)
    return sorted(skipped)


def ready(job: Job, now: dt.datetime) -> list[Cycle]:
    """The cycles to try at `now`, newest first: today's forecast before yesterday's."""
    fresh, _ = open_inits(job, now)
    cycles = [cycle for cycle in job.ledger.cycles() if cycle.init in fresh or cycle.asked]
    return [cycle for cycle in reversed(cycles) if cycle.state in OPEN and is_over(job.recipe.retry, cycle.next_try, now)]


def is_over(retry: RetrySection, next_try: dt.datetime | None, now: dt.datetime) -> bool:
    """True if a wait has ended, or ends later than any wait may, because the clock was set back."""
    return next_try is None or next_try <= now or next_try - now > longest(retry)


def longest(retry: RetrySection) -> dt.timedelta:
    """The longest wait there is."""
    return retry.longest * (1 + retry.jitter)


def wait(retry: RetrySection, key: str, count: int) -> dt.timedelta:
    """The wait after `count` earlier ones: doubled each time, bounded, spread evenly by the jitter.

    Drawn from `key` and `count`, so that many schedules do not ask at once and a test can repeat it.
    """
    plain = min(retry.longest, retry.first * 2 ** min(count, 30))
    return plain * (1 + retry.jitter * random.Random(f"{key} {count}").uniform(-1, 1))


def _first(job: Job, now: dt.datetime) -> dt.datetime:
    """The first initialisation of the schedule: the recipe's, or the newest that was due when it began."""
    if job.recipe.schedule.start is not None:
        return dt.datetime.fromisoformat(job.recipe.schedule.start)
    noted, newest = job.ledger.noted("first"), newest_due(job.recipe.schedule, now)
    ahead = noted is not None and newest < dt.datetime.fromisoformat(
        noted
    )  # begun by a clock that ran ahead, or it is behind now
    if noted is None or (ahead and all(cycle.state in ("pending", "waiting", "skipped") for cycle in job.ledger.cycles())):
        job.ledger.note("first", newest.isoformat())
        return newest
    return dt.datetime.fromisoformat(noted)


def _why(job: Job, init: dt.datetime, now: dt.datetime, cycle: Cycle | None = None) -> str:
    schedule = job.recipe.schedule
    if now - init > schedule.stale_after:
        reason = f"stale: {_hours(schedule.stale_after)} after its initialisation it was not made"
    else:
        reason = f"newer cycles were due, and {schedule.catch_up} are caught up at most"
    return f"{reason}; last: {cycle.reason}" if cycle is not None and cycle.reason else reason


def _hours(span: dt.timedelta) -> str:
    return f"{span / dt.timedelta(hours=1):g} h"
