"""The additive score state: float64 sums per channel, initialisation, lead and cell, from which every score is read.

Nothing is averaged before it: a state holds sums of weight x statistic, so that regions, leads, estimators and intervals are
chosen afterwards (`verification.readout`), and the state of two halves of a campaign, merged, is the state of the whole. Sums are
kept per initialisation because intervals resample them; cells and zones are those of `verification.regions`.

Every variable begins with the dims (channel, time, prediction_timedelta); `ROWS` gives the rest. The terms are those of
`verification.onepass.FieldSums`. Beside them:

    map_* (channel, drawn_lead, latitude, longitude): unweighted sums over initialisations, for the leads that are drawn
    case_* (channel, case_time, ...): fields of chosen initialisations, and members at chosen points
    in_training (time, prediction_timedelta): 0 clean; initialisation or valid time in the validation (1) or training (2) period
    truth_edges (channel, edge): between the bins of the truth's histogram
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
from data_pipeline.store import is_store, open_store, write_dataset
from verification.onepass import ANOMALIES, MAPS, SUMS, TAILS
from verification.plan import LEVELS, Plan, training_flags
from verification.policy import POLICY_TEXTS
from verification.regions import BELTS, Box, name_of

KIND = "score_state"
FORMAT = 3  # part of what a saved state is recognised by
ROW_DIMS = ("channel", "time", "prediction_timedelta")
ROWS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((*SUMS, *ANOMALIES), ("cell",)),
    "ranks": ("zone", "rank"),
    "hersbach_alpha": ("zone", "rank"),
    "hersbach_beta": ("zone", "rank"),
    "below_all": ("zone",),
    "not_above_all": ("zone",),
    "truth_weight": ("zone", "bin"),
    "truth_sum": ("zone", "bin"),
    "quantile_score": ("zone", "quantile"),
    "event_table": ("event", "zone", "members_forecasting", "observed"),
    **{f"tail_{name}": ("event", "zone") for name in TAILS},
    "fss_numerator": ("event", "radius", "zone"),
    "fss_denominator": ("event", "radius", "zone"),
}
SPECTRA = ("forecast_power", "truth_power", "mean_power")  # (channel, time, drawn_lead, belt, wavenumber)
OPTIONAL = ("mean_power",)  # states of earlier versions lack it, and so do their sums with newer ones
SPECTRUM_MEMBERS = 10  # those that enter: the power of more would cost more than all other scores
MAP_DIMS = ("channel", "drawn_lead", "latitude", "longitude")
CASES: dict[str, tuple[str, ...]] = {
    "case_truth": ("drawn_lead", "latitude", "longitude"),
    "case_mean": ("drawn_lead", "latitude", "longitude"),
    "case_spread": ("drawn_lead", "latitude", "longitude"),
    "case_members": ("drawn_lead", "case_member", "latitude", "longitude"),
    "case_probability": ("drawn_lead", "event", "latitude", "longitude"),
    "case_plume": ("prediction_timedelta", "number", "point"),
    "case_plume_truth": ("prediction_timedelta", "point"),
}
CASE_MEMBERS = 4


def coordinates(plan: Plan) -> dict[str, Any]:
    """The coordinates of the state of a plan."""
    names = {
        "channel": plan.channels,
        "cell": plan.cells.names,
        "zone": plan.cells.zones,
        "event": [event.label for event in plan.events],
        "belt": [name_of(Box(*belt)) for belt in BELTS],
        "point": list(plan.points),
    }
    return {
        **{dim: np.array(values, dtype=object) for dim, values in names.items()},
        "zone_of": ("cell", plan.cells.zone_of),
        "time": np.asarray(plan.times, dtype="datetime64[ns]"),
        "prediction_timedelta": np.asarray(plan.leads, dtype="timedelta64[ns]"),
        "drawn_lead": np.asarray(plan.leads[plan.drawn], dtype="timedelta64[ns]"),
        "case_time": np.asarray(plan.cases, dtype="datetime64[ns]"),
        "case_member": np.arange(min(CASE_MEMBERS, plan.members)),
        "number": np.arange(plan.members),
        "rank": np.arange(plan.members + 1),
        "members_forecasting": np.arange(plan.members + 1),
        "observed": np.arange(2),
        "bin": np.arange(next(iter(plan.bin_edges.values())).size + 1),
        "quantile": np.array(LEVELS),
        "radius": np.array(plan.radii),
        "wavenumber": np.arange(plan.grid.shape[1] // 2 + 1),
        **plan.grid.coords(),
    }


def variables(plan: Plan) -> dict[str, tuple[str, ...]]:
    """{variable: dims} of the state of a plan; what has no event, climatology, case or circle of latitude is not there."""
    rows = {name: (*ROW_DIMS, *dims) for name, dims in ROWS.items()}
    maps = {f"map_{name}": MAP_DIMS for name in MAPS}
    belts = ("channel", "time", "drawn_lead", "belt")
    spectra: dict[str, tuple[str, ...]] = {**dict.fromkeys(SPECTRA, (*belts, "wavenumber")), "power_count": belts}
    spectra = spectra if plan.grid.is_global else {}
    cases = {name: ("channel", "case_time", *dims) for name, dims in CASES.items()} if plan.cases else {}
    absent = {name for name in ANOMALIES if not plan.anomalies}
    found = {**rows, **spectra, **maps, **cases}
    lengths = {"event": len(plan.events), "radius": len(plan.radii), "point": len(plan.points)}
    return {name: dims for name, dims in found.items() if name not in absent and all(lengths.get(dim, 1) for dim in dims)}


def zeros(plan: Plan) -> dict[str, np.ndarray]:
    """The sums of nothing, {variable: array}; of cases: missing."""
    sizes = {dim: len(values) for dim, values in coordinates(plan).items() if dim != "zone_of"}
    shapes = {name: tuple(sizes[dim] for dim in dims) for name, dims in variables(plan).items()}
    return {name: np.full(shape, np.nan, np.float32) if name in CASES else np.zeros(shape) for name, shape in shapes.items()}


def assemble(plan: Plan, sums: Mapping[str, np.ndarray]) -> xr.Dataset:
    """The state of a plan from its sums, {variable: array}; one that is not given is as in `zeros`."""
    found = {**zeros(plan), **sums}
    edges = np.stack([plan.bin_edges[channel] for channel in plan.channels])
    fields = {
        **{name: (dims, found[name]) for name, dims in variables(plan).items()},
        "truth_edges": (("channel", "edge"), edges),
        "in_training": (("time", "prediction_timedelta"), training_flags(plan.times, plan.leads, plan.attrs)),
    }
    used = {dim for dims, _ in fields.values() for dim in dims}
    coords = {name: values for name, values in coordinates(plan).items() if name in used or name == "zone_of"}
    state = xr.Dataset(fields, coords)
    state.attrs = {
        **plan.attrs,
        **POLICY_TEXTS,
        "kind": KIND,
        "members": plan.members,
        "spectrum_members": min(SPECTRUM_MEMBERS, plan.members),
        "units": json.dumps({name: plan.units[name] for name in plan.channels}),
    }
    return state


def units_of(state: xr.Dataset) -> dict[str, str]:
    """{channel: units}."""
    return dict(json.loads(state.attrs["units"]))


def merge(states: Sequence[xr.Dataset]) -> xr.Dataset:
    """The state of all initialisations of `states`, in order of time.

    Raises InputError unless members, channels, units, leads, cells, events and grid are equal and the initialisations disjoint:
    sums of ensembles of unequal size do not add, and an initialisation counted twice would narrow every interval.
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
    # in order of time, so that a campaign merged from parts in any order has the same bits
    ordered = sorted(states, key=lambda state: state["time"].values[0])
    whole = first.drop_dims([dim for dim in ("time", "case_time") if dim in first.dims])
    lacking = {name for name in OPTIONAL if any(name not in state for state in states)}
    for name in (name for name in whole.data_vars if str(name).startswith("map_")):
        whole[name] = (MAP_DIMS, np.sum([state[name].values for state in ordered], axis=0))
    order: list[Any] = [name for name in first.data_vars if name not in lacking]
    for dim in ("time", "case_time"):
        holders = [state for state in ordered if dim in state.dims]
        if holders:
            names = [name for name, array in holders[0].data_vars.items() if dim in array.dims and name not in lacking]
            joined = xr.concat([state[names] for state in holders], dim=dim, join="exact").sortby(dim)
            whole = whole.assign({name: joined[name].transpose(*holders[0][name].dims) for name in names})
            order += [name for name in names if name not in order]
    whole.attrs = {key: value for key, value in first.attrs.items() if not str(key).startswith("inputs")}
    periods = [str(state.attrs.get("truth_period", "")).split("/") for state in ordered]
    if all(len(period) == 2 for period in periods):
        whole.attrs["truth_period"] = f"{min(period[0] for period in periods)}/{max(period[1] for period in periods)}"
    return whole[order]


def save(state: xr.Dataset, path: str | Path) -> Path:
    """Write a state as a zarr store, atomically; one made from other inputs is replaced once the new one is whole."""
    path = Path(path)
    if path.exists():
        if not is_state(path):
            raise InputError(f"{path} exists and is not a score state; choose another --out")
        fresh = path.with_name(f".{path.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        write_dataset(fresh, state)
        shutil.rmtree(path)
        fresh.rename(path)
        return path
    return write_dataset(path, state)


def condensed(state: xr.Dataset, leads: Sequence[np.timedelta64] | None = None) -> xr.Dataset:
    """The sums of CRPS, moments and ranks alone, with zones for cells, at some leads: a small part of the size, to keep.

    Itself a state: scores, skill, intervals and tests of the regions that zones make up are those of the whole, to rounding.
    """
    kept = state if leads is None else state.sel(prediction_timedelta=list(leads))
    rows = [name for name in (*SUMS, *ANOMALIES) if name in state]
    tables = [name for name in ("ranks", "below_all", "not_above_all") if name in state]
    zones = state["zone" if "zone" in state.coords else "cell"].values  # a condensed state without ranks names its cells only
    share = np.zeros((state.sizes["cell"], zones.size))
    share[np.arange(state.sizes["cell"]), state["zone_of"].values] = 1.0
    small = kept[[*tables, "in_training"]].assign_coords({dim: kept[dim] for dim in ROW_DIMS})
    small = small.assign({name: ((*ROW_DIMS, "cell"), kept[name].transpose(*ROW_DIMS, "cell").values @ share) for name in rows})
    small = small.assign_coords(cell=zones, zone_of=("cell", np.arange(zones.size)))
    return small.assign_attrs({**state.attrs, "condensed": 1})


def is_state(path: str | Path) -> bool:
    """True for a store that `save` has written."""
    return is_store(path) and open_store(path).attrs.get("kind") == KIND


def open_state(path: str | Path) -> xr.Dataset:
    """A saved state, in memory: a store, or one in NetCDF (`.nc`). Raises InputError for anything else, or nothing, there."""
    state = _load_netcdf(path) if str(path).endswith(".nc") else open_store(path)
    if state.attrs.get("kind") != KIND:
        raise InputError(f"{path} is not a score state; `plumecast verify` makes one from a forecast store")
    if "hersbach_alpha" not in state and not state.attrs.get("condensed"):
        raise InputError(f"{path} was written by an earlier version; remove it and run `plumecast verify` again")
    return state.load()


def _load_netcdf(path: str | Path) -> xr.Dataset:
    try:
        return xr.load_dataset(path, engine="netcdf4")
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} cannot be opened as NetCDF: {error}") from None


def _check_alike(first: xr.Dataset, other: xr.Dataset) -> None:
    faults = []
    if first.attrs["members"] != other.attrs["members"]:
        faults.append(f"members {first.attrs['members']} and {other.attrs['members']}")
    if units_of(first) != units_of(other):
        faults.append(f"channels or units {units_of(first)} and {units_of(other)}")
    for dim in ("prediction_timedelta", "drawn_lead", "cell", "zone", "latitude", "longitude", "event", "radius", "truth_edges"):
        ours, theirs = (state[dim].values if dim in state.variables else np.empty(0) for state in (first, other))
        if not np.array_equal(ours, theirs):
            faults.append(f"different {dim}")
    if "case_time" in first.dims and "case_time" in other.dims:
        points = [state["point"].values.tolist() if "point" in state.variables else [] for state in (first, other)]
        faults += [f"points {points[0]} and {points[1]}"] if points[0] != points[1] else []
    faults += [
        f"{name} {first.attrs.get(name)} and {other.attrs.get(name)}"
        for name in ("model", "climatology", "truth")
        if first.attrs.get(name) != other.attrs.get(name)
    ]
    if faults:
        raise InputError("merge: score states do not add: " + "; ".join(faults))
