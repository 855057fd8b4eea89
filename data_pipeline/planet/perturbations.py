"""Analyses around a known truth: truth + error, and members around the analysis, from differences of model states.

An error is the difference of two states of the planet, 10 to 30 days apart, scaled so that its 500 hPa geopotential has a stated
global rms, with random sign. Such differences keep the balance of the model and grow as errors of the day do. The two states lie
at least `GUARD_DAYS` outside the forecast's own span, and within `SEASON_DAYS` of the date in the year, so that they are of the
season and know nothing of the verifying future. Members share no state with the error of their analysis: given the analysis, the
truth is then one more draw of the same kind.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel, select, stack
from data_pipeline.variables import lookup

APART_DAYS = (10, 30)
GUARD_DAYS = 15
SEASON_DAYS = 100
YEAR_DAYS = 365.2425
REFERENCE = Channel("geopotential", 500)


@dataclass(frozen=True)
class Pair:
    """An error: `scale` (signed) times the state at `first` minus the state at `second`."""

    first: pd.Timestamp
    second: pd.Timestamp
    scale: float


def draw_pairs(
    truth: xr.Dataset, states: pd.DatetimeIndex, init: pd.Timestamp, *, days: float, count: int, size: float, seed: int
) -> list[Pair]:
    """`count` different pairs for the initialisation `init` of forecasts of `days`; the first is the error of the analysis.

    truth: the planet's analyses, with 500 hPa geopotential at `states` (stamps of restart states). size: rms of the error of that
    field, area-weighted over the grid (m2 s-2). Depends on (states, seed, init) alone. Raises InputError if too few pairs are
    allowed.
    """
    allowed = _allowed(states, init, days)
    order = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, int(init.value // 3_600_000_000_000)]))
    shuffled = [allowed[i] for i in order.permutation(len(allowed))]
    signs = order.choice([-1.0, 1.0], size=count)
    members = [pair for pair in shuffled[1:] if not set(pair) & set(shuffled[0])]
    if len(shuffled[:1] + members) < count:
        raise InputError(
            f"{init:%Y-%m-%dT%H}: {len(members)} pairs of states are {APART_DAYS[0]} to {APART_DAYS[1]} days apart, {GUARD_DAYS} "
            f"days outside the {days:g}-day forecast and in season; {count - 1} members need as many. Keep more restart states"
        )
    chosen = [*shuffled[:1], *members[: count - 1]]
    return [Pair(a, b, float(sign * size / _rms(truth, a, b))) for sign, (a, b) in zip(signs, chosen, strict=True)]


def perturbed_fields(
    truth: xr.Dataset, channels: Sequence[Channel], init: pd.Timestamp, lag: pd.Timedelta, pairs: Sequence[Pair]
) -> np.ndarray:
    """The analysis and its members `lag` before `init`, shape (1 + members, channel, latitude, longitude), float32.

    The pairs are taken as long before their own stamps, so that an error and its tendency belong together. Quantities that
    cannot be negative are cut at 0.
    """
    fields = stack(truth, list(channels))

    def at(when: pd.Timestamp) -> np.ndarray:
        return np.asarray(fields.sel(time=when).values, np.float64)

    errors = [pair.scale * (at(pair.first - lag) - at(pair.second - lag)) for pair in pairs]
    analysis = at(init - lag) + errors[0]
    members = np.stack([analysis, *(analysis + error for error in errors[1:])])
    for i, channel in enumerate(channels):
        known = lookup(channel.name)
        if known is not None and known.non_negative:
            np.maximum(members[:, i], 0.0, out=members[:, i])
    return members.astype(np.float32)


def perturbed_states(
    truth: Mapping[str, np.ndarray], pairs: Sequence[Pair], held: Mapping[pd.Timestamp, Mapping[str, np.ndarray]]
) -> list[dict[str, np.ndarray]]:
    """Spectral coefficients of the members, without the analysis itself: truth + error of the analysis + error of the member."""

    def error(pair: Pair, name: str) -> np.ndarray:
        first, second = (np.asarray(held[stamp][name], np.float64) for stamp in (pair.first, pair.second))
        return pair.scale * (first - second)

    def member(pair: Pair) -> dict[str, np.ndarray]:
        return {
            name: array if array.ndim == 0 else (array + error(pairs[0], name) + error(pair, name)).astype(array.dtype)
            for name, array in truth.items()
        }

    return [member(pair) for pair in pairs[1:]]


def _allowed(states: pd.DatetimeIndex, init: pd.Timestamp, days: float) -> list[tuple[pd.Timestamp, pd.Timestamp]]:
    guard, end = pd.Timedelta(days=GUARD_DAYS), init + pd.Timedelta(days=days)
    outside = [stamp for stamp in states if stamp <= init - guard or stamp >= end + guard]
    inside = [stamp for stamp in outside if _season_distance(stamp, init) <= SEASON_DAYS]
    least, most = (pd.Timedelta(days=number) for number in APART_DAYS)
    return [(a, b) for a, b in itertools.combinations(inside, 2) if least <= b - a <= most]


def _season_distance(stamp: pd.Timestamp, other: pd.Timestamp) -> float:
    apart = abs((stamp - other).total_seconds()) / 86400 % YEAR_DAYS
    return float(min(apart, YEAR_DAYS - apart))


def _rms(truth: xr.Dataset, first: pd.Timestamp, second: pd.Timestamp) -> float:
    field = select(truth, REFERENCE)
    weights = Grid.of(truth).area_weights
    difference = field.sel(time=first).values.astype(np.float64) - field.sel(time=second).values
    return float(np.sqrt((difference**2 * weights).sum() / weights.sum()))
