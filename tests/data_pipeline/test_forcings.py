"""Forcings: the sun by quadrature and by the textbook, the calendar without jumps, static fields standardised."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.errors import InputError
from data_pipeline.forcings import SOLAR_CONSTANT, Forcings, insolation, plane_names, standardised_static
from data_pipeline.grid import Grid
from tests.toys import GLOBE, REGION, weather

DAY = np.timedelta64(1, "D")
FINE = Grid.named("24x36")


def sun(stamp: np.datetime64, grid: Grid) -> np.ndarray:
    """Insolation at one instant (W m-2), the Astronomical Almanac's low-precision sun written out anew."""
    n = float((stamp - np.datetime64("2000-01-01T12", "ns")) / np.timedelta64(1, "s")) / 86400
    mean_longitude, g = 280.460 + 0.9856474 * n, np.deg2rad(357.528 + 0.9856003 * n)
    ecliptic = np.deg2rad(mean_longitude + 1.915 * np.sin(g) + 0.020 * np.sin(2 * g))
    obliquity = np.deg2rad(23.439 - 0.0000004 * n)
    declination = np.arcsin(np.sin(obliquity) * np.sin(ecliptic))
    right_ascension = np.arctan2(np.cos(obliquity) * np.sin(ecliptic), np.cos(ecliptic))
    sidereal = np.deg2rad(280.46062 + 360.98564737 * n)
    hour_angle = sidereal + np.deg2rad(grid.longitude)[None, :] - right_ascension
    lat = np.deg2rad(grid.latitude)[:, None]
    cosine = np.sin(lat) * np.sin(declination) + np.cos(lat) * np.cos(declination) * np.cos(hour_angle)
    distance = 1.00014 - 0.01671 * np.cos(g) - 0.00014 * np.cos(2 * g)
    return SOLAR_CONSTANT / distance**2 * np.maximum(cosine, 0)


@pytest.mark.parametrize("hours", [1, 6, 12, 24])
@pytest.mark.parametrize("start", ["2001-03-20T06", "2007-06-21T18", "1979-10-02T00", "2019-12-31T21"])
@pytest.mark.parametrize("grid", [Grid(np.linspace(-87.5, 87.5, 8), np.arange(0, 360, 45.0)), REGION, Grid.named("F4")], ids=str)
def test_any_step_agrees_with_a_quadrature_every_ten_seconds(start: str, hours: int, grid: Grid) -> None:
    first = np.datetime64(start, "ns")
    instants = first + np.timedelta64(5, "s") + np.timedelta64(10, "s") * np.arange(360 * hours)
    expected = sum(sun(instant, grid) for instant in instants) / instants.size
    found = insolation(first, np.timedelta64(hours, "h"), grid)
    assert np.abs(found - expected).max() < 2.4e-4 * SOLAR_CONSTANT


def test_the_annual_global_mean_is_a_quarter_of_the_solar_constant() -> None:
    days = np.datetime64("2001-01-01", "ns") + 5 * DAY * np.arange(73)
    mean = np.mean([(insolation(day, DAY, FINE) * FINE.area_weights).mean() for day in days])
    assert mean == pytest.approx(340.3, abs=0.4)


def test_the_polar_night_is_dark_and_the_polar_day_is_not() -> None:
    midwinter = insolation(np.datetime64("2001-12-21", "ns"), DAY, FINE)
    assert (midwinter[FINE.latitude > 68] == 0).all()
    assert (midwinter[FINE.latitude < -68] > 400).all()


def test_pieces_of_a_day_add_up_to_the_day() -> None:
    start = np.datetime64("2003-04-05T03", "ns")
    pieces = [insolation(start + np.timedelta64(3 * i, "h"), np.timedelta64(3, "h"), FINE) for i in range(8)]
    np.testing.assert_allclose(np.mean(pieces, axis=0), insolation(start, DAY, FINE), atol=2e-4 * SOLAR_CONSTANT)
    assert all((piece >= 0).all() for piece in pieces)


def test_noon_is_where_the_sun_is() -> None:
    found = insolation(np.datetime64("2001-03-20T11:30", "ns"), np.timedelta64(1, "h"), FINE)
    assert FINE.longitude[found[18].argmax()] == 0
    assert FINE.longitude[insolation(np.datetime64("2001-03-20T05:30", "ns"), np.timedelta64(1, "h"), FINE)[18].argmax()] == 90


@pytest.mark.parametrize("year", ["2000", "2001", "2004", "2099"])
def test_the_season_has_no_jump_at_new_year_or_in_leap_years(year: str) -> None:
    planes = Forcings(["season"], GLOBE, np.timedelta64(12, "h"))
    stamps = np.datetime64(f"{year}-12-20", "ns") + np.timedelta64(12, "h") * np.arange(200)
    angle = np.unwrap([np.arctan2(*planes.at(stamp)[::-1, 0, 0].astype("float64")) for stamp in stamps])
    np.testing.assert_allclose(np.diff(angle), 2 * np.pi * 0.5 / 365.2425, atol=1e-5)


def test_insolation_is_that_of_the_step_that_ends_at_the_stamp() -> None:
    step, valid = np.timedelta64(6, "h"), np.datetime64("2001-07-01T18", "ns")
    plane = Forcings(["insolation"], GLOBE, step).at(valid)[0]
    np.testing.assert_allclose(plane, insolation(valid - step, step, GLOBE) / (SOLAR_CONSTANT / 4) - 1, rtol=1e-5, atol=1e-6)


def test_planes_come_in_the_order_of_their_names() -> None:
    names = ["hour", "geopotential_at_surface", "position", "season", "insolation", "land_sea_mask"]
    data = weather(steps=3)
    forcings = Forcings(names, GLOBE, np.timedelta64(12, "h"), standardised_static(data, names))
    planes = forcings.at(np.datetime64("2001-01-01T06", "ns"))
    labels = plane_names(names)
    assert planes.shape == (len(labels), 8, 16)
    assert planes.dtype == np.float32
    by_name = dict(zip(labels, planes, strict=True))
    np.testing.assert_allclose(by_name["position_0"][:, 3], np.sin(np.deg2rad(GLOBE.latitude)), rtol=1e-6)
    np.testing.assert_allclose(by_name["position_3"][2], np.sin(np.deg2rad(GLOBE.longitude)), atol=1e-6)
    np.testing.assert_allclose(by_name["hour_0"][0, 4], np.cos(np.deg2rad(90 + 90)), atol=1e-6)  # 06 UTC is noon at 90 E
    assert by_name["geopotential_at_surface"].mean() == pytest.approx(0, abs=1e-5)
    assert by_name["land_sea_mask"].std() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("hours", [6, 12, 24])
@pytest.mark.parametrize("grid", [GLOBE, REGION, Grid.named("240x121"), Grid.named("F24")], ids=str)
def test_many_stamps_equal_each_alone_in_any_order_and_repeated(grid: Grid, hours: int) -> None:
    names = ["hour", "land_sea_mask", "position", "season", "insolation"]
    static = {"land_sea_mask": np.random.default_rng(0).normal(size=grid.shape).astype("f4")}
    forcings = Forcings(names, grid, np.timedelta64(hours, "h"), static)
    stamps = np.datetime64("1999-12-30", "ns") + np.timedelta64(6, "h") * np.random.default_rng(1).integers(0, 40, 23)
    for order in (stamps, np.unique(stamps), stamps.astype("datetime64[s]")):
        found = forcings.many(order)
        assert found.shape == (order.size, forcings.n_planes, *grid.shape)
        assert found.dtype == np.float32
        for planes, stamp in zip(found, order, strict=True):
            np.testing.assert_array_equal(planes, forcings.at(stamp))


def test_what_is_returned_may_be_changed() -> None:
    forcings = Forcings(["position", "insolation"], GLOBE, np.timedelta64(6, "h"))
    stamp = np.datetime64("2001-01-01", "ns")
    before = forcings.at(stamp).copy()
    forcings.at(stamp)[:] = 0
    np.testing.assert_array_equal(forcings.at(stamp), before)


def test_no_forcings_are_no_planes() -> None:
    assert Forcings([], REGION, np.timedelta64(12, "h")).at(np.datetime64("2001-01-01", "ns")).shape == (0, *REGION.shape)


def test_a_forcing_that_does_not_exist_or_is_not_in_the_data_is_refused() -> None:
    with pytest.raises(InputError, match="forcing moon is not known; choose from season"):
        plane_names(["season", "moon"])
    data = weather(steps=3).drop_vars("land_sea_mask")
    names = ["land_sea_mask"]
    with pytest.raises(InputError, match=r"land_sea_mask: the analysis has no such static field; drop it from model\.forcings"):
        Forcings(names, GLOBE, np.timedelta64(12, "h"), standardised_static(data, names))
