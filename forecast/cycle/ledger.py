"""Who runs what: one SQLite file a model, each change of a cycle's state a row, each running cycle leased by one process.

A lease is a fencing token, one higher each time it is taken, and a beat by the clock that only grows: no jump of the wall clock
makes it old. It can be taken when its owner is known to be dead (its process, or the boot it belonged to), or when its beat has
stood still longer than `LEASE_SECONDS`; of an owner on another machine or in another container we watch the beat itself.
Who has lost it learns so before publishing: the rename happens inside a transaction that has checked the token. WAL wants a local
disk: on a network filesystem run one scheduler only.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import json
import os
import socket
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_pipeline.errors import PlumecastError
from forecast.archive import init_name, parse_init
from forecast.cycle.clock import Clock

StateName = Literal["pending", "waiting", "running", "published", "failed", "skipped"]
LABELS: dict[StateName, str] = {
    "pending": "pending", "waiting": "waiting for data", "running": "running", "published": "published", "failed": "failed",
    "skipped": "skipped as stale",
}  # fmt: skip
LEASE_SECONDS = 120.0
BUSY_SECONDS = 30.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS cycles (
    init TEXT PRIMARY KEY, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', revision INTEGER NOT NULL DEFAULT 1,
    attempts INTEGER NOT NULL DEFAULT 0, waits INTEGER NOT NULL DEFAULT 0, next_try TEXT, data_at TEXT, begun TEXT, ended TEXT,
    seconds REAL, hook TEXT, asked INTEGER NOT NULL DEFAULT 0, owner TEXT, token INTEGER NOT NULL DEFAULT 0, beat REAL,
    phase TEXT NOT NULL DEFAULT '', done INTEGER NOT NULL DEFAULT 0, total INTEGER NOT NULL DEFAULT 0, phase_beat REAL,
    seen_beat REAL, seen_at REAL, seen_boot TEXT
) STRICT;
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY, at TEXT NOT NULL, init TEXT NOT NULL, before TEXT NOT NULL, after TEXT NOT NULL, reason TEXT NOT NULL,
    token INTEGER NOT NULL, owner TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS events_of ON events (init, id);
CREATE TABLE IF NOT EXISTS notes (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""


class LeaseLost(PlumecastError):  # noqa: N818 - it says what happened
    """Another scheduler took the cycle over: nothing of ours may be published."""


@dataclass(frozen=True)
class Cycle:
    """A row: what is known of one initialisation. hook: an occasion whose commands have not run yet; asked: by hand."""

    init: dt.datetime
    state: StateName
    reason: str
    revision: int
    attempts: int
    waits: int
    next_try: dt.datetime | None
    data_at: dt.datetime | None
    begun: dt.datetime | None
    ended: dt.datetime | None
    seconds: float | None
    hook: str | None
    asked: bool
    owner: str | None
    phase: str
    done: int
    total: int
    phase_seconds: float | None


@dataclass(frozen=True)
class Event:
    """A change of state. at: by the schedule's clock."""

    at: dt.datetime
    init: dt.datetime
    before: str
    after: str
    reason: str


@dataclass(frozen=True)
class Lease:
    """The right to run one cycle, as long as `token` is the cycle's."""

    init: dt.datetime
    token: int


class Ledger:
    """The file, opened by one process; safe for its threads, and for other processes on the machine."""

    def __init__(self, path: Path, clock: Clock) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.clock = path, clock
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        with self._transaction():
            for statement in filter(None, map(str.strip, SCHEMA.split(";"))):
                self._db.execute(statement)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def cycles(self, last: int | None = None) -> list[Cycle]:
        """All cycles, or the newest `last`, oldest first."""
        limit = -1 if last is None else last
        rows = self._read("SELECT * FROM cycles ORDER BY init DESC LIMIT ?", limit)
        return [self._cycle(row) for row in reversed(rows)]

    def cycle(self, init: dt.datetime) -> Cycle | None:
        rows = self._read("SELECT * FROM cycles WHERE init = ?", init_name(init))
        return self._cycle(rows[0]) if rows else None

    def events(self, init: dt.datetime | None = None) -> list[Event]:
        """What happened to one cycle, or to all, in order."""
        where, values = ("", ()) if init is None else ("WHERE init = ?", (init_name(init),))
        rows = self._read(f"SELECT * FROM events {where} ORDER BY id", *values)
        return [Event(_time(row["at"]), parse_init(row["init"]), row["before"], row["after"], row["reason"]) for row in rows]

    def note(self, key: str, value: Any) -> None:
        """Remember a small thing of the whole schedule."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (key, json.dumps(value)))

    def noted(self, key: str) -> Any:
        """What was noted; None if nothing was."""
        rows = self._read("SELECT value FROM notes WHERE key = ?", key)
        return json.loads(rows[0]["value"]) if rows else None

    def register(self, init: dt.datetime, state: StateName = "pending", reason: str = "due") -> bool:
        """Enter a cycle that is not there yet; False if it is."""
        with self._transaction():
            name = init_name(init)
            if self._db.execute("SELECT 1 FROM cycles WHERE init = ?", (name,)).fetchone():
                return False
            self._db.execute("INSERT INTO cycles (init, state, reason) VALUES (?, ?, ?)", (name, state, reason))
            self._event(name, "", state, reason, 0)
            return True

    def move(self, init: dt.datetime, state: StateName, reason: str, *, lease: Lease | None = None, **columns: Any) -> bool:
        """Change the state of a cycle that nobody runs, or whose lease we hold, and end that lease; False if it is another's.

        Where neither state nor reason changes no event is written. columns: others to set, datetimes or plain values.
        """
        with self._transaction():
            row = self._row(init)
            held = self._is_held(row) if lease is None else not _is_ours(row, lease)
            if held:
                return False
            self._move(row, state, reason, **columns)
            return True

    def forget(self, init: dt.datetime, reason: str) -> None:
        """Take out a cycle that nobody runs; its events stay."""
        with self._transaction():
            row = self._row(init)
            if not self._is_held(row):
                self._event(row["init"], row["state"], "", reason, row["token"])
                self._db.execute("DELETE FROM cycles WHERE init = ?", (row["init"],))

    def set(self, init: dt.datetime, **columns: Any) -> None:
        """Set columns that are no state."""
        with self._transaction():
            self._set(init_name(init), columns)

    def take(self, init: dt.datetime) -> Lease | None:
        """The lease of a cycle; None while another process holds it. Its state stays until `begin`."""
        with self._transaction():
            row = self._row(init)
            if self._is_held(row):
                return None
            token, elapsed = row["token"] + 1, self.clock.elapsed()
            if row["owner"] is not None:
                reason = f"taken over from {_describe(row['owner'])}, which stopped in phase {row['phase'] or 'none'}"
                self._event(row["init"], row["state"], row["state"], reason, token)
            new = {"owner": me(), "token": token, "beat": elapsed, "phase": "", "done": 0, "total": 0, "phase_beat": elapsed}
            self._set(row["init"], new)
            return Lease(init, token)

    def begin(self, lease: Lease, reason: str, **columns: Any) -> None:
        """The cycle is running. Raises LeaseLost."""
        with self._transaction():
            row = self._row(lease.init)
            _require_ours(row, lease)
            self._set(row["init"], {"state": "running", "reason": reason, **columns})
            self._event(row["init"], row["state"], "running", reason, lease.token)

    def beat(self, lease: Lease, **columns: Any) -> bool:
        """Say that we are alive, and how far; False if the lease was lost."""
        names = ", ".join(f"{name} = ?" for name in ("beat", *columns))
        with self._lock:
            cursor = self._db.execute(
                f"UPDATE cycles SET {names} WHERE init = ? AND token = ? AND owner IS NOT NULL",
                (self.clock.elapsed(), *columns.values(), init_name(lease.init), lease.token),
            )
        return cursor.rowcount == 1

    @contextlib.contextmanager
    def publishing(self, lease: Lease, reason: str, **columns: Any) -> Iterator[None]:
        """The body makes the run visible while nobody can take the lease; then the cycle is published.

        Raises LeaseLost, before the body, if the token is not the cycle's any more.
        """
        with self._transaction():
            row = self._row(lease.init)
            _require_ours(row, lease)
            yield
            self._move(row, "published", reason, **columns)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Meanwhile nobody publishes, or changes a state. For what takes a moment."""
        with self._transaction():
            yield

    def is_held(self, init: dt.datetime) -> bool:
        """True while a living process runs this cycle."""
        with self._transaction():
            return self._is_held(self._row(init))

    def _is_held(self, row: sqlite3.Row) -> bool:
        if row["owner"] is None:
            return False
        owner, here = json.loads(row["owner"]), json.loads(me())
        elapsed = self.clock.elapsed()
        if (owner["host"], owner.get("space")) == (here["host"], here["space"]):
            if owner["boot"] != here["boot"] or _started(owner["pid"]) != owner["started"]:
                return False
            return elapsed - float(row["beat"]) <= LEASE_SECONDS
        if row["seen_beat"] == row["beat"] and row["seen_boot"] == here["boot"]:
            return elapsed - float(row["seen_at"]) <= LEASE_SECONDS
        self._set(row["init"], {"seen_beat": row["beat"], "seen_at": elapsed, "seen_boot": here["boot"]})
        return True

    def _move(self, row: sqlite3.Row, state: StateName, reason: str, **columns: Any) -> None:
        self._set(row["init"], {"state": state, "reason": reason, "owner": None, **columns})
        if (state, reason) != (row["state"], row["reason"]):
            self._event(row["init"], row["state"], state, reason, row["token"])

    def _set(self, name: str, columns: dict[str, Any]) -> None:
        names = ", ".join(f"{column} = ?" for column in columns)
        self._db.execute(f"UPDATE cycles SET {names} WHERE init = ?", (*map(_plain, columns.values()), name))

    def _event(self, name: str, before: str, after: str, reason: str, token: int) -> None:
        self._db.execute(
            "INSERT INTO events (at, init, before, after, reason, token, owner) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (_plain(self.clock.now()), name, before, after, reason, token, me()),
        )

    def _row(self, init: dt.datetime) -> sqlite3.Row:
        row: sqlite3.Row | None = self._db.execute("SELECT * FROM cycles WHERE init = ?", (init_name(init),)).fetchone()
        if row is None:
            raise KeyError(f"{init_name(init)} was not registered")
        return row

    def _read(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def _cycle(self, row: sqlite3.Row) -> Cycle:
        times = {name: None if row[name] is None else _time(row[name]) for name in ("next_try", "data_at", "begun", "ended")}
        same = ("state", "reason", "revision", "attempts", "waits", "seconds", "hook", "asked", "owner", "phase", "done", "total")
        since = None if row["phase_beat"] is None else self.clock.elapsed() - row["phase_beat"]
        values: dict[str, Any] = {name: row[name] for name in same} | times
        return Cycle(init=parse_init(row["init"]), phase_seconds=since, **values)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk has ended it already, or left it open
                    self._db.execute("ROLLBACK")
                raise


@functools.cache
def boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return "unknown"


def _started(pid: int) -> str:
    """When a process was started, in ticks of the machine; empty if it is gone. A number alone may have been given away again."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return ""
        with contextlib.suppress(OSError):  # no /proc: only whether it lives
            os.kill(pid, 0)
            return "alive"
        return ""
    return "" if fields[0] in "ZX" else fields[19]


@functools.cache
def _space() -> str:
    """Where process numbers count: containers of one host name have each their own."""
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""


def _is_ours(row: sqlite3.Row, lease: Lease) -> bool:
    return row["token"] == lease.token and row["owner"] is not None


def _require_ours(row: sqlite3.Row, lease: Lease) -> None:
    if not _is_ours(row, lease):
        raise LeaseLost(f"{row['init']}: another scheduler took this cycle over; nothing of ours was published")


def me() -> str:
    """This process as an owner."""
    pid = os.getpid()
    return json.dumps({"host": socket.gethostname(), "space": _space(), "boot": boot(), "pid": pid, "started": _started(pid)})


def _describe(owner: str) -> str:
    who = json.loads(owner)
    return f"process {who['pid']} on {who['host']}"


def _plain(value: Any) -> Any:
    return value.isoformat(timespec="seconds") if isinstance(value, dt.datetime) else value


def _time(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)
