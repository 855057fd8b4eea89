"""Layouts of other packages open unasked to the same data; what is none of them is told for what it seems."""

from __future__ import annotations

from pathlib import Path

import cftime
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr

from data_pipeline.errors import InputError
from data_pipeline.sources.files import open_ensemble, open_files
from data_pipeline.sources.layout import rename_roles
from tests.data_pipeline.worlds import HOURS, INITS, analysis, by_channel, check_equal, flat, forecast, mapping, short

# --- WeatherBench 2 and what follows it


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_weatherbench_2_forecasts_of_any_order_and_integer_leads(tmp_path: Path, zarr_format: int) -> None:
    data = forecast().transpose("time", "number", "prediction_timedelta", "level", "longitude", "latitude")
    data = data.isel(latitude=slice(None, None, -1))
    data = data.assign_coords(prediction_timedelta=("prediction_timedelta", HOURS, {"units": "hours"}))
    data.to_zarr(tmp_path / "wb2.zarr", zarr_format=zarr_format)
    check_equal(open_ensemble(tmp_path / "wb2.zarr"), forecast())


def test_weatherbench_2_analyses(tmp_path: Path) -> None:
    analysis().transpose("time", "level", "longitude", "latitude").to_zarr(tmp_path / "era5.zarr", zarr_format=2)
    check_equal(open_files(tmp_path / "era5.zarr"), analysis())


def test_weatherbench_x_valid_times_that_fit_are_checked(tmp_path: Path) -> None:
    valid = (forecast()["time"] + forecast()["prediction_timedelta"]).values
    data = forecast().rename(time="init_time", prediction_timedelta="lead_time")
    data.assign_coords(valid_time=(("init_time", "lead_time"), valid)).to_netcdf(tmp_path / "x.nc")
    opened = open_ensemble(tmp_path / "x.nc")
    check_equal(opened, forecast())
    assert "init_time -> time, lead_time -> prediction_timedelta" in mapping(opened)


# --- earth2studio


def test_earth2studio_zarr_without_consolidated_metadata(tmp_path: Path) -> None:
    data = by_channel(forecast()).isel(latitude=slice(None, None, -1)).transpose("number", "time", "prediction_timedelta", ...)
    root = zarr.group(zarr.storage.LocalStore(tmp_path / "e2s.zarr"))
    names = {"number": "ensemble", "time": "time", "prediction_timedelta": "lead_time", "latitude": "lat", "longitude": "lon"}
    arrays = {**{new: data[old] for old, new in names.items()}, **data.data_vars}
    for name, array in arrays.items():
        values = array.values.astype("i8") if array.dtype.kind in "mM" else array.values
        made = root.create_array(
            name, shape=values.shape, dtype=values.dtype, dimension_names=[names[str(dim)] for dim in array.dims]
        )
        made[...] = values
        if array.dtype.kind in "mM":
            made.attrs["units"] = "nanoseconds since 1970-01-01" if name == "time" else "nanoseconds"
    check_equal(open_ensemble(tmp_path / "e2s.zarr"), forecast())


def test_earth2studio_netcdf_counts_from_the_year_1(tmp_path: Path) -> None:
    data = by_channel(forecast()).isel(latitude=slice(None, None, -1))
    units = "hours since 0001-01-01 00:00:00.0"
    hours = cftime.date2num([stamp.to_pydatetime() for stamp in INITS], units, "gregorian")
    time = ("time", hours, {"units": units, "calendar": "gregorian"})
    data = data.assign_coords(time=time, prediction_timedelta=("prediction_timedelta", HOURS, {"units": "h"}))
    data = data.rename(number="ensemble", prediction_timedelta="lead_time", latitude="lat", longitude="lon")
    data.to_netcdf(tmp_path / "e2s.nc")
    check_equal(open_ensemble(tmp_path / "e2s.nc"), forecast())


def test_earth2studio_keeps_channels_along_a_dim(tmp_path: Path) -> None:
    split = by_channel(forecast())
    one = (
        split.to_dataarray("variable")
        .transpose("number", "time", "prediction_timedelta", "variable", ...)
        .to_dataset(name="fields")
    )
    one.rename(number="ensemble", prediction_timedelta="lead_time", latitude="lat", longitude="lon").to_netcdf(tmp_path / "a.nc")
    check_equal(open_ensemble(tmp_path / "a.nc"), forecast())


# --- anemoi


def anemoi(data: xr.Dataset, path: Path, reference: str, zarr_store: bool) -> None:
    """As anemoi-inference writes one run: flat points, valid times counted from the initialisation."""
    points = flat(data.rename(z500="z_500", z850="z_850", t2m="2t") if "z500" in data else data, "values").transpose(
        "time", "values"
    )
    seconds = ((points["time"].values - np.datetime64(reference)) / np.timedelta64(1, "s")).astype("i4")
    points = points.assign_coords(time=("time", seconds, {"units": f"seconds since {reference}", "calendar": "gregorian"}))
    points = points.drop_encoding()
    if zarr_store:
        points.to_zarr(path, consolidated=False)
    else:
        points.to_netcdf(path)


@pytest.mark.parametrize("name", ["run.nc", "run.zarr"])
def test_anemoi_runs_are_forecasts_from_the_reference_date(tmp_path: Path, name: str) -> None:
    expected = forecast(1, 1)
    run = by_channel(expected.isel(time=0, number=0, drop=True))
    run = run.rename(prediction_timedelta="time").assign_coords(time=INITS[0] + expected["prediction_timedelta"].values)
    anemoi(run, tmp_path / name, "2020-02-28 00:00:00", name.endswith("zarr"))
    opened = open_ensemble(tmp_path / name)
    check_equal(opened, expected)
    assert "time - its reference date (seconds since 2020-02-28 00:00:00) -> prediction_timedelta" in mapping(opened)


def test_anemoi_writers_each_have_a_part_of_the_fields(tmp_path: Path) -> None:
    expected = forecast(1, 1)
    run = by_channel(expected.isel(time=0, number=0, drop=True))
    run = run.rename(prediction_timedelta="time").assign_coords(time=INITS[0] + expected["prediction_timedelta"].values)
    for i, names in enumerate((["z500", "t2m"], ["z850"])):
        anemoi(run[names].rename({name: {"z500": "z_500", "z850": "z_850", "t2m": "2t"}[name] for name in names}),
               tmp_path / f"writer_{i}.nc", "2020-02-28 00:00:00", False)  # fmt: skip
    check_equal(open_ensemble(tmp_path), expected)


def reduced(rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    nodes = np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(len(rows))[0]))
    latitude = np.repeat(nodes, rows)
    return latitude, np.concatenate([np.arange(n) * 360 / n for n in rows])


@pytest.mark.parametrize(
    ("points", "grid"),
    [
        (reduced([*range(20, 20 + 4 * 16, 4), *range(80, 16, -4)]), "the octahedral reduced Gaussian grid O16"),
        (reduced([20, 27, 32, 32, 27, 20]), r"a reduced Gaussian grid of 6 rows \(N3\)"),
        ((np.random.default_rng(0).uniform(-80, 80, 50), np.random.default_rng(1).uniform(0, 360, 50)), "scattered points"),
    ],
)
def test_points_that_are_no_grid_are_said_to_be_what_they_seem(
    tmp_path: Path, points: tuple[np.ndarray, np.ndarray], grid: str
) -> None:
    latitude, longitude = points
    values = np.zeros((1, latitude.size), "f4")
    data = xr.Dataset(
        {"2t": (("time", "values"), values), "latitude": ("values", latitude), "longitude": ("values", longitude)},
        {"time": INITS[:1]},
    )
    data.to_netcdf(tmp_path / "a.nc")
    with pytest.raises(InputError, match=f"{latitude.size} points along 'values' are not a .*{grid}; regrid them to a regular"):
        open_files(tmp_path / "a.nc")


def test_a_single_row_or_an_axis_along_another_dim_is_no_grid() -> None:
    data = analysis()
    with pytest.raises(InputError, match="latitude goes along no dim, it is no axis of a grid"):
        rename_roles(data.isel(latitude=0))
    along = data.rename(latitude="row").assign_coords(lat=("row", data["latitude"].values)).drop_vars("row")
    with pytest.raises(InputError, match="latitude goes along row, it is no axis of a grid"):
        rename_roles(along)


def test_an_anemoi_dataset_with_members_is_an_ensemble_of_analyses(tmp_path: Path) -> None:
    plain = forecast().isel(prediction_timedelta=[0]).assign_coords(prediction_timedelta=np.array([0], "m8[ns]"))
    split = by_channel(plain.isel(prediction_timedelta=0, drop=True))
    points = flat(split, "cell")
    data = points[list(split.data_vars)].to_dataarray("variable").transpose("time", "variable", "number", "cell")
    variables = {
        "data": (("time", "variable", "ensemble", "cell"), data.values), "mean": ("variable", np.zeros(3)),
        "latitudes": ("cell", points["latitude"].values), "longitudes": ("cell", points["longitude"].values),
        "dates": ("time", INITS),
    }  # fmt: skip
    xr.Dataset(variables, attrs={"variables": ["z_500", "z_850", "2t"]}).to_zarr(tmp_path / "a.zarr", zarr_format=2)
    opened = open_ensemble(tmp_path / "a.zarr")
    check_equal(opened, plain)
    assert opened.attrs["form"] == "analysis members"
    with pytest.raises(InputError, match="3 members along 'ensemble'"):
        open_files(tmp_path / "a.zarr")


# --- climpred, verif


@pytest.mark.parametrize(("units", "factor"), [("hours", 1.0), ("days", 1 / 24), ("minutes", 60.0)])
def test_climpred_leads_have_units(tmp_path: Path, units: str, factor: float) -> None:
    data = forecast().rename(time="init", prediction_timedelta="lead", number="member")
    data = data.assign_coords(lead=("lead", np.array(HOURS) * factor, {"units": units}))
    data.to_netcdf(tmp_path / "a.nc")
    check_equal(open_ensemble(tmp_path / "a.nc"), forecast())


@pytest.mark.parametrize("units", ["months", "years", "seasons", "M"])
def test_leads_in_months_are_refused(tmp_path: Path, units: str) -> None:
    data = forecast().rename(time="init", prediction_timedelta="lead", number="member")
    data.assign_coords(lead=("lead", [1, 2, 3], {"units": units})).to_netcdf(tmp_path / "a.nc", engine="netcdf4")
    with pytest.raises(InputError, match=f"lead holds numbers with units '{units}'; expected hours, minutes, seconds or days"):
        open_ensemble(tmp_path / "a.nc")


def test_verif_stations_are_sent_to_where_stations_go(tmp_path: Path) -> None:
    locations = 5
    random = np.random.default_rng(0)
    variables = {
        "obs": (("time", "leadtime", "location"), random.normal(280, 5, (2, 3, locations))),
        "ensemble": (("time", "leadtime", "location", "ensemble_member"), random.normal(280, 5, (2, 3, locations, 4))),
        "lat": ("location", random.uniform(50, 60, locations)), "lon": ("location", random.uniform(0, 10, locations)),
        "altitude": ("location", np.zeros(locations)),
    }  # fmt: skip
    coords = {"time": INITS, "leadtime": ("leadtime", [0.0, 6.0, 12.0], {"units": "hour"}), "location": np.arange(locations)}
    xr.Dataset(variables, coords, {"standard_name": "air_temperature", "units": "K"}).to_netcdf(tmp_path / "verif.nc")
    for open_any in (open_files, open_ensemble):
        with pytest.raises(InputError, match="5 values at stations along 'location'.*verify-stations"):
            open_any(tmp_path / "verif.nc")


def test_a_verif_file_of_a_grid_opens_with_the_name_of_its_variable(tmp_path: Path) -> None:
    expected = forecast()[["2m_temperature"]]
    points = flat(expected, "location").rename(
        {"2m_temperature": "ensemble", "number": "ensemble_member", "prediction_timedelta": "leadtime"}
    )
    points = points.transpose("time", "leadtime", "location", "ensemble_member")
    points = points.assign_coords(leadtime=("leadtime", np.array(HOURS, "f4"), {"units": "hour"}), location=np.arange(84))
    points["ensemble"].attrs = {"units": "K"}
    points.drop_vars("ensemble_member").rename(latitude="lat", longitude="lon").to_netcdf(tmp_path / "verif.nc")
    check_equal(open_ensemble(tmp_path / "verif.nc", names={"ensemble": "2m_temperature"}), expected)


# --- the Climate Data Store


@pytest.mark.parametrize("expver", ["dim", "per time", "scalar", "none"])
def test_every_form_of_the_climate_data_store_opens(tmp_path: Path, expver: str) -> None:
    data = short(analysis()).isel(latitude=slice(None, None, -1), level=[1, 0])
    if expver == "dim":
        early, late = data.where(data["time"] < data["time"][2]), data.where(data["time"] >= data["time"][2])
        data = xr.concat([early, late], pd.Index([1, 5], name="expver"))
    else:
        data = data.rename(time="valid_time", level="pressure_level").assign_coords(number=0)
        labels = ["0001", "0001", "0005"]
        if expver != "none":
            data = data.assign_coords(expver=("valid_time", labels) if expver == "per time" else "0001")
    for name in data.data_vars:
        data[name].attrs["units"] = "m**2 s**-2" if name == "z" else "K"
    data.to_netcdf(tmp_path / "era5.nc")
    check_equal(open_files(tmp_path / "era5.nc"), analysis())
