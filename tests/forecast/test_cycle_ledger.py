"""One process at most runs a cycle; no clock can steal a lease; a process that is gone loses it at once."""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from forecast.cycle import ledger as ledgers
from forecast.cycle.ledger import LEASE_SECONDS, Lease, LeaseLost, Ledger
from tests.forecast.cycles import FIRST, Hands

CENTURY = dt.timedelta(days=36524)


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def book(tmp_path: Path, hands: Hands) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "state.sqlite", hands.clock)
    made.register(FIRST)
    yield made
    made.close()


def other(book: Ledger) -> Ledger:
    """The same file, as another scheduler opens it."""
    return Ledger(book.path, book.clock)


def taken(book: Ledger) -> Lease:
    lease = book.take(FIRST)
    assert lease is not None
    return lease


def as_owner(book: Ledger, **changes: object) -> None:
    """Let somebody else be the owner of the lease."""
    owner = json.dumps(json.loads(ledgers.me()) | changes)
    with sqlite3.connect(book.path) as db:
        db.execute("UPDATE cycles SET owner = ?", (owner,))
    db.close()


def test_only_one_gets_the_lease_until_it_is_given_back(book: Ledger) -> None:
    second = other(book)
    lease = taken(book)
    assert second.take(FIRST) is None
    assert book.move(FIRST, "waiting", "no data", lease=lease)
    again = second.take(FIRST)
    assert again is not None
    assert again.token == lease.token + 1
    second.close()


def test_the_file_is_durable_and_shared(book: Ledger) -> None:
    with sqlite3.connect(book.path) as db:
        assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    db.close()
    assert book._db.execute("PRAGMA synchronous").fetchone()[0] == 2


@pytest.mark.parametrize("jump", [CENTURY, -CENTURY / 2])
def test_no_jump_of_the_wall_clock_steals_a_lease(book: Ledger, hands: Hands, jump: dt.timedelta) -> None:
    taken(book)
    hands.now += jump
    assert other(book).take(FIRST) is None


def test_a_beat_keeps_the_lease_and_silence_loses_it(book: Ledger, hands: Hands) -> None:
    lease = taken(book)
    for _ in range(5):
        hands.elapsed += LEASE_SECONDS - 1
        assert other(book).take(FIRST) is None
        assert book.beat(lease)
    hands.elapsed += LEASE_SECONDS + 1
    new = other(book).take(FIRST)
    assert new is not None
    assert not book.beat(lease)


def test_a_reset_of_the_growing_clock_steals_nothing(book: Ledger, hands: Hands) -> None:
    taken(book)
    hands.elapsed = 0.0
    assert other(book).take(FIRST) is None


def test_who_lost_the_lease_publishes_nothing(book: Ledger, hands: Hands) -> None:
    old = taken(book)
    hands.elapsed += LEASE_SECONDS + 1
    new = other(book).take(FIRST)
    assert new is not None
    happened = []
    with pytest.raises(LeaseLost), book.publishing(old, "mine"):
        happened.append("old")
    assert not book.move(FIRST, "failed", "mine", lease=old)
    with pytest.raises(LeaseLost):
        book.begin(old, "mine")
    with book.publishing(new, "published"):
        happened.append("new")
    assert happened == ["new"]
    cycle = book.cycle(FIRST)
    assert cycle is not None
    assert cycle.state == "published"


def test_nobody_can_take_the_lease_while_a_run_becomes_visible(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "BUSY_SECONDS", 0.05)
    second, lease = other(book), taken(book)
    with book.publishing(lease, "published"), pytest.raises(sqlite3.OperationalError, match="locked"):
        second.take(FIRST)
    second.close()


def test_a_run_that_fails_to_become_visible_is_not_published(book: Ledger) -> None:
    lease = taken(book)
    with pytest.raises(OSError), book.publishing(lease, "published"):
        raise OSError("no")
    cycle = book.cycle(FIRST)
    assert cycle is not None
    assert cycle.state == "pending"
    assert book.is_held(FIRST)


def test_a_dead_process_loses_its_lease_at_once(book: Ledger) -> None:
    taken(book)
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    as_owner(book, pid=child.pid, started="12345")
    assert other(book).take(FIRST) is not None
    assert "taken over from process" in book.events(FIRST)[-1].reason


def test_a_number_that_was_given_to_another_process_is_not_the_owner(book: Ledger) -> None:
    taken(book)
    as_owner(book, started="1")  # our own number, of a process begun at another time
    assert other(book).take(FIRST) is not None


def test_an_owner_from_before_a_restart_is_dead(book: Ledger) -> None:
    taken(book)
    as_owner(book, boot="another")
    assert other(book).take(FIRST) is not None


def test_an_owner_on_another_machine_is_watched_before_it_is_dead(book: Ledger, hands: Hands) -> None:
    lease = taken(book)
    as_owner(book, host="elsewhere", boot="another")
    second = other(book)
    assert second.take(FIRST) is None, "its beat says nothing by our clock"
    hands.elapsed += LEASE_SECONDS / 2
    book.beat(lease)
    assert second.take(FIRST) is None, "a new beat was seen"
    hands.elapsed += LEASE_SECONDS - 1
    assert second.take(FIRST) is None
    hands.elapsed += 2
    assert second.take(FIRST) is not None
    second.close()


def test_every_change_is_an_event_and_a_repeated_wait_is_one(book: Ledger, hands: Hands) -> None:
    for _ in range(3):
        book.move(FIRST, "waiting", "no analysis yet", lease=taken(book))
        hands.pass_by(dt.timedelta(minutes=10))
    lease = taken(book)
    book.begin(lease, "data are there")
    with book.publishing(lease, "published"):
        pass
    steps = [(event.before, event.after) for event in book.events(FIRST)]
    assert steps == [("", "pending"), ("pending", "waiting"), ("waiting", "running"), ("running", "published")]


def test_a_running_cycle_is_not_moved_by_others(book: Ledger) -> None:
    taken(book)
    assert not other(book).move(FIRST, "skipped", "stale")


CHILD = """
import sys
from pathlib import Path
from forecast.cycle.clock import Clock
from forecast.cycle.ledger import Ledger
from forecast.archive import parse_init
book = Ledger(Path(sys.argv[1]), Clock())
for line in sys.stdin:
    init = parse_init(line.strip())
    lease = book.take(init)
    if lease is not None:
        with book.publishing(lease, "published"), open(sys.argv[2], "a") as file:
            file.write(line)
"""


@pytest.mark.campaign
def test_three_processes_publish_every_cycle_once(tmp_path: Path, hands: Hands) -> None:
    book = Ledger(tmp_path / "state.sqlite", hands.clock)
    inits = [FIRST + k * dt.timedelta(hours=1) for k in range(12)]
    for init in inits:
        book.register(init)
    names = [init.strftime("%Y%m%dT%H") for init in inits]
    code = CHILD.replace("if lease is not None:", "if lease is not None and book.cycle(init).state == 'pending':")
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(book.path), str(tmp_path / "done")], stdin=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n".join(names) + "\n")
        child.stdin.close()
    assert [child.wait() for child in children] == [0, 0, 0]
    assert sorted((tmp_path / "done").read_text().split()) == sorted(names)
    book.close()


def test_an_owner_in_another_container_of_the_same_name_is_not_dead(book: Ledger, hands: Hands) -> None:
    taken(book)
    as_owner(book, space="pid:[1]", pid=999_999_999)
    assert book.take(FIRST) is None
    hands.pass_by(dt.timedelta(seconds=LEASE_SECONDS + 1))
    assert book.take(FIRST) is not None


def test_a_commit_that_fails_leaves_the_ledger_usable(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        """A connection on a full disk: nothing can be committed."""

        def __init__(self, db: sqlite3.Connection) -> None:
            self.db = db

        def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
            if statement == "COMMIT":
                raise sqlite3.OperationalError("database or disk is full")
            return self.db.execute(statement, *values)

        def __getattr__(self, name: str) -> object:
            return getattr(self.db, name)

    with monkeypatch.context() as patch:
        patch.setattr(book, "_db", Full(book._db))
        with pytest.raises(sqlite3.OperationalError, match="full"):
            book.note("a", 1)
    book.note("b", 2)
    assert (book.noted("a"), book.noted("b")) == (None, 2)
