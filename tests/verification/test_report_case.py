"""One forecast in the report: its maps and plumes are those of its members, from a state as from its store."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import xarray as xr
from typer.testing import CliRunner

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.store import write_dataset
from tests.verification.ensemble_states import COLD, EUROPE, GLOBE, LEADS, TIMES, WARM, W, three_ensembles, world
from verification import commands
from verification.plan import default_points
from verification.report import case, choice, diagrams
from verification.report.tables import Table, number


@pytest.fixture(scope="module")
def states() -> list[xr.Dataset]:
    return three_ensembles()


def store_of_case() -> tuple[xr.Dataset, xr.Dataset]:
    """The case of the state as a forecast store and an analysis in the schema."""
    drawn, truth = world(8, 0.4)
    dims, coords = ("time", "prediction_timedelta", "number", "latitude", "longitude"), GLOBE.coords()
    forecast = xr.Dataset(
        {"2m_temperature": (dims, drawn[2:3, :, :, 1], {"units": "K"})},
        {"time": TIMES[2:3], "prediction_timedelta": LEADS, "number": np.arange(8), **coords},
    )
    analysis = xr.Dataset(
        {"2m_temperature": (("time", *dims[3:]), truth[2, :, 1], {"units": "K"})}, {"time": TIMES[2] + LEADS, **coords}
    )
    return forecast, analysis


@pytest.mark.usefixtures("undrawn")
def test_a_case_is_the_same_from_a_state_and_from_its_store(states: list[xr.Dataset]) -> None:
    kept = case.case_of_state(states[0])
    points = {"Oslo": (60.0, 11.0), "here": (-10.0, 200.0)}
    shown = case.case_section(*store_of_case(), model="eight", events=[WARM.label, COLD.label], points=points)
    assert kept is not None
    assert kept["note"] == shown["note"]
    assert kept["note"].startswith("eight from 2006-01-11 00 UTC, day 5, valid 2006-01-16 00 UTC, 8 members.")
    from_state = next(channel for channel in kept["channels"] if channel["label"] == "t2m")
    from_store = shown["channels"][0]
    assert [figure.caption for figure in from_state["figures"]] == [
        "truth", "ensemble mean", "spread", "probability > 12.85 °C", "probability <= 9.35 °C",
        *[f"member {m}" for m in range(4)],
    ]  # fmt: skip
    z500 = next(channel for channel in kept["channels"] if channel["label"] == "z500")
    assert not [figure for figure in z500["figures"] if "probability" in figure.caption]  # of events of another variable
    assert from_state["table"] == from_store["table"]
    assert from_state["plume_tables"] == from_store["plume_tables"]
    assert from_state["plumes"] == from_store["plumes"]


@pytest.mark.usefixtures("undrawn")
def test_maps_and_plumes_of_a_case_hold_its_members(states: list[xr.Dataset]) -> None:
    drawn, truth = (values.astype(float) for values in world(8, 0.4))
    kept = case.case_of_state(states[0])
    assert kept is not None
    channel = next(channel for channel in kept["channels"] if channel["label"] == "t2m")
    means = {row[0]: row[1] for row in channel["table"].rows}
    chance = (drawn[2, 2, :, 1] > 286).mean(axis=0)
    spread = drawn[2, 2, :, 1].std(axis=0, ddof=1)
    assert means["truth"] == f"{(W * truth[2, 2, 1]).mean() - 273.15:.1f}"
    assert means["spread"] == f"{(W * spread).mean():.2f}"
    assert means["probability > 12.85 °C"] == f"{(W * chance).mean():.3f}"
    row, column = int(np.argmin(abs(GLOBE.latitude - 60))), int(np.argmin(abs(GLOBE.longitude - 11)))
    at = drawn[2, :, :, 1, row, column] - 273.15
    table = next(table for table in channel["plume_tables"] if "Oslo" in table.caption)
    assert isinstance(table, Table)
    for k in range(3):
        values = [truth[2, k, 1, row, column] - 273.15, *np.quantile(at[k], [0, 0.1, 0.5, 0.9, 1])]
        np.testing.assert_allclose([float(cell.replace("−", "-")) for cell in table.rows[k][1:]], values, atol=0.051)


@pytest.mark.usefixtures("undrawn")
def test_events_of_a_case_may_be_quantiles_of_the_climate() -> None:
    forecast, analysis = store_of_case()
    rng = np.random.default_rng(1)
    limit = 286 + rng.normal(size=GLOBE.shape)
    quantile = np.broadcast_to(limit, (1, 366, 1, *GLOBE.shape))
    dims = ("hour", "dayofyear", "quantile", "latitude", "longitude")
    climate = xr.Dataset(
        {"2m_temperature_quantile": (dims, quantile)},
        {"hour": [0], "dayofyear": np.arange(1, 367), "quantile": [0.9], **GLOBE.coords()},
    )
    shown = case.case_section(forecast, analysis, model="eight", events=["> q0.9"], climatology=climate)
    rows = {row[0]: row[1] for row in shown["channels"][0]["table"].rows}
    drawn, _ = world(8, 0.4)
    chance = (drawn[2, 2, :, 1].astype(float) > limit).mean(axis=0)
    assert rows["probability above the 90 % quantile of the climate"] == f"{(W * chance).mean():.3f}"
    with pytest.raises(InputError, match="no climatology: give one"):
        case.case_section(forecast, analysis, model="eight", events=["> q0.9"])


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("event", "share"), [("> 0.1", 0.25), (">= 0.1", 0.5), ("< 0.1", 0.5), ("<= 0.1", 0.75), ("<= 0", 0.25)])
def test_events_of_a_case_keep_their_operator_and_the_precision_of_the_fields(event: str, share: float) -> None:
    """Members 0, 0.05, 0.1 and 0.2: in float32 0.1 ties with 0.1, though as float64 it is more."""
    forecast, _ = store_of_case()
    rain = np.array([0.0, 0.05, 0.1, 0.2], np.float32)[:, None, None] * np.ones(GLOBE.shape, np.float32)
    wet = forecast.isel(number=slice(4)).assign(
        total_precipitation_24hr=(forecast["2m_temperature"].dims, np.tile(rain, (1, 3, 1, 1, 1)), {"units": "m"})
    )
    label = f"total_precipitation_24hr {event}"
    shown = case.case_section(wet[["total_precipitation_24hr"]], None, model="rain", events=[label])
    rows = [row for row in shown["channels"][0]["table"].rows if row[0].startswith("probability")]
    assert [row[1] for row in rows] == [number(share)]


@pytest.mark.usefixtures("undrawn")
def test_a_case_beside_another_grid_or_without_the_asked_quantile_is_refused() -> None:
    forecast, analysis = store_of_case()
    dims = ("hour", "dayofyear", "quantile", "latitude", "longitude")
    climate = xr.Dataset(
        {"2m_temperature_quantile": (dims, np.full((1, 366, 3, *GLOBE.shape), 286.0))},
        {"hour": [0], "dayofyear": np.arange(1, 367), "quantile": [0.9, 0.95, 0.99], **GLOBE.coords()},
    )
    with pytest.raises(InputError, match=r"has no quantile 0.97; it has 0.9, 0.95, 0.99"):
        case.case_section(forecast, analysis, model="eight", events=["> q0.97"], climatology=climate)
    moved = {"longitude": GLOBE.longitude + 1.0}
    with pytest.raises(InputError, match=r"the case is on .*, truth on .* and the climatology on "):
        case.case_section(forecast, analysis.assign_coords(moved), model="eight", climatology=climate.assign_coords(moved))


@pytest.mark.usefixtures("undrawn")
def test_a_case_of_many_channels_shows_as_many_as_that_of_a_state() -> None:
    forecast, _ = store_of_case()
    field = forecast["2m_temperature"].isel(number=slice(2))
    levels = [50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 1000]
    many = xr.Dataset({"temperature": xr.concat([field] * 12, "level").assign_coords(level=levels), "2m_temperature": field})
    many = many.transpose("time", "prediction_timedelta", "number", "level", "latitude", "longitude")
    shown = [channel["label"] for channel in case.case_section(many, None, model="many")["channels"]]
    assert len(shown) == choice.MAPPED
    assert {"t850", "t2m"} <= set(shown)


def test_the_command_passes_on_what_the_case_shall_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("verification.report.write_report", lambda states, out, **rest: asked.update(rest) or out)
    monkeypatch.setattr("verification.state.open_state", lambda path: xr.Dataset())
    forecast, _ = store_of_case()
    write_dataset(tmp_path / "eight.zarr", forecast, {"model": "eight"})
    app = typer.Typer()
    commands.register(app)
    arguments = ["report", "eight.scores.zarr", "--event", WARM.label, "--point", "Oslo=59.9,10.8"]
    stray = ["report", "eight.scores.zarr", "--truth", "a.zarr", "--init", "2006-01-11", "--climatology", "c.zarr"]
    ignored = CliRunner().invoke(app, stray)
    assert "--truth, --init, --climatology: only for the maps and plumes of a case" in str(ignored.exception)
    refused = CliRunner().invoke(app, arguments)
    assert "give its forecast store (--forecast)" in str(refused.exception)
    done = CliRunner().invoke(app, [*arguments, "--forecast", str(tmp_path / "eight.zarr")])
    assert done.exit_code == 0, done.output
    assert asked["case_choice"] == {"events": [WARM.label], "climatology": None, "points": {"Oslo": (59.9, 10.8)}}


def test_points_of_plumes_are_cities_of_three_belts_or_the_middle_of_a_region() -> None:
    assert list(default_points(GLOBE)) == ["London", "Singapore", "Buenos Aires"]
    assert list(default_points(EUROPE)) == ["London"]
    alps = Grid(np.arange(44.0, 49.1, 0.5), np.arange(5.0, 12.1, 0.5))
    assert default_points(alps) == {"46.5°N 8.5°E": (46.5, 8.5)}


def test_a_plume_of_one_lead_or_without_truth_is_still_a_picture() -> None:
    members = np.random.default_rng(0).normal(size=(2, 30))
    days = np.array([1.0, 2.0])
    for count, truth in ((2, np.array([np.nan, np.nan])), (1, np.array([0.3]))):
        svg = diagrams.plume(days[:count], members[:count], truth, title="here", alt="a plume")
        assert "nan" not in svg
        assert 'd="M"' not in svg
        thin = re.search(r'd-member" d="([^"]*)"', svg)
        assert thin is not None
        assert thin[1].count("M") == diagrams.MOST_LINES
