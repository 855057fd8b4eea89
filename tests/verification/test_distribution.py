"""CRPS, threshold-weighted and parametric CRPS: known answers, brute force, peers, properties, missing values, dask."""

from __future__ import annotations

from typing import Any

import numpy as np
import properscoring
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from data_pipeline.errors import InputError
from tests.verification.ensembles import PEERS, drawn, ensemble, pairwise, rain
from verification import crps, crps_gaussian, crps_quadrature, twcrps


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
    forecast, truth = rain(10, cases=500)
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


@pytest.mark.parametrize(("date", "cases", "published"), [("2004-01-29", 715, 1.945544), ("2004-01-31", 712, 1.590730)])
def test_the_published_score_of_the_washington_ensemble(shared_data: Any, date: str, cases: int, published: float) -> None:
    with xr.open_dataset(shared_data("ens-stations") / "uwme_t2m_48h_pacific_northwest.nc") as data:
        on_day = data["time"].values.astype("datetime64[D]") == np.datetime64(date)
        day = data[["fc", "obs"]].isel(case=np.flatnonzero(on_day)).load()
    (member_dim,) = set(day["fc"].dims) - {"case"}
    scores = crps(day["fc"], day["obs"], member_dim=member_dim, estimator="ecdf")
    assert int(scores.notnull().sum()) == cases
    assert float(scores.mean()) == pytest.approx(published, abs=6e-7)


def integrated(members: np.ndarray, truth: float, lower: float, upper: float) -> float:
    """The integral of (F(z) - 1{y <= z})^2 from lower to upper, exactly: F and the step are constant between their jumps."""
    edges = np.unique(np.clip(np.concatenate([members, [truth, lower, upper]]), lower, upper))
    middle = (edges[1:] + edges[:-1]) / 2
    heights = (members[None, :] <= middle[:, None]).mean(axis=1) - (truth <= middle)
    return float((heights**2 * np.diff(edges)).sum())


@pytest.mark.parametrize(
    ("thresholds", "estimator", "expected"),
    [
        ({"lower": 4}, "ecdf", 0.5),
        ({"lower": 4}, "fair", 1 / 6),
        ({"lower": 3, "upper": 6}, "ecdf", 0.5625),
        ({"lower": 3, "upper": 6}, "fair", 1 / 3),
        ({"lower": 10}, "ecdf", 0),
        ({"lower": 4, "upper": 4}, "ecdf", 0),
        ({}, "ecdf", 0.8125),
        ({"lower": -np.inf, "upper": np.inf}, "ecdf", 0.8125),
    ],
)
def test_twcrps_known_answers(thresholds: dict[str, float], estimator: Any, expected: float) -> None:
    forecast, truth = ensemble([2.0, 5, 3, 9], 4.0)
    assert float(twcrps(forecast, truth, estimator=estimator, **thresholds)[0]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("size", [1, 2, 50])
@pytest.mark.parametrize(("lower", "upper"), [(0.3, 40), (-40, 0.3), (-0.5, 1.0), (0.0, 0.1)])
def test_twcrps_is_the_integral_between_the_thresholds(size: int, lower: float, upper: float) -> None:
    for forecast, truth in (drawn(size), rain(size)):
        expected = [integrated(x, y, lower, upper) for x, y in zip(forecast.values, truth.values, strict=True)]
        found = twcrps(forecast, truth, lower=lower, upper=upper, estimator="ecdf")
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20), st.floats(-1e3, 1e3), st.floats(-1.1e3, 1.1e3))
def test_the_two_tails_add_up_to_the_crps(members: list[float], truth: float, threshold: float) -> None:
    forecast, observed = ensemble(members, truth)
    for estimator in ("ecdf", "fair", "almost_fair"):
        whole = crps(forecast, observed, estimator=estimator)  # type: ignore[arg-type]
        tails = [
            twcrps(forecast, observed, estimator=estimator, **{side: threshold})  # type: ignore[arg-type]
            for side in ("lower", "upper")
        ]
        np.testing.assert_allclose(sum(tails), whole, rtol=0, atol=1e-12 * 1e3)


def test_twcrps_agrees_with_other_packages() -> None:
    scores = pytest.importorskip("scores", reason=PEERS)
    scoringrules = pytest.importorskip("scoringrules", reason=PEERS)
    for forecast, truth in (drawn(10), rain(10)):
        for method in ("ecdf", "fair"):
            found = twcrps(forecast, truth, lower=0.5, estimator=method)  # type: ignore[arg-type]
            peer = scores.probability.tail_tw_crps_for_ensemble(
                forecast, truth, "number", 0.5, method=method, preserve_dims="all"
            )
            np.testing.assert_allclose(found, peer, rtol=0, atol=1e-12)
        inside = scoringrules.twcrps_ensemble(truth.values, forecast.values, a=-0.2, b=0.7, estimator="nrg", backend="numpy")
        np.testing.assert_allclose(twcrps(forecast, truth, lower=-0.2, upper=0.7, estimator="ecdf"), inside, rtol=0, atol=1e-12)


def test_a_threshold_may_vary_by_case_and_bring_its_own_dim() -> None:
    forecast, truth = drawn(8, cases=20)
    thresholds = xr.DataArray(np.random.default_rng(1).normal(size=(3, 20)), dims=("quantile", "case"), name="climate")
    found = twcrps(forecast, truth, lower=thresholds)
    assert found.attrs["lower"] == "climate by quantile, case"
    for q in range(3):
        for case in range(20):
            alone = twcrps(forecast[case], truth[case], lower=float(thresholds[q, case]))
            assert float(found.isel(quantile=q, case=case)) == pytest.approx(float(alone), abs=1e-14)


def test_a_missing_threshold_leaves_the_case_out_and_a_missing_member_stays_missing() -> None:
    forecast, truth = ensemble([[1.0, 2, 3], [1, np.nan, 3], [1, 2, 3]], [2.0, 2, np.nan])
    threshold = xr.DataArray([np.nan, 1.5, 1.5], dims="case")
    np.testing.assert_array_equal(np.isnan(twcrps(forecast, truth, lower=1.5)), [False, True, True])
    np.testing.assert_array_equal(np.isnan(twcrps(forecast, truth, lower=threshold)), [True, True, True])
    omitted = twcrps(forecast, truth, lower=1.5, missing="omit")
    assert float(omitted[1]) == pytest.approx(float(twcrps(forecast[1:2, ::2], truth[1:2], lower=1.5)[0]))
    with pytest.raises(InputError, match="2 cases without truth, 1 with a missing member"):
        twcrps(forecast, truth, lower=threshold, missing="raise")


@pytest.mark.parametrize("where", ["forecast", "truth"])
def test_clipping_does_not_hide_infinite_values(where: str) -> None:
    forecast, truth = drawn(5)
    (forecast if where == "forecast" else truth)[3] = np.inf
    with pytest.raises(InputError, match=f"{where} holds .*infinite"):
        twcrps(forecast, truth, upper=1)


def test_thresholds_that_cross_or_know_the_members_are_refused() -> None:
    forecast, truth = drawn(5)
    with pytest.raises(InputError, match="lower lies above upper in 1 places"):
        twcrps(forecast, truth, lower=1, upper=0)
    with pytest.raises(InputError, match="must not depend on the forecast"):
        twcrps(forecast, truth, lower=forecast)
    with pytest.raises(InputError, match="different coordinates"):
        twcrps(forecast.assign_coords(case=range(200)), truth, lower=truth.assign_coords(case=range(1, 201)))


def test_twcrps_of_float32_fields_near_1e5_loses_nothing() -> None:
    forecast, truth = drawn(50)
    forecast, truth = (forecast * 50 + 101325).astype(np.float32), (truth * 50 + 101325).astype(np.float32)
    found = twcrps(forecast, truth, lower=101350.0)
    expected = twcrps(forecast.astype(float), truth.astype(float), lower=101350.0)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    # members and truth below a threshold that float32 does not hold are all on it, not beside it
    mixed = twcrps(forecast, truth.astype(float), lower=np.nextafter(1e6, 2e6))
    np.testing.assert_array_equal(mixed, 0)


def test_gaussian_crps_of_a_missing_value_is_missing_and_unequal_coordinates_are_refused() -> None:
    mean, std = xr.DataArray([0.0, np.nan, 0], dims="case"), xr.DataArray([1.0, 1, np.nan], dims="case")
    np.testing.assert_array_equal(np.isnan(crps_gaussian(mean, std, mean)), [False, True, True])
    mean, std = mean.assign_coords(case=[0, 1, 2]), std.assign_coords(case=[1, 2, 3])
    with pytest.raises(InputError, match="different coordinates"):
        crps_gaussian(mean, std, mean)


@pytest.mark.parametrize("distribution", [stats.norm(1, 2), stats.norm(1, 2).cdf])
def test_quadrature_reaches_the_gaussian_score(distribution: Any) -> None:
    truth = xr.DataArray([[-9.0, 0], [1, 30]], dims=("time", "station"), attrs={"units": "K"})
    found = crps_quadrature(distribution, truth)
    np.testing.assert_allclose(found, crps_gaussian(xr.full_like(truth, 1), xr.full_like(truth, 2), truth), rtol=0, atol=1e-6)
    assert found.dims == truth.dims
    assert (found.attrs["units"], found.attrs["tolerance"]) == ("K", 1e-6)


def test_quadrature_takes_parameters_by_case_and_distributions_by_case() -> None:
    mean, std = np.array([0.0, 1, 2]), np.array([[1.0], [3]])
    truth = xr.DataArray(np.ones((2, 3)), dims=("time", "station"))
    found = crps_quadrature(stats.norm(mean, scale=std), truth)
    expected = crps_gaussian(xr.DataArray(mean, dims="station"), xr.DataArray(std[:, 0], dims="time"), truth)
    np.testing.assert_allclose(found, expected.transpose(*truth.dims), rtol=0, atol=1e-6)
    each = xr.DataArray(np.array([stats.norm(0, 1), stats.norm(1, 1), stats.norm(2, 1)], dtype=object), dims="station")
    np.testing.assert_allclose(crps_quadrature(each, truth)[0], found[0], rtol=0, atol=1e-12)
    with pytest.raises(InputError, match=r"parameters of shape \(4,\)"):
        crps_quadrature(stats.norm(np.zeros(4)), truth)


def test_quadrature_agrees_with_closed_forms_of_skewed_and_heavy_tailed_distributions() -> None:
    scoringrules = pytest.importorskip("scoringrules", reason=PEERS)
    truth = xr.DataArray([0.1, 1.0, 7.0], dims="case")
    gamma = scoringrules.crps_gamma(truth.values, 2.0, scale=1.5, backend="numpy")
    np.testing.assert_allclose(crps_quadrature(stats.gamma(2, scale=1.5), truth), gamma, rtol=0, atol=1e-6)
    student = scoringrules.crps_t(truth.values, 6.0, backend="numpy")
    np.testing.assert_allclose(crps_quadrature(stats.t(6), truth), student, rtol=0, atol=1e-6)


def test_quadrature_says_so_where_it_cannot_or_has_nothing() -> None:
    truth = xr.DataArray([1.0, np.nan], dims="case")
    np.testing.assert_array_equal(np.isnan(crps_quadrature(stats.norm(), truth)), [False, True])
    assert np.isnan(crps_quadrature(stats.norm([np.nan, 0], 1), truth)).all()
    with pytest.raises(InputError, match="tolerance 1e-06 is not reached at truth 1"):
        crps_quadrature(stats.norm(), truth, lower=0, upper=9)
    with pytest.raises(InputError, match="give both"):
        crps_quadrature(stats.norm(), truth, lower=-9)
    with pytest.raises(InputError, match="truth holds 1 infinite"):
        crps_quadrature(stats.norm(), truth.fillna(np.inf))
    with pytest.raises(InputError, match="expected a positive error"):
        crps_quadrature(stats.norm(), truth, tolerance=0)


def test_dask_input_stays_lazy_and_gives_the_same_scores() -> None:
    forecast, truth = rain(9)
    lazy, lazy_truth = forecast.chunk(case=37, number=4), truth.chunk(case=37)
    for function in (
        lambda f, t: twcrps(f, t, lower=t.mean(), upper=1.0),
        lambda f, t: crps_gaussian(f.mean("number"), f.std("number"), t),
        lambda f, t: crps_quadrature(stats.norm(), t[:5]),
    ):
        result = function(lazy, lazy_truth)
        assert result.chunks is not None
        np.testing.assert_allclose(result.compute(), function(forecast, truth), rtol=1e-12, atol=1e-14)
