"""Products killed at any moment are absent or visibly unfinished; started again they give the same, as zarr and as NetCDF."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from data_pipeline.errors import InputError, NotReadyError
from data_pipeline.store import open_store, verify_store
from tests.children import contents, start

pytestmark = pytest.mark.campaign

KILLS = 40 if os.environ.get("PLUMECAST_FULL") else 3

# A forecast of red noise; parts as small as they can be, so that kills fall between them too.
CHILD = """
import sys
import numpy as np
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel
from data_pipeline.templates import forecast_dataset
from forecast.products import making as products
from forecast.products.recipe import Place, ProductsSection, TrackSection
products.PART_BYTES = 1
rng = np.random.default_rng(0)
grid = Grid.named("64x32")
names = ("mean_sea_level_pressure", "2m_temperature", "10m_u_component_of_wind", "10m_v_component_of_wind")
fields = np.cumsum(rng.normal(size=(2, 6, 8, 4, *grid.shape)), axis=-1).astype("float32")
fields = fields * np.float32(100) + np.array([1e5, 280, 0, 0], "float32")[:, None, None]
times = np.datetime64("2003-01-01", "ns") + np.arange(2) * np.timedelta64(24, "h")
leads = (np.arange(1, 7) * np.timedelta64(12, "h")).astype("timedelta64[ns]")
data = forecast_dataset(fields, times, leads, range(8), [Channel(name) for name in names], grid)
section = ProductsSection(tracks=TrackSection(lifetime="12h"), derived=["10m_wind_speed"])
print("ready", flush=True)
products.make(data, sys.argv[1], section, places=[Place(name="Bergen", latitude=60.39, longitude=5.32)])
"""


@pytest.mark.parametrize("suffix", ["zarr", "nc"])
def test_killed_at_random_moments_and_resumed_it_gives_the_same(tmp_path: Path, suffix: str) -> None:
    with start(CHILD, str(tmp_path / f"whole.{suffix}")) as child:
        began = time.monotonic()
        assert child.wait() == 0
        seconds = time.monotonic() - began
    draws = np.random.default_rng(int(os.environ.get("PLUMECAST_SEED", "2")))
    unfinished = 0
    for number in range(KILLS):
        out = tmp_path / f"killed_{number}.{suffix}"
        with start(CHILD, str(out)) as child:
            time.sleep(draws.uniform(0, seconds))
            child.kill()
        if not out.exists():
            unfinished += 1
            if suffix == "zarr":
                with pytest.raises((InputError, NotReadyError)):
                    open_store(out)
        with start(CHILD, str(out)) as child:
            assert child.wait() == 0
        if suffix == "zarr":
            assert verify_store(out) == []
            assert contents(out) == contents(tmp_path / "whole.zarr")
        else:
            with xr.open_dataset(out) as found, xr.open_dataset(tmp_path / "whole.nc") as whole:
                xr.testing.assert_identical(found, whole)
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith("killed_") and path != out] == []
        out.rename(tmp_path / f"done_{number}.{suffix}")
    print(f"{unfinished} of {KILLS} kills within {seconds:.1f} s left nothing that can be opened")
    assert unfinished > 0
