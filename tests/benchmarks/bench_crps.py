"""How fast is the fair CRPS? Against a plain read of the members and properscoring, interleaved in one run.

    python tests/benchmarks/bench_crps.py [--members 50] [--repeat 7]

50 members x 20 leads x 121 x 240 points in float32 (116 MB) unless asked otherwise; each peer on the layout it likes best. Ratios
are of medians in the same run; on a busy machine trust the minimum, or the processor seconds, which waiting does not lengthen.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import properscoring
import xarray as xr

from verification import crps, kernels

LEADS, LATITUDES, LONGITUDES = 20, 121, 240


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    contestants, megabytes = prepare(options.members)
    for run in contestants.values():
        run()  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    processor: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.repeat):
        for name, run in contestants.items():
            start, busy = time.perf_counter(), time.process_time()
            run()
            seconds[name].append(time.perf_counter() - start)
            processor[name].append(time.process_time() - busy)
    peaks = {name: peak(run) for name, run in contestants.items()}
    show(seconds, processor, peaks, megabytes)


def prepare(members: int) -> tuple[dict[str, Callable[[], object]], float]:
    """What is timed, and the size of the members in MB. Checks first that the contestants agree."""
    rng = np.random.default_rng(0)
    shape = (LEADS, members, LATITUDES, LONGITUDES)
    values = rng.standard_normal(shape, dtype=np.float32)
    truths = rng.standard_normal((LEADS, LATITUDES, LONGITUDES), dtype=np.float32)
    block, truth = values.reshape(LEADS, members, -1), truths.reshape(LEADS, -1)
    last, flat = np.ascontiguousarray(np.moveaxis(block, 1, -1)).reshape(-1, members), truth.ravel()
    forecast = xr.DataArray(values, dims=("lead", "number", "latitude", "longitude"))
    observed = xr.DataArray(truths, dims=("lead", "latitude", "longitude"))
    members_last = xr.DataArray(last, dims=("point", "number"))
    reference = properscoring.crps_ensemble(flat, last)
    np.testing.assert_allclose(crps(forecast, observed, estimator="ecdf").values.ravel(), reference, atol=1e-6)
    contestants: dict[str, Callable[[], object]] = {
        "plain read (sum)": lambda: values.sum(),
        "properscoring, ecdf only, members last": lambda: properscoring.crps_ensemble(flat, last),
        "kernel: every CRPS estimator, 1 thread": lambda: kernels.crps_terms(block, truth),
        "kernel: every CRPS estimator, 2 threads": lambda: kernels.crps_terms(block, truth, 2),
        "kernel: whole score state, 1 thread": lambda: kernels.point_statistics(block, truth),
        "kernel: whole score state, 2 threads": lambda: kernels.point_statistics(block, truth, 2),
        "crps() on a DataArray": lambda: crps(forecast, observed),
        "crps() on a DataArray, members last": lambda: crps(members_last, xr.DataArray(flat, dims="point")),
    }
    return contestants, values.nbytes / 1e6


def peak(run: Callable[[], object]) -> float:
    """MB that one call holds at most beyond its inputs."""
    tracemalloc.start()
    run()
    _, highest = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return highest / 1e6


def show(seconds: dict[str, list[float]], processor: dict[str, list[float]], peaks: dict[str, float], megabytes: float) -> None:
    peer = seconds["properscoring, ecdf only, members last"]
    read = seconds["plain read (sum)"]
    print(f"{'':42}{'median s':>10}{'min s':>9}{'cpu s':>8}{'GB/s':>7}{'x peer':>8}{'x read':>8}{'extra MB':>10}")
    for name, times in seconds.items():
        median, fastest = float(np.median(times)), min(times)
        against = f"{np.median(peer) / median:8.1f}{fastest / min(read):8.1f}"
        spent = f"{median:10.4f}{fastest:9.4f}{min(processor[name]):8.3f}"
        print(f"{name:42}{spent}{megabytes / 1e3 / fastest:7.1f}{against}{peaks[name]:10.0f}")


if __name__ == "__main__":
    main()
