"""What is made of the members at each point: sorted once, then moments, quantiles, EFI, SOT and counts of events.

Arrays are (lead, member, ...) float32; sums in float64. A point where a member is missing has no product: NaN, never "no event".
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np

from verification.counting import Op
from verification.quantiles import SAME_LEVEL

UPPER, LOWER = (0.9, 0.99), (0.1, 0.01)  # levels of the shift of tails: the ensemble's and the climate's extreme


def ordered(members: np.ndarray) -> np.ndarray:
    """The members in ascending order; where one is missing the last is NaN."""
    return np.sort(members, axis=1)


def moments(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and the unbiased standard deviation (divided by M - 1; NaN of one member), float32, of members (lead, M, ...)."""
    leads, size = ordered.shape[:2]
    flat = np.ascontiguousarray(ordered).reshape(leads, size, -1)
    mean, spread = (np.empty((leads, flat.shape[2]), np.float32) for _ in range(2))
    _moments(flat, mean, spread)
    shape = (leads, *ordered.shape[2:])
    return mean.reshape(shape), spread.reshape(shape)


def quantile(ordered: np.ndarray, level: float) -> np.ndarray:
    """The quantile of sorted members (lead, M, ...), float64: linear between order statistics (Hyndman and Fan 1996, type 7)."""
    position = level * (ordered.shape[1] - 1)
    first = min(int(position), ordered.shape[1] - 1)
    low = ordered[:, first].astype(np.float64)
    share = position - first
    if share > 0:
        low += share * (ordered[:, first + 1] - low)
    return _where_complete(low, ordered)


def quantiles(ordered: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Quantiles (lead, level, ...), float32, see `quantile`."""
    out = np.empty((ordered.shape[0], len(levels), *ordered.shape[2:]), np.float32)
    for k, level in enumerate(levels):
        out[:, k] = quantile(ordered, level)
    return out


def extremes(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest member."""
    return _where_complete(ordered[:, 0], ordered), ordered[:, -1]


def efi(ordered: np.ndarray, climate: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Extreme forecast index (lead, ...), float32, as `verification.quantiles.efi` defines it, of members that are sorted.

    climate: (lead, K, ...), the climate's quantiles at ascending levels (K,). Both being sorted, one walk along them places
    every member: O(M + K) a point.
    """
    leads, size = ordered.shape[:2]
    members = np.ascontiguousarray(ordered).reshape(leads, size, -1)
    quantiles = np.ascontiguousarray(climate, np.float32).reshape(leads, len(levels), -1)
    index = np.empty((leads, members.shape[2]), np.float32)
    _efi(members, quantiles, np.asarray(levels, np.float64), index)
    return index.reshape(leads, *ordered.shape[2:])


def sot(ordered: np.ndarray, climate: np.ndarray, levels: np.ndarray, tail: tuple[float, float]) -> np.ndarray:
    """Shift of tails (lead, ...), float32, as `verification.quantiles.sot`; tail: UPPER or LOWER. climate as for `efi`."""
    own, extreme = (climate[:, position_of(level, levels)].astype(np.float64) for level in tail)
    width = extreme - own
    beyond = quantile(ordered, tail[0]) - extreme
    return np.divide(beyond, width, out=np.full(width.shape, np.nan), where=width != 0).astype(np.float32)


def position_of(level: float, levels: np.ndarray) -> int:
    """Where a level is among levels; -1 if it is not."""
    near = int(np.abs(levels - level).argmin()) if len(levels) else 0
    return near if len(levels) and abs(levels[near] - level) <= SAME_LEVEL else -1


def happens(members: np.ndarray, op: Op, threshold: np.ndarray) -> np.ndarray:
    """Where `member op threshold`, in the precision of the members: 0.1 mm ties with 0.1 mm. Missing values compare as False."""
    limit = np.asarray(threshold).astype(members.dtype)
    compare = {">": np.greater, ">=": np.greater_equal, "<": np.less, "<=": np.less_equal}[op]
    return np.asarray(compare(members, limit))


def share(events: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Share of the members (lead, M, ...) with the event, i / M, float32; NaN where a member or a threshold is missing."""
    probability = np.count_nonzero(events, axis=1) / events.shape[1]
    return np.where(missing, np.nan, probability).astype(np.float32)


def _where_complete(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    last = ordered[:, -1]
    return np.where(np.isnan(last), np.nan, values) if np.isnan(last).any() else values


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _moments(members, mean, spread):  # type: ignore[no-untyped-def]
    """Deviations from the middle member, rounded once: no cancellation at 1e5 Pa."""
    leads, size, points = members.shape
    total, squares = np.empty(points), np.empty(points)
    for lead in range(leads):
        centre = members[lead, size // 2]
        total[:], squares[:] = 0.0, 0.0
        for m in range(size):
            row = members[lead, m]
            for p in range(points):
                deviation = np.float64(row[p]) - np.float64(centre[p])
                total[p] += deviation
                squares[p] += deviation * deviation
        for p in range(points):
            average = total[p] / size
            mean[lead, p] = np.float64(centre[p]) + average
            variance = max(squares[p] - total[p] * average, 0.0) if total[p] == total[p] else np.nan
            spread[lead, p] = np.sqrt(variance / (size - 1)) if size > 1 else np.nan


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _efi(members, climate, levels, index):  # type: ignore[no-untyped-def]
    """Members on a flat step of the climate take the mean of asin(sqrt(q)) over it, [h(p_b) - h(p_a)] / (p_b - p_a)."""
    leads, size, points = members.shape
    count = levels.size
    angle, area = np.empty(count), np.empty(count)
    for k in range(count):
        q = levels[k]
        angle[k] = np.arcsin(np.sqrt(q))
        area[k] = (q - 0.5) * angle[k] + np.sqrt(q * (1 - q)) / 2
    for lead in range(leads):
        for p in range(points):
            total = 0.0
            for k in range(count):
                total += climate[lead, k, p]  # NaN if one of them is
            total = total - total
            first = 0
            for m in range(size):
                value = members[lead, m, p]
                if value != value:
                    total = np.nan
                    break
                while first < count and climate[lead, first, p] < value:
                    first += 1
                if first == count:
                    total += (size - m) * np.pi / 2  # this one and all that follow
                    break
                if climate[lead, first, p] == value:
                    last = first
                    while last + 1 < count and climate[lead, last + 1, p] == value:
                        last += 1
                    if last > first:
                        total += (area[last] - area[first]) / (levels[last] - levels[first])
                    else:
                        total += angle[first]
                elif first > 0:
                    below, above = np.float64(climate[lead, first - 1, p]), np.float64(climate[lead, first, p])
                    part = (value - below) / (above - below)
                    q = levels[first - 1] + part * (levels[first] - levels[first - 1])
                    total += np.arcsin(np.sqrt(min(q, 1.0)))
            last_member = members[lead, size - 1, p]
            index[lead, p] = np.nan if last_member != last_member else total / size * 4 / np.pi - 1
