"""Files from the open-data server: the real client against a loopback server that cuts, refuses and lies."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("ecmwf.opendata", reason="needs the extra live: pip install plumecast[live]")

from data_pipeline.errors import InputError, NotReadyError
from data_pipeline.sources import ecmwf_server
from data_pipeline.sources.ecmwf_plan import fields
from data_pipeline.sources.ecmwf_server import Server
from tests.data_pipeline.open_data_server import FRAMES, INIT, PARAMS, WANTED, OpenData, message, path_of, written


@pytest.fixture
def data() -> Iterator[OpenData]:
    with OpenData() as server:
        yield server


def check_files(folder: Path) -> None:
    """The folder holds the messages of WANTED at INIT, each as it is on the server, and nothing else."""
    expected = [
        message(PARAMS[name], written(name, cycle, step), cycle, step)
        for cycle, step, names in (
            ("2026-11-25T00", 12, ("tp",)), ("2026-11-25T12", 12, ("tp",)),
            ("2026-11-25T12", 0, ("2t", "gh500", "t850")), ("2026-11-26T00", 0, ("2t", "z", "lsm", "gh500", "t850")),
        )
        for name in names
    ]  # fmt: skip
    found = b"".join(path.read_bytes() for path in folder.iterdir())
    assert len(found) == sum(map(len, expected))
    assert all(packed in found for packed in expected)


@pytest.mark.parametrize("cycle", ["2026-05-11T06", "2026-05-11T12", "2026-05-11T18", "2026-05-12T06", "2026-11-26T18"])
def test_files_are_where_the_client_itself_looks_for_them(cycle: str, data: OpenData) -> None:
    from ecmwf.opendata import Client

    stamp = pd.Timestamp(cycle)
    own = Client(data.url)._get_urls(date=f"{stamp:%Y%m%d}", time=stamp.hour, step=12, type="fc", param="tp").urls
    assert own == [f"{data.url}/{ecmwf_server._path(stamp, 12)}.grib2"]


def test_a_body_that_is_cut_is_fetched_again(data: OpenData, tmp_path: Path) -> None:
    data.publish_frames(*FRAMES)
    data.fail("20261126000000-0h-oper-fc.grib2", times=2)
    lines: list[str] = []
    data.client(lines).fetch(fields(WANTED, INIT), tmp_path)
    check_files(tmp_path)
    assert [line[-10:] for line in lines if "; try" in line] == ["try 2 of 6", "try 3 of 6"]


def test_several_ranges_of_a_mirror_that_gives_one_at_a_time(data: OpenData, tmp_path: Path) -> None:
    data.product = "AmazonS3"
    data.publish_frames(*FRAMES)
    data.client().fetch(fields(WANTED, INIT), tmp_path)
    check_files(tmp_path)


@pytest.mark.parametrize("part", [".index", ".grib2"])
def test_a_busy_server_is_asked_again_with_longer_and_longer_waits(part: str, data: OpenData, tmp_path: Path) -> None:
    data.publish_frames(*FRAMES)
    data.fail(part, times=3, status=503)
    waits: list[float] = []
    Server(data.url, wait=waits.append).fetch(fields(WANTED, INIT), tmp_path)
    check_files(tmp_path)
    assert waits == [5, 10, 20]


def test_a_server_that_does_not_answer_is_given_up_with_code_3(data: OpenData) -> None:
    silent = OpenData()
    silent._server.server_close()
    with pytest.raises(NotReadyError, match=r"(?s)gave up after 6 tries.*name another --source") as caught:
        silent.client().gaps(fields(WANTED, INIT))
    assert caught.value.exit_code == 3
    data.publish_frames(*FRAMES)
    data.fail(".index", times=1, status=403)
    with pytest.raises(InputError, match="the server refuses, 403"):
        data.client().gaps(fields(WANTED, INIT))
    with pytest.raises(InputError, match="source 'nowhere' is not known"):
        Server("nowhere")


@pytest.mark.parametrize("lie", ["another field", "another date", "one field too many", "cut"])
def test_a_server_that_sends_something_else_is_never_believed(lie: str, data: OpenData, tmp_path: Path) -> None:
    data.publish_frames(*FRAMES)
    path = path_of("2026-11-26T00", 0)
    lines = [json.loads(line) for line in data.files[path + ".index"].splitlines()]
    place = next(i for i, line in enumerate(lines) if line["param"] == "gh" and line["levelist"] == "500")
    if lie == "another field":
        lines[place] |= {key: lines[place + 1][key] for key in ("_offset", "_length")}
    elif lie == "another date":
        old = message(PARAMS["gh500"], written("gh500", "2026-11-25T00", 0), "2026-11-25T00", 0)
        lines[place] |= {"_offset": len(data.files[path + ".grib2"]), "_length": len(old)}
        data.files[path + ".grib2"] += old
    elif lie == "one field too many":
        lines[place]["_length"] += lines[place + 1]["_length"]
    else:
        lines[place]["_length"] -= 7
    data.files[path + ".index"] = "\n".join(map(json.dumps, lines)).encode()
    with pytest.raises(NotReadyError, match="1 pl fields.*gave up after 6 tries"):
        data.client().fetch(fields(WANTED, INIT), tmp_path)
    assert not list(tmp_path.glob("2026112600-0h-pl-*.grib2"))


def test_a_download_that_was_damaged_on_the_disk_comes_again(data: OpenData, tmp_path: Path) -> None:
    data.publish_frames(*FRAMES)
    data.client().fetch(fields(WANTED, INIT), tmp_path)
    file = sorted(tmp_path.iterdir())[0]
    file.write_bytes(file.read_bytes()[:-100])
    data.asked.clear()
    data.client().fetch(fields(WANTED, INIT), tmp_path)
    check_files(tmp_path)
    assert len(data.downloads) == 1


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ecmwf.opendata", None)
    with pytest.raises(InputError, match=r"pip install plumecast\[live\]"):
        Server()
