"""Honest scores of anybody's ensemble: one pass gives an additive state from which every score is read."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verification.decomposition import crps_decomposition
    from verification.distribution import crps, crps_gaussian, crps_quadrature, twcrps
    from verification.evaluate import Accumulator, Plan, score_store
    from verification.multivariate import energy_score, variogram_score
    from verification.quantiles import efi, interval_score, quantile_score, sot, wis
    from verification.scores import acc, area_weights, bias, conditional_spread_skill, rank_histogram, rmse, spread_skill
    from verification.significance import compare, intervals
    from verification.state import merge, open_state, scores_table, skill

__all__ = [
    "Accumulator",
    "Plan",
    "acc",
    "area_weights",
    "bias",
    "compare",
    "conditional_spread_skill",
    "crps",
    "crps_decomposition",
    "crps_gaussian",
    "crps_quadrature",
    "efi",
    "energy_score",
    "interval_score",
    "intervals",
    "merge",
    "open_state",
    "quantile_score",
    "rank_histogram",
    "rmse",
    "score_store",
    "scores_table",
    "skill",
    "sot",
    "spread_skill",
    "twcrps",
    "variogram_score",
    "wis",
]

_HOMES = {
    "decomposition": ("crps_decomposition",),
    "distribution": ("crps", "crps_gaussian", "crps_quadrature", "twcrps"),
    "evaluate": ("Accumulator", "Plan", "score_store"),
    "multivariate": ("energy_score", "variogram_score"),
    "quantiles": ("efi", "interval_score", "quantile_score", "sot", "wis"),
    "scores": ("acc", "area_weights", "bias", "conditional_spread_skill", "rank_histogram", "rmse", "spread_skill"),
    "significance": ("compare", "intervals"),
    "state": ("merge", "open_state", "scores_table", "skill"),
}


def __getattr__(name: str) -> Any:
    # loaded when asked for: the command line must settle thread counts before numpy and numba are imported
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"verification.{module}"), name)
    raise AttributeError(f"module 'verification' has no attribute {name!r}")
