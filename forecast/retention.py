"""Which published runs may go, and whether the disk has room for the next."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import InputError, PlumecastError
from forecast.archive import Archive, Run, discard

MARGIN = 1.3  # free space over the estimate
PROBE_BYTES = 1 << 20


class SpaceError(PlumecastError):
    """The disk is full, or nearly; the same command continues once it is not."""


@dataclass(frozen=True)
class Policy:
    """What is kept: the newest `keep` runs, those initialised within `days` of the newest, the protected ones by name.

    grace: how long a run stays after a newer one took over `latest`, for readers that opened it.
    """

    keep: int
    days: float = 0.0
    protected: tuple[str, ...] = ()
    grace: dt.timedelta = dt.timedelta(0)


def removable(runs: Sequence[Run], latest: Run | None, policy: Policy, now: dt.datetime) -> list[Run]:
    """The runs that a policy lets go, oldest first. Never the newest, nor the one that `latest` points to.

    Ages are counted in initialisations from the newest one, so that a clock that jumps takes nothing away; only the grace is read
    from the clock. A revision takes the place of the runs of its initialisation before it.
    """
    if not runs:
        return []
    ordered = sorted(runs)
    current = {run.init: run for run in ordered}
    newest = ordered[-1]
    first = newest.init - dt.timedelta(days=policy.days)
    kept_inits = set(sorted(current)[-max(1, policy.keep) :]) | {init for init in current if policy.days and init >= first}
    kept = {current[init] for init in kept_inits} | {newest, latest}
    candidates = [run for run in ordered if run not in kept and run.name not in policy.protected]
    return [run for run in candidates if now - _superseded(run, ordered) >= policy.grace]


def _superseded(run: Run, runs: Sequence[Run]) -> dt.datetime:
    """Since when no reader is sent here: a newer run was published, before this one or after it."""
    return max(_published(run), min(_published(other) for other in runs if other > run))


def _published(run: Run) -> dt.datetime:
    """A run whose manifest is damaged or gone stays, for a person to look at (`plumecast cycle check`)."""
    try:
        return dt.datetime.fromisoformat(run.manifest()["published_at"])
    except (InputError, FileNotFoundError):
        return dt.datetime.max


def retain(archive: Archive, policy: Policy, now: dt.datetime) -> list[Run]:
    """Apply a policy; returns the runs that went."""
    gone = removable(archive.runs(), archive.latest(), policy, now)
    for run in gone:
        discard(archive, run.path)
    return gone


def free_bytes(folder: Path) -> int:
    """Bytes that an ordinary user may still write on the filesystem of `folder`, or of the nearest folder above that exists."""
    there = os.statvfs(_existing(folder))
    return there.f_bavail * there.f_frsize


def require_space(folder: Path, needed: int, files: int) -> None:
    """Raise SpaceError unless bytes and inodes for 1.3 times as much are free and a probe of 1 MB can be written."""
    folder.mkdir(parents=True, exist_ok=True)
    there = os.statvfs(folder)
    free = there.f_bavail * there.f_frsize
    if free < MARGIN * needed:
        raise SpaceError(
            f"{folder}: {free / 1e6:,.0f} MB free; the run may take {needed / 1e6:,.0f} MB and asks for {MARGIN:g} times that"
        )
    if there.f_files > 0 and there.f_favail < MARGIN * files:  # some filesystems have no fixed number
        raise SpaceError(f"{folder}: {there.f_favail:,} files can still be made; the run may take {files:,}")
    probe = folder / f".probe.{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise SpaceError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        probe.unlink(missing_ok=True)


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder
