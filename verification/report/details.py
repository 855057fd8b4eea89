"""The numbers behind the diagrams of the report, as one long table beside the page: CSV, and JSON by columns."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

COLUMNS = (
    "section", "model", "reference", "channel", "event", "region", "lead_hours", "score", "at", "value", "low", "high", "n",
    "units",
)  # fmt: skip
NAMES = {"event": "event", "belt": "region", "channel": "channel"}


def rows(
    scores: xr.Dataset,
    names: Sequence[str],
    *,
    section: str,
    model: str,
    at: str = "",
    reference: str = "",
    n: xr.DataArray | int = 0,
    units: str = "",
) -> pd.DataFrame:
    """The variables `names` of a dataset as rows with `COLUMNS`; value NaN is left out.

    Dims channel, event and belt become columns of their own, prediction_timedelta or drawn_lead the lead in hours, and `at` names
    the dim along which a curve runs. Limits are those of the variables <name>_lower and <name>_upper. n: initialisations.
    """
    parts = []
    for name in names:
        value = scores[name]
        whole = xr.Dataset(
            {"value": value, "n": n if isinstance(n, xr.DataArray) else value.copy(data=np.full(value.shape, n))}
        ).broadcast_like(value)
        for side, column in (("lower", "low"), ("upper", "high")):
            whole[column] = scores.get(f"{name}_{side}", xr.full_like(value, np.nan))
        whole = whole.assign_coords({dim: np.arange(whole.sizes[dim]) for dim in whole.dims if dim not in whole.coords})
        table = whole.drop_vars([c for c in whole.coords if c not in whole.dims]).to_dataframe().reset_index()
        parts.append(_named(table.dropna(subset="value"), at).assign(score=name))
    table = pd.concat(parts, ignore_index=True)
    return table.assign(section=section, model=model, reference=reference, units=units).reindex(columns=COLUMNS)


def _named(table: pd.DataFrame, at: str) -> pd.DataFrame:
    lead = next((name for name in ("prediction_timedelta", "drawn_lead") if name in table), "")
    fields: dict[str, Any] = {column: table[dim].astype(str) if dim in table else "" for dim, column in NAMES.items()}
    fields |= {name: table[name] for name in ("value", "low", "high", "n")}
    fields["lead_hours"] = table[lead].to_numpy() / np.timedelta64(1, "h") if lead else np.nan
    fields["at"] = table[at].astype(float) if at else np.nan
    return pd.DataFrame(fields)


def write_details(parts: Sequence[pd.DataFrame], out: Path) -> list[Path]:
    """Write the rows of all sections beside the page `out`, as <name>.details.csv and .json (missing values null); [] of none."""
    parts = [part for part in parts if len(part)]
    if not parts:
        return []
    table = pd.concat(parts, ignore_index=True)
    as_csv, as_json = (out.with_suffix(f".details.{kind}") for kind in ("csv", "json"))
    table.to_csv(as_csv, index=False, float_format="%.8g", lineterminator="\n")
    columns = {name: [_plain(value) for value in table[name].tolist()] for name in COLUMNS}
    as_json.write_text(json.dumps(columns, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    return [as_csv, as_json]


def _plain(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.8g}") if math.isfinite(value) else None
    return value
