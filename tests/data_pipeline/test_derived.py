"""Statistics and climatology beside an analysis: made once, made again when the analysis has changed, never of another recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from data_pipeline import store
from data_pipeline.derived import make_climatology, make_statistics
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.ingest import ingest
from tests.children import contents

PERIOD = ["2001-01-01", "2001-12-31"]


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    """Two years of daily temperature."""
    times = pd.date_range("2001-01-01", "2002-12-31", freq="24h")
    values = np.random.default_rng(6).normal(280, 5, (len(times), 4, 8))
    coords = {"time": times, **Grid.named("8x4").coords()}
    data = xr.Dataset({"t2m": (("time", "latitude", "longitude"), values, {"units": "K"})}, coords=coords)
    data.to_netcdf(tmp_path / "weather.nc")
    return {
        "name": "job",
        "source": {"path": str(tmp_path / "weather.nc")},
        "analysis": {"channels": ["2m_temperature"], "step": "24h", "stop": "2002-03-31"},
        "periods": {"training": PERIOD},
    }


def test_after_an_extension_both_are_made_again(recipe: dict[str, Any], tmp_path: Path) -> None:
    longer = {**recipe, "analysis": {**recipe["analysis"], "stop": "2002-12-31"}}
    ingest(recipe, tmp_path / "a" / "analysis.zarr")
    made = [make(recipe, tmp_path / "a") for make in (make_statistics, make_climatology)]
    before = [contents(path) for path in made]
    ingest(longer, tmp_path / "a" / "analysis.zarr", extend=True)
    ingest(longer, tmp_path / "b" / "analysis.zarr")
    for path, old, make in zip(made, before, (make_statistics, make_climatology), strict=True):
        assert contents(make(longer, tmp_path / "a")) == contents(make(longer, tmp_path / "b")) != old
        assert not store.partial_path(path).exists()
        written = (path / "manifest.json").stat().st_mtime_ns
        make(longer, tmp_path / "a")
        assert (path / "manifest.json").stat().st_mtime_ns == written


def test_another_period_is_an_error_also_after_an_extension(recipe: dict[str, Any], tmp_path: Path) -> None:
    ingest(recipe, tmp_path / "analysis.zarr")
    make_statistics(recipe, tmp_path)
    longer = {**recipe, "analysis": {**recipe["analysis"], "stop": "2002-12-31"}}
    ingest(longer, tmp_path / "analysis.zarr", extend=True)
    with pytest.raises(InputError, match=r"period: '2001-01-01T00/2001-12-31T00' -> '2001-01-01T00/2002-12-31T00'"):
        make_statistics({**longer, "periods": {"training": ["2001-01-01", "2002-12-31"]}}, tmp_path)
