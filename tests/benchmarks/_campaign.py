"""Forecasts of many dates, made and scored one initialisation at a time: the fields go, one small file of sums stays for each.

What is there is not made again: a part is known by the checkpoint, the calibration and the settings it was made with.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from data_pipeline.disk import sha256
from data_pipeline.recipe import fingerprint
from data_pipeline.schema import Channel, channels_of, stack
from forecast.calibrated import check_table
from forecast.initial_states import InitialStates
from forecast.plan import ForecastPlan
from forecast.rollout import make_plan, run
from forecast.sinks import MemorySink
from models.contract import Generator, Spec
from models.post_processing import Correction, read_table
from verification.evaluate import evaluate
from verification.onepass import SUMS, TAILS
from verification.regions import DOMAIN
from verification.spectra import power_spectrum
from verification.state import merge

SEED = 0
DAY = np.timedelta64(24, "h").astype("timedelta64[ns]")
KINDS = ("raw", "tuned", "calibrated")  # noise scale 1; that of the checkpoint; the same, post-processed
FORMAT = 1  # part of what a part is known by


@dataclass(frozen=True)
class Campaign:
    """Which dates are forecast, and how they are scored.

    analysis: all of it. truth: what is verified against, in memory. initial: given initial states. events: of the climatology's
    quantiles. days_of_spectra: leads whose mean zonal power is kept. raw: noise scale 1, too. calibrated: post-processed members,
    too; fitted on forecasts from analyses alone, they are not for given initial states. channels: those that are scored; none:
    all in common.
    """

    name: str
    folder: Path
    analysis: xr.Dataset
    truth: xr.Dataset
    inits: np.ndarray
    days: float
    members: int
    climatology: xr.Dataset | None = None
    events: tuple[str, ...] = ()
    initial: InitialStates | None = None
    days_of_spectra: tuple[int, ...] = ()
    calibrated: bool = False
    raw: bool = True
    channels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Model:
    """A checkpoint, or several that share out the members, under the name of the tables; its post-hoc calibration, if any."""

    name: str
    generators: tuple[Generator, ...]
    calibration: Path | None = None

    @property
    def spec(self) -> Spec:
        return self.generators[0].spec

    @property
    def tuned(self) -> list[float]:
        """The noise scale of each checkpoint, chosen on validation."""
        return [float(each.provenance.get("noise_scale", 1.0)) for each in self.generators]

    def scales(self, campaign: Campaign) -> dict[str, float | None]:
        """{kind: noise scale, None for the checkpoints' own}: forecasts to be made; one for both, if the knob stayed at 1."""
        one = not campaign.raw or self.tuned == [1.0] * len(self.tuned)
        return {"tuned": None} if one else {"raw": 1.0, "tuned": None}

    @property
    def identity(self) -> dict[str, Any]:
        fitted = sha256(self.calibration) if self.calibration else ""
        return {
            "checkpoints": [each.sha256 for each in self.generators], "calibration": fitted, "scales": self.tuned,
            "compute": [str(each.compute_dtype) for each in self.generators],
        }  # fmt: skip


class CalibratedSink(MemorySink):
    """Keeps the post-processed members of a roll-out."""

    def __init__(self, path: Path) -> None:
        self._table = read_table(path)
        self._correction = Correction(self._table)

    def open(self, plan: ForecastPlan) -> None:
        check_table(plan, self._table)
        super().open(plan)

    def take(self, time: np.datetime64, lead: np.timedelta64, members: tuple[int, ...], fields: np.ndarray) -> None:
        super().take(time, lead, members, self._correction(lead, self.plan.channels, fields))


def forecast(
    campaign: Campaign, model: Model, init: np.datetime64, scale: float | None, calibration: Path | None = None
) -> list[xr.Dataset]:
    """The ensemble of one initialisation, in memory, and its calibrated form, if a calibration is given."""
    plan = make_plan(
        list(model.generators), campaign.analysis, [init], days=campaign.days, members=campaign.members, seed=SEED,
        name=model.name, noise_scale=scale, initial=campaign.initial,
    )  # fmt: skip
    sinks = [MemorySink(), *([CalibratedSink(calibration)] if calibration else [])]
    run(list(model.generators), campaign.analysis, plan, sinks, initial=campaign.initial)
    return [sink.dataset for sink in sinks]


def ensembles(campaign: Campaign, model: Model, init: np.datetime64) -> Iterator[tuple[str, xr.Dataset]]:
    """(kind, ensemble) of every kind; the calibrated one is made of the tuned one."""
    for kind, scale in model.scales(campaign).items():
        calibration = model.calibration if kind == "tuned" and campaign.calibrated else None
        yield from zip([kind, "calibrated"], forecast(campaign, model, init, scale, calibration), strict=False)


def score_model(campaign: Campaign, model: Model) -> dict[str, xr.Dataset]:
    """{kind: state} of a model."""
    kinds = [*model.scales(campaign), *(["calibrated"] if model.calibration and campaign.calibrated else [])]
    names = {kind: f"{model.name}, {kind}" for kind in kinds}
    found = scored(campaign, names.values(), model.identity, lambda init: renamed(ensembles(campaign, model, init), names))
    return {kind: found[name] for kind, name in names.items()}


def renamed(made: Iterator[tuple[str, xr.Dataset]], names: Mapping[str, str]) -> Iterator[tuple[str, xr.Dataset]]:
    return ((names[kind], data) for kind, data in made)


def score_given(campaign: Campaign, name: str, data: xr.Dataset, identity: Mapping[str, Any]) -> xr.Dataset:
    """The state of a forecast that exists, or of a lazy baseline: the initialisations of the campaign."""
    return scored(campaign, [name], identity, lambda init: iter([(name, data.sel(time=[init]).load())]))[name]


def scored(
    campaign: Campaign,
    names: Sequence[str] | Any,
    identity: Mapping[str, Any],
    make: Callable[[np.datetime64], Iterator[tuple[str, xr.Dataset]]],
) -> dict[str, xr.Dataset]:
    """{name: state of all initialisations}; make(init): (name, ensemble) of every name, asked for where a part is not there."""
    names = list(names)
    settings = {
        **identity, "format": FORMAT, "seed": SEED, "members": campaign.members, "days": campaign.days, "events": campaign.events,
        "spectra": campaign.days_of_spectra, "initial": campaign.initial is not None,
        "channels": campaign.channels,
    }  # fmt: skip
    parts = {name: parts_of(campaign.folder / campaign.name, name, settings, campaign.inits) for name in names}
    for number, init in enumerate(campaign.inits):
        if all(parts[name][number].exists() for name in names):
            continue
        start = time.monotonic()
        for name, ensemble in make(init):
            write(part(campaign, name, ensemble), parts[name][number])
        seconds = time.monotonic() - start
        print(f"  {campaign.name}, {names[-1]}: {number + 1}/{campaign.inits.size}, {seconds:.0f} s each", flush=True)
    return {name: merge([read(file) for file in parts[name]]) for name in names}


def parts_of(folder: Path, name: str, settings: Mapping[str, Any], inits: np.ndarray) -> list[Path]:
    root = folder / f"{name.replace(', ', '-').replace(' ', '_')}-{fingerprint(settings)[:8]}"
    return [root / f"{np.datetime_as_string(init, 'h')}.nc" for init in inits]


def write(data: xr.Dataset, path: Path) -> None:
    """A small dataset as NetCDF: whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    encoding = {str(name): {"zlib": True, "complevel": 4, "shuffle": True} for name in data.data_vars}
    data.drop_encoding().to_netcdf(partial, engine="netcdf4", encoding=encoding)
    partial.replace(path)


def read(path: Path) -> xr.Dataset:
    return xr.load_dataset(path, engine="netcdf4")


def part(campaign: Campaign, name: str, ensemble: xr.Dataset) -> xr.Dataset:
    """The sums of one ensemble, and its spectra."""
    state = evaluate(
        ensemble.assign_attrs(model=name), campaign.truth, climatology=campaign.climatology, missing_truth="skip",
        events=list(campaign.events) or None, channels=[channel.label for channel in common_channels(campaign, ensemble)],
    )  # fmt: skip
    return whole_grid(state).merge(spectra(campaign, ensemble))


def common_channels(campaign: Campaign, ensemble: xr.Dataset) -> list[Channel]:
    known = [channel for channel in channels_of(campaign.truth) if not campaign.channels or channel.label in campaign.channels]
    return [channel for channel in channels_of(ensemble) if channel in known]


def whole_grid(state: xr.Dataset) -> xr.Dataset:
    """The sums of CRPS, moments, ranks and tails over the whole grid, one cell and zone: small, and itself a state."""
    tables = [name for name in ("ranks", *(f"tail_{name}" for name in TAILS)) if name in state]
    cells = state[list(SUMS)].sum("cell").expand_dims(cell=[DOMAIN], axis=-1)
    zones = state[tables].sum("zone").expand_dims(zone=[DOMAIN], axis=-1)
    small = xr.merge([cells, zones, state[["in_training"]]], compat="no_conflicts").assign_coords(zone_of=("cell", [0]))
    return small.drop_vars(["observed", "members_forecasting"], errors="ignore").assign_attrs({**state.attrs, "condensed": 1})


def spectra(campaign: Campaign, ensemble: xr.Dataset) -> xr.Dataset:
    """Zonal power over all circles of latitude, mean over members: (channel, time, drawn_lead, wavenumber); NaN without truth."""
    if not campaign.days_of_spectra:
        return xr.Dataset()
    every = np.array(campaign.days_of_spectra) * DAY
    init = ensemble["time"].values[0]
    there = every[np.isin(init + every, campaign.truth["time"].values) & np.isin(every, ensemble["prediction_timedelta"].values)]
    channels = common_channels(campaign, ensemble)
    members = stack(ensemble.isel(time=0).sel(prediction_timedelta=there).drop_vars("valid_time"), channels)
    truth = stack(campaign.truth.sel(time=init + there), channels)
    truth = truth.rename(time="prediction_timedelta").assign_coords(prediction_timedelta=there)
    powers = {"forecast_power": power_spectrum(members).mean("number"), "truth_power": power_spectrum(truth)}
    found = xr.Dataset({name: power.drop_vars("time", errors="ignore") for name, power in powers.items()})
    found = found.reindex(prediction_timedelta=every).rename(prediction_timedelta="drawn_lead")
    return found.expand_dims(time=[init]).transpose("channel", "time", "drawn_lead", "wavenumber")
