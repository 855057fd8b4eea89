"""What the tests of the report share: one page, and what it may leave out or must not ask for."""

from __future__ import annotations

from pathlib import Path

import pytest
import xarray as xr

from tests.verification.reports import PLANET, case_and_truth, three, with_anomalies
from verification.plan import Event
from verification.report import case, fields, write_report
from verification.report.fields import Picture


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the report asked for a network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("cartopy.io.Downloader.path", refuse)


@pytest.fixture
def without_score_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the time of a report; for tests that look at its words only."""
    monkeypatch.setattr("verification.report.page._score_maps", lambda state: None)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps are named, not drawn: most of the time of these tests."""
    for module in (case, fields):
        monkeypatch.setattr(module, "picture", lambda field, shading, *, alt, caption: Picture("", alt, caption, 1, 1))


@pytest.fixture(scope="session")
def planet_report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[xr.Dataset]]:
    """A report of three models on a globe with land and sea, and its states."""
    scored = three(PLANET, events=(Event(">", 286.0, channel="2m_temperature"),))
    states = [with_anomalies(each, correlation, 5) for each, correlation in zip(scored, (0.8, 0.5, 0.1), strict=True)]
    case, truth = case_and_truth(PLANET)
    out = tmp_path_factory.mktemp("report") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fields, "MAP_DAYS", (2.5,))  # one lead of maps is like another, and takes as long
        return write_report(states, out, case=case, truth=truth, title="A <planet> & its scores", n_boot=40), states
