"""What the sections of the report show where not all fits into a page, and how they name it; the details leave nothing out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from verification.plan import Event
from verification.report.tables import card_leads
from verification.styles import style_of

DAYS = (1, 3, 5, 10)  # of the diagrams
FEW_DAYS = (1, 5, 10)  # of what takes more room
MOST_CHANNELS = 16
MAPPED = 8  # channels with maps, of scores and of the case: they are most of the bytes of a page
MOST_EVENTS = 2  # of a channel, in diagrams
FIRST = (
    "geopotential_500", "2m_temperature", "temperature_850", "mean_sea_level_pressure", "10m_wind_speed",
    "10m_u_component_of_wind", "10m_v_component_of_wind", "total_precipitation_24hr", "total_precipitation_12hr",
    "total_precipitation_6hr", "u_component_of_wind_850", "v_component_of_wind_850", "specific_humidity_700",
    "specific_humidity_850", "geopotential_1000", "geopotential_850",
)  # fmt: skip


def channels_shown(state: xr.Dataset, most: int = MOST_CHANNELS) -> list[str]:
    """The channels with pictures: all in their order, or those that forecasters look at first, then the others."""
    return labels_shown([str(label) for label in state["channel"].values], most)


def labels_shown(labels: Sequence[str], most: int = MOST_CHANNELS) -> list[str]:
    """The same of the labels of channels."""
    if len(labels) <= most:
        return list(labels)
    chosen = [label for label in FIRST if label in labels]
    chosen = [*chosen, *[label for label in labels if label not in chosen]][:most]
    return [label for label in labels if label in chosen]


def holders(states: Sequence[xr.Dataset], variable: str, fewest: int = 1) -> tuple[dict[int, xr.Dataset], dict[int, str]]:
    """The states that keep a variable and have so many members, and what their models are called, by position in the report."""
    known = {i: state for i, state in enumerate(states) if variable in state and int(state.attrs["members"]) >= fewest}
    return known, {index: str(state.attrs["model"]) for index, state in known.items()}


def leads_shown(states: Sequence[xr.Dataset], days: Sequence[float] = DAYS, dim: str = "prediction_timedelta") -> np.ndarray:
    """The leads nearest to some days among those that every state has; none of no state."""
    if not states:
        return np.array([], dtype="timedelta64[ns]")
    common = [lead for lead in states[0][dim].values if all(lead in state[dim].values for state in states)]
    hours = [hours_of(lead) for lead in common]
    return np.array([common[hours.index(lead)] for lead in card_leads(hours, days)], dtype="timedelta64[ns]")


def event_channels(
    states: Sequence[xr.Dataset],
    read: Callable[[xr.Dataset, np.ndarray], xr.Dataset],
    draw: Callable[[str, Sequence[str], Mapping[int, xr.Dataset], Mapping[int, str]], dict[str, Any]],
) -> tuple[dict[int, xr.Dataset], dict[int, str], list[dict[str, Any]]]:
    """What is read of every state that keeps events, by position in the report; the names of their models; the channels drawn.

    read: of a state and the leads shown. draw: of a channel, its events, what was read and the names. Channels without a picture
    are left out; there are none where no state keeps events, or no lead is common.
    """
    known, names = holders(states, "event_table")
    leads = leads_shown(list(known.values()))
    if not leads.size:
        return {}, names, []
    first = next(iter(known.values()))
    found = {index: read(state, leads) for index, state in known.items()}
    drawn = [draw(label, events_shown(first, label), found, names) for label in channels_shown(first)]
    return found, names, [channel for channel in drawn if channel["groups"]]


def hours_of(lead: np.timedelta64) -> float:
    """A lead in hours."""
    return float(lead / np.timedelta64(1, "h"))


def events_shown(state: xr.Dataset, channel: str) -> list[str]:
    """The events with diagrams: those that apply to the channel, thresholds of its own first, then the outermost quantiles that
    the sample can still tell something of, one of each side."""
    known = [Event.parse(str(text)) for text in state["event"].values]
    applied = [event for event in known if event.applies_to(channel)]
    own = [event for event in applied if not event.is_quantile]
    sides: dict[str, Event] = {}
    for event in sorted((event for event in applied if event.is_quantile), key=lambda event: abs(event.value - 0.5)):
        side = event.op[0]
        if side not in sides or abs(event.value - 0.5) <= 0.45 + 1e-9:  # beyond the twentieth part diagrams hold too few cases
            sides[side] = event
    chosen = [*own, *(sides[side] for side in (">", "<") if side in sides)]
    return [event.label for event in chosen[:MOST_EVENTS]]


def event_name(label: str, channel: str) -> str:
    """What follows the name of the variable: `above the 95 % quantile of the climate`, `> 30 °C`."""
    event = Event.parse(label)
    if event.is_quantile:
        return f"{'above' if event.op[0] == '>' else 'below'} the {100 * event.value:g} % quantile of the climate"
    style = style_of(channel)
    return f"{event.op} {event.value * style.factor + style.offset:.6g} {style.units}".strip()
