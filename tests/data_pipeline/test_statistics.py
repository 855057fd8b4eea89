"""Statistics of the training period against brute force in float64, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from data_pipeline import kept as keeping
from data_pipeline import statistics
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.recipe import section
from data_pipeline.schema import Channel, channels_of, select
from data_pipeline.statistics import Periods, format_period, from_model_space, in_period, to_model_space
from tests.toys import GLOBE, as_analysis, period, weather

RAIN = Channel("total_precipitation_12hr")


def brute_force(data: xr.Dataset, channel: Channel, rows: np.ndarray, pairs: np.ndarray) -> tuple[float, float, float]:
    """Mean, std and tendency std, two passes in float64. rows: positions used; pairs: first positions of the differences."""
    values = select(data, channel).values.astype("float64")
    if channel == RAIN:
        values = np.log(1 + np.maximum(values, 0) / 1e-3)
    weights = np.broadcast_to(Grid.of(data).areas, values.shape)
    change = values[pairs + 1] - values[pairs]
    mean = np.average(values[rows], weights=weights[rows])
    drift = np.average(change, weights=weights[pairs])
    return (
        mean,
        np.sqrt(np.average((values[rows] - mean) ** 2, weights=weights[rows])),
        np.sqrt(np.average((change - drift) ** 2, weights=weights[pairs])),
    )


@pytest.mark.parametrize("block", [7, 64, 256])
def test_mean_std_and_tendency_std_are_those_of_brute_force(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "BLOCK", block)
    data = weather(steps=90)
    found = statistics.compute(data, channels_of(data), period(data, 10, 80))
    rows = np.arange(10, 81)
    for i, channel in enumerate(channels_of(data)):
        expected = brute_force(data, channel, rows, rows[:-1])
        actual = [float(found[name][i]) for name in ("mean", "std", "tendency_std")]
        np.testing.assert_allclose(actual, expected, rtol=1e-9, err_msg=channel.label)
    assert found.attrs["n"] == 71
    assert found.attrs["step_hours"] == 12


@pytest.mark.parametrize("block", [5, 256])
def test_no_difference_is_taken_across_a_gap(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "BLOCK", block)
    whole = weather(steps=60)
    kept = np.setdiff1d(np.arange(60), [19, 20, 40])
    found = statistics.compute(whole.isel(time=kept), channels_of(whole), period(whole))
    pairs = np.array([i for i in range(59) if i in kept and i + 1 in kept])
    for i, channel in enumerate(channels_of(whole)):
        expected = brute_force(whole, channel, kept, pairs)
        assert float(found["tendency_std"][i]) == pytest.approx(expected[2], rel=1e-9)
        assert float(found["mean"][i]) == pytest.approx(expected[0], rel=1e-9)


def test_a_large_mean_does_not_drown_a_small_variance() -> None:
    wobble = np.random.default_rng(0).normal(size=(50, *GLOBE.shape))
    data = as_analysis({"geopotential_at_surface": 1e5 + wobble}, GLOBE)
    found = statistics.compute(data, channels_of(data), period(data))
    # float32 fields of 1e5 are rounded to 1/128; their statistics are not
    assert float(found["std"][0]) == pytest.approx(
        brute_force(data, channels_of(data)[0], np.arange(50), np.arange(49))[1], rel=1e-7
    )


@pytest.mark.parametrize("value", [273.15, 101325.7, 0.0])
def test_a_channel_that_never_changes_is_refused_by_name(value: float) -> None:
    data = weather(steps=40)
    data["2m_temperature"][:] = value
    data["10m_v_component_of_wind"][:] = data["10m_v_component_of_wind"][0]
    with pytest.raises(InputError) as error:
        statistics.compute(data, channels_of(data), period(data))
    assert "2m_temperature: never changes in the training period" in str(error.value)
    assert "10m_v_component_of_wind: never changes in the training period" in str(error.value)
    assert "geopotential" not in str(error.value)


def test_a_channel_with_missing_values_is_refused_by_name() -> None:
    data = weather(steps=40)
    data["2m_temperature"][5, 3, 3] = np.nan
    with pytest.raises(InputError, match="2m_temperature: holds missing values"):
        statistics.compute(data, channels_of(data), period(data))
    statistics.compute(data, channels_of(data), period(data, 6))


def test_a_period_without_data_says_what_there_is() -> None:
    data = weather(steps=40)
    with pytest.raises(InputError, match="0 time steps inside 1999-01-01T00/1999-12-31T00; the analysis runs from 2001-01-01"):
        statistics.compute(data, channels_of(data), ("1999-01-01", "1999-12-31"))


def test_precipitation_is_moved_to_a_log_scale_and_back_and_never_negative() -> None:
    metres = np.array([-1e-9, 0.0, 1e-4, 2e-3, 0.08])
    moved = to_model_space(metres, RAIN)
    np.testing.assert_allclose(moved, np.log([1.0, 1.0, 1.1, 3.0, 81.0]), atol=1e-12)
    np.testing.assert_allclose(from_model_space(moved, RAIN), np.maximum(metres, 0), atol=1e-15)
    assert (from_model_space(np.array([-3.0, -0.1]), RAIN) == 0).all()


def test_other_variables_stay_as_they_are_but_non_negative_ones_are_clipped() -> None:
    values = np.array([-2.0, 3.0])
    assert (to_model_space(values, Channel("2m_temperature")) == values).all()
    assert (from_model_space(values, Channel("2m_temperature")) == values).all()
    assert from_model_space(values, Channel("specific_humidity", 850)).tolist() == [0.0, 3.0]


def test_periods_include_both_ends_and_are_named_the_same_everywhere() -> None:
    times = weather(steps=6)["time"].values
    assert in_period(times, ("2001-01-01T12", "2001-01-02T12")).tolist() == [False, True, True, True, False, False]
    assert format_period(("2001-01-01", "2005-12-31T12")) == "2001-01-01T00/2005-12-31T12"


def test_a_period_that_ends_before_it_starts_or_is_not_there_is_an_error() -> None:
    with pytest.raises(InputError, match=r"periods.training: .*the period starts at 2002-01-01 after its end 2001-01-01"):
        section({"periods": {"training": ["2002-01-01", "2001-01-01"]}}, "periods", Periods)
    with pytest.raises(InputError, match=r"no validation period; add periods.validation"):
        Periods(training=("2001-01-01", "2002-01-01")).required("validation")
