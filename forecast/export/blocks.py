"""The fields of a stored forecast, block by block as they are stored: what an export reads, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel, select
from data_pipeline.sources.accumulation import own_hours
from data_pipeline.variables import Variable, lookup
from forecast.plan import ForecastPlan

HOUR = np.timedelta64(1, "h")
BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Field:
    """What is written of one channel. hours: those that it is accumulated over (or the extreme of); None: an instant."""

    channel: Channel
    variable: Variable
    hours: int | None
    leads: tuple[int, ...]

    @classmethod
    def of(cls, forecast: xr.Dataset, channel: Channel, plan: ForecastPlan) -> Field:
        """Raises InputError for a name that is not in the table, or an accumulation over unknown hours."""
        variable, array = lookup(channel.name), forecast[channel.name]
        if variable is None:
            raise InputError(f"{channel}: not a name of the schema (data_pipeline/variables.py)")
        hours = own_hours(array) if variable.accumulated else None
        if variable.accumulated and not hours:
            raise InputError(f"{channel}: over how many hours it is accumulated is not known; its name must tell them")
        have = [int(one) for one in np.atleast_1d(array.attrs.get("hours_available", lead_hours(plan)))]
        leads = tuple(k for k, lead in enumerate(lead_hours(plan)) if lead in have and lead >= (hours or 0))
        return cls(channel, variable, hours, leads)


@dataclass(frozen=True)
class Block:
    """Some leads and members of one field and initialisation; positions in the plan, values (lead, member, row, column)."""

    field: Field
    row: int
    leads: tuple[int, ...]
    members: tuple[int, ...]
    values: np.ndarray


def lead_hours(plan: ForecastPlan) -> list[int]:
    """Raises InputError for leads that are no whole hours."""
    hours = plan.leads / HOUR
    if not (hours == hours.astype(int)).all():
        raise InputError(f"leads of {hours[hours != hours.astype(int)][0]:g} h; files take whole hours")
    return [int(hour) for hour in hours]


def blocks(forecast: xr.Dataset, plan: ForecastPlan, fields: list[Field], row: int) -> Iterator[Block]:
    """The fields of one initialisation, each chunk of the store read once."""
    rows, columns = _places(Grid.of(forecast), plan.grid)
    numbers = forecast["number"].values.tolist()
    members = [numbers.index(number) for number in plan.members]
    for field in fields:
        array = select(forecast, field.channel).sel(time=plan.times[row])
        sizes = {dim: max(array.variable.chunksizes.get(dim, (1,))) for dim in ("prediction_timedelta", "number")}
        field_bytes = array.sizes["latitude"] * array.sizes["longitude"] * 4
        block = min(sizes["number"], max(1, BLOCK_BYTES // field_bytes))
        run = min(sizes["prediction_timedelta"], max(1, BLOCK_BYTES // (field_bytes * block)))
        for first in range(0, len(field.leads), run):
            leads = field.leads[first : first + run]
            own = array.sel(prediction_timedelta=plan.leads[list(leads)])
            for start in range(0, len(members), block):
                some = members[start : start + block]
                values = own.isel(number=some).transpose("prediction_timedelta", "number", "latitude", "longitude").values
                places = tuple(range(start, start + len(some)))
                yield Block(field, row, leads, places, values[:, :, rows][..., columns])


def _places(have: Grid, wanted: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the wanted points; longitudes may differ by a turn."""
    rows = np.abs(have.latitude[:, None] - wanted.latitude).argmin(0)
    turned = (have.longitude[:, None] - wanted.longitude + 180) % 360 - 180
    return rows, np.abs(turned).argmin(0)
