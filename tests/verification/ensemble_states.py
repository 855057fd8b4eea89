"""Two ensembles and a single forecast of a toy world as arrays and as score states, for the sections of the report."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline.grid import Grid
from verification.accumulate import Accumulator
from verification.plan import Event, Plan

GLOBE = Grid.named("16x8")
EUROPE = Grid(np.arange(36.0, 60.0, 3.0), np.arange(-12.0, 15.0, 3.0))
UNITS = {"geopotential_500": "m2 s-2", "2m_temperature": "K"}
WARM = Event(">", 286.0, channel="2m_temperature")
COLD = Event("<=", 282.5, channel="2m_temperature")
LEADS = pd.to_timedelta([24, 72, 120], unit="h").to_numpy().astype("timedelta64[ns]")
TIMES = pd.date_range("2006-01-01", periods=9, freq="5D").to_numpy().astype("datetime64[ns]")
W = GLOBE.area_weights


def world(members: int, error: float, grid: Grid = GLOBE) -> tuple[np.ndarray, np.ndarray]:
    """Members (time, lead, member, channel, latitude, longitude) and truth without `member`, float32; not quite calibrated."""
    shape = (TIMES.size, LEADS.size, 2, *grid.shape)
    shared = np.random.default_rng(5)
    mean, size = np.array([5e4, 285.0])[:, None, None], np.array([800.0, 3.0])[:, None, None]
    centre = mean + size * shared.normal(size=shape)
    truth = centre + 0.5 * size * shared.normal(size=shape)
    noise = np.random.default_rng(members).normal(size=(members, *shape))
    drawn = np.moveaxis(centre + 0.2 * size + error * size * noise, 0, 2)
    return drawn.astype(np.float32), truth.astype(np.float32)


def state_of(model: str, members: int, error: float, *, grid: Grid = GLOBE, inits: int = 9, **plan: Any) -> xr.Dataset:
    drawn, truth = world(members, error, grid)
    attrs = {"model": model, "truth": "a toy world"}
    accumulator = Accumulator(Plan(tuple(UNITS), UNITS, TIMES[:inits], LEADS, members, grid, attrs, **plan))
    for t, time in enumerate(TIMES[:inits]):
        for k, lead in enumerate(LEADS):
            accumulator.add(time, lead, drawn[t, k], truth[t, k])
    return accumulator.state()


def three_ensembles() -> list[xr.Dataset]:
    """Ensembles of 8 and 5 members, of which the second lacks two initialisations, and a single forecast."""
    both: dict[str, Any] = {"events": (WARM, COLD)}
    kept: dict[str, Any] = {"cases": (TIMES[2],), "points": {"Oslo": (60.0, 11.0), "here": (-10.0, 200.0)}}
    return [
        state_of("eight", 8, 0.4, **both, **kept),
        state_of("climatology of five", 5, 0.9, inits=7, **both),
        state_of("one", 1, 0.7, **both),
    ]
