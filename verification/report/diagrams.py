"""The diagrams of the report as inline SVG in the colours of the page: events, spectra, and scores of events by lead.

Written directly, not by matplotlib: a page holds hundreds of them, each a tenth of the bytes (2 kB) and a hundredth of the time
(0.3 ms). Lines, colours and letters are classes of `diagrams.css`; markers and dashes are those of `figures`. What lies beyond an
axis is drawn on its edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator

from verification.report.figures import marker_of

WIDTH = 250  # of the drawing; the page scales it
LEFT, RIGHT, TOP = 37, 6, 17  # of the frame
RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # marks of the axis of cost over loss
TENTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
SMALLEST_SHARE = 1e-4
MOST_LINES = 20  # of single members in a plume
MARKERS = (  # around a point; of the models in the order of `figures.MARKERS`
    "m-2.3 0a2.3 2.3 0 1 0 4.6 0a2.3 2.3 0 1 0-4.6 0", "m-2-2h4v4h-4z", "m0-2.5l2.5 4.6h-5z", "m0-2.9l2.9 2.9l-2.9 2.9l-2.9-2.9z",
    "m0 2.5l2.5-4.6h-5z", "m0-2.6l2.5 1.8l-1 3h-3l-1-3z", "m-2.5 0l4.6-2.5v5z", "m2.5 0l-4.6-2.5v5z",
)  # fmt: skip


class Curve(NamedTuple):
    """One model's curve: x, y and, if known, the limits of y; `model` is its position among the models of the report."""

    model: int
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(frozen=True)
class Axis:
    """From values to the drawing: `start` to `stop` lie at `first` to `last`."""

    start: float
    stop: float
    first: float
    last: float
    log: bool = False

    def __call__(self, values: np.ndarray | float) -> np.ndarray:
        """Places in the drawing; of values beyond the axis its edge, of missing ones NaN."""
        inside = np.clip(np.asarray(values, dtype=np.float64), self.start, self.stop)
        ends = np.array([self.start, self.stop])
        ends, inside = (np.log(ends), np.log(inside)) if self.log else (ends, inside)
        share = (inside - ends[0]) / (ends[1] - ends[0])
        return np.round(self.first + share * (self.last - self.first), 1)


def reliability(curves: Sequence[Curve], shares: Sequence[np.ndarray], base: float, *, title: str, alt: str) -> Markup:
    """Observed frequency against forecast probability with intervals, and below it the share of each bin on a log axis.

    shares: one array for each curve, along its bins. base: how often the event happens, dotted; the grey line half-way to the
    diagonal is where the Brier skill is zero (Wilks 2011).
    """
    x, y = Axis(0, 1, LEFT + 4, WIDTH - RIGHT - 4), Axis(0, 1, 206, TOP + 4)
    share = Axis(SMALLEST_SHARE, 1, 266, 226, log=True)
    parts = [
        _frame(x, y, TENTHS, TENTHS, title=title, y_label="observed frequency", x_marks=False),
        _frame(
            x, share, TENTHS, (1e-4, 1e-2, 1), x_label="forecast probability", y_label="share", y_texts=("0.01 %", "1 %", "all")
        ),
        _path("d-ink", [(0, 1)], [(0, 1)], x, y),
        _path("d-mute", [(0, 1)], [(base / 2, (1 + base) / 2)], x, y),
        _path("d-dots", [(0, 1), (base, base)], [(base, base), (0, 1)], x, y),
        *(_bars(curve, x, y) for curve in curves),
        *(_line(curve, x, y) for curve in curves),
        *(_line(Curve(curve.model, curve.x, part), x, share) for curve, part in zip(curves, shares, strict=True)),
    ]
    return _svg(parts, 295, alt)


def roc(curves: Sequence[Curve], *, title: str, alt: str) -> Markup:
    """Hit rate (y) against false-alarm rate (x); on the diagonal there is no skill."""
    x, y = Axis(0, 1, LEFT + 4, WIDTH - RIGHT - 4), Axis(0, 1, 206, TOP + 4)
    frame = _frame(x, y, TENTHS, TENTHS, title=title, x_label="false-alarm rate", y_label="hit rate")
    parts = [frame, _path("d-mute", [(0, 1)], [(0, 1)], x, y), *(_line(curve, x, y) for curve in curves)]
    return _svg(parts, 238, alt)


def value(curves: Sequence[Curve], base: float, *, title: str, alt: str) -> Markup:
    """Economic value (y) by the ratio of cost to loss (x, log axis); the base rate, where value is highest, dotted."""
    x, y = Axis(RATIOS[0], RATIOS[-1], LEFT, WIDTH - RIGHT, log=True), Axis(0, 1, 210, TOP)
    parts = [
        _frame(x, y, RATIOS, TENTHS, title=title, x_label="cost / loss", y_label="economic value"),
        _path("d-dots", [(base, base)], [(0, 1)], x, y),
        *(_line(curve, x, y, marks=False) for curve in curves),
    ]
    return _svg(parts, 238, alt)


def spectrum(
    truth: Curve,
    members: Sequence[Curve],
    means: Sequence[Curve],
    ratios: Sequence[Curve],
    mean_ratios: Sequence[Curve],
    *,
    units: str,
    title: str,
    alt: str,
) -> Markup:
    """Power by wavenumber of the truth (ink), of members (lines) and of ensemble means (thin), and below it the ratios.

    ratios, mean_ratios: to the truth of each model's own cases. Log axes but that of the ratios, which ends at 0 and 2.
    """
    powers = np.concatenate([curve.y for curve in (truth, *members)])
    powers = powers[np.isfinite(powers) & (powers > 0)]
    decades = [np.floor(np.log10(powers.min())), np.ceil(np.log10(powers.max()))] if powers.size else [0.0, 1.0]
    if decades[0] == decades[1]:
        decades[1] += 1
    marks = np.arange(decades[0], decades[1] + 1)[:: max(1, int(decades[1] - decades[0]) // 5)]
    waves = [k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if k <= truth.x[-1]]
    x = Axis(float(truth.x[0]), float(truth.x[-1]), LEFT, WIDTH - RIGHT, log=True)
    y, ratio = Axis(10 ** decades[0], 10 ** decades[1], 178, TOP, log=True), Axis(0, 2, 266, 190)
    texts = [f"10{_raised(int(mark))}" for mark in marks]
    parts = [
        _frame(x, y, waves, 10.0**marks, title=f"{title}: power ({units})", y_texts=texts, x_marks=False),
        _frame(x, ratio, waves, (0, 0.5, 1, 1.5, 2), x_label="zonal wavenumber", y_label="over truth"),
        _path("d-ink", [(truth.x[0], truth.x[-1])], [(1, 1)], x, ratio),
        _path("d-truth", [truth.x], [truth.y], x, y),
    ]
    for powers_of, ratios_of, thin in ((members, ratios, False), (means, mean_ratios, True)):
        parts += [_line(curve, x, y, marks=False, thin=thin) for curve in powers_of]
        parts += [_line(curve, x, ratio, marks=False, thin=thin) for curve in ratios_of]
    return _svg(parts, 295, alt)


def by_lead(curves: Sequence[Curve], *, title: str, units: str, alt: str, zero: bool = False) -> Markup:
    """A score by lead in days with its intervals as bands. zero: skill, at most 1 and shown down to -1, with a line at none."""
    values = np.concatenate([np.zeros(1), *[curve.y for curve in curves]])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    ends = (max(low, -1.0), max(high, 0.1)) if zero else (min(low, 0.0), high or 1.0)
    marks = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(*ends)
    longest = max(float(curve.x.max()) for curve in curves) or 1.0
    days = np.asarray(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]).tick_values(0, longest))
    x = Axis(0, longest, LEFT, WIDTH - RIGHT - 3)
    y = Axis(float(marks[0]), float(marks[-1]), 210, TOP)
    parts = [
        _frame(x, y, days[days <= longest], marks, title=f"{title} ({units})" if units else title, x_label="lead (days)"),
        *(_band(curve, x, y) for curve in curves),
        *([_path("d-ink", [(0, longest)], [(0, 0)], x, y)] if zero else []),
        *(_line(curve, x, y) for curve in curves),
    ]
    return _svg(parts, 238, alt)


def plume(days: np.ndarray, members: np.ndarray, truth: np.ndarray, *, title: str, alt: str, model: int = 0) -> Markup:
    """Members (lead, number) and truth (lead,) at a point: range and 10 to 90 % as bands, members thin, median, truth dashed.

    At most 20 members are drawn one by one; the bands are of all. Some member must be there; missing truth is left out.
    """
    known = np.concatenate([members.ravel(), truth[np.isfinite(truth)]])
    marks = np.asarray(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(np.nanmin(known), np.nanmax(known)))
    longest = float(days.max()) or 1.0
    steps = np.asarray(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]).tick_values(0, longest))
    x, y = Axis(0, longest, LEFT, WIDTH - RIGHT - 3), Axis(float(marks[0]), float(marks[-1]), 140, TOP)
    levels = np.quantile(members, [0.0, 0.1, 0.5, 0.9, 1.0], axis=1)
    single = members[:, :MOST_LINES] if members.shape[1] > 1 else members[:, :0]
    parts = [
        _frame(x, y, steps[steps <= longest], marks, title=title, x_label="lead (days)"),
        _band(Curve(model, days, levels[2], levels[0], levels[4]), x, y),
        _band(Curve(model, days, levels[2], levels[1], levels[3]), x, y),
        _path(f"d-l{model} d-member", [days] * single.shape[1], list(single.T), x, y),
        _line(Curve(model, days, levels[2]), x, y, marks=False),
        _path("d-truth d-observed", [days], [truth], x, y),
    ]
    return _svg(parts, 168, alt)


def _frame(
    x: Axis,
    y: Axis,
    x_marks_at: Sequence[float] | np.ndarray,
    y_marks_at: Sequence[float] | np.ndarray,
    *,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    x_marks: bool = True,
    y_texts: Sequence[str] | None = None,
) -> str:
    """Rules at the marks, both axes, and what stands beside them."""
    left, right, bottom, top = LEFT, WIDTH - RIGHT, max(y.first, y.last), min(y.first, y.last)
    bottom, top = (bottom + 4, top - 4) if x.first > LEFT and not y.log else (bottom, top)
    across, up = x(np.asarray(x_marks_at, dtype=np.float64)), y(np.asarray(y_marks_at, dtype=np.float64))
    rules = "".join([f"M{place:g} {bottom:g}V{top:g}" for place in across] + [f"M{left} {place:g}H{right}" for place in up])
    texts = [f"{mark:g}".replace("-", "−") for mark in np.round(y_marks_at, 10)] if y_texts is None else y_texts
    letters = [f'<text x="{left - 4}" y="{place + 3:g}">{text}</text>' for place, text in zip(up, texts, strict=True)]
    parts = [f'<path class="d-rule" d="{rules}"/><path class="d-axis" d="M{left} {top:g}V{bottom:g}H{right}"/>']
    parts.append(f'<g class="d-up">{"".join(letters)}</g>')
    if x_marks:
        letters = [
            f'<text x="{place:g}" y="{bottom + 11:g}">{mark:g}</text>' for place, mark in zip(across, x_marks_at, strict=True)
        ]
        parts.append(f'<g class="d-across">{"".join(letters)}</g>')
    if x_label:
        parts.append(f'<text class="d-name" x="{(left + right) / 2:g}" y="{bottom + 24:g}">{escape(x_label)}</text>')
    if y_label:
        middle = (top + bottom) / 2
        parts.append(f'<text class="d-name" transform="translate(9 {middle:g})rotate(-90)">{escape(y_label)}</text>')
    if title:
        parts.append(f'<text class="d-title" x="{left}" y="11">{escape(title)}</text>')
    return "".join(parts)


def _line(curve: Curve, x: Axis, y: Axis, *, marks: bool = True, thin: bool = False) -> str:
    """A curve, broken where it is missing, with its markers."""
    across, up = x(curve.x), y(curve.y)
    kept = np.isfinite(across) & np.isfinite(up)
    steps = [f"{'L' if i and kept[i - 1] else 'M'}{across[i]:g} {up[i]:g}" for i in np.flatnonzero(kept)]
    drawn = f'<path class="d-l{curve.model}{" d-thin" if thin else ""}" d="{"".join(steps)}"/>'
    if not marks:
        return drawn
    shape = MARKERS[marker_of(curve.model)]
    places = [f"M{across[i]:g} {up[i]:g}{shape}" for i in np.flatnonzero(kept)]
    return drawn + f'<path class="d-f{curve.model}" d="{"".join(places)}"/>'


def _bars(curve: Curve, x: Axis, y: Axis) -> str:
    if curve.low is None or curve.high is None:
        return ""
    across, low, high = x(curve.x), y(curve.low), y(curve.high)
    steps = [f"M{across[i]:g} {low[i]:g}V{high[i]:g}" for i in np.flatnonzero(np.isfinite(low) & np.isfinite(high))]
    return f'<path class="d-b{curve.model}" d="{"".join(steps)}"/>'


def _band(curve: Curve, x: Axis, y: Axis) -> str:
    if curve.low is None or curve.high is None:
        return ""
    kept = np.flatnonzero(np.isfinite(curve.low) & np.isfinite(curve.high))
    across, low, high = x(curve.x), y(curve.low), y(curve.high)
    steps = [f"{across[i]:g} {low[i]:g}" for i in kept] + [f"{across[i]:g} {high[i]:g}" for i in kept[::-1]]
    return f'<path class="d-f{curve.model} d-band" d="M{"L".join(steps)}z"/>' if steps else ""


def _path(
    kind: str, xs: Sequence[Sequence[float] | np.ndarray], ys: Sequence[Sequence[float] | np.ndarray], x: Axis, y: Axis
) -> str:
    """Lines of one kind through places."""
    found = []
    for across, up in zip(xs, ys, strict=True):
        places = zip(x(np.asarray(across, dtype=np.float64)), y(np.asarray(up, dtype=np.float64)), strict=True)
        known = [f"{a:g} {b:g}" for a, b in places if np.isfinite(a) and np.isfinite(b)]
        found += ["M" + "L".join(known)] if known else []
    return f'<path class="{kind}" d="{"".join(found)}"/>'


def _raised(power: int) -> str:
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _svg(parts: Sequence[str], height: int, alt: str) -> Markup:
    return Markup(f'<svg class="d" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(alt)}">{"".join(parts)}</svg>')
