"""The report is whole, offline and honest about training periods."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from data_pipeline.errors import InputError
from tests.verification.reports import EUROPE, PLANET, SECTIONS, Page, case_and_truth, state, unpacked, with_anomalies
from verification.certify import certify
from verification.report import details, figures, numbers, page, provenance, scorecard, write_report
from verification.report.tables import Table
from verification.state import condensed


def test_the_page_is_self_contained_and_lets_only_its_own_script_run(planet_report: tuple[Path, list[xr.Dataset]]) -> None:
    text = unpacked(planet_report[0].read_text(encoding="utf-8"))
    parsed = Page(text)
    assert parsed.open == []
    assert parsed.all("script") == [{"type": "text/plain", "id": "numbers"}, {}]
    assert not parsed.all("link")
    assert not [key for _, attrs in parsed.tags for key in attrs if key.startswith("on")]
    assert all(image["src"].startswith("data:image/png;base64,") for image in parsed.all("img"))
    references = [
        value for _, attrs in parsed.tags for key, value in attrs.items() if key in ("href", "xlink:href", "src", "action")
    ]
    assert not [value for value in references if re.match(r"(https?:)?//", value)]
    assert not re.search(r"url\((?!#)|@import|\beval\(|https?://(?!www\.w3\.org)", text)
    policy = next(meta["content"] for meta in parsed.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    script = text[text.rindex("<script>") + len("<script>") : text.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    own = f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert policy == f"default-src 'none'; img-src data:; {own}; base-uri 'none'; form-action 'none'"
    assert planet_report[0].stat().st_size < 8_000_000


def test_every_picture_says_what_it_shows_and_every_reference_has_its_target(
    planet_report: tuple[Path, list[xr.Dataset]],
) -> None:
    text = unpacked(planet_report[0].read_text(encoding="utf-8"))
    parsed = Page(text)
    assert all(len(image["alt"]) > 10 for image in parsed.all("img"))
    drawn = [attrs for attrs in parsed.all("svg") if attrs.get("aria-hidden") != "true"]
    assert drawn
    assert all(attrs["role"] == "img" and len(attrs["aria-label"]) > 20 for attrs in drawn)
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    wanted = [value[1:] for _, attrs in parsed.tags for key, value in attrs.items() if key in ("href", "xlink:href")]
    wanted += [attrs["for"] for attrs in parsed.all("label")]
    wanted += re.findall(r"url\(#([^)]+)\)", text)
    assert set(wanted) <= set(ids)


def test_the_page_holds_all_sections_and_every_number_lies_beside_it(planet_report: tuple[Path, list[xr.Dataset]]) -> None:
    out = planet_report[0]
    text = unpacked(out.read_text("utf-8"))
    assert re.findall(r'<section id="(\w+)"', text) == list(SECTIONS)
    labels = re.findall(r'aria-label="([^"]*)"', text)
    assert len(labels) == len(set(labels))
    table = pd.read_csv(out.with_suffix(".details.csv"), keep_default_na=False, na_values={"low": "", "high": "", "at": ""})
    stored = json.loads(out.with_suffix(".details.json").read_text("utf-8"))
    assert list(stored) == list(details.COLUMNS) == table.columns.tolist()
    np.testing.assert_array_equal(table["value"], np.array(stored["value"], dtype=float))
    keys = [name for name in details.COLUMNS if name not in ("value", "low", "high", "n", "units")]
    assert not table.duplicated(keys).any()
    assert set(table["section"]) == {"ranks", "reliability", "decisions", "events", "spectra"}


@pytest.mark.usefixtures("offline")
def test_a_regional_report_without_a_case_is_built_offline_and_its_bytes_are_equal_again(tmp_path: Path) -> None:
    states = [state(EUROPE, model="crps", leads=1, masked=False, boundary="perfect boundary (truth)")]
    first, second = (write_report(states, tmp_path / name / "report.html", n_boot=10) for name in ("a", "b"))
    text = first.read_text(encoding="utf-8")
    assert "perfect boundary (truth)" in text
    assert 'id="case"' not in text
    assert text.count("data:image/png") == 6
    for suffix in (".html", ".csv", ".json"):
        assert first.with_suffix(suffix).read_bytes() == second.with_suffix(suffix).read_bytes()


HOSTILE = '<script>alert("x")</script>'


@pytest.fixture(scope="module")
def strange_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page whose models have names of markup, some initialisations inside training, and more channels than most."""
    states = [
        state(EUROPE, leads=1, masked=False, model=HOSTILE, truth=HOSTILE, source=f"'{HOSTILE}"),
        state(EUROPE, leads=1, masked=False, model='" onload="x', members=1),
    ]
    states[0]["in_training"][1, 0] = 2
    states[0]["in_training"][4, :] = 1
    many = [{"label": f"channel {k}", "rows": [], "table": Table("", [], [])} for k in range(30)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("verification.report.page._score_maps", lambda state: {"note": "", "channels": many})
        out = write_report(states, tmp_path_factory.mktemp("strange") / "report.html", title=HOSTILE, n_boot=5)
    return out.read_text(encoding="utf-8")


def test_names_from_data_are_escaped(strange_page: str) -> None:
    parsed = Page(unpacked(strange_page))
    assert len(parsed.all("script")) == 2
    assert HOSTILE not in strange_page
    assert not [attrs for _, attrs in parsed.tags if "onload" in attrs]
    assert HOSTILE in "".join(parsed.words)


def test_initialisations_inside_training_or_validation_are_named_in_red(strange_page: str) -> None:
    alarm = re.search(r'<div class="alarm".*?</div>', strange_page, re.DOTALL)
    assert alarm is not None
    assert "1 of 6 initialisations or their valid times lie in its training period (2001-01-01T00/2005-12-31T12)" in alarm[0]
    assert "1 of 6 initialisations or their valid times lie in its validation period" in alarm[0]
    assert "2006-01-11 00 UTC, 2006-02-10 00 UTC" in alarm[0]
    assert strange_page.count('<div class="alarm"') == 1


def test_a_clean_campaign_raises_no_alarm(planet_report: tuple[Path, list[xr.Dataset]]) -> None:
    assert '<div class="alarm"' not in planet_report[0].read_text(encoding="utf-8")


@pytest.mark.usefixtures("without_score_maps")
def test_a_single_member_and_a_case_without_truth_are_reported_as_far_as_they_go(tmp_path: Path) -> None:
    case, _ = case_and_truth(EUROPE, members=1)
    alone = [state(EUROPE, leads=1, model="one", members=1, masked=False)]
    text = write_report(alone, tmp_path / "report.html", case=case, n_boot=5).read_text("utf-8")
    assert 'id="ranks"' not in text  # one member has none
    assert 'class="scale"' not in text  # nothing to compare with
    assert scorecard.RATIO_NOTE not in text  # nor a spread
    assert "<figcaption>truth</figcaption>" not in text
    assert "<figcaption>spread</figcaption>" not in text


def test_condensed_states_are_reported_without_what_they_do_not_keep(tmp_path: Path) -> None:
    ranked, bare = (condensed(state(EUROPE, model=name, leads=1, members=3)) for name in ("crps", "vae"))
    states = [ranked, bare.drop_dims(["zone", "rank"])]  # kept with and without ranks
    text = write_report(states, tmp_path / "report.html", n_boot=5).read_text("utf-8")
    assert "2 on a grid that is not kept" in text
    assert all(f'id="{name}"' in text for name in ("scorecard", "leads", "ranks"))
    assert not [name for name in ("maps", "case", "spectra", "events") if f'"#{name}"' in text or f'id="{name}"' in text]


@pytest.mark.usefixtures("undrawn")
def test_maps_of_one_member_are_of_its_absolute_error_without_a_spread() -> None:
    titles = {}
    for members in (1, 3):
        shown = page._score_maps(state(EUROPE, model="x", members=members, inits=2, leads=1))
        assert shown is not None
        titles[members] = [row["title"].split(": ")[1] for row in shown["channels"][0]["rows"]]
        assert ("spread / error" in shown["note"]) == (members > 1)
    assert titles == {1: ["absolute error", "bias"], 3: ["fair CRPS", "bias of the mean", "spread / error"]}


def test_the_header_says_how_many_resamples_stand_behind_what() -> None:
    head = dict(provenance.facts([state(EUROPE, model="x", leads=1)], certify(), n_boot=1000, draws=300, seed=0).head)
    assert head["Intervals"].startswith(
        "95 %, 1000 block bootstrap samples of the initialisations (300 of ranks, reliability, ROC and extremes), seed 0"
    )


def test_no_two_models_look_alike_and_more_than_can_be_told_apart_are_refused(tmp_path: Path) -> None:
    looks = [(figures.colour_of(k), figures.dash_of(k)) for k in range(figures.MOST_MODELS)]
    assert len(set(looks)) == figures.MOST_MODELS == 40
    marked = [(figures.colour_of(k), figures.marker_of(k)) for k in range(figures.MOST_MODELS)]
    assert len(set(marked)) == 40
    one = state(EUROPE, model="x", members=2, inits=2, leads=1)
    with pytest.raises(InputError, match="41 score states given, but no more than 40 can be told apart"):
        write_report([one.assign_attrs(model=f"model {k}") for k in range(41)], tmp_path / "report.html")


def test_diagrams_have_the_colours_of_every_model(planet_report: tuple[Path, list[xr.Dataset]]) -> None:
    text = unpacked(planet_report[0].read_text(encoding="utf-8"))
    used = set(re.findall(r'class="d-([lfb]\d+)', text))
    assert used
    assert all(f"svg.d .d-{name}" in text for name in used)
    style = page._environment().get_template("diagrams.css").render(models=[page._model(k, "") for k in range(10)])
    assert re.search(r"d-l9, svg.d .d-b9 \{ stroke: var\(--m1\); stroke-width: 1.6; stroke-dasharray: none; \}", style)


@pytest.mark.parametrize("which", ["planet", "strange"])
def test_cards_and_channels_can_be_chosen_without_script(
    planet_report: tuple[Path, list[xr.Dataset]], strange_page: str, which: str
) -> None:
    text = strange_page if which == "strange" else planet_report[0].read_text(encoding="utf-8")
    parsed = Page(text)
    regions = [attrs for attrs in parsed.all("input") if attrs["name"] == "card-region"]
    assert len(regions) == (6 if which == "planet" else 1)  # globe, three belts, land and sea
    groups = [attrs["name"] for attrs in parsed.all("input") if "checked" in attrs]
    assert len(groups) == len(set(groups))
    assert set(groups) == {attrs["name"] for attrs in parsed.all("input")}
    for attrs in parsed.all("input"):
        if "class" in attrs:
            assert f".switch > input.{attrs['class']}:checked ~ .shown.{attrs['class']}" in text
            assert f'<div class="shown {attrs["class"]}"' in text


def test_models_on_two_grids_are_not_put_side_by_side(tmp_path: Path) -> None:
    states = [
        state(PLANET, model="coarse", members=2, inits=2, leads=1),
        state(EUROPE, model="fine", members=2, inits=2, leads=1),
    ]
    with pytest.raises(InputError, match="coarse is on .*16x8.*, fine on "):
        write_report(states, tmp_path / "report.html")


def test_what_unlike_climatologies_give_is_not_compared_and_the_page_says_so() -> None:
    small = {"members": 3, "inits": 3, "leads": 1, "masked": False}
    ours, theirs = (with_anomalies(state(EUROPE, model=name, **small), 0.5, 1) for name in ("a", "b"))
    found = {}
    for period in ("2001/2005", "1991/2020"):
        pair = [ours.assign_attrs(climatology="2001/2005"), theirs.assign_attrs(climatology=period, truth=f"truth of {period}")]
        table = numbers.collect(pair, [(0, 1)], n_boot=5, seed=0)
        head = dict(provenance.facts(pair, certify(), n_boot=5, draws=5, seed=0).head)
        found[period] = (set(table["score"]), head["Climatology"], head["Verified against"])
    assert "acc_difference" in found["2001/2005"][0]
    assert found["2001/2005"][1] == "2001/2005"
    assert "acc_difference" not in found["1991/2020"][0]
    assert {"acc", "crps_difference"} <= found["1991/2020"][0]
    assert found["1991/2020"][1].startswith("a: 2001/2005; b: 1991/2020; anomaly correlations and events of quantiles")
    assert "differences between models are also those between their truths" in found["1991/2020"][2]


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
