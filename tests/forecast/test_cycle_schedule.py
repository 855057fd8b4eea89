"""What is due follows the clock; what a wrong clock decided is taken back; waits grow, end, and survive a clock set back."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from data_pipeline.errors import InputError
from forecast.cycle import schedule
from forecast.cycle.job import Job, ledger_path
from forecast.cycle.ledger import Ledger
from forecast.cycle.recipe import CycleRecipe, RetrySection, ScheduleSection, read_cycle
from tests.forecast.cycles import FIRST, HALF_DAY, Hands

HOUR = dt.timedelta(hours=1)
PLAN = ScheduleSection(catch_up=2, stale_after="36h")  # type: ignore[arg-type]


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def job(tmp_path: Path, hands: Hands) -> Iterator[Job]:
    recipe = CycleRecipe.model_validate(
        {
            "name": "t",
            "archive": {"root": tmp_path, "model": "toy"},
            "analyses": {"kind": "store", "path": "x"},
            "schedule": {"catch_up": 2},
        }
    )
    made = Job(recipe, Ledger(ledger_path(recipe.place), hands.clock), hands.clock)
    yield made
    made.ledger.close()


def states(job: Job) -> dict[str, str]:
    """By day and hour, of the first month."""
    return {cycle.init.strftime("%dT%H"): cycle.state for cycle in job.ledger.cycles() if cycle.init < FIRST + 28 * 2 * HALF_DAY}


def test_a_cycle_is_due_when_its_latency_has_passed() -> None:
    just = FIRST + 6 * HOUR
    assert schedule.newest_due(PLAN, just) == FIRST
    assert schedule.newest_due(PLAN, just - dt.timedelta(seconds=1)) == FIRST - HALF_DAY
    assert schedule.next_due(PLAN, just) == (FIRST + HALF_DAY, FIRST + HALF_DAY + 6 * HOUR)


@hypothesis.given(
    every=st.integers(1, 48), offset=st.integers(0, 48), latency=st.integers(0, 90), now=st.datetimes(dt.datetime(1950, 1, 1))
)
def test_the_newest_due_is_on_the_grid_and_within_one_interval(every: int, offset: int, latency: int, now: dt.datetime) -> None:
    plan = ScheduleSection(every=f"{every}h", offset=f"{offset}h", latency=f"{latency}h", stale_after="1000h")  # type: ignore[arg-type]
    init = schedule.newest_due(plan, now)
    assert schedule.is_on_grid(plan, init)
    assert init + plan.latency <= now < init + plan.latency + plan.every


def test_a_new_schedule_begins_with_the_newest_due_cycle(job: Job, hands: Hands) -> None:
    schedule.update(job, hands.now)
    assert states(job) == {"03T00": "pending"}


def test_after_a_pause_the_newest_are_caught_up_newest_first_and_the_rest_is_skipped(job: Job, hands: Hands) -> None:
    schedule.update(job, hands.now)
    hands.pass_by(5 * HALF_DAY)
    skipped = schedule.update(job, hands.now)
    assert states(job) == {
        "03T00": "skipped", "03T12": "skipped", "04T00": "skipped", "04T12": "pending", "05T00": "pending", "05T12": "pending",
    }  # fmt: skip
    assert [init.strftime("%dT%H") for init in skipped] == ["03T00", "03T12", "04T00"]
    assert [cycle.init.strftime("%dT%H") for cycle in schedule.ready(job, hands.now)] == ["05T12", "05T00", "04T12"]
    reasons = {cycle.init.strftime("%dT%H"): cycle.reason for cycle in job.ledger.cycles()}
    assert "36 h after" in reasons["03T00"]


def test_a_pause_of_a_century_enters_a_bounded_number_of_cycles(job: Job, hands: Hands) -> None:
    schedule.update(job, hands.now)
    hands.pass_by(dt.timedelta(days=36524))
    schedule.update(job, hands.now)
    assert len(job.ledger.cycles()) <= 1 + schedule.MOST_SKIPPED + 3


@pytest.mark.parametrize("jump", [dt.timedelta(days=2), dt.timedelta(days=400)])
def test_cycles_skipped_while_the_clock_was_ahead_are_taken_up_again(job: Job, hands: Hands, jump: dt.timedelta) -> None:
    schedule.update(job, hands.now)
    hands.now += jump
    schedule.update(job, hands.now)
    assert states(job)["03T00"] == "skipped"
    hands.now -= jump
    schedule.update(job, hands.now)
    assert states(job)["03T00"] == "pending"
    assert [cycle.init for cycle in schedule.ready(job, hands.now)] == [FIRST]
    assert [cycle.init for cycle in job.ledger.cycles()] == [FIRST], "cycles of the future are left"


def test_a_schedule_begun_while_the_clock_was_ahead_begins_again(job: Job, hands: Hands) -> None:
    hands.now += dt.timedelta(days=400)
    schedule.update(job, hands.now)
    hands.now -= dt.timedelta(days=400)
    schedule.update(job, hands.now)
    assert [cycle.init for cycle in schedule.ready(job, hands.now)] == [FIRST]


def test_a_clock_set_back_neither_loses_nor_repeats_a_published_cycle(job: Job, hands: Hands) -> None:
    schedule.update(job, hands.now)
    job.ledger.move(FIRST, "published", "done")
    hands.now -= dt.timedelta(days=30)
    schedule.update(job, hands.now)
    assert FIRST not in [cycle.init for cycle in schedule.ready(job, hands.now)]
    hands.now += dt.timedelta(days=30)
    schedule.update(job, hands.now)
    assert states(job)["03T00"] == "published"
    assert schedule.ready(job, hands.now) == []


def test_a_wait_holds_and_ends_and_one_that_no_rule_made_is_over(job: Job, hands: Hands) -> None:
    schedule.update(job, hands.now)
    job.ledger.move(FIRST, "waiting", "no data", next_try=hands.now + dt.timedelta(minutes=20))
    assert schedule.ready(job, hands.now) == []
    assert schedule.ready(job, hands.now + dt.timedelta(minutes=20))
    job.ledger.set(FIRST, next_try=hands.now + dt.timedelta(hours=3))  # as if the clock was set back by that
    assert schedule.ready(job, hands.now)


@hypothesis.given(count=st.integers(0, 500), jitter=st.floats(0, 0.9))
def test_waits_double_up_to_the_longest_within_the_jitter(count: int, jitter: float) -> None:
    retry = RetrySection(first="1m", longest="1h", jitter=jitter)  # type: ignore[arg-type]
    found, plain = schedule.wait(retry, "toy", count), min(60.0, 2.0 ** min(count, 10)) * 60
    assert plain * (1 - jitter) - 1e-6 <= found.total_seconds() <= plain * (1 + jitter) + 1e-6
    assert found == schedule.wait(retry, "toy", count)
    assert found <= schedule.longest(retry)


GOOD = """
[archive]
root = "runs/cycle"
model = "planet"
[analyses]
kind = "replay"
path = "analysis.zarr"
delays = { 2005-03-02T12 = "9h" }
[schedule]
every = "6h"
[hooks]
success = [["mail", "-s", "done"]]
"""


def test_a_recipe_is_read_with_its_units(tmp_path: Path) -> None:
    (tmp_path / "toy.toml").write_text(GOOD)
    recipe = read_cycle(tmp_path / "toy.toml", ["forecast.members=4", "retry.first=90s"])
    assert recipe.schedule.every == 6 * HOUR
    assert dict(recipe.analyses.delays) == {"2005-03-02T12": 9 * HOUR}
    assert recipe.forecast.members == 4
    assert recipe.retry.first == dt.timedelta(seconds=90)
    assert recipe.hooks.success == (("mail", "-s", "done"),)


def test_the_packaged_recipe_is_valid(repository: Path) -> None:
    assert read_cycle(repository / "recipes" / "cycle_planet.toml").analyses.kind == "replay"


def test_all_faults_of_a_recipe_are_told_at_once(tmp_path: Path) -> None:
    text = GOOD.replace('"planet"', '"../planet"').replace('every = "6h"', 'every = "6 hours"\nsometimes = true')
    (tmp_path / "toy.toml").write_text(text + '[retention]\nprotect = ["../../etc"]\n[forecast]\nmembers = 0\n')
    with pytest.raises(InputError) as caught:
        read_cycle(tmp_path / "toy.toml")
    for words in ("../planet", "6 hours", "schedule.sometimes: unknown key", "../../etc", "forecast.members"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ('[analyses]\nkind = "store"', "needs a path"),
        ('[analyses]\nkind = "store"\npath = "x"\nmissing = ["2001-01-01"]', 'belong to kind "replay"'),
        ('[analyses]\nkind = "carrier pigeon"', "carrier pigeon|ecmwf_live"),
        ('[analyses]\nkind = "ecmwf_live"\n[schedule]\nlatency = "48h"', "longer than latency"),
        ('[analyses]\nkind = "ecmwf_live"\n[schedule]\nevery = "90m"', "whole hours"),
        ('[analyses]\nkind = "ecmwf_live"\n[weather]\nx = 1', "unknown section weather"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, section: str, words: str) -> None:
    (tmp_path / "toy.toml").write_text('[archive]\nroot = "r"\nmodel = "planet"\n' + section)
    with pytest.raises(InputError, match=words):
        read_cycle(tmp_path / "toy.toml")
