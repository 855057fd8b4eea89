"""Compiled kernels: one pass over members and points gives every moment, pairwise and rank statistic of an ensemble.

Members lie before points, as forecasts are stored. A tile of points is copied into a buffer that fits the first-level cache and
sorted by Batcher's odd-even merge network, in which each comparator is a minimum and a maximum along the points, so that the
whole sort vectorises (Batcher 1968; Knuth, TAOCP 3, 5.3.4). Fields are sorted in their own precision; sums run in float64 around
the middle member, which keeps pressures near 1e5 Pa exact. The kernels are serial and release the GIL: parallelism is the
caller's, by dask or by the threads of `point_statistics`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numba
import numpy as np

TILE = 128  # points sorted together; 50 float32 members of a tile are 25 kB, within the first-level cache
BLOCK_BYTES = 1 << 18  # tiles copied together stay within the second-level cache

MOMENTS = ("abs_error", "gini", "variance", "error")


class PointStatistics(NamedTuple):
    """Statistics of each point, all NaN (rank -1) where a member or the truth is missing.

    abs_error: mean |x_i - y|. gini: mean |x_i - x_j| over distinct pairs. variance: unbiased. error: ensemble mean minus y.
    below, ties: numbers of members below and equal to the truth. With one member gini and variance are 0.
    """

    abs_error: np.ndarray
    gini: np.ndarray
    variance: np.ndarray
    error: np.ndarray
    below: np.ndarray
    ties: np.ndarray


@lru_cache(maxsize=32)
def sorting_network(members: int) -> np.ndarray:
    """Batcher's odd-even merge network for any number of inputs: pairs (low, high) in order, shape (comparators, 2)."""
    pairs = []
    span = 1
    while span < members:
        step = span
        while step >= 1:
            for first in range(step % span, members - step, 2 * step):
                lows = range(first, first + min(step, members - first - step))
                pairs += [(low, low + step) for low in lows if low // (2 * span) == (low + step) // (2 * span)]
            step //= 2
        span *= 2
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def cores() -> int:
    """Threads a caller may use: PLUMECAST_THREADS, which the command line sets, else the cores of this process."""
    asked = os.environ.get("PLUMECAST_THREADS", "")
    if asked.isdecimal():
        return max(1, int(asked))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def point_statistics(members: np.ndarray, truth: np.ndarray, threads: int = 1) -> PointStatistics:
    """Statistics of members (cases, M, points) against truth (cases, points), both C-contiguous and of one float type.

    Returns arrays (cases, points). Cost: one read of the members and O(M log^2 M) vectorised comparisons a point.
    """
    moments = np.empty((len(MOMENTS), truth.size))
    ranks = np.empty((2, truth.size), dtype=np.int32)
    network = sorting_network(members.shape[1])
    _over_points(lambda first, last: _statistics(members, truth, network, first, last, moments, ranks), truth.size, threads)
    return PointStatistics(*(array.reshape(truth.shape) for array in (*moments, *ranks)))


def crps_terms(members: np.ndarray, truth: np.ndarray, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The two terms that every CRPS estimator is made of, `abs_error` and `gini` of `point_statistics`, and nothing else."""
    terms = np.empty((2, truth.size))
    network = sorting_network(members.shape[1])
    _over_points(lambda first, last: _crps_terms(members, truth, network, first, last, terms), truth.size, threads)
    return terms[0].reshape(truth.shape), terms[1].reshape(truth.shape)


def add_to_cells(
    statistics: PointStatistics,
    case: int,
    weights: np.ndarray,
    cells: np.ndarray,
    sums: np.ndarray,
    histogram: np.ndarray,
    maps: np.ndarray,
) -> None:
    """Add one case of `statistics` to its sums, in place, always in the order of the points.

    weights, cells: (points,). sums: (7, cells) in the order weight, abs_error, gini, variance, squared_error, error, dropped.
    histogram: (cells, M + 1), ties shared evenly. maps: (6, points), unweighted, in the order count, abs_error, gini, variance,
    squared_error, error.
    """
    found = PointStatistics(*(array[case] for array in statistics))
    _add_to_cells(
        found.abs_error, found.gini, found.variance, found.error, found.below, found.ties, weights, cells, sums, histogram, maps
    )


def _over_points(run: Callable[[int, int], None], points: int, threads: int) -> None:
    if threads <= 1 or points < 64 * TILE:
        run(0, points)
        return
    edges = np.linspace(0, -(-points // TILE), threads + 1).astype(int) * TILE
    edges[-1] = points
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, edges[:-1], edges[1:]))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _load(members, start, count, buffers):  # type: ignore[no-untyped-def]
    """Copy points start .. start + count, counted through the cases, into buffers (tile, M, TILE); what is left of a tile is 0.

    Several tiles at once, because a member's points lie far from the next member's: reading 4 kB instead of 512 bytes at a time
    was measured to double the speed of the copy.
    """
    size, points = members.shape[1], members.shape[2]
    if count < buffers.shape[0] * TILE:
        buffers[:] = 0
    if points == 1:
        for i in range(count):
            for m in range(size):
                buffers[i // TILE, m, i % TILE] = members[start + i, m, 0]
        return
    i = 0
    while i < count:
        case, point = (start + i) // points, (start + i) % points
        run = min(points - point, count - i)
        for m in range(size):
            row = members[case, m]
            done = 0
            while done < run:
                column = (i + done) % TILE
                piece = min(TILE - column, run - done)
                target = buffers[(i + done) // TILE, m]
                for r in range(piece):
                    target[column + r] = row[point + done + r]
                done += piece
        i += run


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _sort(buffer, network):  # type: ignore[no-untyped-def]
    """Sort each column. The two selections keep the multiset when a value is NaN, so a NaN always reaches the sums."""
    for c in range(network.shape[0]):
        low, high = network[c, 0], network[c, 1]
        for i in range(TILE):
            a, b = buffer[low, i], buffer[high, i]
            buffer[low, i] = a if a < b else b
            buffer[high, i] = b if b > a else a


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _crps_terms(members, truth, network, first, last, terms):  # type: ignore[no-untyped-def]
    size = members.shape[1]
    truths = truth.ravel()
    tiles = max(1, min(BLOCK_BYTES // (size * TILE * members.itemsize), 16))
    buffers = np.empty((tiles, size, TILE), members.dtype)
    y, centre, absolute, pairs = np.zeros(TILE), np.empty(TILE), np.empty(TILE), np.empty(TILE)
    scale = 2.0 / max(size * (size - 1), 1)
    for start in range(first, last, TILE):
        tile = (start - first) // TILE % tiles
        if tile == 0:
            _load(members, start, min(tiles * TILE, last - start), buffers)
        buffer = buffers[tile]
        count = min(TILE, last - start)
        _sort(buffer, network)
        for i in range(count):
            y[i] = truths[start + i]
        for i in range(TILE):
            centre[i] = buffer[size // 2, i]
            absolute[i] = 0.0
            pairs[i] = 0.0
        for m in range(size):
            # members below the middle have a negative weight and a negative deviation: no term cancels another
            weight = float(2 * m + 1 - size)
            for i in range(TILE):
                x = float(buffer[m, i])
                absolute[i] += abs(x - y[i])
                pairs[i] += weight * (x - centre[i])
        for i in range(count):
            terms[0, start + i] = absolute[i] / size
            terms[1, start + i] = pairs[i] * scale if absolute[i] == absolute[i] else np.nan


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _statistics(members, truth, network, first, last, moments, ranks):  # type: ignore[no-untyped-def]
    size = members.shape[1]
    truths = truth.ravel()
    tiles = max(1, min(BLOCK_BYTES // (size * TILE * members.itemsize), 16))
    buffers = np.empty((tiles, size, TILE), members.dtype)
    own = np.zeros(TILE, members.dtype)
    y, centre, absolute, pairs = np.zeros(TILE), np.empty(TILE), np.empty(TILE), np.empty(TILE)
    total, squares = np.empty(TILE), np.empty(TILE)
    below, ties = np.empty(TILE, np.int32), np.empty(TILE, np.int32)
    scale = 2.0 / max(size * (size - 1), 1)
    for start in range(first, last, TILE):
        tile = (start - first) // TILE % tiles
        if tile == 0:
            _load(members, start, min(tiles * TILE, last - start), buffers)
        buffer = buffers[tile]
        count = min(TILE, last - start)
        _sort(buffer, network)
        for i in range(count):
            own[i] = truths[start + i]
            y[i] = truths[start + i]
        for i in range(TILE):
            centre[i] = buffer[size // 2, i]
            absolute[i], pairs[i], total[i], squares[i] = 0.0, 0.0, 0.0, 0.0
            below[i], ties[i] = 0, 0
        for m in range(size):
            weight = float(2 * m + 1 - size)
            for i in range(TILE):
                x = float(buffer[m, i])
                deviation = x - centre[i]
                absolute[i] += abs(x - y[i])
                pairs[i] += weight * deviation
                total[i] += deviation
                squares[i] += deviation * deviation
            for i in range(TILE):
                below[i] += np.int32(buffer[m, i] < own[i])
                ties[i] += np.int32(buffer[m, i] == own[i])
        for i in range(count):
            p = start + i
            if absolute[i] == absolute[i]:
                moments[0, p] = absolute[i] / size
                moments[1, p] = pairs[i] * scale
                # the middle member is within one standard deviation of the mean, so this difference loses at most one bit
                moments[2, p] = max(squares[i] - total[i] * total[i] / size, 0.0) / max(size - 1, 1)
                moments[3, p] = (centre[i] - y[i]) + total[i] / size
                ranks[0, p], ranks[1, p] = below[i], ties[i]
            else:
                moments[:, p] = np.nan
                ranks[0, p], ranks[1, p] = -1, 0


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _add_to_cells(abs_error, gini, variance, error, below, ties, weights, cells, sums, histogram, maps):  # type: ignore[no-untyped-def]
    for p in range(weights.size):
        cell = cells[p]
        if below[p] < 0:
            sums[6, cell] += 1.0
            continue
        w = weights[p]
        values = (1.0, abs_error[p], gini[p], variance[p], error[p] * error[p], error[p])
        for s in range(6):
            sums[s, cell] += w * values[s]
            maps[s, p] += values[s]
        share = w / (ties[p] + 1)
        for rank in range(below[p], below[p] + ties[p] + 1):
            histogram[cell, rank] += share
