"""How fast is a climatology made, in how much memory? Against WeatherBench 2's method in plain xarray, in turns.

    python -m tests.benchmarks pipeline_climatology

Ten years of one variable every 6 h at 64x32 (120 MB), in a store as the ingest writes it. Mean and standard deviation by hour
and day of year with the 61-day window, without and with one quantile; each in a process of its own, for its peak memory and its
seconds of CPU, which others on the machine disturb less. Ours reads the store, and writes and publishes a store; the other keeps
its result in memory. Where the windows hold no 29 February, at which the methods differ on purpose, the results are compared.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline import store
from data_pipeline.grid import Grid

PERIOD = ("2001-01-01T00", "2010-12-31T18")
TURNS = {"mean, std": 5, "mean, std, quantile": 3}
NO_LEAP_DAY = slice(61 + 30, 366 - 30)  # days of year whose window lies within days that every year has, in the same place

OURS = """
from data_pipeline import climatology
from data_pipeline.schema import Channel

def make(folder, quantiles):
    analysis = open_store(folder / "analysis.zarr")
    path = folder / f"ours_{len(quantiles)}.zarr"
    shutil.rmtree(path, ignore_errors=True)
    climatology.write(analysis, [Channel("2m_temperature")], PERIOD, path, quantiles=quantiles)
    return open_store(path)
"""

THEIRS = """
def window_of(field):
    days = np.arange(1, 367)
    years = [own.assign_coords(time=own.time.dt.dayofyear.values) for _, own in field.groupby("time.year")]
    stacked = xr.concat([own.rename(time="dayofyear").reindex(dayofyear=days) for own in years], "year")
    last = stacked.sel(dayofyear=[366]).fillna(stacked.sel(dayofyear=365, drop=True))
    stacked = xr.concat([stacked.sel(dayofyear=slice(1, 365)), last], "dayofyear")
    padded = stacked.pad(dayofyear=30, mode="wrap")
    window = padded.rolling(dayofyear=61, center=True).construct("window")
    return window.isel(dayofyear=slice(30, -30)).assign_coords(dayofyear=days)

def make(folder, quantiles):
    field = open_store(folder / "analysis.zarr")["2m_temperature"].load()
    weights = xr.DataArray(np.concatenate([np.linspace(0, 1, 31), np.linspace(1, 0, 31)[1:]]), dims="window")
    hours = []
    for hour, own in field.groupby("time.hour"):
        window = window_of(own)
        weighted = window.weighted(weights.expand_dims(year=window.sizes["year"]))
        found = {"2m_temperature": weighted.mean(["window", "year"]), "2m_temperature_std": weighted.std(["window", "year"])}
        if quantiles:
            found["2m_temperature_quantile"] = weighted.quantile(quantiles, dim=["window", "year"])
        hours.append(xr.Dataset(found).expand_dims(hour=[hour]))
    return xr.concat(hours, "hour")
"""

CHILD = f"""
import resource, shutil, sys, time
from pathlib import Path
import numpy as np
import xarray as xr
from data_pipeline.store import open_store
PERIOD = {PERIOD!r}
{{method}}
folder, quantiles = Path(sys.argv[1]), [float(text) for text in sys.argv[3:]]
start, spent = time.perf_counter(), time.process_time()
found = make(folder, quantiles)
used = resource.getrusage(resource.RUSAGE_SELF)
print(time.perf_counter() - start, time.process_time() - spent, used.ru_maxrss / 1e3)
some = found.isel(dayofyear={NO_LEAP_DAY!r})
xr.Dataset({{name: (array.dims, array.values) for name, array in some.items()}}).to_netcdf(sys.argv[2])
"""

MAKE = """
import sys
from pathlib import Path
from tests.benchmarks.pipeline_climatology import make
make(Path(sys.argv[1]))
"""


def main() -> None:
    """Print seconds and peak memory of both, and how far apart the results are."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # in a process of its own: the peak of a parent counts for its children
        subprocess.run([sys.executable, "-c", MAKE, name], check=True)
        print(f"{'':22}{'':8}{'median s':>10}{'least s':>9}{'CPU s':>8}{'peak MB':>9}{'largest difference':>20}")
        for what, turns in TURNS.items():
            quantiles = ["0.9"] if "quantile" in what else []
            run(folder, OURS, "ours", quantiles)  # compiled once, as an installation keeps it
            found = {who: [] for who in ("ours", "xarray")}
            for _ in range(turns):
                for who, method in (("ours", OURS), ("xarray", THEIRS)):
                    found[who].append(run(folder, method, who, quantiles))
            apart = difference(folder)
            for who, pairs in found.items():
                seconds, cpu, peaks = zip(*pairs, strict=True)
                times = f"{np.median(seconds):10.2f}{min(seconds):9.2f}{np.median(cpu):8.2f}"
                print(f"{what:22}{who:8}{times}{max(peaks):9.0f}{apart:20.2g}")
            wall, cpu = (
                np.median([turn[i] for turn in found["xarray"]]) / np.median([turn[i] for turn in found["ours"]]) for i in (0, 1)
            )
            print(f"{what}: {wall:.1f} times as fast, {cpu:.1f} times by CPU; medians of {turns} turns", flush=True)


def run(folder: Path, method: str, who: str, quantiles: list[str]) -> tuple[float, float, float]:
    """Seconds, seconds of CPU and peak memory (MB) of one climatology in a process of its own."""
    command = [sys.executable, "-c", CHILD.replace("{method}", method), str(folder), str(folder / f"{who}.nc"), *quantiles]
    lines = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, cpu, peak = map(float, lines.stdout.split())
    return seconds, cpu, peak


def difference(folder: Path) -> float:
    """The largest difference of any value, in kelvin."""
    with xr.open_dataset(folder / "ours.nc") as ours, xr.open_dataset(folder / "xarray.nc") as theirs:
        return max(float(np.abs(own.squeeze() - theirs[name].squeeze()).max()) for name, own in ours.items())


def make(folder: Path, size: str = "64x32") -> None:
    """An analysis with a seasonal and a daily cycle and noise."""
    rng, grid = np.random.default_rng(0), Grid.named(size)
    times = pd.date_range(*PERIOD, freq="6h")
    cycle = 10 * np.cos(2 * np.pi * times.day_of_year / 365.25) + 3 * np.cos(2 * np.pi * times.hour / 24)
    values = 280 + cycle.to_numpy()[:, None, None] + 4 * rng.standard_normal((len(times), *grid.shape))
    field = xr.DataArray(
        values.astype("f4"), {"time": times, **grid.coords()}, ("time", "latitude", "longitude"), attrs={"units": "K"}
    )
    store.write_dataset(
        folder / "analysis.zarr", field.to_dataset(name="2m_temperature"), {"source": "synthetic"}, chunks={"time": 128}
    )


if __name__ == "__main__":
    main()
