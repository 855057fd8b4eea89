"""The additive score state: float64 sums per channel, initialisation, lead and cell, from which every score is read.

Nothing is averaged before it: a state holds sums of weight x statistic and of weight, so that regions, leads, estimators and
intervals are chosen afterwards, and the state of two halves of a campaign, merged, is the state of the whole. Cells are disjoint
latitude bands on a global grid and one domain on a regional one; regions are unions of cells. Kept per initialisation because
intervals resample them.

    sums (channel, time, prediction_timedelta, cell):  weight, abs_error, gini, variance, squared_error, error, dropped
    ranks (channel, time, prediction_timedelta, cell, rank):  area-weighted, ties shared evenly
    map_count, map_abs_error ... (channel, prediction_timedelta, latitude, longitude):  unweighted, summed over initialisations
    in_training (time, prediction_timedelta):  0 clean; initialisation or valid time in the validation (1) or training (2) period
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.store import is_store, open_store, write_dataset

KIND = "score_state"
SUMS = ("weight", "abs_error", "gini", "variance", "squared_error", "error", "dropped")
MAPS = ("count", "abs_error", "gini", "variance", "squared_error", "error")
ROW_DIMS = ("channel", "time", "prediction_timedelta", "cell")
MAP_DIMS = ("channel", "prediction_timedelta", "latitude", "longitude")

BANDS = {"90S-60S": (-90, -60), "60S-20S": (-60, -20), "20S-20N": (-20, 20), "20N-60N": (20, 60), "60N-90N": (60, 90)}
REGIONS = {
    "global": list(BANDS),
    "northern extratropics": ["20N-60N", "60N-90N"],
    "tropics": ["20S-20N"],
    "southern extratropics": ["90S-60S", "60S-20S"],
}
DOMAIN = "domain"

POLICY = (
    "means weighted by exact cell area; a case without truth or with a missing member is left out of numerator and denominator "
    "and counted; rank ties shared evenly; spread-skill ratio with (M + 1) / M"
)


def cells_of(grid: Grid) -> tuple[list[str], np.ndarray]:
    """Names of the cells and the cell number of each point, shape (latitude, longitude).

    Points on 20 degrees belong to the tropics, points on 60 degrees to the polar bands.
    """
    if not grid.is_global:
        return [DOMAIN], np.zeros(grid.shape, dtype=np.int64)
    latitude = np.round(grid.latitude, 6)
    bands = np.select([latitude <= -60, latitude < -20, latitude <= 20, latitude < 60], [0, 1, 2, 3], default=4)
    return list(BANDS), np.repeat(bands[:, None], grid.shape[1], axis=1)


def regions_of(state: xr.Dataset) -> dict[str, list[str]]:
    """The regions a state can be read for, {name: cells}; the first is the whole grid."""
    cells = [str(cell) for cell in state["cell"].values]
    return {DOMAIN: cells} if cells == [DOMAIN] else REGIONS


def empty(
    channels: Sequence[str],
    times: np.ndarray,
    leads: np.ndarray,
    members: int,
    grid: Grid,
    units: Mapping[str, str],
    attrs: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """A state of zeros: the neutral element of `merge` over these initialisations.

    channels: labels such as geopotential_500. times, leads: datetime64 and timedelta64. units: of each channel.
    """
    cells, _ = cells_of(grid)
    coords = {
        "channel": np.array(channels, dtype=object),
        "time": np.asarray(times, dtype="datetime64[ns]"),
        "prediction_timedelta": np.asarray(leads, dtype="timedelta64[ns]"),
        "cell": np.array(cells, dtype=object),
        "rank": np.arange(members + 1),
        **grid.coords(),
    }
    state = xr.Dataset(coords=coords)
    for name in SUMS:
        state[name] = (ROW_DIMS, np.zeros([state.sizes[dim] for dim in ROW_DIMS]))
    rank_dims = (*ROW_DIMS, "rank")
    state["ranks"] = (rank_dims, np.zeros([state.sizes[dim] for dim in rank_dims]))
    for name in MAPS:
        state[f"map_{name}"] = (MAP_DIMS, np.zeros([state.sizes[dim] for dim in MAP_DIMS]))
    flag_dims = ("time", "prediction_timedelta")
    state["in_training"] = (flag_dims, np.zeros([state.sizes[dim] for dim in flag_dims], dtype=np.int8))
    state.attrs = {
        **(attrs or {}),
        "kind": KIND,
        "members": members,
        "units": json.dumps({name: units[name] for name in channels}),
    }
    return state


def units_of(state: xr.Dataset) -> dict[str, str]:
    """{channel: units}."""
    return dict(json.loads(state.attrs["units"]))


def merge(states: Sequence[xr.Dataset]) -> xr.Dataset:
    """The state of all initialisations of `states`, in order of time.

    Raises InputError unless members, channels, units, leads, cells and grid are equal and the initialisations disjoint: sums of
    ensembles of unequal size do not add, and an initialisation counted twice would narrow every interval.
    """
    if not states:
        raise InputError("merge: no score states given")
    first = states[0]
    for other in states[1:]:
        _check_alike(first, other)
    times = np.concatenate([state["time"].values for state in states])
    repeated = pd.Index(times)[pd.Index(times).duplicated()]
    if repeated.size:
        raise InputError(f"merge: {repeated.size} initialisations are in more than one state, first {repeated[0]:%Y-%m-%dT%H}")
    if len(states) == 1:
        return first
    by_time = [name for name, array in first.data_vars.items() if "time" in array.dims]
    rows = xr.concat([state[by_time] for state in states], dim="time", join="exact").sortby("time")
    rows = rows.assign_coords(latitude=first["latitude"], longitude=first["longitude"])
    # in order of time, so that a campaign merged from parts in any order has the same bits
    ordered = sorted(states, key=lambda state: state["time"].values[0])
    for name in MAPS:
        rows[f"map_{name}"] = (MAP_DIMS, np.sum([state[f"map_{name}"].values for state in ordered], axis=0))
    rows.attrs = first.attrs
    return rows[list(first.data_vars)]


def save(state: xr.Dataset, path: str | Path) -> Path:
    """Write a state as a zarr store, atomically; one made from other inputs that lies there is replaced."""
    path = Path(path)
    if path.exists():
        if not is_state(path):
            raise InputError(f"{path} exists and is not a score state; choose another --out")
        shutil.rmtree(path)
    return write_dataset(path, state)


def is_state(path: str | Path) -> bool:
    """True for a store that `save` has written."""
    return is_store(path) and open_store(path).attrs.get("kind") == KIND


def open_state(path: str | Path) -> xr.Dataset:
    """A saved state, in memory. Raises InputError if the store holds something else."""
    state = open_store(path)
    if state.attrs.get("kind") != KIND:
        raise InputError(f"{path} is not a score state; `plumecast verify` makes one from a forecast store")
    return state.load()


def scores_table(state: xr.Dataset, region: str | None = None) -> xr.Dataset:
    """The scores by channel and lead, averaged over a region (default: the whole grid) and all initialisations.

    Dataset (channel, prediction_timedelta): crps (fair; with one member the MAE, see attrs["estimator"]), rmse, bias, spread,
    ssr (NaN with one member), n (initialisations that count), dropped (cases left out), and rank_histogram (..., rank) summing
    to 1. Units in attrs["units"]. Raises InputError for an unknown region.
    """
    rows = region_sums(state, region)
    pooled = rows.sum("time")
    scores = ratios(pooled, int(state.attrs["members"]))
    scores["n"] = (rows["weight"] > 0).sum("time")
    scores["dropped"] = pooled["dropped"].astype(np.int64)
    scores["rank_histogram"] = pooled["ranks"] / pooled["weight"].where(pooled["weight"] > 0)
    estimator = "fair" if state.attrs["members"] > 1 else "mae"
    scores.attrs = {**state.attrs, "region": region or next(iter(regions_of(state))), "estimator": estimator, "policy": POLICY}
    scores["crps"].attrs["estimator"] = estimator
    return scores


def ratios(sums: xr.Dataset, members: int) -> xr.Dataset:
    """Scores from merged sums: every division, root and ratio of the package happens here, last."""
    weight = sums["weight"].where(sums["weight"] > 0)
    mse = sums["squared_error"] / weight
    scores = xr.Dataset(
        {
            "crps": (sums["abs_error"] - sums["gini"] / 2) / weight,
            "rmse": mse**0.5,
            "bias": sums["error"] / weight,
        }
    )
    variance = sums["variance"] / weight if members > 1 else mse * np.nan
    scores["spread"] = variance**0.5
    scores["ssr"] = ((members + 1) / members * variance / mse.where(mse > 0)) ** 0.5
    return scores


def region_sums(state: xr.Dataset, region: str | None = None) -> xr.Dataset:
    """The sums and ranks of a region, (channel, time, prediction_timedelta[, rank])."""
    regions = regions_of(state)
    region = region or next(iter(regions))
    if region not in regions:
        raise InputError(f"region {region!r} is not known; the state of {state.attrs.get('model', '?')} has {', '.join(regions)}")
    return state[[*SUMS, "ranks"]].sel(cell=regions[region]).sum("cell")


def paired_sums(state: xr.Dataset, reference: xr.Dataset, region: str | None = None) -> tuple[xr.Dataset, xr.Dataset]:
    """The region's sums of both on the initialisations and leads they share, cleared where either of them has nothing.

    A row in which the two hold different cases (unequal weight, because one of them lacks points) is cleared in both: skill
    compares identical cases only. Raises InputError if they share no channel, lead or initialisation, or if units differ.
    """
    sums = [region_sums(which, region).drop_dims("rank") for which in (state, reference)]
    ours, theirs = xr.align(*sums, join="inner")
    empty_dims = [dim for dim in ("channel", "time", "prediction_timedelta") if ours.sizes[dim] == 0]
    names = f"{state.attrs.get('model', 'forecast')} and {reference.attrs.get('model', 'reference')}"
    if empty_dims:
        raise InputError(f"{names} share no {empty_dims[0]}; verify both on the same initialisations, leads and channels")
    units, other_units = units_of(state), units_of(reference)
    unlike = [f"{c}: {units[c]} and {other_units[c]}" for c in map(str, ours["channel"].values) if units[c] != other_units[c]]
    if unlike:
        raise InputError(f"{names} have different units ({'; '.join(unlike)})")
    same = (ours["weight"] > 0) & (abs(ours["weight"] - theirs["weight"]) <= 1e-9 * ours["weight"])
    return ours.where(same, 0.0), theirs.where(same, 0.0)


def skill(state: xr.Dataset, reference: xr.Dataset, region: str | None = None) -> xr.Dataset:
    """CRPS skill score 1 - CRPS / CRPS of the reference, both over identical initialisations and weights.

    Dataset (channel, prediction_timedelta): crpss, crps, crps_reference, n (common initialisations). Each CRPS is the fair one;
    that of a single-member forecast is its MAE. NaN where there is no common initialisation or the reference is perfect.
    """
    ours, theirs = paired_sums(state, reference, region)
    crps = ratios(ours.sum("time"), int(state.attrs["members"]))["crps"]
    crps_reference = ratios(theirs.sum("time"), int(reference.attrs["members"]))["crps"]
    crpss = 1 - crps / crps_reference.where(crps_reference > 0)
    result = xr.Dataset({"crpss": crpss, "crps": crps, "crps_reference": crps_reference, "n": (ours["weight"] > 0).sum("time")})
    result.attrs = {"model": state.attrs.get("model", ""), "reference": reference.attrs.get("model", "")}
    return result


def maps(state: xr.Dataset) -> xr.Dataset:
    """Mean scores of each grid point over all initialisations: crps, rmse, bias, spread (channel, lead, latitude, longitude)."""
    sums = xr.Dataset({name: state[f"map_{name}"] for name in MAPS if name != "count"}).assign(weight=state["map_count"])
    fields = ratios(sums, int(state.attrs["members"]))[["crps", "rmse", "bias", "spread"]]
    fields.attrs = state.attrs
    return fields


def in_training(state: xr.Dataset) -> str:
    """A sentence that says how many initialisations touch the training or validation period; empty if none does."""
    flags = state["in_training"].max("prediction_timedelta")
    found = [(name, int((flags == level).sum())) for level, name in ((2, "training"), (1, "validation"))]
    parts = [f"{count} with an initialisation or valid time in the {name} period" for name, count in found if count]
    if not parts:
        return ""
    model = state.attrs.get("model", "forecast")
    return f"{model}: of {flags.size} initialisations {' and '.join(parts)}; these scores are not independent of training"


def _check_alike(first: xr.Dataset, other: xr.Dataset) -> None:
    faults = []
    if first.attrs["members"] != other.attrs["members"]:
        faults.append(f"members {first.attrs['members']} and {other.attrs['members']}")
    if units_of(first) != units_of(other):
        faults.append(f"channels or units {units_of(first)} and {units_of(other)}")
    dims = ("prediction_timedelta", "cell", "latitude", "longitude")
    faults += [f"different {dim}" for dim in dims if not np.array_equal(first[dim].values, other[dim].values)]
    if first.attrs.get("model") != other.attrs.get("model"):
        faults.append(f"models {first.attrs.get('model')} and {other.attrs.get('model')}")
    if faults:
        raise InputError("merge: score states do not add: " + "; ".join(faults))
