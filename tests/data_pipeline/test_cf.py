"""Coordinates by their attributes, whatever their names; and what could be one thing or another is refused with what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.sources.files import open_ensemble, open_files
from tests.data_pipeline.worlds import GRID, HOURS, INITS, analysis, check_equal, forecast, mapping, short

# --- coordinates by CF attributes


CF_COORDS: dict[str, dict[str, dict[str, str]]] = {
    "standard_name": {
        "y": {"standard_name": "latitude"}, "x": {"standard_name": "longitude"},
        "z": {"standard_name": "air_pressure", "units": "Pa"},
        "t": {"standard_name": "forecast_reference_time"}, "f": {"standard_name": "forecast_period", "units": "hours"},
        "r": {"standard_name": "realization"},
    },
    "units and axis": {
        "y": {"units": "degrees_north"}, "x": {"units": "degree_east"}, "z": {"units": "hPa", "positive": "down"},
        "t": {"axis": "T"}, "f": {"standard_name": "forecast_period", "units": "hours"}, "r": {"axis": "E"},
    },
    "axis": {
        "y": {"axis": "Y"}, "x": {"axis": "X"}, "z": {"axis": "Z", "units": "millibar"},
        "t": {"axis": "T"}, "f": {"long_name": "lead", "standard_name": "forecast_period", "units": "h"}, "r": {"axis": "E"},
    },
}  # fmt: skip


@pytest.mark.parametrize("how", list(CF_COORDS))
@pytest.mark.parametrize("letters", ["yxztfr", "abcdef"])
def test_coordinates_are_found_by_their_attributes_whatever_their_names(tmp_path: Path, how: str, letters: str) -> None:
    attrs = dict(zip(letters, CF_COORDS[how].values(), strict=True))
    data = forecast().assign_coords(prediction_timedelta=HOURS)
    if attrs[letters[2]].get("units") == "Pa":
        data = data.assign_coords(level=data["level"] * 100)
    old = ("latitude", "longitude", "level", "time", "prediction_timedelta", "number")
    data = data.rename(dict(zip(old, letters, strict=True)))
    for name, found in attrs.items():
        data[name].attrs = found
    data["geopotential"].attrs["standard_name"] = "geopotential"
    data.to_netcdf(tmp_path / "cf.nc")
    opened = open_ensemble(tmp_path / "cf.nc")
    check_equal(opened, forecast())
    assert f"{letters[0]} -> latitude" in mapping(opened)


def test_variables_are_found_by_standard_name_and_height(tmp_path: Path) -> None:
    data = analysis().rename({"geopotential": "field_a", "2m_temperature": "field_b"})
    data["field_a"].attrs["standard_name"] = "geopotential"
    data["field_b"].attrs["standard_name"] = "air_temperature"
    data["field_b"] = data["field_b"].assign_coords(height=xr.Variable((), 2.0, {"units": "m", "standard_name": "height"}))
    data.to_netcdf(tmp_path / "cf.nc")
    check_equal(open_files(tmp_path / "cf.nc"), analysis())


@pytest.mark.parametrize("form", ["1-d", "2-d", "mapping"])
def test_a_rotated_grid_is_refused_however_it_is_told(tmp_path: Path, form: str) -> None:
    data = analysis()[["2m_temperature"]]
    if form == "1-d":  # the names alone would pass
        data["latitude"].attrs = {"standard_name": "grid_latitude", "units": "degrees"}
        data["longitude"].attrs = {"standard_name": "grid_longitude", "units": "degrees"}
    elif form == "2-d":
        two = xr.DataArray(np.add.outer(GRID.latitude, GRID.longitude / 100), dims=("rlat", "rlon"))
        data = data.drop_vars(["latitude", "longitude"]).rename(latitude="rlat", longitude="rlon")
        data = data.assign_coords(lat=two, lon=two)
    else:
        data["crs"] = xr.DataArray(0, attrs={"grid_mapping_name": "rotated_latitude_longitude"})
        data["2m_temperature"].attrs["grid_mapping"] = "crs"
    data.to_netcdf(tmp_path / "a.nc")
    with pytest.raises(InputError, match="rotated.*regrid"):
        open_files(tmp_path / "a.nc")


def test_a_plain_grid_mapping_is_no_obstacle(tmp_path: Path) -> None:
    data = analysis()
    data["crs"] = xr.DataArray(0, attrs={"grid_mapping_name": "latitude_longitude"})
    data["2m_temperature"].attrs["grid_mapping"] = "crs"
    data.to_netcdf(tmp_path / "a.nc")
    check_equal(open_files(tmp_path / "a.nc"), analysis())


@pytest.mark.parametrize(
    ("name", "values", "attrs"),
    [
        ("level", [1, 2], {"long_name": "model_level_number"}),
        ("level", [136, 137], {"standard_name": "atmosphere_hybrid_sigma_pressure_coordinate"}),
        ("lev", [1, 2], {"long_name": "hybrid level at midpoints", "units": "level"}),
        ("level", [315, 350], {"units": "K"}),
    ],
)
def test_levels_that_are_no_pressures_are_refused(tmp_path: Path, name: str, values: list[int], attrs: dict[str, str]) -> None:
    data = short(analysis()).rename(level=name).assign_coords({name: (name, values, attrs)})
    data.to_netcdf(tmp_path / "a.nc")
    with pytest.raises(InputError, match=f"{name} .*pressure"):
        open_files(tmp_path / "a.nc")


def test_levels_counted_from_1_are_no_pressures(tmp_path: Path) -> None:
    data = xr.concat([short(analysis())[["z"]]] * 2, "level").assign_coords(level=[1, 2, 3, 4])
    data.to_netcdf(tmp_path / "a.nc")
    with pytest.raises(InputError, match="level is 1, 2, 3 ... without units: model levels"):
        open_files(tmp_path / "a.nc")


@pytest.mark.parametrize("name", ["hybrid", "theta", "depthBelowLandLayer"])
def test_a_field_on_other_levels_is_left_out_and_said(tmp_path: Path, name: str) -> None:
    short(analysis()).rename(level=name).to_netcdf(tmp_path / "a.nc")
    opened = open_files(tmp_path / "a.nc")
    check_equal(opened, analysis()[["2m_temperature"]])
    assert f"z: left out, it is on {name} levels; expected pressures (interpolate it first) or one level" in mapping(opened)


# --- what could be one thing or another


def test_valid_times_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    valid = (forecast()["time"] + forecast()["prediction_timedelta"]).values
    data = forecast().rename(prediction_timedelta="step").assign_coords(valid_time=(("time", "step"), valid))
    data.to_netcdf(tmp_path / "good.nc")
    check_equal(open_ensemble(tmp_path / "good.nc"), forecast())
    data.assign_coords(time=data["time"] + np.timedelta64(6, "h")).to_netcdf(tmp_path / "bad.nc")
    with pytest.raises(InputError, match="'valid_time' is not 'time' \\+ 'step': 'time' may be valid times or initialisations"):
        open_ensemble(tmp_path / "bad.nc")


def test_a_time_that_calls_itself_valid_is_no_initialisation(tmp_path: Path) -> None:
    data = forecast().rename(prediction_timedelta="step")
    data["time"].attrs["long_name"] = "valid time"
    data.to_netcdf(tmp_path / "a.nc")
    with pytest.raises(InputError, match="'time' with 'step' calls itself 'valid time'; expected initialisations"):
        open_ensemble(tmp_path / "a.nc")


def as_run(data: xr.Dataset) -> xr.Dataset:
    """One run along its valid times."""
    run = data.isel(time=0, drop=True).rename(prediction_timedelta="time")
    return run.assign_coords(time=INITS[0] + data["prediction_timedelta"].values)


def test_leads_beside_valid_times_of_one_run_give_the_initialisation(tmp_path: Path) -> None:
    run = as_run(forecast(1)).assign_coords(forecast_period=("time", HOURS, {"units": "hours"}))
    run.to_netcdf(tmp_path / "a.nc")
    check_equal(open_ensemble(tmp_path / "a.nc"), forecast(1))
    run.assign_coords(forecast_period=("time", [6, 6, 6], {"units": "hours"})).to_netcdf(tmp_path / "b.nc")
    with pytest.raises(InputError, match="'forecast_period' goes along 'time', which may be valid times or initialisations"):
        open_ensemble(tmp_path / "b.nc")


def test_one_lead_of_several_runs_along_valid_time(tmp_path: Path) -> None:
    expected = forecast().isel(prediction_timedelta=[1])
    data = expected.isel(prediction_timedelta=0, drop=True)
    data = data.assign_coords(forecast_reference_time=("time", INITS), time=INITS + pd.Timedelta("12h"))
    data.to_netcdf(tmp_path / "a.nc")
    check_equal(open_ensemble(tmp_path / "a.nc"), expected)


def test_runs_and_leads_mixed_in_one_dim_are_refused(tmp_path: Path) -> None:
    data = analysis().assign_coords(forecast_reference_time=("time", [INITS[0], INITS[0], INITS[1]]))
    data.to_netcdf(tmp_path / "a.nc")
    with pytest.raises(InputError, match="'time' holds 2 lead times of 2 runs in one dim; split the file by run"):
        open_ensemble(tmp_path / "a.nc")


def test_stamps_without_leads_are_said_to_be_analyses(tmp_path: Path) -> None:
    analysis().to_netcdf(tmp_path / "a.nc")
    opened = open_ensemble(tmp_path / "a.nc")
    assert opened.attrs["form"] == "analysis members"
    assert "time: no lead times, so stamps of analyses" in mapping(opened)
