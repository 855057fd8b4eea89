"""The demo end to end on the packaged planet: a report with honest scores, and a second run that recomputes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import open_analysis, open_forecast
from forecast.demo import run_demo
from verification.readout import scores_table
from verification.state import open_state

pytestmark = pytest.mark.campaign

MEMBERS = 6


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(work folder, report) of one demo."""
    out = tmp_path_factory.mktemp("demo")
    return out, run_demo(out, MEMBERS)


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size) for path in files}


def test_the_demo_beats_persistence_and_the_climatology_and_no_date_is_in_training(finished: tuple[Path, Path]) -> None:
    out, report = finished
    ensemble = open_forecast(out / "forecasts" / f"demo-{MEMBERS}-members.zarr")
    assert ensemble.sizes["time"] == 8
    assert ensemble.sizes["prediction_timedelta"] == 20
    assert ensemble.sizes["number"] == MEMBERS
    states = {path.name.split(".")[0]: open_state(path) for path in (out / "scores").iterdir()}
    model = next(state for name, state in states.items() if name.startswith("demo"))
    assert int(model["in_training"].max()) == 0, "a packaged test date lies in the checkpoint's training or validation period"
    at_day_3 = {"channel": "geopotential_500", "prediction_timedelta": np.timedelta64(72, "h")}
    name_of = {1: "crps_ecdf"}  # one member has no fair score
    crps = {
        name: float(scores_table(state)[name_of.get(state.attrs["members"], "crps")].sel(at_day_3))
        for name, state in states.items()
    }
    ours = crps.pop(next(name for name in crps if name.startswith("demo")))
    assert ours < 0.5 * crps["climatology"]
    assert ours < 0.5 * crps["persistence"]
    numbers = json.loads(report.with_suffix(".json").read_text())
    assert numbers, "the report's numbers are not beside it"


def test_a_second_run_recomputes_nothing(finished: tuple[Path, Path]) -> None:
    out, report = finished
    before = stamps(out)
    assert run_demo(out, MEMBERS) == report
    assert stamps(out) == before


def test_precipitation_is_never_negative_and_every_value_is_finite(finished: tuple[Path, Path]) -> None:
    out, _ = finished
    ensemble = open_forecast(out / "forecasts" / f"demo-{MEMBERS}-members.zarr")
    rain = ensemble["total_precipitation_12hr"].values
    assert np.isfinite(rain).all()
    assert rain.min() >= 0
    assert rain.max() > 1e-3
    observed = open_analysis(out / "analysis.zarr")["total_precipitation_12hr"].values
    assert 0.5 < rain.mean() / observed.mean() < 2.0
