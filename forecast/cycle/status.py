"""What people and machines are told: status.json, a Prometheus text file, the page. Each is replaced at once, never half-written.

<root>/<model>/status.json   status.prom   status.html
"""

from __future__ import annotations

import datetime as dt
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.disk import plain, read_json, write_bytes, write_json
from data_pipeline.errors import PlumecastError
from forecast import retention
from forecast.archive import Run, init_name
from forecast.cycle import schedule
from forecast.cycle.job import Job
from forecast.cycle.ledger import LABELS, Cycle, Event
from forecast.cycle.verify import SCORECARD, verification_folder

SHOWN = 40  # cycles on the page


def write(job: Job) -> dict[str, Any]:
    """Write all three; returns the content of status.json."""
    from forecast.cycle.page import render

    status = collect(job)
    folder = job.archive.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "status.json", status)
    write_bytes(folder / "status.html", render(status).encode())
    write_text_metrics(folder / "status.prom", status)
    return status


def collect(job: Job) -> dict[str, Any]:
    """The status as plain data. Ages and delays in hours, durations in seconds, times in UTC."""
    now, latest = job.clock.now(), job.archive.latest()
    cycles = job.ledger.cycles(SHOWN)
    coming, coming_at = schedule.next_due(job.recipe.schedule, now)
    counts = dict.fromkeys(LABELS.values(), 0)
    for cycle in job.ledger.cycles():
        counts[LABELS[cycle.state]] += 1
    return plain(
        {
            "format": 1,
            "name": job.recipe.name,
            "model": job.archive.model,
            "root": job.archive.root,
            "at": _iso(now),
            "simulated_clock": job.recipe.clock is not None,
            "latest": None if latest is None else _latest(job, latest, now, cycles),
            "next": {"init": init_name(coming), "due_at": _iso(coming_at), "hours": _hours(coming_at - now)},
            "running": next((_running(cycle) for cycle in reversed(cycles) if cycle.state == "running"), None),
            "cycles": [_row(job, cycle, job.ledger.events(cycle.init)) for cycle in cycles],
            "counts": counts,
            "disk_free_bytes": retention.free_bytes(job.archive.folder),
            "runs": len(job.archive.runs()),
            "scorecard": _scorecard(job),
        }
    )


def write_text_metrics(path: Path, status: dict[str, Any]) -> None:
    """Prometheus' text format, for node_exporter's textfile collector: no stamps, a final newline."""
    write_bytes(path, ("\n".join(_metrics(status)) + "\n").encode())


def _metrics(status: dict[str, Any]) -> Iterator[str]:
    model, latest, scores = status["model"], status["latest"], status["scorecard"]

    def metric(name: str, text: str, samples: Sequence[tuple[dict[str, Any], float | None]]) -> Iterator[str]:
        present = [(labels, value) for labels, value in samples if value is not None]
        if present:
            yield f"# HELP plumecast_{name} {text}"
            yield f"# TYPE plumecast_{name} gauge"
        for labels, value in present:
            inner = ",".join(f'{key}="{_escaped(str(word))}"' for key, word in {"product": model, **labels}.items())
            yield f"plumecast_{name}{{{inner}}} {value!r}"

    yield from metric("status_timestamp_seconds", "when this was written, by the schedule's clock", [({}, _unix(status["at"]))])
    if latest is not None:
        yield from metric(
            "last_success_timestamp_seconds", "when the latest run was published", [({}, _unix(latest["published_at"]))]
        )
        init = dt.datetime.strptime(latest["init"], "%Y%m%dT%H").isoformat()
        yield from metric("cycle_init_timestamp_seconds", "initialisation of the latest run", [({}, _unix(init))])
        yield from metric("latest_is_old", "1 if newer cycles were due and are not published", [({}, float(latest["old"]))])
        yield from metric("duration_seconds", "seconds that the latest run took", [({}, latest["seconds"])])
        yield from metric("members_published", "members of the latest run", [({}, float(latest["members"]))])
        yield from metric(
            "publication_delay_seconds", "from due time to publication of the latest run", [({}, latest["delay_hours"] * 3600)]
        )
    counts = [({"state": label}, float(count)) for label, count in status["counts"].items()]
    yield from metric("cycles", "cycles by state", counts)
    yield from metric("disk_free_bytes", "free bytes of the archive's filesystem", [({}, float(status["disk_free_bytes"]))])
    if scores is not None and scores["runs"]:
        samples = [
            ({"variable": channel, "lead_hours": hour, "in_sample": int(scores["in_sample"] > 0)}, value)
            for channel, own in scores["channels"].items()
            for hour, value in zip(own["lead_hours"], own["crps"], strict=True)
        ]
        yield from metric("verification_crps", "mean fair CRPS of all verified runs, in SI units", samples)


def _latest(job: Job, run: Run, now: dt.datetime, cycles: list[Cycle]) -> dict[str, Any]:
    manifest = run.manifest()
    published = dt.datetime.fromisoformat(manifest["published_at"])
    newer = [cycle for cycle in cycles if cycle.init > run.init and cycle.state != "published"]
    plan = job.recipe.schedule
    lost = [cycle for cycle in newer if cycle.state in ("failed", "skipped")]
    overdue = schedule.newest_due(plan, now) >= run.init + 2 * plan.every
    why = ""
    if lost or overdue:
        last = max(lost or newer, key=lambda cycle: cycle.init, default=None)
        why = "newer cycles were due" if last is None else f"{init_name(last.init)} {LABELS[last.state]}: {last.reason}"
    return {
        "run": run.name,
        "init": init_name(run.init),
        "age_hours": _hours(now - run.init),
        "published_at": manifest["published_at"],
        "delay_hours": _hours(published - run.init - plan.latency),
        "members": manifest["members"],
        "lead_hours": manifest["lead_hours"],
        "channels": len(manifest["channels"]),
        "grid": manifest["grid"],
        "seconds": round(sum(manifest["seconds"].values()), 1),
        "stages": manifest["seconds"],
        "bytes": sum(size for size, _ in manifest["files"].values()),
        "source": manifest["source"],
        "attribution": manifest["attribution"],
        "gate": manifest["gate"],
        "old": bool(lost or overdue),
        "old_because": why,
    }


def _running(cycle: Cycle) -> dict[str, Any]:
    """How far the run is; seconds left by the pace of its present stage, where that counts."""
    left = None
    if cycle.done and cycle.total and cycle.phase_seconds is not None:
        left = round(cycle.phase_seconds * (cycle.total - cycle.done) / cycle.done)
    return {
        "init": init_name(cycle.init), "stage": cycle.phase, "done": cycle.done, "total": cycle.total,
        "seconds_in_stage": None if cycle.phase_seconds is None else round(cycle.phase_seconds), "seconds_left": left,
    }  # fmt: skip


def _row(job: Job, cycle: Cycle, events: list[Event]) -> dict[str, Any]:
    due = cycle.init + job.recipe.schedule.latency
    return {
        "init": init_name(cycle.init),
        "state": cycle.state,
        "label": LABELS[cycle.state],
        "reason": cycle.reason,
        "delay_hours": _hours(cycle.ended - due) if cycle.ended and cycle.state == "published" else None,
        "data_delay_hours": _hours(cycle.data_at - due) if cycle.data_at else None,
        "held_up_by": held_up_by(events),
        "seconds": cycle.seconds,
        "attempts": cycle.attempts,
        "next_try": _iso(cycle.next_try) if cycle.next_try and cycle.state in ("pending", "waiting") else None,
    }


def held_up_by(events: list[Event]) -> list[str]:
    """What kept a cycle from being made at once, in order, each reason once."""
    waits = [event for event in events if event.before and (event.after in ("waiting", "pending") or event.before == event.after)]
    return list(dict.fromkeys(event.reason for event in waits))


def _scorecard(job: Job) -> dict[str, Any] | None:
    try:
        return read_json(verification_folder(job) / SCORECARD, "runs", "channels")
    except FileNotFoundError:
        return None


class Writer:
    """Writes the status after a change, and while a run goes on every few seconds."""

    def __init__(self, every: float = 5.0) -> None:
        self.every, self._last = every, -every
        self._lock = threading.Lock()

    def __call__(self, job: Job) -> None:
        with self._lock:
            self._last = job.clock.elapsed()
            try:
                write(job)
            except (
                OSError,
                sqlite3.OperationalError,
                PlumecastError,
            ) as error:  # a full disk, a damaged manifest: the runs go on
                job.log(None, "status not written", reason=str(error))

    def sometimes(self, job: Job) -> None:
        if job.clock.elapsed() - self._last >= self.every:
            self(job)


def _hours(span: dt.timedelta) -> float:
    return round(span / dt.timedelta(hours=1), 2)


def _iso(time: dt.datetime) -> str:
    return time.isoformat(timespec="seconds")


def _unix(text: str) -> float:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC).timestamp()


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace(os.linesep, "\\n")
