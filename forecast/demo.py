"""`plumecast demo`: from NetCDF to a report on the packaged planet, each step skipped where its result is already there."""

from __future__ import annotations

import re
import time
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

import models
from data_pipeline import open_analysis, open_forecast
from data_pipeline.derived import make_climatology
from data_pipeline.ingest import ingest
from data_pipeline.progress import ProgressDisplay, table_console
from data_pipeline.recipe import fingerprint, section
from data_pipeline.statistics import Periods
from data_pipeline.store import open_store
from forecast import baselines
from forecast.initial_states import spread_evenly
from forecast.plan import plan_like
from forecast.rollout import make_plan, run
from forecast.sinks import ZarrSink
from verification.evaluate import evaluate, score_store
from verification.headline import show
from verification.report import write_report
from verification.state import FORMAT, is_state, open_state, save

INITS, DAYS = 8, 10
QUANTILES = (0.05, 0.95)


def sample_recipe() -> dict[str, Any]:
    """The recipe of the packaged sample, its source path set to where the package lies."""
    folder = resources.files("data_pipeline") / "sample"
    recipe = tomllib.loads((folder / "recipe.toml").read_text())
    recipe["name"] = "sample"
    recipe["source"]["path"] = str(folder)
    return recipe


class Stores(NamedTuple):
    """Where the demo keeps its analysis, climatology and forecast."""

    analysis: Path
    climatology: Path
    forecast: Path


def prepare(out: Path, members: int = 24) -> Stores:
    """The stores of the demo in `out`, of which those that are there already are not made again."""
    recipe, analysis_path = sample_recipe(), out / "analysis.zarr"
    with ProgressDisplay("ingest of the packaged planet", "stamps") as bar:
        ingest(recipe, analysis_path, progress=bar)
    with table_console().status("climatology of the packaged training years"):
        climate_path = make_climatology(recipe, out, quantiles=QUANTILES)
    return Stores(analysis_path, climate_path, make_forecast(analysis_path, out, members))


def run_demo(out: Path, members: int) -> Path:
    """Ingest, forecast, baselines, scores, report in `out`; returns the report. Prints the headline table."""
    console, started, recipe = table_console(), time.monotonic(), sample_recipe()
    analysis_path, climate_path, forecast_path = prepare(out, members)
    analysis, ensemble = open_analysis(analysis_path), open_forecast(forecast_path)
    place = out / "scores" / f"{forecast_path.stem}.scores.zarr"
    model = score_store(forecast_path, analysis_path, place, climatology_path=climate_path)
    climate = open_store(climate_path).load()
    references = [_baseline(kind, ensemble, analysis, climate, recipe, out) for kind in ("climatology", "persistence")]
    report = out / f"report-{members}-members.html"
    inputs = fingerprint({"states": [state.attrs["inputs"] for state in (model, *references)]})
    stamp = report.with_suffix(".inputs")
    if not (report.exists() and stamp.exists() and stamp.read_text() == inputs):
        case = ensemble.sel(time=[ensemble["time"].values[INITS // 2]]).load()
        with console.status("writing the report"):
            write_report([model, *references], report, case=case, truth=analysis, title="plumecast demo: the simulated planet")
        stamp.write_text(inputs)
    console.print()
    show(console, model, references)
    console.print(
        "A simulated planet, not real weather. The climatology and the thresholds of events come from the two packaged training "
        "years, not from all five.",
        style="dim", soft_wrap=True,
    )  # fmt: skip
    console.print(f"\nreport: {report.resolve()}   ({time.monotonic() - started:.0f} s)", soft_wrap=True, highlight=False)
    return report


def ensure_sample(path: str | Path) -> Path:
    """Make what the demo keeps at `runs/demo/analysis.zarr` or `runs/demo/forecasts/demo-<M>-members.zarr`; returns the path.

    Only if that is the end of the path and nothing is there yet. Any other path is left alone, so that opening one that was
    mistyped says so, and does not show the packaged planet in its place.
    """
    path = Path(path)
    end = re.search(r"(?:^|/)runs/demo/(?:analysis|forecasts/demo-([1-9]\d*)-members)\.zarr$", path.as_posix())
    if end is None or path.exists():
        return path
    if end[1] is None:
        return ingest(sample_recipe(), path)
    return prepare(path.parents[1], int(end[1])).forecast


def make_forecast(analysis_path: Path, out: Path, members: int, inits: int = INITS, days: float = DAYS) -> Path:
    """The demo's forecast store in `out`, by the shipped checkpoint, from initialisations spread over the test period."""
    generator, analysis = models.load(models.shipped()), open_analysis(analysis_path)
    periods = section(sample_recipe(), "periods", Periods)
    spec, horizon = generator.spec, np.timedelta64(round(24 * days), "h")
    times = spread_evenly(analysis, spec.frames, spec.step, periods.required("test"), inits, horizon)
    plan = make_plan(generator, analysis, times, days=days, members=members, seed=0)
    path = out / "forecasts" / f"demo-{members}-members.zarr"
    sink = ZarrSink(path)
    try:
        with ProgressDisplay(f"forecast, {members} members", "leads") as bar:
            run(generator, analysis, plan, [sink], report=lambda step: bar(step.done, step.total))
    finally:
        sink.release()
    return path


def _baseline(
    kind: str, ensemble: xr.Dataset, analysis: xr.Dataset, climate: xr.Dataset, recipe: dict[str, Any], out: Path
) -> xr.Dataset:
    """The score state of a baseline for the forecast's dates, scored as it is drawn, without a store of its fields."""
    path = out / "scores" / f"{kind}.scores.zarr"
    hashes = [data.attrs["recipe_hash"] for data in (analysis, climate)]
    inputs = fingerprint({"format": FORMAT, "kind": kind, "times": ensemble["time"].values.tolist(), "made of": hashes})
    if is_state(path) and open_state(path).attrs.get("inputs") == inputs:
        return open_state(path)
    plan = plan_like(ensemble, analysis)
    if kind == "persistence":
        drawn = baselines.persistence(analysis, plan)
    else:
        drawn = baselines.climatology(analysis, plan, section(recipe, "periods", Periods).required("training"))
    with ProgressDisplay(f"scores of {kind}", "initialisations") as bar:
        state = evaluate(drawn, analysis, climatology=climate, progress=bar)
    state.attrs["inputs"] = inputs
    save(state, path)
    return state
