"""Events as a person writes them: "2m_temperature > 303 K", "> q95", "max(2m_temperature, 72h) > 35 degC", two joined by "and".

    event      condition [and condition ...]           the same member at the same time
    condition  [quantity] op value [unit]              without a quantity: every channel; without a unit: the SI unit
               [quantity] op q95                       a percentile of the climatology (q0.95 is the same)
    quantity   channel | how(channel, hours)           how: max, min, mean, sum over the stamps in (lead - hours, lead]
    op         > >= < <=

A channel is that of a store (`geopotential_500`), a wind speed made of its components, or a longer accumulation made of shorter
ones (`total_precipitation_24hr`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from data_pipeline.errors import InputError
from data_pipeline.schema import Channel
from data_pipeline.units import conversion
from data_pipeline.variables import lookup
from verification.counting import OPS, Op

How = Literal["max", "min", "mean", "sum"]

WORDS = {">": "gt", ">=": "ge", "<": "lt", "<=": "le"}
HOW = {"max": "maximum", "min": "minimum", "mean": "mean", "sum": "sum"}
_CONDITION = re.compile(
    r"\s*(?:(?P<how>max|min|mean|sum)\(\s*(?P<inner>\w+)\s*,\s*(?P<length>[1-9]\d*)\s*(?P<unit>h|d)\s*\)|(?P<channel>\w*))"
    r"\s*(?P<op>>=|<=|>|<)\s*(?P<value>[^<>=]+?)\s*"
)
_NUMBER = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(\D.*)?")
_FORM = (
    "expected a channel with a threshold, as '2m_temperature > 303 K' or 'max(2m_temperature, 72h) > 35 degC', or a percentile "
    "of the climatology, as '> q95'; several are joined by 'and'"
)


@dataclass(frozen=True, order=True)
class Quantity:
    """A channel, or what it was over the hours before each lead. hours: of the window, 0 without one."""

    channel: Channel
    how: How | None = None
    hours: int = 0

    @property
    def label(self) -> str:
        """`geopotential_500`, `max(2m_temperature, 72h)`."""
        return f"{self.how}({self.channel}, {self.hours}h)" if self.how else self.channel.label


@dataclass(frozen=True)
class Condition:
    """`quantity op value`, value in SI units; or a quantile of the climatology, value between 0 and 1.

    text: the value as it was given, with its unit. quantity: None for every channel.
    """

    quantity: Quantity | None
    op: Op
    value: float
    is_quantile: bool
    text: str

    @property
    def label(self) -> str:
        """`2m_temperature > 303 K`."""
        return f"{self.quantity.label if self.quantity else ''} {self.op} {self.text}".strip()


@dataclass(frozen=True)
class Event:
    """Conditions that one member fulfils at one time, all of them."""

    conditions: tuple[Condition, ...]

    @property
    def label(self) -> str:
        """The conditions joined by "and"; `parse` reads it."""
        return " and ".join(condition.label for condition in self.conditions)

    @property
    def name(self) -> str:
        """The name of its probability in a store: `probability_2m_temperature_gt_303_K`."""
        words = [
            f"{condition.quantity.label if condition.quantity else 'any'} {WORDS[condition.op]} {condition.text}"
            for condition in self.conditions
        ]
        return "probability_" + re.sub(r"[^\w.%-]+", "_", " and ".join(words)).strip("_")

    @property
    def is_general(self) -> bool:
        """True if it names no channel and is to be asked of each."""
        return any(condition.quantity is None for condition in self.conditions)

    def of(self, channel: Channel) -> Event:
        """A general event of one channel."""
        return Event(tuple(replace(one, quantity=one.quantity or Quantity(channel)) for one in self.conditions))


def channel_of(label: str) -> Channel:
    """The channel of a label; `volumetric_soil_water_layer_1` is a surface variable, `geopotential_500` has a level."""
    return Channel(label) if lookup(label) is not None else Channel.parse(label)


def parse(text: str) -> Event:
    """The event of a text; see the module for its form.

    Raises InputError for a text that is none, a channel that is not in the table of variables, a unit that does not fit it, or a
    value that the variable cannot have (a forgotten unit).
    """
    parts = re.split(r"\s+and\s+", text.strip())
    event = Event(tuple(_condition(part, text) for part in parts))
    if len(parts) > 1 and event.is_general:
        raise InputError(f"threshold {text!r}: a joint event names the channel of each condition")
    return event


def parse_all(texts: Sequence[str]) -> tuple[list[Event], list[str]]:
    """The events of texts, and the fault of each that is none."""
    events, faults = [], []
    for text in texts:
        try:
            events.append(parse(text))
        except InputError as error:
            faults.append(str(error))
    return events, faults


def _condition(part: str, whole: str) -> Condition:
    match = _CONDITION.fullmatch(part)
    if match is None or match["op"] not in OPS:
        raise InputError(f"threshold {whole!r}: {part.strip()!r} cannot be read; {_FORM}")
    label = match["inner"] or match["channel"]
    hours = int(match["length"] or 0) * (24 if match["unit"] == "d" else 1)
    quantity = Quantity(channel_of(label), match["how"], hours) if label else None  # type: ignore[arg-type]
    variable = lookup(quantity.channel.name) if quantity else None
    if quantity is not None and variable is None:
        raise InputError(f"threshold {whole!r}: {label!r} is not a channel of the table of variables; {_FORM}")
    value = match["value"]
    if re.fullmatch(r"q\d+(\.\d+)?|q\.\d+", value):
        return Condition(quantity, match["op"], _level(value, whole), True, value)  # type: ignore[arg-type]
    number = _NUMBER.fullmatch(value)
    if number is None or quantity is None or variable is None:
        raise InputError(f"threshold {whole!r}: {value!r} cannot be read; {_FORM}")
    unit = number[2] or variable.units
    try:
        factor, offset = conversion(unit, variable)
    except InputError as error:
        raise InputError(f"threshold {whole!r}: {error}") from None
    threshold = float(number[1]) * factor + offset
    low, high = variable.valid_range
    high *= max(hours, 1) if match["how"] == "sum" else 1
    if not low <= threshold <= high:
        raise InputError(
            f"threshold {whole!r}: {threshold:g} {variable.units} is outside what {variable.name} can be ({low:g} to {high:g}); "
            "give the unit that you mean, as 30 degC or 10 mm"
        )
    return Condition(quantity, match["op"], threshold, False, f"{number[1]} {unit}")  # type: ignore[arg-type]


def _level(text: str, whole: str) -> float:
    """0.95 of `q95` and `q0.95`; from 1 on it is a percentage."""
    number = float(text[1:])
    level = round(number / 100, 12) if number >= 1 else number
    if not 0 < level < 1:
        raise InputError(f"threshold {whole!r}: {text} is no percentile between 0 and 100, both excluded")
    return level
