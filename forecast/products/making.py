"""The products of a forecast, made: quantity by quantity, some leads of one initialisation at a time with all their members.

Memory does not grow with leads or initialisations. Killed and run again, it goes on with the part that it was at; a finished
store is left alone.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from data_pipeline import store
from data_pipeline.chunks import LEAD_ENCODING, TIME_ENCODING
from data_pipeline.disk import sync
from data_pipeline.errors import InputError
from data_pipeline.recipe import differences, fingerprint
from data_pipeline.regrid import regrid
from forecast.products import statistics, tracks
from forecast.products.conditions import Event
from forecast.products.layout import BOX, attributes, chunks, levels_of, template
from forecast.products.plan import PRESSURE, Plan, Task, make_plan
from forecast.products.points import PARTNERS
from forecast.products.recipe import Place, ProductsSection, of_recipe, read_products
from verification.neighbourhood import fractions

PART_BYTES = 512 << 20  # of members read for a part; a killed run reads at most so much again, or one quantity

Report = Callable[[int, int], None]
Job = Task | Event | None  # a quantity, a joint event, or the tracks
Fields = dict[str, np.ndarray]  # {variable: values of a block, without the time}


def make(
    forecast: str | Path | xr.Dataset,
    out: str | Path,
    recipe: str | Path | ProductsSection | dict[str, Any] | None = None,
    climatology: str | Path | xr.Dataset | None = None,
    *,
    thresholds: Sequence[str] = (),
    places: Sequence[Place] = (),
    static: xr.Dataset | None = None,
    inits: Sequence[np.datetime64] | None = None,
    report: Report = lambda done, total: None,
) -> Path:
    """Make the products of a forecast at `out`, a zarr store or, ending in .nc, a NetCDF file; returns the path.

    forecast: a store, anybody's ensemble files, or a dataset in the schema "forecast". recipe: a TOML file with [products], what
    was read from one, or the section itself; default: what forecast and climatology allow. climatology: with quantiles, for
    percentiles, EFI and SOT. thresholds, places: events and points besides those of the recipe. static: dataset with
    `land_sea_mask`, for the nearest land. inits: of those in the forecast; default: all. report: called with (done, of how many).
    Raises InputError listing every fault, and if something made otherwise lies at `out`.
    """
    plan = make_plan(forecast, _section(recipe), climatology, thresholds=thresholds, places=places, static=static, inits=inits)
    return run(plan, out, report)


def run(plan: Plan, out: str | Path, report: Report = lambda done, total: None) -> Path:
    """Carry out a plan; see `make`."""
    out = Path(out)
    if out.suffix != ".nc":
        return _write(plan, out, report)
    built = out.with_name(out.name + ".zarr")
    if out.exists():
        _check_same(out, plan)
    else:
        _write(plan, built, report)
        _as_netcdf(built, out)
    shutil.rmtree(built, ignore_errors=True)
    for stale in out.parent.glob(f"{out.name}.*[0-9].partial"):  # of runs that were killed
        stale.unlink()
    return out


def of_block(plan: Plan, task: Task, init: int, first: int, stop: int) -> Fields:
    """Every product of a task for leads first .. stop - 1 of an initialisation: {variable: (lead, ...)}."""
    levels = task.levels
    members = plan.members.read(task.name, levels, init, first, stop, task.how, task.hours)
    made: Fields = {}
    ordered = statistics.ordered(members) if task.stored is not None or task.efi is not None else members
    if task.stored is not None:
        own = ordered[:, :, _places(levels, task.stored)]
        made |= {name: _on_levels(plan, task.stored, values) for name, values in _statistics(plan, task, own).items()}
        if plan.points is not None:
            plume = _plume(plan, task, members, init, first, stop)
            box = statistics.quantiles(statistics.ordered(plume), BOX)
            both = {f"{task.name}_plume": plume, f"{task.name}_plume_box": box}
            made |= {name: _on_levels(plan, task.stored, values, axis=2) for name, values in both.items()}
    for event in task.events:
        made |= _probability(plan, event, [(members, levels)], init, first, stop)
    if task.efi is not None:
        made |= _against_climate(plan, task, ordered[:, :, _places(levels, task.efi)], init, first, stop)
    return made


def _section(recipe: str | Path | ProductsSection | dict[str, Any] | None) -> ProductsSection:
    if recipe is None:
        return ProductsSection()
    if isinstance(recipe, ProductsSection):
        return recipe
    return of_recipe(recipe) if isinstance(recipe, dict) else read_products(recipe)


def _write(plan: Plan, out: Path, report: Report) -> Path:
    """Part by part: an initialisation and some jobs; what was done is counted in jobs."""
    groups = _groups(plan)
    stamps = [np.datetime_as_string(time, "m").replace(":", "") for time in plan.inits]
    parts = [f"{stamp}.{k:04d}" for stamp in stamps for k in range(len(groups))]
    rows = np.searchsorted(plan.forecast["time"].values, plan.inits)
    form, done, total = template(plan), 0, len(stamps) * sum(map(len, groups))
    with store.create(out, form, parts=parts, attrs=attributes(plan), chunks=chunks(plan), recipe=plan.recipe) as writer:
        for (i, stamp), (k, jobs) in itertools.product(enumerate(stamps), enumerate(groups)):
            part, held = f"{stamp}.{k:04d}", writer.done
            for job in jobs:
                for made, box in _boxes(plan, job, int(rows[i])) if part not in held else ():
                    data = {name: (form[name].dims, values[None]) for name, values in made.items()}
                    writer.put(part, xr.Dataset(data), {"time": slice(i, i + 1), **box})
                done += 1
                report(done, total)
            if part not in held:
                writer.complete(part)
        return writer.finish()


def _groups(plan: Plan) -> list[list[Job]]:
    """Jobs that make one part: of small forecasts all, because making each durable would cost more than making it."""
    jobs: list[Job] = [*plan.tasks, *plan.joint, *([None] if plan.tracks is not None else [])]
    field = 4 * plan.members.hours.size * plan.members.size * plan.members.grid.areas.size
    groups: list[list[Job]] = [[]]
    size = 0
    for job in jobs:
        if size >= PART_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(job)
        size += field * max(len(job.levels) if isinstance(job, Task) else 1, 1)
    return groups


def _boxes(plan: Plan, job: Job, init: int) -> Iterator[tuple[Fields, dict[str, slice]]]:
    """What a job makes of an initialisation, block by block: fields, and their leads."""
    if job is None:
        yield _tracked(plan, init), {}
        return
    for first, stop in plan.blocks:
        leads = {"prediction_timedelta": slice(first, stop)}
        if not isinstance(job, Task):
            yield _joint(plan, job, init, first, stop), leads
            continue
        if made := of_block(plan, job, init, first, stop):
            yield made, leads
        if job.stamps is not None:
            for k in np.flatnonzero((plan.stamp_leads >= first) & (plan.stamp_leads < stop)).tolist():
                yield _stamped(plan, job, init, int(plan.stamp_leads[k])), {"stamp_lead": slice(k, k + 1)}


def _statistics(plan: Plan, task: Task, ordered: np.ndarray) -> Fields:
    mean, spread = statistics.moments(ordered)
    lowest, highest = statistics.extremes(ordered)
    every = {"mean": mean, "spread": spread, "minimum": lowest, "maximum": highest}
    made = {f"{task.name}_{statistic}": every[statistic] for statistic in plan.section.statistics}
    if plan.section.quantiles:
        made[f"{task.name}_quantile"] = statistics.quantiles(ordered, np.sort(plan.section.quantiles).tolist())
    return made


def _plume(plan: Plan, task: Task, members: np.ndarray, init: int, first: int, stop: int) -> np.ndarray:
    """(lead, member, level, point)."""
    assert plan.points is not None
    assert task.stored is not None
    own, partner = members[:, :, _places(task.levels, task.stored)], None
    if plan.points.polar and task.name in PARTNERS:  # at a pole a component is made of both
        other = next(name for name in PARTNERS[task.name] if name != task.name)
        if other in plan.members:
            partner = plan.members.read(other, task.stored, init, first, stop)
    return plan.points.values(own, task.name, partner)


def _against_climate(plan: Plan, task: Task, ordered: np.ndarray, init: int, first: int, stop: int) -> Fields:
    assert plan.climate is not None
    assert task.efi is not None
    levels = plan.climate.levels
    climate = plan.climate.quantiles(task.name, task.efi, levels.tolist(), init, first, stop)
    made = {f"{task.name}_efi": statistics.efi(ordered, climate, levels)}
    for tail in task.tails:
        made[f"{task.name}_sot_{tail[0] * 100:.0f}"] = statistics.sot(ordered, climate, levels, tail)
    return {name: _on_levels(plan, task.efi, values) for name, values in made.items()}


def _joint(plan: Plan, event: Event, init: int, first: int, stop: int) -> Fields:
    blocks = []
    for condition in event.conditions:
        quantity = condition.quantity
        assert quantity is not None
        levels = () if quantity.channel.level is None else (quantity.channel.level,)
        members = plan.members.read(quantity.channel.name, levels, init, first, stop, quantity.how, quantity.hours)
        blocks.append((members, levels))
    return _probability(plan, event, blocks, init, first, stop)


def _probability(
    plan: Plan, event: Event, blocks: Sequence[tuple[np.ndarray, tuple[int, ...]]], init: int, first: int, stop: int
) -> Fields:
    """Probability of the event; blocks: the members (lead, member, level, ...) of each condition's quantity, and their levels."""
    happening: np.ndarray | None = None
    missing: np.ndarray | None = None
    for condition, (block, levels) in zip(event.conditions, blocks, strict=True):
        assert condition.quantity is not None
        level = condition.quantity.channel.level
        members = block[:, :, 0 if level is None else levels.index(level)]
        threshold: np.ndarray = np.array(condition.value)
        absent = np.isnan(members).any(axis=1)
        if condition.is_quantile:
            assert plan.climate is not None
            pressure = () if level is None else (level,)
            name = condition.quantity.channel.name
            threshold = plan.climate.quantiles(name, pressure, [condition.value], init, first, stop)[:, :, 0]
            absent |= np.isnan(threshold[:, 0])
        found = statistics.happens(members, condition.op, threshold)
        happening = found if happening is None else np.logical_and(happening, found, out=happening)
        missing = absent if missing is None else missing | absent
    assert happening is not None
    assert missing is not None
    made = {event.name: statistics.share(happening, missing)}
    if plan.section.neighbourhood_km:
        near = fractions(made[event.name], plan.members.grid, plan.section.neighbourhood_km)
        made[f"{event.name}_neighbourhood"] = near.astype(np.float32)
    return made


def _stamped(plan: Plan, task: Task, init: int, lead: int) -> Fields:
    assert task.stamps is not None
    assert plan.stamp_grid is not None
    members = plan.members.read(task.name, task.stamps, init, lead, lead + 1)
    dims = ("stamp_lead", "number", "level", "latitude", "longitude")
    array = xr.DataArray(members, dims=dims, coords=plan.members.grid.coords(), name=task.name)
    values = regrid(array, plan.stamp_grid).values
    return {f"{task.name}_stamp": _on_levels(plan, task.stamps, values, axis=2)}


def _tracked(plan: Plan, init: int) -> Fields:
    chosen = plan.tracks
    assert chosen is not None
    hours, lifetime = plan.members.hours, float(chosen.lifetime.removesuffix("h"))
    found = tracks.of_members(
        lambda first, stop: plan.members.read(PRESSURE, (), init, first, stop)[:, :, 0], plan.blocks, plan.members.grid, hours,
        depth=100 * chosen.depth_hpa, radius_km=chosen.radius_km, speed_ms=chosen.speed_ms, lifetime_hours=lifetime,
    )  # fmt: skip
    shape = (len(found), chosen.most, hours.size)
    latitude, longitude, pressure = (np.full(shape, np.nan, np.float32) for _ in range(3))
    for member, own in enumerate(found):
        for k, track in enumerate(own[: chosen.most]):
            place = (member, k, slice(track.first, track.last + 1))
            latitude[place], longitude[place] = tracks.positions(np.array(track.places))
            pressure[place] = track.pressure
    window = float(chosen.strike_window.removesuffix("h"))
    strike = tracks.strikes(found, hours, plan.members.grid, radius_km=chosen.strike_km, window_hours=window)
    return {
        "strike_probability": strike.astype(np.float32), "track_latitude": latitude, "track_longitude": longitude,
        "track_pressure": pressure, "track_count": np.array([len(own) for own in found], np.float32),
    }  # fmt: skip


def _places(levels: Sequence[int], wanted: Sequence[int]) -> list[int] | slice:
    """Positions of the wanted levels among those that were read; the one surface is position 0."""
    return slice(None) if tuple(levels) == tuple(wanted) else [levels.index(level) for level in wanted]


def _on_levels(plan: Plan, levels: Sequence[int], values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Values with a dim of their own levels, on those of the store (others NaN), or without it at the surface.

    axis: of the levels; by default the third from the end.
    """
    axis = values.ndim - 3 if axis is None else axis
    if not levels:
        return values.squeeze(axis)
    every = levels_of(plan)
    if every == list(levels):
        return values
    whole = np.full((*values.shape[:axis], len(every), *values.shape[axis + 1 :]), np.nan, np.float32)
    whole[(slice(None),) * axis + ([every.index(level) for level in levels],)] = values
    return whole


def _as_netcdf(built: Path, out: Path) -> None:
    """A finished store as a NetCDF file, which appears whole."""
    temporary = out.with_name(f"{out.name}.{os.getpid()}.partial")
    try:
        with store.open_store(built) as data:
            packed = {"zlib": True, "complevel": 1}
            encoding: dict[Any, dict[str, Any]] = dict.fromkeys(data.data_vars, packed)
            encoding |= {name: dict(TIME_ENCODING) for name in ("time", "valid_time") if name in data.coords}
            encoding |= {name: dict(LEAD_ENCODING) for name in ("prediction_timedelta", "stamp_lead") if name in data.coords}
            data.drop_encoding().to_netcdf(temporary, encoding=encoding)
        sync(temporary)
        temporary.replace(out)
        sync(out.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _check_same(out: Path, plan: Plan) -> None:
    """Raise InputError, with the differences, unless the NetCDF file at `out` was made by this plan."""
    with xr.open_dataset(out) as there:
        text = str(there.attrs.get("products_recipe", ""))
    new = json.loads(json.dumps(plan.recipe))
    old = json.loads(text) if text else {}
    if fingerprint(old) != fingerprint(new):
        lines = "\n".join(f"  - {line}" for line in differences(old, new))
        raise InputError(f"{out} was made from something else; choose another --out, or move it away:\n{lines}")
