"""Coastlines and country borders of Natural Earth (public domain), packaged: drawing a map never downloads anything.

`lines("110m")` or `lines("50m")` give one polyline array each for coasts and borders. `build.py` made the two files from the npm
package world-atlas; `SHA256SUMS` holds their checksums.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from data_pipeline.errors import InputError

FOLDER = Path(__file__).parent
SCALE = 100  # stored as int16 hundredths of a degree: 1 km, finer than the 1:50 million source

Resolution = Literal["110m", "50m"]
Feature = Literal["coast", "borders"]


@lru_cache(maxsize=4)
def lines(resolution: Resolution = "110m", feature: Feature = "coast") -> np.ndarray:
    """Polylines as one float64 array (n, 2) of longitude (-180 to 180) and latitude in degrees; a row of NaN ends each line.

    No segment crosses the antimeridian and none runs along the map frame. Raises InputError for an unknown resolution.
    """
    path = FOLDER / f"ne_{resolution}.npz"
    if not path.is_file():
        raise InputError(f"Natural Earth resolution {resolution!r} is not packaged; take '110m' or '50m'")
    with np.load(path, allow_pickle=False) as stored:
        points = stored[feature].astype(np.float64) / SCALE
        ends = np.cumsum(stored[f"{feature}_lengths"])
    broken = np.insert(points, ends, np.nan, axis=0)
    broken.flags.writeable = False  # the cache hands the same array to everyone
    return broken
