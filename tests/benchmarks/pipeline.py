"""How fast is an archive ingested? Beside xarray's own way with the same chunks and codecs, in turns.

    python -m tests.benchmarks pipeline

A synthetic archive at 1.5 degrees (240x121), 3 variables on 2 levels, 6-hourly, NetCDF files of a month, not compressed, in the
page cache. Each contender runs in a process of its own: `xarray` is `open_mfdataset(...).to_zarr(...)` on dask's threads, which
checks nothing, sums up nothing, hashes nothing and does not wait for the disk; `ingest` does all of that, `bare` is the same code
with checks, sums and hashes taken out. Floors: the files read once by netCDF4, and the chunks encoded alone. The other files
`pipeline_*.py` are benchmarks of their own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from scipy.ndimage import gaussian_filter

from data_pipeline.grid import Grid

VARIABLES = {
    "geopotential": ("m2 s-2", 5e4, 1e3),
    "temperature": ("K", 270.0, 10.0),
    "specific_humidity": ("kg kg-1", 5e-3, 1e-3),
}
LEVELS = (500, 850)
MONTHS = int(os.environ.get("PLUMECAST_BENCH_MONTHS", "24"))  # 24: 2.0 GB
TURNS = int(os.environ.get("PLUMECAST_BENCH_TURNS", "5"))

HEAD = """
import json, os, sys, time, resource
from pathlib import Path
source, out = Path(sys.argv[1]), Path(sys.argv[2])
"""
TAIL = """
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
"""
CONTENDERS = {
    "ingest": """
import data_pipeline.ingest
recipe = json.loads(sys.argv[3])
start = time.perf_counter()
data_pipeline.ingest.ingest(recipe, out)
""",
    "bare": """
import hashlib
import numpy as np
import data_pipeline.chunks, data_pipeline.ingest, data_pipeline.parts
scan, kept = data_pipeline.parts.scan, {}
def once(values, earlier, pairs, weights, *, log):
    key = values.shape, earlier.shape, int(np.log10(values.flat[0])), len(pairs)
    if key not in kept:
        kept[key] = scan(values, earlier, pairs, weights, log=log)
    return kept[key]
class NoHash:
    def __init__(self, content): pass
    def hexdigest(self): return ""
data_pipeline.parts.scan = once
data_pipeline.chunks.hashlib = type("none", (), {"sha256": NoHash})
recipe = json.loads(sys.argv[3])
start = time.perf_counter()
data_pipeline.ingest.ingest(recipe, out)
""",
    "xarray": """
import dask, xarray as xr
from zarr.codecs import BloscCodec, Crc32cCodec
chunk = int(sys.argv[4])
start = time.perf_counter()
data = xr.open_mfdataset(sorted(source.glob("*.nc")), combine="nested", concat_dim="time", data_vars="minimal", coords="minimal",
                         compat="override", join="override", chunks={})
codecs = [BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"), Crc32cCodec()]
encoding = {name: {"chunks": (chunk, *array.shape[1:]), "compressors": codecs} for name, array in data.data_vars.items()}
data.drop_encoding().to_zarr(out, encoding=encoding, consolidated=False)
""",
    "read": """
import netCDF4
start = time.perf_counter()
for path in sorted(source.glob("*.nc")):
    with netCDF4.Dataset(path) as data:
        for name in ("geopotential", "temperature", "specific_humidity"):
            data[name][:]
""",
    "encode": """
from concurrent.futures import ThreadPoolExecutor
import xarray as xr
from data_pipeline.chunks import encoded
from data_pipeline.workers import cores
chunk = int(sys.argv[4])
files = sorted(source.glob("*.nc"))
with xr.open_dataset(files[0]) as data:
    arrays = [data[name].values for name in data.data_vars]
pieces = [array[low : low + chunk] for array in arrays for low in range(0, len(array), chunk)]
start = time.perf_counter()
with ThreadPoolExecutor(cores()) as threads:
    for _ in files:
        list(threads.map(encoded, pieces))
""",
}


def main() -> None:
    ingest_benchmark()


def ingest_benchmark() -> None:
    """Print seconds, throughput and peak memory of each contender."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"writing {MONTHS} months", flush=True)
        size = make(folder / "source")
        channels = [f"{variable}_{level}" for variable in VARIABLES for level in LEVELS]
        recipe = {
            "name": "bench", "source": {"path": str(folder / "source")}, "analysis": {"channels": channels, "step": "6h"}
        }  # fmt: skip
        found: dict[str, list[tuple[float, float]]] = {contender: [] for contender in CONTENDERS}
        run("ingest", folder, recipe, 1)  # numba's cache
        chunk = json.loads((folder / "out" / "geopotential" / "zarr.json").read_text())["chunk_grid"]["configuration"][
            "chunk_shape"
        ][0]
        for _ in range(TURNS):
            for contender in CONTENDERS:
                found[contender].append(run(contender, folder, recipe, chunk))
        print(f"{size / 1e9:.2f} GB of float32, chunks of {chunk} stamps, medians (and least) of {TURNS} turns")
        print(f"{'':10}{'seconds':>18}{'MB/s':>8}{'peak MB':>9}{'of xarray':>11}")
        reference = np.median([seconds for seconds, _ in found["xarray"]])
        for contender, values in found.items():
            seconds = [value for value, _ in values]
            median, peak = float(np.median(seconds)), max(memory for _, memory in values)
            shown = f"{median:.2f} ({min(seconds):.2f})"
            print(f"{contender:10}{shown:>18}{size / 1e6 / median:8.0f}{peak:9.0f}{median / reference:11.2f}")


def run(contender: str, folder: Path, recipe: dict[str, object], chunk: int) -> tuple[float, float]:
    """Seconds and peak memory (MB) of one contender."""
    for place in folder.glob("out*"):
        shutil.rmtree(place)
    # what the last one left to be written to the disk is not to be waited for by this one
    os.sync()
    arguments = [str(folder / "source"), str(folder / "out"), json.dumps(recipe), str(chunk)]
    command = [sys.executable, "-c", HEAD + CONTENDERS[contender] + TAIL, *arguments]
    lines = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, peak = map(float, lines.stdout.split()[-2:])
    return seconds, peak


def make(folder: Path) -> int:
    """Files of smooth fields with a little noise, one a month; their size as float32."""
    folder.mkdir(parents=True)
    draws, grid, size = np.random.default_rng(0), Grid.named("240x121"), 0
    smooth = gaussian_filter(draws.standard_normal((16, *grid.shape)), (0, 3, 5), mode=("nearest", "nearest", "wrap")) * 10
    for month in pd.date_range("2001-01-01", periods=MONTHS, freq="MS"):
        times = pd.date_range(month, month + pd.offsets.MonthEnd() + pd.Timedelta("18h"), freq="6h")
        data = xr.Dataset(coords={"time": times, "level": ("level", list(LEVELS), {"units": "hPa"}), **grid.coords()})
        for name, (units, mean, spread) in VARIABLES.items():
            places = draws.integers(16, size=(len(times), len(LEVELS)))
            noise = draws.standard_normal((len(times), len(LEVELS), *grid.shape), dtype=np.float32)
            values = (mean + spread * (smooth[places] + 0.05 * noise)).astype(np.float32)
            data[name] = (("time", "level", "latitude", "longitude"), values, {"units": units})
            size += values.nbytes
        data.to_netcdf(folder / f"{month:%Y-%m}.nc", encoding={name: {"zlib": False} for name in VARIABLES})
    return size


if __name__ == "__main__":
    main()
