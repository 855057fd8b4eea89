"""What a forecast store holds already, and the plan that adds to it: more members, longer leads, further initialisations."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline import store
from data_pipeline.chunks import Region, span
from data_pipeline.disk import plain
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.recipe import differences, fingerprint
from data_pipeline.schema import stack
from forecast.plan import ForecastPlan, Part, plan_of

NO_SETTINGS = (
    "plumecast_version",
    "recipe_hash",
    "extent",
    "gate",
    "remarks",
)  # of the attributes: what does not decide the numbers
MOST_LINES = 20
FIELD_DIMS = ("prediction_timedelta", "number", "channel", "latitude", "longitude")


def settings(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the numbers of a forecast, whatever its initialisations, leads and members."""
    return {key: value for key, value in plain(attrs).items() if key not in NO_SETTINGS}


def recipe_of(plan: ForecastPlan) -> dict[str, Any]:
    """The recipe of a store of this plan: its settings, and its extent."""
    axes = {"initialisations": plan.times, "leads": plan.leads, "members": np.array(plan.members)}
    extent = {name: f"{span(values)} [{fingerprint({'values': values.tolist()})}]" for name, values in axes.items()}
    return {**settings(plan.attrs), "extent": extent}


@dataclass(frozen=True)
class Published:
    """A finished forecast store, and where its fields are found."""

    path: Path
    data: xr.Dataset
    manifest: Mapping[str, Any]

    @cached_property
    def plan(self) -> ForecastPlan:
        return plan_of(self.data)

    def held(self, plan: ForecastPlan) -> np.ndarray:
        """Of a plan, what is in the store: bool (time, lead, member)."""
        times, leads, members = (found >= 0 for found in self._places(plan))
        return times[:, None, None] & leads[None, :, None] & members[None, None]

    def missing_from(self, plan: ForecastPlan) -> bool:
        """True if the store has initialisations, leads or members that the plan lacks."""
        return any(np.setdiff1d(own, other).size for own, other in zip(_axes(self.plan), _axes(plan), strict=True))

    def box(self, plan: ForecastPlan, part: Part, run: slice) -> Region | None:
        """Where the leads `run` of a part lie as whole chunks of the same form; None if they do not."""
        if self.manifest["layout"]["chunks"] != plan.chunks:
            return None
        times, leads, members = self._places(plan)
        found = {"time": times[part.row : part.row + 1], "prediction_timedelta": leads[run], "number": members[part.members]}
        box = {}
        for dim, places in found.items():
            first, count = int(places[0]), places.size
            if first < 0 or first % plan.chunks[dim] or not np.array_equal(places, np.arange(first, first + count)):
                return None
            box[dim] = slice(first, first + count)
        return box

    def read(self, plan: ForecastPlan, part: Part, run: slice) -> np.ndarray:
        """Fields (lead, member, channel, latitude, longitude) of the leads `run` of a part; NaN where the store lacks them."""
        block = plan.members[part.members]
        fields = np.full((run.stop - run.start, len(block), len(plan.channels), *plan.grid.shape), np.nan, np.float32)
        times, leads, members = self._places(plan)
        leads, members = leads[run], members[part.members]
        if times[part.row] >= 0 and (leads >= 0).any() and (members >= 0).any():
            chosen = self.data.isel(
                time=int(times[part.row]), prediction_timedelta=leads[leads >= 0], number=members[members >= 0]
            )
            values = stack(chosen, list(plan.channels)).transpose(*FIELD_DIMS).values
            fields[np.ix_(leads >= 0, members >= 0)] = values
        return fields

    def _places(self, plan: ForecastPlan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions in the store of the plan's initialisations, leads and members; -1 for those that it lacks."""
        own, other = _axes(self.plan), _axes(plan)
        times, leads, members = (pd.Index(a).get_indexer(pd.Index(b)) for a, b in zip(own, other, strict=True))
        return times, leads, members


def published(path: str | Path, plan: ForecastPlan) -> Published | None:
    """The finished store at `path`, if there is one. Raises InputError, with the differences, if it is of other settings."""
    path = Path(path)
    if not store.is_store(path):
        return None
    manifest, data = store.read_manifest(path), store.open_store(path)
    old = settings(manifest["recipe"]) | _form(plan_of(data))
    lines = list(itertools.islice(differences({"recipe": old}, {"recipe": settings(plan.attrs) | _form(plan)}), MOST_LINES))
    if lines:
        raise InputError(
            f"{path} was made by another recipe:\n"
            + "\n".join(f"  - {line}" for line in lines)
            + "\nwrite to another place (--out), or remove the old one first"
        )
    return Published(path, data, manifest)


def extended(plan: ForecastPlan, path: str | Path) -> ForecastPlan:
    """The plan, and all that a finished store of the same settings at `path` holds beyond it.

    Raises InputError, with the differences, if the store is of other settings.
    """
    old = published(path, plan)
    if old is None:
        return plan
    times, leads, members = (np.union1d(*both) for both in zip(_axes(old.plan), _axes(plan), strict=True))
    return replace(plan, times=times, leads=leads, members=tuple(members.tolist()))


def _axes(plan: ForecastPlan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return plan.times.astype("datetime64[ns]"), plan.leads.astype("timedelta64[ns]"), np.array(plan.members)


def _form(plan: ForecastPlan) -> dict[str, Any]:
    """Fields and grid, which an extension leaves as they are."""
    grid: Grid = plan.grid
    return {"fields": sorted(channel.label for channel in plan.channels), "grid": [span(grid.latitude), span(grid.longitude)]}
