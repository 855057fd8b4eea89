"""A part of a forecast is the same part of the whole one, bit for bit; what it does not have is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import xarray as xr

import forecast
from data_pipeline.errors import GateError, InputError
from data_pipeline.region import cut
from data_pipeline.schema import validate
from forecast.plan import ForecastPlan
from forecast.sinks import MemorySink
from forecast.subset import subset
from models.crps import CrpsGenerator
from tests.toys import network, spec_of, weather

RAIN = "total_precipitation_12hr"


@pytest.fixture(scope="module")
def analysis() -> xr.Dataset:
    return weather(steps=40)


@pytest.fixture(scope="module")
def generator(analysis: xr.Dataset) -> CrpsGenerator:
    return network(spec_of(analysis, diagnostic=(RAIN,)))


@pytest.fixture(scope="module")
def plan(generator: CrpsGenerator, analysis: xr.Dataset) -> ForecastPlan:
    return forecast.make_plan(generator, analysis, analysis["time"].values[[10]], days=2, members=3, seed=0)


@pytest.fixture(scope="module")
def whole(generator: CrpsGenerator, analysis: xr.Dataset, plan: ForecastPlan) -> xr.Dataset:
    return made(generator, analysis, plan)


def made(generator: CrpsGenerator, analysis: xr.Dataset, plan: ForecastPlan) -> xr.Dataset:
    sink = MemorySink()
    forecast.run(generator, analysis, plan, [sink])
    return sink.dataset


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"variables": ["2m_temperature", "geopotential"]}, lambda f: f[["geopotential", "2m_temperature"]]),
        ({"variables": [RAIN]}, lambda f: f[[RAIN]]),
        ({"hours": [24, 48]}, lambda f: f.isel(prediction_timedelta=[1, 3])),
        ({"region": (-50, 70, -40, 60)}, lambda f: cut(f, (-40, 60, -50, 70))),
        ({"region": (310, 70, -40, 60), "hours": [12]}, lambda f: cut(f, (-40, 60, 310, 430)).isel(prediction_timedelta=[0])),
    ],
    ids=["variables", "a surface variable", "leads", "over Greenwich", "over Greenwich from 310 E"],
)
def test_a_part_is_that_part_of_the_whole(
    generator: CrpsGenerator, analysis: xr.Dataset, plan: ForecastPlan, whole: xr.Dataset, chosen: Any, expected: Any
) -> None:
    found = made(generator, analysis, subset(plan, **chosen))
    validate(found, "forecast")
    xr.testing.assert_identical(found.drop_attrs(), expected(whole).drop_attrs())


def test_chosen_members_are_those_of_the_whole(generator: CrpsGenerator, analysis: xr.Dataset, whole: xr.Dataset) -> None:
    few = forecast.make_plan(generator, analysis, analysis["time"].values[[10]], days=2, members=[3, 2], seed=0)
    assert few.members == (2, 3)
    xr.testing.assert_identical(made(generator, analysis, few).drop_attrs(), whole.sel(number=[2, 3]).drop_attrs())


def test_only_wanted_leads_are_decoded(
    generator: CrpsGenerator, analysis: xr.Dataset, plan: ForecastPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    plain = generator.fields

    def counted(state: Any) -> torch.Tensor:
        calls.append(1)
        return plain(state)

    monkeypatch.setattr(generator, "fields", counted)
    made(generator, analysis, subset(plan, hours=[36]))
    assert len(calls) == 1


def test_everything_that_is_not_there_is_named_at_once(plan: ForecastPlan) -> None:
    with pytest.raises(InputError) as error:
        subset(plan, variables=["snow"], levels=[850], hours=[13], region=(5, 6, 80, 60))
    text = str(error.value)
    assert "--variable snow: the forecast has" in text
    assert "--level 850: the forecast has 500" in text
    assert "--output-lead 13: the forecast has 12, 24, 36, 48" in text
    assert "--region 5,6,80,60: " in text
    assert "expected -90 <= south < north <= 90" in text
    with pytest.raises(InputError, match="holds 1 latitudes"):
        subset(plan, region=(0, 90, 0, 20))


def test_a_value_that_is_not_finite_is_found_where_nobody_looks(
    generator: CrpsGenerator, analysis: xr.Dataset, plan: ForecastPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = generator.fields

    def broken(state: Any) -> torch.Tensor:
        fields = plain(state).clone()
        fields[1, 0, 0, 0] = torch.nan
        return fields

    monkeypatch.setattr(generator, "fields", broken)
    with pytest.raises(GateError, match=r"member 2, geopotential_500 not finite at \+12 h"):
        made(generator, analysis, subset(plan, variables=["2m_temperature"], region=(0, 90, 0, 80)))
