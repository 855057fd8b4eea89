"""Exports: what is written is read back by our own readers, by ecCodes, cfgrib and xarray, within what packing explains."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import eccodes
import netCDF4
import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import plumecast
from data_pipeline import open_forecast
from data_pipeline.disk import read_json, sha256
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel, select
from data_pipeline.store import write_dataset
from data_pipeline.templates import forecast_dataset
from data_pipeline.variables import VARIABLES, lookup
from forecast.export import Settings, export, files, grib
from forecast.export.blocks import Field
from forecast.export.grib import Packing
from forecast.plan import plan_of

TIMES = np.array(["2007-01-01T00", "2007-01-11T12"], "datetime64[ns]")
LEADS = (np.array([12, 24, 36]) * np.timedelta64(1, "h")).astype("timedelta64[ns]")
RAIN = "total_precipitation_12hr"
CHANNELS = tuple(
    Channel.parse(label)
    for label in (
        "geopotential_500", "geopotential_850", "temperature_850", "2m_temperature", "10m_u_component_of_wind",
        "mean_sea_level_pressure", "sea_surface_temperature", "total_cloud_cover", RAIN,
    )
)  # fmt: skip
SCALES = {"geopotential": (5e4, 1e3), "mean_sea_level_pressure": (1.01e5, 1e3), "10m_u_component_of_wind": (0, 8)}
GRID, SHAPE = Grid.named("16x8"), (2, 3, 3)


def made(grid: Grid = GRID, channels: tuple[Channel, ...] = CHANNELS, numbers: tuple[int, ...] = (0, 1, 2)) -> xr.Dataset:
    """Noise of plausible size; the sea has no value on land, half of the rain is none."""
    draws = np.random.default_rng(0)
    fields = draws.normal(size=(*SHAPE[:2], len(numbers), len(channels), *grid.shape))
    for i, channel in enumerate(channels):
        mean, std = SCALES.get(channel.name, (280.0, 10.0))
        fields[:, :, :, i] = mean + std * fields[:, :, :, i]
        if channel.name == RAIN:
            fields[:, :, :, i] = np.maximum(draws.normal(size=fields[:, :, :, i].shape), 0) * 4e-3
        if channel.name == "total_cloud_cover":
            fields[:, :, :, i] = draws.uniform(size=fields[:, :, :, i].shape)
        if channel.name == "sea_surface_temperature":
            fields[:, :, :, i, :, :3] = np.nan
    data = forecast_dataset(fields.astype("f4"), TIMES, LEADS, list(numbers), channels, grid)
    return data.assign_attrs(model="a toy", attribution="Made by nobody", source="noise", recipe_hash="abc", levels=[500, 850])


def written(data: xr.Dataset, out: Path, **packing: Any) -> Path:
    return export(data, plan_of(data), out, Settings.of(out, None, Packing(**packing)))


def messages(path: Path, *keys: str) -> list[dict[str, Any]]:
    found = []
    with path.open("rb") as file:
        while (handle := eccodes.codes_grib_new_from_file(file)) is not None:
            found.append({key: eccodes.codes_get(handle, key) for key in keys})
            eccodes.codes_release(handle)
    return found


@pytest.mark.parametrize(("bits", "method"), [(16, "ccsds"), (24, "ccsds"), (16, "simple")])
def test_grib_is_read_back_within_the_packing(tmp_path: Path, bits: int, method: str) -> None:
    channels = CHANNELS if (bits, method) == (16, "ccsds") else (Channel("geopotential", 500), Channel(RAIN))
    data = made(channels=channels)
    path = written(data, tmp_path / "x.grib2", bits=bits, method=method)
    back = open_forecast(path)
    np.testing.assert_array_equal(back["time"], TIMES)
    np.testing.assert_array_equal(back["prediction_timedelta"], LEADS)
    assert back["number"].values.tolist() == [0, 1, 2]
    assert Grid.of(back).matches(GRID)
    for channel in channels:
        own = select(data, channel).values
        name = channel.name.removesuffix("_12hr")  # the files tell the hours of each message
        found = select(back, Channel(name, channel.level)).transpose(*select(data, channel).dims).values
        np.testing.assert_array_equal(np.isnan(found), np.isnan(own))
        tolerance = np.nanmax(own) - np.nanmin(own)
        scale = 1 / 2 ** (bits - 1)  # half a step of a range up to twice as wide, as steps are powers of two
        np.testing.assert_allclose(found, own, atol=tolerance * scale + 2e-7 * np.nanmax(np.abs(own)))
    assert float(back["total_precipitation"].min()) >= 0
    assert back["total_precipitation"].attrs["units"] == "m"


def test_messages_say_what_they_are(tmp_path: Path) -> None:
    path = written(made(), tmp_path / "x.grib2")
    keys = (
        "shortName", "paramId", "level", "typeOfLevel", "productDefinitionTemplateNumber", "perturbationNumber", "dataType",
        "numberOfForecastsInEnsemble", "stepRange", "stepType", "dataDate", "dataTime", "units", "validityDate",
        "validityTime", "jScansPositively", "latitudeOfFirstGridPointInDegrees", "gridType", "packingType", "edition",
    )  # fmt: skip
    found = messages(path, *keys)
    assert len(found) == 2 * 3 * 3 * len(CHANNELS)
    assert {one["jScansPositively"] for one in found} == {0}
    assert {one["latitudeOfFirstGridPointInDegrees"] for one in found} == {78.75}
    assert {one["numberOfForecastsInEnsemble"] for one in found} == {3}
    assert {(one["gridType"], one["packingType"], one["edition"]) for one in found} == {("regular_ll", "grid_ccsds", 2)}
    rain = [one for one in found if one["paramId"] == 228228]
    assert {one["stepRange"] for one in rain} == {"0-12", "12-24", "24-36"}
    assert {(one["productDefinitionTemplateNumber"], one["stepType"], one["units"]) for one in rain} == {
        (11, "accum", "kg m**-2")
    }
    assert {(one["dataDate"], one["dataTime"], one["validityDate"], one["validityTime"]) for one in rain} >= {
        (20070111, 1200, 20070112, 0), (20070101, 0, 20070102, 1200),
    }  # fmt: skip
    others = [one for one in found if one["paramId"] != 228228]
    assert {(one["productDefinitionTemplateNumber"], one["stepType"]) for one in others} == {(1, "instant")}
    assert {(one["perturbationNumber"], one["dataType"]) for one in found} == {(0, "cf"), (1, "pf"), (2, "pf")}
    names = {(one["shortName"], one["typeOfLevel"], one["level"]) for one in found}
    assert names == {
        ("z", "isobaricInhPa", 500), ("z", "isobaricInhPa", 850), ("t", "isobaricInhPa", 850), ("2t", "heightAboveGround", 2),
        ("10u", "heightAboveGround", 10), ("msl", "meanSea", 0), ("sst", "surface", 0), ("tcc", "entireAtmosphere", 0),
        ("tp", "surface", 0),
    }  # fmt: skip


def test_cfgrib_reads_it_as_anybody_would(tmp_path: Path) -> None:
    data = made()
    path = written(data[["2m_temperature"]], tmp_path / "t.grib2", bits=24)
    back = xr.open_dataset(path, engine="cfgrib", backend_kwargs={"indexpath": "", "filter_by_keys": {"dataType": "pf"}})
    assert back["latitude"].values[0] == 78.75
    own = data["2m_temperature"].sel(number=[1, 2]).transpose("number", "time", "prediction_timedelta", ...).values
    found = back["t2m"].transpose("number", "time", "step", "latitude", "longitude").values[..., ::-1, :]
    np.testing.assert_allclose(found, own, atol=1e-4)


def test_every_variable_of_the_table_has_a_parameter_or_is_refused_by_name() -> None:
    """What GRIB2 names is written with its own parameter, in units that lead back; the rest is listed at once."""
    wanted = [variable for variable in VARIABLES.values() if not variable.static]
    fields = [
        Field(Channel(variable.name, 500 if variable.on_levels else None), variable, 12 if variable.accumulated else None, (0,))
        for variable in wanted
    ]
    faults = grib.check(fields, Packing())
    refused = {fault.split(":")[0].removesuffix("_500") for fault in faults}
    assert refused == {
        "integrated_vapor_transport", "soil_temperature_level_1", *(f"volumetric_soil_water_layer_{k}" for k in (1, 2, 3, 4)),
    }  # fmt: skip
    for field in fields:
        if field.variable.name not in refused:
            with grib._template(field, Packing()) as handle:
                known = eccodes.codes_get(handle, "paramId")
                assert known in (*field.variable.param_ids, grib.PARAM_IDS.get(field.variable.name)), field


def test_fields_without_a_name_in_grib_are_listed_before_anything_is_written(tmp_path: Path) -> None:
    data = made(
        channels=(Channel("2m_temperature"), Channel("integrated_vapor_transport"), Channel("volumetric_soil_water_layer_1"))
    )
    with pytest.raises(InputError) as caught:
        written(data, tmp_path / "x.grib2")
    for part in ("integrated_vapor_transport", "volumetric_soil_water_layer_1", "leave it out by --variable"):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["x.nc", "folder"])
def test_netcdf_is_read_back_bit_by_bit(tmp_path: Path, out: str) -> None:
    data = made()
    path = written(data, tmp_path / out)
    found = [path] if out == "x.nc" else sorted(path.glob("*.nc"))
    assert [one.name for one in found] == (["x.nc"] if out == "x.nc" else ["2007010100.nc", "2007011112.nc"])
    for one, times in zip(found, [TIMES] if out == "x.nc" else [TIMES[:1], TIMES[1:]], strict=True):
        back = open_forecast(one)
        for channel in CHANNELS:
            name = Channel(channel.name, channel.level)
            own = select(data, channel).sel(time=times)
            np.testing.assert_array_equal(select(back, name).transpose(*own.dims).values, own.values)
        np.testing.assert_array_equal(back["time"], times)
        np.testing.assert_array_equal(back["prediction_timedelta"], LEADS)
        assert Grid.of(back).matches(GRID)
    manifest = read_json(path / "manifest.json" if out == "folder" else tmp_path / "x.nc.json", "recipe", "files")
    assert manifest["files"] == {one.name: [one.stat().st_size, sha256(one)] for one in found}


def test_netcdf_follows_the_conventions(tmp_path: Path) -> None:
    path = written(made(), tmp_path / "folder") / "2007011112.nc"
    with netCDF4.Dataset(path) as file:
        assert file.Conventions == "CF-1.11"
        assert file.attribution == "Made by nobody"
        assert (file["time"].standard_name, file["time"].bounds) == ("time", "time_bnds")
        assert file["forecast_reference_time"].standard_name == "forecast_reference_time"
        assert file["forecast_period"].standard_name == "forecast_period"
        assert file["realization"].standard_name == "realization"
        np.testing.assert_array_equal(file["time_bnds"][:], np.stack([file["time"][:] - 12, file["time"][:]], -1))
        rain, warm, height = file[RAIN], file["t2m"], file["geopotential"]
        assert rain.cell_methods == "time: sum (over the 12 hours that end at the valid time)"
        assert (rain.standard_name, rain.units) == ("lwe_thickness_of_precipitation_amount", "m")
        assert (warm.standard_name, warm.cell_methods) == ("air_temperature", "time: point")
        assert "height_2m" in warm.coordinates
        assert (float(file["height_2m"][...]), file["height_2m"].units, file["height_2m"].positive) == (2, "m", "up")
        assert height.dimensions == ("realization", "time", "level", "latitude", "longitude")
        assert height.filters()["zlib"] is True
        assert height.filters()["fletcher32"] is True
        assert height.chunking() == [1, 1, 1, 8, 16]
        for variable in file.variables.values():
            assert variable.name[0].isalpha()
            assert not variable.ncattrs() or "units" in variable.ncattrs()
            for name in getattr(variable, "coordinates", "").split():
                assert set(file[name].dimensions) <= set(variable.dimensions)
    with xr.open_dataset(path, decode_timedelta=True) as data:
        assert data["time"].values[0] == np.datetime64("2007-01-12T00")
        assert data["forecast_period"].values[0] == np.timedelta64(12, "h")


@pytest.mark.skipif(shutil.which("compliance-checker") is None, reason="compliance-checker (IOOS) is not installed")
def test_the_ioos_checker_finds_nothing(tmp_path: Path) -> None:
    path = written(made(), tmp_path / "folder") / "2007011112.nc"
    said = subprocess.run(["compliance-checker", "-t", "cf:1.11", str(path)], capture_output=True, text=True, check=False)
    assert "All tests passed!" in said.stdout, said.stdout


def test_a_region_over_greenwich_and_some_members(tmp_path: Path) -> None:
    data = made(numbers=(1, 2, 3))
    write_dataset(tmp_path / "f.zarr", data)
    words = ["--region=-50,50,0,80", "--variable", "geopotential", "--level", "850", "--member", "3", "--init", "2007-01-11T12"]
    for name in ("x.grib2", "x.nc"):
        text = run("export", tmp_path / "f.zarr", "--out", tmp_path / name, "--bits", "24", *words)
        assert "1 initialisations x 1 members x 3 leads of 1 fields" in text
        back = open_forecast(tmp_path / name)
        assert back["number"].values.tolist() == [3]
        assert back["longitude"].values.tolist() == [-45.0, -22.5, 0.0, 22.5, 45.0]
        own = data["geopotential"].sel(
            level=[850], number=[3], time=TIMES[1:], latitude=slice(0, 80), longitude=[315, 337.5, 0, 22.5, 45]
        )
        np.testing.assert_allclose(back["geopotential"].transpose(*own.dims).values, own.values, atol=0.01)
    found = messages(tmp_path / "x.grib2", "longitudeOfFirstGridPointInDegrees", "longitudeOfLastGridPointInDegrees", "Ni", "Nj")
    assert set(found[0].values()) == {315.0, 45.0, 5, 4}


def test_a_gaussian_grid_stays_one(tmp_path: Path) -> None:
    grid = Grid.named("F4")
    path = written(made(grid, (Channel("2m_temperature"),)), tmp_path / "x.grib2", bits=24)
    assert messages(path, "gridType", "N")[0] == {"gridType": "regular_gg", "N": 4}
    back = open_forecast(path)
    assert Grid.of(back).matches(grid)
    np.testing.assert_allclose(
        back["2m_temperature"].values, made(grid, (Channel("2m_temperature"),))["2m_temperature"], atol=1e-3
    )


def test_a_finished_export_is_left_alone_and_another_is_refused(tmp_path: Path) -> None:
    data = made(channels=CHANNELS[:1])
    path = written(data, tmp_path / "x.grib2")
    before = path.stat().st_mtime_ns
    written(data, path)
    assert path.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="bits"):
        written(data, path, bits=24)
    (tmp_path / "y.nc").write_text("mine")
    with pytest.raises(InputError, match=r"has no y\.nc\.json"):
        written(data, tmp_path / "y.nc")
    with pytest.raises(InputError, match="ends as netcdf, asked for is grib2"):
        Settings.of(tmp_path / "z.nc", "grib2", Packing())


@pytest.mark.parametrize("kind", ["netcdf", "grib2"])
def test_a_killed_export_continues_and_is_never_half_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: files.Format
) -> None:
    data, out = made(channels=CHANNELS[:2]), tmp_path / "out"
    settings = Settings.of(out, kind, Packing())
    whole = export(data, plan_of(data), tmp_path / "whole", settings)
    calls: list[list[int]] = []
    real = files._write_file

    def dying(path: Path, forecast: xr.Dataset, plan: Any, fields: Any, rows: list[int], *rest: Any) -> Any:
        calls.append(rows)
        if len(calls) == 2:
            monkeypatch.setattr("forecast.export.blocks.Block", None)  # fails while the file is written
        return real(path, forecast, plan, fields, rows, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(files, "_write_file", dying)
        with pytest.raises(TypeError):
            export(data, plan_of(data), out, settings)
        monkeypatch.undo()
    assert not out.exists()
    ending = ".nc" if kind == "netcdf" else ".grib2"
    assert {one.name for one in (tmp_path / "out.partial").iterdir()} == {f"2007010100{ending}", "manifest.json"}
    with monkeypatch.context() as patched:
        patched.setattr(files, "_write_file", lambda *args: calls.append(args[4]) or real(*args))
        export(data, plan_of(data), out, settings)
    assert calls == [[0], [1], [1]]
    assert not (tmp_path / "out.partial").exists()
    for one in whole.glob("2007*"):
        if kind == "grib2":  # NetCDF-4 files hold the time of their making
            assert (out / one.name).read_bytes() == one.read_bytes()
        else:
            xr.testing.assert_identical(open_forecast(out / one.name).load(), open_forecast(one).load())


def test_wrong_parts_are_told(tmp_path: Path) -> None:
    write_dataset(tmp_path / "f.zarr", made(channels=CHANNELS[:2]))
    words = ("export", tmp_path / "f.zarr", "--out", tmp_path / "x.nc")
    for options, told in (
        (["--variable", "snow"], "snow"), (["--region", "1,2,3"], "expected west,east,south,north"),
        (["--member", "7", "--init", "2007-02-01"], "no initialisation 2007-02-01T00, member 7"),
    ):  # fmt: skip
        result = CliRunner().invoke(plumecast.application(), [*map(str, words), *options])
        assert isinstance(result.exception, InputError)
        assert told in str(result.exception)
    assert not (tmp_path / "x.nc").exists()


def test_names_of_the_files_begin_with_letters() -> None:
    names = [variable.name for variable in VARIABLES.values() if not variable.name[0].isalpha()]
    assert names
    for name in names:
        variable = lookup(name)
        assert variable is not None
        assert variable.short[0].isalpha()


def run(*words: object) -> str:
    result = CliRunner().invoke(plumecast.application(), [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output
