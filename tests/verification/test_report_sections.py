"""The sections of the report show what plain numpy makes of the ensembles, and only what their states keep."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from data_pipeline.errors import InputError
from tests.verification.ensemble_states import COLD, EUROPE, GLOBE, LEADS, WARM, W, state_of, three_ensembles, world
from verification import readout
from verification.event_curves import event_counts, event_skill, probability_bin, reliability_bins
from verification.report import case, choice, decisions, diagrams, events, ranks, reliability, spectra
from verification.report.diagrams import Axis, Curve
from verification.report.tables import number
from verification.significance import draws_of_lead

DAY_3 = {"channel": "2m_temperature", "prediction_timedelta": LEADS[1]}


@pytest.fixture(scope="module")
def states() -> list[xr.Dataset]:
    return three_ensembles()


@pytest.fixture(scope="module")
def sections(states: list[xr.Dataset]) -> dict[str, dict[str, Any]]:
    """All sections of the three, by their ids."""
    found = [module.section(states, n_boot=10) for module in (ranks, reliability, decisions, events)]
    return {section["id"]: section for section in [*found, spectra.section(states)] if section is not None}


def warm(members: int, error: float, inits: int = 9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of members above 286 K at day 3, whether the truth was, and weights: each (case,)."""
    drawn, truth = world(members, error)
    hits = (drawn[:inits, 1, :, 1] > np.float32(286)).sum(axis=1)
    observed = truth[:inits, 1, 1] > np.float32(286)
    return hits.ravel(), observed.ravel(), np.broadcast_to(W, observed.shape).ravel()


def day_3(section: Mapping[str, Any] | None, model: str, start: str) -> list[str]:
    """The row of a model at day 3 in the table of 2 m temperature whose caption starts so."""
    assert section is not None
    channel = next(channel for channel in section["channels"] if channel["label"] == "t2m")
    table = next(table for table in channel["tables"] if table.caption.startswith(start))
    return next(row for row in table.rows if "day 3" in row[0] and model in (row[0] + row[1]))


def drawn_points(svg: str, kind: str, x: Axis, y: Axis) -> tuple[np.ndarray, np.ndarray]:
    """The values that the first path of a class goes through."""
    path = re.search(rf'<path class="{kind}" d="([^"]*)"', svg)
    assert path is not None
    places = np.array([[float(n) for n in pair.split()] for pair in re.findall(r"[ML]([-\d.]+ [-\d.]+)", path[1])])
    return tuple(  # type: ignore[return-value]
        axis.start + (places[:, k] - axis.first) / (axis.last - axis.first) * (axis.stop - axis.start)
        for k, axis in enumerate((x, y))
    )


def test_members_are_binned_by_whole_numbers() -> None:
    assert probability_bin(10).tolist() == list(range(11))
    assert probability_bin(5).tolist() == [0, 2, 4, 6, 8, 10]
    assert probability_bin(8).tolist() == [0, 1, 3, 4, 5, 6, 8, 9, 10]  # 2/8 lies half-way, and goes up
    assert probability_bin(1).tolist() == [0, 10]
    fine = probability_bin(500)
    assert np.all(np.diff(fine) >= 0)
    assert (abs(fine / 10 - np.arange(501) / 500) <= 0.05 + 1e-12).all()


def test_reliability_is_what_numpy_counts_case_by_case(states: list[xr.Dataset]) -> None:
    hits, observed, weight = warm(8, 0.4)
    found = reliability_bins(states[0], leads=LEADS, n_boot=20).sel(event=WARM.label, **DAY_3)
    bins = np.floor(10 * hits / 8 + 0.5).astype(int)
    for k in range(11):
        inside = bins == k
        if not inside.any():
            assert np.isnan(found["frequency"][k])
            continue
        total = weight[inside].sum()
        assert found["frequency"][k] == pytest.approx((weight * observed)[inside].sum() / total, rel=1e-12)
        assert found["probability"][k] == pytest.approx((weight * hits / 8)[inside].sum() / total, rel=1e-12)
        assert found["share"][k] == pytest.approx(total / weight.sum(), rel=1e-12)
        assert found["cases"][k] == pytest.approx(total, rel=1e-12)
        assert found["initialisations"][k] == len(set(np.flatnonzero(inside) // W.size))


def test_intervals_of_the_frequency_are_those_of_resampled_initialisations(states: list[xr.Dataset]) -> None:
    hits, observed, weight = warm(8, 0.4)
    found = reliability_bins(states[0], leads=LEADS, n_boot=40, seed=3, level=0.8).sel(event=WARM.label, **DAY_3)
    inside = (np.floor(10 * hits / 8 + 0.5) == 10).reshape(9, -1)
    rows = [(weight.reshape(9, -1) * inside * part).sum(axis=1) for part in (observed.reshape(9, -1), 1.0)]
    drawn = [
        (counts * rows[0]).sum() / (counts * rows[1]).sum()
        for counts in draws_of_lead(states[0], LEADS[1], n_boot=40, seed=3).values
    ]
    limits = (float(found["frequency_lower"][10]), float(found["frequency_upper"][10]))
    assert limits == pytest.approx(np.quantile(drawn, [0.1, 0.9]), rel=1e-12)


def test_the_reliability_diagram_its_table_and_its_caption_hold_those_numbers(sections: dict[str, dict[str, Any]]) -> None:
    section = sections["reliability"]
    hits, observed, weight = warm(8, 0.4)
    bins = np.floor(10 * hits / 8 + 0.5).astype(int)
    row = day_3(section, "eight", "2 m temperature > 12.85 °C")
    frequency = {k: np.average(observed[bins == k], weights=weight[bins == k]) for k in np.unique(bins)}
    share = {k: 100 * weight[bins == k].sum() / weight.sum() for k in np.unique(bins)}
    wanted = [f"{frequency[k]:.2f} ({share[k]:.2g} %)" if k in frequency else "–" for k in range(11)]
    assert [cell.removeprefix("few: ") for cell in row[1:12]] == wanted
    p, o = hits / 8, observed.astype(float)
    base = np.average(o, weights=weight)
    rate = {i: np.average(o[hits == i], weights=weight[hits == i]) for i in np.unique(hits)}
    of_case = np.array([rate[i] for i in hits])
    parts = [np.average(x, weights=weight) for x in ((p - o) ** 2, (p - of_case) ** 2, (of_case - base) ** 2)]
    text = f"{parts[0]:.4f} = {parts[1]:.4f} − {parts[2]:.4f} + {base * (1 - base):.4f}"
    assert row[12] == text
    figure = section["channels"][0]["groups"][0]["figures"][1]
    assert f"eight: {text}" in figure["caption"]
    x, y = drawn_points(figure["svg"], "d-l0", Axis(0, 1, 41, 240), Axis(0, 1, 206, 21))
    enough = [k for k in frequency if weight[bins == k].sum() >= reliability.FEWEST_CASES]
    np.testing.assert_allclose(y, [frequency[k] for k in enough], atol=0.001)
    np.testing.assert_allclose(x, [np.average(p[bins == k], weights=weight[bins == k]) for k in enough], atol=0.001)


def test_roc_and_value_are_those_of_every_pair_and_every_user(sections: dict[str, dict[str, Any]]) -> None:
    section = sections["decisions"]
    hits, observed, weight = warm(8, 0.4)
    yes, no = (hits[observed], weight[observed]), (hits[~observed], weight[~observed])
    wins = (yes[0][:, None] > no[0]) + 0.5 * (yes[0][:, None] == no[0])
    area = (wins * yes[1][:, None] * no[1]).sum() / (yes[1].sum() * no[1].sum())
    row = day_3(section, "eight", "2 m temperature > 12.85 °C: area")
    assert row[1].startswith(f"{area:.3f} [")
    half = hits >= 4
    numbers = pd.concat(section["numbers"])
    numbers = numbers[(numbers["model"] == "eight") & (numbers["event"] == WARM.label) & (numbers["lead_hours"] == 72)]
    told = numbers[(numbers["score"] == "hit_rate") & (numbers["at"] == 3)]
    assert told["value"].item() == pytest.approx(np.average(hits[observed] >= 3, weights=weight[observed]), rel=1e-12)
    assert told["n"].item() == 9
    assert row[4] == f"{np.average(half[observed], weights=yes[1]):.2f} / {np.average(half[~observed], weights=no[1]):.2g}"
    worth = day_3(section, "eight", "2 m temperature > 12.85 °C: economic")
    base = np.average(observed, weights=weight)
    for ratio, cell in zip(decisions.TOLD_RATIOS, worth[1:], strict=True):
        # what a user pays who acts from `required` members on: the cost when acting, the loss of 1 when not and it happens
        expense = [
            np.average(np.where(hits >= required, ratio, observed.astype(float)), weights=weight) for required in range(10)
        ]
        climate = min(ratio, base)
        assert cell == f"{(climate - min(expense)) / (climate - base * ratio):.2f}"


def test_extremes_are_scored_and_compared_on_common_initialisations(
    states: list[xr.Dataset], sections: dict[str, dict[str, Any]]
) -> None:
    section = sections["events"]
    row = day_3(section, "eight", "2 m temperature: events")
    assert section is not None
    assert "skill against climatology of five" in section["note"]

    def losses(members: int, error: float) -> tuple[np.ndarray, np.ndarray]:
        """Fair twCRPS above 286 K and fair Brier score of each initialisation at day 3."""
        drawn, truth = world(members, error)
        x, y = (np.maximum(values.astype(float), 286.0) for values in (drawn[:, 1, :, 1], truth[:, 1, 1]))
        pairs = abs(x[:, :, None] - x[:, None]).sum(axis=(1, 2)) / (2 * members * (members - 1))
        tail = ((abs(x - y[:, None]).mean(axis=1) - pairs) * W).mean(axis=(1, 2))
        p, o = (drawn[:, 1, :, 1] > np.float32(286)).mean(axis=1), truth[:, 1, 1] > np.float32(286)
        return tail, (((p - o) ** 2 - p * (1 - p) / (members - 1)) * W).mean(axis=(1, 2))

    ours, theirs = losses(8, 0.4), losses(5, 0.9)
    skills = [1 - a[:7].mean() / b[:7].mean() for a, b in zip(ours, theirs, strict=True)]
    found = event_skill(states[0], states[1], n_boot=30, seed=2).sel(event=WARM.label, **DAY_3)
    assert [float(found[name]) for name in ("twcrps_skill", "brier_skill")] == pytest.approx(skills, rel=1e-9)
    assert found["n"] == 7
    common = states[0].isel(time=slice(7))
    drawn = [1 - (c @ ours[0][:7]) / (c @ theirs[0][:7]) for c in draws_of_lead(common, LEADS[1], n_boot=30, seed=2).values]
    limits = [float(found[f"twcrps_skill_{side}"]) for side in ("lower", "upper")]
    assert limits == pytest.approx(np.quantile(drawn, [0.025, 0.975]), rel=1e-9)
    hits, observed, weight = warm(8, 0.4)
    base = np.average(observed, weights=weight)
    warned = hits >= 4
    h, f = (np.average(warned[which], weights=weight[which]) for which in (observed, ~observed))
    sedi = (np.log(f) - np.log(h) + np.log(1 - h) - np.log(1 - f)) / (np.log(f) + np.log(h) + np.log(1 - h) + np.log(1 - f))
    assert row[2] == f"{base:.3f}"
    assert row[3].startswith(f"{1 - ours[1].mean() / (base * (1 - base)):+.2f}".replace("-", "−"))
    assert row[5].startswith(f"{sedi:.3f}")
    assert row[6].startswith(f"{ours[0].mean():.3f}")
    assert row[7].startswith(f"{skills[0]:+.2f}".replace("-", "−"))
    assert row[8] == f"† {(weight * observed).sum():,.0f} in 9 of 9 initialisations"  # of nine, an interval is not worth much
    counted = event_counts(states[0]).sel(event=WARM.label, **DAY_3)
    assert counted["events"] == pytest.approx((weight * observed).sum(), rel=1e-12)


def test_skill_for_events_is_over_identical_cases_of_one_climatology_and_unit(states: list[xr.Dataset]) -> None:
    ours, theirs = states[0], states[2]
    whole = event_skill(ours, theirs, n_boot=5).sel(event=WARM.label, **DAY_3)
    marks = theirs["dropped_marks"].copy(deep=True)
    marks[{"time": 4}] += 1.0  # as many points with as much weight were left out, but others
    other = event_skill(ours, theirs.assign(dropped_marks=marks), n_boot=5).sel(event=WARM.label, **DAY_3)
    assert (int(whole["n"]), int(other["n"])) == (9, 8)
    without = event_skill(ours, theirs.isel(time=[0, 1, 2, 3, 5, 6, 7, 8]), n_boot=5).sel(event=WARM.label, **DAY_3)
    assert float(other["twcrps_skill"]) == pytest.approx(float(without["twcrps_skill"]), rel=1e-12)
    named = ["> q0.9", COLD.label]
    pair = [each.assign_coords(event=np.array(named, dtype=object)) for each in (ours, theirs)]
    apart = event_skill(pair[0].assign_attrs(climatology="2001/2005"), pair[1].assign_attrs(climatology="1991/2020"), n_boot=5)
    assert apart["n"].sel(event="> q0.9", **DAY_3) == 0
    assert np.isnan(apart["brier_skill"].sel(event="> q0.9")).all()
    assert apart["n"].sel(event=COLD.label, **DAY_3) == 9
    alike = event_skill(*(each.assign_attrs(climatology="2001/2005") for each in pair), n_boot=5)
    assert alike["n"].sel(event="> q0.9", **DAY_3) == 9
    section = events.section(
        [pair[0].assign_attrs(climatology="2001/2005"), pair[1].assign_attrs(climatology="1991/2020")], n_boot=5
    )
    assert section is not None
    assert "but not of quantiles for eight: of another climatology" in section["note"]
    units = json.dumps({"geopotential_500": "m2 s-2", "2m_temperature": "degC"})
    with pytest.raises(InputError, match="eight and one have different units .2m_temperature: K and degC"):
        event_skill(ours, theirs.assign_attrs(units=units), n_boot=5)


def test_events_stand_in_a_table_with_the_models_under_each_other(sections: dict[str, dict[str, Any]]) -> None:
    section = sections["events"]
    tables = [table for channel in section["channels"] for table in channel["tables"]]
    assert [table.caption for table in tables] == ["2 m temperature: events"]  # none of the geopotential
    assert [row[:2] for row in tables[0].rows[:3]] == [
        ["> 12.85 °C, day 1", "eight"],
        ["> 12.85 °C, day 1", "climatology of five"],
        ["> 12.85 °C, day 1", "one"],
    ]
    numbers = pd.concat(section["numbers"])
    assert set(numbers["channel"]) == {"2m_temperature"}
    numbers = numbers[(numbers["event"] == WARM.label) & (numbers["lead_hours"] == 24)].set_index(["model", "score"])["value"]
    for row in tables[0].rows[:3]:
        assert row[2] == number(numbers[row[1], "base_rate"])
        counts = [numbers[row[1], name] for name in ("events", "initialisations")]
        assert row[-1].removeprefix("† ").startswith("{:,.0f} in {:.0f} of ".format(*counts))


def test_spectra_are_fourier_sums_of_members_mean_and_truth(sections: dict[str, dict[str, Any]]) -> None:
    section = sections["spectra"]
    drawn, truth = (values.astype(float) for values in world(8, 0.4))
    north = GLOBE.latitude >= 20
    area = GLOBE.areas[north, 0] / GLOBE.areas[north, 0].sum()

    def power(fields: np.ndarray) -> np.ndarray:
        wave = abs(np.fft.fft(fields[..., north, :], axis=-1)[..., 1:8] / 16) ** 2
        doubled: np.ndarray = 2 * np.einsum("...jk,j->...k", wave, area)
        return doubled.reshape(-1, 7).mean(axis=0)

    day_5 = (slice(None), 2)
    of_members, of_truth = power(drawn[day_5][:, :, 1]), power(truth[day_5][:, 1])
    of_mean = power(drawn[day_5][:, :, 1].mean(axis=1))
    t2m = next(channel for channel in section["channels"] if channel["label"] == "t2m")
    rows = {(row[0], row[1]): row for row in t2m["tables"][0].rows}
    for kind, values in (("members", of_members), ("mean", of_mean)):
        told = [values[k - 1] / of_truth[k - 1] for k in (1, 2, 3, 5)]
        assert rows["day 5, eight", kind][2:6] == [f"{ratio:.2f}" for ratio in told]
    assert ("day 5, one", "mean") not in rows
    numbers = pd.concat(section["numbers"])
    chosen = numbers[(numbers["model"] == "eight") & (numbers["channel"] == "2m_temperature") & (numbers["region"] == "20N-90N")]
    chosen = chosen[(chosen["lead_hours"] == 120) & (chosen["at"].between(1, 7))]
    assert set(chosen["units"]) == {"K²"}
    for name, values in (("forecast_power", of_members), ("truth_power", of_truth), ("mean_power", of_mean)):
        np.testing.assert_allclose(chosen[chosen["score"] == name].sort_values("at")["value"], values, rtol=1e-6)


def test_ratios_of_a_spectrum_are_to_the_truth_of_each_models_own_initialisations() -> None:
    both = [state_of("all", 8, 0.4), state_of("some", 8, 0.4, inits=3)]
    section = spectra.section(both)
    assert section is not None
    t2m = next(channel for channel in section["channels"] if channel["label"] == "t2m")
    svg = t2m["groups"][0]["figures"][-1]["svg"]
    drawn_ratios = [
        drawn_points(part, "d-l1", Axis(0, np.log(8), 37, 244), Axis(0, 2, 266, 190))[1]
        for part in re.findall(r'<path class="d-l1"[^>]*>', svg)
    ]
    own = readout.spectra(both[1]).sel(channel="2m_temperature", belt="20N-90N").isel(drawn_lead=-1)["ratio"][1:]
    assert any(np.allclose(found, np.clip(own, 0, 2), atol=0.002) for found in drawn_ratios)
    first = readout.spectra(both[0]).sel(channel="2m_temperature", belt="20N-90N").isel(drawn_lead=-1)["truth_power"][1:]
    power = readout.spectra(both[1]).sel(channel="2m_temperature", belt="20N-90N").isel(drawn_lead=-1)["forecast_power"][1:]
    assert not any(np.allclose(found, np.clip(power / first, 0, 2), atol=0.002) for found in drawn_ratios)


def test_flatness_of_ranks_is_counted(states: list[xr.Dataset], sections: dict[str, dict[str, Any]]) -> None:
    section = sections["ranks"]
    drawn, truth = world(8, 0.4)
    rank = (drawn[:, 1, :, 1] < truth[:, 1, None, 1]).sum(axis=1)
    share = np.array([(W * (rank == k)).mean(axis=(1, 2)).mean() for k in range(9)])
    found = ranks.rank_shares(states[0], LEADS, n_boot=10).sel(DAY_3)
    np.testing.assert_allclose(found["shares"], share, rtol=1e-12)
    assert float(found["outside"]) == pytest.approx((share[0] + share[8]) / (2 / 9), rel=1e-12)
    assert float(found["tilt"]) == pytest.approx(share[5:].sum() - share[:4].sum(), rel=1e-12)
    assert float(found["reliability_index"]) == pytest.approx(abs(share - 1 / 9).sum(), rel=1e-12)
    assert float(found["outside_lower"]) <= float(found["outside"]) <= float(found["outside_upper"])
    row = day_3(section, "eight", "2 m temperature: how flat")
    assert row[1].startswith(f"{(share[0] + share[8]) / (2 / 9):.2f} [")
    assert row[3:] == [f"{abs(share - 1 / 9).sum():.2f}", "9"]
    assert [group["title"] for group in section["channels"][0]["groups"]] == ["eight, M = 8", "climatology of five, M = 5"]


def test_what_no_state_keeps_has_no_section() -> None:
    bare = state_of("bare", 1, 0.5, grid=EUROPE)
    assert [module.section([bare]) for module in (ranks, reliability, decisions, events, spectra)] == [None] * 5
    assert case.case_of_state(bare) is None


def test_models_without_a_lead_or_initialisation_in_common_stand_beside_each_other(states: list[xr.Dataset]) -> None:
    apart = [states[0].sel(prediction_timedelta=LEADS[:1]), states[1].sel(prediction_timedelta=LEADS[1:])]
    assert [module.section(apart, n_boot=5) for module in (ranks, reliability, decisions)] == [None] * 3
    for pair in (apart, [states[0].isel(time=slice(4)), states[1].isel(time=slice(4, None))]):
        section = events.section(pair, n_boot=5)
        assert section is not None
        rows = section["channels"][0]["tables"][0].rows
        assert {row[1] for row in rows} >= {"eight"}
        assert {row[7] for row in rows} == {"–"}


def test_only_channels_that_an_event_applies_to_are_shown(sections: dict[str, dict[str, Any]]) -> None:
    for name in ("reliability", "decisions", "events"):
        assert [channel["label"] for channel in sections[name]["channels"]] == ["t2m"]


def test_events_with_diagrams_are_few_and_named_for_people() -> None:
    labels = ["< q0.01", "< q0.05", "> q0.95", "> q0.99", "2m_temperature > 303.15", "geopotential_500 > 56000"]
    state = xr.Dataset(coords={"event": np.array(labels, dtype=object)})
    assert choice.events_shown(state, "2m_temperature") == ["2m_temperature > 303.15", "> q0.95"]
    assert choice.events_shown(state, "temperature_850") == ["> q0.95", "< q0.05"]
    assert choice.event_name("> q0.95", "temperature_850") == "above the 95 % quantile of the climate"
    assert choice.event_name("2m_temperature > 303.15", "2m_temperature") == "> 30 °C"


def test_what_lies_beyond_an_axis_is_drawn_on_its_edge_and_gaps_break_a_line() -> None:
    axis = Axis(0.01, 1.0, 40, 240, log=True)
    np.testing.assert_allclose(axis(np.array([0.01, 0.1, 1.0, 7.0])), [40, 140, 240, 240])
    curve = Curve(1, np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.5, np.nan, -7.0, 0.2]))
    svg = diagrams.by_lead([curve], title="skill", units="", alt="a skill", zero=True)
    path = re.search(r'class="d-l1" d="([^"]*)"', svg)
    assert path is not None
    assert path[1].count("M") == 2
    assert " 210L" in path[1]  # -1, the lowest that is shown
    assert "nan" not in svg
    assert "nan" not in diagrams.by_lead([Curve(0, np.zeros(1), np.array([0.5]))], title="at the start", units="", alt="a score")
