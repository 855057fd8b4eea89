"""The real model: its state goes out and comes back, a run goes on from the disk, and it is that of the packaged planet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.planet import states, vertical
from data_pipeline.planet.model import Atmosphere, State
from data_pipeline.schema import channels_of, select

jcm = pytest.importorskip("jcm", reason="needs the extra simulate: pip install plumecast[simulate]")
pytestmark = pytest.mark.filterwarnings("ignore")  # of jax and jcm, about themselves

START = pd.Timestamp("2001-01-01")


@pytest.fixture(scope="module")
def atmosphere() -> Atmosphere:
    return Atmosphere(21)


def equal(one: State, other: State) -> bool:
    return one.time == other.time and all(
        mine[name].tobytes() == theirs[name].tobytes()
        for mine, theirs in ((one.dynamics, other.dynamics), (one.physics, other.physics))
        for name in mine
    )


@pytest.mark.campaign
def test_a_run_is_repeated_from_a_state_that_went_through_the_disk(atmosphere: Atmosphere, tmp_path: Path) -> None:
    state, first = atmosphere.run(atmosphere.at_rest(START, seed=1), 2, 6)
    assert list(first.times) == [START + pd.Timedelta("6h"), START + pd.Timedelta("12h")]
    path = states.save(tmp_path, state)
    on, raw = atmosphere.run(state, 2, 6)
    again, same = atmosphere.run(states.load(path), 2, 6)
    assert equal(on, again)
    assert all(raw.fields[name].tobytes() == same.fields[name].tobytes() for name in raw.fields)
    assert (raw.fields["rain"] >= 0).all()
    other, _ = atmosphere.run(atmosphere.at_rest(START, seed=2), 2, 6)
    assert not equal(other, state)


def test_constants_are_those_of_the_model() -> None:
    from jcm import constants

    assert float(constants.rd) == pytest.approx(vertical.GAS, rel=1e-12)
    assert float(constants.grav) == vertical.GRAVITY
    assert float(constants.p0) == 1e5


@pytest.mark.campaign
def test_coarser_coefficients_and_odd_intervals_are_refused(atmosphere: Atmosphere) -> None:
    state = atmosphere.at_rest(START, seed=0)
    with pytest.raises(InputError, match="vorticity of 2001-01-01.*T21 needs"):
        atmosphere.from_dynamics(
            START, {name: array[..., :-2] if array.ndim else array for name, array in state.dynamics.items()}
        )
    with pytest.raises(InputError, match="no multiple of the time step"):
        atmosphere.run(state, 1, 1)
    with pytest.raises(InputError, match="truncation 30"):
        Atmosphere(30)


@pytest.mark.campaign
def test_it_is_the_model_behind_the_packaged_planet(shared_data: Callable[[str], Path]) -> None:
    """A restart state of the planet gives the planet's stored analysis of that time, to their quantisation, in every field."""
    held = states.load(shared_data("planet-restarts-2007") / "state_2007-04-07T00.npz")
    atmosphere = Atmosphere(31)
    raw = atmosphere.diagnose(atmosphere.from_dynamics(held.time, held.dynamics))
    with xr.open_dataset(shared_data("planet-64x32-12h") / "planet_2007.nc") as planet:
        truth = planet.sel(time=held.time).expand_dims("time").load()
    channels = [channel for channel in channels_of(truth) if not channel.name.startswith("total_precipitation")]
    made = vertical.gridded(raw, atmosphere.surroundings, channels, Grid.named("64x32"))
    for channel in channels:
        step = truth[channel.name].encoding["scale_factor"] if channel.level is None else None
        difference = np.abs(select(made, channel).values - select(truth, channel).values).max()
        quantum = step or {"geopotential": 12, "temperature": 0.08, "specific_humidity": 5e-5}.get(channel.name, 0.3)
        assert difference <= 0.51 * quantum, channel.label
