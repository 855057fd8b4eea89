"""Known lows, moving as told, are found, followed and counted; also over the date line and the pole, and where they merge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel
from data_pipeline.store import open_store
from data_pipeline.templates import forecast_dataset
from forecast.products import making as products
from forecast.products import tracks
from forecast.products.points import unit_vectors
from forecast.products.recipe import ProductsSection, TrackSection
from verification.neighbourhood import EARTH_RADIUS_KM

COARSE, FINE = Grid.named("64x32"), Grid.named("120x61")
REGION = Grid(np.arange(20.0, 70.1, 2.5), np.arange(-40.0, 40.1, 2.5))
HOURS = np.arange(12, 121, 12.0)
CRITERIA = {"depth": 200.0, "radius_km": 1000.0}
MOTION = {"speed_ms": 35.0, "lifetime_hours": 24.0}


def pressure(grid: Grid, *lows: tuple[float, float, float], width_km: float = 600.0) -> np.ndarray:
    """1013 hPa less a Gaussian of each low (latitude, longitude, depth in hPa)."""
    cells = unit_vectors(*np.meshgrid(grid.latitude, grid.longitude, indexing="ij"))
    field = np.full(grid.shape, 101300.0)
    for latitude, longitude, depth in lows:
        away = tracks.distance(cells, unit_vectors(np.array(latitude), np.array(longitude))) * EARTH_RADIUS_KM
        field -= 100 * depth * np.exp(-((away / width_km) ** 2) / 2)
    return field.astype(np.float32)


def apart_km(track: tracks.Track, latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    return tracks.distance(np.array(track.places), unit_vectors(latitude, longitude)) * EARTH_RADIUS_KM


def followed(fields: list[np.ndarray], grid: Grid, **more: float) -> list[tracks.Track]:
    lows = tracks.find_lows(np.stack(fields), grid, **CRITERIA)
    return tracks.follow(lows, HOURS[: len(fields)], **{**MOTION, **more})


@pytest.mark.parametrize(("grid", "error"), [(COARSE, 160), (FINE, 60)])
def test_a_low_is_followed_across_the_meridian_of_greenwich(grid: Grid, error: float) -> None:
    longitude = np.mod(np.linspace(330, 390, HOURS.size), 360)
    latitude = np.linspace(40, 55, HOURS.size)
    found = followed([pressure(grid, (y, x, 30)) for y, x in zip(latitude, longitude, strict=True)], grid)
    assert len(found) == 1
    assert (found[0].first, found[0].last) == (0, HOURS.size - 1)
    assert apart_km(found[0], latitude, longitude).max() < error, "the parabola places it between the cells"
    assert np.abs(np.array(found[0].pressure) - 98300).max() < 500
    there = tracks.positions(np.array(found[0].places))[1]
    assert there.min() >= 0
    assert there.max() < 360


@pytest.mark.parametrize("grid", [COARSE, FINE])
def test_a_low_crosses_the_pole(grid: Grid) -> None:
    over = np.linspace(70, 110, HOURS.size)
    latitude, longitude = np.where(over > 90, 180 - over, over), np.where(over > 90, 200.0, 20.0)
    found = followed([pressure(grid, (y, x, 30)) for y, x in zip(latitude, longitude, strict=True)], grid)
    assert len(found) == 1
    assert len(found[0].places) == HOURS.size
    assert apart_km(found[0], latitude, longitude).max() < 350


def test_lows_that_cross_keep_their_own_ways() -> None:
    """Two pass each other a few degrees apart: nearest neighbours would swap them."""
    west, east = np.linspace(100, 172, HOURS.size), np.linspace(170, 98, HOURS.size)
    found = followed([pressure(FINE, (48, a, 25), (36, b, 25), width_km=400) for a, b in zip(west, east, strict=True)], FINE)
    assert len(found) == 2
    ends = sorted(tracks.positions(np.array(track.places))[1][[0, -1]].round(-1).tolist() for track in found)
    assert ends == [[100.0, 170.0], [170.0, 100.0]]


def test_of_merging_lows_one_goes_on() -> None:
    second = np.linspace(60, 31, HOURS.size)
    found = followed([pressure(FINE, (50, 30, 30), (50, x, 15), width_km=400) for x in second], FINE)
    assert len(found) == 2
    assert len(found[0].places) == HOURS.size
    assert 24 / 12 < len(found[1].places) < HOURS.size, "the shallow one ends in the deep one"


def test_a_jump_beyond_the_speed_is_two_tracks() -> None:
    longitude = [100, 102, 104, 150, 152, 154]
    assert len(followed([pressure(FINE, (50, x, 30)) for x in longitude], FINE)) == 2
    assert len(followed([pressure(FINE, (50, x, 30)) for x in longitude], FINE, speed_ms=100)) == 1


def test_short_lives_are_left_out() -> None:
    fields = [pressure(FINE, (50, 100, 30)), pressure(FINE, (50, 103, 30)), *[pressure(FINE)] * 3]
    assert followed(fields, FINE) == []
    assert len(followed(fields, FINE, lifetime_hours=12)) == 1


def test_shallow_open_and_wide_minima_are_no_lows() -> None:
    def count(field: np.ndarray, grid: Grid = FINE, **more: float) -> int:
        return len(tracks.find_lows(field[None], grid, **{**CRITERIA, **more})[0].pressure)

    assert count(pressure(FINE, (50, 100, 1.5))) == 0, "shallower than the contour"
    assert count(pressure(FINE, (50, 100, 4))) == 1
    assert count(pressure(FINE, (50, 100, 2.5), width_km=2000)) == 0, "its contour is wider than the circle"
    assert count(pressure(FINE)) == 0, "a flat field has one minimum, without a contour"
    slope = pressure(FINE) + 3e3 * np.sin(np.deg2rad(FINE.longitude))[None, :].astype(np.float32)
    assert count(slope) == 0, "a trough from pole to pole is open"
    twins = pressure(FINE, (50, 100, 30), (50, 115, 30.5), width_km=400)
    assert count(twins, depth=200.0) == 2
    assert count(twins, depth=1000.0, radius_km=3000) == 1, "within one contour the deepest counts"


def test_at_the_edge_of_a_region_contours_are_not_closed() -> None:
    def count(*lows: tuple[float, float, float]) -> int:
        return len(tracks.find_lows(pressure(REGION, *lows)[None], REGION, **CRITERIA)[0].pressure)

    assert count((45, 0, 30)) == 1
    assert count((45, 41, 30)) == 0
    assert count((69, 0, 30)) == 0


def test_missing_pressure_is_refused() -> None:
    field = pressure(COARSE, (50, 100, 30))
    field[3, 4] = np.nan
    with pytest.raises(InputError, match="missing or infinite values"):
        tracks.find_lows(field[None], COARSE, **CRITERIA)


def straight(first: int, latitude: np.ndarray, longitude: np.ndarray) -> tracks.Track:
    return tracks.Track(first, list(unit_vectors(latitude, longitude)), [98000.0] * len(latitude))


def test_strikes_equal_a_plain_count_along_the_way() -> None:
    """Held to a brute force: a fortieth of a step of every member, every cell, every lead."""
    rng = np.random.default_rng(3)
    hours = HOURS[:5]
    members = []
    for _ in range(4):
        latitude, longitude = 50 + rng.uniform(-8, 8, 4), np.mod(-10 + np.cumsum(rng.uniform(0, 14, 4)), 360)
        members.append([straight(int(rng.integers(0, 2)), latitude, longitude)])
    found = tracks.strikes(members, hours, FINE, radius_km=300, window_hours=24)
    cells = unit_vectors(*np.meshgrid(FINE.latitude, FINE.longitude, indexing="ij"))
    sure, possible = np.zeros(found.shape), np.zeros(found.shape)
    for member in members:
        certain, near = np.zeros(found.shape, bool), np.zeros(found.shape, bool)
        for track in member:
            for i in range(len(track.places) - 1):
                for part in np.linspace(0, 1, 41)[1 if i else 0 :]:
                    place = track.places[i] + part * (track.places[i + 1] - track.places[i])
                    away = tracks.distance(cells, place / np.linalg.norm(place)) * EARTH_RADIUS_KM
                    time = hours[track.first + i] + 12 * part
                    inside = (hours - 24 <= time + 1e-6) & (time <= hours + 1e-6)
                    certain[inside] |= away <= 290
                    near[inside] |= away <= 300.0001
        sure, possible = sure + certain, possible + near
    assert np.isnan(found[0]).all(), "24 h have not passed"
    assert (found[1:] <= possible[1:] / 4 + 1e-9).all()
    assert (found[1:] >= sure[1:] / 4 - 1e-9).all(), "steps of a third of the radius miss only the rim"
    assert found[1:].max() >= 0.5


def test_a_strike_reaches_across_the_date_line_and_the_pole() -> None:
    still = straight(0, np.array([88.0, 88.0]), np.array([1.0, 1.0]))
    found = tracks.strikes([[still], []], HOURS[:2], FINE, radius_km=500, window_hours=12)
    assert found[0, -1].tolist() == [0.5] * FINE.shape[1], "the pole itself, on every meridian"
    assert found[0, np.abs(FINE.latitude - 87).argmin(), np.abs(FINE.longitude - 180).argmin()] == 0
    assert found[0, np.abs(FINE.latitude - 87).argmin(), np.abs(FINE.longitude - 357).argmin()] == 0.5


def test_tracks_of_an_ensemble_in_a_store(tmp_path: Path) -> None:
    """Three members with a low on its way over Greenwich, a fourth without: 3 of 4 strike."""
    way = [np.linspace(345 + k, 375 + k, 6) for k in range(3)]
    fields = np.stack([np.stack([*(pressure(COARSE, (50, x[i], 30)) for x in way), pressure(COARSE)])[:, None] for i in range(6)])
    times = np.array(["2003-01-01"], "M8[ns]")
    leads = (HOURS[:6] * 3600e9).astype("m8[ns]")
    data = forecast_dataset(fields[None], times, leads, range(4), [Channel("mean_sea_level_pressure")], COARSE)
    section = ProductsSection(channels=[], thresholds=[], tracks=TrackSection(most=3, strike_km=600))
    found = open_store(products.make(data, tmp_path / "p.zarr", section)).load()
    assert found["track_count"].values.tolist() == [[1, 1, 1, 0]]
    assert found["track_pressure"].dims == ("time", "number", "track", "prediction_timedelta")
    assert found["track_pressure"].notnull().sum("prediction_timedelta").values[0].tolist() == [[6, 0, 0]] * 3 + [[0, 0, 0]]
    np.testing.assert_allclose(found["track_latitude"].values[0, :3, 0], 50, atol=2)
    strike = found["strike_probability"].isel(time=0)
    assert float(strike.max()) == 0.75
    assert strike.isel(prediction_timedelta=0).isnull().all()
    assert float(strike.isel(prediction_timedelta=-1).sel(latitude=50, longitude=8, method="nearest")) == 0.75
    assert "2 hPa higher within 1000 km" in strike.attrs["definition"]
