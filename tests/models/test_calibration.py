"""The noise scale: chosen on validation dates by one of two criteria, both kept in the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import models
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


@pytest.mark.parametrize(("criterion", "best"), [("crps", 1.0), ("ssr", 1.3)])
def test_the_lowest_crps_wins_or_the_spread_nearest_to_the_error(
    criterion: Criterion, best: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = toys.weather(steps=80)
    spec = toys.spec_of(data, toys.period(data, 0, 39), toys.period(data, 44, 79))
    path = save(tmp_path / "x.safetensors", spec, toys.network(spec).state_dict(), {})

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


def test_ratios_are_averaged_as_logarithms() -> None:
    assert mean_ssr(Validation(0.0, [], [[0.5, 2.0], [1.0, 1.0]])) == pytest.approx(1.0)
    assert mean_ssr(Validation(0.0, [], [[0.0, 2.0]])) == 0.0
