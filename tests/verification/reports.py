"""Forecasts and score states of small worlds, and what the tests of the report read of a page and of the files beside it."""

from __future__ import annotations

import base64
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline.grid import Grid
from verification.accumulate import Accumulator
from verification.onepass import ANOMALIES
from verification.plan import Event, Plan

SECTIONS = (  # of a page of states that keep everything, in their order
    "scorecard", "leads", "ranks", "reliability", "decisions", "events", "spectra", "maps", "case", "notes", "provenance",
)  # fmt: skip
CHANNELS = {"geopotential_500": ("m2 s-2", 5e4, 800.0), "2m_temperature": ("K", 285.0, 3.0)}

PLANET = Grid.named("16x8")

EUROPE = Grid(np.arange(36.0, 60.0, 3.0), np.arange(-12.0, 15.0, 3.0))


def world(grid: Grid, *, members: int, inits: int, leads: int, error: float, seed: int = 0) -> tuple[xr.Dataset, xr.Dataset]:
    """A forecast (one value a lead, error growing with it) and its truth: Gaussian, calibrated, in the schema."""
    rng = np.random.default_rng([seed, members, round(100 * error)])
    shared = np.random.default_rng(seed)
    time = pd.date_range("2006-01-01", periods=inits, freq="10D")
    lead = pd.timedelta_range("12h", periods=leads, freq="24h")
    growth = np.sqrt(np.arange(1, leads + 1) / leads)[:, None, None]
    smooth = np.cos(np.deg2rad(grid.latitude))[:, None] * np.ones(grid.shape[1])
    forecast, truth = {}, {}
    for name, (units, mean, size) in CHANNELS.items():
        centre = mean * (1 - 0.05 * (1 - smooth)) + shared.normal(0, size, (inits, leads, *grid.shape))
        scale = size * error * growth
        observed = centre + scale * rng.normal(size=centre.shape)
        drawn = centre[:, :, None] + scale[:, None] * rng.normal(size=(inits, leads, members, *grid.shape))
        forecast[name] = (("time", "prediction_timedelta", "number", "latitude", "longitude"), drawn, {"units": units})
        truth[name] = (("time", "prediction_timedelta", "latitude", "longitude"), observed, {"units": units})
    coords = {"time": time, "prediction_timedelta": lead, **grid.coords()}
    return xr.Dataset(forecast, {**coords, "number": np.arange(members)}), xr.Dataset(truth, coords)


def state(
    grid: Grid,
    *,
    model: str,
    members: int = 10,
    inits: int = 6,
    leads: int = 3,
    error: float = 1.0,
    masked: bool = True,
    events: tuple[Event, ...] = (),
    **attrs: object,
) -> xr.Dataset:
    """The score state of such a world. masked: every other column is land; without, there are fewer regions to read."""
    forecast, truth = world(grid, members=members, inits=inits, leads=leads, error=error)
    given = {
        "model": model, "truth": "simulated planet", "truth_period": "2006-01-01/2006-12-31", "seed": 1, "boundary": "none",
        "training_period": "2001-01-01T00/2005-12-31T12", "plumecast_version": "0.1.0", "checkpoint_sha256": "ab" * 32, **attrs,
    }  # fmt: skip
    units = {name: unit for name, (unit, _, _) in CHANNELS.items()}
    times, steps = truth["time"].values, truth["prediction_timedelta"].values
    land = np.tile(np.arange(grid.shape[1]) % 2, (grid.shape[0], 1)) if masked else None
    accumulator = Accumulator(Plan(tuple(CHANNELS), units, times, steps, members, grid, given, land=land, events=events))
    for time in times:
        for lead in steps:
            at = {"time": time, "prediction_timedelta": lead}
            fields = [np.stack([data[name].sel(at).values for name in CHANNELS], axis=-3) for data in (forecast, truth)]
            accumulator.add(time, lead, *fields)
    return accumulator.state()


def three(grid: Grid, leads: int = 3, events: tuple[Event, ...] = ()) -> list[xr.Dataset]:
    return [
        state(grid, model="crps", leads=leads, error=0.6, events=events),
        state(grid, model="persistence", leads=leads, members=1, error=1.5, events=events),
        state(grid, model="climatology (8 members)", leads=leads, members=8, events=events),
    ]


def with_anomalies(state: xr.Dataset, correlation: float, seed: int) -> xr.Dataset:
    """The state as if scored beside a climatology: sums of products of anomalies, about so correlated."""
    rng = np.random.default_rng(seed)
    power = {name: state["weight"] * rng.uniform(0.8, 1.2, state["weight"].shape) for name in ANOMALIES[1:]}
    product = correlation * (power[ANOMALIES[1]] + power[ANOMALIES[2]]) / 2 * rng.uniform(0.9, 1.1, state["weight"].shape)
    return state.assign({ANOMALIES[0]: product, **power})


def case_and_truth(grid: Grid, members: int = 5) -> tuple[xr.Dataset, xr.Dataset]:
    forecast, truth = world(grid, members=members, inits=1, leads=6, error=0.6)
    valid = (truth["time"].values[0] + truth["prediction_timedelta"]).values
    truth = truth.isel(time=0, drop=True).rename(prediction_timedelta="time").assign_coords(time=valid)
    dims = ("time", "prediction_timedelta", "number", "level", "latitude", "longitude")
    with_level = [data.expand_dims(level=[500])["geopotential_500"].rename("geopotential") for data in (forecast, truth)]
    forecast, truth = forecast[["2m_temperature"]].merge(with_level[0]), truth[["2m_temperature"]].merge(with_level[1])
    order = [dim for dim in dims if dim in truth.dims]
    return forecast.transpose(*dims, missing_dims="ignore"), truth.transpose(*order, missing_dims="ignore")


class Page(HTMLParser):
    """Collects tags, attributes and text; fails on tags that do not nest."""

    VOID = frozenset({"meta", "img", "input", "br", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.tags if name == tag]


def unpacked(text: str) -> str:
    """The page with its packed parts where the script would put them."""
    return re.sub(r'<div data-packed="([^"]*)">.*?</div>', lambda found: opened(found[1]), text)


def opened(packed: str) -> str:
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def views_of(text: str) -> dict[str, object]:
    """What the script draws the curves from."""
    found = re.search(r'id="numbers">([^<]*)<', text)
    assert found is not None
    return opened(found[1])  # type: ignore[return-value]


def printed(out: Path) -> pd.DataFrame:
    table = pd.read_csv(out.with_suffix(".csv"), keep_default_na=False, na_values=[""])
    return table.fillna({"reference": "", "units": ""})


FACTOR = {"geopotential_500": 1 / 98.0665, "2m_temperature": 1.0}

INSIDE = {  # of the cells, told by their names
    "global": lambda cell: True,
    "tropics": lambda cell: cell.startswith("20S-20N"),
    "northern extratropics": lambda cell: cell.startswith(("20N", "35N", "60N")),
    "southern extratropics": lambda cell: cell.split("-")[0].endswith("S") and not cell.startswith("20S"),
    "land": lambda cell: cell.endswith("land"),
    "sea": lambda cell: cell.endswith("sea"),
}


def by_hand(state: xr.Dataset, score: str, *, channel: str, lead_hours: float, region: str) -> float:
    """A score from the sums of a state, one number after the other; display units."""
    k = [str(label) for label in state["channel"].values].index(channel)
    j = (state["prediction_timedelta"].values / np.timedelta64(1, "h")).tolist().index(lead_hours)
    total = {}
    for name, array in state.data_vars.items():
        if array.dims == ("channel", "time", "prediction_timedelta", "cell"):
            rows = array.values[k, :, j]
            inside = [c for c, cell in enumerate(state["cell"].values) if INSIDE[region](str(cell))]
            total[str(name)] = sum(float(rows[i, c]) for i in range(state.sizes["time"]) for c in inside)
    M, weight = int(state.attrs["members"]), total["weight"]
    found = {
        "crps": (total["abs_error"] - total["gini"] / 2) / weight,
        "crps_ecdf": (total["abs_error"] - total["gini"] / 2 * (1 - 1 / M)) / weight,
        "rmse": (total["squared_error"] / weight) ** 0.5,
        "spread": (total["variance"] / weight) ** 0.5,
        "ssr": ((M + 1) / M * total["variance"] / total["squared_error"]) ** 0.5,
        "bias": total["error"] / weight,
    }
    if score == "acc":
        return total["anomaly_product"] / (total["forecast_anomaly"] * total["truth_anomaly"]) ** 0.5
    return found[score] * (1.0 if score == "ssr" else FACTOR[channel])
