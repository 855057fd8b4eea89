"""The numbers of the report are those of the states: in its files, in its tables and in what its script draws."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from data_pipeline.errors import InputError
from tests.verification.reports import CHANNELS, EUROPE, FACTOR, by_hand, printed, state, views_of, world
from verification.accumulate import Accumulator
from verification.plan import Plan
from verification.report import curves, details, numbers, tables
from verification.report.tables import Table, card_leads, interval, lead_name, number
from verification.significance import intervals


def test_ten_random_cells_of_the_files_are_those_of_the_states(planet_report: tuple[Path, list[xr.Dataset]]) -> None:
    out, states = planet_report
    stored = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    table, csv = pd.DataFrame(stored["numbers"]), printed(out)
    assert list(table) == list(csv) == numbers.COLUMNS
    floats = ["value", "low", "high", "of_reference", "relative", "p_value", "n_eff"]
    pd.testing.assert_frame_equal(
        table[["model", "score", "n", *floats]].astype(dict.fromkeys(floats, float)),
        csv[["model", "score", "n", *floats]],
        check_dtype=False,
    )
    known = csv[csv["value"].notna() & (csv["reference"] == "")]
    assert set(known["score"]) == {"crps", "crps_ecdf", "rmse", "spread", "ssr", "bias", "acc"}
    assert set(known["season"]) == {"all year"}  # six initialisations make no season
    named = {str(each.attrs["model"]): each for each in states}
    for row in known.sample(10, random_state=3).itertuples():
        at = {"channel": row.channel, "lead_hours": row.lead_hours, "region": row.region}
        assert row.value == pytest.approx(by_hand(named[row.model], row.score, **at), rel=1e-7)
        assert row.n == 6
        if row.score != "spread":
            limits = intervals(named[row.model], region=row.region, n_boot=40, seed=0)
            cell = limits.sel(channel=row.channel, prediction_timedelta=pd.Timedelta(hours=row.lead_hours))
            factor = 1.0 if row.score in ("ssr", "acc") else FACTOR[row.channel]
            assert row.low == pytest.approx(factor * float(cell[f"{row.score}_lower"]), rel=1e-7)


def test_ten_random_cells_of_the_tables_in_the_page_are_those_of_the_states(
    planet_report: tuple[Path, list[xr.Dataset]],
) -> None:
    out, states = planet_report
    text = out.read_text(encoding="utf-8")
    section = text[text.index('<section id="leads"') : text.index("</section>", text.index('<section id="leads"'))]
    names = {
        "fair CRPS": "crps",
        "RMSE of the mean": "rmse",
        "spread": "spread",
        "spread/skill ratio": "ssr",
        "anomaly correlation": "acc",
    }
    channels = {"Geopotential at 500 hPa": "geopotential_500", "2 m temperature": "2m_temperature"}
    named = {str(each.attrs["model"]): each for each in states}
    cells = []
    for caption, body in re.findall(r"<caption>(.*?)</caption>(.*?)</table>", section, re.DOTALL):
        heads = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', body)
        for row in re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', body, re.DOTALL):
            values = re.findall(r"<td>(.*?)</td>", row[1])
            cells += [(caption.split(", ")[0], row[0], head, value) for head, value in zip(heads[1:], values, strict=True)]
    known = [cell for cell in cells if cell[2].split(": ")[-1] in names and cell[3] != "–"]
    assert {cell[0] for cell in known} == set(channels)
    for index in np.random.default_rng(7).choice(len(known), 10, replace=False):
        name, lead, head, shown = known[index]
        hours = next(hours for hours in (12.0, 36.0, 60.0) if lead_name(hours) == lead)
        model, score = head.split(": ")
        found = by_hand(named[model], names[score], channel=channels[name], lead_hours=hours, region="global")
        assert shown.split(" [")[0] == number(found), (name, lead, head)


def test_the_script_draws_the_numbers_of_the_files(planet_report: tuple[Path, list[xr.Dataset]]) -> None:
    out, _ = planet_report
    views, csv = views_of(out.read_text(encoding="utf-8")), printed(out)
    channels = list(dict.fromkeys(csv["channel"]))
    heads = [series["head"] for series in views["series"]]
    assert views["compared"] is True
    rows = csv[csv["value"].notna() & (csv["reference"] == "")].sample(25, random_state=1)
    for row in rows.itertuples():
        series = heads.index(curves.Series(row.model, row.score, "").head)
        key = f"{series}.{views['regions'].index(row.region)}.0.{channels.index(row.channel)}"
        lead = views["leads"].index(row.lead_hours)
        for column, value in zip(views["values"][key][:3], (row.value, row.low, row.high), strict=True):
            if np.isfinite(value):
                signed = row.score == "bias"
                assert number(column[lead], signed) == number(value, signed)
            else:
                assert column == 0 or column[lead] is None
        assert views["values"][key][3] == 6


def test_a_season_is_the_verification_of_its_initialisations_alone() -> None:
    whole = state(EUROPE, model="crps", inits=40, leads=1, members=4, masked=False)
    assert numbers.seasons_of([whole]) == ["DJF", "MAM", "JJA", "SON"]
    months = whole["time"].dt.month.values
    summer = np.isin(months, (6, 7, 8))
    assert 8 <= summer.sum() < 12
    found = numbers.collect([whole], [], n_boot=30, seed=0)
    expected = numbers.collect([whole.isel(time=summer)], [], n_boot=30, seed=0)
    key = ["model", "channel", "region", "lead_hours", "score", "reference"]
    seasonal = found[found["season"] == "JJA"].set_index(key).sort_index()
    expected = expected[expected["score"].isin(["crps", "rmse", "spread", "ssr", "bias"])].set_index(key).sort_index()
    assert set(expected["season"]) == {"all year"}
    columns = ["value", "low", "high", "n"]
    pd.testing.assert_frame_equal(seasonal[columns], expected[columns])
    assert set(seasonal["n"]) == {int(summer.sum())}
    scored_alone = state_of_times(summer)
    at = {"channel": "2m_temperature", "lead_hours": 12.0, "region": "global"}
    row = seasonal.loc[("crps", "2m_temperature", "domain", 12.0, "crps", "")]
    assert row["value"] == pytest.approx(by_hand(scored_alone, "crps", **at), rel=1e-10)


def state_of_times(chosen: np.ndarray) -> xr.Dataset:
    """Those initialisations of the world of `state(EUROPE, inits=40, leads=1, members=4)`, scored alone from their fields."""
    forecast, truth = (data.isel(time=chosen) for data in world(EUROPE, members=4, inits=40, leads=1, error=1.0))
    units = {name: unit for name, (unit, _, _) in CHANNELS.items()}
    accumulator = Accumulator(
        Plan(tuple(CHANNELS), units, truth["time"].values, truth["prediction_timedelta"].values, 4, EUROPE, {"model": "crps"})
    )
    for time in truth["time"].values:
        for lead in truth["prediction_timedelta"].values:
            at = {"time": time, "prediction_timedelta": lead}
            fields = [np.stack([data[name].sel(at).values for name in CHANNELS], axis=-3) for data in (forecast, truth)]
            accumulator.add(time, lead, *fields)
    return accumulator.state()


def test_the_reference_is_the_one_that_is_asked_for() -> None:
    names = ["crps", "vae", "climatology"]
    assert numbers.pairs_of(names) == [(0, 1), (0, 2)]
    assert numbers.pairs_of(names, "climatology") == [(0, 2), (1, 2)]
    assert numbers.pairs_of(["crps"]) == []
    with pytest.raises(
        InputError, match="--reference 'ecmwf': no model of that name; the report has 'crps', 'vae', 'climatology'"
    ):
        numbers.pairs_of(names, "ecmwf")


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
    assert [number(value) for value in (0.9996, 9.996, -0.00397)] == ["1.00", "10.0", "−3.97e-03"]
    assert interval(-0.00397, 0.091) == "−3.97e-03 to 0.091"
    assert number(-0.001, signed=True) == "0.00"
    assert interval(-0.001, 0.03, signed=True) == "0.00–0.03"
    assert interval(float("nan"), 0.2) == ""


def test_regions_are_those_of_every_state_and_a_channel_without_a_case_is_reported() -> None:
    masked = state(EUROPE, model="crps", members=3, inits=2, leads=1)
    units = {name: unit for name, (unit, _, _) in CHANNELS.items()}
    times, steps = masked["time"].values, masked["prediction_timedelta"].values
    empty = Accumulator(Plan(tuple(CHANNELS), units, times, steps, 3, EUROPE, {"model": "empty"})).state()
    assert numbers.reported_regions([masked]) == ["domain", "domain land", "domain sea"]
    shown = numbers.reported_regions([masked, empty])
    assert shown == ["domain"]
    table = numbers.collect([masked, empty], [(0, 1)], n_boot=5, seed=0)
    of_empty = table[(table["model"] == "empty") | (table["reference"] == "empty")]
    assert set(of_empty["n"]) == {0}
    assert of_empty["value"].isna().all()
    assert curves.section(table, ["crps", "empty"], shown)["channels"][0]["figures"]


def test_files_of_an_earlier_report_do_not_stay_beside_a_new_one(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    maps = tmp_path / "report.maps.csv"
    rows = pd.DataFrame([dict.fromkeys(details.COLUMNS, "x") | {"value": 0.123456789, "low": np.nan}])[list(details.COLUMNS)]
    first = [*details.write_details([rows], out), *tables.write_tables([Table("t", ["row", "a"], [["r", "1"]])], maps)]
    assert [path.name for path in first] == ["report.details.csv", "report.details.json", "report.maps.csv"]
    assert json.loads(first[1].read_text())["value"] == [0.123457]
    assert json.loads(first[1].read_text())["low"] == [None]
    assert [*details.write_details([], out), *tables.write_tables([], maps)] == []
    assert not any(path.exists() for path in first)
