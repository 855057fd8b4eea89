"""Perturbed initial states: of the size asked, centred on the analysis, in season, in the training period, one by one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import plumecast
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.regrid import regrid
from data_pipeline.schema import channels_of, validate
from data_pipeline.store import open_store, verify_store, write_dataset
from forecast import perturbations
from forecast.initial_states import InitialStates, check_states, write_states
from forecast.perturbations import AnalysisMembers, Differences, Frames, Lagged, Size, states
from forecast.rollout import sample
from models.checkpoint import save
from tests import toys

TRAINING = ("2001-01-01T00", "2002-06-30T12")
STEP, DAY = np.timedelta64(12, "h"), np.timedelta64(24, "h")
INIT = np.datetime64("2002-09-15T12", "ns")
IN_SAMPLE = np.datetime64("2001-09-15T12", "ns")
Z500, RAIN = 0, 3


@pytest.fixture(scope="module")
def analysis() -> xr.Dataset:
    return toys.weather(steps=1462)


@pytest.fixture(scope="module")
def frames(analysis: xr.Dataset) -> Frames:
    return Frames(analysis, tuple(channels_of(analysis)), STEP.astype("m8[ns]"), 2)


def differences(**sizes: float) -> Differences:
    return Differences(TRAINING, Size(sizes or {"geopotential_500": 80.0}), season_days=30, seed=3)


def weights() -> np.ndarray:
    return toys.GLOBE.area_weights


def variance(members: np.ndarray) -> np.ndarray:
    """Area mean of the ensemble variance (over M, not M - 1) of (member, channel, latitude, longitude)."""
    return (members.var(0) * weights()).mean((-2, -1))


def analysis_members(analysis: xr.Dataset, count: int = 5, grid: Grid = toys.GLOBE) -> xr.Dataset:
    """Analyses with an error of their own each, as an archive keeps them: stamps, lead 0, numbers from 0."""
    rng, fields = np.random.default_rng(7), analysis.drop_vars(["geopotential_at_surface", "land_sea_mask"])
    fields = fields.sel(time=slice(INIT - 3 * DAY, INIT))
    one = fields.expand_dims(prediction_timedelta=[np.timedelta64(0, "ns")], axis=1)
    many = [one.map(lambda a: (a * (1 + 1e-3 * rng.normal(size=a.shape))).astype("f4"), keep_attrs=True) for _ in range(count)]
    data = xr.concat(many, dim="number").assign_coords(number=np.arange(count))
    return data.transpose("time", "prediction_timedelta", "number", "level", ...)


def lagged_runs(analysis: xr.Dataset) -> xr.Dataset:
    """Two members, a run every 12 h, 8 leads: the field of a run says its start, its lead and its member."""
    times = INIT - STEP * np.arange(6)[::-1]
    leads = (STEP * np.arange(1, 9)).astype("m8[ns]")
    template = toys.ensemble_of(analysis, INIT, 1, 2, frames=1).isel(time=0, prediction_timedelta=0, drop=True)
    runs = [
        xr.concat([template + np.float32(100 * r + lead) for lead in range(1, 9)], dim="prediction_timedelta") for r in range(6)
    ]
    data = xr.concat(runs, dim="time").assign_coords(time=times, prediction_timedelta=leads)
    order = ["time", "prediction_timedelta", "number", "level", "latitude", "longitude"]
    return data.transpose(*order, missing_dims="ignore").assign_attrs(model="old runs", recipe_hash="f00d")


def test_the_spread_is_what_was_asked(frames: Frames) -> None:
    """rms over pairs of +/- e is the rms of e: to rounding for one size, and for each field with a size of its own."""
    members = np.stack(list(states(differences(), frames, INIT, 8)))[1:, -1].astype("f8")
    np.testing.assert_allclose(variance(members)[Z500], 80.0**2, rtol=1e-5)
    own = differences(geopotential=50.0, **{"2m_temperature": 0.7})
    members = np.stack(list(states(own, frames, INIT, 8)))[1:, -1].astype("f8")
    np.testing.assert_allclose(variance(members)[:2], [50.0**2, 0.7**2], rtol=1e-3)


def test_one_factor_keeps_the_ratios_between_fields(frames: Frames) -> None:
    first, second = differences().pairs(frames, INIT, 1)[0]
    plain = frames.at(first) - frames.at(second)
    made = differences().fields(frames, INIT, 0, frames.at(INIT))
    factors = made[:, :3] / plain[:, :3]
    np.testing.assert_allclose(factors, np.broadcast_to(factors[0, 0, 0, 0], factors.shape), rtol=1e-9)


def test_pairs_recentre_on_the_analysis(frames: Frames) -> None:
    made = list(states(differences(), frames, INIT, 6))
    control = made[0]
    np.testing.assert_array_equal(control, frames.at(INIT).astype("f4"))
    for one, other in zip(made[1::2], made[2::2], strict=True):
        middle = 0.5 * (one.astype("f8") + other)
        assert np.abs(middle - control).max() <= np.spacing(np.abs(control).max())
        assert not np.array_equal(one, other)


def test_rain_stays_positive_and_dry_stays_dry(frames: Frames) -> None:
    made = np.stack(list(states(differences(), frames, INIT, 6)))
    dry = made[0, :, RAIN] == 0
    assert 0.2 < dry.mean() < 0.8
    assert made[:, :, RAIN].min() == 0
    assert (made[:, :, RAIN][:, dry] == 0).all()
    assert variance(made[1:, -1])[RAIN] > 0


def test_members_are_the_same_one_by_one(frames: Frames) -> None:
    few, many = list(states(differences(), frames, INIT, 3)), list(states(differences(), frames, INIT, 12))
    for one, other in zip(few, many, strict=False):
        np.testing.assert_array_equal(one, other)
    seeded = list(states(dataclasses.replace(differences(), seed=4), frames, INIT, 2))
    assert not np.array_equal(seeded[1], few[1])


@pytest.mark.parametrize("init", [INIT, IN_SAMPLE])
def test_dates_are_in_season_in_the_training_period_and_far_from_the_initialisation(frames: Frames, init: np.datetime64) -> None:
    training = TRAINING if init == INIT else ("2001-01-01T00", "2002-12-20T12")
    dates = np.array(dataclasses.replace(differences(), training=training).pairs(frames, init, 40))
    first, last = (np.datetime64(stamp, "ns") for stamp in training)
    assert dates.min() - STEP >= first  # the older frame too
    assert dates.max() <= last
    assert (np.abs(dates[:, 0] - dates[:, 1]) >= 10 * DAY).all()
    assert (np.abs(dates - init) >= 30 * DAY).all()
    assert ((dates - init) % DAY == np.timedelta64(0)).all()
    in_year = np.abs(dates - init) / DAY % perturbations.YEAR_DAYS
    assert np.minimum(in_year, perturbations.YEAR_DAYS - in_year).max() <= 30
    assert len({frozenset(pair) for pair in dates.tolist()}) == 40


def test_a_frame_outside_the_training_period_is_never_used(frames: Frames) -> None:
    kind = Differences(("2001-09-01T12", "2002-06-30T12"), Size({"geopotential_500": 80}), season_days=30)
    assert kind.dates(frames, INIT).min() == np.datetime64(
        "2001-09-02T12", "ns"
    )  # its frame of 00 UTC is inside, that of the 1st not


def test_too_few_dates_are_told_with_their_numbers(frames: Frames) -> None:
    kind = Differences(("2001-09-01", "2001-09-14"), Size({"geopotential_500": -1, "snow": 1}), season_days=30)
    with pytest.raises(InputError) as caught:
        check_states(kind, dataclasses.replace(frames, unperturbed=("hail",)), np.array([INIT, INIT + 400 * DAY]), 50)
    for part in (
        "snow: no such field",
        "-1; it must be above 0",
        "10 pairs",
        "25 are needed",
        "unperturbed hail",
        "stamps of frames",
    ):
        assert part.replace("10 pairs", "pairs of") in str(caught.value)


def test_an_unperturbed_field_is_the_analysis_of_all(frames: Frames) -> None:
    kept = dataclasses.replace(frames, unperturbed=("2m_temperature",))
    made = list(states(differences(), kept, INIT, 3))
    for member in made[1:]:
        np.testing.assert_array_equal(member[:, 1], made[0][:, 1])
        assert not np.array_equal(member[:, 0], made[0][:, 0])


def test_analysis_members_in_turn(frames: Frames) -> None:
    kind = AnalysisMembers(analysis_members(frames.analysis))
    made = list(states(kind, frames, INIT, 7))
    for k in range(7):
        own = kind.ensemble.isel(number=k % 5).sel(time=[INIT - STEP, INIT])
        np.testing.assert_array_equal(made[k + 1][:, Z500], own["geopotential"].values[:, 0, 0])
        np.testing.assert_array_equal(made[k + 1][:, RAIN], own["total_precipitation_12hr"].values[:, 0])
    assert kind.origins(frames, np.array([INIT]), 7)["analysis_member"][1].tolist() == [-1, 0, 1, 2, 3, 4, 0, 1]


def test_departures_of_analysis_members_around_the_analysis(frames: Frames) -> None:
    ensemble = analysis_members(frames.analysis)
    made = np.stack(list(states(AnalysisMembers(ensemble, paired=True, inflation=1.5), frames, INIT, 10))).astype("f8")
    own = ensemble["geopotential"].sel(time=INIT).values[0, :, 0].astype("f8")
    expected = 1.5 * (own - own.mean(0))
    np.testing.assert_allclose(made[1::2, -1, Z500] - made[0, -1, Z500], expected, atol=0.01)
    np.testing.assert_allclose(made[1:].mean(0), made[0], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(variance(made[1:, -1])[Z500], 2.25 * (own.var(0) * weights()).mean(), rtol=1e-4)


def test_lagged_forecasts_are_those_valid_now_the_youngest_first(frames: Frames) -> None:
    runs = lagged_runs(frames.analysis)
    kind = Lagged(runs, None, np.timedelta64(24, "h"))
    made = list(states(kind, frames, INIT, 4))
    for k, (run, number, leads) in enumerate([(4, 1, (0, 1)), (4, 2, (0, 1)), (3, 1, (1, 2)), (3, 2, (1, 2))], 1):
        for row, lead in enumerate(leads):
            at = runs["geopotential"].sel(number=number).isel(time=run, level=0)
            expected = at.isel(prediction_timedelta=lead - 1).values if lead else frames.at(INIT)[row, Z500].astype("f4")
            np.testing.assert_array_equal(made[k][row, Z500], expected)
    origins = kind.origins(frames, np.array([INIT]), 4)
    assert origins["lagged_time"][1][0].tolist() == [
        stamp.astype("M8[ns]").item() for stamp in (INIT, INIT - STEP, INIT - STEP, INIT - DAY, INIT - DAY)
    ]
    assert origins["lagged_number"][1].tolist() == [[-1, 1, 2, 1, 2]]
    with pytest.raises(InputError, match="4 fields of runs up to 24 h old are valid then, with all their frames; 5 are needed"):
        check_states(kind, frames, np.array([INIT]), 5)


@pytest.mark.parametrize("with_runs", [True, False])
def test_scaled_lagged_departures_have_one_size_and_the_analysis_as_mean(frames: Frames, with_runs: bool) -> None:
    kind = Lagged(lagged_runs(frames.analysis) if with_runs else None, Size({"geopotential_500": 80.0}))
    made = np.stack(list(states(kind, frames, INIT, 4))).astype("f8")
    for member in made[1:]:
        rms = np.sqrt(((member[-1, Z500] - made[0, -1, Z500]) ** 2 * weights()).mean())
        np.testing.assert_allclose(rms, 80, rtol=1e-3)
    np.testing.assert_allclose(made[1:].mean(0), made[0], rtol=1e-6, atol=1e-5)
    if not with_runs:
        old = frames.at(INIT - 2 * DAY) - frames.at(INIT)
        made_old = made[3] - made[0]
        ratio = made_old[:, Z500] / old[:, Z500]
        np.testing.assert_allclose(ratio, np.median(ratio), rtol=0.05, atol=0.02)


def test_a_store_is_whole_resumed_and_used(frames: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed within the second initialisation and run again: the store of an undisturbed run, and a forecast that names it."""
    inits = np.array([INIT, INIT + 4 * DAY, INIT + 8 * DAY])
    path = write_states(differences(), frames, inits, 4, tmp_path / "whole.zarr")
    calls = []

    def dying(*args: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return states(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr("forecast.initial_states.states", dying)
        with pytest.raises(KeyboardInterrupt):
            write_states(differences(), frames, inits, 4, tmp_path / "again.zarr")
    assert not (tmp_path / "again.zarr").exists()
    with monkeypatch.context() as patched:
        patched.setattr("forecast.initial_states.states", lambda *args: calls.append(args) or states(*args))
        write_states(differences(), frames, inits, 4, tmp_path / "again.zarr")
    assert len(calls) == 4  # the first initialisation was not made again
    made, again = open_store(path), open_store(tmp_path / "again.zarr")
    xr.testing.assert_identical(made.load(), again.load())
    assert not verify_store(path)
    validate(made, "forecast")
    assert json.loads(made.attrs["departure_rms"])["geopotential_500"] == pytest.approx(80, abs=0.1)
    added, taken = made["added_analysis"].values, made["subtracted_analysis"].values
    assert (added[:, 0] == inits).all()
    np.testing.assert_array_equal(added[:, 1], taken[:, 2])

    generator = toys.network(toys.spec_of(frames.analysis, TRAINING))
    forecast = sample(generator, frames.analysis, inits[1:2], days=1, members=4, initial=InitialStates(made))
    assert forecast.attrs["initial_state"].startswith("analysis +/- differences of two analyses of 2001-01-01T00/2002-06-30T12")
    assert made.attrs["recipe_hash"] in forecast.attrs["initial_state"]
    assert "geopotential_500 80 m2 s-2" in forecast.attrs["initial_state"]


@pytest.fixture(scope="module")
def job(analysis: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("states")
    write_dataset(folder / "analysis.zarr", analysis)
    spec = toys.spec_of(analysis, TRAINING)
    save(folder / "checkpoint.safetensors", spec, toys.network(spec).state_dict(), {})
    analysis_members(analysis).to_netcdf(folder / "members.nc")
    return folder


def run(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(plumecast.application(), [str(word) for word in words])
    text = result.output + str(result.exception or "")
    assert (result.exit_code == 0) == (code == 0), text
    return text


def test_commands_write_states_that_a_forecast_starts_from(job: Path, tmp_path: Path) -> None:
    common = (job / "analysis.zarr", "--init", "2002-09-15T12", "--members", 4, "--checkpoint", job / "checkpoint.safetensors")
    out = tmp_path / "differences.zarr"
    words = ("initial-states", "differences", *common, "--error", "geopotential_500=80", "--out", out)
    assert "nothing was written" in run(*words, "--dry-run")
    assert not out.exists()
    assert '"geopotential_500": 80.0' in run(*words)
    run("initial-states", "members", *common, "--ensemble", job / "members.nc", "--paired", "--out", tmp_path / "members.zarr")
    run("initial-states", "lagged", *common, "--error", "geopotential_500=80", "--out", tmp_path / "old.zarr")
    told = {"differences": "differences of two", "members": "departures of 5 analysis members", "old": "days before"}
    for name, text in told.items():
        assert text in open_store(tmp_path / f"{name}.zarr").attrs["initial_state"]
    words = ("forecast", job / "analysis.zarr", "--checkpoint", job / "checkpoint.safetensors", "--days", 1, "--members", 4)
    run(*words, "--initial-states", out, "--out", tmp_path / "f.zarr")
    assert told["differences"] in open_store(tmp_path / "f.zarr").attrs["initial_state"]


def test_commands_say_what_is_wrong(job: Path, tmp_path: Path) -> None:
    common = (job / "analysis.zarr", "--init", "2002-09-15T12", "--members", 4, "--out", tmp_path / "no.zarr")
    assert "expected FIELD=VALUE" in run(
        "initial-states", "differences", *common, "--error", "z", "--training", "2001", "2002", code=2
    )
    text = run("initial-states", "differences", *common, code=2)
    assert "no training period is known" in text
    assert "size of the perturbations" in text
    assert "give --paired" in run(
        "initial-states", "members", *common, "--ensemble", job / "members.nc", "--inflation", 2, code=2
    )
    assert "give --error, or --forecast" in run("initial-states", "lagged", *common, code=2)
    assert not (tmp_path / "no.zarr").exists()


def test_members_on_another_grid_are_regridded(job: Path, analysis: xr.Dataset, tmp_path: Path) -> None:
    fine = analysis_members(toys.weather(Grid.named("32x16"), steps=1462), count=3)
    fine.to_netcdf(tmp_path / "fine.nc")
    text = run(
        "initial-states", "members", job / "analysis.zarr", "--ensemble", tmp_path / "fine.nc", "--init", "2002-09-15T12",
        "--members", 3, "--out", tmp_path / "s.zarr",
    )  # fmt: skip
    assert "conservative from 32x16" in text
    made = open_store(tmp_path / "s.zarr")["geopotential"].sel(number=2, time=INIT).values[-1, 0]
    expected = regrid(fine, toys.GLOBE)["geopotential"].sel(number=1, time=INIT).values[0, 0]
    np.testing.assert_allclose(made, expected, rtol=1e-6)
