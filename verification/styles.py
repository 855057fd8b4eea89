"""How a channel is shown to people: short label, display units, colours, and the event that its probability maps ask for."""

from __future__ import annotations

import re
from dataclasses import dataclass

import xarray as xr

from data_pipeline.schema import Channel
from data_pipeline.variables import lookup

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

# events that forecasters ask for, in SI units: (threshold, side); level variables by channel label
EVENTS: dict[str, tuple[float, str]] = {
    "geopotential_500": (5400 * 9.80665, "below"),
    "temperature_850": (273.15, "below"),
    "2m_temperature": (273.15, "below"),
    "mean_sea_level_pressure": (100000.0, "below"),
    "u_component_of_wind_850": (15.0, "above"),
    "v_component_of_wind_850": (10.0, "above"),
    "specific_humidity_850": (0.010, "above"),
    "specific_humidity_700": (0.005, "above"),
    "10m_wind_speed": (13.9, "above"),
    "10m_u_component_of_wind": (10.0, "above"),
    "10m_v_component_of_wind": (10.0, "above"),
    "vorticity_850": (5e-5, "above"),
    "total_precipitation_6hr": (0.001, "above"),
    "total_precipitation_12hr": (0.001, "above"),
    "total_precipitation_24hr": (0.005, "above"),
}


@dataclass(frozen=True)
class Style:
    """A channel's face: display = SI * factor + offset; differences, spreads and CRPS take the factor only."""

    label: str
    long_name: str
    units: str
    factor: float = 1.0
    offset: float = 0.0
    colours: str = "viridis"
    symmetric: bool = False
    levels: tuple[float, ...] = ()
    steps: tuple[float, ...] = (1, 2, 2.5, 5, 10)

    @property
    def heading(self) -> str:
        """`2 m temperature (°C)`; without units that are none."""
        return self.long_name if self.units in ("", "1") else f"{self.long_name} ({self.units})"

    @property
    def difference_units(self) -> str:
        """Units of errors, spreads and CRPS."""
        return "K" if self.units == "°C" else self.units

    def display(self, values: xr.DataArray) -> xr.DataArray:
        """Values in display units."""
        return values * self.factor + self.offset

    def display_difference(self, values: xr.DataArray) -> xr.DataArray:
        """Differences of values (errors, spreads, CRPS) in display units: no offset."""
        return values * self.factor


def style_of(label: str, units: str | None = None) -> Style:
    """The style of a channel label (`geopotential_500`); a name outside the table of variables keeps its name and `units`."""
    channel = Channel.parse(label)
    known = lookup(channel.name)
    name = channel.name.replace("_", " ")
    short, long_name = (known.short, known.long_name) if known else (name, name)
    hours = re.search(r"_(\d+)hr$", channel.name)
    if known and hours and not known.name.endswith("hr"):
        short, long_name = f"{short} {hours[1]} h", f"{long_name} in {hours[1]} h"
    if channel.level is not None:
        short, long_name = f"{short}{channel.level}", f"{long_name} at {channel.level} hPa"
    if known is None:
        return Style(short, long_name, readable_units(units or ""))
    style = known.style
    shown = readable_units(style.units or known.units)
    return Style(short, long_name, shown, style.factor, style.offset, style.cmap, style.symmetric, style.levels, style.steps)


def in_sentence(text: str) -> str:
    """A name within a sentence: `2 m temperature`, `rain`, but `CAPE` as it is."""
    return text if text.isupper() else text[:1].lower() + text[1:]


def readable_event(text: str) -> str:
    """`probability of 2m_temperature > 30 degC` with the names of variables, and units, that people use."""
    return re.sub(r"\w+", lambda match: _word(match[0]), readable_units(text))


def _word(text: str) -> str:
    return style_of(text).long_name if lookup(text) or lookup(Channel.parse(text).name) else text


def readable_units(units: str) -> str:
    """`m2 s-2` as `m² s⁻²`, `degC` as `°C`, `1e-5 s-1` as `10⁻⁵ s⁻¹`."""
    text = units.replace("degC", "°C")
    text = re.sub(r"\b1e(-?\d+)\b", lambda match: "10" + match[1].translate(SUPERSCRIPT), text)
    return re.sub(r"(?<=[A-Za-z])(-?\d+)\b", lambda match: match[1].translate(SUPERSCRIPT), text)
