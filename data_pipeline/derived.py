"""Stores derived from an analysis beside it in the work folder: statistics and climatology of the training period.

A finished one is left untouched, unless the analysis has changed since, as by an extension: then a new one takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from data_pipeline import climatology, statistics, store
from data_pipeline.errors import NotReadyError
from data_pipeline.kept import read_kept
from data_pipeline.opening import open_analysis
from data_pipeline.plan import AnalysisSection
from data_pipeline.recipe import section
from data_pipeline.schema import Channel
from data_pipeline.statistics import Periods, format_period


def make_statistics(recipe: Mapping[str, Any], folder: Path) -> Path:
    """<folder>/statistics.zarr from <folder>/analysis.zarr: see `statistics.compute`.

    Tendencies are over every number of hours that the ingest summed up.
    """
    analysis, channels = _inputs(recipe, folder)
    period, kept = section(recipe, "periods", Periods).required("training"), read_kept(folder / "analysis.zarr")
    identity = _identity(analysis, channels, period)
    out = folder / "statistics.zarr"
    old = _outdated(out, identity)
    if old is not None or not store.is_finished(out, identity):
        steps = () if kept is None else kept.hours
        found = statistics.compute(analysis, channels, period, steps=steps, kept=kept)
        store.write_dataset(out, found, recipe=identity, extends=old)
    return out


def make_climatology(
    recipe: Mapping[str, Any],
    folder: Path,
    *,
    window_days: int = 30,
    quantiles: Sequence[float] = (),
    cluster: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """<folder>/climatology.zarr from <folder>/analysis.zarr: see `climatology.write`."""
    analysis, channels = _inputs(recipe, folder)
    periods = section(recipe, "periods", Periods)
    # a short analysis is the first thing to say: naming a period would not help
    climatology.require_year(analysis, periods.training)
    period = periods.required("training")
    identity = {**_identity(analysis, channels, period), "window_days": window_days, "quantiles": list(quantiles)}
    out = folder / "climatology.zarr"
    old = _outdated(out, identity)
    if old is not None or not store.is_finished(out, identity):
        climatology.write(
            analysis, channels, period, out, window_days=window_days, quantiles=quantiles, recipe=identity, extends=old,
            cluster=cluster, progress=progress,
        )  # fmt: skip
    return out


def _inputs(recipe: Mapping[str, Any], folder: Path) -> tuple[xr.Dataset, list[Channel]]:
    channels = [Channel.parse(label) for label in section(recipe, "analysis", AnalysisSection).channels]
    path = folder / "analysis.zarr"
    if not path.exists() and not store.partial_path(path).exists():
        raise NotReadyError(f"{path} is not there yet; make it with: plumecast data ingest {recipe['name']}.toml")
    return open_analysis(path), channels


def _identity(analysis: xr.Dataset, channels: Sequence[Channel], period: tuple[str, str]) -> dict[str, Any]:
    return {
        "analysis": analysis.attrs["recipe_hash"],
        "channels": [channel.label for channel in channels],
        "period": format_period(period),
    }


def _outdated(out: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The recipe of what lies at `out`, if that was made alike of what the analysis was before; None otherwise."""
    old: dict[str, Any] = store.read_manifest(out)["recipe"] if store.is_store(out) else {}
    return old if old != identity and {**old, "analysis": identity["analysis"]} == identity else None
