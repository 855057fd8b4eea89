"""`plumecast data ...`: what a person sees, and the files it leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
import xarray as xr
from typer.testing import CliRunner

from data_pipeline import commands, store
from data_pipeline.errors import InputError, NotReadyError
from data_pipeline.grid import Grid

Run = Callable[..., str]


@pytest.fixture
def run() -> Run:
    app = typer.Typer()
    commands.register(app)
    app.callback()(lambda: None)

    def call(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["data", *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    return call


@pytest.fixture
def recipe(work_folder: Path) -> str:
    """A recipe and its source, two years of daily temperature, in the current folder."""
    times = pd.date_range("2001-01-01", "2002-12-31", freq="24h")
    draws = np.random.default_rng(4).normal(280, 5, size=(len(times), 4, 8))
    coords = {"time": times, **Grid.named("8x4").coords()}
    data = xr.Dataset({"t2m": (("time", "latitude", "longitude"), draws, {"units": "K"})}, coords=coords)
    data.to_netcdf(work_folder / "weather.nc")
    (work_folder / "job.toml").write_text(
        '[source]\npath = "weather.nc"\ndescription = "made up"\n'
        '[analysis]\nchannels = ["2m_temperature"]\nstep = "24h"\n'
        '[periods]\ntraining = ["2001-01-01", "2002-12-31"]\n'
    )
    return "job.toml"


@pytest.mark.parametrize("name", ["ingest", "info", "check", "statistics", "climatology"])
def test_help_begins_with_an_example(run: Run, name: str) -> None:
    lines = [line.strip() for line in run(name, "--help").splitlines() if line.strip()]
    assert lines[1].startswith(f"Example: plumecast data {name}")


def test_the_data_commands_work_one_after_another(run: Run, recipe: str, work_folder: Path) -> None:
    planned = run("ingest", recipe, "--dry-run")
    assert "2001-01-01T00 to 2002-12-31T00, 730 stamps every 24h" in planned
    assert not (work_folder / "runs").exists()

    out = Path("runs/job/analysis.zarr")
    first = run("ingest", recipe)
    assert "ingest: 730/730 stamps" in first
    assert f"{out}: finished" in first
    assert f"next: plumecast data info {out}" in first.splitlines()[-1]

    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    assert f"{out}: already finished by this recipe, nothing to do" in run("ingest", recipe)
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before

    shown = run("info", str(out))
    for text in ("made up", "8x4 global", "every 24h", "2m_temperature", "100 %", "t2m -> 2m_temperature"):
        assert text in shown
    assert "all as written" in run("check", str(out))
    assert "tendency_std" in run("statistics", recipe)
    assert "runs/job/climatology.zarr" in run("climatology", recipe, "--quantile", "0.9")
    table = store.open_store("runs/job/climatology.zarr")
    assert table["2m_temperature_quantile"].dims == ("quantile", "hour", "dayofyear", "latitude", "longitude")
    with pytest.raises(InputError, match=r"window_days: 30 -> 10"):
        run("climatology", recipe, "--quantile", "0.9", "--window-days", "10")


def test_check_finds_a_damaged_chunk(run: Run, recipe: str) -> None:
    run("ingest", recipe)
    chunk = Path("runs/job/analysis.zarr/2m_temperature/c/1/0/0")
    content = bytearray(chunk.read_bytes())
    content[10] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(InputError, match="bytes differ"):
        run("check", "runs/job/analysis.zarr")


@pytest.mark.parametrize("name", ["statistics", "climatology"])
def test_a_damaged_chunk_is_named_by_what_reads_it(run: Run, recipe: str, name: str) -> None:
    run("ingest", recipe)
    chunks = Path("runs/job/analysis.zarr/2m_temperature/c")
    chunk = max(chunks.iterdir(), key=lambda folder: int(folder.name)) / "0/0"  # in no whole part of the period
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=r"2m_temperature, stamps \d+ to .* cannot be read: ValueError: .*checksum"):
        run(name, recipe, "--set", "periods.training=['2001-01-01', '2002-12-30']")


def test_info_takes_the_folder_it_stands_in(run: Run, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run("ingest", recipe)
    monkeypatch.chdir("runs/job/analysis.zarr")
    assert "finished" in run("info", ".")


def test_info_names_a_file_whose_values_are_damaged(run: Run, work_folder: Path) -> None:
    times = pd.date_range("2001-01-01", periods=40, freq="24h")
    draws = np.random.default_rng(4).normal(280, 5, size=(40, 4, 8))
    data = xr.Dataset(
        {"t2m": (("time", "latitude", "longitude"), draws, {"units": "K"})}, {"time": times, **Grid.named("8x4").coords()}
    )
    data.to_zarr(work_folder / "weather.zarr", zarr_format=2)
    chunk = work_folder / "weather.zarr" / "t2m" / "0.0.0"
    chunk.write_bytes(b"junk")
    with pytest.raises(InputError, match=r"weather.zarr: its values cannot be read: .* it is damaged"):
        run("info", "weather.zarr")


def test_what_is_not_there_yet_is_said_with_the_command_that_makes_it(run: Run, recipe: str) -> None:
    with pytest.raises(NotReadyError, match="plumecast data ingest job"):
        run("climatology", recipe)
    with pytest.raises(InputError, match="not found"):
        run("info", "runs/job/analysis.zarr")


def test_without_a_training_period_statistics_and_climatology_say_so(run: Run, recipe: str, work_folder: Path) -> None:
    text = Path(recipe).read_text().replace('training = ["2001-01-01", "2002-12-31"]', "")
    Path(recipe).write_text(text)
    run("ingest", recipe)
    for name in ("statistics", "climatology"):
        with pytest.raises(InputError, match="no training period"):
            run(name, recipe)


def test_a_climatology_of_two_months_says_what_is_missing(run: Run, recipe: str) -> None:
    run("ingest", recipe, "--set", "analysis.stop=2001-02-28")
    with pytest.raises(InputError, match=r"at least one full year.*2001-01-01\.\.2001-02-28"):
        run("climatology", recipe)
