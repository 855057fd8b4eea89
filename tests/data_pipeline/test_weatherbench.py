"""Archives: each layout opens to the fields that were written, and only what is asked for is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from data_pipeline import open_analysis
from data_pipeline.errors import InputError, NotReadyError
from data_pipeline.grid import Grid
from data_pipeline.ingest import AnalysisSection, ingest
from data_pipeline.recipe import read_recipe, section
from data_pipeline.region import cut
from data_pipeline.schema import Channel
from data_pipeline.source import SourceSection
from data_pipeline.sources.weatherbench import open_archive, open_archive_forecast
from tests.data_pipeline import archives
from tests.data_pipeline.archives import CHANNELS, RAIN, arco_fields, check, fine_fields
from tests.data_pipeline.object_server import ObjectServer, every_third, serve

pytest.importorskip("aiohttp", reason="needs the extra cloud: pip install plumecast[cloud]")
pytestmark = pytest.mark.usefixtures("waits")


# --- layouts


@pytest.mark.parametrize("archive", ["coarse", "short_names", "format_3", "fine"])
@pytest.mark.parametrize("scheme", ["http", "path"])
def test_every_layout_opens_to_the_fields_that_were_written(server: ObjectServer, archive: str, scheme: str) -> None:
    url = f"{server.url}/b/{archive}.zarr" if scheme == "http" else str(server.root / "b" / f"{archive}.zarr")
    found = open_archive(url, [*CHANNELS, RAIN])
    truth = fine_fields() if archive == "fine" else archives.weather()
    assert list(found.data_vars) == [
        *dict.fromkeys(c.name for c in [*CHANNELS, RAIN]),
        "geopotential_at_surface",
        "land_sea_mask",
    ]
    assert found["level"].values.tolist() == [500, 850]
    assert found.sizes["time"] == truth.sizes["time"]
    assert Grid.of(found).matches(Grid.of(truth))
    assert found["sea_surface_temperature"].isnull().any()  # land, as it is stored
    check(found, truth)


def test_a_block_is_what_is_wanted_of_one_stored_chunk(server: ObjectServer) -> None:
    found = open_archive(f"{server.url}/b/coarse.zarr", CHANNELS, start="2020-01-03", stop="2020-01-09")
    # the stamps are 8 .. 32 of chunks of 20
    assert found["geopotential"].chunks == ((12, 13), (2,), (32,), (64,))
    found = open_archive(f"{server.url}/b/fine.zarr", CHANNELS)
    assert found["geopotential"].chunks == ((1,) * 12, (2,), (13,), (24,))


def test_only_what_is_asked_for_is_read(server: ObjectServer) -> None:
    found = open_archive(f"{server.url}/b/fine.zarr", CHANNELS[:1], start="2020-01-02T00", stop="2020-01-02T12")
    assert server.chunks == []
    found["geopotential"].load()
    assert sorted(server.chunks) == [f"b/fine.zarr/geopotential/{stamp}.0.0.0" for stamp in (4, 5, 6)]


@pytest.mark.parametrize("region", [(30.0, 60.0, -20.0, 45.0), (-45.0, 0.0, 150.0, 210.0), (-90.0, 90.0, -180.0, 180.0)])
@pytest.mark.parametrize("archive", ["coarse", "fine"])
def test_a_region_is_cut_as_from_the_whole(objects: Path, archive: str, region: tuple[float, float, float, float]) -> None:
    url = str(objects / "b" / f"{archive}.zarr")
    xr.testing.assert_identical(
        open_archive(url, CHANNELS, region=region).compute().drop_attrs(),
        cut(open_archive(url, CHANNELS), region).compute().drop_attrs(),
    )


def test_a_region_without_points_is_refused(objects: Path) -> None:
    with pytest.raises(InputError, match=r"holds 1 latitudes of -87.1875 .. 87.1875, 2 longitudes"):
        open_archive(str(objects / "b" / "coarse.zarr"), CHANNELS, region=(0.0, 5.0, 0.0, 8.0))


# --- what is not there


def test_an_absent_field_is_named_beside_what_is_there(objects: Path) -> None:
    with pytest.raises(
        InputError, match=r"coarse.zarr has no specific_humidity_700, geopotential_300; it has 2m_temperature, geo"
    ):
        open_archive(str(objects / "b" / "coarse.zarr"), [Channel("specific_humidity", 700), Channel("geopotential", 300), RAIN])


def test_a_period_outside_the_axis_is_refused(objects: Path) -> None:
    with pytest.raises(
        InputError, match=r"no stamp in 2021-01-01T00:00 .. 2021-02-01T00:00; its axis has 2020-01-01T00:00 .. 2020-01"
    ):
        open_archive(str(objects / "b" / "coarse.zarr"), CHANNELS, start="2021-01-01", stop="2021-02-01")
    with pytest.raises(InputError, match=r"start 'spring': expected an ISO stamp"):
        open_archive(str(objects / "b" / "coarse.zarr"), CHANNELS, start="spring")


def test_an_axis_with_missing_stamps_is_refused(tmp_path: Path) -> None:
    data = archives.weather(archives.TIMES[:4], "8x4")
    archives.write_wb2(tmp_path / "a.zarr", data.isel(time=[0, 2, 1, 3]))
    with pytest.raises(InputError, match="a.zarr: time is empty, holds missing stamps, or does not ascend"):
        open_archive(str(tmp_path / "a.zarr"), CHANNELS)


@pytest.mark.parametrize(("units", "stored"), [(None, 0.5), ("1", 0.5), ("%", 50.0)])
def test_relative_humidity_is_a_fraction_only_where_no_units_are_stated(tmp_path: Path, units: str | None, stored: float) -> None:
    data = archives.weather(archives.TIMES[:4], "8x4")
    field = xr.full_like(data["temperature"], stored).drop_attrs(deep=False).assign_attrs({"units": units} if units else {})
    data.assign(relative_humidity=field).to_zarr(tmp_path / "a.zarr", zarr_format=2, consolidated=True)
    found = open_archive(str(tmp_path / "a.zarr"), [Channel("relative_humidity", 500)])
    assert found["relative_humidity"].attrs["units"] == "%"
    np.testing.assert_allclose(found["relative_humidity"], 50.0)


def test_levels_that_each_variable_has_are_found_on_the_common_axis(tmp_path: Path) -> None:
    """As in a store of ours: levels that only another variable has are missing, and an attribute says which are not."""
    data = archives.weather(archives.TIMES[:4], "8x4", levels=(500, 850))
    for name, level in (("geopotential", 500), ("temperature", 850)):
        data[name] = data[name].where(data["level"] == level).assign_attrs(data[name].attrs, levels_available=[level])
    archives.write_wb2(tmp_path / "a.zarr", data)
    check(open_archive(str(tmp_path / "a.zarr"), CHANNELS[:2]), data)


# --- ARCO-ERA5: an axis that reaches beyond the data


def test_the_valid_part_of_the_axis_is_what_is_opened(server: ObjectServer) -> None:
    found = open_archive(f"{server.url}/b/arco.zarr", CHANNELS)
    assert found["time"].values[[0, -1]].astype("M8[h]").astype(str).tolist() == ["2020-01-01T00", "2020-01-03T23"]
    assert found["land_sea_mask"].dims == ("latitude", "longitude")
    check(found.isel(time=slice(-6, None)), arco_fields())
    assert "stamps after 2020-01-02: preliminary ERA5T" in json.loads(found.attrs["mapping"])
    final = open_archive(f"{server.url}/b/arco.zarr", CHANNELS, stop="2020-01-02T23")
    assert not any("ERA5T" in line for line in json.loads(final.attrs["mapping"]))


def test_stamps_after_the_last_valid_day_are_not_ready(objects: Path) -> None:
    with pytest.raises(NotReadyError, match=r"valid to 2020-01-03 \(valid_time_stop_era5t\), with stamps to 2020-01-03T23:00"):
        open_archive(str(objects / "b" / "arco.zarr"), CHANNELS, start="2020-01-03", stop="2020-01-04T00")
    with pytest.raises(InputError, match="valid from 2020-01-01T00:00 on; asked from 2019-12-31T00:00"):
        open_archive(str(objects / "b" / "arco.zarr"), CHANNELS, start="2019-12-31", stop="2020-01-02")


@pytest.mark.parametrize("key", ["valid_time_start", "valid_time_stop"])
def test_a_valid_day_that_is_none_is_refused(tmp_path: Path, key: str) -> None:
    data = archives.weather(archives.TIMES[:4], "8x4").assign_attrs({key: "soon"})
    data.to_zarr(tmp_path / "a.zarr", zarr_format=2, consolidated=True)
    with pytest.raises(InputError, match=f"a.zarr says {key} 'soon', which is no day"):
        open_archive(str(tmp_path / "a.zarr"), CHANNELS)


@pytest.mark.parametrize("hours", [6, 12, 24])
def test_hourly_precipitation_is_summed_over_the_hours_that_end_at_the_stamp(objects: Path, hours: int) -> None:
    channel = Channel(f"total_precipitation_{hours}hr")
    found = open_archive(str(objects / "b" / "arco.zarr"), [channel], start="2020-01-02T00", stop="2020-01-03T23")
    hourly = arco_fields()["total_precipitation"].values.astype("f8")
    expected = [hourly[end - hours + 1 : end + 1].sum(axis=0) for end in range(24, 72)]
    np.testing.assert_array_equal(found[channel.name].values, np.array(expected).astype("f4"))
    assert "total_precipitation" not in found


@pytest.mark.parametrize("hours", [12, 24])
def test_six_hourly_precipitation_is_summed_across_chunks_and_from_before_the_start(objects: Path, hours: int) -> None:
    channel = Channel(f"total_precipitation_{hours}hr")
    found = open_archive(str(objects / "b" / "coarse.zarr"), [channel], start="2020-01-03")
    six_hourly = archives.weather()["total_precipitation_6hr"].values.astype("f8")
    expected = [six_hourly[end - hours // 6 + 1 : end + 1].sum(axis=0) for end in range(8, 48)]
    np.testing.assert_array_equal(found[channel.name].values, np.array(expected).astype("f4"))


def test_stamps_without_a_whole_window_are_left_out_and_said(objects: Path) -> None:
    found = open_archive(str(objects / "b" / "arco.zarr"), [Channel("total_precipitation_6hr"), CHANNELS[2]])
    assert str(found["time"].values[0].astype("M8[h]")) == "2020-01-01T05"
    assert any("5 stamps left out" in line for line in json.loads(found.attrs["mapping"]))


def test_precipitation_of_one_hour_in_six_is_not_summed(tmp_path: Path) -> None:
    archives.write_wb2(tmp_path / "a.zarr", archives.weather(rain="total_precipitation"))
    with pytest.raises(InputError, match="has no total_precipitation_12hr"):
        open_archive(str(tmp_path / "a.zarr"), [Channel("total_precipitation_12hr")])


# --- forecasts


@pytest.mark.parametrize("write", [archives.write_ifs_ens, archives.write_neuralgcm_ens])
def test_ensembles_open_in_the_forecast_schema(tmp_path: Path, write: Callable[..., xr.Dataset]) -> None:
    truth = write(tmp_path / "b" / "ens.zarr")
    with serve(tmp_path) as server:
        found = open_archive_forecast(f"{server.url}/b/ens.zarr", [CHANNELS[2], CHANNELS[0]], start="2020-01-01T12")
        assert found["2m_temperature"].dims == ("time", "prediction_timedelta", "number", "latitude", "longitude")
        for dim in ("prediction_timedelta", "number"):
            np.testing.assert_array_equal(found[dim].values, truth[dim].values)
        check(found, truth)
        assert set(found["2m_temperature"].chunks[0]) == {1}
    assert found.sizes["time"] == truth.sizes["time"] - 1
    assert found["valid_time"].values[0, -1] == found["time"].values[0] + found["prediction_timedelta"].values[-1]
    with pytest.raises(InputError, match="no stamp in 2030"):
        open_archive_forecast(str(tmp_path / "b" / "ens.zarr"), CHANNELS[:1], start="2030-01-01", stop="2030-02-01")


def test_precipitation_of_forecasts_is_summed_where_the_windows_are_whole(tmp_path: Path) -> None:
    truth = archives.write_ifs_ens(tmp_path / "ens.zarr")["total_precipitation_6hr"].astype("f8")
    found = open_archive_forecast(str(tmp_path / "ens.zarr"), [Channel("total_precipitation_12hr")])["total_precipitation_12hr"]
    expected = truth.isel(prediction_timedelta=[1, 2]).sum("prediction_timedelta").astype("f4")
    np.testing.assert_array_equal(found.isel(prediction_timedelta=2).values, expected.values)
    assert found.isel(prediction_timedelta=[0, 1]).isnull().all()
    assert found.attrs["hours_available"] == [12]


# --- ingest and recipes


def make_recipe(url: str, **analysis: Any) -> dict[str, Any]:
    channels = ["geopotential_500", "2m_temperature", "total_precipitation_12hr"]
    return {
        "name": "archive",
        "source": {"kind": "weatherbench", "url": url},
        "analysis": {"channels": channels, "step": "12h", "start": "2020-01-02T00", "stop": "2020-01-11T12", **analysis},
    }


def test_an_ingest_from_a_failing_server_holds_the_fields_and_is_done_once(server: ObjectServer, tmp_path: Path) -> None:
    server.fault = every_third("503")
    recipe = make_recipe(f"{server.url}/b/coarse.zarr")
    found = open_analysis(ingest(recipe, tmp_path / "analysis.zarr"))
    truth = archives.weather()
    rain = truth["total_precipitation_6hr"].astype("f8").rolling(time=2).sum().astype("f4")
    check(found, truth.assign(total_precipitation_12hr=rain))
    assert found.sizes["time"] == 20
    server.keys.clear()
    ingest(recipe, tmp_path / "analysis.zarr")
    assert server.chunks == []


def test_an_ingest_keeps_no_secrets_and_goes_by_its_options(server: ObjectServer, tmp_path: Path) -> None:
    recipe = make_recipe(f"{server.url}/b/coarse.zarr".replace("//", "//someone:secret@"), channels=["2m_temperature"])
    recipe["source"]["storage"] = {"requests": 1, "headers": {"X-Key": "hidden"}}
    found = open_analysis(ingest(recipe, tmp_path / "analysis.zarr"))
    assert server.most == 1
    assert json.loads(found.attrs["recipe"])["source"]["url"] == f"{server.url}/b/coarse.zarr"
    for file in (tmp_path / "analysis.zarr").rglob("*.json"):
        assert "secret" not in file.read_text()
        assert "hidden" not in file.read_text()
    recipe["source"]["storage"] = {}
    assert ingest(recipe, tmp_path / "analysis.zarr").exists()  # the same store


def test_an_ingest_that_was_given_up_continues(server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipeline.plan.PART_STAMPS", 4)
    recipe = make_recipe(
        f"{server.url}/b/fine.zarr", step="6h", stop="2020-01-03T18", channels=["geopotential_500", "2m_temperature"]
    )
    server.fault = lambda number, key: "503" if key.endswith("2m_temperature/9.0.0") else None
    with pytest.raises(NotReadyError, match="2m_temperature, 2020-01-03T06:00"):
        ingest(recipe, tmp_path / "analysis.zarr")
    server.fault = lambda number, key: None
    server.keys.clear()
    check(open_analysis(ingest(recipe, tmp_path / "analysis.zarr")), fine_fields())
    assert not any(key.endswith("2m_temperature/4.0.0") for key in server.keys)


def test_a_regional_ingest_on_a_coarser_grid_reads_and_regrids(server: ObjectServer, tmp_path: Path) -> None:
    recipe = make_recipe(
        f"{server.url}/b/coarse.zarr", region=[20.0, 70.0, -30.0, 50.0], grid="32x16", channels=["2m_temperature"]
    )
    found = open_analysis(ingest(recipe, tmp_path / "analysis.zarr"))
    assert found["2m_temperature"].notnull().all()
    assert float(found["longitude"][0]) < 0 < float(found["longitude"][-1])


@pytest.mark.parametrize("name", ["weatherbench2_1p5deg", "arco_era5"])
def test_the_recipes_are_valid(repository: Path, name: str) -> None:
    recipe = read_recipe(repository / "recipes" / f"{name}.toml")
    source, analysis = section(recipe, "source", SourceSection), section(recipe, "analysis", AnalysisSection)
    assert source.kind == "weatherbench"
    assert str(source.url).startswith("gs://")
    assert analysis.start is not None
    assert analysis.stop is not None
    assert "CC BY" in source.attribution
