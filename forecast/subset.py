"""What of a forecast is written: some variables, levels, leads and a region. All is computed, nothing else is kept.

What is kept has the same bits as in the whole forecast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import TypeAdapter, ValidationError

from data_pipeline.errors import InputError
from data_pipeline.region import Box, grid_inside
from forecast.plan import ForecastPlan
from models.contract import Spec

HOUR = np.timedelta64(1, "h")


def subset(
    plan: ForecastPlan, *, variables: Sequence[str] = (), levels: Sequence[int] = (), hours: Sequence[int] = (),
    region: tuple[float, float, float, float] | None = None,
) -> ForecastPlan:  # fmt: skip
    """The plan of a part of a forecast; what is not named is kept whole.

    variables: names, or channels as geopotential_500. levels: hPa, of the variables that have levels. hours: leads. region: west,
    east, south, north in degrees, west before east, also over Greenwich or the date line. Raises InputError, listing all that
    the forecast does not have.
    """
    have = {channel.name for channel in plan.channels} | {channel.label for channel in plan.channels}
    own_levels = sorted({channel.level for channel in plan.channels if channel.level is not None})
    own_hours = (plan.leads / HOUR).astype(int).tolist()
    faults = [
        f"--{option} {', '.join(map(str, absent))}: the forecast has {', '.join(map(str, offered))}"
        for option, asked, offered in (
            ("variable", variables, sorted(have)), ("level", levels, own_levels), ("output-lead", hours, own_hours)
        )
        if (absent := [value for value in asked if value not in offered])
    ]  # fmt: skip
    channels = tuple(
        channel
        for channel in plan.channels
        if (not variables or channel.name in variables or channel.label in variables)
        and (not levels or channel.level is None or channel.level in levels)
    )
    grid = plan.grid
    if region is not None:
        west, east, south, north = region
        try:
            box = TypeAdapter[tuple[float, float, float, float]](Box).validate_python(
                (south, north, west, east if west < east else east + 360)
            )
            grid = grid_inside(plan.grid, box)
        except ValidationError as error:
            faults.append(f"--region {west:g},{east:g},{south:g},{north:g}: {error.errors()[0]['msg']}")
        except InputError as error:
            faults.append(f"--region: {str(error).removeprefix('analysis.region ')}")
    if not channels and not faults:
        faults.append(f"no field has a variable of {', '.join(variables)} and a level of {', '.join(map(str, levels))}")
    if faults:
        raise InputError("this part of the forecast cannot be kept:\n" + "\n".join(f"  - {fault}" for fault in faults))
    leads = plan.leads[np.isin(own_hours, hours)] if hours else plan.leads
    return replace(plan, channels=channels, leads=leads, grid=grid)


@dataclass(frozen=True)
class Cut:
    """Takes what a plan keeps out of a generator's fields. narrowed: the spec of the channels that are kept."""

    channels: list[int]
    rows: np.ndarray
    columns: np.ndarray
    narrowed: Spec
    drops: bool

    @classmethod
    def of(cls, spec: Spec, plan: ForecastPlan) -> Cut:
        """Raises InputError if the plan has channels or points that the generator does not make."""
        labels = [channel.label for channel in plan.channels]
        absent = [label for label in labels if label not in spec.channels]
        rows, columns = (_matched(*pair) for pair in zip(_axes(plan), _axes_of(spec), strict=True))
        if absent or (rows < 0).any() or (columns < 0).any():
            raise InputError(
                f"the plan's fields ({', '.join(absent) or plan.grid}) are not those of the checkpoint ({spec.grid})"
            )
        channels = [spec.channels.index(label) for label in labels]
        mean, std = (tuple(moments[i] for i in channels) for moments in (spec.mean, spec.std))
        narrowed = replace(spec, channels=tuple(labels), mean=mean, std=std)
        same = channels == list(range(len(spec.channels))) and plan.grid.shape == spec.grid.shape
        return cls(channels, rows, columns, narrowed, not same)

    def __call__(self, fields: np.ndarray) -> np.ndarray:
        """Normalised fields (..., C, H, W) of the generator as physical ones of the plan."""
        if self.drops:
            fields = fields[..., self.channels, :, :][..., self.rows[:, None], self.columns]
        return self.narrowed.denormalise(fields)


def _axes(plan: ForecastPlan) -> tuple[np.ndarray, np.ndarray]:
    return plan.grid.latitude, np.mod(plan.grid.longitude, 360)


def _axes_of(spec: Spec) -> tuple[np.ndarray, np.ndarray]:
    return spec.grid.latitude, np.mod(spec.grid.longitude, 360)


def _matched(wanted: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Positions on the axis of the wanted values; -1 for those that it lacks."""
    apart = np.abs(wanted[:, None] - axis[None])
    nearest = np.minimum(apart, 360 - apart)
    return np.where(nearest.min(axis=1) < 1e-3, nearest.argmin(axis=1), -1)
