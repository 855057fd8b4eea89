"""`torchrun --nproc-per-node 2 -m plumecast train`: the files of one training, and the scores of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.store import write_dataset
from models.proof import prove
from tests.models.test_commands import RECIPE
from tests.models.test_training import metrics
from tests.toys import weather

pytestmark = pytest.mark.campaign


def plumecast(folder: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("setting", "tolerance"),
    [("training.members_over=1", 1e-3), ("training.members_over=2", 1e-3), ("training.precision=bfloat16", 0.02)],
)
def test_two_processes_train_what_one_does(tmp_path: Path, setting: str, tolerance: float) -> None:
    """In low precision only the rounding of the halves differs."""
    (tmp_path / "job.toml").write_text(RECIPE)
    data = weather(steps=70)
    write_dataset(tmp_path / "analysis.zarr", data, data.attrs)
    command = ["plumecast", "train", "job.toml", "--analysis", "analysis.zarr", "--out"]
    plumecast(tmp_path, *command, "alone", *(("--set", setting) if "precision" in setting else ()))
    shown = plumecast(
        tmp_path, "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", *command, "shared", "--set", setting
    )
    assert shown.count("checkpoint: ") == 1
    one, two = metrics(tmp_path / "alone"), metrics(tmp_path / "shared")
    assert [line["iteration"] for line in two] == [line["iteration"] for line in one]
    for key in ("loss", "score"):
        assert two[-1][key] == pytest.approx(one[-1][key], rel=tolerance)
    assert prove(tmp_path / "shared" / "checkpoint.safetensors").difference == 0
