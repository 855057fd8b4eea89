"""Cells are disjoint and cover the grid; regions are the unions they claim to be."""

from __future__ import annotations

import re

import numpy as np
import pytest

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from verification.regions import BANDS, BELTS, REGIONS, SECTORS, Box, box_of, cells_of, members_of, name_of, regions_in

GLOBE = Grid.named("64x32")
POLES = Grid(np.linspace(-90, 90, 37), np.arange(0, 360, 5.0))
EUROPE = Grid(np.arange(36.0, 61, 1.5), np.arange(-12.0, 22, 1.5))


def land(grid: Grid) -> np.ndarray:
    return np.random.default_rng(0).random(grid.shape)


def test_every_point_lies_in_the_box_of_its_cell_and_every_cell_has_points() -> None:
    for grid in (GLOBE, POLES):
        cells = cells_of(grid, land(grid))
        assert set(np.unique(cells.index)) == set(range(len(cells.names)))
        boxes = [box_of(name) for name in cells.names]
        for (j, i), cell in np.ndenumerate(cells.index):
            box = boxes[cell]
            assert box.south <= grid.latitude[j] <= box.north
            assert (grid.longitude[i] - box.west) % 360 < box.east - box.west
            assert (box.surface == "land") == (land(grid)[j, i] >= 0.5)


def test_names_and_boxes_are_inverse() -> None:
    for surface in ("", "land", "sea"):
        for box in [Box(*band, *sector, surface) for band in BANDS for sector in SECTORS] + [
            Box(*b, surface=surface) for b in BELTS
        ]:
            again = box_of(name_of(box))
            assert again.holds(box)
            assert box.holds(again)
    assert name_of(Box(35, 60, -15, 15, "land")) == "35N-60N 15W-15E land"
    assert name_of(Box(-20, 20, 165, 195)) == "20S-20N 165E-165W"


def test_points_on_the_edges_of_bands() -> None:
    cells = cells_of(POLES)
    names = {lat: cells.names[cells.index[j, 0]].split()[0] for j, lat in enumerate(POLES.latitude)}
    assert [names[lat] for lat in (-60.0, -35.0, -20.0, 20.0, 35.0, 60.0)] == [
        "90S-60S", "60S-35S", "20S-20N", "20S-20N", "35N-60N", "60N-90N",
    ]  # fmt: skip


@pytest.mark.parametrize("mask", [None, land(GLOBE)])
def test_a_region_is_the_points_inside_it(mask: np.ndarray | None) -> None:
    cells = cells_of(GLOBE, mask)
    known = regions_in(cells.names)
    assert ("land" in known) == (mask is not None)
    lat, lon = np.meshgrid(GLOBE.latitude, GLOBE.longitude, indexing="ij")
    for region in known:
        box = REGIONS[region]
        inside = (lat > box.south) & (lat < box.north) & ((lon - box.west) % 360 < box.east - box.west)
        if mask is not None and box.surface:
            inside &= (mask >= 0.5) == (box.surface == "land")
        np.testing.assert_array_equal(np.isin(cells.index, members_of(region, cells.names)), inside, err_msg=region)


def test_zones_are_unions_of_cells() -> None:
    cells = cells_of(GLOBE, land(GLOBE))
    assert len(cells.zones) == 6
    for name, zone in zip(cells.names, cells.zone_of, strict=True):
        assert box_of(cells.zones[zone]).holds(box_of(name))


def test_a_regional_grid_is_one_domain_or_land_and_sea() -> None:
    assert cells_of(EUROPE).names == ("domain",)
    cells = cells_of(EUROPE, land(EUROPE))
    assert cells.names == cells.zones == ("domain land", "domain sea")
    assert regions_in(cells.names) == ["domain", "domain land", "domain sea"]
    np.testing.assert_array_equal(members_of("domain", cells.names), [0, 1])
    np.testing.assert_array_equal(members_of("domain sea", cells.names), [1])
    np.testing.assert_array_equal(cells.index == 0, land(EUROPE) >= 0.5)


def test_unknown_regions_and_unusable_masks_are_named() -> None:
    with pytest.raises(InputError, match=re.escape("region 'Atlantis' is not known here; the regions are global, northern")):
        members_of("Atlantis", cells_of(GLOBE).names)
    with pytest.raises(InputError, match="region 'land' is not known here"):
        members_of("land", cells_of(GLOBE).names)
    with pytest.raises(InputError, match=re.escape("land-sea mask: shape (2, 2)")):
        cells_of(GLOBE, np.ones((2, 2)))
