"""From any ERA5-style archive to analysis-ready zarr: sources, regridding, safe stores, statistics, climatology, batches."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_pipeline.climatological import climatological_ensemble
    from data_pipeline.opening import open_analysis, open_forecast
    from data_pipeline.recipe import read_recipe
    from data_pipeline.store import open_store, verify_store

__all__ = [
    "climatological_ensemble",
    "open_analysis",
    "open_forecast",
    "open_store",
    "read_recipe",
    "verify_store",
]

_HOMES = {
    "climatological_ensemble": "climatological",
    "open_analysis": "opening",
    "open_forecast": "opening",
    "open_store": "store",
    "read_recipe": "recipe",
    "verify_store": "store",
}


def __getattr__(name: str) -> Any:
    # loaded when asked for: the command line must settle thread counts before numpy is imported
    if name not in _HOMES:
        raise AttributeError(f"module 'data_pipeline' has no attribute {name!r}")
    return getattr(importlib.import_module(f"data_pipeline.{_HOMES[name]}"), name)
