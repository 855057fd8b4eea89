"""The report is whole, offline, honest about training periods, and prints the numbers of the states."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from verification.accumulate import Accumulator
from verification.plan import Event, Plan
from verification.readout import region_sums, scores_table, skill
from verification.report import write_report
from verification.report.tables import card_leads, interval, number
from verification.significance import intervals

CHANNELS = {"geopotential_500": ("m2 s-2", 5e4, 800.0), "2m_temperature": ("K", 285.0, 3.0)}


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
    grid: Grid, *, model: str, members: int = 10, inits: int = 6, leads: int = 3, error: float = 1.0, **attrs: object
) -> xr.Dataset:
    """The score state of such a world."""
    forecast, truth = world(grid, members=members, inits=inits, leads=leads, error=error)
    given = {
        "model": model, "truth": "simulated planet", "truth_period": "2006-01-01/2006-12-31", "seed": 1, "boundary": "none",
        "training_period": "2001-01-01T00/2005-12-31T12", "plumecast_version": "0.1.0", "checkpoint_sha256": "ab" * 32, **attrs,
    }  # fmt: skip
    units = {name: unit for name, (unit, _, _) in CHANNELS.items()}
    times, steps = truth["time"].values, truth["prediction_timedelta"].values
    land = np.tile(np.arange(grid.shape[1]) % 2, (grid.shape[0], 1))
    accumulator = Accumulator(Plan(tuple(CHANNELS), units, times, steps, members, grid, given, land=land))
    for time in times:
        for lead in steps:
            at = {"time": time, "prediction_timedelta": lead}
            fields = [np.stack([data[name].sel(at).values for name in CHANNELS], axis=-3) for data in (forecast, truth)]
            accumulator.add(time, lead, *fields)
    return accumulator.state()


PLANET = Grid.named("16x8")
EUROPE = Grid(np.arange(36.0, 60.0, 3.0), np.arange(-12.0, 15.0, 3.0))


def three(grid: Grid, leads: int = 3, **attrs: object) -> list[xr.Dataset]:
    return [
        state(grid, model="crps", leads=leads, error=0.6, **attrs),
        state(grid, model="persistence", leads=leads, members=1, error=1.5),
        state(grid, model="climatology (8 members)", leads=leads, members=8),
    ]


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


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the report asked for a network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("cartopy.io.Downloader.path", refuse)


@pytest.fixture
def without_score_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the time of a report; for tests that look at its words only."""
    monkeypatch.setattr("verification.report.page._score_maps", lambda state: {"note": "", "channels": []})


@pytest.fixture(scope="module")
def planet_report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[xr.Dataset]]:
    states = three(PLANET)
    case, truth = case_and_truth(PLANET)
    out = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(states, out, case=case, truth=truth, title="A <planet> & its scores", n_boot=40), states


def test_the_page_is_self_contained_and_has_no_script(planet_report: tuple[Path, list[xr.Dataset]]) -> None:
    text = planet_report[0].read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert not page.all("script")
    assert not page.all("link")
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    references = [
        value for _, attrs in page.tags for key, value in attrs.items() if key in ("href", "xlink:href", "src", "action")
    ]
    assert not [value for value in references if re.match(r"(https?:)?//", value)]
    assert not re.search(r"url\((?!#)|@import", text)
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert len(text) < 8_000_000


def test_every_picture_says_what_it_shows_and_every_reference_has_its_target(
    planet_report: tuple[Path, list[xr.Dataset]],
) -> None:
    page = Page(planet_report[0].read_text(encoding="utf-8"))
    assert all(len(image["alt"]) > 10 for image in page.all("img"))
    drawn = [attrs for attrs in page.all("svg") if attrs.get("aria-hidden") != "true"]
    assert drawn
    assert all(attrs["role"] == "img" and len(attrs["aria-label"]) > 20 for attrs in drawn)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    wanted = [value[1:] for _, attrs in page.tags for key, value in attrs.items() if key in ("href", "xlink:href")]
    wanted += [attrs["for"] for attrs in page.all("label")]
    wanted += re.findall(r"url\(#([^)]+)\)", planet_report[0].read_text(encoding="utf-8"))
    assert set(wanted) <= set(ids)


def test_curves_are_made_of_the_numbers_beside_the_page(planet_report: tuple[Path, list[xr.Dataset]]) -> None:
    out, states = planet_report
    stored = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    table = pd.DataFrame(stored["numbers"])
    csv = pd.read_csv(out.with_suffix(".csv"), keep_default_na=False, na_values={"value": "", "low": "", "high": ""})
    pd.testing.assert_frame_equal(table.astype({"low": float, "high": float, "value": float}), csv, check_dtype=False)
    rng = np.random.default_rng(3)
    factor = {"geopotential_500": 1 / 98.0665, "2m_temperature": 1.0}
    for _ in range(10):
        row = table[table["score"].isin(["crps", "rmse", "bias"]) & table["value"].notna()].sample(random_state=rng).iloc[0]
        source = next(one for one in states if one.attrs["model"] == row["model"])
        cell = {"channel": row["channel"], "prediction_timedelta": pd.Timedelta(hours=row["lead_hours"])}
        sums = region_sums(source, row["region"]).sel(cell).sum("time")
        weight = float(sums["weight"])
        expected = {
            "crps": float(sums["abs_error"] - sums["gini"] / 2) / weight,
            "rmse": (float(sums["squared_error"]) / weight) ** 0.5,
            "bias": float(sums["error"]) / weight,
        }[row["score"]]
        assert row["value"] == pytest.approx(expected * factor[row["channel"]], rel=1e-8)
        limits = intervals(source, region=row["region"], n_boot=40, seed=0).sel(cell)
        assert row["low"] == pytest.approx(float(limits[f"{row['score']}_lower"]) * factor[row["channel"]], rel=1e-8)


def test_the_scorecard_prints_the_skill_of_the_states(planet_report: tuple[Path, list[xr.Dataset]]) -> None:
    out, states = planet_report
    page = Page(out.read_text(encoding="utf-8"))
    titles = [attrs["title"] for attrs in page.all("td") if "title" in attrs]
    for reference in states[1:]:
        expected = skill(states[0], reference)["crpss"].sel(channel="geopotential_500")
        limits = intervals(states[0], reference, n_boot=40, seed=0).sel(channel="geopotential_500")
        for index in range(expected.size):
            low, high = float(limits["crpss_lower"][index]), float(limits["crpss_upper"][index])
            wanted = f"{number(float(expected[index]), True)}, 95 % interval {interval(low, high, True)}, n = 6"
            assert wanted in titles
    ratio = scores_table(states[0])["ssr"].sel(channel="2m_temperature").values
    assert f"{number(float(ratio[0]))}, 95 %" in " ".join(titles)


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    states = three(EUROPE, leads=1)[:2]
    first = write_report(states, tmp_path / "a" / "report.html", n_boot=10)
    second = write_report(states, tmp_path / "b" / "report.html", n_boot=10)
    for suffix in (".html", ".csv", ".json"):
        assert first.with_suffix(suffix).read_bytes() == second.with_suffix(suffix).read_bytes()


@pytest.mark.usefixtures("offline")
def test_a_regional_report_without_a_case_is_built_offline(tmp_path: Path) -> None:
    out = write_report(three(EUROPE, leads=1, boundary="perfect boundary (truth)"), tmp_path / "report.html", n_boot=10)
    text = out.read_text(encoding="utf-8")
    assert "perfect boundary (truth)" in text
    assert 'id="case"' not in text
    assert text.count('name="region"') == 3  # the domain, its land and its sea


@pytest.mark.usefixtures("without_score_maps")
def test_names_from_data_are_escaped(tmp_path: Path) -> None:
    hostile = '<script>alert("x")</script>'
    states = [
        state(EUROPE, leads=1, model=hostile, truth=hostile, source=f"'{hostile}"),
        state(EUROPE, leads=1, model='" onload="x', members=1),
    ]
    text = write_report(states, tmp_path / "report.html", title=hostile, n_boot=5).read_text(encoding="utf-8")
    page = Page(text)
    assert "<script" not in text
    assert not [attrs for _, attrs in page.tags if "onload" in attrs]
    assert hostile in "".join(page.words)


@pytest.mark.usefixtures("without_score_maps")
def test_initialisations_inside_training_or_validation_are_named_in_red(tmp_path: Path) -> None:
    states = three(EUROPE, leads=1)
    states[0]["in_training"][1, 0] = 2
    states[0]["in_training"][4, :] = 1
    text = write_report(states, tmp_path / "report.html", n_boot=5).read_text(encoding="utf-8")
    alarm = re.search(r'<div class="alarm".*?</div>', text, re.DOTALL)
    assert alarm is not None
    assert "1 of 6 initialisations or their valid times lie in its training period (2001-01-01T00/2005-12-31T12)" in alarm[0]
    assert "1 of 6 initialisations or their valid times lie in its validation period" in alarm[0]
    assert "2006-01-11 00 UTC, 2006-02-10 00 UTC" in alarm[0]
    assert text.count('<div class="alarm"') == 1


def test_a_clean_campaign_raises_no_alarm(planet_report: tuple[Path, list[xr.Dataset]]) -> None:
    assert '<div class="alarm"' not in planet_report[0].read_text(encoding="utf-8")


@pytest.mark.usefixtures("without_score_maps")
def test_a_single_member_and_a_case_without_truth_are_reported_as_far_as_they_go(tmp_path: Path) -> None:
    case, _ = case_and_truth(EUROPE, members=1)
    text = write_report(
        [state(EUROPE, leads=1, model="one", members=1)], tmp_path / "report.html", case=case, n_boot=5
    ).read_text("utf-8")
    assert "One member has no ranks to count." in text
    assert "<figcaption>truth</figcaption>" not in text
    assert "<figcaption>spread</figcaption>" not in text


def test_channels_and_regions_can_be_chosen_without_script(planet_report: tuple[Path, list[xr.Dataset]]) -> None:
    text = planet_report[0].read_text(encoding="utf-8")
    page = Page(text)
    regions = [attrs for attrs in page.all("input") if attrs["name"] == "region"]
    assert len(regions) == 6  # globe, three belts, land and sea
    assert sum("checked" in attrs for attrs in regions) == 1
    for attrs in page.all("input"):
        index = attrs["class"]
        assert f".switch > input.{index}:checked ~ .shown.{index}" in text
        assert f'<div class="shown {index}"' in text


def test_faulty_inputs_are_refused_plainly(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no score state"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(InputError, match="two states are named crps"):
        write_report([state(EUROPE, model="crps"), state(EUROPE, model="crps")], tmp_path / "report.html")
    with pytest.raises(InputError, match="not a score state"):
        write_report([state(EUROPE, model="crps").assign_attrs(kind="forecast")], tmp_path / "report.html")
    unstated = state(EUROPE, model="crps").assign_attrs(policy_ties="")
    with pytest.raises(InputError, match="does not say its policy_ties; scores without a stated policy are not shown"):
        write_report([unstated], tmp_path / "report.html")


def test_leads_of_tables_are_days_1_3_5_7_and_10_or_the_nearest() -> None:
    assert card_leads([12.0 * step for step in range(1, 21)]) == [24, 72, 120, 168, 240]
    assert card_leads([36.0, 60.0]) == [36, 60]
    assert card_leads([6.0]) == [6]


def test_numbers_are_printed_for_people() -> None:
    assert [number(value) for value in (123.4, 12.34, 1.234, 0.1234, -1.5, float("nan"))] == [
        "123",
        "12.3",
        "1.23",
        "0.123",
        "−1.50",
        "–",
    ]
    assert number(0.378, signed=True) == "+0.38"
    assert interval(0.351, 0.412, signed=True) == "0.35–0.41"
    assert interval(-0.1, 0.2, signed=True) == "−0.10 to +0.20"
    assert interval(float("nan"), 0.2) == ""


def test_events_stand_in_a_table_with_the_models_under_each_other() -> None:
    from verification.report import events

    forecast, truth = world(PLANET, members=5, inits=2, leads=3, error=0.6)
    states = []
    for model, members in (("crps", 5), ("single", 1)):
        units = {name: unit for name, (unit, _, _) in CHANNELS.items()}
        own = (Event(">", 286.0, channel="2m_temperature"),)
        times, steps = truth["time"].values, truth["prediction_timedelta"].values
        accumulator = Accumulator(Plan(tuple(CHANNELS), units, times, steps, members, PLANET, {"model": model}, events=own))
        for time in times:
            for lead in steps:
                at = {"time": time, "prediction_timedelta": lead}
                drawn, observed = (
                    np.stack([data[name].sel(at).values for name in CHANNELS], axis=-3) for data in (forecast, truth)
                )
                accumulator.add(time, lead, drawn[:members], observed)
        states.append(accumulator.state())
    section = events.section(states)
    assert section is not None
    warm = next(table for table in section["tables"] if table.caption == "2 m temperature: events")
    assert [row[:2] for row in warm.rows[:2]] == [
        ["2m_temperature > 286, 12 h", "crps"],
        ["2m_temperature > 286, 12 h", "single"],
    ]
    assert all("–" not in row[2] for row in warm.rows)
    assert next(table for table in section["tables"] if table.caption.startswith("Geopotential")).rows == []
    assert events.section([state(PLANET, model="none")]) is None


def test_a_case_kept_in_the_state_is_drawn_without_its_forecast() -> None:
    from verification.report import fields

    forecast, truth = world(PLANET, members=5, inits=2, leads=3, error=0.6)
    units = {name: unit for name, (unit, _, _) in CHANNELS.items()}
    times, steps = truth["time"].values, truth["prediction_timedelta"].values
    event = (Event(">", 286.0, channel="2m_temperature"),)
    plan = Plan(
        tuple(CHANNELS),
        units,
        times,
        steps,
        5,
        PLANET,
        {"model": "crps"},
        events=event,
        cases=(times[1],),
        points={"Oslo": (60, 11)},
    )
    accumulator = Accumulator(plan)
    for time in times:
        for lead in steps:
            at = {"time": time, "prediction_timedelta": lead}
            drawn, observed = (np.stack([data[name].sel(at).values for name in CHANNELS], axis=-3) for data in (forecast, truth))
            accumulator.add(time, lead, drawn, observed)
    section = fields.case_of_state(accumulator.state())
    assert section is not None
    assert "crps from 2006-01-11 00 UTC, day 2.5" in section["note"]
    captions = {channel["label"]: [figure.caption for figure in channel["figures"]] for channel in section["channels"]}
    assert captions["t2m"] == [
        "truth",
        "ensemble mean",
        "spread",
        "probability of 2m_temperature > 286",
        *[f"member {m}" for m in range(4)],
    ]
    assert "probability of 2m_temperature > 286" not in captions["z500"]
    assert all(len(channel["plumes"]) == 1 and "Oslo" in channel["plumes"][0] for channel in section["channels"])
    assert fields.case_of_state(state(PLANET, model="none")) is None


def test_regions_are_those_of_every_state_and_a_channel_without_a_case_is_reported(tmp_path: Path) -> None:
    from verification.report import numbers

    masked = state(PLANET, model="crps")
    units = {name: unit for name, (unit, _, _) in CHANNELS.items()}
    times, steps = masked["time"].values, masked["prediction_timedelta"].values
    empty = Accumulator(Plan(tuple(CHANNELS), units, times, steps, 10, PLANET, {"model": "empty"})).state()
    assert numbers.reported_regions([masked])[-2:] == ["land", "sea"]
    assert "land" not in numbers.reported_regions([masked, empty])
    assert write_report([masked, empty], tmp_path / "report.html", n_boot=5).exists()
