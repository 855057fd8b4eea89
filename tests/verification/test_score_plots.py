"""Figures of scores draw the very numbers that are read from the state, with their intervals, units and n."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from tests.toys import as_analysis
from tests.verification.pictures import pixels, texts
from verification import score_plots
from verification.evaluate import evaluate
from verification.event_curves import reliability_bins
from verification.readout import event_table, scores_table, skill
from verification.significance import intervals

GRID = Grid.named("24x12")
DAY = np.timedelta64(24, "h").astype("timedelta64[ns]")
LEADS = DAY * np.arange(1, 4)
NAME, MEMBERS, EVENT = "2m_temperature", 8, "2m_temperature > 283"


def members_of(truth: xr.Dataset, noise: float, members: int, model: str) -> xr.Dataset:
    """A calibrated ensemble: members and truth depart alike from a centre, the more the longer the lead."""
    rng = np.random.default_rng(members)
    times = truth["time"].values[2:26:2]
    valid = xr.DataArray(times[:, None] + LEADS, dims=("time", "prediction_timedelta"))
    at_valid = truth[NAME].sel(time=valid).drop_vars("time").assign_coords(time=times, prediction_timedelta=LEADS)
    growth = noise * xr.DataArray(np.arange(1, 4), dims="prediction_timedelta")
    centre = at_valid + growth * xr.DataArray(rng.normal(size=at_valid.shape), dims=at_valid.dims)
    own = xr.DataArray(rng.normal(size=(members, *at_valid.shape)), dims=("number", *at_valid.dims))
    data = (centre + growth * own * (members > 1)).assign_coords(number=np.arange(1, members + 1)).astype("float32")
    data = data.transpose("time", "prediction_timedelta", "number", "latitude", "longitude").assign_attrs(units="K")
    return xr.Dataset({NAME: data}, attrs={"model": model})


@pytest.fixture(scope="module")
def truth() -> xr.Dataset:
    rng = np.random.default_rng(1)
    return as_analysis({NAME: 280 + 4 * rng.normal(size=(40, *GRID.shape))}, GRID)


@pytest.fixture(scope="module")
def forecast(truth: xr.Dataset) -> xr.Dataset:
    return members_of(truth, 0.5, MEMBERS, "ensemble")


@pytest.fixture(scope="module")
def states(truth: xr.Dataset, forecast: xr.Dataset) -> list[xr.Dataset]:
    every = [forecast, members_of(truth, 1.5, 6, "poor"), members_of(truth, 1.0, 1, "single")]
    return [evaluate(data, truth, events=[EVENT]) for data in every]


def test_scores_by_lead_are_those_of_the_table_with_their_intervals(states: list[xr.Dataset]) -> None:
    figure = score_plots.plot_scores(states, NAME)
    ax = figure.axes[0]
    for line, state, score in zip(ax.lines, states, ("crps", "crps", "crps_ecdf"), strict=True):
        np.testing.assert_allclose(line.get_xdata(), [1, 2, 3])
        np.testing.assert_allclose(line.get_ydata(), scores_table(state)[score].values[0])
    limits = intervals(states[0])
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(float(limits["crps_lower"].min()))
    assert band.max() == pytest.approx(float(limits["crps_upper"].max()))
    written = texts(figure)
    for words in (
        "Fair CRPS, 2 m temperature",
        "8 members, 12 initialisations",
        "global",
        "K",
        "single (absolute error)",
        "lead",
    ):
        assert words in written
    assert pixels(figure, dpi=40).std() > 0.05


def test_skill_is_that_of_the_common_initialisations(states: list[xr.Dataset]) -> None:
    figure = score_plots.plot_skill(states[0], states[1:2], NAME)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), skill(states[0], states[1])["crpss"].values[0])
    assert "against poor" in texts(figure)


def test_the_drawn_spread_over_the_drawn_error_is_the_drawn_ratio(states: list[xr.Dataset]) -> None:
    left, right = score_plots.plot_spread_error(states[0], NAME).axes
    error, spread = (line.get_ydata() for line in left.lines)
    np.testing.assert_allclose(np.asarray(spread) / np.asarray(error), right.lines[0].get_ydata())
    with pytest.raises(InputError, match="one member, which has no spread"):
        score_plots.plot_spread_error(states[2], NAME)


def test_rank_histograms_are_scaled_so_that_flat_is_one(states: list[xr.Dataset]) -> None:
    figure = score_plots.plot_ranks(states[0], NAME, [DAY, 3 * DAY])
    assert len(figure.axes) == 2
    heights = figure.axes[1].patches[0].get_data().values
    expected = scores_table(states[0])["rank_histogram"].sel(channel=NAME, prediction_timedelta=3 * DAY).values * (MEMBERS + 1)
    np.testing.assert_allclose(heights, expected)
    assert heights.mean() == pytest.approx(1)


def test_reliability_merges_neighbouring_counts_and_keeps_every_case(states: list[xr.Dataset]) -> None:
    found = score_plots.reliability_intervals(states[0], NAME, EVENT, DAY, bins=3)
    table = event_table(states[0]).sel(channel=NAME, prediction_timedelta=DAY, event=EVENT).values
    for index, counts in enumerate(([0, 1], [2, 3, 4, 5], [6, 7, 8])):
        own = table[counts]
        assert found["observed_frequency"][index] == pytest.approx(own[:, 1].sum() / own.sum())
        expected = (own.sum(1) * np.array(counts) / MEMBERS).sum() / own.sum()
        assert found["forecast_probability"][index] == pytest.approx(expected)
        assert found["share"][index] == pytest.approx(own.sum() / table.sum())
    assert found.attrs["base_rate"] == pytest.approx(table[:, 1].sum() / table.sum())
    assert found.attrs["n"] == 12
    of_report = reliability_bins(states[0], leads=[DAY], bins=3, n_boot=1000).sel(
        channel=NAME, event=EVENT, prediction_timedelta=DAY
    )
    np.testing.assert_allclose(found["lower"], of_report["frequency_lower"], rtol=1e-12)
    assert (found["lower"] <= found["observed_frequency"]).all()
    assert (found["upper"] >= found["observed_frequency"]).all()


def test_reliability_of_one_initialisation_is_drawn_without_intervals_and_says_so(
    truth: xr.Dataset, forecast: xr.Dataset
) -> None:
    state = evaluate(forecast.isel(time=[0]), truth, events=[EVENT])
    found = score_plots.reliability_intervals(state, NAME, EVENT, DAY)
    assert np.isnan(found["lower"]).all()
    figure = score_plots.plot_reliability(state, NAME, EVENT, [DAY])
    there = found.where(found["share"] > 0, drop=True)
    np.testing.assert_allclose(figure.axes[0].lines[2].get_ydata(), there["observed_frequency"])
    np.testing.assert_allclose([bar.get_height() for bar in figure.axes[1].patches], there["share"])
    assert not figure.axes[0].collections[0].get_segments()
    assert "no interval of one initialisation" in texts(figure)


def test_a_bin_that_one_initialisation_has_is_drawn_without_a_bar(
    states: list[xr.Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = score_plots.reliability_intervals(states[0], NAME, EVENT, DAY)
    for name in ("lower", "upper"):
        found[name][-1] = np.nan
    monkeypatch.setattr(score_plots, "reliability_intervals", lambda *arguments, **options: found)
    figure = score_plots.plot_reliability(states[0], NAME, EVENT, [DAY])
    np.testing.assert_allclose([bar.get_height() for bar in figure.axes[1].patches], found["share"])
    assert len(figure.axes[0].collections[0].get_segments()) == found.sizes["bin"] - 1


def test_scores_of_other_dates_are_drawn_for_those_that_all_have(states: list[xr.Dataset]) -> None:
    early, late = states[0].isel(time=slice(8)), states[1].isel(time=slice(4, None))
    common = [states[0].isel(time=slice(4, 8)), states[1].isel(time=slice(4, 8))]
    figure = score_plots.plot_scores([early, late], NAME)
    for line, state in zip(figure.axes[0].lines, common, strict=True):
        np.testing.assert_allclose(line.get_ydata(), scores_table(state)["crps"].values[0])
    for words in ("8 members, 4 initialisations 2001-", "ensemble (8 members)", "poor (6 members)"):
        assert words in texts(figure)
    assert "4 initialisations" in texts(score_plots.plot_skill(early, [late], NAME))
    with pytest.raises(InputError, match=r"common to all: ensemble has 4 initialisations .*; poor has one initialisation"):
        score_plots.plot_scores([states[0].isel(time=slice(4)), states[1].isel(time=[5])], NAME)


def test_reliability_is_drawn_above_its_sharpness(states: list[xr.Dataset]) -> None:
    figure = score_plots.plot_reliability(states[0], NAME, EVENT, [DAY, 2 * DAY])
    assert len(figure.axes) == 4
    found = score_plots.reliability_intervals(states[0], NAME, EVENT, 2 * DAY)
    np.testing.assert_allclose(figure.axes[1].lines[2].get_ydata(), found["observed_frequency"])
    np.testing.assert_allclose([bar.get_height() for bar in figure.axes[3].patches], found["share"])


def test_the_fair_score_stays_and_the_ecdf_score_falls_with_members(truth: xr.Dataset, forecast: xr.Dataset) -> None:
    found = score_plots.scores_by_size(forecast, truth, NAME, 2 * DAY, sizes=(2, 4, 50))
    assert found["members"].values.tolist() == [2, 4, MEMBERS]
    assert (found["crps_ecdf"].diff("members") < 0).all()
    np.testing.assert_allclose(found["crps"], found["crps"][-1], rtol=0.05)
    whole = scores_table(evaluate(forecast, truth)).sel(channel=NAME, prediction_timedelta=2 * DAY)
    assert float(found["crps"][-1]) == pytest.approx(float(whole["crps"]))
    with pytest.raises(InputError, match="one member"):
        score_plots.scores_by_size(forecast.isel(number=[0]), truth, NAME, DAY)


def test_what_is_not_in_the_scores_is_said_with_what_is(states: list[xr.Dataset]) -> None:
    with pytest.raises(InputError, match=r"channel geopotential_500 is not in the scores, which have 2m_temperature"):
        score_plots.plot_scores(states, "geopotential_500")
    with pytest.raises(InputError, match="expected one of crps"):
        score_plots.plot_scores(states, NAME, score="crpss")
    with pytest.raises(InputError, match=r"prediction_timedelta 9 d is not .* 1 d, 2 d, 3 d"):
        score_plots.plot_ranks(states[0], NAME, [9 * DAY])
    with pytest.raises(InputError, match=r"event rain is not in the scores, which have 2m_temperature > 283"):
        score_plots.plot_reliability(states[0], NAME, "rain", [DAY])
