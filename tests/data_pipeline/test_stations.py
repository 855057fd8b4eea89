"""Tables of station observations open to one schema; every fault is refused with its line."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.sources.stations import check_stations, open_stations

HEADER = "station,latitude,longitude,elevation,time,variable,value,units"
GOOD = "01001,70.94,-8.67,10,2007-01-05T12:00,2m_temperature,-5.2,degC"


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: str, header: str = HEADER) -> Path:
        path = tmp_path / "obs.csv"
        path.write_text("\n".join([header, *rows]) + "\n")
        return path

    return write


def row(**changes: object) -> str:
    values = dict(zip(HEADER.split(","), GOOD.split(","), strict=True)) | changes
    return ",".join(str(value) for value in values.values())


def mapping(data: xr.Dataset) -> list[str]:
    lines: list[str] = json.loads(data.attrs["mapping"])
    return lines


def test_a_table_becomes_one_dataset_in_the_units_of_the_schema(table: Callable[..., Path]) -> None:
    data = open_stations(
        table(
            GOOD,
            row(variable="msl", value=1013.2, units="hPa"),
            row(time="2007-01-06T00", value=-3),
            row(station="A", latitude=0, longitude=359.5, elevation="", variable="tp06", value=2.5, units="mm"),
            row(station="A", latitude=0, longitude=359.5, elevation="", variable="10m_wind_speed", value=10, units="knots"),
        )
    )
    check_stations(data)
    assert data["2m_temperature"].dims == ("time", "station")
    assert data["station"].values.tolist() == ["01001", "A"]
    np.testing.assert_allclose(data["longitude"], [351.33, 359.5])
    np.testing.assert_array_equal(data["elevation"], [10, np.nan])
    expected = {
        "2m_temperature": ("K", [[267.95, np.nan], [270.15, np.nan]]),
        "mean_sea_level_pressure": ("Pa", [[101320, np.nan], [np.nan, np.nan]]),
        "total_precipitation_6hr": ("m", [[np.nan, 0.0025], [np.nan, np.nan]]),
        "10m_wind_speed": ("m s-1", [[np.nan, 5.14444], [np.nan, np.nan]]),
    }
    assert set(map(str, data.data_vars)) == set(expected)
    for name, (units, values) in expected.items():
        assert data[name].dtype == np.float32
        assert data[name].attrs["units"] == units
        np.testing.assert_allclose(data[name], np.float32(values), rtol=1e-6)
    assert "tp06: total_precipitation_6hr, mm to m" in mapping(data)


def test_column_names_have_aliases_in_either_case_and_others_are_left_out(table: Callable[..., Path]) -> None:
    header = "STATION_ID,lat,Lon,alt,valid_time,parameter,obs,unit,quality"
    data = open_stations(table(GOOD + ",7", header=header))
    xr.testing.assert_equal(data, open_stations(table(GOOD)))
    assert {"column obs: value", "column quality: left out", "column lat: latitude"} <= set(mapping(data))


def test_a_table_of_one_variable_may_be_told_what_it_holds(table: Callable[..., Path]) -> None:
    path = table("01001,70.94,-8.67,2007-01-05T12,-5.2", header="station,lat,lon,time,value")
    data = open_stations(path, variable="t2m", units="degC")
    np.testing.assert_allclose(data["2m_temperature"], 267.95, rtol=1e-6)
    assert np.isnan(data["elevation"]).all()
    with pytest.raises(InputError, match=r"no column for variable .*; units .*it has station, lat"):
        open_stations(path)


@pytest.mark.parametrize(
    "stamp", ["2007-01-05T12:00", "2007-01-05 12:00:00", "2007010512", "200701051200", "2007-01-05T13:00+01:00", "2007-01-05T12Z"]
)
def test_times_are_utc_in_any_iso_form(stamp: str, table: Callable[..., Path]) -> None:
    assert open_stations(table(row(time=stamp)))["time"].values == [np.datetime64("2007-01-05T12", "ns")]


def test_a_station_number_keeps_its_zeros_and_a_region_may_be_called_na(table: Callable[..., Path]) -> None:
    data = open_stations(table(GOOD + ",NA", header=HEADER + ",region"))
    assert data["station"].item() == "01001"
    assert data["region"].item() == "NA"


def test_codes_of_missing_values_are_missing_only_where_no_value_can_be(table: Callable[..., Path]) -> None:
    data = open_stations(
        table(
            GOOD, row(time="2007-01-06", value=-9999), row(time="2007-01-07", value=""), row(time="2007-01-08", value=600),
            row(variable="sp", value=99999, units="Pa"), row(station="B", elevation=-9999),
        )
    )  # fmt: skip
    temperature = data["2m_temperature"].sel(station="01001")
    np.testing.assert_allclose(temperature, [267.95, np.nan, np.nan, 873.15], rtol=1e-6)
    assert data["surface_pressure"].sel(station="01001")[0] == 99999
    np.testing.assert_array_equal(data["elevation"], [10, np.nan])
    assert "2m_temperature: 1 values are codes of a missing value" in mapping(data)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, row(time="2007-13-05")], "line 3: time 2007-13-05 is no date"),
        ([row(time="05/01/2007")], "line 2: time 05/01/2007 is no date"),
        ([row(time="1167998400")], "line 2: time 1167998400 is no date"),
        ([row(time="99991231")], "line 2: time 99991231 is no date"),
        ([row(value="calm")], "line 2: value 'calm' is no number"),
        ([GOOD, "", row(station="B", value="inf"), row(station="C", value="inf")], "line 4: value inf of B.*2 such rows"),
        ([row(latitude=90.5)], "line 2: latitude 90.5 of 01001; expected -90 to 90"),
        ([row(longitude="")], "line 2: longitude nan of 01001"),
        ([row(longitude=-181)], "line 2: longitude -181 of 01001"),
        ([row(elevation=12000)], "line 2: elevation 12000 of 01001"),
        ([row(station=" ")], "line 2: no station"),
        ([row(units="")], "line 2: no units"),
        ([row(variable="temp"), row(variable="x")], "line 2: variable 'temp': not in the table(.|\n)*line 3: variable 'x'"),
        ([row(variable="t")], "line 2: variable 't': temperature is on pressure levels"),
        ([row(variable="lsm")], "line 2: variable 'lsm': land_sea_mask is static"),
        ([row(variable="TMP")], "line 2: variable 'TMP': may be any of 2m_temperature, skin_temperature"),
        ([row(units="hPa")], "line 2: variable '2m_temperature': 2m_temperature: units 'hPa' cannot be converted"),
        ([row(units="furlong")], "line 2: .*unit 'furlong' is not known"),
        ([GOOD, row(variable="t2m")], "line 3: 2m_temperature of 01001 at 2007-01-05T12:00 is there already, at line 2"),
        ([GOOD, row(time="2007-01-04")], "line 3: 2m_temperature of 01001 at 2007-01-04T00:00 comes after a later time"),
        ([GOOD + ",5,6"], "cannot be read as a table"),
        ([], "holds no row"),
    ],
)
def test_every_fault_is_refused_where_it_is(rows: list[str], message: str, table: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=message):
        open_stations(table(*rows))


def test_columns_that_could_play_one_role_are_refused(table: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="time and valid_time could each be time"):
        open_stations(table(GOOD + ",2007-01-06", header=HEADER + ",valid_time"))


def test_files_that_are_no_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not found"):
        open_stations(tmp_path / "none.csv")
    for name, content in (("a.xlsx", b"PK"), ("b.nc", b"CDF"), ("c.csv", b""), ("d.csv", b"\xff\xfe")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=r"is not known|cannot be read"):
            open_stations(tmp_path / name)
    with pytest.raises(InputError, match="moved='drop'"):
        open_stations(tmp_path / "c.csv", moved="drop")  # type: ignore[arg-type]


def test_a_small_move_is_told_and_a_large_one_refused_or_split(table: Callable[..., Path]) -> None:
    near = table(GOOD, row(time="2007-01-06", latitude=70.95, elevation=""), row(time="2007-01-07", elevation=25))
    data = open_stations(near)
    assert data.sizes["station"] == 1
    assert (data["latitude"].item(), data["elevation"].item()) == (70.94, 10)
    assert "01001: positions up to 1112 m apart are one, the first" in mapping(data)
    with pytest.raises(InputError, match=r"1 stations move further than 500 m, .*01001 at line 3, up to 1.1 km"):
        open_stations(near, max_move=500)

    ship = table(
        GOOD, row(time="2007-01-06", latitude=60), row(time="2007-01-07"), row(time="2007-01-07", station="B", latitude=1)
    )
    with pytest.raises(InputError, match=r"01001 at line 3, up to 1216.5 km\).*moved='split'"):
        open_stations(ship)
    data = open_stations(ship, moved="split")
    assert data["station"].values.tolist() == ["01001#1", "01001#2", "B"]
    assert data["latitude"].values.tolist() == [70.94, 60, 1]
    present = data["2m_temperature"].notnull().values
    np.testing.assert_array_equal(present, [[True, False, False], [False, True, False], [True, False, True]])

    tower = table(GOOD, row(time="2007-01-06", elevation=40))
    with pytest.raises(InputError, match="20 m in height"):
        open_stations(tower)


def test_the_first_known_elevation_is_the_stations(table: Callable[..., Path]) -> None:
    data = open_stations(table(row(elevation=""), row(time="2007-01-06"), row(time="2007-01-07", elevation=12)))
    assert data["elevation"].item() == 10


def test_a_move_across_the_date_line_is_a_small_one(table: Callable[..., Path]) -> None:
    data = open_stations(table(row(longitude=179.99, latitude=0), row(time="2007-01-06", longitude=-180, latitude=0)))
    assert data.sizes["station"] == 1


def test_a_station_has_one_region(table: Callable[..., Path]) -> None:
    rows = [GOOD + ",north", row(time="2007-01-06") + ",south"]
    with pytest.raises(InputError, match="station 01001 is in the regions north, south"):
        open_stations(table(*rows, header=HEADER + ",region"))


def test_netcdf_in_long_form_opens_as_the_same_table(table: Callable[..., Path], tmp_path: Path) -> None:
    path = table(GOOD, row(time="2007-01-06", value=2), row(station="B", time="2007-01-06", latitude=5))
    frame = pd.read_csv(path, dtype={"station": str}, parse_dates=["time"]).drop(columns="units")
    data = frame.to_xarray().rename(index="case")
    data["time"] = data["time"].astype("datetime64[ns]")
    data["value"].attrs["units"] = "degC"
    data["elevation"].attrs["units"] = "m"
    for form in ("U", "S"):
        data["station"] = data["station"].astype(form)
        data.to_netcdf(tmp_path / f"{form}.nc")
        xr.testing.assert_identical(
            open_stations(tmp_path / f"{form}.nc").drop_attrs(deep=False), open_stations(path).drop_attrs(deep=False)
        )
    data["elevation"].attrs["units"] = "km"
    data.to_netcdf(tmp_path / "km.nc")
    with pytest.raises(InputError, match="elevation is in 'km'"):
        open_stations(tmp_path / "km.nc")


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is not None, reason="pyarrow is installed")
def test_parquet_without_pyarrow_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "obs.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="pip install pyarrow, or give a CSV"):
        open_stations(tmp_path / "obs.parquet")


def test_a_parquet_table_has_typed_columns(table: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(row(station=1001), row(station=1001, time="2007-01-06T00:00", value=2))
    typed = pd.read_csv(path, parse_dates=["time"])
    typed["time"] = typed["time"].dt.tz_localize("UTC")
    (tmp_path / "obs.parquet").touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(pd, "read_parquet", lambda path: typed)
    xr.testing.assert_equal(open_stations(tmp_path / "obs.parquet"), open_stations(path))
    typed.loc[1, "units"] = None
    with pytest.raises(InputError, match="units has numbers or gaps"):
        open_stations(tmp_path / "obs.parquet")


def test_a_dataset_that_is_no_station_table_is_refused() -> None:
    with pytest.raises(InputError, match=r"coordinates missing \['elevation'\].*\['t'\]"):
        check_stations(
            xr.Dataset(
                {"t": ("x", [1.0])},
                {"time": ("time", [0]), "station": ("station", [0]), "latitude": ("station", [0]), "longitude": ("station", [0])},
            )
        )


def test_a_real_network_of_the_pacific_northwest_opens_with_its_ships(shared_data: Callable[[str], Path]) -> None:
    path = shared_data("ens-stations") / "uwme_t2m_48h_pacific_northwest.nc"
    with pytest.raises(InputError, match="stations move further than 2000 m"):
        open_stations(path, variable="2m_temperature")
    data = open_stations(path, variable="2m_temperature", moved="split")
    assert int(data["2m_temperature"].notnull().sum()) == 36826
    assert data.sizes["time"] == 52
    original = xr.open_dataset(path)
    assert int(np.isnan(data["elevation"]).sum()) > 0
    assert float(data["elevation"].max()) == float(original["elevation"].max())
    assert float(data["2m_temperature"].mean()) == pytest.approx(float(original["obs"].mean()), abs=1e-4)
