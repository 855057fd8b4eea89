"""The panel of widgets around the maps of an ensemble; what it draws is in `view`."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from typing import Any

import ipywidgets as widgets  # type: ignore[import-untyped]
import numpy as np

from data_pipeline.errors import InputError, PlumecastError
from data_pipeline.schema import Channel
from verification.explorer.picture import ClickablePicture
from verification.explorer.view import (
    Material,
    Picture,
    Series,
    View,
    draw_series,
    draw_view,
    first_threshold,
    init_text,
    lead_of,
)
from verification.headings import lead_text
from verification.map_sources import parse_point, parse_projection
from verification.styles import style_of

KEPT = 96  # pictures, about a tenth of a megabyte each
SURFACE = ("surface", 0)  # of the menu of levels, in which None would be nothing chosen
PLAY = 700  # milliseconds from lead to lead
HINT = "Click on the map, or enter a point, for its plume."
OPTION = re.compile(r"--(?=(kind|threshold|climatology|point|projection|region|member|variable|level|below|truth)\b)")
NAMES = {"PlateCarree": "Plate carrée", "NorthPolarStereo": "north polar", "SouthPolarStereo": "south polar"}
CONTROLS = (  # in this order: what may be chosen of one depends on those before it
    "variable", "level", "init", "lead", "product", "member", "threshold", "below", "event", "projection", "region", "point",
    "series",
)  # fmt: skip
USED = {  # the controls that a product asks for
    "member": ("member",),
    "probability": ("below", "threshold"),
    "spaghetti": ("threshold",),
    "event": ("event",),
}


class Explorer(widgets.VBox):
    """Controls (attributes variable, level, init, lead, product ...), the map, and beside it the plume of a point.

    Setting a control's value does what the reader's hand does. `message` holds what could not be drawn, "" otherwise.
    """

    def __init__(self, material: Material, *, projections: Sequence[str], start: Mapping[str, object]) -> None:
        self.material = material
        self._levels = material.levels()
        self._map = lru_cache(KEPT)(partial(draw_view, material))
        self._series = lru_cache(KEPT)(partial(draw_series, material))
        self._shown = Picture(b"", "")
        self._quiet = False
        self._make_controls(projections)
        self.map = ClickablePicture(layout=widgets.Layout(width="100%"))
        self.plume = widgets.Image(format="png", layout=widgets.Layout(width="100%", display="none"))
        self._said, self._told = widgets.HTML(), widgets.HTML()  # of the map, of the point
        super().__init__(self._arranged())
        self.add_class("plumecast-explorer")
        self._listen()
        with self._settling():
            self._begin(start)
        self._draw_map()
        self._draw_series()

    @property
    def message(self) -> str:
        """What could not be drawn, as the panel says it."""
        said = (self._said.value, "" if self._told.value == _paragraph(HINT) else self._told.value)
        return html.unescape(re.sub("<[^>]+>", " ", " ".join(said))).strip()

    @property
    def view(self) -> View:
        """What the controls of the map say."""
        kind = self.product.value
        used = USED.get(kind, ())
        texts = {"event": self.event.value or "", "threshold": self.threshold.value.strip()}
        return View(
            kind=kind,
            label=self.channel,
            init=self.init.value,
            lead=lead_of(self.material.forecast, self.lead.index),
            member=self.member.value if "member" in used else None,
            threshold=next((texts[name] for name in ("event", "threshold") if name in used), ""),
            below=self.below.value if "below" in used else False,
            projection=self.projection.value,
            region=self.region.value,
        )

    @property
    def channel(self) -> str:
        """The label of the channel chosen, `geopotential_500`."""
        return Channel(self.variable.value, self.level.value or None).label

    def _make_controls(self, projections: Sequence[str]) -> None:
        data = self.material.forecast
        leads, numbers = data["prediction_timedelta"].values, data["number"].values.tolist()
        self.variable = widgets.Dropdown(options=_named(self._levels), description="variable", **_wide())
        self.level = widgets.Dropdown(options=[SURFACE], description="level", **_wide())
        self.init = widgets.Dropdown(
            options=[(init_text(init), init) for init in data["time"].values], description="start", **_wide()
        )
        self.product = widgets.Dropdown(
            options=[(name, kind) for kind, name in self.material.offered().items()], description="show", **_wide()
        )
        self.member = widgets.SelectionSlider(options=numbers, description="member", **_wide())
        self.below = widgets.Dropdown(options=[("above", False), ("below", True)], description="event", **_wide())
        self.threshold = widgets.Text(
            description="threshold", continuous_update=False, placeholder="30 °C, or q95 of the climate", **_wide()
        )
        self.event = widgets.Dropdown(description="event", **_wide())
        self.projection = widgets.Dropdown(
            options=[(_projection_name(text), text) for text in projections], description="projection", **_wide()
        )
        self.region = widgets.Dropdown(options=self.material.regions(), description="region", **_wide())
        self.lead = widgets.SelectionSlider(
            options=[f"+{lead_text(lead)}" for lead in leads], description="lead", layout=widgets.Layout(flex="1 1 240px"),
            style={"description_width": "40px"},
        )  # fmt: skip
        self.play = widgets.Play(
            min=0, max=len(leads) - 1, interval=PLAY, repeat=True, show_repeat=False, tooltip="play through the lead times"
        )
        widgets.jslink((self.play, "value"), (self.lead, "index"))
        self.point = widgets.Text(
            description="point", placeholder="60.39, 5.32 or Bergen, 60.39, 5.32", continuous_update=False,
            layout=widgets.Layout(flex="1 1 200px", width="auto"), style={"description_width": "40px"},
        )  # fmt: skip
        self.series = widgets.ToggleButtons(options=["plume", "meteogram"], style={"button_width": "104px"})

    def _arranged(self) -> list[widgets.Widget]:
        grid = widgets.Layout(grid_template_columns="repeat(auto-fill, minmax(230px, 1fr))", grid_gap="0 12px", width="100%")
        fields = (
            self.variable, self.level, self.init, self.product, self.projection, self.region, self.member, self.below,
            self.threshold, self.event,
        )  # fmt: skip
        row = widgets.Layout(width="100%", align_items="center", flex_flow="row wrap")
        sides = widgets.Layout(width="100%", display="flex", flex_flow="row wrap", align_items="flex-start", grid_gap="0 12px")
        left, right = (widgets.Layout(flex=flex, min_width="0") for flex in ("3 1 380px", "2 1 300px"))
        return [
            widgets.GridBox(fields, layout=grid),
            widgets.HBox([self.play, self.lead], layout=row),
            self._said,
            widgets.Box(
                [
                    widgets.VBox([self.map], layout=left),
                    widgets.VBox([widgets.HBox([self.point, self.series], layout=row), self._told, self.plume], layout=right),
                ],
                layout=sides,
            ),
        ]

    def _listen(self) -> None:
        for control in (self.variable, self.level):
            control.observe(self._on_channel, "value")
        self.product.observe(self._on_product, "value")
        self.init.observe(self._on_init, "value")
        for control in (self.lead, self.member, self.below, self.threshold, self.event, self.projection, self.region):
            control.observe(self._on_map, "value")
        for control in (self.point, self.series):
            control.observe(self._on_series, "value")
        self.map.on_click(self._on_click)

    def _begin(self, start: Mapping[str, object]) -> None:
        """The first state of the controls. Raises InputError naming what a control does not have."""
        unknown = sorted(set(start) - set(CONTROLS))
        if unknown:
            raise InputError(f"explore({unknown[0]}=...): no such control; there are {', '.join(CONTROLS)}")
        if "variable" in start and start["variable"] not in self._levels:  # `geopotential_500`, as elsewhere
            channel = Channel.parse(str(start["variable"]))
            if start.get("level", channel.level) != channel.level:
                raise InputError(f"explore(variable={start['variable']!r}, level={start['level']!r}): that names two levels")
            start = {**start, "variable": channel.name, "level": channel.level}
        set_one = partial(_set, start=start)
        after = {"variable": self._offer_levels, "product": self._suggest}
        for name in CONTROLS:
            set_one(getattr(self, name), name)
            after.get(name, lambda: None)()
        self.play.value = self.lead.index
        self._show_used()

    def _offer_levels(self) -> None:
        levels, before = self._levels[self.variable.value], self.level.value
        self.level.options = [(f"{level} hPa", level) for level in levels] or [SURFACE]
        self.level.value = before if before in levels else levels[len(levels) // 2] if levels else SURFACE[1]
        self.level.disabled = len(levels) < 2

    def _suggest(self) -> None:
        """What the event of a channel may be."""
        self.event.options = self.material.events(self.channel)
        self.event.value = next(iter(self.event.options), None)  # a menu that was empty stays at nothing
        with suppress(InputError):
            self.threshold.value, self.below.value = first_threshold(self.material, self.view)

    def _show_used(self) -> None:
        used = USED.get(self.product.value, ())
        for name in ("member", "below", "threshold", "event"):
            getattr(self, name).layout.display = None if name in used else "none"

    def _on_channel(self, _: Any) -> None:
        if self._quiet:
            return
        with self._settling():
            self._offer_levels()
            self._suggest()
        self._draw_map()
        self._draw_series()

    def _on_product(self, _: Any) -> None:
        self._show_used()
        self._on_map()

    def _on_init(self, _: Any) -> None:
        self._on_map()
        self._on_series()

    def _on_map(self, _: Any = None) -> None:
        if not self._quiet:
            self._draw_map()

    def _on_series(self, _: Any = None) -> None:
        if not self._quiet:
            self._draw_series()

    def _on_click(self, across: float, down: float) -> None:
        place = self._shown.place(across, down)
        if place is None:
            self._told.value = _warning("That is not on the map; click inside its frame.")
            return
        text = f"{place[0]:.2f}, {place[1]:.2f}"
        if text == self.point.value:
            self._draw_series()
        self.point.value = text

    def _draw_map(self) -> None:
        stale = True
        with self._reporting(self._said):
            self._shown = self._map(self.view)
            self.map.png, self.map.alt = self._shown.png, self._shown.said
            stale = False
        self.map.stale = stale
        self._mark()

    def _draw_series(self) -> None:
        self._mark()
        text = self.point.value.strip()
        drawn = Picture(b"", "")
        with self._reporting(self._told, "" if text else _paragraph(HINT)):
            if text:
                drawn = self._series(Series(self.series.value, self.channel, self.init.value, text))
        self.plume.layout.display = None if drawn.png else "none"
        self.plume.value = drawn.png

    def _mark(self) -> None:
        try:
            _, latitude, longitude = parse_point(self.point.value)
        except InputError:
            self.map.marks = []
            return
        self.map.marks = [list(spot) for spot in self._shown.spots(latitude, longitude)]

    @contextmanager
    def _reporting(self, where: widgets.HTML, fine: str = "") -> Iterator[None]:
        """What goes wrong inside is said in the panel, `fine` if nothing does: a reader who moves a slider wants no traceback."""
        try:
            yield
            where.value = fine
        except PlumecastError as error:
            where.value = _warning(OPTION.sub("", str(error)))
        except Exception as error:
            where.value = _warning(f"{type(error).__name__}: {error}")

    @contextmanager
    def _settling(self) -> Iterator[None]:
        """Controls that depend on others follow them; nothing is drawn in between."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before


def _set(control: widgets.Widget, name: str, *, start: Mapping[str, object]) -> None:
    """Give a control its first value: one of its own, or the text by which it is known. Raises InputError naming those."""
    if name not in start:
        return
    wanted = start[name]
    if not hasattr(control, "options"):
        control.value = wanted
        return
    pairs = [option if isinstance(option, tuple) else (option, option) for option in control.options]
    for text, value in pairs:
        named = str(wanted).replace("+", "").replace(" ", "") == text.replace("+", "").replace(" ", "")
        if named or (_same_time(wanted, value) if isinstance(value, np.datetime64) else wanted == value):
            control.value = value
            return
    raise InputError(f"explore({name}={wanted!r}): not there; there are {', '.join(str(value) for _, value in pairs)}")


def _same_time(wanted: object, value: np.datetime64) -> bool:
    try:
        return bool(np.datetime64(str(wanted)) == value)
    except ValueError:  # no time at all
        return False


def _wide() -> dict[str, Any]:
    return {"layout": widgets.Layout(width="auto"), "style": {"description_width": "68px"}}


def _named(levels: Mapping[str, list[int]]) -> list[tuple[str, str]]:
    return [(style_of(name).long_name, name) for name in levels]


def _projection_name(text: str) -> str:
    parse_projection(text)
    name, _, centre = text.partition(":")
    words = NAMES.get(name, re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).capitalize())
    return f"{words}, {centre}" if centre else words


def _paragraph(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")


def _warning(text: str) -> str:
    return f'<div role="alert" style="color: #b3261e; line-height: 1.4">{_paragraph(text)}</div>'
