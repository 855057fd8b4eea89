"""Windows of days of the year: weighted moments and quantiles of what lies in them. Compiled; each call uses one thread.

A window is a triangle: a stamp on day j weighs `window_days - |i - j|` for day i, around the circle of 366 days. The weights are
whole numbers, so that their sums are exact, in whatever order they are taken.
"""

from __future__ import annotations

import numba
import numpy as np

DAYS = 366
RANKS = 64  # in a block of the ordered sample
POINTS = 256  # smoothed together: their sums stay within the first-level cache
SORTED = 32  # points sorted together: ten years of them stay within the second-level cache
SIGN, EXPONENT = 1 << 31, 0x7F800000  # of a float32
MISSING = np.uint64(2**64 - 1)

_Sums = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def new_sums(n_slots: int, points: int) -> _Sums:
    """(guess, count, total, square) for `add`: of each point, and of each slot (an hour and a day) and point."""
    shape = (n_slots, points)
    return np.full(points, np.nan), np.zeros(shape, np.int32), np.zeros(shape), np.zeros(shape)


@numba.njit(nogil=True, cache=True)
def add(
    values: np.ndarray, slots: np.ndarray, guess: np.ndarray, count: np.ndarray, total: np.ndarray, square: np.ndarray
) -> None:
    """Add `values` (stamp, point) to the sums of their slots: n, and of x - guess and its square; guess is the first finite x."""
    for i in range(values.shape[0]):
        slot = slots[i]
        for p in range(values.shape[1]):
            value = np.float64(values[i, p])
            if np.isfinite(value):
                if np.isnan(guess[p]):
                    guess[p] = value
                anomaly = value - guess[p]
                count[slot, p] += 1
                total[slot, p] += anomaly
                square[slot, p] += anomaly * anomaly


@numba.njit(nogil=True, cache=True)
def moments(
    guess: np.ndarray, count: np.ndarray, total: np.ndarray, square: np.ndarray, window_days: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and standard deviation (hour, day, point), float32, from sums whose slots are hour * 366 + day."""
    n_slots, points = total.shape
    mean = np.empty((n_slots // DAYS, DAYS, points), dtype=np.float32)
    std = np.empty_like(mean)
    n, first, second = np.empty(POINTS), np.empty(POINTS), np.empty(POINTS)
    for hour in range(n_slots // DAYS):
        for start in range(0, points, POINTS):
            width = min(POINTS, points - start)
            for day in range(DAYS):
                n[:], first[:], second[:] = 0.0, 0.0, 0.0
                for offset in range(1 - window_days, window_days):
                    slot = hour * DAYS + (day + offset) % DAYS
                    weight = np.float64(window_days - abs(offset))
                    counts, totals, squares = count[slot, start:], total[slot, start:], square[slot, start:]
                    for p in range(width):
                        n[p] += weight * counts[p]
                        first[p] += weight * totals[p]
                        second[p] += weight * squares[p]
                for p in range(width):
                    if n[p] > 0:
                        departure = first[p] / n[p]
                        mean[hour, day, start + p] = guess[start + p] + departure
                        std[hour, day, start + p] = np.sqrt(max(second[p] / n[p] - departure * departure, 0.0))
                    else:
                        mean[hour, day, start + p] = np.nan
                        std[hour, day, start + p] = np.nan
    return mean, std


def quantiles(sample: np.ndarray, days: np.ndarray, window_days: int, levels: np.ndarray, out: np.ndarray) -> None:
    """Weighted quantiles of a sample (stamp, point) on `days` (stamp, from 0) into `out` (level, 366, point), float32.

    Type 7 with Kish's effective sample size: see `climatology.compute`. NaN where a window holds no finite value.
    """
    complete = weights_of(starts_of(days), window_days)
    for start in range(0, sample.shape[1], SORTED):
        some = slice(start, start + SORTED)
        keys = _keys(np.ascontiguousarray(sample[:, some].T).view(np.uint32), days)
        keys.sort(axis=1)
        _quantiles(keys, complete, window_days, levels, out[:, :, some])


@numba.njit(nogil=True, cache=True)
def _keys(bits: np.ndarray, days: np.ndarray) -> np.ndarray:
    """Integers in the order of the float32 with these bits, with the day in the lower half: numpy sorts them ten times as fast as
    it finds the order of floats. What is not finite comes last."""
    keys = np.empty(bits.shape, np.uint64)
    for point in range(bits.shape[0]):
        for i in range(days.size):
            value = np.int64(bits[point, i])
            ordered = value ^ SIGN if value < SIGN else value ^ 0xFFFFFFFF
            keys[point, i] = MISSING if value & EXPONENT == EXPONENT else np.uint64(ordered << 32 | days[i])
    return keys


@numba.njit(nogil=True, cache=True)
def _quantiles(
    keys: np.ndarray, complete: tuple[np.ndarray, np.ndarray], window_days: int, levels: np.ndarray, out: np.ndarray
) -> None:
    bits, days = np.empty(keys.shape[1], np.uint32), np.empty(keys.shape[1], np.int32)
    for point in range(keys.shape[0]):
        size = 0
        while size < keys.shape[1] and keys[point, size] != MISSING:
            ordered = np.int64(keys[point, size] >> np.uint64(32))
            bits[size] = ordered ^ SIGN if ordered >= SIGN else ordered ^ 0xFFFFFFFF
            days[size] = keys[point, size] & np.uint64(0xFFFF)
            size += 1
        starts = starts_of(days[:size])
        weights = complete if size == keys.shape[1] else weights_of(starts, window_days)
        _of_one_point(bits.view(np.float32)[:size], days[:size], starts, weights, window_days, levels, out[:, :, point])


@numba.njit(nogil=True, cache=True)
def starts_of(days: np.ndarray) -> np.ndarray:
    """Where each day begins, and the last ends, in a list of the stamps by day."""
    starts = np.zeros(DAYS + 1, np.int64)
    for day in days:
        starts[day + 1] += 1
    return np.cumsum(starts)


@numba.njit(nogil=True, cache=True)
def weights_of(starts: np.ndarray, window_days: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each day's window: the sum of the weights, and of their squares."""
    total, squares = np.zeros(DAYS, np.int64), np.zeros(DAYS, np.int64)
    for day in range(DAYS):
        for offset in range(1 - window_days, window_days):
            there = (day + offset) % DAYS
            weight, count = window_days - abs(offset), starts[there + 1] - starts[there]
            total[day] += weight * count
            squares[day] += weight * weight * count
    return total, squares


@numba.njit(nogil=True, cache=True)
def _of_one_point(
    values: np.ndarray,
    days: np.ndarray,
    starts: np.ndarray,
    weights: tuple[np.ndarray, np.ndarray],
    window_days: int,
    levels: np.ndarray,
    out: np.ndarray,
) -> None:
    """Quantiles (level, day) of an ordered sample.

    From one day to the next each weight changes by one: up for the days ahead, down for those behind. So the weights of blocks of
    ranks are kept, with their slopes, and only the block that a quantile falls into is looked through.
    """
    ranks, place = np.empty(days.size, np.int64), starts.copy()
    blocks, slopes = np.zeros(days.size // RANKS + 1, np.int64), np.zeros(days.size // RANKS + 1, np.int64)
    for rank in range(days.size):
        day = days[rank]
        ranks[place[day]] = rank
        place[day] += 1
        blocks[rank // RANKS] += max(0, window_days - min(day, DAYS - day))
        slopes[rank // RANKS] += _slope(day, window_days)
    for day in range(DAYS):
        total, squares = weights[0][day], weights[1][day]
        for k in range(levels.size):
            out[k, day] = _quantile(values, days, day, window_days, blocks, total, squares, levels[k]) if total else np.nan
        blocks += slopes
        for offset in (1, 1 + window_days, 1 - window_days):  # the days whose slope is another from the next day on
            there = (day + offset) % DAYS
            change = _slope((offset - 1) % DAYS, window_days) - _slope(offset % DAYS, window_days)
            for i in range(starts[there], starts[there + 1]):
                slopes[ranks[i] // RANKS] += change
            if window_days * 2 == DAYS and offset == 1 + window_days:
                break  # both ends of the window are one day


@numba.njit(nogil=True, cache=True)
def _slope(ahead: int, window_days: int) -> int:
    """How the weight of a stamp that lies `ahead` days (0 to 365) after a day changes to the next day."""
    if 1 <= ahead <= window_days:
        return 1
    return -1 if (DAYS - ahead) % DAYS < window_days else 0


@numba.njit(nogil=True, cache=True)
def _quantile(
    values: np.ndarray, days: np.ndarray, day: int, window_days: int, blocks: np.ndarray, total: int, squares: int, level: float
) -> float:
    """Mean of the values over one unit of effective size, from the position of the order statistic on that type 7 gives."""
    unit = squares / total  # the weight that counts as one value: total / Kish's size
    low = (total / unit - 1) * level * unit
    reached, share, result = 0, 0.0, 0.0
    block = 0
    while block < blocks.size - 1 and reached + blocks[block] <= low:
        reached += blocks[block]
        block += 1
    for i in range(block * RANKS, values.size):
        apart = abs(day - days[i])
        weight = window_days - min(apart, DAYS - apart)
        if weight <= 0:
            continue
        reached += weight
        covered = min(max((reached - low) / unit, 0.0), 1.0)
        result += (covered - share) * values[i]
        share = covered
        if share >= 1.0:
            break
    return result / share
