"""Levels and colours of maps: round numbers over what fields hold, in display units; colours that colour-blind eyes can tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap
from matplotlib.ticker import MaxNLocator

from verification.styles import Style

Field = xr.DataArray | np.ndarray


@dataclass(frozen=True)
class Shading:
    """How a field is coloured: contour levels, colour map name, label of the colour bar, ends that are open.

    blank: what lies below the first level stays white. percent: levels are shares, which the colour bar shows in per cent.
    """

    levels: tuple[float, ...]
    colours: str
    label: str
    extend: Literal["neither", "both", "min", "max"] = "both"
    blank: bool = False
    percent: bool = False

    @property
    def colour_map(self) -> Colormap:
        """The colours; with `blank` the first one is white."""
        if not self.blank:
            return colormaps[self.colours]
        table = colormaps[self.colours](np.linspace(0.08, 1, 256))
        table[0] = 1.0
        return ListedColormap(table, self.colours)

    @property
    def norm(self) -> BoundaryNorm:
        """Equal steps of colour for unequal levels too."""
        return BoundaryNorm(list(self.levels), self.colour_map.N, extend=self.extend)


# 0 has no colour: below five per cent the sheet stays white
PROBABILITY = Shading(
    (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95), "YlGnBu", "probability (%)", "both", blank=True, percent=True
)
# the steps at which forecasters read the index; within 0.5 of the climate there is nothing to say
EFI = Shading((-1.0, -0.9, -0.8, -0.7, -0.6, -0.5, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0), "PuOr_r", "extreme forecast index", "neither")
SOT_LEVELS = (0.0, 1.0, 2.0, 5.0, 10.0)


def field_shading(style: Style, fields: Sequence[Field]) -> Shading:
    """Shared levels for fields in display units: those of the variable, else round numbers over the middle 99 % of the values."""
    low, high = _range(fields, 0.5, 99.5)
    if style.levels:
        first, last = np.searchsorted(style.levels, [1.0, high])  # dry maps of one variable still look alike
        return Shading(style.levels[: max(int(last) + 1, int(first) + 4)], style.colours, style.heading, "both", blank=True)
    if style.symmetric:
        high = max(abs(low), abs(high))
        low = -high
    levels = _levels(low, high, 18, style.steps)
    return Shading(levels, style.colours, style.heading, _open_ends(levels, *_range(fields, 0, 100)))


def spread_shading(style: Style, fields: Sequence[Field], label: str = "spread") -> Shading:
    """Levels from zero for spreads, errors and CRPS in display units."""
    _, high = _range(fields, 0, 99.5)
    return Shading(_levels(0.0, high, 8), "YlOrRd", f"{style.label} {label} ({style.difference_units})", "max")


def difference_shading(style: Style, fields: Sequence[Field], label: str = "difference") -> Shading:
    """Levels around zero for biases and differences in display units."""
    low, high = _range(fields, 1, 99)
    size = max(abs(low), abs(high))
    return Shading(_levels(-size, size, 9), "PuOr_r", f"{style.label} {label} ({style.difference_units})")


def line_levels(style: Style, fields: Sequence[Field], count: int) -> tuple[float, ...]:
    """Few levels of contour lines in display units, inside what the fields hold."""
    low, high = _range(fields, 2, 98)
    if style.levels:
        inside = [level for level in style.levels if low < level < high]
        return tuple(inside[:: max(len(inside) // count, 1)])
    return tuple(level for level in _levels(low, high, count + 1, style.steps) if low < level < high)


def _open_ends(levels: Sequence[float], low: float, high: float) -> Literal["neither", "both", "min", "max"]:
    below, above = low < levels[0], high > levels[-1]
    return "both" if below and above else "min" if below else "max" if above else "neither"


def _range(fields: Sequence[Field], low: float, high: float) -> tuple[float, float]:
    values = np.concatenate([np.ravel(np.asarray(field)) for field in fields])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    first, last = np.percentile(values, [low, high])
    return float(first), float(last)


def _levels(low: float, high: float, count: int, steps: Sequence[float] = (1, 2, 2.5, 5, 10)) -> tuple[float, ...]:
    if high - low < 1e-6 * max(abs(low), abs(high)) or high == low:  # a constant, but for rounding
        high = low + (abs(low) or 1.0) * 1e-3
    return tuple(np.round(MaxNLocator(count, steps=list(steps)).tick_values(low, high), 10).tolist())
