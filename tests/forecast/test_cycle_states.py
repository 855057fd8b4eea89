"""Cycles whose members start from perturbed states: made in the run, recorded, waited for, the same when made again."""

from __future__ import annotations

import datetime as dt
from typing import Any, Protocol

import numpy as np
import xarray as xr

from data_pipeline.store import open_store, write_dataset
from forecast import archive
from forecast.cycle import worker
from forecast.cycle.job import Job
from tests import toys
from tests.forecast.cycles import FIRST, World


class Jobs(Protocol):
    def __call__(self, **sections: Any) -> Job: ...


def reason(job: Job) -> str:
    cycle = job.ledger.cycle(FIRST)
    assert cycle is not None
    return cycle.reason


def test_members_may_start_from_differences_of_past_analyses(world: World, jobs: Jobs) -> None:
    past = world.folder / "past.zarr"
    write_dataset(past, toys.weather(steps=60, start="2000-01-01", seed=1))
    wanted = {
        "kind": "differences", "path": past, "error": {"geopotential_500": 50.0}, "training": ("2000-01-01", "2000-01-31"),
        "unperturbed": ("total_precipitation_12hr",),
    }  # fmt: skip
    job = jobs(forecast={"initial_states": wanted})
    assert [one.kind for one in worker.tick(job)] == ["published"]
    run = job.archive.latest()
    assert run is not None
    assert run.manifest()["initial_state"].startswith("analysis +/- differences of two analyses")
    states, analysis = (open_store(run.path / f"{name}.zarr").load() for name in ("states", "initial"))
    now = states.sel(time=np.datetime64(FIRST, "ns"), prediction_timedelta=np.timedelta64(0))
    control = analysis.sel(time=np.datetime64(FIRST, "ns"))
    departure = now["geopotential"].sel(level=500) - control["geopotential"].sel(level=500)
    weights = xr.DataArray(np.cos(np.deg2rad(departure["latitude"].values)), dims="latitude")
    size = ((departure**2).weighted(weights).mean(("latitude", "longitude")) ** 0.5).values
    np.testing.assert_allclose(size, [0, 50, 50], atol=0.5)
    np.testing.assert_allclose(departure.sel(number=1), -departure.sel(number=2), atol=0.02)
    rain = now["total_precipitation_12hr"] - control["total_precipitation_12hr"]
    assert float(np.abs(rain).max()) == 0
    again = archive.parse_init("20010103T00")
    worker.ask(job, again, force=True)
    worker.run_one(job, again)
    xr.testing.assert_identical(open_store(job.archive.run(again, 2) / "states.zarr").load(), states)


def test_a_period_with_too_few_analyses_is_said_before_the_cycle_runs(world: World, jobs: Jobs) -> None:
    wanted = {"kind": "differences", "path": world.analysis, "error": {"geopotential_500": 50.0}, "training": ("2001-01-01",) * 2}
    job = jobs(forecast={"initial_states": wanted})
    assert [one.kind for one in worker.tick(job)] == ["bad data"]
    assert "1 are needed" in reason(job)


def test_analysis_members_are_waited_for(world: World, jobs: Jobs) -> None:
    path = world.folder / "eda.zarr"
    job = jobs(forecast={"initial_states": {"kind": "members", "path": path}})
    assert [one.kind for one in worker.tick(job)] == ["waiting"]
    data = toys.weather(steps=60)
    members = xr.concat([data * factor for factor in (1.0, 1.001, 1.002)], dim="number").assign_coords(number=[0, 1, 2])
    fields = members.drop_vars([name for name in members.data_vars if "time" not in members[name].dims])
    leads = fields.expand_dims(prediction_timedelta=np.array([0], "timedelta64[ns]"))
    dims = ("time", "prediction_timedelta", "number")
    eda = leads.transpose(*dims, ...).assign_coords(valid_time=(dims[:2], leads["time"].values[:, None]))
    for name in eda.data_vars:
        eda[name].attrs = data[name].attrs
    write_dataset(path, eda.astype("float32"))
    world.hands.pass_by(dt.timedelta(hours=1))
    assert [one.kind for one in worker.tick(job)] == ["published"]
    run = job.archive.latest()
    assert run is not None
    assert run.manifest()["initial_state"].startswith("3 analysis members in turn")
