"""A real Chromium for tests: blocks and records what leaves the machine, and what a page complains of."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass
class Watched:
    """A page of the browser, every request that it made beyond this machine, and every error it reported."""

    page: Any
    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def open(self, path: Path) -> None:
        """Show a file of this machine, loaded whole."""
        self.page.goto(path.resolve().as_uri(), wait_until="load")

    def overflow(self) -> list[str]:
        """What reaches beyond the right edge of the window, unless it lies in a box that scrolls by itself."""
        return list(self.page.evaluate(OVERFLOW))

    def broken_images(self) -> list[str]:
        """The alternative texts of the images that have no pixels."""
        return list(self.page.evaluate("[...document.images].filter(i => !(i.complete && i.naturalWidth > 0)).map(i => i.alt)"))

    def assert_quiet(self) -> None:
        """Nothing asked of another machine, nothing in the console that a reader of it would call an error."""
        assert self.outside == []
        assert self.errors == []


OVERFLOW = """() => {
  const wide = document.documentElement.clientWidth;
  const scrolls = e => e && e !== document.body && e !== document.documentElement &&
    (['auto', 'scroll', 'hidden'].includes(getComputedStyle(e).overflowX) || e.tagName === 'svg' || scrolls(e.parentElement));
  const found = [...document.body.querySelectorAll('*')].filter(e => e.checkVisibility() &&
    e.getBoundingClientRect().right > wide + 1 && e.getBoundingClientRect().width > 0 && !scrolls(e.parentElement));
  const page = document.documentElement.scrollWidth > wide ? ['the page itself: ' + document.documentElement.scrollWidth] : [];
  return page.concat(found.map(e => `${e.tagName} ${e.className} ${e.textContent.trim().slice(0, 40)}`));
}"""


@contextmanager
def browser_page(*, width: int = 1280, height: int = 900, **context: Any) -> Iterator[Watched]:
    """A fresh page in headless Chromium; skips the test, and says so, where Chromium or playwright is not installed.

    context: further options of playwright's `new_context`, as color_scheme="dark" or java_script_enabled=False. Requests that are
    not for a file, data or this machine are refused and kept in `outside`.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium on this machine: what a browser shows is not tested (apt-get install chromium)")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip("playwright is not installed: what a browser shows is not tested (pip install playwright)")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        try:
            place = browser.new_context(viewport={"width": width, "height": height}, **context)
            page = place.new_page()
            watched = Watched(page)
            page.on("console", lambda message: watched.errors.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: watched.errors.append(str(error)))
            place.route("**/*", lambda route: _let_pass(route, watched))
            page.on("websocket", lambda socket: _note(socket.url, watched))
            place.on("request", lambda request: _note(request.url, watched))
            yield watched
        finally:
            browser.close()


def _at_home(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("file", "data", "blob", "about") or parts.hostname in LOOPBACK


def _note(url: str, watched: Watched) -> None:
    if not _at_home(url) and url not in watched.outside:
        watched.outside.append(url)


def _let_pass(route: Any, watched: Watched) -> None:
    _note(route.request.url, watched)
    if _at_home(route.request.url):
        route.continue_()
    else:
        route.abort()
