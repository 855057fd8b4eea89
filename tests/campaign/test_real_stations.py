"""Real ensembles scored at points through the command line, and the table of all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

from data_pipeline import open_forecast
from plumecast import application
from verification import crps

pytestmark = pytest.mark.campaign

GUST = "10m_wind_gust_since_previous_post_processing_3hr"


def test_a_storm_in_grib_is_scored_at_points_as_its_fields_are(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shared_data("ecmwf-ens-samples")
    fine = open_forecast(folder / "fc_storm.grib")[GUST].isel(time=0, number=0).load()
    stamps = fine["valid_time"].values
    fine = fine.drop_vars(["time", "valid_time", "number"])
    points = fine.assign_coords(prediction_timedelta=stamps).to_dataframe("value").reset_index()
    points["station"] = points["latitude"].map("{:.2f}".format) + " " + points["longitude"].map("{:.2f}".format)
    table = points.rename(columns={"prediction_timedelta": "time"})[["station", "latitude", "longitude", "time", "value"]]
    table = pd.concat([table.sort_values("time"), table.head(1).assign(station="Rome", latitude=41.9, longitude=12.5)])
    table.assign(variable=GUST, units="m s-1").to_csv(tmp_path / "points.csv", index=False)
    words = ["verify-stations", folder / "ens_storm.grib", "--stations", tmp_path / "points.csv", "--out", tmp_path]
    result = CliRunner().invoke(application(), list(map(str, words)), catch_exceptions=False)
    assert "51 members against points.csv, 1488 stations" in result.output
    assert "outside the grid: 1 stations" in result.output
    members = open_forecast(folder / "ens_storm.grib")[GUST].isel(time=0).load()
    expected = crps(members, fine).mean(["latitude", "longitude"])
    with xr.open_dataset(tmp_path / "ens-storm.stations.nc", decode_timedelta=True) as scores:
        found = scores["crps"].sel(channel=GUST, place="all")
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert scores["crps_lower"].isnull().all()


def test_the_table_of_real_ensembles_has_all_of_them(
    shared_data: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    shared_data("ens-stations")
    from tests.benchmarks import real_ensembles

    real_ensembles.main()
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 7 + 4 + 1 + 4 + 4
    assert "| 50 | 4454 | 0.980 [" in table[2]
    assert len({line.count("|") for line in table}) == 1
