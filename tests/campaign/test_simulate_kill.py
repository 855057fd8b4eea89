"""The simulated planet killed at any moment goes on to the same bytes; ensembles run one process a core. The real model."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_pipeline.errors import InputError, NotReadyError
from data_pipeline.opening import open_analysis, open_forecast
from data_pipeline.store import verify_store
from tests.children import ROOT, contents

pytest.importorskip("jcm", reason="needs the extra simulate: pip install plumecast[simulate]")
pytestmark = [pytest.mark.campaign, pytest.mark.full]

KILLS = 5
SETTINGS = ("nature.days=40", "nature.spin_up_days=1", "nature.restart_days=1", "nature.truncation=21", "nature.step=12h")


def simulate(folder: Path, cache: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """The command as a user gives it, at T21; compiled code is kept in `cache`, so that a kill rarely falls into compilation."""
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "plumecast", "data", "simulate", *settings, *arguments, "--out", str(folder)],
        cwd=ROOT, env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def test_killed_at_random_moments_and_resumed_it_gives_the_same_bytes(tmp_path: Path) -> None:
    cache = tmp_path / "compiled"
    assert simulate(tmp_path / "first", cache, "--nature", "1").wait() == 0
    began = time.monotonic()
    assert simulate(tmp_path / "whole", cache, "--nature", "1").wait() == 0
    seconds = time.monotonic() - began
    reference = contents(tmp_path / "whole" / "analysis.zarr")
    assert contents(tmp_path / "first" / "analysis.zarr") == reference
    draws = np.random.default_rng(int(os.environ.get("PLUMECAST_SEED", "3")))
    unfinished = 0
    for number in range(KILLS):
        out = tmp_path / f"killed_{number}"
        child = simulate(out, cache, "--nature", "1")
        time.sleep(draws.uniform(0.3, 0.98) * seconds)
        child.kill()
        child.wait()
        if not (out / "analysis.zarr").exists():
            with pytest.raises((InputError, NotReadyError)):
                open_analysis(out / "analysis.zarr")
            unfinished += 1
        assert simulate(out, cache, "--nature", "1").wait() == 0
        assert verify_store(out / "analysis.zarr") == []
        assert contents(out / "analysis.zarr") == reference
        assert contents(out / "restarts") == contents(tmp_path / "whole" / "restarts")
    print(f"{unfinished} of {KILLS} kills within {seconds:.1f} s left an unfinished store")
    assert unfinished > 0


def test_ensembles_run_on_worker_processes_and_repeat_themselves(tmp_path: Path) -> None:
    """From a nature run of the user's own to a forecast store, twice, by the coarser model."""
    cache = tmp_path / "compiled"
    recipe = tmp_path / "own.toml"
    inits = ["2001-01-17", "2001-01-18"]
    recipe.write_text(f'[ensemble]\nrestarts = "{tmp_path / "own" / "restarts"}"\nmembers = 2\ndays = 2\ninits = {inits}\n')
    planet = ("nature.days=90", "nature.restart_days=1")
    assert simulate(tmp_path / "own", cache, "--nature", "1", *(part for one in planet for part in ("--set", one))).wait() == 0
    stores = []
    for workers in ("2", "1"):
        command = (str(recipe), "--ensemble", "imperfect", "--workers", workers)
        assert simulate(tmp_path / "own", cache, *command).wait() == 0
        made = tmp_path / "own" / "forecasts" / "imperfect.zarr"
        stores.append(contents(made))
        data = open_forecast(made)
        assert list(pd.DatetimeIndex(data["time"].values)) == [pd.Timestamp(init) for init in inits]
        assert np.isfinite(data["2m_temperature"]).all()
        made.rename(tmp_path / f"by_{workers}.zarr")
    assert stores[0] == stores[1]
