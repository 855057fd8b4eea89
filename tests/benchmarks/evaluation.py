"""How fast is a forecast store scored, in how much memory? Against zarr alone decoding the same chunks, in turns.

    python -m tests.benchmarks evaluation

Two stores of 50 members at 1.5 degrees, 2 variables, 20 leads, of 8 and of 16 initialisations (1.9 and 3.7 GB of members, about 3
GB on the disk for the time of the run), with four events. Each evaluation runs in a process of its own, for its peak memory,
after the certificate, as `plumecast verify` does.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr
import zarr
from scipy.ndimage import gaussian_filter

from data_pipeline import store
from data_pipeline.grid import Grid

VARIABLES = {"2m_temperature": ("K", 280.0, 8.0), "mean_sea_level_pressure": ("Pa", 101325.0, 900.0)}
EVENTS = [
    f"{name} {op} {mean + sign * size:g}" for name, (_, mean, size) in VARIABLES.items() for op, sign in ((">", 1), ("<", -1))
]
MEMBERS, LEADS, RUN = 50, 20, 8  # RUN: leads in a chunk, as forecasts are stored
STEP = np.timedelta64(12, "h").astype("timedelta64[ns]")
START = np.datetime64("2007-01-01", "ns")
TURNS = 5


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("writing two synthetic stores", flush=True)
        for inits in (8, 16):
            make(folder, inits)
        seconds = {inits: turns(folder, inits) for inits in (8, 16)}
        print(f"{'inits':>6}{'GB':>6}{'decode s':>10}{'score s':>9}{'speed / decode':>16}{'peak MB':>9}{'state / forecast':>18}")
        for inits, (decode, score, peak) in seconds.items():
            size = inits * MEMBERS * LEADS * len(VARIABLES) * Grid.named("240x121").areas.size * 4
            state = sum(file.stat().st_size for file in (folder / f"{inits}.scores.zarr").rglob("*") if file.is_file())
            ratio = np.median(decode) / np.median(score)
            print(
                f"{inits:>6}{size / 1e9:6.2f}{np.median(decode):10.2f}{np.median(score):9.2f}"
                f"{ratio:16.2f}{peak:9.0f}{state / size:18.4f}"
            )
        growth = np.median(seconds[16][1]) / np.median(seconds[8][1])
        print(f"16 initialisations took {growth:.2f} times as long as 8; medians of {TURNS} turns")


def turns(folder: Path, inits: int) -> tuple[list[float], list[float], float]:
    """Seconds of decoding alone and of scoring, in turns, and the highest peak memory of scoring, MB."""
    decode, score, peak = [], [], 0.0
    for _ in range(TURNS):
        group = zarr.open_group(folder / f"{inits}.zarr", mode="r")
        start = time.perf_counter()
        for name in VARIABLES:
            for init in range(inits):
                group[name][init]  # type: ignore[index]
        decode.append(time.perf_counter() - start)
        shutil.rmtree(folder / f"{inits}.scores.zarr", ignore_errors=True)
        lines = subprocess.run([sys.executable, "-c", CHILD, str(folder), str(inits)], check=True, capture_output=True, text=True)
        seconds, highest = map(float, lines.stdout.split())
        score.append(seconds)
        peak = max(peak, highest)
    return decode, score, peak


CHILD = f"""
import resource, sys, time
from pathlib import Path
from verification.certify import certify
from verification.evaluate import score_store
certify()
folder, inits = Path(sys.argv[1]), sys.argv[2]
start = time.perf_counter()
score_store(folder / f"{{inits}}.zarr", folder / "analysis.zarr", folder / f"{{inits}}.scores.zarr", events={EVENTS!r})
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
"""


def make(folder: Path, inits: int) -> None:
    """A forecast store, and once its truth: smooth weather, members with smooth and with noisy errors."""
    rng = np.random.default_rng(0)
    grid = Grid.named("240x121")

    def smooth(*shape: int) -> np.ndarray:
        noise = rng.standard_normal((*shape, *grid.shape), dtype=np.float32)
        field: np.ndarray = 10 * gaussian_filter(noise, (0, 3, 5), mode=("nearest", "nearest", "wrap"))
        return field

    stamps = START + STEP * np.arange(2 * 16 + LEADS + 2)
    truth = xr.Dataset(coords={"time": stamps, **grid.coords()}, attrs={"source": "synthetic"})
    for name, (units, mean, size) in VARIABLES.items():
        truth[name] = (
            ("time", "latitude", "longitude"),
            (mean + size * smooth(stamps.size)).astype(np.float32),
            {"units": units},
        )
    truth["land_sea_mask"] = (("latitude", "longitude"), (smooth(1)[0] > 0.3).astype(np.float32), {"units": "1"})
    store.write_dataset(folder / "analysis.zarr", truth)
    errors = [smooth(MEMBERS) for _ in range(3)]
    leads = STEP * np.arange(1, LEADS + 1)
    coords = {
        "time": START + 2 * STEP * np.arange(inits),
        "prediction_timedelta": leads,
        "number": np.arange(MEMBERS),
        **grid.coords(),
    }
    dims = ("time", "prediction_timedelta", "number", "latitude", "longitude")
    blank = store.blank(coords, {name: (dims, {"units": units}) for name, (units, _, _) in VARIABLES.items()})
    parts = [str(init) for init in range(inits)]
    chunks = {"time": 1, "prediction_timedelta": RUN}
    with store.create(folder / f"{inits}.zarr", blank, parts=parts, attrs={"model": f"{inits}"}, chunks=chunks) as writer:
        for init in range(inits):
            for first in range(0, LEADS, RUN):
                some = slice(first, min(first + RUN, LEADS))
                fields = {}
                for name, (_, _, size) in VARIABLES.items():
                    members = [
                        truth[name].values[2 * init + lead + 1]
                        + size * (0.3 * errors[lead % 3] + 0.02 * rng.standard_normal((MEMBERS, *grid.shape), dtype=np.float32))
                        for lead in range(some.start, some.stop)
                    ]
                    fields[name] = (dims, np.stack(members)[None].astype(np.float32))
                box = {"time": slice(init, init + 1), "prediction_timedelta": some}
                cut = {dim: values[box[dim]] if dim in box else values for dim, values in coords.items()}
                writer.put(parts[init], xr.Dataset(fields, coords=cut), box)
            writer.complete(parts[init])
        writer.finish()


if __name__ == "__main__":
    main()
