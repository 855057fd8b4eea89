"""Lagged forecasts: for which times they can be made, and the store of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import open_forecast
from data_pipeline.errors import InputError
from forecast import sample
from forecast.lagged import make_lagged, reachable_times
from tests.toys import network, spec_of, weather
from verification.lagged import valid_at

DAY = np.timedelta64(24, "h").astype("timedelta64[ns]")


def test_a_time_counts_if_every_initialisation_has_its_frames_and_is_fresh() -> None:
    analysis = weather(steps=40)  # twenty days from 2001-01-01, every 12 h
    spec = replace(spec_of(analysis), training_period="2001-01-01/2001-01-03", validation_period="2001-01-04T00/2001-01-05T12")
    times = reachable_times(analysis, spec, (1, 3))
    assert times[0] == np.datetime64("2001-01-09T00")  # three days before it is the first time after validation
    assert times[-1] == analysis["time"].values[-1]
    assert (np.diff(times) == np.timedelta64(12, "h")).all()
    hole = np.datetime64("2001-01-12T00", "ns")
    gap = analysis.isel(time=np.flatnonzero(analysis["time"].values != hole))
    lost = np.setdiff1d(times, reachable_times(gap, spec, (1, 3)))
    needing = [hole + days * DAY + lag for days in (1, 3) for lag in spec.step * np.arange(spec.frames)]
    assert lost.tolist() == sorted(np.array([hole, *needing], "datetime64[ns]").tolist())


def test_no_reachable_time_says_what_there_is() -> None:
    analysis = weather(steps=10)
    with pytest.raises(InputError, match=r"from 1, 7 days before: the analysis has 2001-01-01 00 UTC to 2001-01-05 12 UTC"):
        reachable_times(analysis, replace(spec_of(analysis), training_period="", validation_period=""), (1, 7))


def test_lagged_forecasts_are_the_members_of_their_initialisations(tmp_path: Path) -> None:
    analysis = weather(steps=40)
    generator = network(spec_of(analysis))
    when = analysis["time"].values[20]
    path = make_lagged(generator, analysis, when, (1, 2), tmp_path / "lagged.zarr", members=3, seed=5)
    made = open_forecast(path)
    assert made["time"].values.tolist() == [(when - 2 * DAY).item(), (when - DAY).item()]
    name = next(iter(made.data_vars))
    alone = sample(generator, analysis, [when - 2 * DAY], days=2, members=3, seed=5)
    np.testing.assert_array_equal(made[name].sel(time=when - 2 * DAY).values, alone[name].isel(time=0).values)
    found = valid_at(made, when)
    assert found["prediction_timedelta"].values.tolist() == [DAY.item(), (2 * DAY).item()]
    stamp = path.stat().st_mtime_ns
    assert make_lagged(generator, analysis, when, (1, 2), path, members=3, seed=5) == path
    assert path.stat().st_mtime_ns == stamp
