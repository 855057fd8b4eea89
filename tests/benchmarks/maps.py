"""How fast are the figures? First and later draws at 1.5 degrees, each with saving a PNG of 1280 pixels.

    python -m tests.benchmarks maps [--repeat 9]

Median and minimum of wall seconds, and the processor's own seconds (minimum), which another job on the machine does not lengthen.
The first draw of a process pays for fonts, projections and coastlines; imports are counted by themselves.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np

MEMBERS = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=9)
    repeat = parser.parse_known_args()[0].repeat
    began, used = time.perf_counter(), time.process_time()
    import cartopy.crs as ccrs
    import xarray as xr

    from data_pipeline.grid import Grid
    from verification import maps

    print(f"imports: {time.perf_counter() - began:.2f} s, of which the processor {time.process_time() - used:.2f}\n")
    grid, rng = Grid.named("240x121"), np.random.default_rng(0)
    lat, lon = np.deg2rad(grid.latitude)[:, None], np.deg2rad(grid.longitude)[None]
    base = 285 + 25 * np.cos(2 * lat) + 5 * np.cos(4 * lon) * np.cos(lat) ** 2
    members = xr.DataArray(
        base + rng.normal(0, 2, (MEMBERS, 1, 1)) * np.cos(3 * lon) * np.cos(lat) ** 2,
        grid.coords() | {"number": np.arange(MEMBERS)},
        ("number", "latitude", "longitude"), "2m_temperature", {"units": "K"},
    )  # fmt: skip
    leads = np.arange(6, 246, 6) * np.timedelta64(1, "h").astype("timedelta64[ns]")
    plume = xr.DataArray(
        285 + rng.normal(0, 3, (leads.size, MEMBERS)), {"prediction_timedelta": leads, "time": np.datetime64("2007-01-16", "ns")},
        ("prediction_timedelta", "number"), "2m_temperature", {"units": "K"},
    )  # fmt: skip
    field = members[0]
    print(f"{'seconds, 240x121, ' + str(MEMBERS) + ' members':<38}{'first':>8}{'median':>9}{'least':>8}{'processor':>11}")
    projections: dict[str, Any] = {
        "PlateCarree": None, "Robinson": ccrs.Robinson(), "Orthographic": ccrs.Orthographic(10, 50),
        "polar": ccrs.NorthPolarStereo(),
    }  # fmt: skip
    for name, projection in projections.items():
        timed(f"field, {name}", lambda at=projection: maps.plot_field(field, projection=at, width=8.0), repeat)  # type: ignore[misc]
    timed("field, Europe", lambda: maps.plot_field(field, extent=(-25, 45, 33, 72), width=8.0), repeat)
    timed("ensemble", lambda: maps.plot_ensemble(members, width=8.0), repeat)
    timed("probability", lambda: maps.plot_probability(members, threshold=295.0, width=8.0), repeat)
    timed("spaghetti", lambda: maps.plot_spaghetti(members, [280.0, 290.0], width=8.0), repeat)
    timed(f"stamps, {MEMBERS + 2} maps", lambda: maps.plot_stamps(members), repeat)
    timed("plume", lambda: maps.plot_plume(plume), repeat)
    timed(
        "meteogram, 2 panels of 40 boxes", lambda: maps.plot_meteogram(xr.Dataset({"2m_temperature": plume, "t": plume})), repeat
    )


def timed(label: str, draw: Callable[[], Any], repeat: int) -> None:
    """Print the first draw, and of `repeat` later ones the median, the least and the least of the processor."""
    walls, processor = [], []
    for _ in range(repeat + 1):
        began, used = time.perf_counter(), time.process_time()
        draw().savefig(io.BytesIO(), format="png", dpi=160)
        walls.append(time.perf_counter() - began)
        processor.append(time.process_time() - used)
    later = walls[1:] or walls
    print(f"{label:<38}{walls[0]:8.2f}{np.median(later):9.2f}{min(later):8.2f}{min(processor):11.2f}", flush=True)


if __name__ == "__main__":
    main()
