"""Analyses around a truth: where the errors come from, how large they are, and that they know nothing of the verifying future."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.planet import perturbations
from data_pipeline.planet.perturbations import Pair
from data_pipeline.schema import Channel, stack

GRID = Grid.named("16x8")
STATES = pd.date_range("2006-12-18", "2007-12-23", freq="10D")
CHANNELS = [Channel("geopotential", 500), Channel("specific_humidity", 850), Channel("2m_temperature")]


def planet() -> xr.Dataset:
    """Noise on every 12 h stamp of a year."""
    times = pd.date_range("2006-12-15", "2007-12-31", freq="12h")
    noise = np.random.default_rng(0)
    shape = (times.size, *GRID.shape)
    levels = np.full((times.size, 2, *GRID.shape), np.nan, "f4")
    height, humidity = levels.copy(), levels.copy()
    height[:, 0], humidity[:, 1] = 5e4 + noise.normal(0, 600, shape), noise.gamma(1, 1e-3, shape)
    dims = ("time", "level", "latitude", "longitude")
    return xr.Dataset(
        {
            "geopotential": (dims, height, {"levels_available": [500]}),
            "specific_humidity": (dims, humidity, {"levels_available": [850]}),
            "2m_temperature": (("time", "latitude", "longitude"), noise.normal(280, 5, shape).astype("f4")),
        },
        coords={"time": times, "level": [500, 850], **GRID.coords()},
    )


TRUTH = planet()


def rms(field: np.ndarray) -> float:
    weights = GRID.area_weights
    return float(np.sqrt((field.astype("f8") ** 2 * weights).sum() / weights.sum()))


def draw(init: str | pd.Timestamp, count: int = 17, seed: int = 0, states: pd.DatetimeIndex = STATES) -> list[Pair]:
    return perturbations.draw_pairs(TRUTH, states, pd.Timestamp(init), days=15, count=count, size=80.0, seed=seed)


@settings(max_examples=60, deadline=None)
@given(day=st.integers(3, 36), seed=st.integers(0, 1000))
def test_pairs_keep_their_distance_from_the_forecast_and_from_each_other(day: int, seed: int) -> None:
    init = STATES[day]
    pairs = draw(init, seed=seed)
    assert len({(pair.first, pair.second) for pair in pairs}) == 17, "all different"
    for pair in pairs:
        assert pd.Timedelta("10D") <= pair.second - pair.first <= pd.Timedelta("30D")
        for stamp in (pair.first, pair.second):
            assert stamp <= init - pd.Timedelta("15D") or stamp >= init + pd.Timedelta("30D")
    error = {pairs[0].first, pairs[0].second}
    assert not any(error & {pair.first, pair.second} for pair in pairs[1:]), "members share no state with the analysis error"


def test_errors_have_the_stated_size_and_either_sign() -> None:
    pairs = draw("2007-06-06")
    z500 = TRUTH["geopotential"].sel(level=500)
    for pair in pairs:
        difference = z500.sel(time=pair.first).values.astype("f8") - z500.sel(time=pair.second).values
        assert rms(pair.scale * difference) == pytest.approx(80, rel=1e-6)
    signs = [np.sign(pair.scale) for init in STATES[3:37] for pair in draw(init)]
    assert 0.45 < np.mean(np.array(signs) > 0) < 0.55


def test_pairs_of_the_same_states_depend_on_seed_and_date_alone() -> None:
    assert draw("2007-06-06", seed=1) == draw("2007-06-06", seed=1)
    assert draw("2007-06-06", seed=1) != draw("2007-06-06", seed=2)
    assert draw("2007-06-06", count=5, seed=1)[0].first == draw("2007-06-06", seed=1)[0].first


@pytest.mark.parametrize("few", [STATES[:0], STATES[16:18], STATES[::6]])
def test_too_few_states_are_told(few: pd.DatetimeIndex) -> None:
    with pytest.raises(InputError, match="2007-06-06T00: 0 pairs of states.*16 members need as many"):
        draw("2007-06-06", states=few)


def test_the_analysis_is_the_truth_plus_an_error_and_members_lie_around_it() -> None:
    init, pairs = pd.Timestamp("2007-06-06"), draw("2007-06-06")
    made = perturbations.perturbed_fields(TRUTH, CHANNELS, init, pd.Timedelta(0), pairs)
    truth = stack(TRUTH.sel(time=init), CHANNELS).values
    assert made.shape == (17, 3, *GRID.shape)
    assert made.dtype == np.float32
    assert rms(made[0, 0] - truth[0]) == pytest.approx(80, rel=1e-4)
    assert [round(rms(member[0] - made[0, 0])) for member in made[1:]] == [80] * 16
    t2m = TRUTH["2m_temperature"]
    error = pairs[0].scale * (t2m.sel(time=pairs[0].first).values - t2m.sel(time=pairs[0].second).values)
    np.testing.assert_allclose(made[0, 2], truth[2] + error, rtol=1e-6)


def test_the_frame_before_has_the_error_of_the_same_pair_before() -> None:
    init, lag, pairs = pd.Timestamp("2007-06-06"), pd.Timedelta("12h"), draw("2007-06-06")
    made = perturbations.perturbed_fields(TRUTH, CHANNELS, init, lag, pairs)
    t2m = TRUTH["2m_temperature"]
    error = pairs[0].scale * (t2m.sel(time=pairs[0].first - lag).values - t2m.sel(time=pairs[0].second - lag).values)
    np.testing.assert_allclose(made[0, 2], t2m.sel(time=init - lag).values + error, rtol=1e-6)


def test_humidity_is_never_negative() -> None:
    dry = TRUTH.assign(specific_humidity=TRUTH["specific_humidity"] * np.float32(1e-3))
    dry["specific_humidity"].loc[{"time": "2007-06-06T00"}] = 0.0
    made = perturbations.perturbed_fields(dry, CHANNELS, pd.Timestamp("2007-06-06"), pd.Timedelta(0), draw("2007-06-06"))
    assert made[:, 1].min() == 0


def test_states_are_perturbed_as_the_fields_are() -> None:
    noise = np.random.default_rng(1)
    pairs = draw("2007-06-06", count=3)
    stamps = [pd.Timestamp("2007-06-06"), *{stamp for pair in pairs for stamp in (pair.first, pair.second)}]
    held = {stamp: {"vorticity": noise.normal(size=(2, 3)).astype("f4"), "sim_time": np.float32(7)} for stamp in stamps}
    members = perturbations.perturbed_states(held[stamps[0]], pairs, held)
    assert len(members) == 2
    errors = [pair.scale * (held[pair.first]["vorticity"].astype("f8") - held[pair.second]["vorticity"]) for pair in pairs]
    for member, error in zip(members, errors[1:], strict=True):
        np.testing.assert_allclose(member["vorticity"], held[stamps[0]]["vorticity"] + errors[0] + error, rtol=1e-5, atol=1e-7)
        assert member["vorticity"].dtype == np.float32
        assert member["sim_time"] == 7
