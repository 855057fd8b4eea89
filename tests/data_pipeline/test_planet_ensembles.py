"""Physics ensembles: one set of initial states for all, forecasts that follow from it, and states that are not the truth's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from data_pipeline import store
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.opening import open_forecast
from data_pipeline.planet import ensembles, nature
from data_pipeline.planet.ensembles import EnsembleSection, Setting
from tests.data_pipeline.toy_planet import ToyAtmosphere

INITS = ["2001-04-11", "2001-05-01"]
DAYS = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A nature run of half a year, with restart states every ten days."""
    folder = tmp_path_factory.mktemp("nature")
    section = nature.NatureSection(
        start="2001-01-01", days=180, step="12h", grid="16x8", spin_up_days=1,
        channels=["geopotential_500", "temperature_500", "specific_humidity_850", "total_precipitation"],
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nature, "Atmosphere", ToyAtmosphere)
        nature.simulate(nature.plan(section), folder)
    return folder


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same work without worker processes: those would need the real model."""

    def forecasts(
        given: Setting, kind: str, inits: list[pd.Timestamp], workers: int
    ) -> Iterator[tuple[pd.Timestamp, np.ndarray]]:
        for init in reversed(inits):
            yield init, ensembles._forecast(ensembles._Task(given, init))

    monkeypatch.setattr(ensembles, "_atmosphere", ToyAtmosphere(), raising=False)
    monkeypatch.setattr(ensembles, "_forecasts", forecasts)


def section(run: Path, **more: Any) -> EnsembleSection:
    given = {"restarts": str(run / "restarts"), "inits": INITS, "members": 4, "days": DAYS, "seed": 5, **more}
    return EnsembleSection(**given)


def test_initial_states_are_a_forecast_store_of_frames_with_the_analysis_as_number_0(run: Path, tmp_path: Path) -> None:
    given = ensembles.setting(section(run), run / "analysis.zarr")
    data = open_forecast(ensembles.write_initial_states(given, tmp_path / "initial.zarr"))
    assert data["number"].values.tolist() == [0, 1, 2, 3, 4]
    assert (data["prediction_timedelta"].values / np.timedelta64(1, "h")).tolist() == [-12, 0]
    assert list(pd.DatetimeIndex(data["time"].values)) == [pd.Timestamp(init) for init in INITS]
    truth = given.truth["geopotential"].sel(level=500, time=pd.Timestamp(INITS[0]))
    error = data["geopotential"].sel(level=500, time=pd.Timestamp(INITS[0]), number=0).isel(prediction_timedelta=1) - truth
    assert np.sqrt(np.average(error.values**2, weights=Grid.of(data).area_weights)) == pytest.approx(80, rel=1e-3)
    assert json.loads(data.attrs["pairs"])["2001-04-11T00"][0][2] == round(given.pairs[pd.Timestamp(INITS[0])][0].scale, 6)
    assert data.attrs["seed"] == 5


def test_forecasts_start_from_the_initial_states_and_fit_the_schema(run: Path, tmp_path: Path) -> None:
    given = ensembles.setting(section(run), run / "analysis.zarr")
    made = open_forecast(ensembles.write_ensemble(given, "perfect", tmp_path / "perfect.zarr", workers=2))
    assert made["number"].values.tolist() == [1, 2, 3, 4]
    assert made["prediction_timedelta"].size == 2 * DAYS
    assert np.isfinite(made["temperature"].sel(level=500)).all()
    initial = open_forecast(ensembles.write_initial_states(given, tmp_path / "initial.zarr"))
    spread = made["geopotential"].sel(level=500).isel(prediction_timedelta=0).std("number")
    before = initial["geopotential"].sel(level=500, number=slice(1, 4)).isel(prediction_timedelta=1).std("number")
    # the toy's waves turn slowly: half a day later the members lie about as they began
    assert float(spread.mean() / before.mean()) == pytest.approx(1, abs=0.2)


def test_cut_off_it_goes_on_with_the_next_initialisation(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, out = ensembles.setting(section(run), run / "analysis.zarr"), tmp_path / "cut.zarr"
    whole = ensembles.write_ensemble(given, "perfect", tmp_path / "whole.zarr", workers=1)

    def stop(done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensembles.write_ensemble(given, "perfect", out, workers=1, report=stop)
    forecast, ran = ensembles._forecast, []
    monkeypatch.setattr(ensembles, "_forecast", lambda task: ran.append(task.init) or forecast(task))
    ensembles.write_ensemble(given, "perfect", out, workers=1)
    assert ran == [pd.Timestamp(INITS[0])]
    xr.testing.assert_identical(open_forecast(out).load(), open_forecast(whole).load())
    assert store.verify_store(out) == []


def test_another_size_of_the_error_is_another_ensemble(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "perfect.zarr"
    ensembles.write_ensemble(ensembles.setting(section(run), run / "analysis.zarr"), "perfect", out, workers=1)
    other = ensembles.setting(section(run, error=40.0), run / "analysis.zarr")
    with pytest.raises(InputError, match=r"ensemble\.error: 80\.0 -> 40\.0"):
        ensembles.write_ensemble(other, "perfect", out, workers=1)


def test_other_restart_states_give_other_pairs_and_so_another_ensemble(run: Path, tmp_path: Path) -> None:
    ensembles.write_initial_states(ensembles.setting(section(run), run / "analysis.zarr"), tmp_path / "initial.zarr")
    shutil.copytree(run / "restarts", tmp_path / "restarts")
    moved = ensembles.setting(section(run, restarts=str(tmp_path / "restarts")), run / "analysis.zarr")
    ensembles.write_initial_states(moved, tmp_path / "initial.zarr")
    for file in sorted((tmp_path / "restarts").iterdir())[:2]:
        file.unlink()
    fewer = ensembles.setting(section(run, restarts=str(tmp_path / "restarts")), run / "analysis.zarr")
    with pytest.raises(InputError, match="pairs: "):
        ensembles.write_initial_states(fewer, tmp_path / "initial.zarr")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"inits": ["2001-04-12"]}, "no restart state of 2001-04-12T00"),
        ({"inits": ["2001-01-01"]}, "lacks the analysis of 2001-01-01.*or those 12h before"),
        ({"members": 40}, "40 members need as many"),
        ({"restarts": "/nowhere"}, "holds no restart state"),
    ],
)
def test_what_is_missing_is_told_before_a_model_is_made(run: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ensembles.setting(section(run, **more), run / "analysis.zarr")


def test_restart_states_of_another_run_are_refused(run: Path, tmp_path: Path) -> None:
    given = ensembles.setting(section(run), run / "analysis.zarr")
    init = pd.Timestamp(INITS[0])
    task = ensembles._Task(given, init)
    task.files[init] = given.files[pd.Timestamp("2001-01-11")]
    with pytest.raises(InputError, match="is not the analysis of that time: z500 differs by"):
        ensembles._forecast(task)


def test_the_analyses_alone_make_a_small_file_that_opens_as_initial_states(run: Path, tmp_path: Path) -> None:
    given = ensembles.setting(section(run), run / "analysis.zarr")
    initial = ensembles.write_initial_states(given, tmp_path / "initial.zarr")
    path = ensembles.write_analyses(initial, tmp_path / "analyses.nc")
    small, whole = open_forecast(path), open_forecast(initial).sel(number=[0])
    with xr.open_dataset(path, decode_timedelta=True) as raw:
        assert raw.attrs["pairs"] == whole.attrs["pairs"]
    for name, step in (("geopotential", 12), ("temperature", 0.08), ("total_precipitation_12hr", 5e-5)):
        assert float(np.abs(small[name] - whole[name]).max()) <= 0.51 * step
