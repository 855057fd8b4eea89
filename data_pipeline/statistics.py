"""Statistics of the training period: what a model needs to normalise its channels, and the periods themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from pydantic import field_validator

from data_pipeline.errors import InputError
from data_pipeline.kept import Kept, gather
from data_pipeline.recipe import Section, Stamp
from data_pipeline.schema import Channel, select
from data_pipeline.transform import from_model_space, to_model_space

__all__ = ["Periods", "compute", "format_period", "from_model_space", "in_period", "to_model_space"]

HOUR = np.timedelta64(1, "h")


class Periods(Section):
    """Section [periods]: each the first and the last time stamp, both included."""

    training: tuple[Stamp, Stamp] | None = None
    validation: tuple[Stamp, Stamp] | None = None
    test: tuple[Stamp, Stamp] | None = None

    @field_validator("*")
    @classmethod
    def _ordered(cls, value: tuple[str, str] | None) -> tuple[str, str] | None:
        if value is not None and np.datetime64(value[0]) > np.datetime64(value[1]):
            raise ValueError(f"the period starts at {value[0]} after its end {value[1]}")
        return value

    def required(self, name: str) -> tuple[str, str]:
        """The named period; InputError if the recipe does not give it."""
        period = getattr(self, name)
        if period is None:
            raise InputError(f"the recipe has no {name} period; add periods.{name} = [first, last]")
        return period


def format_period(period: tuple[str, str]) -> str:
    """`2001-01-01T00/2005-12-31T12`, as stores and checkpoints name a period."""
    return "/".join(pd.Timestamp(stamp).strftime("%Y-%m-%dT%H") for stamp in period)


def in_period(times: np.ndarray, period: tuple[str, str]) -> np.ndarray:
    """Boolean mask of the datetime64 `times` inside the period, ends included."""
    first, last = (np.datetime64(stamp, "ns") for stamp in period)
    return (times >= first) & (times <= last)


def compute(
    analysis: xr.Dataset,
    channels: Sequence[Channel],
    period: tuple[str, str],
    *,
    steps: Sequence[int] = (),
    kept: Kept | None = None,
) -> xr.Dataset:
    """Area-weighted mean, std and tendency std of each channel over `period`, after the variable's transform.

    Returns a Dataset on dim `channel`: `mean`, `std`, `tendency_std` over the analysis step, and `tendency_std_by_step` (step,
    channel) over that and further `steps` in hours, multiples of it (units of the transformed channel); attrs: `n` time steps.
    A tendency is between stamps exactly that far apart; pairs with a missing stamp are left out. kept: what the ingest of this
    very analysis left, see `kept.read_kept`; then only what lies outside whole parts is read. Raises InputError for a period
    without data, a channel without variance or with missing values, steps that are no multiples.
    """
    for channel in channels:
        select(analysis, channel)
    times = analysis["time"].values
    inside = np.flatnonzero(in_period(times, period))
    if inside.size < 3:
        raise InputError(
            f"statistics: {inside.size} time steps inside {format_period(period)}; the analysis runs from "
            f"{times[0]} to {times[-1]}"
        )
    first, stop = int(inside[0]), int(inside[-1]) + 1
    own = float(np.diff(times[first:stop]).min() / HOUR)
    hours = _multiples(own, steps)
    found = gather(analysis, channels, (first, stop), hours, kept)
    std = np.array([moments.fields.std for moments in found])
    by_step = np.array([[moments.changes[row].std for moments in found] for row in range(len(hours))])
    _refuse_useless(channels, std, by_step[0])
    return xr.Dataset(
        {
            "mean": ("channel", [moments.fields.mean for moments in found]),
            "std": ("channel", std),
            "tendency_std": ("channel", by_step[0]),
            "tendency_std_by_step": (("step", "channel"), by_step, {"long_name": "tendency std over each step"}),
        },
        coords={"channel": [channel.label for channel in channels], "step": ("step", list(hours), {"units": "hours"})},
        attrs={"period": format_period(period), "n": stop - first, "step_hours": own, "weights": "exact cell area"},
    )


def _multiples(own: float, steps: Sequence[int]) -> tuple[int, ...]:
    """The analysis step and the further steps, in hours."""
    wrong = [step for step in steps if step % own]
    if wrong or own != int(own):
        raise InputError(f"statistics: steps of {wrong or [own]} h are no whole multiples of the analysis step, {own:g} h")
    return (int(own), *sorted({int(step) for step in steps} - {int(own)}))


def _refuse_useless(channels: Sequence[Channel], std: np.ndarray, tendency_std: np.ndarray) -> None:
    faults = []
    for channel, spread, change in zip(channels, std, tendency_std, strict=True):
        if not np.isfinite(spread) or not np.isfinite(change):
            faults.append(f"  - {channel}: holds missing values in the training period")
        elif spread == 0 or change == 0:
            faults.append(f"  - {channel}: never changes in the training period")
    if faults:
        raise InputError("statistics: these channels cannot be normalised; leave them out:\n" + "\n".join(faults))
