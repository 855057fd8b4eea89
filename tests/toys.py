"""Toy worlds and toy networks: small enough that a test trains, forecasts and scores within a second or two."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
import xarray as xr

from data_pipeline import statistics
from data_pipeline.batches import Samples
from data_pipeline.grid import Grid
from data_pipeline.schema import channels_of
from data_pipeline.statistics import format_period
from models import validation
from models.checkpoint import build
from models.contract import Spec
from models.crps import CrpsGenerator
from models.recipe import make_spec

GLOBE = Grid.named("16x8")
REGION = Grid(np.arange(36.0, 45.1, 1.0), np.arange(-4.0, 6.6, 1.0))  # 10 x 11: neither can be halved twice
OPTIONS = {"widths": (8, 16), "blocks": 1, "patch": 1, "noise": 4, "local_noise": 2, "position": 2}
FORCINGS = ("season", "position")
UNITS = {
    "geopotential": "m2 s-2",
    "2m_temperature": "K",
    "u_component_of_wind": "m s-1",
    "10m_v_component_of_wind": "m s-1",
    "total_precipitation_12hr": "m",
    "geopotential_at_surface": "m2 s-2",
    "land_sea_mask": "1",
}


def as_analysis(fields: dict[str, np.ndarray], grid: Grid, start: str = "2001-01-01", step_hours: int = 12) -> xr.Dataset:
    """Fields (time, latitude, longitude) by channel label as an analysis in the schema; one pressure level at most."""
    count = len(next(iter(fields.values())))
    times = np.datetime64(start, "ns") + np.timedelta64(step_hours, "h") * np.arange(count)
    out = xr.Dataset(coords={"time": times, **grid.coords()}, attrs={"source": "a toy world", "recipe_hash": "toy"})
    for label, values in fields.items():
        if label.endswith("_500"):
            name = label.removesuffix("_500")
            out = out.assign_coords(level=[500])
            out[name] = (("time", "level", "latitude", "longitude"), values[:, None].astype("float32"), {"units": UNITS[name]})
        else:
            out[label] = (("time", "latitude", "longitude"), values.astype("float32"), {"units": UNITS[label]})
    return out


def weather(grid: Grid = GLOBE, steps: int = 80, *, start: str = "2001-01-01", step_hours: int = 12, seed: int = 0) -> xr.Dataset:
    """Four channels of red noise in time around plausible means, one of them a precipitation with many zeros; static fields."""
    rng = np.random.default_rng(seed)

    def red() -> np.ndarray:
        shocks = rng.normal(size=(steps, *grid.shape))
        for i in range(1, steps):
            shocks[i] = 0.8 * shocks[i - 1] + 0.6 * shocks[i]
        return shocks

    data = as_analysis(
        {
            "geopotential_500": 5.5e4 + 800 * red(),
            "2m_temperature": 280 + 5 * red(),
            "10m_v_component_of_wind": 6 * red(),
            "total_precipitation_12hr": 2e-3 * np.maximum(red(), 0),
        },
        grid, start, step_hours,
    )  # fmt: skip
    static = ("latitude", "longitude")
    data["geopotential_at_surface"] = (static, rng.gamma(1, 3e3, grid.shape).astype("float32"), {"units": "m2 s-2"})
    data["land_sea_mask"] = (static, rng.integers(0, 2, grid.shape).astype("float32"), {"units": "1"})
    return data


def advection(steps: int, *, seed: int = 0, grid: Grid = GLOBE) -> xr.Dataset:
    """One channel, smooth around each circle of latitude, that moves one column east a step: next = roll(now, 1) exactly."""
    rng = np.random.default_rng(seed)
    angle = np.deg2rad(grid.longitude)[None, :]
    first = sum(
        rng.normal(size=(grid.shape[0], 1)) * np.cos(k * angle) + rng.normal(size=(grid.shape[0], 1)) * np.sin(k * angle)
        for k in (1, 2, 3)
    )
    fields = np.stack([np.roll(first, k, axis=1) for k in range(steps)])
    return as_analysis({"2m_temperature": 280 + 5 * fields}, grid)


def period(data: xr.Dataset, first: int = 0, last: int = -1) -> tuple[str, str]:
    """The period between two positions of an analysis, both included."""
    stamps = np.datetime_as_string(data["time"].values[[first, last]], "h")
    return str(stamps[0]), str(stamps[1])


def spec_of(
    data: xr.Dataset,
    training: tuple[str, str] | None = None,
    validation: tuple[str, str] | None = None,
    *,
    diagnostic: tuple[str, ...] = (),
    forcings: tuple[str, ...] = FORCINGS,
    frames: int = 2,
    intervals: tuple[int, ...] = (),
    **options: Any,
) -> Spec:
    """The spec of a tiny network on all channels of an analysis."""
    chosen = training or period(data)
    step = np.diff(data["time"].values).min() / np.timedelta64(1, "h")
    return make_spec(
        data, statistics.compute(data, channels_of(data), chosen, steps=intervals), family="crps", diagnostic=diagnostic,
        forcings=forcings, step_hours=int(step), frames=frames, training_period=format_period(chosen),
        validation_period=format_period(validation or chosen), options={**OPTIONS, **options}, intervals=intervals,
    )  # fmt: skip


def samples_of(data: xr.Dataset, spec: Spec, chosen: tuple[str, str] | None = None) -> Samples:
    """The samples of a period, normalised by the spec."""
    return validation.samples_of(spec, data, "/".join(chosen or period(data)))


def network(spec: Spec, seed: int = 0, size: float = 0.2) -> CrpsGenerator:
    """A generator whose weights are all random: an untrained one is persistence, because its last convolution is zero."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        generator = cast(CrpsGenerator, build(spec).eval())
        for value in generator.parameters():
            value.add_(size * torch.randn_like(value))
    return generator


def ensemble_of(analysis: xr.Dataset, init: np.datetime64, *numbers: int, frames: int = 3) -> xr.Dataset:
    """Initial states of one initialisation: number k is the analysis plus k times a thousandth."""
    leads = (np.arange(1 - frames, 1) * np.timedelta64(12, "h")).astype("timedelta64[ns]")
    own = analysis.sel(time=init + leads).drop_vars("time").rename(time="prediction_timedelta")
    own = own.assign_coords(prediction_timedelta=leads)
    fields = own[[name for name in own.data_vars if "prediction_timedelta" in own[name].dims]]
    members = xr.concat([fields * np.float32(1 + 1e-3 * k) for k in numbers], dim="number").assign_coords(number=list(numbers))
    members = members.expand_dims(time=[init]).assign_attrs(recipe_hash="abc", initial_state="a test")
    order = ["time", "prediction_timedelta", "number", "level", "latitude", "longitude"]
    return members.transpose(*[dim for dim in order if dim in members.dims])
