"""Initialisations as a command line names them: one by one, or as a range."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from data_pipeline.errors import InputError


def named(texts: Sequence[str]) -> np.ndarray:
    """Stamps as 2007-01-11T00, datetime64[ns], ascending, each once. Raises InputError for anything else."""
    try:
        return np.unique(pd.DatetimeIndex(list(texts)).to_numpy().astype("datetime64[ns]"))
    except ValueError as error:
        raise InputError(f"initialisations: {error}; write stamps as 2007-01-11T00, intervals as 24h") from None


def chosen(init: Sequence[str] | None, start: str | None, stop: str | None, every: str, *, also: str = "") -> np.ndarray:
    """Those of --init, or of --start, --stop and --every, datetime64[ns]; also: what else the command takes, for the message.

    Raises InputError for stamps and intervals that are none, and unless exactly one of the two forms is given.
    """
    if init and not (start or stop):
        return named(init)
    if not (start and stop) or init:
        raise InputError(f"give --init (repeated), or --start and --stop with --every{also}")
    first, last = named([start])[0], named([stop])[0]
    try:
        return pd.date_range(first, last, freq=every).to_numpy().astype("datetime64[ns]")
    except ValueError as error:
        raise InputError(f"initialisations: {error}; write stamps as 2007-01-11T00, intervals as 24h") from None
