"""From a checkpoint and an analysis to ensemble members, reproducible one by one, and the baselines they must beat.

    ensemble = forecast.sample(generator, analysis, times=["2007-07-01"], days=10, members=24)
"""

from forecast.boundary import Boundary
from forecast.rollout import make_plan, run, sample

__all__ = ["Boundary", "make_plan", "run", "sample"]
