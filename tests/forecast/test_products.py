"""Products of an ensemble: each equals its definition computed plainly, says what it is, and is written once and whole."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import xarray as xr
from hypothesis import strategies as st
from typer.testing import CliRunner

import plumecast
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel
from data_pipeline.store import open_store, verify_store, write_dataset
from data_pipeline.templates import forecast_dataset
from forecast.products import conditions, statistics
from forecast.products import making as products
from forecast.products.plan import make_plan
from forecast.products.recipe import Place, ProductsSection, StampSection, TrackSection, read_products
from verification import quantiles as verified
from verification.neighbourhood import fractions

GRID = Grid.named("16x8")
T2M, U10, V10, RAIN, MSL = (
    "2m_temperature", "10m_u_component_of_wind", "10m_v_component_of_wind", "total_precipitation_12hr", "mean_sea_level_pressure",
)  # fmt: skip
LABELS = (T2M, U10, V10, RAIN, MSL, "geopotential_500", "geopotential_850")
LEVELS = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99])
SIZE, LEADS = 9, 6


def world(seed: int = 0, inits: int = 2, grid: Grid = GRID) -> xr.Dataset:
    """Members of seven channels, rain with many zeros, all random: 2 initialisations, 12-hourly leads to 3 days."""
    rng = np.random.default_rng(seed)
    shape = (inits, LEADS, SIZE, *grid.shape)
    rain = np.maximum(np.round(rng.normal(0, 8, shape)), 0) * 1e-3
    kinds = [290 + 8 * rng.normal(size=shape), 9 * rng.normal(size=shape), 9 * rng.normal(size=shape), rain]
    kinds += [1e5 + 900 * rng.normal(size=shape), 5.5e4 + 900 * rng.normal(size=shape), 1.5e4 + 300 * rng.normal(size=shape)]
    times = np.datetime64("2003-12-30", "ns") + np.arange(inits) * np.timedelta64(24, "h")
    leads = (np.arange(1, LEADS + 1) * np.timedelta64(12, "h")).astype("timedelta64[ns]")
    channels = [conditions.channel_of(label) for label in LABELS]
    fields = np.stack(kinds, axis=3).astype(np.float32)
    data = forecast_dataset(fields, times, leads, range(1, SIZE + 1), channels, grid)
    return data.assign_attrs(model="a toy", attribution="by nobody", recipe_hash="toy")


def climate(levels: np.ndarray = LEVELS, names: tuple[str, ...] = (T2M, RAIN, "geopotential")) -> xr.Dataset:
    """Quantiles that differ by hour, day and point; those of the rain are 0 up to the median."""
    rng = np.random.default_rng(5)
    coords: dict[str, Any] = {"hour": [0, 12], "dayofyear": np.arange(1, 367), "level": [500, 850], **GRID.coords()}
    data = xr.Dataset(coords={"quantile": levels, **coords}, attrs={"period": "1981-01-01/2000-12-31", "source": "a toy climate"})
    for name in names:
        extra = (2,) if name == "geopotential" else ()
        shape = (2, 366, *extra, *GRID.shape)
        shift = rng.normal(size=shape)
        middle, width = {T2M: (290.0, 8.0), RAIN: (0.0, 8e-3)}.get(name, (3.5e4, 2e4))
        normal = np.array([scipy.stats.norm.ppf(level) for level in levels]).reshape(-1, *[1] * len(shape))
        values = middle + width * (normal + 0.3 * shift)
        values = np.maximum(np.round(values, 3), 0) if name == RAIN else values
        dims = ("quantile", "hour", "dayofyear", *(("level",) if extra else ()), "latitude", "longitude")
        units = {T2M: "K", RAIN: "m"}.get(name, "m2 s-2")
        data[f"{name}_quantile"] = (dims, values.astype(np.float32), {"units": units})
    return data


@pytest.fixture(scope="module")
def forecast() -> xr.Dataset:
    return world()


@pytest.fixture(scope="module")
def made(forecast: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    """Everything at once."""
    section = ProductsSection(
        derived=["10m_wind_speed", "total_precipitation_24hr"],
        thresholds=[
            "2m_temperature > 17 degC", "2m_temperature<=290K", "geopotential_500 < 5600 gpm", "10m_wind_speed > 20 kt",
            "total_precipitation_12hr >= 5 mm", "total_precipitation_12hr > 5 mm", "total_precipitation_36hr > 12 mm",
            "max(2m_temperature, 2d) > 300 K", "min(10m_wind_speed, 24h) < 3 m s-1", "mean(2m_temperature, 36h) > 290 K",
            "10m_wind_speed > 10 m s-1 and total_precipitation_12hr > 3 mm", "2m_temperature > q95", "geopotential_850 < q0.1",
            "2m_temperature > q90 and max(total_precipitation_12hr, 24h) > 2 mm",
        ],
        neighbourhood_km=3000.0,
        stamps=StampSection(channels=["geopotential_500", T2M], every="24h", contours={"geopotential_500": ["5500 gpm"]}),
        tracks=TrackSection(lifetime="12h"),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("products") / "all.zarr"
    places = [Place(name="Bergen", latitude=60.39, longitude=5.32), Place(name="South Pole", latitude=-90, longitude=0)]
    assert products.make(forecast, path, section, climate(), places=places) == path
    assert verify_store(path) == []
    return open_store(path).load()


def at_valid_times(quantiles: xr.DataArray, forecast: xr.Dataset) -> xr.DataArray:
    valid = forecast["valid_time"]
    return quantiles.sel(hour=valid.dt.hour, dayofyear=valid.dt.dayofyear).drop_vars(["hour", "dayofyear"])


def share(event: xr.DataArray) -> np.ndarray:
    dims = ("time", "prediction_timedelta", "latitude", "longitude")
    return (event.sum("number") / SIZE).transpose(*dims).values.astype(np.float32)


def windowed(array: xr.DataArray, parts: int, how: str) -> xr.DataArray:
    """The plain loop: over the stamps that end at each lead, NaN before there are enough."""
    pieces = [array.shift(prediction_timedelta=k).astype(np.float64) for k in range(parts)]
    total = pieces[0]
    for piece in pieces[1:]:
        total = {"sum": np.add, "max": np.maximum, "min": np.minimum}[how](total, piece)
    return total.astype(np.float32)


def test_statistics_are_those_of_numpy(made: xr.Dataset, forecast: xr.Dataset) -> None:
    members = forecast["geopotential"].astype(np.float64)
    np.testing.assert_allclose(made["geopotential_mean"], members.mean("number"), rtol=1e-7)
    np.testing.assert_allclose(made["geopotential_spread"], members.std("number", ddof=1), rtol=1e-6)
    np.testing.assert_array_equal(made["geopotential_minimum"], forecast["geopotential"].min("number"))
    np.testing.assert_array_equal(made["geopotential_maximum"], forecast["geopotential"].max("number"))
    expected = members.quantile([0.1, 0.25, 0.5, 0.75, 0.9], dim="number").transpose(*made["geopotential_quantile"].dims)
    np.testing.assert_allclose(made["geopotential_quantile"], expected, rtol=1e-7)


def test_probabilities_equal_counts_exactly(made: xr.Dataset, forecast: xr.Dataset) -> None:
    t2m, rain, z = forecast[T2M], forecast[RAIN], forecast["geopotential"]
    speed = np.hypot(forecast[U10], forecast[V10])
    f = np.float32
    expected = {
        "2m_temperature_gt_17_degC": t2m > f(290.15),
        "2m_temperature_le_290_K": t2m <= f(290),
        "geopotential_500_lt_5600_gpm": z.sel(level=500, drop=True) < f(5600 * 9.80665),
        "10m_wind_speed_gt_20_kt": speed > f(20 * 0.514444),
        "total_precipitation_12hr_ge_5_mm": rain >= f(0.005),
        "total_precipitation_12hr_gt_5_mm": rain > f(0.005),
        "10m_wind_speed_gt_10_m_s-1_and_total_precipitation_12hr_gt_3_mm": (speed > f(10)) & (rain > f(0.003)),
    }
    for name, event in expected.items():
        np.testing.assert_array_equal(made[f"probability_{name}"], share(event), err_msg=name)
    tied = made["probability_total_precipitation_12hr_ge_5_mm"] - made["probability_total_precipitation_12hr_gt_5_mm"]
    assert float(tied.max()) > 0, "rain in whole millimetres lies on the threshold"


def test_windows_end_at_the_lead_and_are_missing_where_they_are_not_whole(made: xr.Dataset, forecast: xr.Dataset) -> None:
    speed = np.hypot(forecast[U10], forecast[V10])
    mean = (windowed(forecast[T2M], 3, "sum").astype(np.float64) / 3).astype(np.float32)
    expected = {
        "total_precipitation_36hr_gt_12_mm": (windowed(forecast[RAIN], 3, "sum"), lambda x: x > np.float32(0.012), 3),
        "max_2m_temperature_48h_gt_300_K": (windowed(forecast[T2M], 4, "max"), lambda x: x > np.float32(300), 4),
        "min_10m_wind_speed_24h_lt_3_m_s-1": (windowed(speed, 2, "min"), lambda x: x < np.float32(3), 2),
        "mean_2m_temperature_36h_gt_290_K": (mean, lambda x: x > np.float32(290), 3),
    }
    for name, (values, event, parts) in expected.items():
        found = made[f"probability_{name}"]
        assert found.isel(prediction_timedelta=slice(parts - 1)).isnull().all(), f"{name}: windows that are not whole"
        whole = {"prediction_timedelta": slice(parts - 1, None)}
        np.testing.assert_array_equal(found.isel(whole), share(event(values))[:, parts - 1 :], err_msg=name)
    summed = windowed(forecast[RAIN], 2, "sum").mean("number", dtype=np.float64, skipna=False)
    np.testing.assert_allclose(made["total_precipitation_24hr_mean"], summed, rtol=1e-6)


def test_percentiles_are_those_of_the_hour_and_day_of_the_valid_time(made: xr.Dataset, forecast: xr.Dataset) -> None:
    quantiles = climate()
    hot = at_valid_times(quantiles[f"{T2M}_quantile"].sel(quantile=0.95), forecast)
    np.testing.assert_array_equal(made["probability_2m_temperature_gt_q95"], share(forecast[T2M] > hot))
    low = at_valid_times(quantiles["geopotential_quantile"].sel(quantile=0.1, level=850), forecast)
    np.testing.assert_array_equal(
        made["probability_geopotential_850_lt_q0.1"], share(forecast["geopotential"].sel(level=850, drop=True) < low)
    )
    warm = at_valid_times(quantiles[f"{T2M}_quantile"].sel(quantile=0.9), forecast)
    wet = windowed(forecast[RAIN], 2, "max")
    joint = share((forecast[T2M] > warm) & (wet > np.float32(0.002)))
    found = made["probability_2m_temperature_gt_q90_and_max_total_precipitation_12hr_24h_gt_2_mm"]
    np.testing.assert_array_equal(found[:, 1:], joint[:, 1:])
    assert found[:, 0].isnull().all(), "no window, no probability: not 0"


def test_efi_and_sot_are_those_of_the_verification(made: xr.Dataset, forecast: xr.Dataset) -> None:
    quantiles = climate()
    for name in (T2M, RAIN, "geopotential"):
        at = at_valid_times(quantiles[f"{name}_quantile"], forecast)
        dims = made[f"{name}_efi"].dims
        np.testing.assert_allclose(made[f"{name}_efi"], verified.efi(forecast[name], at).transpose(*dims), atol=1e-6)
        for level in (0.9, 0.1):
            sot = verified.sot(forecast[name], at, level=level).transpose(*dims)
            np.testing.assert_allclose(made[f"{name}_sot_{level * 100:.0f}"], sot, rtol=2e-5, atol=2e-5)
    assert "mean_sea_level_pressure_efi" not in made, "the climatology does not have it, and it was not asked for"


def test_neighbourhoods_are_area_means_of_the_probability(made: xr.Dataset) -> None:
    name = "probability_2m_temperature_gt_17_degC"
    np.testing.assert_allclose(made[f"{name}_neighbourhood"], fractions(made[name].values, GRID, 3000.0), rtol=1e-6)


def test_stamps_are_the_members(made: xr.Dataset, forecast: xr.Dataset) -> None:
    assert made["stamp_lead"].values.tolist() == forecast["prediction_timedelta"].values[1::2].tolist()
    np.testing.assert_array_equal(made[f"{T2M}_stamp"], forecast[T2M][:, 1::2])
    np.testing.assert_array_equal(made["geopotential_stamp"].sel(level=500), forecast["geopotential"].sel(level=500)[:, 1::2])
    assert made["geopotential_stamp"].sel(level=850).isnull().all(), "not asked for"
    assert json.loads(made["geopotential_stamp"].attrs["contours"]) == {"geopotential_500": ["5500 gpm"]}


def test_plumes_hold_all_members_and_their_box(made: xr.Dataset, forecast: xr.Dataset) -> None:
    plume = made[f"{T2M}_plume"]
    assert plume.dims == ("time", "prediction_timedelta", "number", "point")
    pole = forecast[T2M].isel(latitude=0).mean("longitude", dtype=np.float64)
    np.testing.assert_allclose(plume.sel(point="South Pole"), pole, rtol=1e-6)
    box = made[f"{T2M}_plume_box"].sel(point="Bergen")
    np.testing.assert_allclose(box.sel(box=0.5), plume.sel(point="Bergen").median("number"), rtol=1e-6)
    np.testing.assert_array_equal(box.sel(box=1.0), plume.sel(point="Bergen").max("number"))


def test_every_product_defines_itself(made: xr.Dataset) -> None:
    assert made.attrs["Conventions"].startswith("CF-")
    for key, value in {"model": "a toy", "attribution": "by nobody", "ensemble_size": SIZE}.items():
        assert made.attrs[key] == value
    assert made.attrs["climatology_period"] == "1981-01-01/2000-12-31"
    for name, array in made.data_vars.items():
        assert array.attrs["units"], name
        assert {"long_name", "standard_name"} & set(array.attrs), name
    event = made["probability_total_precipitation_12hr_ge_5_mm"].attrs
    assert (event["threshold"], event["threshold_units"], event["comparison"]) == ([0.005], ["m"], [">="])
    assert event["strictness"].startswith("not strict")
    assert "divided by M - 1" in made[f"{T2M}_spread"].attrs["estimator"]
    assert made[f"{RAIN}_mean"].attrs["cell_methods"].startswith("prediction_timedelta: sum (comment: over the 12 hours")


# EFI against its definition


def direct_efi(members: np.ndarray, climate: np.ndarray, levels: np.ndarray) -> float:
    """2 / pi times the integral by quadrature; with p = sin^2 its ends are regular. Members on a flat step are spread over it."""

    def below(p: float) -> float:
        total = 0.0
        for value in members:
            on = levels[climate == value]
            if on.size > 1:
                total += np.clip((p - on[0]) / (on[-1] - on[0]), 0, 1)
                continue
            inside = climate[0] <= value <= climate[-1]
            q = np.interp(value, climate, levels) if inside else float(value > climate[-1])
            total += q < p
        return total / len(members)

    angle = np.linspace(0, np.pi / 2, 20001)
    middle = (angle[1:] + angle[:-1]) / 2
    return float(4 / np.pi * np.sum([(np.sin(a) ** 2 - below(np.sin(a) ** 2)) for a in middle]) * (angle[1] - angle[0]))


def efi(members: Any, quantiles: Any, levels: Any) -> float:
    ordered = np.sort(np.asarray(members, np.float32)).reshape(1, -1, 1)
    return float(statistics.efi(ordered, np.asarray(quantiles, np.float32).reshape(1, -1, 1), np.asarray(levels))[0, 0])


@pytest.mark.parametrize(
    ("members", "spacing"),
    [
        ([0.2, 0.5, 0.9, 0.99], np.linspace(0, 1, 101)),
        ([0.31], np.linspace(0, 1, 11)),
        ([0.001, 0.5, 1.2], LEVELS),
        ([-3.0, 0.02, 0.02, 0.5, 0.5, 0.97], LEVELS),
    ],
)
def test_efi_is_the_integral_of_its_definition(members: list[float], spacing: np.ndarray) -> None:
    assert efi(members, spacing, spacing) == pytest.approx(direct_efi(np.array(members, np.float32), spacing, spacing), abs=2e-4)


def test_efi_of_rain_is_the_integral_too() -> None:
    quantiles = np.array([0, 0, 0, 0, 1.0, 2, 3, 5, 8, 13, 40], np.float32)
    levels = np.linspace(0, 1, 11)
    members = np.array([0, 0, 0.5, 1, 2.5, 50], np.float32)
    assert efi(members, quantiles, levels) == pytest.approx(direct_efi(members, quantiles, levels), abs=2e-4)


def test_efi_known_cases() -> None:
    fine = np.linspace(0, 1, 101)
    assert efi([0.2, 0.5, 0.9, 0.99], fine, fine) == pytest.approx(0.263282955, abs=1e-6)
    assert efi([2, 3, 4], fine, fine) == 1
    assert efi([-2, -3], fine, fine) == -1
    assert efi([0.5] * 7, fine, fine) == pytest.approx(0, abs=1e-6)
    assert efi((np.arange(50) + 0.5) / 50, fine, fine) == pytest.approx(0, abs=1e-6)
    assert efi([0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4], np.linspace(0, 1, 11)) == pytest.approx(-0.292171, abs=1e-6)
    shift = 0.3  # of a uniform climate: F is 0 to the shift, then p - shift
    expected = scipy.integrate.quad(lambda a: np.sin(a) ** 2 - max(np.sin(a) ** 2 - shift, 0), 0, np.pi / 2)[0] * 4 / np.pi
    members = (np.arange(4000) + 0.5) / 4000 + shift
    assert efi(members, fine, fine) == pytest.approx(expected, abs=1e-5)


@hypothesis.given(
    members=st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=30),
    shift=st.floats(0, 3, width=32),
    wet=st.booleans(),
)
def test_efi_is_bounded_and_rises_with_the_members(members: list[float], shift: float, wet: bool) -> None:
    quantiles = np.array([scipy.stats.norm.ppf(level) for level in LEVELS], np.float32)
    quantiles = np.maximum(quantiles, 0) if wet else quantiles
    first, second = (efi(np.array(members, np.float32) + np.float32(more), quantiles, LEVELS) for more in (0, shift))
    assert -1 - 1e-6 <= first <= second + 1e-6 <= 1 + 2e-6


@hypothesis.given(
    members=st.lists(st.floats(-1e5, 1e5, width=32), min_size=1, max_size=40),
    levels=st.lists(st.floats(0, 1), min_size=1, max_size=5, unique=True),
)
def test_quantiles_are_those_of_numpy(members: list[float], levels: list[float]) -> None:
    values = np.array(members, np.float32).reshape(1, -1, 1)
    found = statistics.quantiles(statistics.ordered(values), levels)[0, :, 0]
    np.testing.assert_allclose(found, np.quantile(values.ravel().astype(np.float64), levels), rtol=1e-6, atol=1e-6)


def test_sot_known_case() -> None:
    levels = np.array([0.01, 0.1, 0.9, 0.99])
    members = np.full((1, 5, 1), 12, np.float32)
    climate = np.array([1, 2, 6, 10], np.float32).reshape(1, 4, 1)
    assert statistics.sot(members, climate, levels, statistics.UPPER)[0, 0] == 0.5
    assert np.isnan(statistics.sot(members, np.ones_like(climate), levels, statistics.UPPER)[0, 0]), "no tail"


# missing values


def test_a_missing_member_is_never_no_event(forecast: xr.Dataset, tmp_path: Path) -> None:
    gappy = forecast.copy(deep=True)
    gappy[T2M][0, 2, 3, 4, 5] = np.nan
    texts = ["2m_temperature < 340 K", "2m_temperature >= 175 K", "2m_temperature > 290 K and total_precipitation_12hr >= 0 mm"]
    section = ProductsSection(channels=[T2M], thresholds=texts, tracks=False)
    found = open_store(products.make(gappy, tmp_path / "p.zarr", section, climate())).load()
    for name, array in found.data_vars.items():
        missing = array.isnull()
        assert missing.isel(time=0, prediction_timedelta=2, latitude=4, longitude=5).all(), name
        assert int(missing.sum()) == missing.isel(time=0, prediction_timedelta=2, latitude=4, longitude=5).size, name


def test_one_member_has_no_spread(forecast: xr.Dataset, tmp_path: Path) -> None:
    section = ProductsSection(channels=[T2M], thresholds=[], tracks=False)
    found = open_store(products.make(forecast.isel(number=[0]), tmp_path / "p.zarr", section)).load()
    assert found[f"{T2M}_spread"].isnull().all()
    np.testing.assert_array_equal(found[f"{T2M}_mean"], forecast[T2M].isel(number=0))


# stores


def test_blocks_do_not_change_the_products(
    forecast: xr.Dataset, made: xr.Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("forecast.products.plan.BLOCK_BYTES", 1)
    monkeypatch.setattr("forecast.products.reading.CLIMATE_BYTES", 1)
    section = ProductsSection(
        channels=[T2M, RAIN], derived=["total_precipitation_24hr"],
        thresholds=["max(2m_temperature, 2d) > 300 K", "2m_temperature > q95"], tracks=TrackSection(lifetime="12h"),
    )  # fmt: skip
    plan = make_plan(forecast, section, climate())
    assert plan.block == 1
    found = open_store(products.run(plan, tmp_path / "p.zarr")).load()
    for name in found.data_vars:
        xr.testing.assert_equal(found[name].variable, made[name].variable)


def test_a_run_that_is_cut_off_goes_on_and_gives_the_same_bytes(
    forecast: xr.Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    section = ProductsSection(channels=[T2M, RAIN], thresholds=["2m_temperature > 290 K"], tracks=TrackSection(lifetime="12h"))
    monkeypatch.setattr(products, "PART_BYTES", 1)
    whole = products.make(forecast, tmp_path / "whole.zarr", section)
    calls = itertools.count()

    def failing(*arguments: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return of_block(*arguments)

    of_block = products.of_block
    monkeypatch.setattr(products, "of_block", failing)
    with pytest.raises(KeyboardInterrupt):
        products.make(forecast, tmp_path / "cut.zarr", section)
    assert not (tmp_path / "cut.zarr").exists()
    seen: list[tuple[int, int]] = []
    cut = products.make(forecast, tmp_path / "cut.zarr", section, report=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, 7))
    assert next(calls) == 3 + 1 + 1, "what was done is not done again: 2 quantities of 2 initialisations, one of them twice"
    files = {file.relative_to(whole) for file in whole.rglob("c/*") if file.is_file()} | {Path("zarr.json")}
    assert all((whole / file).read_bytes() == (cut / file).read_bytes() for file in files)
    products.make(forecast, cut, section)
    assert next(calls) == 6, "a finished one is left alone"
    with pytest.raises(InputError, match="thresholds"):
        products.make(forecast, cut, section.model_copy(update={"thresholds": ["2m_temperature > 291 K"]}))


def test_netcdf_holds_the_same_and_is_left_alone(forecast: xr.Dataset, made: xr.Dataset, tmp_path: Path) -> None:
    section = ProductsSection(channels=[T2M], thresholds=["2m_temperature > 17 degC"], tracks=False)
    place = [Place(name="Bergen", latitude=60.39, longitude=5.32)]
    path = products.make(forecast, tmp_path / "p.nc", section, climate(), places=place)
    assert [file.name for file in tmp_path.iterdir()] == ["p.nc"]
    with xr.open_dataset(path, decode_timedelta=True) as found:
        for name in found.data_vars:
            if "plume" not in str(name):
                xr.testing.assert_equal(found[name].load().variable, made[name].variable)
        assert found["point"].values.tolist() == ["Bergen"]
        assert found["time"].values.tolist() == forecast["time"].values.tolist()
    stamp = path.stat().st_mtime_ns
    products.make(forecast, path, section, climate(), places=place)
    assert path.stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="was made from something else"):
        products.make(forecast, path, section, climate())


def test_only_some_initialisations(forecast: xr.Dataset, made: xr.Dataset, tmp_path: Path) -> None:
    section = ProductsSection(channels=[T2M], thresholds=["2m_temperature > q95"], tracks=False)
    path = products.make(forecast, tmp_path / "p.zarr", section, climate(), inits=forecast["time"].values[1:])
    found = open_store(path).load()
    assert found.sizes["time"] == 1
    for name in found.data_vars:
        np.testing.assert_array_equal(found[name], made[name][1:], err_msg=str(name))


def test_defaults_fit_what_there_is(forecast: xr.Dataset) -> None:
    plain = make_plan(forecast[[T2M]], ProductsSection())
    assert [event.label for task in plain.tasks for event in task.events] == [
        "2m_temperature < 0 degC",
        "2m_temperature > 30 degC",
    ]
    assert plain.tracks is None
    coarse = make_plan(forecast, ProductsSection(), climate(np.array([0.05, 0.5, 0.95])))
    assert not any(task.efi for task in coarse.tasks)
    assert any("too few" in note for note in coarse.notes)
    labels = [event.label for task in coarse.tasks for event in task.events]
    assert f"{RAIN} > q95" in labels
    assert f"{RAIN} < q5" not in labels, "nothing is below a dry percentile"
    assert "10m_wind_speed > 15 m s-1" in labels


# faults


def test_every_fault_is_listed_at_once(forecast: xr.Dataset) -> None:
    section = ProductsSection(
        channels=[T2M, "temperature_850", "geopotential_700"],
        derived=["100m_wind_speed", "total_precipitation_18hr"],
        thresholds=[
            "2m_temperature beyond 3", "soup > 3 K", "2m_temperature > 3 m s-1", "2m_temperature > 30", "geopotential > 1 m2 s-2",
            "max(2m_temperature, 30h) > 300 K", "sum(2m_temperature, 24h) > 300 K", "max(2m_temperature, 20d) > 300 K",
            "mean_sea_level_pressure > q95", "2m_temperature > q97", "max(2m_temperature, 24h) > q95",
            "total_precipitation_24hr > q95", "> 3 K", "> q95 and 2m_temperature > 300 K", "2m_temperature > q100",
        ],
        efi=["total_precipitation_24hr", "mean_sea_level_pressure", "vorticity_850"],
        stamps=StampSection(channels=["temperature_850"], every="7h", contours={T2M: ["3 m"]}),
        place=[Place(name="A", latitude=1, longitude=2), Place(name="A", latitude=1, longitude=2)],
    )  # fmt: skip
    with pytest.raises(InputError) as raised:
        make_plan(forecast, section, climate(), inits=[np.datetime64("1999-01-01")])
    said = str(raised.value)
    for line in (
        "initialisation 1999-01-01T00:00 is not in the forecast", "temperature_850: temperature is not in the forecast",
        "geopotential_700: geopotential has the levels [500, 850] hPa", "100m_wind_speed needs 100m_u_component_of_wind",
        "total_precipitation_18hr is not in the forecast", "'2m_temperature beyond 3' cannot be read", "'soup' is not a channel",
        "units 'm s-1' cannot be converted to 'K'", "30 K is outside what 2m_temperature can be (170 to 345)",
        "geopotential has the levels [500, 850] hPa; name one", "30 h are not a multiple of the 12 h", "it is not accumulated",
        "no lead has a whole window of 480 h", "has no mean_sea_level_pressure_quantile", "0.97 is not among them",
        "not of max(2m_temperature, 24h)", "the climatology has total_precipitation_12hr: accumulated over other hours",
        "'3 K' cannot be read", "a joint event names the channel", "q100 is no percentile",
        "EFI of total_precipitation_24hr: the climatology has total_precipitation_12hr", "EFI of mean_sea_level_pressure",
        "EFI of vorticity_850", "stamps of temperature_850", "no lead is a multiple of 7h", "point 'A' is there twice",
    ):  # fmt: skip
        assert line in said, said


def test_efi_of_a_coarse_climatology_is_refused(forecast: xr.Dataset) -> None:
    with pytest.raises(InputError, match="EFI of 2m_temperature: the climatology has the quantiles .*too few"):
        make_plan(forecast, ProductsSection(efi=[T2M]), climate(np.array([0.05, 0.5, 0.95])))
    with pytest.raises(InputError, match="no quantiles; make them"):
        make_plan(forecast, ProductsSection(efi=[T2M]), climate().drop_dims("quantile"))
    with pytest.raises(InputError, match="needs a climatology"):
        make_plan(forecast, ProductsSection(efi=[T2M]))


def test_an_accumulation_without_hours_is_refused(forecast: xr.Dataset) -> None:
    nameless = forecast.rename({RAIN: "total_precipitation"})
    own = climate().rename({f"{RAIN}_quantile": "total_precipitation_quantile"})
    with pytest.raises(InputError, match="does not say over how many hours"):
        make_plan(nameless, ProductsSection(efi=["total_precipitation"]), own)


def test_another_grid_and_absent_hours_are_refused(forecast: xr.Dataset) -> None:
    with pytest.raises(InputError, match=r"forecast is on 16x8(.|\n)*climatology on 8x8"):
        make_plan(forecast, ProductsSection(), climate().isel(longitude=slice(None, None, 2)))
    with pytest.raises(InputError, match="hours \\[0\\] UTC; the forecast is valid at \\[.*12"):
        make_plan(forecast, ProductsSection(), climate().isel(hour=[0]))


def test_crossing_quantiles_are_refused(forecast: xr.Dataset, tmp_path: Path) -> None:
    crossed = climate()
    crossed[f"{T2M}_quantile"][3] = 1e6
    with pytest.raises(InputError, match="quantiles of 2m_temperature cross"):
        products.make(forecast, tmp_path / "p.zarr", ProductsSection(channels=[T2M], tracks=False), crossed)


@pytest.mark.parametrize(
    "text", ["2m_temperature > 303 K", "> q95", "max(2m_temperature, 72h) <= 35 degC", "geopotential_500 < q0.5"]
)
def test_a_label_reads_back_as_the_event(text: str) -> None:
    event = conditions.parse(text)
    assert event.label == text
    assert conditions.parse(event.label) == event


def test_surface_variables_that_end_in_digits_have_no_level() -> None:
    assert conditions.channel_of("volumetric_soil_water_layer_1") == Channel("volumetric_soil_water_layer_1")
    assert conditions.channel_of("geopotential_500") == Channel("geopotential", 500)


# the command and the recipe


def run(*words: object) -> str:
    result = CliRunner().invoke(plumecast.application(), [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_plans_and_makes(forecast: xr.Dataset, tmp_path: Path) -> None:
    write_dataset(tmp_path / "f.zarr", forecast.isel(time=[0]), chunks={"time": 1, "prediction_timedelta": 2})
    write_dataset(tmp_path / "climate.zarr", climate())
    (tmp_path / "points.csv").write_text("Name, Latitude, Longitude, height\nOslo, 59.9, 10.7, 23\n")
    (tmp_path / "p.toml").write_text(
        '[products]\nchannels = ["2m_temperature"]\nthresholds = ["2m_temperature > 290 K"]\npoints = "points.csv"\n'
        "[products.tracks]\nlifetime = '12h'\n"
    )
    words = [
        "products", tmp_path / "f.zarr", "--climatology", tmp_path / "climate.zarr", "--recipe", tmp_path / "p.toml",
        "--threshold", "2m_temperature < q10", "--point", "Bergen,60.39,5.32", "--set", "products.quantiles=[0.5]",
    ]  # fmt: skip
    said = run(*words, "--dry-run")
    for line in ("1 initialisations x 9 members x 6 leads", "probabilities: 2m_temperature > 290 K, 2m_temperature < q10",
                 "plumes: Oslo, Bergen", "EFI: 2m_temperature", "nothing was written"):  # fmt: skip
        assert line in said
    assert not (tmp_path / "f-products.zarr").exists()
    assert "next: " in run(*words)
    with xr.open_zarr(tmp_path / "f-products.zarr") as found:
        assert found["quantile"].values.tolist() == [0.5]
        assert found["point"].values.tolist() == ["Oslo", "Bergen"]
        assert float(found["probability_2m_temperature_lt_q10"].max()) > 0
    run(*words)


def test_the_recipe_of_the_repository_is_one(repository: Path, forecast: xr.Dataset) -> None:
    section = read_products(repository / "recipes" / "products.toml")
    plan = make_plan(forecast, section, climate())
    assert plan.tracks is not None
    assert plan.points is not None


def test_unknown_keys_are_named(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text("[products]\nthreshold = []\nquantiles = [2.0]\n[products.tracks]\nspeed = 3\n")
    with pytest.raises(InputError, match=r"products.tracks.section.speed: unknown key(.|\n)*products.threshold: unknown key"):
        read_products(tmp_path / "p.toml")


def test_levels_that_the_climatology_lacks_have_no_efi_unless_asked(forecast: xr.Dataset) -> None:
    part = climate().isel(level=[0])
    part["geopotential_quantile"].attrs["levels_available"] = [500]
    plan = make_plan(forecast, ProductsSection(), part)
    assert {task.name: task.efi for task in plan.tasks if task.efi is not None} == {T2M: (), RAIN: (), "geopotential": (500,)}
    with pytest.raises(InputError, match=r"EFI of geopotential: the climatology lacks the levels \[850\]"):
        make_plan(forecast, ProductsSection(efi=["geopotential"]), part)


def test_strikes_finer_than_the_cells_are_told(forecast: xr.Dataset) -> None:
    assert any("some centres strike no cell" in note for note in make_plan(forecast, ProductsSection()).notes)
    wide = ProductsSection(tracks=TrackSection(strike_km=2000))
    assert not any("strike" in note for note in make_plan(forecast, wide).notes)
