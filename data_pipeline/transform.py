"""The space that models see: precipitation on a logarithmic scale, every other variable as it is."""

from __future__ import annotations

import numpy as np

from data_pipeline.schema import Channel
from data_pipeline.variables import lookup

LOG_SCALE = 1e-3  # metres: log(1 + x / 1 mm)


def to_model_space(values: np.ndarray, channel: Channel) -> np.ndarray:
    """The variable's transform: log(1 + x / 1 mm) for precipitation (negative packing noise counts as 0), else unchanged."""
    return log_space(values) if is_log(channel.name) else values


def from_model_space(values: np.ndarray, channel: Channel) -> np.ndarray:
    """The inverse of `to_model_space`; non-negative variables are clipped at 0, member by member."""
    variable = lookup(channel.name)
    if variable is None:
        return values
    if variable.transform == "log":
        return np.expm1(np.maximum(values, 0.0)) * LOG_SCALE
    return np.maximum(values, 0.0) if variable.non_negative else values


def log_space(values: np.ndarray) -> np.ndarray:
    """log(1 + x / 1 mm) of metres."""
    return np.log1p(np.maximum(values, 0.0) / LOG_SCALE)


def is_log(name: str) -> bool:
    """True if models see the logarithm of this variable."""
    variable = lookup(name)
    return variable is not None and variable.transform == "log"
