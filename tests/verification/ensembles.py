"""Small ensembles that the tests of scores share."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import xarray as xr

PEERS = "needs the extra peers: pip install plumecast[peers]"
FOUR_CASES = np.array([[2.0, 5, 3, 9], [1, 2, 4, 4], [0, 1, 3, 6], [2, 4, 6, 8]])
FOUR_TRUTHS = np.array([4.0, 0, 7, 4])


def ensemble(members: Any, truth: Any) -> tuple[xr.DataArray, xr.DataArray]:
    """One case (M,) or several (case, M) as DataArrays."""
    members, truth = np.atleast_2d(np.asarray(members)), np.atleast_1d(np.asarray(truth))
    return xr.DataArray(members, dims=("case", "number"), attrs={"units": "K"}), xr.DataArray(truth, dims="case")


def drawn(size: int, cases: int = 200, seed: int = 0) -> tuple[xr.DataArray, xr.DataArray]:
    """Standard normal members and truths."""
    rng = np.random.default_rng(seed)
    return ensemble(rng.normal(size=(cases, size)), rng.normal(size=cases))


def rain(size: int, cases: int = 200, seed: int = 0) -> tuple[xr.DataArray, xr.DataArray]:
    """Members and truths of which half are 0 and most others tie, rounded to 0.1."""
    rng = np.random.default_rng(seed)
    values = np.maximum(np.round(rng.normal(size=(cases, size + 1)), 1), 0)
    return ensemble(values[:, :size], values[:, size])


def pairwise(members: np.ndarray) -> float:
    """Mean absolute difference over distinct pairs, by the double sum."""
    return float(np.mean([abs(a - b) for a, b in itertools.permutations(members, 2)]))
