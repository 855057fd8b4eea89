"""The status page: one HTML file, no script, nothing from a network, light and dark, for a wall screen and a phone."""

from __future__ import annotations

import datetime as dt
from typing import Any

import jinja2
from markupsafe import Markup

REFRESH_SECONDS = 30
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 300, 128, 38, 10, 12, 24
LINE = Markup('<polyline class="{}" points="{}"/>')
DOT = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="2"><title>{}</title></circle>')
BAR = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="1"><title>{}</title></rect>')
SHOWN_TREND = 60  # cycles
SERIES = {"crps": ("s0", "fair CRPS"), "rmse": ("s1", "RMSE of the mean"), "spread": ("s2", "spread")}
CONSISTENT = {"mean_change": ("s1", "change of the mean"), "divergence": ("s0", "divergence of the distributions")}


def render(status: dict[str, Any]) -> str:
    """The page of a status (`status.collect`)."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("forecast.cycle", "."), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"stamp": stamp, "span": span, "took": took, "size": size, "hours": hours, "clock": clock}
    card = status["scorecard"]
    return environment.get_template("page.html").render(
        status=status, refresh=REFRESH_SECONDS, health=health(status), charts=_score_charts(card), trends=_trends(card),
        consistency=_consistency_charts(card), durations=_durations(status["cycles"]), series=SERIES, consistent=CONSISTENT,
    )  # fmt: skip


def health(status: dict[str, Any]) -> tuple[str, str]:
    """(tone, words) of the whole schedule: good, busy, poor or bad."""
    latest = status["latest"]
    if latest is None:
        return ("busy", "first run under way") if status["running"] else ("poor", "nothing published yet")
    if latest["old"]:
        return "bad", "latest run is old"
    if status["running"]:
        return "busy", "running"
    waiting = [cycle for cycle in status["cycles"] if cycle["state"] == "waiting"]
    return ("poor", "waiting for data") if waiting else ("good", "up to date")


def stamp(name: str) -> str:
    """`11 Jul 2007, 00 UTC` of 20070711T00."""
    return dt.datetime.strptime(name, "%Y%m%dT%H").strftime("%-d %b %Y, %H UTC")


def clock(text: str) -> str:
    """`11 Jul 2007, 06:10 UTC` of an ISO time."""
    return dt.datetime.fromisoformat(text).strftime("%-d %b %Y, %H:%M UTC")


def span(value: float) -> str:
    """Hours as a person says them: `35 min`, `6.5 h`, `3.2 days`."""
    if abs(value) < 1:
        return f"{round(60 * value)} min"
    return f"{value:.1f} h".replace(".0 h", " h") if abs(value) < 48 else f"{value / 24:.1f} days"


def took(seconds: float) -> str:
    """A duration: `42 s`, `3.5 min`, `2.1 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def hours(value: float) -> str:
    """A lead: `+36 h`, `+5 d`."""
    return f"+{value / 24:g} d" if value % 24 == 0 and value else f"+{value:g} h"


def size(count: float) -> str:
    """Bytes: `12.3 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _score_charts(card: dict[str, Any] | None) -> list[dict[str, Any]]:
    charts = []
    for channel, own in (card or {"channels": {}})["channels"].items():
        lines = {name: [_scaled(value, own["factor"]) for value in own[name]] for name in SERIES}
        middle = len(own["lead_hours"]) - 1
        ratio = own["ssr"][middle]
        charts.append(
            {
                "title": own["label"], "units": own["units"], "channel": channel,
                "note": f"at {hours(own['lead_hours'][middle])}: spread/skill {number(ratio)}, "
                f"bias {number(_scaled(own['bias'][middle], own['factor']), signed=True)} {own['units']}",
                "svg": lines_chart(own["lead_hours"], lines, SERIES, f"{own['label']} by lead"),
            }
        )  # fmt: skip
    return charts


def _consistency_charts(card: dict[str, Any] | None) -> list[dict[str, Any]]:
    charts = []
    for channel, own in (card or {"consistency": {}})["consistency"].items():
        known = (card or {})["channels"].get(channel, {"label": channel, "units": "SI", "factor": 1.0})
        lines = {name: [_scaled(value, known["factor"]) for value in own[name]] for name in CONSISTENT}
        svg = lines_chart(own["lead_hours"], lines, CONSISTENT, f"consistency of {known['label']} by lead")
        note = f"{own['pairs']} pair{'s' if own['pairs'] != 1 else ''}"
        charts.append({"title": known["label"], "units": known["units"], "channel": channel, "svg": svg, "note": note})
    return charts


def _trends(card: dict[str, Any] | None) -> list[dict[str, Any]]:
    """CRPS of each verified cycle at one lead, in-sample ones in the colour of alarm."""
    charts = []
    for channel, own in (card or {"channels": {}})["channels"].items():
        values = [_scaled(value, own["factor"]) for value in own["trend"]["crps"]][-SHOWN_TREND:]
        marked = own["trend"]["in_sample"][-SHOWN_TREND:]
        inits = own["trend"]["inits"][-SHOWN_TREND:]
        titles = [f"{stamp(init)}: {number(value)} {own['units']}" for init, value in zip(inits, values, strict=True)]
        svg = bars_chart(values, titles, ["alarm" if flag else "s0" for flag in marked], f"CRPS of {own['label']} by cycle")
        charts.append({"title": own["label"], "units": own["units"], "channel": channel, "svg": svg})
    return charts


def _durations(cycles: list[dict[str, Any]]) -> Markup | None:
    made = [cycle for cycle in cycles if cycle["seconds"]]
    titles = [f"{stamp(cycle['init'])}: {took(cycle['seconds'])}" for cycle in made]
    return bars_chart([cycle["seconds"] for cycle in made], titles, ["s0"] * len(made), "seconds by run") if made else None


def lines_chart(xs: list[float], lines: dict[str, list[float | None]], look: dict[str, tuple[str, str]], label: str) -> Markup:
    """A small line chart over lead hours as inline SVG; the vertical axis begins at 0 or below."""
    flat = [value for values in lines.values() for value in values if value is not None]
    if not flat or not xs:
        return Markup("")
    low, high, ticks = _axis(min(0.0, *flat), max(flat))
    span_x = (max(xs) - min(xs)) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        across = 0.5 if max(xs) == min(xs) else (x - min(xs)) / span_x
        return LEFT + (WIDTH - LEFT - RIGHT) * across, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - low) / (high - low)

    parts = list(_frame(ticks, low, high))
    step = max(1, -(-len(xs) // 5))
    parts += [_text(at(x, low)[0], HEIGHT - 8, hours(x), "middle") for x in xs[step - 1 :: step]]
    for name, values in lines.items():
        colour, words = look[name]
        points = [(x, y, *at(x, y)) for x, y in zip(xs, values, strict=True) if y is not None]
        path = " ".join(f"{across:.1f},{up:.1f}" for _, _, across, up in points)
        parts.append(LINE.format(colour, path))
        parts += [DOT.format(colour, across, up, f"{words} at {hours(x)}: {number(y)}") for x, y, across, up in points]
    return _svg(parts, label)


def bars_chart(values: list[float | None], titles: list[str], tones: list[str], label: str) -> Markup:
    """A small bar chart in order as inline SVG."""
    present = [value for value in values if value is not None]
    if not present:
        return Markup("")
    _, high, ticks = _axis(0.0, max(present))
    width = (WIDTH - LEFT - RIGHT) / max(len(values), 12)
    parts = list(_frame(ticks, 0.0, high))
    for k, (value, title, tone) in enumerate(zip(values, titles, tones, strict=True)):
        if value is not None:
            tall = (HEIGHT - TOP - BOTTOM) * max(0.0, value) / high
            parts.append(BAR.format(tone, LEFT + (k + 0.1) * width, HEIGHT - BOTTOM - tall, 0.8 * width, tall, title))
    return _svg(parts, label)


def _axis(low: float, high: float) -> tuple[float, float, list[float]]:
    """Ends and three or four round ticks of an axis."""
    reach = (high - low) or 1.0
    power = 10.0 ** len(str(int(1 / reach))) if reach < 1 else 1.0
    scaled = reach * power
    unit = 10.0 ** (len(str(int(scaled))) - 1)
    step = next(unit * k for k in (0.2, 0.5, 1, 2, 5, 10) if scaled <= 4 * unit * k) / power
    first = step * -(-low // step) if low >= 0 else step * (low // step)
    ticks = [first + k * step for k in range(6) if first + k * step <= high + 0.999 * step]
    return min(low, ticks[0]), max(high, ticks[-1]), ticks


def _frame(ticks: list[float], low: float, high: float) -> list[Markup]:
    parts = []
    for tick in ticks:
        y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (tick - low) / (high - low)
        parts.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(LEFT, WIDTH - RIGHT, y, y))
        parts.append(_text(LEFT - 5, y + 3.5, f"{tick:.3g}", "end"))
    return parts


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def _svg(parts: list[Markup], label: str) -> Markup:
    inner = Markup("").join(parts)
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(WIDTH, HEIGHT, label, inner)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def number(value: float | None, signed: bool = False) -> str:
    """Three digits; a dash where there is none, as of a lead that has no analysis yet."""
    if value is None:
        return "–"
    return f"{value:{'+' if signed else ''}.3g}"
