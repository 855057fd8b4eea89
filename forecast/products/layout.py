"""The form of a product store: its variables with their definitions, for CF readers and people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from data_pipeline import store
from data_pipeline.sources.accumulation import named_hours
from data_pipeline.variables import lookup
from forecast.products.conditions import HOW, Event
from forecast.products.plan import PRESSURE, Plan, Task

MISSING = "a point where a member is missing has no product"
BOX = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # of the box and whiskers of a plume
FIELD = ("time", "prediction_timedelta")
PLANE = ("latitude", "longitude")
ATTRIBUTES = (
    "model", "source", "attribution", "checkpoint_sha256", "initial_state", "seed", "noise_scale", "training_period",
    "validation_period", "calibration",
)  # fmt: skip
STRICT = {">": "strict: a value on the threshold is no event", "<": "strict: a value on the threshold is no event"}
_STATISTICS = {
    "mean": ("mean", "number: mean", "mean of the members"),
    "spread": ("spread", "number: standard_deviation", "standard deviation of the members about their mean, divided by M - 1"),
    "minimum": ("lowest member", "number: minimum", "lowest member"),
    "maximum": ("highest member", "number: maximum", "highest member"),
}
QUANTILE = "linear between sorted members (Hyndman and Fan 1996, type 7)"

Variables = dict[str, tuple[Sequence[str], Mapping[str, Any]]]


def template(plan: Plan) -> xr.Dataset:
    """The empty store of a plan, taking no memory: coordinates, and every variable with its definition."""
    variables: Variables = {}
    for task in plan.tasks:
        variables |= _of_task(plan, task)
    for event in plan.joint:
        variables |= _of_event(plan, event)
    if plan.tracks is not None:
        variables |= _of_tracks(plan)
    used = {dim for dims, _ in variables.values() for dim in dims}
    coords = {name: coord for name, coord in _coords(plan).items() if set(coord.dims) <= used}
    return store.blank(coords, variables)


def chunks(plan: Plan) -> dict[str, int]:
    """Chunks of the store: an initialisation, and the leads that are made together."""
    return {"time": 1, "prediction_timedelta": plan.block, "stamp_lead": 1}


def attributes(plan: Plan) -> dict[str, Any]:
    """Attributes of the store: whose forecast and climate, how many members, what was asked for."""
    kept = {key: plan.forecast.attrs[key] for key in ATTRIBUTES if plan.forecast.attrs.get(key) not in (None, "")}
    found: dict[str, Any] = {
        "Conventions": "CF-1.11",
        "title": f"Ensemble products of {plan.forecast.attrs.get('model', 'a forecast')}",
        **kept,
        "forecast_recipe_hash": plan.forecast.attrs.get("recipe_hash", ""),
        "ensemble_size": plan.members.size,
        "missing": MISSING,
        "products_recipe": json.dumps(plan.recipe, sort_keys=True),
    }
    if plan.climate is not None:
        data = plan.climate.data
        found |= {
            "climatology_period": str(data.attrs.get("period", "not stated")),
            "climatology_source": str(data.attrs.get("source", data.attrs.get("recipe_hash", "not stated"))),
            "climatology_window_days": data.attrs.get("window_days", "not stated"),
            "climatology_quantiles": plan.climate.levels.tolist(),
        }
    return found


def levels_of(plan: Plan) -> list[int]:
    """The coordinate `level`: every level that any product has."""
    return sorted({level for task in plan.tasks for kind in (task.stored, task.efi, task.stamps) for level in kind or ()})


def _of_task(plan: Plan, task: Task) -> Variables:
    name, section = task.name, plan.section
    found: Variables = {}
    if task.stored is not None:
        base, plane = _base(plan, task, task.stored), _plane(task.stored)
        for statistic in section.statistics:
            word, method, estimator = _STATISTICS[statistic]
            found[f"{name}_{statistic}"] = ((*FIELD, *plane), _said(base, word, method, estimator=estimator))
        if section.quantiles:
            attrs = _said(base, "quantiles", "", estimator=QUANTILE)
            found[f"{name}_quantile"] = ((*FIELD, "quantile", *plane), attrs)
        if plan.points is not None:
            place = {"coordinates": "point_latitude point_longitude", "interpolation": plan.points.method}
            dims = ("level",) if task.stored else ()
            found[f"{name}_plume"] = ((*FIELD, "number", *dims, "point"), {**_said(base, "members at points", ""), **place})
            box = _said(base, "box and whiskers at points", "", estimator=QUANTILE)
            found[f"{name}_plume_box"] = ((*FIELD, "box", *dims, "point"), {**box, **place})
    for event in task.events:
        found |= _of_event(plan, event)
    if task.efi is not None:
        found |= _of_climate(plan, task)
    if task.stamps is not None and plan.stamps is not None:
        attrs = _said(_base(plan, task, task.stamps), "members", "")
        if plan.stamps.grid is not None:
            attrs["regridding"] = f"conservative, to {plan.stamp_grid}"
        contours = {label: texts for label, texts in plan.stamps.contours.items() if label.startswith(name)}
        attrs |= {"contours": json.dumps(contours)} if contours else {}
        levels = ("level",) if task.stamps else ()
        found[f"{name}_stamp"] = (("time", "stamp_lead", "number", *levels, "stamp_latitude", "stamp_longitude"), attrs)
    return found


def _of_climate(plan: Plan, task: Task) -> Variables:
    assert plan.climate is not None
    assert task.efi is not None
    attrs = {
        **_base(plan, task, task.efi), "units": "1", "long_name": f"extreme forecast index of {_long(task.name)}",
        "definition": "2 / pi integral of (p - F(p)) / sqrt(p (1 - p)) over p, F(p) the share of members below the climate's "
        "quantile p; -1 all below, 0 as the climate, 1 all above",
        "estimator": "4 / pi mean(asin(sqrt(q))) - 1 over the members, q linear between the climate's quantiles, on equal ones "
        "the mean over the step, 0 and 1 beyond the outermost",
        "references": "Lalaurette (2003); Zsoter (2006)", "climatology_quantiles": plan.climate.levels.tolist(),
    }  # fmt: skip
    attrs.pop("standard_name", None)
    found: Variables = {f"{task.name}_efi": ((*FIELD, *_plane(task.efi)), attrs)}
    for own, extreme in task.tails:
        tail = {
            **attrs, "long_name": f"shift of tails of {_long(task.name)} at {own:g}",
            "definition": f"(Qf({own:g}) - Qc({extreme:g})) / (Qc({extreme:g}) - Qc({own:g})), Qf of the ensemble, Qc of the "
            f"climate; above 0: a tenth of the members lie beyond its quantile {extreme:g}; missing where it has no tail",
            "estimator": QUANTILE, "references": "Zsoter (2006)",
        }  # fmt: skip
        found[f"{task.name}_sot_{own * 100:.0f}"] = ((*FIELD, *_plane(task.efi)), tail)
    return found


def _of_event(plan: Plan, event: Event) -> Variables:
    conditions = event.conditions
    attrs: dict[str, Any] = {
        "units": "1",
        "long_name": f"probability of {event.label}",
        "cell_methods": "number: mean (comment: of the event, 0 or 1, in each member)",
        "estimator": "share of the members with the event, i / M",
        "event": event.label,
        "comparison": [condition.op for condition in conditions],
        "strictness": "; ".join(STRICT.get(one.op, "not strict: a value on the threshold is an event") for one in conditions),
        "threshold_units": [
            plan.members.units(one.quantity.channel.name) for one in conditions if one.quantity and not one.is_quantile
        ],
        **_common(plan),
    }
    if any(condition.is_quantile for condition in conditions):
        attrs["threshold_quantile"] = [condition.value for condition in conditions if condition.is_quantile]
        attrs["threshold_source"] = "quantile of the climatology at the hour and day of year of the valid time"
    if not all(condition.is_quantile for condition in conditions):
        attrs["threshold"] = [condition.value for condition in conditions if not condition.is_quantile]
    windows = [one.quantity for one in conditions if one.quantity and one.quantity.how]
    if windows:
        said = [f"{HOW[str(one.how)]} of the stamps in the {one.hours} h that end at the lead" for one in windows]
        attrs["window"] = "; ".join(said)
    if len(conditions) > 1:
        attrs["joint"] = "all conditions in the same member at the same time"
    found: Variables = {event.name: ((*FIELD, *PLANE), attrs)}
    if plan.section.neighbourhood_km:
        near = {"neighbourhood_km": plan.section.neighbourhood_km, "long_name": f"neighbourhood {attrs['long_name']}"}
        near["estimator"] = "area mean of the probability over the cells within the distance"
        found[f"{event.name}_neighbourhood"] = ((*FIELD, *PLANE), {**attrs, **near})
    return found


def _of_tracks(plan: Plan) -> Variables:
    assert plan.tracks is not None
    tracks, dims = plan.tracks, ("time", "number", "track", "prediction_timedelta")
    rule = (
        f"minima of {PRESSURE} inside a contour {tracks.depth_hpa:g} hPa higher within {tracks.radius_km:g} km, followed at "
        f"{tracks.speed_ms:g} m s-1 at most, for {tracks.lifetime} at least"
    )
    common = {"definition": rule, "references": "Ullrich and Zarzycki (2017); Murray and Simmonds (1991)"}
    base = {"coordinates": "track_latitude track_longitude", **common}
    strike = {
        "units": "1", "long_name": f"probability of a low within {tracks.strike_km:g} km in {tracks.strike_window}",
        "estimator": "share of the members with the centre of a tracked low within the distance at any time in the window that "
        "ends at the lead; between stamps a centre moves along a great circle",
        "radius_km": tracks.strike_km, "window": tracks.strike_window, **common, "ensemble_size": plan.members.size,
        "missing": "leads whose window begins before the forecast",
    }  # fmt: skip
    return {
        "strike_probability": ((*FIELD, *PLANE), strike),
        "track_latitude": (dims, {"units": "degrees_north", "standard_name": "latitude", **common}),
        "track_longitude": (dims, {"units": "degrees_east", "standard_name": "longitude", **common}),
        "track_pressure": (dims, {"units": "Pa", "long_name": "pressure at the centre of the low", **base}),
        "track_count": (
            ("time", "number"),
            {"units": "1", "long_name": "tracks of the member", "comment": f"the longest {tracks.most} are kept", **common},
        ),
    }  # fmt: skip


def _coords(plan: Plan) -> dict[str, xr.Variable]:
    leads = plan.forecast["prediction_timedelta"].values.astype("timedelta64[ns]")
    time = {"standard_name": "forecast_reference_time", "long_name": "initialisation", "axis": "T"}
    coords = {
        "time": xr.Variable("time", plan.inits.astype("datetime64[ns]"), time),
        "prediction_timedelta": xr.Variable(
            "prediction_timedelta", leads, {"standard_name": "forecast_period", "long_name": "lead"}
        ),
        "valid_time": xr.Variable(
            ("time", "prediction_timedelta"),
            plan.inits[:, None] + leads[None],
            {"standard_name": "time", "long_name": "valid time"},
        ),
        "number": xr.Variable("number", plan.forecast["number"].values, {"standard_name": "realization", "units": "1"}),
        "level": xr.Variable("level", np.array(levels_of(plan)), {"units": "hPa", "positive": "down", "axis": "Z"}),
        **plan.members.grid.coords(),
        "quantile": xr.Variable("quantile", np.sort(plan.section.quantiles), {"units": "1", "long_name": "quantile"}),
        "box": xr.Variable("box", np.array(BOX), {"units": "1", "long_name": "quantile of the box and whiskers"}),
        "stamp_lead": xr.Variable("stamp_lead", leads[plan.stamp_leads], {"standard_name": "forecast_period"}),
    }
    if plan.tracks is not None:
        coords["track"] = xr.Variable("track", np.arange(plan.tracks.most), {"long_name": "track, the longest first"})
    if plan.points is not None:
        points = plan.points
        coords |= {
            "point": xr.Variable("point", np.array(points.names), {"long_name": "name of the point", "cf_role": "timeseries_id"}),
            "point_latitude": xr.Variable("point", points.latitude, {"units": "degrees_north", "standard_name": "latitude"}),
            "point_longitude": xr.Variable("point", points.longitude, {"units": "degrees_east", "standard_name": "longitude"}),
        }
    if plan.stamp_grid is not None:
        own = plan.stamp_grid.coords()
        coords |= {f"stamp_{name}": xr.Variable(f"stamp_{name}", own[name].values, own[name].attrs) for name in PLANE}
    return coords


def _plane(levels: tuple[int, ...]) -> tuple[str, ...]:
    return ("level", *PLANE) if levels else PLANE


def _base(plan: Plan, task: Task, levels: tuple[int, ...]) -> dict[str, Any]:
    known = lookup(task.name)
    attrs: dict[str, Any] = {"units": plan.members.units(task.name), "long_name": _long(task.name), **_common(plan)}
    attrs |= {"standard_name": known.standard_name} if known is not None and known.standard_name else {}
    attrs |= {"levels_available": list(levels)} if levels else {}
    if known is not None and known.accumulated:
        hours = f"{named_hours(task.name)} hours" if named_hours(task.name) else "step"
        attrs["cell_methods"] = f"prediction_timedelta: {known.window} (comment: over the {hours} that end at the stamp)"
    return attrs


def _said(base: Mapping[str, Any], word: str, method: str, **more: Any) -> dict[str, Any]:
    """The attributes of a quantity with what was made of its members."""
    methods = " ".join(filter(None, (base.get("cell_methods"), method)))
    return {**base, "long_name": f"{base['long_name']}, {word}", **({"cell_methods": methods} if methods else {}), **more}


def _common(plan: Plan) -> dict[str, Any]:
    return {"ensemble_size": plan.members.size, "missing": MISSING}


def _long(name: str) -> str:
    known = lookup(name)
    return known.long_name if known is not None else name.replace("_", " ")
