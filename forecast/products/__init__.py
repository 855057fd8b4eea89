"""Products of an ensemble: statistics, probabilities, EFI and SOT, plumes, stamps, tracked lows, as one CF store.

forecast.products.make("forecasts/crps.zarr", "products.zarr", climatology="climatology.zarr")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forecast.products.making import make

__all__ = ["make"]


def __getattr__(name: str) -> Any:
    """Load what makes products when it is asked for, not at import: `plumecast --help` stays quick."""
    if name != "make":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("forecast.products.making").make
