"""A forecast by two worker processes, one of them killed in mid-run: the bytes of one process. What always kills ends clearly."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dask
import numpy as np
import pytest

from data_pipeline.store import is_store, partial_path, verify_store, write_dataset
from models.checkpoint import save
from tests.children import ROOT, contents
from tests.toys import network, spec_of, weather

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.campaign

FORECAST = ("forecast", "analysis.zarr", "--checkpoint", "checkpoint.safetensors", "--days", "5", "--members", "40", "--no-gate")
DATES = ("--start", "2001-01-06", "--stop", "2001-01-16", "--every", "48h")
VICTIM, LEAD = "2001-01-10T00.m0001", 4

# Loaded by every worker process when it starts. The one that takes lead LEAD of part VICTIM kills itself: half of the part is
# made then, and nothing of it is on the disk. A file a death tells how many there were.
PRELOAD = """
import os, signal
from pathlib import Path
from forecast.writing import ZarrSink

ended, most = Path({ended!r}), {most}

def fatal(self, time, lead, members, fields, take=ZarrSink.take):  # loaded twice it calls itself, not for ever
    take(self, time, lead, members, fields)
    if self.only and {victim!r} in self.only and lead == self.plan.leads[{lead}] and len(list(ended.iterdir())) < most:
        (ended / str(os.getpid())).touch()
        os.kill(os.getpid(), signal.SIGKILL)

ZarrSink.take = fatal
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    data = weather(steps=60)
    write_dataset(folder / "analysis.zarr", data, data.attrs)
    spec = spec_of(data)
    save(folder / "checkpoint.safetensors", spec, network(spec).state_dict(), {})
    return folder


def plumecast(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PLUMECAST_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "plumecast", *map(str, words)], cwd=folder, env=environment, capture_output=True, text=True,
        check=False, timeout=900,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(job: Path) -> dict[str, bytes]:
    """The files of the forecast that one process makes, undisturbed."""
    done = plumecast(job, *FORECAST, *DATES, "--out", "whole.zarr")
    assert done.returncode == 0, done.stderr
    return contents(job / "whole.zarr")


@pytest.fixture
def ended(tmp_path: Path) -> Path:
    (tmp_path / "ended").mkdir()
    return tmp_path / "ended"


@pytest.fixture
def address(request: pytest.FixtureRequest, tmp_path: Path, ended: Path) -> Iterator[str]:
    """Two worker processes under nannies, of which as many die as the test's parameter says."""
    code = PRELOAD.format(ended=str(ended), most=request.param, victim=VICTIM, lead=LEAD)
    (tmp_path / "preload.py").write_text(code)
    settings = {"distributed.worker.preload": [str(tmp_path / "preload.py")], "distributed.scheduler.allowed-failures": 2}
    with (
        dask.config.set(settings),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", host="127.0.0.1", memory_limit="4GB"
        ) as cluster,
    ):
        yield cluster.scheduler_address


@pytest.mark.parametrize("address", [1], indirect=True)
def test_a_worker_killed_in_mid_run_changes_no_byte(job: Path, whole: dict[str, bytes], address: str, ended: Path) -> None:
    done = plumecast(job, *FORECAST, *DATES, "--out", "killed.zarr", "--cluster", address)
    assert done.returncode == 0, done.stderr
    assert len(list(ended.iterdir())) == 1, "nobody was killed"
    assert contents(job / "killed.zarr") == whole
    assert verify_store(job / "killed.zarr") == []
    assert not partial_path(job / "killed.zarr").exists()


@pytest.mark.parametrize("address", [99], indirect=True)
def test_a_part_that_kills_every_worker_ends_the_forecast_and_the_others_are_kept(
    job: Path, whole: dict[str, bytes], address: str, ended: Path
) -> None:
    out = job / "fatal.zarr"
    done = plumecast(job, *FORECAST, *DATES, "--out", out, "--cluster", address)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{VICTIM}: every worker that made it died" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(list(ended.iterdir())) >= 2, "it was not tried again"
    assert not is_store(out)
    assert plumecast(job, *FORECAST, *DATES, "--out", out).returncode == 0  # goes on with what the workers left
    assert contents(out) == whole


def test_processes_of_this_machine_make_the_same_bytes(job: Path, whole: dict[str, bytes]) -> None:
    done = plumecast(job, *FORECAST, *DATES, "--out", "workers.zarr", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert contents(job / "workers.zarr") == whole


def test_a_wrong_analysis_is_one_message_and_nothing_is_published(job: Path) -> None:
    data = weather(steps=60)
    data["2m_temperature"][22] = np.nan  # 2001-01-12T00, one of the initialisations
    write_dataset(job / "spoiled.zarr", data, data.attrs)
    done = plumecast(job, "forecast", "spoiled.zarr", *FORECAST[2:], *DATES, "--out", "spoiled_forecast.zarr", "--workers", "2")
    assert done.returncode == 4, done.stdout + done.stderr
    assert "not finite" in done.stderr
    assert "Traceback" not in done.stderr
    assert not is_store(job / "spoiled_forecast.zarr")
