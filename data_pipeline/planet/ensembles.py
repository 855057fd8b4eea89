"""Physics ensembles of the planet: initial states around the truth, and forecasts by the model itself or by a coarser one."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from pydantic import Field

from data_pipeline import store
from data_pipeline.disk import plain
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.opening import open_analysis, open_forecast
from data_pipeline.planet import perturbations, states, vertical
from data_pipeline.planet.model import Atmosphere, use_one_core
from data_pipeline.recipe import Hours, Section, Stamp, fingerprint
from data_pipeline.schema import Channel, channels_of, select, stack
from data_pipeline.templates import forecast_dataset, forecast_template

Kind = Literal["perfect", "imperfect"]
TRUNCATION: dict[str, int] = {"perfect": 31, "imperfect": 21}  # the one fixed beforehand, not chosen by its score
STATE_TOLERANCE = 40.0  # m2 s-2 of z500 between a restart state and the analysis that it should be; another planet is 800 away
# steps to which the analyses are rounded in a file: those of the planet's own files, a twentieth of an analysis error or less
QUANTA = {
    "geopotential": 12.0,
    "temperature": 0.08,
    "2m_temperature": 0.08,
    "u_component_of_wind": 0.25,
    "v_component_of_wind": 0.3,
    "10m_u_component_of_wind": 0.25,
    "10m_v_component_of_wind": 0.3,
    "mean_sea_level_pressure": 16.0,
    "specific_humidity": 5e-5,
    "total_precipitation": 5e-5,
}
Report = Callable[[int, int], None]


class EnsembleSection(Section):
    """[ensemble]: where forecasts start and how their initial states differ from the truth.

    restarts: folder of restart states of the planet behind the analysis. inits: initialisations, each with a restart state. days,
    step: length and interval of the output. error: rms of the error of 500 hPa geopotential in the analysis and of each member
    around it, m2 s-2. frames: analyses an initial state holds, for generators that read several.
    """

    restarts: str
    inits: list[Stamp] = Field(min_length=1)
    members: int = Field(16, ge=1)
    days: float = Field(15.0, gt=0)
    step: Hours = "12h"
    error: float = Field(80.0, gt=0)
    frames: int = Field(2, ge=1)
    seed: int = Field(0, ge=0)


@dataclass(frozen=True)
class Setting:
    """Everything an ensemble needs, checked: the truth, the restart states, and the pairs of every initialisation."""

    section: EnsembleSection
    truth: xr.Dataset
    channels: list[Channel]
    files: dict[pd.Timestamp, Path]
    pairs: dict[pd.Timestamp, list[perturbations.Pair]]

    @property
    def inits(self) -> pd.DatetimeIndex:
        return pd.DatetimeIndex(list(self.pairs))

    @property
    def hours(self) -> int:
        return int(pd.Timedelta(self.section.step) / pd.Timedelta("1h"))

    @property
    def leads(self) -> np.ndarray:
        count = int(self.section.days * 24 // self.hours)
        return (np.arange(1, count + 1) * np.timedelta64(self.hours, "h")).astype("timedelta64[ns]")

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the content of a store made from it, wherever the folders lie: more restart states are other pairs."""
        section = self.section.model_dump(exclude={"restarts"})
        channels = [channel.label for channel in self.channels]
        truth = self.truth.attrs["recipe_hash"]
        return {"ensemble": section, "truth": truth, "channels": channels, "pairs": fingerprint(self.stated_pairs)}

    @property
    def stated_pairs(self) -> dict[str, list[list[Any]]]:
        """{initialisation: [[first, second, scale], ...]}, as attributes keep it."""
        return {
            f"{init:%Y-%m-%dT%H}": [[f"{p.first:%Y-%m-%dT%H}", f"{p.second:%Y-%m-%dT%H}", round(p.scale, 6)] for p in own]
            for init, own in self.pairs.items()
        }


def setting(section: EnsembleSection, analysis: Path) -> Setting:
    """Open and check everything before a model is made. Raises InputError."""
    truth = open_analysis(analysis)
    files = states.find(section.restarts)
    inits = pd.DatetimeIndex(sorted(set(section.inits)))
    hours = int(pd.Timedelta(section.step) / pd.Timedelta("1h"))
    channels = [channel for channel in channels_of(truth) if channel in vertical.offered(hours)]
    if perturbations.REFERENCE not in channels:
        raise InputError(f"{analysis} lacks {perturbations.REFERENCE}, by which errors are scaled")
    absent = [f"{init:%Y-%m-%dT%H}" for init in inits if init not in files]
    if absent:
        raise InputError(f"ensemble.inits: {section.restarts} holds no restart state of {', '.join(absent[:5])}")
    lags = pd.timedelta_range("0h", periods=section.frames, freq=section.step)
    held = pd.DatetimeIndex(truth["time"].values)
    usable = pd.DatetimeIndex([stamp for stamp in files if all(stamp - lag in held for lag in lags)])
    gone = inits.difference(usable)
    if len(gone):
        raise InputError(f"ensemble.inits: {analysis} lacks the analysis of {gone[0]}, or those {section.step} before")
    pairs = {
        init: perturbations.draw_pairs(
            truth, usable, init, days=section.days, count=section.members + 1, size=section.error, seed=section.seed
        )
        for init in inits
    }
    return Setting(section, truth, channels, files, pairs)


def write_initial_states(given: Setting, out: Path) -> Path:
    """<out>: for each initialisation the analysis (number 0) and the members around it, at the frames before it.

    A store in the forecast schema whose leads are the frames: ..., -12 h, 0 h.
    """
    grid, lags = Grid.of(given.truth), given.hours * np.arange(given.section.frames)[::-1]
    leads = (-lags * np.timedelta64(1, "h")).astype("timedelta64[ns]")
    numbers = np.arange(given.section.members + 1)
    template = forecast_template(given.inits.to_numpy(), leads, list(numbers), given.channels, grid)
    attrs = {"title": "Analyses of a simulated planet: truth + error, and members around them", **_about(given)}
    parts = {init: f"{init:%Y-%m-%dT%H}" for init in given.inits}
    with store.create(
        out, template, parts=list(parts.values()), attrs=attrs, chunks={"time": 1, "number": 1}, recipe=given.identity
    ) as writer:
        for row, (init, part) in enumerate(parts.items()):
            if part in writer.done:
                continue
            frames = [
                perturbations.perturbed_fields(given.truth, given.channels, init, pd.Timedelta(hours=int(lag)), given.pairs[init])
                for lag in lags
            ]
            times = given.inits[row : row + 1].to_numpy()
            data = forecast_dataset(np.stack(frames)[None], times, leads, list(numbers), given.channels, grid)
            writer.write(part, data, {"time": slice(row, row + 1)})
        return writer.finish()


def write_analyses(initial: Path, out: Path) -> Path:
    """<out>: the analyses (number 0) of a store of initial states as one small NetCDF file, rounded to steps of int16."""
    data = open_forecast(initial).sel(number=[0]).load()
    encoding = {}
    for name, array in data.data_vars.items():
        middle = 0.5 * (float(array.min()) + float(array.max()))
        step = QUANTA[next(known for known in QUANTA if str(name).startswith(known))]
        encoding[str(name)] = {
            "dtype": "int16", "scale_factor": step, "add_offset": step * round(middle / step), "_FillValue": np.int16(-32768),
            "zlib": True, "complevel": 9, "shuffle": True,
        }  # fmt: skip
    temporary = out.with_suffix(".partial")
    data.assign_attrs({key: plain(value) for key, value in data.attrs.items()}).to_netcdf(
        temporary, engine="netcdf4", encoding=encoding
    )
    temporary.replace(out)
    return out


def write_ensemble(given: Setting, kind: Kind, out: Path, *, workers: int, report: Report = lambda done, total: None) -> Path:
    """<out>: the forecasts of all initialisations, one process a core; killed and run again, it goes on with the next one.

    Raises GateError if the model blows up, InputError if the restart states are not those of the truth.
    """
    identity = {**given.identity, "kind": kind, "truncation": TRUNCATION[kind]}
    if store.is_finished(out, identity):
        return out
    grid, leads, numbers = Grid.of(given.truth), given.leads, list(range(1, given.section.members + 1))
    template = forecast_template(given.inits.to_numpy(), leads, numbers, given.channels, grid)
    attrs = {"model": f"SPEEDY T{TRUNCATION[kind]} ({kind} model)", "training_period": "", **_about(given), "kind": kind}
    parts = {init: f"{init:%Y-%m-%dT%H}" for init in given.inits}
    chunks = {"time": 1, "prediction_timedelta": 8}
    with store.create(out, template, parts=list(parts.values()), attrs=attrs, chunks=chunks, recipe=identity) as writer:
        todo = [init for init, part in parts.items() if part not in writer.done]
        report(len(parts) - len(todo), len(parts))
        for init, fields in _forecasts(given, kind, todo, workers):
            row = list(parts).index(init)
            times = given.inits[row : row + 1].to_numpy()
            data = forecast_dataset(fields[None], times, leads, numbers, given.channels, grid)
            writer.write(parts[init], data, {"time": slice(row, row + 1)})
            report(len(writer.done), len(parts))
        return writer.finish()


def _about(given: Setting) -> dict[str, Any]:
    size = f"z500 rms {given.section.error:g} m2 s-2"
    return {
        "source": given.truth.attrs.get("source", ""),
        "initial_state": f"truth + error ({size}), members around it with errors of the same size",
        "seed": given.section.seed,
        "pairs": json.dumps(given.stated_pairs, separators=(",", ":")),
        "plumecast_version": store.version(),
    }


def _forecasts(given: Setting, kind: Kind, inits: list[pd.Timestamp], workers: int) -> Iterator[tuple[pd.Timestamp, np.ndarray]]:
    """Initialisations and their fields (lead, member, channel, latitude, longitude), as they are ready."""
    tasks = [_Task(given, init) for init in inits]
    context = multiprocessing.get_context("spawn")  # the numerical libraries do not survive a fork
    core = context.Value("i", 0)
    with ProcessPoolExecutor(workers, context, _start_worker, (core, TRUNCATION[kind])) as pool:
        futures: dict[Future[np.ndarray], pd.Timestamp] = {pool.submit(_forecast, task): task.init for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures.pop(future), future.result()
        finally:
            for future in futures:
                future.cancel()


class _Task:
    """What a worker needs for one initialisation: small enough to be sent."""

    def __init__(self, given: Setting, init: pd.Timestamp) -> None:
        self.init, self.hours, self.stamps = init, given.hours, given.leads.size
        self.channels, self.grid = given.channels, Grid.of(given.truth)
        self.pairs = given.pairs[init]
        stamps = {init, *(stamp for pair in self.pairs for stamp in (pair.first, pair.second))}
        self.files = {stamp: given.files[stamp] for stamp in stamps}
        self.z500 = select(given.truth, perturbations.REFERENCE).sel(time=init).values


_atmosphere: Atmosphere  # one a worker process


def _start_worker(core: Any, truncation: int) -> None:
    global _atmosphere
    with core.get_lock():
        mine, core.value = core.value, core.value + 1
    use_one_core(mine)
    _atmosphere = Atmosphere(truncation)


def _forecast(task: _Task) -> np.ndarray:
    held = {stamp: states.load(path).dynamics for stamp, path in task.files.items()}
    _check_state(task, held[task.init])
    members = perturbations.perturbed_states(held[task.init], task.pairs, held)
    return np.stack([_run(task, member) for member in members], axis=1)


def _run(task: _Task, dynamics: Mapping[str, np.ndarray]) -> np.ndarray:
    start = _atmosphere.from_dynamics(task.init, dict(dynamics))
    _, raw = _atmosphere.run(start, task.stamps, task.hours)
    fields = vertical.gridded(raw, _atmosphere.surroundings, task.channels, task.grid)
    return stack(fields, task.channels).transpose("time", "channel", "latitude", "longitude").values


def _check_state(task: _Task, dynamics: Mapping[str, np.ndarray]) -> None:
    """The restart state must be the analysis of the initialisation. A coarser model cannot tell: its orography is another."""
    state = _atmosphere.from_dynamics(task.init, dict(dynamics))
    if state.dynamics["vorticity"].shape != dynamics["vorticity"].shape:
        return
    fields = vertical.gridded(_atmosphere.diagnose(state), _atmosphere.surroundings, [perturbations.REFERENCE], task.grid)
    z500 = fields["geopotential"].values[0, 0]
    weights = task.grid.area_weights
    rms = float(np.sqrt(((z500 - task.z500) ** 2 * weights).sum() / weights.sum()))
    if rms > STATE_TOLERANCE:
        raise InputError(
            f"the restart state of {task.init:%Y-%m-%dT%H} is not the analysis of that time: z500 differs by {rms:.0f} m2 s-2 "
            "rms; restart states and analysis must be of one run"
        )
