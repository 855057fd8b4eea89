"""What a notebook makes of the packaged planet, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from forecast import demo


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """What would have been made, and where."""
    calls: list[tuple[str, Path]] = []

    def ingest(recipe: dict[str, object], path: Path) -> Path:
        calls.append(("analysis", path))
        return path

    def prepare(out: Path, members: int) -> demo.Stores:
        calls.append((f"{members} members", out))
        return demo.Stores(out / "a", out / "c", out / "forecasts" / f"demo-{members}-members.zarr")

    monkeypatch.setattr(demo, "ingest", ingest)
    monkeypatch.setattr(demo, "prepare", prepare)
    return calls


def test_the_sample_is_made_at_its_own_place(tmp_path: Path, made: list[tuple[str, Path]]) -> None:
    home = tmp_path / "runs" / "demo"
    for path in (home / "analysis.zarr", home / "forecasts" / "demo-24-members.zarr"):
        assert demo.ensure_sample(path) == path
    assert made == [("analysis", home / "analysis.zarr"), ("24 members", home)]


@pytest.mark.parametrize(
    "path",
    [
        "mine/analysis.zarr",
        "runs/demo/analysis2.zarr",
        "myruns/demo/analysis.zarr",
        "runs/demo/forecasts/mine.zarr",
        "runs/demo/forecasts/demo-0-members.zarr",
        "runs/demo/demo-24-members.zarr",
    ],
)
def test_a_path_of_ones_own_is_left_to_fail_where_it_is_opened(path: str, made: list[tuple[str, Path]]) -> None:
    assert demo.ensure_sample(path) == Path(path)
    assert made == []


def test_what_is_there_is_not_made_again(tmp_path: Path, made: list[tuple[str, Path]]) -> None:
    path = tmp_path / "runs" / "demo" / "analysis.zarr"
    path.mkdir(parents=True)
    assert demo.ensure_sample(path) == path
    assert made == []
