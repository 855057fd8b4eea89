"""`plumecast forecast` and `plumecast baseline`: a small forecast end to end, and one clear message for each wrong input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import models
import plumecast
from data_pipeline import open_forecast
from data_pipeline.disk import sha256
from data_pipeline.errors import InputError
from data_pipeline.store import write_dataset
from forecast import inputs, intention
from forecast.retention import SpaceError
from models.checkpoint import save
from tests import toys
from verification.evaluate import score_store
from verification.readout import scores_table
from verification.state import open_state


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with analysis.zarr (two toy years, two a day) and checkpoint.safetensors."""
    folder = tmp_path_factory.mktemp("job")
    analysis = toys.weather(steps=1462)
    write_dataset(folder / "analysis.zarr", analysis)
    spec = toys.spec_of(analysis, ("2001-01-01T00", "2001-12-31T12"), ("2002-01-01T00", "2002-06-30T12"))
    save(folder / "checkpoint.safetensors", spec, toys.network(spec, size=0.1).state_dict(), {})  # passes the gate
    return folder


def run(*words: object) -> str:
    """The output of a command; errors of the command are raised."""
    result = CliRunner().invoke(plumecast.application(), [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_forecast_then_baselines_at_its_dates(job: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.zarr"
    words = ("forecast", job / "analysis.zarr", "--checkpoint", job / "checkpoint.safetensors", "--out", model)
    dates = ("--start", "2002-07-10", "--stop", "2002-12-10", "--count", "3", "--days", "2", "--members", "4")
    plan = run(*words, *dates, "--dry-run")
    assert "3 initialisations x 4 members x 4 leads" in plan
    assert "48 of a member and a step" in plan
    assert "from 3 steps measured just now" in plan
    assert "would be written" in plan
    assert not model.exists()
    assert str(model) in run(*words, *dates)
    made = open_forecast(model)
    assert dict(made.sizes) | {"level": 1} == {
        "time": 3, "prediction_timedelta": 4, "number": 4, "level": 1, "latitude": 8, "longitude": 16,
    }  # fmt: skip
    for kind, members in (("persistence", 1), ("climatology", 30), ("linear", 50)):
        run("baseline", kind, job / "analysis.zarr", "--like", model)
        baseline = open_forecast(tmp_path / f"{kind}.zarr")
        assert baseline.sizes["number"] >= members
        xr.testing.assert_equal(baseline["valid_time"], made["valid_time"])


def test_two_checkpoints_on_two_devices_make_one_forecast(job: Path, tmp_path: Path) -> None:
    first, second = job / "checkpoint.safetensors", tmp_path / "second.safetensors"
    spec = models.load(first).spec
    save(second, spec, toys.network(spec, seed=9).state_dict(), {})
    words = ("forecast", job / "analysis.zarr", "--init", "2002-07-10", "--days", "1")
    run(
        *words,
        "--members",
        "5",
        "--checkpoint",
        first,
        "--checkpoint",
        second,
        "--device",
        "cpu,cpu",
        "--out",
        tmp_path / "both.zarr",
    )
    both = open_forecast(tmp_path / "both.zarr")
    assert both.attrs["checkpoint_sha256"] == f"{sha256(first)},{sha256(second)}"
    assert both.attrs["model"] == "2 crps"
    run(*words, "--members", "5", "--checkpoint", first, "--out", tmp_path / "one.zarr")
    own = open_forecast(tmp_path / "one.zarr").sel(number=[1, 3, 5])
    np.testing.assert_allclose(both["2m_temperature"].sel(number=[1, 3, 5]), own["2m_temperature"], rtol=1e-5)
    assert float(abs(both["2m_temperature"].sel(number=2) - own["2m_temperature"].sel(number=1)).max()) > 1e-3


def test_networks_in_bfloat16_make_nearly_the_same_forecast_and_it_says_so(job: Path, tmp_path: Path) -> None:
    words = ("forecast", job / "analysis.zarr", "--checkpoint", job / "checkpoint.safetensors", "--init", "2002-07-10")
    for precision in ("float32", "bfloat16"):
        run(*words, "--days", "1", "--members", "3", "--precision", precision, "--out", tmp_path / f"{precision}.zarr")
    exact, low = (open_forecast(tmp_path / f"{precision}.zarr") for precision in ("float32", "bfloat16"))
    assert low.attrs["compute_dtype"] == "bfloat16"
    assert "compute_dtype" not in exact.attrs
    apart = float(abs(low["2m_temperature"] - exact["2m_temperature"]).max())
    assert 0 < apart < 0.05 * float(exact["2m_temperature"].std())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--checkpoint", "nowhere.safetensors", "--init", "2002-07-10"), "checkpoint nowhere.safetensors not found"),
        (("--init", "2031-07-10"), "2 of 2 input times are not in the analysis, first 2031-07-09T12"),
        (("--init", "yesterday morning"), "write stamps as 2007-01-11T00"),
        ((), "give --init"),
        (("--init", "2002-07-10", "--boundary", "truth"), "the checkpoint is global: it has no edge"),
        (("--init", "2002-07-10", "--initial-number", "0"), "give --initial-states too"),
        (("--init", "2002-07-10", "--device", "cuda:9"), "use --device cpu"),
        (("--init", "2002-07-10", "--no-store"), "give --score-against too"),
        (("--init", "2002-07-10", "--event", "> q0.9"), "give --score-against too"),
        (("--init", "2002-07-10", "--member", "5-3"), "expected a number from 1 on, or a range as 11-20"),
        (("--init", "2002-07-10", "--region", "5,6,7"), "expected WEST,EAST,SOUTH,NORTH"),
        (("--init", "2002-07-10", "--output-lead", "13"), "expected hours or days, as 24h or 5d"),
        (("--init", "2002-07-10", "--output-every", "36h"), "none of the leads 12 .. 24 h is a multiple of it"),
        (("--init", "2002-07-10", "--variable", "snow"), "--variable snow: the forecast has"),
    ],
)
def test_wrong_input_is_one_clear_message(job: Path, words: tuple[str, ...], message: str, work_folder: Path) -> None:
    chosen = words if "--checkpoint" in words else ("--checkpoint", str(job / "checkpoint.safetensors"), *words)
    with pytest.raises(InputError, match=message) as caught:
        run("forecast", job / "analysis.zarr", *chosen, "--days", "1", "--members", "2")
    assert caught.value.exit_code == 2
    assert list(work_folder.iterdir()) == [], "a refused forecast left something behind"


def test_an_analysis_that_is_not_there_is_one_clear_message(work_folder: Path) -> None:
    with pytest.raises(InputError, match=r"analysis\.zarr not found"):
        run("baseline", "persistence", "analysis.zarr", "--start", "2002-07-10", "--stop", "2002-07-11")


def test_a_climatology_without_a_known_training_period_asks_for_one(job: Path) -> None:
    with pytest.raises(InputError, match="no training period is known: give --training FIRST LAST"):
        run("baseline", "climatology", job / "analysis.zarr", "--start", "2002-07-10", "--stop", "2002-07-11")


def test_a_second_run_changes_nothing_and_another_seed_shows_the_difference(job: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.zarr"
    words = ("forecast", job / "analysis.zarr", "--checkpoint", job / "checkpoint.safetensors", "--out", out)
    dates = ("--init", "2002-07-10", "--init", "2002-08-10T12", "--days", "1", "--members", "2")
    run(*words, *dates)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    run(*words, *dates)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before
    with pytest.raises(InputError, match=r"recipe\.seed: 0 -> 3") as caught:
        run(*words, *dates, "--seed", "3")
    assert caught.value.exit_code == 2


def test_a_finished_forecast_is_added_to_and_fewer_is_nothing_to_do(job: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "grown.zarr", tmp_path / "whole.zarr"
    words = ("forecast", job / "analysis.zarr", "--checkpoint", job / "checkpoint.safetensors", "--init", "2002-07-10")
    run(*words, "--days", "1", "--members", "2", "--out", out, "--keep-states")
    more = ("--days", "1.5", "--members", "3")
    plan = run(*words, *more, "--out", out, "--dry-run")
    assert "would be extended: members 2 -> 3, leads 2 -> 3; what is there is not made again" in plan
    shown = run(*words, *more, "--out", out, "--keep-states")
    assert "gate: " in shown
    run(*words, *more, "--out", whole)
    grown, made = open_forecast(out), open_forecast(whole)
    xr.testing.assert_identical(grown.drop_attrs().load(), made.drop_attrs().load())
    assert "nothing to do" in run(*words, "--days", "1", "--members", "2", "--out", out)
    assert "holds all of this already" in run(*words, "--days", "1", "--members", "2", "--out", out, "--dry-run")


def test_a_part_of_a_forecast_is_kept(job: Path, tmp_path: Path) -> None:
    words = ("forecast", job / "analysis.zarr", "--checkpoint", job / "checkpoint.safetensors", "--init", "2002-07-10")
    part = ("--variable", "2m_temperature", "--region", "-50,70,-40,60", "--output-every", "24h", "--member", "2-3")
    run(*words, "--days", "1.5", *part, "--out", tmp_path / "part.zarr")
    found = open_forecast(tmp_path / "part.zarr")
    assert list(found.data_vars) == ["2m_temperature"]
    assert found["number"].values.tolist() == [2, 3]
    assert (found["prediction_timedelta"].values / np.timedelta64(1, "h")).tolist() == [24]
    assert found["longitude"].values.tolist() == [-45, -22.5, 0, 22.5, 45, 67.5]


def test_scores_without_a_store(job: Path, tmp_path: Path) -> None:
    words = ("forecast", job / "analysis.zarr", "--checkpoint", job / "checkpoint.safetensors", "--init", "2002-07-10")
    size, scored = (
        ("--days", "1", "--members", "3"),
        ("--score-against", job / "analysis.zarr", "--event", "2m_temperature > 283"),
    )
    shown = run(*words, *size, *scored, "--no-store", "--scores", tmp_path / "s.scores.zarr")
    assert f"next: plumecast report {tmp_path / 's.scores.zarr'}" in shown
    assert [file.name for file in tmp_path.iterdir()] == ["s.scores.zarr"]
    run(*words, *size, "--out", tmp_path / "f.zarr")
    after = score_store(
        tmp_path / "f.zarr", job / "analysis.zarr", tmp_path / "after.scores.zarr", events=["2m_temperature > 283"]
    )
    ours, theirs = (scores_table(state).drop_attrs() for state in (open_state(tmp_path / "s.scores.zarr"), after))
    xr.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=0)


def test_a_full_disk_is_noticed_before_anything_is_made(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intention, "free_bytes", lambda folder: 10_000)
    words = ("forecast", job / "analysis.zarr", "--checkpoint", job / "checkpoint.safetensors", "--init", "2002-07-10")
    with pytest.raises(SpaceError, match=r"0\.0 MB are needed .* 0\.0 MB are free; make room"):
        run(*words, "--days", "1", "--members", "3", "--out", tmp_path / "f.zarr")
    assert list(tmp_path.iterdir()) == []


def test_an_initialisation_without_frames_is_refused_before_weights_are_read(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(inputs, "load", loaded)
    words = ("forecast", job / "analysis.zarr", "--checkpoint", job / "checkpoint.safetensors", "--out", tmp_path / "f.zarr")
    with pytest.raises(InputError, match="2 of 2 input times are not in the analysis"):
        run(*words, "--init", "2031-07-10")


def test_the_command_line_ends_with_the_message_and_code_2(
    job: Path, work_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLUMECAST_THREADS", "1")
    monkeypatch.setattr("sys.argv", ["plumecast", "forecast", str(job / "analysis.zarr"), "--checkpoint", "none.safetensors"])
    with pytest.raises(SystemExit) as stopped:
        plumecast.main()
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: checkpoint none.safetensors not found; train one with `plumecast train RECIPE`")
    assert "Traceback" not in shown
