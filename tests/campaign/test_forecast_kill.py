"""A forecast killed at any moment is absent or visibly unfinished, or as it was before it was added to; started again it gives
the same bytes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import forecast
import models
from data_pipeline import open_forecast
from data_pipeline.errors import InputError, NotReadyError
from data_pipeline.store import verify_store
from forecast.sinks import ZarrSink
from forecast.states import Restarts, folder_of
from tests import toys
from tests.children import contents, start

pytestmark = pytest.mark.campaign

KILLS = 60 if os.environ.get("PLUMECAST_FULL") else 6

# The process says when its imports are done, so that the kill falls into the work and not before it.
CHILD = """
import sys
import forecast
from forecast import plan as plans
from forecast.extend import extended
from forecast.gate import Gate, GateSink
from forecast.sinks import ZarrSink
from forecast.states import Restarts, folder_of
from tests import toys
plans.CHUNK_BYTES = 1 << 15
plans.BATCH_POINTS = 4 * 8 * 16
data = toys.weather(steps=80)
generator = toys.network(toys.spec_of(data), size=0.05)
path, inits, days, members = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
plan = forecast.make_plan(generator, data, data["time"].values[10:60:5][:inits], days=days, members=members, seed=0)
gate = GateSink(Gate.of(generator.spec, plan, data), strict=False)
print("ready", flush=True)
forecast.run(generator, data, plan, [gate, ZarrSink(path, gate=gate)], restarts=Restarts(folder_of(path)))
print("done", flush=True)
"""
WHOLE = ("8", "4", "10")


def run_whole(path: Path, *size: str) -> float:
    """Seconds of an undisturbed run."""
    with start(CHILD, str(path), *size) as child:
        began = time.monotonic()
        assert child.wait() == 0
    return time.monotonic() - began


def kill(path: Path, after: float, *size: str) -> None:
    with start(CHILD, str(path), *size) as child:
        time.sleep(after)
        child.kill()


def test_killed_at_random_moments_and_resumed_it_gives_the_same_bytes(tmp_path: Path) -> None:
    seconds = run_whole(tmp_path / "whole.zarr", *WHOLE)
    reference = contents(tmp_path / "whole.zarr")
    draws = np.random.default_rng(int(os.environ.get("PLUMECAST_SEED", "2")))
    unfinished = 0
    for number in range(KILLS):
        out = tmp_path / f"killed_{number}.zarr"
        kill(out, draws.uniform(0, seconds), *WHOLE)
        if not out.exists():
            with pytest.raises((InputError, NotReadyError)):
                open_forecast(out)
            unfinished += 1
        run_whole(out, *WHOLE)
        assert verify_store(out) == []
        assert contents(out) == reference
        assert list(tmp_path.glob("*.partial")) == []
    print(f"{unfinished} of {KILLS} kills within {seconds:.1f} s left an unfinished store")
    assert unfinished > 0


def test_killed_while_it_is_added_to_it_is_whole_and_ends_as_if_made_at_once(tmp_path: Path) -> None:
    """More initialisations, members that fill up a block, and more leads, all at once; each kill falls into the addition."""
    small = ("5", "3", "6")
    seconds = run_whole(tmp_path / "whole.zarr", *WHOLE)
    reference = contents(tmp_path / "whole.zarr")
    draws = np.random.default_rng(int(os.environ.get("PLUMECAST_SEED", "3")))
    before = 0
    for number in range(KILLS):
        out = tmp_path / f"killed_{number}.zarr"
        run_whole(out, *small)
        kill(out, draws.uniform(0, seconds), *WHOLE)
        assert verify_store(out) == [], "at every moment a whole store lies there"
        sizes = open_forecast(out).sizes
        assert (sizes["time"], sizes["number"]) in ((5, 6), (8, 10))
        before += sizes["number"] == 6
        run_whole(out, *WHOLE)
        assert verify_store(out) == []
        assert contents(out) == reference
        assert list(tmp_path.glob("*.partial")) == []
    print(f"{before} of {KILLS} kills fell before the longer store took the place of the shorter")
    assert before > 0


@pytest.mark.parametrize("name", models.SHIPPED)
def test_leads_added_from_kept_states_have_the_same_bits_in_every_family(name: str, tmp_path: Path) -> None:
    generator = models.load(models.shipped(name))
    analysis = toys_like(generator)
    stores = {}
    for kind, days in (("grown", (1, 2)), ("whole", (2,))):
        for length in days:
            plan = forecast.make_plan(generator, analysis, analysis["time"].values[[3]], days=length, members=3, seed=1)
            sink = ZarrSink(tmp_path / f"{kind}.zarr")
            try:
                forecast.run(generator, analysis, plan, [sink], restarts=Restarts(folder_of(sink.path)))
            finally:
                sink.release()
        stores[kind] = contents(tmp_path / f"{kind}.zarr")
    assert stores["grown"] == stores["whole"]


def toys_like(generator: models.Generator) -> xr.Dataset:
    """Noise around the climate of a checkpoint, on its grid."""
    from data_pipeline.schema import Channel, unstack

    spec, rng = generator.spec, np.random.default_rng(0)
    times = np.datetime64("2007-01-01", "ns") + spec.step * np.arange(10)
    fields = spec.denormalise(rng.normal(size=(10, len(spec.channels), *spec.grid.shape)))
    coords = {"time": times, "channel": list(spec.channels), **spec.grid.coords()}
    data = unstack(xr.DataArray(fields, dims=("time", "channel", "latitude", "longitude"), coords=coords))
    for name in data.data_vars:
        data[name].attrs["units"] = "1"
    assert all(Channel.parse(label).name in data for label in spec.channels)
    static = toys.weather(spec.grid, steps=2)
    return data.assign({name: static[name] for name in ("geopotential_at_surface", "land_sea_mask")})
