"""One table of variables: canonical (WeatherBench 2) name, ERA5 units, names in archives, physical range, transform, plot style.

Names: GRIB shortName and paramId (ecCodes 2.50), NetCDF names of the Climate Data Store, CF standard names, NCEP names and those
of earth2studio. Conversions of units are in `data_pipeline.units`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Transform = Literal["identity", "log"]


@dataclass(frozen=True)
class Style:
    """How maps and curves show a variable: `shown = canonical * factor + offset`, in `units`.

    levels: of contours, in `units`, for what is far from evenly spread (below the first: nothing); without them, steps: round
    numbers times powers of ten that contours may be apart.
    """

    cmap: str = "viridis"
    symmetric: bool = False
    units: str | None = None
    factor: float = 1.0
    offset: float = 0.0
    levels: tuple[float, ...] = ()
    steps: tuple[float, ...] = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Variable:
    """What plumecast knows about a variable.

    units: those of ERA5. aliases: names in files. param_ids: GRIB. height: metres above ground where a CF name alone does not
    tell. on_levels: lives on pressure levels. static: no time. accumulated: over the step that ends at the stamp, so that the
    canonical name may carry its hours (`total_precipitation_12hr`); window: what it is of that time. masked: may be missing,
    always at the same points. valid_range: what an analysis on Earth can hold, generously. transform: hint for training; "log" is
    log(1 + x / 1 mm).
    """

    name: str
    units: str
    long_name: str
    short: str
    aliases: tuple[str, ...] = ()
    standard_name: str | None = None
    non_negative: bool = False
    param_ids: tuple[int, ...] = ()
    valid_range: tuple[float, float] = (float("-inf"), float("inf"))
    on_levels: bool = False
    static: bool = False
    accumulated: bool = False
    window: Literal["sum", "maximum", "minimum"] = "sum"
    masked: bool = False
    height: float | None = None
    transform: Transform = "identity"
    style: Style = field(default_factory=Style)


_CELSIUS = Style("RdYlBu_r", units="degC", offset=-273.15)
_WIND = Style("PuOr_r", symmetric=True)
_SPEED = Style("YlGnBu")
_PRESSURE = Style("BrBG_r", units="hPa", factor=0.01, steps=(1, 2, 4, 5, 10))
_AMOUNTS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)
_RAIN = Style("YlGnBu", units="mm", factor=1000.0, levels=_AMOUNTS)
_WATER = Style("YlGnBu")
_FLUX = Style("magma", units="MJ m-2", factor=1e-6)
_DECAMETRES = Style("viridis", units="dam", factor=1 / 98.0665, steps=(1, 2, 4, 6, 8, 10))

_TABLE = (
    # on pressure levels
    Variable(
        "geopotential", "m2 s-2", "Geopotential", "z", ("z", "gh", "HGT", "geopotential_height"), "geopotential",
        param_ids=(129, 156), valid_range=(-1.5e4, 5.5e5), on_levels=True, style=_DECAMETRES,
    ),
    Variable(
        "temperature", "K", "Temperature", "t", ("t", "ta", "TMP"), "air_temperature",
        param_ids=(130,), valid_range=(150, 340), on_levels=True, style=_CELSIUS,
    ),
    Variable(
        "u_component_of_wind", "m s-1", "Eastward wind", "u", ("u", "ua", "UGRD"), "eastward_wind",
        param_ids=(131,), valid_range=(-200, 200), on_levels=True, style=_WIND,
    ),
    Variable(
        "v_component_of_wind", "m s-1", "Northward wind", "v", ("v", "va", "VGRD"), "northward_wind",
        param_ids=(132,), valid_range=(-200, 200), on_levels=True, style=_WIND,
    ),
    Variable(
        "wind_speed", "m s-1", "Wind speed", "ws", ("ws",), "wind_speed",
        non_negative=True, param_ids=(10,), valid_range=(0, 250), on_levels=True, style=_SPEED,
    ),
    Variable(
        "vertical_velocity", "Pa s-1", "Vertical velocity", "w", ("w", "wap", "VVEL"), "lagrangian_tendency_of_air_pressure",
        param_ids=(135,), valid_range=(-50, 50), on_levels=True, style=_WIND,
    ),
    Variable(
        "specific_humidity", "kg kg-1", "Specific humidity", "q", ("q", "hus", "SPFH"), "specific_humidity",
        non_negative=True, param_ids=(133,), valid_range=(-1e-3, 0.05), on_levels=True,
        style=Style("YlGnBu", units="g kg-1", factor=1e3),
    ),
    Variable(
        "relative_humidity", "%", "Relative humidity", "r", ("r", "hur", "RH"), "relative_humidity",
        non_negative=True, param_ids=(157,), valid_range=(-20, 200), on_levels=True, style=_WATER,
    ),
    Variable(
        "vorticity", "s-1", "Relative vorticity", "vo", ("vo", "relative_vorticity"), "atmosphere_relative_vorticity",
        param_ids=(138,), valid_range=(-0.01, 0.01), on_levels=True, style=Style("RdBu_r", True, "1e-5 s-1", 1e5),
    ),
    Variable(
        "divergence", "s-1", "Divergence", "d", ("d",), "divergence_of_wind",
        param_ids=(155,), valid_range=(-0.01, 0.01), on_levels=True, style=Style("RdBu_r", True, "1e-5 s-1", 1e5),
    ),
    Variable(
        "fraction_of_cloud_cover", "1", "Cloud cover", "cc", ("cc",), "cloud_area_fraction_in_atmosphere_layer",
        non_negative=True, param_ids=(248,), valid_range=(-0.01, 1.01), on_levels=True, style=Style("Blues_r"),
    ),
    # near the surface
    Variable(
        "2m_temperature", "K", "2 m temperature", "t2m", ("t2m", "2t", "tas", "TMP"), "air_temperature",
        param_ids=(167,), valid_range=(170, 345), height=2, style=_CELSIUS,
    ),
    Variable(
        "2m_dewpoint_temperature", "K", "2 m dew point", "d2m", ("d2m", "2d", "DPT"), "dew_point_temperature",
        param_ids=(168,), valid_range=(150, 320), height=2, style=_CELSIUS,
    ),
    Variable(
        "maximum_2m_temperature", "K", "Maximum 2 m temperature", "mx2t", ("mx2t", "mx2t3", "mx2t6", "tasmax", "TMAX"),
        param_ids=(201, 228026, 121, 3015, 237167), valid_range=(170, 345), accumulated=True, window="maximum", height=2,
        style=_CELSIUS,
    ),
    Variable(
        "minimum_2m_temperature", "K", "Minimum 2 m temperature", "mn2t", ("mn2t", "mn2t3", "mn2t6", "tasmin", "TMIN"),
        param_ids=(202, 228027, 122, 3016, 238167), valid_range=(170, 345), accumulated=True, window="minimum", height=2,
        style=_CELSIUS,
    ),
    Variable(
        "10m_u_component_of_wind", "m s-1", "10 m eastward wind", "u10", ("u10", "10u", "u10m", "uas", "UGRD"), "eastward_wind",
        param_ids=(165,), valid_range=(-110, 110), height=10, style=_WIND,
    ),
    Variable(
        "10m_v_component_of_wind", "m s-1", "10 m northward wind", "v10", ("v10", "10v", "v10m", "vas", "VGRD"), "northward_wind",
        param_ids=(166,), valid_range=(-110, 110), height=10, style=_WIND,
    ),
    Variable(
        "10m_wind_speed", "m s-1", "10 m wind speed", "si10", ("si10", "10si", "sfcWind"), "wind_speed",
        non_negative=True, param_ids=(207,), valid_range=(0, 120), height=10, style=_SPEED,
    ),
    Variable(
        "100m_u_component_of_wind", "m s-1", "100 m eastward wind", "u100", ("u100", "100u", "u100m"), "eastward_wind",
        param_ids=(228246,), valid_range=(-130, 130), height=100, style=_WIND,
    ),
    Variable(
        "100m_v_component_of_wind", "m s-1", "100 m northward wind", "v100", ("v100", "100v", "v100m"), "northward_wind",
        param_ids=(228247,), valid_range=(-130, 130), height=100, style=_WIND,
    ),
    Variable(
        "10m_wind_gust_since_previous_post_processing", "m s-1", "10 m wind gust", "fg10",
        ("fg10", "10fg", "fg10_3", "10fg3", "fg10_6", "10fg6"), "wind_speed_of_gust",
        non_negative=True, param_ids=(49, 228028, 123, 237318), valid_range=(0, 150), accumulated=True, window="maximum",
        height=10, style=_SPEED,
    ),
    Variable(
        "mean_sea_level_pressure", "Pa", "Mean sea level pressure", "msl", ("msl", "prmsl", "psl", "PRMSL", "MSLET"),
        "air_pressure_at_mean_sea_level", param_ids=(151, 260074), valid_range=(85000, 110000), style=_PRESSURE,
    ),
    Variable(
        "surface_pressure", "Pa", "Surface pressure", "sp", ("sp", "ps", "PRES"), "surface_air_pressure",
        param_ids=(134,), valid_range=(40000, 110000), style=_PRESSURE,
    ),
    # water
    Variable(
        "total_precipitation", "m", "Total precipitation", "tp", ("tp", "tp06", "APCP"), "lwe_thickness_of_precipitation_amount",
        non_negative=True, param_ids=(228, 228228), valid_range=(-1e-4, 2), accumulated=True, transform="log", style=_RAIN,
    ),
    Variable(
        "total_precipitation_rate", "kg m-2 s-1", "Precipitation rate", "tprate", ("tprate", "pr", "prate", "PRATE"),
        "precipitation_flux",
        non_negative=True, param_ids=(260048, 3059), valid_range=(-1e-6, 0.2),
        style=Style("YlGnBu", units="mm h-1", factor=3600.0, levels=_AMOUNTS),
    ),
    Variable(
        "convective_precipitation", "m", "Convective precipitation", "cp", ("cp", "acpcp", "ACPCP"),
        "lwe_thickness_of_convective_precipitation_amount",
        non_negative=True, param_ids=(143, 228143, 3063), valid_range=(-1e-4, 2), accumulated=True, transform="log", style=_RAIN,
    ),
    Variable(
        "snowfall", "m", "Snowfall (water equivalent)", "sf", ("sf",), "lwe_thickness_of_snowfall_amount",
        non_negative=True, param_ids=(144, 228144), valid_range=(-1e-4, 2), accumulated=True, transform="log", style=_RAIN,
    ),
    Variable(
        "snow_depth", "m", "Snow depth (water equivalent)", "sd", ("sd", "sdwe", "WEASD"), "lwe_thickness_of_surface_snow_amount",
        non_negative=True, param_ids=(141, 228141, 260056), valid_range=(-1e-4, 20), style=_RAIN,
    ),
    Variable(
        "total_column_water_vapour", "kg m-2", "Total column water vapour", "tcwv", ("tcwv",),
        "atmosphere_mass_content_of_water_vapor", non_negative=True, param_ids=(137,), valid_range=(-0.5, 120), style=_WATER,
    ),
    Variable(
        "total_column_water", "kg m-2", "Total column water", "tcw", ("tcw", "pwat", "PWAT"),
        non_negative=True, param_ids=(136, 3054), valid_range=(-0.5, 150), style=_WATER,
    ),
    Variable(
        "total_cloud_cover", "1", "Total cloud cover", "tcc", ("tcc", "TCDC"), "cloud_area_fraction",
        non_negative=True, param_ids=(164, 228164), valid_range=(-0.01, 1.01), style=Style("Blues_r"),
    ),
    Variable(
        "integrated_vapor_transport", "kg m-1 s-1", "Integrated vapour transport", "ivt", ("ivt",),
        non_negative=True, valid_range=(0, 4000), style=_WATER,
    ),
    Variable(
        "vertical_integral_of_eastward_water_vapour_flux", "kg m-1 s-1", "Eastward vapour transport", "viwve", ("viwve",),
        "eastward_atmosphere_water_transport_across_unit_distance", param_ids=(162071,), valid_range=(-4000, 4000), style=_WIND,
    ),
    Variable(
        "vertical_integral_of_northward_water_vapour_flux", "kg m-1 s-1", "Northward vapour transport", "viwvn", ("viwvn",),
        "northward_atmosphere_water_transport_across_unit_distance", param_ids=(162072,), valid_range=(-4000, 4000), style=_WIND,
    ),
    # surface and soil
    Variable(
        "sea_surface_temperature", "K", "Sea surface temperature", "sst", ("sst", "tos"), "sea_surface_temperature",
        param_ids=(34, 151159), valid_range=(265, 315), masked=True, style=_CELSIUS,
    ),
    Variable(
        "sea_ice_cover", "1", "Sea ice cover", "siconc", ("siconc", "ci", "ICEC"), "sea_ice_area_fraction",
        non_negative=True, param_ids=(31,), masked=True, valid_range=(-0.01, 1.01), style=Style("Blues_r"),
    ),
    Variable(
        "skin_temperature", "K", "Skin temperature", "skt", ("skt", "ts", "TMP"), "surface_temperature",
        param_ids=(235, 130), valid_range=(150, 370), height=0, style=_CELSIUS,
    ),
    Variable(
        "soil_temperature_level_1", "K", "Soil temperature, level 1", "stl1", ("stl1",), "soil_temperature",
        param_ids=(139,), masked=True, valid_range=(180, 350), style=_CELSIUS,
    ),
    *(
        Variable(
            f"volumetric_soil_water_layer_{layer}", "m3 m-3", f"Volumetric soil water, layer {layer}", f"swvl{layer}",
            (f"swvl{layer}",), non_negative=True, param_ids=(38 + layer,), masked=True, valid_range=(-0.01, 1.01), style=_WATER,
        )
        for layer in (1, 2, 3, 4)
    ),
    Variable(
        "boundary_layer_height", "m", "Boundary layer height", "blh", ("blh", "HPBL"), "atmosphere_boundary_layer_thickness",
        non_negative=True, param_ids=(159,), valid_range=(0, 1e4),
    ),
    Variable(
        "convective_available_potential_energy", "J kg-1", "CAPE", "cape", ("cape", "CAPE"),
        "atmosphere_convective_available_potential_energy", non_negative=True, param_ids=(59,), valid_range=(-1, 2e4),
    ),
    # radiation, accumulated over the step
    Variable(
        "toa_incident_solar_radiation", "J m-2", "Incident solar radiation", "tisr", ("tisr",), "toa_incoming_shortwave_flux",
        non_negative=True, param_ids=(212,), valid_range=(-1, 2e8), accumulated=True, style=_FLUX,
    ),
    Variable(
        "surface_solar_radiation_downwards", "J m-2", "Surface solar radiation downwards", "ssrd", ("ssrd", "DSWRF"),
        "surface_downwelling_shortwave_flux_in_air", param_ids=(169,), valid_range=(-1e4, 2e8), accumulated=True, style=_FLUX,
    ),
    Variable(
        "surface_thermal_radiation_downwards", "J m-2", "Surface thermal radiation downwards", "strd", ("strd", "DLWRF"),
        "surface_downwelling_longwave_flux_in_air", param_ids=(175,), valid_range=(-1e4, 2e8), accumulated=True, style=_FLUX,
    ),
    Variable(
        "surface_net_solar_radiation", "J m-2", "Surface net solar radiation", "ssr", ("ssr",),
        "surface_net_downward_shortwave_flux", param_ids=(176, 180176), valid_range=(-1e4, 2e8), accumulated=True, style=_FLUX,
    ),
    Variable(
        "surface_net_thermal_radiation", "J m-2", "Surface net thermal radiation", "str", ("str",),
        "surface_net_upward_longwave_flux", param_ids=(177, 180177), valid_range=(-1e8, 1e8), accumulated=True, style=_FLUX,
    ),
    Variable(
        "top_net_solar_radiation", "J m-2", "Top net solar radiation", "tsr", ("tsr",), "toa_net_upward_shortwave_flux",
        param_ids=(178, 180178), valid_range=(-1e4, 2e8), accumulated=True, style=_FLUX,
    ),
    Variable(
        "top_net_thermal_radiation", "J m-2", "Top net thermal radiation", "ttr", ("ttr",), "toa_outgoing_longwave_flux",
        param_ids=(179, 170179), valid_range=(-1e8, 1e4), accumulated=True, style=_FLUX,
    ),
    # static
    Variable(
        "geopotential_at_surface", "m2 s-2", "Surface geopotential", "z_sfc", ("z", "zsfc", "orog", "HGT"),
        "surface_geopotential", param_ids=(129, 228002), valid_range=(-1e4, 9e4), static=True, height=0,
        style=Style("YlOrBr", units="m", factor=1 / 9.80665),
    ),
    Variable(
        "land_sea_mask", "1", "Land-sea mask", "lsm", ("lsm", "LAND", "sftlf"), "land_binary_mask",
        non_negative=True, param_ids=(172,), valid_range=(-0.01, 1.01), static=True, style=Style("Greys"),
    ),
)  # fmt: skip

VARIABLES: dict[str, Variable] = {variable.name: variable for variable in _TABLE}

# Source names that tell the hours they accumulate over; the canonical name carries them.
_HOURS: dict[str | int, int] = {
    "mx2t3": 3, "mn2t3": 3, "fg10_3": 3, "10fg3": 3, 228026: 3, 228027: 3, 228028: 3,
    "mx2t6": 6, "mn2t6": 6, "fg10_6": 6, "10fg6": 6, 121: 6, 122: 6, 123: 6, "tp06": 6,
}  # fmt: skip
# Other CF names of the same quantity (units tell the form).
_STANDARD_NAMES = {
    "geopotential_height": "geopotential", "precipitation_amount": "lwe_thickness_of_precipitation_amount",
    "surface_altitude": "surface_geopotential", "land_area_fraction": "land_binary_mask",
    "sea_surface_skin_temperature": "sea_surface_temperature", "omega": "lagrangian_tendency_of_air_pressure",
}  # fmt: skip


class UnknownVariableError(ValueError):
    """A source variable that is not in the table, or that its name and attributes do not settle; the message says which."""


def lookup(name: str) -> Variable | None:
    """The entry of a canonical name, or None. Accumulated ones share an entry: `total_precipitation_12hr`, `_6hr`, `_24hr`."""
    if name in VARIABLES:
        return VARIABLES[name]
    match = re.fullmatch(r"(.+)_(\d+)hr", name)
    base = VARIABLES.get(match[1]) if match else None
    return base if base is not None and base.accumulated else None


def identify(name: str, attrs: Mapping[str, Any], *, on_levels: bool, static: bool = False, height: float | None = None) -> str:
    """The canonical name of a source variable, from its name, GRIB paramId, CF standard_name and vertical place.

    on_levels: it has a pressure level. static: it has no time. height: metres above ground where the source says so, 0 for the
    surface. Raises UnknownVariableError if nothing fits, or if several entries do.
    """
    if lookup(name) is not None:
        return name
    param_id = attrs.get("GRIB_paramId")
    candidates, named = _candidates(name, attrs)
    if not named:
        raise UnknownVariableError("not in the table of variables")
    if not candidates:
        raise UnknownVariableError(f"its name and standard_name {attrs['standard_name']!r} contradict each other")
    if len(candidates) > 1:
        candidates = _by_place(candidates, on_levels, static, height)
    if len(candidates) != 1:
        choices = ", ".join(sorted(variable.name for variable in named))
        raise UnknownVariableError(f"may be any of {choices}; say which by the source option names, or give its level")
    hours = _HOURS.get(name) or _HOURS.get(int(param_id) if param_id is not None else -1)
    return candidates[0].name + (f"_{hours}hr" if hours else "")


def _candidates(name: str, attrs: Mapping[str, Any]) -> tuple[list[Variable], list[Variable]]:
    """Entries that agree with every piece of evidence, and those that agree with any."""
    param_id, standard_name = attrs.get("GRIB_paramId"), str(attrs.get("standard_name", "unknown"))
    if param_id is not None:  # decides alone: the GRIB names of other parameters may be the same
        by_param = [v for v in _TABLE if int(param_id) in v.param_ids]
        return by_param, by_param
    standard_name = _STANDARD_NAMES.get(standard_name, standard_name)
    by_alias = [v for v in _TABLE if name in v.aliases] or [v for v in _TABLE if name.lower() in v.aliases]
    by_standard = [v for v in _TABLE if v.standard_name == standard_name]
    if len(by_alias) == 1 and len(name) >= 3:  # specific, and the CF names of old converters are not reliable (stl1, sst)
        return by_alias, by_alias
    pieces = [piece for piece in (by_alias, by_standard) if piece]
    named = [v for v in _TABLE if any(v in piece for piece in pieces)]
    return [v for v in named if all(v in piece for piece in pieces)], named


def _by_place(candidates: list[Variable], on_levels: bool, static: bool, height: float | None) -> list[Variable]:
    if on_levels:
        return [v for v in candidates if v.on_levels]
    if height is not None:
        return [v for v in candidates if v.height == height and not v.on_levels]
    if static:
        return [v for v in candidates if v.static]
    return candidates
