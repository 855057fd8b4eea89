"""Station observations as one dataset: tables with one row a value (CSV, parquet, NetCDF) in the station schema.

    dims (time, station); coordinates station (text), latitude (degrees north), longitude (degrees east, 0 to 360), elevation
    (m above sea level, NaN where unknown), region (text, where the table has it)
    one float32 variable a canonical name of `data_pipeline.variables`, in its units, NaN where nothing was observed

Columns go by the names of COLUMNS, in either case; others are left out. What was done is in `attrs["mapping"]`, a JSON list of
lines. Every fault of a table is refused with its file and line.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.units import conversion, parse_unit
from data_pipeline.variables import UnknownVariableError, Variable, identify, lookup

# Roles of columns and the names they go by; elevation and region may be absent, variable and units be given by argument.
COLUMNS: dict[str, tuple[str, ...]] = {
    "station": ("station", "station_id", "stationid", "stid", "id", "wmo_id", "wigos_id", "site", "location"),
    "latitude": ("latitude", "lat"),
    "longitude": ("longitude", "lon", "lng"),
    "elevation": ("elevation", "elev", "altitude", "alt", "station_height"),
    "time": ("time", "valid_time", "datetime", "date", "timestamp", "obs_time"),
    "variable": ("variable", "parameter", "param", "element", "variable_name"),
    "value": ("value", "obs", "observation", "observed", "obs_value"),
    "units": ("units", "unit"),
    "region": ("region",),
}
CODES = (-9999.0, -999.9, -999.0, -99999.0, -32768.0, 9999.0, 99999.0)  # that archives write for "unknown"
MISSING_TEXT = ("", "na", "nan", "null", "none", "-")
ELEVATIONS = (-500.0, 9000.0)  # m, what land on Earth has
MAX_MOVE = 2000.0  # m: positions given to 0.01 degrees differ by up to 1.6 km when they are rounded another way
MAX_RISE = 20.0  # m, 0.13 K at the standard lapse rate
EARTH_RADIUS = 6.371e6  # m
DATE_FORMATS = {8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}  # by the number of digits

Moved = Literal["error", "split"]
Attributes = Mapping[str, Mapping[str, Any]]

_ROLES = {alias: role for role, aliases in COLUMNS.items() for alias in aliases}


def open_stations(
    path: str | Path,
    *,
    variable: str | None = None,
    units: str | None = None,
    moved: Moved = "error",
    max_move: float = MAX_MOVE,
) -> xr.Dataset:
    """A table of station observations in the station schema, in memory (4 bytes x times x stations x variables).

    path: .csv (.csv.gz), .parquet (needs pyarrow) or .nc with the columns of COLUMNS. variable, units: of a table without such a
    column; in NetCDF the attribute `units` of the values also tells. Times are UTC; those with an offset are converted.

    Values are converted to the units of the variables table. Missing: empty, NaN, and a code of CODES outside the physical range
    of its variable; other impossible values are kept for `verification.stations.gross_error_check`, which counts them. Elevations
    that are empty or a code are unknown (NaN).

    A station that moves by at most `max_move` metres (and MAX_RISE in height) stays one station at its first position, and the
    mapping says so. One that moves further, as a ship does, is an InputError, or with moved="split" one station for each place,
    named `<station>#1`, `<station>#2` in the order of the table.

    Raises InputError, with file and line, for absent or ambiguous columns, text that is no number or date, infinite values,
    unknown variables or units, impossible coordinates, two values of one station, time and variable, and times of a station that
    do not ascend (two series glued together).
    """
    path = Path(path).expanduser()
    if moved not in ("error", "split"):
        raise InputError(f"open_stations: moved={moved!r} is not known; one of error, split")
    raw, attrs = _read(path)
    log: list[str] = []
    table = _with_roles(raw, attrs, {"variable": variable, "units": units}, path.name, log)
    rows = _in_canonical_units(_typed(table, path.name), path.name, log)
    _check_order(rows, path.name)
    rows, sites = _with_sites(rows, path.name, moved, max_move, log)
    data = _assembled(rows, sites)
    data.attrs = {"kind": "stations", "source": path.name, "mapping": json.dumps(log)}
    return data


def check_stations(data: xr.Dataset) -> None:
    """Raise InputError unless `data` has the dims and coordinates of the station schema."""
    absent = [name for name in ("time", "station", "latitude", "longitude", "elevation") if name not in data.coords]
    wrong = [str(name) for name, array in data.data_vars.items() if set(array.dims) != {"time", "station"}]
    if absent or wrong:
        raise InputError(
            f"not station observations: coordinates missing {absent}, variables with dims other than (time, station) {wrong}; "
            "open the table with data_pipeline.sources.stations.open_stations"
        )


def _read(path: Path) -> tuple[pd.DataFrame, Attributes]:
    """The table as it is, its index counting lines or rows, and the attributes of its columns."""
    if not path.is_file():
        raise InputError(f"{path} not found; expected a table of station observations (.csv, .parquet or .nc)")
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    try:
        if suffix in (".nc", ".nc4", ".cdf"):
            return _read_netcdf(path)
        if suffix in (".parquet", ".pq"):
            if importlib.util.find_spec("pyarrow") is None:
                raise InputError(
                    f"{path.name}: parquet needs pyarrow, which is not installed; pip install pyarrow, or give a CSV"
                )
            table = pd.read_parquet(path)
            return table.set_axis(pd.RangeIndex(1, len(table) + 1, name="row")), {}
        if suffix in (".csv", ".txt"):
            # all as text: a station "01001" is no number, a region "NA" is not missing, and faults are told with their line
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)  # more fields than columns
                table = pd.read_csv(
                    path, dtype=str, index_col=False, keep_default_na=False, skipinitialspace=True, skip_blank_lines=False,
                    encoding="utf-8-sig",
                ).fillna("")  # fmt: skip
            table = table.set_axis(pd.RangeIndex(2, len(table) + 2, name="line"))
            return table[(table != "").any(axis=1)], {}
    except (OSError, ValueError, pd.errors.ParserWarning) as error:  # pandas' parser errors are ValueErrors
        raise InputError(f"{path} cannot be read as a table: {error}") from None
    raise InputError(f"{path}: ending {path.suffix!r} is not known; expected .csv, .csv.gz, .parquet or .nc")


def _read_netcdf(path: Path) -> tuple[pd.DataFrame, Attributes]:
    with xr.open_dataset(path, engine="netcdf4", decode_timedelta=False) as data:
        known = [str(name) for name in data.variables if str(name).lower() in _ROLES]
        if not known:
            raise InputError(f"{path.name} has no column of a table of stations; it has {', '.join(map(str, data.variables))}")
        table = data[known].load().reset_coords().to_dataframe().reset_index()
        attrs = {name: dict(data[name].attrs) for name in known}
    for name in table.columns:
        if _holds(table[name], bytes):
            table[name] = table[name].str.decode("utf-8")
    return table.set_axis(pd.RangeIndex(1, len(table) + 1, name="row")), attrs


def _holds(column: pd.Series, kind: type) -> bool:
    return any(isinstance(value, kind) for value in column.unique())


def _with_roles(
    raw: pd.DataFrame, attrs: Attributes, given: Mapping[str, str | None], where: str, log: list[str]
) -> pd.DataFrame:
    found: dict[str, list[str]] = {}
    for name in map(str, raw.columns):
        role = _ROLES.get(name.strip().lower())
        if role is None:
            log.append(f"column {name}: left out")
        else:
            found.setdefault(role, []).append(name)
    several = [f"{' and '.join(names)} could each be {role}" for role, names in found.items() if len(names) > 1]
    if several:
        raise InputError(f"{where}: columns {'; '.join(several)}; rename or drop one")
    columns = {role: names[0] for role, names in found.items()}
    log += [f"column {name}: {role}" for role, name in columns.items() if name != role]
    told = {"units": attrs.get(columns.get("value", ""), {}).get("units"), **{k: v for k, v in given.items() if v is not None}}
    constant = {role: text for role, text in told.items() if role not in columns and text is not None}
    absent = [role for role in COLUMNS if role not in (*columns, *constant, "region", "elevation")]
    if absent:
        names = "; ".join(f"{role} ({', '.join(COLUMNS[role])})" for role in absent)
        raise InputError(f"{where}: no column for {names}; it has {', '.join(map(str, raw.columns))}")
    height = str(attrs.get(columns.get("elevation", ""), {}).get("units", "m"))
    if height not in ("metres", "meters") and parse_unit(height) != parse_unit("m"):
        raise InputError(f"{where}: elevation is in {height!r}; expected m")
    return raw[list(columns.values())].set_axis(list(columns), axis=1).assign(**constant)


def _typed(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """Text, numbers and dates of the table, with impossible ones refused; elevation filled in."""
    rows = pd.DataFrame(index=table.index)
    for name in ("station", "variable", "units", *(["region"] if "region" in table else [])):
        if table[name].isna().any() or _holds(table[name], float):
            raise InputError(f"{where}: {name} has numbers or gaps; store it as text")
        rows[name] = table[name].astype(str).str.strip()
        _refuse(rows[name] == "", where, f"no {name}".format)
    rows["time"] = _times(table["time"], where)
    for name in ("latitude", "longitude", "value"):
        rows[name] = _numbers(table[name], where)
    rows["elevation"] = _numbers(table["elevation"], where) if "elevation" in table else np.nan
    rows.loc[rows["elevation"].isin(CODES), "elevation"] = np.nan

    def refuse(bad: pd.Series, name: str, expected: str) -> None:
        _refuse(bad, where, lambda line: f"{name} {rows[name][line]:g} of {rows['station'][line]}; expected {expected}")

    refuse(np.isinf(rows["value"]), "value", "a number, or nothing")
    refuse(~rows["latitude"].between(-90, 90), "latitude", "-90 to 90 degrees north")
    refuse(~rows["longitude"].between(-180, 360), "longitude", "-180 to 360 degrees east")
    refuse(rows["elevation"].notna() & ~rows["elevation"].between(*ELEVATIONS), "elevation", "metres, or nothing if unknown")
    rows["longitude"] = np.mod(rows["longitude"], 360.0)
    return rows


def _numbers(column: pd.Series, where: str) -> pd.Series:
    if column.dtype.kind in "fiu":
        return column.astype(np.float64)
    text = column.astype(str).str.strip()
    empty = column.isna() | text.str.lower().isin(MISSING_TEXT)
    numbers = pd.to_numeric(text.mask(empty), errors="coerce").astype(np.float64)
    _refuse(numbers.isna() & ~empty, where, lambda line: f"{column.name} {text[line]!r} is no number")
    return numbers


def _times(column: pd.Series, where: str) -> pd.Series:
    if column.dtype.kind == "M":
        times = column
    else:
        text = column.astype(str).str.strip()
        digits = text.str.fullmatch(r"\d+")
        times = pd.to_datetime(text.mask(digits), format="ISO8601", utc=True, errors="coerce")
        for length, form in DATE_FORMATS.items():
            some = digits & (text.str.len() == length)
            times = times.where(~some, pd.to_datetime(text.where(some), format=form, utc=True, errors="coerce"))
    wrong = ~times.dt.year.between(1700, 2200)
    _refuse(wrong, where, lambda line: f"time {column[line]!s} is no date; expected UTC as 2004-01-29T12:00 or 2004012912")
    return (times if times.dt.tz is None else times.dt.tz_convert("UTC").dt.tz_localize(None)).astype("datetime64[ns]")


def _in_canonical_units(rows: pd.DataFrame, where: str, log: list[str]) -> pd.DataFrame:
    """Variables by their canonical name, values converted in float64, codes of missing values as NaN."""
    done, faults = [], []
    for (name, units), group in rows.groupby(["variable", "units"], sort=False):
        try:
            canonical, known = _surface_variable(str(name))
            factor, offset = conversion(str(units), known)
        except (UnknownVariableError, InputError) as error:
            faults.append(f"{where}, {rows.index.name} {group.index[0]}: variable {name!r}: {error}")
            continue
        values = group["value"] * factor + offset
        coded = group["value"].isin(CODES) & ~values.between(*known.valid_range)
        done.append(group.assign(variable=canonical, value=values.mask(coded)))
        converted = f", {units} to {known.units}" if (factor, offset) != (1.0, 0.0) else ""
        log += [f"{name}: {canonical}{converted}"] if converted or name != canonical else []
        log += [f"{canonical}: {int(coded.sum())} values are codes of a missing value"] if coded.any() else []
    if faults:
        raise InputError("\n".join(faults))
    if not done:
        raise InputError(f"{where} holds no row")
    return pd.concat(done).sort_index()


def _surface_variable(name: str) -> tuple[str, Variable]:
    canonical = identify(name, {}, on_levels=False)
    known = lookup(canonical)
    if known is None or known.on_levels or known.static:
        kind = "static" if known and known.static else "on pressure levels"
        raise UnknownVariableError(f"{canonical} is {kind}; stations observe near the surface, as 2m_temperature")
    return canonical, known


def _check_order(rows: pd.DataFrame, where: str) -> None:
    keys = ["station", "time", "variable"]
    names = rows["variable"] + " of " + rows["station"] + " at " + rows["time"].dt.strftime("%Y-%m-%dT%H:%M")
    again = rows.duplicated(keys)

    def first(line: Any) -> Any:
        return (rows[keys] == rows.loc[line, keys]).all(axis=1).idxmax()

    _refuse(again, where, lambda line: f"{names[line]} is there already, at {rows.index.name} {first(line)}; keep one value")
    back = rows.groupby(["station", "variable"], sort=False)["time"].diff() < pd.Timedelta(0)
    _refuse(back, where, lambda line: f"{names[line]} comes after a later time; sort the table by time")


def _with_sites(
    rows: pd.DataFrame, where: str, moved: Moved, max_move: float, log: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows with the site they belong to as `station`, and the sites: station -> latitude, longitude, elevation[, region]."""
    columns = ["latitude", "longitude", "elevation", *(["region"] if "region" in rows else [])]
    rows = rows.assign(position=rows.groupby(["station", *columns], dropna=False, sort=False).ngroup())
    positions = rows.drop_duplicates("position").assign(site=lambda table: table["station"])
    faults: list[str] = []
    for station, group in positions[positions.duplicated("station", keep=False)].groupby("station", sort=False):
        numbers = _places(group, max_move)
        several = max(numbers) > 1
        positions.loc[group.index, "site"] = [f"{station}#{number}" if several else str(station) for number in numbers]
        furthest = max(_distance(group.iloc[0], group.iloc[k]) for k in range(len(group)))
        if several:
            faults.append(f"{station} at {rows.index.name} {group.index[numbers.index(2)]}, up to {furthest / 1000:.1f} km")
            log.append(f"{station}: moved, {max(numbers)} places as {station}#1 .. #{max(numbers)}")
        elif furthest > 0:
            log.append(f"{station}: positions up to {furthest:.0f} m apart are one, the first")
    if faults and moved == "error":
        shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        raise InputError(
            f"{where}: {len(faults)} stations move further than {max_move:g} m, or {MAX_RISE:g} m in height ({shown}); correct "
            "them, or take each place as a station of its own (moved='split')"
        )
    sites = positions.groupby("site", sort=False)
    if "region" in rows and (sites["region"].nunique() > 1).any():
        site = str(sites["region"].nunique().idxmax())
        raise InputError(f"{where}: station {site} is in the regions {', '.join(sites['region'].unique()[site])}; keep one")
    site_of = dict(zip(positions["position"], positions["site"], strict=True))
    return rows.assign(station=rows["position"].map(site_of)), sites[columns].first()  # the first elevation that is known


def _places(positions: pd.DataFrame, max_move: float) -> list[int]:
    """The place, counted from 1, of each position of a station: the first known one that is near, else a new one."""
    heads: list[Any] = []
    numbers = []
    for row in positions.to_dict("records"):
        near = [
            k
            for k, head in enumerate(heads)
            if _distance(head, row) <= max_move and not abs(head["elevation"] - row["elevation"]) > MAX_RISE
        ]
        if not near:
            heads.append(row)
        elif np.isnan(heads[near[0]]["elevation"]):
            heads[near[0]]["elevation"] = row["elevation"]
        numbers.append(near[0] + 1 if near else len(heads))
    return numbers


def _distance(first: Any, other: Any) -> float:
    """Great-circle distance in metres (haversine: exact for small distances)."""
    latitude, longitude = (np.deg2rad([first[name], other[name]]) for name in ("latitude", "longitude"))
    square = np.sin(np.ptp(latitude) / 2) ** 2 + np.cos(latitude).prod() * np.sin(np.ptp(longitude) / 2) ** 2
    return float(2 * EARTH_RADIUS * np.arcsin(np.sqrt(min(square, 1.0))))


def _assembled(rows: pd.DataFrame, sites: pd.DataFrame) -> xr.Dataset:
    times, at_time = np.unique(rows["time"].to_numpy(), return_inverse=True)
    at_station = sites.index.get_indexer(pd.Index(rows["station"]))
    names = sites.index.to_numpy(dtype=object)
    places = {
        "latitude": {"units": "degrees_north", "standard_name": "latitude"},
        "longitude": {"units": "degrees_east", "standard_name": "longitude"},
        "elevation": {"units": "m", "long_name": "height above sea level"},
    }
    data = xr.Dataset(coords={"time": times, "station": ("station", names)})
    data = data.assign_coords({name: ("station", sites[name].to_numpy(np.float64), attrs) for name, attrs in places.items()})
    if "region" in sites:
        data = data.assign_coords(region=("station", sites["region"].to_numpy(dtype=object)))
    for name in rows["variable"].unique():
        known = lookup(name)
        mine = (rows["variable"] == name).to_numpy()
        values = np.full((times.size, names.size), np.nan, dtype=np.float32)
        values[at_time[mine], at_station[mine]] = rows["value"].to_numpy()[mine]
        attrs = {"units": known.units, "long_name": known.long_name} if known else {}
        data[name] = (("time", "station"), values, attrs)
    return data


def _refuse(bad: pd.Series, where: str, message: Callable[[Any], str]) -> None:
    """Raise InputError with the line of the first row that is bad, and how many there are."""
    if bad.any():
        line = bad.idxmax()
        more = f" ({int(bad.sum())} such rows)" if bad.sum() > 1 else ""
        raise InputError(f"{where}, {bad.index.name} {line}: {message(line)}{more}")
