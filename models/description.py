"""A checkpoint in a few lines for a person."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.checkpoint import PROOF, load, read_tensors
from models.proof import installation_text


def describe(path: Path) -> list[tuple[str, str]]:
    """(title, text) lines: what a checkpoint predicts, what it was trained on, what it carries."""
    generator = load(path)
    header, tensors = read_tensors(path)
    spec, made = generator.spec, generator.provenance
    weights = [value for name, value in tensors.items() if not name.startswith(PROOF)]
    kinds = sorted({str(value.dtype).removeprefix("torch.") for value in weights})
    parameters = sum(value.numel() for value in generator.parameters())
    lines = [
        ("file", f"{path.stat().st_size / 1e6:.2f} MB, sha256 {generator.sha256}"),
        ("family", f"{spec.family}, {parameters:,} parameters, kept in {', '.join(kinds)}"),
        ("channels", f"{len(spec.channels)}: {', '.join(spec.channels)}"),
        ("not fed back", ", ".join(spec.diagnostic) or "none"),
        ("grid, step", f"{spec.grid}, {' or '.join(map(str, spec.intervals or (spec.step_hours,)))} h, {spec.frames} frames in"),
        ("forcings", ", ".join(spec.forcings) or "none"),
        ("options", ", ".join(f"{name} = {json.dumps(value)}" for name, value in sorted(spec.options.items()))),
        ("trained on", f"{spec.training_period}: {made.get('data') or 'data not named'}"),
        ("chosen on", f"{spec.validation_period}, {_chosen(made)}"),
        ("noise scale", f"{made['noise_scale']:g}, calibrated" if "noise_scale" in made else "1, not calibrated"),
        ("made by", f"plumecast {made.get('plumecast', '?')}, torch {made.get('torch', '?')}"),
        ("sample forecast", _sample(header)),
    ]
    for name, text in (("initial", "fine-tuned from"), ("warm_start", "started from")):
        if name in made:
            lines.insert(-2, (text, _start(made[name])))
    return lines


def _chosen(made: Mapping[str, Any]) -> str:
    if "validation" not in made:
        return "score not named"
    return f"score {made['validation']['score']:.4f} after {made['iteration']} updates, target {made.get('target', 'forecast')}"


def _start(start: Mapping[str, Any]) -> str:
    tensors = f", {start['tensors']} of {start['of']} tensors" if "tensors" in start else ""
    return f"sha256 {start['sha256']}{tensors}"


def _sample(header: Mapping[str, str]) -> str:
    if "proof" not in header:
        return "none; plumecast checkpoint PATH --add-proof adds one"
    about = json.loads(header["proof"])
    return f"{about['members']} members x {about['steps']} steps, sha256 {about['sha256']}, made with {installation_text(about)}"
