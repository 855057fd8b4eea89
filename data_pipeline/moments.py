"""One pass over fields: what a check needs of each, and moments of fields and of their changes that add up exactly.

A moment is (n, mean, m2): how many fields, their area-weighted mean, and the area-weighted sum over fields of squared deviations
from it, in the space that models see. Sums run in float64 over deviations from the block's first mean, so that a geopotential of
1e5 loses nothing; blocks merge by Chan's formula (Chan, Golub and LeVeque 1983), in the order of time, whoever computed them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numba
import numpy as np

from data_pipeline.grid import Grid
from data_pipeline.transform import log_space

MEASURES = ("minimum", "maximum", "total", "weight", "finite")
NONE = np.iinfo(np.int64).min  # no partner


@dataclass
class Moment:
    """(n, mean, m2), see the module; NaN where a value is missing."""

    n: int = 0
    mean: float = 0.0
    m2: float = 0.0

    def add(self, other: Moment) -> None:
        """Put the fields of another moment to those of this one."""
        if not other.n:
            return
        n, shift = self.n + other.n, other.mean - self.mean
        self.m2 += other.m2 + shift * shift * self.n * other.n / n
        self.mean += shift * other.n / n
        self.n = n

    @property
    def std(self) -> float:
        """Standard deviation; NaN of nothing."""
        # rounding may leave a channel without variance just below 0; missing values stay NaN
        return float(np.sqrt(max(self.m2 / self.n, 0.0) if self.m2 == self.m2 else self.m2)) if self.n else float("nan")


@dataclass
class Moments:
    """Of one channel: its fields, and their changes over each of some numbers of hours."""

    fields: Moment = field(default_factory=Moment)
    changes: list[Moment] = field(default_factory=list)

    def add(self, other: Moments) -> None:
        """Put those of another block to those of this one."""
        self.fields.add(other.fields)
        for mine, theirs in zip(self.changes, other.changes, strict=True):
            mine.add(theirs)

    def numbers(self) -> list[list[float]]:
        """As plain data; the inverse of `from_numbers`."""
        return [[moment.n, moment.mean, moment.m2] for moment in (self.fields, *self.changes)]

    @classmethod
    def from_numbers(cls, rows: Sequence[Sequence[float | None]]) -> Moments:
        """From plain data, in which NaN is null."""
        read = [Moment(int(n or 0), *(float("nan") if value is None else value for value in rest)) for n, *rest in rows]
        return cls(read[0], read[1:])


def row_weights(grid: Grid) -> np.ndarray:
    """Share of the grid's area that a point of each row has, float64: they add up to 1 over the points."""
    weights: np.ndarray = grid.areas[:, 0] / grid.areas.sum()
    return weights


def measure(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Minimum, maximum, weighted total, its weight and number of finite values of each field: (..., MEASURES), float64.

    values: (..., latitude, longitude). weights: of the points of each row; those of values that are not finite do not count.
    """
    fields = np.ascontiguousarray(values).reshape(-1, 1, *values.shape[-2:])
    out = np.empty((len(fields), 1, len(MEASURES)))
    for time in range(len(fields)):
        _measure(fields, time, 0, weights, out)
    return out.reshape(*values.shape[:-2], len(MEASURES))


def partners(times: np.ndarray, before: np.ndarray, hours: Sequence[int]) -> np.ndarray:
    """Where the stamp that lies some hours before each of `times` is: (hours, time).

    Positions from 0 are in `times`, negative ones count from the end of `before`, NONE is a stamp that is not there.
    """
    joined = np.concatenate([before, times])
    found = np.full((len(hours), times.size), NONE)
    for row, lag in zip(found, hours, strict=True):
        wanted = times - np.timedelta64(lag, "h")
        places = np.minimum(np.searchsorted(joined, wanted), joined.size - 1)
        there = joined[places] == wanted
        row[there] = places[there] - before.size
    return found


def scan(
    values: np.ndarray, before: np.ndarray, pairs: np.ndarray, weights: np.ndarray, *, log: bool = False
) -> tuple[np.ndarray, list[Moments]]:
    """Measures (time, level, MEASURES) of fields, and the moments of each level.

    values: (time, level, latitude, longitude), before: the fields just before them, in the same form. pairs: see `partners`.
    weights: see `row_weights`; measured totals and weights are shares of the area. log: moments are those of `log_space`.
    """
    values, before = np.ascontiguousarray(values), np.ascontiguousarray(before)
    measures = np.empty((*values.shape[:2], len(MEASURES)))
    sums = np.zeros((values.shape[1], 1 + len(pairs), 2))
    guess = np.zeros(values.shape[1])
    if not log:
        _scan(values, before, pairs, weights, measures, guess, sums)
    else:
        measures = measure(values, weights)
        moved, moved_before = (log_space(part.astype(np.float64)) for part in (values, before))
        _scan(moved, moved_before, pairs, weights, np.empty_like(measures), guess, sums)
    counts = [len(values), *(int((row != NONE).sum()) for row in pairs)]
    found = []
    for level in range(values.shape[1]):
        moments = [_moment(n, *pair) for n, pair in zip(counts, sums[level], strict=True)]
        moments[0].mean += guess[level]
        found.append(Moments(moments[0], moments[1:]))
    return measures, found


def _moment(n: int, first: float, second: float) -> Moment:
    return Moment(n, first / n, second - first * first / n) if n else Moment()


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _scan(
    values: np.ndarray, before: np.ndarray, pairs: np.ndarray, weights: np.ndarray,
    measures: np.ndarray, guess: np.ndarray, sums: np.ndarray,
) -> None:  # fmt: skip
    """Fields and their changes. Sums run along the longitudes and are added up at the end: so the loops vectorise as they are."""
    n_times, n_levels, n_rows, n_columns = values.shape
    for level in range(n_levels):
        for time in range(n_times):
            if time == 0:
                _measure(values, time, level, weights, measures)
                guess[level] = measures[0, level, 2] / measures[0, level, 3] if measures[0, level, 3] > 0 else 0.0
            low, high, first, second = _zeros(n_columns)
            for row in range(n_rows):
                line, weight = values[time, level, row], weights[row]
                for column in range(n_columns):
                    value = line[column]
                    low[column] = value if value < low[column] else low[column]
                    high[column] = value if value > high[column] else high[column]
                    deviation = value - guess[level]
                    first[column] += weight * deviation
                    second[column] += weight * (deviation * deviation)
            total, squares = first.sum(), second.sum()
            sums[level, 0, 0] += total
            sums[level, 0, 1] += squares
            if np.isfinite(squares):
                _note(measures[time, level], low, high, total + guess[level], 1.0, n_rows * n_columns)
            else:
                _measure(values, time, level, weights, measures)
            for lag in range(pairs.shape[0]):
                place = pairs[lag, time]
                if place == NONE:
                    continue
                earlier = values[place, level] if place >= 0 else before[before.shape[0] + place, level]
                first[:] = 0.0
                second[:] = 0.0
                for row in range(n_rows):
                    line, other, weight = values[time, level, row], earlier[row], weights[row]
                    for column in range(n_columns):
                        change = np.float64(line[column]) - np.float64(other[column])
                        first[column] += weight * change
                        second[column] += weight * (change * change)
                sums[level, lag + 1, 0] += first.sum()
                sums[level, lag + 1, 1] += second.sum()


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _measure(values: np.ndarray, time: int, level: int, weights: np.ndarray, out: np.ndarray) -> None:
    """The measures of one field, whatever is missing."""
    n_rows, n_columns = values.shape[2:]
    low, high, total, share = _zeros(n_columns)
    count = np.zeros(n_columns)
    for row in range(n_rows):
        line, weight = values[time, level, row], weights[row]
        for column in range(n_columns):
            value = np.float64(line[column])
            finite = np.abs(value) < np.inf
            low[column] = value if finite and value < low[column] else low[column]
            high[column] = value if finite and value > high[column] else high[column]
            total[column] += weight * value if finite else 0.0
            share[column] += weight if finite else 0.0
            count[column] += 1.0 if finite else 0.0
    _note(out[time, level], low, high, total.sum(), share.sum(), count.sum())


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _zeros(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return np.full(n, np.inf), np.full(n, -np.inf), np.zeros(n), np.zeros(n)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _note(out: np.ndarray, low: np.ndarray, high: np.ndarray, total: float, share: float, count: float) -> None:
    out[0], out[1], out[2], out[3], out[4] = low.min(), high.max(), total, share, count
