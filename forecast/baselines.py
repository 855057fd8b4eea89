"""Baselines in the forecast schema: persistence, a climatological ensemble, linear regression on EOFs with resampled residuals.

Each is a lazy dataset, one block an initialisation, so that it can be scored without being stored or written like any forecast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dask.array
import numpy as np
import pandas as pd
import scipy.linalg
import xarray as xr

from data_pipeline.climatological import climatological_ensemble
from data_pipeline.climatology import require_year
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel, stack
from data_pipeline.statistics import format_period, in_period
from data_pipeline.variables import lookup
from forecast import noise
from forecast.plan import ForecastPlan, template

HARMONICS = 4
EOF_CANDIDATES = (5, 10, 20, 40, 80, 160)
SEASON_DAYS = 45


def persistence(analysis: xr.Dataset, plan: ForecastPlan) -> xr.Dataset:
    """The initial analysis at every lead, one member. Its fair CRPS does not exist; its score is the absolute error."""
    single = ForecastPlan(plan.times, plan.leads, (1,), plan.channels, plan.grid, plan.attrs)
    rows = _rows(analysis, plan.times)

    def block(i: int) -> np.ndarray:
        fields = stack(analysis.isel(time=rows[i : i + 1]), plan.channels).values
        return np.broadcast_to(fields[None, :, None], (1, plan.leads.size, 1, *fields.shape[1:]))

    return _lazy(single, block).assign_attrs(_attrs(plan, "persistence", None))


def climatology(analysis: xr.Dataset, plan: ForecastPlan, period: tuple[str, str], window_days: int = 5) -> xr.Dataset:
    """The analyses of the training years in a window around each valid time's date, at the same hour; at least 30 members.

    Exchangeable draws of the climate, so its fair CRPS is that of the climatological distribution. See
    `data_pipeline.climatological.climatological_ensemble` for the window and for valid times inside the period.
    """
    valid = xr.DataArray(
        plan.times[:, None] + plan.leads[None, :],
        dims=("time", "prediction_timedelta"),
        coords={"time": plan.times, "prediction_timedelta": plan.leads.astype("timedelta64[ns]")},
    )
    drawn = climatological_ensemble(analysis, list(plan.channels), valid, period, window_days=window_days)
    model = f"climatology ({drawn.attrs['members']} members)"
    extra = {"window_days": drawn.attrs["window_days"]}
    return drawn.assign_attrs({**_attrs(plan, model, period), **extra})


@dataclass(frozen=True)
class LinearModel:
    """x(t + lead) = climate + E A_lead E' x(t): regression between the leading EOFs of anomalies of all channels together."""

    season: np.ndarray  # (1 + 2 HARMONICS, D) coefficients of the seasonal cycle, scaled fields
    scale: np.ndarray  # (D,) sqrt(area weight) / std of the channel
    eofs: np.ndarray  # (k, D)
    maps: dict[int, np.ndarray]  # lead in analysis steps -> (k, k)
    times: np.ndarray  # training stamps
    anomalies: np.ndarray  # (T, D) scaled training anomalies, float32

    def predict(self, anomalies: np.ndarray, lead: int) -> np.ndarray:
        """Scaled anomalies (N, D) `lead` steps later, the part that the regression explains."""
        return (anomalies @ self.eofs.T) @ self.maps[lead] @ self.eofs

    def season_at(self, times: np.ndarray) -> np.ndarray:
        """The seasonal cycle (N, D) at `times`, scaled fields."""
        return _harmonics(times) @ self.season


def fit_linear(
    analysis: xr.Dataset,
    channels: Sequence[Channel],
    leads: Sequence[int],
    training: tuple[str, str],
    validation: tuple[str, str],
) -> LinearModel:
    """Fit on `training`; the number of EOFs is the candidate with the least squared error at three leads of `validation`.

    leads: in analysis steps. Anomalies are about the annual mean and four harmonics of the day of year (fitted on training), each
    channel divided by its anomaly std and weighted by sqrt(area). Raises InputError for less than a year of training.
    """
    require_year(analysis, training)
    times, fields = _period_fields(analysis, channels, training)
    _refuse_useless(channels, fields)
    area = np.sqrt(Grid.of(analysis).area_weights)
    basis = _harmonics(times)
    season, *_ = scipy.linalg.lstsq(basis, fields.reshape(len(times), -1), lapack_driver="gelsy")
    anomalies = fields.reshape(len(times), -1) - basis @ season
    std = anomalies.reshape(len(times), len(channels), -1).std(axis=(0, 2))
    scale = (area[None] / std[:, None, None]).ravel()
    anomalies = (anomalies * scale).astype(np.float32)
    season = season * scale
    most = min(max(EOF_CANDIDATES), min(anomalies.shape) - 1)
    eofs = _leading_eofs(anomalies, most)
    check_times, check = _period_fields(analysis, channels, validation)
    _refuse_useless(channels, check)
    check = check.reshape(len(check_times), -1) * scale - _harmonics(check_times) @ season
    pcs, check_pcs = anomalies @ eofs.T, check @ eofs.T

    def error(k: int) -> float:
        total = 0.0
        for lead in list(leads)[:3]:
            start = _starts(check_times, lead, _step(times))
            found = check_pcs[start, :k] @ _regression(pcs[:, :k], times, lead) @ eofs[:k]
            total += float(((check[start + lead] - found) ** 2).mean())
        return total

    k = min((k for k in EOF_CANDIDATES if k <= most), key=error)
    maps = {lead: _regression(pcs[:, :k], times, lead) for lead in leads}
    return LinearModel(season, scale, eofs[:k], maps, times, anomalies)


def _refuse_useless(channels: Sequence[Channel], fields: np.ndarray) -> None:
    """Raise InputError naming the channels with missing values or without any change."""
    gaps = [f"{channel} has missing values" for i, channel in enumerate(channels) if not np.isfinite(fields[:, i]).all()]
    still = [f"{channel} never changes" for i, channel in enumerate(channels) if np.ptp(fields[:, i], axis=0).max() == 0]
    if gaps or still:
        raise InputError(f"linear baseline: {'; '.join(gaps + still)} in the period it is fitted or chosen on; leave it out")


def linear(
    analysis: xr.Dataset,
    plan: ForecastPlan,
    training: tuple[str, str],
    validation: tuple[str, str],
    *,
    members: int = 50,
    seed: int = 0,
) -> xr.Dataset:
    """Linear regression on leading EOFs; members are its prediction plus residuals of training dates of the same season.

    A residual is the whole field that the regression missed on a training date within 45 days of the anniversary, so members
    keep the spatial and inter-variable structure. Dates are drawn from (seed, init, member, lead).
    """
    step = _step(analysis["time"].values)
    leads = [int(lead / step) for lead in plan.leads]
    if any(np.timedelta64(lead) % step for lead in plan.leads):
        raise InputError(f"linear baseline: leads must be multiples of the analysis step {step.astype('timedelta64[h]')}")
    model = fit_linear(analysis, plan.channels, leads, training, validation)
    chosen = ForecastPlan(plan.times, plan.leads, tuple(range(1, members + 1)), plan.channels, plan.grid, plan.attrs)
    rows = _rows(analysis, plan.times)
    day = pd.DatetimeIndex(model.times).day_of_year.to_numpy()
    known = [lookup(channel.name) for channel in plan.channels]
    positive = [i for i, variable in enumerate(known) if variable is not None and variable.non_negative]

    def block(i: int) -> np.ndarray:
        time = plan.times[i]
        start = stack(analysis.isel(time=rows[i : i + 1]), plan.channels).values.reshape(1, -1) * model.scale - model.season_at(
            plan.times[i : i + 1]
        )
        out = np.empty((1, len(leads), members, model.scale.size), np.float32)
        for j, lead in enumerate(leads):
            sources = _season_starts(model, day, time, lead, step)
            picks = [noise.pick(seed, time, member, lead, sources.size) for member in chosen.members]
            drawn = sources[picks]
            residual = model.anomalies[drawn + lead] - model.predict(model.anomalies[drawn], lead)
            mean = model.season_at(np.array([time + plan.leads[j]])) + model.predict(start, lead)
            out[0, j] = (mean + residual) / model.scale
        fields = out.reshape(1, len(leads), members, len(plan.channels), *plan.grid.shape)
        fields[:, :, :, positive] = np.maximum(fields[:, :, :, positive], 0)
        return fields

    attrs = _attrs(plan, f"linear ({len(model.eofs)} EOFs)", training) | {
        "validation_period": format_period(validation),
        "seed": seed,
    }
    return _lazy(chosen, block).assign_attrs(attrs)


def _lazy(plan: ForecastPlan, block: Any) -> xr.Dataset:
    """A dataset of the plan whose initialisation i is computed by block(i) -> (1, lead, member, channel, latitude, longitude)."""
    shape = (1, plan.leads.size, len(plan.members), len(plan.channels), *plan.grid.shape)
    blocks = [dask.array.from_delayed(dask.delayed(block, pure=False)(i), shape, np.float32) for i in range(plan.times.size)]
    joined = dask.array.concatenate(blocks)
    out = template(plan)
    labels = [channel.label for channel in plan.channels]
    for name, array in out.data_vars.items():
        if "level" not in array.dims:
            out[name] = array.copy(data=joined[:, :, :, labels.index(str(name))])
            continue
        own = array.attrs["levels_available"]
        empty = dask.array.full(joined.shape[:3] + joined.shape[-2:], np.nan, dtype=np.float32, chunks=(1, -1, -1, -1, -1))
        fields = [
            joined[:, :, :, labels.index(Channel(str(name), int(level)).label)] if int(level) in own else empty
            for level in out["level"].values
        ]
        out[name] = array.copy(data=dask.array.stack(fields, axis=3))
    return out


def _attrs(plan: ForecastPlan, model: str, period: tuple[str, str] | None) -> dict[str, Any]:
    kept = {key: plan.attrs[key] for key in ("source", "source_recipe_hash", "plumecast_version") if key in plan.attrs}
    return {
        **kept,
        "model": model,
        "training_period": format_period(period) if period else "",
        "validation_period": "",
        "boundary": "none",
    }


def _rows(analysis: xr.Dataset, times: np.ndarray) -> np.ndarray:
    rows = pd.Index(analysis["time"].values).get_indexer(pd.Index(times))
    if (rows < 0).any():
        raise InputError(f"the analysis lacks {int((rows < 0).sum())} of {rows.size} initialisations, first {times[rows < 0][0]}")
    return rows


def _period_fields(analysis: xr.Dataset, channels: Sequence[Channel], period: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    rows = np.flatnonzero(in_period(analysis["time"].values, period))
    if rows.size < 100:
        raise InputError(f"linear baseline: {rows.size} analyses in {format_period(period)}; at least 100 are needed")
    return analysis["time"].values[rows], stack(analysis.isel(time=rows), channels).values.astype(np.float64)


def _harmonics(times: np.ndarray) -> np.ndarray:
    """(N, 1 + 2 HARMONICS): the annual mean and the harmonics of the year."""
    days = (times.astype("datetime64[ns]") - np.datetime64("2000-01-01", "ns")) / np.timedelta64(1, "D")
    angle = 2 * np.pi * days / 365.2425
    columns = [np.ones_like(angle)]
    for k in range(1, HARMONICS + 1):
        columns += [np.cos(k * angle), np.sin(k * angle)]
    return np.stack(columns, axis=1)


def _leading_eofs(anomalies: np.ndarray, count: int) -> np.ndarray:
    """The `count` leading eigenvectors (count, D) of the anomalies' covariance, through the smaller of the two Gram matrices."""
    n, d = anomalies.shape
    if d <= n:
        _, vectors = scipy.linalg.eigh(anomalies.T @ anomalies, subset_by_index=[d - count, d - 1])
        return np.ascontiguousarray(vectors[:, ::-1].T)
    values, vectors = scipy.linalg.eigh(anomalies @ anomalies.T, subset_by_index=[n - count, n - 1])
    return np.ascontiguousarray(((anomalies.T @ vectors) / np.sqrt(np.maximum(values, 1e-30)))[:, ::-1].T)


def _regression(pcs: np.ndarray, times: np.ndarray, lead: int) -> np.ndarray:
    start = _starts(times, lead, _step(times))
    return scipy.linalg.lstsq(pcs[start], pcs[start + lead])[0]


def _starts(times: np.ndarray, lead: int, step: np.timedelta64) -> np.ndarray:
    """Indices from which `lead` steps lead to another stamp without a gap."""
    return np.flatnonzero(times[lead:] - times[: len(times) - lead] == lead * step)


def _step(times: np.ndarray) -> np.timedelta64:
    return np.diff(times).min()


def _season_starts(model: LinearModel, day: np.ndarray, time: np.datetime64, lead: int, step: np.timedelta64) -> np.ndarray:
    starts = _starts(model.times, lead, step)
    apart = np.abs(day[starts] - pd.Timestamp(time).day_of_year)
    near = starts[np.minimum(apart, 366 - apart) <= SEASON_DAYS]
    if not near.size:
        raise InputError(
            f"linear baseline: no training date within {SEASON_DAYS} days of {time} has an analysis {lead} steps later"
        )
    return near
