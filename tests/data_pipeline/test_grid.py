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
    with pytest.raises(InputError, match="64x32"):
        Grid.named("N320")


def test_equal_grids_have_equal_keys_in_spite_of_float32() -> None:
    one = Grid(np.arange(30, 40, 0.1), np.arange(0, 5, 0.1))
    other = Grid(np.arange(30, 40, 0.1).astype("f4"), np.arange(0, 5, 0.1).astype("f4"))
    assert one.matches(other)
    assert not one.matches(Grid(one.latitude + 0.05, one.longitude))
