"""One forecast from several stores: their members pooled, bit for bit, in shares that stand for the weights.

Scores and products treat members as exchangeable, so a weight is a number of members: shares are whole numbers, by largest
remainders, and members are dealt out so that every first part of the pool is balanced too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from data_pipeline import store
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel, channels_of
from forecast.plan import ForecastPlan, spanned, template

TOLD = ("checkpoint_sha256", "noise_scale", "seed", "initial_state", "recipe_hash", "post_processing")
SAME = ("source", "source_recipe_hash", "attribution", "boundary")


@dataclass(frozen=True)
class Pool:
    """What is pooled: forecasts in the schema and their names, the shares (members of each), and the common axes."""

    forecasts: tuple[xr.Dataset, ...]
    names: tuple[str, ...]
    weights: tuple[float, ...]
    shares: tuple[int, ...]
    times: np.ndarray
    leads: np.ndarray
    channels: tuple[Channel, ...]
    grid: Grid

    @property
    def order(self) -> list[tuple[int, int]]:
        """(forecast, position of the member in it) of members 1, 2, 3 ... of the pool, every first part balanced."""
        dealt = [((place + 0.5) / share, part, place) for part, share in enumerate(self.shares) for place in range(share)]
        return [(part, place) for _, part, place in sorted(dealt)]

    @property
    def bytes(self) -> int:
        """Of the pooled fields, uncompressed."""
        return self.times.size * self.leads.size * sum(self.shares) * len(self.channels) * self.grid.areas.size * 4


def plan_pool(
    forecasts: Sequence[xr.Dataset], names: Sequence[str], *, weights: Sequence[float] | None = None, members: int | None = None,
    common: bool = False,
) -> Pool:  # fmt: skip
    """Check that forecasts go together and share the members out; nothing is read.

    weights: one a forecast, equal unless given; without weights and `members`, all members of all. members: size of the pool, the
    largest that the weights allow unless given. common: pool the initialisations, leads and fields that all have, where the
    forecasts differ. Raises InputError, listing everything that differs or lacks.
    """
    given = tuple(forecasts)
    faults = [] if len(given) > 1 else ["a pool takes two forecasts at least"]
    if weights is not None and (len(weights) != len(given) or not all(w > 0 and np.isfinite(w) for w in weights)):
        faults.append(f"weights {', '.join(f'{w:g}' for w in weights)}: expected one above 0 for each of {len(given)} forecasts")
    faults += _twice(given, names)
    axes, differing = _common(given, names)
    faults += [] if common else differing
    grids = [Grid.of(forecast) for forecast in given]
    faults += [f"grid: {names[0]} is on {grids[0]}, {name} on {own}" for name, own in _others(names, grids, Grid.matches)]
    faults += [f"{what}: none is in every forecast" for what, values in axes.items() if not len(values)]
    if faults:
        raise InputError("these forecasts cannot be pooled:\n" + "\n".join(f"  - {fault}" for fault in dict.fromkeys(faults)))
    sizes = [forecast.sizes["number"] for forecast in given]
    wanted, shares = _shares(sizes, names, weights, members)
    channels = tuple(channel for channel in channels_of(given[0]) if channel.label in axes["fields"])
    return Pool(given, tuple(names), wanted, shares, axes["initialisations"], axes["leads"], channels, grids[0])


def write_pool(pool: Pool, out: Path, report: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Write the pool as a forecast store, an initialisation and member block a part; resumable. Values keep their bits.

    Coordinates `pooled_from` (name of the forecast) and `pooled_number` (its member number there) tell where each member is from.
    In memory is one variable of a part, at the leads of a chunk.
    """
    members = tuple(range(1, len(pool.order) + 1))
    plan = ForecastPlan(pool.times, pool.leads, members, pool.channels, pool.grid, _attrs(pool))
    empty = template(plan).assign_coords(_origins(pool))
    names = [part.name for part in plan.parts]
    recipe = {key: value for key, value in plan.attrs.items() if key != "plumecast_version"}
    run = plan.chunks["prediction_timedelta"]
    with store.create(out, empty, parts=names, attrs=plan.attrs, chunks=plan.chunks, recipe=recipe) as writer:
        for done, part in enumerate(plan.parts, 1):
            if part.name not in writer.done:
                for first in range(0, plan.leads.size, run):
                    leads = slice(first, min(first + run, plan.leads.size))
                    box = {"time": slice(part.row, part.row + 1), "prediction_timedelta": leads, "number": part.members}
                    for name in empty.data_vars:
                        writer.put(part.name, _block(pool, str(name), empty, box), box)
                writer.complete(part.name)
            report(done, len(names))
        return writer.finish()


def _block(pool: Pool, name: str, empty: xr.Dataset, box: dict[str, slice]) -> xr.Dataset:
    """One variable of one initialisation, some leads and some members; levels that it does not have are NaN."""
    target = empty[name].isel(box)
    values = np.full(target.shape, np.nan, np.float32)
    rows = {"time": target["time"].values, "prediction_timedelta": target["prediction_timedelta"].values}
    order = pool.order[box["number"]]
    for part, forecast in enumerate(pool.forecasts):
        places = [k for k, (other, _) in enumerate(order) if other == part]
        if not places:
            continue
        first, last = order[places[0]][1], order[places[-1]][1]  # in their own order, without a gap
        own = forecast[name].isel(number=slice(first, last + 1)).sel(rows)
        if "level" in target.dims:
            own = own.reindex(level=target["level"].values)
        values[:, :, places] = own.transpose(*target.dims).values
    if "level" in target.dims:
        held = [channel.level or 0 for channel in pool.channels if channel.name == name]
        values[..., ~np.isin(target["level"].values, held), :, :] = np.nan
    return xr.Dataset({name: (target.dims, values)}, coords={dim: target[dim] for dim in (*rows, "number")})


def _common(forecasts: Sequence[xr.Dataset], names: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """What all forecasts have, by axis; and what only some have, in words."""
    axes: dict[str, list[np.ndarray]] = {
        "initialisations": [forecast["time"].values for forecast in forecasts],
        "leads": [forecast["prediction_timedelta"].values for forecast in forecasts],
        "fields": [np.array([channel.label for channel in channels_of(forecast)]) for forecast in forecasts],
    }
    shared, faults = {}, []
    for what, values in axes.items():
        everywhere = values[0][np.all([np.isin(values[0], other) for other in values], axis=0)]
        shared[what] = everywhere
        for name, own in zip(names, values, strict=True):
            extra = np.setdiff1d(own, everywhere)
            if extra.size:
                shown = ", ".join(_shown(value) for value in extra[:4]) + (" ..." if extra.size > 4 else "")
                faults.append(f"{what}: {name} has {extra.size} that not all have ({shown}); --common leaves them out")
    return shared, faults


def _shown(value: Any) -> str:
    if isinstance(value, np.datetime64):
        return str(np.datetime_as_string(value, "h"))
    return f"+{value / np.timedelta64(1, 'h'):g} h" if isinstance(value, np.timedelta64) else str(value)


def _others(names: Sequence[str], values: Sequence[Any], alike: Callable[[Any, Any], bool]) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in zip(names[1:], values[1:], strict=True) if not alike(values[0], value)]


def _twice(forecasts: Sequence[xr.Dataset], names: Sequence[str]) -> list[str]:
    """Forecasts whose members are the same numbers: pooled they would count twice."""
    faults, keys = [], ("checkpoint_sha256", "seed", "noise_scale", "initial_state", "source_recipe_hash", "post_processing")
    for i, one in enumerate(forecasts):
        for j in range(i):
            other = forecasts[j]
            whole = one.attrs.get("recipe_hash") and one.attrs.get("recipe_hash") == other.attrs.get("recipe_hash")
            made = "checkpoint_sha256" in one.attrs and all(
                np.array_equal(np.asarray(one.attrs.get(key, "")), np.asarray(other.attrs.get(key, ""))) for key in keys
            )
            if (whole or made) and np.intersect1d(one["number"], other["number"]).size:
                faults.append(f"{names[j]} and {names[i]} are the same members: one checkpoint, seed, scale and initial state")
    return faults + [f"two forecasts are called {name}" for name in set(names) if list(names).count(name) > 1]


def _shares(
    sizes: Sequence[int], names: Sequence[str], weights: Sequence[float] | None, members: int | None
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """(weights of sum 1, members of each). Raises InputError if a forecast has fewer members than its share."""
    if weights is None and members is None:
        return tuple(size / sum(sizes) for size in sizes), tuple(sizes)
    given = [1.0] * len(sizes) if weights is None else weights
    wanted = tuple(float(weight / sum(given)) for weight in given)
    if members is None:
        fits = (n for n in range(sum(sizes), 0, -1) if all(np.less_equal(largest_remainders(wanted, n), sizes)))
        members = next(fits)
    shares = largest_remainders(wanted, members)
    faults = [
        f"{name} has {size} members; its share of {members} is {share}"
        for name, size, share in zip(names, sizes, shares, strict=True)
        if share > size
    ]
    faults += [f"{name} would have no member of {members}" for name, share in zip(names, shares, strict=True) if share == 0]
    if faults:
        raise InputError("these forecasts cannot be pooled:\n" + "\n".join(f"  - {fault}" for fault in faults))
    return wanted, shares


def largest_remainders(weights: Sequence[float], total: int) -> tuple[int, ...]:
    """`total` shared out by weights of sum 1: whole parts, and one more for the largest remainders, the first of equal ones."""
    exact = np.asarray(weights) * total
    shares = np.floor(exact + 1e-9).astype(int)
    rest = np.argsort(-np.round(exact - shares, 9), kind="stable")[: total - shares.sum()]
    shares[rest] += 1
    return tuple(int(share) for share in shares)


def _origins(pool: Pool) -> dict[str, Any]:
    names = np.array([pool.names[part] for part, _ in pool.order], object)
    numbers = np.array([pool.forecasts[part]["number"].values[place] for part, place in pool.order])
    return {
        "pooled_from": ("number", names, {"long_name": "forecast that the member is from"}),
        "pooled_number": ("number", numbers, {"long_name": "number of the member there"}),
    }


def _attrs(pool: Pool) -> dict[str, Any]:
    """Of the pooled forecast: what all have in common, and `pooled` (JSON), what is known of each."""
    each = [
        {
            "name": name, "model": str(forecast.attrs.get("model", "")), "weight": round(weight, 6), "members": share,
            "of_members": forecast.sizes["number"], **{key: forecast.attrs[key] for key in TOLD if key in forecast.attrs},
        }
        for name, weight, share, forecast in zip(pool.names, pool.weights, pool.shares, pool.forecasts, strict=True)
    ]  # fmt: skip
    models = [f"{share} {name}" for name, share in zip(pool.names, pool.shares, strict=True)]
    attrs = {"model": " + ".join(models), "pooled": json.dumps(each, default=str), "plumecast_version": store.version()}
    for key in SAME:
        values = list(dict.fromkeys(str(forecast.attrs[key]) for forecast in pool.forecasts if key in forecast.attrs))
        attrs |= {key: "; ".join(filter(None, values))} if values else {}
    for kind in ("training_period", "validation_period"):
        attrs[kind] = spanned([str(forecast.attrs.get(kind, "")) for forecast in pool.forecasts])
    return attrs
