"""What is left to do, counted before it is done."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.schema import Channel
from forecast import intention
from forecast.intention import Work
from forecast.plan import ForecastPlan
from tests.toys import GLOBE

STEP = np.timedelta64(12, "h")


@pytest.fixture
def plan() -> ForecastPlan:
    """Two initialisations, leads of 24, 48 and 72 h in steps of 12 h, three members, one field."""
    times = np.array(["2001-01-06", "2001-01-07"], "datetime64[ns]")
    return ForecastPlan(times, 2 * STEP * np.arange(1, 4), (1, 2, 3), (Channel("2m_temperature"),), GLOBE, {"model": "m"})


def work(plan: ForecastPlan, held: np.ndarray, states: bool = False) -> Work:
    return Work(plan, held, STEP, None, 0, states)


def test_all_of_a_plan(plan: ForecastPlan) -> None:
    whole = work(plan, np.zeros((2, 3, 3), bool))
    assert whole.passes == 2 * 3 * 6
    assert whole.bytes == plan.bytes
    assert whole.times.tolist() == plan.times.tolist()
    assert not whole.goes_on
    done = work(plan, np.ones((2, 3, 3), bool))
    assert (done.passes, done.bytes, done.is_done, done.times.size) == (0, 0, True, 0)


def test_leads_that_are_added_with_and_without_states(plan: ForecastPlan) -> None:
    held = np.zeros((2, 3, 3), bool)
    held[0, :2] = True  # the first initialisation lacks its last lead
    held[1] = True
    assert work(plan, held).passes == 3 * 6, "from the start"
    assert work(plan, held, states=True).passes == 3 * 2, "from 48 h"
    assert work(plan, held).goes_on
    assert work(plan, held).bytes == 3 * GLOBE.areas.size * 4
    assert work(plan, held).times.tolist() == plan.times[:1].tolist()


@pytest.mark.parametrize(("seconds", "text"), [(4.24, "4.2 s"), (600.0, "10 min"), (9000.0, "2.5 h")])
def test_times_are_said_as_a_person_would(seconds: float, text: str) -> None:
    assert intention._time(seconds) == f"about {text}, from 3 steps measured just now (sampling only)"
    assert intention._time(float("nan")) == "not measured"
