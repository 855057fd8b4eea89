"""Faults while an archive is ingested: a full disk, a source that fails, a flipped byte, a killed worker.

No store that opens and lies; the same command again finishes it, equal to an undisturbed one in every decoded value.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from data_pipeline import chunks, disk, plan, store
from data_pipeline.errors import InputError, NotReadyError, PlumecastError
from data_pipeline.grid import Grid
from data_pipeline.ingest import ingest
from tests.children import contents, start

pytestmark = pytest.mark.campaign

FULL = bool(os.environ.get("PLUMECAST_FULL"))
SEED = int(os.environ.get("PLUMECAST_SEED", "1"))

CHILD = """
import json, resource, signal, sys
from pathlib import Path
from data_pipeline import ingest, plan
from data_pipeline.errors import PlumecastError
plan.PART_STAMPS, plan.CHUNK_BYTES = 4, 40000
print("ready", flush=True)
sys.stderr = sys.stdout  # a test shows what it reads
if len(sys.argv) > 3:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    ingest.ingest(json.loads(sys.argv[1]), Path(sys.argv[2]))
except PlumecastError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
"""


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PART_STAMPS", 4)
    monkeypatch.setattr(plan, "CHUNK_BYTES", 40000)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    draws, grid = np.random.default_rng(9), Grid.named("64x32")
    dims, shape = ("time", "latitude", "longitude"), (40, 32, 64)
    data = xr.Dataset(
        {
            "2m_temperature": (dims, draws.normal(280, 5, shape).astype("float32"), {"units": "K"}),
            "mean_sea_level_pressure": (dims, draws.normal(1e5, 500, shape).astype("float32"), {"units": "Pa"}),
        },
        coords={"time": pd.date_range("2001-01-01", periods=40, freq="12h"), **grid.coords()},
    )
    path = tmp_path_factory.mktemp("source") / "weather.nc"
    data.to_netcdf(path)
    channels = ["2m_temperature", "mean_sea_level_pressure"]
    return {"name": "job", "source": {"path": str(path)}, "analysis": {"channels": channels, "step": "12h"}}


@pytest.fixture(scope="module")
def reference(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "PART_STAMPS", 4)
        patch.setattr(plan, "CHUNK_BYTES", 40000)
        return ingest(recipe, tmp_path_factory.mktemp("reference") / "a.zarr")


def refused(out: Path) -> None:
    """Nothing there opens as a store."""
    assert not out.exists()
    with pytest.raises((InputError, NotReadyError)):
        store.open_store(out)


def completed(recipe: dict[str, Any], out: Path, reference: Path) -> None:
    """The same ingest again gives what an undisturbed one gives."""
    ingest(recipe, out)
    assert store.verify_store(out) == []
    xr.testing.assert_identical(store.open_store(out).load(), store.open_store(reference).load())
    assert contents(out) == contents(reference)


def test_a_disk_that_fills_up_leaves_no_store_and_room_lets_it_continue(
    recipe: dict[str, Any], reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = sum(len(content) for file, content in contents(reference).items() if "/c/" in file)
    for number, share in enumerate(np.random.default_rng(SEED).uniform(0, 0.9, 20 if FULL else 4)):
        room = [int(share * total)]

        def full(path: Path, content: bytes, room: list[int] = room) -> None:
            room[0] -= len(content)
            if room[0] < 0:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.with_name(path.name + ".partial").write_bytes(content[: len(content) // 2])
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            disk.write_bytes(path, content)

        out = tmp_path / f"{number}.zarr"
        with monkeypatch.context() as patch:
            patch.setattr(chunks, "write_bytes", full)
            with pytest.raises(PlumecastError, match=r"No space left on device; what is done stays"):
                ingest(recipe, out)
        refused(out)
        completed(recipe, out, reference)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 200 kB, where this process may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)], check=False, capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("this process may not mount a small filesystem")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_truly_full_disk_leaves_no_store_and_room_lets_it_continue(
    recipe: dict[str, Any], reference: Path, small_disk: Path
) -> None:
    out = small_disk / "a.zarr"
    with start(CHILD, json.dumps(recipe), str(out)) as child:
        assert child.stdout is not None
        message = child.stdout.read()
        assert child.wait() == 1
    assert "No space left on device" in message
    refused(out)
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    completed(recipe, out, reference)


def test_files_that_may_not_grow_leave_no_store(recipe: dict[str, Any], reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.zarr"
    with start(CHILD, json.dumps(recipe), str(out), "20000") as child:
        assert child.stdout is not None
        assert "File too large" in child.stdout.read()
        assert child.wait() == 1
    refused(out)
    completed(recipe, out, reference)


def test_a_source_that_fails_every_third_read_is_ingested_in_the_end(
    recipe: dict[str, Any], reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, goes = itertools.count(1), 0
    original = xr.Dataset.load

    def flaky(data: xr.Dataset, **options: Any) -> xr.Dataset:
        if options and next(reads) % 3 == 0:
            raise RuntimeError("NetCDF: HDF error")
        return original(data, **options)

    out = tmp_path / "a.zarr"
    monkeypatch.setenv("PLUMECAST_THREADS", "1")
    with monkeypatch.context() as patch:
        patch.setattr(xr.Dataset, "load", flaky)
        while not out.exists() and goes < 100:
            goes += 1
            try:
                ingest(recipe, out)
            except NotReadyError:
                refused(out)
    print(f"{goes} goes")
    assert goes > 1
    completed(recipe, out, reference)


def test_a_flipped_byte_is_found_and_does_not_decode(recipe: dict[str, Any], tmp_path: Path) -> None:
    out = ingest(recipe, tmp_path / "a.zarr")
    draws = np.random.default_rng(SEED)
    files = sorted(file for file in contents(out) if "/c/" in file and file.startswith(("2m", "mean")))
    for name in draws.choice(files, len(files) if FULL else 6, replace=False):
        whole = (out / name).read_bytes()
        damaged = bytearray(whole)
        damaged[int(draws.integers(len(whole)))] ^= int(draws.integers(1, 256))
        (out / name).write_bytes(damaged)
        assert store.verify_store(out) == [f"{name}: bytes differ from those written"]
        with pytest.raises(ValueError, match="checksum"):
            store.open_store(out)[name.split("/")[0]].load()
        (out / name).write_bytes(whole)
    assert store.verify_store(out) == []


def test_one_of_two_processes_killed_at_random_leaves_its_parts_to_the_other(
    recipe: dict[str, Any], reference: Path, tmp_path: Path
) -> None:
    draws = np.random.default_rng(SEED)
    for number in range(20 if FULL else 3):
        out = tmp_path / f"{number}.zarr"
        with start(CHILD, json.dumps(recipe), str(out)) as one, start(CHILD, json.dumps(recipe), str(out)) as other:
            try:
                one.wait(timeout=float(draws.uniform(0, 1.5)))
            except subprocess.TimeoutExpired:
                one.send_signal(signal.SIGKILL)
            output, _ = other.communicate()
            assert other.returncode == 0, output
        assert contents(out) == contents(reference)
        assert not store.partial_path(out).exists()


def test_an_extension_killed_at_random_leaves_the_old_store_or_the_new_one(
    recipe: dict[str, Any], reference: Path, tmp_path: Path
) -> None:
    code = CHILD.replace("Path(sys.argv[2]))", "Path(sys.argv[2]), extend=True)")
    short = {**recipe, "analysis": {**recipe["analysis"], "stop": "2001-01-12T12"}}
    longer = {**recipe, "analysis": {**recipe["analysis"], "stop": "2001-01-20T12"}}
    expected = contents(ingest(longer, tmp_path / "expected.zarr"))
    draws = np.random.default_rng(SEED)
    for number in range(20 if FULL else 3):
        out = ingest(short, tmp_path / f"{number}.zarr")
        before = contents(out)
        with start(code, json.dumps(longer), str(out)) as child:
            try:
                child.wait(timeout=float(draws.uniform(0, 1.0)))
            except subprocess.TimeoutExpired:
                child.kill()
        assert contents(out) in (before, expected)
        ingest(longer, out, extend=True)
        assert contents(out) == expected
        assert not store.partial_path(out).exists()


def test_workers_of_a_cluster_in_processes_of_their_own_write_the_same_bytes(
    recipe: dict[str, Any], reference: Path, tmp_path: Path
) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, protocol="tcp://", host="127.0.0.1"
    ) as cluster:
        client = distributed.Client(cluster)
        client.run(_small)
        ingest(recipe, tmp_path / "a.zarr", cluster=cluster.scheduler_address)
        client.close()
    assert contents(tmp_path / "a.zarr") == contents(reference)


def _small() -> None:
    plan.PART_STAMPS, plan.CHUNK_BYTES = 4, 40000
