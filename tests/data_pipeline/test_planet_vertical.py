"""From sigma layers to the schema: atmospheres whose heights and pressures are known, and what lies below the ground."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from data_pipeline.errors import GateError
from data_pipeline.grid import Grid
from data_pipeline.planet import vertical
from data_pipeline.planet.model import GRAVITY, Raw
from data_pipeline.schema import Channel, stack
from tests.data_pipeline.toy_planet import GRID, SHAPE, SIGMA, surroundings

T0, LAPSE, GAS = 288.15, 0.0065, vertical.GAS


def raw_of(temperature: np.ndarray, ps: float = 1e5, phis: float = 0.0, **more: np.ndarray) -> Raw:
    """An atmosphere at rest with this temperature a layer, in hydrostatic balance where temperature is linear in ln p."""
    pressure = SIGMA * ps
    log_p = np.append(np.log(pressure), np.log(ps))
    slope = (temperature[-1] - temperature[-2]) / (np.log(pressure[-1]) - np.log(pressure[-2]))
    profile = np.append(temperature, temperature[-1] + slope * (np.log(ps) - np.log(pressure[-1])))
    thickness = GAS * 0.5 * (profile[1:] + profile[:-1]) * np.diff(log_p)
    height = phis + np.cumsum(thickness[::-1])[::-1]
    layers = {"t": temperature, "z": height, "u": np.zeros(8), "v": np.zeros(8), "q": np.zeros(8), **more}
    fields = {name: np.broadcast_to(values[:, None, None], (8, *SHAPE))[None] for name, values in layers.items()}
    flat = {"ps": np.full((1, *SHAPE), ps), "rain": np.full((1, *SHAPE), 2e-3)}
    return Raw(pd.DatetimeIndex(["2001-01-01"]), {**fields, **flat})


def field(raw: Raw, label: str, phis: float = 0.0, land: float = 0.0) -> float:
    around, channel = surroundings(phis, land), Channel.parse(label)
    data = stack(vertical.to_schema(raw, around, [channel]), [channel])
    assert np.ptp(data.values) < 1e-6 * max(abs(float(data.mean())), 1e-6)
    return float(data.mean())


@pytest.mark.parametrize("level", [250, 500, 700, 850])
def test_heights_of_an_isothermal_atmosphere_are_exact(level: int) -> None:
    raw = raw_of(np.full(8, 260.0))
    assert field(raw, f"geopotential_{level}") == pytest.approx(GAS * 260 * np.log(1000 / level), rel=1e-12)
    assert field(raw, f"temperature_{level}") == pytest.approx(260, rel=1e-12)


@pytest.mark.parametrize("level", [250, 500, 700, 850])
def test_where_temperature_is_linear_in_log_pressure_so_is_what_is_interpolated(level: int) -> None:
    """z = R integral of T d(ln p), a parabola in ln p."""
    raw = raw_of(280 + 20 * np.log(SIGMA))
    depth = np.log(1000 / level)
    assert field(raw, f"temperature_{level}") == pytest.approx(280 - 20 * depth, rel=1e-12)
    assert field(raw, f"geopotential_{level}") == pytest.approx(GAS * (280 * depth - 10 * depth**2), rel=1e-10)


def test_below_the_lowest_layer_temperature_falls_by_6_5_degrees_a_kilometre() -> None:
    """850 hPa under a surface at 700 hPa: the height of that pressure in an atmosphere of that lapse rate, wind unchanged."""
    temperature = 280 + 20 * np.log(SIGMA)
    raw = raw_of(temperature, ps=7e4, phis=3e4, u=np.linspace(40, 5, 8))
    lowest_p, lowest_t = 0.95 * 7e4, temperature[-1]
    found_t, found_z = field(raw, "temperature_850", 3e4), field(raw, "geopotential_850", 3e4)
    height = (found_z - raw.fields["z"][0, -1, 0, 0]) / GRAVITY
    assert found_t == pytest.approx(lowest_t - LAPSE * height, rel=1e-12)
    pressure = lowest_p * (1 - LAPSE * height / lowest_t) ** (GRAVITY / (GAS * LAPSE))
    assert pressure == pytest.approx(85000, rel=1e-12)
    assert field(raw, "u_component_of_wind_850", 3e4) == pytest.approx(5)


def standard_pressure(height: float) -> float:
    return 101325 * (1 - LAPSE * height / T0) ** (GRAVITY / (GAS * LAPSE))


@pytest.mark.parametrize("height", [0.0, 100.0, 500.0, 1500.0])
def test_reduced_to_sea_level_the_standard_atmosphere_has_1013_hpa(height: float) -> None:
    ps = standard_pressure(height)
    surface = T0 - LAPSE * height
    lowest = surface * SIGMA[-1] ** vertical.EXPONENT
    temperature = np.append(np.linspace(220, lowest - 5, 7), lowest)
    raw = raw_of(temperature, ps=ps, phis=GRAVITY * height)
    assert field(raw, "mean_sea_level_pressure", GRAVITY * height) == pytest.approx(101325, abs=12 * (height / 1500) + 1e-6)


def test_over_flat_sea_the_surface_pressure_is_that_at_sea_level() -> None:
    assert field(raw_of(np.full(8, 260.0), ps=98765.0), "mean_sea_level_pressure") == 98765.0


def test_two_metre_temperature_is_extrapolated_unless_the_air_is_inverted() -> None:
    mixed, inverted = np.linspace(220, 290, 8), np.append(np.linspace(220, 290, 7), 280.0)
    change = (np.log(0.99) - np.log(0.95)) / (np.log(0.95) - np.log(0.835)) * (mixed[-1] - mixed[-2])
    assert field(raw_of(mixed), "2m_temperature") == pytest.approx(290 + change, rel=1e-12)
    assert field(raw_of(inverted), "2m_temperature") == pytest.approx(280, rel=1e-12)


def test_ten_metre_wind_is_95_percent_of_the_lowest_layer_and_rain_is_never_negative() -> None:
    raw = raw_of(np.full(8, 260.0), u=np.linspace(30, 10, 8), v=np.linspace(0, -4, 8))
    assert field(raw, "10m_u_component_of_wind") == pytest.approx(9.5)
    assert field(raw, "10m_v_component_of_wind") == pytest.approx(-3.8)
    assert field(raw, "total_precipitation_6hr") == pytest.approx(2e-3)
    raw.fields["rain"] = -raw.fields["rain"]
    assert field(raw, "total_precipitation_6hr") == 0


def test_regridding_keeps_the_area_mean_and_cuts_negative_humidity() -> None:
    noise = np.random.default_rng(0).normal(size=(8, *SHAPE))[None]
    raw = raw_of(np.full(8, 260.0))
    raw.fields["q"], raw.fields["t"] = 1e-3 * noise, 260 + noise
    channels, target = [Channel("specific_humidity", 850), Channel("temperature", 500)], Grid.named("24x12")
    made = vertical.gridded(raw, surroundings(), channels, target)
    own = vertical.to_schema(raw, surroundings(), channels)
    weights = GRID.area_weights / GRID.area_weights.sum(), target.area_weights / target.area_weights.sum()
    before = (own["temperature"].sel(level=500).values[0] * weights[0]).sum()
    after = (made["temperature"].sel(level=500).values[0].astype("f8") * weights[1]).sum()
    assert after == pytest.approx(before, rel=1e-6)
    assert made["specific_humidity"].dtype == np.float32
    assert float(made["specific_humidity"].sel(level=850).min()) == 0
    assert np.isnan(made["specific_humidity"].sel(level=500)).all(), "a level that only the temperature has"


def test_a_planet_that_blew_up_is_told() -> None:
    raw = raw_of(np.full(8, 260.0))
    raw.fields["u"] = raw.fields["u"] * np.nan
    with pytest.raises(GateError, match="blew up before 2001-01-01.*u not finite"):
        vertical.gridded(raw, surroundings(), [Channel("temperature", 500)], Grid.named("24x12"))
