"""Station observations as truth: gridded ensembles brought to stations, observations checked, both scored, shown and saved.

Observation error is not modelled: an observation counts as the truth of the grid box, so errors of instruments and of
representativeness appear as forecast error, and a calibrated ensemble looks under-dispersive (spread-skill ratio below 1, outer
ranks too full).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_pipeline.disk import sync
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.regrid import COVER_TOLERANCE, with_pole_rows
from data_pipeline.sources.stations import check_stations
from data_pipeline.units import STANDARD_GRAVITY, to_canonical_units
from data_pipeline.variables import VARIABLES, lookup
from verification.cases import score_cases
from verification.casewise import Missing
from verification.report.tables import card_leads, interval, lead_name, number
from verification.styles import readable_units, style_of

LAPSE_RATE = 0.0065  # K m-1, the standard atmosphere
CORRECTED = "2m_temperature"
LIMIT = 10.0  # robust standard deviations
ENOUGH = 30  # observations of a station before its own median says anything
MAD_TO_SIGMA = 1.4826  # of a normal distribution
OUTSIDE_RANGE, DEPARTS = 1, 2
KEPT_ATTRS = ("model", "training_period", "validation_period", "interpolation", "stations_outside", "height_correction")


def at_stations(
    forecast: xr.Dataset,
    stations: xr.Dataset,
    *,
    elevation: xr.Dataset | xr.DataArray | None = None,
    lapse_rate: float = LAPSE_RATE,
) -> xr.Dataset:
    """Fields (..., latitude, longitude) of the schema at the stations, (..., station), bilinearly and lazily.

    Linear in latitude and longitude between grid points, around the date line and over the poles as `regrid` does it; computed in
    float64, returned in the dtype of the field. A missing value at a grid point that has weight gives NaN. Nothing is
    extrapolated: stations outside a regional grid are dropped, attrs["stations_outside"] counts them.

    elevation: surface geopotential (m2 s-2) or height (m) of the model on the forecast's own grid, as a DataArray or as
    `geopotential_at_surface` of a Dataset. With it 2m_temperature, and no other variable, becomes T + lapse_rate (z - z_station)
    where both heights are known, z = geopotential / 9.80665 interpolated the same way; lapse_rate in K m-1. The coordinates
    model_elevation (m) and height_corrected say where, attrs["height_correction"] says what.

    Raises InputError for stations outside the station schema, if none lies on the grid, for an elevation on another grid, and for
    a wind component alone where a station lies between the last row and a pole.
    """
    check_stations(stations)
    grid = Grid.of(forecast)
    inside, longitude = _inside(grid, stations)
    if not inside.any():
        one = f"{stations['station'].values[0]} does not lie" if inside.size == 1 else f"none of the {inside.size} stations lies"
        raise InputError(f"{one} on the grid, {grid}")
    kept = stations.isel(station=np.flatnonzero(inside))
    points = (kept["latitude"].values, longitude[inside])
    coords = {name: coord.variable for name, coord in kept.coords.items() if coord.dims == ("station",)}
    fields = {str(name): array for name, array in forecast.data_vars.items() if {"latitude", "longitude"} <= set(array.dims)}
    result = xr.Dataset(_interpolated(fields, grid, *points), attrs=forecast.attrs).assign_coords(coords)
    done = "none, no model elevation was given"
    if elevation is not None:
        height = _model_elevation(elevation, grid, *points)
        rise = lapse_rate * (height - kept["elevation"].values)
        known = np.isfinite(rise)
        result = result.assign_coords(model_elevation=("station", height, {"units": "m"}), height_corrected=("station", known))
        done = f"none, there is no {CORRECTED}"
        if CORRECTED in result:
            array = result[CORRECTED]
            correction = xr.DataArray(np.where(known, rise, 0.0), dims="station")
            result[CORRECTED] = (array.astype(np.float64) + correction).astype(array.dtype).assign_attrs(array.attrs)
            done = f"{CORRECTED} + {lapse_rate:g} K m-1 x (model - station elevation) at {known.sum()} of {known.size} stations"
    outside = int((~inside).sum())
    return result.assign_attrs(interpolation="bilinear", stations_outside=outside, height_correction=done)


def gross_error_check(observations: xr.Dataset, *, limit: float | None = LIMIT) -> xr.Dataset:
    """Flags of gross errors, int8 with the dims of the observations: 0 kept, 1 outside the physical range, 2 departs.

    Range: that of `data_pipeline.variables`. Departure: further than `limit` robust standard deviations (1.4826 x the median
    absolute deviation) from the median of the station's own series, where that has 30 values or more that are not mostly equal;
    not for variables that cannot be negative (precipitation, wind speed, clouds), whose extremes look like errors. It would also
    flag the eye of a cyclone in a quiet series of pressure: limit=None leaves it out. A missing observation is no error.

    No forecast enters, on purpose: a check against the forecast under verification removes the cases that it forecasts worst, and
    flatters it. `observations.where(flags == 0)` is what is left; attrs["rejected"] counts what is not, by variable.
    """
    check_stations(observations)
    if limit is not None and not limit > 0:
        raise InputError(f"gross_error_check: limit={limit!r}; expected a positive number, or None for the physical range alone")
    flags, rejected = {}, []
    for name, array in observations.data_vars.items():
        known = lookup(str(name))
        low, high = known.valid_range if known else (-np.inf, np.inf)
        values = array.astype(np.float64)
        outside = values.notnull() & ~((values >= low) & (values <= high))
        departs = xr.zeros_like(outside)
        if limit is not None and not (known and known.non_negative):
            usual = values.where(~outside)
            deviation = abs(usual - usual.median("time"))
            sigma = MAD_TO_SIGMA * deviation.median("time")
            departs = (deviation > limit * sigma) & (sigma > 0) & (usual.count("time") >= ENOUGH)
        flags[name] = xr.where(outside, OUTSIDE_RANGE, xr.where(departs, DEPARTS, 0)).astype(np.int8).transpose(*array.dims)
        if outside.any() or departs.any():
            rejected.append(f"{name}: {int(outside.sum())} outside {low:g} to {high:g}, {int(departs.sum())} depart")
    told = {"limit": "none" if limit is None else limit, "rejected": "; ".join(rejected) or "none"}
    return xr.Dataset(flags, attrs={**told, "flag_meanings": "kept outside_physical_range departs_from_own_median"})


def score_stations(
    forecast: xr.Dataset,
    stations: xr.Dataset,
    *,
    member_dim: str = "number",
    missing: Missing = "propagate",
    n_boot: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> xr.Dataset:
    """The scores of `score_cases` for every variable and lead, (channel, prediction_timedelta, place[, rank]).

    forecast: (time, prediction_timedelta, member_dim, station) as `at_stations` gives it; one variable is read at a time.
    stations: observations in the station schema, paired by the exact stamp of the valid time; set gross errors to NaN first.
    Every variable that both have is scored, in the units of the coordinate `units`; variables share the resamples of a lead.
    Gives n, crps, crps_ecdf, mae, rmse, bias, spread, ssr, below, above and rank_histogram with their intervals, for all
    stations, each region and each station; estimators, missing values and intervals are those of `score_cases`.

    Raises InputError before anything is read if no variable or valid time is common, if a station of the forecast has no
    observations, or if units differ; and as `score_cases` does.
    """
    names = _common(forecast, stations, member_dim)
    times, leads = forecast["time"].values, forecast["prediction_timedelta"].values
    options: dict[str, Any] = {"member_dim": member_dim, "missing": missing, "n_boot": n_boot, "level": level}
    observed = stations.sel(station=forecast["station"].values)
    found = []
    for name in names:
        data = forecast[name].drop_vars("valid_time", errors="ignore").compute()
        by_lead = []
        for index, lead in enumerate(leads):
            truth = observed[name].reindex(time=times + lead).assign_coords(time=times)
            cases = data.isel(prediction_timedelta=index, drop=True)
            by_lead.append(score_cases(cases, truth, lead=lead, seed=[seed, index], **options))
        found.append(_joined(by_lead, "prediction_timedelta", leads))
    scores = _joined(found, "channel", np.array(names, dtype=object))
    units = np.array([str(stations[name].attrs["units"]) for name in names], dtype=object)
    for array in scores.data_vars.values():
        array.attrs.pop("units", None)
    told = {name: forecast.attrs[name] for name in KEPT_ATTRS if name in forecast.attrs}
    del scores.attrs["block"]  # differs by lead
    return scores.assign_coords(units=("channel", units)).assign_attrs(told, truth=str(stations.attrs.get("source", "stations")))


def show(console: Console, scores: xr.Dataset, *, leads: Sequence[np.timedelta64] | None = None) -> None:
    """Print the scores of all stations and of each region in display units, at some leads, and the policy beneath."""
    hours = (scores["prediction_timedelta"].values / np.timedelta64(1, "h")).tolist()
    wanted = card_leads(hours) if leads is None else [lead / np.timedelta64(1, "h") for lead in leads]
    absent = [lead_name(hour) for hour in wanted if hour not in hours]
    if absent:
        raise InputError(f"lead {', '.join(absent)} is not in the scores, which have {', '.join(map(lead_name, hours))}")
    estimator = "fair CRPS" if scores.attrs["members"] > 1 else "ecdf CRPS (one member)"
    crps = "crps" if scores.attrs["members"] > 1 else "crps_ecdf"
    table = Table(title=f"{estimator}, mean and {100 * scores.attrs['level']:g} % interval", title_justify="left", box=None)
    for name in ("variable", "lead", "stations"):
        table.add_column(name, no_wrap=True)
    for name in ("n", estimator, "MAE of median", "RMSE", "bias", "spread/skill", "below all", "above all"):
        table.add_column(name, justify="right")
    scaled = {crps, "mae", "rmse", "bias"}
    for channel in map(str, scores["channel"].values):
        style = style_of(channel)
        label = f"{style.label} ({readable_units(style.difference_units)})"
        for hour in wanted:
            at = scores.sel(channel=channel).isel(prediction_timedelta=hours.index(hour))
            for place in np.flatnonzero(at["kind"].values != "station"):
                here = at.isel(place=place)
                names = (crps, "mae", "rmse", "bias", "ssr", "below", "above")
                cells = [_cell(here, name, style.factor if name in scaled else 1.0) for name in names]
                table.add_row(label, lead_name(hour), str(here["place"].values), f"{int(here['n'])}", *cells)
                label = ""
    console.print(table)
    console.print(Text(_policy(scores), style="dim"), soft_wrap=True)


def save_scores(scores: xr.Dataset, path: str | Path) -> list[Path]:
    """Write <path>.csv, one row a channel, lead and place, and <path>.nc, all of it; each replaced atomically."""
    base = Path(path)
    base.parent.mkdir(parents=True, exist_ok=True)
    flat = scores.drop_dims("rank").to_dataframe().reset_index()
    flat.insert(1, "lead_hours", flat.pop("prediction_timedelta").dt.total_seconds() / 3600)
    writers: dict[str, Callable[[Path], Any]] = {
        ".csv": lambda file: flat.to_csv(file, index=False, float_format="%.9g"),
        ".nc": lambda file: scores.to_netcdf(file, engine="netcdf4"),
    }
    done = []
    for ending, write in writers.items():
        target = base.with_name(base.name + ending)
        temporary = target.with_name(f"{target.name}.{os.getpid()}.partial")
        write(temporary)
        sync(temporary)
        temporary.replace(target)
        done.append(target)
    sync(base.parent)
    return done


def _inside(grid: Grid, stations: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Which stations lie on the grid, and their longitudes in its range."""
    latitude, first, last = stations["latitude"].values, grid.longitude[0], grid.longitude[-1]
    longitude = np.mod(stations["longitude"].values - first, 360.0) + first
    south, north = (-90.0, 90.0) if grid.is_global else (grid.latitude[0], grid.latitude[-1])
    inside = (latitude >= south - COVER_TOLERANCE) & (latitude <= north + COVER_TOLERANCE)
    if not _circles(grid):
        longitude = np.where(longitude > first + 360 - COVER_TOLERANCE, first, longitude)
        inside &= longitude <= last + COVER_TOLERANCE
    return inside, longitude


def _circles(grid: Grid) -> bool:
    return bool(np.ptp(grid.longitude_bounds) > 360 - 1e-2)


def _interpolated(
    fields: dict[str, xr.DataArray], grid: Grid, latitude: np.ndarray, longitude: np.ndarray
) -> dict[str, xr.DataArray]:
    axis = grid.latitude
    if latitude.max() > axis[-1] + COVER_TOLERANCE or latitude.min() < axis[0] - COVER_TOLERANCE:
        fields, axis = with_pole_rows(fields, grid, Grid.named("4x3"))
    row, down = _between(axis, latitude)
    circle = [grid.longitude[0] + 360] if _circles(grid) else []
    column, across = _between(np.append(grid.longitude, circle), longitude)
    corners = {
        "rows": np.stack([row, row, row + 1, row + 1]),
        "columns": np.stack([column, column + 1, column, column + 1]) % grid.longitude.size,
        "weights": np.stack([(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across]),
    }
    done = {}
    for name, array in fields.items():
        if array.chunks is not None:
            array = array.chunk(latitude=-1, longitude=-1)
        done[name] = xr.apply_ufunc(
            _gathered, array.drop_vars(["latitude", "longitude"]), kwargs=corners, input_core_dims=[["latitude", "longitude"]],
            output_core_dims=[["station"]], dask="parallelized", output_dtypes=[array.dtype], keep_attrs=True,
            dask_gufunc_kwargs={"output_sizes": {"station": latitude.size}},
        )  # fmt: skip
    return done


def _between(axis: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lower neighbour of each place and how far it is from there to the next, 0 to 1."""
    low = np.clip(np.searchsorted(axis, wanted, side="right") - 1, 0, axis.size - 2)
    return low, np.clip((wanted - axis[low]) / (axis[low + 1] - axis[low]), 0.0, 1.0)


def _gathered(block: np.ndarray, rows: np.ndarray, columns: np.ndarray, weights: np.ndarray) -> np.ndarray:
    total = np.zeros((*block.shape[:-2], rows.shape[1]))
    for row, column, weight in zip(rows, columns, weights, strict=True):
        corner = block[..., row, column].astype(np.float64)
        total += np.where(weight > 0, weight * corner, 0.0)  # a station on a grid point does not depend on missing neighbours
    return total.astype(block.dtype)


def _model_elevation(elevation: xr.Dataset | xr.DataArray, grid: Grid, *points: np.ndarray) -> np.ndarray:
    """Height of the model's surface at the stations, m."""
    known = VARIABLES["geopotential_at_surface"]
    if isinstance(elevation, xr.Dataset):
        if known.name not in elevation:
            raise InputError(f"elevation: no {known.name} in the dataset; it has {', '.join(map(str, elevation.data_vars))}")
        elevation = elevation[known.name]
    if set(elevation.dims) != {"latitude", "longitude"} or not Grid.of(elevation).matches(grid):
        raise InputError(
            f"elevation has dims {elevation.dims}; expected the model's own, (latitude, longitude) on the forecast's grid, {grid}"
        )
    field = to_canonical_units(elevation.transpose("latitude", "longitude"), known)
    return _interpolated({known.name: field}, grid, *points)[known.name].values.astype(np.float64) / STANDARD_GRAVITY


def _common(forecast: xr.Dataset, stations: xr.Dataset, member_dim: str) -> list[str]:
    """The variables to score. Raises InputError for what can be seen without reading."""
    check_stations(stations)
    dims = {"time", "prediction_timedelta", member_dim, "station"}
    offered = [str(name) for name, array in forecast.data_vars.items() if set(map(str, array.dims)) == dims]
    names = [name for name in offered if name in stations]
    if not names:
        raise InputError(
            f"no variable in common: the forecast has {', '.join(offered) or 'none'} with dims {', '.join(sorted(dims))}, the "
            f"stations have {', '.join(map(str, stations.data_vars))}"
        )
    unlike = [f"{n}: {forecast[n].attrs.get('units')} and {stations[n].attrs.get('units')}" for n in names]
    unlike = [
        text for n, text in zip(names, unlike, strict=True) if forecast[n].attrs.get("units") != stations[n].attrs.get("units")
    ]
    if unlike:
        raise InputError(f"forecast and stations have different units ({'; '.join(unlike)}); convert them at the source")
    absent = sorted(set(map(str, forecast["station"].values)) - set(map(str, stations["station"].values)))
    if absent:
        raise InputError(f"{len(absent)} stations of the forecast have no observations, first {absent[0]}")
    valid = (forecast["time"].values[:, None] + forecast["prediction_timedelta"].values).ravel()
    if not np.isin(valid, stations["time"].values).any():
        own = stations["time"].values
        raise InputError(
            f"no observation at a valid time: forecasts are for {valid.min()} to {valid.max()}, observations from {own[0]} to "
            f"{own[-1]}; stamps are paired exactly, so round those of the observations if they are some minutes off"
        )
    return names


def _joined(parts: list[xr.Dataset], dim: str, values: np.ndarray) -> xr.Dataset:
    index = xr.Variable(dim, values)
    return xr.concat(parts, index, coords="minimal", compat="override", join="exact", data_vars="all", combine_attrs="override")


def _cell(scores: xr.Dataset, name: str, factor: float) -> str:
    value, low, high = (factor * float(scores[key]) for key in (name, f"{name}_lower", f"{name}_upper"))
    limits = interval(low, high) if name in ("crps", "crps_ecdf", "ssr") else ""  # the table must fit; the files have all
    return f"{number(value)} ({limits})" if limits else number(value)


def _policy(scores: xr.Dataset) -> str:
    attrs = scores.attrs
    pooled = scores.isel(place=0)
    no_truth, no_member = (int(pooled[name].sum()) for name in ("no_truth", "no_member"))
    parts = [
        f"{attrs['members']} members against {attrs['truth']}, {int((scores['kind'] == 'station').sum())} stations, all alike",
        f"left out: {no_truth} cases without observation, {no_member} with a missing member",
        f"outside the grid: {attrs.get('stations_outside', 0)} stations",
        f"gross errors: {attrs.get('rejected', 'not checked')}",
        f"height correction: {attrs.get('height_correction', 'none')}",
        "observation error not modelled",
        f"intervals by {attrs['method']} in blocks as long as the lead",
    ]
    parts += ["fewer than 30 initialisations: too few for firm intervals"] if pooled["too_few"].any() else []
    parts += [f"{name.replace('_', ' ')} of the model {attrs[name]}" for name in KEPT_ATTRS[1:3] if name in attrs]
    return "; ".join(parts)
