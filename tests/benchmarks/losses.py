"""How fast is the almost-fair CRPS, forward and backward? Against the CRPS of anemoi-training and a plain pairwise form.

    python -m tests.benchmarks losses [--turns 9] [--seconds 4] [--peers FOLDER]

M = 2 to 50 members of 80 variables at 2,048 and 10,512 points, float32, on 1 and 2 threads. Each contestant gets the layout it
likes best, takes its gradient by the members, and is checked against the definition in float64 before the clock starts. All take
turns within one run; on a busy machine trust the minimum. A contestant that would need more than --memory GB gets the largest
part of the points that fits, and its time and bytes are scaled up: marked ~.

anemoi-training is installed with `pip install --no-deps --target` into FOLDER, a temporary one unless given, with the packages
that importing its loss asks for; nothing else of this environment changes. Of it only the file of the CRPS is loaded, with its
base class: the package's own front page asks for the whole training stack.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.losses import almost_fair_crps

VARIABLES, POINTS, MEMBERS = 80, (2048, 10_512), (2, 4, 8, 16, 50)
ALPHA = 0.95
PEERS = (
    "anemoi-training==0.17.1", "anemoi-models==0.19.0", "einops==0.8.2", "omegaconf==2.4.0", "hydra-core==1.3.8",
    "antlr4-python3-runtime==4.9.3", "PyYAML==6.0.4", "torch-geometric==2.8.1", "xxhash==4.1.0",
)  # fmt: skip
PAIRS_HELD = {"anemoi": 8, "anemoi naive": 2, "pairwise": 2}  # tensors of all pairs that forward and backward hold at once, about
Loss = Callable[[Tensor, Tensor], Tensor]


class Case(NamedTuple):
    """A loss and what it is called with; scale: how many times more points are asked for."""

    loss: Loss
    members: Tensor
    truth: Tensor
    points: int  # axis of the members
    scale: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9, help="at most")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a contestant's turns at one size, then no more")
    parser.add_argument("--memory", type=float, default=3.0, help="GB that a contestant may need")
    parser.add_argument("--peers", type=Path, help="folder that holds, or is to hold, the packages compared with")
    options = parser.parse_known_args()[0]
    with tempfile.TemporaryDirectory() as folder:
        anemoi = anemoi_crps(options.peers or Path(folder))
        for threads in (1, 2):
            torch.set_num_threads(threads)
            print(f"\n{threads} thread{'s' * (threads > 1)}, milliseconds, median (minimum); kept: MB saved for backward")
            print(f"{'points':>7}{'M':>4}{'':3}{'ours':>19}{'anemoi':>19}{'anemoi naive':>19}{'pairwise':>19}", end="")
            print(f"{'default/ours':>14}{'ours/best':>11}   kept: ours, anemoi, naive, pairwise")
            for points in POINTS:
                for members in MEMBERS:
                    row(points, members, anemoi, options)


def anemoi_crps(folder: Path) -> dict[str, Loss]:
    """anemoi's kernel CRPS, its default form and the one it calls naive, members last as it wants them."""
    if not (folder / "anemoi" / "training").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PEERS]
        subprocess.run(command, check=True)
    sys.path.append(str(folder))
    for name in ("training", "training.losses", "training.utils"):
        package = types.ModuleType(f"anemoi.{name}")
        package.__path__ = [str(folder / "anemoi" / name.replace(".", "/"))]
        sys.modules[package.__name__] = package
    from anemoi.training.losses.kcrps import CRPS  # type: ignore[import-not-found]

    def kernel(backend: str) -> Loss:
        loss = CRPS(alpha=ALPHA, backend=backend)
        return lambda members, truth: loss._kernel_crps(members, truth[..., None])

    return {"anemoi": kernel("stable"), "anemoi naive": kernel("naive")}


def pairwise(members: Tensor, truth: Tensor) -> Tensor:
    """The definition as one would write it, pair by pair, members first."""
    m = len(members)
    loss = (members - truth).abs().mean(0)
    factor = (1 - (1 - ALPHA) / m) / (m * (m - 1))
    for j in range(m):
        for k in range(j):
            loss = loss - factor * (members[j] - members[k]).abs()
    return loss


def row(points: int, members: int, anemoi: dict[str, Loss], options: argparse.Namespace) -> None:
    rng = np.random.default_rng(members)
    first = torch.from_numpy(rng.standard_normal((members, 1, 1, VARIABLES, points), dtype=np.float32))
    last = first.movedim(0, -1).contiguous()
    truth = torch.from_numpy(rng.standard_normal((1, 1, VARIABLES, points), dtype=np.float32))
    contestants: dict[str, Case] = {"ours": Case(lambda x, y: almost_fair_crps(x, y, ALPHA), first, truth, -1, 1)}
    contestants |= {name: part(Case(loss, last, truth, -2, 1), PAIRS_HELD[name], options.memory) for name, loss in anemoi.items()}
    contestants["pairwise"] = part(Case(pairwise, first, truth, -1, 1), PAIRS_HELD["pairwise"], options.memory)
    check(contestants, first, truth)
    kept = {name: case.scale * saved(case) for name, case in contestants.items()}
    seconds = turns(contestants, options.turns, options.seconds)
    least = {name: min(times) for name, times in seconds.items()}
    cells = "".join(
        f"{'~' if case.scale > 1 else '':>2}{1e3 * float(np.median(seconds[name])):8.2f} ({1e3 * least[name]:7.2f})"
        for name, case in contestants.items()
    )
    best = min(value for name, value in least.items() if name != "ours")
    ratios = f"{least['anemoi'] / least['ours']:14.1f}{least['ours'] / best:11.2f}"
    memory = ", ".join(f"{kept[name] / 1e6:.1f}" for name in contestants)
    print(f"{points:>7}{members:>4}   {cells}{ratios}   {memory}", flush=True)


def part(case: Case, held: int, memory: float) -> Case:
    """The case on as many of the points as fit; held: float32 tensors of M x M values a point."""
    points, ensemble = case.truth.shape[-1], case.members.numel() // case.truth.numel()
    some = points // math.ceil(4e-9 * held * case.truth.numel() * ensemble**2 / memory)
    members = case.members.narrow(case.points, 0, some).contiguous()
    return case._replace(members=members, truth=case.truth[..., :some].contiguous(), scale=points / some)


def step(loss: Loss, members: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Values, and gradient by the members of their sum."""
    leaf = members.detach().requires_grad_()
    values = loss(leaf, truth)
    (grad,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), grad


def check(contestants: dict[str, Case], members: Tensor, truth: Tensor) -> None:
    """Values and gradients against the definition in float64, ours to 1e-6, on the first points."""
    few = slice(0, 64)
    values, grad = step(pairwise, members[..., few].double(), truth[..., few].double())
    for name, case in contestants.items():
        own = members[..., few] if case.points == -1 else members[..., few].movedim(0, -1)
        found, slope = step(case.loss, own.contiguous(), truth[..., few].contiguous())
        slope = slope if case.points == -1 else slope.movedim(-1, 0)
        error = max(float((one - other).abs().max()) for one, other in ((found, values), (slope, grad)))
        assert error < (1e-6 if name == "ours" else 1e-4), f"{name}: {error:.1e} from the definition"


def saved(case: Case) -> int:
    """Bytes that autograd keeps between forward and backward, each storage once, inputs left out."""
    kept: dict[int, int] = {}
    inputs = {tensor.untyped_storage().data_ptr() for tensor in case[1:3]}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage()
        if place.data_ptr() not in inputs:
            kept[place.data_ptr()] = place.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        values = case.loss(case.members.detach().requires_grad_(), case.truth)
    del values
    return sum(kept.values())


def turns(contestants: dict[str, Case], most: int, budget: float) -> dict[str, list[float]]:
    """Seconds of each, in turns; each warms up once, and stops once its turns have taken `budget` seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(most + 1):
        for name, case in contestants.items():
            if sum(seconds[name]) > budget:
                continue
            start = time.perf_counter()
            step(case.loss, case.members, case.truth)
            if turn:
                seconds[name].append(case.scale * (time.perf_counter() - start))
    return seconds


if __name__ == "__main__":
    main()
