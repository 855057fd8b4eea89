"""Climatologies of WeatherBench 2 read as they lie, from a folder and over http; our own; what is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from data_pipeline import climatological, climatology, store
from data_pipeline.errors import InputError, NotReadyError
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel
from data_pipeline.sources.climatologies import open_climatology
from tests.data_pipeline.archives import write_wb2_climatology
from tests.data_pipeline.object_server import every_third, serve
from tests.toys import GLOBE, weather
from verification.evaluate import score_store

NAME = "1990-2019_6h_16x8_equiangular_conservative.zarr"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, xr.Dataset]:
    """A WeatherBench 2 store, longitude before latitude, and what it holds."""
    path = tmp_path_factory.mktemp("archive") / NAME
    return path, write_wb2_climatology(path, grid="16x8")


def holds(found: xr.Dataset, expected: xr.Dataset) -> None:
    assert set(found.data_vars) == set(expected.data_vars)
    for name, array in expected.data_vars.items():
        np.testing.assert_array_equal(found[name], array.transpose(*found[name].dims))
        assert found[name].dtype == np.float32


def test_a_store_of_weatherbench_is_read_in_our_form(archive: tuple[Path, xr.Dataset]) -> None:
    found = open_climatology(archive[0])
    holds(found, archive[1])
    assert found["geopotential"].dims == ("hour", "dayofyear", "level", "latitude", "longitude")
    assert found["2m_temperature_quantile"].dims == ("quantile", "hour", "dayofyear", "latitude", "longitude")
    assert found["geopotential_std"].attrs["units"] == "m2 s-2"
    assert found.attrs["period"] == "1990-2019, by its name"
    assert found["2m_temperature"].chunks is not None
    assert Grid.of(found).matches(Grid.named("16x8"))
    day = climatology.select(found, pd.DatetimeIndex(["2020-02-29T18"]))["2m_temperature"]
    np.testing.assert_array_equal(day[0], archive[1]["2m_temperature"].sel(hour=18, dayofyear=60))


def test_latitude_from_the_north_and_other_units_are_mapped(archive: tuple[Path, xr.Dataset], tmp_path: Path) -> None:
    """As the quarter-degree stores: latitude before longitude, from 90 down; and names and units that others use."""
    data = archive[1].isel(latitude=slice(None, None, -1)).drop_encoding()
    celsius = data["2m_temperature"] - 273.15
    data = data.assign({
        "t2m": celsius.assign_attrs(units="degC"),
        "t2m_std": data["2m_temperature_std"].assign_attrs(units="degC"),
        "moon_phase": data["2m_temperature"],
    }).drop_vars(["2m_temperature", "2m_temperature_std", "2m_temperature_quantile", "quantile"])  # fmt: skip
    data.to_zarr(tmp_path / "other.zarr", zarr_format=2, consolidated=True)
    found = open_climatology(tmp_path / "other.zarr")
    assert (np.diff(found["latitude"]) > 0).all()
    np.testing.assert_allclose(found["2m_temperature"], archive[1]["2m_temperature"], atol=2e-5)
    np.testing.assert_array_equal(found["2m_temperature_std"], archive[1]["2m_temperature_std"])
    np.testing.assert_array_equal(found["geopotential"], archive[1]["geopotential"])
    assert "moon_phase" not in found
    mapping = json.loads(found.attrs["mapping"])
    assert "t2m [degC] -> 2m_temperature [K]" in mapping
    assert any(line.startswith("moon_phase: left out") for line in mapping)


def test_relative_humidity_without_units_is_a_fraction_as_weatherbench_derives_it(
    archive: tuple[Path, xr.Dataset], tmp_path: Path
) -> None:
    share = xr.full_like(archive[1]["geopotential"], 0.5).drop_attrs()
    data = archive[1].drop_encoding().assign(relative_humidity=share, relative_humidity_std=share / 5)
    data.to_zarr(tmp_path / "other.zarr", zarr_format=2, consolidated=True)
    found = open_climatology(tmp_path / "other.zarr")
    np.testing.assert_allclose(found["relative_humidity"], 50.0)
    np.testing.assert_allclose(found["relative_humidity_std"], 10.0, rtol=1e-6)


def test_it_is_read_over_http_with_failing_requests(archive: tuple[Path, xr.Dataset]) -> None:
    pytest.importorskip("aiohttp", reason="needs the extra cloud: pip install plumecast[cloud]")
    with serve(archive[0].parent) as server:
        server.fault = every_third("503", of="2m_temperature/")
        found = open_climatology(f"{server.url}/{NAME}")["2m_temperature"].isel(dayofyear=slice(30, 60))
        np.testing.assert_array_equal(found, archive[1]["2m_temperature"].isel(dayofyear=slice(30, 60)))


def test_our_own_store_is_opened_as_it_was_written(tmp_path: Path) -> None:
    analysis = weather(GLOBE, 800)
    path = climatology.write(analysis, [Channel("2m_temperature")], ("2001-01-01", "2002-01-31"), tmp_path / "climate.zarr")
    xr.testing.assert_identical(open_climatology(path), store.open_store(path))


def test_a_verification_takes_it_as_our_own(tmp_path: Path) -> None:
    analysis, channel = weather(GLOBE, 900), Channel("2m_temperature")
    period = ("2001-01-01T00", "2002-01-31T12")
    own = climatology.write(analysis, [channel], period, tmp_path / "own.zarr", quantiles=(0.1, 0.9))
    foreign = store.open_store(own).load().drop_attrs(deep=False).drop_encoding()
    foreign = foreign.transpose("hour", "dayofyear", "quantile", "longitude", "latitude").chunk(hour=1, dayofyear=61)
    foreign.to_zarr(tmp_path / "foreign.zarr", zarr_format=2, consolidated=True)
    store.write_dataset(tmp_path / "truth.zarr", analysis)
    inits, leads = analysis.indexes["time"][800:804], pd.to_timedelta([12, 24], "h")
    coords = {"time": inits, "prediction_timedelta": leads}
    valid = xr.DataArray(inits.to_numpy()[:, None] + leads.to_numpy(), coords, ("time", "prediction_timedelta"))
    members = climatological.climatological_ensemble(analysis, [channel], valid, period, min_members=3)
    store.write_dataset(tmp_path / "forecast.zarr", members)
    states = [
        score_store(
            tmp_path / "forecast.zarr", tmp_path / "truth.zarr", tmp_path / f"{name}.scores.zarr",
            climatology_path=tmp_path / f"{name}.zarr", channels=["2m_temperature"],
        ).load()
        for name in ("own", "foreign")
    ]  # fmt: skip
    xr.testing.assert_equal(*states)
    assert any(str(name).startswith("event") for name in states[0].variables)


def test_what_is_no_climatology_is_refused(archive: tuple[Path, xr.Dataset], tmp_path: Path) -> None:
    weather(GLOBE, 5).to_zarr(tmp_path / "analysis.zarr", zarr_format=3, consolidated=False)
    with pytest.raises(InputError, match=r"is not a climatology .*make one: plumecast data climatology"):
        open_climatology(tmp_path / "analysis.zarr")
    with pytest.raises(InputError, match="nothing.zarr holds no zarr store"):
        open_climatology(tmp_path / "nothing.zarr")
    part = xr.open_zarr(archive[0]).isel(dayofyear=slice(0, 60)).drop_encoding()
    part.to_zarr(tmp_path / "winter.zarr", zarr_format=2, consolidated=True)
    with pytest.raises(InputError, match=r"days 1 .. 60 .* expected every day from 1 to 366"):
        open_climatology(tmp_path / "winter.zarr")
    part.rename({name: f"x{name}" for name in part.data_vars}).to_zarr(tmp_path / "x.zarr", zarr_format=2, consolidated=True)
    with pytest.raises(InputError, match=r"x.zarr: no field of the table of variables; it has x2m_temperature"):
        open_climatology(tmp_path / "x.zarr")


def test_an_unfinished_one_of_ours_is_not_there_yet(tmp_path: Path) -> None:
    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    channels = [Channel("2m_temperature"), Channel("10m_v_component_of_wind")]
    with pytest.raises(KeyboardInterrupt):
        climatology.write(weather(GLOBE, 800), channels, ("2001-01-01", "2002-01-31"), tmp_path / "c.zarr", progress=stop)
    with pytest.raises(NotReadyError, match="1 of 2 parts"):
        open_climatology(tmp_path / "c.zarr")
