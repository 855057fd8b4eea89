"""Values at points are those of xarray's interpolation on a field padded around the date line, and right at the poles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.regrid import regrid
from forecast.products.points import locate, parse_place, read_places
from forecast.products.recipe import Place

GLOBE = Grid.named("64x32")
WITH_POLES = Grid.named("48x25")
REGION = Grid(np.arange(30.0, 60.1, 1.5), np.arange(-20.0, 14.6, 1.5))


def places(latitude: np.ndarray, longitude: np.ndarray) -> list[Place]:
    return [Place(name=str(i), latitude=y, longitude=x) for i, (y, x) in enumerate(zip(latitude, longitude, strict=True))]


def fields(grid: Grid, *leading: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(1e5, 900, (*leading, *grid.shape)).astype(np.float32)


@pytest.mark.parametrize("grid", [GLOBE, WITH_POLES])
def test_a_globe_is_interpolated_as_xarray_does_on_a_padded_field(grid: Grid) -> None:
    rng = np.random.default_rng(1)
    latitude = np.concatenate([rng.uniform(-87, 87, 200), grid.latitude[[0, 3, -1]]])
    longitude = np.concatenate([rng.uniform(-180, 360, 197), [-0.001, 359.999, 0.0], [0, 360, grid.longitude[5]]])
    members = fields(grid, 2, 5)
    array = xr.DataArray(members.astype(np.float64), dims=("lead", "number", "latitude", "longitude"), coords=grid.coords())
    padded = xr.concat([array, array.isel(longitude=[0]).assign_coords(longitude=[360.0])], "longitude")
    wanted = {"latitude": xr.DataArray(latitude, dims="point"), "longitude": xr.DataArray(np.mod(longitude, 360), dims="point")}
    found = locate(places(latitude, longitude), grid).values(members)
    np.testing.assert_allclose(found, padded.interp(wanted).transpose("lead", "number", "point"), rtol=1e-7)


def test_a_region_is_interpolated_inside_and_refused_outside() -> None:
    latitude, longitude = np.array([30, 45.2, 60]), np.array([340, 5.2, 13.0])
    members = fields(REGION, 3)
    array = xr.DataArray(members.astype(np.float64), dims=("number", "latitude", "longitude"), coords=REGION.coords())
    wanted = {"latitude": xr.DataArray(latitude, dims="point"), "longitude": xr.DataArray([-20, 5.2, 13.0], dims="point")}
    np.testing.assert_allclose(locate(places(latitude, longitude), REGION).values(members), array.interp(wanted), rtol=1e-7)
    with pytest.raises(InputError, match="'1' at 61, 0 is outside the grid(.|\n)*'2' at 40, 20 is outside"):
        locate(places(np.array([40, 61, 40]), np.array([0, 0, 20])), REGION)


def test_over_the_poles_points_are_as_regridded_fields() -> None:
    target = Grid(np.linspace(-90, 90, 37), np.arange(0, 360, 11.25))
    u, v, scalar = (fields(GLOBE, 2, seed=seed) - 1e5 for seed in (1, 2, 3))
    names = ("u_component_of_wind", "v_component_of_wind", "temperature")
    dims = ("number", "latitude", "longitude")
    data = xr.Dataset({name: (dims, values) for name, values in zip(names, (u, v, scalar), strict=True)}, coords=GLOBE.coords())
    expected = regrid(data, target, "bilinear")
    latitude, longitude = np.meshgrid(target.latitude, target.longitude, indexing="ij")
    points = locate(places(latitude.ravel(), longitude.ravel()), GLOBE)
    for name, values, partner in ((names[0], u, v), (names[1], v, u), (names[2], scalar, None)):
        found = points.values(values, name, partner).reshape(expected[name].shape)
        np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-3)


def test_a_missing_corner_counts_only_where_it_has_weight() -> None:
    values = fields(GLOBE)
    values[10, 5] = np.nan
    at = [(GLOBE.latitude[10] + 1, GLOBE.longitude[5] + 1), (GLOBE.latitude[10] + 1, GLOBE.longitude[6])]
    found = locate(places(*np.array(at).T), GLOBE).values(values)
    assert np.isnan(found[0])
    assert np.isfinite(found[1]), "on the meridian of a cell that is there"


def test_the_nearest_land_cell_is_the_nearest_on_the_sphere() -> None:
    land = np.zeros(GLOBE.shape)
    land[20, 0], land[20, 32] = 1.0, 0.6
    values = fields(GLOBE)
    points = locate(places(np.array([25.0, 25, 89]), np.array([350.0, 200, 181])), GLOBE, land)
    np.testing.assert_array_equal(points.values(values), values[[20, 20, 20], [0, 32, 32]])
    assert points.longitude.tolist() == [0, 180, 180], "the place is that of the cell"
    with pytest.raises(InputError, match="0 cells of land"):
        locate(places(np.zeros(1), np.zeros(1)), GLOBE, np.zeros(GLOBE.shape))


def test_points_are_read_from_text_csv_and_toml(tmp_path: Path) -> None:
    bergen = Place(name="Bergen", latitude=60.39, longitude=5.32)
    assert parse_place("Bergen, 60.39,5.32") == bergen
    assert parse_place("Bergen, Norway,60.39,5.32").name == "Bergen, Norway"
    (tmp_path / "a.csv").write_text("latitude,id,name,longitude\n60.39,1,Bergen,5.32\n", encoding="utf-8-sig")
    (tmp_path / "a.toml").write_text('[[place]]\nname = "Bergen"\nlatitude = 60.39\nlongitude = 5.32\n')
    assert read_places(tmp_path / "a.csv") == read_places(tmp_path / "a.toml") == [bergen]


def test_faults_of_points_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected NAME,LATITUDE,LONGITUDE"):
        parse_place("Bergen 60.39")
    with pytest.raises(InputError, match="latitude: Input should be less than or equal to 90"):
        parse_place("Bergen,160,5")
    (tmp_path / "a.csv").write_text("name,latitude,longitude\nA,1,2\nB,x,3\nC,1\n")
    with pytest.raises(InputError, match=r"point 2: latitude(.|\n)*point 3: longitude"):
        read_places(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("name,lat,lon\nA,1,2\n")
    with pytest.raises(InputError, match="no column latitude, longitude; its first line has name, lat, lon"):
        read_places(tmp_path / "b.csv")
    (tmp_path / "c.toml").write_text("x = 1\n")
    with pytest.raises(InputError, match="it holds no point"):
        read_places(tmp_path / "c.toml")
    with pytest.raises(InputError, match="not found"):
        read_places(tmp_path / "d.csv")
