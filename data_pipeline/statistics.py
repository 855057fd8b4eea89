"""Statistics of the training period: what a model needs to normalise its channels, and the periods themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from pydantic import field_validator

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.recipe import Section
from data_pipeline.schema import Channel, stack
from data_pipeline.variables import lookup

BLOCK = 256  # time steps held in memory at once
LOG_SCALE = 1e-3  # metres: log(1 + x / 1 mm)


class Periods(Section):
    """Section [periods]: each the first and the last time stamp, both included."""

    training: tuple[str, str] | None = None
    validation: tuple[str, str] | None = None
    test: tuple[str, str] | None = None

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


def to_model_space(values: np.ndarray, channel: Channel) -> np.ndarray:
    """The variable's transform: log(1 + x / 1 mm) for precipitation (negative packing noise counts as 0), else unchanged."""
    variable = lookup(channel.name)
    if variable is not None and variable.transform == "log":
        return np.log1p(np.maximum(values, 0.0) / LOG_SCALE)
    return values


def from_model_space(values: np.ndarray, channel: Channel) -> np.ndarray:
    """The inverse of `to_model_space`; non-negative variables are clipped at 0, member by member."""
    variable = lookup(channel.name)
    if variable is None:
        return values
    if variable.transform == "log":
        return np.expm1(np.maximum(values, 0.0)) * LOG_SCALE
    return np.maximum(values, 0.0) if variable.non_negative else values


def compute(analysis: xr.Dataset, channels: Sequence[Channel], period: tuple[str, str]) -> xr.Dataset:
    """Area-weighted mean, std and one-step tendency std of each channel over `period`, after the variable's transform.

    Returns a Dataset on dim `channel`: `mean`, `std`, `tendency_std` (units of the transformed channel); attrs: `n` time steps.
    The tendency is between consecutive stamps of the analysis step; pairs across a gap are left out. float64 sums over
    deviations from a first guess. Raises InputError for a period without data, a channel without variance or with missing values.
    """
    fields = stack(analysis, list(channels)).transpose("time", "channel", "latitude", "longitude")
    fields = fields.isel(time=np.flatnonzero(in_period(fields["time"].values, period)))
    if fields.sizes["time"] < 3:
        raise InputError(
            f"statistics: {fields.sizes['time']} time steps inside {format_period(period)}; the analysis runs from "
            f"{analysis['time'].values[0]} to {analysis['time'].values[-1]}"
        )
    times = fields["time"].values
    gaps = np.diff(times)
    consecutive = gaps == gaps.min()
    weights = Grid.of(analysis).area_weights / Grid.of(analysis).area_weights.sum()
    sums = np.zeros((4, len(channels)))
    guess: np.ndarray | None = None
    last: np.ndarray | None = None
    for start in range(0, times.size, BLOCK):
        block = _transformed(fields.isel(time=slice(start, start + BLOCK)).values, channels)
        if guess is None:
            guess = np.einsum("tchw,hw->c", block, weights) / len(block)
        centred = block - guess[:, None, None]
        sums[0] += np.einsum("tchw,hw->c", centred, weights)
        sums[1] += np.einsum("tchw,hw->c", centred**2, weights)
        joined = block if last is None else np.concatenate([last, block])
        first_pair = start if last is None else start - 1
        keep = consecutive[first_pair : first_pair + len(joined) - 1]
        change = np.diff(joined, axis=0)[keep]
        sums[2] += np.einsum("tchw,hw->c", change, weights)
        sums[3] += np.einsum("tchw,hw->c", change**2, weights)
        last = block[-1:]
    assert guess is not None
    n, pairs = times.size, int(consecutive.sum())
    # rounding may leave a channel without variance just below 0; missing values stay NaN
    std = np.sqrt(np.maximum(sums[1] / n - (sums[0] / n) ** 2, 0.0))
    tendency_std = np.sqrt(np.maximum(sums[3] / pairs - (sums[2] / pairs) ** 2, 0.0))
    _refuse_useless(channels, std, tendency_std)
    labels = [channel.label for channel in channels]
    return xr.Dataset(
        {
            "mean": ("channel", guess + sums[0] / n),
            "std": ("channel", std),
            "tendency_std": ("channel", tendency_std),
        },
        coords={"channel": labels},
        attrs={
            "period": format_period(period),
            "n": n,
            "step_hours": float(gaps.min() / np.timedelta64(1, "h")),
            "weights": "exact cell area",
        },
    )


def _transformed(block: np.ndarray, channels: Sequence[Channel]) -> np.ndarray:
    columns = [to_model_space(block[:, i].astype(np.float64), channel) for i, channel in enumerate(channels)]
    return np.stack(columns, axis=1)


def _refuse_useless(channels: Sequence[Channel], std: np.ndarray, tendency_std: np.ndarray) -> None:
    faults = []
    for channel, spread, change in zip(channels, std, tendency_std, strict=True):
        if not np.isfinite(spread) or not np.isfinite(change):
            faults.append(f"  - {channel}: holds missing values in the training period")
        elif spread == 0 or change == 0:
            faults.append(f"  - {channel}: never changes in the training period")
    if faults:
        raise InputError("statistics: these channels cannot be normalised; leave them out:\n" + "\n".join(faults))
