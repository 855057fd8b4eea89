"""A boundary ring for regional models: the outer cells relaxed, step by step, towards a host forecast or the analysis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import channels_of, stack
from models.contract import Spec

PERFECT = "perfect boundary (truth)"


@dataclass(frozen=True)
class Boundary:
    """Where the ring's values come from: an analysis (then it is called a perfect boundary everywhere) or a host forecast.

    data: in the analysis or the forecast schema, on the model's grid. cells: width of the ring; the weight falls linearly from 1
    on the edge (Davies 1976). A host forecast gives member k its own member k, counted round if it has fewer.
    """

    data: xr.Dataset
    cells: int = 3
    host: str = ""

    @property
    def is_forecast(self) -> bool:
        """True for a host forecast."""
        return "prediction_timedelta" in self.data.dims

    @property
    def name(self) -> str:
        """As stores and tables name it."""
        return f"host forecast {self.host}, {self.cells} cells" if self.is_forecast else f"{PERFECT}, {self.cells} cells"

    def check(self, spec: Spec, inits: np.ndarray, leads: np.ndarray) -> None:
        """Raise InputError unless the ring has the model's grid, channels and every valid time."""
        grid = Grid.of(self.data)
        if self.cells < 1:
            raise InputError(f"a boundary ring of {self.cells} cells was asked for; give at least 1")
        if spec.grid.is_global:
            raise InputError("a boundary ring was asked for, but the checkpoint is global: it has no edge")
        if not grid.matches(spec.grid):
            raise InputError(f"the boundary is on {grid}; the checkpoint needs {spec.grid}")
        have = {channel.label for channel in channels_of(self.data)}
        absent = [label for label in spec.channels if label not in have]
        if absent:
            raise InputError(f"the boundary lacks {', '.join(absent)}")
        if self.is_forecast:
            gone = (
                np.setdiff1d(inits, self.data["time"].values).size
                + np.setdiff1d(leads, self.data["prediction_timedelta"].values).size
            )
        else:
            gone = np.setdiff1d((inits[:, None] + leads[None, :]).ravel(), self.data["time"].values).size
        if gone:
            raise InputError(f"the boundary lacks {gone} of the times asked for; use fewer days or initialisations")

    def load(self, spec: Spec, init: np.datetime64, leads: np.ndarray) -> np.ndarray:
        """Normalised ring values (lead, member or 1, C, H, W) of one initialisation."""
        if self.is_forecast:
            rows = stack(self.data.sel(time=init, prediction_timedelta=leads), spec.parsed_channels)
            return spec.normalise(rows.transpose("prediction_timedelta", "number", ...).values)
        index = pd.Index(self.data["time"].values).get_indexer(pd.Index(init + leads))
        return spec.normalise(stack(self.data.isel(time=index), spec.parsed_channels).values)[:, None]

    def for_members(self, edge: np.ndarray, members: Sequence[int]) -> np.ndarray:
        """The ring of each member, (member, C, H, W)."""
        return edge[[(member - 1) % len(edge) for member in members]]

    def weight(self, grid: Grid) -> np.ndarray:
        """Relaxation weight (H, W), float32."""
        return _weight(grid.shape, self.cells)


@lru_cache
def _weight(shape: tuple[int, int], cells: int) -> np.ndarray:
    inward = np.minimum.outer(*(np.minimum(np.arange(n), np.arange(n)[::-1]) for n in shape))
    return np.clip(1 - inward / cells, 0, 1).astype(np.float32)
