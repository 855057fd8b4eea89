"""Published runs are whole, never change, cannot be led astray by names or links, and the last good one always stays."""

from __future__ import annotations

import datetime as dt
import json
import os
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from data_pipeline.errors import InputError, NotReadyError
from forecast import archive, retention
from forecast.archive import Archive, Run
from forecast.retention import Policy, SpaceError

DAY = dt.timedelta(days=1)
START = dt.datetime(2007, 7, 11)


@pytest.fixture
def place(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "archive", "planet")


def stage(place: Archive, name: str = "20070711T00.t1", content: str = "fields") -> Path:
    staged = place.staging / name
    (staged / "forecast.zarr").mkdir(parents=True)
    (staged / "forecast.zarr" / "c0").write_text(content)
    (staged / "log.jsonl").write_text("{}\n")
    return staged


def published(place: Archive, init: dt.datetime, at: dt.datetime | None = None, revision: int = 1, recipe: str = "a") -> Run:
    staged = stage(place, f"{archive.init_name(init)}.t{revision}")
    moment = (at or init).isoformat()
    archive.seal(staged, {"recipe": {"seed": recipe}, "recipe_hash": recipe, "published_at": moment})
    archive.publish(staged, place.run(init, revision))
    archive.point_latest(place)
    found = place.find(init)
    assert found is not None
    return found


def test_a_published_run_says_what_every_byte_is_and_latest_points_to_it(place: Archive) -> None:
    run = published(place, START)
    about = run.manifest()
    assert set(about["files"]) == {"forecast.zarr/c0", "log.jsonl"}
    assert archive.faults_of(run) == []
    assert place.latest() == run
    assert str((place.folder / "latest").readlink()) == "20070711T00"
    assert list(place.staging.iterdir()) == []


@pytest.mark.parametrize("spoil", ["change", "remove", "add", "link", "manifest"])
def test_any_later_change_of_a_run_is_found(place: Archive, spoil: str) -> None:
    run = published(place, START)
    chunk = run.path / "forecast.zarr" / "c0"
    if spoil == "change":
        chunk.write_text("fieldz")
    elif spoil == "remove":
        chunk.unlink()
    elif spoil == "add":
        (run.path / "more").write_text("x")
    elif spoil == "link":
        (run.path / "more").symlink_to("/etc/hostname")
    else:
        (run.path / "manifest.json").write_text("{")
    (fault,) = archive.faults_of(run)
    expected = {
        "change": "bytes differ",
        "remove": "missing",
        "add": "not in the manifest",
        "link": "is a link",
        "manifest": "damaged",
    }
    assert expected[spoil] in fault


def test_a_published_run_is_never_replaced(place: Archive) -> None:
    run = published(place, START)
    before = (run.path / "manifest.json").read_bytes()
    staged = stage(place, content="others")
    archive.seal(staged, {"recipe_hash": "b", "published_at": START.isoformat()})
    with pytest.raises(InputError, match="never replaced"):
        archive.publish(staged, place.run(START))
    assert (run.path / "manifest.json").read_bytes() == before
    assert staged.exists()


def test_a_revision_lies_beside_the_first_and_takes_the_link(place: Archive) -> None:
    first = published(place, START)
    second = published(place, START, revision=2)
    assert first.path.exists()
    assert second.name == "20070711T00.r2"
    assert place.find(START) == place.latest() == second


def test_a_run_published_late_for_an_earlier_date_does_not_take_the_link(place: Archive) -> None:
    newest = published(place, START + DAY)
    published(place, START)
    assert place.latest() == newest


def test_what_is_unfinished_or_a_link_is_not_sealed(place: Archive) -> None:
    staged = stage(place)
    (staged / "forecast.zarr.partial").mkdir()
    (staged / "forecast.zarr.partial" / "lock").write_text("")
    with pytest.raises(InputError, match="unfinished"):
        archive.seal(staged, {})
    other = stage(place, "20070711T12.t1")
    (other / "x").symlink_to(staged)
    with pytest.raises(InputError, match="is a link"):
        archive.seal(other, {})


@pytest.mark.parametrize("name", ["..", "../planet", "a/b", "", "Planet", "-x", "a..b", "x" * 65, "/etc", "a\0b", ".staging"])
def test_names_that_could_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="model"):
        Archive(tmp_path, name)


def test_no_link_below_the_root_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    root = tmp_path / "archive"
    root.mkdir()
    (root / "planet").symlink_to(tmp_path / "elsewhere")
    (root / ".trash").symlink_to(tmp_path / "elsewhere")
    place = Archive(root, "planet")
    for call in (lambda: place.folder, lambda: place.run(START), lambda: place.trash):
        with pytest.raises(InputError, match="is a link"):
            call()


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "archive").symlink_to(tmp_path / "disk")
    assert published(Archive(tmp_path / "archive", "planet"), START).path.exists()


def test_a_link_called_like_a_run_is_no_run(place: Archive) -> None:
    run = published(place, START)
    (place.folder / "20070712T00").symlink_to(run.name)
    (place.folder / "notes").mkdir()
    assert place.runs() == [run]


@pytest.mark.parametrize("text", ["20070711T00", "2007-07-11T00", "2007-07-11T00:00"])
def test_initialisations_are_read(text: str) -> None:
    assert archive.parse_init(text) == START


@pytest.mark.parametrize("text", ["20070711", "2007-07-11T00:30", "2007-13-01T00", "latest", "../x", ""])
def test_other_texts_are_no_initialisations(text: str) -> None:
    with pytest.raises(InputError, match="2007-07-11T00"):
        archive.parse_init(text)


def test_another_recipe_is_shown_with_its_differences(place: Archive) -> None:
    run = published(place, START, recipe="a")
    archive.require_same_recipe(run, {"seed": "a"})
    with pytest.raises(InputError, match=r"seed: 'a' -> 'b'[\s\S]*--force"):
        archive.require_same_recipe(run, {"seed": "b"})


def test_nothing_published_is_not_ready(place: Archive) -> None:
    with pytest.raises(NotReadyError, match="nothing"):
        archive.resolved(place)
    run = published(place, START)
    assert archive.resolved(place) == archive.resolved(place, "20070711T00") == run


def test_quarantine_holds_the_report_and_the_newest_attempt(place: Archive) -> None:
    for attempt in (1, 2):
        aside = archive.set_aside(place, stage(place, f"20070711T00.t{attempt}"), {"reason": f"attempt {attempt}"})
    assert aside == place.quarantine / "20070711T00"
    assert json.loads((aside / "gate.json").read_text())["reason"] == "attempt 2"
    assert place.runs() == []
    assert list(place.trash.iterdir()) == []


def test_retention_keeps_the_newest_the_protected_and_what_readers_hold(place: Archive) -> None:
    runs = [published(place, START + k * DAY) for k in range(8)]
    policy = Policy(keep=2, protected=("20070712T00",), grace=DAY)
    gone = retention.retain(place, policy, runs[-1].init + dt.timedelta(hours=1))
    # a newer run took the link from that of the 16th 25 hours ago
    assert [run.name for run in gone] == ["20070711T00", "20070713T00", "20070714T00", "20070715T00", "20070716T00"]
    assert [run.name for run in place.runs()] == ["20070712T00", "20070717T00", "20070718T00"]
    assert list(place.trash.iterdir()) == []


def test_the_grace_counts_from_when_a_newer_run_came(place: Archive) -> None:
    first = published(place, START, at=START)
    second = published(place, START + DAY, at=START + 30 * DAY)
    policy = Policy(keep=1, grace=DAY)
    assert retention.removable([first, second], second, policy, START + 30.5 * DAY) == []
    assert retention.removable([first, second], second, policy, START + 31 * DAY) == [first]


def test_a_run_with_a_damaged_manifest_stays_and_holds_up_nothing(place: Archive) -> None:
    runs = [published(place, START + k * DAY) for k in range(4)]
    (runs[1].path / "manifest.json").write_text("{")
    (runs[2].path / "manifest.json").unlink()
    assert retention.removable(runs, runs[-1], Policy(keep=1), START + 9 * DAY) == [runs[0]]


def test_an_older_revision_goes_when_its_successor_is_kept(place: Archive) -> None:
    first, second = published(place, START), published(place, START, at=START + DAY, revision=2)
    assert retention.removable(place.runs(), place.latest(), Policy(keep=5), START + 2 * DAY) == [first]
    assert second.path.exists()


@hypothesis.given(
    days=st.lists(st.integers(0, 60), min_size=1, max_size=12, unique=True),
    delays=st.lists(st.integers(0, 40), min_size=12, max_size=12),
    keep=st.integers(1, 5), keep_days=st.integers(0, 20), grace=st.integers(0, 10), now=st.integers(-1000, 1000),
    link=st.integers(0, 11),
)  # fmt: skip
def test_no_clock_and_no_policy_take_the_newest_or_the_linked_run(
    days: list[int], delays: list[int], keep: int, keep_days: int, grace: int, now: int, link: int
) -> None:
    class Told(Run):
        def manifest(self) -> dict[str, str]:
            return {"published_at": (self.init + delays[runs.index(self)] * DAY).isoformat()}

    runs: list[Run] = [Told(START + day * DAY, 1, Path(str(day))) for day in sorted(days)]
    latest = runs[link % len(runs)]
    policy = Policy(keep=keep, days=keep_days, grace=grace * DAY)
    gone = retention.removable(runs, latest, policy, START + now * DAY)
    kept = [run for run in runs if run not in gone]
    assert runs[-1] in kept
    assert latest in kept
    assert set(runs[-keep:]) <= set(kept)
    assert all(run in kept for run in runs if runs[-1].init - run.init <= keep_days * DAY) or not keep_days


def test_a_disk_without_room_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "staging"
    retention.require_space(folder, 1000, 10)
    free = retention.free_bytes(folder)
    with pytest.raises(SpaceError, match="MB free"):
        retention.require_space(folder, int(free / 1.2), 10)
    there = os.statvfs(folder)
    few = os.statvfs_result((*there[:7], 12, *there[8:]))
    monkeypatch.setattr(os, "statvfs", lambda path: few)
    if few.f_files:
        with pytest.raises(SpaceError, match="12 files can still be made"):
            retention.require_space(folder, 1000, 10)
    assert list(folder.iterdir()) == [], "the probe was left"


def test_a_disk_that_cannot_be_written_is_found_by_the_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SpaceError, match="No space left"):
        retention.require_space(tmp_path, 1000, 10)
    assert list(tmp_path.iterdir()) == []
