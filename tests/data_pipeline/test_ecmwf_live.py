"""Input frames from ECMWF's open data: exactly what was written on the server, in the schema, published once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

pytest.importorskip("ecmwf.opendata", reason="needs the extra live: pip install plumecast[live]")

from data_pipeline import open_analysis, verify_store
from data_pipeline.errors import InputError, NotReadyError
from data_pipeline.grid import Grid
from data_pipeline.regrid import regrid
from data_pipeline.schema import Channel, validate
from data_pipeline.sources.ecmwf_live import write_cycle
from data_pipeline.sources.ecmwf_plan import Wanted
from data_pipeline.sources.ecmwf_server import Server
from data_pipeline.store import write_dataset
from tests.children import contents
from tests.data_pipeline.open_data_server import (
    CHANNELS,
    FRAMES,
    GRID,
    INIT,
    NOW,
    PARAMS,
    TP_IN_METRES,
    WANTED,
    OpenData,
    Param,
    opened,
    written,
)

ONE = replace(WANTED, frames=1)


@pytest.fixture
def data() -> Iterator[OpenData]:
    with OpenData() as server:
        yield server


# --- what comes


def test_frames_hold_the_values_on_the_server_in_the_units_of_the_schema(data: OpenData, tmp_path: Path) -> None:
    data.publish_frames(*FRAMES)
    frames = opened(data, tmp_path)
    validate(frames)
    np.testing.assert_array_equal(frames["time"], np.array(FRAMES, "datetime64[ns]"))
    assert frames["geopotential"].attrs["levels_available"] == [500]
    for i, stamp in enumerate(FRAMES):
        frame = frames.isel(time=i)
        height, temperature = frame["geopotential"].sel(level=500), frame["temperature"].sel(level=850)
        np.testing.assert_allclose(height, 9.80665 * written("gh500", stamp, 0), rtol=1e-6)
        np.testing.assert_allclose(temperature, written("t850", stamp, 0), rtol=1e-6)
        np.testing.assert_allclose(frame["2m_temperature"], written("2t", stamp, 0), rtol=1e-6)
    np.testing.assert_allclose(frames["geopotential_at_surface"], written("z", "", 0), atol=0.01)
    np.testing.assert_array_equal(frames["land_sea_mask"], written("lsm", "", 0))


def test_regridding_keeps_the_mean_over_the_sphere(data: OpenData, tmp_path: Path) -> None:
    data.publish_frames(*FRAMES)
    coarse = Grid.named("16x8")
    frames = opened(data, tmp_path, replace(WANTED, grid=coarse))
    assert Grid.of(frames).matches(coarse)
    for name, param, units in (("2m_temperature", "2t", 1), ("total_precipitation_12hr", "tp", 1e-3)):
        run = ("2026-11-25T12", 12) if param == "tp" else (FRAMES[1], 0)
        before = np.average(units * written(param, *run), weights=GRID.areas)
        np.testing.assert_allclose(np.average(frames[name].isel(time=1), weights=coarse.areas), before, rtol=1e-6)


@pytest.mark.parametrize("params", [PARAMS, PARAMS | TP_IN_METRES], ids=["kg m-2 (228228)", "m (228)"])
def test_precipitation_is_what_fell_in_the_run_that_started_the_window(
    params: dict[str, Param], data: OpenData, tmp_path: Path
) -> None:
    data.publish_frames(*FRAMES, params=params)
    frames = opened(data, tmp_path)
    assert frames["total_precipitation_12hr"].attrs["units"] == "m"
    for i, start in enumerate(("2026-11-25T00", "2026-11-25T12")):
        found = frames["total_precipitation_12hr"].isel(time=i)
        np.testing.assert_allclose(found, 1e-3 * written("tp", start, 12), atol=2e-9)
    assert frames.attrs["short_forecasts"][1] == (
        "total_precipitation_12hr at 2026-11-26T00: step 12 minus step 0 of the forecast from 2026-11-25T12"
    )


def test_a_window_inside_a_run_is_the_difference_of_two_steps(data: OpenData, tmp_path: Path) -> None:
    wanted = Wanted((Channel("2m_temperature"), Channel("total_precipitation_3hr")), GRID)
    data.publish("2026-11-26T00")
    for step in (3, 6):
        data.publish("2026-11-25T18", step)
    frames = opened(data, tmp_path, wanted)
    fell = 1e-3 * (written("tp", "2026-11-25T18", 6) - written("tp", "2026-11-25T18", 3))
    np.testing.assert_allclose(frames["total_precipitation_3hr"].isel(time=0), fell, atol=2e-9)


def test_the_noise_of_packing_is_clipped_and_a_sum_that_falls_is_refused(data: OpenData, tmp_path: Path) -> None:
    wanted = Wanted((Channel("2m_temperature"), Channel("total_precipitation_3hr")), GRID)
    data.publish("2026-11-26T00")
    data.publish("2026-11-25T18", 3)
    less = written("tp", "2026-11-25T18", 3) - 0.05
    data.publish("2026-11-25T18", 6, changed={"tp": np.maximum(less, 0)})
    assert (opened(data, tmp_path / "noise", wanted)["total_precipitation_3hr"] == 0).all()
    data.publish("2026-11-25T18", 6, changed={"tp": np.maximum(less - 0.5, 0)})
    with pytest.raises(InputError, match=r"total_precipitation_3hr: falls by 0\.0005"):
        opened(data, tmp_path / "wrong", wanted).load()


def test_a_file_that_is_named_gives_the_static_fields(data: OpenData, tmp_path: Path) -> None:
    coarse = Grid.named("16x8")
    own = xr.Dataset({"land_sea_mask": (("latitude", "longitude"), np.eye(8, 16, dtype="f4"), {"units": "1"})}, coarse.coords())
    own.to_netcdf(tmp_path / "own.nc")
    data.publish_frames(*FRAMES, without=["lsm"])
    frames = opened(data, tmp_path, replace(WANTED, grid=coarse, static_file=tmp_path / "own.nc"))
    np.testing.assert_array_equal(frames["land_sea_mask"], np.eye(8, 16))
    assert frames.attrs["static_source"] == {"geopotential_at_surface": "ECMWF open data", "land_sea_mask": "own.nc"}


def test_06_and_18_utc_before_cycle_50r1_come_from_scda(data: OpenData, tmp_path: Path) -> None:
    wanted = Wanted((Channel("2m_temperature"),), GRID, frames=2, step_hours=6)
    data.publish("2026-05-11T18", stream="scda")
    data.publish("2026-05-12T00")
    frames = opened(data, tmp_path, wanted, pd.Timestamp("2026-05-12T00"), pd.Timestamp("2026-05-12T08"))
    np.testing.assert_allclose(frames["2m_temperature"].isel(time=0), written("2t", "2026-05-11T18", 0), rtol=1e-6)
    assert frames.attrs["cycles"] == ["2026-05-11T18 scda", "2026-05-12T00 oper"]


# --- the store


def test_the_store_is_a_checked_analysis_that_names_its_source(data: OpenData, tmp_path: Path) -> None:
    data.publish_frames(*FRAMES)
    path = write_cycle(tmp_path / "analysis.zarr", INIT, WANTED, server=data.client(), now=NOW)
    assert verify_store(path) == []
    stored = open_analysis(path)
    xr.testing.assert_equal(stored.load(), opened(data, tmp_path).load())
    assert stored.attrs["attribution"].startswith("Copyright (c) 2026 European Centre for Medium-Range Weather Forecasts (ECMWF)")
    assert "CC BY 4.0" in stored.attrs["attribution"]
    assert stored.attrs["channels"] == list(CHANNELS)
    assert "gh -> geopotential at 500 hPa [gpm -> m2 s-2]" in json.loads(stored.attrs["mapping"])
    assert not (tmp_path / "analysis.zarr.downloads").exists()


def test_a_password_in_the_address_of_a_copy_is_not_kept(data: OpenData, tmp_path: Path) -> None:
    data.publish_frames(*FRAMES)
    server = Server(data.url.replace("://", "://me:secret@"), wait=lambda seconds: None)
    path = write_cycle(tmp_path / "analysis.zarr", INIT, WANTED, server=server, now=NOW)
    assert open_analysis(path).attrs["server"] == data.url
    assert not any(b"secret" in file.read_bytes() for file in path.rglob("*") if file.is_file())


def test_a_second_run_asks_nothing_and_another_cycle_at_the_same_place_is_an_error(data: OpenData, tmp_path: Path) -> None:
    data.publish_frames(*FRAMES)
    path = write_cycle(tmp_path / "analysis.zarr", INIT, ONE, server=data.client(), now=NOW)
    before, asked = contents(path), len(data.asked)
    write_cycle(path, INIT, ONE, server=data.client(), now=NOW)
    assert len(data.asked) == asked
    assert contents(path) == before
    with pytest.raises(InputError, match=r"recipe\.init: '2026-11-26T00' -> '2026-11-26T12'"):
        write_cycle(path, INIT + pd.Timedelta("12h"), ONE, server=data.client(), now=NOW)


def test_a_stopped_run_keeps_what_came_and_ends_with_the_same_bytes(data: OpenData, tmp_path: Path) -> None:
    data.publish_frames(*FRAMES)
    whole = write_cycle(tmp_path / "undisturbed.zarr", INIT, WANTED, server=data.client(), now=NOW)
    everything = data.downloads
    data.asked.clear()
    data.fail("20261126000000-0h-oper-fc.grib2", times=6)
    path = tmp_path / "analysis.zarr"
    with pytest.raises(NotReadyError, match="gave up after 6 tries"):
        write_cycle(path, INIT, WANTED, server=data.client(), now=NOW)
    assert not path.exists()
    assert list((tmp_path / "analysis.zarr.downloads").glob("*.grib2"))
    kept = data.downloads[:-6]
    data.asked.clear()
    write_cycle(path, INIT, WANTED, server=data.client(), now=NOW)
    assert kept + data.downloads == everything, "each file came once"
    assert contents(path) == contents(whole)


def test_missing_values_are_refused(data: OpenData, tmp_path: Path) -> None:
    holed = written("2t", FRAMES[1], 0)
    holed[3:6] = np.nan
    data.publish_frames(*FRAMES)
    data.publish(FRAMES[1], changed={"2t": holed})
    with pytest.raises(InputError, match=r"2m_temperature: .* % of the values are missing"):
        write_cycle(tmp_path / "analysis.zarr", INIT, ONE, server=data.client(), now=NOW)
    assert not (tmp_path / "analysis.zarr").exists()


def test_a_dry_frame_of_a_region_is_weather(data: OpenData, tmp_path: Path) -> None:
    data.publish_frames(*FRAMES)
    data.publish("2026-11-25T12", 12, changed={"tp": np.zeros(GRID.shape)})
    region = replace(ONE, grid=Grid(np.arange(36.0, 60.1, 4.0), np.arange(-12.0, 20.1, 4.0)))
    stored = open_analysis(write_cycle(tmp_path / "analysis.zarr", INIT, region, server=data.client(), now=NOW))
    assert not stored["total_precipitation_12hr"].values.any()
    globe = xr.DataArray(written("2t", FRAMES[1], 0), GRID.coords(), ("latitude", "longitude"), "2m_temperature")
    np.testing.assert_allclose(stored["2m_temperature"].isel(time=0), regrid(globe, region.grid), rtol=1e-6)


def test_the_static_fields_of_an_analysis_store_are_part_of_the_recipe(data: OpenData, tmp_path: Path) -> None:
    data.publish_frames(*FRAMES)
    first = write_cycle(tmp_path / "first.zarr", INIT, ONE, server=data.client(), now=NOW)
    changed = open_analysis(first).load()
    changed["land_sea_mask"] = 1 - changed["land_sea_mask"]
    write_dataset(tmp_path / "changed.zarr", changed)
    same = replace(ONE, static_file=tmp_path / "changed.zarr")
    second = write_cycle(tmp_path / "second.zarr", INIT, same, server=data.client(), now=NOW)
    np.testing.assert_array_equal(open_analysis(second)["land_sea_mask"], 1 - written("lsm", "", 0))
    with pytest.raises(InputError, match=r"recipe\.source\.static"):
        write_cycle(first, INIT, same, server=data.client(), now=NOW)
