"""Past runs against the analyses that came after them, and against each other: score states beside the runs, one scorecard.

    <root>/<model>/verification/<run>.scores.zarr        additive sums of one run, made once its last valid time has an analysis
    <root>/<model>/verification/<run>.consistency.json   how far the run before it differed for the same valid times
    <root>/<model>/verification/scorecard.json           the scores of all states, merged

States stay when retention takes a run, so that the scorecard grows on.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from data_pipeline import open_forecast
from data_pipeline.disk import plain, read_json, write_json
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel, channels_of, select
from forecast.archive import Run, init_name
from forecast.cycle import source
from forecast.cycle.job import Job
from forecast.cycle.stages import FORECAST
from verification.evaluate import evaluate
from verification.readout import in_training, ratios, region_sums, scores_table
from verification.state import condensed, merge, open_state, save
from verification.styles import style_of

SCORECARD = "scorecard.json"
SCORES, CONSISTENCY = ".scores.zarr", ".consistency.json"
TREND_DAYS = 3.0  # the lead whose scores are followed from cycle to cycle
SHOWN = ("crps", "rmse", "spread", "ssr", "bias")


def verify(job: Job, report: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Score what can be scored by now, compare successive runs, and write the scorecard; returns it. Nothing is done twice.

    Raises InputError if the recipe has no truth for its runs.
    """
    folder = verification_folder(job)
    folder.mkdir(parents=True, exist_ok=True)
    truth = source.available(job.recipe.analyses, job.recipe.schedule, job.clock.now(), job.recipe.verification.truth)
    runs = {run.init: run for run in job.archive.runs()}
    for run in runs.values():
        path = folder / f"{run.name}{SCORES}"
        if not path.exists() and _is_over(run, truth):
            save(_scored(job, run, truth), path)
            job.log(run.init, "verified", run=run.name)
            report(f"{run.name}: scored")
        before, pair = runs.get(run.init - job.recipe.schedule.every), folder / f"{run.name}{CONSISTENCY}"
        if before is not None and not pair.exists():
            write_json(pair, {"older": before.name, "newer": run.name, "channels": consistency(job, before, run)})
    card = scorecard(folder)
    write_json(folder / SCORECARD, card)
    return card


def verification_folder(job: Job) -> Path:
    """Where states and scorecard lie."""
    return job.archive.folder / "verification"


def _is_over(run: Run, truth: xr.Dataset) -> bool:
    """True once there is an analysis at or after the last valid time."""
    last = np.datetime64(run.init + dt.timedelta(hours=run.manifest()["lead_hours"]), "ns")
    return bool(truth.sizes["time"]) and bool(truth["time"].values[-1] >= last)


def _scored(job: Job, run: Run, truth: xr.Dataset) -> xr.Dataset:
    """The score state of one run; valid times whose analysis never came are left out and counted."""
    data = open_forecast(run.path / FORECAST)
    return condensed(evaluate(data, truth, channels=_channels(job, data), missing_truth="skip"))


def _channels(job: Job, data: xr.Dataset) -> list[str]:
    have = [channel.label for channel in channels_of(data)]
    wanted = [label for label in job.recipe.verification.channels if label in have]
    if not wanted:
        raise InputError(f"verification.channels names none of the forecast's: {', '.join(have)}")
    return wanted


def consistency(job: Job, older: Run, newer: Run) -> dict[str, Any]:
    """How two successive runs differ for the same valid times, by lead of the newer one, area-weighted, in units of the channel.

    mean_change: mean absolute change of the ensemble mean. divergence: the integral of (F - G)^2 over the values of the two
    ensembles' distribution functions, as in Richardson, Cloke and Pappenberger (2020, doi:10.1029/2020GL087934), in its form
    that expects 0 for two ensembles drawn from one distribution (it may come out slightly negative).
    """
    first, second = (open_forecast(run.path / FORECAST) for run in (older, newer))
    shift = np.timedelta64(newer.init - older.init)
    leads = [lead for lead in second["prediction_timedelta"].values if lead + shift in first["prediction_timedelta"].values]
    weights = Grid.of(second).areas
    weights = weights / weights.sum()
    found: dict[str, Any] = {}
    for label in _channels(job, second):
        rows = []
        for lead in leads:
            g = _members(second, label, lead)
            f = _members(first, label, lead + shift)
            change = np.abs(g.mean(axis=0) - f.mean(axis=0))
            rows.append((float((weights * change).sum()), float((weights * divergence(f, g)).sum())))
        found[label] = {
            "lead_hours": [int(lead / np.timedelta64(1, "h")) for lead in leads],
            "mean_change": [row[0] for row in rows],
            "divergence": [row[1] for row in rows],
        }
    return found


def divergence(f: np.ndarray, g: np.ndarray) -> np.ndarray:
    """E|X - Y| - E|X - X'| / 2 - E|Y - Y'| / 2 of two ensembles (member, ...), each with distinct pairs only; sorts, O(M log M).

    With one member in both it is the absolute difference.
    """
    m, n = f.shape[0], g.shape[0]
    own, other, joint = _pairs(f), _pairs(g), _pairs(np.concatenate([f, g]))
    across = (joint - own - other) / (m * n)
    return np.asarray(across - own / max(1, m * (m - 1)) - other / max(1, n * (n - 1)))


def _pairs(values: np.ndarray) -> np.ndarray:
    """The sum of |a - b| over unordered pairs of members."""
    ordered = np.sort(values.astype(np.float64), axis=0)
    count = ordered.shape[0]
    ranks = 2.0 * np.arange(count) + 1 - count
    return np.tensordot(ranks, ordered, axes=1)


def _members(data: xr.Dataset, label: str, lead: np.timedelta64) -> np.ndarray:
    field = select(data, Channel.parse(label)).isel(time=0).sel(prediction_timedelta=lead)
    return np.asarray(field.transpose("number", "latitude", "longitude").values)


def scorecard(folder: Path) -> dict[str, Any]:
    """Scores of all states in a verification folder by channel and lead, and the mean consistency of successive runs, plain data.

    in_sample: of how many runs an initialisation or valid time lies in the training or validation period of the checkpoint.
    left_out: runs with other members, leads or channels than the newest one, whose scores are not those of one system.
    """
    every = [open_state(path) for path in _newest(folder, SCORES)]
    states = [state for state in every if _layout(state) == _layout(every[-1])]
    card: dict[str, Any] = {"runs": len(states), "left_out": len(every) - len(states), "channels": {}}
    card["consistency"] = _mean_consistency(folder)
    if not states:
        return card
    whole = merge(states)
    table, rows = scores_table(whole), region_sums(whole)
    hours = whole["prediction_timedelta"].values / np.timedelta64(1, "h")
    lead = int(np.argmin(np.abs(hours - 24 * TREND_DAYS)))
    members = int(whole.attrs["members"])
    flags = whole["in_training"].values
    card |= {
        "members": members,
        "first": init_name(_datetime(whole["time"].values[0])),
        "last": init_name(_datetime(whole["time"].values[-1])),
        "in_sample": int((flags > 0).any(axis=1).sum()),
        "in_sample_text": in_training(whole),
        "policy": table.attrs["policy"],
        "trend_lead_hours": int(hours[lead]),
    }
    for channel in map(str, whole["channel"].values):
        style, own = style_of(channel), table.sel(channel=channel)
        trend = ratios(rows.sel(channel=channel).isel(prediction_timedelta=lead), members)
        card["channels"][channel] = {
            "label": style.label, "units": style.difference_units, "factor": style.factor,
            "lead_hours": [int(hour) for hour in hours],
            **{name: plain(own[name].values) for name in SHOWN},
            "n": plain(own["n"].values),
            "trend": {
                "inits": [init_name(_datetime(time)) for time in whole["time"].values],
                "crps": plain(trend["crps" if members > 1 else "crps_ecdf"].values),
                "in_sample": plain((flags[:, lead] > 0).tolist()),
            },
        }  # fmt: skip
    return card


def _layout(state: xr.Dataset) -> tuple[Any, ...]:
    return int(state.attrs["members"]), *(tuple(state[name].values.tolist()) for name in ("prediction_timedelta", "channel"))


def _newest(folder: Path, suffix: str) -> list[Path]:
    """Files of the newest revision of each initialisation."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob(f"2*{suffix}"), key=lambda path: (len(path.name), path.name)):
        found[path.name[:11]] = path
    return [found[name] for name in sorted(found)]


def _mean_consistency(folder: Path) -> dict[str, Any]:
    """Means over all pairs of successive runs, by channel and lead of the newer one."""
    pairs = [read_json(path, "channels")["channels"] for path in _newest(folder, CONSISTENCY)]
    out: dict[str, Any] = {}
    for label in sorted({label for pair in pairs for label in pair}):
        own = [pair[label] for pair in pairs if label in pair]
        hours = sorted({hour for one in own for hour in one["lead_hours"]})
        rows: dict[str, Any] = {"lead_hours": hours, "pairs": len(own)}
        for name in ("mean_change", "divergence"):
            by_hour = [[one[name][one["lead_hours"].index(hour)] for one in own if hour in one["lead_hours"]] for hour in hours]
            rows[name] = [float(np.mean(values)) for values in by_hour]
        out[label] = rows
    return out


def _datetime(stamp: np.datetime64) -> dt.datetime:
    return stamp.astype("datetime64[s]").astype(dt.datetime)
