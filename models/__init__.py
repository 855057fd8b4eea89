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

__all__ = ["SHIPPED", "Generator", "Spec", "load", "shipped"]

_HOMES = {"load": "models.checkpoint", "Generator": "models.contract", "Spec": "models.contract"}


SHIPPED = ("planet-64x32-12h", "planet14-crps", "planet14-vae", "planet14-latent-diffusion")


def shipped(name: str = SHIPPED[0]) -> Path:
    """A packaged checkpoint, one of `SHIPPED`: the simulated planet's years 2001-2005, 64x32, 12-hour steps.

    The first has eight fields; the others, one for each family, have fourteen, and post-hoc calibrations beside them.
    """
    return Path(str(resources.files("models") / "pretrained" / f"{name}.safetensors"))


def __getattr__(name: str) -> Any:
    """Load torch when something of it is asked for, not at import: `plumecast --help` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
