"""Generators: families behind one contract, trained by one loop, kept in one safetensors file.

    generator = models.load(models.shipped())
"""

from importlib import resources
from pathlib import Path

from models.checkpoint import load
from models.contract import Generator, Spec

__all__ = ["Generator", "Spec", "load", "shipped"]


def shipped() -> Path:
    """The packaged checkpoint: trained on the simulated planet's years 2001-2005, 8 fields, 64x32, 12-hour steps."""
    return Path(str(resources.files("models") / "pretrained" / "planet-64x32-12h.safetensors"))
