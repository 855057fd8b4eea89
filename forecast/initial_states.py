"""Initial states: the input frames of each initialisation, and the dates that can be started from.

All members start from one analysis, or each from its own member of a store of initial states.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline import store
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import channels_of, stack
from data_pipeline.templates import forecast_dataset, forecast_template
from forecast.perturbations import Frames, Kind, states
from models.contract import Generator, Spec


def one_analysis(analysis: xr.Dataset, spec: Spec, init: np.datetime64) -> np.ndarray:
    """Normalised input frames (F, C, H, W), oldest first; every member starts from this one analysis."""
    rows = pd.Index(analysis["time"].values).get_indexer(pd.Index(frame_times(spec, init)))
    return spec.normalise(stack(analysis.isel(time=rows), spec.parsed_channels).values)


@dataclass(frozen=True)
class InitialStates:
    """A store of initial states in the forecast schema: leads ..., -12 h, 0 h are the frames, number 0 is the analysis itself.

    number: the one that every member starts from; None: member k from number k. Made by `plumecast initial-states` and by
    `plumecast data simulate --ensemble`.
    """

    data: xr.Dataset
    number: int | None = None

    def described(self, spec: Spec, inits: Sequence[np.datetime64], members: Sequence[int]) -> str:
        """For the forecast's attributes: others make another forecast. Those of a file are read and known by their values."""
        who = "number of the member" if self.number is None else f"number {self.number}"
        about = str(self.data.attrs.get("initial_state", "given initial states"))
        return f"{about}; {who} [{self.data.attrs.get('recipe_hash') or self._digest(spec, inits, members)}]"

    def _digest(self, spec: Spec, inits: Sequence[np.datetime64], members: Sequence[int]) -> str:
        values, distinct = hashlib.sha256(), members if self.number is None else members[:1]
        for init in inits:
            values.update(self.load(spec, init, distinct).tobytes())
        return values.hexdigest()[:16]

    def numbers(self, members: Sequence[int]) -> list[int]:
        return [member if self.number is None else self.number for member in members]

    def check(self, spec: Spec, inits: Sequence[np.datetime64], members: Sequence[int]) -> None:
        """Raise InputError, listing everything, unless grid, channels, initialisations, frames and numbers are there."""
        faults = fit_faults(self.data, spec, "initial states")
        wanted = {
            "time": (np.array(inits), "initialisations"),
            "prediction_timedelta": (_frame_leads(spec), "frames"),
            "number": (np.array(self.numbers(members)), "members"),
        }
        for dim, (values, what) in wanted.items():
            gone = np.setdiff1d(values, self.data[dim].values)
            if gone.size:
                faults.append(f"{gone.size} of {np.unique(values).size} {what} are not in the initial states, first {gone[0]}")
        _refuse(faults)

    def load(self, spec: Spec, init: np.datetime64, members: Sequence[int]) -> np.ndarray:
        """Normalised input frames (M, F, C, H, W), oldest first."""
        own = self.data.sel(time=init, prediction_timedelta=_frame_leads(spec), number=self.numbers(members))
        fields = stack(own, spec.parsed_channels)
        return spec.normalise(fields.transpose("number", "prediction_timedelta", "channel", "latitude", "longitude").values)


def started_from(
    generators: Sequence[Generator], initial: InitialStates | None, inits: Sequence[np.datetime64], members: Sequence[int]
) -> str:
    """For the forecast's attributes: what the members start from, and which families perturb that themselves."""
    own = list(dict.fromkeys(each.spec.family for each in generators if each.perturbs_initial))
    told = f"; members of {', '.join(own)} perturbed by its prior at lead 0" if own else ""
    if initial is not None:
        return initial.described(generators[0].spec, inits, members) + told
    return f"one analysis{told}" if own else "one analysis, all members alike"


def check_states(kind: Kind, frames: Frames, inits: np.ndarray, members: int) -> None:
    """Raise InputError, listing everything, unless the states of these initialisations can be made; before any field is read."""
    known = {channel.label for channel in frames.channels}
    faults = [f"unperturbed {label}: no such field; there are {', '.join(known)}" for label in set(frames.unperturbed) - known]
    gone = frames.lacking(inits)
    if gone.size:
        faults.append(f"{gone.size} stamps of frames are not in the analysis, first {pd.Timestamp(gone[0]):%Y-%m-%dT%H}")
    faults += kind.faults(frames, inits, -(-members // 2) if kind.paired else members)
    if faults:
        raise InputError("these initial states cannot be made:\n" + "\n".join(f"  - {fault}" for fault in faults))


def write_states(
    kind: Kind, frames: Frames, inits: np.ndarray, members: int, out: Path,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Path:  # fmt: skip
    """Write the analysis (number 0) and its members as a store that `InitialStates` takes; one state is in memory at a time.

    An initialisation is one part, so that a killed run continues with the first unfinished one. The attribute `departure_rms`
    (JSON) has the rms of the members' departures from the analysis at the initialisation, area-weighted, in each field's units.
    """
    check_states(kind, frames, inits, members)
    leads, numbers = -frames.lags.astype("timedelta64[ns]"), list(range(members + 1))
    origins = kind.origins(frames, inits, members)
    empty = forecast_template(inits, leads, numbers, frames.channels, frames.grid).assign_coords(origins)
    parts = [np.datetime_as_string(init, "m") for init in inits]
    about = {name: str(frames.analysis.attrs.get(name, "")) for name in ("source", "attribution")}
    said = {**about, "source_recipe_hash": str(frames.analysis.attrs.get("recipe_hash", "")), **kind.said()}
    said |= {"unperturbed": list(frames.unperturbed)}
    with store.create(out, empty, parts=parts, attrs=said, chunks={"time": 1, "number": 1}) as writer:
        for row, (init, part) in enumerate(zip(inits, parts, strict=True)):
            if part not in writer.done:
                squares, analysis = [], frames.at(init)[-1]
                for number, state in enumerate(states(kind, frames, init, members)):
                    squares.append(_mean_square(state[-1] - analysis, frames.grid))
                    own = inits[row : row + 1], leads, [number], frames.channels, frames.grid
                    box = {"time": slice(row, row + 1), "number": slice(number, number + 1)}
                    writer.put(part, forecast_dataset(state[None, :, None], *own), box)
                writer.complete(part, np.mean(squares[1:], axis=0))
            report(row + 1, len(parts))
        rms = np.sqrt(np.mean([writer.notes[part] for part in parts], axis=0)) if writer.notes else []
        sizes = {channel.label: float(f"{size:.4g}") for channel, size in zip(frames.channels, rms, strict=False)}
        return writer.finish({"departure_rms": json.dumps(sizes)})


def _mean_square(departure: np.ndarray, grid: Grid) -> np.ndarray:
    """Of each channel, area-weighted over the points that have a value."""
    weights = np.where(np.isfinite(departure), grid.area_weights, 0)
    return np.asarray((np.nan_to_num(departure) ** 2 * weights).sum((-2, -1)) / weights.sum((-2, -1)))


def _frame_leads(spec: Spec) -> np.ndarray:
    return -spec.step * np.arange(spec.frames - 1, -1, -1)


def frame_times(spec: Spec, init: np.datetime64) -> np.ndarray:
    """Stamps of the input frames of an initialisation, oldest first."""
    return init.astype("datetime64[ns]") - spec.step * np.arange(spec.frames - 1, -1, -1)


def check_inputs(analysis: xr.Dataset, spec: Spec, inits: Sequence[np.datetime64]) -> None:
    """Raise InputError, listing everything, unless the analysis has the model's grid, channels and all input frames."""
    faults = fit_faults(analysis, spec, "analysis")
    times = pd.Index(analysis["time"].values)
    wanted = pd.DatetimeIndex(np.unique(np.concatenate([frame_times(spec, init) for init in inits])))
    gone = wanted[~wanted.isin(times)]
    if len(gone):
        faults.append(
            f"{len(gone)} of {len(wanted)} input times are not in the analysis, first {gone[0]:%Y-%m-%dT%H}; an initialisation "
            f"needs {spec.frames} frames, {spec.step_hours} h apart"
        )
    _refuse(faults)


def fit_faults(data: xr.Dataset, spec: Spec, what: str) -> list[str]:
    """What of a checkpoint's grid and channels the data do not have."""
    faults, grid = [], Grid.of(data)
    if not grid.matches(spec.grid):
        faults.append(f"the {what} is on {grid}; the checkpoint needs {spec.grid} (regrid at ingest: analysis.grid)")
    have = {channel.label for channel in channels_of(data)}
    absent = [label for label in spec.channels if label not in have]
    if absent:
        faults.append(f"the {what} lacks {', '.join(absent)}; it has {', '.join(sorted(have))}")
    return faults


def _refuse(faults: list[str]) -> None:
    if faults:
        raise InputError("cannot forecast:\n" + "\n".join(f"  - {fault}" for fault in faults))


def spread_evenly(
    analysis: xr.Dataset, spec_frames: int, step: np.timedelta64, period: tuple[str, str], count: int, horizon: np.timedelta64
) -> np.ndarray:
    """`count` initialisations spread evenly over those in `period` with all input frames and all valid times up to `horizon`.

    Valid times may lie beyond the period's end if the analysis has them. Raises InputError if there are fewer than `count`.
    """
    times = analysis["time"].values.astype("datetime64[ns]")
    offsets = np.arange(1 - spec_frames, int(horizon / step) + 1) * step
    present = np.isin(times[:, None] + offsets[None, :], times).all(axis=1)
    first, last = (np.datetime64(stamp, "ns") for stamp in period)
    usable = times[present & (times >= first) & (times <= last)]
    if usable.size < count:
        raise InputError(
            f"asked for {count} initialisations; the period {period[0]} to {period[1]} has {usable.size} complete ones"
        )
    return usable[np.linspace(0, usable.size - 1, count).round().astype(int)]
