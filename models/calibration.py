"""The one knob left after training: the scale of the noise, chosen on the validation period and kept in the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import xarray as xr

from data_pipeline.errors import GateError, InputError
from models.checkpoint import load, read_tensors, write_tensors
from models.precision import Precision
from models.validation import Validation, samples_of, validate, validation_starts

Criterion = Literal["crps", "ssr"]

SCALES = (0.9, 1.0, 1.1, 1.2, 1.3)


def calibrate(
    checkpoint: Path,
    analysis: xr.Dataset,
    *,
    scales: Sequence[float] = SCALES,
    criterion: Criterion = "crps",
    inits: int = 16,
    members: int = 10,
    steps: int = 14,
    seed: int = 1,
    precision: Precision = "float32",
    report: Callable[[float, Validation], None] = lambda scale, measured: None,
) -> float:
    """Write the best noise scale over `steps` leads into the checkpoint's provenance; returns it.

    criterion: "crps", the lowest mean fair CRPS; "ssr", the spread-skill ratio nearest to 1 (see `mean_ssr`). Only dates of the
    checkpoint's own validation period are looked at. Forecasts use the scale unless another is asked for. All that was tried is
    kept beside it. Raises InputError if the analysis does not cover the validation period, or for a choice among nothing (no
    scales, dates or steps, fewer than 2 members); GateError if no scale gives a finite score.
    """
    if not scales or not all(0 < scale < np.inf for scale in scales) or inits < 1 or members < 2 or steps < 1:
        raise InputError(
            f"calibration: scales {list(scales)}, {inits} dates, {members} members, {steps} steps; give scales above 0 and "
            f"at least 1 date, 2 members and 1 step"
        )
    generator = load(checkpoint, precision=precision)
    spec = generator.spec
    if not spec.validation_period.partition("/")[2]:
        raise InputError(f"{checkpoint} names no validation period; its noise scale cannot be chosen honestly")
    samples = samples_of(spec, analysis, spec.validation_period)
    chosen = validation_starts(samples, steps, inits)
    scores: dict[float, float] = {}
    ratios: dict[float, float] = {}
    for scale in scales:
        measured = validate(generator, samples, chosen, members, steps, seed, scale)
        scores[scale], ratios[scale] = measured.score, mean_ssr(measured)
        report(scale, measured)
    with np.errstate(divide="ignore"):
        misses = scores if criterion == "crps" else {scale: float(abs(np.log(ratio))) for scale, ratio in ratios.items()}
    finite = [scale for scale in misses if np.isfinite(misses[scale])]
    if not finite:
        raise GateError(f"{checkpoint}: no noise scale among {list(scales)} gives a finite score; nothing was changed")
    best = min(finite, key=lambda scale: misses[scale])
    header, tensors = read_tensors(checkpoint)
    provenance = json.loads(header["provenance"])
    provenance["noise_scale"] = best
    provenance["calibration"] = {
        "criterion": criterion, "scores": scores, "ssr": ratios, "inits": len(chosen), "members": members, "steps": steps,
        "seed": seed, "precision": precision,
    }  # fmt: skip
    write_tensors(checkpoint, tensors, {**header, "provenance": json.dumps(provenance, sort_keys=True)})
    return best


def mean_ssr(measured: Validation) -> float:
    """Geometric mean of the spread-skill ratios of all leads and channels; 0 if one is 0."""
    with np.errstate(divide="ignore"):
        return float(np.exp(np.log(measured.ssr).mean()))
