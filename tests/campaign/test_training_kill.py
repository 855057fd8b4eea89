"""A training killed at any moment and started again ends with the same bytes as one that was never interrupted."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from models.checkpoint import FAMILIES, load
from models.proof import prove
from tests.children import start

pytestmark = pytest.mark.campaign

KILLS = 40 if os.environ.get("PLUMECAST_FULL") else 5
FILES = ("checkpoint.safetensors", "training/state.safetensors", "training/metrics.jsonl")

# The process says when its imports are done, so that the kill falls into the work and not before it.
# States are saved by the clock too, several times between two validations.
CHILD = """
import sys
from dataclasses import replace
from pathlib import Path
from models.checkpoint import FAMILIES
from models.training import TrainingOptions, train
from tests import toys
family = sys.argv[2]
data = toys.weather(steps=80)
spec = toys.spec_of(data, toys.period(data, 0, 59), toys.period(data, 60, 79), dropout=0.1)
own = {
    "crps": spec.options,
    "vae": spec.options | {"encoder_width": 8, "encoder_layers": 2},
    "latent_diffusion": {
        "ae_widths": [8, 8], "latents": 8, "bands": 2, "width": 16, "dual": 1, "single": 1, "conditioning": 8, "dropout": 0.1,
        "levels": 4,
    },
}[family]
spec = replace(spec, family=family, options=FAMILIES[family].options.model_validate(own).model_dump(mode="json"))
shared = {"iterations": 60, "batch": 4, "rate": 1e-3, "final_rate": 5e-4}
stages = {
    "crps": [
        {"name": "warm start", "members": 1, "noise": False, **shared},
        {"name": "crps", "members": 2, "rollout": 2, **shared},
    ],
    "vae": [
        {"name": "one step", "members": 2, "kl": 1.0, "posterior": 1.0, **shared},
        {"name": "two steps", "members": 2, "rollout": 2, "kl": 1.0, **shared},
    ],
    "latent_diffusion": [
        {"name": "autoencoder", "target": "autoencoder", "members": 1, "noise": False, **shared},
        {"name": "denoiser", "members": 1, **shared},
    ],
}[family]
options = TrainingOptions(
    stages=stages, validate_every=20, validation_inits=2, validation_members=2, validation_steps=2, input_noise=0.1,
    save_seconds=0.1,
)
samples = [toys.samples_of(data, spec, toys.period(data, *ends)) for ends in ((0, 59), (60, 79))]
print("ready", flush=True)
train(spec, options, *samples, Path(sys.argv[1]), provenance={"data": "toy"})
print("done", flush=True)
"""


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_killed_at_random_moments_and_resumed_it_gives_the_same_bytes(tmp_path: Path, family: str) -> None:
    with start(CHILD, str(tmp_path / "whole"), family) as child:
        began = time.monotonic()
        assert child.wait() == 0
        seconds = time.monotonic() - began
    reference = {name: (tmp_path / "whole" / name).read_bytes() for name in FILES}
    draws = np.random.default_rng(int(os.environ.get("PLUMECAST_SEED", "1")))
    out, interrupted = tmp_path / "killed", 0
    for number in range(KILLS):
        with start(CHILD, str(out), family) as child:
            time.sleep(draws.uniform(0, 0.8 * seconds))
            interrupted += child.poll() is None
            child.kill()
        if (out / "checkpoint.safetensors").exists():
            load(out / "checkpoint.safetensors")  # whole, whatever the moment
        if number % 2:  # every second one is killed once more before it may finish
            continue
        with start(CHILD, str(out), family) as child:
            assert child.wait() == 0
        assert {name: (out / name).read_bytes() for name in FILES} == reference
        assert prove(out / "checkpoint.safetensors").difference == 0
        out = tmp_path / f"killed_{number}"
    lines = [json.loads(line) for line in reference["training/metrics.jsonl"].decode().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(20, 121, 20))
    print(f"{family}: {interrupted} of {KILLS} kills fell into the work of {seconds:.1f} s")
    assert interrupted > 0
