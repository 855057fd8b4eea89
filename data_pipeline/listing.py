"""Tables of stores and plans for a person to read, in colour on a terminal and plain when piped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from rich.console import Console
from rich.table import Column, Table

from data_pipeline import quality, store
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.kept import overall, read_kept
from data_pipeline.plan import AnalysisSection, plan, spans, step_text
from data_pipeline.progress import table_console
from data_pipeline.recipe import section
from data_pipeline.schema import channels_of
from data_pipeline.source import SourceSection
from data_pipeline.sources.files import open_ensemble, open_files


def show_plan(recipe: Mapping[str, Any], out: Path) -> None:
    """What an ingest would do: channels, grid, period, size, and how much of it is there."""
    planned = plan(section(recipe, "source", SourceSection), section(recipe, "analysis", AnalysisSection))
    console, native = table_console(), Grid.of(planned.source)
    longest = max(box.stop - box.start for box in planned.parts.values())
    rows = {
        "channels": ", ".join(channel.label for channel in planned.channels),
        "source grid": str(native),
        "target grid": "the same" if planned.grid.matches(native) else f"{planned.grid}, {planned.method}",
        "period": f"{planned.times[0]:%Y-%m-%dT%H} to {planned.times[-1]:%Y-%m-%dT%H}, {len(planned.times)} stamps every "
        f"{step_text(planned.step)}",
        "holes": "; ".join(spans(planned.missing, planned.step)) or "none",
        "work": f"{len(planned.parts)} parts of up to {longest} stamps, {planned.bytes / 1e6:.0f} MB before compression",
        **_state(out),
    }
    _show_pairs(console, f"would write {out}", rows)


def show_store(data: xr.Dataset, path: Path) -> None:
    """Grid, period, channels with their ranges, mapping and provenance of an analysis."""
    console, times = table_console(), pd.DatetimeIndex(data["time"].values)
    attrs = data.attrs
    rows = {
        **_state(path),
        "source": attrs.get("source", "not said"),
        "attribution": attrs.get("attribution", "none given"),
        "grid": str(Grid.of(data)),
        "period": f"{times[0]:%Y-%m-%dT%H} to {times[-1]:%Y-%m-%dT%H}, {len(times)} stamps every {attrs.get('step', '?')}",
        "holes": "; ".join(attrs.get("gaps", [])) or "none",
        "regridding": attrs.get("regridding", "none"),
        "static": ", ".join(str(name) for name, array in data.data_vars.items() if "time" not in array.dims) or "none",
        "recipe": f"{attrs.get('recipe_hash', '?')} (plumecast {attrs.get('plumecast_version', '?')})",
    }
    _show_pairs(console, str(path), rows)
    if "quality" in attrs:
        recorded = json.loads(attrs["quality"])
        table, findings = recorded["table"], recorded["findings"]
    else:
        report = _checked(data, path)
        table, findings = report.table.to_dict(orient="index"), [str(finding) for finding in report.findings]
    channels = Table("channel", "units", *[_right(name) for name in ("minimum", "mean", "maximum", "finite")])
    for label, row in table.items():
        numbers = [_number(row[name]) for name in ("minimum", "mean", "maximum")]
        channels.add_row(str(label), row["units"], *numbers, f"{100 * row['finite']:.6g} %")
    console.print(channels)
    _add_moments(console, path, data)
    _show_list(console, "findings", findings)
    _show_list(console, "mapping from the source", json.loads(attrs.get("mapping", "[]")))


def show_files(path: Path) -> None:
    """What other people's files are in the schema: forecast, members of analyses or analyses; and what they lack."""
    data = open_ensemble(path)
    form, n_members = data.attrs["form"], data.sizes["number"]
    if form == "analysis members" and n_members == 1:
        show_store(open_files(path), path)
        return
    console, times = table_console(), pd.DatetimeIndex(data["time"].values)
    hours = (data["prediction_timedelta"].values / np.timedelta64(1, "h")).tolist()
    analyses = "is itself of analyses: one member, or their mean, can verify a forecast for these times, if you decide so"
    rows = {
        "form": "ensemble forecast" if form == "forecast" else "members of analyses (lead 0)",
        "initialisations" if form == "forecast" else "times": f"{times[0]:%Y-%m-%dT%H} to {times[-1]:%Y-%m-%dT%H}, {len(times)}",
        "leads": ", ".join(f"{hour:g} h" for hour in hours),
        "members": f"{n_members}, numbers {data['number'].values.min()} to {data['number'].values.max()}",
        "grid": str(Grid.of(data)),
        "channels": ", ".join(channel.label for channel in channels_of(data)),
        "verifying analysis": "none in these files; to score them give `plumecast verify --truth` an analysis store on this grid"
        if form == "forecast"
        else analyses,
    }
    _show_pairs(console, str(path), rows)
    _show_list(console, "mapping from the source", json.loads(data.attrs["mapping"]))


def show_statistics(data: xr.Dataset) -> None:
    """Mean, std and tendency std of each channel, in the space that models see."""
    steps = [f"tendency_std {hours} h" for hours in data["step"].values]
    table = Table("channel", *[_right(name) for name in ("mean", "std", *steps)])
    for label in data["channel"].values:
        row = data.sel(channel=label)
        numbers = [row["mean"], row["std"], *row["tendency_std_by_step"]]
        table.add_row(str(label), *[_number(float(value)) for value in numbers])
    console = table_console()
    console.print(table)
    console.print(f"over {data.attrs['period']}, {data.attrs['n']} stamps; area-weighted; precipitation as log(1 + x / 1 mm)")


def _checked(data: xr.Dataset, path: Path) -> quality.Report:
    try:
        return quality.check(data, gaps="allow")
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{path}: its values cannot be read: {error}; it is damaged, get it again") from None


def _state(path: Path) -> dict[str, str]:
    """Is it whole, and if not, how far, and who writes it: rows for a table."""
    rows = {"state": "finished" if store.is_store(path) else "nothing there yet"}
    found = store.progress_of(path)
    if found is not None:
        done, total, writers = found
        what = "an extension is UNFINISHED" if store.is_store(path) else "UNFINISHED"
        rows["state"] = f"{what}: {done} of {total} parts; the same ingest continues it"
        rows["written by"] = "; ".join(writers) or "nobody now"
    return rows


def _add_moments(console: Console, path: Path, data: xr.Dataset) -> None:
    """Statistics of the whole store, as the ingest summed them up."""
    kept = read_kept(path)
    if kept is None:
        return
    table = Table("channel", *[_right(name) for name in ("mean", "std", *(f"change in {hours} h" for hours in kept.hours))])
    for channel, moments in overall(kept, channels_of(data)).items():
        numbers = [moments.fields.mean, moments.fields.std, *(change.std for change in moments.changes)]
        table.add_row(channel.label, *[_number(value if np.isfinite(value) else None) for value in numbers])
    console.print(table)
    console.print("all stamps, area-weighted; changes as their std; precipitation as log(1 + x / 1 mm)")


def _show_pairs(console: Console, title: str, rows: Mapping[str, str]) -> None:
    table = Table(title=title, show_header=False, title_justify="left")
    for key, text in rows.items():
        table.add_row(key, text)
    console.print(table)


def _show_list(console: Console, title: str, lines: list[str]) -> None:
    if lines:
        console.print(f"{title}:")
    for line in lines:
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def _right(name: str) -> Column:
    return Column(name, justify="right")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
