"""Samples: frames and targets are the analyses of exactly those stamps, whatever the gaps; batch k is a function of (seed, k)."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from data_pipeline import open_analysis, store
from data_pipeline.batches import LANES, Batch, Samples
from data_pipeline.errors import InputError
from data_pipeline.forcings import Forcings
from data_pipeline.schema import channels_of, stack
from tests.toys import GLOBE, as_analysis, period, samples_of, spec_of, weather

HOUR = np.timedelta64(1, "h")
HOURS = (6 * HOUR, 12 * HOUR, 24 * HOUR)


def same(one: Batch, other: Batch) -> bool:
    return all(np.array_equal(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(Batch))


def from_store(
    data: xr.Dataset, path: Path, *, chunk: int = 7, memory: int = 0, hours: int | None = None, **options: Any
) -> Samples:
    """Samples of the analysis written as a store in chunks of `chunk` stamps, of which `memory` bytes may be kept."""
    if not path.exists():
        store.write_dataset(path, data, chunks={"time": chunk})
    opened = open_analysis(path)
    spec = spec_of(data)
    moments = xr.Dataset({name: ("channel", np.array(getattr(spec, name))) for name in ("mean", "std")})
    step = spec.step if hours is None else hours * HOUR
    chosen = {"period": period(data), "step": step, "frames": 2} | options
    return Samples(opened, channels_of(data), moments, Forcings(("insolation",), spec.grid, step), memory=memory, **chosen)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for stores that several tests read."""
    return tmp_path_factory.mktemp("shelf")


def count_reads(samples: Samples, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    read, seen = samples._fields.read, []

    def counted(block: int, out: np.ndarray) -> None:
        seen.append(block)
        read(block, out)

    monkeypatch.setattr(samples._fields, "read", counted)
    return seen


def first_stamps(stream: Any) -> np.ndarray:
    return np.concatenate([batch.valid[:, 0] for batch in stream])


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


@pytest.mark.parametrize("first", [0, 3, 7])
def test_read_from_the_store_or_kept_in_memory_it_is_the_same(shelf: Path, first: int) -> None:
    data = weather(steps=40)
    chosen = period(data, first, 36)
    kept = from_store(data, shelf / "twelve.zarr", memory=1 << 30, period=chosen)
    read = from_store(data, shelf / "twelve.zarr", period=chosen)
    assert kept._memory is not None
    assert read._memory is None
    assert same(kept.batch(np.array([20, 3, 3, 17]), 2), read.batch(np.array([20, 3, 3, 17]), 2))
    again = samples_of(data.chunk(time=5), spec_of(data), chosen).batch(np.array([20, 3, 3, 17]), 2)
    np.testing.assert_array_equal(kept.batch(np.array([20, 3, 3, 17]), 2).targets, again.targets)


def test_chunks_that_samples_of_a_batch_share_are_read_once(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = from_store(weather(steps=40), shelf / "twelve.zarr", memory=1)
    seen = count_reads(samples, monkeypatch)
    samples.batch(np.array([8, 9, 9, 10, 23]), 2)  # stamps 7 .. 12 and 22 .. 25
    assert sorted(seen) == [1, 3]


def test_what_several_threads_want_at_once_is_read_once(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = from_store(weather(steps=40), shelf / "twelve.zarr", memory=20 * 7 * 4 * GLOBE.areas.size)
    assert samples._memory is None
    seen = count_reads(samples, monkeypatch)
    for _ in samples.sequence(samples.times[samples.starts(1)], 1, threads=4, ahead=8):
        pass
    assert sorted(seen) == [0, 1, 2, 3, 4, 5]


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


def test_threads_and_prefetching_do_not_change_a_batch(shelf: Path) -> None:
    samples = from_store(weather(steps=40), shelf / "twelve.zarr")
    plain = list(samples.batches(5, 3, 7, 4, 2, threads=1, ahead=0))
    busy = list(samples.batches(5, 3, 7, 4, 2, threads=4, ahead=5))
    assert len(plain) == len(busy) == 7
    assert all(same(one, other) for one, other in zip(plain, busy, strict=True))


@pytest.mark.parametrize("order", ["random", "epochs", "chunks"])
def test_the_rows_of_all_ranks_are_the_batch_of_one_process(shelf: Path, order: Any) -> None:
    samples = from_store(weather(steps=60, step_hours=6), shelf / "six.zarr", hours=6)
    chosen = {"order": order, "intervals": HOURS}
    whole = list(samples.batches(2, 4, 3, 6, 1, **chosen))
    for rank in range(3):
        part = list(samples.batches(2, 4, 3, 6, 1, rank=rank, ranks=3, **chosen))
        for mine, joint in zip(part, whole, strict=True):
            np.testing.assert_array_equal(mine.valid, joint.valid[rank::3])
            np.testing.assert_array_equal(mine.frames, joint.frames[rank::3])
    with pytest.raises(InputError, match="a batch of 6 samples, rank 0 of 4"):
        samples.batches(2, 4, 3, 6, 1, ranks=4)


@pytest.mark.parametrize("order", ["epochs", "chunks"])
def test_an_epoch_gives_every_sample_once_in_an_order_of_its_own(order: Any) -> None:
    data = weather(steps=61)
    samples = samples_of(data, spec_of(data))
    count = samples.starts(1).size  # 59: batches of 8 run across the ends of epochs
    drawn = first_stamps(samples.batches(1, 0, 23, 8, 1, order=order))
    epochs = [drawn[i * count : (i + 1) * count] for i in range(3)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), samples.times[samples.starts(1)] + samples.step)
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], first_stamps(samples.batches(2, 0, 8, 8, 1, order=order))[:count])


@pytest.mark.parametrize("order", ["epochs", "chunks"])
def test_an_epoch_resumes_at_any_batch(order: Any) -> None:
    data = weather(steps=61)
    samples = samples_of(data, spec_of(data))
    stream = list(samples.batches(7, 0, 12, 7, 2, order=order))
    for first in (3, 9):
        resumed = list(samples.batches(7, first, 12 - first, 7, 2, order=order))
        assert all(same(one, other) for one, other in zip(stream[first:], resumed, strict=True))


def test_in_the_order_of_chunks_each_is_decoded_about_once_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """400 stamps in chunks of 4 and windows of 4 chunks, each of which needs its two neighbours."""
    data = as_analysis({"2m_temperature": np.random.default_rng(0).normal(280, 3, (400, *GLOBE.shape))}, GLOBE)
    mixed = LANES * 16
    samples = from_store(data, tmp_path / "a.zarr", chunk=4, memory=2 * mixed * 4 * GLOBE.areas.size)
    seen = count_reads(samples, monkeypatch)
    count = samples.starts(1).size // 8
    drawn = first_stamps(samples.batches(0, 0, count, 8, 1, order="chunks", mixed=mixed))
    assert len(seen) <= 100 * (4 + 2) / 4
    seen.clear()
    first_stamps(samples.batches(0, 0, count, 8, 1, order="epochs"))
    assert len(seen) > 250
    places = (drawn - data["time"].values[0]) / samples.step
    windows = [np.unique(places[i : i + 32] // 16).size for i in range(0, 352, 32)]
    assert np.mean(windows) > LANES  # in 32 samples on end, out of 25 windows
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.3


def test_samples_may_have_another_interval_each(shelf: Path) -> None:
    """6, 12 or 24 hours from one store: frames and targets are that far apart, insolation is a mean over that."""
    data = weather(steps=60, step_hours=6)
    samples = from_store(data, shelf / "six.zarr", hours=6)
    starts = np.array([10, 20, 30])
    batch = samples.batch(starts, 2, np.array(HOURS))
    for row, (start, interval) in enumerate(zip(starts, HOURS, strict=True)):
        stamp = data["time"].values[start]
        assert batch.valid[row].tolist() == (stamp + interval * np.array([1, 2])).tolist()
        np.testing.assert_array_equal(batch.frames[row, 0], at(data, samples, stamp - interval))
        np.testing.assert_array_equal(batch.frames[row, 1], at(data, samples, stamp))
        np.testing.assert_array_equal(batch.targets[row, 1], at(data, samples, stamp + 2 * interval))
        expected = Forcings(("insolation",), GLOBE, interval).at(stamp + interval)
        np.testing.assert_array_equal(batch.forcings[row, 0], expected)
    np.testing.assert_array_equal(batch.intervals, HOURS)
    assert samples.starts(2, HOURS[2]).tolist() == list(range(4, 52))


def test_intervals_are_drawn_evenly_of_those_that_are_possible() -> None:
    data = weather(steps=40, step_hours=6)
    samples = samples_of(data, spec_of(data))
    stream = list(samples.batches(3, 0, 60, 50, 1, intervals=HOURS))
    intervals = np.concatenate([batch.intervals for batch in stream])
    starts = first_stamps(stream) - intervals
    _, counts = np.unique(intervals[(starts >= samples.times[4]) & (starts < samples.times[36])], return_counts=True)
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 13.8  # chi squared, 2 degrees of freedom: 0.1 % beyond
    assert set(intervals[starts == samples.times[1]]) == {HOURS[0]}
    one, again = (next(iter(samples.batches(3, 9, 1, 50, 1, intervals=HOURS))) for _ in range(2))
    assert same(one, again)
    assert same(one, stream[9])


def test_a_sequence_follows_the_given_stamps(shelf: Path) -> None:
    samples = from_store(weather(steps=40), shelf / "twelve.zarr")
    stamps = samples.times[[30, 4, 5, 17, 9]]
    found = list(samples.sequence(stamps, 3, size=2))
    assert [len(batch.frames) for batch in found] == [2, 2, 1]
    np.testing.assert_array_equal(first_stamps(found), stamps + samples.step)
    assert same(found[1], samples.batch(np.array([5, 17]), 3))
    with pytest.raises(InputError, match="no analysis at 1999-12-31T00 in 2001-01-01T00/.* to start from"):
        samples.sequence(np.array(["1999-12-31"], "datetime64[ns]"), 3)


def test_a_start_without_its_frames_or_targets_is_refused() -> None:
    data = holed([20])
    samples = samples_of(data, spec_of(data))
    with pytest.raises(
        InputError, match="no analysis at 2001-01-11T00 in 2001-01-01T00/2001-01-30T12; take starts from `starts`"
    ):
        samples.batch(np.array([5, 19]), 2)


def test_a_batch_that_is_held_keeps_its_values(shelf: Path) -> None:
    samples = from_store(weather(steps=40), shelf / "twelve.zarr")
    held = [torch.from_numpy(batch.targets)[:, 0, 1] for batch in samples.batches(0, 0, 12, 4, 2)]
    for tensor, batch in zip(held, samples.batches(0, 0, 12, 4, 2), strict=True):
        np.testing.assert_array_equal(tensor.numpy(), batch.targets[:, 0, 1])


def test_memory_is_used_again_once_a_batch_is_dropped() -> None:
    data = weather(steps=40)
    samples = samples_of(data, spec_of(data))
    places = set()
    for batch in samples.batches(0, 0, 50, 4, 1, threads=1, ahead=1):
        places.add(batch.frames.ctypes.data)
        del batch
    assert len(places) <= 4


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_missing_values_are_refused_by_channel_and_stamp(tmp_path: Path, value: float) -> None:
    """At once where all is kept in memory, and with the batch that needs them where it is not."""
    data, spec = weather(steps=40), spec_of(weather(steps=40))
    data["2m_temperature"].values[25, 3, 4] = value
    expected = r"2m_temperature at 2001-01-13T12: 1 of 128 values are missing or infinite; .* leave the channel out"
    with pytest.raises(InputError, match=expected):
        samples_of(data, spec)
    store.write_dataset(tmp_path / "a.zarr", data, chunks={"time": 7})
    samples = from_store(weather(steps=40), tmp_path / "a.zarr")
    assert samples._fields.direct
    samples.batch(np.array([5, 15]), 1)
    for _ in range(2):
        with pytest.raises(InputError, match=expected):
            samples.batch(np.array([5, 26]), 1)
    stream = samples.sequence(samples.times[[5, 26, 7]], 1)
    assert next(stream).valid[0, 0] == samples.times[6]
    with pytest.raises(InputError, match=expected):
        next(stream)


@pytest.mark.parametrize(("name", "value"), [("mean", np.nan), ("std", np.nan), ("std", 0.0)])
def test_statistics_that_cannot_normalise_are_refused_by_channel(name: str, value: float) -> None:
    data = weather(steps=40)
    spec = spec_of(data)
    moments = xr.Dataset({name: ("channel", np.array(getattr(spec, name))) for name in ("mean", "std")})
    moments[name].values[1] = value
    with pytest.raises(InputError, match="statistics of 2m_temperature: mean or std is missing, infinite or 0"):
        Samples(data, channels_of(data), moments, Forcings((), GLOBE, 12 * HOUR), period(data), step=12 * HOUR, frames=1)


def test_windows_are_those_of_xbatcher(tmp_path: Path) -> None:
    xbatcher = pytest.importorskip("xbatcher", reason="needs the extra peers: pip install plumecast[peers]")
    data = weather(steps=30)
    samples = from_store(data, tmp_path / "a.zarr", frames=1)
    fields = stack(data, samples.channels)
    windows = xbatcher.BatchGenerator(fields, input_dims=dict(fields.sizes) | {"time": 4}, input_overlap={"time": 3})
    for window, batch in zip(windows, samples.sequence(samples.times[samples.starts(3)], 3), strict=True):
        np.testing.assert_array_equal(batch.targets[0], spec_of(data).normalise(window.transpose("time", ...).values)[1:])
