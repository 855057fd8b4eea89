"""Noise by counter: the same (seed, init, member, step) give the same numbers anywhere, any other gives independent ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from forecast import noise

INIT = np.datetime64("2007-01-11T00", "ns")
PUBLISHED = [0.227425, -0.2079114, -2.3187151]
PICKED = [51, 26, 27]


def test_a_draw_does_not_depend_on_what_was_drawn_before() -> None:
    first = noise.draw(3, INIT, 7, 2, 50)
    for member, step in itertools.product(range(1, 5), range(4)):
        noise.draw(3, INIT, member, step, 1000)
    np.testing.assert_array_equal(noise.draw(3, INIT, 7, 2, 50), first)
    assert first.dtype == np.float32


def test_the_numbers_are_the_same_on_every_machine() -> None:
    """A change of these would silently change every published forecast."""
    np.testing.assert_allclose(noise.draw(0, np.datetime64("2007-07-01T12", "ns"), 1, 1, 3), PUBLISHED, rtol=1e-6)
    assert [noise.pick(0, INIT, member, 2, 100) for member in (1, 2, 3)] == PICKED


def test_seed_init_member_and_step_each_change_everything() -> None:
    inits = [INIT, INIT + np.timedelta64(12, "h"), np.datetime64("1959-01-01", "ns")]
    keys = list(itertools.product([0, 1, 2**40], inits, [1, 2, 51], [0, 1, 2, 40]))
    draws = np.stack([noise.draw(seed, init, member, step, 64) for seed, init, member, step in keys])
    assert len(np.unique(draws)) > 0.999 * draws.size
    correlation = np.corrcoef(draws) - np.eye(len(keys))
    assert np.abs(correlation).max() < 6 / np.sqrt(64)


def test_the_unit_in_which_an_init_is_written_does_not_matter() -> None:
    coarse = np.datetime64("2007-01-11T00", "h")
    np.testing.assert_array_equal(noise.draw(1, coarse, 1, 1, 9), noise.draw(1, INIT, 1, 1, 9))


def test_it_is_standard_normal_across_members_and_steps() -> None:
    draws = np.concatenate([noise.draw(5, INIT, member, step, 100) for member in range(1, 51) for step in range(10)])
    assert stats.kstest(draws, "norm").pvalue > 0.01
    assert abs(draws.mean()) < 0.015
    assert draws.std() == pytest.approx(1, abs=0.01)


def test_neighbouring_streams_do_not_overlap() -> None:
    """Member k and k + 1, step and step + 1: not the same stream read from another place."""
    one = noise.draw(0, INIT, 1, 1, 20_000)
    for other in (noise.draw(0, INIT, 2, 1, 20_000), noise.draw(0, INIT, 1, 2, 20_000)):
        assert np.intersect1d(one, other).size < 200  # chance: float32 normals coincide now and then
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.04


def test_picks_are_uniform_and_in_range() -> None:
    picks = np.array([noise.pick(0, INIT, member, lead, 7) for member in range(1, 301) for lead in range(10)])
    counts = np.bincount(picks, minlength=7)
    assert counts.size == 7
    assert stats.chisquare(counts).pvalue > 0.001
