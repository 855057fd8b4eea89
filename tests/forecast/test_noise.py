"""Noise that is counted, not advanced: the same numbers in any order, others for every other address, standard normal."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from forecast import noise

INIT = np.datetime64("2007-07-23T12", "ns")
PUBLISHED = [0.227425, -0.2079114, -2.3187151]
PICKED = [51, 26, 27]


def test_the_order_of_draws_does_not_matter() -> None:
    addresses = list(itertools.product(range(1, 6), range(4)))
    in_order = {address: noise.draw(3, INIT, *address, 16) for address in addresses}
    for address in np.random.default_rng(0).permutation(addresses):
        noise.pick(3, INIT, 9, 9, 100)
        np.testing.assert_array_equal(noise.draw(3, INIT, int(address[0]), int(address[1]), 16), in_order[tuple(address)])


def test_a_longer_draw_starts_with_the_shorter_one() -> None:
    np.testing.assert_array_equal(noise.draw(0, INIT, 2, 5, 1000)[:7], noise.draw(0, INIT, 2, 5, 7))


def test_the_unit_of_the_initialisation_does_not_matter() -> None:
    for unit in ("h", "m", "s"):
        np.testing.assert_array_equal(noise.draw(0, INIT.astype(f"datetime64[{unit}]"), 1, 1, 8), noise.draw(0, INIT, 1, 1, 8))


def test_every_seed_initialisation_member_and_step_has_numbers_of_its_own() -> None:
    inits = [INIT, INIT + np.timedelta64(6, "h"), np.datetime64("1969-12-31T18", "ns"), np.datetime64("1850-01-01", "ns")]
    addresses = list(itertools.product((0, 1, 2**31, 2**63), inits, (1, 2, 3, 50), (0, 1, 2, 60)))
    draws = np.stack([noise.draw(*address, 32) for address in addresses])
    assert len(np.unique(draws)) > 0.999 * draws.size  # no number comes twice, shifted or not, but by chance of float32
    between = np.corrcoef(draws)
    np.fill_diagonal(between, 0)
    assert np.abs(between).max() < 0.95


def test_neighbouring_streams_do_not_overlap() -> None:
    long = noise.draw(0, INIT, 1, 1, 50_000)
    for seed, member, step in ((0, 1, 2), (0, 2, 1), (1, 1, 1)):
        other = noise.draw(seed, INIT, member, step, 50_000)
        assert abs(np.corrcoef(long, other)[0, 1]) < 4.5 / np.sqrt(50_000)
        assert not np.isin(other[:3], long).all()


def test_moments_are_those_of_a_standard_normal() -> None:
    drawn = np.concatenate([noise.draw(1, INIT, member, step, 500) for member in range(1, 21) for step in range(10)])
    assert drawn.dtype == np.float32
    n = drawn.size
    assert n == 100_000
    assert abs(drawn.mean()) < 4 / np.sqrt(n)
    assert abs(drawn.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs(scipy.stats.skew(drawn)) < 4 * np.sqrt(6 / n)
    assert abs(scipy.stats.kurtosis(drawn)) < 4 * np.sqrt(24 / n)
    assert scipy.stats.kstest(drawn, "norm").pvalue > 1e-3


@pytest.mark.parametrize("count", [1, 2, 7, 90])
def test_picks_are_uniform_in_range(count: int) -> None:
    picks = np.array([noise.pick(0, INIT, member, step, count) for member in range(1, 101) for step in range(1, 31)])
    often = np.bincount(picks, minlength=count)
    assert often.size == count
    assert count == 1 or scipy.stats.chisquare(often).pvalue > 1e-3


def test_picks_have_addresses_too() -> None:
    addresses = list(itertools.product((0, 1), (INIT, INIT + np.timedelta64(1, "D")), (1, 2), (1, 2)))
    picks = [noise.pick(*address, 10**9) for address in addresses]
    assert picks == [noise.pick(*address, 10**9) for address in addresses]
    assert len(set(picks)) == len(addresses)


def test_the_numbers_are_the_same_on_every_machine() -> None:
    """A change of these would silently change every published forecast."""
    np.testing.assert_allclose(noise.draw(0, np.datetime64("2007-07-01T12", "ns"), 1, 1, 3), PUBLISHED, rtol=1e-6)
    assert [noise.pick(0, np.datetime64("2007-01-11", "ns"), member, 2, 100) for member in (1, 2, 3)] == PICKED
