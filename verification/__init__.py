"""Honest scores of anybody's ensemble: one pass gives an additive state from which every score is read."""

from verification.scores import area_weights, bias, crps, crps_gaussian, rank_histogram, rmse, spread_skill

__all__ = ["area_weights", "bias", "crps", "crps_gaussian", "rank_histogram", "rmse", "spread_skill"]
