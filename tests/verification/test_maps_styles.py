"""Levels are round and rain has its own; colours stay apart in colour-blind eyes; headings and units are a forecaster's."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib import colormaps

from data_pipeline.variables import VARIABLES
from verification.headings import dated, lead_text, place, utc
from verification.shadings import EFI, PROBABILITY, Shading, field_shading, line_levels, spread_shading
from verification.styles import readable_event, readable_units, style_of
from verification.track_maps import LEADS

# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB
BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
SHADINGS = sorted({variable.style.cmap for variable in VARIABLES.values()} | {"YlOrRd", "PuOr_r", PROBABILITY.colours, LEADS})


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of linear RGB."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = np.clip(rgb, 0, 1) @ to_xyz.T / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def closest(name: str, kind: str) -> float:
    """The least colour difference between two of seven steps of a colour map that are not neighbours."""
    shown = colormaps[name](np.linspace(0.05, 0.95, 7))[:, :3]
    linear = np.where(shown <= 0.04045, shown / 12.92, ((shown + 0.055) / 1.055) ** 2.4)
    colours = lab(np.clip(linear @ np.array(BLIND[kind]).T, 0, 1))
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    return float(min(apart[i, j] for i in range(7) for j in range(i + 2, 7)))


@pytest.mark.parametrize("kind", BLIND)
@pytest.mark.parametrize("name", SHADINGS)
def test_colours_stay_apart_in_colour_blind_eyes(name: str, kind: str) -> None:
    assert closest(name, kind) > 11  # 2.3 is a just noticeable difference


def test_the_measure_of_colours_knows_a_bad_one() -> None:
    assert min(closest("RdYlGn", kind) for kind in BLIND) < 11


@pytest.mark.parametrize(
    ("label", "low", "high", "step"),
    [("2m_temperature", -48, 36, 5), ("geopotential_500", 496, 605, 6), ("mean_sea_level_pressure", 985, 1048, 4),
     ("mean_sea_level_pressure", 1002, 1030, 2), ("10m_wind_speed", 0, 21, 2)],
)  # fmt: skip
def test_levels_are_the_steps_that_forecasters_draw(label: str, low: float, high: float, step: float) -> None:
    levels = field_shading(style_of(label), [np.linspace(low, high, 500)]).levels
    np.testing.assert_allclose(np.diff(levels), step)
    assert all(level % step == 0 for level in levels)
    assert levels[0] <= low + step
    assert levels[-1] >= high - step


def test_ends_of_the_colour_bar_are_open_only_where_values_lie_beyond() -> None:
    style, ramp = style_of("2m_temperature"), np.linspace(0.0, 20.0, 1001)
    assert field_shading(style, [ramp]).extend == "neither"
    assert field_shading(style, [np.append(ramp, 60.0)]).extend == "max"
    assert field_shading(style, [np.append(ramp, [-60.0, 60.0])]).extend == "both"


def test_rain_has_uneven_levels_and_dry_places_are_white() -> None:
    shading = field_shading(style_of("total_precipitation_24hr"), [np.array([0.0, 3.0, 18.0])])
    assert shading.levels == (0.1, 0.5, 1, 2, 5, 10, 20)
    assert shading.colour_map(shading.norm([0.05]))[0, :3].tolist() == [1, 1, 1]
    assert shading.colour_map(shading.norm([0.3]))[0, :3].max() < 1
    dry = field_shading(style_of("total_precipitation_24hr"), [np.zeros(9)])
    assert dry.levels == (0.1, 0.5, 1, 2, 5, 10)


def test_winds_are_centred_on_zero() -> None:
    levels = np.array(field_shading(style_of("u_component_of_wind_850"), [np.linspace(-8, 22, 99)]).levels)
    np.testing.assert_allclose(levels, -levels[::-1])


def test_spread_begins_at_zero_and_nothing_but_missing_values_has_levels_too() -> None:
    assert spread_shading(style_of("2m_temperature"), [np.array([0.4, 3.1])]).levels[0] == 0
    assert len(field_shading(style_of("2m_temperature"), [np.full(4, np.nan)]).levels) > 2


def test_line_levels_are_few_and_inside_the_field() -> None:
    levels = line_levels(style_of("geopotential_500"), [np.linspace(500, 600, 99)], 3)
    assert 2 <= len(levels) <= 4
    assert min(levels) > 500
    assert max(levels) < 600


def test_the_index_is_white_where_there_is_nothing_to_say() -> None:
    middle, low, high = EFI.colour_map(EFI.norm([0.0, -0.95, 0.95]))[:, :3]
    assert middle.min() > 0.9
    assert np.abs(low - high).max() > 0.3
    certain, unlikely = PROBABILITY.colour_map(PROBABILITY.norm([0.99, 0.01]))[:, :3]
    assert unlikely.tolist() == [1, 1, 1]
    assert certain.max() < 0.5


def test_a_shading_of_ones_own_is_taken_as_it_is() -> None:
    shading = Shading((0.0, 1.0, 10.0), "magma", "mine")
    assert shading.colour_map(shading.norm([5.0])).tolist() == colormaps["magma"](shading.norm([5.0])).tolist()


def test_display_units_and_labels_are_a_forecasters() -> None:
    assert style_of("geopotential_500").label == "z500"
    assert style_of("geopotential_500").heading == "Geopotential at 500 hPa (dam)"
    assert style_of("land_sea_mask").heading == "Land-sea mask"
    assert style_of("2m_temperature").units == "°C"
    assert style_of("2m_temperature").difference_units == "K"
    assert style_of("total_precipitation_12hr").label == "tp 12 h"
    assert style_of("my_index", "m2 s-2") == type(style_of("my_index"))("my index", "my index", "m² s⁻²")
    assert readable_units("1e-5 s-1") == "10⁻⁵ s⁻¹"
    assert readable_event("max(2m_temperature, 72h) > 35 degC") == "max(2 m temperature, 72h) > 35 °C"
    assert readable_event("geopotential_500 < 5400 gpm") == "Geopotential at 500 hPa < 5400 gpm"


def test_stamps_leads_and_places_are_written_for_people() -> None:
    assert utc(np.datetime64("2007-01-16T06:30")) == "2007-01-16 06:30 UTC"
    assert [lead_text(np.timedelta64(hours, "h")) for hours in (12, 24, 36, 120)] == ["12 h", "1 d", "36 h", "5 d"]
    assert place(-33.92, 341.6) == "33.92°S 18.4°W"
    assert place(0.0, 180.0) == "0° 180°"


def test_a_heading_says_what_the_coordinates_tell() -> None:
    import xarray as xr

    field = xr.DataArray(0.0, attrs={"model": "crps"})
    assert dated(field) == "crps"
    assert dated(field.assign_coords(time=np.datetime64("2007-01-16", "ns"))) == "crps 2007-01-16 00 UTC"
    assert dated(xr.DataArray(0.0, {"prediction_timedelta": np.timedelta64(36, "h").astype("timedelta64[ns]")})) == "+ 36 h"
