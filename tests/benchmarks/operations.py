"""What an operator pays: peak memory of the roll-out by members and days, and the writer's share of sampling time.

Memory is of separate processes that write a store; the writer is timed beside a sink that drops everything, in turns, in one
process. A forecast of a tiny preset is the hard case for the writer: its networks take the least time for a field. Beside the
seconds of the clock stand those of the processor, the writer's thread counted in full, which other programs disturb less.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from data_pipeline.grid import Grid
from data_pipeline.schema import channels_of
from data_pipeline.statistics import compute as statistics_of
from forecast.gate import Gate, GateSink
from forecast.plan import ForecastPlan
from forecast.rollout import make_plan, run
from forecast.sinks import Sink, ZarrSink
from models.checkpoint import build
from models.contract import Generator
from models.recipe import make_spec
from tests import toys
from tests.benchmarks._dropped import Dropped

SIZES = [(members, days) for members in (10, 50) for days in (5, 15)]
GROWTH = 0.10  # bar: of peak memory, from the smallest to the largest
COST = 0.10  # bar: of the writer, of sampling without it
TURNS = int(os.environ.get("PLUMECAST_TURNS", "7"))
TIMED = (4, 16, 10)  # initialisations, members, days
KINDS = ("none", "store", "store and gate", "writing alone")
FAMILIES = ("crps", "vae")


def main() -> None:
    memory()
    writer()


def memory() -> None:
    """Peak memory of each size, in a process of its own."""
    print(f"peak memory, MB, of a process that writes a store on 64x32 ({torch.get_num_threads()} threads)")
    print(f"{'members':>8}{'days':>6}{'start':>9}{'peak':>9}{'roll-out':>10}{'fields':>9}{'seconds':>9}", flush=True)
    peaks = []
    for members, days in SIZES:
        code = f"from tests.benchmarks import operations; operations.child({members}, {days})"
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        peaks.append(found["peak"])
        print(
            f"{members:8}{days:6}{found['start']:9.0f}{found['peak']:9.0f}{found['peak'] - found['start']:10.1f}"
            f"{found['fields']:9.1f}{found['seconds']:9.1f}",
            flush=True,
        )
    growth = max(peaks) / min(peaks) - 1
    print(f"growth of the peak: {100 * growth:.1f} % (bar {100 * GROWTH:.0f} %): {'met' if growth < GROWTH else 'MISSED'}\n")


def child(members: int, days: float) -> None:
    """The figures of one size."""
    generator, world = a_world("crps")
    warm = a_plan(generator, world, 10, 1)
    run(generator, world, warm, [Dropped()])  # what libraries take once is no matter of members and leads
    start = _peak()
    plan = a_plan(generator, world, members, days)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        sample(generator, world, plan, Path(folder) / "f.zarr")
        seconds = time.perf_counter() - began
    print(json.dumps({"start": start, "peak": _peak(), "fields": plan.bytes / 1e6, "seconds": seconds}))


def writer() -> None:
    """Sampling into nothing, into a store, and into a store behind the gate, in turns; and writing as much without networks."""
    inits, members, days = TIMED
    print(f"seconds of {inits} initialisations x {members} members x {days} days on 64x32, {TURNS} turns side by side")
    heads = f"{'clock: median':>14}{'least':>8}{'cost':>8}{'processor: median':>19}{'least':>8}{'cost':>8}"
    print(f"{'tiny':<8}{'sink':<16}{heads}", flush=True)
    missed = []
    for family in FAMILIES:
        generator, world = a_world(family)
        plan = a_plan(generator, world, members, days, inits)
        found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
        for turn in range(TURNS + 1):
            for kind, seconds in found.items():
                took = timed(generator, world, plan, kind)
                if turn:  # the first warms up
                    seconds.append(took)
        floor = np.array(found["none"])
        for kind, seconds in found.items():
            taken, text = np.array(seconds), f"{family:<8}{kind:<16}"
            costs = np.median(taken, axis=0) / np.median(floor, axis=0) - (kind != "writing alone")
            for column, width in enumerate((14, 19)):
                middle, least = np.median(taken[:, column]), taken[:, column].min()
                share = "" if kind == "none" else f"{100 * costs[column]:.1f} %"
                text += f"{middle:{width}.2f}{least:8.2f}{share:>8}"
            print(text, flush=True)
            if kind == "writing alone" and costs[1] > COST:
                missed.append(family)
    print(
        f"processor time of writing under {100 * COST:.0f} % of sampling: {'MISSED by ' + ', '.join(missed) if missed else 'met'}"
    )


def timed(generator: Generator, world: xr.Dataset, plan: ForecastPlan, kind: str) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter(), time.process_time()
        if kind == "none":
            run(generator, world, plan, [Dropped()])
        elif kind == "writing alone":
            write(plan, Path(folder) / "f.zarr")
        else:
            sample(generator, world, plan, Path(folder) / "f.zarr", gated=kind == "store and gate")
        return time.perf_counter() - began[0], time.process_time() - began[1]


def sample(generator: Generator, world: xr.Dataset, plan: ForecastPlan, path: Path, *, gated: bool = True) -> None:
    gate = GateSink(Gate.of(generator.spec, plan, world), strict=False)
    sink = ZarrSink(path, gate=gate if gated else None)
    sinks: list[Sink] = [gate, sink] if gated else [sink]
    try:
        run(generator, world, plan, sinks)
    finally:
        sink.release()
    shutil.rmtree(path)


def write(plan: ForecastPlan, path: Path) -> None:
    """As many fields of noise into a store, in the order in which a roll-out makes them."""
    sink, block = ZarrSink(path), plan.chunks["number"]
    fields = np.random.default_rng(0).normal(size=(block, len(plan.channels), *plan.grid.shape)).astype(np.float32)
    try:
        sink.open(plan)
        for part in plan.parts:
            members = plan.members[part.members]
            for lead in plan.leads:
                sink.take(plan.times[part.row], lead, members, fields[: len(members)])
        sink.close()
    finally:
        sink.release()


def a_world(family: str) -> tuple[Generator, xr.Dataset]:
    """A tiny preset with random weights, and a toy analysis on 64x32."""
    world = toys.weather(Grid.named("64x32"), steps=70)
    period = toys.period(world)
    spec = make_spec(
        world, statistics_of(world, channels_of(world), period), family=family, diagnostic=(), forcings=toys.FORCINGS,
        step_hours=12, frames=2, training_period="/".join(period), validation_period="", options={"preset": "tiny"},
    )  # fmt: skip
    generator = build(spec).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return generator, world


def a_plan(generator: Generator, world: xr.Dataset, members: int, days: float, inits: int = 1) -> ForecastPlan:
    return make_plan(generator, world, world["time"].values[4 : 4 + inits], days=days, members=members, seed=0)


def _peak() -> float:
    """Peak resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
