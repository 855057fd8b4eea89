"""Known answers, agreement with the plain formulas, and how often the tests reject what is true, on simulated series."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from data_pipeline.errors import InputError
from tests.verification.ensembles import PEERS
from verification import timeseries as ts

D = np.array([1.0, 2, 1, 0, 1, 3, 2, 1, -1, 0, 1, 2])
METHODS: list[Any] = list(ts.METHODS)
HOURS_12 = np.timedelta64(12, "h").astype("timedelta64[ns]")


def autoregressive(coefficients: tuple[float, ...], series: int, n: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(series, n + 100))
    values = np.zeros_like(noise)
    for t in range(len(coefficients), n + 100):
        values[:, t] = noise[:, t] + sum(c * values[:, t - 1 - k] for k, c in enumerate(coefficients))
    return values[:, 100:]


def overlapping(steps: int, series: int, n: int, seed: int = 0) -> np.ndarray:
    """Sums of `steps` neighbours, as errors of overlapping forecasts are."""
    noise = np.random.default_rng(seed).normal(size=(series, n + steps - 1))
    return np.lib.stride_tricks.sliding_window_view(noise, steps, axis=1).sum(-1)


def rejections(d: np.ndarray, **options: Any) -> float:
    return float((ts.mean_test(d, **options).p_value < 0.05).mean())


def test_autocorrelation_and_effective_size() -> None:
    g0 = ts.autocovariance(D, 0)
    assert ts.autocovariance(D, 1) / g0 == pytest.approx(0.309140, abs=1e-6)
    assert ts.autocovariance(D, 2) / g0 == pytest.approx(-0.459140, abs=1e-6)
    assert ts.effective_size(D, order=1) == pytest.approx(6.332649, abs=1e-6)
    assert ts.effective_size(D) == 12  # 26.42 by the formula: no more than there are
    assert ts.effective_size(np.ones(9)) == 9


def test_an_autoregressive_series_of_known_answers() -> None:
    noise, series = np.random.default_rng(0).normal(size=400), np.zeros(400)
    for t in range(1, 400):
        series[t] = 0.6 * series[t - 1] + noise[t - 1]
    assert ts.effective_size(series, order=1) == pytest.approx(103.03, abs=0.005)
    assert ts.effective_size(series) == pytest.approx(104.80, abs=0.005)
    assert ts.optimal_block_length(series) == pytest.approx(9.12, abs=0.005)


def test_the_effective_size_of_long_series_is_that_of_theory() -> None:
    assert ts.effective_size(autoregressive((0.6,), 50, 5000)).mean() == pytest.approx(5000 * 0.4 / 1.6, rel=0.03)
    phi1, phi2 = 0.5, 0.2
    r1 = phi1 / (1 - phi2)
    expected = 5000 * (1 - phi1 - phi2) ** 2 / (1 - r1 * phi1 - (phi1 * r1 + phi2) * phi2)
    assert ts.effective_size(autoregressive((phi1, phi2), 50, 5000)).mean() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, 3.617163),
        ({"lag": 2}, 3.439317),
        ({"lag": 2, "flat": True}, 4.323337),
        ({"lag": 2, "flat": True, "horizon": 3}, 3.417898),
    ],
)
def test_diebold_mariano(arguments: dict[str, Any], expected: float) -> None:
    assert ts.diebold_mariano(D, **arguments)[0] == pytest.approx(expected, abs=1e-6)


def test_p_values_are_those_of_the_normal_and_student_distributions() -> None:
    assert ts.diebold_mariano(D)[1] == pytest.approx(2 * stats.norm.sf(3.617163), rel=1e-5)
    assert ts.diebold_mariano(D, lag=2, flat=True, horizon=3)[1] == pytest.approx(2 * stats.t.sf(3.417898, 11), rel=1e-5)


def test_a_negative_long_run_variance_is_no_answer_and_the_test_takes_that_of_newey_and_west() -> None:
    d = np.array([1.0, -1, 1, -1, 1, -1, 1])
    assert np.isnan(ts.diebold_mariano(d, lag=1, flat=True)).all()
    expected = ts.diebold_mariano(d, lag=1, horizon=2)
    found = ts.mean_test(d, method="dm", steps=2)
    assert (found.statistic, found.p_value) == pytest.approx(expected)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_small_sample_form_agrees_with_a_peer(steps: int) -> None:
    tests = pytest.importorskip("scores.stats.statistical_tests", reason=PEERS)
    rows = xr.DataArray(D[None], dims=("lead", "time"), coords={"lead": [0], "h": ("lead", [steps])})
    peer = tests.diebold_mariano(rows, "lead", "h", method="HLN", statistic_distribution="t")
    found = ts.mean_test(D, method="dm", steps=steps)
    assert float(found.statistic) == pytest.approx(float(peer["dm_test_stat"][0]), rel=1e-12)
    assert float(found.lower) == pytest.approx(float(peer["ci_lower"][0]), rel=1e-10)
    assert float(found.upper) == pytest.approx(float(peer["ci_upper"][0]), rel=1e-10)


def test_each_method_by_its_formula() -> None:
    d = autoregressive((0.4,), 1, 150)[0] + 0.2
    mean, sd = d.mean(), d.std(ddof=1)
    size = float(ts.effective_size(d))
    by_ar2 = mean / (sd / np.sqrt(size))
    found = ts.mean_test(d, method="ar2")
    assert float(found.statistic) == pytest.approx(by_ar2, rel=1e-12)
    assert float(found.p_value) == pytest.approx(2 * stats.t.sf(abs(by_ar2), size - 1), rel=1e-10)
    by_hac = ts.diebold_mariano(d, lag=4)
    found = ts.mean_test(d, method="hac")  # 4 (150 / 100)^(2/9) = 4.38
    np.testing.assert_allclose((found.statistic, found.p_value), by_hac, rtol=1e-12)
    assert ts.automatic_lag(150, 6) == 10
    counts = ts.resample_counts(150, 3, 500, np.random.default_rng(7))
    apart = np.abs(counts @ d / 150 - mean)
    found = ts.mean_test(d, method="bootstrap", steps=3, n_boot=500, seed=7)
    assert float(found.p_value) == pytest.approx((1 + (apart >= abs(mean)).sum()) / 501)
    assert float(found.statistic) == pytest.approx(mean / np.sqrt((apart**2).mean()), rel=1e-10)


@pytest.mark.parametrize(("length", "expected"), [(1, 0.299498), (3, 0.270329)])
def test_the_closed_form_of_the_bootstrap_error(length: float, expected: float) -> None:
    assert ts.stationary_standard_error(D, length) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("length", [1, 3])
def test_resampling_reaches_its_closed_form(length: float) -> None:
    indices = ts.stationary_bootstrap(D.size, length, 40_000, np.random.default_rng(0))
    assert D[indices].mean(axis=1).std() == pytest.approx(ts.stationary_standard_error(D, length), rel=0.02)


def test_blocks_are_runs_of_the_asked_length() -> None:
    indices = ts.stationary_bootstrap(1000, 20, 50, np.random.default_rng(0))
    breaks = (np.diff(indices, axis=1) % 1000 != 1).mean()
    assert breaks == pytest.approx(1 / 20, rel=0.1)
    assert ts.resample_counts(7, 2, 30, np.random.default_rng(0)).sum(axis=1) == pytest.approx(7)


def block_by_loops(d: np.ndarray) -> float:
    n, deviation = d.size, d - d.mean()
    run, bound = 5, 2 * np.sqrt(np.log10(d.size) / d.size)
    longest = int(np.ceil(np.sqrt(n))) + run
    g = [sum(deviation[t] * deviation[t + lag] for t in range(n - lag)) / n for lag in range(longest + run + 1)]
    m = 0
    while m < longest and any(abs(g[m + k] / g[0]) >= bound for k in range(1, run + 1)):
        m += 1
    M = min(max(2 * m, 2), longest)
    G = S = 0.0
    for k in range(-M, M + 1):
        taper = 1.0 if abs(k) / M <= 0.5 else 2 * (1 - abs(k) / M)
        G += taper * abs(k) * g[abs(k)]
        S += taper * g[abs(k)]
    return float(min(max((2 * G**2 / (2 * S**2)) ** (1 / 3) * n ** (1 / 3), 1), np.ceil(min(3 * np.sqrt(n), n / 3))))


@pytest.mark.parametrize("n", [30, 60, 300])
def test_the_optimal_block_is_that_of_plain_loops(n: int) -> None:
    d = np.concatenate([autoregressive((phi,), 4, n) for phi in (-0.5, 0.0, 0.5, 0.95)])
    np.testing.assert_allclose(ts.optimal_block_length(d), [block_by_loops(row) for row in d], rtol=1e-10)


def test_the_optimal_block_grows_with_persistence_and_with_the_sample() -> None:
    samples = [autoregressive((0.0,), 200, 400), autoregressive((0.6,), 200, 400), autoregressive((0.6,), 200, 3200)]
    lengths = [float(np.median(ts.optimal_block_length(d))) for d in samples]
    assert lengths[0] < 2
    assert lengths[2] / lengths[1] == pytest.approx(2, rel=0.25)  # n^(1/3)
    assert ts.optimal_block_length(np.ones(50)) == 1


@pytest.mark.parametrize("method", METHODS)
def test_series_together_are_tested_as_each_alone(method: Any) -> None:
    d = autoregressive((0.5,), 6, 60).reshape(2, 3, 60) + np.arange(3)[:, None] / 5
    d[1, 2, [4, 5, 40]] = np.nan
    d[0, 1] = np.nan
    d[0, 0, 2:] = np.nan
    options: dict[str, Any] = {"method": method, "steps": 2, "n_boot": 200, "block": "auto"}
    together = ts.mean_test(d, **options)
    for place in np.ndindex(2, 3):
        alone = ts.mean_test(d[place], **options)
        for name in ts.MeanTest._fields:
            np.testing.assert_allclose(getattr(together, name)[place], getattr(alone, name), rtol=1e-12, err_msg=name)
    assert np.isnan(together.p_value[0, 0])
    assert together.mean[0, 0] == pytest.approx(d[0, 0, :2].mean())
    assert np.isnan(together.mean[0, 1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_interval_holds_zero_exactly_where_the_test_does_not_reject(method: Any, level: float) -> None:
    d = autoregressive((0.3,), 300, 50) + 0.3
    found = ts.mean_test(d, method=method, level=level, n_boot=199)
    holds = (found.lower <= 0) & (found.upper >= 0)
    np.testing.assert_array_equal(holds, found.p_value > 1 - level)
    assert 0.1 < holds.mean() < 0.9


@pytest.mark.parametrize("method", METHODS)
def test_the_sign_and_the_scale_of_a_series_do_not_matter(method: Any) -> None:
    d = autoregressive((0.3,), 4, 80) + 0.1
    found, scaled = (ts.mean_test(values, method=method) for values in (d, -1e3 * d))
    np.testing.assert_allclose(scaled.statistic, -found.statistic, rtol=1e-10)
    np.testing.assert_allclose(scaled.p_value, found.p_value, rtol=1e-10)
    np.testing.assert_allclose(scaled.lower, -1e3 * found.upper, rtol=1e-10)


def test_missing_values_keep_their_place() -> None:
    d = autoregressive((0.7,), 1, 40)[0]
    d[[3, 4, 11, 30]] = np.nan
    deviation = d - np.nanmean(d)
    for lag in range(5):
        products = [deviation[t] * deviation[t + lag] for t in range(40 - lag) if np.isfinite(deviation[[t, t + lag]]).all()]
        assert ts.autocovariance(d, lag) == pytest.approx(sum(products) / 36, rel=1e-12)
    closed_up = ts.effective_size(d[np.isfinite(d)])
    assert ts.effective_size(d) < closed_up  # neighbours across a gap are less alike


def test_stamps_that_are_missing_leave_gaps_no_longer_than_matters() -> None:
    times = np.datetime64("2007-01-01", "ns") + HOURS_12 * np.array([0, 1, 2, 5, 6, 400, 401])
    d = np.arange(14.0).reshape(2, 7)
    found = ts.in_steps(d, times, 3)
    np.testing.assert_array_equal(found[0], [0, 1, 2, np.nan, np.nan, 3, 4, np.nan, np.nan, np.nan, 5, 6])
    for lag in range(4):
        far = ts.autocovariance(ts.in_steps(d, times, 1000), lag)
        np.testing.assert_allclose(ts.autocovariance(found, lag), far, rtol=1e-12)
    assert ts.in_steps(d[:, :5], times[:5], 3).shape == (2, 7)
    np.testing.assert_array_equal(ts.in_steps(d[:, :3], times[:3], 3), d[:, :3])


def test_leads_are_counted_in_initialisation_steps() -> None:
    daily = np.datetime64("2008-01-01", "ns") + np.timedelta64(24, "h") * np.arange(30)
    assert ts.lead_steps(daily, np.timedelta64(10, "D")) == 10
    assert ts.lead_steps(daily, np.timedelta64(36, "h")) == 2
    assert ts.lead_steps(daily, np.timedelta64(6, "h")) == 1
    assert ts.lead_steps(daily[:1], np.timedelta64(10, "D")) == 1
    assert ts.block_length(daily[:4], np.timedelta64(10, "D")) == 4


@pytest.mark.parametrize(
    ("method", "block", "limits"),
    [
        # white noise; AR(1) of 0.3 and AR(2) of (0.5, 0.2), steps 1; sums of 10, steps 10
        ("dm", None, [(0.04, 0.06), (0.13, 0.17), (0.41, 0.48), (0.05, 0.08)]),
        ("ar2", None, [(0.035, 0.055), (0.04, 0.065), (0.045, 0.08), (0.01, 0.03)]),
        ("hac", None, [(0.045, 0.075), (0.05, 0.085), (0.14, 0.20), (0.08, 0.12)]),
        ("bootstrap", None, [(0.04, 0.065), (0.13, 0.17), (0.41, 0.48), (0.10, 0.16)]),
        ("bootstrap", "auto", [(0.04, 0.07), (0.06, 0.10), (0.09, 0.145), (0.09, 0.145)]),
    ],
)
def test_a_true_null_is_rejected_as_often_as_the_docstring_says(method: Any, block: Any, limits: Any) -> None:
    count = 2000
    series = [
        (autoregressive((), count, 365, 1), 1),
        (autoregressive((0.3,), count, 365, 2), 1),
        (autoregressive((0.5, 0.2), count, 365, 3), 1),
        (overlapping(10, count, 365, 4), 10),
    ]
    for (d, steps), (low, high) in zip(series, limits, strict=True):
        assert low <= rejections(d, method=method, steps=steps, block=block, n_boot=200) <= high


@pytest.mark.parametrize("method", METHODS)
def test_a_difference_of_three_standard_errors_is_found(method: Any) -> None:
    d = autoregressive((0.3,), 500, 365)
    shift = 3 / (1 - 0.3) / np.sqrt(365)
    assert 0.75 < rejections(d + shift, method=method, n_boot=200) < 0.99
    assert rejections(d + 3 * shift, method=method, n_boot=200) == 1


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1"):
        ts.stationary_bootstrap(10, 0.5, 10, np.random.default_rng(0))
    with pytest.raises(InputError, match="method='t' is not known; one of dm, ar2, hac, bootstrap"):
        ts.mean_test(D, method="t")  # type: ignore[arg-type]
    for block in (0.5, "long", np.nan):
        with pytest.raises(InputError, match="block="):
            ts.mean_test(D, method="bootstrap", block=block)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="n_boot=10, level=0.95"):
        ts.mean_test(D, method="bootstrap", n_boot=10)


@pytest.mark.parametrize("method", METHODS)
def test_few_or_equal_values_have_no_test(method: Any) -> None:
    for d, steps in ((np.ones(20), 1), (np.zeros(20), 3), (D[:1], 1), (D[:3], 3), (np.full(5, np.nan), 1)):
        found = ts.mean_test(d, method=method, steps=steps)
        assert np.isnan([found.statistic, found.p_value, found.lower, found.upper]).all()
