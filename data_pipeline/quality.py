"""Quality of an analysis before it is trusted: stamps, missing values, physical ranges, constant fields; in bounded memory.

Every field is read once, block by block, and reduced to a few numbers a stamp; findings name variable, stamps and values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import dask
import numpy as np
import pandas as pd
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.moments import MEASURES, measure, row_weights
from data_pipeline.schema import Channel, channels_of, select
from data_pipeline.variables import Variable, lookup

Severity = Literal["error", "note"]
SHOWN = 3  # stamps that a finding names


@dataclass(frozen=True)
class Finding:
    """One fault, or one thing worth knowing."""

    severity: Severity
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


@dataclass
class Report:
    """What `check` found.

    table: one row a channel: units, minimum, mean (area-weighted), maximum, finite (fraction), values (number of all), weight
    (area weights of the finite ones, mean 1 a value).
    """

    findings: list[Finding] = field(default_factory=list)
    table: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def errors(self) -> list[Finding]:
        """The findings that forbid use."""
        return [finding for finding in self.findings if finding.severity == "error"]

    def raise_if_bad(self) -> None:
        """Raise InputError listing every error, if there is one."""
        if self.errors:
            raise InputError("the data fail their checks:\n" + "\n".join(f"  - {finding}" for finding in self.errors))


def check(
    data: xr.Dataset,
    *,
    channels: Sequence[Channel | str] | None = None,
    step: str | pd.Timedelta | None = None,
    gaps: Literal["error", "allow"] = "error",
) -> Report:
    """Check an analysis in the schema.

    channels: those to read (default: all with data). step: expected between stamps (default: the commonest). gaps: are missing
    stamps errors. Found: repeated or unordered stamps, another step, missing stamps, non-finite values (a mask that never
    changes is normal for sea, ice and soil), values outside the physical range of the table, fields without any variation (no
    rain, snow or ice at all is worth a note only).
    """
    wanted = channels_of(data) if channels is None else [Channel.parse(c) if isinstance(c, str) else c for c in channels]
    findings = check_stamps(pd.DatetimeIndex(data["time"].values), step=step, gaps=gaps) if "time" in data.coords else []
    report = judge(measured(data, wanted))
    report.findings[:0] = findings
    return report


def judge(measures: Mapping[Channel, xr.DataArray]) -> Report:
    """What `check` makes of the measures of each channel: (time, ..., measure), see `measured`."""
    report = Report(table=_table(measures))
    for channel, values in measures.items():
        report.findings += _judge(channel, values)
    return report


def measured(data: xr.Dataset, channels: Sequence[Channel]) -> dict[Channel, xr.DataArray]:
    """(time, ..., measure) of each channel, float64: `moments.MEASURES`; each field is read once. attrs: points of a field."""
    weights = row_weights(Grid.of(data))
    lazy = {}
    for channel in channels:
        array = select(data, channel)
        if array.chunks is not None:
            array = array.chunk(latitude=-1, longitude=-1)
        lazy[channel] = xr.apply_ufunc(
            measure, array, kwargs={"weights": weights}, input_core_dims=[["latitude", "longitude"]],
            output_core_dims=[["measure"]], dask="parallelized", output_dtypes=[np.float64],
            dask_gufunc_kwargs={"output_sizes": {"measure": len(MEASURES)}},
        )  # fmt: skip
    computed = dask.compute(lazy)[0]
    return {
        channel: label_measures(array, data.sizes["latitude"] * data.sizes["longitude"]) for channel, array in computed.items()
    }


def label_measures(array: xr.DataArray, points: int) -> xr.DataArray:
    """Measures with their names, and the number of points of a field."""
    return array.assign_coords(measure=list(MEASURES)).assign_attrs(points=points)


def check_stamps(
    stamps: pd.DatetimeIndex, *, step: str | pd.Timedelta | None = None, gaps: Literal["error", "allow"] = "error"
) -> list[Finding]:
    """Findings about the stamps alone, see `check`."""
    if len(stamps) < 2:
        return []
    repeated = stamps[stamps.duplicated()].unique()
    if len(repeated):
        return [Finding("error", "time", f"{len(repeated)} stamps are there more than once: {_some(repeated)}")]
    if not stamps.is_monotonic_increasing:
        return [
            Finding("error", "time", f"stamps are not in order, first at {_some(stamps[1:][np.diff(stamps) < pd.Timedelta(0)])}")
        ]
    steps = pd.Series(stamps[1:] - stamps[:-1])
    commonest = pd.Timedelta(steps.mode().iloc[0])
    expected = commonest if step is None else pd.Timedelta(step)
    if (steps.to_numpy() % expected.to_timedelta64() != np.timedelta64(0)).any() or commonest > expected:
        off = stamps[1:][((stamps[1:] - stamps[0]) % expected) != pd.Timedelta(0)]
        detail = f"first off it {_some(off)}" if len(off) else f"first {stamps[0]:%Y-%m-%dT%H}, {stamps[1]:%Y-%m-%dT%H}"
        return [Finding("error", "time", f"stamps come every {_hours(commonest)}, expected every {_hours(expected)}; {detail}")]
    missing = pd.date_range(stamps[0], stamps[-1], freq=expected).difference(stamps)
    if not len(missing):
        return []
    message = f"{len(missing)} stamps are missing at a step of {_hours(expected)}: {_some(missing)}"
    if gaps == "allow":
        return [Finding("note", "time", message)]
    return [
        Finding("error", "time", message + '; get them, or set gaps = "allow" to leave them out of training and verification')
    ]


def summary(report: Report) -> dict[str, Any]:
    """A report as plain data for a store's attributes: {"channels": {label: {...}}, "findings": [{severity, where, message}]}."""
    channels = {str(label): {str(key): _plain(value) for key, value in row.items()} for label, row in report.table.iterrows()}
    findings = [{"severity": f.severity, "where": f.where, "message": f.message} for f in report.findings]
    return {"channels": channels, "findings": findings}


def merge(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The summary of several disjoint blocks of time together; means are weighted by the finite area that each block holds."""
    channels: dict[str, dict[str, Any]] = {}
    for label in dict.fromkeys(label for block in summaries for label in block["channels"]):
        rows = [block["channels"][label] for block in summaries if label in block["channels"]]
        held = [row for row in rows if row["weight"]]
        weight = sum(row["weight"] for row in held)
        values = sum(row["values"] for row in rows)
        channels[label] = {
            "units": rows[0]["units"],
            "minimum": min((row["minimum"] for row in held), default=None),
            "mean": sum(row["mean"] * row["weight"] for row in held) / weight if held else None,
            "maximum": max((row["maximum"] for row in held), default=None),
            "finite": sum(row["finite"] * row["values"] for row in rows) / values if values else None,
            "values": values,
            "weight": weight,
        }
    findings = list({json.dumps(f, sort_keys=True): f for block in summaries for f in block["findings"]}.values())
    return {"channels": channels, "findings": findings}


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value
    return float(value) if np.isfinite(value) else None


def _judge(channel: Channel, measured: xr.DataArray) -> list[Finding]:
    """Findings about the values of one channel."""
    variable = lookup(channel.name)
    label, points = channel.label, measured.attrs["points"]
    if _is_clean(variable, measured.values, points):
        return []
    other = [dim for dim in measured.dims if dim not in ("time", "measure")]
    finite = measured.sel(measure="finite").mean(other) / points
    if not (finite > 0).any():
        return [Finding("error", label, "holds no value at all")]
    findings = []
    masked = variable is not None and variable.masked and float(finite.max()) == float(finite.min())
    if (finite < 1).any():
        share = 100 * (1 - float(finite.mean()))
        where = _stamps_where(finite < 1)
        severity: Severity = "note" if masked else "error"
        findings.append(Finding(severity, label, f"{share:.3g} % of the values are missing or not finite{where}"))
    low, high = measured.sel(measure="minimum").min(other), measured.sel(measure="maximum").max(other)
    if variable is not None:
        bottom, top = variable.valid_range
        bad = (finite > 0) & ((low < bottom) | (high > top))
        if bad.any():
            found = f"{float(low.where(finite > 0).min()):.6g} to {float(high.where(finite > 0).max()):.6g} {variable.units}"
            findings.append(
                Finding(
                    "error", label, f"values {found}, expected {bottom:g} to {top:g}{_stamps_where(bad)}; are the units right?"
                )
            )
    # rain may be zero everywhere on a dry day, a temperature may not be the same everywhere
    may_be_none = variable is not None and variable.non_negative
    flat = (finite > 0) & (low == high) if not may_be_none else xr.zeros_like(finite, dtype=bool)
    lowest, highest = float(low.min()), float(high.max())
    if lowest == highest:
        dry = may_be_none and lowest == 0
        findings.append(Finding("note" if dry else "error", label, f"is {lowest:.6g} everywhere and always"))
    elif flat.any():
        findings.append(Finding("error", label, f"is the same everywhere{_stamps_where(flat)}"))
    return findings


def _is_clean(variable: Variable | None, measures: np.ndarray, points: int) -> bool:
    """True if nothing can be found: the usual case, decided without labels."""
    low, high, finite = (measures[..., MEASURES.index(name)] for name in ("minimum", "maximum", "finite"))
    bottom, top = (-np.inf, np.inf) if variable is None else variable.valid_range
    varies = (low < high).all() if variable is None or not variable.non_negative else low.min() < high.max()
    return bool((finite == points).all() and low.min() >= bottom and high.max() <= top and varies)


def _table(measures: Mapping[Channel, xr.DataArray]) -> pd.DataFrame:
    rows = []
    for channel, values in measures.items():
        variable, points = lookup(channel.name), values.attrs["points"]
        columns = {name: values.values[..., i] for i, name in enumerate(MEASURES)}
        share, fields = float(columns["weight"].sum()), columns["finite"].size
        rows.append(
            {
                "channel": channel.label,
                "units": variable.units if variable else "",
                "minimum": float(columns["minimum"].min()) if share else float("nan"),
                "mean": float(columns["total"].sum()) / share if share else float("nan"),
                "maximum": float(columns["maximum"].max()) if share else float("nan"),
                "finite": float(columns["finite"].sum()) / (fields * points),
                "values": fields * points,
                "weight": share * points,
            }
        )
    return pd.DataFrame(rows).set_index("channel") if rows else pd.DataFrame()


def _stamps_where(condition: xr.DataArray) -> str:
    if "time" not in condition.dims:
        return ""
    stamps = pd.DatetimeIndex(condition["time"].values[condition.values])
    return f", in {len(stamps)} of {condition.sizes['time']} stamps: {_some(stamps)}"


def _some(stamps: pd.DatetimeIndex) -> str:
    shown = ", ".join(f"{stamp:%Y-%m-%dT%H:%M}" for stamp in stamps[:SHOWN])
    return shown + (f" ... {stamps[-1]:%Y-%m-%dT%H:%M}" if len(stamps) > SHOWN else "")


def _hours(step: pd.Timedelta) -> str:
    return f"{step / pd.Timedelta(hours=1):g} h"
