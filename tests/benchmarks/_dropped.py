"""A sink that keeps nothing: what a roll-out costs without one."""

from __future__ import annotations

import numpy as np

from forecast.plan import ForecastPlan


class Dropped:
    """Takes every lead and drops it."""

    whole = False

    def open(self, plan: ForecastPlan) -> None:
        pass

    def take(self, time: np.datetime64, lead: np.timedelta64, members: tuple[int, ...], fields: np.ndarray) -> None:
        pass

    def close(self) -> None:
        pass
