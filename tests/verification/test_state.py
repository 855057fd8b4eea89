"""The score state: it adds, it survives the disk, and every score read from it is the score of the fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from verification import area_weights, bias, crps, rank_histogram, readout, rmse, spread_skill
from verification import state as states
from verification.accumulate import Accumulator
from verification.onepass import SUMS
from verification.plan import Plan

GRID = Grid.named("16x9")
CHANNELS = ("geopotential_500", "2m_temperature")
UNITS = {"geopotential_500": "m2 s-2", "2m_temperature": "K"}
LEADS = np.array([12, 24, 36], dtype="timedelta64[h]").astype("timedelta64[ns]")


def fields_of(inits: int = 6, members: int = 4, seed: int = 0, grid: Grid = GRID) -> tuple[xr.DataArray, xr.DataArray]:
    """Members (time, lead, number, channel, latitude, longitude) with ties, and a truth for each."""
    rng = np.random.default_rng(seed)
    coords: dict[str, Any] = {
        "time": np.datetime64("2007-01-01", "ns") + np.timedelta64(24, "h") * np.arange(inits),
        "prediction_timedelta": LEADS,
        "number": np.arange(members),
        "channel": list(CHANNELS),
        **grid.coords(),
    }
    shape = [len(coords[name]) for name in ("time", "prediction_timedelta", "number", "channel")] + list(grid.shape)
    values = np.round(5 * rng.normal(size=shape), 0).astype(np.float32) + np.float32(5e4)
    truth = np.round(5 * rng.normal(size=[shape[i] for i in (0, 1, 3, 4, 5)]), 0).astype(np.float32) + np.float32(5e4)
    forecast = xr.DataArray(values, coords, ("time", "prediction_timedelta", "number", "channel", "latitude", "longitude"))
    return forecast, forecast.isel(number=0, drop=True).copy(data=truth)


def state_of(forecast: xr.DataArray, truth: xr.DataArray, model: str = "a", **attrs: str) -> xr.Dataset:
    grid = Grid.of(forecast)
    times = forecast["time"].values
    members = forecast.sizes["number"]
    channels = tuple(map(str, forecast["channel"].values))
    plan = Plan(channels, {name: UNITS[name] for name in channels}, times, LEADS, members, grid, {"model": model, **attrs})
    accumulator = Accumulator(plan)
    for time in times:
        for lead in LEADS:
            at = {"time": time, "prediction_timedelta": lead}
            accumulator.add(time, lead, forecast.sel(at).values, truth.sel(at).values)
    return accumulator.state()


@pytest.fixture(scope="module")
def fields() -> tuple[xr.DataArray, xr.DataArray]:
    forecast, truth = fields_of()
    truth[1, 0, 0, 3, 5] = np.nan
    forecast[2, 1, 3, 1, 8, :4] = np.nan
    return forecast, truth


@pytest.fixture(scope="module")
def state(fields: tuple[xr.DataArray, xr.DataArray]) -> xr.Dataset:
    return state_of(*fields)


@pytest.mark.parametrize("region", [None, "tropics", "northern extratropics", "southern extratropics"])
def test_scores_read_from_the_state_are_those_of_the_fields(
    fields: tuple[xr.DataArray, xr.DataArray], state: xr.Dataset, region: str | None
) -> None:
    forecast, truth = fields
    latitude = forecast["latitude"]
    inside = {
        None: latitude == latitude,
        "tropics": abs(latitude) <= 20,
        "northern extratropics": latitude > 20,
        "southern extratropics": latitude < -20,
    }[region]
    weights = area_weights(GRID).where(inside, 0)
    dims = ["time", "latitude", "longitude"]
    table = readout.scores_table(state, region)
    score = crps(forecast, truth)
    expected = {
        "crps": (score.fillna(0) * weights).sum(dims) / (score.notnull() * weights).sum(dims),
        "rmse": rmse(forecast, truth, dim=dims, weights=weights),
        "bias": bias(forecast, truth, dim=dims, weights=weights),
        "spread": spread_skill(forecast, truth, dim=dims, weights=weights)["spread"],
        "ssr": spread_skill(forecast, truth, dim=dims, weights=weights)["ssr"],
        "rank_histogram": rank_histogram(forecast, truth, dim=dims, weights=weights),
    }
    for name, value in expected.items():
        found = table[name].transpose("prediction_timedelta", "channel", ...)
        np.testing.assert_allclose(found, value.transpose("prediction_timedelta", "channel", ...), rtol=1e-12, err_msg=name)
    assert (table["n"] == 6).all()


def test_dropped_cases_are_counted(state: xr.Dataset) -> None:
    dropped = readout.scores_table(state)["dropped"]
    assert int(dropped.sel(channel="geopotential_500")[0]) == 1
    assert int(dropped.sel(channel="2m_temperature")[1]) == 4
    assert int(dropped.sum()) == 5


def test_maps_are_the_means_of_each_point(fields: tuple[xr.DataArray, xr.DataArray], state: xr.Dataset) -> None:
    found = readout.maps(state).transpose("prediction_timedelta", "channel", ...)
    np.testing.assert_allclose(found["crps"], crps(*fields).mean("time"), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found["rmse"], rmse(*fields, dim="time"), rtol=1e-12)
    np.testing.assert_allclose(found["spread"], spread_skill(*fields, dim="time")["spread"], rtol=1e-12)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_merged_parts_are_the_whole(fields: tuple[xr.DataArray, xr.DataArray], state: xr.Dataset, order: tuple[int, ...]) -> None:
    forecast, truth = fields
    parts = [state_of(forecast[cut], truth[cut]) for cut in (slice(0, 1), slice(1, 4), slice(4, 6))]
    merged = states.merge([parts[index] for index in order])
    xr.testing.assert_allclose(merged, state, rtol=1e-12)
    for name in SUMS:
        np.testing.assert_array_equal(merged[name], state[name])
    xr.testing.assert_identical(states.merge([state]), state)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 1000))
def test_a_cut_anywhere_merges_to_the_whole(cut: int, members: int, seed: int) -> None:
    forecast, truth = fields_of(6, members, seed)
    whole = readout.scores_table(state_of(forecast, truth))
    halves = [state_of(forecast[part], truth[part]) for part in (slice(0, cut), slice(cut, 6))]
    xr.testing.assert_allclose(readout.scores_table(states.merge(halves)), whole, rtol=1e-12)


def test_states_that_do_not_add_are_refused(fields: tuple[xr.DataArray, xr.DataArray], state: xr.Dataset) -> None:
    forecast, truth = fields
    later = {"time": forecast["time"] + np.timedelta64(30, "D")}
    cases = {
        "members 4 and 3": state_of(forecast.assign_coords(later)[:, :, :3], truth.assign_coords(later)),
        "channels or units": state_of(forecast.assign_coords(later)[..., :1, :, :], truth.assign_coords(later)[:, :, :1]),
        "model a and b": state_of(forecast.assign_coords(later), truth.assign_coords(later), model="b"),
        "6 initialisations are in more than one state, first 2007-01-01T00": state,
    }
    for message, other in cases.items():
        with pytest.raises(InputError, match=message):
            states.merge([state, other])
    with pytest.raises(InputError, match="no score states"):
        states.merge([])


def test_a_saved_state_comes_back_whole_and_is_replaced_by_a_new_one(state: xr.Dataset, tmp_path: Path) -> None:
    path = states.save(state, tmp_path / "a.scores.zarr")
    found = states.open_state(path)
    xr.testing.assert_equal(found, state)
    assert {name: found.attrs[name] for name in state.attrs} == state.attrs
    xr.testing.assert_allclose(readout.scores_table(found), readout.scores_table(state), rtol=0)
    half = state.isel(time=slice(0, 3)).assign_attrs(inputs="other")
    states.save(half, path)
    assert states.open_state(path).sizes["time"] == 3


def test_only_score_states_are_opened_or_replaced(tmp_path: Path, state: xr.Dataset) -> None:
    (tmp_path / "mine").mkdir()
    assert not states.is_state(tmp_path / "mine")
    assert not states.is_state(tmp_path / "absent")
    with pytest.raises(InputError, match="not a score state"):
        states.save(state, tmp_path / "mine")
    with pytest.raises(InputError, match="not found"):
        states.open_state(tmp_path / "absent")
    (tmp_path / "junk.nc").write_bytes(b"no NetCDF")
    for name in ("absent.nc", "junk.nc"):
        with pytest.raises(InputError, match=rf"{name} cannot be opened as NetCDF"):
            states.open_state(tmp_path / name)


def test_one_member_has_no_fair_score_and_says_why(fields: tuple[xr.DataArray, xr.DataArray]) -> None:
    forecast, truth = fields
    table = readout.scores_table(state_of(forecast[:, :, :1], truth))
    expected = abs(forecast[:, :, 0].astype(float) - truth).weighted(area_weights(GRID)).mean(["time", "latitude", "longitude"])
    np.testing.assert_allclose(table["crps_ecdf"].transpose("prediction_timedelta", "channel"), expected, rtol=1e-12)
    assert np.isnan(table["crps"]).all()
    assert "the fair CRPS is undefined" in table.attrs["note"]
    assert table.attrs["estimator"] == "none"
    assert np.isnan(table["ssr"]).all()
    assert np.isnan(table["spread"]).all()


def test_skill_is_one_minus_the_ratio_over_common_initialisations(fields: tuple[xr.DataArray, xr.DataArray]) -> None:
    forecast, truth = fields_of()
    climatology = fields_of(seed=9)[0]
    ours, theirs = state_of(forecast[:5], truth[:5]), state_of(climatology[2:], truth[2:], model="climatology")
    found = readout.skill(ours, theirs)
    common = slice(2, 5)
    scores = [readout.scores_table(state_of(which[common], truth[common]))["crps"] for which in (forecast, climatology)]
    np.testing.assert_allclose(found["crpss"], 1 - scores[0] / scores[1], rtol=1e-12)
    assert (found["n"] == 3).all()
    assert (readout.skill(ours, ours)["crpss"] == 0).all()


def test_skill_leaves_out_initialisations_with_unlike_cases() -> None:
    forecast, truth = fields_of()
    holed = forecast.copy()
    holed[0, 0, 0, 0, 4, 4] = np.nan
    found = readout.skill(state_of(holed, truth), state_of(fields_of(seed=9)[0], truth, model="climatology"))
    n = found["n"].transpose("prediction_timedelta", "channel").values
    np.testing.assert_array_equal(n, [[5, 6], [6, 6], [6, 6]])


def test_skill_against_an_ensemble_of_another_size_uses_the_fair_score(fields: tuple[xr.DataArray, xr.DataArray]) -> None:
    forecast, truth = fields_of(members=9)
    big, small = state_of(forecast, truth), state_of(forecast[:, :, :2], truth, model="small")
    found = readout.skill(big, small)
    np.testing.assert_allclose(found["crps_reference"], readout.scores_table(small)["crps"])
    assert float(abs(found["crpss"]).max()) < 0.1  # the same distribution: fair scores differ by sampling only


def test_nothing_in_common_and_unlike_units_are_named(state: xr.Dataset) -> None:
    later = state.assign_coords(time=state["time"] + np.timedelta64(1, "h"))
    with pytest.raises(InputError, match="share no time"):
        readout.skill(state, later)
    celsius = state.assign_attrs(units=state.attrs["units"].replace('"K"', '"degC"'))
    with pytest.raises(InputError, match="2m_temperature: K and degC"):
        readout.skill(state, celsius)
    with pytest.raises(InputError, match="region 'europe' is not known"):
        readout.scores_table(state, "europe")


def test_a_regional_grid_is_one_domain() -> None:
    grid = Grid(np.array([40.0, 45, 50]), np.array([0.0, 5, 10]))
    forecast, truth = fields_of(grid=grid)
    state = state_of(forecast, truth)
    assert list(readout.regions_of(state)) == ["domain"]
    weights = area_weights(grid)
    np.testing.assert_allclose(
        readout.scores_table(state)["rmse"].transpose("prediction_timedelta", "channel"),
        rmse(forecast, truth, dim=["time", "latitude", "longitude"], weights=weights),
        rtol=1e-12,
    )


def test_training_is_named_in_a_sentence(fields: tuple[xr.DataArray, xr.DataArray]) -> None:
    assert readout.in_training(state_of(*fields)) == ""
    touched = state_of(*fields, training_period="2000-01-01T00/2007-01-02T00", validation_period="2007-01-05T00/2007-01-05T12")
    sentence = readout.in_training(touched)
    assert "of 6 initialisations 2 with an initialisation or valid time in the training period" in sentence
    assert "2 with an initialisation or valid time in the validation period" in sentence


def test_a_condensed_state_gives_the_scores_of_the_whole_and_survives_netcdf(state: xr.Dataset, tmp_path: Path) -> None:
    small = states.condensed(state, LEADS[[0, 2]])
    small.to_netcdf(tmp_path / "small.scores.nc", engine="netcdf4")
    back = states.open_state(tmp_path / "small.scores.nc")
    assert sum(array.nbytes for array in small.data_vars.values()) < 0.2 * sum(array.nbytes for array in state.data_vars.values())
    for region in ("global", "tropics", "northern extratropics"):
        whole = readout.scores_table(state, region).sel(prediction_timedelta=LEADS[[0, 2]])
        for name, scores in readout.scores_table(back, region).data_vars.items():
            np.testing.assert_allclose(scores, whole[name], rtol=1e-12, err_msg=str(name))
    ranks = readout.zone_sums(state, ["ranks"], "tropics").sel(prediction_timedelta=LEADS[[0, 2]])
    xr.testing.assert_allclose(readout.zone_sums(back, ["ranks"], "tropics"), ranks)
    assert set(readout.regions_of(back)) == {name for name in readout.regions_of(state) if readout.has_zones(state, name)}
