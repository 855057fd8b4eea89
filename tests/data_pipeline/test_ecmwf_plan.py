"""Which cycle is whole, and what is said where one is not: every missing field by name, and whether waiting helps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("ecmwf.opendata", reason="needs the extra live: pip install plumecast[live]")

from data_pipeline.errors import InputError, NotReadyError
from data_pipeline.schema import Channel
from data_pipeline.sources.ecmwf_plan import Wanted, latest_cycle
from tests.data_pipeline.open_data_server import FRAMES, INIT, NOW, WANTED, OpenData, opened, path_of


@pytest.fixture
def data() -> Iterator[OpenData]:
    with OpenData() as server:
        yield server


def test_latest_is_the_newest_cycle_with_every_field(data: OpenData) -> None:
    data.publish_frames("2026-11-24T12", "2026-11-25T00", "2026-11-25T12")
    assert latest_cycle(WANTED, data.client(), now=NOW) == pd.Timestamp("2026-11-25T12")
    data.publish("2026-11-26T00", without=["t850"])  # half there
    data.publish("2026-11-25T12", 12)
    assert latest_cycle(WANTED, data.client(), now=NOW) == pd.Timestamp("2026-11-25T12")
    data.publish("2026-11-26T00")
    assert latest_cycle(WANTED, data.client(), now=NOW) == INIT
    assert latest_cycle(WANTED, data.client(), now=NOW, hours=(12,)) == pd.Timestamp("2026-11-25T12")
    data.files.pop(path_of("2026-11-25T12", 12) + ".index")  # the precipitation of the last frame
    lines: list[str] = []
    assert latest_cycle(WANTED, data.client(lines), now=NOW) == pd.Timestamp("2026-11-25T12")
    assert "2026-11-26T00 is not whole: total_precipitation at step 12 of 2026-11-25T12 is not there" in lines


def test_an_index_that_is_being_written_is_not_there_yet(data: OpenData) -> None:
    data.publish_frames("2026-11-25T00", "2026-11-25T12", *FRAMES)
    whole = data.files[path_of("2026-11-26T00", 0) + ".index"]
    server = data.client()
    data.files[path_of("2026-11-26T00", 0) + ".index"] = whole[:-20]
    assert latest_cycle(WANTED, server, now=NOW) == pd.Timestamp("2026-11-25T12")
    data.files[path_of("2026-11-26T00", 0) + ".index"] = whole
    assert latest_cycle(WANTED, server, now=NOW) == INIT


def test_latest_looks_back_two_days_and_then_says_what_the_newest_due_cycle_lacks(data: OpenData) -> None:
    data.publish_frames("2026-11-22T12", "2026-11-23T00")
    with pytest.raises(NotReadyError, match="(?s)geopotential_500 at step 0 of 2026-11-25T12 .*normally appears") as caught:
        latest_cycle(WANTED, data.client(), now=NOW)
    assert caught.value.exit_code == 3
    with pytest.raises(InputError, match=r"no cycle at \[3\] UTC"):
        latest_cycle(WANTED, data.client(), now=NOW, hours=(3,))


@pytest.mark.parametrize(
    ("now", "error", "message"),
    [
        ("2026-11-26T05", NotReadyError, "normally appears between 2026-11-26T07 and 2026-11-26T09 UTC, stepwise. Run again"),
        ("2026-11-26T12", NotReadyError, "stepwise, so it is late. Run again"),
        ("2026-12-05T00", InputError, "keeps about 3 days; the mirrors keep every cycle since 2024-03-01: --source aws"),
    ],
)
def test_a_cycle_that_is_not_there_is_told_field_by_field(
    now: str, error: type[Exception], message: str, data: OpenData, tmp_path: Path
) -> None:
    data.publish_frames(FRAMES[0])
    with pytest.raises(error) as caught:
        opened(data, tmp_path, now=pd.Timestamp(now))
    shown = str(caught.value)
    assert message in shown
    assert "\n  - total_precipitation at step 12 of 2026-11-25T12 (no file)" in shown
    assert "\n  - temperature_850 at step 0 of 2026-11-26T00 (no file)" in shown
    assert "2026-11-25T12 (no file)\n  - 2m_temperature at step 0 of 2026-11-26T00 (no file)" in shown, "and only those"
    assert not list(tmp_path.iterdir())
    assert not data.downloads


@pytest.mark.parametrize(
    ("absent", "now", "error", "message"),
    [
        ("t850", NOW, InputError, "are there, but without:\n  - temperature_850 at step 0 of 2026-11-25T12\n"),
        ("tp", NOW, InputError, "are there, but without:\n  - total_precipitation at step 12 of 2026-11-25T00\n"),
        (
            "z",
            NOW,
            InputError,
            "geopotential_at_surface at step 0 of 2026-11-26T00\nname a file that has the static ones",
        ),
        ("z", pd.Timestamp("2026-11-26T07"), NotReadyError, "geopotential_at_surface at step 0 of 2026-11-26T00\n"),
    ],
)
def test_a_field_that_its_file_lacks_is_named(
    absent: str, now: pd.Timestamp, error: type[Exception], message: str, data: OpenData, tmp_path: Path
) -> None:
    data.publish_frames(*FRAMES, without=[absent])
    with pytest.raises(error) as caught:
        opened(data, tmp_path, now=now)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "init", "message"),
    [
        (WANTED, "2026-11-26T03", "2026-11-26T03:00 with 2 frames 12 h apart: ECMWF has analyses at 00, 06, 12 and 18"),
        (replace(WANTED, step_hours=3), "2026-11-26T00", "with 2 frames 3 h apart"),
        (replace(WANTED, channels=(Channel("total_precipitation_1hr"),)), "2026-11-26", "total_precipitation_1hr: the open data"),
        (
            replace(WANTED, channels=(Channel("maximum_2m_temperature_6hr"),)),
            "2026-11-26",
            "maximum_2m_temperature_6hr: the",
        ),
    ],
)
def test_what_the_open_data_never_have_is_refused_before_anything_is_asked(
    wanted: Wanted, init: str, message: str, data: OpenData, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        opened(data, tmp_path, wanted, pd.Timestamp(init))
    assert not data.asked
