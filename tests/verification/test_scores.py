"""Error, bias, correlation, spread and ranks: known answers, brute force, peers, properties, missing values, dask."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from tests.verification.ensembles import FOUR_CASES, FOUR_TRUTHS, drawn, ensemble
from verification import acc, area_weights, bias, conditional_spread_skill, crps, rank_histogram, rmse, spread_skill


def test_dask_input_stays_lazy_and_gives_the_same_scores() -> None:
    forecast, truth = drawn(9, cases=1000)
    lazy, lazy_truth = forecast.chunk(case=137, number=4), truth.chunk(case=137)
    climatology = xr.DataArray(np.random.default_rng(1).normal(size=1000), dims="case")
    for function in (
        crps,
        lambda f, t: rmse(f, t, dim="case"),
        lambda f, t: acc(f, t, climatology=climatology, dim="case"),
        lambda f, t: conditional_spread_skill(f, t, bins=[0, 1, 2], dim="case").to_array(),
        lambda f, t: rank_histogram(f, t, dim="case"),
    ):
        result = function(lazy, lazy_truth)
        assert result.chunks is not None
        np.testing.assert_allclose(result.compute(), function(forecast, truth), rtol=1e-12)


def test_scores_know_their_units_and_policy() -> None:
    score = crps(*drawn(5))
    policy = {"units": "K", "estimator": "fair", "members": 5, "missing": "propagate"}
    assert score.attrs == {"long_name": "continuous ranked probability score", **policy}
    assert spread_skill(*drawn(5), dim="case")["mse"].attrs["units"] == "(K)^2"


def test_area_weights_known_answer_in_both_orders() -> None:
    latitudes = np.array([90.0, 45, 0, -45, -90])
    expected = [0.190301, 1.352990, 1.913417, 1.352990, 0.190301]
    np.testing.assert_allclose(area_weights(latitudes), expected, atol=1e-6)
    np.testing.assert_allclose(area_weights(xr.DataArray(latitudes[::-1], dims="lat")), expected, atol=1e-6)


def test_a_regional_grid_does_not_own_the_cap() -> None:
    weights = area_weights(np.array([40.0, 50, 60]))
    edges = np.sin(np.deg2rad([35, 45, 55, 65]))
    np.testing.assert_allclose(weights, np.diff(edges) / np.diff(edges).mean())


def test_area_weights_of_a_grid_have_mean_one_and_equal_those_of_its_latitudes() -> None:
    grid = Grid.named("64x32")
    weights = area_weights(grid)
    assert float(weights.mean()) == pytest.approx(1)
    np.testing.assert_allclose(weights.isel(longitude=0), area_weights(grid.latitude))


def two_fields() -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    f, o = np.zeros((2, 5, 2)), np.zeros((2, 5, 2))
    f[0, 2], o[0, 2, 0] = 2, 1
    f[1, 0], f[1, 2, 0], o[1, 1], o[1, 2, 0] = 4, 1, 1, 2
    weights = area_weights(xr.DataArray(np.array([90.0, 45, 0, -45, -90]), dims="latitude"))
    dims = ("time", "latitude", "longitude")
    return xr.DataArray(f, dims=dims), xr.DataArray(o, dims=dims), weights


def test_rmse_and_bias_known_answers() -> None:
    forecast, truth, weights = two_fields()
    dims = ("time", "latitude", "longitude")
    assert float(rmse(forecast, truth, dim=dims, weights=weights)) == pytest.approx(1.006879, abs=1e-6)
    assert float(bias(forecast, truth, dim=dims, weights=weights)) == pytest.approx(0.132163, abs=1e-6)
    by_time = rmse(forecast, truth, dim=dims[1:], weights=weights)
    assert float(by_time.mean()) == pytest.approx(1.006480, abs=1e-6)


def test_the_mean_drops_missing_cells_from_both_sums_and_counts_the_rest() -> None:
    forecast, truth, weights = two_fields()
    truth = truth.where(truth.latitude > 1)
    kept = (slice(None), slice(2, None))
    dims = ("time", "latitude", "longitude")
    expected = rmse(forecast[kept], truth[kept], dim=dims, weights=weights[2:])
    found = rmse(forecast, truth, dim=dims, weights=weights)
    assert float(found) == pytest.approx(float(expected))
    assert int(found["cases"]) == 12


def test_spread_skill_known_answers() -> None:
    result = spread_skill(*ensemble(FOUR_CASES, FOUR_TRUTHS), dim="case")
    expected = {"spread": 2.524876, "rmse": 2.709935, "ssr": 1.041684, "variance": 2.524876**2, "mse": 2.709935**2}
    for name, value in expected.items():
        assert float(result[name]) == pytest.approx(value, abs=1e-5), name
    debiased = float(result["mse"]) - float(result["variance"]) / 4
    assert debiased == pytest.approx(5.75)


@pytest.mark.parametrize("size", [2, 10, 50])
def test_a_perfect_ensemble_has_spread_skill_one(size: int) -> None:
    assert float(spread_skill(*drawn(size, cases=40000, seed=6), dim="case")["ssr"]) == pytest.approx(1, abs=0.02)


def test_one_member_has_an_error_but_no_spread() -> None:
    result = spread_skill(*ensemble([[2.0], [5.0]], [4.0, 4.0]), dim="case")
    assert float(result["rmse"]) == pytest.approx(np.sqrt(2.5))
    assert np.isnan(result["spread"])
    assert np.isnan(result["ssr"])


def test_spread_skill_with_omitted_members_equals_the_smaller_ensemble() -> None:
    forecast, truth = drawn(10)
    holed = forecast.copy()
    holed[:, 9] = np.nan
    found = spread_skill(holed, truth, dim="case", missing="omit")
    xr.testing.assert_allclose(found, spread_skill(forecast[:, :9], truth, dim="case"))


def correlation(f: np.ndarray, o: np.ndarray, w: np.ndarray) -> float:
    return float((w * f * o).sum() / np.sqrt((w * f**2).sum() * (w * o**2).sum()))


def test_acc_known_answers_pooled_and_by_time() -> None:
    forecast, truth, weights = two_fields()
    climatology = xr.zeros_like(truth)
    dims = ("time", "latitude", "longitude")
    pooled = acc(forecast, truth, climatology=climatology, dim=dims, weights=weights)
    by_time = acc(forecast, truth, climatology=climatology, dim=dims[1:], weights=weights)
    assert float(pooled) == pytest.approx(0.452500, abs=1e-6)
    assert float(by_time.mean("time")) == pytest.approx(0.563694, abs=1e-6)
    assert int(pooled["cases"]) == 20


@pytest.mark.parametrize("size", [1, 2, 50])
def test_acc_is_the_uncentred_correlation_of_the_anomalies_of_the_ensemble_mean(size: int) -> None:
    rng = np.random.default_rng(2)
    forecast, truth = drawn(size)
    truth = truth + 0.3 * forecast.mean("number")
    climatology, weights = (xr.DataArray(values, dims="case") for values in (rng.normal(size=200), rng.random(200)))
    f, o = (forecast.mean("number") - climatology).values, (truth - climatology).values
    found = acc(forecast, truth, climatology=climatology, dim="case", weights=weights)
    assert float(found) == pytest.approx(correlation(f, o, weights.values), abs=1e-12)
    single = acc(forecast.mean("number"), truth, climatology=climatology, dim="case", weights=weights)
    assert float(single) == pytest.approx(float(found), abs=1e-12)


def test_acc_knows_nothing_of_amplitude_and_little_of_anomalies_that_are_zero() -> None:
    forecast, truth = drawn(5)
    zero = xr.zeros_like(truth)
    for scale in (0.1, 1, 7):
        assert float(acc(scale * truth, truth, climatology=zero, dim="case")) == pytest.approx(1, abs=1e-14)
        assert float(acc(-scale * truth, truth, climatology=zero, dim="case")) == pytest.approx(-1, abs=1e-14)
    assert -1 <= float(acc(truth, truth, climatology=zero, dim="case")) <= 1
    assert np.isnan(acc(zero, truth, climatology=zero, dim="case"))
    assert np.isnan(acc(forecast, truth, climatology=truth, dim="case"))


def test_acc_leaves_out_cases_with_anything_missing() -> None:
    forecast, truth = drawn(5)
    climatology = xr.zeros_like(truth)
    forecast[0, 2], truth[1], climatology[2] = np.nan, np.nan, np.nan
    found = acc(forecast, truth, climatology=climatology, dim="case")
    expected = acc(forecast[3:], truth[3:], climatology=climatology[3:], dim="case")
    assert float(found) == pytest.approx(float(expected), abs=1e-14)
    assert int(found["cases"]) == 197
    assert int(acc(forecast, truth, climatology=climatology, dim="case", missing="omit")["cases"]) == 198
    with pytest.raises(InputError, match="1 cases without truth, 1 with a missing member"):
        acc(forecast, truth, climatology=climatology, dim="case", missing="raise")
    with pytest.raises(InputError, match="climatology holds 1;"):
        acc(forecast[3:], truth[3:], climatology=climatology[2:-1], dim="case", missing="raise")
    with pytest.raises(InputError, match="climatology holds 1 infinite"):
        acc(forecast, truth, climatology=climatology.fillna(np.inf), dim="case")
    with pytest.raises(InputError, match="different coordinates"):
        acc(forecast, truth.assign_coords(case=range(200)), climatology=climatology.assign_coords(case=range(1, 201)), dim="case")


def test_acc_of_float32_fields_near_1e5_loses_nothing() -> None:
    forecast, truth = ((array * 50 + 101325).astype(np.float32) for array in drawn(20))
    climatology = xr.full_like(truth, 101325)
    found = acc(forecast, truth, climatology=climatology, dim="case")
    f, o = (forecast.astype(float) - 101325).mean("number").values, truth.values.astype(float) - 101325
    assert float(found) == pytest.approx(correlation(f, o, np.ones(200)), abs=1e-12)


def test_conditional_spread_skill_is_spread_skill_of_the_cases_of_each_bin() -> None:
    rng = np.random.default_rng(3)
    scale = rng.uniform(0.2, 3, size=(300, 1))
    forecast, truth = ensemble(scale * rng.normal(size=(300, 10)), scale[:, 0] * rng.normal(size=300))
    weights = xr.DataArray(rng.random(300), dims="case")
    spread = forecast.std("number", ddof=1)
    edges = [0.5, 1, 2, np.inf]
    found = conditional_spread_skill(forecast, truth, bins=edges, dim="case", weights=weights)
    for k, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = np.flatnonzero((spread >= low) & (spread < high))
        alone = spread_skill(forecast[inside], truth[inside], dim="case", weights=weights[inside])
        for name in ("spread", "rmse", "ssr", "variance", "mse"):
            assert float(found[name][k]) == pytest.approx(float(alone[name]), rel=1e-12), name
        assert int(found["cases"][k]) == inside.size
        assert (float(found["lower"][k]), float(found["upper"][k])) == (low, high)
    assert found["ssr"].dims == ("bin",)
    assert found["lower"].attrs["units"] == "K"


def test_a_perfect_ensemble_has_spread_skill_one_in_every_bin_and_a_wrong_one_does_not_hide() -> None:
    rng = np.random.default_rng(4)
    scale = np.where(rng.random((40000, 1)) < 0.5, 1.0, 4.0)
    members, truth = scale * rng.normal(size=(40000, 50)), scale[:, 0] * rng.normal(size=40000)
    bins = [0, 2, 10]
    good = conditional_spread_skill(*ensemble(members, truth), bins=bins, dim="case")
    np.testing.assert_allclose(good["ssr"], 1, atol=0.02)
    shuffled = rng.permutation(40000)
    wrong = ensemble(members, truth[shuffled])
    assert float(spread_skill(*wrong, dim="case")["ssr"]) == pytest.approx(1, abs=0.02)
    ratios = conditional_spread_skill(*wrong, bins=bins, dim="case")["ssr"]
    assert float(ratios[0]) < 0.5
    assert float(ratios[1]) > 1.2


def test_bins_without_cases_and_missing_members_follow_the_policy() -> None:
    forecast, truth = ensemble([[0.0, 1, 2, np.nan], [0, 4, 8, 4], [0, 1, 2, 1]], [1.0, 2, np.nan])
    found = conditional_spread_skill(forecast, truth, bins=[0, 2, 4, 6], dim="case")
    np.testing.assert_array_equal(found["cases"], [0, 1, 0])
    np.testing.assert_array_equal(np.isnan(found["ssr"]), [True, False, True])
    omitted = conditional_spread_skill(forecast, truth, bins=[0, 2, 4, 6], dim="case", missing="omit")
    np.testing.assert_array_equal(omitted["cases"], [1, 1, 0])
    assert float(omitted["variance"][0]) == pytest.approx(1)
    with pytest.raises(InputError, match="1 cases without truth, 1 with a missing member"):
        conditional_spread_skill(forecast, truth, bins=[0, 2], dim="case", missing="raise")
    alone = conditional_spread_skill(forecast[:, :1], truth, bins=[0, 2], dim="case")
    assert int(alone["cases"][0]) == 0


@pytest.mark.parametrize("bins", [[1], [0, 0, 1], [2, 1], [0, np.nan], [[0, 1], [2, 3]]])
def test_bins_that_do_not_increase_are_refused(bins: Any) -> None:
    with pytest.raises(InputError, match="increasing edges"):
        conditional_spread_skill(*drawn(5), bins=bins, dim="case")


@pytest.mark.parametrize("score", [rmse, bias, spread_skill])
def test_missing_members_are_left_out_or_raise_in_every_mean(score: Any) -> None:
    forecast, truth = drawn(5)
    forecast[0, 1], truth[1] = np.nan, np.nan
    found = score(forecast, truth, dim="case")
    assert int(found["cases"]) == 198
    xr.testing.assert_allclose(found, score(forecast[2:], truth[2:], dim="case"))
    assert int(score(forecast, truth, dim="case", missing="omit")["cases"]) == 199
    with pytest.raises(InputError, match="1 cases without truth, 1 with a missing member"):
        score(forecast, truth, dim="case", missing="raise")
    with pytest.raises(InputError, match="missing='skip'"):
        score(forecast, truth, dim="case", missing="skip")
    with pytest.raises(InputError, match="forecast holds infinite"):
        score(forecast.fillna(np.inf), truth, dim="case")


def test_a_constant_ensemble_has_spread_skill_zero_and_a_perfect_one_none() -> None:
    forecast, truth = ensemble([[1.0, 1], [2, 2]], [0.0, 0])
    assert float(spread_skill(forecast, truth, dim="case")["ssr"]) == 0
    assert np.isnan(spread_skill(forecast, forecast[:, 0], dim="case")["ssr"])


def test_ranks_share_ties_evenly() -> None:
    forecast, truth = ensemble([0.0, 0, 1, 3], 0.0)
    np.testing.assert_allclose(rank_histogram(forecast, truth, dim="case"), [1 / 3, 1 / 3, 1 / 3, 0, 0])


def test_ranks_of_a_calibrated_half_zero_ensemble_are_flat() -> None:
    rng = np.random.default_rng(7)
    values = np.maximum(rng.normal(size=(20000, 10)), 0)
    found = rank_histogram(*ensemble(values[:, :9], values[:, 9]), dim="case")
    np.testing.assert_allclose(found, 0.1, atol=0.006)
    assert float(found.sum()) == pytest.approx(1)


def test_ranks_leave_out_missing_cases_and_refuse_unequal_ensembles() -> None:
    forecast, truth = ensemble([[1.0, 2], [np.nan, 2], [1, 2]], [3.0, 3, np.nan])
    found = rank_histogram(forecast, truth, dim="case")
    np.testing.assert_array_equal(found, [0, 0, 1])
    assert int(found["cases"]) == 1
    with pytest.raises(InputError, match="unequal size"):
        rank_histogram(forecast, truth, dim="case", missing="omit")


def test_weights_count_as_repeated_cases() -> None:
    forecast, truth = drawn(5, cases=6)
    weights = xr.DataArray([1, 2, 3, 1, 1, 2], dims="case")
    repeated = np.repeat(np.arange(6), weights)
    for function in (rmse, bias, rank_histogram):
        found = function(forecast, truth, dim="case", weights=weights)
        np.testing.assert_allclose(found, function(forecast[repeated], truth[repeated], dim="case"), rtol=1e-12)


STATIONS = [
    ("ecmwf_ens_t2m_magdeburg_24h.nc", 4454, 0.987950, 0.980240, 1.602896, 0.796779),
    ("ecmwf_ens_t2m_magdeburg_48h.nc", 4460, 1.053359, 1.041912, 1.762270, 1.176405),
    ("gefs_reforecast_tmin_innsbruck.nc", 2749, 8.549447, 8.509869, 9.804845, 1.108003),
    ("gefs_reforecast_precip_innsbruck.nc", 2749, 2.394279, 2.345765, 4.671861, 1.533737),
    ("uwme_t2m_48h_pacific_northwest.nc", 36826, 2.169621, 2.121517, 3.231117, 0.807302),
]


@pytest.mark.parametrize(("file", "cases", "ecdf", "fair", "error", "spread"), STATIONS)
def test_real_ensembles_at_stations(
    shared_data: Any, file: str, cases: int, ecdf: float, fair: float, error: float, spread: float
) -> None:
    with xr.open_dataset(shared_data("ens-stations") / file) as data:
        (member_dim,) = set(data["fc"].dims) - set(data["obs"].dims)
        forecast, truth = data["fc"].load(), data["obs"].load()
    (case_dim,) = truth.dims
    found = spread_skill(forecast, truth, dim=case_dim, member_dim=member_dim)
    assert int(found["cases"]) == cases
    assert float(crps(forecast, truth, member_dim=member_dim, estimator="ecdf").mean()) == pytest.approx(ecdf, abs=6e-7)
    assert float(crps(forecast, truth, member_dim=member_dim).mean()) == pytest.approx(fair, abs=6e-7)
    assert float(found["rmse"]) == pytest.approx(error, abs=6e-7)
    assert float(found["spread"]) == pytest.approx(spread, abs=6e-7)
