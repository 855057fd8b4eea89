"""Intervals and paired tests of score states: what they say of known differences, of none, and of whole tables and maps."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from verification import significance as sig
from verification.accumulate import Accumulator
from verification.onepass import ANOMALIES, SUMS
from verification.plan import Plan
from verification.readout import scores_table, skill
from verification.timeseries import METHODS, effective_size, mean_test

GRID = Grid(np.array([40.0, 45, 50]), np.array([0.0, 5, 10, 15]))
HOURS_12 = np.timedelta64(12, "h").astype("timedelta64[ns]")
CELLS = [f"{south}N-{south + 10}N {west}E-{west + 10}E" for south in (20, 30, 40, 50) for west in range(20, 120, 10)]


def simulated_state(inits: int, error: float = 1.0, seed: int = 0, members: int = 5, model: str = "a") -> xr.Dataset:
    """Members N(0, error^2) at 12 and 24 h, truth N(0, 1) shared by all states of one seed."""
    times = np.datetime64("2007-01-01", "ns") + HOURS_12 * np.arange(inits)
    leads = HOURS_12 * np.array([1, 2])
    plan = Plan(("2m_temperature",), {"2m_temperature": "K"}, times, leads, members, GRID, {"model": model})
    accumulator = Accumulator(plan)
    truths, rng = np.random.default_rng(seed), np.random.default_rng([seed, members, len(model)])
    for time in times:
        for lead in leads:
            truth = truths.normal(size=(1, *GRID.shape))
            accumulator.add(time, lead, error * rng.normal(size=(members, 1, *GRID.shape)), truth)
    return accumulator.state()


def state_of(crps: np.ndarray, model: str = "a", squares: np.ndarray | None = None) -> xr.Dataset:
    """A state whose fair CRPS (and mean squared errors) by (channel, time, lead, cell) are as given; all cells weigh alike."""
    channels = [f"channel {k}" for k in range(crps.shape[0])]
    dims = ("channel", "time", "prediction_timedelta", "cell")
    sums = {**dict.fromkeys(SUMS, np.zeros_like(crps)), "weight": np.ones_like(crps), "abs_error": crps}
    sums["squared_error"] = crps**2 if squares is None else squares
    coords = {
        "channel": np.array(channels, dtype=object),
        "time": np.datetime64("2007-01-01", "ns") + HOURS_12 * np.arange(crps.shape[1]),
        "prediction_timedelta": HOURS_12 * np.arange(1, crps.shape[2] + 1),
        "cell": np.array(CELLS[: crps.shape[3]], dtype=object),
    }
    attrs = {"members": 4, "model": model, "units": json.dumps(dict.fromkeys(channels, "K"))}
    return xr.Dataset({name: (dims, values) for name, values in sums.items()}, coords, attrs)


def two_states(shape: tuple[int, ...] = (2, 60, 3, 4), seed: int = 0) -> tuple[xr.Dataset, xr.Dataset]:
    """Scores that share the weather: the second is worse by 0.01 in channel 1."""
    rng = np.random.default_rng(seed)
    weather = 1 + 0.3 * rng.random((*shape[:3], 1))
    worse = 0.01 * np.arange(shape[0])[:, None, None, None]
    return state_of(weather + 0.02 * rng.random(shape)), state_of(weather + worse + 0.02 * rng.random(shape), "b")


def test_false_discovery_rate() -> None:
    np.testing.assert_array_equal(sig.discoveries(np.array([0.001, 0.02, 0.03, 0.2, 0.9]), 0.1), [True, True, True, False, False])
    np.testing.assert_array_equal(sig.discoveries(np.array([[0.9, np.nan], [0.2, 0.5]]), 0.1), np.zeros((2, 2), bool))


def test_the_interval_of_an_autocorrelated_mean_covers_its_truth() -> None:
    rng = np.random.default_rng(0)
    n, trials, phi = 400, 1000, 0.6
    noise = rng.normal(size=(trials, n + 50))
    series = np.zeros_like(noise)
    for t in range(1, n + 50):
        series[:, t] = phi * series[:, t - 1] + noise[:, t]
    series = series[:, 50:]
    covered = {}
    for length in (1, 25):
        counts = sig.resample_counts(n, length, 500, rng) / n
        bounds = np.quantile(series @ counts.T, [0.025, 0.975], axis=1)
        covered[length] = ((bounds[0] < 0) & (bounds[1] > 0)).mean()
    assert 0.88 < covered[25] < 0.96  # of 0.95: blocks lose a little to the finite sample, as the docstring says
    assert covered[1] < 0.75  # independent resampling would promise far too much


def test_intervals_hold_their_scores_and_are_reproducible() -> None:
    state, reference = simulated_state(40), simulated_state(40, error=2.0, model="bb")
    found, table = sig.intervals(state, reference, seed=3), scores_table(state)
    for name in sig.SCORES:
        assert (found[f"{name}_lower"] < table[name]).all()
        assert (found[f"{name}_upper"] > table[name]).all()
    crpss = skill(state, reference)["crpss"]
    assert ((found["crpss_lower"] < crpss) & (crpss < found["crpss_upper"])).all()
    xr.testing.assert_identical(found, sig.intervals(state, reference, seed=3))
    assert not found["too_few"].any()
    np.testing.assert_array_equal(found["block"], [1, 2])


def test_intervals_at_a_size_hold_the_score_at_that_size() -> None:
    state, reference = simulated_state(40), simulated_state(40, error=2.0, members=3, model="bb")
    found, table = sig.intervals(state, reference, size=2), scores_table(state, size=2)
    assert ((found["crps_lower"] < table["crps"]) & (table["crps"] < found["crps_upper"])).all()
    crpss = skill(state, reference, size=2)["crpss"]
    assert ((found["crpss_lower"] < crpss) & (crpss < found["crpss_upper"])).all()
    assert (found["crps_lower"] > sig.intervals(state, reference)["crps_lower"]).all()


def test_few_initialisations_are_flagged_and_one_has_no_interval() -> None:
    assert sig.intervals(simulated_state(12))["too_few"].all()
    assert sig.compare(simulated_state(12), simulated_state(12, model="bb"))["too_few"].all()
    assert np.isnan(sig.intervals(simulated_state(1))["crps_lower"]).all()


def test_intervals_narrow_with_the_sample() -> None:
    widths = [sig.intervals(simulated_state(n)).pipe(lambda d: d["crps_upper"] - d["crps_lower"]) for n in (30, 270)]
    assert float((widths[0] / widths[1]).mean()) == pytest.approx(3, rel=0.4)


def test_a_block_of_auto_is_as_long_as_the_scores_persist() -> None:
    rng = np.random.default_rng(0)
    slow = np.repeat(rng.random((1, 40, 2, 1)), 10, axis=1)  # unchanged for ten initialisations
    state = state_of(1 + slow)
    short, long = sig.intervals(state, n_boot=300), sig.intervals(state, n_boot=300, block="auto")
    assert (long["block"] > 8).all()
    widths = [found["crps_upper"] - found["crps_lower"] for found in (short, long)]
    assert (widths[1] > 1.4 * widths[0]).all()
    other = state_of(1 + rng.random(slow.shape), "b")
    tests = [sig.compare(state, other, method="bootstrap", block=block) for block in (None, "auto")]  # type: ignore[list-item]
    assert (tests[1]["upper"] - tests[1]["lower"] > 1.3 * (tests[0]["upper"] - tests[0]["lower"])).all()


def test_a_paired_comparison_finds_what_separate_intervals_miss() -> None:
    state, reference = two_states()
    found = sig.compare(state, reference)
    separate = [sig.intervals(each) for each in (state, reference)]
    assert (separate[0]["crps_upper"] > separate[1]["crps_lower"]).all()
    np.testing.assert_array_equal(found["significant"], [[False] * 3, [True] * 3])
    assert (found["difference"].sel(channel="channel 1") < 0).all()
    difference = sig.paired_difference(state, reference)
    np.testing.assert_allclose(difference.mean("time"), found["difference"])


@pytest.mark.parametrize("method", METHODS)
def test_every_cell_of_a_comparison_is_the_test_of_its_series(method: Any) -> None:
    state, reference = simulated_state(60), simulated_state(60, error=1.3, model="bb")
    found = sig.compare(state, reference, method=method, level=0.9, seed=5, n_boot=200)
    differences = sig.paired_difference(state, reference)
    for lead in range(2):
        d = differences.values[0, :, lead]
        alone = mean_test(d, method=method, steps=lead + 1, level=0.9, seed=[5, lead], n_boot=200)
        cell = found.isel(channel=0, prediction_timedelta=lead)
        for name in ("statistic", "p_value", "lower", "upper"):
            assert float(cell[name]) == pytest.approx(float(getattr(alone, name)), rel=1e-12)
        assert float(cell["n_eff"]) == pytest.approx(float(effective_size(d)))
        assert float(cell["relative"]) == pytest.approx(100 * d.mean() / float(scores_table(reference)["crps"][0, lead]))
    assert (found["lower"] < found["difference"]).all()
    assert (found["difference"] < found["upper"]).all()
    assert found.attrs["test"] == METHODS[method]


def test_diebold_mariano_by_hand() -> None:
    state, reference = simulated_state(60), simulated_state(60, error=1.3, model="bb")
    found = sig.compare(state, reference, method="dm").isel(channel=0, prediction_timedelta=1)
    d = sig.paired_difference(state, reference).values[0, :, 1]
    deviation, n, h = d - d.mean(), 60, 2
    variance = (deviation @ deviation + 2 * deviation[1:] @ deviation[:-1]) / n
    statistic = d.mean() / np.sqrt(variance / n) * np.sqrt((n + 1 - 2 * h + h * (h - 1) / n) / n)
    assert float(found["statistic"]) == pytest.approx(statistic, rel=1e-12)
    assert float(found["p_value"]) == pytest.approx(2 * stats.t.sf(abs(statistic), n - 1), rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_forecast_does_not_differ_from_itself(method: Any) -> None:
    state = simulated_state(40)
    found = sig.compare(state, state, method=method)
    assert (found["difference"] == 0).all()
    assert np.isnan(found["p_value"]).all()
    assert not found["significant"].any()
    assert not sig.compare(state, simulated_state(40, model="cc"), method=method)["significant"].any()


def test_initialisations_that_one_lacks_are_left_out_and_keep_their_place() -> None:
    state, reference = two_states((1, 60, 2, 4))
    fewer = reference.isel(time=np.delete(np.arange(60), [3, 20, 21]))
    holed = reference.copy(deep=True)
    holed["weight"][0, [3, 20, 21]] = 0.0
    differences = sig.paired_difference(state, reference).values[0]
    differences[[3, 20, 21]] = np.nan
    for which in (fewer, holed):
        found = sig.compare(state, which)
        assert (found["n"] == 57).all()
        for lead in range(2):
            alone = mean_test(differences[:, lead], steps=lead + 1)
            assert float(found["statistic"][0, lead]) == pytest.approx(float(alone.statistic), rel=1e-12)
    unlike = reference.copy(deep=True)
    unlike["weight"][0, 5, 0, 0] = 0.5
    np.testing.assert_array_equal(sig.compare(state, unlike)["n"], [[59, 60]])


def test_a_single_forecast_is_compared_by_its_absolute_error() -> None:
    state, single = simulated_state(40), simulated_state(40, members=1, model="one")
    found = sig.compare(state, single)
    expected = scores_table(state)["crps"] - scores_table(single)["crps_ecdf"]
    np.testing.assert_allclose(found["difference"], expected.transpose("channel", "prediction_timedelta"), rtol=1e-12)
    assert found["significant"].all()


def test_a_scorecard_holds_every_region_and_score_under_one_control() -> None:
    state, reference = two_states((3, 80, 2, len(CELLS)))
    card = sig.scorecard(state, reference)
    assert dict(card.sizes) == {"score": 2, "region": 9, "channel": 3, "prediction_timedelta": 2}
    alone = sig.compare(state, reference, region="northern extratropics").drop_vars("significant")
    xr.testing.assert_allclose(card.sel(score="crps", region="northern extratropics", drop=True)[list(alone)], alone, rtol=1e-12)
    np.testing.assert_array_equal(card["significant"], sig.discoveries(card["p_value"].values, 0.1))
    np.testing.assert_array_equal(card["difference"].notnull(), card["n"] > 0)
    assert (card["n"].sel(region="southern extratropics") == 0).all()
    few = sig.scorecard(state, reference, regions=["global"], scores=["rmse"], rate=0.0)
    assert dict(few.sizes) == {"score": 1, "region": 1, "channel": 3, "prediction_timedelta": 2}
    assert not few["significant"].any()


def test_the_rmse_of_a_card_is_that_of_all_initialisations_with_the_error_of_a_joint_bootstrap() -> None:
    rng = np.random.default_rng(0)
    weather = rng.gamma(2, size=(1, 300, 1, 1))
    squares = [scale * weather * rng.gamma(20, 1 / 20, size=weather.shape) for scale in (1.0, 1.3)]
    states = [state_of(weather, model, square) for model, square in zip("ab", squares, strict=True)]
    found = sig.scorecard(*states, scores=["rmse"], regions=["global"], method="dm").squeeze()
    errors = [float(np.sqrt(square.mean())) for square in squares]
    assert float(found["difference"]) == pytest.approx(errors[0] - errors[1], rel=1e-12)
    assert float(found["relative"]) == pytest.approx(100 * (errors[0] / errors[1] - 1), rel=1e-12)
    drawn = rng.integers(0, 300, (4000, 300))
    joint = np.diff([np.sqrt(square.ravel()[drawn].mean(1)) for square in squares], axis=0)[0]
    half = (float(found["upper"]) - float(found["lower"])) / 2
    assert half == pytest.approx(1.96 * joint.std(), rel=0.08)


def test_the_anomaly_correlation_of_a_card_is_the_pooled_one_with_the_error_of_a_joint_bootstrap() -> None:
    rng = np.random.default_rng(1)
    truth = rng.gamma(4, size=(1, 300, 1, 1))
    states, sums = [], []
    for model, correlation in (("a", 0.8), ("b", 0.6)):
        forecast = truth * rng.gamma(30, 1 / 30, size=truth.shape)
        product = correlation * np.sqrt(forecast * truth) * rng.gamma(40, 1 / 40, size=truth.shape)
        sums.append((product.ravel(), forecast.ravel(), truth.ravel()))
        made = state_of(np.ones_like(truth), model)
        states.append(
            made.assign({name: (made["weight"].dims, v) for name, v in zip(ANOMALIES, (product, forecast, truth), strict=True)})
        )
    found = sig.scorecard(*states, scores=["acc"], regions=["global"], method="dm").squeeze()
    pooled = [product.sum() / np.sqrt(forecast.sum() * observed.sum()) for product, forecast, observed in sums]
    assert float(found["difference"]) == pytest.approx(pooled[0] - pooled[1], rel=1e-12)
    assert float(found["of_reference"]) == pytest.approx(pooled[1], rel=1e-12)
    assert float(found["relative"]) == pytest.approx(100 * ((1 - pooled[0]) / (1 - pooled[1]) - 1), rel=1e-12)
    drawn = rng.integers(0, 300, (4000, 300))
    resampled = [p[drawn].sum(1) / np.sqrt(f[drawn].sum(1) * o[drawn].sum(1)) for p, f, o in sums]
    half = (float(found["upper"]) - float(found["lower"])) / 2
    assert half == pytest.approx(1.96 * (resampled[0] - resampled[1]).std(), rel=0.08)
    limits = sig.intervals(states[0], n_boot=2000)
    assert float(limits["acc_lower"].squeeze()) == pytest.approx(np.quantile(resampled[0], 0.025), abs=0.002)
    assert float(limits["acc_upper"].squeeze()) == pytest.approx(np.quantile(resampled[0], 0.975), abs=0.002)
    with pytest.raises(InputError, match="b was scored without a climatology"):
        sig.scorecard(states[0], states[1].drop_vars(ANOMALIES), scores=["acc"])


def correlated_maps(maps: int, inits: int, seed: int) -> np.ndarray:
    """Noise (channel, time, 1, cell) that neighbouring cells share for the most part."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(maps, inits, 1, len(CELLS) + 9))
    return np.lib.stride_tricks.sliding_window_view(noise, 10, axis=-1).sum(-1) / np.sqrt(10)


def test_maps_without_a_difference_have_significant_cells_in_one_of_twenty() -> None:
    state, reference = (state_of(10 + correlated_maps(400, 60, seed), str(seed)) for seed in (1, 2))
    found = sig.compare_cells(state, reference)
    assert dict(found.sizes) == {"channel": 400, "prediction_timedelta": 1, "cell": len(CELLS)}
    assert 0.02 < float(found["significant"].any("cell").mean()) < 0.09
    assert float((found["p_value"] < 0.05).any("cell").mean()) > 0.3  # cell by cell, a third of the maps would have some


def test_cells_that_differ_are_found_and_few_others() -> None:
    better = np.arange(len(CELLS)) < 10
    state, reference = (state_of(10 + correlated_maps(100, 60, seed), str(seed)) for seed in (1, 2))
    state["abs_error"] = state["abs_error"] - np.where(better, 0.8, 0.0)
    found = sig.compare_cells(state, reference)["significant"].values[:, 0]
    assert found[:, better].mean() > 0.9
    false = found[:, ~better].sum(1) / np.maximum(found.sum(1), 1)
    assert false.mean() < 0.1


def test_a_cell_is_compared_as_a_region_of_its_own() -> None:
    state, reference = two_states((2, 40, 2, 6))
    found = sig.compare_cells(state, reference.isel(cell=slice(1, None)))
    assert list(found["cell"].values) == CELLS[1:6]
    alone = sig.compare(state.isel(cell=[3]), reference.isel(cell=[3])).drop_vars("significant")
    xr.testing.assert_allclose(found.sel(cell=CELLS[3], drop=True)[list(alone)], alone, rtol=1e-12)
    with pytest.raises(InputError, match="no cell or region in common"):
        sig.compare_cells(state.isel(cell=[0, 1]), reference.isel(cell=[2, 3]))


def test_what_cannot_be_compared_is_refused() -> None:
    state, reference = two_states((1, 40, 1, 4))
    with pytest.raises(InputError, match="share no time"):
        sig.scorecard(state, reference.assign_coords(time=reference["time"] + np.timedelta64(1, "h")))
    with pytest.raises(InputError, match="different units"):
        sig.compare_cells(state, reference.assign_attrs(units='{"channel 0": "degC"}'))
    with pytest.raises(InputError, match="region 'Mars' is not known"):
        sig.compare(state, reference, region="Mars")
    with pytest.raises(InputError, match="method='t' is not known"):
        sig.compare(state, reference, method="t")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no cell or region in common"):
        sig.scorecard(state, reference, regions=[])
    for scores in (["mae"], []):
        with pytest.raises(InputError, match="expected some of crps, rmse"):
            sig.scorecard(state, reference, scores=scores)  # type: ignore[arg-type]


def test_levels_rates_and_draws_that_mean_nothing_are_refused() -> None:
    state = simulated_state(10)
    for call in (
        lambda: sig.compare(state, state, rate=5.0),
        lambda: sig.compare(state, state, level=1.5),
        lambda: sig.intervals(state, level=-0.1),
        lambda: sig.intervals(state, n_boot=0),
    ):
        with pytest.raises(InputError, match="expected"):
            call()
