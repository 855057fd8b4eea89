"""Quality checks: each fault is found and named, good data pass, blocks merge to the whole."""

from __future__ import annotations

import tracemalloc

import dask
import dask.array
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.quality import check, check_stamps, merge, summary

GRID = Grid.named("12x6")


@pytest.fixture
def analysis() -> xr.Dataset:
    random = np.random.default_rng(0)
    time = pd.date_range("2001-01-01", periods=40, freq="12h").as_unit("ns")
    dims = ("time", "level", "latitude", "longitude")
    surface = ("time", "latitude", "longitude")
    t2m = random.normal(280, 10, (40, *GRID.shape)).astype("f4")
    z = random.normal(55000, 900, (40, 2, *GRID.shape)).astype("f4")
    rain = np.maximum(random.normal(0, 1e-3, (40, *GRID.shape)), 0).astype("f4")
    return xr.Dataset(
        {"2m_temperature": (surface, t2m), "geopotential": (dims, z), "total_precipitation_12hr": (surface, rain)},
        {"time": time, "level": [500, 850], **GRID.coords()},
    )


def test_good_data_pass(analysis: xr.Dataset) -> None:
    report = check(analysis, step="12h")
    assert report.findings == []
    report.raise_if_bad()


def test_the_table_holds_what_numpy_finds(analysis: xr.Dataset) -> None:
    analysis["geopotential"].values[3, 0, 2, 4] = np.nan
    table = check(analysis.chunk(time=7)).table
    values = analysis["geopotential"].sel(level=500).values.astype("f8")
    weights = np.where(np.isfinite(values), GRID.area_weights, 0)
    row = table.loc["geopotential_500"]
    assert row["minimum"] == np.nanmin(values)
    assert row["maximum"] == np.nanmax(values)
    assert row["mean"] == pytest.approx(np.nansum(values * weights) / weights.sum(), rel=1e-13)
    assert row["finite"] == pytest.approx(1 - 1 / values.size, rel=1e-13)
    assert list(table.index) == ["2m_temperature", "geopotential_500", "geopotential_850", "total_precipitation_12hr"]


def test_a_hole_in_time_names_the_missing_stamps(analysis: xr.Dataset) -> None:
    report = check(analysis.drop_isel(time=[10, 11, 20]), step="12h")
    with pytest.raises(
        InputError, match=r"3 stamps are missing at a step of 12 h: 2001-01-06T00:00, 2001-01-06T12:00, 2001-01-11T00:00"
    ):
        report.raise_if_bad()
    allowed = check(analysis.drop_isel(time=[10, 11, 20]), step="12h", gaps="allow")
    allowed.raise_if_bad()
    assert [finding.severity for finding in allowed.findings] == ["note"]


def stamps(*texts: str) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(list(texts))


@pytest.mark.parametrize(
    ("times", "step", "message"),
    [
        (
            stamps("2001-01-01", "2001-01-02", "2001-01-02", "2001-01-03"),
            None,
            "1 stamps are there more than once: 2001-01-02T00:00",
        ),
        (stamps("2001-01-01", "2001-01-03", "2001-01-02"), None, "not in order, first at 2001-01-02"),
        (stamps("2001-01-01", "2001-01-02", "2001-01-03"), "12h", "every 24 h, expected every 12 h"),
        (stamps("2001-01-01T00", "2001-01-01T06", "2001-01-01T12"), "12h", "every 6 h, expected every 12 h"),
        (stamps("2001-01-01T00", "2001-01-01T12", "2001-01-02T03", "2001-01-02T12"), "12h", "first off it 2001-01-02T03"),
    ],
)
def test_wrong_stamps_are_found(times: pd.DatetimeIndex, step: str | None, message: str) -> None:
    findings = check_stamps(times, step=step)
    assert [finding.severity for finding in findings] == ["error"]
    assert message in findings[0].message


def test_one_stamp_has_no_step() -> None:
    assert check_stamps(stamps("2001-01-01"), step="12h") == []


def test_missing_values_are_counted_and_dated(analysis: xr.Dataset) -> None:
    analysis["2m_temperature"].values[5] = np.nan
    analysis["2m_temperature"].values[6, 0, 0] = np.inf
    with pytest.raises(InputError, match=r"2m_temperature: 2.53 % .* in 2 of 40 stamps: 2001-01-03T12:00, 2001-01-04T00:00"):
        check(analysis).raise_if_bad()


def test_a_mask_that_never_changes_is_normal_for_the_sea(analysis: xr.Dataset) -> None:
    sea = analysis["2m_temperature"].clip(270, 300)
    data = analysis.assign(sea_surface_temperature=sea.where(sea["latitude"] > -40))
    report = check(data, channels=["sea_surface_temperature"])
    report.raise_if_bad()
    assert [finding.severity for finding in report.findings] == ["note"]
    data["sea_surface_temperature"].values[3, 4, 4] = np.nan
    with pytest.raises(InputError, match="missing or not finite"):
        check(data, channels=["sea_surface_temperature"]).raise_if_bad()


def test_degrees_celsius_are_out_of_range(analysis: xr.Dataset) -> None:
    with pytest.raises(InputError, match=r"2m_temperature: values .* K, expected 170 to 345, in 40 of 40 stamps.*units"):
        check(analysis.assign({"2m_temperature": analysis["2m_temperature"] - 273.15})).raise_if_bad()


def test_a_level_without_values_is_found_only_if_asked_for(analysis: xr.Dataset) -> None:
    analysis["geopotential"].values[:, 1] = np.nan
    analysis["geopotential"].attrs["levels_available"] = [500]
    check(analysis).raise_if_bad()
    del analysis["geopotential"].attrs["levels_available"]
    with pytest.raises(InputError, match="geopotential_850: holds no value at all"):
        check(analysis, channels=["geopotential_850"]).raise_if_bad()


def test_fields_without_variation_are_found(analysis: xr.Dataset) -> None:
    frozen = analysis.copy(deep=True)
    frozen["2m_temperature"].values[:] = 280
    with pytest.raises(InputError, match="2m_temperature: is 280 everywhere and always"):
        check(frozen).raise_if_bad()
    analysis["2m_temperature"].values[7] = 280
    with pytest.raises(InputError, match="2m_temperature: is the same everywhere, in 1 of 40 stamps: 2001-01-04T12:00"):
        check(analysis).raise_if_bad()


def test_a_dry_day_is_no_fault(analysis: xr.Dataset) -> None:
    analysis["total_precipitation_12hr"].values[7] = 0
    check(analysis).raise_if_bad()


def test_no_rain_at_all_is_worth_a_note_but_missing_values_among_the_zeros_are_a_fault(analysis: xr.Dataset) -> None:
    analysis["total_precipitation_12hr"].values[:] = 0
    found = check(analysis).findings
    assert [(finding.severity, str(finding)) for finding in found] == [
        ("note", "total_precipitation_12hr: is 0 everywhere and always")
    ]
    analysis["total_precipitation_12hr"].values[3, 1, 1] = np.nan
    with pytest.raises(InputError, match="total_precipitation_12hr: .* are missing or not finite, in 1 of 40 stamps"):
        check(analysis).raise_if_bad()


def test_all_faults_come_at_once(analysis: xr.Dataset) -> None:
    analysis["2m_temperature"].values[:] -= 273.15
    analysis["geopotential"].values[0, 0, 0, 0] = np.nan
    with pytest.raises(InputError) as fault:
        check(analysis.drop_isel(time=3)).raise_if_bad()
    assert all(part in str(fault.value) for part in ("time:", "2m_temperature:", "geopotential_500:"))


def test_memory_is_that_of_a_few_blocks() -> None:
    grid = Grid.named("360x181")
    blocks, block_bytes = 60, 4 * grid.areas.size * 4
    time = pd.date_range("2001-01-01", periods=4 * blocks, freq="12h").as_unit("ns")
    fields = dask.array.random.default_rng(0).normal(280, 5, (4 * blocks, *grid.shape), chunks=(4, -1, -1)).astype("f4")
    data = xr.Dataset({"2m_temperature": (("time", "latitude", "longitude"), fields)}, {"time": time, **grid.coords()})
    tracemalloc.start()
    with dask.config.set(scheduler="synchronous"):
        check(data).raise_if_bad()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * block_bytes


def test_summaries_of_blocks_merge_to_the_whole(analysis: xr.Dataset) -> None:
    analysis["geopotential"].values[3, 0, 2, 4] = np.nan
    whole = summary(check(analysis))
    blocks = [summary(check(analysis.isel(time=part))) for part in (slice(0, 13), slice(13, 14), slice(14, None))]
    merged = merge(blocks)
    for label, row in whole["channels"].items():
        for key, value in row.items():
            if key != "units":
                assert merged["channels"][label][key] == pytest.approx(value, rel=1e-12), (label, key)
    assert merged["channels"]["2m_temperature"]["units"] == "K"
    assert [finding["where"] for finding in merged["findings"]] == ["geopotential_500"]


def test_members_are_checked_like_times(analysis: xr.Dataset) -> None:
    members = analysis[["2m_temperature"]].expand_dims(number=[0, 1]).copy(deep=True)
    check(members).raise_if_bad()
    members["2m_temperature"].values[1, 5, 0, 0] = 900
    with pytest.raises(InputError, match="in 1 of 40 stamps: 2001-01-03T12:00"):
        check(members).raise_if_bad()
