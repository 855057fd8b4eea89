"""Post-hoc calibration of forecasts: fitted on the validation period, applied to a stored forecast, giving a second store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import stack
from data_pipeline.statistics import in_period
from forecast.boundary import Boundary
from forecast.initial_states import spread_evenly
from forecast.plan import ForecastPlan, plan_of
from forecast.rollout import Generators, Progress, listed, make_plan, run
from forecast.sinks import ZarrSink
from models import post_processing
from models.post_processing import Correction, Fitting, Method, Pairs
from verification.plan import truth_rows

FEWEST_DATES = 6
SAMPLE_BYTES = 256 << 20  # of forecasts kept for the fit
MOST_POINTS = 64  # of a band and date: neighbours tell little more
ALIKE = ("checkpoint_sha256", "noise_scale", "step_hours", "boundary")


class PairSink:
    """Keeps members and truth at points drawn in each latitude band, others for each date: memory does not grow with the grid.

    After close: `pairs`, one a channel in physical units, at `points` (band, date, point), and `centre` (C, H, W), the mean
    analysis of all valid times.
    """

    whole = True

    def __init__(self, truth: xr.Dataset, *, seed: int = 0, memory: int = SAMPLE_BYTES) -> None:
        self.truth, self.seed, self.memory = truth, seed, memory

    def open(self, plan: ForecastPlan) -> None:
        self.plan, self._rows = plan, truth_rows(self.truth, plan.times, plan.leads)
        bands = post_processing.band_of(plan.grid.latitude)
        self.bands = np.array([plan.grid.latitude[bands == band].mean() for band in range(bands.max() + 1)])
        head = (len(plan.channels), plan.leads.size, self.bands.size, plan.times.size)
        fit = self.memory // (4 * int(np.prod(head)) * (len(plan.members) + 1))
        rows = np.bincount(bands).min() * plan.grid.shape[1]
        count = int(np.clip(fit, 4, min(MOST_POINTS, rows)))
        self.points = self._drawn(bands, count)
        self._members = np.empty((*head, count, len(plan.members)), np.float32)
        self._truth = np.empty((*head, count), np.float32)
        self._sum = np.zeros((len(plan.channels), *plan.grid.shape))

    def _drawn(self, bands: np.ndarray, count: int) -> np.ndarray:
        """Flat positions (band, date, point), area-weighted."""
        generator = np.random.Generator(np.random.Philox(key=self.seed))
        area = self.plan.grid.areas
        points = np.empty((self.bands.size, self.plan.times.size, count), int)
        for band in range(self.bands.size):
            weight = np.where((bands == band)[:, None], area, 0.0).ravel()
            for date in range(self.plan.times.size):
                points[band, date] = generator.choice(weight.size, count, replace=False, p=weight / weight.sum())
        return points

    def take(self, time: np.datetime64, lead: np.timedelta64, _: tuple[int, ...], fields: np.ndarray) -> None:
        date, k = int(np.flatnonzero(self.plan.times == time)[0]), int(np.flatnonzero(self.plan.leads == lead)[0])
        truth = stack(self.truth.isel(time=self._rows[date, k]), list(self.plan.channels)).values
        self._sum += truth
        points = self.points[:, date]
        self._members[:, k, :, date] = np.moveaxis(fields.reshape(*fields.shape[:2], -1)[:, :, points], 0, -1)
        self._truth[:, k, :, date] = truth.reshape(len(truth), -1)[:, points]

    def close(self) -> None:
        self.centre = self._sum / self._rows.size
        self.pairs = [Pairs(members, truth) for members, truth in zip(self._members, self._truth, strict=True)]


def fit_post_processing(
    generators: Generators, analysis: xr.Dataset, *, method: Method = "mbm", inits: int = 32, members: int = 20,
    days: float = 10.0, seed: int = 1, noise_scale: float | None = None, boundary: Boundary | None = None,
    devices: Sequence[str] = (), report: Callable[[Progress], None] = lambda progress: None,
) -> xr.Dataset:  # fmt: skip
    """Coefficients of a post-hoc calibration, fitted in one pass over forecasts of the checkpoints' validation period.

    No initialisation, frame or valid time lies outside that period. noise_scale: the checkpoint's own unless given; forecasts of
    another are not calibrated by this. Returns what `Correction` applies, its attributes naming checkpoints, method, dates and
    members. Raises InputError without a validation period, or for too few dates.
    """
    given = listed(generators)
    if inits < FEWEST_DATES:
        raise InputError(f"a calibration from {inits} dates was asked for; at least {FEWEST_DATES} tell its own error")
    period = _common_period([each.spec.validation_period for each in given])
    inside = analysis.isel(time=np.flatnonzero(in_period(analysis["time"].values, period)))
    spec, horizon = given[0].spec, np.timedelta64(round(days * 24), "h")
    times = spread_evenly(inside, max(each.spec.frames for each in given), spec.step, period, inits, horizon)
    plan = make_plan(
        given, inside, times, days=days, members=members, seed=seed, noise_scale=noise_scale, boundary=boundary
    )  # fmt: skip
    sink = PairSink(inside, seed=seed)
    run(given, inside, plan, [sink], boundary=boundary, devices=devices, report=report)
    return fitted(sink, method)


def fitted(sink: PairSink, method: Method) -> xr.Dataset:
    """The calibration of what a sink has gathered."""
    plan = sink.plan
    wanted = Fitting(plan.channels, plan.leads, sink.bands, plan.grid)
    table = post_processing.fit(sink.pairs, sink.points, sink.centre, wanted, method)
    kept = (*ALIKE, "compute_dtype", "validation_period", "seed", "plumecast_version")
    said = {key: plan.attrs[key] for key in kept if key in plan.attrs}
    return table.assign_attrs({**said, "dates": ",".join(np.datetime_as_string(plan.times, "h"))})


def _common_period(periods: Sequence[str]) -> tuple[str, str]:
    """The validation period that all checkpoints name."""
    first, slash, last = periods[0].partition("/")
    if not slash or len(set(periods)) > 1:
        raise InputError(
            f"a calibration needs one validation period of all checkpoints; found {', '.join(name or 'none' for name in periods)}"
        )
    return first, last


def post_process(
    forecast: xr.Dataset, table: xr.Dataset, out: Path, report: Callable[[int, int], None] = lambda done, total: None
) -> ForecastPlan:
    """Write the calibrated form of a stored forecast beside it, one block of leads after the other; resumable like any forecast.

    Its attributes say how it was calibrated and with what score it is to be verified. Raises InputError if the table was fitted
    for another checkpoint, noise scale, step, boundary or grid, or for fewer leads.
    """
    plan = plan_of(forecast)
    check_table(plan, table)
    correction = Correction(table)
    attrs = {**plan.attrs, **_said(table), "model": f"{plan.attrs.get('model', '?')} calibrated ({table.attrs['method']})"}
    sink = ZarrSink(out)
    try:
        held = sink.open(replace(plan, attrs=attrs))
        for i, time in enumerate(plan.times):
            if not held[i].all():
                for lead, fields in _leads(forecast, plan, i):
                    sink.take(time, lead, plan.members, correction(lead, plan.channels, fields))
            report(i + 1, plan.times.size)
        sink.close()
    finally:
        sink.release()
    return plan


def _leads(forecast: xr.Dataset, plan: ForecastPlan, row: int) -> Any:
    """(lead, fields) of one initialisation, in blocks of leads as they are stored."""
    chunks = next(iter(forecast.data_vars.values())).variable.chunksizes.get("prediction_timedelta", (plan.leads.size,))
    edges = np.concatenate([[0], np.cumsum(chunks)])
    for first, last in pairwise(edges):
        block = stack(forecast.isel(time=row, prediction_timedelta=slice(first, last)), list(plan.channels))
        fields = block.transpose("prediction_timedelta", "number", "channel", "latitude", "longitude").values
        yield from zip(plan.leads[first:last], fields, strict=True)


def _said(table: xr.Dataset) -> dict[str, Any]:
    names = ("method", "members", "dates", "n", "validation_period", "seed")
    return {
        "post_processing": ", ".join(f"{name} {table.attrs[name]}" for name in names),
        "post_processing_members": int(table.attrs["members"]),
        "score_with": str(table.attrs["score_with"]),
    }


def check_table(plan: ForecastPlan, table: xr.Dataset) -> None:
    """Raise InputError, listing everything, unless a calibration was fitted for this very kind of forecast."""
    faults = [] if "post_processing" not in plan.attrs else ["the forecast is calibrated already"]
    faults += [
        f"{key}: the forecast has {_short(plan.attrs, key)}, the calibration {_short(table.attrs, key)}"
        for key in ALIKE
        if not np.array_equal(np.asarray(plan.attrs.get(key, "")), np.asarray(table.attrs.get(key, "")))
    ]
    leads = table["prediction_timedelta"].values
    gone = np.setdiff1d(plan.leads, leads)
    if gone.size:
        hours = leads[-1] / np.timedelta64(1, "h")
        faults.append(f"{gone.size} of {plan.leads.size} leads were not fitted; fitted are {leads.size} up to {hours:g} h")
    grid = Grid.of(table)
    if not grid.matches(plan.grid):
        faults.append(f"the forecast is on {plan.grid}, the calibration on {grid}")
    known = {str(label) for name in ("channel", "log_channel") for label in table[name].values}
    absent = [channel.label for channel in plan.channels if channel.label not in known]
    if absent:
        faults.append(f"the calibration lacks {', '.join(absent)}")
    if faults:
        raise InputError("this calibration does not fit the forecast:\n" + "\n".join(f"  - {fault}" for fault in faults))


def _short(attrs: Mapping[Any, Any], key: str) -> str:
    return str(attrs.get(key, "none"))[:40]
