"""The public scores: known answers, brute force, peers, properties, missing values, dask."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import properscoring
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from verification import area_weights, bias, crps, crps_gaussian, rank_histogram, rmse, spread_skill

FOUR_CASES = np.array([[2.0, 5, 3, 9], [1, 2, 4, 4], [0, 1, 3, 6], [2, 4, 6, 8]])
FOUR_TRUTHS = np.array([4.0, 0, 7, 4])


def ensemble(members: Any, truth: Any) -> tuple[xr.DataArray, xr.DataArray]:
    """One case (M,) or several (case, M) as DataArrays."""
    members, truth = np.atleast_2d(np.asarray(members)), np.atleast_1d(np.asarray(truth))
    return xr.DataArray(members, dims=("case", "number"), attrs={"units": "K"}), xr.DataArray(truth, dims="case")


def drawn(size: int, cases: int = 200, seed: int = 0) -> tuple[xr.DataArray, xr.DataArray]:
    rng = np.random.default_rng(seed)
    return ensemble(rng.normal(size=(cases, size)), rng.normal(size=cases))


def pairwise(members: np.ndarray) -> float:
    return float(np.mean([abs(a - b) for a, b in itertools.permutations(members, 2)]))


@pytest.mark.parametrize(
    ("members", "truth", "arguments", "expected"),
    [
        ([2, 5, 3, 9], 4, {"estimator": "ecdf"}, 0.8125),
        ([2, 5, 3, 9], 4, {}, 1 / 3),
        ([2, 5, 3, 9], 4, {"estimator": "almost_fair"}, 0.357291666667),
        ([2, 5, 3, 9], 4, {"estimator": "size", "size": 2}, 1.291666666667),
        ([2, 5, 3, 9], 4, {"estimator": "size", "size": 4}, 0.8125),
        ([2, 5, 3, 9], 4, {"estimator": "size", "size": 50}, 0.371666666667),
        ([0, 1, 2], 1, {"estimator": "ecdf"}, 2 / 9),
        ([0, 1, 2], 1, {}, 0),
        ([0, 0, 0, 3], 0, {"estimator": "ecdf"}, 0.1875),
        ([0, 0, 0, 3], 0, {}, 0),
        ([0, 0, 1], 0, {"estimator": "ecdf"}, 1 / 9),
        ([0, 0, 1], 0, {}, 0),
        ([4, 4, 4, 9], 4, {"estimator": "ecdf"}, 0.3125),
        ([4, 4, 4, 9], 4, {"estimator": "almost_fair"}, 0.015625),
        ([4, 4, 4, 9], 4, {}, 0),
        ([2], 4, {"estimator": "ecdf"}, 2),
    ],
)
def test_crps_known_answers(members: list[float], truth: float, arguments: dict[str, Any], expected: float) -> None:
    forecast, observed = ensemble(np.array(members, dtype=float), float(truth))
    assert float(crps(forecast, observed, **arguments)[0]) == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("estimator", ["fair", "almost_fair", "size"])
def test_one_member_has_no_fair_score(estimator: Any) -> None:
    forecast, truth = ensemble([2.0], 4.0)
    assert np.isnan(crps(forecast, truth, estimator=estimator, size=5 if estimator == "size" else None)).all()


@pytest.mark.parametrize("size", [2, 5, 50])
@pytest.mark.parametrize("offset", [0, 101325])
def test_fair_is_properscoring_less_half_the_pairwise_difference_over_m(size: int, offset: float) -> None:
    forecast, truth = drawn(size)
    forecast, truth = forecast + offset, truth + offset
    reference = properscoring.crps_ensemble(truth.values, forecast.values)
    difference = np.array([pairwise(row) for row in forecast.values])
    tolerance = 1e-12 if offset == 0 else 1e-9  # properscoring sums around 1e5 in float64
    np.testing.assert_allclose(crps(forecast, truth), reference - difference / (2 * size), rtol=0, atol=tolerance)
    np.testing.assert_allclose(crps(forecast, truth, estimator="ecdf"), reference, rtol=0, atol=tolerance)


def test_ties_with_the_truth_agree_with_properscoring() -> None:
    rng = np.random.default_rng(0)
    rain = np.maximum(np.round(rng.normal(size=(500, 11)), 1), 0)
    forecast, truth = ensemble(rain[:, :10], rain[:, 10])
    np.testing.assert_allclose(
        crps(forecast, truth, estimator="ecdf"), properscoring.crps_ensemble(truth.values, forecast.values), atol=1e-13
    )


def test_a_calibrated_half_zero_ensemble_scores_as_brute_force() -> None:
    rng = np.random.default_rng(1)
    values = np.maximum(rng.normal(size=(8000, 11)), 0)
    forecast, truth = ensemble(values[:, :10], values[:, 10])
    pairs = np.abs(values[:, :10, None] - values[:, None, :10]).mean(axis=(1, 2))
    expected = np.abs(values[:, :10] - values[:, 10:]).mean(axis=1) - pairs / 2
    np.testing.assert_allclose(crps(forecast, truth, estimator="ecdf"), expected, atol=1e-13)
    assert float(crps(forecast, truth, estimator="ecdf").mean()) == pytest.approx(0.3128, abs=0.01)


@pytest.mark.parametrize("size", [2, 8, 50])
def test_the_fair_score_of_a_perfect_ensemble_does_not_depend_on_its_size(size: int) -> None:
    scores = crps(*drawn(size, cases=20000, seed=2))
    assert float(scores.mean()) == pytest.approx(1 / np.sqrt(np.pi), abs=3 * float(scores.std()) / np.sqrt(20000))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20),
    st.floats(-1e3, 1e3),
    st.floats(-1e3, 1e3),
    st.floats(0.01, 100),
    st.integers(2, 4),
)
def test_crps_shifts_scales_and_repeats(members: list[float], truth: float, shift: float, scale: float, copies: int) -> None:
    forecast, observed = ensemble(members, truth)
    for estimator in ("fair", "ecdf", "almost_fair"):
        score = crps(forecast, observed, estimator=estimator)  # type: ignore[arg-type]
        moved = crps(scale * forecast + shift, scale * observed + shift, estimator=estimator)  # type: ignore[arg-type]
        np.testing.assert_allclose(moved, scale * score, rtol=1e-9, atol=1e-9 * scale * 1e3)
        assert (score > -1e-12 * 1e3).all()
    repeated = xr.concat([forecast] * copies, "number")
    once, often = (crps(array, observed, estimator="ecdf") for array in (forecast, repeated))
    np.testing.assert_allclose(often, once, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "dims", [("number", "time", "lat"), ("time", "number", "lat"), ("time", "lat", "number"), ("lat", "number", "time")]
)
def test_any_dim_order_gives_the_same_score(dims: tuple[str, ...]) -> None:
    rng = np.random.default_rng(3)
    forecast = xr.DataArray(rng.normal(size=(6, 7, 300)), dims=("time", "number", "lat"))
    truth = xr.DataArray(rng.normal(size=(6, 300)), dims=("time", "lat"))
    expected = crps(forecast, truth)
    xr.testing.assert_allclose(crps(forecast.transpose(*dims), truth).transpose("time", "lat"), expected, rtol=1e-13)
    xr.testing.assert_allclose(
        crps(forecast.isel(lat=slice(None, None, -1)), truth.isel(lat=slice(None, None, -1)))[:, ::-1], expected
    )


def test_truth_broadcasts_over_the_dims_it_lacks() -> None:
    rng = np.random.default_rng(4)
    forecast = xr.DataArray(rng.normal(size=(3, 5, 8)), dims=("time", "number", "point"))
    truth = xr.DataArray(rng.normal(size=8), dims="point")
    xr.testing.assert_equal(crps(forecast, truth), crps(forecast, truth.expand_dims(time=3)))
    single = xr.DataArray(rng.normal(size=(5, 8)), dims=("number", "point"))
    many = xr.DataArray(rng.normal(size=(3, 8)), dims=("time", "point"))
    np.testing.assert_array_equal(crps(single, many).transpose("time", "point"), crps(single.expand_dims(time=3), many))


def test_dask_input_stays_lazy_and_gives_the_same_bits() -> None:
    forecast, truth = drawn(9, cases=1000)
    lazy, lazy_truth = forecast.chunk(case=137, number=4), truth.chunk(case=137)
    for function in (crps, lambda f, t: rmse(f, t, dim="case"), lambda f, t: rank_histogram(f, t, dim="case")):
        result = function(lazy, lazy_truth)
        assert result.chunks is not None
        np.testing.assert_allclose(result.compute(), function(forecast, truth), rtol=1e-13)


def test_float32_fields_near_1e5_score_as_their_float64_values() -> None:
    forecast, truth = drawn(50)
    forecast, truth = (forecast * 50 + 101325).astype(np.float32), (truth * 50 + 101325).astype(np.float32)
    np.testing.assert_allclose(crps(forecast, truth), crps(forecast.astype(float), truth.astype(float)), rtol=1e-12, atol=1e-12)


def test_missing_values_propagate_are_omitted_or_raise() -> None:
    rows = [[2, 5, 3, 9, np.nan], [2, 5, 3, 9, 9], [np.nan, 5, np.nan, np.nan, np.nan], [1, 2, 3, 4, 5], [np.nan] * 5]
    forecast, truth = ensemble(rows, [4.0, 4, 4, np.nan, 1])
    np.testing.assert_array_equal(np.isnan(crps(forecast, truth)), [True, False, True, True, True])
    omitted = crps(forecast, truth, missing="omit")
    assert float(omitted[0]) == pytest.approx(1 / 3)
    np.testing.assert_array_equal(np.isnan(omitted), [False, False, True, True, True])
    with pytest.raises(InputError, match="1 cases without truth, 3 with a missing member"):
        crps(forecast, truth, missing="raise")
    assert np.isfinite(crps(forecast[1:2], truth[1:2], missing="raise")).all()


@pytest.mark.parametrize("estimator", ["fair", "size"])
def test_omitting_equals_scoring_the_members_that_are_there(estimator: Any) -> None:
    forecast, truth = drawn(10, cases=500)
    size = 7 if estimator == "size" else None
    holed = forecast.copy()
    holed[:, 9] = np.nan
    np.testing.assert_allclose(
        crps(holed, truth, missing="omit", estimator=estimator, size=size),
        crps(forecast[:, :9], truth, estimator=estimator, size=size),
        rtol=1e-12, atol=1e-13,
    )  # fmt: skip


@pytest.mark.parametrize("estimator", ["ecdf", "almost_fair"])
def test_omitting_is_refused_where_it_mixes_biases(estimator: Any) -> None:
    with pytest.raises(InputError, match="mixes ensemble sizes"):
        crps(*drawn(5), estimator=estimator, missing="omit")


@pytest.mark.parametrize("where", ["forecast", "truth"])
def test_infinite_values_are_an_error(where: str) -> None:
    forecast, truth = drawn(5)
    (forecast if where == "forecast" else truth)[3] = np.inf
    with pytest.raises(InputError, match=f"{where} holds .*infinite"):
        crps(forecast, truth)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"estimator": "pwm"}, "estimator 'pwm' is not known"),
        ({"missing": "skip"}, "missing='skip'"),
        ({"member_dim": "realization"}, "expected a member dim 'realization'"),
        ({"estimator": "size"}, "takes a size"),
        ({"size": 5}, "takes a size"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        crps(*drawn(5), **arguments)


def test_unequal_coordinates_are_refused_not_intersected() -> None:
    forecast, truth = (array.assign_coords(case=np.arange(200)) for array in drawn(5))
    with pytest.raises(InputError, match="different coordinates"):
        crps(forecast, truth.assign_coords(case=np.arange(200) + 1))


def test_scores_know_their_units_and_policy() -> None:
    score = crps(*drawn(5))
    policy = {"units": "K", "estimator": "fair", "members": 5, "missing": "propagate"}
    assert score.attrs == {"long_name": "continuous ranked probability score", **policy}
    assert spread_skill(*drawn(5), dim="case")["mse"].attrs["units"] == "(K)^2"


@pytest.mark.parametrize(("truth", "expected"), [(0.0, 0.233694977), (1.0, 0.602441358)])
def test_gaussian_crps(truth: float, expected: float) -> None:
    mean, std = xr.DataArray([0.0]), xr.DataArray([1.0])
    assert float(crps_gaussian(mean, std, xr.DataArray([truth]))[0]) == pytest.approx(expected, abs=1e-9)
    assert float(crps_gaussian(mean, std * 0, xr.DataArray([truth]))[0]) == truth
    with pytest.raises(InputError, match="negative"):
        crps_gaussian(mean, -std, xr.DataArray([truth]))


def test_a_large_ensemble_approaches_the_gaussian_score() -> None:
    rng = np.random.default_rng(5)
    forecast, truth = ensemble(rng.normal(3, 2, size=(400, 500)), np.full(400, 4.0))
    exact = crps_gaussian(xr.full_like(truth, 3.0), xr.full_like(truth, 2.0), truth)
    assert float(crps(forecast, truth).mean()) == pytest.approx(float(exact[0]), abs=0.01)


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


@pytest.mark.parametrize(("date", "cases", "published"), [("2004-01-29", 715, 1.945544), ("2004-01-31", 712, 1.590730)])
def test_the_published_score_of_the_washington_ensemble(shared_data: Any, date: str, cases: int, published: float) -> None:
    with xr.open_dataset(shared_data("ens-stations") / "uwme_t2m_48h_pacific_northwest.nc") as data:
        on_day = data["time"].values.astype("datetime64[D]") == np.datetime64(date)
        day = data[["fc", "obs"]].isel(case=np.flatnonzero(on_day)).load()
    (member_dim,) = set(day["fc"].dims) - {"case"}
    scores = crps(day["fc"], day["obs"], member_dim=member_dim, estimator="ecdf")
    assert int(scores.notnull().sum()) == cases
    assert float(scores.mean()) == pytest.approx(published, abs=6e-7)
