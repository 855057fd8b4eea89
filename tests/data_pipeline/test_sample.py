"""The packaged planet: whole, small, and bit for bit what the simulation's files hold."""

from __future__ import annotations

import hashlib
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

FILES = {"planet_2004.nc": "planet_2004.nc", "planet_2005.nc": "planet_2005.nc", "planet_2007_windows.nc": "planet_2007.nc"}


@pytest.fixture(scope="module")
def recipe(sample: Path) -> dict[str, Any]:
    """The names defined by make_sample.py."""
    return runpy.run_path(str(sample / "make_sample.py"))


def fields(data: xr.Dataset, wanted: dict[str, int | None]) -> dict[str, xr.DataArray]:
    return {name: data[name] if level is None else data[name].sel(level=level) for name, level in wanted.items()}


def test_files_are_those_of_the_manifest_and_stay_under_25_megabytes(sample: Path) -> None:
    manifest = json.loads((sample / "checksums.json").read_text())
    assert sorted(manifest) == sorted(path.name for path in sample.glob("*.nc"))
    for name, entry in manifest.items():
        content = (sample / name).read_bytes()
        assert len(content) == entry["bytes"]
        assert hashlib.sha256(content).hexdigest() == entry["sha256"], f"{name} differs from the manifest"
    assert sum(entry["bytes"] for entry in manifest.values()) < 25e6


@pytest.mark.parametrize("name", FILES)
def test_decoded_values_equal_the_simulation_bit_for_bit(
    name: str, sample: Path, recipe: dict[str, Any], shared_data: Callable[[str], Path]
) -> None:
    planet = shared_data("planet-64x32-12h")
    with xr.open_dataset(sample / name) as cut, xr.open_dataset(planet / FILES[name]) as whole:
        expected = fields(whole.sel(time=cut["time"]), recipe["FIELDS"])
        for label, field in fields(cut, recipe["FIELDS"]).items():
            assert field.dtype == np.float32
            assert field.values.tobytes() == expected[label].values.tobytes(), f"{name}: {label}"


def test_static_fields_equal_the_simulation(sample: Path, shared_data: Callable[[str], Path]) -> None:
    original = shared_data("planet-64x32-12h") / "planet_static.nc"
    with xr.open_dataset(sample / "planet_static.nc") as cut, xr.open_dataset(original) as whole:
        xr.testing.assert_equal(cut.load(), whole.load())


@pytest.mark.parametrize("name", FILES)
def test_each_field_is_complete_on_its_level_and_packed_in_its_quantisation_step(
    name: str, sample: Path, recipe: dict[str, Any]
) -> None:
    with xr.open_dataset(sample / name, mask_and_scale=False) as packed, xr.open_dataset(sample / name) as decoded:
        assert set(packed.data_vars) == set(recipe["FIELDS"])
        for label, field in fields(decoded, recipe["FIELDS"]).items():
            assert np.isfinite(field.values).all(), label
            assert field.attrs["quantisation_step"] == packed[label].attrs["scale_factor"]
        for label, level in recipe["FIELDS"].items():
            if level is not None:
                others = decoded[label].sel(level=[other for other in recipe["LEVELS"] if other != level])
                assert np.isnan(others.values).all(), f"{label} must be missing off {level} hPa"


@pytest.mark.parametrize(("year", "steps"), [(2004, 732), (2005, 730)])
def test_training_years_have_no_gap(year: int, steps: int, sample: Path) -> None:
    with xr.open_dataset(sample / f"planet_{year}.nc") as data:
        assert data.sizes["time"] == steps
        expected = pd.date_range(f"{year}-01-01", f"{year}-12-31T12", freq="12h")
        np.testing.assert_array_equal(data["time"].values, expected.values)


def test_every_initialisation_has_two_input_frames_and_ten_days_of_truth(sample: Path, recipe: dict[str, Any]) -> None:
    inits = recipe["INITIALISATIONS"]
    assert len(inits) == 8
    assert set(np.diff(inits.values)) == {np.timedelta64(47, "D")}, "spread evenly"
    assert set(inits.hour) == {0}
    assert set(inits.year) == {2007}
    with xr.open_dataset(sample / "planet_2007_windows.nc") as data:
        stamps = set(pd.DatetimeIndex(data["time"].values))
        assert len(stamps) == 8 * 22
        for init in inits:
            assert set(pd.date_range(init - pd.Timedelta("12h"), init + pd.Timedelta(days=10), freq="12h")) <= stamps


def test_the_script_names_a_stamp_that_the_source_lacks(tmp_path: Path, sample: Path, recipe: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match="the planet lacks 2006-12-31"):
        recipe["cut"](sample / "planet_2007_windows.nc", tmp_path / "cut.nc", pd.DatetimeIndex(["2006-12-31", "2007-01-16"]))


def test_cutting_the_sample_again_changes_no_value(
    tmp_path: Path, recipe: dict[str, Any], shared_data: Callable[[str], Path]
) -> None:
    planet = shared_data("planet-64x32-12h")
    recipe["cut"](planet / "planet_2007.nc", tmp_path / "again.nc", recipe["window_times"]())
    with (
        xr.open_dataset(tmp_path / "again.nc") as again,
        xr.open_dataset(Path(recipe["__file__"]).parent / "planet_2007_windows.nc") as packaged,
    ):
        xr.testing.assert_identical(again.load(), packaged.load())
