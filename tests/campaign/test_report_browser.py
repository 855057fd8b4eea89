"""The report in a real browser: quiet, offline, whole at every width, with switches that work; its pictures are kept.

Screenshots and the printed page go to the folder named by PLUMECAST_ARTEFACTS, or beside the report in pytest's temporary folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline import open_analysis, open_forecast
from data_pipeline.grid import Grid
from data_pipeline.recipe import section
from data_pipeline.statistics import Periods
from data_pipeline.store import open_store
from forecast import baselines, demo
from forecast.plan import plan_like
from tests.browser import Watched, browser_page
from tests.verification.reports import SECTIONS, state
from verification.evaluate import evaluate, score_store
from verification.report import write_report

pytestmark = pytest.mark.campaign

INITS, DAYS, MEMBERS = 40, 4.0, 4
EVENTS = ["> q0.95", "2m_temperature > 303.15"]
WIDE, PHONE = 1280, 390


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A year of forecasts of the packaged planet beside climatology and persistence, with events, a case and two points."""
    out = tmp_path_factory.mktemp("browser")
    analysis_path, climate_path, _ = demo.prepare(out, members=2)
    forecast_path = demo.make_forecast(analysis_path, out, MEMBERS, inits=INITS, days=DAYS)
    analysis, ensemble = open_analysis(analysis_path), open_forecast(forecast_path)
    model = score_store(
        forecast_path,
        analysis_path,
        out / "model.scores.zarr",
        climatology_path=climate_path,
        events=EVENTS,
        cases=[ensemble["time"].values[0]],
        points={"Oslo": (59.9, 10.8), "Nairobi": (-1.3, 36.8)},
    )
    plan, training = plan_like(ensemble, analysis), section(demo.sample_recipe(), "periods", Periods).required("training")
    climate = open_store(climate_path).load()
    drawn = (baselines.climatology(analysis, plan, training), baselines.persistence(analysis, plan))
    others = [evaluate(each, analysis, climatology=climate, events=EVENTS) for each in drawn]
    return write_report([model, *others], out / "report.html", title="A year of the packaged planet", n_boot=200)


@pytest.fixture(scope="module")
def artefacts(report: Path) -> Path:
    folder = Path(os.environ.get("PLUMECAST_ARTEFACTS", report.parent / "artefacts")) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def wide(report: Path) -> Iterator[Watched]:
    with browser_page(width=WIDE, reduced_motion="reduce") as shown:
        ready(shown, report)
        yield shown
        shown.assert_quiet()


def ready(shown: Watched, report: Path) -> None:
    """The page with its curves drawn and its packed parts in their places."""
    shown.open(report)
    shown.page.wait_for_selector("svg.drawn")
    shown.page.wait_for_function("document.querySelector('[data-packed]') === null")


def choose(shown: Watched, name: str, text: str) -> None:
    """Click the label of a radio button, as a reader would."""
    of = shown.page.locator(f"input[name='{name}'] + label", has_text=re.compile(f"^{re.escape(text)}$"))
    of.filter(visible=True).click()


@pytest.mark.parametrize(("width", "scheme"), [(WIDE, "light"), (WIDE, "dark"), (PHONE, "light"), (PHONE, "dark")])
def test_the_page_is_quiet_whole_and_fits(report: Path, artefacts: Path, width: int, scheme: str) -> None:
    assert report.stat().st_size < 8_000_000
    with browser_page(width=width, color_scheme=scheme) as shown:
        ready(shown, report)
        shown.page.evaluate("document.querySelectorAll('.shown').forEach(part => { part.style.display = 'block'; })")
        shown.page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
        assert shown.page.evaluate("document.images.length") >= 20
        shown.page.wait_for_function("[...document.images].every(image => image.complete)")
        assert shown.broken_images() == []
        assert shown.overflow() == []
        shown.assert_quiet()
        ready(shown, report)
        shown.page.screenshot(path=artefacts / f"report-{width}-{scheme}.png", full_page=True)
        shown.assert_quiet()


def test_every_section_is_there(wide: Watched) -> None:
    found = wide.page.eval_on_selector_all("section", "all => all.map(section => section.id)")
    assert [name for name in SECTIONS if name not in found] == []


def test_region_and_season_redraw_curves_and_tables(wide: Watched) -> None:
    first = wide.page.locator("[data-channel='0'] svg.drawn").first
    table = wide.page.locator("[data-channel='0'] details")
    table.locator("summary").click()
    assert wide.page.locator("#view").inner_text() == f"global, all year: n = {INITS} initialisations"
    seen = {(first.inner_html(), table.inner_text())}
    for name, text in (("region", "tropics"), ("season", "JJA"), ("season", "DJF"), ("region", "land")):
        choose(wide, name, text)
        seen.add((first.inner_html(), table.inner_text()))
    assert len({svg for svg, _ in seen}) == len({text for _, text in seen}) == 5
    view = wide.page.locator("#view").inner_text()
    season = re.fullmatch(r"land, DJF: n = (\d+) initialisations; skill and tests: all year", view)
    assert season is not None
    assert 8 <= int(season[1]) < INITS
    assert "land, DJF" in first.get_attribute("aria-label")
    assert "land, DJF" in table.locator("caption").inner_text()


def test_what_the_script_writes_is_what_python_writes(report: Path, wide: Watched) -> None:
    plain = wide.page.context.browser.new_context(java_script_enabled=False).new_page()
    plain.goto(report.as_uri())
    wanted = plain.locator("#leads td, #leads tbody th").all_text_contents()
    assert plain.locator("#leads .controls").is_hidden()
    assert plain.locator("#leads figure svg").count() == wide.page.locator("#leads figure svg").count()
    wide.page.evaluate("document.querySelectorAll('#leads details').forEach(part => { part.open = true; })")
    wide.page.wait_for_function("[...document.querySelectorAll('#leads caption')].every(c => c.textContent.includes('all year'))")
    assert wide.page.locator("#leads td, #leads tbody th").all_text_contents() == wanted


def test_a_browser_that_cannot_unpack_has_a_theme_and_no_idle_controls(report: Path) -> None:
    with browser_page(width=WIDE) as shown:
        shown.page.add_init_script("delete window.DecompressionStream")
        shown.open(report)
        assert shown.page.locator("#leads .controls").is_hidden()
        assert shown.page.locator("#leads figure svg").first.is_visible()
        choose(shown, "theme", "dark")
        assert shown.page.evaluate("document.documentElement.dataset.theme") == "dark"
        shown.assert_quiet()


def test_a_report_of_one_lead_has_its_mark_on_every_axis(tmp_path: Path) -> None:
    out = write_report([state(Grid.named("16x8"), model="one", leads=1, masked=False)], tmp_path / "report.html", n_boot=5)
    with browser_page(width=WIDE) as shown:
        ready(shown, out)
        drawn = shown.page.locator("[data-channel] svg.drawn")
        assert drawn.count() >= 6
        for index in range(drawn.count()):
            picture = drawn.nth(index)
            assert "NaN" not in picture.inner_html()
            assert "0.5" in picture.locator("text[text-anchor=middle]").all_text_contents()
        shown.assert_quiet()


def test_pointing_and_keys_tell_the_numbers(wide: Watched) -> None:
    bubble = wide.page.locator("#bubble")
    card = wide.page.locator("table.card").filter(visible=True).first
    card.locator("td").nth(2).hover()
    assert re.search(r"difference .* 95 % interval .*\n.*n = 40", bubble.inner_text())
    card.locator("td").first.focus()
    first = bubble.inner_text()
    wide.page.keyboard.press("ArrowRight")
    wide.page.keyboard.press("ArrowDown")
    assert bubble.inner_text() not in ("", first)
    wide.page.keyboard.press("Escape")
    assert bubble.is_hidden()
    figure = wide.page.locator("#leads figure").first
    wide.page.mouse.move(0, 0)  # what lies under the pointer speaks too
    figure.focus()
    wide.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")  # scrolled into view
    wide.page.keyboard.press("ArrowRight")
    assert re.search(r"12 h\n.*fair CRPS .*\[.*\], n = 40", bubble.inner_text())


def test_the_pair_of_models_stays_when_the_region_changes(wide: Watched) -> None:
    choose(wide, "pair-0", "crps small against persistence")
    choose(wide, "card-region", "tropics")
    assert (
        wide.page.locator("#scorecard p.muted")
        .filter(visible=True)
        .inner_text()
        .startswith("crps small against persistence, tropics")
    )


def test_maps_follow_their_switch(wide: Watched) -> None:
    shown = wide.page.locator("#maps img").filter(visible=True)
    before = shown.first.get_attribute("src")
    choose(wide, "map-channel", "z500")
    assert shown.count() >= 3
    assert shown.first.get_attribute("src") != before


def test_the_theme_is_chosen_and_kept(report: Path, artefacts: Path, wide: Watched) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = wide.page.evaluate(paper)
    choose(wide, "theme", "dark")
    dark = wide.page.evaluate(paper)
    assert dark != light
    ready(wide, report)
    assert wide.page.evaluate(paper) == dark
    choose(wide, "theme", "light")
    assert wide.page.evaluate(paper) == light


def test_print_shows_every_section_and_no_controls(artefacts: Path, wide: Watched) -> None:
    choose(wide, "theme", "dark")
    wide.page.emulate_media(media="print")
    assert wide.page.evaluate("getComputedStyle(document.body).backgroundColor") in ("rgb(255, 255, 255)", "rgba(0, 0, 0, 0)")
    assert wide.page.locator(".theme, nav").filter(visible=True).count() == 0
    sections = wide.page.locator("section")
    assert sections.filter(visible=True).count() == sections.count()
    printed = artefacts / "report.pdf"
    wide.page.pdf(path=printed, format="A4", print_background=True)
    assert printed.stat().st_size > 50_000
