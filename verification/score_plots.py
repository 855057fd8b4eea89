"""Scores as figures: score states go in, a matplotlib Figure comes out, with intervals, units and the number of initialisations.

    score_plots.plot_scores([state, climatology, persistence], "geopotential_500")

Everything drawn is read by `verification.readout` and `verification.significance`; values are in display units. As for maps: no
pyplot, no global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from data_pipeline.errors import InputError
from data_pipeline.schema import Channel, select
from verification.canvas import INK
from verification.evaluate import evaluate
from verification.event_curves import PROBABILITIES, event_counts, reliability_bins
from verification.headings import lead_text
from verification.panels import MARKERS, MODELS, dress, key, panels
from verification.readout import regions_of, scores_table, skill
from verification.significance import intervals
from verification.styles import Style, in_sentence, style_of

NAMES = {
    "crps": "Fair CRPS",
    "crps_ecdf": "CRPS of the members as they are",
    "rmse": "RMSE of the ensemble mean",
    "bias": "Bias of the ensemble mean",
    "ssr": "Spread / error",
}
UNITLESS, NEUTRAL = ("ssr", "crpss"), {"ssr": 1.0, "bias": 0.0, "crpss": 0.0}
DAYS = (1, 3, 5, 7, 10)


def plot_scores(
    states: Sequence[xr.Dataset],
    channel: str,
    *,
    score: str = "crps",
    region: str | None = None,
    title: str | None = None,
    width: float = 7.0,
) -> Figure:
    """One score by lead, a line and a 95 % interval for each state; lower is better but for `ssr` (1) and `bias` (0).

    Over the initialisations that all of them have. states: the model first, then baselines or other models. score: one of
    `NAMES`; of a single-member state the fair CRPS does not exist and its ecdf form, which is the absolute error, is drawn.
    Raises InputError for another score or channel, and if no initialisation is common.
    """
    if score not in NAMES:
        raise InputError(f"plot_scores: score {score!r}; expected one of {', '.join(NAMES)}")
    style = _style(states, channel)
    states = _on_common(states, channel)
    what = f"{NAMES[score]}, {in_sentence(style.long_name)}"
    figure, (ax,) = panels([2.7], width=width, title=what if title is None else title, note=_note(states[0], region))
    factor = 1.0 if score in UNITLESS else style.factor
    names = []
    for index, state in enumerate(states):
        single = score == "crps" and int(state.attrs["members"]) == 1
        name = "crps_ecdf" if single else score
        table, limits = scores_table(state, region), intervals(state, region=region)
        _curve(ax, table[name] * factor, limits * factor, name, channel, index)
        names.append(_model(state) + (" (absolute error)" if single else _own_size(state)))
    _by_lead(ax, "" if score in UNITLESS else style.difference_units, NEUTRAL.get(score))
    if score.startswith("crps") or score == "rmse":
        ax.set_ylim(bottom=0)
    key(figure, _models(names))
    return figure


def plot_skill(
    state: xr.Dataset,
    references: Sequence[xr.Dataset],
    channel: str,
    *,
    region: str | None = None,
    title: str | None = None,
    width: float = 7.0,
) -> Figure:
    """CRPS skill, 1 - CRPS / CRPS of the reference, by lead for each reference, with its 95 % interval: 0 is no better.

    Over the initialisations that all have, resampled together. Raises InputError for states that cannot be paired.
    """
    style = _style([state, *references], channel)
    state, *references = _on_common([state, *references], channel)
    what = f"CRPS skill of {_model(state)}, {in_sentence(style.long_name)}"
    figure, (ax,) = panels([2.5], width=width, title=what if title is None else title, note=_note(state, region))
    for index, reference in enumerate(references, 1):
        found, limits = skill(state, reference, region), intervals(state, reference, region=region)
        _curve(ax, found["crpss"], limits, "crpss", channel, index)
    _by_lead(ax, "", 0.0)
    ax.set_ylim(top=1.0)
    key(figure, _models([f"against {_model(reference)}" for reference in references], first=1))
    return figure


def plot_spread_error(
    state: xr.Dataset, channel: str, *, region: str | None = None, title: str | None = None, width: float = 7.0
) -> Figure:
    """Is the spread as large as the error? RMSE of the mean and spread by lead, and their ratio with its 95 % interval.

    The spread is drawn times sqrt((M + 1) / M), as it would equal the error of the mean of M members if these were calibrated
    (Fortin et al. 2014); the ratio is then that of the two lines. Raises InputError for a state of one member.
    """
    style, members = _style([state], channel), int(state.attrs["members"])
    if members < 2:
        raise InputError(f"plot_spread_error: {_model(state)} has one member, which has no spread")
    state = state.sel(channel=[channel])
    what = f"Spread and error, {in_sentence(style.long_name)}"
    heading = what if title is None else title
    figure, (left, right) = panels([2.3], 2, width=width, title=heading, note=_note(state, region))
    table, limits = scores_table(state, region), intervals(state, region=region)
    _curve(left, table["rmse"] * style.factor, limits * style.factor, "rmse", channel, 0)
    spread = table["spread"].sel(channel=channel) * style.factor * ((members + 1) / members) ** 0.5
    left.plot(_days(spread), spread, color=MODELS[1], linestyle=(0, (5, 1.5)), linewidth=1.6)
    _by_lead(left, style.difference_units, None)
    left.set_ylim(bottom=0)
    _curve(right, table["ssr"], limits, "ssr", channel, 0)
    _by_lead(right, "spread / error", 1.0)
    low, high = right.get_ylim()
    right.set_ylim(min(low, 0.7), max(high, 1.3))
    key(
        figure,
        [
            Line2D([], [], color=MODELS[0], marker="o", markersize=3.5, label="error (RMSE of the mean)"),
            Line2D([], [], color=MODELS[1], linestyle=(0, (5, 1.5)), label="spread"),
        ],
    )
    return figure


def plot_ranks(
    state: xr.Dataset,
    channel: str,
    leads: Sequence[np.timedelta64] | None = None,
    *,
    region: str | None = None,
    title: str | None = None,
    width: float = 7.0,
) -> Figure:
    """Rank histograms of the truth among the members, one panel a lead, scaled so that a flat histogram is 1.

    leads: by default those nearest to days 1, 3, 5, 7 and 10. Raises InputError for leads or regions that are not there.
    """
    style = _style([state], channel)
    shares = scores_table(state.sel(channel=[channel]), region)
    if "rank_histogram" not in shares:
        raise InputError(f"plot_ranks: ranks are not kept for the region {region!r}")
    chosen = _leads(state, leads)
    what = f"Ranks of the truth, {in_sentence(style.long_name)}"
    figure, axes = panels([1.5], len(chosen), width=width, title=what if title is None else title, note=_note(state, region))
    histograms = shares["rank_histogram"].sel(channel=channel, prediction_timedelta=chosen)
    scaled = histograms * histograms.sizes["rank"]
    top = max(2.0, 1.08 * float(scaled.max()))
    for ax, lead in zip(axes, chosen, strict=True):
        values = scaled.sel(prediction_timedelta=lead).values
        ax.stairs(values, np.arange(values.size + 1), fill=True, color=MODELS[0], alpha=0.75)
        ax.axhline(1.0, color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
        dress(ax, f"+ {lead_text(lead)}", "rank")
        ax.grid(visible=False)
        ax.set(xlim=(0, values.size), ylim=(0, top))
        ax.set_xticks([0.5, values.size - 0.5], ["0", str(values.size - 1)])
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.tick_params(labelleft=ax is axes[0])
    flat = Line2D([], [], color=INK, linewidth=0.9, linestyle=(0, (3, 2)), label="flat: the truth is like one more member")
    key(figure, [Patch(color=MODELS[0], alpha=0.75, label="how often, relative to flat"), flat])
    return figure


def plot_reliability(
    state: xr.Dataset,
    channel: str,
    event: str,
    leads: Sequence[np.timedelta64] | None = None,
    *,
    bins: int = PROBABILITIES,
    region: str | None = None,
    title: str | None = None,
    width: float = 7.0,
) -> Figure:
    """Reliability diagrams with their sharpness beneath, one column a lead: how often it happened when so many members said so.

    Every bin with cases is drawn, with a bar where two initialisations or more have some; see `reliability_intervals`. leads: as
    `plot_ranks`, three at most read well. Raises InputError for events that the state does not have.
    """
    style = _style([state], channel)
    chosen = _leads(state, leads)
    base = event.removeprefix(channel).strip()
    heading = f"Reliability, {in_sentence(style.long_name)} {base}" if title is None else title
    figure, axes = panels([1.75, 0.9], len(chosen), width=width, title=heading, note=_note(state, region))
    curves, shares = axes[: len(chosen)], axes[len(chosen) :]
    interval = "95 % interval" if state.sizes["time"] > 1 else "no interval of one initialisation"
    for above, below, lead in zip(curves, shares, chosen, strict=True):
        found = reliability_intervals(state, channel, event, lead, bins=bins, region=region)
        width_of_bar = 0.7 / found.sizes["bin"]
        found = found.where(found["share"] > 0, drop=True)
        sure = found.where(found["lower"].notnull(), drop=True)
        x, y = found["forecast_probability"].values, found["observed_frequency"].values
        above.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
        above.axhline(found.attrs["base_rate"], color="#888888", linewidth=0.8)
        above.vlines(sure["forecast_probability"], sure["lower"], sure["upper"], color=MODELS[0], linewidth=2.2, alpha=0.35)
        above.plot(x, y, color=MODELS[0], marker="o", markersize=3.5, linewidth=1.4)
        dress(above, f"+ {lead_text(lead)}")
        above.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        below.bar(x, found["share"], width=width_of_bar, color=MODELS[0], alpha=0.75)
        dress(below, "sharpness: share of cases" if lead == chosen[0] else "", "forecast probability")
        below.set(xlim=(-0.02, 1.02), yscale="log", ylim=(3e-4, 1.0))
        below.minorticks_off()
        for ax in (above, below):
            ax.xaxis.set_major_formatter(PercentFormatter(1.0))
            ax.yaxis.set_major_formatter(PercentFormatter(1.0))
            ax.set_xticks([0, 0.5, 1])
            ax.tick_params(labelleft=above is curves[0])
        below.set_yticks([0.001, 0.01, 0.1, 1.0], ["0.1%", "1%", "10%", "100%"])
    key(
        figure,
        [
            Line2D([], [], color=MODELS[0], marker="o", markersize=3.5, label=f"observed, {interval}"),
            Line2D([], [], color=INK, linewidth=0.9, linestyle=(0, (3, 2)), label="reliable"),
            Line2D([], [], color="#888888", linewidth=0.8, label="how often it happens at all"),
        ],
    )
    return figure


def reliability_intervals(
    state: xr.Dataset,
    channel: str,
    event: str,
    lead: np.timedelta64,
    *,
    bins: int = PROBABILITIES,
    region: str | None = None,
    level: float = 0.95,
    n_boot: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """A reliability diagram with intervals that know that neighbouring points are not independent: Dataset over `bin`.

    forecast_probability (mean of i / M), observed_frequency, its lower and upper limit at `level` and share (of the weight of all
    cases). Bins are neighbouring numbers of members, those nearest to even steps from 0 to 1 (`event_curves.reliability_bins`, as
    in the report), M + 1 at most. The limits come from resampled initialisations (stationary bootstrap, blocks as long as the
    lead), not from a count of grid points; they are NaN in a bin that fewer than two initialisations have. attrs: base_rate, how
    often the event happened; n, initialisations. Raises InputError, naming those that are there, for an event, channel or lead
    that the state does not have.
    """
    place = {"channel": channel, "prediction_timedelta": lead, "event": event}
    _check_there(state, place)
    own = state.sel(channel=[channel], event=[event])
    few = min(bins, int(state.attrs["members"]) + 1)
    found = reliability_bins(own, leads=[lead], bins=few, region=region, n_boot=n_boot, seed=seed, level=level).sel(
        place, drop=True
    )
    counted = event_counts(own, region).sel(place)
    names = {
        "probability": "forecast_probability", "frequency": "observed_frequency", "frequency_lower": "lower",
        "frequency_upper": "upper", "share": "share",
    }  # fmt: skip
    base_rate = float(counted["events"] / found["cases"].sum())
    attrs = {"event": event, "level": level, "n": int(counted["n"]), "base_rate": base_rate}
    return found[[*names]].rename(names).drop_vars("bin", errors="ignore").assign_attrs(attrs)


def scores_by_size(
    forecast: xr.Dataset, truth: xr.Dataset, channel: str, lead: np.timedelta64, sizes: Sequence[int] = (2, 4, 8, 16, 24, 50)
) -> xr.Dataset:
    """The fair and the ecdf CRPS of the first 2, 4, ... members of a forecast at one lead: Dataset (members) crps, crps_ecdf.

    Over all initialisations and the whole grid, in the units of the channel. The model is the same, so the fair CRPS stays, but
    for sampling, while the ecdf CRPS falls by half the members' mean difference divided by their number (Ferro 2014). Sizes that
    the forecast does not have are left out; its own is always there. Raises InputError for a forecast of one member.
    """
    have = forecast.sizes["number"]
    if have < 2:
        raise InputError("scores_by_size: the forecast has one member; the fair CRPS needs two")
    chosen = sorted({size for size in sizes if 2 <= size < have} | {have})
    name = Channel.parse(channel).name
    tables = [
        scores_table(evaluate(forecast[[name]].isel(number=slice(size)), truth, channels=[channel], leads=[lead]))
        for size in chosen
    ]
    rows = [table[["crps", "crps_ecdf"]].squeeze(("channel", "prediction_timedelta"), drop=True) for table in tables]
    found = xr.concat(rows, xr.DataArray(chosen, dims="members", name="members"), combine_attrs="drop")
    return found.assign_attrs(channel=channel, units=str(select(truth, Channel.parse(channel)).attrs["units"]))


def _curve(ax: Axes, values: xr.DataArray, limits: xr.Dataset, name: str, channel: str, index: int) -> None:
    line, colour = values.sel(channel=channel), MODELS[index % len(MODELS)]
    low, high = (limits[f"{name}_{side}"].sel(channel=channel) for side in ("lower", "upper"))
    ax.fill_between(_days(low), low, high, color=colour, alpha=0.18, linewidth=0)
    marker = MARKERS[index % len(MARKERS)]
    ax.plot(_days(line), line, color=colour, linewidth=1.6, marker=marker, markersize=3.2)


def _by_lead(ax: Axes, title: str, neutral: float | None) -> None:
    dress(ax, title, "lead (days)")
    ax.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    ax.margins(x=0.02)
    if neutral is not None:
        ax.axhline(neutral, color=INK, linewidth=0.9, linestyle=(0, (3, 2)), zorder=1)


def _models(names: Sequence[str], first: int = 0) -> list[Line2D]:
    return [
        Line2D([], [], color=MODELS[k % len(MODELS)], marker=MARKERS[k % len(MARKERS)], markersize=3.5, label=name)
        for k, name in enumerate(names, first)
    ]


def _style(states: Sequence[xr.Dataset], channel: str) -> Style:
    for state in states:
        _check_there(state, {"channel": channel})
    return style_of(channel)


def _on_common(states: Sequence[xr.Dataset], channel: str) -> list[xr.Dataset]:
    """The states of one channel on the initialisations that all have: curves of other dates are not comparable."""
    common = reduce(np.intersect1d, [state["time"].values for state in states])
    if not common.size:
        have = "; ".join(f"{_model(state)} has {_dates(state)}" for state in states)
        raise InputError(f"no initialisation is common to all: {have}. Verify them on the same dates")
    return [state.sel(channel=[channel], time=common) for state in states]


def _check_there(data: xr.Dataset, wanted: dict[str, object]) -> None:
    faults = [
        f"{dim} {_said(value)} is not in the scores, which have {', '.join(map(_said, data[dim].values))}"
        for dim, value in wanted.items()
        if value not in data[dim].values
    ]
    if faults:
        raise InputError("\n".join(faults))


def _said(value: object) -> str:
    return lead_text(value) if isinstance(value, np.timedelta64) else str(value)


def _leads(state: xr.Dataset, leads: Sequence[np.timedelta64] | None) -> np.ndarray:
    held = state["prediction_timedelta"].values
    if leads is None:
        days = held / np.timedelta64(1, "D")
        return held[sorted({int(np.abs(days - day).argmin()) for day in DAYS})]
    for lead in leads:
        _check_there(state, {"prediction_timedelta": np.timedelta64(lead, "ns")})
    return np.array(leads, "timedelta64[ns]")


def _days(values: xr.DataArray) -> np.ndarray:
    return np.asarray(values["prediction_timedelta"].values / np.timedelta64(1, "D"))


def _model(state: xr.Dataset) -> str:
    return str(state.attrs.get("model", "forecast"))


def _own_size(state: xr.Dataset) -> str:
    """The members in brackets, unless the name says them, as that of an ensemble of the climatology, or there is one."""
    members = int(state.attrs["members"])
    return "" if members == 1 or f"({members} members)" in _model(state) else f" ({members} members)"


def _note(state: xr.Dataset, region: str | None) -> str:
    members = int(state.attrs["members"])
    size = f"{members} member{'s' if members > 1 else ''}"
    return f"{_model(state)}, {size}, {_dates(state)}, {region or regions_of(state)[0]}"


def _dates(state: xr.Dataset) -> str:
    times = pd.DatetimeIndex(state["time"].values)
    if len(times) == 1:
        return f"one initialisation {times[0]:%Y-%m-%d}"
    return f"{len(times)} initialisations {times[0]:%Y-%m-%d} to {times[-1]:%Y-%m-%d}"
