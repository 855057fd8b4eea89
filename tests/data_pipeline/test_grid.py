"""Grids: areas, bounds, names, and what is not a grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid


@given(st.integers(4, 60), st.integers(3, 40))
def test_a_global_grid_has_the_area_of_the_sphere(n_lon: int, n_lat: int) -> None:
    grid = Grid.named(f"{n_lon}x{n_lat}")
    assert grid.is_global
    assert grid.areas.sum() == pytest.approx(4 * np.pi, rel=1e-12)
    assert grid.area_weights.mean() == pytest.approx(1.0, rel=1e-12)


def test_a_regional_grid_has_the_area_of_its_box() -> None:
    grid = Grid(np.arange(30, 60.1, 1.5), np.arange(-20, 14.6, 1.5))
    box = (np.sin(np.deg2rad(60.75)) - np.sin(np.deg2rad(29.25))) * np.deg2rad(24 * 1.5)
    assert grid.areas.sum() == pytest.approx(box, rel=1e-12)
    assert not grid.is_global


def test_a_pole_row_is_half_a_cell() -> None:
    grid = Grid.named("1440x721")
    assert grid.latitude_bounds[[0, -1]].tolist() == [-90.0, 90.0]
    assert grid.areas[0, 0] / grid.areas[1, 0] == pytest.approx(1 / 8, rel=1e-3)


def test_named_grids_are_those_of_weatherbench() -> None:
    assert Grid.named("64x32").latitude[[0, -1]].tolist() == [-87.1875, 87.1875]
    assert Grid.named("240x121").latitude[[0, -1]].tolist() == [-90.0, 90.0]
    assert Grid.named("240x121").longitude[-1] == 358.5


@pytest.mark.parametrize("n_lat", [2, 3, 4, 31, 48, 160, 640])
def test_a_gaussian_row_has_its_quadrature_weight_as_area(n_lat: int) -> None:
    sines, weights = np.polynomial.legendre.leggauss(n_lat)
    grid = Grid(np.rad2deg(np.arcsin(sines)).astype("f4"), np.arange(0, 360, 45.0))
    assert grid.is_gaussian
    assert grid.is_global
    np.testing.assert_allclose(grid.areas, np.broadcast_to(weights[:, None] * np.pi / 4, grid.shape), rtol=1e-8, atol=1e-12)
    inside = (grid.latitude_bounds[:-1] < grid.latitude) & (grid.latitude < grid.latitude_bounds[1:])
    assert inside.all()
    np.testing.assert_array_equal(grid.latitude_bounds, -grid.latitude_bounds[::-1])


def test_gaussian_areas_integrate_a_polynomial_of_degree_2n_minus_1_exactly() -> None:
    grid = Grid.named("F12")
    assert grid.shape == (24, 48)
    sines = np.sin(np.deg2rad(grid.latitude))[:, None]
    assert (grid.areas * sines**46).sum() == pytest.approx(4 * np.pi / 47, rel=1e-12)


def test_gaussian_latitudes_are_the_same_grid_whatever_their_digits() -> None:
    exact = Grid.named("F24")
    for latitude in (
        exact.latitude.astype("f4"),
        np.round(exact.latitude, 3),
        np.rad2deg(np.deg2rad(exact.latitude).astype("f4")),
    ):
        grid = Grid(latitude, exact.longitude)
        assert grid.matches(exact)
        np.testing.assert_array_equal(grid.areas, exact.areas)
    assert "96x48 Gaussian global" in str(exact)


@pytest.mark.parametrize("name", ["64x32", "240x121", "512x256", "360x180", "1440x721", "7x3"])
def test_a_uniform_grid_is_not_taken_for_a_gaussian_one(name: str) -> None:
    assert not Grid.named(name).is_gaussian


def test_part_of_a_gaussian_grid_is_refused() -> None:
    rows = Grid.named("F24").latitude[24:]
    with pytest.raises(InputError, match="not uniform nor Gaussian over both hemispheres"):
        Grid(rows, np.arange(0, 360, 3.75))


def test_a_band_around_the_earth_is_not_global() -> None:
    assert not Grid(np.arange(20, 71.0), np.arange(360.0)).is_global


@pytest.mark.parametrize(
    ("latitude", "longitude", "message"),
    [
        ([10, 0], [0, 1], "not strictly ascending"),
        ([0, 1, 3], [0, 1], "not uniform"),
        ([0, 1], [0, 180, 360], "more than once"),
        ([0, 100], [0, 1], "expected -90 to 90"),
        ([0], [0, 1], "at least two"),
        ([0, np.nan], [0, 1], "finite"),
    ],
)
def test_what_is_not_a_grid_is_refused(latitude: list[float], longitude: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Grid(np.array(latitude, float), np.array(longitude, float))


def test_unknown_grid_names_say_what_is_known() -> None:
    with pytest.raises(InputError, match=r"64x32.*F24"):
        Grid.named("N320")


def test_equal_grids_have_equal_keys_in_spite_of_float32() -> None:
    one = Grid(np.arange(30, 40, 0.1), np.arange(0, 5, 0.1))
    other = Grid(np.arange(30, 40, 0.1).astype("f4"), np.arange(0, 5, 0.1).astype("f4"))
    assert one.matches(other)
    assert not one.matches(Grid(one.latitude + 0.05, one.longitude))
