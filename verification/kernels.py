"""Compiled kernels: one pass over members and points gives every statistic of an ensemble that scores are made of.

Members lie before points, as forecasts are stored. A tile of points is copied into a buffer that fits the first-level cache and
sorted by Batcher's odd-even merge network, in which each comparator is a minimum and a maximum along the points, so that the
whole sort vectorises (Batcher 1968; Knuth, TAOCP 3, 5.3.4); its first layers, which sort eight members, run in registers. (It
was measured to be faster than numpy's sort up to 1000 members.) Fields are sorted in their own precision; sums run in float64
over differences, which keeps pressures near 1e5 Pa exact. The kernels are serial and release the GIL: parallelism is the
caller's, by dask or by `threads`.

`load`, `sort` and the functions after them work on one tile. Their loops run over slices from 0, because an index that numba
cannot prove to be positive keeps a loop from being vectorised.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np

TILE = 128  # points sorted together; 50 float32 members of a tile are 25 kB, within the first-level cache
PIECES = 8  # of the points for each thread: one that is held up leaves its share to the others
BLOCK_BYTES = 1 << 18  # tiles copied together stay within the second-level cache

MOMENTS = ("abs_error", "gini", "variance", "error")


_LOG = logging.getLogger("plumecast")
_READY: set[str] = set()  # kernels of this process that are compiled or were read from numba's cache


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
    return np.array(_comparators(members, 1), dtype=np.int64).reshape(-1, 2)


@lru_cache(maxsize=32)
def merging_network(members: int) -> np.ndarray:
    """What is left of `sorting_network` once every whole group of eight members is sorted."""
    whole = members // 8 * 8
    tail = [(low + whole, high + whole) for low, high in _comparators(members - whole, 1)]
    return np.array(tail + _comparators(members, 8), dtype=np.int64).reshape(-1, 2)


def _comparators(members: int, span: int) -> list[tuple[int, int]]:
    """The network from the layer on that merges sorted runs of `span` members."""
    pairs = []
    while span < members:
        step = span
        while step >= 1:
            for first in range(step % span, members - step, 2 * step):
                lows = range(first, first + min(step, members - first - step))
                pairs += [(low, low + step) for low in lows if low // (2 * span) == (low + step) // (2 * span)]
            step //= 2
        span *= 2
    return pairs


def point_statistics(members: np.ndarray, truth: np.ndarray, threads: int = 1) -> PointStatistics:
    """Statistics of members (cases, M, points) against truth (cases, points), both C-contiguous and of one float type.

    Returns arrays (cases, points). Cost: one read of the members and O(M log^2 M) vectorised comparisons a point.
    """
    say_if_compiling(f"statistics {truth.dtype}", lambda: point_statistics(*_tiny(truth.dtype)))
    moments = np.empty((len(MOMENTS), truth.size))
    ranks = np.empty((2, truth.size), dtype=np.int32)
    _over_points(_statistics, members, truth, (moments, ranks), threads)
    return PointStatistics(*(array.reshape(truth.shape) for array in (*moments, *ranks)))


def crps_terms(members: np.ndarray, truth: np.ndarray, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The two terms that every CRPS estimator is made of, `abs_error` and `gini` of `point_statistics`, and nothing else."""
    say_if_compiling(f"terms {truth.dtype}", lambda: crps_terms(*_tiny(truth.dtype)))
    terms = np.empty((2, truth.size))
    _over_points(_crps_terms, members, truth, (terms,), threads)
    return terms[0].reshape(truth.shape), terms[1].reshape(truth.shape)


def say_if_compiling(name: str, call: Callable[[], object]) -> None:
    """Make the first call of a kernel; if it takes a second, because numba compiles it for this machine, say what is going on."""
    if name in _READY:
        return
    _READY.add(name)
    timer = threading.Timer(1.0, _LOG.warning, ["compiling the score kernels for this machine; this happens once"])
    timer.start()
    try:
        call()
    finally:
        timer.cancel()


def _tiny(dtype: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((1, 2, 1), dtype), np.zeros((1, 1), dtype)


def _over_points(
    kernel: Callable[..., None], members: np.ndarray, truth: np.ndarray, outputs: tuple[np.ndarray, ...], threads: int
) -> None:
    """Run `kernel` on all points, in one piece or in one piece a thread."""
    network, truths, points = merging_network(members.shape[1]), truth.reshape(-1), truth.size

    def run(first: int, last: int) -> None:
        kernel(members, truths, network, first, last, *outputs)

    if threads <= 1 or points < 64 * TILE:
        run(0, points)
        return
    edges = np.linspace(0, -(-points // TILE), PIECES * threads + 1).astype(int) * TILE
    edges[-1] = points
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, edges[:-1], edges[1:]))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def tile_count(size, itemsize):  # type: ignore[no-untyped-def]
    """Tiles loaded together."""
    return max(1, min(BLOCK_BYTES // (size * TILE * itemsize), 16))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def load(members, start, count, buffers):  # type: ignore[no-untyped-def]
    """Copy points start .. start + count, counted through the cases, into buffers (tile, M, TILE); what is left of a tile is 0.

    Several tiles at once, because a member's points lie far from the next member's.
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
            row = members[case, m, point : point + run]
            done = 0
            while done < run:
                column = (i + done) % TILE
                piece = min(TILE - column, run - done)
                source, target = row[done : done + piece], buffers[(i + done) // TILE, m, column : column + piece]
                for r in range(piece):
                    target[r] = source[r]
                done += piece
        i += run


@numba.njit(nogil=True, cache=True, error_model="numpy")
def sort(buffer, network):  # type: ignore[no-untyped-def]
    """Sort each column. The two selections keep the multiset when a value is NaN, so a NaN always reaches the sums."""
    for first in range(0, buffer.shape[0] // 8 * 8, 8):
        _sort_eight(buffer[first : first + 8].reshape(-1))
    for c in range(network.shape[0]):
        low, high = network[c, 0], network[c, 1]
        for i in range(TILE):
            a, b = buffer[low, i], buffer[high, i]
            buffer[low, i] = a if a < b else b
            buffer[high, i] = b if b > a else a


@numba.njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _order(a, b):  # type: ignore[no-untyped-def]
    return (a if a < b else b), (b if b > a else a)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _sort_eight(rows):  # type: ignore[no-untyped-def]
    """Sort eight rows of a tile, one after the other in `rows`, by the network of 19 comparators (Knuth, 5.3.4), in registers."""
    tile = np.uint64(TILE)  # unsigned: see above
    for j in range(TILE):
        i = np.uint64(j)
        a, b = _order(rows[i], rows[i + tile])
        c, d = _order(rows[i + np.uint64(2) * tile], rows[i + np.uint64(3) * tile])
        e, f = _order(rows[i + np.uint64(4) * tile], rows[i + np.uint64(5) * tile])
        g, h = _order(rows[i + np.uint64(6) * tile], rows[i + np.uint64(7) * tile])
        a, c = _order(a, c)
        b, d = _order(b, d)
        e, g = _order(e, g)
        f, h = _order(f, h)
        b, c = _order(b, c)
        f, g = _order(f, g)
        a, e = _order(a, e)
        b, f = _order(b, f)
        c, g = _order(c, g)
        d, h = _order(d, h)
        c, e = _order(c, e)
        d, f = _order(d, f)
        b, c = _order(b, c)
        d, e = _order(d, e)
        f, g = _order(f, g)
        rows[i], rows[i + tile] = a, b
        rows[i + np.uint64(2) * tile], rows[i + np.uint64(3) * tile] = c, d
        rows[i + np.uint64(4) * tile], rows[i + np.uint64(5) * tile] = e, f
        rows[i + np.uint64(6) * tile], rows[i + np.uint64(7) * tile] = g, h


@numba.njit(nogil=True, cache=True, error_model="numpy")
def pair_sums(buffer, y, absolute, pairs):  # type: ignore[no-untyped-def]
    """sum |x_i - y| and sum over i < j of x_j - x_i, of sorted members.

    Member m from below and from above have opposite weights in the second sum: their distance counts M - 1 - 2 m times.
    """
    size = buffer.shape[0]
    middle = buffer[size // 2]
    for i in range(TILE):
        absolute[i] = abs(np.float64(middle[i]) - y[i]) if size % 2 else 0.0
        pairs[i] = 0.0
    for m in range(size // 2):
        weight = float(size - 1 - 2 * m)
        lower, upper = buffer[m], buffer[size - 1 - m]
        for i in range(TILE):
            low, high = np.float64(lower[i]), np.float64(upper[i])
            absolute[i] += abs(low - y[i]) + abs(high - y[i])
            pairs[i] += weight * (high - low)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def moment_sums(buffer, centre, total, squares):  # type: ignore[no-untyped-def]
    """The middle member, and the sums of the members' deviations from it and of their squares."""
    size = buffer.shape[0]
    middle = buffer[size // 2]
    for i in range(TILE):
        centre[i], total[i], squares[i] = np.float64(middle[i]), 0.0, 0.0
    for m in range(size):
        row = buffer[m]
        for i in range(TILE):
            deviation = np.float64(row[i]) - centre[i]
            total[i] += deviation
            squares[i] += deviation * deviation


@numba.njit(nogil=True, cache=True, error_model="numpy")
def rank_counts(buffer, truth, below, ties):  # type: ignore[no-untyped-def]
    """Numbers of members below and equal to the truth, compared in the members' own precision."""
    for i in range(TILE):
        below[i], ties[i] = 0, 0
    for m in range(buffer.shape[0]):
        row = buffer[m]
        for i in range(TILE):
            below[i] += np.int32(row[i] < truth[i])
            ties[i] += np.int32(row[i] == truth[i])


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _crps_terms(members, truths, network, first, last, terms):  # type: ignore[no-untyped-def]
    size = members.shape[1]
    tiles = tile_count(size, members.itemsize)
    buffers = np.empty((tiles, size, TILE), members.dtype)
    y, absolute, pairs = np.zeros(TILE), np.empty(TILE), np.empty(TILE)
    scale = 2.0 / max(size * (size - 1), 1)
    for start in range(first, last, TILE):
        tile = (start - first) // TILE % tiles
        if tile == 0:
            load(members, start, min(tiles * TILE, last - start), buffers)
        buffer = buffers[tile]
        count = min(TILE, last - start)
        sort(buffer, network)
        for i in range(count):
            y[i] = truths[start + i]
        pair_sums(buffer, y, absolute, pairs)
        for i in range(count):
            terms[0, start + i] = absolute[i] / size
            terms[1, start + i] = pairs[i] * scale if absolute[i] == absolute[i] else np.nan


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _statistics(members, truths, network, first, last, moments, ranks):  # type: ignore[no-untyped-def]
    size = members.shape[1]
    tiles = tile_count(size, members.itemsize)
    buffers = np.empty((tiles, size, TILE), members.dtype)
    own = np.zeros(TILE, members.dtype)
    y, absolute, pairs = np.zeros(TILE), np.empty(TILE), np.empty(TILE)
    centre, total, squares = np.empty(TILE), np.empty(TILE), np.empty(TILE)
    below, ties = np.empty(TILE, np.int32), np.empty(TILE, np.int32)
    scale = 2.0 / max(size * (size - 1), 1)
    for start in range(first, last, TILE):
        tile = (start - first) // TILE % tiles
        if tile == 0:
            load(members, start, min(tiles * TILE, last - start), buffers)
        buffer = buffers[tile]
        count = min(TILE, last - start)
        sort(buffer, network)
        for i in range(count):
            own[i] = truths[start + i]
            y[i] = truths[start + i]
        pair_sums(buffer, y, absolute, pairs)
        moment_sums(buffer, centre, total, squares)
        rank_counts(buffer, own, below, ties)
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
