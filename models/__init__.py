"""Generators: families behind one contract, trained by one loop, kept in one safetensors file.

generator = models.load(models.shipped())
"""

from __future__ import annotations

from importlib import import_module, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.checkpoint import load
    from models.contract import Generator, Spec

__all__ = ["Generator", "Spec", "load", "shipped"]

_HOMES = {"load": "models.checkpoint", "Generator": "models.contract", "Spec": "models.contract"}


def shipped() -> Path:
    """The packaged checkpoint: trained on the simulated planet's years 2001-2005, 8 fields, 64x32, 12-hour steps."""
    return Path(str(resources.files("models") / "pretrained" / "planet-64x32-12h.safetensors"))


def __getattr__(name: str) -> Any:
    """Load torch when something of it is asked for, not at import: `plumecast --help` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
