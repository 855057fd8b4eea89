"""How fast are members made, and what does the engine cost beside the network? Every shipped checkpoint, fp32 and bf16.

    python -m tests.benchmarks sampling

Three contenders in turns on the same weights, the least of several turns each: the floor, which is nothing but `generator.step`
(and `fields`) on micro-batches that lie there already, as many as the forecast takes; the roll-out into a sink that drops what it
is given; and the roll-out into memory. Overhead is the roll-out's time over the floor's, less one; reading the input frames is
counted with the roll-out. Peak memory is that of a process of its own, less what it held before the forecast. bf16: networks in
bfloat16, states in float32. Rows on a GPU where torch finds one. PLUMECAST_BENCH_DAYS and _MEMBERS shorten it.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

import models
from data_pipeline.grid import Grid
from data_pipeline.templates import forecast_dataset
from forecast.members import micro_batch
from forecast.plan import ForecastPlan
from forecast.rollout import make_plan, run
from forecast.sinks import MemorySink
from models.contract import Generator, flat_noise_size
from models.precision import Precision
from tests.benchmarks._dropped import Dropped

DAYS, MEMBERS, TURNS = int(os.environ.get("PLUMECAST_BENCH_DAYS", "5")), int(os.environ.get("PLUMECAST_BENCH_MEMBERS", "16")), 5
INIT = np.datetime64("2007-02-01T00", "ns")
PRECISIONS: dict[str, Precision] = {"fp32": "float32", "bf16": "bfloat16"}


def main() -> None:
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    folder = Path(str(resources.files("models") / "pretrained"))
    print(f"{MEMBERS} members, {DAYS} days; {torch.get_num_threads()} threads; the least of {TURNS} turns")
    heads = f"{'floor s':>9}{'roll-out':>9}{'overhead':>10}{'in memory':>10}{'leads/s':>9}{'peak MB':>9}"
    print(f"{'checkpoint':<30}{'device':>8}{'':>6}{heads}", flush=True)
    for path in sorted(folder.glob("*.safetensors")):
        for device in devices:
            for dtype in PRECISIONS:
                code = f"from tests.benchmarks import sampling as s; s.child({str(path)!r}, {device!r}, {dtype!r})"
                done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
                found = json.loads(done.stdout.splitlines()[-1])
                print(
                    f"{path.stem:<30}{device:>8}{dtype:>6}{found['floor']:9.2f}{found['roll-out']:9.2f}"
                    f"{100 * (found['roll-out'] / found['floor'] - 1):9.1f}%{found['in memory']:10.2f}"
                    f"{found['member_leads'] / found['roll-out']:9.1f}{found['peak_mb']:9.0f}",
                    flush=True,
                )
    print("leads/s: members x leads a second of the roll-out")


def child(path: str, device: str, dtype: str) -> None:
    """The figures of one checkpoint in one precision on one device."""
    generator = models.load(path, device, precision=PRECISIONS[dtype])
    world = analysis_for(generator)
    plan = make_plan(generator, world, [INIT], days=DAYS, members=MEMBERS, seed=0)
    before = peak_bytes(device)
    run(generator, world, plan, [Dropped()])
    peak = peak_bytes(device) - before
    contenders: dict[str, Callable[[], Any]] = {
        "floor": floor(generator, plan),
        "roll-out": lambda: run(generator, world, plan, [Dropped()]),
        "in memory": lambda: run(generator, world, plan, [MemorySink()]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(TURNS):
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            if device != "cpu":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    found = {name: min(times) for name, times in seconds.items()}
    print(json.dumps({**found, "peak_mb": peak / 1e6, "member_leads": MEMBERS * plan.leads.size}))


@torch.inference_mode()
def _steps(generator: Generator, states: list[Any], planes: torch.Tensor, noise: torch.Tensor, steps: int) -> None:
    for _ in range(steps):
        for i, state in enumerate(states):
            states[i] = generator.step(state, planes, noise)
            generator.fields(states[i])


def floor(generator: Generator, plan: ForecastPlan) -> Callable[[], None]:
    """The network's steps alone, on inputs that lie there: as many micro-batches as the forecast has."""
    spec, rows = generator.spec, micro_batch(generator.spec)
    device = next(generator.parameters()).device
    shape = plan.grid.shape
    planes = torch.zeros(rows, spec.n_planes, *shape, device=device)
    noise = torch.zeros(rows, flat_noise_size(generator.noise_shapes()), device=device)
    frames = torch.zeros(rows, spec.frames, len(spec.channels), *shape, device=device)
    batches = -(-len(plan.members) // rows)

    def steps() -> None:
        with torch.inference_mode():
            states = [generator.initial(frames, planes, noise) for _ in range(batches)]
        _steps(generator, states, planes, noise, plan.leads.size)

    return steps


def analysis_for(generator: Generator) -> xr.Dataset:
    """Mean fields with noise at the input frames, in memory, and static fields: speed does not depend on weather."""
    spec = generator.spec
    rng = np.random.default_rng(0)
    times = INIT - spec.step * np.arange(spec.frames)[::-1]
    fields = spec.denormalise(rng.normal(size=(spec.frames, len(spec.channels), *spec.grid.shape)).astype(np.float32))
    made = forecast_dataset(
        fields[:, None, None], times, np.array([np.timedelta64(0, "h")]), (1,), spec.parsed_channels, spec.grid
    )
    world = made.isel(prediction_timedelta=0, number=0, drop=True).drop_vars("valid_time")
    static = _static(spec.grid, rng)
    return world.assign({name: static for name in spec.forcings if name in ("geopotential_at_surface", "land_sea_mask")})


def _static(grid: Grid, rng: np.random.Generator) -> tuple[tuple[str, str], np.ndarray]:
    return ("latitude", "longitude"), rng.random(grid.shape).astype(np.float32)


def peak_bytes(device: str) -> int:
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
