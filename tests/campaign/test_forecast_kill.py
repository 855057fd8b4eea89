"""A forecast killed at any moment is absent or visibly unfinished; started again it gives the same bytes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import open_forecast
from data_pipeline.errors import InputError, NotReadyError
from data_pipeline.store import verify_store
from tests.children import contents, start

pytestmark = pytest.mark.campaign

KILLS = 60 if os.environ.get("PLUMECAST_FULL") else 6

# The process says when its imports are done, so that the kill falls into the work and not before it.
CHILD = """
import sys
import forecast
from forecast import sinks
from tests import toys
sinks.BUFFER_BYTES = 1 << 17
data = toys.weather(steps=80)
generator = toys.network(toys.spec_of(data))
plan = forecast.make_plan(generator, data, data["time"].values[10:60:5], days=5, members=10, seed=0)
print("ready", flush=True)
forecast.run(generator, data, plan, [sinks.ZarrSink(sys.argv[1])])
print("done", flush=True)
"""


def test_killed_at_random_moments_and_resumed_it_gives_the_same_bytes(tmp_path: Path) -> None:
    with start(CHILD, str(tmp_path / "whole.zarr")) as child:
        began = time.monotonic()
        assert child.wait() == 0
        seconds = time.monotonic() - began
    reference = contents(tmp_path / "whole.zarr")
    draws = np.random.default_rng(int(os.environ.get("PLUMECAST_SEED", "2")))
    unfinished = 0
    for number in range(KILLS):
        out = tmp_path / f"killed_{number}.zarr"
        with start(CHILD, str(out)) as child:
            time.sleep(draws.uniform(0, seconds))
            child.kill()
        if not out.exists():
            with pytest.raises((InputError, NotReadyError)):
                open_forecast(out)
            unfinished += 1
        with start(CHILD, str(out)) as child:
            assert child.wait() == 0
        assert verify_store(out) == []
        assert contents(out) == reference
        assert list(tmp_path.glob("*.partial")) == []
    print(f"{unfinished} of {KILLS} kills within {seconds:.1f} s left an unfinished store")
    assert unfinished > 0
