"""Calibration of stored forecasts: fitted on validation dates alone, kept in a file, applied as a second store that says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import forecast
import models
import plumecast
from data_pipeline import open_forecast
from data_pipeline.disk import sha256
from data_pipeline.errors import InputError
from data_pipeline.store import write_dataset
from forecast import calibrated
from forecast.plan import plan_of
from models.checkpoint import save
from models.post_processing import Correction, read_table
from tests import toys

T2M = "2m_temperature"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """analysis.zarr (toy, two a day), a checkpoint, and its calibration by the command."""
    folder = tmp_path_factory.mktemp("job")
    analysis = toys.weather(steps=200)
    write_dataset(folder / "analysis.zarr", analysis)
    spec = toys.spec_of(
        analysis, toys.period(analysis, 0, 79), toys.period(analysis, 84, 150), diagnostic=("total_precipitation_12hr",)
    )
    save(folder / "model.safetensors", spec, toys.network(spec, size=0.1).state_dict(), {"noise_scale": 1.1})
    run(
        "fit-post-processing", folder / "analysis.zarr", "--checkpoint", folder / "model.safetensors", "--inits", "12",
        "--members", "4", "--days", "1.5",
    )  # fmt: skip
    return folder


def run(*words: object) -> str:
    """The output of a command; errors of the command are raised."""
    result = CliRunner().invoke(plumecast.application(), [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_file_says_what_was_fitted_and_on_which_dates(job: Path) -> None:
    table = read_table(job / "model.calibration.nc")
    assert table.attrs["checkpoint_sha256"] == sha256(job / "model.safetensors")
    assert (table.attrs["method"], table.attrs["members"], table.attrs["noise_scale"]) == ("mbm", 4, 1.1)
    first, last = (np.datetime64(stamp) for stamp in table.attrs["validation_period"].split("/"))
    dates = np.array(table.attrs["dates"].split(","), "datetime64[ns]")
    assert dates.size == 12
    assert dates.min() - np.timedelta64(12, "h") >= first, "frames lie in the period too"
    assert dates.max() + np.timedelta64(36, "h") <= last, "and so do valid times"
    assert table["channel"].values.tolist() == ["geopotential_500", T2M, "10m_v_component_of_wind"]
    assert table["log_channel"].values.tolist() == ["total_precipitation_12hr"]
    assert table.attrs["n"] % 12 == 0


def test_raw_and_calibrated_lie_side_by_side_and_the_second_scores_better(job: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw.zarr"
    dates = ("--start", "2001-03-20", "--stop", "2001-04-05", "--count", "8", "--days", "1", "--members", "4")
    run("forecast", job / "analysis.zarr", "--checkpoint", job / "model.safetensors", "--out", raw, *dates)
    before = {file: file.stat().st_mtime_ns for file in raw.rglob("*")}
    shown = run("post-process", raw, "--calibration", job / "model.calibration.nc")
    assert "score with the standard CRPS" in shown
    assert {file: file.stat().st_mtime_ns for file in raw.rglob("*")} == before
    one, two = open_forecast(raw), open_forecast(tmp_path / "raw-calibrated.zarr")
    assert two.attrs["model"] == f"{one.attrs['model']} calibrated (mbm)"
    assert two.attrs["checkpoint_sha256"] == one.attrs["checkpoint_sha256"]
    assert two.attrs["post_processing"].startswith("method mbm, members 4, dates 2001-")
    assert "coupled" in two.attrs["score_with"]
    for coordinate in ("time", "prediction_timedelta", "number"):
        np.testing.assert_array_equal(one[coordinate], two[coordinate])
    truth = toys.weather(steps=200)[T2M].sel(time=one["valid_time"])
    errors = [float(((data[T2M].mean("number") - truth) ** 2).mean()) for data in (one, two)]
    assert errors[1] < errors[0]
    table = read_table(job / "model.calibration.nc")
    plan = plan_of(one)
    fields = forecast.sinks.stack(one.isel(time=3, prediction_timedelta=1), list(plan.channels))
    fields = fields.transpose("number", "channel", ...).values
    made = Correction(table)(plan.leads[1], plan.channels, fields)
    place = [channel.label for channel in plan.channels].index(T2M)
    np.testing.assert_array_equal(two[T2M].isel(time=3, prediction_timedelta=1), made[:, place])
    assert float(two["total_precipitation_12hr"].min()) >= 0


def test_a_calibration_of_something_else_is_refused_with_all_reasons(job: Path) -> None:
    table = read_table(job / "model.calibration.nc")
    generator = models.load(job / "model.safetensors")
    analysis = toys.weather(steps=200)
    init = analysis["time"].values[[160]]
    raw = forecast.sample(generator, analysis, init, days=1, members=2)
    calibrated.check_table(plan_of(raw), table)
    other = raw.assign_attrs(checkpoint_sha256="f" * 64, noise_scale=1.0, post_processing="method mbm")
    longer = other.assign_coords(prediction_timedelta=other["prediction_timedelta"].values + np.timedelta64(10, "D"))
    with pytest.raises(InputError) as error:
        calibrated.check_table(plan_of(longer), table.drop_sel(channel=T2M).assign_coords(longitude=table["longitude"] + 5))
    text = str(error.value)
    assert "the forecast is calibrated already" in text
    assert "checkpoint_sha256: the forecast has ffff" in text
    assert "noise_scale: the forecast has 1.0, the calibration 1.1" in text
    assert "2 of 2 leads were not fitted; fitted are 3 up to 36 h" in text
    assert "longitude 0 to 337.5, the calibration on 16x8 global" in text
    assert "longitude 5 to 342.5" in text
    assert f"the calibration lacks {T2M}" in text


def test_a_calibration_is_that_of_one_step(job: Path, tmp_path: Path) -> None:
    analysis = toys.weather(steps=200)
    spec = toys.spec_of(analysis, toys.period(analysis, 0, 79), toys.period(analysis, 84, 150), intervals=(12, 24))
    path = save(tmp_path / "both.safetensors", spec, toys.network(spec, size=0.1).state_dict(), {})
    run(
        "fit-post-processing", job / "analysis.zarr", "--checkpoint", path, "--inits", "6", "--members", "2", "--days", "2",
        "--step", "24h",
    )  # fmt: skip
    table = read_table(tmp_path / "both.calibration.nc")
    assert (table["prediction_timedelta"].values / np.timedelta64(1, "h")).tolist() == [24, 48]
    init = analysis["time"].values[[160]]
    short, long = (
        forecast.make_plan(models.load(path, step_hours=hours), analysis, init, days=2, members=2, seed=0) for hours in (12, 24)
    )
    calibrated.check_table(long, table)
    with pytest.raises(InputError, match="step_hours: the forecast has 12, the calibration 24"):
        calibrated.check_table(short, table)


def test_too_few_dates_and_no_validation_period_are_refused(job: Path) -> None:
    generator, analysis = models.load(job / "model.safetensors"), toys.weather(steps=200)
    with pytest.raises(InputError, match="a calibration from 3 dates was asked for"):
        calibrated.fit_post_processing(generator, analysis, inits=3)
    with pytest.raises(InputError, match="asked for 12 initialisations; the period .* has 0 complete ones"):
        calibrated.fit_post_processing(generator, analysis.isel(time=slice(0, 80)), inits=12)
    spec = toys.spec_of(analysis, diagnostic=("total_precipitation_12hr",))
    with pytest.raises(InputError, match="one validation period of all checkpoints"):
        calibrated.fit_post_processing([generator, toys.network(spec)], analysis, inits=12)


def test_memory_of_the_fit_is_bounded_by_points_not_by_the_grid(job: Path) -> None:
    generator, analysis = models.load(job / "model.safetensors"), toys.weather(steps=200)
    plan = forecast.make_plan(generator, analysis, analysis["time"].values[100:108], days=1, members=4, seed=0)
    budget = 4 * 4 * 2 * 5 * 8 * 5 * 6  # bytes x channels x leads x bands x dates x (members and truth) x points
    sinks = [calibrated.PairSink(analysis, memory=memory) for memory in (budget, 1 << 30)]
    forecast.run(generator, analysis, plan, sinks)
    assert [sink.points.shape for sink in sinks] == [(5, 8, 6), (5, 8, 16)]
    everything = sinks[1]
    rows = np.sort(everything.points[2, 0] // 16)
    assert set(rows) <= {3, 4}, "the tropical rows"
    raw = forecast.sample(generator, analysis, plan.times, days=1, members=4)[T2M].values
    flat = raw.reshape(*raw.shape[:3], -1)[2, 1, :, everything.points[1, 2]]
    np.testing.assert_array_equal(everything.pairs[1].members[1, 1, 2], flat)
    truth = np.stack([analysis[T2M].sel(time=plan.times + lead) for lead in plan.leads])
    np.testing.assert_allclose(everything.centre[1], truth.mean((0, 1)), rtol=1e-6)
