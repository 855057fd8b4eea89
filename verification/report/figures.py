"""The pictures of the report: curves and rank histograms as inline SVG that follows the page's colours, maps as small PNG.

Colours are written as placeholders and become CSS variables, so that one SVG serves light, dark and print. Bytes are
reproducible.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

INK, RULE, MUTED = "#00fd01", "#00fd02", "#00fd03"
CSS = {INK: "var(--ink)", RULE: "var(--rule)", MUTED: "var(--muted)"}
CSS |= {f"#00fe{index:02x}": f"var(--m{index})" for index in range(8)}
MARKERS = ("o", "s", "^", "D", "v", "p", "<", ">")
SHAPES = (  # the markers again, for the key of the page
    "M11.5 5a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0",
    "M12 2h6v6h-6z",
    "M15 1l4 7h-8z",
    "M15 .6l4.4 4.4l-4.4 4.4l-4.4-4.4z",
    "M15 9l4-7h-8z",
    "M15 1l4 3l-1.5 4.6h-5l-1.5-4.6z",
    "M11 5l7-4v8z",
    "M19 5l-7-4v8z",
)
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.5), (1.5, 1.2), (6, 1.5, 1.5, 1.5), (3, 3))  # in line widths
COLOURS = 8
MOST_MODELS = COLOURS * len(DASHES)  # that can be told apart: colour and dashes first come back together after as many
MARKED = 10  # leads of a curve with a marker, about
DPI = 112
PANEL = (3.6, 2.35)  # inches; scaled by the page
RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,  # the grid is there; ticks would be a third of the bytes
    "ytick.major.size": 0,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
}


def colour_of(model: int) -> str:
    """The placeholder of a model's colour, by its position among the models of the report."""
    return f"#00fe{model % COLOURS:02x}"


def dash_of(model: int) -> tuple[float, ...]:
    """The dashes of a model in widths of its line, none for a whole line; models of one colour have others."""
    return DASHES[(model % COLOURS - model // COLOURS) % len(DASHES)]


def css_dash(model: int, width: float) -> str:
    """The same for `stroke-dasharray` of a line so wide, empty for a whole one."""
    return " ".join(f"{width * length:g}" for length in dash_of(model))


def marker_of(model: int) -> int:
    """The marker of a model, a position in `MARKERS` and `SHAPES`; models of one colour have others."""
    return (model + model // COLOURS) % len(MARKERS)


@dataclass(frozen=True)
class Line:
    """One curve: `rows` with columns lead_hours, value, low, high, in lead order; `model` is the position of its colour."""

    rows: pd.DataFrame
    model: int
    dashed: bool = False


def curves(
    lines: Sequence[Line], *, title: str, units: str, alt: str, reference: float | None = None, top: float | None = None
) -> Markup:
    """Scores by lead with intervals as bands, as an SVG element. Leads in days; NaN values break a line.

    alt: what the picture shows, unique in a page: the ids inside are made from it. reference: a value to draw a line at, and to
    centre the axis on; without it the axis starts at zero, or below if values do, and ends at `top`.
    """
    with mpl.rc_context(RC | {"svg.hashsalt": alt}):
        figure = Figure(figsize=PANEL)
        ax = figure.add_axes((0.13, 0.175, 0.85, 0.7))
        if reference is not None:
            ax.axhline(reference, color=INK, linewidth=0.9)
        for line in lines:
            _curve(ax, line)
        ax.set_title(f"{title} ({units})" if units else title)
        ax.set_xlabel("lead (days)", labelpad=1)
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        if reference is None:
            lowest = min([0.0, *[float(line.rows["value"].min()) for line in lines]])
            ax.set_ylim(1.1 * lowest, top)
        else:
            reach = max([0.3, *[float(np.nanmax(np.abs(line.rows["value"] - reference))) * 1.1 for line in lines]])
            ax.set_ylim(max(reference - reach, 0), reference + reach)
        return svg(figure, alt)


def _curve(ax: Axes, line: Line) -> None:
    days = line.rows["lead_hours"].to_numpy() / 24
    value, low, high = (line.rows[name].to_numpy(dtype=float) for name in ("value", "low", "high"))
    colour = colour_of(line.model)
    if np.isfinite(low).any():
        ax.fill_between(days, low, high, color=colour, alpha=0.16, linewidth=0)
    dashes = (2.5, 2) if line.dashed else dash_of(line.model)
    marker = None if line.dashed else MARKERS[marker_of(line.model)]
    every = max(1, round(days.size / MARKED))
    ax.plot(
        days,
        value,
        color=colour,
        linewidth=1.5,
        linestyle=(0, dashes) if dashes else "-",
        marker=marker,
        markevery=every,
        markersize=3.2,
        markeredgewidth=0,
    )


def swatch(model: int) -> Markup:
    """The line of a model for the key of a page: colour, dashes and marker as in the curves."""
    dashes = css_dash(model, 1.5)
    pattern = f' stroke-dasharray="{dashes}"' if dashes else ""
    colour = f"var(--m{model % COLOURS})"
    line = f'<line x1="0" y1="5" x2="30" y2="5" stroke="{colour}" stroke-width="2.4"{pattern}/>'
    marker = f'<path d="{SHAPES[marker_of(model)]}" fill="{colour}"/>'
    return Markup(f'<svg viewBox="0 0 30 10" aria-hidden="true">{line}{marker}</svg>')


def rank_histogram(frequencies: np.ndarray, *, title: str, model: int, alt: str) -> Markup:
    """Relative frequency of each rank times the number of ranks, so that a flat histogram is 1 everywhere."""
    with mpl.rc_context(RC | {"axes.grid": False, "svg.hashsalt": alt}):
        figure = Figure(figsize=(2.1, 1.35))
        ax = figure.add_axes((0.135, 0.17, 0.845, 0.67))
        ranks = np.arange(frequencies.size + 1)
        ax.stairs(frequencies * frequencies.size, ranks, fill=True, color=colour_of(model), alpha=0.75)
        ax.axhline(1.0, color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
        ax.set(xlim=(0, frequencies.size), ylim=(0, max(2.0, 1.1 * float(np.nanmax(frequencies)) * frequencies.size)))
        ax.set_title(title, fontsize=8)
        ax.set_xticks([0.5, frequencies.size - 0.5], ["0", str(frequencies.size - 1)])
        ax.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        ax.tick_params(labelsize=7, length=2)
        return svg(figure, alt)


def svg(figure: Figure, alt: str) -> Markup:
    """A figure as an SVG element for a page: no header, no ids but those it refers to, sized and coloured by CSS."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"<g id=\"[^\"]*\"", "<g", text)
    text = re.sub(r"<path id=\"[^m\"][^\"]*\"", "<path", text)
    text = re.sub(r" font-family: [^;\"]+;", "", text)
    text = re.sub(r" transform=\"rotate\(-0 [^\"]*\"", "", text)
    text = re.sub(r"(\d+\.\d{2})\d+", r"\1", text)
    text = re.sub(r"<path d=\"[^\"]*\" style=\"fill: none\"/>", "", text)  # the background, which nobody sees
    text = re.sub(r"\s*\n\s*", " ", text).replace("> <", "><").replace(' "', '"').replace("xlink:href", "href")
    text = re.sub(r"<g>\s*</g>", "", text)
    for placeholder, variable in CSS.items():
        text = text.replace(placeholder, variable)
    view = re.search(r"viewBox=\"[^\"]*\"", text)
    body = text[text.index(">") + 1 :]
    if view is None:
        raise ValueError("matplotlib wrote an SVG without a viewBox")
    return Markup(f'<svg {view[0]} role="img" aria-label="{escape(alt)}">{body.strip()}')


def png(figure: Figure, *, colours: int = 48) -> str:
    """A map as a data URI of a palette PNG: a third of the bytes of true colour."""
    figure.set_dpi(DPI)
    figure.set_facecolor("white")
    agg = FigureCanvasAgg(figure)
    agg.draw()
    drawn = np.asarray(agg.buffer_rgba())[..., :3]
    image = Image.fromarray(drawn).quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    stream = io.BytesIO()
    image.save(stream, format="PNG", compress_level=7)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def png_size(source: str) -> tuple[int, int]:
    """Width and height in pixels of a PNG data URI, so that the page keeps its place before the image is decoded."""
    head = base64.b64decode(source.split(",", 1)[1][:32])
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
