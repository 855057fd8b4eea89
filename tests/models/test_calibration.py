"""The noise scale: chosen on validation dates by one of two criteria, both kept in the checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

import models
from data_pipeline.errors import GateError, InputError
from models import calibration
from models.calibration import Criterion, calibrate, mean_ssr
from models.checkpoint import save
from models.validation import Validation
from tests import toys

MEASURED = {
    0.8: Validation(0.5, [0.5], [[0.6, 0.7]]),
    1.0: Validation(0.4, [0.4], [[0.8, 0.9]]),
    1.3: Validation(0.6, [0.6], [[0.8, 1.25]]),
}


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return toys.weather(steps=80)


@pytest.fixture
def path(data: xr.Dataset, tmp_path: Path) -> Path:
    spec = toys.spec_of(data, toys.period(data, 0, 39), toys.period(data, 44, 79))
    return save(tmp_path / "x.safetensors", spec, toys.network(spec).state_dict(), {})


@pytest.mark.parametrize(("criterion", "best"), [("crps", 1.0), ("ssr", 1.3)])
def test_the_lowest_crps_wins_or_the_spread_nearest_to_the_error(
    criterion: Criterion, best: float, data: xr.Dataset, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*arguments: Any) -> Validation:
        return MEASURED[arguments[-1]]

    monkeypatch.setattr(calibration, "validate", measured)
    seen: list[float] = []
    assert calibrate(path, data, scales=tuple(MEASURED), criterion=criterion, report=lambda scale, _: seen.append(scale)) == best
    assert seen == list(MEASURED)
    kept = models.load(path).provenance
    assert kept["noise_scale"] == best
    assert kept["calibration"]["criterion"] == criterion
    assert kept["calibration"]["scores"] == {"0.8": 0.5, "1.0": 0.4, "1.3": 0.6}
    assert kept["calibration"]["ssr"]["1.3"] == pytest.approx(1.0)


@pytest.mark.parametrize("wrong", [{"scales": ()}, {"scales": (1.0, 0.0)}, {"inits": 0}, {"members": 1}, {"steps": 0}])
def test_a_choice_among_nothing_is_refused(wrong: dict[str, Any], data: xr.Dataset, path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(InputError, match="at least 1 date, 2 members and 1 step"):
        calibrate(path, data, **wrong)
    assert path.read_bytes() == before


@pytest.mark.parametrize("criterion", ["crps", "ssr"])
def test_a_scale_without_a_finite_score_never_wins(
    criterion: Criterion, data: xr.Dataset, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Validation(math.nan, [math.nan], [[math.nan]])
    monkeypatch.setattr(calibration, "validate", lambda *given: MEASURED[1.0] if given[-1] == 1.0 else broken)
    assert calibrate(path, data, scales=(0.9, 1.0, 1.1), criterion=criterion) == 1.0
    before = path.read_bytes()
    with pytest.raises(GateError, match=r"no noise scale among \[0.9, 1.1\] gives a finite score"):
        calibrate(path, data, scales=(0.9, 1.1), criterion=criterion)
    assert path.read_bytes() == before


def test_ratios_are_averaged_as_logarithms() -> None:
    assert mean_ssr(Validation(0.0, [], [[0.5, 2.0], [1.0, 1.0]])) == pytest.approx(1.0)
    assert mean_ssr(Validation(0.0, [], [[0.0, 2.0]])) == 0.0
