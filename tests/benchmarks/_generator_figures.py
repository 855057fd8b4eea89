"""The figures of docs/generators, from what the folder holds: curves by lead, spectra, rank histograms, one case."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from PIL import Image

from tests.benchmarks import _generator_docs as docs
from tests.benchmarks._campaign import DAY
from tests.benchmarks._generator_docs import BINS, CASE_DAYS, CHANNELS
from verification.styles import style_of

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
PHYSICS = {
    "imperfect": ("#555555", (0, (1, 1.2)), "physics, imperfect (T21)"),
    "perfect": ("#000000", (0, (4, 1.5)), "physics, perfect"),
}
WIDTH = 10.5  # inches: a page
DPI = 120
RC: dict[Any, Any] = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e2e2e2",
    "grid.linewidth": 0.6, "axes.axisbelow": True, "axes.titlesize": 10, "axes.titlelocation": "left", "legend.frameon": False,
    "axes.linewidth": 0.7, "lines.linewidth": 1.5,
}  # fmt: skip
SHOWN = ("geopotential_500", "total_precipitation_12hr")  # in the spectra
RAIN = (0.1, 0.5, 1, 2, 4, 8, 16, 32)  # mm in 12 h


def draw(folder: Path) -> None:
    """Every figure whose figures are there."""
    with mpl.rc_context(RC):
        if (folder / "curves.nc").exists():
            curves = docs.read(folder / "curves.nc")
            physics = docs.read(folder / "physics_curves.nc") if (folder / "physics_curves.nc").exists() else None
            title = "CRPS over the climatology's, test year 2007"
            save(by_lead(curves, physics, "ratio", title, 1.0, "climatology"), folder / "crps.png")
            save(by_lead(curves, physics, "ssr", "Spread-skill ratio, test year 2007", 1.0, "reliable"), folder / "ssr.png")
        if (folder / "spectra.nc").exists():
            save(spectra(folder), folder / "spectra.png")
        if (folder / "ranks.nc").exists():
            save(ranks(docs.read(folder / "ranks.nc")), folder / "ranks.png")
        if (folder / "case.nc").exists():
            save(case(docs.read(folder / "case.nc")), folder / "case.png")


def save(figure: Figure, path: Path) -> None:
    """As a palette PNG: a third of the bytes of true colour."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, facecolor="white")
    image = Image.open(stream).convert("RGB").quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    image.save(path, optimize=True)


def bases(names: Sequence[str]) -> list[str]:
    """Models without their kinds, in order."""
    return list(dict.fromkeys(name.rpartition(", ")[0] for name in names if ", " in name))


def shown_kinds(names: Sequence[str], base: str) -> list[tuple[str, str]]:
    """(name, line style) of the tuned and the calibrated kind."""
    styles = {"tuned": "-", "calibrated": (0, (5, 1.5))}
    return [(f"{base}, {kind}", style) for kind, style in styles.items() if f"{base}, {kind}" in names]  # type: ignore[misc]


def by_lead(curves: xr.Dataset, physics: xr.Dataset | None, score: str, title: str, line: float, named: str) -> Figure:
    """A score by lead, one panel a variable, with intervals for the tuned models and the physics ensembles as lines."""
    names = [str(name) for name in curves["model"].values]
    figure = Figure(figsize=(WIDTH, 5.9), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True)
    for panel, channel in zip(panels.flat, [c for c in CHANNELS if c in curves["channel"].values], strict=False):
        panel.axhline(line, color="#888888", linewidth=1)
        for number, base in enumerate(bases(names)):
            for name, style in shown_kinds(names, base):
                one = curves.sel(model=name, channel=channel)
                curve(panel, one, score, COLOURS[number], style, name, marker=MARKERS[number] if style == "-" else None)
        for name, (colour, dashes, label) in PHYSICS.items():
            if physics is not None and name in physics["model"].values and channel in physics["channel"].values:
                curve(panel, physics.sel(model=name, channel=channel), score, colour, dashes, label)
        panel.set_title(style_of(channel).label)
        panel.set_xticks(range(0, 16, 3))
        if score == "ratio":
            panel.set_ylim(0, 1.25)
        else:
            panel.set_ylim(0.2, 1.5)
            panel.axhspan(0.9, 1.1, color="#888888", alpha=0.12, linewidth=0)
    for panel in panels[-1]:
        panel.set_xlabel("lead (days)")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    note = "physics: 16 members from analyses, on the dates of docs/physics" if physics is not None else ""
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), title=note or None, title_fontsize=8)
    figure.suptitle(f"{title}; horizontal line: {named}; bands: 95 % intervals", x=0.01, ha="left", fontsize=11)
    return figure


def curve(panel: Axes, one: xr.Dataset, score: str, colour: str, style: Any, label: str, marker: str | None = None) -> None:
    known = one.dropna("prediction_timedelta", subset=[score])
    days = known["prediction_timedelta"].values / DAY
    panel.plot(days, known[score], color=colour, linestyle=style, label=label, marker=marker, markevery=2, markersize=3.2)
    panel.fill_between(days, known[f"{score}_lower"], known[f"{score}_upper"], color=colour, alpha=0.15, linewidth=0)


def spectra(folder: Path) -> Figure:
    """Zonal power of single members and of the truth, and their ratio, at days 1, 10 and after a month."""
    short, long = docs.read(folder / "spectra.nc"), folder / "long.nc"
    late = docs.read(long) if long.exists() else None
    names = [str(name) for name in short["model"].values]
    columns = ["day 1", "day 10", *(["days 31 to 60"] if late is not None else [])]
    figure = Figure(figsize=(WIDTH, 8.2), layout="constrained")
    panels = figure.subplots(4, len(columns), sharex=True, sharey="row", height_ratios=[2, 1.1, 2, 1.1])
    for row, channel in enumerate(c for c in SHOWN if c in short["channel"].values):
        factor = style_of(channel).factor ** 2
        for column, title in enumerate(columns):
            upper, lower = panels[2 * row, column], panels[2 * row + 1, column]
            for number, base in enumerate(bases(names)):
                chosen = shown_kinds(names, base) if column < 2 else [(base, "-")]
                for name, style in chosen:
                    own, truth = powers(short, late, name, channel, title)
                    upper.loglog(own["wavenumber"][1:], factor * own[1:], color=COLOURS[number], linestyle=style, label=name)
                    lower.semilogx(own["wavenumber"][1:], (own / truth)[1:], color=COLOURS[number], linestyle=style)
            upper.loglog(truth["wavenumber"][1:], factor * truth[1:], color="black", linewidth=1, label="truth")
            lower.axhspan(0.8, 1.2, color="#888888", alpha=0.15, linewidth=0)
            lower.axhline(1, color="black", linewidth=1)
            lower.set_ylim(0, 2.5)
            upper.set_title(f"{style_of(channel).label}, {title}")
        units = style_of(channel).difference_units
        panels[2 * row, 0].set_ylabel(f"power ({units}²)")
        panels[2 * row + 1, 0].set_ylabel("over the truth's")
    for panel in panels[-1]:
        panel.set_xlabel("zonal wavenumber")
        panel.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
        panel.set_xlim(1, 32)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))
    figure.suptitle("Zonal power of single members, all latitudes, area-weighted; band: 20 %", x=0.01, ha="left", fontsize=11)
    return figure


def powers(short: xr.Dataset, late: xr.Dataset | None, name: str, channel: str, title: str) -> tuple[xr.DataArray, xr.DataArray]:
    if title.startswith("day "):
        one = short.sel(model=name, channel=channel, drawn_lead=int(title[4:]) * DAY)
        return one["forecast_power"], one["truth_power"]
    assert late is not None
    both = late["power"].sel(model=name, channel=channel)
    return both.sel(source="forecast"), both.sel(source="truth")


def ranks(data: xr.Dataset) -> Figure:
    """The rank histograms of all models, one panel a variable."""
    names = [str(name) for name in data["model"].values]
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True, sharey=True)
    for panel, channel in zip(panels.flat, [c for c in CHANNELS if c in data["channel"].values], strict=False):
        panel.axhspan(0.8, 1.2, color="#888888", alpha=0.15, linewidth=0)
        panel.axhline(1, color="#888888", linewidth=1)
        for number, base in enumerate(bases(names)):
            for name, style in shown_kinds(names, base):
                values = data["ranks"].sel(model=name, channel=channel).values
                panel.stairs(values, np.arange(BINS + 1), color=COLOURS[number], linestyle=style, label=name, linewidth=1.5)
        panel.set_title(style_of(channel).label)
        panel.set_ylim(0.4, max(1.6, 1.05 * float(data["ranks"].max())))
        panel.set_xticks([0, BINS / 2, BINS], ["below all", "", "above all"])
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))
    title = f"Rank of the truth among 50 members, {BINS} bins of 3 ranks, mean of days 1 to 10; flat is 1, band: 20 %"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def case(data: xr.Dataset) -> Figure:
    """One forecast: the truth and two members of each model, 500 hPa height and precipitation at days 5 and 10."""
    columns = [str(panel) for panel in data["panel"].values]
    rows = [(channel, day) for channel in map(str, data["channel"].values) for day in CASE_DAYS]
    figure = Figure(figsize=(2.15 * len(columns) + 0.7, 1.28 * len(rows) + 1.0), layout="constrained")
    panels = figure.subplots(len(rows), len(columns), sharex=True, sharey=True, squeeze=False)
    for r, (channel, day) in enumerate(rows):
        style = style_of(channel)
        fields = style.display(data["fields"].sel(channel=channel, prediction_timedelta=day * DAY))
        rain = channel.startswith("total_precipitation")
        levels = np.array(RAIN) if rain else 8 * np.arange(int(fields.min() // 8) + 1, int(fields.max() // 8) + 1)
        norm = BoundaryNorm(levels, 256, extend="max" if rain else "both")
        for c, name in enumerate(columns):
            panel = panels[r, c]
            panel.grid(visible=False)
            drawn = panel.contourf(
                *cyclic(fields.sel(panel=name)), levels=levels, norm=norm, cmap="YlGnBu" if rain else "RdYlBu_r",
                extend="max" if rain else "both",
            )  # fmt: skip
            if not rain:
                panel.contour(*cyclic(fields.sel(panel=name)), levels=levels, colors="#00000066", linewidths=0.4)
            panel.contour(*cyclic(data["land_sea_mask"]), levels=[0.5], colors="#333333", linewidths=0.5)
            panel.set(xticks=[], yticks=[], ylim=(-85, 85), xlim=(0, 360))
            panel.spines[:].set_visible(True)
            if r == 0:
                panel.set_title(name, fontsize=9)
        panels[r, 0].set_ylabel(f"{style.label}, day {day}", fontsize=8.5)
        if day == CASE_DAYS[-1]:
            both = panels[r - 1 : r + 1, :].ravel().tolist()
            bar = figure.colorbar(drawn, ax=both, pad=0.005, fraction=0.02, aspect=26, ticks=levels if rain else levels[::3])
            bar.set_label(style.units, fontsize=8.5)
            bar.ax.tick_params(labelsize=7.5)
    when = f"{pd.Timestamp(data.attrs['init']):%d %B %Y, %H UTC}"
    figure.suptitle(f"The simulated planet, forecasts from {when}", x=0.01, ha="left", fontsize=11)
    return figure


def cyclic(field: xr.DataArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Longitudes to 360, latitudes and values, the first column once more at the end."""
    values = field.transpose("latitude", "longitude").values
    longitude = np.append(field["longitude"].values, 360.0)
    return longitude, field["latitude"].values, np.concatenate([values, values[:, :1]], axis=1)
