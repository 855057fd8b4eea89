"""Two processes that share each batch make the updates that one process makes with the joint batch."""

from __future__ import annotations

import datetime as dt
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from data_pipeline.errors import InputError
from models import distributed
from models.checkpoint import read_tensors, save
from models.curriculum import TrainingOptions
from models.distributed import ALONE, Ranks, joined
from models.run_state import Run
from models.training import train
from tests.children import ROOT
from tests.models.test_training import metrics, state
from tests.toys import network, period, samples_of, spec_of, weather

STAGES = [
    {"name": "warm start", "iterations": 2, "batch": 4, "members": 1, "noise": False, "rate": 1e-3, "final_rate": 5e-4},
    {"name": "crps", "iterations": 3, "batch": 2, "members": 2, "rollout": 2, "rate": 5e-4, "final_rate": 1e-4},
]

CHILD = """
import sys
from pathlib import Path
from models.distributed import joined
from tests.models import test_distributed
with joined("cpu") as (ranks, device):
    test_distributed.train_twice(Path(sys.argv[1]), ranks)
"""


def train_twice(out: Path, ranks: Ranks = ALONE) -> None:
    """Sharing the samples of each batch, and then the members of each sample."""
    train_toy(out / "samples", ranks, STAGES)
    of_one = ranks if ranks.size == 1 else Ranks(ranks.rank, 2, members_over=2, group=dist.group.WORLD)
    train_toy(out / "members", of_one, STAGES[1:])


def train_toy(out: Path, ranks: Ranks, stages: list[dict[str, Any]]) -> None:
    """A short training; every process leaves the weights that it ends with.

    It starts from random weights and has two channels in each group of a norm: where a gradient is next to nothing, as behind the
    zeros of an untrained network, or in a bias before a norm of its channel alone, Adam makes full steps of the last bit of it.
    """
    data = weather(steps=60)
    spec = spec_of(data, period(data, 0, 39), period(data, 40, 59), widths=(16, 16))
    samples = [samples_of(data, spec, period(data, *ends)) for ends in ((0, 39), (40, 59))]
    initial = save(out / f"initial_{ranks.rank}.safetensors", spec, network(spec).state_dict(), {})
    options = TrainingOptions(
        stages=stages, validate_every=3, validation_inits=3, validation_members=2, validation_steps=2, input_noise=0.1,
        initial=str(initial),
    )  # fmt: skip
    ends: dict[str, torch.Tensor] = {}

    def watched(run: Run, *rest: Any) -> dict[str, Any]:
        ends.update({name: value.clone() for name, value in run.model.state_dict().items()})
        return keep(run, *rest)

    keep = Run.keep
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "keep", watched)
        patch.setattr(TrainingOptions, "decisive", lambda self: {})  # that of the others names other files
        train(spec, options, *samples, out, provenance={}, ranks=ranks)
    torch.save(ends, out / f"rank_{ranks.rank}.pt")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Where one process trained, and where two did, this one and a child, each started as torchrun would."""
    alone, shared = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("shared")
    train_twice(alone)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    both = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(shared)], cwd=ROOT, env=os.environ | both | {"RANK": "1", "LOCAL_RANK": "1"}
    )
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (both | {"RANK": "0", "LOCAL_RANK": "0"}).items():
                patch.setenv(name, value)
            patch.setattr(distributed, "TIMEOUT", dt.timedelta(minutes=15))
            with joined("cpu") as (ranks, _):
                train_twice(shared, ranks)
        assert child.wait(timeout=900) == 0
    finally:
        child.kill()
        child.wait()
    return alone, shared


@pytest.mark.parametrize("what", ["samples", "members"])
def test_weights_moments_and_scores_are_those_of_one_process(folders: tuple[Path, Path], what: str) -> None:
    alone, shared = (state(folder / what) for folder in folders)
    assert alone.keys() == shared.keys()
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    for one, other in zip(*(metrics(folder / what) for folder in folders), strict=True):
        assert one.keys() == other.keys()
        for key in ("loss", "gradient_norm", "score", "crps", "parts"):
            assert other[key] == pytest.approx(one[key], rel=2e-6), key


@pytest.mark.parametrize("what", ["samples", "members"])
def test_the_processes_hold_the_same_weights_to_the_bit(folders: tuple[Path, Path], what: str) -> None:
    first, second = (torch.load(folders[1] / what / f"rank_{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_one_process_writes_the_files(folders: tuple[Path, Path]) -> None:
    shared = folders[1] / "samples"
    assert len(metrics(shared)) == 2
    extra = {f"{name}_{rank}.{end}" for name, end in (("rank", "pt"), ("initial", "safetensors")) for rank in (0, 1)}
    written = {path.name for path in shared.rglob("*") if path.is_file()}
    assert written == {"checkpoint.safetensors", "state.safetensors", "metrics.jsonl"} | extra
    assert "proof" in read_tensors(shared / "checkpoint.safetensors")[0]


def test_noise_of_a_process_is_its_share_of_that_of_the_joint_batch() -> None:
    noise = torch.arange(4 * 6).view(4, 6, 1)
    shares = [Ranks(rank, 4, 2).share(noise) for rank in range(4)]
    assert all(share.shape == (2, 3, 1) for share in shares)
    assert torch.equal(torch.cat([share.flatten() for share in shares]).sort().values, torch.arange(24))
    assert torch.equal(shares[3], noise[1::2, 1::2])


def test_what_cannot_be_shared_out_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"stage 'crps' has batch = 3, which 2 of the 2 processes cannot share evenly"):
        Ranks(0, 2).check("crps", 3, 2)
    with pytest.raises(InputError, match=r"stage 'crps' has members = 3, which 2 of the 4 processes cannot share evenly"):
        Ranks(0, 4, 2).check("crps", 4, 3)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match=r"members_over = 2 does not divide 3 processes"), joined("cpu", 2):
        pass
    with pytest.raises(InputError, match="every process a GPU of its own; use --device cuda"), joined("cuda:1"):
        pass


def test_processes_that_see_different_states_do_not_train_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(found: torch.Tensor) -> None:
        found[1] = 500

    monkeypatch.setattr(dist, "all_reduce", other)
    Ranks(0, 2).check_resumed(500, torch.device("cpu"))
    with pytest.raises(InputError, match="states of 0 and 500 updates; --out must be one folder that all of them see"):
        Ranks(0, 2).check_resumed(0, torch.device("cpu"))


def test_without_torchrun_a_process_trains_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined("cpu") as (ranks, device):
        assert (ranks, device) == (ALONE, "cpu")
        assert ranks.leads
        assert (ranks.samples, ranks.members) == ((0, 1), (0, 1))
