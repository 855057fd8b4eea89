"""A training killed at any moment and started again ends with the same bytes as one that was never interrupted."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from models.checkpoint import load
from tests.children import start

pytestmark = pytest.mark.campaign

KILLS = 40 if os.environ.get("PLUMECAST_FULL") else 5

# The process says when its imports are done, so that the kill falls into the work and not before it.
CHILD = """
import sys
from pathlib import Path
from models.training import TrainingOptions, train
from tests import toys
data = toys.weather(steps=80)
spec = toys.spec_of(data, toys.period(data, 0, 59), toys.period(data, 60, 79), dropout=0.1)
stages = [
    {"name": "warm start", "iterations": 60, "batch": 4, "members": 1, "noise": False, "rate": 1e-3, "final_rate": 5e-4},
    {"name": "crps", "iterations": 60, "batch": 4, "members": 2, "rollout": 2, "rate": 5e-4, "final_rate": 1e-4},
]
options = TrainingOptions(
    stages=stages, validate_every=5, validation_inits=2, validation_members=2, validation_steps=2, input_noise=0.1
)
samples = [toys.samples_of(data, spec, toys.period(data, *ends)) for ends in ((0, 59), (60, 79))]
print("ready", flush=True)
train(spec, options, *samples, Path(sys.argv[1]), provenance={"data": "toy"})
print("done", flush=True)
"""


def test_killed_at_random_moments_and_resumed_it_gives_the_same_bytes(tmp_path: Path) -> None:
    with start(CHILD, str(tmp_path / "whole")) as child:
        began = time.monotonic()
        assert child.wait() == 0
        seconds = time.monotonic() - began
    files = ("checkpoint.safetensors", "training/state.safetensors")
    reference = {name: (tmp_path / "whole" / name).read_bytes() for name in files}
    draws = np.random.default_rng(int(os.environ.get("PLUMECAST_SEED", "1")))
    out, interrupted = tmp_path / "killed", 0
    for number in range(KILLS):
        with start(CHILD, str(out)) as child:
            time.sleep(draws.uniform(0, 0.8 * seconds))
            interrupted += child.poll() is None
            child.kill()
        if (out / "checkpoint.safetensors").exists():
            load(out / "checkpoint.safetensors")  # whole, whatever the moment
        if number % 2:  # every second one is killed once more before it may finish
            continue
        with start(CHILD, str(out)) as child:
            assert child.wait() == 0
        assert {name: (out / name).read_bytes() for name in files} == reference
        out = tmp_path / f"killed_{number}"
    print(f"{interrupted} of {KILLS} kills fell into the work of {seconds:.1f} s")
    assert interrupted > 0
