"""Sixty days of single members beside the truth: do they drift, leave the range of the climate, blur, or lose their memory?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline import climatology as climatologies
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel, channels_of, stack
from data_pipeline.statistics import in_period
from tests.benchmarks._campaign import DAY, Campaign, Model, forecast, parts_of, read, write
from verification.scores import area_weights
from verification.spectra import power_spectrum

LATE = 30  # days at the end whose means are judged
EARLY = 10  # days from the start, for correlations
WINDOW = 15  # days either side of a date: the climate of its global means
PLANE = ("latitude", "longitude")


def climate(analysis: xr.Dataset, channels: list[Channel], period: tuple[str, str]) -> xr.Dataset:
    """Of the training years: least, most (channel), extremes of all values; low, high, usual (channel, dayofyear), of the global
    mean within `WINDOW` days of the date."""
    chosen = analysis.isel(time=np.flatnonzero(in_period(analysis["time"].values, period)))
    weights = area_weights(Grid.of(analysis))
    day = pd.DatetimeIndex(chosen["time"].values).dayofyear.to_numpy()
    apart = np.abs(day[None] - np.arange(1, 367)[:, None])
    near = np.minimum(apart, 366 - apart) <= WINDOW
    found = []
    for channel in channels:
        values = stack(chosen, [channel]).isel(channel=0).load()
        mean = values.weighted(weights).mean(PLANE).values
        around = np.where(near, mean[None], np.nan)
        bounds = {"low": np.nanmin(around, 1), "high": np.nanmax(around, 1), "usual": np.nanmean(around, 1)}
        named = {name: ("dayofyear", bound) for name, bound in bounds.items()}
        found.append(xr.Dataset({**named, "least": values.min(), "most": values.max()}, {"dayofyear": np.arange(1, 367)}))
    labels = pd.Index([channel.label for channel in channels], name="channel")
    return xr.concat(found, labels, coords="minimal", compat="override").drop_vars("time", errors="ignore")


def portrait(fields: xr.DataArray, normal: xr.DataArray, known: xr.Dataset) -> xr.Dataset:
    """What single members are like. fields (number, channel, prediction_timedelta, latitude, longitude), every 12 h or so.

    normal: the climatological mean, without members. known: of `climate`. Gives global_mean (channel, number,
    prediction_timedelta); beyond (channel, prediction_timedelta), the share of values outside the extremes of the training years;
    least, most; power (channel, wavenumber) of the last `LATE` days; product, square, later (channel, prediction_timedelta): area
    means of anomaly x that a day later, and of both squared.
    """
    weights, leads = area_weights(Grid.of(fields)), fields["prediction_timedelta"].values
    late = fields.sel(prediction_timedelta=leads[leads > leads[-1] - LATE * DAY])
    anomaly = fields - normal
    start = leads[leads + DAY <= leads[-1]]
    first, second = anomaly.sel(prediction_timedelta=start), anomaly.sel(prediction_timedelta=start + DAY)
    second = second.assign_coords(prediction_timedelta=start)
    outside = (fields < known["least"]) | (fields > known["most"])
    mean = {
        "beyond": outside, "product": first * second, "square": first**2, "later": second**2,
    }  # fmt: skip
    found = {name: array.weighted(weights).mean(PLANE).mean("number") for name, array in mean.items()}
    found |= {"global_mean": fields.weighted(weights).mean(PLANE), "least": fields.min([*PLANE, "number"])}
    found |= {"most": fields.max([*PLANE, "number"]), "power": power_spectrum(late).mean(["number", "prediction_timedelta"])}
    return xr.Dataset(found)


def long_part(campaign: Campaign, known: xr.Dataset, ensemble: xr.Dataset) -> xr.Dataset:
    """The portraits of an ensemble and of the truth: dims of `portrait`, and source."""
    init = ensemble["time"].values[0]
    channels = [channel for channel in channels_of(ensemble) if channel in channels_of(campaign.truth)]
    leads = ensemble["prediction_timedelta"].values
    valid = pd.DatetimeIndex(init + leads)
    assert campaign.climatology is not None
    picked = climatologies.select(campaign.climatology[sorted({channel.name for channel in channels})], valid)
    normal = _by_lead(stack(picked, channels), leads)
    truth = _by_lead(stack(campaign.truth.sel(time=valid), channels), leads).expand_dims(number=[0])
    members = stack(ensemble.isel(time=0).drop_vars(["valid_time", "time"]), channels)
    both = [portrait(fields.astype("f8"), normal, known) for fields in (members, truth)]
    return xr.concat(both, pd.Index(["forecast", "truth"], name="source"), join="outer").expand_dims(time=[init])


def _by_lead(fields: xr.DataArray, leads: np.ndarray) -> xr.DataArray:
    return fields.rename(time="prediction_timedelta").assign_coords(prediction_timedelta=leads)


def long_runs(campaign: Campaign, known: xr.Dataset, model: Model) -> xr.Dataset:
    """The portraits of all initialisations, at the checkpoint's own noise scale."""
    settings = {**model.identity, "days": campaign.days, "members": campaign.members, "late": LATE}
    files = parts_of(campaign.folder / campaign.name, model.name, settings, campaign.inits)
    for number, (init, file) in enumerate(zip(campaign.inits, files, strict=True)):
        if not file.exists():
            write(long_part(campaign, known, forecast(campaign, model, init, None)[0]), file)
            print(f"  {campaign.name}, {model.name}: {number + 1}/{campaign.inits.size}", flush=True)
    return xr.concat([read(file) for file in files], "time")


def summary(runs: xr.Dataset, known: xr.Dataset, noise: xr.DataArray, true: xr.DataArray) -> xr.Dataset:
    """What the table shows, by channel and source.

    outside: share of (run, lead) whose global mean lies outside the training years' range within `WINDOW` days of the date, by
    more than rounding; excess: how far the mean over the runs lies outside it at worst, over its width (0: never). drift: the
    last days' mean departure from the usual global mean, over half the width. beyond: share of values outside all values of the
    training years. early, late: correlation from day to day in the first and in the last days. ratio (channel, wavenumber): power
    of the members over the truth's (`true`, of `true_power`) in the last days, NaN where that is less than `noise`.
    """
    stamps = runs["time"] + runs["prediction_timedelta"]
    at = {"dayofyear": stamps.dt.dayofyear}
    low, high, usual = (known[name].sel(at) for name in ("low", "high", "usual"))
    mean = runs["global_mean"]
    there = mean.notnull()
    outside = (((mean < low) | (mean > high)) & there).sum(["time", "number", "prediction_timedelta"]) / there.sum(
        ["time", "number", "prediction_timedelta"]
    )
    middle = (mean - usual).mean(["time", "number"])
    floor, ceiling = ((bound - usual).mean("time") for bound in (low, high))
    width = ceiling - floor
    excess = (xr.where(middle > ceiling, middle - ceiling, 0) + xr.where(middle < floor, floor - middle, 0)) / width
    leads = runs["prediction_timedelta"]
    last = leads > leads[-1] - np.timedelta64(LATE * 24, "h")
    first = leads <= np.timedelta64(EARLY * 24, "h")
    sums = runs[["product", "square", "later"]].mean("time")
    correlations = {
        name: one["product"] / (one["square"] * one["later"]) ** 0.5
        for name, one in ((name, sums.isel(prediction_timedelta=np.flatnonzero(when)).mean("prediction_timedelta"))
                          for name, when in (("early", first), ("late", last)))
    }  # fmt: skip
    own = runs["power"].mean("time").sel(source="forecast", drop=True)
    truth = true.sel(channel=own["channel"])
    power = xr.concat([own, truth], mean["source"])
    ratio = (own / truth).where((truth > noise) & (truth["wavenumber"] > 0))
    return xr.Dataset(
        {
            "outside": outside,
            "excess": excess.max("prediction_timedelta"),
            "drift": ((middle / (width / 2)).isel(prediction_timedelta=np.flatnonzero(last))).mean("prediction_timedelta"),
            "beyond": runs["beyond"].mean(["time", "prediction_timedelta"]),
            "least": runs["least"].min(["time", "prediction_timedelta"]),
            "most": runs["most"].max(["time", "prediction_timedelta"]),
            **correlations,
            "ratio": ratio,
            "power": power,
        }
    )


def true_power(analysis: xr.Dataset, inits: np.ndarray, days: float, channels: list[Channel]) -> xr.DataArray:
    """The analyses' mean zonal power (channel, wavenumber) on the dates of the last days of the runs, in every year there is.

    One year of truth is too small a sample: its power at the longest waves differs from another year's by a quarter.
    """
    leads = np.arange((days - LATE) * 2 + 1, days * 2 + 1) * (DAY // 2)
    years = np.arange(-10, 11) * 365 * DAY
    stamps = np.unique(inits[:, None, None] + leads[None, :, None] + years[None, None, :])
    there = analysis.sel(time=stamps[np.isin(stamps, analysis["time"].values)])
    found = [power_spectrum(stack(there, [channel]).load()).mean("time") for channel in channels]
    return xr.concat(found, "channel", coords="minimal", compat="override").drop_attrs()


def rounding_power(truth: xr.Dataset, channels: list[Channel], *, times: float = 10.0) -> xr.DataArray:
    """`times` the zonal power (channel, wavenumber) that rounding to the stored step adds: white, step^2 / 12 in all.

    The step is the smallest difference of two values in the analyses given, which were packed into integers.
    """
    columns = truth.sizes["longitude"]
    waves = np.arange(columns // 2 + 1)
    share = np.where((waves == 0) | (2 * waves == columns), 1.0, 2.0) / columns
    levels = []
    for channel in channels:
        values = np.unique(stack(truth, [channel]).isel(time=slice(0, None, 60)).values.astype("f8"))
        gaps = np.diff(values)
        step = float(gaps[gaps > 1e-6 * np.ptp(values)].min())
        levels.append(times * step**2 / 12 * share)
    labels = [channel.label for channel in channels]
    return xr.DataArray(np.stack(levels), {"channel": labels, "wavenumber": waves}, ("channel", "wavenumber"))


def cached(path: Path, make) -> xr.Dataset:  # type: ignore[no-untyped-def]
    """The dataset at `path`, made if it is not there."""
    if not path.exists():
        write(make(), path)
    return read(path)
