"""GRIB2 messages through ecCodes: one a field, member and lead, with the identity of each parameter in WMO and ECMWF tables.

Templates 4.1 and 4.11 (ensemble member at an instant, over a time). Rows run from north to south, as readers of GRIB expect.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import eccodes
import numpy as np
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.units import conversion
from forecast.export.blocks import Block, Field, blocks, lead_hours
from forecast.plan import ForecastPlan

# paramId in GRIB2, where it is not the first of the table: water in kg m-2, cloud in %, extremes of no fixed period
PARAM_IDS = {
    "total_precipitation": 228228, "convective_precipitation": 228143, "snowfall": 228144, "snow_depth": 228141,
    "total_cloud_cover": 228164, "maximum_2m_temperature": 237167, "minimum_2m_temperature": 238167,
    "10m_wind_gust_since_previous_post_processing": 237318, "100m_u_component_of_wind": 131, "100m_v_component_of_wind": 132,
}  # fmt: skip
TABLES = 30  # version of the WMO tables: old enough for decoders in use
MISSING = 9.999e20
STATISTICS = {"sum": 1, "maximum": 2, "minimum": 3}  # code table 4.10
CONTROL, PERTURBED = (3, 1), (4, 255)  # code tables 1.4 and 4.6: processed data, kind of member; ours are no pairs: missing


@dataclass(frozen=True)
class Packing:
    """bits: of a value, of the range of its field. method: CCSDS (small files) or simple (every decoder)."""

    bits: Literal[16, 24] = 16
    method: Literal["ccsds", "simple"] = "ccsds"
    centre: str = "255"


def check(fields: Sequence[Field], packing: Packing) -> list[str]:
    """The fields that GRIB2 has no identity for, in words."""
    faults = []
    for field in fields:
        try:
            with _template(field, packing) as handle:
                conversion(eccodes.codes_get(handle, "units"), field.variable)
        except (eccodes.CodesInternalError, InputError) as error:
            faults.append(f"{field.channel}: no GRIB2 parameter that ecCodes can write ({error}); leave it out by --variable")
    return faults


def write(file: BinaryIO, forecast: xr.Dataset, plan: ForecastPlan, fields: list[Field], row: int, packing: Packing) -> None:
    """The messages of one initialisation."""
    size = int(forecast.sizes["number"])
    for field in fields:
        with _template(field, packing) as handle:
            _set_grid(handle, plan.grid)
            units = conversion(eccodes.codes_get(handle, "units"), field.variable)
            for block in blocks(forecast, plan, [field], row):
                for message in _messages(handle, plan, block, units, size, packing):
                    eccodes.codes_write(message, file)


def _messages(
    handle: int, plan: ForecastPlan, block: Block, units: tuple[float, float], size: int, packing: Packing
) -> Iterator[int]:
    """One handle after the other, set anew for each field."""
    factor, offset = units
    stamp = plan.times[block.row].astype("datetime64[m]").item()
    _set(handle, dataDate=int(stamp.strftime("%Y%m%d")), dataTime=int(stamp.strftime("%H%M")), numberOfForecastsInEnsemble=size)
    for k, lead in enumerate(block.leads):
        hours = lead_hours(plan)[lead]
        for m, member in enumerate(block.members):
            number = plan.members[member]
            processed, kind = CONTROL if number == 0 else PERTURBED
            _set(handle, typeOfProcessedData=processed, typeOfEnsembleForecast=kind, perturbationNumber=number)
            if block.field.hours is None:
                _set(handle, forecastTime=hours)
            else:
                _set(handle, startStep=hours - block.field.hours, endStep=hours)
            values = (block.values[k, m, ::-1].astype(np.float64) - offset) / factor
            there = np.isfinite(values)
            _set(handle, bitmapPresent=int(not there.all()), bitsPerValue=packing.bits)
            eccodes.codes_set_values(handle, np.where(there, values, MISSING).ravel())
            yield handle


@contextmanager
def _template(field: Field, packing: Packing) -> Iterator[int]:
    """A message of a field without time, member, grid and values."""
    handle = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
    try:
        centre = int(packing.centre) if packing.centre.isdecimal() else packing.centre
        _set(handle, tablesVersion=TABLES, centre=centre, significanceOfReferenceTime=1, productionStatusOfProcessedData=2)
        _set(handle, productDefinitionTemplateNumber=1 if field.hours is None else 11)
        _set(handle, paramId=PARAM_IDS.get(field.variable.name, (*field.variable.param_ids, 0)[0]))
        if field.channel.level is not None:
            _set(handle, typeOfLevel="isobaricInhPa", level=field.channel.level)
        elif field.variable.height is not None and field.variable.height > 10:
            _set(handle, typeOfLevel="heightAboveGround", level=int(field.variable.height))
        if field.hours is not None:
            _set(handle, typeOfStatisticalProcessing=STATISTICS[field.variable.window], indicatorOfUnitForTimeRange=1)
        _set(handle, typeOfGeneratingProcess=4, indicatorOfUnitOfTimeRange=1, missingValue=MISSING)
        _set(handle, packingType=f"grid_{packing.method}")
        yield handle
    finally:
        eccodes.codes_release(handle)


def _set_grid(handle: int, grid: Grid) -> None:
    """Rows from the north, longitudes from 0 to 360 degrees; a region over Greenwich goes from 350 to 10."""
    rows, columns = grid.shape
    longitude = grid.longitude % 360
    common: dict[str, Any] = {
        "shapeOfTheEarth": 6, "Ni": columns, "Nj": rows, "iScansNegatively": 0, "jScansPositively": 0,
        "latitudeOfFirstGridPointInDegrees": grid.latitude[-1], "latitudeOfLastGridPointInDegrees": grid.latitude[0],
        "longitudeOfFirstGridPointInDegrees": longitude[0], "longitudeOfLastGridPointInDegrees": longitude[-1],
        "iDirectionIncrementInDegrees": (grid.longitude[-1] - grid.longitude[0]) / (columns - 1),
    }  # fmt: skip
    if grid.is_gaussian:
        _set(handle, gridType="regular_gg", N=rows // 2, **common)
    else:
        _set(handle, **common, jDirectionIncrementInDegrees=(grid.latitude[-1] - grid.latitude[0]) / (rows - 1))


def _set(handle: int, **keys: Any) -> None:
    for key, value in keys.items():
        eccodes.codes_set(handle, key, value)
