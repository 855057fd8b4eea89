"""How long does the explorer of notebooks take to redraw? Controls are moved as a user moves them, to pictures not seen before.

    python -m tests.benchmarks explorer

Wall seconds (median, most) and the processor's own (median), from the change of a control to the new picture in the panel: lead,
variable, projection and product, on the grid of the packaged planet and at 1.5 degrees. The aim is 0.6 s.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import numpy as np
import xarray as xr

from data_pipeline.grid import Grid
from data_pipeline.schema import Channel
from data_pipeline.templates import forecast_dataset

MEMBERS, LEADS = 24, 20
CHANNELS = tuple(Channel.parse(label) for label in ("geopotential_500", "2m_temperature", "mean_sea_level_pressure"))
BASE = {"geopotential": (5.4e4, 2e3), "2m_temperature": (285.0, 20.0), "mean_sea_level_pressure": (1.01e5, 1.5e3)}


def main() -> None:
    from verification import explore

    print(f"{f'seconds, {MEMBERS} members':<34}{'changes':>8}{'median':>9}{'most':>8}{'processor':>11}")
    for name in ("64x32", "240x121"):
        panel = explore(ensemble(Grid.named(name)))
        for what, moves in changes(panel):
            walls, works = [], []
            for control, value in moves:
                began, used = time.perf_counter(), time.process_time()
                control.value = value
                walls.append(time.perf_counter() - began)
                works.append(time.process_time() - used)
            print(f"{f'{name}, {what}':<34}{len(walls):>8}{median(walls):>9.2f}{max(walls):>8.2f}{median(works):>11.2f}")


def ensemble(grid: Grid) -> xr.Dataset:
    """Smooth waves that differ by member and grow with the lead."""
    rng = np.random.default_rng(0)
    lat, lon = np.deg2rad(grid.latitude)[:, None], np.deg2rad(grid.longitude)
    phase = rng.uniform(0, 2 * np.pi, (1, LEADS, MEMBERS, len(CHANNELS), 1, 1))
    wave = np.cos(2 * lat) + np.linspace(0.02, 0.3, LEADS)[:, None, None, None, None] * np.cos(5 * lon + phase) * np.cos(lat) ** 2
    mean, size = (np.array([BASE[channel.name][k] for channel in CHANNELS])[:, None, None] for k in (0, 1))
    leads = (np.arange(1, LEADS + 1) * np.timedelta64(12, "h")).astype("timedelta64[ns]")
    init = np.array(["2007-01-16"], "datetime64[ns]")
    fields = (mean + size * wave).astype("f4")
    return forecast_dataset(fields, init, leads, list(range(1, MEMBERS + 1)), CHANNELS, grid).assign_attrs(model="waves")


def changes(panel: Any) -> Iterator[tuple[str, list[tuple[Any, Any]]]]:
    """Name and moves of each kind of change; the panel stands at the last of them afterwards."""
    yield "lead", [(panel.lead, value) for value in panel.lead.options[6:16]]
    for name in ("variable", "projection", "product"):
        control = getattr(panel, name)
        values = [value[1] if isinstance(value, tuple) else value for value in control.options]
        yield name, [(control, value) for value in values if value != control.value]


if __name__ == "__main__":
    main()
