"""Energy and variogram score: known answers, brute force, peers, properties, missing values, dask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import InputError
from tests.verification.ensembles import PEERS, drawn, rain
from verification import crps, energy_score, variogram_score

TRIANGLE = np.array([[[0.0, 0], [3, 4], [6, 0]]])
CENTRE = np.array([[3.0, 0]])


def vectors(members: Any, truth: Any) -> tuple[xr.DataArray, xr.DataArray]:
    """Members (case, number, part) and truths (case, part)."""
    forecast = xr.DataArray(np.asarray(members), dims=("case", "number", "part"), attrs={"units": "K"})
    return forecast, xr.DataArray(np.asarray(truth), dims=("case", "part"))


def drawn_vectors(size: int, parts: int, cases: int = 6, seed: int = 0) -> tuple[xr.DataArray, xr.DataArray]:
    rng = np.random.default_rng(seed)
    return vectors(rng.normal(size=(cases, size, parts)), rng.normal(size=(cases, parts)))


def energy(x: np.ndarray, y: np.ndarray, w: np.ndarray, fair: bool) -> float:
    """The energy score of one case from its double sum."""
    size = len(x)
    between = sum(np.sqrt((w * (a - b) ** 2).sum()) for a in x for b in x)
    return float(np.mean([np.sqrt((w * (a - y) ** 2).sum()) for a in x]) - between / (2 * size * (size - 1 if fair else size)))


def variogram(x: np.ndarray, y: np.ndarray, w: np.ndarray, p: float) -> float:
    """The variogram score of one case from its double sum."""
    total = 0.0
    for i in range(y.size):
        for j in range(y.size):
            total += w[i, j] * (abs(y[i] - y[j]) ** p - np.mean(np.abs(x[:, i] - x[:, j]) ** p)) ** 2
    return total


def test_energy_score_known_answers() -> None:
    forecast, truth = vectors(TRIANGLE, CENTRE)
    assert float(energy_score(forecast, truth, dim="part", fair=False)[0]) == pytest.approx(1.555556, abs=1e-6)
    assert float(energy_score(forecast, truth, dim="part")[0]) == pytest.approx(0.666667, abs=1e-6)


@pytest.mark.parametrize(("p", "expected"), [(0.5, 0.677962), (1, 0.888889)])
def test_variogram_score_known_answers(p: float, expected: float) -> None:
    assert float(variogram_score(*vectors(TRIANGLE, CENTRE), dim="part", p=p)[0]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("size", [1, 2, 50])
@pytest.mark.parametrize("draw", [drawn, rain])
def test_with_one_component_the_energy_score_is_the_crps(size: int, draw: Any) -> None:
    forecast, truth = draw(size)
    for fair, estimator in ((True, "fair"), (False, "ecdf")):
        found = energy_score(forecast.expand_dims("part"), truth.expand_dims("part"), dim="part", fair=fair)
        np.testing.assert_allclose(found, crps(forecast, truth, estimator=estimator), rtol=0, atol=1e-12)  # type: ignore[arg-type]


def test_one_member_has_no_fair_score_and_its_distance_otherwise() -> None:
    forecast, truth = vectors([[[3.0, 4]]], [[0.0, 0]])
    assert np.isnan(energy_score(forecast, truth, dim="part")).all()
    assert float(energy_score(forecast, truth, dim="part", fair=False)[0]) == pytest.approx(5)
    assert float(variogram_score(forecast, truth, dim="part", p=1)[0]) == pytest.approx(2)


@pytest.mark.parametrize(("size", "parts"), [(2, 2), (3, 256), (50, 5), (4, 300)])
@pytest.mark.parametrize("weighted", [False, True])
def test_energy_score_is_its_double_sum(size: int, parts: int, weighted: bool) -> None:
    forecast, truth = drawn_vectors(size, parts)
    weights = np.random.default_rng(1).random(parts) if weighted else np.ones(parts)
    argument = xr.DataArray(weights, dims="part") if weighted else None
    for fair in (True, False):
        expected = [energy(x, y, weights, fair) for x, y in zip(forecast.values, truth.values, strict=True)]
        found = energy_score(forecast, truth, dim="part", fair=fair, weights=argument)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.sqrt(parts))


@pytest.mark.parametrize("size", [1, 2, 50])
@pytest.mark.parametrize("p", [0.5, 1, 2, 0.7])
@pytest.mark.parametrize("weighted", ["no", "components", "pairs"])
def test_variogram_score_is_its_double_sum(size: int, p: float, weighted: str) -> None:
    forecast, truth = drawn_vectors(size, 6)
    rng = np.random.default_rng(2)
    each, pairs = rng.random(6), rng.random((6, 6))
    w, argument = {
        "no": (np.ones((6, 6)), None),
        "components": (np.outer(each, each), xr.DataArray(each, dims="part")),
        "pairs": (pairs, xr.DataArray(pairs.T, dims=("part_2", "part"))),
    }[weighted]
    expected = [variogram(x, y, w, p) for x, y in zip(forecast.values, truth.values, strict=True)]
    found = variogram_score(forecast, truth, dim="part", p=p, weights=argument)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_other_packages_agree() -> None:
    scoringrules = pytest.importorskip("scoringrules", reason=PEERS)
    forecast, truth = drawn_vectors(10, 7)
    x, y = forecast.values, truth.values
    for fair, estimator in ((True, "fair"), (False, "nrg")):
        peer = scoringrules.es_ensemble(y, x, estimator=estimator, backend="numpy")
        np.testing.assert_allclose(energy_score(forecast, truth, dim="part", fair=fair), peer, rtol=0, atol=1e-12)
    peer = scoringrules.vs_ensemble(y, x, p=0.5, backend="numpy")
    np.testing.assert_allclose(variogram_score(forecast, truth, dim="part"), peer, rtol=0, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(2, 5), st.floats(-1e3, 1e3), st.floats(0.01, 100), st.integers(0, 1000))
def test_scores_shift_scale_and_do_not_know_the_order_of_members(
    size: int, parts: int, shift: float, scale: float, seed: int
) -> None:
    forecast, truth = drawn_vectors(size, parts, seed=seed)
    moved, moved_truth = scale * forecast.isel(number=slice(None, None, -1)) + shift, scale * truth + shift
    found = energy_score(moved, moved_truth, dim="part")
    np.testing.assert_allclose(found, scale * energy_score(forecast, truth, dim="part"), rtol=0, atol=1e-9)
    assert (found >= -1e-9).all()
    # sqrt loses half the digits of a difference near 0
    found = variogram_score(moved, moved_truth, dim="part", p=1)
    expected = scale**2 * variogram_score(forecast, truth, dim="part", p=1)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * scale**2)


def test_the_fair_energy_score_of_a_perfect_ensemble_does_not_depend_on_its_size() -> None:
    means = []
    for size in (2, 20):
        scores = energy_score(*drawn_vectors(size, 4, cases=4000, seed=3), dim="part")
        means.append((float(scores.mean()), float(scores.std()) / np.sqrt(4000)))
    assert abs(means[0][0] - means[1][0]) < 4 * (means[0][1] + means[1][1])


def test_several_dims_in_any_order_are_one_vector() -> None:
    rng = np.random.default_rng(4)
    forecast = xr.DataArray(rng.normal(size=(5, 3, 2, 4, 6)), dims=("number", "lat", "time", "lon", "channel"))
    truth = xr.DataArray(rng.normal(size=(2, 6, 4, 3)), dims=("time", "channel", "lon", "lat"))
    weights = xr.DataArray(rng.random(3), dims="lat")
    together = forecast.stack(part=("lat", "lon"), create_index=False), truth.stack(part=("lat", "lon"), create_index=False)
    spread_out = (weights * xr.ones_like(truth.isel(time=0, channel=0))).stack(part=("lat", "lon"), create_index=False)
    for score in (energy_score, variogram_score):
        expected = score(*together, dim="part", weights=spread_out).transpose("time", "channel")
        for dims in (("lat", "lon"), ("lon", "lat")):
            found = score(forecast, truth, dim=dims, weights=weights)
            np.testing.assert_allclose(found.transpose("time", "channel"), expected, rtol=0, atol=1e-12)


def test_a_stacked_dim_is_a_dim_like_others() -> None:
    rng = np.random.default_rng(6)
    coords = {"lat": [1, 2], "lon": [1, 2, 3]}
    forecast = xr.DataArray(rng.normal(size=(5, 2, 3)), dims=("number", "lat", "lon"), coords=coords)
    weights = xr.DataArray(rng.random((2, 3)), dims=("lat", "lon"), coords=coords)
    truth = forecast.isel(number=0) + 1
    stacked = [array.stack(part=("lat", "lon")) for array in (forecast, truth, weights)]
    for score in (energy_score, variogram_score):
        found = score(*stacked[:2], dim="part", weights=stacked[2])
        assert float(found) == pytest.approx(float(score(forecast, truth, dim=("lat", "lon"), weights=weights)), abs=1e-14)


def test_truth_broadcasts_over_cases_and_pairs_over_several_dims() -> None:
    forecast, truth = drawn_vectors(5, 6, cases=3)
    two = forecast.values.reshape(3, 5, 2, 3), truth.values.reshape(3, 2, 3)
    split = xr.DataArray(two[0], dims=("case", "number", "a", "b")), xr.DataArray(two[1], dims=("case", "a", "b"))
    pairs = np.random.default_rng(5).random((6, 6))
    weights = xr.DataArray(pairs.reshape(2, 3, 2, 3), dims=("a", "b", "a_2", "b_2"))
    expected = variogram_score(forecast, truth, dim="part", weights=xr.DataArray(pairs, dims=("part", "part_2")))
    np.testing.assert_allclose(variogram_score(*split, dim=("a", "b"), weights=weights), expected, rtol=1e-12)
    one = truth.isel(case=0)
    for score in (energy_score, variogram_score):
        np.testing.assert_array_equal(score(forecast, one, dim="part"), score(forecast, one.expand_dims(case=3), dim="part"))
        np.testing.assert_array_equal(
            score(forecast[0], truth, dim="part"), score(forecast[0].expand_dims(case=3), truth, dim="part")
        )


@pytest.mark.parametrize("size", [20, 30])
def test_float32_fields_near_1e5_lose_nothing(size: int) -> None:
    forecast, truth = drawn_vectors(size, 200)
    forecast, truth = (forecast * 5 + 101325).astype(np.float32), (truth * 5 + 101325).astype(np.float32)
    for score in (energy_score, variogram_score):
        found = score(forecast, truth, dim="part")
        np.testing.assert_allclose(found, score(forecast.astype(float), truth.astype(float), dim="part"), rtol=1e-12)
        shifted = score(forecast.astype(float) - 101325, truth.astype(float) - 101325, dim="part")
        np.testing.assert_allclose(found, shifted, rtol=1e-11)
    assert 10 < float(energy_score(forecast, truth, dim="part").mean()) < 100


def test_one_missing_component_is_a_missing_member() -> None:
    forecast, truth = drawn_vectors(4, 3, cases=4)
    forecast[0, 2, 1], truth[1, 0], forecast[2, :3, 0] = np.nan, np.nan, np.nan
    for score in (energy_score, variogram_score):
        np.testing.assert_array_equal(np.isnan(score(forecast, truth, dim="part")), [True, True, True, False])
        with pytest.raises(InputError, match="1 cases without truth, 2 with a missing member"):
            score(forecast, truth, dim="part", missing="raise")
    omitted = energy_score(forecast, truth, dim="part", missing="omit")
    np.testing.assert_array_equal(np.isnan(omitted), [False, True, True, False])
    rest = energy_score(forecast.isel(case=[0], number=[0, 1, 3]), truth[:1], dim="part")
    assert float(omitted[0]) == pytest.approx(float(rest[0]), abs=1e-14)


def test_omitting_is_refused_where_it_mixes_biases() -> None:
    with pytest.raises(InputError, match="mixes ensemble sizes"):
        energy_score(*drawn_vectors(3, 2), dim="part", fair=False, missing="omit")
    with pytest.raises(InputError, match="unequal size"):
        variogram_score(*drawn_vectors(3, 2), dim="part", missing="omit")


@pytest.mark.parametrize("score", [energy_score, variogram_score])
def test_wrong_input_is_named(score: Any) -> None:
    forecast, truth = drawn_vectors(3, 4)
    with pytest.raises(InputError, match=r"dim \['level'\] is not in the data"):
        score(forecast, truth, dim="level")
    with pytest.raises(InputError, match=r"dim \['part'\] is not in the data, which have \('case',\)"):
        score(forecast, truth.isel(part=0), dim="part")
    with pytest.raises(InputError, match="holds the member dim"):
        score(forecast, truth.expand_dims(realization=3), dim=("part", "number"), member_dim="number")
    with pytest.raises(InputError, match="expected some of"):
        score(forecast, truth, dim="part", weights=xr.DataArray(np.ones(6), dims="case"))
    for values in ([1.0, 1, 1, -1], [1.0, 1, 1, np.nan], [1.0, 1, 1, np.inf]):
        with pytest.raises(InputError, match="expected finite ones, 0 or larger"):
            score(forecast, truth, dim="part", weights=xr.DataArray(values, dims="part"))
    for where, arrays in (("forecast", (forecast.copy(), truth)), ("truth", (forecast, truth.copy()))):
        arrays[0 if where == "forecast" else 1][1] = np.inf
        with pytest.raises(InputError, match=f"{where} holds .* infinite values"):
            score(*arrays, dim="part")
    named = forecast.assign_coords(part=list("abcd")), truth.assign_coords(part=list("abcd"))
    with pytest.raises(InputError, match="different coordinates"):
        score(named[0], named[1].assign_coords(part=list("abce")), dim="part")
    with pytest.raises(InputError, match="different coordinates"):
        score(*named, dim="part", weights=xr.DataArray(np.ones(4), dims="part", coords={"part": list("abce")}))


def test_a_variogram_needs_an_order_and_two_components() -> None:
    forecast, truth = drawn_vectors(3, 4)
    with pytest.raises(InputError, match="p=0"):
        variogram_score(forecast, truth, dim="part", p=0)
    with pytest.raises(InputError, match="expected at least two"):
        variogram_score(forecast[:, :, :1], truth[:, :1], dim="part")


def test_scores_know_their_units_and_policy() -> None:
    forecast, truth = drawn_vectors(3, 4)
    found = energy_score(forecast, truth, dim="part").attrs
    assert found == {"long_name": "energy score", "units": "K", "estimator": "fair", "members": 3, "missing": "propagate"}
    assert [variogram_score(forecast, truth, dim="part", p=p).attrs["units"] for p in (0.5, 1)] == ["K", "(K)^2"]


def test_dask_input_stays_lazy_and_gives_the_same_bits() -> None:
    forecast, truth = drawn_vectors(5, 6, cases=11)
    lazy, lazy_truth = forecast.chunk(case=3, number=2, part=4), truth.chunk(case=3, part=2)
    for score in (energy_score, variogram_score):
        result = score(lazy, lazy_truth, dim="part")
        assert result.chunks is not None
        np.testing.assert_array_equal(result.compute(), score(forecast, truth, dim="part"))
