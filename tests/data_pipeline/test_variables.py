"""The table of variables: every alias finds its entry, every unit its factor, and what is ambiguous is refused."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import InputError
from data_pipeline.units import conversion, parse_unit, to_canonical_units
from data_pipeline.variables import VARIABLES, UnknownVariableError, identify, lookup

SURFACE_ALIASES = [
    ("t2m", "2m_temperature"), ("2t", "2m_temperature"), ("d2m", "2m_dewpoint_temperature"), ("2d", "2m_dewpoint_temperature"),
    ("u10", "10m_u_component_of_wind"), ("10u", "10m_u_component_of_wind"), ("v10", "10m_v_component_of_wind"),
    ("10v", "10m_v_component_of_wind"), ("u10m", "10m_u_component_of_wind"), ("si10", "10m_wind_speed"),
    ("10si", "10m_wind_speed"), ("u100", "100m_u_component_of_wind"), ("100v", "100m_v_component_of_wind"),
    ("fg10", "10m_wind_gust_since_previous_post_processing"), ("10fg", "10m_wind_gust_since_previous_post_processing"),
    ("fg10_3", "10m_wind_gust_since_previous_post_processing_3hr"), ("msl", "mean_sea_level_pressure"),
    ("PRMSL", "mean_sea_level_pressure"), ("MSLET", "mean_sea_level_pressure"), ("sp", "surface_pressure"),
    ("tp", "total_precipitation"), ("APCP", "total_precipitation"), ("tp06", "total_precipitation_6hr"),
    ("tprate", "total_precipitation_rate"), ("cp", "convective_precipitation"), ("sf", "snowfall"), ("sd", "snow_depth"),
    ("WEASD", "snow_depth"), ("sst", "sea_surface_temperature"), ("siconc", "sea_ice_cover"), ("ci", "sea_ice_cover"),
    ("ICEC", "sea_ice_cover"), ("skt", "skin_temperature"), ("tcc", "total_cloud_cover"), ("TCDC", "total_cloud_cover"),
    ("tcwv", "total_column_water_vapour"), ("tcw", "total_column_water"), ("blh", "boundary_layer_height"),
    ("HPBL", "boundary_layer_height"), ("cape", "convective_available_potential_energy"),
    ("tisr", "toa_incident_solar_radiation"), ("ssrd", "surface_solar_radiation_downwards"),
    ("strd", "surface_thermal_radiation_downwards"), ("ssr", "surface_net_solar_radiation"),
    ("str", "surface_net_thermal_radiation"), ("tsr", "top_net_solar_radiation"), ("ttr", "top_net_thermal_radiation"),
    ("stl1", "soil_temperature_level_1"), ("swvl3", "volumetric_soil_water_layer_3"), ("mx2t", "maximum_2m_temperature"),
    ("mn2t6", "minimum_2m_temperature_6hr"),
]  # fmt: skip
LEVEL_ALIASES = [
    ("z", "geopotential"), ("gh", "geopotential"), ("HGT", "geopotential"), ("t", "temperature"), ("TMP", "temperature"),
    ("u", "u_component_of_wind"), ("VGRD", "v_component_of_wind"), ("ws", "wind_speed"), ("w", "vertical_velocity"),
    ("q", "specific_humidity"), ("SPFH", "specific_humidity"), ("r", "relative_humidity"), ("vo", "vorticity"),
    ("d", "divergence"), ("cc", "fraction_of_cloud_cover"),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "canonical"), SURFACE_ALIASES)
def test_a_surface_alias_finds_its_entry(alias: str, canonical: str) -> None:
    assert identify(alias, {}, on_levels=False) == canonical


@pytest.mark.parametrize(("alias", "canonical"), LEVEL_ALIASES)
def test_a_level_alias_finds_its_entry(alias: str, canonical: str) -> None:
    assert identify(alias, {}, on_levels=True) == canonical


@pytest.mark.parametrize(
    ("param_id", "canonical"),
    [(167, "2m_temperature"), (151, "mean_sea_level_pressure"), (228, "total_precipitation"), (228228, "total_precipitation"),
     (228028, "10m_wind_gust_since_previous_post_processing_3hr"), (156, "geopotential"), (121, "maximum_2m_temperature_6hr")],
)  # fmt: skip
def test_a_grib_parameter_decides_whatever_the_short_name(param_id: int, canonical: str) -> None:
    assert identify("anything", {"GRIB_paramId": param_id}, on_levels=param_id == 156) == canonical


def test_a_cf_standard_name_is_told_apart_by_height_and_level() -> None:
    attrs = {"standard_name": "air_temperature"}
    assert identify("temp", attrs, on_levels=True) == "temperature"
    assert identify("temp", attrs, on_levels=False, height=2) == "2m_temperature"
    with pytest.raises(UnknownVariableError, match="may be any of 2m_temperature, temperature"):
        identify("temp", attrs, on_levels=False)


def test_surface_geopotential_is_not_taken_for_a_level_without_its_level() -> None:
    assert identify("z", {}, on_levels=False, static=True) == "geopotential_at_surface"
    assert identify("z", {"GRIB_paramId": 129}, on_levels=False, height=0) == "geopotential_at_surface"
    with pytest.raises(UnknownVariableError, match="geopotential, geopotential_at_surface"):
        identify("z", {}, on_levels=False)


def test_a_name_that_contradicts_its_standard_name_is_refused() -> None:
    with pytest.raises(UnknownVariableError, match="contradict"):
        identify("t", {"standard_name": "sea_surface_temperature"}, on_levels=False)


def test_what_is_not_in_the_table_is_said_to_be_unknown() -> None:
    with pytest.raises(UnknownVariableError, match="not in the table"):
        identify("wave_height", {}, on_levels=False)
    with pytest.raises(UnknownVariableError, match="not in the table"):
        identify("t", {"GRIB_paramId": 260260}, on_levels=True)  # another parameter that shares the short name


def test_accumulated_names_share_one_entry() -> None:
    for name in ("total_precipitation", "total_precipitation_6hr", "total_precipitation_12hr", "total_precipitation_24hr"):
        assert lookup(name) is VARIABLES["total_precipitation"]
    assert lookup("temperature_6hr") is None
    assert lookup("tp") is None


def test_every_entry_is_whole() -> None:
    for variable in VARIABLES.values():
        assert conversion(variable.units, variable) == (1.0, 0.0)
        low, high = variable.valid_range
        assert low < high
        if variable.style.units is not None:
            assert variable.style.factor != 1.0 or variable.style.offset != 0.0


@pytest.mark.parametrize(
    ("name", "units", "value", "expected"),
    [
        ("2m_temperature", "degC", 0.0, 273.15), ("2m_temperature", "celsius", -10.0, 263.15),
        ("2m_temperature", "K", 280.0, 280.0), ("2m_temperature", "Kelvin", 280.0, 280.0), ("2m_temperature", "°C", 1.0, 274.15),
        ("mean_sea_level_pressure", "hPa", 1013.25, 101325.0), ("mean_sea_level_pressure", "mbar", 1000.0, 1e5),
        ("mean_sea_level_pressure", "millibars", 1000.0, 1e5), ("geopotential", "gpm", 5500.0, 53936.575),
        ("geopotential", "m", 5500.0, 53936.575), ("geopotential", "dam", 550.0, 53936.575),
        ("geopotential", "m**2 s**-2", 7.0, 7.0), ("geopotential", "m^2/s^2", 7.0, 7.0), ("geopotential", "m² s⁻²", 7.0, 7.0),
        ("specific_humidity", "g/kg", 5.0, 0.005), ("specific_humidity", "g kg**-1", 5.0, 0.005),
        ("specific_humidity", "kg kg**-1", 0.005, 0.005), ("specific_humidity", "1", 0.005, 0.005),
        ("total_precipitation_24hr", "mm", 12.0, 0.012), ("total_precipitation", "kg m**-2", 12.0, 0.012),
        ("snow_depth", "m of water equivalent", 0.5, 0.5), ("u_component_of_wind", "knots", 100.0, 51.4444),
        ("u_component_of_wind", "km/h", 36.0, 10.0), ("u_component_of_wind", "m s**-1", 3.0, 3.0),
        ("relative_humidity", "1", 0.5, 50.0), ("total_cloud_cover", "%", 50.0, 0.5), ("total_cloud_cover", "(0 - 1)", 0.5, 0.5),
        ("total_column_water_vapour", "mm", 20.0, 20.0), ("surface_solar_radiation_downwards", "J m**-2", 9.0, 9.0),
        ("total_precipitation_rate", "mm h-1", 3.6, 0.001),
    ],
)  # fmt: skip
def test_units_are_converted_to_those_of_the_table(name: str, units: str, value: float, expected: float) -> None:
    variable = lookup(name)
    assert variable is not None
    result = to_canonical_units(xr.DataArray([value, np.nan], attrs={"units": units}), variable)
    assert result.dtype == np.float32
    assert result.attrs["units"] == variable.units
    assert result.values[0] == pytest.approx(expected, rel=1e-6)
    assert np.isnan(result.values[1])


@pytest.mark.parametrize(
    ("name", "units", "message"),
    [
        ("surface_solar_radiation_downwards", "W m-2", "accumulation time"),
        ("total_precipitation", "kg m-2 s-1", "accumulation time"),
        ("2m_temperature", "m s-1", "cannot be converted"),
        ("vertical_velocity", "m s-1", "cannot be converted"),
        ("2m_temperature", "furlong", "not known"),
    ],
)
def test_units_without_a_conversion_are_refused(name: str, units: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        conversion(units, VARIABLES[name])


def test_missing_units_are_refused() -> None:
    with pytest.raises(InputError, match="no units"):
        to_canonical_units(xr.DataArray([1.0]), VARIABLES["2m_temperature"])


@given(
    st.sampled_from(
        [
            ("2m_temperature", "degC"),
            ("geopotential", "gpm"),
            ("mean_sea_level_pressure", "hPa"),
            ("specific_humidity", "g/kg"),
        ]
    ),
    st.floats(-1e4, 1e4),
)
def test_a_conversion_and_its_inverse_give_the_value_back(pair: tuple[str, str], value: float) -> None:
    name, units = pair
    factor, offset = conversion(units, VARIABLES[name])
    assert (factor * value + offset - offset) / factor == pytest.approx(value, rel=1e-9, abs=1e-9)


@given(st.permutations(["kg", "m-1", "s-2"]))
def test_the_order_of_factors_in_a_unit_does_not_matter(parts: list[str]) -> None:
    assert parse_unit(" ".join(parts)) == parse_unit("Pa")
