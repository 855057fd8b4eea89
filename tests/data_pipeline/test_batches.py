"""Samples: frames and targets are the analyses of exactly those stamps, whatever the gaps; batch k is a function of (seed, k)."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import xarray as xr

from data_pipeline import batches
from data_pipeline.batches import Batch, Samples
from data_pipeline.errors import InputError
from data_pipeline.schema import stack
from tests.toys import period, samples_of, spec_of, weather


def same(one: Batch, other: Batch) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("frames", "targets", "forcings", "valid"))


def at(data: xr.Dataset, samples: Samples, stamp: np.datetime64) -> np.ndarray:
    """The normalised fields of a stamp, by label and not by position."""
    spec = spec_of(data)
    return spec.normalise(stack(data, samples.channels).sel(time=stamp).values)


def holed(lost: list[int], step_hours: int = 12) -> xr.Dataset:
    whole = weather(steps=60, step_hours=step_hours)
    return whole.isel(time=np.setdiff1d(np.arange(60), lost))


def test_a_batch_holds_the_analyses_of_its_stamps() -> None:
    data = weather(steps=30)
    samples = samples_of(data, spec_of(data))
    batch = samples.batch(np.array([4, 20]), 3)
    assert batch.frames.shape == (2, 2, 4, 8, 16)
    assert batch.targets.shape == (2, 3, 4, 8, 16)
    assert batch.forcings.shape == (2, 3, 6, 8, 16)
    times = data["time"].values
    assert batch.valid.tolist() == [times[5:8].tolist(), times[21:24].tolist()]
    np.testing.assert_array_equal(batch.frames[1, 0], at(data, samples, times[19]))
    np.testing.assert_array_equal(batch.frames[1, 1], at(data, samples, times[20]))
    np.testing.assert_array_equal(batch.targets[0, 2], at(data, samples, times[7]))
    np.testing.assert_array_equal(batch.forcings[0, 2], samples.forcings.at(times[7]))


@pytest.mark.parametrize("lost", [[], [20], [20, 21, 40], [1, 58]])
@pytest.mark.parametrize("steps", [1, 4])
def test_no_sample_reaches_across_a_gap_and_none_that_is_whole_is_lost(lost: list[int], steps: int) -> None:
    data = holed(lost)
    samples = samples_of(data, spec_of(data))
    kept = set(range(60)) - set(lost)
    whole = [i for i in range(60) if all(i + k in kept for k in range(-1, steps + 1))]
    assert samples.times[samples.starts(steps)].tolist() == weather(steps=60)["time"].values[whole].tolist()


def test_a_model_step_of_several_analyses_survives_a_hole_between_them() -> None:
    """Analyses 6 hours apart, steps of 12: one lost at 18 UTC must neither shift the later fields nor forbid the sample."""
    data = holed([15], step_hours=6)
    spec = spec_of(data)
    chosen = period(data)
    samples = samples_of(data, spec, chosen)
    coarse = Samples(
        data, samples.channels, xr.Dataset({"mean": ("c", np.array(spec.mean)), "std": ("c", np.array(spec.std))}),
        samples.forcings, chosen, step=np.timedelta64(12, "h"), frames=2,
    )  # fmt: skip
    stamp = np.datetime64("2001-01-01", "ns") + np.timedelta64(6 * 14, "h")
    start = int(np.flatnonzero(coarse.times == stamp)[0])
    assert start in coarse.starts(2)
    batch = coarse.batch(np.array([start]), 2)
    for k in range(2):
        expected = stamp + np.timedelta64(12 * (k + 1), "h")
        assert batch.valid[0, k] == expected
        np.testing.assert_array_equal(batch.targets[0, k], at(data, coarse, expected))


def test_targets_stay_inside_the_period() -> None:
    data = weather(steps=40)
    samples = samples_of(data, spec_of(data), period(data, 10, 20))
    starts = samples.times[samples.starts(3)]
    assert starts.tolist() == data["time"].values[11:18].tolist()


def test_read_from_the_store_or_kept_in_memory_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data = weather(steps=40)
    spec = spec_of(data)
    kept = samples_of(data, spec)
    monkeypatch.setattr(batches, "MEMORY_BUDGET", 0)
    lazy = samples_of(data.chunk(time=7), spec)
    assert lazy._memory is None
    assert kept._memory is not None
    starts = np.array([30, 3, 3, 17])
    assert same(kept.batch(starts, 2), lazy.batch(starts, 2))


def test_batch_k_depends_on_seed_and_k_alone() -> None:
    data = weather(steps=60)
    samples = samples_of(data, spec_of(data))
    stream = list(samples.batches(7, 0, 6, 4, 2))
    assert len(stream) == 6
    for first in (2, 5):
        resumed = list(samples.batches(7, first, 6 - first, 4, 2))
        assert all(same(one, other) for one, other in zip(stream[first:], resumed, strict=True))
    assert not same(stream[0], stream[1])
    assert not same(stream[0], next(iter(samples.batches(8, 0, 1, 4, 2))))


def test_a_prefetched_batch_is_the_one_drawn_directly() -> None:
    data = weather(steps=60)
    samples = samples_of(data, spec_of(data))
    draws = np.random.Generator(np.random.Philox(key=3, counter=[0, 0, 0, 11]))
    starts = samples.starts(2)
    expected = samples.batch(starts[draws.integers(0, len(starts), 5)], 2)
    assert same(list(samples.batches(3, 10, 2, 5, 2))[1], expected)


def test_every_sample_is_drawn_about_equally_often() -> None:
    data = weather(steps=23)
    samples = samples_of(data, spec_of(data))
    drawn = np.concatenate([batch.valid[:, 0] for batch in samples.batches(0, 0, 40, 50, 1)])
    _, counts = np.unique(drawn, return_counts=True)
    assert counts.size == 21
    assert ((counts - 2000 / 21) ** 2 / (2000 / 21)).sum() < 45  # chi squared, 20 degrees of freedom: 0.1 % beyond


def test_a_period_too_short_for_a_sample_says_so() -> None:
    data = weather(steps=40)
    samples = samples_of(data, spec_of(data), period(data, 10, 12))
    with pytest.raises(InputError, match="no sample of 2 frames and 5 steps of .* in 2001-01-06T00/2001-01-07T00: 3 analyses"):
        samples.starts(5)


def test_a_consumer_that_stops_early_leaves_no_thread_behind() -> None:
    before = set(threading.enumerate())
    data = weather(steps=40)
    stream = samples_of(data, spec_of(data)).batches(0, 0, 1000, 2, 1)
    next(stream)
    stream.close()
    assert set(threading.enumerate()) <= before
