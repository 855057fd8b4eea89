"""How fast do training batches come, from the disk and from memory? Against zarr decoding, memcpy and xbatcher, in turns.

    python -m tests.benchmarks pipeline_batches

Two synthetic stores with the chunks that `plumecast data ingest` gives them: 13 channels on 240x121 in chunks of 4 stamps (1 GB),
and on 64x32 in chunks of 64 (0.5 GB); they take 0.7 GB of disk for the time of the run. A batch is 16 samples of two frames and
one target. Every contender runs in a process of its own, with two threads, and is timed once it is warm. Batches from the disk
keep the chunks used last in a quarter of the store's size; in random order a chunk of several stamps is decoded for the one or
three that are used. Rates are bytes of samples delivered, which ours alone normalises.

xbatcher slices the opened dataset into windows, which are taken in random order here. It does not normalise, prefetch, repeat an
order after a restart, divide over ranks, skip gaps in time or vary the interval; its caller stacks the channels.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from scipy.ndimage import gaussian_filter

from data_pipeline import open_analysis, store
from data_pipeline.batches import Samples
from data_pipeline.forcings import Forcings
from data_pipeline.grid import Grid
from data_pipeline.schema import channels_of

STORES = {"240x121": (680, 4), "64x32": (5120, 64)}  # stamps, and stamps a chunk
MIXED = {"240x121": 84, "64x32": 640}  # in the order "chunks": half of what may be kept
LEVELS = {
    "geopotential": ("m2 s-2", 5.4e4, 2e3),
    "temperature": ("K", 260, 10),
    "u_component_of_wind": ("m s-1", 5, 10),
    "v_component_of_wind": ("m s-1", 0, 10),
}  # units, mean, std
SURFACE = {
    "2m_temperature": ("K", 280, 10),
    "mean_sea_level_pressure": ("Pa", 101325, 900),
    "10m_u_component_of_wind": ("m s-1", 0, 5),
    "10m_v_component_of_wind": ("m s-1", 0, 5),
    "total_precipitation_6hr": ("m", 0, 1e-3),
}
STEP = np.timedelta64(6, "h")
THREADS, SIZE, FRAMES, STEPS, TURNS = 2, 16, 2, 1, 5
SAMPLE = FRAMES + STEPS
FLOORS = ("zarr decode", "memcpy")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        for grid, (stamps, chunk) in STORES.items():
            path = Path(name) / f"{grid}.zarr"
            make(path, Grid.named(grid), stamps, chunk)
            shown(grid, turns(path))
            shutil.rmtree(path)


def shown(grid: str, found: dict[str, list[dict[str, float]]]) -> None:
    """A line a contender; the floor is the one above it."""
    print(f"\n{grid:<24}{'batches/s':>11}{'best':>8}{'MB/s':>8}{'best':>8}{'decoded/used':>14}{'of the floor':>14}{'best':>7}")
    floor: list[float] = []
    for name, runs in found.items():
        rates = [run["bytes"] / run["seconds"] / 1e6 for run in runs]
        batches = [run["batches"] / run["seconds"] for run in runs]
        floor = rates if name in FLOORS else floor
        ratio, best = np.median(rates) / np.median(floor), max(rates) / max(floor)
        decoded = f"{runs[0]['decoded'] / runs[0]['bytes']:.2f}" if runs[0]["decoded"] else "-"
        print(
            f"{name:<24}{np.median(batches):11.1f}{max(batches):8.1f}{np.median(rates):8.0f}{max(rates):8.0f}"
            f"{decoded:>14}{ratio:14.2f}{best:7.2f}"
        )
    print(
        f"medians and best of {TURNS} turns; batches of {SIZE} samples of {FRAMES} frames and {STEPS} target, {THREADS} threads"
    )


def turns(path: Path) -> dict[str, list[dict[str, float]]]:
    """Seconds, batches, bytes delivered and bytes decoded of every turn of every contender."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(TURNS):
        for name in CONTENDERS:
            code = f"from tests.benchmarks import pipeline_batches as b; b.child({name!r}, {str(path)!r})"
            lines = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
            found[name].append(json.loads(lines.stdout.splitlines()[-1]))
    return found


def child(name: str, path: str) -> None:
    """Run one contender on the store and print its figures."""
    print(json.dumps(CONTENDERS[name](Path(path))))


def decoded(path: Path) -> dict[str, float]:
    """Every chunk of the store once, in random order, by zarr alone."""
    group = zarr.open_group(path, mode="r")
    arrays = [array for name in {**LEVELS, **SURFACE} if isinstance(array := group[name], zarr.Array)]
    stamps, chunk = arrays[0].shape[0], arrays[0].chunks[0]
    firsts = np.random.default_rng(0).permutation(np.arange(0, stamps, chunk))
    tasks = [(array, int(first)) for first in firsts for array in arrays]

    def read(task: tuple[Any, int]) -> int:
        return int(task[0][task[1] : task[1] + chunk].nbytes)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(read, tasks[: len(tasks) // 10]))
        start = time.perf_counter()
        total = sum(pool.map(read, tasks))
        return figures(start, total / stamp_bytes(path) / SAMPLE / SIZE, total, total)


def copied(path: Path) -> dict[str, float]:
    """Runs of stamps of an array in memory into blocks of a batch, which are there already: np.copyto."""
    stamps, count = open_analysis(path).sizes["time"], 300
    source = np.random.default_rng(0).standard_normal((stamps, stamp_bytes(path) // 4), dtype=np.float32)
    blocks = [np.empty((SIZE * SAMPLE, source.shape[1]), np.float32) for _ in range(THREADS)]
    firsts = np.random.default_rng(1).integers(0, stamps - SIZE * SAMPLE, count)

    def copy(k: int) -> None:
        np.copyto(blocks[k % THREADS], source[firsts[k] :][: SIZE * SAMPLE])

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(copy, range(count)))
        start = time.perf_counter()
        list(pool.map(copy, range(count)))
        return figures(start, count, count * blocks[0].nbytes, 0)


def ours(path: Path, order: Any, share: float) -> dict[str, float]:
    """Batches in an order; `share` of the bytes of the store may be kept."""
    samples, reads = samples_of(path, share), 0
    plain = samples._fields.read

    def counted(block: int, out: np.ndarray) -> None:
        nonlocal reads
        reads += out.nbytes
        plain(block, out)

    samples._fields.read = counted  # type: ignore[method-assign]
    count = {"random": 300, "epochs": 30, "chunks": samples.starts(STEPS).size // SIZE}[order]

    def run(seed: int, count: int) -> None:
        for batch in samples.batches(seed, 0, count, SIZE, STEPS, order=order, mixed=MIXED[path.stem], threads=THREADS):
            assert batch.targets.shape[0] == SIZE
            del batch

    run(1, count // 5)
    reads, start = 0, time.perf_counter()
    run(0, count)
    return figures(start, count, count * SIZE * SAMPLE * stamp_bytes(path), reads)


def xbatched(path: Path, *, in_memory: bool) -> dict[str, float]:
    """Windows in random order, each loaded, stacked to channels by the caller."""
    import xbatcher

    data = open_analysis(path)[[*LEVELS, *SURFACE]]
    data = data.load() if in_memory else data
    count = 40 if in_memory else 10
    windows = xbatcher.BatchGenerator(data, input_dims={**data.sizes, "time": SAMPLE}, input_overlap={"time": SAMPLE - 1})
    order = np.random.default_rng(0).permutation(len(windows))

    def sample(i: int) -> np.ndarray:
        window = windows[i].load()
        arrays = [window[name].values for name in data.data_vars]
        return np.concatenate([array if array.ndim == 4 else array[:, None] for array in arrays], axis=1)

    def run(chosen: np.ndarray) -> None:
        for k in range(0, len(chosen), SIZE):
            np.stack([sample(int(i)) for i in chosen[k : k + SIZE]])

    run(order[-2 * SIZE :])
    start = time.perf_counter()
    run(order[: count * SIZE])
    used = count * SIZE * SAMPLE * stamp_bytes(path)
    return figures(start, count, used, 0)


CONTENDERS: dict[str, Callable[[Path], dict[str, float]]] = {
    "zarr decode": decoded,
    "disk, order chunks": lambda path: ours(path, "chunks", 0.25),
    "disk, order epochs": lambda path: ours(path, "epochs", 0.25),
    "disk, xbatcher": lambda path: xbatched(path, in_memory=False),
    "memcpy": copied,
    "memory, order random": lambda path: ours(path, "random", 1.1),
    "memory, xbatcher": lambda path: xbatched(path, in_memory=True),
}


def figures(start: float, batches: float, used: float, read: float) -> dict[str, float]:
    return {"seconds": time.perf_counter() - start, "batches": batches, "bytes": used, "decoded": read}


def stamp_bytes(path: Path) -> int:
    data = open_analysis(path)
    return 4 * len(channels_of(data)) * data.sizes["latitude"] * data.sizes["longitude"]


def samples_of(path: Path, share: float) -> Samples:
    data = open_analysis(path)
    channels = channels_of(data)
    scale = [{**LEVELS, **SURFACE}[channel.name] for channel in channels]
    moments = xr.Dataset({key: ("channel", [float(row[i]) for row in scale]) for i, key in enumerate(("mean", "std"), 1)})
    return Samples(
        data, channels, moments, Forcings((), Grid.of(data), STEP), ("1900-01-01", "2100-01-01"), step=STEP, frames=FRAMES,
        memory=int(share * data.sizes["time"] * stamp_bytes(path)),
    )  # fmt: skip


def make(path: Path, grid: Grid, stamps: int, chunk: int) -> None:
    """An analysis of smooth patterns, which come again, under a little noise: it compresses to about two thirds."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((40, *grid.shape), dtype=np.float32)
    patterns = 10 * gaussian_filter(noise, (0, 3, 5), mode=("nearest", "nearest", "wrap"))
    kinds = rng.integers(0, len(patterns), (len(LEVELS) * 2 + len(SURFACE), stamps))

    def field(kind: np.ndarray, mean: float, size: float) -> np.ndarray:
        out = patterns[kind]
        for one in out:
            one += 0.02 * rng.standard_normal(grid.shape, dtype=np.float32)
        return mean + size * out

    data = xr.Dataset(
        coords={"time": np.datetime64("2001-01-01", "ns") + STEP * np.arange(stamps), "level": [500, 850], **grid.coords()},
        attrs={"source": "synthetic"},
    )
    for i, (name, (units, mean, size)) in enumerate(LEVELS.items()):
        pair = np.stack([field(kind, mean, size) for kind in kinds[2 * i : 2 * i + 2]], axis=1)
        data[name] = (("time", "level", "latitude", "longitude"), pair, {"units": units})
    for (name, (units, mean, size)), kind in zip(SURFACE.items(), kinds[2 * len(LEVELS) :], strict=True):
        values = field(kind, mean, size)
        values = np.maximum(values, 0) if units == "m" else values
        data[name] = (("time", "latitude", "longitude"), values, {"units": units})
    store.write_dataset(path, data, chunks={"time": chunk})


if __name__ == "__main__":
    main()
