"""What is told of a schedule: status.json, metrics, a page that no text can break; scores and consistency of past runs."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline import open_analysis, open_forecast
from data_pipeline.errors import InputError, NotReadyError
from data_pipeline.store import write_dataset
from forecast.cycle import source, stages, status, verify, worker
from forecast.cycle.job import Job
from forecast.cycle.page import render, span, took
from forecast.cycle.recipe import AnalysesSection, ScheduleSection
from tests.forecast.cycles import FIRST, HALF_DAY, World
from verification.readout import scores_table
from verification.state import merge, open_state, save

HOUR = dt.timedelta(hours=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Job]]:
    """Five cycles, the third of which had to wait, one whose data never came."""
    world = World(tmp_path_factory.mktemp("toy"))
    job = world.job(
        analyses={"delays": {"2001-01-04T00": "2h"}, "missing": ("2001-01-05T00",)},
        verification={"channels": ("2m_temperature",)},
    )
    for _ in range(40):
        worker.tick(job)
        world.hands.pass_by(3 * HOUR)
    verify.verify(job)
    yield world, job
    job.ledger.close()


def test_the_status_tells_the_latest_run_what_is_next_and_why_cycles_were_late(finished: tuple[World, Job]) -> None:
    _, job = finished
    found = status.write(job)
    assert found == json.loads((job.archive.folder / "status.json").read_text())
    rows = {row["init"]: row for row in found["cycles"]}
    assert rows["20010103T00"]["held_up_by"] == []
    assert rows["20010103T00"]["delay_hours"] == 0
    late = rows["20010104T00"]
    assert 2 <= late["delay_hours"] <= 5
    assert "the analysis of 2001-01-04T00 is not there yet" in late["held_up_by"][0]
    assert rows["20010105T00"]["label"] == "skipped as stale"
    assert found["latest"]["init"] == max(run.name for run in job.archive.runs())
    assert not found["latest"]["old"]
    assert found["running"] is None


def test_a_latest_run_that_newer_cycles_should_have_replaced_is_flagged_old(finished: tuple[World, Job]) -> None:
    world, job = finished
    before = world.hands.now
    world.hands.now += 3 * HALF_DAY
    found = status.collect(job)
    world.hands.now = before
    assert found["latest"]["old"]
    assert "latest run is old" in render(found)


class Page(HTMLParser):
    """Tags and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_asks_for_nothing_and_runs_nothing(finished: tuple[World, Job]) -> None:
    _, job = finished
    page = Page(render(status.collect(job)))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "a"}
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on") or key in ("href", "src")]
    policies = [attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert "In-sample: " in "".join(page.texts)


def test_no_text_of_an_error_becomes_part_of_the_page(finished: tuple[World, Job]) -> None:
    _, job = finished
    found = status.collect(job)
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)> \" ' & {{ 7 * 7 }}"
    found["cycles"][-1] |= {"state": "failed", "label": "failed", "reason": evil, "held_up_by": [evil]}
    found["latest"] |= {"source": evil, "attribution": evil, "grid": evil, "old": True, "old_because": evil}
    found["scorecard"]["channels"]["2m_temperature"]["label"] = evil
    found |= {"model": evil, "name": evil}
    text = render(found)
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert evil.split(' "')[0] in "".join(page.texts)
    assert "49" not in re.findall(r"& (\S+)", "".join(page.texts))


def test_a_page_without_anything_published_is_a_page(tmp_path: Path) -> None:
    world = World(tmp_path)
    job = world.job()
    text = (status.write(job), (job.archive.folder / "status.html").read_text())[1]
    assert "nothing published yet" in text
    job.ledger.close()


def test_a_running_cycle_shows_how_far_it_is(tmp_path: Path) -> None:
    world = World(tmp_path)
    shown: list[dict[str, Any]] = []
    job = world.job()

    def look(job: Job) -> None:
        world.hands.elapsed += 10
        shown.append(status.collect(job)["running"])

    watched = Job(job.recipe, job.ledger, job.clock, on_progress=look)
    worker.tick(watched)
    assert [row["init"] for row in shown] == ["20010103T00"] * len(shown)
    assert shown[0]["stage"] == "forecast"
    assert shown[0]["total"] == 2 * shown[0]["done"] > 0
    assert shown[0]["seconds_left"] == 10
    job.ledger.close()


METRIC = re.compile(r'[a-z_]+\{([a-z_]+="(\\.|[^"\\\n])*",?)+\} -?[0-9.e+-]+')


def test_the_metrics_are_in_the_form_that_prometheus_reads(finished: tuple[World, Job]) -> None:
    _, job = finished
    found = status.collect(job)
    found["model"] = 'pla"net\\\nx'
    status.write_text_metrics(job.archive.folder / "status.prom", found)
    text = (job.archive.folder / "status.prom").read_text()
    assert text.endswith("\n")
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(METRIC.fullmatch(line) for line in samples), samples
    assert {line.partition("{")[0] for line in samples} == set(names)
    assert "plumecast_last_success_timestamp_seconds" in names
    assert "plumecast_verification_crps" in names


def test_the_scorecard_is_that_of_the_merged_states_and_marks_what_is_in_sample(finished: tuple[World, Job]) -> None:
    _, job = finished
    folder = verify.verification_folder(job)
    card = json.loads((folder / "scorecard.json").read_text())
    states = [open_state(path) for path in sorted(folder.glob("*.scores.zarr"))]
    assert card["runs"] == len(states) >= 4
    table = scores_table(merge(states)).sel(channel="2m_temperature")
    own = card["channels"]["2m_temperature"]
    np.testing.assert_allclose(own["crps"], table["crps"].values)
    np.testing.assert_allclose(own["bias"], table["bias"].values)
    # the toy was trained on the first ten analyses, until 5 January 12 UTC
    flagged = [init <= "20010105T12" for init in own["trend"]["inits"]]
    assert own["trend"]["in_sample"] == flagged
    assert card["in_sample"] == sum(flagged)


def test_runs_of_another_layout_are_left_out_of_the_scorecard_and_counted(finished: tuple[World, Job], tmp_path: Path) -> None:
    _, job = finished
    states = sorted(verify.verification_folder(job).glob("*.scores.zarr"))
    for path in states[:3]:
        save(open_state(path), tmp_path / path.name)
    other = open_state(states[3])
    save(other.isel(prediction_timedelta=[0]), tmp_path / states[3].name)
    card = verify.scorecard(tmp_path)
    assert (card["runs"], card["left_out"]) == (1, 3)


def test_a_second_verification_scores_nothing_again(finished: tuple[World, Job]) -> None:
    _, job = finished
    said: list[str] = []
    verify.verify(job, said.append)
    assert said == []


def test_a_run_is_scored_only_when_its_last_valid_time_has_an_analysis(tmp_path: Path) -> None:
    world = World(tmp_path)
    job = world.job()
    worker.tick(job)
    assert verify.verify(job)["runs"] == 0
    world.hands.pass_by(dt.timedelta(hours=23))
    assert verify.verify(job)["runs"] == 0
    world.hands.pass_by(HOUR)
    assert verify.verify(job)["runs"] == 1
    job.ledger.close()


def test_consistency_is_the_change_between_runs_for_the_same_valid_time(finished: tuple[World, Job]) -> None:
    _, job = finished
    older, newer = job.archive.runs()[:2]
    assert newer.init - older.init == HALF_DAY
    found = verify.consistency(job, older, newer)["2m_temperature"]
    assert found["lead_hours"] == [12]
    f = (
        open_forecast(older.path / "forecast.zarr")["2m_temperature"]
        .isel(time=0)
        .sel(prediction_timedelta=np.timedelta64(24, "h"))
    )
    g = (
        open_forecast(newer.path / "forecast.zarr")["2m_temperature"]
        .isel(time=0)
        .sel(prediction_timedelta=np.timedelta64(12, "h"))
    )
    weights = np.cos(np.deg2rad(f["latitude"]))
    assert f["valid_time"].values == g["valid_time"].values
    change = abs(f.mean("number").drop_vars("prediction_timedelta") - g.mean("number").drop_vars("prediction_timedelta"))
    np.testing.assert_allclose(found["mean_change"], [float(change.weighted(weights).mean())], rtol=2e-3)


def test_the_divergence_is_the_integral_between_the_distributions() -> None:
    rng = np.random.default_rng(3)
    f, g = rng.normal(0, 1, 7), rng.normal(1, 2, 5)
    x = np.linspace(-12, 12, 240_001)
    gap = (f[:, None] <= x).mean(axis=0) - (g[:, None] <= x).mean(axis=0)
    plain = float((gap**2).sum() * (x[1] - x[0]))
    spread = [np.abs(one[:, None] - one).mean() / 2 for one in (f, g)]
    fair = plain - spread[0] / 6 - spread[1] / 4  # M / (M - 1) of the mean over all pairs
    np.testing.assert_allclose(verify.divergence(f, g), fair, atol=1e-3)
    assert verify.divergence(np.array([1.0]), np.array([4.0])) == 3.0


def test_the_divergence_of_ensembles_from_one_distribution_is_zero_on_average() -> None:
    rng = np.random.default_rng(4)
    found = verify.divergence(rng.normal(size=(6, 40_000)), rng.normal(size=(9, 40_000)))
    assert abs(found.mean()) < 4 * found.std() / 200
    assert (found < 0).any()


@pytest.mark.parametrize(("hours", "words"), [(0.5, "30 min"), (6.0, "6 h"), (6.5, "6.5 h"), (72, "3.0 days")])
def test_spans_are_said_as_a_person_would(hours: float, words: str) -> None:
    assert span(hours) == words


@pytest.mark.parametrize(("seconds", "words"), [(4.2, "4.2 s"), (42, "42 s"), (240, "4.0 min"), (7200, "2.0 h")])
def test_durations_are_said_as_a_person_would(seconds: float, words: str) -> None:
    assert took(seconds) == words


PLAN = ScheduleSection()
NOW = FIRST + 6 * HOUR


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("source"))


def fetched(world: World, tmp_path: Path, analyses: dict[str, Any], now: dt.datetime = NOW) -> Any:
    spec = stages.loaded(world.recipe().forecast)[0].spec
    section = AnalysesSection.model_validate(analyses)
    return source.fetch(section, PLAN, spec, FIRST, now, tmp_path / "initial.zarr")


def test_a_store_gives_its_frames_and_they_are_kept(world: World, tmp_path: Path) -> None:
    frames = fetched(world, tmp_path, {"kind": "store", "path": world.analysis})
    assert frames["time"].values.tolist() == [
        np.datetime64(FIRST - HALF_DAY, "ns").astype(int),
        np.datetime64(FIRST, "ns").astype(int),
    ]
    data = open_analysis(world.analysis).sel(time=frames["time"])
    np.testing.assert_array_equal(frames["geopotential"].values, data["geopotential"].values)
    again = fetched(world, tmp_path, {"kind": "store", "path": "gone.zarr"})
    assert again.attrs["values_sha256"] == frames.attrs["values_sha256"]


def test_a_store_that_is_not_there_or_too_short_is_waited_for(world: World, tmp_path: Path) -> None:
    with pytest.raises(NotReadyError, match="not there yet"):
        fetched(world, tmp_path, {"kind": "store", "path": tmp_path / "no.zarr"})
    short = open_analysis(world.analysis).isel(time=slice(0, 3)).load()
    write_dataset(tmp_path / "short.zarr", short)
    with pytest.raises(NotReadyError, match="2001-01-03T00"):
        fetched(world, tmp_path, {"kind": "store", "path": tmp_path / "short.zarr"})


@pytest.fixture
def files(world: World, tmp_path: Path) -> Callable[..., Path]:
    """Writes the files of some stamps to a folder."""

    def write(*inits: dt.datetime, **changes: Any) -> Path:
        folder = tmp_path / "files"
        folder.mkdir(exist_ok=True)
        data = open_analysis(world.analysis).load().drop_attrs(deep=False)
        for init in inits:
            one = data.sel(time=[np.datetime64(init, "ns")])
            for name, values in changes.items():
                one[name.removeprefix("_")].attrs["units"] = values
            one.drop_encoding().to_netcdf(folder / f"{init:%Y%m%dT%H}.nc")
        return folder

    return write


def test_a_folder_of_files_is_waited_for_until_the_last_one_is_marked(
    world: World, tmp_path: Path, files: Callable[..., Path]
) -> None:
    analyses = {"kind": "folder", "path": files(FIRST - HALF_DAY), "marker": ".ok"}
    (tmp_path / "files" / f"{FIRST - HALF_DAY:%Y%m%dT%H}.nc.ok").touch()
    with pytest.raises(NotReadyError, match="20010103T00.nc: not there yet"):
        fetched(world, tmp_path, analyses)
    files(FIRST)
    with pytest.raises(NotReadyError, match="20010103T00.nc: not there yet"):
        fetched(world, tmp_path, analyses)
    (tmp_path / "files" / "20010103T00.nc.ok").touch()
    frames = fetched(world, tmp_path, analyses)
    np.testing.assert_array_equal(
        frames["2m_temperature"].values, open_analysis(world.analysis).sel(time=frames["time"])["2m_temperature"].values
    )


def test_files_in_other_units_are_bad_not_late(world: World, tmp_path: Path, files: Callable[..., Path]) -> None:
    folder = files(FIRST - HALF_DAY, FIRST, geopotential="K")
    with pytest.raises(InputError):
        fetched(world, tmp_path, {"kind": "folder", "path": folder})


def test_a_file_that_is_cut_is_bad_not_late(world: World, tmp_path: Path, files: Callable[..., Path]) -> None:
    folder = files(FIRST - HALF_DAY, FIRST)
    path = folder / "20010103T00.nc"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="20010103T00"):
        fetched(world, tmp_path, {"kind": "folder", "path": folder})


def test_a_replay_lets_go_of_each_stamp_in_its_time(world: World, tmp_path: Path) -> None:
    replay = {"kind": "replay", "path": world.analysis, "delays": {"2001-01-03T00": "90m"}}
    with pytest.raises(NotReadyError, match="2001-01-03T00"):
        fetched(world, tmp_path, replay, NOW + 89 * HOUR / 60)
    fetched(world, tmp_path, replay, NOW + 90 * HOUR / 60)
    section = AnalysesSection.model_validate(replay)
    assert source.available(section, PLAN, NOW, None)["time"].values[-1] == np.datetime64(FIRST - HALF_DAY, "ns")
