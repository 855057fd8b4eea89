"""The plan of a forecast: initialisations, leads, members, channels; and its form in the schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from data_pipeline import store
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel, channels_of, levels_by_name
from data_pipeline.templates import forecast_dataset, forecast_template
from models.contract import Generator

BATCH_POINTS = 16384  # grid points through the network at once
CHUNK_BYTES = 4 << 20  # of one variable in memory: a map is read quickly, an ensemble in few pieces


def member_block(grid: Grid) -> int:
    """Members that go through a network together and lie in one chunk of a store: fixed by the grid alone."""
    return int(np.clip(BATCH_POINTS // int(np.prod(grid.shape)), 4, 32))


class Part(NamedTuple):
    """Some members of one initialisation: what a store is written, claimed and resumed by.

    row: position of the initialisation in the plan; members: positions of the members.
    """

    name: str
    row: int
    members: slice


@dataclass(frozen=True)
class ForecastPlan:
    """What a roll-out will make. times (init), leads: datetime64 and timedelta64; members: their numbers; channels in order."""

    times: np.ndarray
    leads: np.ndarray
    members: tuple[int, ...]
    channels: tuple[Channel, ...]
    grid: Grid
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lead_bytes(self) -> int:
        """Bytes of one lead of one initialisation, all members."""
        return len(self.members) * len(self.channels) * int(np.prod(self.grid.shape)) * 4

    @property
    def bytes(self) -> int:
        """Bytes of everything, uncompressed."""
        return self.lead_bytes * self.times.size * self.leads.size

    @cached_property
    def chunks(self) -> dict[str, int]:
        """Chunks of the store: one initialisation, the members of a micro-batch, leads and levels that fit `CHUNK_BYTES`."""
        block = min(int(self.attrs.get("micro_batch") or member_block(self.grid)), len(self.members))
        field_bytes = block * int(np.prod(self.grid.shape)) * 4
        levels = max([1, *map(len, levels_by_name(self.channels).values())])
        fit = max(1, CHUNK_BYTES // field_bytes)
        chunks = {"time": 1, "prediction_timedelta": min(max(1, fit // levels), self.leads.size), "number": block}
        return chunks | ({"level": fit} if fit < levels else {})

    @cached_property
    def parts(self) -> list[Part]:
        """Every (initialisation, member block), in the order in which they are made."""
        stamps, block = np.datetime_as_string(self.times, "h"), self.chunks["number"]
        return [
            Part(f"{stamp}.m{self.members[first]:04d}", row, slice(first, min(first + block, len(self.members))))
            for row, stamp in enumerate(stamps)
            for first in range(0, len(self.members), block)
        ]


def whole_hours(text: str) -> int:
    """Hours of a lead interval, as `24h`. Raises InputError for anything else."""
    number = text.removesuffix("h")
    if not (number.isascii() and number.isdigit() and text.endswith("h")):
        raise InputError(f"--step {text!r}: expected whole hours, as 12h or 24h")
    return int(number)


def checkpoint_attrs(generators: Sequence[Generator], noise_scale: float | None = None) -> dict[str, Any]:
    """What a forecast's attributes say of the checkpoints that make it, one or several; noise_scale: each one's own unless given.

    Several name all their hashes, in the order of the members, and the span of their periods. step_hours: where a checkpoint
    learned several intervals, the one that is stepped.
    """
    specs = [each.spec for each in generators]
    names = [f"{spec.family} {spec.options.get('preset', '')}".strip() for spec in specs]
    scales = [each.provenance.get("noise_scale", 1.0) if noise_scale is None else noise_scale for each in generators]
    attrs: dict[str, Any] = {
        "model": " + ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names)) if len(names) > 1 else names[0],
        "checkpoint_sha256": ",".join(each.sha256 for each in generators),
        "noise_scale": scales[0] if len(set(scales)) == 1 else scales,
        "training_period": spanned([spec.training_period for spec in specs]),
        "validation_period": spanned([spec.validation_period for spec in specs]),
    }
    if len(specs) > 1:  # member k is of checkpoint (k - 1) mod J of J; one that is named twice counts twice
        attrs["checkpoint_weights"] = [round(1 / len(specs), 6)] * len(specs)
    if any(spec.intervals for spec in specs):
        attrs["step_hours"] = specs[0].step_hours
    dtypes = [str(each.compute_dtype).removeprefix("torch.") for each in generators]
    if set(dtypes) != {"float32"}:
        attrs["compute_dtype"] = ",".join(dict.fromkeys(dtypes))
    return attrs


def spanned(periods: Sequence[str]) -> str:
    """The period `first/last` from the first beginning to the last end of several; empty ones do not count."""
    if len(set(periods)) == 1:
        return periods[0]
    ends = [period.partition("/") for period in periods if period]
    return f"{min(first for first, _, _ in ends)}/{max(last for _, _, last in ends)}"


def plan_of(forecast: xr.Dataset) -> ForecastPlan:
    """The plan that a forecast in the schema carries out."""
    return ForecastPlan(
        times=forecast["time"].values,
        leads=forecast["prediction_timedelta"].values,
        members=tuple(int(number) for number in forecast["number"].values),
        channels=tuple(channels_of(forecast)),
        grid=Grid.of(forecast),
        attrs=forecast.attrs,
    )


def plan_like(forecast: xr.Dataset, analysis: xr.Dataset) -> ForecastPlan:
    """The plan of a stored forecast: its initialisations, leads and those of its channels that the analysis has."""
    have = {channel.label for channel in channels_of(analysis)}
    channels = tuple(channel for channel in channels_of(forecast) if channel.label in have)
    attrs = {key: forecast.attrs[key] for key in ("source", "source_recipe_hash") if key in forecast.attrs}
    return replace(plan_of(forecast), channels=channels, attrs={**attrs, "plumecast_version": store.version()})


def plan_dates(analysis: xr.Dataset, times: np.ndarray, days: float) -> ForecastPlan:
    """A plan of all channels of an analysis at its own step. Raises InputError for dates that the analysis does not have."""
    held = analysis["time"].values
    gone = np.setdiff1d(times, held)
    if gone.size or not times.size:
        first = f", first {np.datetime_as_string(gone[0], 'h')}" if gone.size else ""
        raise InputError(
            f"{gone.size} of {times.size} initialisations are not in the analysis{first}; it has "
            f"{np.datetime_as_string(held[0], 'h')} to {np.datetime_as_string(held[-1], 'h')}"
        )
    step = np.diff(held).min()
    leads = step * np.arange(1, int(np.timedelta64(round(days * 24), "h") / step) + 1)
    attrs = {"source": analysis.attrs.get("source", ""), "plumecast_version": store.version()}
    return ForecastPlan(times, leads, (1,), tuple(channels_of(analysis)), Grid.of(analysis), attrs)


def template(plan: ForecastPlan) -> xr.Dataset:
    """An empty forecast in the schema, taking no memory."""
    return forecast_template(plan.times, plan.leads, plan.members, plan.channels, plan.grid)


def as_dataset(
    plan: ForecastPlan, fields: np.ndarray, times: np.ndarray, leads: np.ndarray, members: tuple[int, ...] | None = None
) -> xr.Dataset:
    """Fields (time, lead, member, channel, latitude, longitude) as a dataset in the schema; levels a variable lacks are NaN."""
    return forecast_dataset(fields, times, leads, plan.members if members is None else members, plan.channels, plan.grid)
