"""Regions: the points of a grid inside a box, in one piece, wherever the seam of the longitudes lies."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.region import cut, grid_inside, widened


def field(grid: Grid) -> xr.Dataset:
    """A field that tells where it is: 1000 latitude + longitude in 0 .. 360."""
    values = 1000 * grid.latitude[:, None] + np.mod(grid.longitude, 360)[None, :]
    return xr.Dataset({"2m_temperature": (("latitude", "longitude"), values)}, coords=grid.coords())


@settings(max_examples=60)
@given(
    name=st.sampled_from(["64x32", "36x19"]),
    south=st.floats(-90, 30),
    height=st.floats(30, 60),
    west=st.floats(-360, 359),
    width=st.floats(25, 360),
)
def test_a_cut_holds_the_points_inside_and_no_others(name: str, south: float, height: float, west: float, width: float) -> None:
    grid = Grid.named(name)
    box = (south, south + height, west, west + width)
    found = cut(field(grid), box)
    inside = Grid.of(found)
    assert inside.matches(grid_inside(grid, box))
    if inside.longitude.size < grid.longitude.size:
        assert (inside.longitude >= west - 1e-3).all()
        assert (inside.longitude <= west + width + 1e-3).all()
    wanted = (np.mod(grid.longitude - west, 360) <= width).sum()
    assert abs(inside.longitude.size - wanted) <= 1  # one on the very edge may round either way
    rows, columns = np.meshgrid(inside.latitude, np.mod(inside.longitude, 360), indexing="ij")
    np.testing.assert_allclose(found["2m_temperature"], 1000 * rows + columns, atol=1e-6)


def test_a_box_over_the_seam_of_a_global_grid_runs_on_below_zero() -> None:
    found = cut(field(Grid.named("36x19")), (30, 60, -20, 20))
    assert found["longitude"].values.tolist() == [-20, -10, 0, 10, 20]
    assert found["latitude"].values.tolist() == [30, 40, 50, 60]
    assert (found["2m_temperature"].sel(latitude=30) - 30000).values.tolist() == [340, 350, 0, 10, 20]


def test_the_whole_circle_stays_as_it_is() -> None:
    grid = Grid.named("36x19")
    assert grid_inside(grid, (-90, 90, 0, 360)).matches(grid)
    for east in (180, 179, 170):  # the last of 36 points lies on 170
        box = (-90, 90, -180, east)
        assert cut(field(grid), box)["longitude"].values.tolist() == grid.longitude.tolist()
        assert grid_inside(grid, box).matches(grid)
    assert cut(field(grid), (-90, 90, -180, 169))["longitude"].values[[0, -1]].tolist() == [-180, 160]


def test_a_box_between_points_says_what_it_holds() -> None:
    with pytest.raises(
        InputError, match=r"region \[31, 39, 0, 20\].*holds 0 latitudes and 3 longitudes of the grid 36x19 global"
    ):
        grid_inside(Grid.named("36x19"), (31, 39, 0, 20))


def test_a_margin_stops_at_the_poles_and_closes_the_circle() -> None:
    assert widened((30, 60, -20, 20), 5) == (25, 65, -25, 25)
    assert widened((-88, 88, 0, 355), 5) == (-90, 90, 0, 360)
