"""Several writers of one store: at whatever moment one of them publishes it, the others find it published and end well."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from data_pipeline import chunks, manifest, store
from data_pipeline.disk import Lock

PARTS = ("p0", "p2", "p4")


def fields(size: int) -> xr.Dataset:
    return xr.Dataset({"v": ("x", np.arange(size, dtype="float32"))}, coords={"x": np.arange(float(size))})


def begin(path: Path, size: int = 6, extends: dict[str, Any] | None = None) -> store.StoreWriter:
    empty = store.blank({"x": fields(size)["x"].values}, {"v": (("x",), {})})
    return store.create(
        path, empty, parts=PARTS[: size // 2], attrs={}, chunks={"x": 2}, recipe={"size": size}, writers="many", extends=extends
    )


def write(writer: store.StoreWriter, *parts: str) -> None:
    for part in parts:
        assert writer.claim(part)
        box = {"x": slice(int(part[1]), int(part[1]) + 2)}
        writer.write(part, fields(2 * len(writer.parts)).isel(x=box["x"]), box, note=part)


def check(path: Path, *writers: store.StoreWriter) -> None:
    """Every writer ends well, the store is whole, and nothing lies beside it."""
    for writer in writers:
        assert writer.finish() == path
    assert store.verify_store(path) == []
    xr.testing.assert_equal(store.open_store(path).load(), fields(6))
    assert not store.partial_path(path).exists()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[store.StoreWriter, store.StoreWriter]]:
    """Two writers of a store: the first has written all but the last part."""
    with begin(tmp_path / "a.zarr") as one, begin(tmp_path / "a.zarr") as other:
        write(one, *PARTS[:-1])
        yield one, other


def test_a_writer_that_opens_the_store_is_waited_for_before_it_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.zarr"
    with begin(path) as one:
        write(one, *PARTS)
        publishing, reached = threading.Thread(target=one.finish), threading.Event()

        def locking(path: Path) -> Lock:
            reached.set()
            return manifest.preparing(path)

        def slowly(root: Path, template: xr.Dataset) -> dict[str, chunks.Array]:
            publishing.start()
            reached.wait()
            publishing.join(0.5)
            return chunks.open_arrays(root, template)

        monkeypatch.setattr("data_pipeline.writer.preparing", locking)
        monkeypatch.setattr("data_pipeline.writer.open_arrays", slowly)
        with begin(path) as other:
            publishing.join()
            check(path, one, other)


def test_a_store_published_just_before_a_writer_begins_is_found_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zarr"
    with begin(path) as one:
        write(one, *PARTS)

        def late(path: Path) -> Lock:
            one.finish()
            return manifest.preparing(path)

        monkeypatch.setattr(store, "preparing", late)
        with begin(path) as other:
            assert other.finished
            check(path, one, other)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("wait", [False, True])
def test_a_part_of_a_store_published_while_it_is_claimed_is_done(
    pair: tuple[store.StoreWriter, store.StoreWriter], monkeypatch: pytest.MonkeyPatch, moment: str, wait: bool
) -> None:
    one, other = pair

    def late(path: Path, mode: Any) -> Lock:
        monkeypatch.undo()
        write(one, PARTS[-1])
        if moment == "before":
            one.finish()
        lock = Lock(path, mode)
        if moment == "after":
            one.finish()
        return lock

    monkeypatch.setattr("data_pipeline.writer.Lock", late)
    assert not other.claim(PARTS[-1], wait=wait)
    assert other.finished
    check(one.path, one, other)


def test_a_part_whose_marker_has_been_tidied_away_is_done(
    pair: tuple[store.StoreWriter, store.StoreWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    write(one, PARTS[-1])
    original, claimed = shutil.rmtree, []

    def slowly(path: Path, **options: Any) -> None:
        for marker in path.glob("*.json"):
            marker.unlink()
            claimed.append(other.claim(marker.stem))
        original(path, **options)

    monkeypatch.setattr(shutil, "rmtree", slowly)
    one.finish()
    assert claimed == [False] * 3
    monkeypatch.undo()
    check(one.path, one, other)


def test_a_store_may_be_published_as_soon_as_its_last_marker_is_seen(
    pair: tuple[store.StoreWriter, store.StoreWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    original = Path.replace

    def seen(path: Path, target: Path) -> Path:
        found = original(path, target)
        if target.name == "p4.json":
            one.finish()
        return found

    monkeypatch.setattr(Path, "replace", seen)
    write(other, PARTS[-1])
    check(one.path, one, other)


def test_markers_that_go_while_they_are_listed_are_no_error(
    pair: tuple[store.StoreWriter, store.StoreWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    write(one, PARTS[-1])

    def late(path: Path, _: str) -> list[Path]:
        monkeypatch.undo()
        one.finish()
        return [path / name for name in os.listdir(path)]  # noqa: PTH208  as `glob` fails before Python 3.13

    monkeypatch.setattr(Path, "glob", late)
    other.refresh()
    assert other.finished
    check(one.path, one, other)


@pytest.mark.parametrize("extended", [False, True])
def test_what_a_writer_published_and_was_killed_before_tidying_is_published_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extended: bool
) -> None:
    path, extends = tmp_path / "a.zarr", {"size": 4} if extended else None
    if extended:
        with begin(path, 4) as first:
            write(first, *PARTS[:2])
            first.finish()
    with begin(path, extends=extends) as one, begin(path, extends=extends) as other:
        write(one, *PARTS)
        other.refresh()
        with monkeypatch.context() as patch:
            patch.setattr("data_pipeline.writer.tidy", lambda _: None)
            one.finish()
        assert store.partial_path(path).exists()
        check(path, other)


def test_a_store_that_is_extended_while_it_is_opened_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zarr"
    with begin(path, 4) as first:
        write(first, *PARTS[:2])
        first.finish()
    with begin(path, extends={"size": 4}) as one:
        write(one, *PARTS)

        def late(*_: Any, **__: Any) -> xr.Dataset:
            monkeypatch.undo()
            one.finish()
            raise ValueError("cannot reshape array of size 6 into shape (4,)")  # of zarr: metadata of the old one

        monkeypatch.setattr(xr, "open_zarr", late)
        xr.testing.assert_equal(store.open_store(path).load(), fields(6))


def test_somebody_elses_files_beside_a_store_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    with begin(path) as writer:
        write(writer, *PARTS)
        mine = store.partial_path(path) / "notes.txt"
        mine.write_text("mine")
        writer.finish()
    assert begin(path).finished
    assert list(mine.parent.iterdir()) == [mine]


def test_a_lock_makes_its_folder_again_if_that_goes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.mkdir

    def gone(path: Path, **options: Any) -> None:
        monkeypatch.undo()
        original(path)
        with pytest.raises(FileExistsError) as found:
            original(path)
        path.rmdir()
        raise found.value

    monkeypatch.setattr(Path, "mkdir", gone)
    Lock(tmp_path / "folder" / "lock").release()
    assert (tmp_path / "folder" / "lock").is_file()
    with pytest.raises(FileExistsError):
        Lock(tmp_path / "folder" / "lock" / "lock")
