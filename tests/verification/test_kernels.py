"""The compiled kernels against definitions written out in plain numpy, for every ensemble size, layout and oddity."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verification import kernels


def by_definition(members: np.ndarray, truth: float) -> dict[str, float]:
    """Every statistic of one case from its double sum, in float64."""
    x, y, size = members.astype(np.float64), float(truth), members.size
    pairs = [abs(a - b) for a, b in itertools.permutations(x, 2)]
    return {
        "abs_error": float(np.mean(np.abs(x - y))),
        "gini": float(np.mean(pairs)) if pairs else 0.0,
        "variance": float(np.var(x, ddof=1)) if size > 1 else 0.0,
        "error": float(np.mean(x - y)),
        "below": float(np.sum(x < y)),
        "ties": float(np.sum(x == y)),
    }


def assert_matches(members: np.ndarray, truth: np.ndarray, tolerance: float = 1e-12) -> None:
    found = kernels.point_statistics(members, truth)
    for case, point in np.ndindex(truth.shape):
        expected = by_definition(members[case, :, point], truth[case, point])
        for name, value in expected.items():
            assert getattr(found, name)[case, point] == pytest.approx(value, rel=tolerance, abs=tolerance), name


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 16, 17, 31, 50, 64, 100, 129, 257])
def test_the_network_sorts_every_ensemble_size(size: int) -> None:
    rng = np.random.default_rng(size)
    columns = np.concatenate([rng.integers(0, 2, (size, 300)), rng.normal(size=(size, 50)), np.arange(size)[::-1, None]], axis=1)
    for low, high in kernels.sorting_network(size):
        columns[[low, high]] = np.minimum(columns[low], columns[high]), np.maximum(columns[low], columns[high])
    assert (np.diff(columns, axis=0) >= 0).all()


@pytest.mark.parametrize("size", range(1, 13))
def test_the_network_sorts_every_pattern_of_zeros_and_ones(size: int) -> None:
    # the zero-one principle: a network that sorts these sorts everything (Knuth, TAOCP 3, 5.3.4)
    columns = np.array(list(itertools.product([0, 1], repeat=size))).T.copy()
    for low, high in kernels.sorting_network(size):
        columns[[low, high]] = np.minimum(columns[low], columns[high]), np.maximum(columns[low], columns[high])
    assert (np.diff(columns, axis=0) >= 0).all()


def test_fifty_members_take_403_comparators() -> None:
    assert len(kernels.sorting_network(50)) == 403


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("cases", "size", "points"), [(1, 1, 5), (2, 2, 3), (3, 5, 200), (1, 50, 130), (300, 4, 1), (1, 140, 3)])
def test_every_statistic_follows_its_definition(cases: int, size: int, points: int, dtype: type) -> None:
    rng = np.random.default_rng(1)
    members = np.round(rng.normal(size=(cases, size, points)), 1).astype(dtype)  # rounded: many ties
    truth = np.round(rng.normal(size=(cases, points)), 1).astype(dtype)
    assert_matches(members, truth)


def test_known_answer() -> None:
    found = kernels.point_statistics(np.array([2.0, 5, 3, 9]).reshape(1, 4, 1), np.array([[4.0]]))
    assert [float(array[0, 0]) for array in found] == pytest.approx([2.25, 23 / 6, 115 / 12, 0.75, 2, 0])


def test_float32_pressures_lose_nothing() -> None:
    rng = np.random.default_rng(2)
    members = (101325 + 5 * rng.normal(size=(1, 50, 300))).astype(np.float32)
    truth = (101325 + 5 * rng.normal(size=(1, 300))).astype(np.float32)
    found, exact = (kernels.point_statistics(members.astype(kind), truth.astype(kind)) for kind in (np.float32, np.float64))
    for name in kernels.MOMENTS:
        np.testing.assert_allclose(getattr(found, name), getattr(exact, name), rtol=1e-12, atol=1e-12)
    assert_matches(members[:, :, :20].copy(), truth[:, :20].copy())


def test_a_member_far_from_the_truth_keeps_its_variance() -> None:
    members = np.float64(1e5) + np.array([0.0, 1e-3, 2e-3]).reshape(1, 3, 1)
    assert kernels.point_statistics(members, np.array([[-1e5]])).variance[0, 0] == pytest.approx(
        np.var(members, ddof=1), rel=1e-12
    )


def test_a_constant_ensemble_has_no_spread() -> None:
    found = kernels.point_statistics(np.full((1, 9, 4), 101325.1, np.float32), np.zeros((1, 4), np.float32))
    assert (found.gini == 0).all()
    assert (found.variance == 0).all()


@pytest.mark.parametrize("size", [1, 2, 5, 50])
def test_a_missing_member_or_truth_makes_only_its_own_case_missing(size: int) -> None:
    rng = np.random.default_rng(3)
    clean = rng.normal(size=(2, size, 200))
    truth = rng.normal(size=(2, 200))
    holed, holed_truth = clean.copy(), truth.copy()
    holed[0, size // 2, 7] = np.nan
    holed[1, 0, 150] = np.nan
    holed_truth[1, 3] = np.nan
    gone = np.zeros(truth.shape, bool)
    gone[[0, 1, 1], [7, 150, 3]] = True
    found, expected = kernels.point_statistics(holed, holed_truth), kernels.point_statistics(clean, truth)
    for name in kernels.MOMENTS:
        assert np.isnan(getattr(found, name)[gone]).all()
        np.testing.assert_array_equal(getattr(found, name)[~gone], getattr(expected, name)[~gone])
    assert (found.below[gone] == -1).all()
    np.testing.assert_array_equal(found.below[~gone], expected.below[~gone])
    terms = kernels.crps_terms(holed, holed_truth)
    np.testing.assert_array_equal(np.isnan(terms), [gone, gone])


def test_the_short_kernel_equals_the_full_one() -> None:
    rng = np.random.default_rng(4)
    members, truth = rng.normal(size=(3, 20, 500)).astype(np.float32), rng.normal(size=(3, 500)).astype(np.float32)
    full = kernels.point_statistics(members, truth)
    abs_error, gini = kernels.crps_terms(members, truth)
    np.testing.assert_array_equal(abs_error, full.abs_error)
    np.testing.assert_array_equal(gini, full.gini)


def test_threads_and_blocks_change_no_bit() -> None:
    rng = np.random.default_rng(5)
    members, truth = rng.normal(size=(4, 10, 3001)).astype(np.float32), rng.normal(size=(4, 3001)).astype(np.float32)
    alone = kernels.point_statistics(members, truth)
    for threads in (2, 3):
        np.testing.assert_array_equal(np.array(kernels.point_statistics(members, truth, threads)), np.array(alone))
    by_case = [kernels.point_statistics(members[c : c + 1], truth[c : c + 1]) for c in range(4)]
    np.testing.assert_array_equal(np.concatenate([np.array(part) for part in by_case], axis=1), np.array(alone))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_the_order_of_the_members_does_not_matter(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    members, truth = rng.integers(-3, 4, (1, size, 7)).astype(np.float64), rng.integers(-3, 4, (1, 7)).astype(np.float64)
    shuffled = np.ascontiguousarray(members[:, rng.permutation(size)])
    np.testing.assert_array_equal(
        np.array(kernels.point_statistics(shuffled, truth)), np.array(kernels.point_statistics(members, truth))
    )


@pytest.mark.parametrize("size", range(1, 34))
def test_the_merging_network_finishes_what_sorted_eights_begin(size: int) -> None:
    rng = np.random.default_rng(size)
    columns = rng.integers(0, 5, (size, 200))
    whole = size // 8 * 8
    columns[:whole] = np.sort(columns[:whole].reshape(-1, 8, 200), axis=1).reshape(whole, 200)
    for low, high in kernels.merging_network(size):
        columns[[low, high]] = np.minimum(columns[low], columns[high]), np.maximum(columns[low], columns[high])
    assert (np.diff(columns, axis=0) >= 0).all()
