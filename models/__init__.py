"""Generators: families behind one contract, trained by one loop, kept in one safetensors file.

    generator = models.load("checkpoint.safetensors")
"""

from models.checkpoint import load
from models.contract import Generator, Spec

__all__ = ["Generator", "Spec", "load"]
