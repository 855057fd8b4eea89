"""Section [model] of a recipe, and the step from a recipe to a training run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np
import pandas as pd
import xarray as xr
from pydantic import Field, field_validator, model_validator

from data_pipeline import statistics
from data_pipeline.batches import Samples
from data_pipeline.errors import InputError
from data_pipeline.forcings import Forcings, plane_names, standardised_static
from data_pipeline.kept import Kept
from data_pipeline.recipe import Hours, Section, section
from data_pipeline.schema import channels_of
from data_pipeline.statistics import Periods, format_period
from models.checkpoint import FAMILIES
from models.contract import Spec
from models.curriculum import TrainingOptions
from models.distributed import ALONE, Ranks
from models.training import Progress, train

OptionsT = TypeVar("OptionsT", bound=Section)


class ModelOptions(Section, Generic[OptionsT]):
    """Section [model]: the family, its inputs, and [model.options] of the family itself.

    intervals: lead intervals that one model learns to step, as ["12h", "24h"]; training draws one for each sample, which keeps
    it over its roll-out (Nguyen et al. 2024, arXiv 2312.03876). `step`, at which validation scores it, is the shortest. The
    intervals are apart in input frames and targets alike; what is accumulated keeps its own window, the hours before each
    stamp: after a step of 24 h total_precipitation_12hr is that of the last 12 h.
    """

    family: str = "crps"
    step: str = "12h"
    intervals: tuple[Hours, ...] = ()
    frames: int = Field(default=2, ge=1)
    diagnostic: tuple[str, ...] = ()
    forcings: tuple[str, ...] = ("season", "position")
    options: OptionsT = Field(default_factory=dict, validate_default=True)

    @field_validator("step")
    @classmethod
    def _whole_hours(cls, value: str) -> str:
        hours = pd.Timedelta(value) / pd.Timedelta("1h")
        if hours <= 0 or hours != round(hours):
            raise ValueError(f"{value!r} is not a whole number of hours")
        return value

    @model_validator(mode="after")
    def _step_is_shortest(self) -> ModelOptions[OptionsT]:
        if self.intervals and self.interval_hours[0] != self.step_hours:
            raise ValueError(
                f"intervals {list(self.intervals)}: the shortest must be the step, {self.step}; any of them can be stepped "
                f"in a forecast (--step)"
            )
        return self

    @property
    def step_hours(self) -> int:
        """The step in hours."""
        return int(pd.Timedelta(self.step) / pd.Timedelta("1h"))

    @property
    def interval_hours(self) -> tuple[int, ...]:
        """The intervals in hours, ascending; the step alone unless others are given."""
        return tuple(sorted({int(interval.removesuffix("h")) for interval in self.intervals or (f"{self.step_hours}h",)}))


def make_spec(
    analysis: xr.Dataset, statistics: xr.Dataset, *, family: str, diagnostic: tuple[str, ...], forcings: tuple[str, ...],
    step_hours: int, frames: int, training_period: str, validation_period: str, options: dict[str, Any],
    intervals: Sequence[int] = (),
) -> Spec:  # fmt: skip
    """The Spec of a new model from an analysis, its statistics and the recipe.

    statistics: with `tendency_std_by_step` over step_hours and the intervals. intervals: ascending, in hours; one alone is none.
    """
    labels = tuple(str(label) for label in statistics["channel"].values)
    unknown = [label for label in diagnostic if label not in labels]
    if unknown:
        raise InputError(f"model.diagnostic names {', '.join(unknown)}; the channels are {', '.join(labels)}")

    def numbers(values: xr.DataArray) -> tuple[float, ...]:
        return tuple(map(float, values.values))

    changes = statistics["tendency_std_by_step"]
    several = tuple(intervals) if len(intervals) > 1 else ()

    return Spec(
        family=family, channels=labels, diagnostic=diagnostic, forcings=forcings,
        latitude=tuple(map(float, analysis["latitude"].values)), longitude=tuple(map(float, analysis["longitude"].values)),
        step_hours=step_hours, frames=frames, mean=numbers(statistics["mean"]), std=numbers(statistics["std"]),
        tendency_std=numbers(changes.sel(step=step_hours)), training_period=training_period,
        validation_period=validation_period, options=options, intervals=several,
        tendency_stds=tuple(numbers(changes.sel(step=hours)) for hours in several),
    )  # fmt: skip


def model_section(recipe: Mapping[str, Any]) -> ModelOptions[Any]:
    """Section [model] of a recipe, its options those of its family. Raises InputError listing every fault."""
    family = recipe.get("model", {}).get("family", "crps")
    if family not in FAMILIES:
        raise InputError(f"model family {family!r} is not known; choose from {', '.join(FAMILIES)}")
    typed = cast(type[ModelOptions[Any]], ModelOptions[FAMILIES[family].options])  # type: ignore[misc]
    return section(recipe, "model", typed)


def plan_training(
    recipe: Mapping[str, Any], analysis: xr.Dataset, kept: Kept | None = None
) -> tuple[Spec, TrainingOptions, Samples, Samples]:
    """Spec, options and samples of a recipe's training on an analysis. Raises InputError before any heavy work.

    kept: what the ingest of this very analysis left for its statistics, see `data_pipeline.kept`.
    """
    training, validation = periods_of(recipe, analysis)
    model = model_section(recipe)
    options = section(recipe, "training", TrainingOptions)
    plane_names(model.forcings)
    channels = channels_of(analysis)
    moments = statistics.compute(analysis, channels, training, steps=model.interval_hours, kept=kept)
    spec = make_spec(
        analysis, moments, family=model.family, diagnostic=model.diagnostic, forcings=model.forcings,
        step_hours=model.step_hours, frames=model.frames, training_period=format_period(training),
        validation_period=format_period(validation), options=model.options.filled(), intervals=model.interval_hours,
    )  # fmt: skip
    forcings = Forcings(model.forcings, spec.grid, spec.step, standardised_static(analysis, model.forcings))

    def samples(period: tuple[str, str]) -> Samples:
        return Samples(analysis, channels, moments, forcings, period, step=np.timedelta64(spec.step), frames=spec.frames)

    return spec, options, samples(training), samples(validation)


def periods_of(recipe: Mapping[str, Any], analysis: xr.Dataset) -> tuple[tuple[str, str], tuple[str, str]]:
    """Training and validation period. Raises InputError, saying what the analysis holds, if one is missing or has no analyses."""
    periods = section(recipe, "periods", Periods)
    times = analysis["time"].values
    holds = f"the analysis holds {times.size} stamps, {times[0].astype('datetime64[h]')} to {times[-1].astype('datetime64[h]')}"
    absent = [name for name in ("training", "validation") if getattr(periods, name) is None]
    if absent:
        raise InputError(
            f"training needs a training and a validation period that do not overlap (whole years, so that every season is "
            f"seen); the recipe gives no periods.{' and no periods.'.join(absent)}, and {holds}"
        )
    chosen = periods.required("training"), periods.required("validation")
    empty = [format_period(period) for period in chosen if not statistics.in_period(times, period).any()]
    if empty:
        raise InputError(f"no analyses in {' nor in '.join(empty)}; {holds}")
    if statistics.in_period(times, chosen[0])[statistics.in_period(times, chosen[1])].any():
        raise InputError(f"the training and validation periods overlap: {' and '.join(map(format_period, chosen))}")
    return chosen


def run_training(
    recipe: Mapping[str, Any],
    analysis: xr.Dataset,
    out: Path,
    *,
    device: str,
    report: Callable[[Progress], None],
    kept: Kept | None = None,
    ranks: Ranks = ALONE,
) -> Path:
    """Train by a recipe, in this process or with others; returns the checkpoint's path."""
    spec, options, training, validation = plan_training(recipe, analysis, kept)
    provenance = {
        "recipe": json_ready(recipe),
        "data": analysis.attrs.get("source", ""),
        "data_recipe_hash": analysis.attrs.get("recipe_hash", ""),
    }
    return train(spec, options, training, validation, out, provenance=provenance, device=device, report=report, ranks=ranks)


def json_ready(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as plain data, without paths: they say nothing about the data, and a start from other weights names their hash."""
    plain = {name: dict(part) if isinstance(part, Mapping) else part for name, part in recipe.items()}
    plain.get("source", {}).pop("path", None)
    for name in ("initial", "warm_start"):
        plain.get("training", {}).pop(name, None)
    return plain
