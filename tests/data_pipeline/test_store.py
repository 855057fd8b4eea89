"""Stores: absent, unfinished or whole; what is damaged is found; nothing is overwritten by another recipe."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import store
from data_pipeline.errors import InputError, NotReadyError, PlumecastError

TIMES = pd.date_range("2001-01-01", periods=10, freq="12h")
BOXES = {"first": slice(0, 4), "second": slice(4, 8), "third": slice(8, 10)}


def fields() -> xr.Dataset:
    values = np.random.default_rng(1).normal(size=(10, 2, 3, 5)).astype("float32")
    values[:2] = np.nan
    coords = {"time": TIMES, "level": [500, 850], "latitude": [-10.0, 0.0, 10.0], "longitude": np.arange(5.0)}
    return xr.Dataset({"temperature": (("time", "level", "latitude", "longitude"), values, {"units": "K"})}, coords=coords)


def template(data: xr.Dataset) -> xr.Dataset:
    blank = store.blank(data.coords, {"temperature": (data["temperature"].dims, {"units": "K"})})
    return blank.assign(land_sea_mask=(("latitude", "longitude"), np.eye(3, 5, dtype="float32")))


def begin(path: Path, recipe: dict[str, Any] | None = None) -> store.StoreWriter:
    return store.create(path, template(fields()), parts=list(BOXES), attrs={"title": "t"}, chunks={"time": 2}, recipe=recipe)


def build(path: Path, recipe: dict[str, Any] | None = None) -> Path:
    with begin(path, recipe) as writer:
        for part, box in BOXES.items():
            writer.write(part, fields().isel(time=box), {"time": box})
        return writer.finish({"quality": {"finite": np.float32(0.5), "worst": float("nan")}})


def test_a_published_store_opens_with_plain_xarray_and_holds_what_was_written(tmp_path: Path) -> None:
    path = build(tmp_path / "a.zarr")
    plain = xr.open_zarr(path)
    xr.testing.assert_equal(plain["temperature"].load(), fields()["temperature"])
    np.testing.assert_array_equal(plain["land_sea_mask"], np.eye(3, 5))
    assert plain.attrs["quality"] == {"finite": 0.5, "worst": None}
    assert not store.partial_path(path).exists()
    assert store.verify_store(path) == []


def test_time_is_hours_since_1900_and_every_coordinate_is_one_chunk_with_a_checksum(tmp_path: Path) -> None:
    group = zarr.open_group(build(tmp_path / "a.zarr"), mode="r")
    assert group["time"].attrs["units"] == "hours since 1900-01-01"
    assert group["time"].dtype == np.int64
    assert group["time"][1] - group["time"][0] == 12
    assert all(group[name].chunks == group[name].shape for name in ("time", "level", "latitude", "longitude"))
    for name in group:
        codecs = [codec["name"] for codec in group[name].metadata.to_dict()["codecs"]]
        assert codecs == ["bytes", "blosc", "crc32c"]
    assert group["temperature"].chunks == (2, 2, 3, 5)
    assert np.isnan(group["temperature"].fill_value)


def test_leads_and_text_come_back_as_they_were(tmp_path: Path) -> None:
    leads = pd.to_timedelta([12, 24, 36], "h")
    coords = {"prediction_timedelta": leads, "cell": ["tropics", "60S-20S"]}
    data = xr.Dataset({"crps": (("prediction_timedelta", "cell"), np.arange(6.0).reshape(3, 2))}, coords=coords)
    opened = store.open_store(store.write_dataset(tmp_path / "s.zarr", data))
    assert opened["prediction_timedelta"].dtype == "timedelta64[ns]"
    assert (opened["prediction_timedelta"].values == leads.to_numpy()).all()
    assert opened["cell"].values.tolist() == ["tropics", "60S-20S"]
    assert float(opened["crps"].sel(cell="60S-20S")[2]) == 5.0
    assert opened["crps"].dtype == np.float64


def test_variables_keep_their_order(tmp_path: Path) -> None:
    data = xr.Dataset({name: ("x", np.zeros(2)) for name in ("z", "a", "m")})
    assert list(store.open_store(store.write_dataset(tmp_path / "s.zarr", data))) == ["z", "a", "m"]


def test_an_unfinished_store_does_not_open_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    with begin(path) as writer:
        writer.write("first", fields().isel(time=BOXES["first"]), {"time": BOXES["first"]})
    assert not path.exists()
    with pytest.raises(NotReadyError, match=r"unfinished \(1 of 3 parts written\)"):
        store.open_store(path)
    with pytest.raises(FileNotFoundError):
        xr.open_zarr(store.partial_path(path))
    partial = store.open_store(path, allow_incomplete=True)["temperature"]
    xr.testing.assert_equal(partial[:4].load(), fields()["temperature"][:4])
    assert partial[4:].isnull().all()


def test_a_chunk_that_no_part_wrote_stops_the_publishing(tmp_path: Path) -> None:
    with begin(tmp_path / "a.zarr") as writer:
        for part, box in BOXES.items():
            held = box if part != "second" else slice(4, 6)
            writer.write(part, fields().isel(time=held), {"time": held})
        with pytest.raises(PlumecastError, match=r"1 chunks are in no part, first temperature/c/3/0/0/0"):
            writer.finish()


def test_finishing_early_is_refused_and_a_later_writer_continues(tmp_path: Path) -> None:
    with begin(tmp_path / "a.zarr") as writer:
        writer.write("second", fields().isel(time=BOXES["second"]), {"time": BOXES["second"]}, note={"seen": np.int64(4)})
        with pytest.raises(PlumecastError, match="2 of 3 parts not written, first first"):
            writer.finish()
    with begin(tmp_path / "a.zarr") as writer:
        assert writer.done == {"second"}
        assert writer.notes == {"second": {"seen": 4}}


def test_a_part_may_take_several_boxes_and_counts_only_when_complete(tmp_path: Path) -> None:
    with begin(tmp_path / "a.zarr") as writer:
        writer.put("first", fields().isel(time=slice(0, 2)), {"time": slice(0, 2)})
        assert writer.done == set()
        writer.put("first", fields().isel(time=slice(2, 4)), {"time": slice(2, 4)})
        writer.complete("first")
        assert writer.done == {"first"}


def test_a_rerun_of_a_finished_store_changes_nothing(tmp_path: Path) -> None:
    path = build(tmp_path / "a.zarr", {"step": "12h"})
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    with begin(path, {"step": "12h"}) as writer:
        assert writer.finished
        assert writer.done == set(BOXES)
        assert writer.finish() == path
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before
    assert store.is_finished(path, {"step": "12h"})
    assert not store.is_finished(tmp_path / "b.zarr", {"step": "12h"})


@pytest.mark.parametrize("finished", [True, False])
def test_another_recipe_is_an_error_that_names_the_difference(tmp_path: Path, finished: bool) -> None:
    path = tmp_path / "a.zarr"
    if finished:
        build(path, {"analysis": {"step": "12h"}})
    else:
        begin(path, {"analysis": {"step": "12h"}}).close()
    with pytest.raises(InputError, match=r"analysis\.step: '12h' -> '24h'"):
        begin(path, {"analysis": {"step": "24h"}})


def test_another_layout_is_an_error(tmp_path: Path) -> None:
    path = build(tmp_path / "a.zarr")
    shorter = template(fields()).isel(time=slice(0, 8))
    with pytest.raises(InputError, match="layout.coords.time"):
        store.create(path, shorter, parts=["first"], attrs={"title": "t"}, chunks={"time": 2})


def test_somebody_elses_folder_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    fields().to_zarr(path, consolidated=False)
    with pytest.raises(InputError, match="not a store of plumecast"):
        begin(path)
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        store.open_store(path)


@pytest.mark.parametrize(
    ("box", "message"), [(slice(1, 4), "cuts chunks of 2"), (slice(0, 3), "cuts chunks of 2"), (slice(2, 4), "time is")]
)
def test_a_box_that_is_not_the_datas_own_is_refused(tmp_path: Path, box: slice, message: str) -> None:
    data = fields().isel(time=box) if message != "time is" else fields().isel(time=slice(0, 2))
    with begin(tmp_path / "a.zarr") as writer, pytest.raises(InputError, match=message):
        writer.write("first", data, {"time": box})


def test_flipped_or_incomplete_data_are_refused(tmp_path: Path) -> None:
    block = fields().isel(time=slice(0, 4))
    with begin(tmp_path / "a.zarr") as writer:
        with pytest.raises(InputError, match="latitude is 10.0 .. -10.0"):
            writer.write("first", block.isel(latitude=slice(None, None, -1)), {"time": slice(0, 4)})
        with pytest.raises(InputError, match="'temperature'.* are missing"):
            writer.write("first", block.rename(temperature="t"), {"time": slice(0, 4)})
        with pytest.raises(InputError, match="not a part"):
            writer.write("fourth", block, {"time": slice(0, 4)})
        assert writer.done == set()


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    with begin(tmp_path / "a.zarr"), pytest.raises(InputError, match=f"written by process {os.getpid()}"):
        begin(tmp_path / "a.zarr")
    begin(tmp_path / "a.zarr").close()


def test_the_lock_of_a_killed_writer_is_taken_over(tmp_path: Path) -> None:
    lock = tmp_path / "a.zarr.partial" / "lock"
    code = f"import time, pathlib; from data_pipeline.disk import Lock; held = Lock(pathlib.Path({str(lock)!r})); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(store.__file__).parents[1]) as other:
        deadline = time.monotonic() + 30
        while not (lock.exists() and lock.read_text()) and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(InputError, match=f"written by process {other.pid}"):
            begin(tmp_path / "a.zarr")
        other.kill()
        other.wait()
        build(tmp_path / "a.zarr")


def test_every_flipped_bit_is_found_by_verify_and_in_chunks_also_by_reading(tmp_path: Path) -> None:
    path = build(tmp_path / "a.zarr")
    draws = np.random.default_rng(5)
    for name, (size, _) in store.read_manifest(path)["files"].items():
        content = (path / name).read_bytes()
        position = int(draws.integers(size))
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(draws.integers(8))
        (path / name).write_bytes(damaged)
        assert store.verify_store(path) == [f"{name}: bytes differ from those written"]
        if name.startswith("temperature/c/"):
            with pytest.raises(ValueError, match="checksum"):
                store.open_store(path)["temperature"].load()
        (path / name).write_bytes(content)
    assert store.verify_store(path) == []


def test_missing_and_foreign_files_are_found(tmp_path: Path) -> None:
    path = build(tmp_path / "a.zarr")
    (path / "temperature/c/0/0/0/0").unlink()
    (path / "notes.txt").write_text("mine")
    assert store.verify_store(path) == ["temperature/c/0/0/0/0: missing", "notes.txt: not in the manifest"]


@pytest.mark.parametrize("file", ["manifest.json", "zarr.json"])
@pytest.mark.parametrize("content", ["{", "[]", "{}", ""])
def test_damaged_metadata_are_named(tmp_path: Path, file: str, content: str) -> None:
    path = build(tmp_path / "a.zarr")
    (path / file).write_text(content)
    with pytest.raises(InputError, match=r"a\.zarr(/manifest\.json)? is damaged"):
        store.open_store(path)


def test_a_chunk_of_missing_values_is_stored_so_that_absence_means_loss(tmp_path: Path) -> None:
    path = build(tmp_path / "a.zarr")
    assert len(list((path / "temperature" / "c").glob("*/0/0/0"))) == 5


def test_a_chunk_lost_before_publishing_stops_the_publishing(tmp_path: Path) -> None:
    with begin(tmp_path / "a.zarr") as writer:
        for part, box in BOXES.items():
            writer.write(part, fields().isel(time=box), {"time": box})
        (store.partial_path(tmp_path / "a.zarr") / "store/temperature/c/3/0/0/0").unlink()
        with pytest.raises(PlumecastError, match="1 chunks have gone, first temperature/c/3/0/0/0"):
            writer.finish()
    assert not (tmp_path / "a.zarr").exists()


def test_what_a_kill_between_publishing_and_tidying_leaves_is_removed(tmp_path: Path) -> None:
    path = build(tmp_path / "a.zarr")
    leftover = store.partial_path(path)
    (leftover / "parts").mkdir(parents=True)
    (leftover / "plan.json").write_text(json.dumps({**store.read_manifest(path), "parts": list(BOXES)}))
    assert store.progress_of(path) is None
    assert begin(path).finished
    assert not leftover.exists()
    assert store.verify_store(path) == []


@settings(max_examples=8)
@given(size=st.integers(1, 9), chunk=st.integers(1, 5), kind=st.sampled_from(["float32", "float64", "int16"]))
def test_chunks_have_the_bytes_that_zarr_would_write(
    tmp_path_factory: pytest.TempPathFactory, size: int, chunk: int, kind: str
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    data = xr.Dataset({"t": (("x", "y"), np.random.default_rng(size).normal(0, 100, (size, 3)).astype(kind))})
    template = xr.Dataset({"t": (("x", "y"), dask.array.zeros((size, 3), dtype=kind))})
    with store.create(folder / "a.zarr", template, parts=["all"], attrs={}, chunks={"x": chunk}) as writer:
        writer.write("all", data, {})
        writer.finish()
    theirs = zarr.open_group(shutil.copytree(folder / "a.zarr", folder / "b.zarr"), mode="r+", use_consolidated=False)["t"]
    theirs[:] = 0
    theirs[:] = data["t"].values
    for file in (folder / "a.zarr" / "t" / "c").rglob("*/0"):
        assert file.read_bytes() == (folder / "b.zarr" / file.relative_to(folder / "a.zarr")).read_bytes()


def test_metadata_are_strict_json(tmp_path: Path) -> None:
    def refuse(text: str) -> None:
        raise AssertionError(text)

    path = build(tmp_path / "a.zarr")
    for file in [path / "manifest.json", path / "zarr.json"]:
        json.loads(file.read_text().replace('"fill_value": NaN', '"fill_value": 0'), parse_constant=refuse)


@pytest.mark.parametrize("parts", [["../evil"], ["a", "a"], [""]])
def test_part_names_that_could_leave_the_folder_are_refused(tmp_path: Path, parts: list[str]) -> None:
    with pytest.raises(InputError, match="part names"):
        store.create(tmp_path / "a.zarr", template(fields()), parts=parts, attrs={})


@settings(max_examples=8)
@given(chunk=st.integers(1, 5), order=st.permutations(range(4)), interrupted=st.integers(0, 4))
def test_any_order_of_parts_with_any_interruption_gives_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, chunk: int, order: list[int], interrupted: int
) -> None:
    folder = tmp_path_factory.mktemp("orders")
    times = pd.date_range("2001-01-01", periods=4 * chunk - 1 if chunk > 1 else 4, freq="6h")
    data = xr.Dataset({"t": ("time", np.arange(float(len(times))))}, coords={"time": times})
    blank = store.blank(data.coords, {"t": (("time",), {})})
    boxes = {f"p{i}": slice(i * chunk, min((i + 1) * chunk, data.sizes["time"])) for i in range(4)}

    def run(path: Path, parts: list[int], *, finish: bool = False) -> None:
        with store.create(path, blank, parts=list(boxes), attrs={}, chunks={"time": chunk}) as writer:
            for part in (f"p{i}" for i in parts):
                if part not in writer.done:
                    writer.write(part, data.isel(time=boxes[part]), {"time": boxes[part]})
            if finish:
                writer.finish()

    for path, first in ((folder / "a.zarr", []), (folder / "b.zarr", order[:interrupted])):
        run(path, first)
        run(path, list(range(4)), finish=True)
    contents = [{file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}
                for path in (folder / "a.zarr", folder / "b.zarr")]  # fmt: skip
    assert contents[0] == contents[1]


def test_files_that_a_kill_while_publishing_left_beside_the_arrays_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    with begin(path) as writer:
        for part, box in BOXES.items():
            writer.write(part, fields().isel(time=box), {"time": box})
        (store.partial_path(path) / "store" / "parts.json").write_text("{}\n")
        assert store.open_store(path, allow_incomplete=True).sizes["time"] == fields().sizes["time"]
        writer.finish(lambda root: ({"size": store.open_tree(root).sizes["time"]}, {"parts.json": {"a": 1}}))
    assert store.verify_store(path) == []
