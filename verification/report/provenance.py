"""What was verified against what, in words: the header, the warning about training periods, and how to read each score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from verification.certify import Certificate
from verification.readout import ONE_MEMBER, POLICY, same_climatology
from verification.report.choice import hours_of
from verification.report.tables import Table, lead_name, stamp_name
from verification.significance import TOO_FEW

MODEL_KEYS = (
    "model",
    "members",
    "boundary",
    "seed",
    "climatology",
    "initial_state",
    "checkpoint_sha256",
    "training_period",
    "validation_period",
    "plumecast_version",
)
NOTES = [
    (
        "fair CRPS",
        "Continuous ranked probability score: the distance between forecast distribution and truth, in the units of the "
        "variable. Lower is better; for a single forecast it is the absolute error. “Fair”: the spread of the members is counted "
        "over distinct pairs, so that ensembles of different size can be compared.",
    ),
    (
        "CRPS skill",
        "1 − CRPS / CRPS of the reference, over the cases both have. 1 is perfect, 0 no better than the reference, negative "
        "worse. Persistence says that nothing changes; the climatological ensemble says what is usual at this time of year.",
    ),
    (
        "RMSE, spread",
        "Root mean square error of the ensemble mean, and the root of the mean variance of the members. In a calibrated "
        "ensemble they agree at every lead, up to the factor below.",
    ),
    (
        "spread/skill ratio",
        "Spread over RMSE with the factor √((M+1)/M) for M members, so that 1 is calibrated for any ensemble size. "
        "Below 1 the ensemble is too confident, above 1 too cautious.",
    ),
    (
        "regions",
        "Tropics: 20°S to 20°N, both included; extratropics: poleward of them. Land: points of at least half land; sea: the "
        "others. Domain: the whole of a grid that does not span the globe. Points count by their area.",
    ),
    ("bias", "Mean of ensemble mean minus truth: positive where the forecast is too high."),
    (
        "rank histogram",
        "Where the truth fell among the sorted members. Flat if truth and members are drawn alike; U-shaped with too little "
        "spread, sloped with a bias. A flat histogram alone does not make a good forecast.",
    ),
    (
        "intervals",
        "95 % intervals from a bootstrap over initialisations, drawn in blocks as long as the lead because forecasts that "
        "overlap share their errors: what another sample of starting dates could have given. Differences between models are "
        "surer than their separate intervals suggest, because all see the same weather: read the scorecard.",
    ),
    (
        "significance",
        "A t test of the paired differences of single initialisations, with as many independent cases as their persistence "
        "leaves (AR(2), Geer 2016); of RMSE and correlation its linear part. The interval of a difference is that of this test, "
        "not of the bootstrap. Among many tests some are lucky: the dots keep the "
        "expected share of false discoveries below 10 % over all scores, regions, variables and leads of a comparison "
        "(Benjamini and Hochberg 1995).",
    ),
    (
        "anomaly correlation",
        "Correlation of the departures of ensemble mean and truth from the climatology, pooled over points and initialisations. "
        "1 is perfect, 0 without skill; 0.6 is often taken as the limit of use for a weather chart.",
    ),
]


@dataclass(frozen=True)
class Facts:
    """The header of a report: a sentence, the facts beside it and those at the end of the page."""

    summary: str
    head: list[tuple[str, str]]
    rest: list[tuple[str, str]]


def facts(
    states: Sequence[xr.Dataset], certificate: Certificate, *, reference: str | None = None, n_boot: int, draws: int, seed: int
) -> Facts:
    """The header of a report of any number of models; what differs between them is told of each.

    n_boot: resamples behind the intervals of scores; draws: behind those of ranks and events.
    """
    model, attrs = states[0], states[0].attrs
    names = [_name(state) for state in states]
    truths = _of_each(states, lambda state: str(state.attrs.get("truth", "its analysis")), names)
    summary = f"{attrs.get('members', '?')} members of {names[0]}, {model.sizes['time']} initialisations {_period(model)}, "
    summary += f"leads {_span(model)}, verified against {attrs.get('truth', 'its analysis')}"
    summary += f", beside {_listing(names[1:])}." if names[1:] else "."
    compared = "none" if len(states) == 1 else f"{_listing([n for n in names if n != reference])}, each with {reference}"
    if reference is None and len(states) > 1:
        compared = f"{names[0]} with {_listing(names[1:])}"
    counts = [state.sizes["time"] for state in states]
    head = [
        ("Models" if len(states) > 1 else "Model", ", ".join(map(_counted, states))),
        ("Verified against", truths + (f", {attrs['truth_period']}" if attrs.get("truth_period") else "") + _apart(states)),
        ("Initialisations", _of_each(states, lambda state: f"n = {state.sizes['time']}, {_period(state)}", names)),
        ("Leads", _of_each(states, lambda state: f"{state.sizes['prediction_timedelta']}, {_span(state)}", names)),
        ("Fields", f"{model.sizes['channel']} on {_grid(model)}"),
        ("Compared", compared),
        ("Climatology", _of_each(states, _climatology, names) + _unlike(states)),
        ("Boundary", _of_each(states, lambda state: str(state.attrs.get("boundary", "none")), names)),
        ("Estimator", _estimator(states)),
        ("Policy", POLICY),
        ("Certified", f"{certificate.summary} by this run ({_versions(certificate)})"),
        ("Left out", _of_each(states, _dropped, names) + " for missing values"),
        ("Intervals", f"95 %, {_resamples(n_boot, draws)}, seed {seed}" + _too_few(min(counts))),
    ]
    head = [
        (label, text)
        for label, text in head
        if (label, text) not in (("Boundary", "none"), ("Compared", "none"), ("Climatology", "none"))
    ]
    return Facts(summary, head, _rest(attrs))


def _of_each(states: Sequence[xr.Dataset], tell: Callable[[xr.Dataset], str], names: Sequence[str]) -> str:
    """What is told of every state, once if it is the same for all."""
    told = [tell(state) for state in states]
    return told[0] if len(set(told)) == 1 else "; ".join(f"{name}: {text}" for name, text in zip(names, told, strict=True))


def _climatology(state: xr.Dataset) -> str:
    return str(state.attrs.get("climatology") or "none")


def _apart(states: Sequence[xr.Dataset]) -> str:
    told = "; differences between models are also those between their truths"
    return told if len({str(state.attrs.get("truth", "")) for state in states}) > 1 else ""


def _unlike(states: Sequence[xr.Dataset]) -> str:
    """What is not compared between models that were scored beside unlike climatologies."""
    if all(same_climatology(state, states[0]) for state in states):
        return ""
    return "; anomaly correlations and events of quantiles are compared only where it is the same"


def _name(state: xr.Dataset) -> str:
    return str(state.attrs.get("model", "?"))


def _counted(state: xr.Dataset) -> str:
    """The model with its members, unless its name says them."""
    name, members = _name(state), state.attrs.get("members", "?")
    return name if f"{members} member" in name else f"{name} ({members} member{'' if members == 1 else 's'})"


def _span(state: xr.Dataset) -> str:
    first, last = (lead_name(hours_of(state["prediction_timedelta"].values[i])) for i in (0, -1))
    return first if first == last else f"{first} to {last}"


def _versions(certificate: Certificate) -> str:
    return ", ".join(f"{name} {number}" for name, number in certificate.versions.items())


def _estimator(states: Sequence[xr.Dataset]) -> str:
    single = [_name(state) for state in states if state.attrs.get("members") == 1]
    note = f"; {_listing(single)}: {ONE_MEMBER}" if single else ""
    return "fair CRPS; sums over all cases first, division last" + note


def _rest(attrs: dict[Any, Any]) -> list[tuple[str, str]]:
    wanted = [
        ("Data", "source"),
        ("Attribution", "attribution"),
        ("Training period", "training_period"),
        ("Validation period", "validation_period"),
        ("Initial state", "initial_state"),
        ("Forecast seed", "seed"),
        ("Checkpoint (sha256)", "checkpoint_sha256"),
        ("plumecast", "plumecast_version"),
    ]
    return [(label, str(attrs[key])) for label, key in wanted if attrs.get(key) not in (None, "")]


def _grid(state: xr.Dataset) -> str:
    if "latitude" not in state.coords:
        return "a grid that is not kept"
    latitude, longitude = state["latitude"].values, state["longitude"].values
    step = abs(float(longitude[1] - longitude[0]))
    return f"{longitude.size} x {latitude.size} points, {step:g}°"


def _period(state: xr.Dataset) -> str:
    return f"from {stamp_name(state['time'].values[0])} to {stamp_name(state['time'].values[-1])}"


def _dropped(state: xr.Dataset) -> str:
    count = int(state["dropped"].sum())
    return "nothing" if count == 0 else f"{count:,} cases"


def _resamples(n_boot: int, draws: int) -> str:
    told = f"{n_boot} block bootstrap samples of the initialisations"
    return told if draws == n_boot else f"{told} ({draws} of ranks, reliability, ROC and extremes)"


def _too_few(count: int) -> str:
    return f"; fewer than {TOO_FEW} initialisations, so the intervals themselves are rough" if count < TOO_FEW else ""


def _listing(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def alarms(states: Sequence[xr.Dataset]) -> list[dict[str, str]]:
    """One warning for each model some of whose initialisations or valid times lie inside its training or validation period."""
    found = []
    for state in states:
        worst = state["in_training"].max("prediction_timedelta").values
        if not worst.any():
            continue
        texts = []
        for level, period, key in ((2, "training", "training_period"), (1, "validation", "validation_period")):
            count = int((worst == level).sum())
            if count:
                dates = f" ({state.attrs[key]})" if state.attrs.get(key) else ""
                texts.append(f"{count} of {worst.size} initialisations or their valid times lie in its {period} period{dates}")
        stamps = [stamp_name(stamp) for stamp in state["time"].values[worst > 0]]
        text = "; ".join(texts) + ". Its scores here are not those of new weather."
        found.append({"model": _name(state), "text": text, "listing": ", ".join(stamps)})
    return found


def models(states: Sequence[xr.Dataset]) -> list[dict[str, Any]]:
    """What the JSON says about each model."""
    return [
        {key: _plain(state.attrs.get(key)) for key in MODEL_KEYS} | {"initialisations": state.sizes["time"]} for state in states
    ]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def models_table(states: Sequence[xr.Dataset]) -> Table:
    columns = ["model", "members", "initialisations", "boundary", "training period", "seed", "checkpoint"]
    rows = []
    for state in states:
        attrs = state.attrs
        checkpoint = str(attrs.get("checkpoint_sha256") or "–")[:12]
        keys = ("members", "initialisations", "boundary", "training_period", "seed")
        cells = [{**attrs, "initialisations": state.sizes["time"]}.get(key) for key in keys]
        shown = ["–" if cell in (None, "") else str(cell) for cell in cells]
        rows.append([_name(state), *shown, checkpoint])
    return Table("Every model of this report", columns, rows)
