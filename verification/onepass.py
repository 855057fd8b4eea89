"""The pass behind the score state: one read of the members leaves every sum that scores are read from.

A tile of points is sorted once (`verification.kernels`); moments, ranks, the terms of the CRPS and of its decomposition,
quantiles, and for each event the table and the terms of the threshold-weighted CRPS follow from it. Sums are of weight x
statistic over the points of a cell, in the order of the points; the large tables are kept on zones, unions of cells.

Numba's cache does not see that `kernels` changed: touch this file, too, when editing that one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from verification.kernels import (
    TILE,
    load,
    merging_network,
    moment_sums,
    pair_sums,
    rank_counts,
    say_if_compiling,
    sort,
    tile_count,
)

SUMS = ("weight", "abs_error", "gini", "variance", "squared_error", "error", "mean_abs_error", "dropped", "dropped_marks")
ANOMALIES = ("anomaly_product", "forecast_anomaly", "truth_anomaly")
TAILS = ("weight", "abs_error", "gini")
MAPS = ("count", "crps", "variance", "squared_error", "error")


class FieldSums(NamedTuple):
    """What one pass over the fields of some leads of one channel leaves: sums of weight x statistic, over the points of a cell.

    sums (lead, SUMS, cell). anomalies (lead, ANOMALIES, cell). On zones, unions of cells: ranks (lead, zone, M + 1), ties shared
    evenly; hersbach (lead, zone, 2, M + 1), the lengths alpha and beta; outliers (lead, zone, 2), weight of y < x_(1) and of
    y <= x_(M); truth (lead, zone, bin, 2), weight and weight x (y - first edge); quantiles (lead, zone, level), pinball; table
    (lead, event, zone, M + 1, 2), weight by number of members with the event and its occurrence; tails (lead, event, zone,
    TAILS). maps (drawn lead, MAPS, point), not summed. counts (lead, event, point): members with the event, -1 where there is no
    case. infinite: how many cases held infinite values.
    """

    sums: np.ndarray
    anomalies: np.ndarray
    ranks: np.ndarray
    hersbach: np.ndarray
    outliers: np.ndarray
    truth: np.ndarray
    quantiles: np.ndarray
    table: np.ndarray
    tails: np.ndarray
    maps: np.ndarray
    counts: np.ndarray
    infinite: np.ndarray


def field_sums(
    members: np.ndarray,
    truth: np.ndarray,
    weights: np.ndarray,
    cells: np.ndarray,
    zones: np.ndarray,
    *,
    edges: np.ndarray,
    levels: np.ndarray,
    climatology: np.ndarray | None = None,
    thresholds: np.ndarray | None = None,
    ops: np.ndarray | None = None,
    first: int = 0,
    drawn: np.ndarray | None = None,
    keep_counts: bool = False,
) -> FieldSums:
    """One pass over members (lead, M, point) and truth (lead, point), C-contiguous and of one float type; see `FieldSums`.

    first: where the points of the truth begin among those of the members, which may hold several channels. drawn: (lead,), which
    leads get maps; default all.

    weights, cells: (point,), cells numbered from 0. zones: (cell,), the zone of each cell. edges: ascending, between the bins of
    the histogram of the truth, the outer ones open; rounded to the members' type. levels: of the quantiles. climatology: (lead,
    point).
    thresholds: (event, lead, point) in the members' type, with ops (event,) 0 >, 1 >=, 2 <, 3 <=; a missing threshold is no case
    of that event. A case with a missing member or truth is left out and counted.
    """
    say_if_compiling(f"field sums {truth.dtype}", lambda: _first_call(members.dtype))
    (leads, size, _), points = members.shape, truth.shape[1]
    cell_count, zone_count = zones.size, int(zones.max()) + 1
    events = 0 if thresholds is None else thresholds.shape[0]
    drawn = np.ones(leads, np.bool_) if drawn is None else drawn
    out = FieldSums(
        sums=np.zeros((leads, len(SUMS), cell_count)),
        anomalies=np.zeros((leads, 0 if climatology is None else len(ANOMALIES), cell_count)),
        ranks=np.zeros((leads, zone_count, size + 1)),
        hersbach=np.zeros((leads, zone_count, 2, size + 1)),
        outliers=np.zeros((leads, zone_count, 2)),
        truth=np.zeros((leads, zone_count, edges.size + 1, 2)),
        quantiles=np.zeros((leads, zone_count, levels.size)),
        table=np.zeros((leads, events, zone_count, size + 1, 2)),
        tails=np.zeros((leads, events, zone_count, len(TAILS))),
        maps=np.zeros((int(drawn.sum()), len(MAPS), points)),
        counts=np.full((leads, events if keep_counts else 0, points), -1, np.int16),
        infinite=np.zeros(1, np.int64),
    )
    nothing = np.empty((0, 0, 0), members.dtype)
    _field_sums(
        members, first, truth, weights, cells, zones, merging_network(size),
        edges.astype(members.dtype), levels,
        np.empty((0, 0)) if climatology is None else climatology,
        nothing if thresholds is None else thresholds, np.empty(0, np.int64) if ops is None else ops,
        np.where(drawn, np.cumsum(drawn) - 1, -1), out,
    )  # fmt: skip
    return out


def _first_call(dtype: np.dtype[Any]) -> None:
    one = np.zeros(1, np.int64)
    field_sums(
        np.zeros((1, 2, 1), dtype), np.zeros((1, 1), dtype), np.ones(1), one, one, edges=np.zeros(1), levels=np.array([0.5])
    )  # fmt: skip


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "nsz"})
def _one_sided(row, y, weight):  # type: ignore[no-untyped-def]
    """Sums of weight x how far a member lies below and above the truth.

    The only place where the order of a sum is the compiler's, which lets it vectorise.
    """
    below, above = 0.0, 0.0
    for i in range(TILE):
        distance = np.float64(row[i]) - y[i]
        below += weight[i] * max(-distance, 0.0)
        above += weight[i] * max(distance, 0.0)
    return below, above


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _tail_sums(buffer, y, threshold, above, absolute, pairs):  # type: ignore[no-untyped-def]
    """`pair_sums` of members and truth clipped at the threshold from below (`above`) or from above: clipping keeps the order."""
    size = buffer.shape[0]
    lowest, highest, truth = np.empty(TILE), np.empty(TILE), np.empty(TILE)
    middle = buffer[size // 2]
    for i in range(TILE):
        lowest[i] = np.float64(threshold[i]) if above else -np.inf
        highest[i] = np.inf if above else np.float64(threshold[i])
        truth[i] = min(max(y[i], lowest[i]), highest[i])
        absolute[i] = abs(min(max(np.float64(middle[i]), lowest[i]), highest[i]) - truth[i]) if size % 2 else 0.0
        pairs[i] = 0.0
    for m in range(size // 2):
        weight = float(size - 1 - 2 * m)
        lower, upper = buffer[m], buffer[size - 1 - m]
        for i in range(TILE):
            low = min(max(np.float64(lower[i]), lowest[i]), highest[i])
            high = min(max(np.float64(upper[i]), lowest[i]), highest[i])
            absolute[i] += abs(low - truth[i]) + abs(high - truth[i])
            pairs[i] += weight * (high - low)


@numba.njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _happens(value, threshold, op):  # type: ignore[no-untyped-def]
    if op == 0:
        return value > threshold
    if op == 1:
        return value >= threshold
    if op == 2:
        return value < threshold
    return value <= threshold


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _count_events(buffer, threshold, op, hits):  # type: ignore[no-untyped-def]
    for i in range(TILE):
        hits[i] = 0
    for m in range(buffer.shape[0]):
        row = buffer[m]
        if op == 0:
            for i in range(TILE):
                hits[i] += np.int32(row[i] > threshold[i])
        elif op == 1:
            for i in range(TILE):
                hits[i] += np.int32(row[i] >= threshold[i])
        elif op == 2:
            for i in range(TILE):
                hits[i] += np.int32(row[i] < threshold[i])
        else:
            for i in range(TILE):
                hits[i] += np.int32(row[i] <= threshold[i])


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _pinball(buffer, y, level, score):  # type: ignore[no-untyped-def]
    """Quantile score of the members' quantile, linear between order statistics (Hyndman and Fan 1996, type 7)."""
    size = buffer.shape[0]
    place = level * (size - 1)
    lower = min(int(place), max(size - 2, 0))
    share = place - lower
    below, above = buffer[lower], buffer[min(lower + 1, size - 1)]
    for i in range(TILE):
        low, high = np.float64(below[i]), np.float64(above[i])
        miss = low + share * (high - low) - y[i]
        score[i] = max(miss * (1 - level), -miss * level)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _find_slots(truth, edges, slots):  # type: ignore[no-untyped-def]
    """Numbers of edges not above the truth: comparing all of them along the tile is faster than a search for each point."""
    for i in range(TILE):
        slots[i] = 0
    for k in range(edges.size):
        edge = edges[k]
        for i in range(TILE):
            slots[i] += np.int32(truth[i] >= edge)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _add_hersbach(buffer, y, weight, lengths, outliers):  # type: ignore[no-untyped-def]
    """Add one zone's share of a tile to its lengths (2, M + 1) and outliers (2,): Hersbach 2000, with the outer bins.

    The part of a gap below the truth is how far its lower member lies below it less how far its upper member does.
    """
    size = buffer.shape[0]
    first, last = buffer[0], buffer[size - 1]
    for i in range(TILE):
        outliers[0] += weight[i] if y[i] < np.float64(first[i]) else 0.0
        outliers[1] += weight[i] if y[i] <= np.float64(last[i]) else 0.0
    below, above = _one_sided(first, y, weight)
    lengths[1, 0] += above
    for m in range(1, size):
        next_below, next_above = _one_sided(buffer[m], y, weight)
        lengths[0, m] += below - next_below
        lengths[1, m] += next_above - above
        below, above = next_below, next_above
    lengths[0, size] += below


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _field_sums(  # type: ignore[no-untyped-def]
    members, first, truths, weights, cells, zones, network, edges, levels, climatology, thresholds, ops, map_of, out
):
    size, points = members.shape[1], truths.shape[1]
    zone_count = out.ranks.shape[1]
    tiles = tile_count(size, members.itemsize)
    buffers = np.empty((tiles, size, TILE), members.dtype)
    own, threshold = np.zeros(TILE, members.dtype), np.zeros(TILE, members.dtype)
    y, w, zone_weight = np.zeros(TILE), np.zeros(TILE), np.zeros(TILE)
    absolute, pairs, centre, total, squares = np.empty(TILE), np.empty(TILE), np.empty(TILE), np.empty(TILE), np.empty(TILE)
    below, ties = np.empty(TILE, np.int32), np.empty(TILE, np.int32)
    hits, slots = np.empty(TILE, np.int32), np.empty(TILE, np.int32)
    zone, present = np.zeros(TILE, np.int64), np.zeros(zone_count, np.bool_)
    scale = 2.0 / max(size * (size - 1), 1)
    for case in range(members.shape[0]):
        for start in range(0, points, TILE):
            tile = start // TILE % tiles
            if tile == 0:
                load(members[case : case + 1], first + start, min(tiles * TILE, points - start), buffers)
            buffer = buffers[tile]
            count = min(TILE, points - start)
            sort(buffer, network)
            own[:], y[:], w[:] = 0, 0.0, 0.0
            for i in range(count):
                own[i] = truths[case, start + i]
                y[i] = own[i]
                w[i] = weights[start + i]
                zone[i] = zones[cells[start + i]]
            pair_sums(buffer, y, absolute, pairs)
            present[:] = False
            for i in range(count):
                if np.isfinite(absolute[i]):
                    present[zone[i]] = True
                    continue
                # from here on an empty column: it has no weight, and nothing of it reaches a sum
                out.infinite[0] += np.isinf(absolute[i]) or np.isinf(y[i])
                out.sums[case, 7, cells[start + i]] += 1.0
                # the sum of such marks tells which points were left out, exactly: fractions of 32 bits
                out.sums[case, 8, cells[start + i]] += ((start + i) * 2654435761 % 4294967296) / 4294967296.0
                buffer[:, i] = 0
                own[i], y[i], w[i], absolute[i], pairs[i] = 0, 0.0, 0.0, 0.0, 0.0
            moment_sums(buffer, centre, total, squares)
            rank_counts(buffer, own, below, ties)
            _find_slots(own, edges, slots)
            for i in range(count):
                if w[i] == 0.0:
                    continue
                p, cell = start + i, cells[start + i]
                error = (centre[i] - y[i]) + total[i] / size
                # the middle member is within one standard deviation of the mean, so this difference loses at most one bit
                variance = max(squares[i] - total[i] * total[i] / size, 0.0) / max(size - 1, 1)
                sums = out.sums[case, :, cell]
                sums[0] += w[i]
                sums[1] += w[i] * (absolute[i] / size)
                sums[2] += w[i] * (pairs[i] * scale)
                sums[3] += w[i] * variance
                sums[4] += w[i] * (error * error)
                sums[5] += w[i] * error
                sums[6] += w[i] * abs(error)
                if map_of[case] >= 0:
                    maps = out.maps[map_of[case]]
                    maps[0, p] = 1.0
                    maps[1, p] = absolute[i] / size - pairs[i] * scale / 2
                    maps[2, p] = variance
                    maps[3, p] = error * error
                    maps[4, p] = error
                share = w[i] / (ties[i] + 1)
                for rank in range(below[i], below[i] + ties[i] + 1):
                    out.ranks[case, zone[i], rank] += share
                out.truth[case, zone[i], slots[i], 0] += w[i]
                out.truth[case, zone[i], slots[i], 1] += w[i] * (y[i] - np.float64(edges[0]))
                if climatology.shape[0] > 0 and np.isfinite(climatology[case, p]):
                    truth_anomaly = y[i] - climatology[case, p]
                    anomaly = error + truth_anomaly
                    out.anomalies[case, 0, cell] += w[i] * (anomaly * truth_anomaly)
                    out.anomalies[case, 1, cell] += w[i] * (anomaly * anomaly)
                    out.anomalies[case, 2, cell] += w[i] * (truth_anomaly * truth_anomaly)
            for q in range(levels.size):
                _pinball(buffer, y, levels[q], absolute)
                for i in range(count):
                    out.quantiles[case, zone[i], q] += w[i] * absolute[i]
            for z in range(zone_count):
                if not present[z]:
                    continue
                for i in range(TILE):
                    zone_weight[i] = w[i] if zone[i] == z else 0.0
                _add_hersbach(buffer, y, zone_weight, out.hersbach[case, z], out.outliers[case, z])
            for e in range(thresholds.shape[0]):
                for i in range(count):
                    threshold[i] = thresholds[e, case, start + i]
                _count_events(buffer, threshold, ops[e], hits)
                _tail_sums(buffer, y, threshold, ops[e] < 2, absolute, pairs)
                for i in range(count):
                    if w[i] == 0.0 or not np.isfinite(threshold[i]):
                        continue
                    observed = int(_happens(own[i], threshold[i], ops[e]))
                    out.table[case, e, zone[i], hits[i], observed] += w[i]
                    tail = out.tails[case, e, zone[i]]
                    tail[0] += w[i]
                    tail[1] += w[i] * (absolute[i] / size)
                    tail[2] += w[i] * (pairs[i] * scale)
                    if out.counts.shape[1] > 0:
                        out.counts[case, e, start + i] = hits[i]
