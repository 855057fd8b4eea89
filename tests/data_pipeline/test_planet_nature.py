"""Nature runs: what is planned, what is written, and that a run cut anywhere goes on to the same bytes. On a toy atmosphere."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from data_pipeline.errors import InputError
from data_pipeline.opening import open_analysis
from data_pipeline.planet import nature, states
from data_pipeline.planet.nature import NatureSection, Plan
from data_pipeline.recipe import section
from data_pipeline.store import is_store, partial_path, read_manifest
from tests.data_pipeline.toy_planet import ToyAtmosphere

CHANNELS = ["geopotential_500", "temperature_500", "temperature_850", "2m_temperature", "total_precipitation"]


class CutError(Exception):
    pass


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> list[ToyAtmosphere]:
    made: list[ToyAtmosphere] = []

    def make(truncation: int) -> ToyAtmosphere:
        made.append(ToyAtmosphere(truncation))
        return made[-1]

    monkeypatch.setattr(nature, "Atmosphere", make)
    return made


def planned(**more: Any) -> Plan:
    given = {"channels": CHANNELS, "grid": "16x8", "days": 7, "spin_up_days": 2, "restart_days": 2, **more}
    return nature.plan(NatureSection(**given))


def files_of(path: Path) -> dict[str, list[Any]]:
    return {name: entry for name, entry in read_manifest(path)["files"].items() if name != "zarr.json"}


def test_the_store_is_a_whole_analysis_with_static_fields(tmp_path: Path) -> None:
    path = nature.simulate(planned(), tmp_path)
    data = open_analysis(path)
    assert list(pd.DatetimeIndex(data["time"].values[[0, -1]])) == [pd.Timestamp("2001-01-01T00"), pd.Timestamp("2001-01-07T18")]
    assert data.sizes == {"time": 28, "level": 2, "latitude": 8, "longitude": 16}
    assert data.attrs["channels"][-1] == "total_precipitation_6hr"
    assert {"geopotential_at_surface", "land_sea_mask"} <= set(data.data_vars)
    assert np.isfinite(data["2m_temperature"]).all()
    np.testing.assert_allclose(data["total_precipitation_6hr"], 6e-4, rtol=1e-6)


def test_stamps_are_where_the_model_was(tmp_path: Path, toys: list[ToyAtmosphere]) -> None:
    """Across a checkpoint the fields are those of one continuous run."""
    data = open_analysis(nature.simulate(planned(), tmp_path))
    toy = ToyAtmosphere()
    state, _ = toy.run(toy.at_rest(pd.Timestamp("2000-12-30"), 0), 8, 6)
    expected = [state.dynamics["temperature_variation"][0, 0, 0]]
    for _ in range(27):
        state, _ = toy.run(state, 1, 6)
        expected.append(state.dynamics["temperature_variation"][0, 0, 0])
    wave = np.fft.rfft(data["temperature"].sel(level=500).isel(latitude=4).values, axis=-1)[:, 1].real
    assert np.corrcoef(wave, expected)[0, 1] > 1 - 1e-6


@pytest.mark.parametrize("cut", range(1, 5))
def test_cut_after_any_part_it_goes_on_to_the_same_bytes(tmp_path: Path, cut: int, toys: list[ToyAtmosphere]) -> None:
    whole = nature.simulate(planned(), tmp_path / "whole")

    def stop(done: int, total: int) -> None:
        if done >= 8 * cut or done == total:
            raise CutError

    with pytest.raises(CutError):
        nature.simulate(planned(), tmp_path / "cut", report=stop)
    path = tmp_path / "cut" / "analysis.zarr"
    assert not is_store(path)
    assert partial_path(path).exists()
    nature.simulate(planned(), tmp_path / "cut")
    assert files_of(path) == files_of(whole)
    assert toys[-1].hours_run < toys[0].hours_run, "what was done was not run again"


def test_a_finished_run_is_left_alone(tmp_path: Path, toys: list[ToyAtmosphere]) -> None:
    nature.simulate(planned(), tmp_path)
    count = len(toys)
    nature.simulate(planned(), tmp_path)
    assert len(toys) == count


def test_the_run_follows_from_its_seed(tmp_path: Path) -> None:
    runs = [nature.simulate(planned(seed=seed), tmp_path / name) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    first, again, other = (open_analysis(path)["temperature"].values.tobytes() for path in runs)
    assert first == again
    assert first != other


def test_restart_states_are_left_every_few_days_and_start_a_run(tmp_path: Path) -> None:
    data = open_analysis(nature.simulate(planned(), tmp_path))
    found = states.find(tmp_path / "restarts")
    assert list(found)[:3] == list(pd.date_range("2001-01-01", periods=3, freq="2D"))
    toy = ToyAtmosphere()
    held = states.load(found[pd.Timestamp("2001-01-03")])
    assert held.physics == {}
    assert held.time == pd.Timestamp("2001-01-03")
    wave = toy.diagnose(toy.from_dynamics(held.time, held.dynamics)).fields["t"][0, 0].max()
    stored = float(data["temperature"].sel(level=500, time="2001-01-03T00").max())
    assert stored == pytest.approx(float(wave), abs=0.5)


def test_another_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done >= 8:
            raise CutError

    with pytest.raises(CutError):
        nature.simulate(planned(), tmp_path, report=stop)
    with pytest.raises(InputError, match=r"nature\.seed: 0 -> 1"):
        nature.simulate(planned(seed=1), tmp_path)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"step": "5h"}, "nature.step '5h'"),
        ({"truncation": 30}, "nature.truncation 30"),
        ({"channels": ["geopotential_300"]}, "geopotential_300; the planet has geopotential_250"),
        ({"channels": ["2m_temperature", "2m_temperature"]}, "repeated entries"),
    ],
)
def test_what_the_planet_cannot_give_is_refused_before_it_runs(more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        planned(**more)


@pytest.mark.parametrize(
    "wrong",
    [{"step": "2h30min"}, {"step": "soon"}, {"start": "spring"}, {"start": "2001-01-01T00Z"}, {"start": "nat"}, {"seed": -1}],
)
def test_settings_that_are_none_are_faults_of_the_section(wrong: dict[str, Any]) -> None:
    key = next(iter(wrong))
    with pytest.raises(InputError, match=rf"section \[nature\]:\n  - nature\.{key}: "):
        section({"nature": wrong}, "nature", NatureSection)


def test_a_checkpoint_without_its_store_is_told_before_the_model_runs(tmp_path: Path, toys: list[ToyAtmosphere]) -> None:
    shutil.rmtree(nature.simulate(planned(), tmp_path))
    with pytest.raises(InputError, match=r"checkpoint.npz is at 2001-01-09T00, but the store lacks 2001-01-01T00"):
        nature.simulate(planned(), tmp_path)
    assert toys[-1].hours_run == 0
    (tmp_path / "checkpoint.npz").write_bytes(b"PK and nothing more")
    with pytest.raises(InputError, match="checkpoint.npz is no restart state, or damaged"):
        nature.simulate(planned(), tmp_path)


def test_a_year_of_six_hours_is_a_calendar_year() -> None:
    made = nature.plan(NatureSection(start="2004-01-01", years=2))
    assert len(made.times) == 4 * (366 + 365)
    assert made.chunk == 40
    assert [channel.label for channel in made.channels if channel.level == 700] == [
        "geopotential_700", "temperature_700", "u_component_of_wind_700", "v_component_of_wind_700", "specific_humidity_700",
    ]  # fmt: skip


def test_a_state_survives_the_disk_and_damage_is_told(tmp_path: Path) -> None:
    toy = ToyAtmosphere()
    state = toy.at_rest(pd.Timestamp("2001-01-01T06"), 3)
    path = states.save(tmp_path, state)
    back = states.load(path)
    assert back.time == state.time
    for name, array in state.dynamics.items():
        np.testing.assert_array_equal(back.dynamics[name], array)
    np.testing.assert_array_equal(back.physics["memory"], state.physics["memory"])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="no restart state, or damaged"):
        states.load(path)
    states.save(tmp_path, dataclasses.replace(state, dynamics={"vorticity": state.dynamics["vorticity"]}))
    with pytest.raises(InputError, match="lacks divergence"):
        states.load(path)
    with pytest.raises(InputError, match="holds no restart state"):
        states.find(tmp_path / "nowhere")
