"""`plumecast cycle`: what it prints, what it leaves with, and that signals end it cleanly."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import plumecast
from data_pipeline.errors import InputError, NotReadyError
from tests.children import ROOT
from tests.forecast.cycles import World


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe file of the toy."""
    world = World(tmp_path_factory.mktemp("toy"))
    path = world.folder / "toy.toml"
    path.write_text(
        f"""
[archive]
root = "{world.folder / "archive"}"
model = "toy"
[analyses]
kind = "replay"
path = "{world.analysis}"
missing = ["2001-01-06T00"]
[forecast]
checkpoints = ["{world.checkpoint}"]
members = 2
days = 1
[verification]
channels = ["2m_temperature"]
"""
    )
    return path


@pytest.fixture(autouse=True)
def _own_signals() -> object:
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def run(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(plumecast.application(), ["cycle", *map(str, words)])
    if isinstance(result.exception, Exception) and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def test_a_schedule_from_the_command_line(recipe: Path) -> None:
    archive = recipe.parent / "archive" / "toy"
    planned = run("run", recipe, "--init", "2001-01-03T00", "--dry-run", "--now", "2001-01-03T06:00")
    assert "2 members x 2 leads" in planned
    assert "0 runs in" in run("list", recipe)
    assert not archive.exists()  # who looks writes nothing
    assert "published" in run("tick", recipe, "--now", "2001-01-03T06:00")
    assert "nothing is due; next: 20010103T12, due at 2001-01-03 18:00" in run("tick", recipe, "--now", "2001-01-03T06:01")
    assert "published already" in run("run", recipe, "--init", "2001-01-03T00", "--now", "2001-01-03T07:00")
    assert "20010103T00.r2" in run("run", recipe, "--init", "2001-01-03T00", "--force", "--now", "2001-01-03T07:00")
    shown = run("status", recipe, "--now", "2001-01-03T08:00")
    assert "latest: 20010103T00.r2, 8 h after its initialisation" in shown
    assert (archive / "status.html").exists()
    scored = run("verify", recipe, "--now", "2001-01-05T00:00")
    assert "1 runs verified" in scored
    assert "2m_temperature +1 d: fair CRPS" in scored
    assert "training" in scored
    listed = run("list", recipe)
    assert "20010103T00.r2" in listed
    assert "latest" in listed
    assert "all files of 2 runs are as published" in run("check", recipe)
    chunks = archive.glob("20010103T00/forecast.zarr/2m_temperature/c/**/*")
    next(path for path in chunks if path.is_file()).write_bytes(b"")
    with pytest.raises(InputError, match="20010103T00/forecast.zarr/2m_temperature.*bytes differ"):
        run("check", recipe)


def test_data_that_are_not_there_leave_with_3(recipe: Path) -> None:
    shown = run("run", recipe, "--init", "2001-01-06T00", "--now", "2001-01-06T06:00", code=3)
    assert "waiting: the analysis of 2001-01-06T00 is not there yet" in shown
    with pytest.raises(NotReadyError):
        run("run", recipe, "--init", "2001-01-06T00", "--now", "2001-01-06T06:00", "--dry-run")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--init", "yesterday"), "2007-07-11T00"),
        (("--init", "2001-01-03T05"), "every 12 h"),
        (("--init", "2001-01-03T00", "--now", "noon"), "expected a time"),
        (("--init", "2001-01-03T00", "--set", "forecast.member=3"), "unknown key"),
    ],
)
def test_wrong_words_are_refused(recipe: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run("run", recipe, *words)


@pytest.mark.campaign
def test_sigterm_ends_serve_with_130_and_releases_everything(recipe: Path) -> None:
    root = recipe.parent / "served"
    code = "import plumecast; plumecast.main()"
    command = [sys.executable, "-c", code, "cycle", "serve", str(recipe), "--set", f"archive.root={root}", "--no-verify"]
    child = subprocess.Popen(
        [*command, "--set", 'clock={start = "2001-01-03T06:00", speed = 1}'], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert child.stdout is not None
    lines = iter(child.stdout.readline, "")
    assert next(lines).startswith("serving")
    assert next(lines) == "published: 20010103T00\n"
    child.send_signal(signal.SIGTERM)
    assert "stopped by SIGTERM" in next(lines)
    assert child.wait() == 130
    child.stdout.close()
    assert (root / "toy" / "20010103T00" / "manifest.json").exists()
    assert not list((root / ".staging" / "toy").iterdir())
