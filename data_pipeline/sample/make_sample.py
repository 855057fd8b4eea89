"""Cut the packaged sample from the simulated planet: python data_pipeline/sample/make_sample.py PLANET_FOLDER

Copies the packed integers themselves, never decoded values, so what a reader gets is bit for bit what the planet's files give.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pandas as pd

from data_pipeline import statistics
from data_pipeline.schema import Channel
from data_pipeline.sources.files import open_files

FIELDS: dict[str, int | None] = {  # name: pressure level in hPa
    "geopotential": 500,
    "temperature": 850,
    "u_component_of_wind": 850,
    "v_component_of_wind": 850,
    "specific_humidity": 850,
    "2m_temperature": None,
    "mean_sea_level_pressure": None,
    "total_precipitation_12hr": None,
}
LEVELS = sorted({level for level in FIELDS.values() if level is not None})
TRAINING_YEARS = (2004, 2005)
ALL_TRAINING = ("2001-01-01T00", "2005-12-31T12")
TEST_YEAR = 2007
INITIALISATIONS = pd.date_range("2007-01-16", periods=8, freq="47D")
INPUT_FRAMES = 2
LEAD_DAYS = 10
STEP = pd.Timedelta("12h")

TITLE = "Simulated planet (JCM 3.0.0, SPEEDY physics): a sample of 8 fields; not real weather"
LICENCE = "Apache-2.0"
CHUNK_STEPS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description="Cut the packaged sample from the simulated planet.")
    parser.add_argument("planet", type=Path, help="folder with planet_2001.nc ... planet_2007.nc and planet_static.nc")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    make_sample(arguments.planet, arguments.out)


def make_sample(planet: Path, out: Path) -> None:
    """Write the sample's NetCDF files, `checksums.json` (sha256, bytes) and `statistics.json` into `out`."""
    for year in TRAINING_YEARS:
        cut(planet / f"planet_{year}.nc", out / f"planet_{year}.nc")
    cut(planet / f"planet_{TEST_YEAR}.nc", out / f"planet_{TEST_YEAR}_windows.nc", window_times())
    copy_static(planet / "planet_static.nc", out / "planet_static.nc")
    paths = sorted(out.glob("planet_*.nc"))
    checksums = {path.name: {"sha256": _sha256(path), "bytes": path.stat().st_size} for path in paths}
    (out / "checksums.json").write_text(json.dumps(checksums, indent=2) + "\n")
    (out / "statistics.json").write_text(json.dumps(all_training_statistics(planet), indent=2) + "\n")
    for path in paths:
        print(f"{path.stat().st_size / 1e6:8.3f} MB  {path}")
    print(f"{sum(path.stat().st_size for path in paths) / 1e6:8.3f} MB  in all")


def all_training_statistics(planet: Path) -> dict[str, Any]:
    """Mean, std and 12 h tendency std of each channel over all five training years, of which the sample holds two."""
    channels = [Channel(name, level) for name, level in FIELDS.items()]
    found = statistics.compute(open_files(planet, pattern="planet_200[1-5].nc"), channels, ALL_TRAINING)
    table = {
        str(label): {name: float(found[name].sel(channel=label)) for name in found.data_vars} for label in found["channel"].values
    }
    return {**found.attrs, "space": "precipitation as log(1 + x / 1 mm), the rest as it is", "channels": table}


def window_times() -> pd.DatetimeIndex:
    """Every stamp of the test year that a packaged initialisation needs: its input frames and its verifying analyses."""
    offsets = pd.timedelta_range(-(INPUT_FRAMES - 1) * STEP, pd.Timedelta(days=LEAD_DAYS), freq=STEP)
    return pd.DatetimeIndex(sorted({init + offset for init in INITIALISATIONS for offset in offsets}))


def cut(source_path: Path, target_path: Path, times: pd.DatetimeIndex | None = None) -> None:
    """Copy the sample's fields from one year, all its stamps or only `times`."""
    with netCDF4.Dataset(source_path) as source, netCDF4.Dataset(target_path, "w") as target:
        source.set_auto_maskandscale(False)
        rows = np.arange(source.dimensions["time"].size) if times is None else _rows(source["time"], times)
        target.setncatts({"title": TITLE, "Conventions": "CF-1.8", "source": source.title, "licence": LICENCE})
        _copy_coordinate(source["time"], target, source["time"][rows])
        _copy_coordinate(source["level"], target, np.array(LEVELS))
        for name in ("latitude", "longitude"):
            _copy_coordinate(source[name], target, source[name][:])
        for name, level in FIELDS.items():
            _copy_field(source, target, name, level, rows)


def copy_static(source_path: Path, target_path: Path) -> None:
    """Copy the fields that do not change: orography and land-sea mask, float32 as they are."""
    with netCDF4.Dataset(source_path) as source, netCDF4.Dataset(target_path, "w") as target:
        target.setncatts({"title": TITLE, "Conventions": "CF-1.8", "licence": LICENCE})
        for name in ("latitude", "longitude"):
            _copy_coordinate(source[name], target, source[name][:])
        for name in ("geopotential_at_surface", "land_sea_mask"):
            field = source[name]
            copy = target.createVariable(name, field.dtype, field.dimensions, compression="zlib", complevel=9, shuffle=True)
            copy.setncatts(_attributes(field))
            copy[:] = field[:]


def _copy_field(source: netCDF4.Dataset, target: netCDF4.Dataset, name: str, level: int | None, rows: np.ndarray) -> None:
    field = source[name]
    chunk = {"time": min(CHUNK_STEPS, rows.size), "level": 1}
    sizes = [chunk.get(dim, target.dimensions[dim].size) for dim in field.dimensions]
    attributes = _attributes(field)
    # szip predicts each integer from its neighbour in longitude: 8.6 MB a year, against 9.8 to 12 MB with zlib 9 and shuffle.
    copy = target.createVariable(
        name,
        field.dtype,
        field.dimensions,
        compression="szip",
        szip_coding="nn",
        szip_pixels_per_block=32,
        chunksizes=sizes,
        fill_value=attributes.pop("_FillValue"),
    )
    copy.set_auto_maskandscale(False)
    if level is None:
        copy.setncatts(attributes)
        copy[:] = field[rows]
        return
    copy.setncatts(attributes | {"levels_available": np.int32(level)})
    copy[:, LEVELS.index(level)] = field[rows, source["level"][:].tolist().index(level)]


def _copy_coordinate(source: netCDF4.Variable, target: netCDF4.Dataset, values: np.ndarray) -> None:
    target.createDimension(source.name, len(values))
    copy = target.createVariable(source.name, source.dtype, (source.name,))
    copy.setncatts(_attributes(source))
    copy[:] = values


def _rows(time: netCDF4.Variable, wanted: pd.DatetimeIndex) -> np.ndarray:
    unit, _, epoch = time.units.partition(" since ")
    stamps = pd.DatetimeIndex(pd.Timestamp(epoch) + pd.to_timedelta(time[:], unit=unit))
    rows = stamps.get_indexer(wanted)
    if (rows < 0).any():
        raise SystemExit(f"the planet lacks {wanted[rows < 0][0]}; its stamps run from {stamps[0]} to {stamps[-1]}")
    return rows


def _attributes(variable: netCDF4.Variable) -> dict[str, Any]:
    return {name: variable.getncattr(name) for name in variable.ncattrs()}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
