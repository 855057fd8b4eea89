"""Forecast x truth -> score state: initialisation by initialisation, or lead by lead while a forecast is being made.

`Accumulator` is the core: it takes the members of one initialisation and lead, scores them in one pass and keeps sums only.
`evaluate` is a loop over stored forecasts that feeds it; a roll-out feeds it online, and nothing but the state is written. Blocks
of leads bound the memory; variables and blocks run side by side in threads, every sum in a fixed order, so a rerun gives the same
bits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

import data_pipeline
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.recipe import fingerprint
from data_pipeline.schema import Channel, channels_of, select, validate
from data_pipeline.store import MANIFEST, is_store
from verification import kernels
from verification.state import MAPS, ROW_DIMS, SUMS, cells_of, empty, is_state, merge, open_state, save

BLOCK_BYTES = 128 << 20  # members read at once by one thread
FORMAT = 1  # of the state; part of what a saved state is recognised by
STAMP = re.compile(r"\d{4}-\d{2}-\d{2}(?:[T ]\d{2}(?::\d{2}(?::\d{2})?)?)?")

MissingTruth = Literal["error", "skip"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Plan:
    """What will be scored. channels: labels; times, leads: datetime64 and timedelta64; attrs: those of the forecast store."""

    channels: tuple[str, ...]
    units: Mapping[str, str]
    times: np.ndarray
    leads: np.ndarray
    members: int
    grid: Grid
    attrs: Mapping[str, Any] = field(default_factory=dict)


class Accumulator:
    """The score state in the making: one `add` for each initialisation and lead, in any order, from any thread per lead."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        names, cells = cells_of(plan.grid)
        self._cells = cells.ravel()
        self._weights = plan.grid.area_weights.ravel()
        rows = (len(plan.channels), len(plan.times), len(plan.leads))
        self._sums = np.zeros((*rows, len(SUMS), len(names)))
        self._ranks = np.zeros((*rows, len(names), plan.members + 1))
        self._maps = np.zeros((rows[0], rows[2], len(MAPS), self._weights.size))
        self._added = np.zeros(rows, dtype=bool)
        self._times = pd.Index(np.asarray(plan.times, dtype="datetime64[ns]"))
        self._leads = pd.Index(np.asarray(plan.leads, dtype="timedelta64[ns]"))

    def add(self, time: np.datetime64, lead: np.timedelta64, fields: np.ndarray, truth: np.ndarray) -> None:
        """Score one lead of one initialisation.

        fields: (member, channel, latitude, longitude), truth: (channel, latitude, longitude), in the units and order of the plan.
        A point with a missing member or truth is dropped and counted. Raises InputError if the stamp is not in the plan or was
        added before, if shapes differ, or if values are infinite.
        """
        if time not in self._times or lead not in self._leads:
            raise InputError(f"score state: {time} + {pd.Timedelta(lead)} is not in the plan")
        self.add_block(time, [lead], self.plan.channels, fields[None], truth[None])

    def add_block(
        self,
        time: np.datetime64,
        leads: Sequence[np.timedelta64] | np.ndarray,
        channels: Sequence[str],
        fields: np.ndarray,
        truth: np.ndarray,
        threads: int = 1,
    ) -> None:
        """`add` for several leads and some channels: fields (lead, member, channel, ...), truth (lead, channel, ...)."""
        points = self._weights.size
        expected = (len(leads), self.plan.members, len(channels), *self.plan.grid.shape)
        if fields.shape != expected or truth.shape != (expected[0], *expected[2:]):
            raise InputError(
                f"score state: fields {fields.shape} and truth {truth.shape}; planned are {expected} (lead, member, ...)"
            )
        dtype = np.result_type(fields, truth, np.float32)
        members = np.ascontiguousarray(fields, dtype=dtype).reshape(len(leads), self.plan.members, -1)
        truths = np.ascontiguousarray(truth, dtype=dtype).reshape(len(leads), -1)
        found = kernels.point_statistics(members, truths, threads)
        if np.isinf(truths).any() or np.isinf(found.abs_error).any():
            raise InputError(
                f"{', '.join(channels)} of {time}: infinite values in forecast or truth; mask them as NaN at the source"
            )
        t = self._times.get_loc(time)
        cases = kernels.PointStatistics(*(array.reshape(-1, points) for array in found))
        for case, (lead, channel) in enumerate((lead, channel) for lead in leads for channel in channels):
            row = (self.plan.channels.index(channel), t, self._leads.get_loc(lead))
            if self._added[row]:
                raise InputError(f"score state: {channel} of {time} + {pd.Timedelta(lead)} was added before")
            self._added[row] = True
            maps = self._maps[row[0], row[2]]
            kernels.add_to_cells(cases, case, self._weights, self._cells, self._sums[row], self._ranks[row], maps)

    def state(self) -> xr.Dataset:
        """The state of what was added so far; what was not has weight 0. See `verification.state` for its form."""
        plan = self.plan
        state = empty(plan.channels, plan.times, plan.leads, plan.members, plan.grid, plan.units, plan.attrs)
        for index, name in enumerate(SUMS):
            state[name] = (ROW_DIMS, self._sums[:, :, :, index].copy())
        state["ranks"] = ((*ROW_DIMS, "rank"), self._ranks.copy())
        for index, name in enumerate(MAPS):
            shape = (*self._maps.shape[:2], *plan.grid.shape)
            state[f"map_{name}"] = (state[f"map_{name}"].dims, self._maps[:, :, index].reshape(shape).copy())
        flags = training_flags(plan.times, plan.leads, plan.attrs)
        state["in_training"] = (("time", "prediction_timedelta"), flags)
        return state


def evaluate(
    forecast: xr.Dataset | Iterable[xr.Dataset],
    truth: xr.Dataset,
    *,
    channels: Sequence[str] | None = None,
    leads: Sequence[np.timedelta64] | None = None,
    missing_truth: MissingTruth = "error",
    progress: Progress | None = None,
) -> xr.Dataset:
    """The score state of a forecast against the analysis at its valid times.

    forecast: in the forecast schema, or several of them with disjoint initialisations. truth: in the analysis schema, on the same
    grid and in the same units. channels: labels (default: all that both have; those left out are in attrs["not_scored"]). leads:
    default all. missing_truth: valid times that the truth lacks are an error that lists them, or skipped. progress: called with
    (initialisations done, of how many). Raises InputError before anything is read.
    """
    if not isinstance(forecast, xr.Dataset):
        parts = [
            evaluate(part, truth, channels=channels, leads=leads, missing_truth=missing_truth, progress=progress)
            for part in forecast
        ]
        return merge(parts)
    validate(forecast, "forecast")
    validate(truth, "analysis")
    plan = plan_for(forecast, truth, channels=channels, leads=leads)
    rows = truth_rows(truth, plan.times, plan.leads, missing_truth)
    accumulator = Accumulator(plan)
    cores = kernels.cores()
    with ThreadPoolExecutor(cores) as pool:
        for index, time in enumerate(plan.times):
            present = np.flatnonzero(rows[index] >= 0)
            blocks = _blocks(forecast, plan, present)
            threads = 1 if len(blocks) >= cores else cores

            def score(
                block: tuple[list[Channel], np.ndarray], index: int = index, time: Any = time, threads: int = threads
            ) -> None:
                group, positions = block
                wanted = plan.leads[positions]
                fields = _values(forecast.isel(time=index).sel(prediction_timedelta=wanted), group)
                observed = _values(truth.isel(time=rows[index, positions]), group)
                accumulator.add_block(time, wanted, [channel.label for channel in group], fields, observed, threads)

            list(pool.map(score, blocks))
            if progress is not None:
                progress(index + 1, len(plan.times))
    return accumulator.state()


def plan_for(
    forecast: xr.Dataset,
    truth: xr.Dataset,
    *,
    channels: Sequence[str] | None = None,
    leads: Sequence[np.timedelta64] | None = None,
) -> Plan:
    """What `evaluate` will score. Raises InputError, naming both sides, if grids, units, channels or leads do not fit."""
    grid, truth_grid = Grid.of(forecast), Grid.of(truth)
    if not grid.matches(truth_grid):
        raise InputError(f"forecast is on {grid}, truth on {truth_grid}; regrid one of them (`plumecast data regrid`)")
    available = {channel.label: str(select(truth, channel).attrs["units"]) for channel in channels_of(truth)}
    offered = {channel.label: str(select(forecast, channel).attrs["units"]) for channel in channels_of(forecast)}
    wanted = list(channels) if channels is not None else [label for label in offered if label in available]
    absent = [f"{label} not in the forecast" for label in wanted if label not in offered]
    absent += [f"{label} not in the truth" for label in wanted if label not in available]
    if absent or not wanted:
        have = f"the forecast has {', '.join(offered)}; the truth has {', '.join(available)}"
        raise InputError(f"channels to verify: {'; '.join(absent) or 'none in common'}; {have}")
    unlike = [
        f"{label}: forecast {offered[label]}, truth {available[label]}" for label in wanted if offered[label] != available[label]
    ]
    if unlike:
        raise InputError(f"forecast and truth have different units ({'; '.join(unlike)}); convert them at the source")
    all_leads = forecast["prediction_timedelta"].values
    chosen = all_leads if leads is None else np.array(leads, dtype="timedelta64[ns]")
    if not np.isin(chosen, all_leads).all():
        raise InputError(
            f"leads {_hours(chosen[~np.isin(chosen, all_leads)])} are not in the forecast, which has {_hours(all_leads)}"
        )
    times = forecast["time"].values
    valid = times[:, None] + chosen[None]
    attrs = {
        **forecast.attrs,
        "model": forecast.attrs.get("model", "forecast"),
        "truth": truth.attrs.get("source", "analysis"),
        "truth_period": f"{pd.Timestamp(valid.min()):%Y-%m-%dT%H}/{pd.Timestamp(valid.max()):%Y-%m-%dT%H}",
        "not_scored": ", ".join(label for label in offered if label not in wanted),
    }
    return Plan(tuple(wanted), {label: offered[label] for label in wanted}, times, chosen, forecast.sizes["number"], grid, attrs)


def truth_rows(truth: xr.Dataset, times: np.ndarray, leads: np.ndarray, missing: MissingTruth = "error") -> np.ndarray:
    """Positions in the truth of every valid time, shape (time, lead); -1 where the truth lacks it and missing="skip".

    Raises InputError, with their number and the first, if valid times are missing.
    """
    valid = (times[:, None] + leads[None]).ravel()
    rows = pd.Index(truth["time"].values).get_indexer(pd.Index(valid))
    lacking = pd.DatetimeIndex(np.unique(valid[rows < 0]))
    if lacking.size and (missing == "error" or (rows < 0).all()):
        covered = pd.DatetimeIndex(truth["time"].values)
        raise InputError(
            f"truth lacks {lacking.size} of {np.unique(valid).size} valid times, first {lacking[0]:%Y-%m-%dT%H}; it covers "
            f"{covered[0]:%Y-%m-%dT%H} to {covered[-1]:%Y-%m-%dT%H}. Verify fewer leads or initialisations, or skip missing truth"
        )
    return rows.reshape(len(times), len(leads))


def training_flags(times: np.ndarray, leads: np.ndarray, attrs: Mapping[str, Any]) -> np.ndarray:
    """int8 (time, lead): 2 if initialisation or valid time lies in the training period of attrs, 1 in the validation period."""
    times = np.asarray(times, dtype="datetime64[ns]")
    valid = times[:, None] + np.asarray(leads, dtype="timedelta64[ns]")[None]
    flags = np.zeros(valid.shape, dtype=np.int8)
    for level, name in ((1, "validation_period"), (2, "training_period")):
        for start, stop in parse_periods(attrs.get(name), name):
            inside = [(stamps >= start) & (stamps <= stop) for stamps in (times[:, None], valid)]
            flags[inside[0] | inside[1]] = level
    return flags


def parse_periods(value: Any, name: str = "period") -> list[tuple[np.datetime64, np.datetime64]]:
    """Inclusive periods from "2001-01-01T00/2005-12-31T12", pairs of stamps in any notation, or several of them; [] if empty.

    An end without an hour includes its whole day. Raises InputError for anything else: an unread training period would pass
    contaminated scores as clean.
    """
    if value is None or not str(value).strip() or str(value).strip().lower() in ("none", "[]", "()"):
        return []
    stamps = STAMP.findall(str(value))
    if len(stamps) % 2 or not stamps:
        raise InputError(f"{name} is {value!r}; expected start/end, for example 2001-01-01T00/2005-12-31T12")
    periods = []
    for start, stop in zip(stamps[::2], stamps[1::2], strict=True):
        last = pd.Timestamp(stop) + (pd.Timedelta("1D") - pd.Timedelta("1ns") if len(stop) == 10 else pd.Timedelta(0))
        periods.append((pd.Timestamp(start).to_datetime64(), last.to_datetime64()))
    return periods


def score_store(
    forecast_path: str | Path,
    truth_path: str | Path,
    out_path: str | Path,
    *,
    channels: Sequence[str] | None = None,
    leads: Sequence[np.timedelta64] | None = None,
    missing_truth: MissingTruth = "error",
    progress: Progress | None = None,
) -> xr.Dataset:
    """Evaluate a stored forecast and save the state at `out_path`; a state made from the same inputs is read, not made again."""
    inputs = fingerprint(
        {
            "format": FORMAT,
            "forecast": _identity(Path(forecast_path)),
            "truth": _identity(Path(truth_path)),
            "choice": [list(channels or []), [str(lead) for lead in (leads if leads is not None else [])], missing_truth],
        }
    )
    if is_state(out_path):
        state = open_state(out_path)
        if state.attrs.get("inputs") == inputs:
            return state
    forecast = data_pipeline.open_forecast(forecast_path)
    forecast.attrs.setdefault("model", Path(forecast_path).stem)
    truth = data_pipeline.open_analysis(truth_path)
    state = evaluate(forecast, truth, channels=channels, leads=leads, missing_truth=missing_truth, progress=progress)
    state.attrs["inputs"] = inputs
    save(state, out_path)
    return state


def _blocks(forecast: xr.Dataset, plan: Plan, leads: np.ndarray) -> list[tuple[list[Channel], np.ndarray]]:
    """Work of one initialisation: the levels of a variable x a run of leads, whose members fit the memory bound."""
    known = {channel.label: channel for channel in channels_of(forecast)}
    groups: dict[str, list[Channel]] = {}
    for label in plan.channels:
        groups.setdefault(known[label].name, []).append(known[label])
    blocks = []
    for group in groups.values():
        lead_bytes = plan.members * len(group) * plan.grid.areas.size * 4
        size = max(1, BLOCK_BYTES // lead_bytes)
        blocks += [(group, leads[start : start + size]) for start in range(0, len(leads), size)]
    return blocks


def _values(data: xr.Dataset, group: list[Channel]) -> np.ndarray:
    """The levels of one variable, (lead or time, [member], channel, latitude, longitude), read in one go."""
    array = data[group[0].name]
    if "level" in array.dims:
        array = array.sel(level=[channel.level for channel in group])
    else:
        array = array.expand_dims("level")
    first = "prediction_timedelta" if "prediction_timedelta" in array.dims else "time"
    order = [dim for dim in (first, "number", "level", "latitude", "longitude") if dim in array.dims]
    return np.asarray(array.transpose(*order).values)


def _hours(leads: np.ndarray) -> str:
    hours = (leads / np.timedelta64(1, "h")).tolist()
    return ", ".join(f"{hour:g} h" for hour in hours[:12]) + (" ..." if len(hours) > 12 else "")


def _identity(path: Path) -> str:
    """What a rerun recognises its input by: the manifest with its hashes, or sizes and times of other people's files."""
    if is_store(path):
        return fingerprint({MANIFEST: (path / MANIFEST).read_text()})
    if not path.exists():
        raise InputError(f"{path} not found")
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return fingerprint({str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in files})
