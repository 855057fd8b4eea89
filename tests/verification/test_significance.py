"""Known answers, and coverage of the intervals on simulated series."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from verification import significance as sig
from verification.evaluate import Accumulator, Plan
from verification.state import scores_table, skill

D = np.array([1.0, 2, 1, 0, 1, 3, 2, 1, -1, 0, 1, 2])
GRID = Grid(np.array([40.0, 45, 50]), np.array([0.0, 5, 10, 15]))
HOURS_12 = np.timedelta64(12, "h").astype("timedelta64[ns]")


def simulated_state(inits: int, error: float = 1.0, seed: int = 0, members: int = 5, model: str = "a") -> xr.Dataset:
    """Members N(0, 1) at 12 and 24 h, truth N(0, error^2) shared by all states of one seed."""
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


def test_autocorrelation_and_effective_size() -> None:
    g0 = sig.autocovariance(D, 0)
    assert sig.autocovariance(D, 1) / g0 == pytest.approx(0.309140, abs=1e-6)
    assert sig.autocovariance(D, 2) / g0 == pytest.approx(-0.459140, abs=1e-6)
    assert sig.effective_size(D, order=1) == pytest.approx(6.332649, abs=1e-6)
    assert sig.effective_size(D) == 12  # 26.42 by the formula: no more than there are


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, 3.617163),
        ({"lag": 2}, 3.439317),
        ({"lag": 2, "flat": True}, 4.323337),
        ({"lag": 2, "flat": True, "horizon": 3}, 3.417898),
    ],
)
def test_diebold_mariano(arguments: dict[str, int], expected: float) -> None:
    assert sig.diebold_mariano(D, **arguments)[0] == pytest.approx(expected, abs=1e-6)


def test_p_values_are_those_of_the_normal_and_student_distributions() -> None:
    assert sig.diebold_mariano(D)[1] == pytest.approx(2 * stats.norm.sf(3.617163), rel=1e-5)
    assert sig.diebold_mariano(D, lag=2, flat=True, horizon=3)[1] == pytest.approx(2 * stats.t.sf(3.417898, 11), rel=1e-5)


def test_a_negative_long_run_variance_is_no_answer() -> None:
    assert np.isnan(sig.diebold_mariano(np.array([1.0, -1, 1, -1, 1, -1]), lag=1, flat=True)).all()


@pytest.mark.parametrize(("length", "expected"), [(1, 0.299498), (3, 0.270329)])
def test_the_closed_form_of_the_bootstrap_error(length: float, expected: float) -> None:
    assert sig.stationary_standard_error(D, length) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("length", [1, 3])
def test_resampling_reaches_its_closed_form(length: float) -> None:
    indices = sig.stationary_bootstrap(D.size, length, 40_000, np.random.default_rng(0))
    assert D[indices].mean(axis=1).std() == pytest.approx(sig.stationary_standard_error(D, length), rel=0.02)


def test_blocks_are_runs_of_the_asked_length() -> None:
    indices = sig.stationary_bootstrap(1000, 20, 50, np.random.default_rng(0))
    breaks = (np.diff(indices, axis=1) % 1000 != 1).mean()
    assert breaks == pytest.approx(1 / 20, rel=0.1)
    assert sig.resample_counts(7, 2, 30, np.random.default_rng(0)).sum(axis=1) == pytest.approx(7)
    with pytest.raises(InputError, match="at least 1"):
        sig.stationary_bootstrap(10, 0.5, 10, np.random.default_rng(0))


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


def test_leads_are_counted_in_initialisation_steps() -> None:
    daily = np.datetime64("2008-01-01", "ns") + np.timedelta64(24, "h") * np.arange(30)
    assert sig.lead_steps(daily, np.timedelta64(10, "D")) == 10
    assert sig.lead_steps(daily, np.timedelta64(36, "h")) == 2
    assert sig.lead_steps(daily, np.timedelta64(6, "h")) == 1
    assert sig.block_length(daily[:4], np.timedelta64(10, "D")) == 4


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


def test_few_initialisations_are_flagged_and_one_has_no_interval() -> None:
    assert sig.intervals(simulated_state(12))["too_few"].all()
    assert np.isnan(sig.intervals(simulated_state(1))["crps_lower"]).all()


def test_intervals_narrow_with_the_sample() -> None:
    widths = [sig.intervals(simulated_state(n)).pipe(lambda d: d["crps_upper"] - d["crps_lower"]) for n in (30, 270)]
    assert float((widths[0] / widths[1]).mean()) == pytest.approx(3, rel=0.4)


def test_a_paired_comparison_finds_what_separate_intervals_miss() -> None:
    state, reference = simulated_state(60), simulated_state(60, error=2.0, model="bb")
    found = sig.compare(state, reference)
    assert (found["difference"] < 0).all()
    assert found["significant"].all()
    same = sig.compare(state, simulated_state(60, model="cc"))
    assert not same["significant"].any()
    difference = sig.paired_difference(state, reference)
    np.testing.assert_allclose(difference.mean("time"), found["difference"])
