"""Real reanalysis and real ensembles through the command line, with the committed recipes and no special code."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_pipeline.errors import InputError
from plumecast import application

pytestmark = pytest.mark.campaign


def run(*words: object) -> str:
    """The output of a command; an InputError of the command is raised."""
    result = CliRunner().invoke(application(), [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def winter(shared_data: Callable[[str], Path], repository: Path, work_folder: Path) -> Path:
    """ERA5, winter 2025/26, ingested by its recipe; returns the work folder."""
    recipe = repository / "recipes" / "era5_global_djf.toml"
    run("data", "ingest", recipe, "--set", f"source.path={shared_data('era5-global-djf')}")
    return work_folder / "runs" / "era5_global_djf"


def test_winter_is_regridded_verified_with_persistence_and_refused_a_climatology_and_a_training(
    winter: Path, repository: Path
) -> None:
    analysis = winter / "analysis.zarr"
    told = run("data", "info", analysis)
    assert "64x32 global" in told
    assert "conservative" in told
    run("baseline", "persistence", analysis, "--start", "2025-12-03", "--stop", "2026-01-19", "--every", "96h")
    table = run("verify", winter / "forecasts" / "persistence.zarr", "--truth", analysis)
    day_1 = float(re.search(r"msl \(hPa\)\s+day 1\s+([\d.]+)", table)[1])  # type: ignore[index]
    assert 2.0 < day_1 < 5.0, "MAE of persistence at day 1, hPa"
    recipe = repository / "recipes" / "era5_global_djf.toml"
    with pytest.raises(InputError, match="2025-12-01.*2026-01-31"):
        run("data", "climatology", recipe)
    with pytest.raises(InputError, match=r"no periods\.training.*2025-12-01.*2026-01-31"):
        run("train", recipe)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("z500_ens.grib", ("51, numbers 0 to 50", "none in these files")),
        ("era5-levels-members.grib", ("members of analyses", "10, numbers 0 to 9")),
        ("ens_storm.grib", ("51, numbers 0 to 50", "72 h, 78 h, 84 h")),
        ("fc_storm.grib", ("1, numbers 0 to 0",)),
        ("ztu_multi_dim.grib", ("6, numbers 1 to 6", "6 of the 51")),
    ],
)
def test_real_ensembles_open_as_they_are_and_what_they_lack_is_said(
    name: str, facts: tuple[str, ...], shared_data: Callable[[str], Path]
) -> None:
    told = run("data", "info", shared_data("ecmwf-ens-samples") / name)
    for fact in facts:
        assert fact in told
