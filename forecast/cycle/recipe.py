"""What a schedule is made of: one TOML file, sections as frozen models, unknown keys refused, all faults at once."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from data_pipeline.errors import InputError
from data_pipeline.recipe import Section, Stamp, read_recipe, section
from forecast.archive import RUN_NAME, Archive
from forecast.retention import Policy

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _duration(value: Any) -> dt.timedelta:
    if isinstance(value, dt.timedelta):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r}: expected a number and s, m, h or d, for example 90s, 10m, 12h or 5d")
    return dt.timedelta(**{UNITS[match[2]]: float(match[1])})


Duration = Annotated[dt.timedelta, BeforeValidator(_duration)]
Argv = tuple[str, ...]


class ArchiveSection(Section):
    """Where runs are published, and the model's name there."""

    root: Path
    model: str


class InitialSection(Section):
    """[forecast.initial_states]: where members start from; without it all from the one analysis, a vae's from its perturbation.

    differences: the analysis +/- differences of two analyses of the store at `path`, scaled to `error`, as
    {geopotential_500 = 80} (`perturbations.Differences`); training: their period, the checkpoint's unless given.
    members: the analysis members at `path`, or, paired, the analysis +/- `inflation` times their departures
    (`perturbations.AnalysisMembers`); waited for like the analysis.
    unperturbed: fields that all members take from the analysis.
    """

    kind: Literal["differences", "members"]
    path: Path
    error: Mapping[str, float] = Field(default_factory=dict)
    training: tuple[Stamp, Stamp] | None = None
    season_days: Annotated[float, Field(ge=1)] = 30.0
    seed: Annotated[int, Field(ge=0)] = 0
    paired: bool = False
    inflation: Annotated[float, Field(gt=0)] = 1.0
    unperturbed: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> InitialSection:
        if self.kind == "differences" and not self.error:
            raise ValueError('kind "differences" needs the size of the perturbations: error = { geopotential_500 = 80 }')
        if self.inflation != 1 and not self.paired:
            raise ValueError("inflation multiplies departures: set paired = true too")
        return self


class ForecastSection(Section):
    """What is forecast. checkpoints: paths or names of shipped ones; several share out the members; none: the shipped planet."""

    checkpoints: tuple[str, ...] = ()
    members: Annotated[int, Field(ge=1)] = 50
    days: Annotated[float, Field(gt=0)] = 10.0
    seed: Annotated[int, Field(ge=0)] = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    initial_states: InitialSection | None = None


class AnalysesSection(Section):
    """Where analyses come from.

    store: a growing analysis store at `path`. folder: files in `path`, one a stamp, named by `pattern` (strftime), there once
    `<file><marker>` is, if a marker is named. ecmwf_live: today's open data from `server`. replay: an analysis store that lets
    go of each stamp when the clock has passed it by the schedule's latency, plus `delays`; `missing` ones never, `corrupt` ones
    spoiled. static: file or store of the fields that have no time, if they are not with the rest.
    """

    kind: Literal["store", "folder", "ecmwf_live", "replay"]
    path: Path | None = None
    pattern: str = "%Y%m%dT%H.nc"
    marker: str = ""
    static: Path | None = None
    server: str = "ecmwf"
    delays: Mapping[Stamp, Duration] = Field(default_factory=dict)
    missing: tuple[Stamp, ...] = ()
    corrupt: tuple[Stamp, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> AnalysesSection:
        if self.kind != "ecmwf_live" and self.path is None:
            raise ValueError(f'kind "{self.kind}" needs a path')
        if self.kind != "replay" and (self.delays or self.missing or self.corrupt):
            raise ValueError('delays, missing and corrupt belong to kind "replay"')
        return self


class ScheduleSection(Section):
    """When cycles are due. A cycle is due `latency` after its initialisation; initialisations are `every` from `offset` UTC.

    catch_up: how many older cycles are still made beside the newest due one. stale_after: a cycle that long after its
    initialisation is begun no more. start: the first initialisation; the newest due at the first tick unless given.
    """

    every: Duration = dt.timedelta(hours=12)
    offset: Duration = dt.timedelta(0)
    latency: Duration = dt.timedelta(hours=6)
    catch_up: Annotated[int, Field(ge=0, le=1000)] = 2
    stale_after: Duration = dt.timedelta(hours=36)
    start: Stamp | None = None

    @model_validator(mode="after")
    def _check(self) -> ScheduleSection:
        hour = dt.timedelta(hours=1)
        faults = []
        if self.every < hour or self.every % hour or self.offset % hour:
            faults.append("every and offset must be whole hours, every at least 1h")
        if self.stale_after <= self.latency:
            faults.append("stale_after must be longer than latency, or every cycle is stale when its data come")
        if faults:
            raise ValueError("; ".join(faults))
        return self


class RetrySection(Section):
    """Waiting for data: the first wait, doubled each time up to `longest`, spread by `jitter`; `deadline` after the due time the
    cycle is given up. attempts: of a run that fails by no fault of its data, as by a full disk."""

    first: Duration = dt.timedelta(minutes=2)
    longest: Duration = dt.timedelta(minutes=30)
    jitter: Annotated[float, Field(ge=0, le=0.9)] = 0.2
    deadline: Duration = dt.timedelta(hours=24)
    attempts: Annotated[int, Field(ge=1)] = 5


class ClockSection(Section):
    """A simulated clock for demos: shows `start` when the schedule first runs, then goes `speed` times as fast as the wall's."""

    start: Stamp
    speed: Annotated[float, Field(gt=0)] = 1.0


class ProductsSection(Section):
    """Products of each run. recipe: a products recipe; climatology: the store that percentiles and indices are taken from."""

    recipe: Path | None = None
    climatology: Path | None = None
    format: Literal["zarr", "nc"] = "zarr"


class RetentionSection(Section):
    """What is kept: the newest `keep` runs, `days` of initialisations, and `protect` by name; see `retention.Policy`."""

    keep: Annotated[int, Field(ge=1)] = 40
    days: Annotated[float, Field(ge=0)] = 0.0
    protect: tuple[str, ...] = ()
    grace: Duration = dt.timedelta(hours=1)

    @model_validator(mode="after")
    def _check(self) -> RetentionSection:
        wrong = [name for name in self.protect if not RUN_NAME.fullmatch(name)]
        if wrong:
            raise ValueError(f"protect: {', '.join(wrong)}; expected names of runs, as 20070711T00 or 20070711T00.r2")
        return self

    @property
    def policy(self) -> Policy:
        return Policy(self.keep, self.days, self.protect, self.grace)


class HooksSection(Section):
    """Commands, each a list of words run without a shell; what happened is in PLUMECAST_* variables."""

    success: tuple[Argv, ...] = ()
    failure: tuple[Argv, ...] = ()
    stale: tuple[Argv, ...] = ()
    timeout: Duration = dt.timedelta(minutes=1)


class VerificationSection(Section):
    """Scores of past runs. truth: analysis store; that of the analyses unless given. channels: those of the scorecard."""

    truth: Path | None = None
    channels: tuple[str, ...] = ("geopotential_500", "temperature_850", "2m_temperature", "mean_sea_level_pressure")


class CycleRecipe(Section):
    """A whole schedule."""

    name: str
    archive: ArchiveSection
    analyses: AnalysesSection
    forecast: ForecastSection = ForecastSection()
    schedule: ScheduleSection = ScheduleSection()
    retry: RetrySection = RetrySection()
    clock: ClockSection | None = None
    products: ProductsSection | None = None
    retention: RetentionSection = RetentionSection()
    hooks: HooksSection = HooksSection()
    verification: VerificationSection = VerificationSection()

    @property
    def place(self) -> Archive:
        return Archive(self.archive.root, self.archive.model)


MODELS: dict[str, type[Section]] = {
    "archive": ArchiveSection, "analyses": AnalysesSection, "forecast": ForecastSection, "schedule": ScheduleSection,
    "retry": RetrySection, "clock": ClockSection, "products": ProductsSection, "retention": RetentionSection,
    "hooks": HooksSection, "verification": VerificationSection,
}  # fmt: skip
REQUIRED = ("archive", "analyses")


def read_cycle(path: str | Path, overrides: Sequence[str] = ()) -> CycleRecipe:
    """The schedule of a TOML file, overridden by `a.b=value`. Raises InputError that lists every fault of every section."""
    raw = read_recipe(path, overrides, ("name", *MODELS))
    faults, found = [], {}
    for name, model in MODELS.items():
        if name in raw or name in REQUIRED:
            try:
                found[name] = section(raw, name, model)
            except InputError as error:
                faults.append(str(error))
    if "archive" in found:
        try:
            Archive(found["archive"].root, found["archive"].model)  # type: ignore[attr-defined]
        except InputError as error:
            faults.append(str(error))
    if faults:
        raise InputError("\n".join(faults))
    return CycleRecipe(name=raw["name"], **found)  # type: ignore[arg-type]
