"""`plumecast live` killed at any moment: the store is absent or whole, what was downloaded is kept, and a rerun ends the same."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ecmwf.opendata", reason="needs the extra live: pip install plumecast[live]")

from data_pipeline import store
from tests.children import contents, start
from tests.data_pipeline.open_data_server import FRAMES, OpenData

pytestmark = pytest.mark.campaign

KILLS = 20 if os.environ.get("PLUMECAST_FULL") else 3

CHILD = """
import sys
from pathlib import Path
from data_pipeline.sources.ecmwf_live import write_cycle
from data_pipeline.sources.ecmwf_server import Server
from tests.data_pipeline.open_data_server import INIT, NOW, WANTED
server = Server(sys.argv[1])
print("ready", flush=True)
write_cycle(Path(sys.argv[2]), INIT, WANTED, server=server, now=NOW)
"""


def test_killed_at_random_moments_and_run_again_it_gives_the_same_bytes(tmp_path: Path) -> None:
    draws = np.random.default_rng(int(os.environ.get("PLUMECAST_SEED", "1")))
    with OpenData() as data:
        data.publish_frames(*FRAMES)
        with start(CHILD, data.url, str(tmp_path / "reference.zarr")) as child:
            began = time.monotonic()
            assert child.wait() == 0
            seconds = time.monotonic() - began
        needed = len(data.downloads)
        for number in range(KILLS):
            out = tmp_path / f"killed_{number}.zarr"
            with start(CHILD, data.url, str(out)) as child:
                time.sleep(draws.uniform(0, seconds))
                child.kill()
            whole = out.exists()
            assert not whole or store.verify_store(out) == []
            kept = len(list((tmp_path / f"{out.name}.downloads").glob("*.grib2")))
            data.asked.clear()
            with start(CHILD, data.url, str(out)) as child:
                assert child.wait() == 0
            assert len(data.downloads) == (0 if whole else needed - kept)
            assert contents(out) == contents(tmp_path / "reference.zarr")
            assert not list(tmp_path.glob("killed_*.*.*")), "nothing is left beside the store"
