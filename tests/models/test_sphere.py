"""Padding: on the globe a ring continues the field as the sphere does, in a region it repeats the edge."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from data_pipeline.grid import Grid
from models.backbones.sphere import extend_globe, extend_region, pad_globe, pad_region
from models.backbones.unet import Conv

GRIDS = pytest.mark.parametrize("name", ["16x8", "16x9", "24x13"])  # an odd number of rows has points on the poles


def smooth(latitude: np.ndarray, longitude: np.ndarray) -> Tensor:
    """(1, 3, H, W): a scalar and the east and north components of a vector field, smooth on the sphere, at any angles.

    A latitude beyond a pole is the point on the other side, seen with the axes that walked across with it.
    """
    lat, lon = np.deg2rad(latitude)[:, None], np.deg2rad(longitude)[None, :]
    x, y, z = np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat) + 0 * lon
    vector = np.stack([0.3 + z, x * y - 1, 0.5 * x + 0 * z])
    east = np.stack([-np.sin(lon) + 0 * lat, np.cos(lon) + 0 * lat, 0 * (lat + lon)])
    north = np.stack([-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat) + 0 * lon])
    planes = [x + 2 * y * z + z**3, (vector * east).sum(0), (vector * north).sum(0)]
    return torch.from_numpy(np.stack(planes))[None]


def beyond(axis: np.ndarray, before: int, after: int) -> np.ndarray:
    step = axis[1] - axis[0]
    return axis[0] + step * np.arange(-before, axis.size + after)


SIGNS = torch.tensor([1.0, -1.0, -1.0])


@GRIDS
def test_the_ring_around_the_globe_continues_scalars_and_winds(name: str) -> None:
    grid = Grid.named(name)
    ring = pad_globe(smooth(grid.latitude, grid.longitude), SIGNS, polar_rows=grid.latitude[-1] == 90)
    torch.testing.assert_close(ring, smooth(beyond(grid.latitude, 1, 1), beyond(grid.longitude, 1, 1)))


@GRIDS
@pytest.mark.parametrize("rows", [1, 3])
def test_rows_appended_beyond_the_north_pole_continue_scalars_and_winds(name: str, rows: int) -> None:
    grid = Grid.named(name)
    tall = extend_globe(smooth(grid.latitude, grid.longitude), rows, SIGNS, polar_rows=grid.latitude[-1] == 90)
    torch.testing.assert_close(tall, smooth(beyond(grid.latitude, 0, rows), grid.longitude))


def test_the_neighbours_across_the_pole_are_half_a_turn_away() -> None:
    field = torch.zeros(1, 1, 8, 16)
    field[0, 0, 7, 3] = 1.0  # seen from the northernmost row at column 11
    ring = pad_globe(field)[0, 0]
    assert ring[-1].nonzero().flatten().tolist() == [1 + 11]
    assert not ring[0].any()


def test_without_the_signs_a_wind_would_turn_round_at_the_pole() -> None:
    grid = Grid.named("16x8")
    wind = smooth(grid.latitude, grid.longitude)[:, 1:]
    torch.testing.assert_close(pad_globe(wind)[..., 0, :], -pad_globe(wind, SIGNS[1:])[..., 0, :])


def test_a_region_repeats_its_edges_and_joins_no_sides() -> None:
    field = torch.arange(12.0).reshape(1, 1, 3, 4)
    ring = pad_region(field)[0, 0]
    assert ring[0].tolist() == [0, 0, 1, 2, 3, 3]
    assert ring[:, 0].tolist() == [0, 0, 4, 8, 8]
    assert extend_region(field, 2, 1)[0, 0, -1].tolist() == [8, 9, 10, 11, 11]


def test_in_a_region_the_eastern_edge_reaches_no_further_than_the_kernel() -> None:
    torch.manual_seed(0)
    conv = Conv(1, 1, pad_region)
    field, changed = torch.zeros(1, 1, 6, 7), torch.zeros(1, 1, 6, 7)
    changed[..., -1] = 1.0
    moved = (conv(changed) != conv(field)).any(-2)[0, 0]
    assert moved.tolist() == [False] * 5 + [True, True]


def test_on_the_globe_the_last_column_neighbours_the_first() -> None:
    torch.manual_seed(0)
    conv = Conv(1, 1, pad_globe)
    field, changed = torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 4, 8)
    changed[0, 0, 1:3, -1] = 1.0
    moved = (conv(changed) != conv(field))[0, 0, 1:3].any(0)
    assert moved.tolist() == [True] + [False] * 5 + [True, True]
