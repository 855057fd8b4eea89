"""Time as the schedule sees it: injected everywhere, so that a demo can run a planet's year in an hour and a test in a moment."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from dataclasses import dataclass


def utc_now() -> dt.datetime:
    """The wall clock, UTC without a zone."""
    return dt.datetime.now(dt.UTC).replace(tzinfo=None)


@dataclass(frozen=True)
class Clock:
    """now: what is due and what is stale hangs on it; it may jump. elapsed: seconds that only grow, on which leases hang.

    speed: seconds of `now` in a second of waiting.
    """

    now: Callable[[], dt.datetime] = utc_now
    elapsed: Callable[[], float] = time.monotonic
    speed: float = 1.0


def simulated(start: dt.datetime, speed: float, begun: dt.datetime) -> Clock:
    """A clock that showed `start` at `begun` of the wall clock, and since then runs `speed` times as fast."""
    return Clock(now=lambda: start + speed * (utc_now() - begun), speed=speed)


def fixed(now: dt.datetime) -> Clock:
    """A clock that stands still; leases still age."""
    return Clock(now=lambda: now)
