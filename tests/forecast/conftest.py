"""A toy schedule for the tests of cycles: a world whose slow parts are made once a module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from forecast.cycle.job import Job
from tests.forecast.cycles import World


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the toy's analyses and checkpoint."""
    return World(tmp_path_factory.mktemp("toy")).folder


@pytest.fixture
def world(source: Path, tmp_path: Path) -> World:
    for name in ("analysis.zarr", "toy.safetensors"):
        (tmp_path / name).symlink_to(source / name)
    return World(tmp_path)


@pytest.fixture
def jobs(world: World) -> Iterator[Callable[..., Job]]:
    made: list[Job] = []

    def make(**sections: Any) -> Job:
        made.append(world.job(**sections))
        return made[-1]

    yield make
    for job in made:
        job.ledger.close()
