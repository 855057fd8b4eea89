"""Weights that a run starts from: a checkpoint to fine-tune, or the tensors of another one that fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from data_pipeline.errors import InputError
from data_pipeline.recipe import differences
from models.checkpoint import load
from models.contract import Generator, Spec
from models.curriculum import TrainingOptions


def start_from(model: Generator, options: TrainingOptions, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Load what `initial` or `warm_start` name into the model; returns their provenance under that name, nothing without them.

    A warm start takes the tensors of equal name and shape and leaves the others as they are initialised. Raises InputError if a
    checkpoint to fine-tune has another spec, if nothing fits, or if a checkpoint has seen years that this training must not see.
    """
    if options.initial:
        other = _fitting(options.initial, model.spec)
        model.load_state_dict(other.state_dict())
        return {"initial": {"sha256": other.sha256, **other.provenance}}
    if options.warm_start:
        other = load(options.warm_start)
        _check_periods(options.warm_start, other, model.spec, provenance)
        own = model.state_dict()
        fitting = {name: value for name, value in other.state_dict().items() if name in own and own[name].shape == value.shape}
        if not fitting:
            raise InputError(f"training.warm_start {options.warm_start}: none of its tensors has the name and shape of one here")
        with torch.no_grad():
            for name, value in fitting.items():
                own[name].copy_(value)
        return {"warm_start": {"sha256": other.sha256, "tensors": len(fitting), "of": len(own), **other.provenance}}
    return {}


def _fitting(path: str, spec: Spec) -> Generator:
    """The generator of a checkpoint with this very spec, InputError otherwise.

    The periods must be equal too: a checkpoint has to name every year that its weights have seen.
    """
    other = load(path)
    theirs, ours = (json.loads(json.dumps(each.as_dict())) for each in (other.spec, spec))  # a list is a tuple in a file
    changed = "\n".join(f"  - {line}" for line in differences(theirs, ours))
    if changed:
        raise InputError(f"training.initial {path} does not fit this recipe:\n{changed}")
    return other


def _check_periods(path: str, other: Generator, spec: Spec, provenance: Mapping[str, Any]) -> None:
    """What it was trained on must lie in our training period, and what it was chosen on must not be what we test on."""
    theirs, ours = _ends(other.spec.training_period), _ends(spec.training_period)
    if not (ours[0] <= theirs[0] and theirs[1] <= ours[1]):
        raise InputError(
            f"training.warm_start {path} was trained on {other.spec.training_period}, which does not lie in this training period "
            f"{spec.training_period}: its weights would have seen years that this checkpoint claims not to have seen"
        )
    test = provenance.get("recipe", {}).get("periods", {}).get("test")
    if test and other.spec.validation_period:
        first, last = _ends(other.spec.validation_period)
        if first <= np.datetime64(test[1]) and np.datetime64(test[0]) <= last:
            raise InputError(
                f"training.warm_start {path} was chosen on {other.spec.validation_period}, which overlaps the test period "
                f"{'/'.join(test)}"
            )


def _ends(period: str) -> tuple[np.datetime64, np.datetime64]:
    first, _, last = period.partition("/")
    return np.datetime64(first), np.datetime64(last)
