"""The scorecards of the report print the differences of the states, and say which are sure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from tests.verification.reports import EUROPE, Page, by_hand, printed, state, unpacked
from verification.report import numbers, scorecard
from verification.report.tables import interval, number
from verification.significance import discoveries


def test_the_scorecard_prints_the_differences_of_the_states(planet_report: tuple[Path, list[xr.Dataset]]) -> None:
    out, states = planet_report
    page, csv = Page(unpacked(out.read_text(encoding="utf-8"))), printed(out)
    titles = [attrs["title"] for attrs in page.all("td") if "title" in attrs]
    for reference in states[1:]:
        for region, score in (("global", "rmse"), ("tropics", "acc"), ("land", "crps")):
            at = {"channel": "geopotential_500", "lead_hours": 36.0, "region": region}
            lone = reference.attrs["members"] == 1 and score == "crps"
            ours, theirs = by_hand(states[0], score, **at), by_hand(reference, "crps_ecdf" if lone else score, **at)
            names = {"rmse": "RMSE of the mean", "acc": "anomaly correlation", "crps": "fair CRPS"}
            signed, units = score == "acc", "" if score == "acc" else " dam"
            title = next(
                title
                for title in titles
                if title.startswith(
                    f"Geopotential at 500 hPa, day 1.5, {region}\n{names[score]}: crps {number(ours, signed)}{units}, "
                )
                and f"{reference.attrs['model']} {number(theirs, signed)}{units}\n" in title
            )
            relative = 100 * (theirs - ours) / (1 - theirs) if score == "acc" else 100 * (ours - theirs) / theirs
            assert f"difference {number(ours - theirs, True)}{units} ({scorecard.percent(relative)} %" in title
            row = csv[(csv["score"] == f"{score}_difference") & (csv["reference"] == reference.attrs["model"])]
            row = row[(row["region"] == region) & (row["channel"] == "geopotential_500") & (row["lead_hours"] == 36.0)].iloc[0]
            assert row["value"] == pytest.approx(ours - theirs, rel=1e-6)
            assert row["relative"] == pytest.approx(relative, rel=1e-6)
            assert f"95 % interval {interval(row['low'], row['high'], True)}" in title
            assert ("not significant" in title) != bool(row["significant"])


def test_false_discoveries_are_controlled_over_the_whole_card(planet_report: tuple[Path, list[xr.Dataset]]) -> None:
    csv = printed(planet_report[0])
    tests = csv[csv["score"].str.endswith("_difference")]
    for _, card in tests.groupby(["model", "reference"]):
        assert len(card) == 3 * 6 * 2 * 3  # scores, regions, channels, leads
        p = np.sort(card["p_value"].values)
        allowed = [k for k in range(1, p.size + 1) if p[k - 1] <= 0.1 * k / p.size]  # Benjamini and Hochberg (1995)
        limit = p[allowed[-1] - 1] if allowed else -1.0
        assert (card["significant"].values.astype(bool) == (card["p_value"].values <= limit)).all()
    few = scorecard.section(csv, ["crps", "persistence"], [(0, 1)], ["global"])["regions"][0]["pairs"][0]
    assert (few["sure"], few["tested"]) == (
        int(tests[(tests["reference"] == "persistence") & (tests["region"] == "global")]["significant"].sum()),
        18,
    )


def test_benjamini_and_hochberg_find_what_their_paper_finds() -> None:
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    assert discoveries(np.array(p), 0.05).tolist() == [True] * 4 + [False] * 11
    # 0.04 is above its own limit of 0.033, and is found because 0.05 is below the next
    assert discoveries(np.array([0.04, 0.9, 0.05]), 0.1).tolist() == [True, False, True]


def test_differences_without_variance_have_no_test_however_many_they_are() -> None:
    one = state(EUROPE, model="crps", leads=1, members=3, masked=False)
    names = ["crps", "its copy"]
    table = numbers.collect([one, one.assign_attrs(model=names[1])], [(0, 1)], n_boot=5, seed=0)
    told = {}
    for count in (6, 1):
        cards = scorecard.section(table.assign(n=count), names, [(0, 1)], ["domain"])["regions"][0]["pairs"][0]["cards"]
        told[count] = cards[0].rows[0].cells[0].title.splitlines()[-1]
    assert told == {
        6: "n = 6: no test, as the differences are all alike or no more than overlap each other",
        1: "n = 1: too few to test",
    }
