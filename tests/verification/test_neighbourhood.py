"""The fractions skill score: known answers, all pairs of cells, poles and date line, missing values, dask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from verification import area_weights, fss
from verification.neighbourhood import EARTH_RADIUS_KM, fractions

GRIDS = {
    "poles": Grid.named("12x7"),
    "cells": Grid.named("16x8"),
    "odd": Grid.named("9x5"),
    "band": Grid(np.arange(-30, 61.0, 15), np.arange(0, 360.0, 30)),
    "region": Grid(np.arange(40, 61.0, 2.5), np.arange(-20, 14.6, 2.5)),
    "cap": Grid(np.arange(70, 90.1, 2.5), np.arange(0, 320.0, 20)),
}


def distances(grid: Grid) -> np.ndarray:
    """Great-circle distance in km between all pairs of cells, by the chord between points in space."""
    latitude, longitude = np.meshgrid(np.deg2rad(grid.latitude), np.deg2rad(grid.longitude), indexing="ij")
    points = np.stack([np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], -1)
    points = points.reshape(-1, 3)
    chord = np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.minimum(chord / 2, 1))


def brute_fractions(values: np.ndarray, grid: Grid, radius: float) -> np.ndarray:
    flat, near = values.ravel(), distances(grid) <= radius
    area, there = grid.areas.ravel(), ~np.isnan(values.ravel())
    result = np.full(flat.size, np.nan)
    for cell in np.flatnonzero(there):
        inside = near[cell] & there
        result[cell] = (area * flat)[inside].sum() / area[inside].sum()
    return result.reshape(values.shape)


def fields(grid: Grid, members: int = 5, times: int = 3, seed: int = 0) -> tuple[xr.DataArray, xr.DataArray]:
    rng = np.random.default_rng(seed)
    forecast = xr.DataArray(
        rng.normal(size=(times, members, *grid.shape)), dims=("time", "number", "latitude", "longitude"), coords=grid.coords()
    )
    return forecast, xr.DataArray(
        rng.normal(size=(times, *grid.shape)), dims=("time", "latitude", "longitude"), coords=grid.coords()
    )


def displaced() -> tuple[Grid, np.ndarray, np.ndarray]:
    grid = Grid(np.array([-60.0, -20, 20, 60]), np.arange(0, 360.0, 60))
    forecast, truth = np.zeros((2, 4, 6))
    forecast[2, 0], truth[2, 5] = 1, 1
    return grid, forecast, truth


@pytest.mark.parametrize(("radius", "expected"), [(1000, 0), (7000, 0.541693)])
def test_known_answer_with_rows_that_own_the_caps(radius: float, expected: float) -> None:
    grid, forecast, truth = displaced()
    object.__setattr__(grid, "latitude_bounds", np.array([-90.0, -40, 0, 40, 90]))
    predicted, observed = (fractions(field, grid, radius) for field in (forecast, truth))
    error, worst = (predicted - observed) ** 2, predicted**2 + observed**2
    assert 1 - (grid.areas * error).sum() / (grid.areas * worst).sum() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("radius", "expected"), [(1000, 0), (7000, 0.540967392)])
def test_known_answer_with_cells_of_equal_height(radius: float, expected: float) -> None:
    grid, forecast, truth = displaced()
    arrays = [xr.DataArray(field, dims=("latitude", "longitude"), coords=grid.coords()) for field in (forecast, truth)]
    assert float(fss(*arrays, threshold=0.5, radius_km=radius)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("radius", [0.1, 300, 1234.5, 4000, 11000, 19000, 20020])
@pytest.mark.parametrize("name", GRIDS)
def test_fractions_equal_those_of_all_pairs_of_cells(name: str, radius: float) -> None:
    grid = GRIDS[name]
    rng = np.random.default_rng(1)
    values = rng.integers(0, 4, size=(2, *grid.shape)).astype(float)
    values[1, rng.random(grid.shape) < 0.2] = np.nan
    expected = [brute_fractions(field, grid, radius) for field in values]
    np.testing.assert_allclose(fractions(values, grid, radius), expected, rtol=1e-12, atol=1e-14)


def test_a_distance_on_the_circle_is_inside_to_all_sides() -> None:
    grid = Grid.named("36x19")
    values = np.zeros(grid.shape)
    values[9, 0] = 1
    ten_degrees = EARTH_RADIUS_KM * np.deg2rad(10)
    found = fractions(values, grid, ten_degrees) > 0
    assert np.argwhere(found).tolist() == [[8, 0], [9, 0], [9, 1], [9, 35], [10, 0]]


@pytest.mark.parametrize("size", [1, 2, 50])
@pytest.mark.parametrize("name", ["poles", "region"])
def test_the_score_equals_brute_force(name: str, size: int) -> None:
    grid = GRIDS[name]
    forecast, truth = fields(grid, size)
    truth[1, 2:4, 3] = np.nan
    forecast[2, -1, 1, 1] = np.nan
    up, down = 0.0, 0.0
    for time in range(3):
        gaps = np.isnan(truth[time].values) | np.isnan(forecast[time].values).any(axis=0)
        events = [np.where(gaps, np.nan, member > 0.4) for member in (*forecast[time].values, truth[time].values)]
        *predicted, observed = (brute_fractions(event, grid, 900) for event in events)
        mean = np.mean(predicted, axis=0)
        up += np.nansum(grid.areas * (mean - observed) ** 2)
        down += np.nansum(grid.areas * (mean**2 + observed**2))
    found = fss(forecast, truth, threshold=0.4, radius_km=900, dim=("time", "latitude", "longitude"))
    assert float(found) == pytest.approx(1 - up / down, rel=1e-12)
    assert int(found["cases"]) == truth.size - 3
    flipped = {"latitude": slice(None, None, -1)}
    southward = fss(forecast.isel(flipped), truth.isel(flipped), threshold=0.4, radius_km=900, dim=("time", *truth.dims[1:]))
    assert float(southward) == pytest.approx(float(found), rel=1e-12)


def test_the_score_knows_no_edge_in_longitude_and_no_pole() -> None:
    grid = Grid.named("36x19")
    forecast, truth = np.zeros((2, *grid.shape))
    forecast[9, 0] = truth[9, 35] = 1
    arrays = [xr.DataArray(field, dims=("latitude", "longitude"), coords=grid.coords()) for field in (forecast, truth)]
    across = fss(*arrays, threshold=0.5, radius_km=1500)
    for shift in (1, 17, 35):
        rolled = [array.copy(data=np.roll(array.values, shift, axis=1)) for array in arrays]
        assert float(fss(*rolled, threshold=0.5, radius_km=1500)) == pytest.approx(float(across), rel=1e-12)
    assert float(across) > 0.35
    forecast[:], truth[:] = 0, 0
    forecast[17, 0] = truth[17, 18] = 1  # 80 degrees north on both sides of the pole, 20 degrees apart
    assert float(fss(*arrays, threshold=0.5, radius_km=500)) == 0
    assert float(fss(*arrays, threshold=0.5, radius_km=1500)) > 0.1


def test_a_neighbourhood_of_the_whole_earth_compares_frequencies() -> None:
    grid = Grid.named("12x7")
    forecast, truth = fields(grid, times=1)
    f, o = (float((array > 0.4).mean(("time", "number"), skipna=False).weighted(area_weights(grid)).mean())
            for array in (forecast, truth.expand_dims("number")))  # fmt: skip
    found = fss(forecast, truth, threshold=0.4, radius_km=20100)
    assert float(found[0]) == pytest.approx(2 * f * o / (f**2 + o**2), rel=1e-12)


def test_a_perfect_forecast_scores_1_and_an_empty_one_has_no_score() -> None:
    _, truth = fields(Grid.named("12x7"))
    np.testing.assert_allclose(fss(truth, truth, threshold=0.4, radius_km=2000), 1)
    assert np.isnan(fss(truth, truth, threshold=99.0, radius_km=2000)).all()
    assert (fss(truth, truth - 100, threshold=0.4, radius_km=2000) == 0).all()


def test_cases_are_merged_before_the_ratio() -> None:
    forecast, truth = fields(Grid.named("12x7"))
    truth[1] += 2
    together = fss(forecast, truth, threshold=0.4, radius_km=1500, dim=("time", "latitude", "longitude"))
    apart = fss(forecast, truth, threshold=0.4, radius_km=1500)
    assert apart.dims == ("time",)
    assert abs(float(together) - float(apart.mean())) > 0.01
    by_place = fss(forecast, truth, threshold=0.4, radius_km=1500, dim="time")
    assert by_place.dims == ("latitude", "longitude")


def test_weights_are_cell_areas_unless_given() -> None:
    grid = Grid.named("12x7")
    arrays = fields(grid)
    default = fss(*arrays, threshold=0.4, radius_km=1500)
    xr.testing.assert_allclose(fss(*arrays, threshold=0.4, radius_km=1500, weights=area_weights(grid)), default)
    north = xr.DataArray((grid.latitude > 0).astype(float), dims="latitude", coords={"latitude": grid.latitude})
    assert (abs(fss(*arrays, threshold=0.4, radius_km=1500, weights=north) - default) > 1e-4).all()


def test_dask_input_stays_lazy_and_gives_the_same_bits() -> None:
    forecast, truth = fields(Grid.named("12x7"))
    lazy = fss(forecast.chunk(time=1, latitude=3), truth.chunk(time=2), threshold=0.4, radius_km=1500)
    assert lazy.chunks is not None
    xr.testing.assert_identical(lazy.compute(), fss(forecast, truth, threshold=0.4, radius_km=1500))


def test_float32_fields_near_1e5_score_as_their_float64_values() -> None:
    forecast, truth = ((array * 50 + 101325).astype(np.float32) for array in fields(Grid.named("12x7")))
    single = fss(forecast, truth, threshold=101350.0, radius_km=1500)
    xr.testing.assert_identical(single, fss(forecast.astype(float), truth.astype(float), threshold=101350.0, radius_km=1500))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radius_km": -1.0}, "radius_km=-1.0"),
        ({"radius_km": np.nan}, "expected kilometres"),
        ({"missing": "omit"}, "unequal size"),
        ({"op": "="}, "op '=' is not known"),
        ({"dim": "lead"}, "lead"),
    ],
)
def test_a_wrong_argument_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fss(*fields(Grid.named("12x7")), **{"threshold": 0.4, "radius_km": 1500.0, **change})


def test_fields_without_a_plane_are_refused() -> None:
    points = xr.DataArray(np.zeros((5, 9)), dims=("number", "point"))
    with pytest.raises(InputError, match="no dim latitude, longitude"):
        fss(points, points[0], threshold=0.4, radius_km=1500)
    with pytest.raises(InputError, match=r"expected \(\.\.\., 7, 12\)"):
        fractions(np.zeros((12, 7)), Grid.named("12x7"), 100)


def test_the_score_knows_its_event_and_neighbourhood() -> None:
    found = fss(*fields(Grid.named("12x7")), threshold=0.4, op=">=", radius_km=1500)
    event = {"op": ">=", "threshold": "0.4", "members": 5, "missing": "propagate"}
    assert found.attrs == {"long_name": "fractions skill score", "units": "1", "radius_km": 1500, **event}
