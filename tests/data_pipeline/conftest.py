"""Small archives behind a local object server, and retries that do not wait."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.sources import remote
from tests.data_pipeline import archives
from tests.data_pipeline.object_server import ObjectServer, serve

WAITED: list[float] = []


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bucket `b` with one archive a layout, from two sets of fields."""
    root = tmp_path_factory.mktemp("objects")
    (root / "b").mkdir()
    archives.write_wb2(root / "b" / "coarse.zarr")
    fine: dict[str, Any] = {"dims": "latitude first", "north_first": True, "chunks": {"time": 1}}
    archives.write_wb2(root / "b" / "fine.zarr", archives.fine_fields(), **fine)
    archives.write_wb2(root / "b" / "short_names.zarr", names={"latitude": "lat", "longitude": "lon"})
    archives.write_wb2(root / "b" / "format_3.zarr", zarr_format=3)
    archives.write_arco(root / "b" / "arco.zarr")
    return root


@pytest.fixture
def server(objects: Path) -> Iterator[ObjectServer]:
    with serve(objects) as running:
        yield running


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that retries would have waited."""
    monkeypatch.setattr(remote, "PATIENCE", remote.Patience(wait=note))
    WAITED.clear()
    return WAITED


async def note(seconds: float) -> None:
    WAITED.append(seconds)
