"""The contract at every border: channels, selection, stacking, and a validation that lists every fault."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel, SchemaError, channels_of, select, stack, unstack, validate


@pytest.fixture
def analysis() -> xr.Dataset:
    grid = Grid.named("8x4")
    time = pd.date_range("2001-01-01", periods=3, freq="12h").as_unit("ns")
    random = np.random.default_rng(0)
    z = xr.DataArray(random.normal(5e4, 1e3, (3, 2, 4, 8)).astype("f4"), dims=("time", "level", "latitude", "longitude"))
    t2m = xr.DataArray(random.normal(280, 5, (3, 4, 8)).astype("f4"), dims=("time", "latitude", "longitude"))
    lsm = xr.DataArray(np.ones((4, 8), "f4"), dims=("latitude", "longitude"))
    return xr.Dataset(
        {
            "geopotential": z.assign_attrs(units="m2 s-2"),
            "2m_temperature": t2m.assign_attrs(units="K"),
            "land_sea_mask": lsm.assign_attrs(units="1"),
        },
        {"time": time, "level": [500, 850], **grid.coords()},
    )


@pytest.mark.parametrize("label", ["geopotential_500", "2m_temperature", "total_precipitation_12hr", "u_component_of_wind_250"])
def test_labels_and_channels_are_inverse(label: str) -> None:
    assert Channel.parse(label).label == label


def test_an_accumulation_is_not_a_level() -> None:
    assert Channel.parse("total_precipitation_12hr") == Channel("total_precipitation_12hr")
    assert Channel.parse("geopotential_500") == Channel("geopotential", 500)


def test_channels_are_the_fields_with_time(analysis: xr.Dataset) -> None:
    assert [channel.label for channel in channels_of(analysis)] == ["geopotential_500", "geopotential_850", "2m_temperature"]


def test_levels_that_a_variable_lacks_are_no_channels(analysis: xr.Dataset) -> None:
    analysis["geopotential"].attrs["levels_available"] = np.int32(500)
    assert Channel("geopotential", 850) not in channels_of(analysis)
    with pytest.raises(InputError, match=r"\[500\] hPa; 850 is not there"):
        select(analysis, Channel("geopotential", 850))


def test_selection_says_what_is_there(analysis: xr.Dataset) -> None:
    assert select(analysis, Channel("geopotential", 850)).dims == ("time", "latitude", "longitude")
    for channel in (
        Channel("temperature", 850),
        Channel("geopotential"),
        Channel("geopotential", 250),
        Channel("2m_temperature", 500),
    ):
        with pytest.raises(InputError):
            select(analysis, channel)


def test_stack_and_unstack_are_inverse(analysis: xr.Dataset) -> None:
    fields = stack(analysis, channels_of(analysis))
    assert fields.dims == ("time", "channel", "latitude", "longitude")
    xr.testing.assert_equal(unstack(fields), analysis.drop_vars("land_sea_mask"))


def test_a_dataset_in_the_schema_is_valid(analysis: xr.Dataset) -> None:
    validate(analysis)


def test_a_forecast_in_the_schema_is_valid(analysis: xr.Dataset) -> None:
    forecast = analysis.drop_vars("land_sea_mask").expand_dims(
        prediction_timedelta=pd.timedelta_range("12h", periods=2, freq="12h").as_unit("ns"), number=[0, 1]
    )
    order = ("time", "prediction_timedelta", "number", "level", "latitude", "longitude")
    validate(forecast.transpose(*order), "forecast")
    with pytest.raises(SchemaError, match="expected"):
        validate(forecast.transpose("number", ...), "forecast")


def test_every_fault_is_listed_at_once(analysis: xr.Dataset) -> None:
    wrong = analysis.isel(latitude=slice(None, None, -1), time=[1, 0, 2], level=[1, 0])
    wrong["t2m"] = wrong["2m_temperature"]
    wrong["geopotential"] = wrong["geopotential"].assign_attrs(units="m")
    with pytest.raises(SchemaError) as fault:
        validate(wrong.drop_vars("2m_temperature"))
    for part in ("latitude is not strictly ascending", "time is not strictly ascending", "level", "t2m: not a name", "units 'm'"):
        assert part in str(fault.value)


def test_units_must_be_those_of_the_table_and_types_floats(analysis: xr.Dataset) -> None:
    with pytest.raises(SchemaError, match="no units"):
        validate(analysis.assign({"2m_temperature": analysis["2m_temperature"].drop_attrs()}))
    with pytest.raises(SchemaError, match="dtype int16"):
        validate(analysis.astype("int16"))


def test_an_accumulated_variable_is_known_by_its_base(analysis: xr.Dataset) -> None:
    rain = (analysis["2m_temperature"] * 0).assign_attrs(units="m")
    validate(analysis.assign(total_precipitation_12hr=rain))
