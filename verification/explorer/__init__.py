"""Interactive maps of an ensemble in a notebook: menus and sliders, a click for the plume of a point, a play through lead times.

    from verification import explore
    explore(forecast, truth=analysis, climatology=climatology)

Needs ipywidgets and anywidget (the extra `notebooks`); nothing else of `verification` does. A new map takes 0.2 to 0.5 s of one
core, at 5 degrees in any projection and at 1.5 degrees alike; the first index of extremes compiles for a second longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import xarray as xr

from data_pipeline.errors import InputError
from verification.explorer.view import PROJECTIONS, Material

if TYPE_CHECKING:
    from verification.explorer.panel import Explorer

__all__ = ["explore"]


def explore(
    forecast: xr.Dataset | str | Path,
    *,
    truth: xr.Dataset | str | Path | None = None,
    climatology: xr.Dataset | str | Path | None = None,
    products: xr.Dataset | str | Path | None = None,
    projections: Sequence[str] = PROJECTIONS,
    **start: object,
) -> Explorer:
    """A panel that maps an ensemble (schema "forecast") and draws its plume and meteogram where the map is clicked.

    forecast and the others: datasets, or the paths of their stores, read lazily. truth: an analysis (schema "analysis"); drawn
    beside or over the members wherever it has the valid time. climatology: with quantiles, for the extreme forecast index and
    thresholds such as q95. products: of `plumecast products`, for tracks, stored probabilities and the index. projections: as the
    option of `plumecast map` takes them, `Robinson` or `Orthographic:10,60`. start: what the controls show first, by their names,
    as variable="2m_temperature", lead="5 d", product="probability", threshold="30 degC", point="Bergen,60.39,5.32".

    The controls are attributes of the panel. What cannot be drawn is said in the panel. Raises InputError for data outside the
    schema, for a start that a control does not have, and where ipywidgets or anywidget is not installed.
    """
    try:
        from verification.explorer.panel import Explorer
    except ImportError as error:
        raise InputError(
            f"explore() needs ipywidgets and anywidget, and {error.name} is not installed; "
            "install them: pip install 'plumecast[notebooks]', then start the notebook again. "
            "Without them verification.maps draws the same pictures"
        ) from error
    return Explorer(Material.of(forecast, truth, climatology, products), projections=projections, start=start)
