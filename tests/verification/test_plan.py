"""Events are read from text, and what cannot be scored is named before a field is read."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from data_pipeline import climatology as climatologies
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel
from tests.toys import as_analysis, weather
from verification.plan import BINS, Event, Plan, plan_for, truth_edges

GRID = Grid.named("16x8")


@pytest.mark.parametrize(
    ("text", "event"),
    [
        ("2m_temperature > 303.15", Event(">", 303.15, channel="2m_temperature")),
        ("> q0.95", Event(">", 0.95, is_quantile=True)),
        ("<=q0.05", Event("<=", 0.05, is_quantile=True)),
        ("total_precipitation_24hr >= q.99", Event(">=", 0.99, is_quantile=True, channel="total_precipitation_24hr")),
        ("geopotential_500 < 5.2e4", Event("<", 5.2e4, channel="geopotential_500")),
    ],
)
def test_events_are_read_and_written(text: str, event: Event) -> None:
    assert Event.parse(text) == event
    assert Event.parse(event.label) == event


@pytest.mark.parametrize("text", ["2m_temperature 303", "> 303.15", "> q95", "> q1", "2m_temperature = 3", "", "> q", "> q0.9.5"])
def test_nonsense_is_no_event(text: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"event {text!r}: expected a channel with a threshold")):
        Event.parse(text)


def forecast_of(truth: xr.Dataset) -> xr.Dataset:
    leads = np.timedelta64(12, "h").astype("timedelta64[ns]") * np.arange(1, 21)
    times = truth["time"].values[:3]
    valid = xr.DataArray(times[:, None] + leads, dims=("time", "prediction_timedelta"))
    data = truth[["geopotential", "2m_temperature"]].sel(time=valid).drop_vars("time")
    data = data.assign_coords(time=times, prediction_timedelta=leads).expand_dims(number=np.arange(3))
    return data.transpose("time", "prediction_timedelta", "number", "level", "latitude", "longitude")


def test_a_climatology_gives_its_outermost_quantiles_as_events() -> None:
    truth = weather(GRID, 800)
    forecast = forecast_of(truth)
    channels = [Channel("geopotential", 500), Channel("2m_temperature")]
    climate = climatologies.compute(truth, channels, ("2001-01-01", "2002-01-31"), quantiles=(0.02, 0.25, 0.5, 0.75, 0.95, 0.98))
    plan = plan_for(forecast, truth, climatology=climate)
    assert [event.label for event in plan.events] == ["< q0.02", "< q0.25", "> q0.95", "> q0.98"]
    assert plan.anomalies
    assert plan_for(forecast, truth, climatology=climate, events=[]).events == ()
    with pytest.raises(InputError, match=re.escape("event '> q0.9' needs that quantile of a climatology; it has [0.02, 0.25")):
        plan_for(forecast, truth, climatology=climate, events=["> q0.9"])
    with pytest.raises(InputError, match="it has no quantiles. Make one with plumecast data climatology RECIPE --quantile 0.9"):
        plan_for(forecast, truth, events=["> q0.9"])
    with pytest.raises(InputError, match="10m_wind_speed is not verified; the channels are geopotential_500, 2m_temperature"):
        plan_for(forecast, truth, events=["10m_wind_speed > 20"])
    with pytest.raises(InputError, match="2m_temperature: no 2m_temperature"):
        plan_for(forecast, truth, climatology=climate.drop_vars("2m_temperature"))
    with pytest.raises(InputError, match="not initialisations of the forecast"):
        plan_for(forecast, truth, cases=[np.datetime64("1999-01-01", "ns")])


def test_maps_are_kept_for_the_leads_nearest_to_the_drawn_days() -> None:
    truth = weather(GRID, 60)
    plan = plan_for(forecast_of(truth), truth)
    days = plan.leads[plan.drawn] / np.timedelta64(1, "D")
    np.testing.assert_array_equal(days, [1, 3, 5, 7, 10])


def test_the_bins_of_the_truth_depend_on_the_truth_alone() -> None:
    truth = weather(GRID, 60)
    edges = truth_edges(truth, Channel("2m_temperature"))
    assert edges.size == BINS - 1
    assert (np.diff(edges) > 0).all()
    first, second = (
        plan_for(part, truth).edges for part in (forecast_of(truth).isel(time=[0]), forecast_of(truth).isel(time=[1, 2]))
    )
    for channel, values in first.items():
        np.testing.assert_array_equal(values, second[channel])


def test_unequal_bins_are_padded_without_moving_a_value() -> None:
    plan = Plan(("a", "b"), {"a": "1", "b": "1"}, np.array([]), np.array([]), 2, GRID, edges={"a": np.array([0.0, 1.0, 2.0])})
    np.testing.assert_array_equal(plan.bin_edges["b"], [0.0, np.inf, np.inf])
    rain = as_analysis({"total_precipitation_12hr": np.zeros((13, *GRID.shape))}, GRID)
    assert truth_edges(rain, Channel("total_precipitation_12hr")).size == 1


def test_thresholds_keep_all_their_digits_in_the_name() -> None:
    for text in ("mean_sea_level_pressure > 101325.5", "geopotential_500 > 1050001", "total_precipitation_12hr >= 0.0001"):
        assert Event.parse(text).label == text


def test_bins_stay_while_the_truth_store_grows() -> None:
    truth = weather(GRID, 1000)
    before, after = (truth_edges(part, Channel("2m_temperature")) for part in (truth.isel(time=slice(0, 730)), truth))
    np.testing.assert_array_equal(before, after)


def test_a_climatology_that_does_not_fit_is_named() -> None:
    truth = weather(GRID, 800)
    forecast = forecast_of(truth)
    channels = [Channel("geopotential", 500), Channel("2m_temperature")]
    climate = climatologies.compute(truth, channels, ("2001-01-01", "2002-01-31"), quantiles=(0.9,))
    with pytest.raises(InputError, match="geopotential_500: no geopotential_quantile at 500 hPa"):
        plan_for(forecast, truth, climatology=climate.drop_vars("geopotential_quantile"))
    assert plan_for(
        forecast, truth, climatology=climate.drop_vars("geopotential_quantile"), events=["2m_temperature > q0.9"]
    ).events
    celsius = climate.copy()
    celsius["2m_temperature"] = celsius["2m_temperature"].assign_attrs(units="degC")
    with pytest.raises(InputError, match="2m_temperature: in degC, the forecast in K"):
        plan_for(forecast, truth, climatology=celsius)
    valid = pd.DatetimeIndex(["2001-05-01"])
    with pytest.raises(InputError, match="expected every day from 1 to 366"):
        climatologies.select(climate.isel(dayofyear=slice(100, None)), valid)
