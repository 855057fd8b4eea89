"""From a checkpoint and an analysis to ensemble members, reproducible one by one, and the baselines they must beat.

ensemble = forecast.sample(generator, analysis, times=["2007-07-23"], days=10, members=24)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forecast.boundary import Boundary
    from forecast.rollout import make_plan, run, sample

__all__ = ["Boundary", "make_plan", "run", "sample"]

_HOMES = {
    "Boundary": "forecast.boundary", "make_plan": "forecast.rollout", "run": "forecast.rollout", "sample": "forecast.rollout",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load torch when something of it is asked for, not at import: `plumecast --help` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
