"""The notebooks in JupyterLab as a reader has them: opened and run in a real Chromium, the explorer used by hand.

Screenshots are kept in the folder that PLUMECAST_ARTEFACTS names.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Watched, browser_page

pytestmark = pytest.mark.campaign

TOKEN = "for-this-test-only"
RUNNING = 10 * 60 * 1000  # milliseconds: a notebook takes a minute; a busy machine has time
NOTEBOOKS = ("01_data", "02_ensemble_maps", "03_verification", "04_extreme_event")
ERROR = '[data-mime-type="application/vnd.jupyter.stderr"]'  # JupyterLab shows tracebacks so, and what is written to stderr
IDLE = "#jp-main-statusbar >> text=/\\| Idle/"  # of the kernel
LOADED = "const i = document.querySelector(s); return i && i.complete && i.naturalWidth > 0"
SETTINGS = {  # every cell is in the page, also below what is seen; and no question about news of the project
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}
MAP, PLUME = ".plumecast-map img", ".plumecast-explorer img.widget-image"


@dataclass(frozen=True)
class Lab:
    """A JupyterLab on this machine, the copies that it shows, and the folder in which screenshots are kept."""

    url: str
    notebooks: Path
    artefacts: Path


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Lab]:
    if importlib.util.find_spec("jupyterlab") is None:
        pytest.skip("JupyterLab is not installed: notebooks in a browser are not tested (make .venv/.installed-notebooks)")
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(repository / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".*"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    homes = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    own = {name: str(folder / name.lower()) for name in homes}
    settings = folder / homes[0].lower() / "labconfig" / "default_setting_overrides.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps(SETTINGS))
    environment = os.environ | own | {"PYTHONPATH": str(repository)}
    environment.pop("MPLBACKEND", None)  # that of the tests; a kernel draws into the notebook
    command = [
        sys.executable, "-m", "jupyterlab", "--ip=127.0.0.1", f"--port={port}", "--no-browser", "--allow-root",
        f"--IdentityProvider.token={TOKEN}", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.extension_manager=readonly", f"--ServerApp.root_dir={folder / 'notebooks'}",
    ]  # fmt: skip
    log = folder / "lab.log"
    with log.open("wb") as stream:
        server = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment, cwd=folder)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_up(server, f"{url}/api/status?token={TOKEN}", log)
            artefacts = Path(os.environ.get("PLUMECAST_ARTEFACTS") or folder / "artefacts")
            artefacts.mkdir(parents=True, exist_ok=True)
            yield Lab(url, folder / "notebooks", artefacts)
        finally:
            server.terminate()
            server.wait(30)


def _wait_until_up(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)  # a server that starts has no event to wait for
    raise AssertionError(f"JupyterLab did not answer within two minutes:\n{log.read_text()}")


def open_and_run(watched: Watched, lab: Lab, name: str) -> Any:
    """The page of a notebook, all of its cells run, none with an error."""
    page = watched.page
    page.set_default_timeout(120_000)
    page.goto(f"{lab.url}/lab/tree/{name}.ipynb?token={TOKEN}&reset")
    cells = [cell for cell in json.loads((lab.notebooks / f"{name}.ipynb").read_text())["cells"] if cell["cell_type"] == "code"]
    page.wait_for_function(f"document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt').length === {len(cells)}")
    page.wait_for_selector(IDLE)  # what is run before the kernel answers is not run
    page.keyboard.press("Control+b")  # without the file browser the page is the notebook's
    page.click(".lm-MenuBar-itemLabel:text-is('Run')")
    page.click(".lm-Menu-itemLabel:text-is('Run All Cells')")
    done = """selector => [...document.querySelectorAll(selector)].some(e => e.textContent.includes('Traceback')) ||
      [...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')].every(e => /\\[\\d+\\]/.test(e.textContent))"""
    page.wait_for_function(done, arg=ERROR, timeout=RUNNING)
    assert errors(page) == []
    page.wait_for_selector(IDLE, timeout=RUNNING)
    return page


def errors(page: Any) -> list[str]:
    """The errors among the outputs of a notebook."""
    found = page.locator(ERROR, has_text="Traceback")
    return [found.nth(k).inner_text()[-3000:] for k in range(found.count())]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_in_jupyterlab(lab: Lab, name: str) -> None:
    with browser_page(width=1280, height=1400) as watched:
        page = open_and_run(watched, lab, name)
        images = page.locator(".jp-OutputArea-output img")
        assert images.count() > 1
        assert watched.broken_images() == []
        images.first.scroll_into_view_if_needed()
        page.screenshot(path=lab.artefacts / f"notebook-{name}.png")
        watched.assert_quiet()


def source_of(page: Any, selector: str = MAP) -> str:
    """The address of a picture, which is another one for every picture; decoded."""
    page.wait_for_function(f"s => {{ {LOADED} }}", arg=selector)
    return str(page.locator(selector).first.get_attribute("src"))


def changed(page: Any, before: str, selector: str = MAP) -> str:
    """The address of the picture that takes the place of another."""
    page.wait_for_function(f"([s, before]) => {{ {LOADED} && i.src !== before }}", arg=[selector, before])
    return source_of(page, selector)


def choose(page: Any, name: str, option: str) -> None:
    """Choose of a menu of the explorer, by the label before it."""
    row = page.locator(".plumecast-explorer .widget-dropdown", has=page.locator(f"label:text-is('{name}')"))
    row.locator("select").select_option(label=option)


def test_the_explorer_follows_the_hand(lab: Lab) -> None:
    with browser_page(width=1280, height=1400) as watched:
        page = open_and_run(watched, lab, "02_ensemble_maps")
        page.locator(".plumecast-explorer").scroll_into_view_if_needed()
        first, plume = source_of(page), source_of(page, PLUME)
        assert "Geopotential at 500 hPa" in page.locator(MAP).get_attribute("alt")
        page.locator(".plumecast-explorer").screenshot(path=lab.artefacts / "explorer.png")

        row = page.locator(".plumecast-explorer .widget-hslider", has=page.locator("label:text-is('lead')"))
        row.locator(".noUi-handle").focus()
        page.keyboard.press("ArrowRight")
        later = changed(page, first)
        assert "+ 132 h" in page.locator(MAP).get_attribute("alt")

        choose(page, "variable", "2 m temperature")
        warm = changed(page, later)
        plume = changed(page, plume, PLUME)
        choose(page, "show", "probability")
        likely = changed(page, warm)
        assert "Probability of 2 m temperature < 0 °C" in page.locator(MAP).get_attribute("alt")

        box = page.locator(MAP).bounding_box()
        page.locator(MAP).click(position={"x": 0.62 * box["width"], "y": 0.45 * box["height"]})
        plume = changed(page, plume, PLUME)
        ring = page.locator(".plumecast-map span").bounding_box()
        across = (ring["x"] + ring["width"] / 2 - box["x"]) / box["width"]
        down = (ring["y"] + ring["height"] / 2 - box["y"]) / box["height"]
        assert (across, down) == pytest.approx((0.62, 0.45), abs=0.01)
        point = page.locator(".plumecast-explorer input[placeholder*=Bergen]")
        assert re.fullmatch(r"-?\d+\.\d\d, -?\d+\.\d\d", point.input_value())
        page.locator(".plumecast-explorer").screenshot(path=lab.artefacts / "explorer-probability.png")

        page.locator(MAP).click(position={"x": 0.5 * box["width"], "y": 2})
        page.wait_for_selector(".plumecast-explorer [role=alert]:has-text('not on the map')")
        point.fill("nowhere")
        point.press("Enter")
        page.wait_for_selector(".plumecast-explorer [role=alert]:has-text('expected LATITUDE,LONGITUDE')")
        point.fill("Bergen, 60.39, 5.32")
        point.press("Enter")
        changed(page, plume, PLUME)
        assert page.locator(".plumecast-explorer [role=alert]").count() == 0

        choose(page, "projection", "Robinson")
        changed(page, likely)
        button = page.locator(".plumecast-explorer .widget-play button").first
        button.click()
        page.wait_for_function("s => document.querySelector(s).alt.includes('+ 7 d,')", arg=MAP)
        button.click()
        page.wait_for_selector(IDLE)
        page.screenshot(path=lab.artefacts / "explorer-in-jupyterlab.png")
        assert errors(page) == []
        watched.assert_quiet()
