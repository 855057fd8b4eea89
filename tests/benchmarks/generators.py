"""The generators side by side: every score, figure and bar of docs/generators, and the tables of docs/results.md.

    python -m tests.benchmarks generators            # the tables again, from the score states in docs/generators
    python -m tests.benchmarks.generators WORK --planet FOLDER --model crps=CHECKPOINT --model vae=CHECKPOINT ...
        [--initial-states STORE --physics perfect=STORE --physics imperfect=STORE]
        [--europe FOLDER --europe-model crps=CHECKPOINT ...]

FOLDER holds analysis.zarr, and that of the planet climatology.zarr with the quantiles 0.95 and 0.99. What is made is kept in
WORK, one small file an initialisation: killed and started again, it goes on where it was, and a new checkpoint makes its own
anew. A checkpoint's post-hoc calibration, CHECKPOINT without its suffix and with `.calibration.nc`, is applied where it lies.
Parts: test (2007, truth as initial state), physics (the dates and analyses of docs/physics), long (60 days), cost, europe.
"""

from __future__ import annotations

import argparse
import sys
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from data_pipeline import open_analysis, open_forecast
from data_pipeline.schema import Channel, channels_of
from data_pipeline.store import open_store
from forecast import baselines
from forecast.initial_states import InitialStates, spread_evenly
from forecast.plan import ForecastPlan
from models.checkpoint import load
from models.precision import Precision
from tests.benchmarks import _generator_docs as docs
from tests.benchmarks._campaign import Campaign, Model, score_given, score_model
from tests.benchmarks._generator_figures import draw
from tests.benchmarks._generator_readme import readme
from tests.benchmarks._generator_tables import tables
from tests.benchmarks._long_runs import cached, climate, long_runs, rounding_power, summary, true_power
from tests.benchmarks._sampling_cost import cost

PARTS = ("test", "physics", "long", "cost", "europe")
PERIOD = ("2007-01-11", "2007-12-21T12")
EVENTS = ("> q0.95", "> q0.99")
SPECTRA = (1, 3, 5, 7, 10, 15)
EUROPE = ("2008-01-16T12", "2009-12-21T12")
LONG_DAYS, LONG_INITS, LONG_MEMBERS = 60, 8, 4


def main() -> None:
    given = arguments(sys.argv[1:])
    if given.work is not None:
        torch.set_num_threads(given.threads)
        make(given)
        draw(given.out)
    elif not (given.out / "models.json").exists():
        print(f"{given.out} holds no scores yet; make them with WORK --planet FOLDER --model NAME=CHECKPOINT (--help)")
        return
    text = tables(given.out)
    print(text)
    if given.work is not None:
        (given.out / "tables.md").write_text(text)
        if (given.out / "models.json").exists():
            (given.work / "readme.md").write_text(readme(given.out))


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.generators", description=__doc__.splitlines()[0])
    parser.add_argument("work", nargs="?", type=Path, help="folder that keeps what was made; without it, the tables again")
    parser.add_argument("--planet", type=Path, help="folder with analysis.zarr and climatology.zarr")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=CHECKPOINT[,CHECKPOINT]")
    parser.add_argument("--initial-states", type=Path, help="store of the analyses, for part physics")
    parser.add_argument("--physics", action="append", default=[], metavar="NAME=STORE", help="ensembles on those dates")
    parser.add_argument("--europe", type=Path, help="folder with analysis.zarr of the regional reanalysis")
    parser.add_argument("--europe-model", action="append", default=[], metavar="NAME=CHECKPOINT")
    parser.add_argument("--part", action="append", choices=PARTS, help="only these; default all whose inputs are given")
    parser.add_argument("--inits", type=int, default=36)
    parser.add_argument("--members", type=int, default=50)
    parser.add_argument("--every", type=int, default=3, help="days between initialisations over Europe")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the networks")
    parser.add_argument("--out", type=Path, default=docs.FOLDER)
    return parser.parse_args(words)


def make(given: argparse.Namespace) -> None:
    """Everything that was asked for, made where it is not there, and put into the folder of the documents."""
    out = given.out
    wanted = given.part or PARTS
    if given.planet is not None and given.model:
        models = [model(text, given.precision) for text in given.model]
        planet = Planet(given, models)
        if "test" in wanted:
            docs.keep_test(out, planet.test(), models)
        if "physics" in wanted and given.initial_states is not None:
            docs.keep_physics(out, planet.on_analyses())
        if "long" in wanted:
            docs.keep_long(out, planet.long())
        if "cost" in wanted:
            docs.keep_costs(out, cost(given.work, planet.analysis, planet.inits[0], models, given.members))
    if "europe" in wanted and given.europe is not None and given.europe_model:
        docs.keep_europe(out, europe(given, [model(text, given.precision) for text in given.europe_model]))


def model(text: str, precision: Precision) -> Model:
    """NAME=CHECKPOINT, or several with commas between, which share out the members."""
    name, _, paths = text.partition("=")
    files = [Path(path) for path in paths.split(",")]
    beside = files[0].with_suffix(".calibration.nc")
    return Model(
        name, tuple(load(file, precision=precision) for file in files), beside if beside.exists() and len(files) == 1 else None
    )


class Planet:
    """The simulated planet: what all of its campaigns share."""

    def __init__(self, given: argparse.Namespace, models: list[Model]) -> None:
        self.given, self.models = given, models
        self.analysis = open_analysis(given.planet / "analysis.zarr")
        spec = models[0].spec
        self.period = ends(spec.training_period)
        self.channels = [Channel.parse(label) for label in dict.fromkeys(c for each in models for c in each.spec.channels)]
        self.inits = spread_evenly(self.analysis, spec.frames, spec.step, PERIOD, given.inits, np.timedelta64(10, "D"))
        names = sorted({channel.name for channel in self.channels})
        self.truth = self.analysis[names].sel(time=slice("2007-01-01", None)).load()
        self.climatology = open_store(given.planet / "climatology.zarr")

    def campaign(self, name: str, inits: np.ndarray, days: float, members: int, **more: Any) -> Campaign:
        return Campaign(name, self.given.work, self.analysis, self.truth, inits, days, members, **more)

    def baselines(self, campaign: Campaign) -> dict[str, xr.Dataset]:
        """Climatology and persistence at the initialisations, leads and channels of a campaign."""
        spec = self.models[0].spec
        leads = spec.step * np.arange(1, int(np.timedelta64(24 * int(campaign.days), "h") / spec.step) + 1)
        chosen = [channel for channel in self.channels if not campaign.channels or channel.label in campaign.channels]
        plan = ForecastPlan(campaign.inits, leads.astype("timedelta64[ns]"), (1,), tuple(chosen), spec.grid, {})
        made = {
            "climatology": baselines.climatology(self.analysis, plan, self.period),
            "persistence": baselines.persistence(self.analysis, plan),
        }
        return {name: score_given(campaign, name, data, {"period": self.period}) for name, data in made.items()}

    def test(self) -> dict[str, xr.Dataset]:
        """{name: state} on the test year, the truth as initial state."""
        names = {Channel.parse(label).name for label in docs.CHANNELS} & {channel.name for channel in self.channels}
        wanted = [str(name) for name in self.climatology.data_vars if str(name).removesuffix("_quantile") in names]
        campaign = self.campaign(
            "test", self.inits, 15, self.given.members, climatology=self.climatology[wanted].sel(quantile=[0.95, 0.99]).load(),
            channels=docs.CHANNELS, events=EVENTS, days_of_spectra=SPECTRA, calibrated=True,
        )  # fmt: skip
        found = {f"{each.name}, {kind}": state for each in self.models for kind, state in score_model(campaign, each).items()}
        docs.keep_case(self.given, campaign, self.models)
        return found | self.baselines(campaign)

    def on_analyses(self) -> dict[str, xr.Dataset]:
        """{name: state} from the members around the analyses, beside the physics ensembles on the dates that all of them have."""
        states = open_forecast(self.given.initial_states)
        stores = dict(text.split("=", 1) for text in self.given.physics)
        physics = {name: open_forecast(path) for name, path in stores.items()}
        dates = reduce(np.intersect1d, [data["time"].values for data in physics.values()], states["time"].values)
        members = min(16, self.given.members)
        campaign = self.campaign("physics", dates, 15, members, initial=InitialStates(states), raw=False)
        found = {}
        for name, data in physics.items():
            found[name] = score_given(campaign, name, data, {"recipe": data.attrs.get("recipe_hash", stores[name])})
        for each in self.models:
            found |= {f"{each.name}, {kind}": state for kind, state in score_model(campaign, each).items()}
        return found | {"climatology": self.baselines(campaign)["climatology"]}

    def long(self) -> dict[str, xr.Dataset]:
        """{name: summary} of the long runs of each model."""
        spec, horizon = self.models[0].spec, np.timedelta64(LONG_DAYS, "D")
        last = np.datetime_as_string(self.truth["time"].values[-1] - horizon, "h")
        count, members = min(LONG_INITS, self.given.inits), min(LONG_MEMBERS, self.given.members)
        inits = spread_evenly(self.analysis, spec.frames, spec.step, (PERIOD[0], last), count, horizon)
        means = self.climatology[sorted({channel.name for channel in self.channels})].load()
        campaign = self.campaign("long", inits, LONG_DAYS, members, climatology=means)
        file = self.given.work / f"climate-{len(self.channels)}.nc"
        known = cached(file, lambda: climate(self.analysis, self.channels, self.period))
        noise, file = rounding_power(self.truth, self.channels), self.given.work / f"power-{len(self.channels)}-{count}.nc"
        made = cached(file, lambda: true_power(self.analysis, inits, LONG_DAYS, self.channels).to_dataset(name="power"))
        return {each.name: summary(long_runs(campaign, known, each), known, noise, made["power"]) for each in self.models}


def ends(period: str) -> tuple[str, str]:
    """First and last stamp of `first/last`."""
    first, _, last = period.partition("/")
    return first, last


def europe(given: argparse.Namespace, models: list[Model]) -> dict[str, xr.Dataset]:
    """{name: state} of the regional reanalysis to day 10, its boundary open."""
    analysis, spec = open_analysis(given.europe / "analysis.zarr"), models[0].spec
    times = analysis["time"].values
    inits = times[(times >= np.datetime64(EUROPE[0])) & (times <= np.datetime64(EUROPE[1]))][:: given.every]
    inits = inits[: given.inits] if given.inits < 36 else inits
    truth = analysis.drop_vars([name for name in analysis.data_vars if "time" not in analysis[name].dims]).load()
    campaign = Campaign("europe", given.work, analysis, truth, inits, 10, given.members, calibrated=True)
    found = {f"{each.name}, {kind}": state for each in models for kind, state in score_model(campaign, each).items()}
    leads = (spec.step * np.arange(1, 11)).astype("timedelta64[ns]")
    plan = ForecastPlan(inits, leads, (1,), tuple(channels_of(truth)), spec.grid, {})
    training, validation = ends(spec.training_period), ends(spec.validation_period)
    made = {
        "climatology": lambda: baselines.climatology(analysis, plan, training),
        "persistence": lambda: baselines.persistence(analysis, plan),
        "linear": lambda: baselines.linear(analysis, plan, training, validation, members=given.members),
    }
    return found | {name: score_given(campaign, name, make(), {"training": training}) for name, make in made.items()}


if __name__ == "__main__":
    main()
