"""What of the wishes can be made of a forecast and a climatology: channels, events, EFI; and why the others cannot."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipeline.schema import Channel
from data_pipeline.sources.accumulation import named_hours
from data_pipeline.variables import lookup
from forecast.products.conditions import Event, Quantity, channel_of, parse_all
from forecast.products.reading import Climate, Members
from forecast.products.recipe import ProductsSection
from forecast.products.statistics import position_of
from verification.quantiles import coarse

COMMON = (  # thresholds asked of any forecast that has the quantity
    "2m_temperature < 0 degC", "2m_temperature > 30 degC", "10m_wind_speed > 10 m s-1", "10m_wind_speed > 15 m s-1",
    "total_precipitation_24hr > 1 mm", "total_precipitation_24hr > 10 mm", "total_precipitation_24hr > 20 mm",
)  # fmt: skip
PERCENTILES = ("> q95", "< q5")
Levels = dict[str, tuple[int, ...]]  # {variable: levels in hPa, () at the surface}


def quantity_of(event: Event) -> Quantity:
    """The quantity of an event of one condition."""
    quantity = event.conditions[0].quantity
    assert quantity is not None, "a general event was not spread over the channels"
    return quantity


def resolve(members: Members, label: str) -> tuple[str, tuple[int, ...], str | None]:
    """Name and levels of a channel label, or of all levels of a variable; and why there are none."""
    channel = Channel(label) if label in members else channel_of(label)
    lack = members.lack(channel.name)
    if lack is not None:
        return channel.name, (), f"{label}: {lack}" if channel.name != label else lack
    levels = members.levels(channel.name)
    if channel.level is None:
        return channel.name, levels, None
    if channel.level not in levels:
        return channel.name, (), f"{label}: {channel.name} has the levels {list(levels) or 'none'} hPa"
    return channel.name, (channel.level,), None


def events_of(
    members: Members, climate: Climate | None, recipe: Sequence[str] | None, more: Sequence[str], wanted: Levels
) -> tuple[list[Event], list[Event], list[str], list[str]]:
    """Events of one condition, joint events, faults, and notes of what was left out unasked."""
    asked, faults = parse_all([*(recipe or ()), *more])
    usual = parse_all([*COMMON, *(PERCENTILES if climate is not None else ())])[0] if recipe is None else []
    chosen: list[Event] = []
    notes: list[str] = []
    for one in [*usual, *asked]:
        spread = [event for event in _spread(one, wanted) if event not in chosen and not (one in usual and _is_dry(event))]
        found = {event: _event_faults(event, members, climate) for event in spread}
        possible = [event for event in spread if not found[event]]
        chosen += possible
        lines = [f"threshold {event.label!r}: {fault}" for event in spread for fault in found[event]]
        if one.is_general and (possible or one in usual):  # of the channels that the climatology has
            notes += _shortened(lines)
        elif one not in usual:
            faults += _shortened(lines)
    names = [event.name for event in chosen]
    faults += [f"thresholds: {name} is asked for twice" for name in sorted({name for name in names if names.count(name) > 1})]
    single = [event for event in chosen if len(event.conditions) == 1]
    return single, [event for event in chosen if event not in single], faults, notes


def _is_dry(event: Event) -> bool:
    """Little rain in terms of percentiles: most of them are 0, and nothing is below."""
    condition, variable = event.conditions[0], lookup(quantity_of(event).channel.name)
    low = condition.is_quantile and condition.op.startswith("<")
    return low and variable is not None and variable.accumulated and variable.non_negative


def _spread(event: Event, wanted: Levels) -> list[Event]:
    if not event.is_general:
        return [event]
    return [event.of(Channel(name, level)) for name, levels in wanted.items() for level in levels or (None,)]


def _event_faults(event: Event, members: Members, climate: Climate | None) -> list[str]:
    faults = []
    for condition in event.conditions:
        quantity = condition.quantity
        assert quantity is not None
        fault = _quantity_fault(members, quantity)
        if fault is None and condition.is_quantile:
            fault = _percentile_fault(members, climate, quantity, condition.value)
        faults += [fault] if fault else []
    return faults


def _quantity_fault(members: Members, quantity: Quantity) -> str | None:
    name, level = quantity.channel.name, quantity.channel.level
    if lack := members.lack(name):
        return lack
    levels = members.levels(name)
    if (level is None) != (not levels) or (level is not None and level not in levels):
        return f"{name} has the levels {list(levels)} hPa; name one of them" if levels else f"{name} has no levels"
    return members.window_fault(name, quantity.how, quantity.hours) if quantity.how else None


def _percentile_fault(members: Members, climate: Climate | None, quantity: Quantity, level: float) -> str | None:
    if climate is None:
        return "a percentile needs a climatology, and none was given (--climatology)"
    if quantity.how is not None:
        return f"the climatology is of {quantity.channel}, not of {quantity.label}: give a threshold with a unit"
    name, pressure = quantity.channel.name, quantity.channel.level
    lack = climate.lack(name, () if pressure is None else (pressure,), members.units(name)) or _ambiguous(name)
    if lack is None and position_of(level, climate.levels) < 0:
        lack = f"the climatology has the quantiles {climate.levels.tolist()}; {level:g} is not among them"
    return lack


def _ambiguous(name: str) -> str | None:
    """Why forecast and climatology may be accumulated over different hours though they have one name."""
    variable = lookup(name)
    if variable is not None and variable.accumulated and named_hours(name) is None:
        return f"{name} does not say over how many hours it is accumulated; name it, as {name}_12hr, in forecast and climatology"
    return None


def efi_of(
    members: Members, climate: Climate | None, section: ProductsSection, wanted: Levels
) -> tuple[Levels, list[str], list[str]]:
    """{variable: levels} of EFI and SOT; faults of those that were asked for, notes of those that were not."""
    if section.efi is None:
        asked = {} if climate is None else {name: climate.pressure(name, levels) for name, levels in wanted.items()}
        faults: list[str] = []
    else:
        resolved = [resolve(members, label) for label in section.efi]
        faults = [f"EFI of {fault}" for _, _, fault in resolved if fault]
        asked = {}
        for name, levels, fault in resolved:
            if not fault:
                asked[name] = tuple(sorted({*asked.get(name, ()), *levels}))
    lacks: dict[str, str] = {}
    for name, levels in asked.items():
        if climate is None:
            lacks[name] = "it needs a climatology, and none was given (--climatology)"
        elif lack := climate.lack(name, levels, members.units(name)) or _ambiguous(name) or coarse(climate.levels):
            lacks[name] = lack
    found = {name: levels for name, levels in asked.items() if name not in lacks}
    lines = [f"EFI of {name}: {lack}" for name, lack in lacks.items()]
    return (found, faults, _shortened(lines)) if section.efi is None else (found, faults + lines, [])


def _shortened(lines: Sequence[str]) -> list[str]:
    """One line for all that lack the same."""
    reasons: dict[str, list[str]] = {}
    for line in lines:
        subject, _, reason = line.partition(": ")
        reasons.setdefault(reason, []).append(subject)
    return [f"{', '.join(subjects)}: {reason}" for reason, subjects in reasons.items()]
