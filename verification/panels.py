"""Plain axes beside or above each other, placed by inches, in the look of the maps: heading above, key below, no pyplot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from verification.canvas import INK, LINE, MUTED, wrapped, write_heading

MODELS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#5b4aa0", "#7a7a7a")  # as in the report
MARKERS = ("o", "s", "^", "D", "v", "p", "<", ">")
LEFT, RIGHT, BETWEEN, BELOW, OVER, UNDER = 0.62, 0.16, 0.5, 0.78, 0.3, 0.28  # inches


def panels(
    tall: Sequence[float], columns: int = 1, *, width: float, title: str, note: str = "", right: float = RIGHT
) -> tuple[Figure, list[Axes]]:
    """A figure of axes in reading order, its rows `tall` inches each, with room for titles, labels and one key below.

    right: inches of margin.
    """
    heading = wrapped(title, note, width)
    above = LINE * len(heading) + 0.06
    height = above + sum(tall) + len(tall) * OVER + (len(tall) - 1) * UNDER + BELOW
    figure = Figure(figsize=(width, height), dpi=110)
    wide = (width - LEFT - right - BETWEEN * (columns - 1)) / columns
    axes, top = [], height - above
    for own in tall:
        bottom = top - OVER - own
        lefts = [LEFT + column * (wide + BETWEEN) for column in range(columns)]
        axes += [figure.add_axes((left / width, bottom / height, wide / width, own / height)) for left in lefts]
        top = bottom - UNDER
    write_heading(figure, heading)
    return figure, axes


def dress(ax: Axes, title: str = "", across: str = "") -> None:
    """A light axis; title: above its left edge, across: below it."""
    ax.set_title(title, fontsize=8.5, loc="left", color=INK, pad=4)
    ax.set_xlabel(across, fontsize=8, color=INK, labelpad=2)
    lighten(ax)


def lighten(ax: Axes) -> None:
    """A pale grid behind what is drawn, no box, small numbers."""
    ax.tick_params(labelsize=7.5, length=2, width=0.5, color=INK, labelcolor=INK)
    ax.grid(color="#dddddd", linewidth=0.5)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set(color=MUTED, linewidth=0.6)


def key(figure: Figure, entries: Sequence[Any | Artist]) -> None:
    """One legend in the lower left corner."""
    figure.legend(
        handles=list(entries), loc="lower left", ncols=len(entries), fontsize=8, frameon=False, labelcolor=INK, handlelength=1.8,
        columnspacing=1.4, bbox_to_anchor=(0.04, 0.02 / figure.get_figheight()),
    )  # fmt: skip
