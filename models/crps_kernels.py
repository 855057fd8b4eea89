"""The almost-fair CRPS and its gradient on CPUs: one pass over members and points, compiled by numba.

Members lie before points. A tile of points stays in the first-level cache while every member is compared with every other; the
loops run along the points, so that they vectorise. Counting who lies below costs O(M^2) comparisons, but members keep their
places: there is no argsort, and ties, which show in the counts' sum, cost a second count in the tiles that have them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise

import numba
import numpy as np

TILE = 128
TOGETHER = 4  # members compared in one sweep along a tile
PIECE_WORK = 1 << 19  # values worth a thread of their own: waking one up costs some 30 microseconds


def forward(members: np.ndarray, truth: np.ndarray, factor: float, codes: np.ndarray, threads: int) -> np.ndarray:
    """mean |x_j - y| - factor * sum_j balance_j (x_j - y) at each point, balance_j = members below minus members above x_j.

    members (M, N), truth (N,), both contiguous, of one float type; returns (N,) of that type. codes (M, N), int8 for up to 32
    members or int16, becomes 4 * balance_j + 1 + sign(x_j - y).
    """
    loss = np.empty_like(truth)
    _over_points(_forward, threads, members.size, truth.size, members, truth, members.dtype.type(factor), loss, codes)
    return loss


def backward(codes: np.ndarray, grad: np.ndarray, factor: float, threads: int) -> np.ndarray:
    """grad (N,) times the derivative by each member, (M, N) of grad's type: sign / M - factor * balance."""
    out = np.empty(codes.shape, grad.dtype)
    inverse, slope = grad.dtype.type(1 / len(codes)), grad.dtype.type(factor)
    _over_points(_backward, threads, codes.size, grad.size, codes, grad, inverse, slope, out)
    return out


def _over_points(kernel: Callable[..., None], threads: int, work: int, points: int, *arguments: object) -> None:
    """Run a kernel on all points, cut into one piece a thread where that pays."""
    pieces = min(threads, work // PIECE_WORK)
    if pieces < 2:
        kernel(*arguments, 0, points)
        return
    edges = [-(-points // TILE) * i // pieces * TILE for i in range(pieces)] + [points]
    pool, (mine, *others) = _pool(os.getpid(), threads), pairwise(edges)
    waiting = [pool.submit(kernel, *arguments, *piece) for piece in others]
    kernel(*arguments, *mine)
    for each in waiting:
        each.result()


@lru_cache(maxsize=2)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:  # noqa: ARG001
    """Threads live on between calls; a forked process has none of its parent's and gets its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="crps")


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _forward(members, truth, factor, loss, codes, first, last):  # type: ignore[no-untyped-def]
    size = members.shape[0]
    untied = size * (size - 1) // 2
    tile = np.zeros((-(-size // TOGETHER) * TOGETHER, TILE), members.dtype)
    for m in range(size, tile.shape[0]):
        for i in range(TILE):
            tile[m, i] = np.inf  # rows beyond the members lie below nobody
    balance, above, pairs = np.empty((size, TILE), np.int32), np.empty(TILE, np.int32), np.empty(TILE, np.int32)
    y, skill, spread = np.zeros(TILE, members.dtype), np.empty(TILE, members.dtype), np.empty(TILE, members.dtype)
    inverse = members.dtype.type(1 / size)
    for start in range(first, last, TILE):
        count = min(TILE, last - start)
        for m in range(size):
            source, target = members[m, start : start + count], tile[m]
            for i in range(count):
                target[i] = source[i]
        for i in range(count):
            y[i] = truth[start + i]
        for i in range(TILE):
            pairs[i] = 0
            skill[i] = spread[i] = 0
        for m in range(size):
            _count_below(tile, tile[m], balance[m], pairs)
        tied = 0
        for i in range(count):
            tied |= pairs[i] ^ untied
        for m in range(size):
            if tied:
                _count_above(tile, size, tile[m], above)
                for i in range(TILE):
                    balance[m, i] -= above[i]
            else:
                for i in range(TILE):
                    balance[m, i] = 2 * balance[m, i] + 1 - size
        for m in range(size):
            row, own, target = tile[m], balance[m], codes[m, start : start + count]
            for i in range(TILE):
                error = row[i] - y[i]
                skill[i] += abs(error)
                spread[i] += own[i] * error
                own[i] = 4 * own[i] + 1 + np.int32(row[i] > y[i]) - np.int32(row[i] < y[i])
            for i in range(count):
                target[i] = own[i]
        target = loss[start : start + count]
        for i in range(count):
            target[i] = skill[i] * inverse - factor * spread[i]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _count_below(tile, row, below, pairs):  # type: ignore[no-untyped-def]
    for i in range(TILE):
        below[i] = 0
    for j in range(0, tile.shape[0], TOGETHER):
        a, b, c, d = tile[j], tile[j + 1], tile[j + 2], tile[j + 3]
        for i in range(TILE):
            x = row[i]
            below[i] += np.int32(a[i] < x) + np.int32(b[i] < x) + np.int32(c[i] < x) + np.int32(d[i] < x)
    for i in range(TILE):
        pairs[i] += below[i]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _count_above(tile, members, row, above):  # type: ignore[no-untyped-def]
    for i in range(TILE):
        above[i] = 0
    for j in range(members):
        other = tile[j]
        for i in range(TILE):
            above[i] += np.int32(other[i] > row[i])


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _backward(codes, grad, inverse, factor, out, first, last):  # type: ignore[no-untyped-def]
    for m in range(codes.shape[0]):
        code, slope, target = codes[m, first:last], grad[first:last], out[m, first:last]
        for i in range(last - first):
            each = np.int32(code[i])
            target[i] = slope[i] * (inverse * grad.dtype.type((each & 3) - 1) - factor * grad.dtype.type(each >> 2))
