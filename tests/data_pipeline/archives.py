"""Small archives in the layouts of the large ones, of seeded fields: each writer returns what a reader must find, in the schema.

`write_wb2` and `write_arco` give analyses, `write_ifs_ens` and `write_neuralgcm_ens` forecasts, `write_wb2_climatology` means,
deviations and quantiles by hour and day of year. Chunks, order of dims, names, units and codecs are those of the originals.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numcodecs
import numpy as np
import pandas as pd
import xarray as xr
import zarr

from data_pipeline.grid import Grid
from data_pipeline.schema import Channel

CHANNELS = [
    Channel("geopotential", 500),
    Channel("temperature", 850),
    Channel("2m_temperature"),
    Channel("sea_surface_temperature"),
]
RAIN = Channel("total_precipitation_6hr")

TIMES = pd.date_range("2020-01-01", periods=48, freq="6h")
WB2_UNITS = {
    "geopotential": "m**2 s**-2", "temperature": "K", "2m_temperature": "K", "sea_surface_temperature": "K",
    "total_precipitation": "m", "total_precipitation_6hr": "m", "geopotential_at_surface": "m**2 s**-2",
    "land_sea_mask": "(0 - 1)",
}  # fmt: skip
QUARTER = Grid.named("24x13")  # pole rows and all, as 1440x721
LON_LAT = ("time", "number", "prediction_timedelta", "level", "longitude", "latitude")
LAT_LON = ("time", "number", "prediction_timedelta", "level", "latitude", "longitude")
BLOSC = numcodecs.Blosc("lz4", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE)
_MEANS = {"temperature": 260.0, "2m_temperature": 285.0, "sea_surface_temperature": 290.0}
_LEADING = ("time", "prediction_timedelta", "number", "level")
_PRESSURE = {"units": "hPa", "standard_name": "air_pressure", "positive": "down"}


def weather(
    times: pd.DatetimeIndex = TIMES,
    grid: str | Grid = "64x32",
    *,
    levels: tuple[int, ...] = (500, 700, 850),
    rain: str = "total_precipitation_6hr",
    seed: int = 0,
) -> xr.Dataset:
    """An analysis in the schema, made of noise: three surface fields, two on levels, two static; the sea has no value on land."""
    draws = np.random.default_rng(seed)
    grid = Grid.named(grid) if isinstance(grid, str) else grid
    static = ("latitude", "longitude")
    surface, column = ("time", *static), ("time", "level", *static)
    shape = (len(times), len(levels), *grid.shape)
    heights = 9.80665 * 7000 * np.log(1013 / np.array(levels))[:, None, None]
    land = draws.uniform(size=grid.shape) < 0.3
    fields = {
        "geopotential": (column, heights + 900 * draws.normal(size=shape), "m2 s-2"),
        "temperature": (column, 260 + 12 * draws.normal(size=shape), "K"),
        "2m_temperature": (surface, 285 + 12 * draws.normal(size=(len(times), *grid.shape)), "K"),
        "sea_surface_temperature": (surface, np.where(land, np.nan, 290 + draws.normal(size=(len(times), *grid.shape))), "K"),
        rain: (surface, 1e-3 * np.maximum(draws.normal(size=(len(times), *grid.shape)), 0), "m"),
        "geopotential_at_surface": (static, 9.80665 * draws.uniform(0, 3000, grid.shape) * land, "m2 s-2"),
        "land_sea_mask": (static, land.astype("f4"), "1"),
    }
    coords = {"time": times, "level": ("level", list(levels), _PRESSURE), **grid.coords()}
    return _dataset(fields, coords)


def ensemble(
    inits: pd.DatetimeIndex, *, members: int, leads: list[int], grid: str = "64x32", first_member: int = 1, seed: int = 0
) -> xr.Dataset:
    """A forecast in the schema, made of noise: one surface field, one on levels, rain over 6 hours (none at lead 0)."""
    draws = np.random.default_rng(seed)
    box = Grid.named(grid)
    levels = [500, 700, 850]
    surface = ("time", "prediction_timedelta", "number", "latitude", "longitude")
    shape = (len(inits), len(leads), members, *box.shape)
    column = (*surface[:3], "level", *surface[3:])
    fields = {
        "2m_temperature": (surface, 285 + 12 * draws.normal(size=shape), "K"),
        "geopotential": (column, 5e4 + 900 * draws.normal(size=(*shape[:3], 3, *box.shape)), "m2 s-2"),
        "total_precipitation_6hr": (surface, 1e-3 * np.maximum(draws.normal(size=shape), 0), "m"),
    }
    fields["total_precipitation_6hr"][1][:, np.array(leads) == 0] = np.nan
    coords = {
        "time": inits, "prediction_timedelta": pd.to_timedelta(leads, unit="h").as_unit("ns"),
        "number": np.arange(first_member, first_member + members), "level": ("level", levels, _PRESSURE), **box.coords(),
    }  # fmt: skip
    return _dataset(fields, coords)


def fine_fields() -> xr.Dataset:
    """What `fine.zarr` of the tests holds: pole rows and many levels, as the store of a quarter degree."""
    levels = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000)
    return weather(TIMES[:12], QUARTER, levels=levels)


def arco_fields() -> xr.Dataset:
    """What the default `write_arco` holds."""
    times = pd.date_range("2020-01-01", "2020-01-03T23", freq="1h")
    return weather(times, QUARTER, levels=(300, 500, 850), rain="total_precipitation", seed=1)


def check(found: xr.Dataset, truth: xr.Dataset) -> None:
    """Every field of `found` has the values of `truth` at its coordinates, to the bit."""
    for name, array in found.data_vars.items():
        expected = truth[name].sel({dim: array[dim].values for dim in array.dims})
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array.values, expected.transpose(*array.dims).values)


def write_wb2(
    path: Path,
    data: xr.Dataset | None = None,
    *,
    dims: Literal["longitude first", "latitude first"] = "longitude first",
    north_first: bool = False,
    chunks: Mapping[str, int] | None = None,
    names: Mapping[str, str] | None = None,
    zarr_format: Literal[2, 3] = 2,
    **encoding: Any,
) -> xr.Dataset:
    """`data` (default: `weather()`) as a WeatherBench 2 store; returns it.

    Low resolutions: longitude first, latitude ascending, large time chunks (20 stamps). The 0.25-degree store: latitude first and
    from the north, chunk (1, [13], 721, 1440): dims="latitude first", north_first=True, chunks={"time": 1}.
    """
    data = weather() if data is None else data
    stored = data.isel(latitude=slice(None, None, -1)) if north_first else data
    _write(
        path,
        stored,
        LON_LAT if dims == "longitude first" else LAT_LON,
        {"time": 20, **(chunks or {})},
        names,
        zarr_format,
        encoding,
    )
    return data


def write_arco(
    path: Path,
    *,
    start: str = "2020-01-01T00",
    stop: str = "2020-01-02",
    preliminary_stop: str | None = "2020-01-03",
    axis: tuple[str, str] = ("1900-01-01T00", "2050-12-31T23"),
    grid: str = "24x13",
    levels: tuple[int, ...] = (300, 500, 850),
    seed: int = 1,
) -> xr.Dataset:
    """An hourly store like ARCO-ERA5: its axis reaches from 1900 into the future, chunks from `start` to the preliminary stop.

    Latitude from the north, one chunk a stamp, static fields with a time dim, hourly `total_precipitation`. Returns the fields of
    the valid stamps, in the schema.
    """
    last = pd.Timestamp(preliminary_stop or stop) + pd.Timedelta("23h")
    truth = weather(pd.date_range(start, last, freq="1h"), grid, levels=levels, rain="total_precipitation", seed=seed)
    hours = pd.date_range(*axis, freq="1h")
    stored = truth.isel(latitude=slice(None, None, -1))
    root = zarr.open_group(path, mode="w", zarr_format=2)
    first = int(hours.get_indexer(truth["time"].to_index())[0])
    for name, array in stored.data_vars.items():
        tiled = array if "time" in array.dims else array.expand_dims(time=truth["time"])
        shape, chunk = (hours.size, *tiled.shape[1:]), (1, *tiled.shape[1:])
        made = root.create_array(
            str(name),
            shape=shape,
            chunks=chunk,
            dtype="f4",
            fill_value=np.nan,
            compressors=BLOSC,
            config={"write_empty_chunks": True},
        )
        made[first : first + truth.sizes["time"]] = tiled.values
        made.attrs.update(_ARRAY_DIMENSIONS=list(tiled.dims), units=WB2_UNITS[str(name)])
    since = np.arange(hours.size) + int((hours[0] - pd.Timestamp("1900-01-01")) / pd.Timedelta("1h"))
    units = {"time": "hours since 1900-01-01", "level": "hPa", "latitude": "degrees_north", "longitude": "degrees_east"}
    for name, unit in units.items():
        values = since if name == "time" else stored[name].values
        root.create_array(name, data=values, chunks=values.shape, fill_value=None).attrs.update(
            _ARRAY_DIMENSIONS=[name], units=unit
        )
    stops = {"valid_time_stop": stop} | ({"valid_time_stop_era5t": preliminary_stop} if preliminary_stop else {})
    root.attrs.update({"valid_time_start": start[:10], **stops})
    zarr.consolidate_metadata(root.store)
    return truth


def write_ifs_ens(path: Path, *, inits: pd.DatetimeIndex | None = None, members: int = 5, seed: int = 2) -> xr.Dataset:
    """Forecasts like `ifs_ens`: (time, number 1.., prediction_timedelta, [level], latitude, longitude), members in one chunk."""
    inits = pd.date_range("2020-01-01", periods=4, freq="12h") if inits is None else inits
    truth = ensemble(inits, members=members, leads=[0, 6, 12], seed=seed)
    _write(path, _integer_leads(truth), LAT_LON, {"time": 1, "prediction_timedelta": 1})
    return truth


def write_neuralgcm_ens(path: Path, *, inits: pd.DatetimeIndex | None = None, members: int = 5, seed: int = 3) -> xr.Dataset:
    """Forecasts like `neuralgcm_ens`: (realization 0.., time, prediction_timedelta, [level], lon, lat), leads from 12 h on."""
    inits = pd.date_range("2020-01-01", periods=4, freq="12h") if inits is None else inits
    truth = ensemble(inits, members=members, leads=[12, 24], first_member=0, seed=seed)
    dims = ("number", "time", "prediction_timedelta", "level", "longitude", "latitude")
    _write(path, _integer_leads(truth), dims, {"time": 1}, {"number": "realization", "latitude": "lat", "longitude": "lon"})
    return truth


def write_wb2_climatology(path: Path, *, grid: str = "64x32", seed: int = 4) -> xr.Dataset:
    """A store like `era5-hourly-climatology`: (hour, dayofyear, [level | quantile], longitude, latitude), chunk (3, 3, ...).

    The mean under the plain name; `_std`, `_quantile`, `_seeps_threshold`, `_seeps_dry_fraction` beside it. Returns it as
    (hour, dayofyear, [quantile], [level], latitude, longitude), under its own names.
    """
    draws = np.random.default_rng(seed)
    box = Grid.named(grid)
    hours, days, quantiles, levels = np.arange(0, 24, 6), np.arange(1, 367), np.array([0.1, 0.5, 0.9]), [500, 850]
    plain, column = ("hour", "dayofyear", "latitude", "longitude"), ("hour", "dayofyear", "level", "latitude", "longitude")
    sorted_dims = ("hour", "dayofyear", "quantile", "latitude", "longitude")
    shape = (hours.size, days.size, *box.shape)
    ranks = np.array([-1.28, 0.0, 1.28])[:, None, None]
    mean, spread = 285 + 5 * draws.normal(size=shape), draws.uniform(2, 4, shape)
    fields = {
        "2m_temperature": (plain, mean, "K"),
        "2m_temperature_std": (plain, spread, "K"),
        "2m_temperature_quantile": (sorted_dims, mean[:, :, None] + spread[:, :, None] * ranks, "K"),
        "geopotential": (column, 5e4 + 900 * draws.normal(size=(*shape[:2], 2, *box.shape)), "m2 s-2"),
        "geopotential_std": (column, draws.uniform(200, 900, (*shape[:2], 2, *box.shape)), "m2 s-2"),
        "total_precipitation_6hr": (plain, draws.uniform(0, 1e-3, shape), "m"),
        "total_precipitation_6hr_seeps_threshold": (plain, draws.uniform(1e-3, 5e-3, shape), "m"),
        "total_precipitation_6hr_seeps_dry_fraction": (plain, draws.uniform(0.2, 0.8, shape), "1"),
    }
    coords = {
        "hour": hours, "dayofyear": days, "quantile": quantiles, "level": ("level", levels, _PRESSURE), **box.coords()
    }  # fmt: skip
    truth = _dataset(fields, coords)
    _write(path, truth, ("hour", "dayofyear", "quantile", "level", "longitude", "latitude"), {"hour": 3, "dayofyear": 3})
    return truth


def _dataset(fields: Mapping[str, tuple[tuple[str, ...], np.ndarray, str]], coords: Mapping[str, Any]) -> xr.Dataset:
    arrays = {name: (dims, values.astype("f4"), {"units": units}) for name, (dims, values, units) in fields.items()}
    return xr.Dataset(arrays, coords)


def _integer_leads(data: xr.Dataset) -> xr.Dataset:
    """Lead times as numbers with units, as the original stores hold them."""
    hours = (data["prediction_timedelta"].values / np.timedelta64(1, "h")).astype("int64")
    return data.assign_coords(prediction_timedelta=("prediction_timedelta", hours, {"units": "hours"}))


def _write(
    path: Path,
    data: xr.Dataset,
    order: tuple[str, ...],
    chunks: Mapping[str, int],
    names: Mapping[str, str] | None = None,
    zarr_format: Literal[2, 3] = 2,
    options: Mapping[str, Any] | None = None,
) -> None:
    data = data.drop_attrs(deep=False).transpose(*[dim for dim in order if dim in data.dims])
    encoding: dict[str, Any] = {}
    for name, array in data.data_vars.items():
        array.attrs["units"] = WB2_UNITS.get(str(name), array.attrs["units"])
        sizes = tuple(min(chunks.get(str(dim), size), size) for dim, size in array.sizes.items())
        codec = {"compressors": BLOSC} if zarr_format == 2 else {}
        encoding[str(name)] = {"chunks": sizes, "write_empty_chunks": True, **codec, **(options or {})}
    if "time" in data.coords:
        encoding["time"] = {"units": "hours since 1959-01-01", "dtype": "int64"}
    renamed = {old: new for old, new in (names or {}).items() if old in data.dims}
    data.rename(renamed).to_zarr(path, encoding=encoding, zarr_format=zarr_format, consolidated=True)
