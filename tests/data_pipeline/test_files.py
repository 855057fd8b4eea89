"""Files of any layout open to the same data; what cannot be told is refused with one clear message."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel, select, validate
from data_pipeline.sources.files import expand, open_ensemble, open_files

GLOBAL = Grid.named("12x6")
REGION = Grid(np.arange(30, 60.1, 6), np.arange(-20, 14.5, 5.75))
TIME = pd.date_range("2020-02-28", periods=5, freq="12h").as_unit("ns")


def analysis(grid: Grid = GLOBAL, seed: int = 0) -> xr.Dataset:
    """A small analysis with ERA5 short names and units, oriented as the schema wants it."""
    random = np.random.default_rng(seed)
    levels, surface = ("time", "level", "latitude", "longitude"), ("time", "latitude", "longitude")
    return xr.Dataset(
        {
            "z": (levels, random.normal(5e4, 1e3, (5, 2, *grid.shape)).astype("f4"), {"units": "m**2 s**-2"}),
            "t2m": (surface, random.normal(280, 9, (5, *grid.shape)).astype("f4"), {"units": "K"}),
            "lsm": (("latitude", "longitude"), random.uniform(0, 1, grid.shape).astype("f4"), {"units": "(0 - 1)"}),
        },
        {"time": TIME, "level": ("level", [500, 850], {"units": "hPa"}), **grid.coords()},
    )


def ensemble() -> xr.Dataset:
    """The same with initialisations, leads and members, in the names and order of the schema."""
    random = np.random.default_rng(3)
    dims = ("time", "prediction_timedelta", "number", "level", "latitude", "longitude")
    values = random.normal(5e4, 1e3, (2, 3, 4, 2, *GLOBAL.shape)).astype("f4")
    coords: dict[str, Any] = {
        "time": TIME[:2], "prediction_timedelta": pd.to_timedelta([6, 12, 24], unit="h").as_unit("ns"), "number": [0, 1, 2, 3],
        "level": ("level", [500, 850], {"units": "hPa"}), **GLOBAL.coords(),
    }  # fmt: skip
    return xr.Dataset({"geopotential": (dims, values, {"units": "m2 s-2"})}, coords)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def _write(data: xr.Dataset, name: str = "data.nc", **options: Any) -> Path:
        return save(data, tmp_path / name, **options)

    return _write


def save(data: xr.Dataset, path: Path, **options: Any) -> Path:
    if path.suffix == ".zarr":
        data.to_zarr(path, **options)
    else:
        data.to_netcdf(path, **options)
    return path


def mapping(data: xr.Dataset) -> str:
    return "\n".join(json.loads(data.attrs["mapping"]))


def check_equal(data: xr.Dataset, expected: xr.Dataset, tolerance: float = 0.0) -> None:
    """Same names, coordinates, values (relative tolerance)."""
    assert set(data.data_vars) == set(expected.data_vars)
    for name, array in expected.data_vars.items():
        assert data[name].dims == array.dims
        assert data[name].dtype == np.float32
        for dim in array.dims:
            np.testing.assert_array_equal(data[name][dim].values, array[dim].values)
        np.testing.assert_allclose(data[name].values, array.values, rtol=tolerance)


def canonical(data: xr.Dataset) -> xr.Dataset:
    names = {"z": "geopotential", "t2m": "2m_temperature", "lsm": "land_sea_mask"}
    return data.rename({old: new for old, new in names.items() if old in data})


def roll_west(data: xr.Dataset) -> xr.Dataset:
    west = data.assign_coords(longitude=(data["longitude"].values + 180) % 360 - 180)
    return west.sortby("longitude")


# --- every orientation, order, name and unit opens to the same data


@given(
    st.sampled_from([GLOBAL, REGION]),
    st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans(),
    st.permutations(["time", "level", "latitude", "longitude"]),
    st.sampled_from([("lat", "lon", "plev"), ("y", "x", "isobaricInhPa"), ("latitude", "longitude", "pressure_level")]),
    st.sampled_from(["a.nc", "a3.nc", "a2.zarr", "a3.zarr"]),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_every_disguise_opens_to_the_same_data(
    grid: Grid, south_first: bool, rolled: bool, levels_up: bool, celsius: bool, height: bool, order: list[str],
    names: tuple[str, str, str], file: str,
) -> None:  # fmt: skip
    plain = analysis(grid)
    data = plain.copy(deep=True)
    if not south_first:
        data = data.isel(latitude=slice(None, None, -1))
    if rolled:
        data = roll_west(data) if grid is GLOBAL else data.assign_coords(longitude=data["longitude"] + 360)
    if not levels_up:
        data = data.isel(level=[1, 0])
    if celsius:
        data["t2m"] = (data["t2m"].astype("f8") - 273.15).assign_attrs(units="degC")
    if height:
        data["gh"] = (data["z"].astype("f8") / 9.80665).assign_attrs(units="gpm")
        data = data.drop_vars("z")
    if names[2] == "plev":
        data = data.assign_coords(level=("level", data["level"].values * 100.0, {"units": "Pa"}))
    data = data.transpose(*order).rename(dict(zip(("latitude", "longitude", "level"), names, strict=True)))
    options: dict[str, Any] = {"a3.nc": {"format": "NETCDF3_64BIT"}, "a2.zarr": {"zarr_format": 2}}.get(file, {})
    with tempfile.TemporaryDirectory() as folder:
        opened = open_files(save(data, Path(folder) / file, **options))
        check_equal(opened.compute(), canonical(plain), tolerance=2e-7)
        validate(opened)
        assert opened["geopotential"].chunks is not None


def test_descending_latitude_is_flipped_and_said(write: Callable[..., Path]) -> None:
    opened = open_files(write(analysis().isel(latitude=slice(None, None, -1))))
    check_equal(opened, canonical(analysis()))
    assert "flipped to ascending" in mapping(opened)


def test_a_regional_grid_stays_one_piece(write: Callable[..., Path]) -> None:
    split = analysis(REGION).assign_coords(longitude=REGION.longitude % 360).sortby("longitude")  # 0.. 14.5, 340 .. 355
    assert not (np.diff(split["longitude"]) < 6).all()
    check_equal(open_files(write(split)), canonical(analysis(REGION)))


def test_a_repeated_last_column_is_dropped_and_said(write: Callable[..., Path]) -> None:
    closed = xr.concat(
        [analysis(), analysis().isel(longitude=[0]).assign_coords(longitude=[360.0])], "longitude", data_vars="minimal"
    )
    opened = open_files(write(closed))
    check_equal(opened, canonical(analysis()))
    assert "longitude 360: repeats the first column, dropped" in mapping(opened)


def test_a_column_repeated_elsewhere_is_refused(write: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="longitude repeats 60 degrees east"):
        open_files(write(analysis().isel(longitude=[0, 1, 2, 2, 3, 4, 5])))


def test_float32_noise_of_coordinates_is_removed(write: Callable[..., Path]) -> None:
    grid = Grid(np.round(np.arange(35, 36.05, 0.1), 1), np.round(np.arange(-10, -8.95, 0.1), 1))
    noisy = analysis(grid).assign_coords(latitude=grid.latitude.astype("f4"), longitude=grid.longitude.astype("f4"))
    check_equal(open_files(write(noisy)), canonical(analysis(grid)))


def test_packed_integers_are_unpacked_and_their_missing_values_kept(write: Callable[..., Path]) -> None:
    plain = analysis()
    plain["t2m"].values[1, 2, 3] = np.nan
    packing = {"dtype": "int16", "scale_factor": 0.01, "add_offset": 280.0, "_FillValue": -32767}
    opened = open_files(write(plain, encoding={"t2m": packing}))
    np.testing.assert_allclose(opened["2m_temperature"].values, plain["t2m"].values, atol=0.0051)
    assert np.isnan(opened["2m_temperature"].values[1, 2, 3])


def test_celsius_is_converted_and_said(write: Callable[..., Path]) -> None:
    data = analysis()
    data["t2m"] = (data["t2m"] - 273.15).assign_attrs(units="degC")
    opened = open_files(write(data))
    check_equal(opened, canonical(analysis()), tolerance=2e-7)
    assert "t2m -> 2m_temperature [degC -> K]" in mapping(opened)


def test_unstated_units_are_taken_as_canonical_and_said_unless_ambiguous(write: Callable[..., Path]) -> None:
    data = analysis()
    data["t2m"] = data["t2m"].drop_attrs()
    data["r"] = data["z"].drop_attrs() / 1e5
    data["gh"] = (data["z"] / 9.80665).drop_attrs()
    opened = open_files(write(data.drop_vars("z")))
    check_equal(opened, canonical(analysis()), tolerance=2e-7)
    assert "no units stated, taken as K" in mapping(opened)
    assert "r: left out, it states no units" in mapping(opened)


def test_units_that_cannot_be_converted_are_refused(write: Callable[..., Path]) -> None:
    data = analysis()
    data["t2m"].attrs["units"] = "m s-1"
    with pytest.raises(InputError, match=r"data.nc: 2m_temperature: units 'm s-1' cannot be converted to 'K'"):
        open_files(write(data))


def test_a_hint_sets_units_and_names(write: Callable[..., Path]) -> None:
    data = analysis().rename(t2m="field7")
    data["field7"] = (data["field7"] - 273.15).drop_attrs()
    opened = open_files(write(data), names={"field7": "2m_temperature"}, units={"field7": "degC"})
    check_equal(opened, canonical(analysis()), tolerance=2e-7)
    with pytest.raises(InputError, match="not in the table of variables"):
        open_files(write(data, "b.nc"), names={"field7": "warmth"})


# --- times


def test_the_new_climate_data_store_form_is_read(write: Callable[..., Path]) -> None:
    data = analysis().rename(time="valid_time", level="pressure_level").assign_coords(number=0)
    data = data.assign_coords(expver=("valid_time", ["0001"] * 3 + ["0005"] * 2))
    opened = open_files(write(data))
    check_equal(opened, canonical(analysis()))
    assert "0005 is preliminary ERA5T" in mapping(opened)
    assert set(opened.coords) == {"time", "level", "latitude", "longitude"}


def test_era5_and_era5t_along_a_dim_are_merged(write: Callable[..., Path]) -> None:
    plain = analysis().drop_vars("lsm")
    early = plain.where(plain["time"] < TIME[3])
    late = plain.where(plain["time"] >= TIME[3])
    both = xr.concat([early, late], pd.Index([1, 5], name="expver"))
    for name in both.data_vars:
        both[name].attrs = plain[name].attrs
    check_equal(open_files(write(both)), canonical(plain))


def test_a_single_stamp_as_a_scalar_is_one_time(write: Callable[..., Path]) -> None:
    opened = open_files(write(analysis().drop_vars("lsm").isel(time=2)))
    check_equal(opened, canonical(analysis().drop_vars("lsm").isel(time=[2])))


def test_fractional_days_are_rounded_to_the_second(write: Callable[..., Path]) -> None:
    data = analysis()
    days = (TIME - pd.Timestamp("1900-01-01")) / pd.Timedelta("1D") + 1e-10
    data = data.assign_coords(time=("time", days.to_numpy(), {"units": "days since 1900-01-01", "calendar": "standard"}))
    check_equal(open_files(write(data)), canonical(analysis()))


def test_another_calendar_is_refused(write: Callable[..., Path]) -> None:
    dates = [cftime.Datetime360Day(2020, 2, 28 + i) for i in range(2)] + [cftime.Datetime360Day(2020, 3, i) for i in (1, 2, 3)]
    with pytest.raises(InputError, match="time is on the calendar '360_day'"):
        open_files(write(analysis().assign_coords(time=dates)))


def test_times_without_units_are_refused(write: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"time holds int64, not dates.*hours since"):
        open_files(write(analysis().assign_coords(time=np.arange(5))))


# --- many files


def test_years_and_variables_in_separate_files_are_put_together(write: Callable[..., Path], tmp_path: Path) -> None:
    plain = analysis()
    write(plain[["z"]].isel(time=slice(3, 5)), "b_z_late.nc")
    write(plain[["z"]].isel(time=slice(0, 3)), "c_z_early.nc")
    write(plain[["t2m"]], "a_t2m.nc")
    static = write(plain[["lsm"]], "static.zarr")
    expected = canonical(plain)
    check_equal(open_files(tmp_path), expected)
    check_equal(open_files(tmp_path, pattern="*.nc", static=static), expected)
    check_equal(open_files(str(tmp_path / "?_*.nc"), static=static), expected)
    check_equal(open_files([tmp_path / "b_z_late.nc", tmp_path / "c_z_early.nc"]), expected[["geopotential"]])


def test_files_that_interleave_in_time_are_sorted(write: Callable[..., Path], tmp_path: Path) -> None:
    plain = analysis()[["t2m"]]
    write(plain.isel(time=slice(0, None, 2)), "00utc.nc")
    write(plain.isel(time=slice(1, None, 2)), "12utc.nc")
    check_equal(open_files(tmp_path), canonical(plain))


def test_levels_in_separate_files_are_put_together(write: Callable[..., Path], tmp_path: Path) -> None:
    plain = analysis()[["z"]]
    for level in (850, 500):
        for part, times in (("a", slice(0, 2)), ("b", slice(2, 5))):
            write(plain.sel(level=[level]).isel(time=times), f"z{level}{part}.nc")
    check_equal(open_files(tmp_path), canonical(plain))
    (tmp_path / "z850b.nc").unlink()
    with pytest.raises(InputError, match="geopotential: its 2 pieces do not fill a block"):
        open_files(tmp_path)


def test_a_level_that_is_only_in_the_file_name_comes_from_the_recipe(write: Callable[..., Path], tmp_path: Path) -> None:
    plain = analysis()
    for level in (500, 850):
        write(plain[["z"]].sel(level=level, drop=True), f"z{level}_ei.nc")
    with pytest.raises(InputError, match=r"source option names, or give its level"):
        open_files(tmp_path)
    check_equal(open_files(tmp_path, levels={"z500*": 500, "z850*": 850}), canonical(plain[["z"]]))
    one = open_files(tmp_path / "z500_ei.nc", levels={"z": 500})
    check_equal(one, canonical(plain[["z"]].sel(level=[500])))


def test_variables_with_other_levels_are_selected_as_they_are(write: Callable[..., Path], tmp_path: Path) -> None:
    plain = analysis()
    write(plain[["z"]].sel(level=[500]), "z.nc")
    warm = (plain["z"].sel(level=[850]) / 200).assign_attrs(units="K")
    write(warm.to_dataset(name="t"), "t.nc")
    opened = open_files(tmp_path)
    assert opened["level"].values.tolist() == [500, 850]
    np.testing.assert_array_equal(select(opened, Channel("geopotential", 500)).values, plain["z"].sel(level=500).values)
    assert np.isfinite(select(opened, Channel("temperature", 850)).values).all()
    with pytest.raises(InputError, match=r"\[500\] hPa; 850 is not there"):
        select(opened, Channel("geopotential", 850))


def test_times_that_not_all_variables_have_are_left_out_and_said(write: Callable[..., Path], tmp_path: Path) -> None:
    plain = analysis()
    write(plain[["z"]].isel(time=slice(1, 5)), "z.nc")
    write(plain[["t2m"]], "t2m.nc")
    opened = open_files(tmp_path)
    assert opened.sizes["time"] == 4
    assert "2m_temperature have more; kept the 4 common" in mapping(opened)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data, "time 2020-02-28T00:00 is there 2 times"),
        (lambda data: data.isel(time=slice(4, 5)), "time 2020-03-01T00:00 is there 2 times"),
        (lambda data: data.isel(latitude=slice(1, None)), "on another grid .*latitude 5 points"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(
    write: Callable[..., Path], tmp_path: Path, change: Callable[[xr.Dataset], xr.Dataset], message: str
) -> None:
    write(analysis()[["t2m"]], "a.nc")
    write(change(analysis()[["t2m"]]), "b.nc")
    with pytest.raises(InputError, match=message):
        open_files(tmp_path)


@pytest.mark.parametrize(
    ("coords", "message"),
    [
        ({"time": [0, 0, 1, 2, 3]}, "time 2020-02-28T00:00 is there 2 times; keep one of them"),
        ({"level": [500, 500]}, "level 500 is there 2 times; keep one of them"),
        ({"latitude": list("abcdef")}, "no numbers; expected degrees"),
    ],
)
def test_axes_that_are_none_are_refused(write: Callable[..., Path], coords: dict[str, Any], message: str) -> None:
    data = analysis()
    if "time" in coords:
        coords = {"time": data["time"].values[coords["time"]]}
    with pytest.raises(InputError, match=message):
        open_files(write(data.assign_coords({name: (name, values, data[name].attrs) for name, values in coords.items()})))


def test_a_missing_stamp_is_refused_and_not_left_out(write: Callable[..., Path]) -> None:
    data = analysis()
    stamps = data["time"].values.copy()
    stamps[1] = np.datetime64("NaT")
    with pytest.raises(InputError, match="data.nc: time holds 1 missing stamps of 5"):
        open_files(write(data.assign_coords(time=stamps)))


@pytest.mark.parametrize("numbers", [[0.5, 1.5, 2.5, 3.5], [0.0, 1.0, 2.0, np.nan], list("abcd")])
def test_members_without_whole_numbers_are_refused(write: Callable[..., Path], numbers: list[Any]) -> None:
    data = ensemble()
    with pytest.raises(InputError, match="data.nc: number holds .* expected whole numbers of members"):
        open_ensemble(write(data.assign_coords(number=numbers)))


def test_an_empty_field_is_left_out_and_said(write: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="t2m: left out, it is empty along time"):
        open_files(write(analysis()[["t2m"]].isel(time=slice(0))))


def test_a_part_of_the_levels_of_a_store_of_ours_is_read(write: Callable[..., Path]) -> None:
    """The attribute that says which levels a variable has still names those that were cut off."""
    data = analysis()
    data["z"].attrs["levels_available"] = data["level"].values.tolist()
    first = data.isel(level=[0])
    np.testing.assert_array_equal(open_files(write(first))["geopotential"]["level"], first["level"])


@pytest.mark.parametrize("pattern", ["/elsewhere/*.nc", "**.nc"])
def test_a_pattern_that_is_none_is_named(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(InputError, match="is no pattern of files"):
        expand(tmp_path, pattern)


# --- what is missing, broken or not understood


def test_an_asked_variable_that_is_absent_is_named_with_what_is_there(write: Callable[..., Path]) -> None:
    path = write(analysis().rename(z="wave_height"))
    with pytest.raises(InputError, match=r"(?s)geopotential not in the source; found 2m_temperature, land_sea_mask.*wave_height"):
        open_files(path, variables=["geopotential", "2m_temperature"])
    opened = open_files(path, variables=["2m_temperature"])
    assert list(opened.data_vars) == ["2m_temperature"]
    assert "wave_height: left out, not in the table of variables" in mapping(opened)


def test_missing_files_and_empty_folders_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.nc", tmp_path / "*.grib", tmp_path):
        with pytest.raises(InputError, match=str(tmp_path)):
            expand(path)
    with pytest.raises(InputError, match="~nobody-at-all/a.nc: Could not determine home directory; give the whole path"):
        expand("~nobody-at-all/a.nc")


def test_a_cut_netcdf_is_named(write: Callable[..., Path]) -> None:
    path = write(analysis())
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(InputError, match=r"data.nc cannot be opened.*may be cut"):
        open_files(path)


def test_a_zip_and_a_text_are_no_data(tmp_path: Path) -> None:
    (tmp_path / "a.nc").write_bytes(b"PK\3\4 and more")
    (tmp_path / "b.nc").write_text("<html>not found</html>")
    with pytest.raises(InputError, match="zip archive"):
        open_files(tmp_path / "a.nc")
    with pytest.raises(InputError, match="none of NetCDF, GRIB and zarr"):
        open_files(tmp_path / "b.nc")


def test_rotated_projected_and_model_level_grids_are_refused(write: Callable[..., Path]) -> None:
    plain = analysis()[["t2m"]]
    two = xr.DataArray(np.add.outer(GLOBAL.latitude, GLOBAL.longitude / 100), dims=("rlat", "rlon"))
    rotated = plain.drop_vars(["latitude", "longitude"]).rename(latitude="rlat", longitude="rlon").assign_coords(lat=two, lon=two)
    with pytest.raises(InputError, match="rotated or curvilinear"):
        open_files(write(rotated, "a.nc"))
    metres = plain.rename(latitude="y", longitude="x").assign_coords(y=("y", GLOBAL.latitude * 1e5, {"units": "m"}))
    with pytest.raises(InputError, match="map projection"):
        open_files(write(metres, "b.nc"))
    hybrid = analysis().assign_coords(level=("level", [1, 2], {"standard_name": "atmosphere_hybrid_sigma_pressure_coordinate"}))
    with pytest.raises(InputError, match="model levels"):
        open_files(write(hybrid, "c.nc"))


def test_two_dims_for_one_role_are_refused(write: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="could each be number"):
        open_ensemble(write(ensemble().rename(level="member").drop_vars("member")))


def test_members_and_forecasts_are_not_taken_for_an_analysis(write: Callable[..., Path]) -> None:
    path = write(ensemble())
    with pytest.raises(InputError, match="4 members along 'number'"):
        open_files(path)
    single = write(ensemble().isel(number=0), "single.nc")
    with pytest.raises(InputError, match="3 lead times along 'prediction_timedelta': these are forecasts"):
        open_files(single)


# --- layouts of other packages


def test_flat_points_of_a_grid_become_the_grid(write: Callable[..., Path]) -> None:
    plain = analysis()[["t2m"]]
    flat = plain.stack(values=("latitude", "longitude")).isel(values=np.random.default_rng(0).permutation(GLOBAL.areas.size))
    coords = {name: ("values", flat[name].values) for name in ("latitude", "longitude")}
    flat = flat.drop_vars(["values", "latitude", "longitude"]).assign_coords(coords)
    check_equal(open_files(write(flat)), canonical(plain))
    with pytest.raises(InputError, match="not a latitude-longitude grid"):
        open_files(write(flat.isel(values=slice(1, None)), "b.nc"))


def test_flat_points_are_not_read_before_they_are_asked_for(write: Callable[..., Path]) -> None:
    plain = analysis()[["t2m"]]
    flat = plain.stack(values=("latitude", "longitude"))
    coords = {name: ("values", flat[name].values) for name in ("latitude", "longitude")}
    opened = open_files(write(flat.drop_vars(["values", "latitude", "longitude"]).assign_coords(coords)))
    layers = opened["2m_temperature"].data.dask.values()
    assert not any(isinstance(layer, np.ndarray) and layer.size >= plain["t2m"].size for layer in layers)


def test_two_dimensional_axes_of_a_regular_grid_are_read(write: Callable[..., Path]) -> None:
    plain = analysis()[["t2m"]]
    lat, lon = np.meshgrid(GLOBAL.latitude, GLOBAL.longitude, indexing="ij")
    data = plain.drop_vars(["latitude", "longitude"]).rename(latitude="j", longitude="i")
    data = data.assign_coords(lat=(("j", "i"), lat), lon=(("j", "i"), lon))
    check_equal(open_files(write(data)), canonical(plain))


def test_one_array_a_channel_is_gathered(write: Callable[..., Path]) -> None:
    plain = analysis()
    split = xr.Dataset({f"z{level}": plain["z"].sel(level=level, drop=True).drop_attrs() for level in (500, 850)})
    check_equal(open_files(write(split.rename(latitude="lat", longitude="lon"))), canonical(plain[["z"]]))


def test_an_anemoi_dataset_is_read(write: Callable[..., Path]) -> None:
    plain = analysis()
    channels = [plain["z"].sel(level=500), plain["z"].sel(level=850), plain["t2m"]]
    data = np.stack([array.values.reshape(5, -1) for array in channels], axis=1)[:, :, None, :]
    lat, lon = np.meshgrid(GLOBAL.latitude, GLOBAL.longitude, indexing="ij")
    variables = {
        "data": (("time", "variable", "ensemble", "cell"), data), "mean": ("variable", data.mean(axis=(0, 2, 3))),
        "latitudes": ("cell", lat.ravel()), "longitudes": ("cell", lon.ravel()), "dates": ("time", TIME),
    }  # fmt: skip
    path = write(xr.Dataset(variables, attrs={"variables": ["z_500", "z_850", "2t"]}), "anemoi.zarr", zarr_format=2)
    check_equal(open_files(path), canonical(plain.drop_vars("lsm")))


def as_weatherbench_x(data: xr.Dataset) -> xr.Dataset:
    valid = data["time"] + data["prediction_timedelta"]
    named = data.rename(time="init_time", prediction_timedelta="lead_time")
    return named.assign_coords(valid_time=(("init_time", "lead_time"), valid.values)).transpose(
        "init_time", "lead_time", "number", ...
    )


def as_cfgrib(data: xr.Dataset) -> xr.Dataset:
    valid = data["time"] + data["prediction_timedelta"]
    named = data.rename(prediction_timedelta="step", level="isobaricInhPa", geopotential="z").isel(latitude=slice(None, None, -1))
    return named.assign_coords(valid_time=(("time", "step"), valid.values)).transpose("number", "time", "step", ...)


def as_earth2studio(data: xr.Dataset) -> xr.Dataset:
    split = {f"z{level}": data["geopotential"].sel(level=level, drop=True).drop_attrs() for level in (500, 850)}
    named = xr.Dataset(split).rename(number="ensemble", prediction_timedelta="lead_time", latitude="lat", longitude="lon")
    return named.isel(lat=slice(None, None, -1)).transpose("ensemble", "time", "lead_time", ...)


def as_climpred(data: xr.Dataset) -> xr.Dataset:
    hours = ("prediction_timedelta", [6, 12, 24], {"units": "hours"})
    return data.assign_coords(prediction_timedelta=hours).rename(time="init", number="member", prediction_timedelta="lead")


def as_neuralgcm(data: xr.Dataset) -> xr.Dataset:
    return data.rename(number="realization").transpose(
        "realization", "time", "prediction_timedelta", "level", "longitude", "latitude"
    )


def as_cf(data: xr.Dataset) -> xr.Dataset:
    hours = ("prediction_timedelta", [0.25, 0.5, 1.0], {"units": "days", "standard_name": "forecast_period"})
    data = data.assign_coords(prediction_timedelta=hours)
    data["number"].attrs["standard_name"] = "realization"
    data["time"].attrs["standard_name"] = "forecast_reference_time"
    return data.rename(time="run", number="ens_id", prediction_timedelta="ahead", latitude="lat", longitude="lon")


def as_ladcast(data: xr.Dataset) -> xr.Dataset:
    return data.rename(number="idx")


@pytest.mark.parametrize(
    "disguise", [as_weatherbench_x, as_cfgrib, as_earth2studio, as_climpred, as_neuralgcm, as_cf, as_ladcast]
)
@pytest.mark.parametrize("file", ["a.nc", "a.zarr"])
def test_ensembles_of_other_packages_open_to_the_same_forecast(
    write: Callable[..., Path], disguise: Callable[[xr.Dataset], xr.Dataset], file: str
) -> None:
    opened = open_ensemble(write(disguise(ensemble()), file))
    check_equal(opened, ensemble())
    validate(opened, "forecast")
    assert opened.attrs["form"] == "forecast"
    expected = ensemble()["time"] + ensemble()["prediction_timedelta"]
    np.testing.assert_array_equal(opened["valid_time"].values, expected.values)


def test_one_run_by_valid_time_becomes_leads(write: Callable[..., Path]) -> None:
    plain = ensemble().isel(time=[0])
    run = plain.isel(time=0, drop=True).rename(prediction_timedelta="time")
    run = run.assign_coords(time=TIME[0] + plain["prediction_timedelta"].values, forecast_reference_time=TIME[0])
    check_equal(open_ensemble(write(run)), plain)


def test_one_file_a_member_and_a_lead_are_put_together(write: Callable[..., Path], tmp_path: Path) -> None:
    for number in range(4):
        for lead in range(3):
            write(ensemble().isel(number=number, prediction_timedelta=lead), f"m{number}_{lead}.nc")
    check_equal(open_ensemble(tmp_path), ensemble())


def test_a_deterministic_run_is_one_member(write: Callable[..., Path]) -> None:
    opened = open_ensemble(write(ensemble().isel(number=0, drop=True)))
    check_equal(opened, ensemble().isel(number=[0]))
    assert "one member, number 0" in mapping(opened)


def test_leads_as_numbers_without_units_are_refused(write: Callable[..., Path]) -> None:
    bare = ensemble().assign_coords(prediction_timedelta=[6, 12, 24]).rename(prediction_timedelta="step")
    with pytest.raises(InputError, match="step holds numbers with units ''"):
        open_ensemble(write(bare))
    check_equal(open_ensemble(write(bare.rename(step="fhour"), "b.nc")), ensemble())


def test_analyses_with_members_are_leads_of_zero(write: Callable[..., Path]) -> None:
    members = ensemble().isel(prediction_timedelta=0, drop=True)
    opened = open_ensemble(write(members))
    assert opened.attrs["form"] == "analysis members"
    assert opened["prediction_timedelta"].values.tolist() == [0]
    np.testing.assert_array_equal(opened["geopotential"].isel(prediction_timedelta=0).values, members["geopotential"].values)


def test_leads_that_only_another_variable_has_are_missing_and_named(write: Callable[..., Path], tmp_path: Path) -> None:
    write(ensemble(), "z.nc")
    gust = ensemble()["geopotential"].isel(level=0, drop=True, prediction_timedelta=[1]) / 5000
    write(gust.assign_attrs(units="m s-1").to_dataset(name="fg10"), "gust.nc")
    opened = open_ensemble(tmp_path)["10m_wind_gust_since_previous_post_processing"]
    assert opened.attrs["hours_available"] == [12.0]
    assert np.isfinite(opened.isel(prediction_timedelta=1)).all()
    assert np.isnan(opened.isel(prediction_timedelta=[0, 2])).all()


# --- the real files


def test_era_interim_opens_with_its_levels_from_the_recipe(shared_data: Callable[[str], Path]) -> None:
    opened = open_files(shared_data("era-interim-weurope"), levels={"z": 500, "t": 850})
    assert dict(opened.sizes) == {"time": 3653, "level": 2, "latitude": 21, "longitude": 24}
    assert opened["longitude"].values[[0, -1]].tolist() == [-20.0, 14.5]
    z500 = select(opened, Channel("geopotential", 500))
    assert (float(z500.min()), float(z500.max())) == pytest.approx((47076, 58969), abs=0.5)
    weights = np.cos(np.deg2rad(opened["latitude"]))
    fields = {"geopotential": z500, "temperature": select(opened, Channel("temperature", 850))}
    means = {name: float(array.astype("f8").weighted(weights).mean()) for name, array in fields.items()}
    assert means["geopotential"] / 9.80665 == pytest.approx(5675.2, abs=0.05)
    assert means["temperature"] == pytest.approx(280.90, abs=0.005)


def test_era5_winter_opens_with_both_files_and_its_pole_rows(shared_data: Callable[[str], Path]) -> None:
    opened = open_files(shared_data("era5-global-djf"))
    assert dict(opened.sizes) == {"time": 124, "latitude": 73, "longitude": 144, "level": 1}
    assert Grid.of(opened).is_global
    weights = np.cos(np.deg2rad(opened["latitude"]))
    pressure = opened["mean_sea_level_pressure"].astype("f8")
    assert float(pressure.weighted(weights).mean()) == pytest.approx(101152.5, abs=0.1)
    assert float(opened["vorticity"].max()) == pytest.approx(1.07e-3, rel=0.005)


def test_the_planet_opens_with_its_levels_and_static_fields(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("planet-64x32-12h")
    opened = open_files(folder, pattern="planet_200[67].nc", static=folder / "planet_static.nc")
    assert opened.sizes["time"] == 1460
    assert opened["specific_humidity"].attrs["levels_available"] == [850]
    with xr.open_dataset(folder / "planet_2007.nc") as raw:
        expected = raw["temperature"].sel(time="2007-03-03T12", level=850).values
    found = select(opened, Channel("temperature", 850)).sel(time="2007-03-03T12").values
    np.testing.assert_array_equal(found, expected)
    assert opened["land_sea_mask"].dims == ("latitude", "longitude")
