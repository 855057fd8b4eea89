"""Counter-based noise: (seed, initialisation, member, step) give the same numbers anywhere, whatever else is drawn."""

from __future__ import annotations

import numpy as np


def draw(seed: int, init: np.datetime64, member: int, step: int, size: int) -> np.ndarray:
    """`size` standard normal numbers (float32) of one member and step; step 0 belongs to the initial state.

    Philox (Salmon et al. 2011) keyed by (seed, initialisation) and counted by (member, step): no stream is ever advanced, so a
    member is the same alone or among fifty, first or last.
    """
    return _stream(seed, init, member, step).standard_normal(size, dtype=np.float32)


def pick(seed: int, init: np.datetime64, member: int, step: int, count: int) -> int:
    """One index in 0 .. count - 1, from a stream of its own for each (seed, init, member, step)."""
    return int(_stream(seed, init, member, step).integers(count))


def _stream(seed: int, init: np.datetime64, member: int, step: int) -> np.random.Generator:
    stamp = int(init.astype("datetime64[s]").astype(np.int64)) & (2**64 - 1)
    key, counter = np.array([seed, stamp], np.uint64), np.array([0, 0, step, member], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
