"""Honest scores of anybody's ensemble: one pass gives an additive state from which every score is read."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verification.accumulate import Accumulator
    from verification.cases import score_cases
    from verification.certify import Certificate, check_policy
    from verification.decomposition import crps_decomposition
    from verification.distribution import crps, crps_gaussian, crps_quadrature, twcrps
    from verification.evaluate import score_store
    from verification.event_curves import event_intervals
    from verification.events import brier, economic_value, event_table, reliability, roc, rps, sedi
    from verification.explorer import explore
    from verification.multivariate import energy_score, variogram_score
    from verification.neighbourhood import fss
    from verification.plan import Event, Plan
    from verification.quantiles import efi, interval_score, quantile_score, sot, wis
    from verification.readout import event_scores, scores_table, skill
    from verification.scores import acc, area_weights, bias, conditional_spread_skill, rank_histogram, rmse, spread_skill
    from verification.significance import compare, compare_cells, intervals, scorecard
    from verification.spectra import (
        log_spectral_distance,
        power_spectrum,
        spectral_divergence,
        spectral_residual,
        spectral_variance_ratio,
    )
    from verification.state import merge, open_state
    from verification.stations import at_stations, gross_error_check, score_stations

__all__ = [
    "Accumulator",
    "Certificate",
    "Event",
    "Plan",
    "acc",
    "area_weights",
    "at_stations",
    "bias",
    "brier",
    "check_policy",
    "compare",
    "compare_cells",
    "conditional_spread_skill",
    "crps",
    "crps_decomposition",
    "crps_gaussian",
    "crps_quadrature",
    "economic_value",
    "efi",
    "energy_score",
    "event_intervals",
    "event_scores",
    "event_table",
    "explore",
    "fss",
    "gross_error_check",
    "interval_score",
    "intervals",
    "log_spectral_distance",
    "merge",
    "open_state",
    "power_spectrum",
    "quantile_score",
    "rank_histogram",
    "reliability",
    "rmse",
    "roc",
    "rps",
    "score_cases",
    "score_stations",
    "score_store",
    "scorecard",
    "scores_table",
    "sedi",
    "skill",
    "sot",
    "spectral_divergence",
    "spectral_residual",
    "spectral_variance_ratio",
    "spread_skill",
    "twcrps",
    "variogram_score",
    "wis",
]

_HOMES = {
    "accumulate": ("Accumulator",),
    "cases": ("score_cases",),
    "certify": ("Certificate", "check_policy"),
    "decomposition": ("crps_decomposition",),
    "distribution": ("crps", "crps_gaussian", "crps_quadrature", "twcrps"),
    "evaluate": ("score_store",),
    "event_curves": ("event_intervals",),
    "events": ("brier", "economic_value", "event_table", "reliability", "roc", "rps", "sedi"),
    "explorer": ("explore",),
    "multivariate": ("energy_score", "variogram_score"),
    "neighbourhood": ("fss",),
    "plan": ("Event", "Plan"),
    "quantiles": ("efi", "interval_score", "quantile_score", "sot", "wis"),
    "readout": ("event_scores", "scores_table", "skill"),
    "scores": ("acc", "area_weights", "bias", "conditional_spread_skill", "rank_histogram", "rmse", "spread_skill"),
    "significance": ("compare", "compare_cells", "intervals", "scorecard"),
    "spectra": ("log_spectral_distance", "power_spectrum", "spectral_divergence", "spectral_residual", "spectral_variance_ratio"),
    "state": ("merge", "open_state"),
    "stations": ("at_stations", "gross_error_check", "score_stations"),
}


def __getattr__(name: str) -> Any:
    # loaded when asked for: the command line must settle thread counts before numpy and numba are imported
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"verification.{module}"), name)
    raise AttributeError(f"module 'verification' has no attribute {name!r}")
