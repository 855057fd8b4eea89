"""Forecasts of one valid time from earlier and earlier initialisations: which times they can be made for, and making them.

What they say of that time is taken out by `verification.lagged.valid_at`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline.errors import InputError
from forecast.rollout import make_plan, run
from forecast.sinks import ZarrSink
from models.contract import Generator, Spec
from verification.headings import utc
from verification.plan import training_flags


def reachable_times(analysis: xr.Dataset, spec: Spec, days: Sequence[float]) -> np.ndarray:
    """The times of an analysis that forecasts from each of so many days before can be verified at: datetime64, ascending.

    Every initialisation has all its input frames in the analysis. Times of the training or validation period, and those whose
    initialisations lie in them, are left out. Raises InputError if none is left.
    """
    times = analysis["time"].values.astype("datetime64[ns]")
    periods = {"training_period": spec.training_period, "validation_period": spec.validation_period}
    fresh = np.ones(times.size, bool)
    for day in days:
        lead = pd.Timedelta(days=day).to_timedelta64()
        for lag in spec.step * np.arange(spec.frames):
            fresh &= np.isin(times - lead - lag, times)
        fresh &= training_flags(times - lead, np.array([lead]), periods)[:, 0] == 0
    if not fresh.any():
        asked = ", ".join(f"{day:g}" for day in days)
        raise InputError(
            f"no time outside training and validation can be forecast from {asked} days before: the analysis has {utc(times[0])} "
            f"to {utc(times[-1])}, and each initialisation needs {spec.frames} frames"
        )
    return times[fresh]


def make_lagged(
    generator: Generator, analysis: xr.Dataset, when: np.datetime64, days: Sequence[float], out: str | Path, *, members: int,
    seed: int = 0,
) -> Path:  # fmt: skip
    """A forecast store of the initialisations so many days before `when`, each as long as the earliest needs; returns `out`.

    Killed and run again, it goes on where it was; a finished one is left alone. Raises InputError as `forecast.make_plan`, and if
    another forecast lies at `out`.
    """
    starts = [pd.Timestamp(when) - pd.Timedelta(days=day) for day in days]
    plan = make_plan(generator, analysis, [start.to_datetime64() for start in starts], days=max(days), members=members, seed=seed)
    sink = ZarrSink(Path(out))
    try:
        run(generator, analysis, plan, [sink])
    finally:
        sink.release()
    return Path(out)
