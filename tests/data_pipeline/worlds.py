"""A small forecast and a small analysis in the schema, and what must come back of them from any disguise."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline.grid import Grid
from data_pipeline.schema import validate

GRID = Grid.named("12x7")
INITS = pd.date_range("2020-02-28", periods=2, freq="12h").as_unit("ns")
HOURS = [6, 12, 18]
DIMS = ("time", "prediction_timedelta", "number", "level", "latitude", "longitude")


def forecast(inits: int = 2, members: int = 3) -> xr.Dataset:
    """Geopotential at two levels and 2 m temperature in the schema."""
    random = np.random.default_rng(0)
    shape = (inits, len(HOURS), members, 2, *GRID.shape)
    coords: dict[str, Any] = {
        "time": INITS[:inits], "prediction_timedelta": pd.to_timedelta(HOURS, unit="h").as_unit("ns"),
        "number": np.arange(members), "level": [500, 850], **GRID.coords(),
    }  # fmt: skip
    height = random.normal(5e4, 1e3, shape).astype("f4")
    warmth = random.normal(280, 9, shape[:3] + shape[4:]).astype("f4")
    variables = {
        "geopotential": (DIMS, height, {"units": "m2 s-2"}),
        "2m_temperature": (DIMS[:3] + DIMS[4:], warmth, {"units": "K"}),
    }
    return xr.Dataset(variables, coords)


def analysis() -> xr.Dataset:
    """The same without leads and members: times every 6 hours."""
    data = forecast(1, 1).isel(time=0, number=0, drop=True)
    times = INITS[0] + data["prediction_timedelta"].values
    return data.rename(prediction_timedelta="time").assign_coords(time=times)


def check_equal(found: xr.Dataset, expected: xr.Dataset, *, tolerance: float = 0.0) -> None:
    validate(found, "forecast" if "number" in expected.dims else "analysis")
    assert set(found.data_vars) == set(expected.data_vars)
    for name, array in expected.data_vars.items():
        assert found[name].dims == array.dims
        for dim in array.dims:
            np.testing.assert_array_equal(found[name][dim].values, array[dim].values)
        np.testing.assert_allclose(found[name].values, array.values, rtol=tolerance)


def mapping(data: xr.Dataset) -> str:
    return "\n".join(json.loads(data.attrs["mapping"]))


def short(data: xr.Dataset) -> xr.Dataset:
    """ERA5 short names."""
    return data.rename({"geopotential": "z", "2m_temperature": "t2m"})


def by_channel(data: xr.Dataset) -> xr.Dataset:
    """One array a channel."""
    names = {f"z{level}": data["geopotential"].sel(level=level, drop=True).drop_attrs() for level in (500, 850)}
    return xr.Dataset({**names, "t2m": data["2m_temperature"].drop_attrs()})


def flat(data: xr.Dataset, dim: str, seed: int = 1) -> xr.Dataset:
    """Points in any order along `dim`, with 1-d latitude and longitude."""
    stacked = data.stack({dim: ("latitude", "longitude")}, create_index=False).transpose(..., dim)
    return stacked.isel({dim: np.random.default_rng(seed).permutation(stacked.sizes[dim])}).reset_coords(
        ["latitude", "longitude"]
    )
