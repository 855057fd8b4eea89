"""How fast are the scores? Against a plain read of the members and the peers, interleaved in one run.

    python -m tests.benchmarks verification [--repeat 7]

50 members x 20 leads x 121 x 240 points in float32 (116 MB); each package on the array layout it likes best, then ensembles of 8
to 500 members in both orders of the dims. Ratios are of medians in the same run; on a busy machine trust the minimum. The peers
run on one thread, which is all they have. Every contestant is checked against the others before the clock starts.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import properscoring
import xarray as xr

from verification import crps, kernels
from verification.counting import OPS
from verification.onepass import FieldSums, field_sums

LEADS, LATITUDES, LONGITUDES = 20, 121, 240
POINTS = LATITUDES * LONGITUDES
Contestants = dict[str, Callable[[], object]]
PEER = "properscoring, ecdf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=7)
    repeat = parser.parse_known_args()[0].repeat
    fields = Fields(50)
    print(f"{fields.members.nbytes / 1e6:.0f} MB: 50 members x {LEADS} leads x {LATITUDES} x {LONGITUDES}, float32\n")
    contestants = {**readers(fields), **peers(fields), **ours(fields)}
    seconds = timed(contestants, repeat)
    show(seconds, {name: peak(run) for name, run in contestants.items()}, fields.members.nbytes)
    print(
        "\nfair CRPS by ensemble size, 29 million values: seconds (minimum), members first and last in memory, 1 and 2 threads\n"
    )
    print(
        f"{'members':>8}{'read':>9}{'first, 1':>10}{'first, 2':>11}{'last, 1':>9}{'last, 2':>9}{'properscoring':>15}{'ratio':>14}"
    )
    for members in (8, 16, 50, 100, 500):
        by_size(members, max(3, repeat // 2))


class Fields:
    """Members (lead, M, point) and truth (lead, point), and the same with members last."""

    def __init__(self, members: int, points: int = POINTS) -> None:
        rng = np.random.default_rng(0)
        self.members = rng.standard_normal((LEADS, members, points), dtype=np.float32)
        self.truth = rng.standard_normal((LEADS, points), dtype=np.float32)
        self.last = np.ascontiguousarray(np.moveaxis(self.members, 1, -1)).reshape(-1, members)
        self.flat = self.truth.ravel()


def readers(fields: Fields) -> Contestants:
    return {"plain read (sum)": lambda: fields.members.sum()}


def peers(fields: Fields) -> Contestants:
    """Other packages on members last, checked against properscoring."""
    last, flat = fields.last, fields.flat
    found: Contestants = {PEER: lambda: properscoring.crps_ensemble(flat, last)}
    try:
        import scores.probability
        import scoringrules
        import xskillscore
    except ImportError:
        print("scores, scoringrules and xskillscore are not installed (pip install plumecast[peers]): left out\n")
        return found
    exact = {"fair": "fair", "pwm (= fair)": "pwm", "qd (ecdf)": "qd"}
    for text, estimator in exact.items():
        found[f"scoringrules numba, {text}"] = lambda name=estimator: scoringrules.crps_ensemble(  # type: ignore[misc]
            flat, last, estimator=name, backend="numba"
        )
    arrays = xr.DataArray(last, dims=("point", "member")), xr.DataArray(flat, dims="point")
    found["xskillscore, ecdf"] = lambda: xskillscore.crps_ensemble(arrays[1], arrays[0], member_dim="member", dim=[])
    found["scores, fair"] = lambda: scores.probability.crps_for_ensemble(*arrays, "member", method="fair", preserve_dims="all")
    part = slice(0, 2000)
    fair = scoringrules.crps_ensemble(flat[part].astype(float), last[part].astype(float), estimator="fair", backend="numba")
    own = crps(xr.DataArray(last[part], dims=("point", "number")), xr.DataArray(flat[part], dims="point"))
    np.testing.assert_allclose(own, fair, atol=1e-6)
    return found


def ours(fields: Fields) -> Contestants:
    """Our kernels and functions, checked against properscoring."""
    members, truth = fields.members, fields.truth
    forecast = xr.DataArray(members.reshape(LEADS, -1, LATITUDES, LONGITUDES), dims=("lead", "number", "latitude", "longitude"))
    observed = xr.DataArray(truth.reshape(LEADS, LATITUDES, LONGITUDES), dims=("lead", "latitude", "longitude"))
    reference = properscoring.crps_ensemble(fields.flat, fields.last)
    np.testing.assert_allclose(crps(forecast, observed, estimator="ecdf").values.ravel(), reference, atol=1e-6)
    state = state_of(fields)
    return {
        "ours: every CRPS estimator, 1 thread": lambda: kernels.crps_terms(members, truth),
        "ours: every CRPS estimator, 2 threads": lambda: kernels.crps_terms(members, truth, 2),
        "ours: crps() on a DataArray, all cores": lambda: crps(forecast, observed),
        "ours: whole state, 1 thread": lambda: state(1),
        "ours: whole state, 2 threads": lambda: state(2),
    }


def state_of(fields: Fields) -> Callable[[int], list[FieldSums]]:
    """The one pass: ecdf, fair, mean, variance, MSE, ranks, decomposition, quantiles, ACC, 4 event tables, 4 twCRPS, maps."""
    weights = np.repeat(np.cos(np.deg2rad(np.linspace(-89, 89, LATITUDES))), LONGITUDES)
    rows, columns = np.divmod(np.arange(POINTS), LONGITUDES)
    cells = (rows * 7 // LATITUDES * 12 + columns * 12 // LONGITUDES) * 2 + (np.sin(rows / 9) + np.cos(columns / 15) > 0)
    zones = np.arange(168) // 24 * 3 // 7 * 2 + np.arange(168) % 2
    thresholds = np.stack([np.full((LEADS, POINTS), value, np.float32) for value in (-1.0, 0.0, 1.0, 1.6)])
    climatology = np.zeros((LEADS, POINTS))
    ops = np.array([OPS.index(op) for op in ("<", ">", ">", ">")])

    def run(first: int, last: int) -> FieldSums:
        cut = slice(first, last)
        return field_sums(
            fields.members[cut], fields.truth[cut], weights, cells, zones, edges=np.linspace(-3, 3, 63),
            levels=np.array([0.1, 0.5, 0.9]), climatology=climatology[cut], thresholds=thresholds[:, cut], ops=ops,
        )  # fmt: skip

    def score(threads: int) -> list[FieldSums]:
        if threads == 1:
            return [run(0, LEADS)]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(run, range(0, LEADS, LEADS // threads), range(LEADS // threads, LEADS + 1, LEADS // threads)))

    return score


def by_size(members: int, repeat: int) -> None:
    fields = Fields(members, LEADS * POINTS * 50 // members // LEADS)
    ordered = fields.last.reshape(-1, members, 1)
    truth_last = fields.flat.reshape(-1, 1)
    seconds = timed(
        {
            "read": lambda: fields.members.sum(),
            "1": lambda: kernels.crps_terms(fields.members, fields.truth),
            "2": lambda: kernels.crps_terms(fields.members, fields.truth, 2),
            "last 1": lambda: kernels.crps_terms(ordered, truth_last),
            "last 2": lambda: kernels.crps_terms(ordered, truth_last, 2),
            PEER: lambda: properscoring.crps_ensemble(fields.flat, fields.last),
        },
        repeat,
    )
    least = [min(times) for times in seconds.values()]
    row = "".join(f"{value:{width}.4f}" for value, width in zip(least, (9, 10, 11, 9, 9, 15), strict=True))
    print(f"{members:>8}{row}{least[5] / least[1]:8.1f}{least[5] / least[2]:6.1f}")


def timed(contestants: Contestants, repeat: int) -> dict[str, list[float]]:
    """Seconds of each, in turns; the first turn warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeat + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak(run: Callable[[], Any]) -> float:
    """MB that one call holds at most beyond its inputs."""
    tracemalloc.start()
    run()
    _, highest = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return highest / 1e6


def show(seconds: dict[str, list[float]], peaks: dict[str, float], size: int) -> None:
    fair = min((name for name in seconds if "fair" in name and "ours" not in name), default=PEER, key=lambda n: min(seconds[n]))
    print(f"{'':40}{'median s':>10}{'min s':>9}{'GB/s':>7}{'x read':>8}{'x ' + PEER:>22}{'x best fair peer':>18}{'extra MB':>10}")
    for name, times in seconds.items():
        median, least = float(np.median(times)), min(times)
        ratios = [float(np.median(seconds[other])) / median for other in (PEER, fair)]
        reads = median / float(np.median(seconds["plain read (sum)"]))
        print(
            f"{name:40}{median:10.4f}{least:9.4f}{size / 1e9 / least:7.1f}{reads:8.1f}{ratios[0]:22.1f}{ratios[1]:18.1f}"
            f"{peaks[name]:10.0f}"
        )
    print(f"\nbest exact peer for the fair CRPS: {fair}")


if __name__ == "__main__":
    main()
