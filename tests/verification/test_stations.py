"""Forecasts at stations, checked observations, their scores by lead, and the command that does it all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer
import xarray as xr
from typer.testing import CliRunner, Result

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.regrid import regrid
from data_pipeline.store import write_dataset
from verification import commands
from verification.stations import at_stations, gross_error_check, save_scores, score_stations

HOUR = np.timedelta64(1, "h").astype("timedelta64[ns]")
DAYS = np.datetime64("2007-01-01", "ns") + 24 * HOUR * np.arange(40)
GLOBE = Grid.named("16x8")
POLES = Grid.named("16x9")
REGION = Grid(np.arange(40.0, 61, 5), np.arange(-20.0, 21, 5))


def places(latitude: Any, longitude: Any, elevation: Any = np.nan, times: np.ndarray = DAYS[:1], **variables: Any) -> xr.Dataset:
    """Stations in the schema; variables (time, station) with their units."""
    latitude, longitude = np.atleast_1d(latitude).astype(float), np.mod(np.atleast_1d(longitude).astype(float), 360)
    names = np.array([f"S{k}" for k in range(latitude.size)], dtype=object)
    height = np.broadcast_to(np.asarray(elevation, dtype=float), latitude.shape)
    coords = {"latitude": latitude, "longitude": longitude, "elevation": height}
    data = xr.Dataset(coords={"time": times, "station": names, **{name: ("station", value) for name, value in coords.items()}})
    return data.assign({name: (("time", "station"), values, {"units": units}) for name, (units, values) in variables.items()})


def fields(
    grid: Grid, names: tuple[str, ...] = ("2m_temperature",), shape: tuple[int, ...] = (2, 1, 3), seed: int = 0
) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    dims = ("time", "prediction_timedelta", "number", "latitude", "longitude")
    coords = {
        "time": DAYS[: shape[0]],
        "prediction_timedelta": 24 * HOUR * np.arange(1, shape[1] + 1),
        "number": np.arange(shape[2]),
    }
    values = {name: (dims, rng.normal(280, 5, (*shape, *grid.shape)).astype("f4"), {"units": "K"}) for name in names}
    return xr.Dataset(values, {**coords, **grid.coords()})


# at stations


def test_a_plane_is_interpolated_exactly() -> None:
    plane = 2 * REGION.latitude[:, None] - 3 * REGION.longitude[None, :]
    data = xr.Dataset({"2m_temperature": (("latitude", "longitude"), plane)}, REGION.coords())
    latitude, longitude = np.array([41.0, 52.5, 60, 40]), np.array([-19.0, 3.3, 20, -20])
    found = at_stations(data, places(latitude, longitude))["2m_temperature"]
    assert found.dims == ("station",)
    np.testing.assert_allclose(found, 2 * latitude - 3 * longitude, rtol=1e-13)


@pytest.mark.parametrize("grid", [GLOBE, POLES, REGION], ids=["globe", "poles", "region"])
def test_a_station_on_a_grid_point_has_its_bits(grid: Grid) -> None:
    data = fields(grid)
    latitude, longitude = (axis.ravel() for axis in np.meshgrid(grid.latitude, grid.longitude, indexing="ij"))
    found = at_stations(data, places(latitude, longitude))["2m_temperature"]
    np.testing.assert_array_equal(found, data["2m_temperature"].stack(point=("latitude", "longitude")))
    assert found.dtype == np.float32
    assert found.attrs["units"] == "K"


@pytest.mark.parametrize("source", [GLOBE, POLES], ids=["globe", "poles"])
def test_it_agrees_with_bilinear_regridding_around_the_date_line_and_over_the_poles(source: Grid) -> None:
    winds = ("10m_u_component_of_wind", "10m_v_component_of_wind")
    data = fields(source, ("2m_temperature", *winds)).astype(np.float64)
    target = Grid(np.linspace(-90, 90, 37), np.arange(0, 360, 7.5))
    latitude, longitude = (axis.ravel() for axis in np.meshgrid(target.latitude, target.longitude, indexing="ij"))
    found, expected = at_stations(data, places(latitude, longitude)), regrid(data, target, "bilinear")
    for name in data.data_vars:
        np.testing.assert_allclose(found[name], expected[name].stack(point=("latitude", "longitude")), rtol=0, atol=1e-10)


def test_it_agrees_with_interp_of_xarray_after_a_cyclic_pad() -> None:
    data = fields(GLOBE).astype(np.float64)["2m_temperature"]
    rng = np.random.default_rng(1)
    latitude, longitude = rng.uniform(-78, 78, 200), rng.uniform(-180, 180, 200)
    wrapped = xr.concat([data, data.isel(longitude=[0]).assign_coords(longitude=[360.0])], "longitude")
    at = {name: xr.DataArray(values, dims="station") for name, values in (("latitude", latitude), ("longitude", longitude % 360))}
    found = at_stations(data.to_dataset(name="t"), places(latitude, longitude))["t"]
    np.testing.assert_allclose(found, wrapped.interp(at), rtol=0, atol=1e-10)


def test_a_constant_near_1e5_in_float32_stays_what_it_is() -> None:
    data = xr.full_like(fields(GLOBE), np.float32(101325.01))
    rng = np.random.default_rng(2)
    found = at_stations(data, places(rng.uniform(-90, 90, 500), rng.uniform(0, 360, 500)))["2m_temperature"]
    assert (found == np.float32(101325.01)).all()


def test_stations_outside_a_region_are_dropped_and_counted_never_extrapolated() -> None:
    stations = places([50, 39.9, 60.1, 50, 50, 50], [-19.9, 0, 0, 20.1, -20.1, 340])
    found = at_stations(fields(REGION), stations)
    assert found["station"].values.tolist() == ["S0", "S5"]
    assert found.attrs["stations_outside"] == 4
    with pytest.raises(InputError, match="S0 does not lie on the grid, 9x5 regional"):
        at_stations(fields(REGION), places(0, 0))


def test_dask_input_stays_lazy_and_gives_the_same_bits() -> None:
    data = fields(GLOBE)
    stations = places([10, -88, 45.5], [3, 4, 359])
    lazy = at_stations(data.chunk(time=1, number=2, latitude=3), stations)
    assert lazy["2m_temperature"].chunks is not None
    xr.testing.assert_identical(lazy.compute(), at_stations(data, stations))


def test_a_missing_neighbour_counts_only_if_it_has_weight() -> None:
    data = fields(REGION)
    data["2m_temperature"][..., 1, 1] = np.nan
    found = at_stations(data, places([45, 44.9, 40, 45], [-15, -15, -15, -10]))["2m_temperature"].isnull().all(("time", "number"))
    np.testing.assert_array_equal(found.values.ravel(), [True, True, False, False])


def test_a_wind_component_alone_cannot_reach_the_pole() -> None:
    data = fields(GLOBE, ("10m_u_component_of_wind",))
    assert at_stations(data, places(70, 0)).sizes["station"] == 1
    with pytest.raises(InputError, match="cannot be brought to the pole without 10m_v"):
        at_stations(data, places(-90, 0))


def test_only_2m_temperature_is_corrected_and_only_where_both_heights_are_known() -> None:
    data = fields(REGION, ("2m_temperature", "2m_dewpoint_temperature"))
    height = 10.0 * (REGION.latitude[:, None] + 0 * REGION.longitude)
    coords = REGION.coords()
    orography = xr.DataArray(height, coords, ("latitude", "longitude"), attrs={"units": "m"})
    geopotential = (orography * 9.80665).assign_attrs(units="m2 s-2").to_dataset(name="geopotential_at_surface")
    stations = places([50.0, 42.5, 50], [0.0, 1, 2], [100, 925, np.nan])
    plain = at_stations(data, stations)
    for elevation in (orography, geopotential):
        found = at_stations(data, stations, elevation=elevation)
        np.testing.assert_allclose(found["model_elevation"], [500, 425, 500], rtol=1e-6)
        np.testing.assert_array_equal(found["height_corrected"], [True, True, False])
        difference = found["2m_temperature"] - plain["2m_temperature"]
        np.testing.assert_allclose(difference, np.broadcast_to([2.6, -3.25, 0], difference.shape), atol=5e-5)
        xr.testing.assert_equal(found["2m_dewpoint_temperature"].drop_vars(["model_elevation", "height_corrected"]),
                                plain["2m_dewpoint_temperature"])  # fmt: skip
        assert "0.0065 K m-1 x (model - station elevation) at 2 of 3 stations" in found.attrs["height_correction"]
    dry = at_stations(data, stations, elevation=orography, lapse_rate=0.0098)["2m_temperature"] - plain["2m_temperature"]
    np.testing.assert_allclose(dry[0, 0, 0], [3.92, -4.9, 0], atol=5e-5)
    with pytest.raises(InputError, match="expected the model's own"):
        at_stations(data, stations, elevation=orography[1:])
    with pytest.raises(InputError, match="no geopotential_at_surface"):
        at_stations(data, stations, elevation=data)


# gross errors


def observed(values: Any, name: str = "2m_temperature", units: str = "K") -> xr.Dataset:
    values = np.asarray(values, dtype=np.float32)
    return places(np.zeros(values.shape[1]), np.zeros(values.shape[1]), 0.0, DAYS[: len(values)], **{name: (units, values)})


def test_the_impossible_and_what_departs_from_the_stations_own_median_are_flagged_and_counted() -> None:
    values = np.random.default_rng(0).normal(280, 2, (40, 3))
    values[3, 0], values[4, 0], values[5, 0], values[6, 1] = 1000, 320, np.nan, 150
    data = observed(values)
    flags = gross_error_check(data)
    assert flags.attrs["rejected"] == "2m_temperature: 2 outside 170 to 345, 1 depart"
    assert flags["2m_temperature"].dtype == np.int8
    expected = np.zeros((40, 3))
    expected[3, 0], expected[4, 0], expected[6, 1] = 1, 2, 1
    np.testing.assert_array_equal(flags["2m_temperature"], expected)
    kept = data.where(flags == 0)
    assert int(kept["2m_temperature"].isnull().sum()) == 4
    assert kept["2m_temperature"].attrs["units"] == "K"
    assert gross_error_check(data, limit=None).attrs["rejected"] == "2m_temperature: 2 outside 170 to 345, 0 depart"
    with pytest.raises(InputError, match="limit=0"):
        gross_error_check(data, limit=0)


def test_short_constant_and_skewed_series_do_not_depart() -> None:
    short = np.random.default_rng(0).normal(280, 2, (29, 1))
    short[3] = 340
    assert gross_error_check(observed(short)).attrs["rejected"] == "none"
    constant = np.full((40, 1), 280.0)
    constant[3] = 281
    assert gross_error_check(observed(constant)).attrs["rejected"] == "none"
    rain = np.abs(np.random.default_rng(0).normal(0, 1e-4, (40, 1)))
    rain[3] = 0.3
    assert gross_error_check(observed(rain, "total_precipitation_24hr", "m")).attrs["rejected"] == "none"


# a forecast at stations


def at_points(**constants: float) -> tuple[xr.Dataset, xr.Dataset]:
    """An ensemble of two equal members that say the hour of their valid time, and observations that say it too."""
    leads = 24 * HOUR * np.array([1, 2])
    stations = places([50, 0], [0, 9], 0.0, DAYS[:20])
    hours = ((DAYS - DAYS[0]) / HOUR)[:, None]
    stations["2m_temperature"] = (("time", "station"), 200 + hours[:20] + [0, 1], {"units": "K"})
    stations["mean_sea_level_pressure"] = (("time", "station"), 1e5 + hours[:20] + [0, 0], {"units": "Pa"})
    valid = (hours[:16, 0][:, None] + leads / HOUR)[:, :, None, None] + np.zeros((1, 1, 2, 1))
    dims = ("time", "prediction_timedelta", "number", "station")
    data = xr.Dataset(
        {
            "2m_temperature": (dims, 200 + valid + [0, 1], {"units": "K"}),
            "mean_sea_level_pressure": (dims, 1e5 + valid + [3, 3], {"units": "Pa"}),
        },
        {"time": DAYS[:16], "prediction_timedelta": leads, "station": stations["station"]},
    )
    return data, stations


def test_forecasts_are_paired_with_the_observations_at_their_valid_time() -> None:
    data, stations = at_points()
    stations = stations.isel(time=[k for k in range(20) if k != 4])
    stations["2m_temperature"][0:3, 1] = np.nan
    scores = score_stations(data, stations, n_boot=10)
    assert scores["crps"].dims == ("channel", "prediction_timedelta", "place")
    assert scores["units"].values.tolist() == ["K", "Pa"]
    pooled = scores.sel(place="all")
    np.testing.assert_array_equal(pooled["crps_ecdf"], [[0, 0], [3, 3]])
    np.testing.assert_array_equal(pooled["bias"], [[0, 0], [3, 3]])
    np.testing.assert_array_equal(pooled["n"], [[28, 29], [30, 30]])
    np.testing.assert_array_equal(pooled["no_truth"], [[4, 3], [2, 2]])
    assert scores.attrs["members"] == 2
    assert scores.sel(place="Europe")["n"].values.tolist() == [[15, 15], [15, 15]]


def test_what_cannot_be_paired_is_refused_before_anything_is_read() -> None:
    data, stations = at_points()
    lazy = data.map(
        lambda array: array.copy(data=xr.DataArray(array.values).chunk().data.map_blocks(lambda _: 1 / 0, dtype=float))
    )
    celsius = stations.assign({"2m_temperature": stations["2m_temperature"].assign_attrs(units="degC")})
    faults = [
        (lazy, stations[["2m_temperature"]].rename({"2m_temperature": "10m_wind_speed"}), "no variable in common"),
        (lazy, celsius, "2m_temperature: K and degC"),
        (lazy, stations.isel(station=[0]), "1 stations of the forecast have no observations, first S1"),
        (lazy, stations.assign_coords(time=stations["time"] + 10 * HOUR // 60), "no observation at a valid time.*paired exactly"),
        (lazy, stations.drop_vars("elevation"), r"coordinates missing \['elevation'\]"),
    ]
    for forecast, observations, message in faults:
        with pytest.raises(InputError, match=message):
            score_stations(forecast, observations)


def test_scores_are_saved_as_a_table_and_whole_and_replaced_by_a_rerun(tmp_path: Path) -> None:
    scores = score_stations(*at_points(), n_boot=10)
    for _ in range(2):
        saved = save_scores(scores, tmp_path / "new" / "toy.stations")
        assert [path.name for path in saved] == ["toy.stations.csv", "toy.stations.nc"]
        assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["toy.stations.csv", "toy.stations.nc"]
    with xr.open_dataset(saved[1], decode_timedelta=True) as again:
        xr.testing.assert_equal(again.load(), scores)
    table = pd.read_csv(saved[0])
    assert len(table) == scores["crps"].size
    row = table[(table["channel"] == "mean_sea_level_pressure") & (table["lead_hours"] == 48) & (table["place"] == "all")]
    assert row["bias"].item() == 3
    assert row["units"].item() == "Pa"


# the command


def run(*arguments: str | Path) -> Result:
    app = typer.Typer()
    commands.register(app)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def test_verify_stations_prints_saves_and_says_what_was_left_out(tmp_path: Path) -> None:
    data = fields(GLOBE, shape=(10, 3, 4))
    forecast = write_dataset(tmp_path / "forecasts" / "toy.zarr", data, {"model": "toy"})
    orography = xr.full_like(data["2m_temperature"][0, 0, 0].drop_vars(["time", "prediction_timedelta", "number"]), 9806.65)
    analysis = data["2m_temperature"].isel(prediction_timedelta=0, number=0, drop=True).to_dataset()
    analysis["geopotential_at_surface"] = orography.assign_attrs(units="m2 s-2")
    write_dataset(tmp_path / "analysis.zarr", analysis, {})
    rng = np.random.default_rng(0)
    rows = ["id,lat,lon,alt,time,variable,value,units"]
    for name, latitude, longitude in (("01001", 71, -9), ("89009", -90, 0), ("91212", 13.5, 144.8)):
        for day in DAYS[1:13]:
            value = 999 if name == "01001" and day == DAYS[3] else rng.normal(5, 3)
            rows.append(f"{name},{latitude},{longitude},0,{day},t2m,{value:.1f},degC")
    table = tmp_path / "obs.csv"
    table.write_text("\n".join(rows))
    result = run("verify-stations", forecast, "--stations", table, "--elevation", tmp_path / "analysis.zarr", "--leads", "1d,3d")
    assert result.exit_code == 0, result.output
    for text in ("fair CRPS", "t2m (K)", "day 3", "northern extratropics", "4 members against obs.csv, 3 stations",
                 "1 outside 170 to 345", "at 3 of 3 stations", "observation error not modelled", "too few"):  # fmt: skip
        assert text in result.output
    assert "day 2" not in result.output
    with xr.open_dataset(tmp_path / "scores" / "toy.stations.nc", decode_timedelta=True) as scores:
        pooled = scores.sel(place="all", channel="2m_temperature")
        assert pooled["n"].values.tolist() == [29, 29, 29]
        assert scores.attrs["rejected"] == "2m_temperature: 1 outside 170 to 345, 0 depart"
    assert run("verify-stations", forecast, "--stations", table, "--out", tmp_path / "own").exit_code == 0
    with xr.open_dataset(tmp_path / "own" / "toy.stations.nc", decode_timedelta=True) as plain:
        lifted = pooled["bias"] - plain["bias"].sel(place="all", channel="2m_temperature")
        np.testing.assert_allclose(lifted, 6.5, atol=1e-4)


def test_its_help_teaches_with_an_example() -> None:
    told = run("verify-stations", "--help").output
    for text in ("Example: plumecast verify-stations", "--stations", "--elevation", "2m_temperature,-5.2,degC"):
        assert text in told
