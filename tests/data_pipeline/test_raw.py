"""Many files, zips and stores open one at a time and safely; files in other units and on other calendars join or are refused."""

from __future__ import annotations

import threading
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.sources import raw
from data_pipeline.sources.files import open_ensemble, open_files
from tests.data_pipeline.worlds import GRID, analysis, check_equal, forecast, mapping, short


def zipped(path: Path, files: dict[str, Path | bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content if isinstance(content, bytes) else content.read_bytes())
    return path


# --- zip archives


@pytest.mark.parametrize("name", ["era5.zip", "era5.nc"])
def test_a_zip_of_the_climate_data_store_opens_as_its_files(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    data = short(analysis())
    data[["t2m"]].to_netcdf(folder / "instant.nc")
    data[["z"]].to_netcdf(folder / "levels.nc")
    path = zipped(
        tmp_path / name,
        {
            "data_stream-oper_stepType-instant.nc": folder / "instant.nc",
            "b/levels.nc": folder / "levels.nc",
            "README.txt": b"text",
        },
    )
    check_equal(open_files(path), analysis())
    check_equal(open_files(path), analysis())


def test_a_zip_cannot_choose_where_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw.tempfile, "mkdtemp", lambda prefix: str((tmp_path / "here").mkdir() or tmp_path / "here"))
    short(analysis()).to_netcdf(tmp_path / "a.nc")
    path = zipped(tmp_path / "bad.zip", {"../../evil.nc": tmp_path / "a.nc", "/abs/evil2.txt": b"x", "..\\evil3.txt": b"x"})
    check_equal(open_files(path), analysis())
    landed = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("evil*"))
    assert landed == ["here/0/evil.nc", "here/1/evil2.txt", "here/2/evil3.txt"]


@pytest.mark.parametrize(("limit", "value"), [("UNPACKED_BYTES", 10_000), ("UNPACKED_FILES", 1), ("UNPACKED_RATIO", 0)])
def test_a_zip_that_is_too_large_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(raw, limit, value)
    monkeypatch.setattr(raw.tempfile, "mkdtemp", lambda prefix: pytest.fail(f"unpacked to {prefix}"))
    path = zipped(tmp_path / "big.zip", {"a.nc": bytes(20_000), "b.nc": b"CDF"})
    with pytest.raises(InputError, match=r"big.zip would unpack .* in 2 files"):
        open_files(path)


def test_a_zip_without_fields_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a zip archive without NetCDF or GRIB; it holds a.txt"):
        open_files(zipped(tmp_path / "a.zip", {"a.txt": b"words"}))


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_zip_with_damaged_content_is_named(tmp_path: Path, packing: int) -> None:
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("a.nc", b"CDF" + np.random.default_rng(0).integers(0, 8, 4000).astype("u1").tobytes())
    content = bytearray(path.read_bytes())
    content[60:200] = bytes(255 - byte for byte in content[60:200])
    path.write_bytes(content)
    with pytest.raises(InputError, match="bad.zip is a damaged zip archive"):
        open_files(path)


# --- many files


def test_many_files_are_one_dataset_with_no_field_in_memory(tmp_path: Path) -> None:
    days = pd.date_range("2020-01-01", periods=60, freq="12h").as_unit("ns")
    one = short(analysis()).isel(time=[0])
    for i, day in enumerate(days):
        one.assign_coords(time=[day]).to_netcdf(tmp_path / f"{i:03d}.nc", format="NETCDF3_64BIT")
    opened = open_files(tmp_path)
    np.testing.assert_array_equal(opened["time"].values, days)
    assert opened["geopotential"].data.npartitions == 60
    np.testing.assert_array_equal(opened["2m_temperature"].isel(time=45).values, one["t2m"].values[0])


def test_threads_open_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short(analysis()).to_netcdf(tmp_path / "a.nc")
    inside, most = [0], [0]
    opening = xr.open_dataset

    def counted(*args: object, **options: object) -> xr.Dataset:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        try:
            return opening(*args, **options)  # type: ignore[arg-type]
        finally:
            inside[0] -= 1

    monkeypatch.setattr(raw.xr, "open_dataset", counted)
    threads = [threading.Thread(target=open_files, args=(tmp_path / "a.nc",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


# --- other units, other calendars


def test_the_same_variable_in_other_units_joins_after_conversion(tmp_path: Path) -> None:
    times = pd.date_range("2020-01-01", periods=6, freq="6h").as_unit("ns")
    random = np.random.default_rng(0)
    dims = ("time", "latitude", "longitude")
    plain = {
        "mean_sea_level_pressure": random.normal(1e5, 1e3, (6, *GRID.shape)),
        "total_precipitation": random.gamma(1, 1e-3, (6, *GRID.shape)), "2m_temperature": random.normal(280, 9, (6, *GRID.shape)),
    }  # fmt: skip
    coords = {"time": times, **GRID.coords()}
    scales = [
        {"msl": ("Pa", 1.0, 0.0), "tp": ("m", 1.0, 0.0), "t2m": ("K", 1.0, 0.0)},
        {"msl": ("hPa", 0.01, 0.0), "tp": ("mm", 1000.0, 0.0), "t2m": ("degC", 1.0, -273.15)},
        {"msl": ("mbar", 0.01, 0.0), "tp": ("kg m**-2", 1000.0, 0.0), "t2m": ("K", 1.0, 0.0)},
    ]
    for i, scale in enumerate(scales):
        part = {
            name: (dims, plain[long][2 * i : 2 * i + 2] * factor + offset, {"units": units})
            for (name, (units, factor, offset)), long in zip(scale.items(), plain, strict=True)
        }
        xr.Dataset(part, {**coords, "time": times[2 * i : 2 * i + 2]}).to_netcdf(tmp_path / f"{i}.nc")
    opened = open_files(tmp_path)
    for name, values in plain.items():
        np.testing.assert_allclose(opened[name].values, values, rtol=2e-6)
    assert "msl -> mean_sea_level_pressure [hPa -> Pa]" in mapping(opened)


def test_one_variable_under_two_names_is_named_with_the_way_out(tmp_path: Path) -> None:
    data = short(analysis())
    data["gh"] = (data["z"] / 9.80665).assign_attrs(units="gpm")
    data.to_netcdf(tmp_path / "a.nc")
    with pytest.raises(InputError, match=r'geopotential: level 500 is there 2 times, as gh, z; leave one out .* \{"z" = ""\}'):
        open_files(tmp_path / "a.nc")
    opened = open_files(tmp_path / "a.nc", names={"gh": ""})
    check_equal(opened, analysis())
    assert "gh: left out, as the source option names wants it" in mapping(opened)


@pytest.mark.parametrize(
    ("time", "message"),
    [
        (
            {"units": "months since 2000-01-01"},
            r"a.nc: unable to decode time units 'months.*expected hours, days or seconds since",
        ),
        ({"units": "days since 2000-01-01", "calendar": "360_day"}, "calendar '360_day'; expected the standard one"),
        ({"units": "days since 2000-01-01", "calendar": "noleap"}, "calendar 'noleap'; expected the standard one"),
        ({"units": "days since 1000-01-01"}, "calendar"),
        ({"units": "day as %Y%m%d.%f"}, "time holds int64, not dates"),
    ],
)
def test_other_calendars_are_refused_by_name(tmp_path: Path, time: dict[str, str], message: str) -> None:
    short(analysis()).assign_coords(time=("time", [0, 1, 2], time)).to_netcdf(tmp_path / "a.nc")
    for open_any in (open_files, open_ensemble):
        with pytest.raises(InputError, match=message):
            open_any(tmp_path / "a.nc")


@pytest.mark.parametrize("how", ["frequency", "stepType"])
def test_monthly_means_are_refused(tmp_path: Path, how: str) -> None:
    data = short(analysis()).assign_attrs({"frequency": "mon"} if how == "frequency" else {})
    if how == "stepType":
        data["t2m"].attrs["GRIB_stepType"] = "avgua"
    data.to_netcdf(tmp_path / "a.nc")
    with pytest.raises(InputError, match="a.nc: monthly means"):
        open_files(tmp_path / "a.nc")


# --- nothing is dropped in silence


def test_what_is_left_out_is_told_with_its_reason(tmp_path: Path) -> None:
    data = short(forecast())
    data["zonal"] = data["t2m"].mean("longitude")
    data["flag"] = (("latitude", "longitude"), np.full(GRID.shape, "a"))
    data["lsm"] = (("latitude", "longitude"), np.zeros(GRID.shape, "f4"), {"units": "1"})
    data["spectrum"] = data["t2m"].expand_dims(wave=3)
    data.to_netcdf(tmp_path / "a.nc")
    opened = open_ensemble(tmp_path / "a.nc")
    check_equal(opened, forecast())
    said = mapping(opened)
    assert "zonal: left out, it has dims time, prediction_timedelta, number, latitude, no latitude and longitude" in said
    assert "flag: left out, it holds <U1, no numbers" in said
    assert "lsm: left out, it has no time, so it is no part of a forecast" in said
    assert "spectrum: left out, not in the table of variables" in said
