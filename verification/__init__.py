"""Honest scores of anybody's ensemble: one pass gives an additive state from which every score is read."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verification.evaluate import Accumulator, Plan, score_store
    from verification.scores import area_weights, bias, crps, crps_gaussian, rank_histogram, rmse, spread_skill
    from verification.significance import compare, intervals
    from verification.state import merge, open_state, scores_table, skill

__all__ = [
    "Accumulator",
    "Plan",
    "area_weights",
    "bias",
    "compare",
    "crps",
    "crps_gaussian",
    "intervals",
    "merge",
    "open_state",
    "rank_histogram",
    "rmse",
    "score_store",
    "scores_table",
    "skill",
    "spread_skill",
]

_HOMES = {
    "evaluate": ("Accumulator", "Plan", "score_store"),
    "scores": ("area_weights", "bias", "crps", "crps_gaussian", "rank_histogram", "rmse", "spread_skill"),
    "significance": ("compare", "intervals"),
    "state": ("merge", "open_state", "scores_table", "skill"),
}


def __getattr__(name: str) -> Any:
    # loaded when asked for: the command line must settle thread counts before numpy and numba are imported
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"verification.{module}"), name)
    raise AttributeError(f"module 'verification' has no attribute {name!r}")
