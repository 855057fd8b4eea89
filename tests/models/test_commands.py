"""`plumecast train`: the plan, the checkpoint, the second run, and one clear message for what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import models
from data_pipeline.errors import InputError, NotReadyError
from data_pipeline.store import write_dataset
from models import commands
from tests.toys import weather

Run = Callable[..., str]

RECIPE = """
[periods]
training = ["2001-01-01T00", "2001-01-20T12"]
validation = ["2001-01-22T00", "2001-01-31T12"]
[model]
diagnostic = ["total_precipitation_12hr"]
forcings = ["season", "land_sea_mask"]
[model.options]
widths = [8, 8]
blocks = 1
patch = 1
[training]
validate_every = 2
validation_inits = 2
validation_members = 2
validation_steps = 2
[[training.stages]]
name = "crps"
iterations = 4
batch = 2
rate = 1e-3
final_rate = 1e-4
"""


@pytest.fixture
def run(work_folder: Path) -> Run:
    """A recipe and its analysis in the current folder, and `plumecast train`."""
    app = typer.Typer()
    commands.register(app)
    app.callback()(lambda: None)
    (work_folder / "job.toml").write_text(RECIPE)
    data = weather(steps=70)
    write_dataset(work_folder / "runs" / "job" / "analysis.zarr", data, data.attrs)

    def call(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["train", *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    return call


def test_plan_train_and_a_second_run_that_does_nothing(run: Run) -> None:
    out = Path("runs/job")
    plan = run("job.toml", "--dry-run")
    assert "4 channels on 16x8 global" in plan
    assert "training period 2001-01-01T00/2001-01-20T12, 40 analyses, step 12 h" in plan
    assert "crps: 4 updates of 2 samples x 2 members x 1 steps = 16 network passes" in plan
    assert not (out / "training").exists()

    first = run("job.toml")
    assert "4/4 crps" in first
    assert "fair CRPS / tendency std" in first
    assert first.splitlines()[-1].startswith(f"next: plumecast forecast {out / 'analysis.zarr'} --checkpoint")
    generator = models.load(out / "checkpoint.safetensors")
    assert generator.spec.diagnostic == ("total_precipitation_12hr",)
    assert generator.spec.validation_period == "2001-01-22T00/2001-01-31T12"
    assert generator.provenance["recipe"]["name"] == "job"

    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    run("job.toml")
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before


def test_another_setting_at_the_same_place_shows_the_difference_and_elsewhere_it_trains(run: Run) -> None:
    run("job.toml")
    with pytest.raises(InputError, match=r"training\.seed: 0 -> 5") as error:
        run("job.toml", "--set", "training.seed=5")
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.epochs=3", r"training\.epochs: unknown key"),
        ("model.options.depth=3", r"model\.options\.depth: unknown key"),
        ("model.forcings=['moon']", "forcing moon is not known"),
        ("model.forcings=['geopotential']", "forcing geopotential is not known"),
        ("model.diagnostic=['snowfall']", r"model\.diagnostic names snowfall"),
        ("model.family=oracle", "model family 'oracle' is not known"),
        ("model.options.widths=[8, 8, 8, 8, 8, 8]", "16 longitudes around the globe are not a multiple of 32"),
        ("periods.validation=['2001-01-15', '2001-01-31']", "training and validation periods overlap"),
        ("periods.validation=['2005-01-15', '2005-01-31']", "no analyses in 2005-01-15T00/2005-01-31T00; the analysis holds 70"),
        ("training.validation_steps=30", "no sample of 2 frames and 30 steps"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(run: Run, setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        run("job.toml", "--set", setting)
    assert error.value.exit_code == 2
    assert not Path("runs/job/checkpoint.safetensors").exists()


def test_without_periods_it_says_what_is_missing(run: Run) -> None:
    text = Path("job.toml").read_text()
    Path("bare.toml").write_text(text[text.index("[model]") :])
    with pytest.raises(InputError, match=r"no periods\.training and no periods\.validation, and the analysis holds 70 stamps"):
        run("bare.toml", "--out", "runs/job")


def test_without_an_analysis_or_a_device_it_says_so(run: Run) -> None:
    with pytest.raises((InputError, NotReadyError), match=r"nowhere/analysis\.zarr"):
        run("job.toml", "--out", "nowhere")
    with pytest.raises(InputError, match="device 'cuda:7' cannot be used here"):
        run("job.toml", "--device", "cuda:7")
    with pytest.raises(InputError, match=r"recipe none\.toml not found"):
        run("none.toml")


def test_help_begins_with_an_example(run: Run) -> None:
    lines = [line.strip() for line in run("--help").splitlines() if line.strip()]
    assert lines[1].startswith("Train a generator")
    assert any(line.startswith("Example: plumecast train") for line in lines[:4])
