"""`torchrun --nproc-per-node 2 -m -- plumecast forecast`: the bytes of one process, or nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.store import is_store, partial_path, write_dataset
from models.checkpoint import save
from tests.children import ROOT, contents
from tests.toys import network, spec_of, weather

pytestmark = pytest.mark.campaign

# without the -- torchrun takes --start for its own --start-method
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--")
DATES = ("--start", "2001-01-06", "--stop", "2001-01-12", "--every", "48h")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    data = weather(steps=60)
    spec = spec_of(data)
    save(folder / "checkpoint.safetensors", spec, network(spec).state_dict(), {})
    write_dataset(folder / "analysis.zarr", data, data.attrs)
    data["2m_temperature"][22] = np.nan
    write_dataset(folder / "spoiled.zarr", data, data.attrs)
    return folder


def forecast(folder: Path, module: tuple[str, ...], analysis: str, out: str, *more: str) -> subprocess.CompletedProcess[str]:
    own = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    words = ("plumecast", "forecast", analysis, "--checkpoint", "checkpoint.safetensors", "--days", "2", "--members", "40")
    return subprocess.run(
        [sys.executable, "-m", *module, *words, *DATES, "--no-gate", "--out", out, *more], cwd=folder, capture_output=True,
        text=True, check=False, timeout=900, env=environment | {"PLUMECAST_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_two_ranks_make_the_bytes_of_one_process_and_one_of_them_publishes(job: Path) -> None:
    assert forecast(job, (), "analysis.zarr", "alone.zarr").returncode == 0
    done = forecast(job, TORCHRUN, "analysis.zarr", "shared.zarr")
    assert done.returncode == 0, done.stderr
    assert contents(job / "shared.zarr") == contents(job / "alone.zarr")
    assert not partial_path(job / "shared.zarr").exists()
    assert done.stdout.count("next: plumecast verify shared.zarr") >= 1
    again = forecast(job, TORCHRUN, "analysis.zarr", "shared.zarr")
    assert again.returncode == 0, again.stderr


def test_nodes_with_several_ranks_each_take_a_share(job: Path) -> None:
    for node in ("2/2", "1/2"):
        assert not is_store(job / "nodes.zarr")
        done = forecast(job, TORCHRUN, "analysis.zarr", "nodes.zarr", "--share", node)
        assert done.returncode == 0, done.stderr
    assert is_store(job / "nodes.zarr")


def test_a_rank_that_fails_fails_all_and_nothing_is_published(job: Path) -> None:
    done = forecast(job, TORCHRUN, "spoiled.zarr", "spoiled_forecast.zarr")
    assert done.returncode != 0
    assert "not finite" in done.stderr
    assert not is_store(job / "spoiled_forecast.zarr")
