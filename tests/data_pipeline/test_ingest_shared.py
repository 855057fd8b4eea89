"""Ingest by several hands, or in several goes: threads, processes, clusters, extensions give the same store as one run."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import kept as keeping
from data_pipeline import open_analysis, parts, statistics, store
from data_pipeline import plan as planning
from data_pipeline.errors import InputError, NotReadyError
from data_pipeline.grid import Grid
from data_pipeline.ingest import ingest
from data_pipeline.kept import read_kept
from data_pipeline.quality import measured
from data_pipeline.schema import Channel
from tests.children import contents, start

CHANNELS = ["geopotential_500", "geopotential_850", "2m_temperature", "total_precipitation_6hr"]
TIMES = pd.date_range("2001-01-01", periods=60, freq="6h").delete([17, 18, 41])
LAST = f"{TIMES[-1]:%Y-%m-%dT%H}"

SHARER = """
import json, sys
from pathlib import Path
from data_pipeline import ingest, plan
plan.PART_STAMPS, plan.CHUNK_BYTES = 6, 2000
print("ready", flush=True)
ingest.ingest(json.loads(sys.argv[1]), Path(sys.argv[2]))
"""
HOLDER = """
import pathlib, sys, time
from data_pipeline.disk import Lock
held = Lock(pathlib.Path(sys.argv[1]))
print("ready", flush=True)
time.sleep(120)
"""


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "PART_STAMPS", 6)
    monkeypatch.setattr(planning, "CHUNK_BYTES", 2000)  # 3 stamps


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    draws, grid = np.random.default_rng(3), Grid.named("12x6")
    shape = (len(TIMES), 6, 12)
    data = xr.Dataset(
        {
            "geopotential": (
                ("time", "level", "latitude", "longitude"),
                np.stack([5.5e4 + draws.normal(size=shape), 1.4e4 + draws.normal(size=shape)], axis=1).astype("float32"),
                {"units": "m2 s-2"},
            ),
            "2m_temperature": (
                ("time", "latitude", "longitude"), 280 + draws.normal(size=shape).astype("float32"), {"units": "K"}
            ),
            "total_precipitation_6hr": (
                ("time", "latitude", "longitude"), np.maximum(draws.normal(0, 1e-3, shape), 0).astype("float32"), {"units": "m"}
            ),
        },
        coords={"time": TIMES, "level": ("level", [500, 850], {"units": "hPa"}), **grid.coords()},
    )  # fmt: skip
    path = tmp_path_factory.mktemp("source") / "weather.nc"
    data.to_netcdf(path)
    source = {"path": str(path), "gaps": "allow"}
    return {"name": "test", "source": source, "analysis": {"channels": CHANNELS, "step": "6h", "stop": LAST}}


@pytest.fixture(scope="module")
def whole(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one thread makes of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "PART_STAMPS", 6)
        patch.setattr(planning, "CHUNK_BYTES", 2000)
        patch.setenv("PLUMECAST_THREADS", "1")
        return ingest(recipe, tmp_path_factory.mktemp("whole") / "a.zarr")


def until(recipe: dict[str, Any], stop: str) -> dict[str, Any]:
    return {**recipe, "analysis": {**recipe["analysis"], "stop": stop}}


def test_any_number_of_threads_writes_the_same_bytes(
    recipe: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLUMECAST_THREADS", "5")
    assert contents(ingest(recipe, tmp_path / "a.zarr")) == contents(whole)


def test_processes_that_start_together_share_the_parts_and_one_publishes(
    recipe: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.zarr"
    with start(SHARER, json.dumps(recipe), str(out)) as one, start(SHARER, json.dumps(recipe), str(out)) as other:
        assert [one.wait(), other.wait()] == [0, 0]
    assert contents(out) == contents(whole)
    assert not store.partial_path(out).exists()


def test_a_part_that_a_living_process_holds_is_left_to_it_and_taken_when_it_dies(
    recipe: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.zarr"
    claim = store.partial_path(out) / "claims" / "2001-01-03T00"
    with start(HOLDER, str(claim)) as holder, ThreadPoolExecutor(1) as background:
        working = background.submit(ingest, recipe, out)
        found = None
        while found is None or found[0] < found[1] - 1:
            assert not working.done()
            time.sleep(0.01)
            found = store.progress_of(out)
        assert any(line.startswith(f"process {holder.pid} on ") and line.endswith("(part 2001-01-03T00)") for line in found[2])
        holder.kill()
        assert working.result() == out
    assert contents(out) == contents(whole)


def test_a_writer_alone_does_not_let_others_in(recipe: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "a.zarr"
    with start(HOLDER, str(store.partial_path(out) / "lock")) as holder:
        with pytest.raises(InputError, match=f"written by process {holder.pid}"):
            ingest(recipe, out)
        holder.kill()
    ingest(recipe, out)


def test_a_cluster_writes_the_same_bytes(recipe: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp://", host="127.0.0.1"
    ) as cluster:
        ingest(recipe, tmp_path / "a.zarr", cluster=cluster.scheduler_address)
    assert contents(tmp_path / "a.zarr") == contents(whole)


def test_an_extended_store_is_the_one_made_at_once_and_shares_the_old_chunks(
    recipe: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    out, stop = tmp_path / "a.zarr", "2001-01-09T00"
    ingest(until(recipe, stop), out)
    opened = open_analysis(out)
    before, inodes = opened.load().copy(), {file: (out / file).stat().st_ino for file in contents(out)}
    opened = open_analysis(out)
    with pytest.raises(InputError, match=rf"analysis\.stop: '{stop}' -> '{LAST}'[\s\S]*--extend"):
        ingest(recipe, out)
    assert ingest(recipe, out, extend=True) == out
    assert contents(out) == contents(whole)
    chunk = "2m_temperature/c/0/0/0"
    assert (out / chunk).stat().st_ino == inodes[chunk]
    xr.testing.assert_identical(opened.load(), before)  # the reader of the old store reads on
    assert not store.partial_path(out).exists()
    mtime = (out / "manifest.json").stat().st_mtime_ns
    ingest(recipe, out, extend=True)
    assert (out / "manifest.json").stat().st_mtime_ns == mtime


@pytest.mark.campaign
@pytest.mark.parametrize("parts_made", [0, 2, 4])
def test_an_extension_that_was_stopped_leaves_the_old_store_whole_and_continues(
    recipe: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts_made: int
) -> None:
    out = ingest(until(recipe, "2001-01-07T00"), tmp_path / "a.zarr")
    before = contents(out)
    original, calls = parts.read_block, iter(range(100))

    def failing(*arguments: Any) -> xr.Dataset:
        if next(calls) >= 3 * parts_made:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setenv("PLUMECAST_THREADS", "1")
    monkeypatch.setattr(parts, "read_block", failing)
    with pytest.raises(KeyboardInterrupt):
        ingest(recipe, out, extend=True)
    monkeypatch.setattr(parts, "read_block", original)
    assert contents(out) == before
    assert store.verify_store(out) == []
    ingest(recipe, out, extend=True)
    assert contents(out) == contents(whole)


@pytest.mark.campaign
@pytest.mark.parametrize("left", ["all", "markers", "plan"])
def test_an_extension_killed_while_it_tidied_up_is_finished_and_can_be_extended_again(
    recipe: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    out, longer = ingest(until(recipe, "2001-01-07T00"), tmp_path / "a.zarr"), until(recipe, "2001-01-10T00")
    with monkeypatch.context() as patch:
        patch.setattr("data_pipeline.writer.tidy", lambda _: None)
        ingest(longer, out, extend=True)
    leftover = store.partial_path(out)
    if left == "markers":
        (leftover / "plan.json").unlink()
    if left == "plan":
        shutil.rmtree(leftover / "store")
        shutil.rmtree(leftover / "parts")
    assert store.progress_of(out) is None
    ingest(recipe, out, extend=True)
    assert contents(out) == contents(whole)
    assert not leftover.exists()


def test_a_rerun_tidies_up_after_a_kill(recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("data_pipeline.writer.tidy", lambda _: None)
        out = ingest(recipe, tmp_path / "a.zarr")
    assert store.partial_path(out).exists()
    ingest(recipe, out)
    assert not store.partial_path(out).exists()


def test_another_extension_than_the_one_under_way_names_the_unfinished_one(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ingest(until(recipe, "2001-01-07T00"), tmp_path / "a.zarr")
    with monkeypatch.context() as patch:
        patch.setattr("data_pipeline.writer.StoreWriter.claim", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ingest(until(recipe, "2001-01-10T00"), out, extend=True)
    with pytest.raises(InputError, match=r"a\.zarr\.partial was made by another recipe[\s\S]*remove"):
        ingest(recipe, out, extend=True)


def interrupted(*_: Any, **__: Any) -> bool:
    raise KeyboardInterrupt


def test_an_extension_by_more_files_keeps_what_the_old_ones_gave(recipe: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    with xr.open_dataset(recipe["source"]["path"]) as data:
        data.isel(time=slice(0, 31)).to_netcdf(folder / "a.nc")
        growing = {**recipe, "source": {**recipe["source"], "path": str(folder)}, "analysis": {**recipe["analysis"]}}
        del growing["analysis"]["stop"]
        out = ingest(growing, tmp_path / "a.zarr")
        data.isel(time=slice(31, None)).to_netcdf(folder / "b.nc")
    ingest(growing, out, extend=True)
    xr.testing.assert_equal(open_analysis(out).load(), open_analysis(whole).load())
    (folder / "a.nc").write_bytes((folder / "b.nc").read_bytes())
    with pytest.raises(InputError, match=r"source\.files\.a\.nc: \d+ -> \d+"):
        ingest(growing, out, extend=True)


def test_what_is_no_extension_stays_an_error(recipe: dict[str, Any], tmp_path: Path) -> None:
    out = ingest(until(recipe, "2001-01-07T00"), tmp_path / "a.zarr")
    with pytest.raises(InputError, match="is no beginning of the"):
        ingest(until(recipe, "2001-01-05T00"), out, extend=True)
    assert not store.partial_path(out).exists()
    coarser = {**recipe, "analysis": {**recipe["analysis"], "step": "12h"}}
    with pytest.raises(InputError, match=r"analysis\.step: '6h' -> '12h'"):
        ingest(coarser, out, extend=True)


def test_a_source_that_cannot_be_read_says_what_and_when_and_the_rest_stays(
    recipe: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(data: xr.Dataset, **_: Any) -> xr.Dataset:
        raise OSError("NetCDF: HDF error")

    with monkeypatch.context() as patch:
        patch.setattr(xr.Dataset, "load", broken)
        with pytest.raises(NotReadyError, match=r"geopotential at 2001-01-0.*HDF error[\s\S]*it continues"):
            ingest(recipe, tmp_path / "a.zarr")
    assert contents(ingest(recipe, tmp_path / "a.zarr")) == contents(whole)


@settings(max_examples=25)
@given(first=st.integers(0, 50), length=st.integers(6, 57))
def test_statistics_from_the_parts_are_those_of_a_pass_over_the_store(whole: Path, first: int, length: int) -> None:
    data, kept = open_analysis(whole), read_kept(whole)
    channels = [Channel.parse(label) for label in CHANNELS]
    chosen = data["time"].values[[first, min(first + length, len(TIMES)) - 1]]
    period = (str(chosen[0]), str(chosen[1]))
    steps = (6, 12, 24)
    if period[0] >= period[1] or min(first + length, len(TIMES)) - first < 6:
        return
    expected = statistics.compute(data, channels, period, steps=steps)
    found = statistics.compute(data, channels, period, steps=steps, kept=kept)
    for name in ("mean", "std", "tendency_std", "tendency_std_by_step"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12)
    assert found.attrs == expected.attrs


def test_statistics_of_whole_parts_read_nothing(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(array: xr.DataArray, start: int, stop: int) -> np.ndarray:
        assert stop <= start, f"read {array.name} {start}..{stop}"
        return np.zeros((0, array.sizes.get("level", 1), 6, 12), "float32")

    data, kept = open_analysis(whole), read_kept(whole)
    assert kept is not None
    assert kept.hours == (6, 12, 24)
    monkeypatch.setattr(keeping, "_fields", refuse)
    statistics.compute(data, [Channel("2m_temperature")], (str(TIMES[0]), str(TIMES[-1])), steps=(12, 24), kept=kept)


def test_a_part_that_is_not_as_it_was_noted_is_told(whole: Path) -> None:
    data, kept = open_analysis(whole).load(), read_kept(whole)
    assert kept is not None
    channels = [Channel.parse(label) for label in CHANNELS]
    assert keeping.unlike(kept, measured(data, channels)) == []
    data["2m_temperature"][7, 0, 0] = 300.0
    lines = keeping.unlike(kept, measured(data, channels))
    assert lines
    assert all(line.startswith("2m_temperature, stamps 6 to 11: ") for line in lines)
