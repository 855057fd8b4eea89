"""What products are made from, a block at a time: members of any quantity of a forecast, and the climate's quantiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline.errors import InputError, reading
from data_pipeline.grid import Grid
from data_pipeline.opening import open_forecast
from data_pipeline.recipe import fingerprint
from data_pipeline.schema import levels_of, validate
from data_pipeline.sources.accumulation import named_hours, own_hours
from data_pipeline.sources.climatologies import open_climatology
from data_pipeline.store import is_store, read_manifest
from data_pipeline.variables import lookup
from forecast.products.conditions import How
from forecast.products.statistics import position_of
from verification.derive import WINDS

HOUR = np.timedelta64(1, "h")
CLIMATE_BYTES = 256 << 20  # of the climate's quantiles of one quantity that are held for all leads of an initialisation


def opened_forecast(source: str | Path | xr.Dataset) -> tuple[xr.Dataset, str]:
    """A forecast in the schema, and what a rerun knows it by. A store of ours is read without dask: blocks are whole chunks."""
    if isinstance(source, xr.Dataset):
        validate(source, "forecast")
        return source, identity_of(source)
    data = open_forecast(source)
    if is_store(source):
        plain = xr.open_zarr(source, chunks=None)
        data = data.assign({name: plain[name] for name in data.data_vars})
    return data, identity_of(source)


def opened_climatology(source: str | Path | xr.Dataset | None) -> tuple[xr.Dataset | None, str]:
    """A climatology by hour and day of year, and what a rerun knows it by."""
    if source is None or isinstance(source, xr.Dataset):
        return source, "" if source is None else identity_of(source)
    data = open_climatology(source)
    if is_store(source):
        plain = xr.open_zarr(source, chunks=None)
        data = data.assign({name: plain[name] for name in data.data_vars})
    return data, identity_of(source)


def identity_of(source: str | Path | xr.Dataset) -> str:
    """A hash of the content's own hashes; of other people's files and datasets, of what they say of themselves."""
    if isinstance(source, xr.Dataset):
        coords = {str(name): coord.values.tolist() for name, coord in source.coords.items()}
        return fingerprint({"attrs": dict(source.attrs), "coords": coords})
    path = Path(source)
    if is_store(path):
        return fingerprint(read_manifest(path)["files"])
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return fingerprint({str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.exists()})


class Members:
    """The members of a forecast, (lead, member, level, latitude, longitude) float32, for blocks of leads of one initialisation.

    A surface variable has one level. Besides what is stored: wind speeds (`10m_wind_speed`, `wind_speed`), accumulations over
    more hours (`total_precipitation_24hr`), and what any of them was over a window: all of each member by itself.
    """

    def __init__(self, forecast: xr.Dataset) -> None:
        self.data = forecast
        self.grid = Grid.of(forecast)
        self.hours = forecast["prediction_timedelta"].values / HOUR
        self.size = forecast.sizes["number"]

    def __contains__(self, name: str) -> bool:
        return self.lack(name) is None

    def lack(self, name: str) -> str | None:
        """Why the quantity cannot be made; None if it can."""
        if name in self.data:
            return None
        have = ", ".join(map(str, self.data.data_vars))
        if name in WINDS:
            absent = [part for part in WINDS[name] if part not in self.data]
            return f"{name} needs {' and '.join(absent)}; the forecast has {have}" if absent else None
        if self._finer(name) is not None:
            return self._window_fault(name, self._own(str(self._finer(name))), named_hours(name) or 0)
        return f"{name} is not in the forecast, and cannot be made of what is: {have}"

    def levels(self, name: str) -> tuple[int, ...]:
        """Its levels (hPa) that hold data; () of a surface variable."""
        if name in WINDS and name not in self.data:
            both = [set(self.levels(part)) for part in WINDS[name]]
            return tuple(sorted(both[0] & both[1]))
        array = self.data[name if name in self.data else str(self._finer(name))]
        return tuple(levels_of(array)) if "level" in array.dims else ()

    def units(self, name: str) -> str:
        source = name if name in self.data else WINDS[name][0] if name in WINDS else str(self._finer(name))
        return str(self.data[source].attrs["units"])

    def window_fault(self, name: str, how: How, hours: int) -> str | None:
        """Why a window cannot be made of a quantity that can; None if it can."""
        variable, own = lookup(name), self._own(name)
        if how == "sum" and not (variable is not None and variable.accumulated and variable.window == "sum"):
            return f"sum of {name}: it is not accumulated; take max, min or mean"
        return self._window_fault(f"{how}({name}, {hours}h)", own, hours)

    def read(
        self, name: str, levels: Sequence[int], init: int, first: int, stop: int, how: How | None = None, hours: int = 0
    ) -> np.ndarray:
        """Leads first .. stop - 1 of an initialisation; leads whose window is not whole are NaN."""
        if how is None:
            return self._quantity(name, levels, init, first, stop)
        return self._window(
            lambda low, high: self._quantity(name, levels, init, low, high), how, hours, self._own(name), first, stop
        )

    def _quantity(self, name: str, levels: Sequence[int], init: int, first: int, stop: int) -> np.ndarray:
        if name in self.data:
            return self._stored(name, levels, init, first, stop)
        if name in WINDS:
            u, v = (self._stored(part, levels, init, first, stop) for part in WINDS[name])
            return np.hypot(u, v)
        source, variable = str(self._finer(name)), lookup(name)
        assert variable is not None
        how: dict[str, How] = {"sum": "sum", "maximum": "max", "minimum": "min"}
        return self._window(
            lambda low, high: self._stored(source, levels, init, low, high),
            how[variable.window], named_hours(name) or 0, self._own(source), first, stop,
        )  # fmt: skip

    def _stored(self, name: str, levels: Sequence[int], init: int, first: int, stop: int) -> np.ndarray:
        array = self.data[name].isel(time=init, prediction_timedelta=slice(first, stop))
        if "level" in array.dims:
            places = _run([array["level"].values.tolist().index(level) for level in levels])
            array = array.isel(level=places).transpose("prediction_timedelta", "number", "level", "latitude", "longitude")
        else:
            array = array.transpose("prediction_timedelta", "number", "latitude", "longitude")
        with reading(f"{name}, initialisation {init}, leads {first} to {stop - 1}"):
            values = np.asarray(array.values, dtype=np.float32)
        return values if values.ndim == 5 else values[:, :, None]

    def _window(
        self, read: Callable[[int, int], np.ndarray], how: How, hours: int, own: int, first: int, stop: int
    ) -> np.ndarray:
        places = self._places(hours, own)[:, first:stop]
        low = int(places[places >= 0].min(initial=first))
        block = read(low, stop)
        total: np.ndarray | None = None
        for row in places:
            piece = block[np.maximum(row - low, 0)]
            piece[row < 0] = np.nan
            if how in ("sum", "mean"):
                total = piece.astype(np.float64) if total is None else np.add(total, piece, out=total)
            elif total is None:
                total = piece
            else:
                total = (np.maximum if how == "max" else np.minimum)(total, piece, out=total)
        assert total is not None
        return (total / len(places) if how == "mean" else total).astype(np.float32, copy=False)

    def _places(self, hours: int, own: int) -> np.ndarray:
        """(part of the window, lead): positions of the leads at which parts of each lead's window end; -1 for none."""
        wanted = self.hours[None] - own * np.arange(hours // own)[:, None]
        index = pd.Index(np.round(self.hours, 6))
        return np.stack([index.get_indexer(pd.Index(np.round(row, 6))) for row in wanted])

    def _window_fault(self, label: str, own: int, hours: int) -> str | None:
        if own == 0 or hours % own:
            return f"{label}: {hours} h are not a multiple of the {own or 'unknown'} h between stamps, or that one is over"
        if not (self._places(hours, own) >= 0).all(axis=0).any():
            return f"{label}: no lead has a whole window of {hours} h; the forecast has {_span(self.hours)}"
        return None

    def _own(self, name: str) -> int:
        """Hours of a stored or made accumulation, else between stamps; 0 if they are not whole hours."""
        variable = lookup(name)
        if variable is not None and variable.accumulated:
            return named_hours(name) or own_hours(self.data[name]) or 0
        step = np.diff(self.hours).min() if self.hours.size > 1 else 0
        return int(step) if step == int(step) else 0

    def _finer(self, name: str) -> str | None:
        """The longest stored accumulation that `name` can be summed from."""
        hours, variable = named_hours(name), lookup(name)
        if not hours or variable is None:
            return None
        known = {
            self._own(str(key)): str(key)
            for key in self.data.data_vars
            if lookup(str(key)) is variable and "prediction_timedelta" in self.data[key].dims
        }
        return next((known[own] for own in sorted(known, reverse=True) if own and hours % own == 0), None)


class Climate:
    """Quantiles of a climatology at the valid times of a forecast, hour and day by themselves."""

    def __init__(self, data: xr.Dataset, times: np.ndarray, leads: np.ndarray) -> None:
        self.data = data
        self.grid = Grid.of(data)
        self.levels = np.sort(data["quantile"].values.astype(np.float64)) if "quantile" in data.coords else np.empty(0)
        self._order = np.argsort(data["quantile"].values) if self.levels.size else np.empty(0, np.int64)
        self._valid = times[:, None] + leads[None]
        self._held: dict[Any, np.ndarray] = {}
        self._holds: Any = None

    def lack(self, name: str, pressure: Sequence[int], units: str) -> str | None:
        """Why the climatology has no quantiles of a quantity; None if it has."""
        key = f"{name}_quantile"
        if not self.levels.size:
            return "the climatology has no quantiles; make them: plumecast data climatology RECIPE --quantile 0.01 --quantile ..."
        if key not in self.data:
            variable = lookup(name)
            alike = sorted(str(one) for one in self.data.data_vars if str(one).endswith("_quantile"))
            windows = [one.removesuffix("_quantile") for one in alike if lookup(one.removesuffix("_quantile")) is variable]
            if variable is not None and variable.accumulated and windows:
                return f"the climatology has {', '.join(windows)}: accumulated over other hours, another quantity"
            return f"the climatology has no {key}"
        array = self.data[key]
        if array.attrs.get("units", units) != units:
            return f"units {units} in the forecast, {array.attrs['units']} in the climatology"
        absent = sorted(set(pressure) - set(levels_of(array))) if pressure and "level" in array.dims else []
        return f"the climatology lacks the levels {absent} hPa of {key}" if absent else None

    def pressure(self, name: str, levels: tuple[int, ...]) -> tuple[int, ...]:
        """Those of the levels that it has, or all if it has none of them."""
        array = self.data.get(f"{name}_quantile")
        have = levels_of(array) if array is not None and "level" in array.dims else ()
        return tuple(level for level in levels if level in have) or levels

    def hour_fault(self) -> str | None:
        """Why valid times are not there; None if they are."""
        asked = sorted(set(pd.DatetimeIndex(self._valid.ravel()).hour))
        have = self.data["hour"].values.tolist()
        absent = [hour for hour in asked if hour not in have]
        return f"the climatology has the hours {have} UTC; the forecast is valid at {absent} too" if absent else None

    def quantiles(
        self, name: str, pressure: Sequence[int], levels: Sequence[float], init: int, first: int, stop: int
    ) -> np.ndarray:
        """(lead, quantile, level, latitude, longitude) float32, as the members. Raises InputError for quantiles that cross."""
        whole = 4 * self._valid.shape[1] * len(levels) * max(len(pressure), 1) * self.grid.areas.size <= CLIMATE_BYTES
        span = (0, self._valid.shape[1]) if whole else (first, stop)
        if self._holds != (name, init, span):
            self._holds, self._held = (name, init, span), {}
        key = (tuple(pressure), tuple(levels))
        if key not in self._held:
            self._held[key] = self._read(name, pressure, levels, pd.DatetimeIndex(self._valid[init, slice(*span)]))
        return self._held[key][first - span[0] : stop - span[0]]

    def _read(self, name: str, pressure: Sequence[int], levels: Sequence[float], valid: pd.DatetimeIndex) -> np.ndarray:
        hours = self.data["hour"].values.tolist()
        hour, which_hour = np.unique([hours.index(each) for each in valid.hour], return_inverse=True)
        day, which_day = np.unique(valid.day_of_year - 1, return_inverse=True)
        wanted = [int(self._order[position_of(level, self.levels)]) for level in levels]
        array = self.data[f"{name}_quantile"]
        if "level" in array.dims:
            array = array.isel(level=_run([array["level"].values.tolist().index(level) for level in pressure]))
        array = array.isel(quantile=_run(wanted), hour=_run(hour)).transpose("hour", "dayofyear", "quantile", ...)
        # by runs of days: zarr is slow with lists of positions, and around the new year the days are two runs
        runs = np.split(day, np.flatnonzero(np.diff(day) > 1) + 1)
        with reading(f"climatology, {name}_quantile"):
            pieces = [np.asarray(array.isel(dayofyear=_run(run)).values, dtype=np.float32) for run in runs]
        values = np.concatenate(pieces, axis=1)
        values = values if values.ndim == 6 else values[:, :, :, None]
        if (np.diff(values, axis=2) < 0).any():
            raise InputError(f"climatology: the quantiles of {name} cross; a larger level must not have a smaller value")
        return values[which_hour, which_day]


def _run(positions: Sequence[int] | np.ndarray) -> slice | list[int]:
    """Positions as a slice where they follow each other."""
    index = np.asarray(positions)
    return slice(int(index[0]), int(index[-1]) + 1) if (np.diff(index) == 1).all() else index.tolist()


def _span(hours: np.ndarray) -> str:
    return f"leads {hours[0]:g} to {hours[-1]:g} h"
