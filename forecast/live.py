"""From a checkpoint to today's input frames: what a Spec needs of ECMWF's open data."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from data_pipeline.errors import InputError
from data_pipeline.forcings import STATIC
from data_pipeline.sources.ecmwf_plan import CYCLE_HOURS, Wanted, latest_cycle, present_fields
from data_pipeline.sources.ecmwf_server import Server
from models.contract import Spec


def wanted_by(spec: Spec, static_file: Path | None = None) -> Wanted:
    """Channels, grid, frames and static fields that a forecast with this checkpoint starts from."""
    static = tuple(name for name in spec.forcings if name in STATIC)
    return Wanted(tuple(spec.parsed_channels), spec.grid, spec.frames, spec.step_hours, static, static_file)


def trained_hours(spec: Spec) -> list[int]:
    """The hours of the day of the stamps that a checkpoint was trained on: 0 and 12 for one of 12 h steps from 00 UTC."""
    first = pd.Timestamp(spec.training_period.partition("/")[0])
    return sorted({(first.hour + back * spec.step_hours) % 24 for back in range(24)})


def choose_init(text: str, spec: Spec, wanted: Wanted, server: Server) -> pd.Timestamp:
    """`latest`: the newest whole cycle at the hours the checkpoint was trained on; otherwise the stamp itself, UTC.

    Raises InputError for a stamp that cannot be read, and what `latest_cycle` raises.
    """
    if text == "latest":
        return latest_cycle(wanted, server, hours=set(trained_hours(spec)) & set(CYCLE_HOURS))
    stamp = pd.to_datetime(text, errors="coerce", utc=True)
    if pd.isna(stamp):
        raise InputError(f"--init {text!r}: expected latest, or a stamp such as 2026-11-26T00")
    return stamp.tz_localize(None)


def listed(wanted: Wanted, init: pd.Timestamp, server: Server) -> list[str]:
    """The fields of an initialisation and their size, a line each. Raises as `open_cycle` where one is not there."""
    needed = present_fields(wanted, init, server)
    return [*(f"  {field}" for field in needed), f"{len(needed)} fields, {server.size(needed) / 1e6:.1f} MB"]
