"""Initial states: the input frames of each initialisation, read from an analysis, and the dates that can be started from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import channels_of, stack
from models.contract import Spec


def one_analysis(analysis: xr.Dataset, spec: Spec, init: np.datetime64) -> np.ndarray:
    """Normalised input frames (F, C, H, W), oldest first; every member starts from this one analysis."""
    rows = pd.Index(analysis["time"].values).get_indexer(pd.Index(frame_times(spec, init)))
    return spec.normalise(stack(analysis.isel(time=rows), spec.parsed_channels).values)


def frame_times(spec: Spec, init: np.datetime64) -> np.ndarray:
    """Stamps of the input frames of an initialisation, oldest first."""
    return init.astype("datetime64[ns]") - spec.step * np.arange(spec.frames - 1, -1, -1)


def check_inputs(analysis: xr.Dataset, spec: Spec, inits: Sequence[np.datetime64]) -> None:
    """Raise InputError, listing everything, unless the analysis has the model's grid, channels and all input frames."""
    faults = []
    grid = Grid.of(analysis)
    if not grid.matches(spec.grid):
        faults.append(f"the analysis is on {grid}; the checkpoint needs {spec.grid} (regrid at ingest: analysis.grid)")
    have = {channel.label for channel in channels_of(analysis)}
    absent = [label for label in spec.channels if label not in have]
    if absent:
        faults.append(f"the analysis lacks {', '.join(absent)}; it has {', '.join(sorted(have))}")
    times = pd.Index(analysis["time"].values)
    wanted = pd.DatetimeIndex(np.unique(np.concatenate([frame_times(spec, init) for init in inits])))
    gone = wanted[~wanted.isin(times)]
    if len(gone):
        faults.append(
            f"{len(gone)} of {len(wanted)} input times are not in the analysis, first {gone[0]:%Y-%m-%dT%H}; an initialisation "
            f"needs {spec.frames} frames, {spec.step_hours} h apart"
        )
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
