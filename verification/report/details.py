"""The numbers behind the diagrams of the report, as one long table beside the page: CSV, and JSON by columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from verification.report.tables import write_table
from verification.styles import Style, style_of

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
    power: int = 0,
) -> pd.DataFrame:
    """The variables `names` of a dataset as rows with `COLUMNS`; value NaN is left out.

    Dims channel, event and belt become columns of their own, prediction_timedelta or drawn_lead the lead in hours, and `at` names
    the dim along which a curve runs. Limits are those of the variables <name>_lower and <name>_upper. n: initialisations. power:
    0 for what has no units, 1 for differences of values and 2 for their squares, which go to display units.
    """
    parts = []
    for name in names:
        value = scores[name]
        whole = xr.Dataset(
            {"value": value, "n": n if isinstance(n, xr.DataArray) else value.copy(data=np.full(value.shape, n))}
        ).broadcast_like(value)
        for side, column in (("lower", "low"), ("upper", "high")):
            whole[column] = scores.get(f"{name}_{side}", xr.full_like(value, np.nan, dtype=float))
        whole = whole.assign_coords({dim: np.arange(whole.sizes[dim]) for dim in whole.dims if dim not in whole.coords})
        table = whole.drop_vars([c for c in whole.coords if c not in whole.dims]).to_dataframe().reset_index()
        parts.append(_named(table.dropna(subset="value"), at).assign(score=name))
    table = pd.concat(parts, ignore_index=True)
    styles = {label: style_of(label) for label in table["channel"].unique()}
    factor = table["channel"].map({label: style.factor**power for label, style in styles.items()}).astype(float)
    table[["value", "low", "high"]] = table[["value", "low", "high"]].mul(factor, axis=0)
    units = table["channel"].map({label: units_of(style, power) for label, style in styles.items()})
    return table.assign(section=section, model=model, reference=reference, units=units).reindex(columns=list(COLUMNS))


def units_of(style: Style, power: int) -> str:
    """`K`, `K²`, `(m s⁻¹)²`; nothing for what has no units."""
    units = style.difference_units
    if power == 0 or units in ("", "1"):
        return ""
    return units if power == 1 else f"({units})²" if " " in units else f"{units}²"


def _named(table: pd.DataFrame, at: str) -> pd.DataFrame:
    lead = next((name for name in ("prediction_timedelta", "drawn_lead") if name in table), "")
    fields: dict[str, Any] = {column: table[dim].astype(str) if dim in table else "" for dim, column in NAMES.items()}
    fields |= {name: table[name] for name in ("value", "low", "high", "n")}
    fields["lead_hours"] = table[lead].to_numpy() / np.timedelta64(1, "h") if lead else np.nan
    fields["at"] = table[at].astype(float) if at else np.nan
    return pd.DataFrame(fields)


def write_details(parts: Sequence[pd.DataFrame], out: Path) -> list[Path]:
    """Write the rows of all sections beside the page `out`, as <name>.details.csv and .json (missing values null).

    [] of none; files of an earlier report go.
    """
    paths = [out.with_suffix(f".details.{kind}") for kind in ("csv", "json")]
    parts = [part for part in parts if len(part)]
    if not parts:
        for path in paths:
            path.unlink(missing_ok=True)
        return []
    write_table(pd.concat(parts, ignore_index=True), *paths, digits=6)
    return paths
