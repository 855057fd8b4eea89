"""Axes in the schema's form: latitude ascending, longitude eastward, level in hPa, stamps, lead times, members; all lazily."""

from __future__ import annotations

import re

import numpy as np
import xarray as xr

from data_pipeline.errors import InputError

_HOURS_BY_NAME = ("fhour", "forecast_hour")
_SECONDS = {
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600.0), **dict.fromkeys(("m", "min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1.0), **dict.fromkeys(("d", "day", "days"), 86400.0),
    **dict.fromkeys(("ns", "nanoseconds"), 1e-9), **dict.fromkeys(("us", "microseconds"), 1e-6),
    **dict.fromkeys(("ms", "milliseconds"), 1e-3),
}  # fmt: skip
PRESSURE_UNITS = ("hPa", "mbar", "mb", "millibars", "millibar", "hectopascals", "Pa")
_ACCUMULATIONS = ("accum", "avg", "max", "min", "diff")  # GRIB stepType


def oriented(data: xr.Dataset, log: list[str]) -> xr.Dataset:
    """Latitude ascending; longitude from 0 eastward on a full circle, otherwise one piece that starts in [-180, 180)."""
    latitude = without_noise(data["latitude"].values)
    longitude = without_noise(data["longitude"].values)
    order = np.argsort(latitude)
    if not np.array_equal(order, np.arange(order.size)):
        log.append(f"latitude {latitude[0]:g} .. {latitude[-1]:g}: flipped to ascending")
        reverse = np.array_equal(order, np.arange(order.size)[::-1])
        data = data.isel(latitude=slice(None, None, -1) if reverse else order)
    columns, eastward = _eastward(longitude, log)
    if not np.array_equal(columns, np.arange(longitude.size)):
        data = data.isel(longitude=columns)
    if not np.array_equal(eastward, longitude):
        log.append(f"longitude {longitude[0]:g} .. {longitude[-1]:g}: now {eastward[0]:g} .. {eastward[-1]:g}")
    final = {"latitude": latitude[order], "longitude": eastward}
    changed = any(data[axis].dtype != np.float64 or not np.array_equal(data[axis], values) for axis, values in final.items())
    return data.assign_coords(final) if changed else data


def without_noise(values: np.ndarray) -> np.ndarray:
    """Coordinates as float64, float32 noise removed: the fewest decimals that stay within its rounding (35.1, not 35.099998)."""
    if values.dtype.kind not in "iuf":
        raise InputError(f"latitude or longitude holds {values.dtype}, no numbers; expected degrees")
    exact = np.asarray(values, dtype=np.float64)
    if values.dtype != np.float32:
        return np.round(exact, 9) + 0.0
    noise = np.spacing(np.abs(values)).astype(np.float64)
    for decimals in range(1, 8):
        rounded = np.round(exact, decimals)
        if (np.abs(rounded - exact) <= noise).all():
            return rounded + 0.0
    return exact


def _eastward(longitude: np.ndarray, log: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Column order and values of the canonical longitude axis."""
    wrapped = np.mod(longitude, 360.0)
    wrapped[wrapped > 360 - 1e-6] = 0.0
    order = np.argsort(wrapped, kind="stable")
    repeated = np.flatnonzero(np.diff(wrapped[order]) < 1e-6) + 1
    if repeated.size > 1 or (repeated.size == 1 and abs(np.ptp(longitude) - 360) > 1e-3):
        raise InputError(f"longitude repeats {wrapped[order][repeated[0]]:g} degrees east; expected each column once")
    if repeated.size == 1:
        log.append(f"longitude {longitude[order[repeated[0]]]:g}: repeats the first column, dropped")
        order = np.delete(order, repeated)
    values = wrapped[order]
    if values.size < 2:
        raise InputError("longitude has a single column; expected a grid of at least two")
    gaps = np.diff(values, append=values[0] + 360)
    if gaps.max() < 1.5 * np.median(gaps):
        return order, values
    start = (int(np.argmax(gaps)) + 1) % values.size
    order, values = np.roll(order, -start), np.roll(values, -start)
    values = np.where(np.arange(values.size) >= values.size - start, values + 360, values) if start else values
    shift = 360.0 if values[0] >= 180 else 0.0
    return order, np.round(values - shift, 9)


def pressure_levels(data: xr.Dataset, source: str, log: list[str]) -> xr.Dataset:
    """`level` as integers in hPa, ascending; scalars stay scalars. Raises InputError for anything that is not pressure."""
    level = data["level"]
    units = str(level.attrs.get("units", "")).strip()
    described = " ".join(str(level.attrs[key]) for key in ("standard_name", "long_name") if key in level.attrs)
    values = np.atleast_1d(np.asarray(level.values, dtype=np.float64))
    counted = not units and values.size > 3 and np.array_equal(values, np.arange(1, values.size + 1))
    if re.search("hybrid|sigma|model|isentropic|potential_temperature", described, re.IGNORECASE) or counted:
        what = "1, 2, 3 ... without units" if counted else described
        raise InputError(f"{source} is {what}: model levels, no pressures; interpolate to pressure levels first")
    if units == "Pa" or (source == "isobaricInPa") or (not units and values.max() > 1100):
        values = values / 100
        log.append(f"{source}: Pa to hPa")
    elif units not in ("", "1", *PRESSURE_UNITS):
        raise InputError(f"{source} has units {units!r}; expected pressure in hPa or Pa")
    whole = np.round(values).astype(np.int64)
    if not np.allclose(values, whole, rtol=0, atol=1e-3) or (whole <= 0).any() or whole.max() > 1100:
        raise InputError(f"{source} holds {values.tolist()}; expected whole pressures from 1 to 1100 hPa")
    data = data.assign_coords(level=(level.dims, whole) if level.ndim else int(whole[0]))
    if level.ndim and (np.diff(whole) <= 0).any():
        log.append(f"{source} {whole[0]} .. {whole[-1]}: sorted to ascending")
        data = data.isel(level=np.argsort(whole))
    return data


def stamps(coord: xr.DataArray, source: str) -> np.ndarray:
    """Dates as datetime64[ns], rounded to the second (fractional days carry noise). Raises InputError for other calendars."""
    if coord.dtype == object:
        calendar = getattr(coord.values.flat[0], "calendar", "an unknown calendar")
        raise InputError(
            f"{source} is on the calendar {calendar!r}; expected the standard one. Convert it first (for example cdo setcalendar)"
        )
    if coord.dtype.kind != "M":
        raise InputError(f"{source} holds {coord.dtype}, not dates; it needs CF units such as 'hours since 1900-01-01'")
    if np.isnat(coord.values).any():
        raise InputError(
            f"{source} holds {np.isnat(coord.values).sum()} missing stamps of {coord.size}; drop them, or get the file again"
        )
    seconds = (coord.values.astype("datetime64[ms]") + np.timedelta64(500, "ms")).astype("datetime64[s]")
    return seconds.astype("datetime64[ns]")


def leads(coord: xr.DataArray, source: str) -> np.ndarray:
    """Lead times as timedelta64[ns]; numbers are read by their units. Raises InputError for numbers without units."""
    if coord.dtype.kind == "m":
        return coord.values.astype("timedelta64[ns]")
    units = str(coord.attrs.get("units", "hours" if source in _HOURS_BY_NAME else ""))
    try:
        seconds = _SECONDS[units.strip() if units.strip() == "M" else units.strip().lower()]  # M are months, m minutes
    except KeyError:
        raise InputError(f"{source} holds numbers with units {units!r}; expected hours, minutes, seconds or days") from None
    whole = np.round(np.asarray(coord.values, dtype=np.float64) * seconds).astype("int64")
    return whole.astype("timedelta64[s]").astype("timedelta64[ns]")


def analysis_time(data: xr.Dataset, names: dict[str, str], log: list[str]) -> xr.Dataset:
    """One dim `time` of valid stamps, or none for static data. Members and forecasts are refused.

    Accumulations that an archive keeps as forecasts of the analysis run (time and step, each valid time once) are unfolded.
    """
    if data.sizes.get("number", 1) > 1:
        raise InputError(
            f"{data.sizes['number']} members along {names['number']!r}: open them as an ensemble, or select one member"
        )
    data = data.squeeze("number", drop=True) if "number" in data.dims else data.drop_vars("number", errors="ignore")
    if data.sizes.get("lead", 1) > 1:
        data = _unfolded(data, names, log)
    elif "lead" in data.dims:
        data = data.squeeze("lead")
    if "valid" in data.dims:
        data = data.drop_vars(["time", "init", "lead"], errors="ignore").rename(valid="time")
        log.append(f"{names['valid']} -> time")
        data = data.assign_coords(time=stamps(data["time"], names["valid"]))
    elif "time" in data.variables:
        lead = leads(data["lead"], names["lead"]) if "lead" in data.variables else np.timedelta64(0, "ns")
        data = data.assign_coords(time=(data["time"].dims, stamps(data["time"], names["time"]) + lead))
    elif "valid" in data.variables:
        data = data.assign_coords(time=stamps(data["valid"], names["valid"]))
    elif "init" in data.variables:
        raise InputError(f"{names['init']!r} without valid times: these look like forecasts; open them as an ensemble")
    return data.drop_vars(["init", "lead", "valid"], errors="ignore")


def _unfolded(data: xr.Dataset, names: dict[str, str], log: list[str]) -> xr.Dataset:
    kinds = {str(array.attrs.get("GRIB_stepType", "instant")) for array in data.data_vars.values() if "lead" in array.dims}
    init = "time" if "time" in data.variables else "init"
    if not kinds <= set(_ACCUMULATIONS) or init not in data.variables:
        raise InputError(
            f"{data.sizes['lead']} lead times along {names['lead']!r}: these are forecasts; open them as an ensemble"
        )
    data = data.drop_vars("valid", errors="ignore")
    if init not in data.dims:
        data = data.expand_dims(init)
    begins, steps = stamps(data[init], names.get(init, init)), leads(data["lead"], names["lead"])
    valid = (begins[:, None] + steps[None, :]).reshape(-1)
    if np.unique(valid).size != valid.size:
        raise InputError(
            f"{names['lead']!r} overlaps from one run to the next: a stamp has several values; select the steps of one run"
        )
    flat = data.drop_vars([init, "lead"]).stack(unfolded=(init, "lead"), create_index=False)
    log.append(f"{names.get(init, init)} and {names['lead']} -> time (accumulations, each valid time once)")
    return flat.rename(unfolded="time").assign_coords(time=valid).sortby("time")


def forecast_time(data: xr.Dataset, names: dict[str, str], log: list[str]) -> xr.Dataset:
    """Dims or scalars `time` (initialisation), `prediction_timedelta` and `number`.

    Data with stamps but without lead times are members of an analysis: lead 0. A single run without a member dim is one member.
    """
    valid = next((name for name in ("valid", "time") if name in data.dims), None)
    if "lead" in data.variables and valid is not None and data["lead"].dims == (valid,) and "init" not in data.variables:
        data = _with_init(data, valid, names)
    if "init" in data.variables and "init" not in data.dims and valid is not None:
        data = _from_valid(data, valid, names, log)
    elif "lead" in data.variables:
        data = _from_leads(data, names)
    elif "init" in data.variables:
        raise InputError(f"{names['init']!r} without lead times; expected a dim such as step or lead_time")
    elif valid is None and "time" not in data.variables:
        raise InputError("no time found; expected stamps of initialisation, and lead times for forecasts")
    else:
        data = data.rename(valid="time") if valid == "valid" else data
        data = data.assign_coords(lead=np.timedelta64(0, "ns"))
        log.append(f"{names.get(valid or 'time', 'time')}: no lead times, so stamps of analyses")
    data = data.assign_coords(time=(data["time"].dims, stamps(data["time"], names.get("init", names.get("time", "time")))))
    data = data.drop_vars("valid", errors="ignore").rename(lead="prediction_timedelta")
    return _numbered(data, names, log)


def _with_init(data: xr.Dataset, valid: str, names: dict[str, str]) -> xr.Dataset:
    """Lead times beside the stamps of one dim: valid times of one run, or nothing that can be told."""
    begins = stamps(data[valid], names[valid]) - leads(data["lead"], names["lead"])
    if np.unique(begins).size > 1:
        raise InputError(
            f"{names['lead']!r} goes along {names[valid]!r}, which may be valid times or initialisations; name the "
            "initialisation as forecast_reference_time, or give the leads a dim of their own"
        )
    names["init"] = f"{names[valid]} - {names['lead']}"
    return data.drop_vars("lead").assign_coords(init=begins[0])


def _from_valid(data: xr.Dataset, valid: str, names: dict[str, str], log: list[str]) -> xr.Dataset:
    """Valid times of one run, or of one lead of several."""
    begins = np.atleast_1d(stamps(data["init"], names["init"]))
    lead = stamps(data[valid], names[valid]) - begins
    data = data.drop_vars(["init", "lead", *({"valid", "time"} - {valid})], errors="ignore")
    log.append(f"{names[valid]} - {names['init']} -> prediction_timedelta")
    if np.unique(begins).size == 1:
        return data.rename({valid: "lead"}).assign_coords(lead=lead, time=begins[0])
    if np.unique(lead).size == 1:
        return data.rename({valid: "time"} if valid != "time" else {}).assign_coords(time=begins, lead=lead[0])
    counts = f"{np.unique(lead).size} lead times of {np.unique(begins).size} runs"
    raise InputError(f"{names[valid]!r} holds {counts} in one dim; split the file by run")


def _from_leads(data: xr.Dataset, names: dict[str, str]) -> xr.Dataset:
    if "init" in data.variables:
        data = data.drop_vars("time", errors="ignore").rename(init="time")
    if "time" not in data.variables:
        raise InputError(
            f"{names['lead']!r} without an initialisation time; expected one of time, init_time, forecast_reference_time"
        )
    init = names.get("init", names.get("time", "time"))
    if "init" not in names and "valid" in str(data["time"].attrs.get("long_name", "")).lower():
        raise InputError(
            f"{init!r} with {names['lead']!r} calls itself {data['time'].attrs['long_name']!r}; expected initialisations: "
            "name the initialisation as forecast_reference_time"
        )
    data = data.assign_coords(lead=(data["lead"].dims, leads(data["lead"], names["lead"])))
    if data["lead"].ndim == 1 and data["lead"].dims != ("lead",):
        data = data.swap_dims({data["lead"].dims[0]: "lead"})
    if "valid" in data.variables and data["valid"].dtype.kind == "M":
        expected = xr.DataArray(stamps(data["time"], init), dims=data["time"].dims) + data["lead"].variable
        if not (data["valid"].variable == expected.variable).all():
            raise InputError(
                f"{names['valid']!r} is not {init!r} + {names['lead']!r}: {init!r} may be valid times or initialisations; name "
                "the initialisation as forecast_reference_time"
            )
    return data


def _numbered(data: xr.Dataset, names: dict[str, str], log: list[str]) -> xr.Dataset:
    """Members with whole numbers."""
    if "number" in data.coords:
        given = data["number"]
        if given.dtype.kind not in "iuf" or not (np.asarray(given.values) % 1 == 0).all():
            raise InputError(f"{names['number']} holds {np.unique(given.values).tolist()[:5]}; expected whole numbers of members")
        return data.assign_coords(number=given.astype(np.int64))
    if "number" in data.dims:
        log.append(f"{names['number']}: members without numbers, 0 to {data.sizes['number'] - 1}")
        return data.assign_coords(number=np.arange(data.sizes["number"]))
    log.append("no member dim: one member, number 0")
    return data.assign_coords(number=0)
