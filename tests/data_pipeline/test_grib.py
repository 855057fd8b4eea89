"""GRIB: every message is accounted for, members and hypercubes merge, cut files are refused with the place of the cut."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import eccodes
import numpy as np
import pytest
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import validate
from data_pipeline.sources.files import open_ensemble, open_files
from data_pipeline.sources.grib import scan

GRID = Grid.named("12x7")
MISSING = 9999.0


def field(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(280, 10, GRID.shape)


def message(values: np.ndarray, **keys: Any) -> bytes:
    """One GRIB 2 message; `values` (latitude, longitude) south first, NaN for missing."""
    handle = eccodes.codes_grib_new_from_samples("regular_ll_pl_grib2")
    geometry = {
        "Ni": GRID.shape[1], "Nj": GRID.shape[0],
        "latitudeOfFirstGridPointInDegrees": 90.0, "latitudeOfLastGridPointInDegrees": -90.0,
        "longitudeOfFirstGridPointInDegrees": 0.0, "longitudeOfLastGridPointInDegrees": float(GRID.longitude[-1]),
        "iDirectionIncrementInDegrees": 30.0, "jDirectionIncrementInDegrees": 30.0, "bitsPerValue": 24,
    }  # fmt: skip
    for key, value in {**geometry, "dataDate": 20200101, "dataTime": 0, **keys}.items():
        eccodes.codes_set(handle, key, value)
    if np.isnan(values).any():
        eccodes.codes_set(handle, "bitmapPresent", 1)
        eccodes.codes_set(handle, "missingValue", MISSING)
    north_first = np.where(np.isnan(values), MISSING, values)[::-1]
    eccodes.codes_set_values(handle, north_first.ravel())
    packed: bytes = eccodes.codes_get_message(handle)
    eccodes.codes_release(handle)
    return packed


def level_message(seed: int, **keys: Any) -> bytes:
    return message(field(seed), **{"shortName": "t", "typeOfLevel": "isobaricInhPa", "level": 500, **keys})


def member_keys(number: int, size: int = 4) -> dict[str, Any]:
    """Keys of a control (0) or a perturbed forecast."""
    kind = {"productDefinitionTemplateNumber": 1, "typeOfProcessedData": 4 if number else 3}
    return {**kind, "numberOfForecastsInEnsemble": size, "number": number}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def _write(*messages: bytes, name: str = "data.grib") -> Path:
        path = tmp_path / name
        path.write_bytes(b"".join(messages))
        return path

    return _write


@pytest.fixture
def many_members(shared_data: Callable[[str], Path]) -> bytes:
    return (shared_data("ecmwf-ens-samples") / "z500_ens.grib").read_bytes()


def mapping(data: xr.Dataset) -> str:
    return "\n".join(json.loads(data.attrs["mapping"]))


# --- analyses


def test_messages_become_an_analysis_whatever_their_order(write: Callable[..., Path]) -> None:
    keys = [(day, level) for day in (2, 1, 3) for level in (500, 850)]
    path = write(*(level_message(10 * day + level, dataDate=20200100 + day, level=level) for day, level in keys))
    opened = open_files(path)
    assert opened["temperature"].shape == (3, 2, *GRID.shape)
    assert opened["temperature"].chunks is not None
    for day, level in keys:
        found = opened["temperature"].sel(time=f"2020-01-0{day}", level=level).values
        np.testing.assert_allclose(found, field(10 * day + level), atol=1e-4)


def test_parameters_that_do_not_share_a_cube_are_all_there(write: Callable[..., Path]) -> None:
    near = {"typeOfLevel": "heightAboveGround"}
    path = write(
        level_message(1), level_message(2, level=850), level_message(3, shortName="u"),
        message(field(4), shortName="2t", level=2, **near), message(field(5), shortName="10u", level=10, **near),
        message(field(6) * 360, shortName="msl", typeOfLevel="meanSea", level=0),
    )  # fmt: skip
    opened = open_files(path)
    assert sorted(map(str, opened.data_vars)) == [
        "10m_u_component_of_wind", "2m_temperature", "mean_sea_level_pressure", "temperature", "u_component_of_wind",
    ]  # fmt: skip
    np.testing.assert_allclose(opened["10m_u_component_of_wind"].isel(time=0).values, field(5), atol=1e-4)
    assert opened["u_component_of_wind"].attrs["levels_available"] == [500]


def test_geopotential_height_is_not_geopotential(write: Callable[..., Path]) -> None:
    path = write(message(field(1) * 20, shortName="gh", typeOfLevel="isobaricInhPa", level=500))
    opened = open_files(path)
    np.testing.assert_allclose(opened["geopotential"].isel(time=0, level=0).values, field(1) * 20 * 9.80665, rtol=1e-6)
    assert "gh -> geopotential at 500 hPa [gpm -> m2 s-2]" in mapping(opened)


def test_missing_values_of_the_bitmap_are_nan(write: Callable[..., Path]) -> None:
    values = field(1)
    values[2, 3] = np.nan
    opened = open_files(write(message(values, shortName="t", typeOfLevel="isobaricInhPa", level=500)))
    np.testing.assert_array_equal(np.isnan(opened["temperature"].isel(time=0, level=0).values), np.isnan(values))


@pytest.mark.parametrize(("param_id", "metres"), [(228, 1.0), (228228, 1e-3)])
def test_accumulations_kept_as_forecasts_are_unfolded(write: Callable[..., Path], param_id: int, metres: float) -> None:
    rain = {"paramId": param_id, "typeOfLevel": "surface", "level": 0, "stepType": "accum"}
    runs = [(time, step) for time in (600, 1800) for step in (6, 12)]
    depth = {run: field(sum(run)) / 1e5 for run in runs}  # the same depth of water in either unit
    path = write(
        *(message(depth[time, step] / metres, **rain, dataTime=time, stepRange=f"{step - 6}-{step}") for time, step in runs)
    )
    opened = open_files(path)["total_precipitation"]
    stamps = ["2020-01-01T12", "2020-01-01T18", "2020-01-02T00", "2020-01-02T06"]
    assert [str(stamp)[:13] for stamp in opened["time"].values] == stamps
    for run, stamp in zip(runs, stamps, strict=True):
        np.testing.assert_allclose(opened.sel(time=stamp).values, depth[run], rtol=1e-5)


RAIN = {"paramId": 228228, "typeOfLevel": "surface", "level": 0, "stepType": "accum"}
DEPTH = np.abs(field(7)) / 280  # kg m-2 an hour


@pytest.mark.parametrize("starts", [(0, 0, 0, 0), (0, 0, 6, 6), (0, 3, 6, 9)])  # as IFS, as GEFS, over the step
@pytest.mark.parametrize("files", [1, 4])
def test_forecast_rain_is_over_the_step_however_its_messages_count(
    write: Callable[..., Path], tmp_path: Path, starts: tuple[int, ...], files: int
) -> None:
    ends = (3, 6, 9, 12)
    packed = [message(DEPTH * (end - start), **RAIN, stepRange=f"{start}-{end}") for start, end in zip(starts, ends, strict=True)]
    for i in range(files):
        write(*packed[i::files], name=f"{i}.grib")
    opened = open_ensemble(tmp_path)
    name = "total_precipitation" if starts == (0, 3, 6, 9) else "total_precipitation_3hr"
    assert list(opened.data_vars) == [name]
    np.testing.assert_allclose(opened[name].values[0, :, 0], np.broadcast_to(3e-3 * DEPTH, (4, *GRID.shape)), atol=1e-6)
    twelve = open_ensemble(tmp_path, variables=["total_precipitation_12hr"])["total_precipitation_12hr"]
    np.testing.assert_allclose(twelve.values[0, 3, 0], 12e-3 * DEPTH, atol=1e-6)
    assert twelve.attrs["hours_available"] == [12]


def test_rain_over_two_windows_at_one_stamp_is_refused(write: Callable[..., Path]) -> None:
    path = write(message(DEPTH, **RAIN, stepRange="0-12"), message(DEPTH, **RAIN, stepRange="6-12"))
    with pytest.raises(InputError, match=r"tp is there over 0-12 h, 6-12 h, of which one is wanted"):
        open_ensemble(path)


def test_accumulations_since_the_start_of_each_run_are_no_analysis(write: Callable[..., Path]) -> None:
    path = write(message(DEPTH, **RAIN, stepRange="0-6"), message(DEPTH * 2, **RAIN, stepRange="0-12"))
    with pytest.raises(InputError, match="total_precipitation is accumulated over 6 h, 12 h at stamps of one analysis"):
        open_files(path)


def test_instant_forecasts_are_not_an_analysis(write: Callable[..., Path]) -> None:
    path = write(level_message(1, step=6), level_message(2, step=12))
    with pytest.raises(InputError, match="2 lead times along 'step': these are forecasts"):
        open_files(path)


# --- ensembles


def test_control_and_members_are_one_ensemble(write: Callable[..., Path]) -> None:
    path = write(
        *(level_message(number * 100 + step, step=step, **member_keys(number)) for number in (2, 0, 3, 1) for step in (12, 6))
    )
    opened = open_ensemble(path)
    validate(opened, "forecast")
    assert opened["number"].values.tolist() == [0, 1, 2, 3]
    for number in range(4):
        for i, step in enumerate((6, 12)):
            found = opened["temperature"].isel(time=0, prediction_timedelta=i, level=0).sel(number=number).values
            np.testing.assert_allclose(found, field(number * 100 + step), atol=1e-4)


def test_ens_500_hpa_has_its_control_and_fifty_members(shared_data: Callable[[str], Path]) -> None:
    opened = open_ensemble(shared_data("ecmwf-ens-samples") / "z500_ens.grib")
    validate(opened, "forecast")
    assert opened["geopotential"].shape == (1, 1, 51, 1, 46, 71)
    assert opened.attrs["form"] == "forecast"
    assert str(opened["valid_time"].values[0, 0])[:13] == "2012-09-24T00"
    assert opened["longitude"].values[[0, -1]].tolist() == [-50.0, 20.0]
    spread = opened["geopotential"].sel(number=slice(1, 50)).astype("f8").var("number", ddof=1).mean()
    assert float(spread) ** 0.5 == pytest.approx(417, abs=0.5)


def test_the_storm_keeps_parameters_with_other_steps(shared_data: Callable[[str], Path]) -> None:
    opened = open_ensemble(shared_data("ecmwf-ens-samples") / "ens_storm.grib")
    gust = opened["10m_wind_gust_since_previous_post_processing_3hr"]
    assert (opened["prediction_timedelta"].values / np.timedelta64(1, "h")).tolist() == [72, 78, 84]
    assert gust.sizes["number"] == 51
    assert np.isfinite(gust).all()
    assert (float(gust.min()), float(gust.max())) == pytest.approx((0.8, 48.6), abs=0.05)
    z850 = opened["geopotential"]
    assert z850.attrs["hours_available"] == [78.0]
    assert np.isfinite(z850.isel(prediction_timedelta=1)).all()
    assert np.isnan(z850.isel(prediction_timedelta=[0, 2])).all()


def test_the_deterministic_storm_is_one_member(shared_data: Callable[[str], Path]) -> None:
    opened = open_ensemble(shared_data("ecmwf-ens-samples") / "fc_storm.grib")
    assert opened["number"].values.tolist() == [0]
    assert opened.sizes["prediction_timedelta"] == 3


def test_levels_steps_and_members_are_all_dims(shared_data: Callable[[str], Path]) -> None:
    opened = open_ensemble(shared_data("ecmwf-ens-samples") / "ztu_multi_dim.grib")
    assert opened["temperature"].shape == (1, 4, 6, 4, 3, 5)
    assert opened["level"].values.tolist() == [500, 700, 850, 1000]
    assert opened["number"].values.tolist() == [1, 2, 3, 4, 5, 6]
    assert "members 1 .. 6: 6 of the 51 of this ensemble" in mapping(opened)


def test_era5_members_are_analysis_members(shared_data: Callable[[str], Path]) -> None:
    path = shared_data("ecmwf-ens-samples") / "era5-levels-members.grib"
    opened = open_ensemble(path)
    assert opened.attrs["form"] == "analysis members"
    assert opened["geopotential"].shape == (4, 1, 10, 2, 61, 120)
    variance = opened["geopotential"].astype("f8").var("number", ddof=1).mean()
    assert float(variance) ** 0.5 == pytest.approx(14.0, abs=0.05)
    with pytest.raises(InputError, match="10 members along 'number'"):
        open_files(path)


def test_every_message_of_a_file_is_in_its_place(shared_data: Callable[[str], Path]) -> None:
    path = shared_data("ecmwf-ens-samples") / "ztu_multi_dim.grib"
    opened = open_ensemble(path).compute()
    fields = {"z": opened["geopotential"].values, "t": opened["temperature"].values, "u": opened["u_component_of_wind"].values}
    levels, steps = [500, 700, 850, 1000], [3, 6, 9, 12]
    count = 0
    for keys, values in messages(path):
        place = (0, steps.index(keys["endStep"]), keys["number"] - 1, levels.index(keys["level"]))
        np.testing.assert_allclose(fields[keys["shortName"]][place], values.reshape(3, 5)[::-1], rtol=1e-7)
        count += 1
    assert count == 288


def messages(path: Path) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Keys and values by ecCodes alone."""
    with path.open("rb") as file:
        while (handle := eccodes.codes_grib_new_from_file(file)) is not None:
            keys = {key: eccodes.codes_get(handle, key) for key in ("shortName", "number", "level", "endStep")}
            yield keys, eccodes.codes_get_values(handle)
            eccodes.codes_release(handle)


# --- faults


def test_a_cut_file_names_the_messages_and_the_byte(many_members: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.grib"
    path.write_bytes(many_members[:-1000])
    with pytest.raises(
        InputError, match=rf"cut.grib is cut or damaged: after 50 whole messages, at byte 215924 of {len(many_members) - 1000}"
    ):
        open_ensemble(path)


@pytest.mark.parametrize("left", [2, 6, 20, 100, 1000])
def test_a_cut_anywhere_in_a_message_is_found(write: Callable[..., Path], left: int) -> None:
    whole, last = level_message(1), level_message(2, level=850)
    path = write(whole, last[:left] if left < len(last) else last[:-1])
    with pytest.raises(InputError, match=f"after 1 whole messages, at byte {len(whole)} of"):
        open_files(path)


def test_a_lost_end_mark_is_found(write: Callable[..., Path]) -> None:
    whole, other = level_message(1), level_message(2, level=850)
    with pytest.raises(InputError, match=r"data\.grib is cut or damaged"):
        open_files(write(whole, other[:-4] + b"xxxx"))
    with pytest.raises(InputError, match=r"data\.grib is cut or damaged"):
        open_files(write(whole[:-4] + b"xxxx", other))


def test_a_field_that_is_absent_is_named(write: Callable[..., Path]) -> None:
    places = [(day, level) for day in (1, 2) for level in (500, 850)]
    path = write(*(level_message(1, dataDate=20200100 + day, level=level) for day, level in places if (day, level) != (2, 850)))
    with pytest.raises(InputError, match=r"t lacks 1 of 4 fields, first dataDate 20200102, dataTime 0, step 0, level 850"):
        open_files(path)


def test_a_field_that_is_there_twice_is_refused(write: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="t has 1 fields twice"):
        open_files(write(level_message(1), level_message(2), level_message(1, level=850)))


def test_members_lost_at_a_message_border_are_said(many_members: bytes, tmp_path: Path) -> None:
    path = tmp_path / "short.grib"
    path.write_bytes(many_members[:215924])
    opened = open_ensemble(path)
    assert opened.sizes["number"] == 50
    assert "members 1 .. 50: 50 of the 51 of this ensemble" in mapping(opened)


def test_other_grids_are_refused(tmp_path: Path) -> None:
    handle = eccodes.codes_grib_new_from_samples("reduced_gg_pl_32_grib2")
    (tmp_path / "reduced.grib").write_bytes(eccodes.codes_get_message(handle))
    eccodes.codes_release(handle)
    with pytest.raises(InputError, match="reduced_gg grid; regrid it"):
        open_files(tmp_path / "reduced.grib")


def test_padding_between_messages_is_no_fault(write: Callable[..., Path]) -> None:
    path = write(level_message(1), b"\0" * 40, level_message(2, level=850), b"\0" * 7)
    assert len(scan(path)) == 2
    assert open_files(path)["level"].values.tolist() == [500, 850]
