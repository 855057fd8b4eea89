"""Initial states of a cycle's members, where they do not all start from the one analysis."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from data_pipeline import open_analysis, open_forecast, store
from data_pipeline.errors import InputError, NotReadyError
from forecast.cycle.recipe import InitialSection
from forecast.initial_states import InitialStates, check_states, frame_times, write_states
from forecast.perturbations import AnalysisMembers, Differences, Frames, Kind, Size

if TYPE_CHECKING:
    from models.contract import Spec


def content(section: InitialSection | None) -> dict[str, Any] | None:
    """What decides the states beside the analysis. Raises InputError where the store of the recipe is none."""
    if section is None:
        return None
    made = section.model_dump(mode="json", exclude={"path"})
    if section.kind == "differences":
        made["recipe_hash"] = str(open_analysis(section.path).attrs.get("recipe_hash", section.path))
    return made


def check(section: InitialSection, frames: xr.Dataset, spec: Spec, init: np.datetime64, members: int) -> tuple[Kind, Frames]:
    """How the states are made. Raises NotReadyError for analysis members that are not there yet, InputError for all else."""
    channels = tuple(spec.parsed_channels)
    if section.kind == "differences":
        period = section.training or tuple(spec.training_period.split("/"))
        kind: Kind = Differences((period[0], period[-1]), Size(section.error), section.season_days, section.seed)
        wanted = Frames(_with_past(frames, section.path), channels, spec.step, spec.frames, section.unperturbed)
    else:
        if not section.path.exists():
            raise NotReadyError(f"the analysis members {section.path} are not there yet")
        given = open_forecast(section.path)
        absent = np.setdiff1d(frame_times(spec, init), given["time"].values)
        if absent.size:
            raise NotReadyError(
                f"the analysis members of {np.datetime_as_string(absent[0], 'h')} are not there yet in {section.path}"
            )
        kind = AnalysisMembers(given, section.paired, section.inflation)
        wanted = Frames(frames, channels, spec.step, spec.frames, section.unperturbed)
    check_states(kind, wanted, np.array([init]), members)
    return kind, wanted


def make(
    section: InitialSection, frames: xr.Dataset, spec: Spec, init: np.datetime64, members: int, target: Path
) -> InitialStates:
    """The states of `members` members at `target`; read from there if they are there already."""
    if not store.is_store(target):
        kind, wanted = check(section, frames, spec, init, members)
        write_states(kind, wanted, np.array([init]), members, target)
    return InitialStates(open_forecast(target))


def _with_past(frames: xr.Dataset, path: Path) -> xr.Dataset:
    """The frames of the cycle and, lazily, the analyses that differences are taken from; the frames' own stamps are theirs."""
    past = open_analysis(path)
    names = [name for name, array in frames.data_vars.items() if "time" in array.dims]
    absent = [str(name) for name in names if name not in past]
    if absent:
        raise InputError(f"forecast.initial_states: {path} lacks {', '.join(absent)}")
    older = past[names].sel(time=~np.isin(past["time"].values, frames["time"].values))
    try:
        joined = xr.concat([older, frames[names]], dim="time", join="exact", coords="minimal", compat="override")
    except ValueError as error:
        raise InputError(f"forecast.initial_states: {path} does not fit the analysis: {error}") from None
    return joined.sortby("time").assign_attrs(frames.attrs)
