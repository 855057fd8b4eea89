"""Ingest: what arrives in the store, what stops it before and while writing, and what a rerun does."""

from __future__ import annotations

import json
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from data_pipeline import open_analysis, parts, store
from data_pipeline import plan as planning
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.ingest import ingest
from data_pipeline.recipe import read_recipe

TIMES = pd.date_range("2001-01-01", periods=40, freq="6h")


def weather(times: pd.DatetimeIndex = TIMES) -> xr.Dataset:
    draws = np.random.default_rng(7)
    grid = Grid.named("12x6")
    shape = (len(times), 6, 12)
    wet = np.maximum(draws.normal(size=shape), 0) * 1e-3
    wet[:12] = 0.0
    geopotential = np.stack([5.5e4 + draws.normal(size=shape), 1.4e4 + draws.normal(size=shape)], axis=1)
    coords = {"time": times, "level": ("level", [500, 850], {"units": "hPa"}), **grid.coords()}
    return xr.Dataset(
        {
            "geopotential": (("time", "level", "latitude", "longitude"), geopotential, {"units": "m2 s-2"}),
            "2m_temperature": (("time", "latitude", "longitude"), 280 + draws.normal(size=shape), {"units": "K"}),
            "total_precipitation_6hr": (("time", "latitude", "longitude"), wet, {"units": "m"}),
        },
        coords=coords,
    ).astype("float32")


def save(data: xr.Dataset, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, part in {"a.nc": data.isel(time=slice(0, 25)), "b.nc": data.isel(time=slice(25, None))}.items():
        part.to_netcdf(folder / name)
    fixed = {"land_sea_mask": (("latitude", "longitude"), np.linspace(0, 1, 72, dtype="f4").reshape(6, 12), {"units": "1"})}
    xr.Dataset(fixed, coords=Grid.of(data).coords()).to_netcdf(folder / "fixed.nc")
    return folder


def make_recipe(folder: Path, source: dict[str, Any] | None = None, **analysis: Any) -> dict[str, Any]:
    channels = ["geopotential_500", "2m_temperature", "total_precipitation_6hr"]
    return {
        "name": "test",
        "source": {"path": str(folder), "pattern": "?.nc", "static": "fixed.nc", **(source or {})},
        "analysis": {"channels": channels, "step": "6h", **analysis},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(weather(), tmp_path / "source")


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "PART_STAMPS", 24)


def test_the_store_holds_the_sources_values_and_says_where_they_come_from(folder: Path, tmp_path: Path) -> None:
    recipe = make_recipe(folder, {"attribution": "(C) someone", "description": "made up"})
    found = open_analysis(ingest(recipe, tmp_path / "a.zarr"))
    for name in ("2m_temperature", "total_precipitation_6hr"):
        np.testing.assert_array_equal(found[name], weather()[name])
    np.testing.assert_array_equal(found["geopotential"].sel(level=500), weather()["geopotential"].sel(level=500))
    assert found["level"].values.tolist() == [500]
    assert found["land_sea_mask"].dims == ("latitude", "longitude")
    assert float(found["land_sea_mask"][-1, -1]) == 1.0
    assert found.attrs["attribution"] == "(C) someone"
    assert found.attrs["source"] == "made up"
    assert found.attrs["step"] == "6h"
    assert json.loads(found.attrs["recipe"])["analysis"]["channels"] == recipe["analysis"]["channels"]
    assert str(folder) not in found.attrs["recipe"]
    assert store.verify_store(tmp_path / "a.zarr") == []


def test_the_quality_table_is_that_of_the_whole_store(folder: Path, tmp_path: Path) -> None:
    found = open_analysis(ingest(make_recipe(folder), tmp_path / "a.zarr"))
    row = json.loads(found.attrs["quality"])["table"]["2m_temperature"]
    values = weather()["2m_temperature"].astype("float64")
    weights = xr.DataArray(Grid.of(values).area_weights, dims=("latitude", "longitude"))
    assert row["minimum"] == pytest.approx(float(values.min()))
    assert row["maximum"] == pytest.approx(float(values.max()))
    assert row["mean"] == pytest.approx(float((values * weights).mean()), rel=1e-9)
    assert row["finite"] == 1.0


def test_a_coarser_step_takes_the_stamps_of_the_period(folder: Path, tmp_path: Path) -> None:
    recipe = make_recipe(folder, step="12h", start="2001-01-02T06", stop="2001-01-05T00", channels=["2m_temperature"])
    found = open_analysis(ingest(recipe, tmp_path / "a.zarr"))
    expected = weather()["2m_temperature"].sel(time=pd.date_range("2001-01-02T06", "2001-01-04T18", freq="12h"))
    np.testing.assert_array_equal(found["time"], expected["time"])
    np.testing.assert_array_equal(found["2m_temperature"], expected)


def test_levels_that_a_variable_lacks_are_missing_and_not_counted(tmp_path: Path) -> None:
    data = weather().drop_vars("total_precipitation_6hr")
    data["temperature"] = data["geopotential"] * 0 + 250 + data["2m_temperature"] / 100
    data["temperature"].attrs["units"] = "K"
    recipe = make_recipe(save(data, tmp_path / "source"), channels=["geopotential_500", "temperature_850"])
    found = open_analysis(ingest(recipe, tmp_path / "a.zarr"))
    assert found["geopotential"].sel(level=850).isnull().all()
    np.testing.assert_array_equal(found["temperature"].sel(level=850), data["temperature"].sel(level=850))
    assert found["geopotential"].attrs["levels_available"] == [500]


def test_regridding_keeps_the_area_mean(folder: Path, tmp_path: Path) -> None:
    found = open_analysis(ingest(make_recipe(folder, grid="8x4"), tmp_path / "a.zarr"))
    coarse, fine = found["2m_temperature"], weather()["2m_temperature"]
    means = [
        (field * xr.DataArray(Grid.of(field).area_weights, dims=("latitude", "longitude"))).mean() for field in (coarse, fine)
    ]
    assert Grid.of(found).matches(Grid.named("8x4"))
    assert float(means[0]) == pytest.approx(float(means[1]), rel=1e-6)
    assert found.attrs["regridding"] == "conservative"
    assert found["land_sea_mask"].shape == (4, 8)


def test_a_region_of_the_source_has_its_very_points(folder: Path, tmp_path: Path) -> None:
    found = open_analysis(ingest(make_recipe(folder, region=[-60, 60, -60, 60]), tmp_path / "a.zarr"))
    assert found["longitude"].values.tolist() == [-60, -30, 0, 30, 60]
    expected = weather()["2m_temperature"].sel(latitude=slice(-60, 60), longitude=[300, 330, 0, 30, 60])
    np.testing.assert_array_equal(found["2m_temperature"], expected)
    assert found["land_sea_mask"].shape == (4, 5)


def test_a_region_of_another_grid_is_that_part_of_the_whole(folder: Path, tmp_path: Path) -> None:
    whole = open_analysis(ingest(make_recipe(folder, grid="24x12"), tmp_path / "whole.zarr"))
    part = open_analysis(ingest(make_recipe(folder, grid="24x12", region=[0, 60, -45, 45]), tmp_path / "part.zarr"))
    assert part["longitude"].values.tolist() == [-45, -30, -15, 0, 15, 30, 45]
    expected = whole.sel(latitude=slice(0, 60), longitude=[315, 330, 345, 0, 15, 30, 45])
    for name in ("2m_temperature", "geopotential", "land_sea_mask"):
        np.testing.assert_allclose(part[name], expected[name].values, rtol=1e-6)


def test_precipitation_that_tells_no_hours_is_not_thinned_to_a_longer_step(tmp_path: Path) -> None:
    folder = save(weather().rename(total_precipitation_6hr="total_precipitation"), tmp_path / "source")
    recipe = make_recipe(folder, channels=["total_precipitation"], step="12h")
    with pytest.raises(
        InputError, match="total_precipitation of the source is over 6 h and the step 12 h; ask for total_prec.*_12hr"
    ):
        ingest(recipe, tmp_path / "a.zarr")
    ingest(make_recipe(folder, channels=["total_precipitation"], step="6h"), tmp_path / "six.zarr")
    ingest(make_recipe(folder, channels=["total_precipitation_12hr"], step="12h"), tmp_path / "twelve.zarr")


def test_precipitation_over_longer_hours_is_summed_from_the_sources(folder: Path, tmp_path: Path) -> None:
    recipe = make_recipe(folder, channels=["total_precipitation_12hr"], step="12h", start="2001-01-02T00")
    found = open_analysis(ingest(recipe, tmp_path / "a.zarr"))["total_precipitation_12hr"]
    six = weather()["total_precipitation_6hr"].astype("float64")
    expected = six + six.shift(time=1)
    np.testing.assert_allclose(found, expected.sel(time=found["time"]), rtol=1e-6)


def test_a_weatherbench_archive_is_opened_by_its_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def open_archive(url: str, channels: Any, **options: Any) -> xr.Dataset:
        asked.append((url, [channel.label for channel in channels], options))
        return weather()

    module = types.SimpleNamespace(open_archive=open_archive, identity=lambda url, **options: {"url": url, "sha256": "0"})
    monkeypatch.setitem(sys.modules, "data_pipeline.sources.weatherbench", module)
    recipe = {
        "name": "test",
        "source": {"kind": "weatherbench", "url": "gs://somewhere/a.zarr"},
        "analysis": {
            "channels": ["2m_temperature"],
            "step": "6h",
            "stop": "2001-01-05",
            "region": [-75, 75, -120, 120],
            "grid": "8x4",
        },
    }
    found = open_analysis(ingest(recipe, tmp_path / "a.zarr"))
    assert found.sizes["time"] == 17
    options = {"start": None, "stop": "2001-01-05", "region": (-90, 90, -148.5, 148.5), "storage": {}}
    assert asked == [("gs://somewhere/a.zarr", ["2m_temperature"], options)]
    assert store.read_manifest(tmp_path / "a.zarr")["recipe"]["source"]["archive"] == {
        "url": "gs://somewhere/a.zarr",
        "sha256": "0",
    }


def test_a_variable_that_the_source_lacks_is_named_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    recipe = make_recipe(folder, channels=["geopotential_500", "temperature_850", "geopotential_300"])
    with pytest.raises(InputError, match=r"no temperature_850, geopotential_300; it has 2m_temperature, geopotential_500, geo"):
        ingest(recipe, tmp_path / "a.zarr")
    assert not list(tmp_path.glob("a.zarr*"))


def test_a_hole_in_time_is_an_error_that_says_which_and_may_be_allowed(tmp_path: Path) -> None:
    holed = weather().isel(time=[*range(10), *range(13, 40)])
    folder = save(holed, tmp_path / "source")
    with pytest.raises(InputError, match=r"lacks 3 of 40 stamps every 6h: 2001-01-03T12, 2001-01-03T18, 2001-01-04T00"):
        ingest(make_recipe(folder), tmp_path / "a.zarr")
    assert not list(tmp_path.glob("a.zarr*"))
    found = open_analysis(ingest(make_recipe(folder, {"gaps": "allow"}), tmp_path / "a.zarr"))
    np.testing.assert_array_equal(found["time"], holed["time"])
    assert found.attrs["gaps"] == ["2001-01-03T12/2001-01-04T00"]


def test_a_period_that_the_source_does_not_cover_is_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lacks 4 of .* 2000-12-31T00.*the source has 2001-01-01T00 \.\. 2001-01-10T18"):
        ingest(make_recipe(folder, start="2000-12-31T00"), tmp_path / "a.zarr")
    with pytest.raises(InputError, match="no stamp of the source"):
        ingest(make_recipe(folder, start="2010-01-01"), tmp_path / "a.zarr")


@pytest.mark.parametrize("step", ["3h", "4h"])
def test_a_step_finer_than_the_source_is_an_error(folder: Path, tmp_path: Path, step: str) -> None:
    with pytest.raises(InputError, match=f"stamps every {step}"):
        ingest(make_recipe(folder, step=step), tmp_path / "a.zarr")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": "half a day"}, "expected whole hours"),
        ({"step": "99999999999999h"}, "expected whole hours"),
        ({"grid": "big"}, "grid 'big' is not known"),
        ({"start": "spring"}, "expected an ISO stamp"),
        ({"start": "2001-01-01T00Z"}, "without a zone"),
        ({"start": "20010101"}, "expected an ISO stamp"),
        ({"stop": "9999-01-01"}, "expected an ISO stamp"),
        ({"channels": []}, "analysis.channels"),
        ({"colour": "red"}, "analysis.colour: unknown key"),
        ({"channels": ["2m_temperature", "2m_temperature"]}, "repeated"),
    ],
)
def test_faults_of_the_recipe_are_named(folder: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ingest(make_recipe(folder, **change), tmp_path / "a.zarr")


def test_a_missing_source_says_how_to_give_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere not found.*--set source\.path=FOLDER"):
        ingest(make_recipe(tmp_path / "nowhere"), tmp_path / "a.zarr")


def test_a_link_to_nothing_among_the_files_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "c.nc").symlink_to(tmp_path / "nowhere.nc")
    with pytest.raises(InputError, match=r"c\.nc cannot be read: No such file"):
        ingest(make_recipe(folder), tmp_path / "a.zarr")


def test_impossible_values_stop_the_ingest_and_may_be_allowed(tmp_path: Path) -> None:
    data = weather()
    data["2m_temperature"][20, 2, 3] = 900.0
    data["geopotential"][21, 0, 1, 1] = np.nan
    folder = save(data, tmp_path / "source")
    with pytest.raises(InputError, match="2m_temperature: values .* to 900 K, expected"):
        ingest(make_recipe(folder), tmp_path / "a.zarr")
    with pytest.raises(InputError, match="not found"):
        open_analysis(tmp_path / "b.zarr")
    found = open_analysis(ingest(make_recipe(folder, {"faults": "allow"}), tmp_path / "b.zarr"))
    quality = json.loads(found.attrs["quality"])
    assert len(quality["findings"]) == 2
    assert quality["table"]["geopotential_500"]["finite"] == pytest.approx(1 - 1 / (40 * 72))


def test_missing_values_of_a_source_without_rain_stop_the_ingest(tmp_path: Path) -> None:
    data = weather()
    data["total_precipitation_6hr"][:] = 0
    ingest(make_recipe(save(data, tmp_path / "dry")), tmp_path / "a.zarr")
    data["total_precipitation_6hr"][3, 1, 1] = np.nan
    with pytest.raises(InputError, match="total_precipitation_6hr: .* are missing or not finite"):
        ingest(make_recipe(save(data, tmp_path / "source")), tmp_path / "b.zarr")


def test_celsius_in_the_source_is_kelvin_in_the_store(tmp_path: Path) -> None:
    data = weather()
    data["2m_temperature"] = (data["2m_temperature"] - 273.15).assign_attrs(units="degC")
    found = open_analysis(ingest(make_recipe(save(data, tmp_path / "source")), tmp_path / "a.zarr"))
    np.testing.assert_allclose(found["2m_temperature"], weather()["2m_temperature"], rtol=1e-6)
    assert found["2m_temperature"].attrs["units"] == "K"


def test_a_rerun_touches_nothing_even_from_a_moved_folder(folder: Path, tmp_path: Path) -> None:
    out = ingest(make_recipe(folder), tmp_path / "a.zarr")
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    moved = shutil.move(folder, tmp_path / "elsewhere")
    assert ingest(make_recipe(Path(moved)), out) == out
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before


def test_another_recipe_or_source_is_an_error_with_the_differences(folder: Path, tmp_path: Path) -> None:
    out = ingest(make_recipe(folder), tmp_path / "a.zarr")
    with pytest.raises(InputError, match=r"analysis\.step: '6h' -> '12h'"):
        ingest(make_recipe(folder, step="12h"), out)
    weather().isel(time=slice(25, 39)).to_netcdf(folder / "b.nc")
    with pytest.raises(InputError, match=r"source\.files\.b\.nc: \d+ -> \d+"):
        ingest(make_recipe(folder), out)


def test_an_interrupted_ingest_continues_without_reading_finished_parts_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "PART_STAMPS", 6)
    whole = ingest(make_recipe(folder), tmp_path / "whole.zarr")

    def stop(done: int, total: int) -> None:
        if done >= 18:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(make_recipe(folder), tmp_path / "a.zarr", progress=stop)
    done = {path.stem for path in (store.partial_path(tmp_path / "a.zarr") / "parts").glob("*.json")}
    assert len(done) >= 3
    made: list[str] = []
    original = parts.read_block

    def watched(planned: planning.Plan, group: dict[str, xr.DataArray], box: slice) -> xr.Dataset:
        made.append(f"{planned.times[box.start]:%Y-%m-%dT%H}")
        return original(planned, group, box)

    monkeypatch.setattr(parts, "read_block", watched)
    seen: list[int] = []
    resumed = ingest(make_recipe(folder), tmp_path / "a.zarr", progress=lambda done, total: seen.append(done))
    assert len(done) + len(set(made)) == 7
    assert not done & set(made)
    assert seen == sorted(seen)
    assert seen[-1] == 40
    contents = [
        {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()} for path in (whole, resumed)
    ]
    assert contents[0] == contents[1]


def test_era5_with_poles_and_north_first_keeps_its_area_mean(
    shared_data: Callable[[str], Path], repository: Path, tmp_path: Path
) -> None:
    recipe = read_recipe(repository / "recipes" / "era5_global_djf.toml", [f"source.path={shared_data('era5-global-djf')}"])
    found = open_analysis(ingest(recipe, tmp_path / "a.zarr"))
    table = json.loads(found.attrs["quality"])["table"]
    assert found.sizes == {"time": 124, "level": 1, "latitude": 32, "longitude": 64}
    assert table["mean_sea_level_pressure"]["mean"] == pytest.approx(101152.5, abs=0.5)
    assert abs(table["vorticity_850"]["mean"]) < 1e-8
    assert "Copernicus" in found.attrs["attribution"]


def test_era_interim_gets_its_levels_from_the_file_names(
    shared_data: Callable[[str], Path], repository: Path, tmp_path: Path
) -> None:
    overrides = [f"source.path={shared_data('era-interim-weurope')}", "analysis.stop=2000-01-20T12"]
    found = open_analysis(ingest(read_recipe(repository / "recipes" / "era_interim_europe.toml", overrides), tmp_path / "a.zarr"))
    with xr.open_dataset(shared_data("era-interim-weurope") / "z500_ei.nc") as raw:
        expected = raw["z"].isel(time=slice(0, 20))[:, ::-1].astype("float32").values
    np.testing.assert_array_equal(found["geopotential"].sel(level=500), expected)
    assert not Grid.of(found).is_global
    assert found["time"].dt.hour.values.tolist() == [12] * 20
