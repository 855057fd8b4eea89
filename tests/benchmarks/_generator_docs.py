"""What docs/generators holds: condensed score states, curves, spectra, ranks, long runs, costs; written and read here."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline.schema import Channel, stack
from tests.benchmarks._campaign import DAY, KINDS, Campaign, Model, forecast, parts_of, read, write
from tests.benchmarks._scores import numbers, shape_of_spectra
from verification.onepass import SUMS
from verification.readout import binned_ranks, scores_table
from verification.significance import compare
from verification.state import open_state

FOLDER = Path("docs/generators")
DAYS = (1, 3, 5, 7, 10, 15)
CHANNELS = (
    "geopotential_500", "mean_sea_level_pressure", "temperature_850", "2m_temperature", "u_component_of_wind_850",
    "total_precipitation_12hr",
)  # fmt: skip
CASE_DAYS, CASE_MEMBERS = (5, 10), 2
CASE_CHANNELS = ("geopotential_500", "total_precipitation_12hr")
BINS = 17
COUNTED = ("weight", "dropped", "dropped_marks", "tail_weight")  # kept as they are: pairs are recognised by them


def keep_test(out: Path, states: Mapping[str, xr.Dataset], models: Sequence[Model]) -> None:
    """States of the test year at the days of the tables; curves of all leads, spectra and ranks beside them."""
    for old in out.glob("test-*.scores.nc"):
        old.unlink()
    climatology = states["climatology"]
    for name, state in states.items():
        keep_state(out, "test", name, state)
    shown = {name: of_channels(state, CHANNELS) for name, state in states.items()}
    curves = {name: numbers(state, of_channels(climatology, CHANNELS)) for name, state in shown.items()}
    write(joined(curves), out / "curves.nc")
    ranks = {name: ranks_of(state) for name, state in shown.items() if has_bins(state)}
    (out / "ranks.nc").unlink(missing_ok=True)
    if ranks:
        write(joined(ranks), out / "ranks.nc")
    write(joined({name: shape_of_spectra(state) for name, state in shown.items()}), out / "spectra.nc")
    about = {
        each.name: {
            "family": each.spec.family, "noise_scale": each.tuned, "training_period": each.spec.training_period,
            "checkpoint_sha256": [generator.sha256[:16] for generator in each.generators],
            "precision": str(each.generators[0].compute_dtype).removeprefix("torch."),
        }
        for each in models
    }  # fmt: skip
    (out / "models.json").write_text(json.dumps(about, indent=1) + "\n")


def keep_physics(out: Path, states: Mapping[str, xr.Dataset]) -> None:
    """States from the analyses, knobs tuned; the share of all variable x lead cells ahead of the imperfect physics ensemble."""
    for old in out.glob("physics-*.scores.nc"):
        old.unlink()
    ahead: dict[str, dict[str, Any]] = {}
    rival = states.get("imperfect")
    climatology = of_channels(states["climatology"], CHANNELS)
    curves = {name: numbers(of_channels(state, CHANNELS), climatology) for name, state in states.items()}
    write(joined(curves), out / "physics_curves.nc")
    for name, state in states.items():
        if not name.endswith(", raw"):
            keep_state(out, "physics", name, state)
        if rival is not None and name not in ("imperfect", "climatology"):
            ahead[name] = share_ahead(state, rival)
    (out / "ahead.json").write_text(json.dumps(ahead, indent=1) + "\n")


def share_ahead(state: xr.Dataset, rival: xr.Dataset) -> dict[str, Any]:
    """How many of the common (channel, lead) cells have the lower fair CRPS, and how many significantly (false discovery 0.1)."""
    found = compare(state, rival)
    better = (found["difference"] < 0).values
    worse = [f"{channel} +{int(lead / DAY * 24)} h" for channel, lead in cells(found, ~better)]
    significant = int((better & found["significant"].values).sum())
    return {"cells": int(better.size), "ahead": int(better.sum()), "significantly": significant, "not": worse[:20]}


def cells(found: xr.Dataset, chosen: np.ndarray) -> list[tuple[str, np.timedelta64]]:
    rows, columns = np.nonzero(chosen)
    channels, leads = found["channel"].values, found["prediction_timedelta"].values
    return [(str(channels[r]), leads[c]) for r, c in zip(rows, columns, strict=True)]


def keep_long(out: Path, summaries: Mapping[str, xr.Dataset]) -> None:
    write(joined(summaries), out / "long.nc")


def keep_costs(out: Path, costs: Mapping[str, Mapping[str, float]]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "costs.json").write_text(json.dumps(costs, indent=1) + "\n")


def keep_europe(out: Path, states: Mapping[str, xr.Dataset]) -> None:
    """Scores of the regional reanalysis at every day; its states would be larger than all the rest."""
    found = {name: numbers(state, states["climatology"]) for name, state in states.items()}
    times = states["climatology"]["time"].values
    table = joined(found).assign_attrs(first=f"{pd.Timestamp(times[0]):%Y-%m-%d}", last=f"{pd.Timestamp(times[-1]):%Y-%m-%d}")
    write(table.assign_attrs(every=int((times[1] - times[0]) / DAY)), out / "europe.nc")


def keep_case(given: argparse.Namespace, campaign: Campaign, models: Sequence[Model]) -> None:
    """Truth and two members of each model on one date, in the middle of the first winter."""
    init = campaign.inits[min(1, campaign.inits.size - 1)]
    leads = np.array(CASE_DAYS) * DAY
    channels = [Channel.parse(label) for label in CASE_CHANNELS]
    truth = stack(campaign.truth.sel(time=init + leads), channels).rename(time="prediction_timedelta")
    found = {"truth": truth.assign_coords(prediction_timedelta=leads)}
    small = Campaign(
        "case", campaign.folder, campaign.analysis, campaign.truth, campaign.inits, max(CASE_DAYS), CASE_MEMBERS
    )  # fmt: skip
    for each in models:
        file = parts_of(campaign.folder / "case", each.name, each.identity, np.array([init]))[0]
        if not file.exists():
            made = forecast(small, each, init, None)[0].isel(time=0).sel(prediction_timedelta=leads)
            write(stack(made.drop_vars(["time", "valid_time"]), channels).to_dataset(name="fields"), file)
        fields = read(file)["fields"]
        found |= {f"{each.name}, member {number}": fields.sel(number=number, drop=True) for number in fields["number"].values}
    fields = xr.concat(
        [one.drop_vars(["time", "number"], errors="ignore") for one in found.values()], pd.Index(list(found), name="panel")
    )
    land = campaign.analysis["land_sea_mask"].load()
    case = xr.Dataset({"fields": fields.astype("f4"), "land_sea_mask": land}, attrs={"init": np.datetime_as_string(init, "h")})
    write(case, given.out / "case.nc")


def keep_state(out: Path, campaign: str, name: str, state: xr.Dataset) -> None:
    """A state at the days of the tables, sums as float32: scores to seven digits."""
    leads = [day * DAY for day in DAYS if day * DAY in state["prediction_timedelta"].values]
    kept = of_channels(state, CHANNELS).sel(prediction_timedelta=leads)
    tails = [str(name) for name in kept.data_vars if str(name).startswith("tail_")] if campaign == "test" else []
    kept = kept[[*SUMS, *tails, "in_training"]]
    kept = kept.map(lambda array: array if array.name in COUNTED or array.dtype.kind == "i" else array.astype("f4"))
    kept.attrs = {key: value for key, value in state.attrs.items() if key != "pairs"}
    idle = [dim for dim in ("rank", "zone", "event") if dim not in kept.dims]
    write(kept.drop_vars(idle, errors="ignore"), out / file_of(campaign, name))


def file_of(campaign: str, name: str) -> str:
    return f"{campaign}-{name.replace(', ', '-').replace(' ', '_')}.scores.nc"


def kept_states(out: Path, campaign: str) -> dict[str, xr.Dataset]:
    """{name: state}, models first, baselines and physics last."""
    states = [open_state(file) for file in sorted(out.glob(f"{campaign}-*.scores.nc"))]
    named = {str(state.attrs["model"]): state.map(lambda array: array.astype("f8"), keep_attrs=True) for state in states}
    last = [name for name in ("climatology", "persistence", "imperfect", "perfect") if name in named]
    return {name: named[name] for name in [*(name for name in ordered(named) if name not in last), *last]}


def ordered(names: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Models by name, each raw, tuned, calibrated."""
    place = {kind: number for number, kind in enumerate(KINDS)}
    return sorted(names, key=lambda name: (name.rpartition(", ")[0], place.get(name.rpartition(", ")[2], len(KINDS))))


def of_channels(state: xr.Dataset, channels: Sequence[str]) -> xr.Dataset:
    """Those of the channels that a state has, in this order."""
    return state.sel(channel=[channel for channel in channels if channel in state["channel"].values])


def has_bins(state: xr.Dataset) -> bool:
    return (int(state.attrs["members"]) + 1) % BINS == 0


def ranks_of(state: xr.Dataset) -> xr.Dataset:
    """The rank histogram in `BINS` bins, mean of the days 1 to 10."""
    shares = scores_table(state)["rank_histogram"]
    days = [day * DAY for day in range(1, 11) if day * DAY in shares["prediction_timedelta"].values]
    return binned_ranks(shares.sel(prediction_timedelta=days).mean("prediction_timedelta"), BINS).to_dataset(name="ranks")


def joined(parts: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """One dataset with a dim `model` first; what a model lacks is missing."""
    return xr.concat(
        [part.drop_attrs() for part in parts.values()], pd.Index(list(parts), name="model"), join="outer", data_vars="all"
    )
