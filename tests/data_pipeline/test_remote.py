"""Stores far away: what fails is tried again, what is not there is an error, and nothing of either becomes NaN."""

from __future__ import annotations

import asyncio
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from zarr.core.buffer import default_buffer_prototype

from data_pipeline.errors import InputError, NotReadyError
from data_pipeline.sources import remote
from data_pipeline.sources.weatherbench import identity, open_archive
from tests.data_pipeline import archives
from tests.data_pipeline.archives import CHANNELS, RAIN, check, fine_fields
from tests.data_pipeline.object_server import Fault, ObjectServer, every_third, first_times, serve

pytest.importorskip("aiohttp", reason="needs the extra cloud: pip install plumecast[cloud]")
pytestmark = pytest.mark.usefixtures("waits")


# --- where stores lie, and what is not there


@pytest.mark.parametrize("url", ["{http}/b/nothing.zarr", "/nowhere/nothing.zarr"])
def test_an_address_without_a_store_is_refused(server: ObjectServer, url: str, waits: list[float]) -> None:
    with pytest.raises(InputError, match="holds no zarr store that may be read"):
        open_archive(url.format(http=server.url), CHANNELS)
    assert waits == []


def test_a_bucket_that_refuses_what_is_not_there_is_read(server: ObjectServer) -> None:
    there = {str(path.relative_to(server.root)) for path in server.root.rglob("*")}
    server.fault = lambda number, key: None if key in there else "403"
    check(open_archive(f"{server.url}/b/coarse.zarr", CHANNELS[2:3]), archives.weather())
    with pytest.raises(InputError, match="holds no zarr store that may be read"):
        open_archive(f"{server.url}/b/nothing.zarr", CHANNELS)


@pytest.mark.parametrize("url", ["gopher://me:secret@b/a.zarr", "ftp://me:secret@b/a.zarr", "https://me:secret@[::1/a.zarr"])
def test_an_address_that_is_none_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(InputError, match=r"expected gs://, s3://, http") as caught:
        open_archive(url, CHANNELS)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "path"])
def test_a_missing_chunk_is_an_error_and_never_nan(objects: Path, tmp_path: Path, scheme: str) -> None:
    shutil.copytree(objects / "b" / "fine.zarr", tmp_path / "b" / "fine.zarr")
    (tmp_path / "b" / "fine.zarr" / "2m_temperature" / "5.0.0").unlink()
    with serve(tmp_path) as server:
        url = f"{server.url}/b/fine.zarr" if scheme == "http" else str(tmp_path / "b" / "fine.zarr")
        with pytest.raises(
            InputError, match=r"2m_temperature, 2020-01-02T06:00: .*fine.zarr has no 2m_temperature/5.0.0: a hole"
        ):
            open_archive(url, CHANNELS)["2m_temperature"].load()
        check(open_archive(url, CHANNELS, start="2020-01-02T12"), fine_fields())  # outside of what is asked


def test_a_store_without_consolidated_metadata_needs_a_listing(tmp_path: Path, objects: Path) -> None:
    shutil.copytree(objects / "b" / "coarse.zarr", tmp_path / "a.zarr")
    (tmp_path / "a.zarr" / ".zmetadata").unlink()
    check(open_archive(str(tmp_path / "a.zarr"), CHANNELS), archives.weather())
    with serve(tmp_path) as server, pytest.raises(InputError, match="no consolidated metadata"):
        open_archive(f"{server.url}/a.zarr", CHANNELS)


def test_a_shard_that_says_a_chunk_is_empty_is_believed(tmp_path: Path) -> None:
    data = archives.weather(archives.TIMES[:4])
    data["sea_surface_temperature"][:2] = np.nan
    archives.write_wb2(tmp_path / "a.zarr", data, zarr_format=3, chunks={"time": 1}, write_empty_chunks=False)
    with pytest.raises(InputError, match="a hole in the archive"):
        open_archive(str(tmp_path / "a.zarr"), CHANNELS[3:]).compute()
    surface, sharded = data[["sea_surface_temperature"]], {"shards": (4, 64, 32), "write_empty_chunks": False}
    archives.write_wb2(tmp_path / "b.zarr", surface, zarr_format=3, chunks={"time": 1}, **sharded)
    check(open_archive(str(tmp_path / "b.zarr"), CHANNELS[3:]), surface)


def test_what_is_opened_survives_pickling(server: ObjectServer) -> None:
    found = open_archive(f"{server.url}/b/coarse.zarr", CHANNELS[:1])
    found["geopotential"][:1].load()  # the store is in use
    check(pickle.loads(pickle.dumps(found)), archives.weather())  # noqa: S301


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_buckets_are_read_without_credentials(server: ObjectServer, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gcsfs" if scheme == "gs" else "s3fs", reason="needs the extra cloud: pip install plumecast[cloud]")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    found = open_archive(f"{scheme}://b/coarse.zarr", CHANNELS[2:3], storage={"endpoint_url": server.url})
    check(found, archives.weather())
    assert len(server.chunks) == 5  # three of the field, two static: one request each


# --- damage


def test_a_chunk_cut_short_is_found_though_its_codec_may_not(objects: Path, tmp_path: Path, waits: list[float]) -> None:
    shutil.copytree(objects / "b" / "fine.zarr", tmp_path / "fine.zarr")
    chunk = tmp_path / "fine.zarr" / "2m_temperature" / "5.0.0"
    whole = chunk.stat().st_size
    chunk.write_bytes(chunk.read_bytes()[:-40])
    with pytest.raises(NotReadyError, match=rf"2m_temperature, 2020-01-02T06:00: .*EOFError: {whole - 40} bytes came of {whole}"):
        open_archive(str(tmp_path / "fine.zarr"), CHANNELS)["2m_temperature"].load()
    assert len(waits) == 5


def test_a_chunk_that_does_not_decode_is_named(objects: Path, tmp_path: Path) -> None:
    shutil.copytree(objects / "b" / "format_3.zarr", tmp_path / "a.zarr")
    chunk = tmp_path / "a.zarr" / "2m_temperature" / "c" / "1" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"2m_temperature, 2020-01-06T00:00 .. 2020-01-10T18:00: what is stored does not decode"):
        open_archive(str(tmp_path / "a.zarr"), CHANNELS)["2m_temperature"].load()


# --- a network that fails


@pytest.mark.parametrize("fault", ["503", "reset", "cut"])
def test_reads_that_fail_are_tried_again(server: ObjectServer, waits: list[float], fault: Fault) -> None:
    # a kept connection that breaks once, aiohttp opens again by itself
    server.fault = first_times(2, fault) if fault == "reset" else every_third(fault)
    found = open_archive(f"{server.url}/b/fine.zarr", [*CHANNELS, RAIN])
    check(found, fine_fields())
    assert len(waits) > 25
    assert max(waits) < 8


def test_waits_double_and_are_drawn_from_a_seed(server: ObjectServer, waits: list[float]) -> None:
    server.fault = lambda number, key: "503" if key.endswith("2m_temperature/3.0.0") else None
    for _ in range(2):
        with pytest.raises(NotReadyError, match="503"):
            open_archive(f"{server.url}/b/fine.zarr", CHANNELS)["2m_temperature"][3].load()
    first, second = waits[:5], waits[5:]
    assert first == second
    for place, seconds in enumerate(first):
        assert 0.5 * 2**place <= seconds <= 2**place


def test_a_server_that_keeps_failing_is_given_up_with_the_place_and_the_way_on(server: ObjectServer) -> None:
    server.fault = lambda number, key: "503" if "geopotential/" in key else None
    found = open_archive(f"{server.url}/b/coarse.zarr", CHANNELS, storage={"attempts": 3})
    with pytest.raises(
        NotReadyError, match=r"geopotential, 2020-01-01T00:00 .. 2020-01-05T18:00: .*0.0.0.0 could not be read in 3 att"
    ):
        found["geopotential"][:4].load()
    assert server.chunks == ["b/coarse.zarr/geopotential/0.0.0.0"] * 3
    with pytest.raises(NotReadyError, match="Run the same command again: it continues"):
        found["geopotential"][:4].load()


def test_what_will_not_pass_is_not_tried_again(server: ObjectServer, waits: list[float]) -> None:
    server.fault = lambda number, key: "403" if "2m_temperature/" in key else None
    with pytest.raises(InputError, match=r"2m_temperature, .*403.*check the address"):
        open_archive(f"{server.url}/b/coarse.zarr", CHANNELS)["2m_temperature"].load()
    server.fault = lambda number, key: "404" if "2m_temperature/" in key else None
    with pytest.raises(InputError, match="a hole in the archive"):
        open_archive(f"{server.url}/b/coarse.zarr", CHANNELS)["2m_temperature"].load()
    assert waits == []


def test_a_server_that_does_not_answer_is_not_ready(waits: list[float], tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        url = server.url
    with pytest.raises(NotReadyError, match=r"zarr.json could not be read in 6 attempts, at last: ClientConnectorError"):
        open_archive(f"{url}/b/coarse.zarr", CHANNELS)


def test_a_read_that_hangs_is_ended(waits: list[float], monkeypatch: pytest.MonkeyPatch, objects: Path) -> None:
    async def hang(*arguments: Any) -> None:
        await asyncio.Event().wait()

    store = remote.connect(str(objects / "b" / "coarse.zarr"))
    store.patience = replace(remote.PATIENCE, timeout=0.01, attempts=2)
    monkeypatch.setattr(store._store, "get", hang)
    with pytest.raises(NotReadyError, match="TimeoutError"):
        asyncio.run(store.get("zarr.json", default_buffer_prototype()))
    assert len(waits) == 1


def test_no_more_requests_than_allowed_are_made_at_once(server: ObjectServer) -> None:
    url = f"{server.url}/b/fine.zarr"
    with dask.config.set(num_workers=12):
        open_archive(url, CHANNELS, storage={"requests": 2}).load()
        assert server.most <= 2
    with pytest.raises(InputError, match="expected whole numbers above 0"):
        open_archive(url, CHANNELS, storage={"requests": 0})


# --- identity


def test_days_that_are_added_do_not_make_another_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    archives.write_wb2(path, archives.weather(archives.TIMES[:40]))
    before = identity(str(path))
    shutil.rmtree(path)
    archives.write_wb2(path, archives.weather(archives.TIMES).assign_attrs(valid_time_stop="2020-01-12"))
    assert identity(str(path)) == before
    shutil.move(path, tmp_path / "elsewhere")
    shutil.move(tmp_path / "elsewhere", tmp_path / "deeper" / "a.zarr")
    assert identity(str(tmp_path / "deeper" / "a.zarr")) == before


def test_other_fields_or_another_place_are_another_archive(server: ObjectServer) -> None:
    found = [identity(f"{server.url}/b/{name}.zarr") for name in ("coarse", "fine", "format_3", "arco")]
    assert len({entry["metadata"] for entry in found}) == 4
    assert found[0] == {"url": f"{server.url}/b/coarse.zarr", "metadata": found[0]["metadata"]}


def test_an_address_is_kept_without_its_secrets() -> None:
    assert remote.public("https://user:word@place.org:8080/a/b.zarr/?token=1") == "https://place.org:8080/a/b.zarr"
    assert remote.public("gs://bucket/a.zarr") == "gs://bucket/a.zarr"
    assert remote.public("/somewhere/a.zarr/") == "a.zarr"
