"""`plumecast live`: from the open data to a forecast with the shipped checkpoint, and one clear message where that cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

pytest.importorskip("ecmwf.opendata", reason="needs the extra live: pip install plumecast[live]")

import models
import plumecast
from data_pipeline import open_analysis, open_forecast
from data_pipeline.errors import InputError
from data_pipeline.regrid import regrid
from data_pipeline.sources import ecmwf_plan
from forecast.live import trained_hours
from models.contract import Spec
from tests.data_pipeline.open_data_server import FRAMES, GRID, NOW, OpenData, written


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenData]:
    """A server with all that the shipped checkpoint needs for 2026-11-26T00, at 10:20 of that day."""
    monkeypatch.setattr(ecmwf_plan, "utc_now", lambda: NOW)
    with OpenData() as server:
        server.publish_frames(*FRAMES)
        yield server


@pytest.fixture(scope="module")
def spec() -> Spec:
    return models.load(models.shipped()).spec


def run(*words: object) -> str:
    """The output of a command; errors of the command are raised."""
    result = CliRunner().invoke(plumecast.application(), [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_forecast_starts_from_the_newest_whole_cycle(data: OpenData, work_folder: Path, spec: Spec) -> None:
    shown = run("live", "--init", "latest", "--source", data.url)
    store = Path("runs/live/2026112600/analysis.zarr")
    assert f"next: plumecast forecast {store} --init 2026-11-26T00" in shown
    assert "CC BY 4.0" in shown
    analysis = open_analysis(store)
    height = xr.DataArray(9.80665 * written("gh500", FRAMES[1], 0), GRID.coords(), ("latitude", "longitude"), name="geopotential")
    np.testing.assert_allclose(analysis["geopotential"].sel(level=500)[1], regrid(height, spec.grid), rtol=1e-6)
    run("forecast", store, "--init", "2026-11-26T00", "--members", "2", "--days", "0.5", "--out", "forecast.zarr")
    made = open_forecast("forecast.zarr")
    assert made["geopotential"].sizes["number"] == 2
    assert np.isfinite(made["geopotential"].sel(level=500)).all()
    assert pd.Timestamp(made["valid_time"].values.item()) == pd.Timestamp("2026-11-26T12")


def test_a_second_run_asks_the_server_for_nothing(data: OpenData, tmp_path: Path) -> None:
    words = ("live", "--init", "2026-11-26T00", "--source", data.url, "--out", tmp_path / "analysis.zarr")
    run(*words)
    data.asked.clear()
    assert "next: plumecast forecast" in run(*words)
    assert not data.asked


def test_the_fields_of_the_training_data_can_stand_for_static_ones(data: OpenData, tmp_path: Path, sample: Path) -> None:
    own = sample / "planet_static.nc"
    run("live", "--init", "2026-11-26T00", "--source", data.url, "--out", tmp_path / "analysis.zarr", "--static", own)
    stored = open_analysis(tmp_path / "analysis.zarr")
    with xr.open_dataset(own) as planet:
        np.testing.assert_allclose(stored["geopotential_at_surface"], planet["geopotential_at_surface"], rtol=1e-6)
    assert stored.attrs["static_source"] == dict.fromkeys(("geopotential_at_surface", "land_sea_mask"), "planet_static.nc")


def test_a_dry_run_lists_fields_and_bytes_and_writes_nothing(data: OpenData, work_folder: Path) -> None:
    shown = run("live", "--init", "latest", "--source", data.url, "--dry-run")
    assert "  specific_humidity_850 at step 0 of 2026-11-25T12\n" in shown
    assert "  total_precipitation at step 12 of 2026-11-25T00\n" in shown
    assert "\n18 fields, 0.2 MB\n" in shown
    assert not list(work_folder.iterdir())


def test_a_cycle_that_is_not_there_leaves_with_code_3(
    data: OpenData, work_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLUMECAST_THREADS", "1")
    monkeypatch.setattr("sys.argv", ["plumecast", "live", "--init", "2026-11-26T12", "--source", data.url, "--out", "a.zarr"])
    with pytest.raises(SystemExit) as stopped:
        plumecast.main()
    assert stopped.value.code == 3
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: not there yet on {data.url}:\n")
    assert "  - mean_sea_level_pressure at step 0 of 2026-11-26T12 (no file)\n" in shown
    assert "2026-11-26T12 normally appears between 2026-11-26T19 and 2026-11-26T21 UTC" in shown
    assert "Traceback" not in shown
    assert not list(work_folder.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--init", "yesterday morning"), "expected latest, or a stamp such as 2026-11-26T00"),
        (("--init", "NaT"), "expected latest, or a stamp such as 2026-11-26T00"),
        (("--init", "2026-11-26T01"), "ECMWF has analyses at 00, 06, 12 and 18 UTC only"),
        (("--static", "nowhere.nc"), r"nowhere\.nc not found"),
        (("--source", "nowhere"), "source 'nowhere' is not known"),
    ],
)
def test_wrong_input_is_one_clear_message(words: tuple[str, ...], message: str, data: OpenData, work_folder: Path) -> None:
    with pytest.raises(InputError, match=message):
        run("live", "--source", data.url, *words)
    assert not list(work_folder.iterdir())


def test_a_stamp_with_a_time_zone_is_brought_to_utc(data: OpenData, work_folder: Path) -> None:
    assert "2026112600" in run("live", "--init", "2026-11-26T01+01:00", "--source", data.url, "--dry-run")


def test_latest_takes_the_hours_that_the_checkpoint_was_trained_on(spec: Spec) -> None:
    assert trained_hours(spec) == [0, 12]
    assert trained_hours(replace(spec, step_hours=24, training_period="2000-01-01T12/2006-12-31T12")) == [12]
    assert trained_hours(replace(spec, step_hours=6)) == [0, 6, 12, 18]
