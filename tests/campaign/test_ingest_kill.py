"""An ingest killed at any moment: the store is absent or unfinished, never wrong; run again it gives the same bytes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from data_pipeline import store
from data_pipeline.errors import InputError, NotReadyError
from data_pipeline.grid import Grid
from tests.children import contents, start

pytestmark = pytest.mark.campaign

KILLS = 60 if os.environ.get("PLUMECAST_FULL") else 8

# The process says when its imports are done, so that the kill falls into the work and not before it.
CHILD = """
import json, sys
from pathlib import Path
from data_pipeline import ingest, plan
plan.PART_STAMPS = 4
print("ready", flush=True)
ingest.ingest(json.loads(sys.argv[1]), Path(sys.argv[2]))
print("done", flush=True)
"""


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    times = pd.date_range("2001-01-01", periods=80, freq="12h")
    grid = Grid.named("64x32")
    draws = np.random.default_rng(9)
    dims = ("time", "latitude", "longitude")
    data = xr.Dataset(
        {
            "2m_temperature": (dims, draws.normal(280, 5, (80, 32, 64)).astype("float32"), {"units": "K"}),
            "mean_sea_level_pressure": (dims, draws.normal(1e5, 500, (80, 32, 64)).astype("float32"), {"units": "Pa"}),
        },
        coords={"time": times, **grid.coords()},
    )
    data.to_netcdf(tmp_path / "weather.nc")
    channels = ["2m_temperature", "mean_sea_level_pressure"]
    source = {"path": str(tmp_path / "weather.nc")}
    return {"name": "job", "source": source, "analysis": {"channels": channels, "step": "12h", "grid": "32x16"}}


def check_state(path: Path) -> str:
    """The store is absent, unfinished and refused, or whole."""
    if path.exists():
        assert store.verify_store(path) == []
        return "whole"
    with pytest.raises((InputError, NotReadyError)):
        store.open_store(path)
    return "unfinished" if store.partial_path(path).exists() else "absent"


def test_killed_at_random_moments_and_resumed_it_gives_the_same_bytes(recipe: dict[str, Any], tmp_path: Path) -> None:
    with start(CHILD, json.dumps(recipe), str(tmp_path / "reference.zarr")) as child:
        began = time.monotonic()
        assert child.wait() == 0
        seconds = time.monotonic() - began
    reference = contents(tmp_path / "reference.zarr")
    draws = np.random.default_rng(int(os.environ.get("PLUMECAST_SEED", "1")))
    states = []
    for number in range(KILLS):
        out = tmp_path / f"killed_{number}.zarr"
        with start(CHILD, json.dumps(recipe), str(out)) as child:
            time.sleep(draws.uniform(0, seconds))
            child.kill()
        states.append(check_state(out))
        with start(CHILD, json.dumps(recipe), str(out)) as child:
            assert child.wait() == 0
        assert check_state(out) == "whole"
        assert contents(out) == reference
        assert not store.partial_path(out).exists()
    print(f"{KILLS} kills within {seconds:.1f} s: " + ", ".join(f"{states.count(s)} {s}" for s in sorted(set(states))))
    assert "unfinished" in states


def test_killed_again_and_again_it_still_ends_with_the_same_bytes(recipe: dict[str, Any], tmp_path: Path) -> None:
    with start(CHILD, json.dumps(recipe), str(tmp_path / "reference.zarr")) as child:
        began = time.monotonic()
        assert child.wait() == 0
        seconds = time.monotonic() - began
    out, progress = tmp_path / "killed.zarr", []
    for _ in range(100):
        with start(CHILD, json.dumps(recipe), str(out)) as child:
            time.sleep(0.5 * seconds)
            child.kill()
        if check_state(out) == "whole":
            break
        done = len(list((store.partial_path(out) / "parts").glob("*.json")))
        progress.append(done)
        assert progress == sorted(progress)
    assert contents(out) == contents(tmp_path / "reference.zarr")
