"""Baselines by their definitions, and the linear one on a system whose predictability is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel, channels_of, select, validate
from forecast import baselines
from forecast.plan import ForecastPlan, plan_dates
from tests.toys import as_analysis, weather

GRID = Grid.named("8x4")
REGION = Grid(np.arange(40, 46.0), np.arange(0, 8.0))
STEP = np.timedelta64(12, "h")
TRAINING, VALIDATION, TEST = ("2001-01-01", "2003-12-31T12"), ("2004-01-01", "2004-06-30"), ("2004-08-01", "2005-07-31")
MEMORY = (0.9, 0.7, 0.5)  # one-step correlation of two rotating pairs of patterns, and of one that only decays
POWER = (2.0, 1.5, 1.0)  # standard deviation of each


@pytest.fixture(scope="module")
def analysis() -> xr.Dataset:
    """Four years on a small globe."""
    return weather(GRID, 4 * 730 + 2)


@pytest.fixture(scope="module")
def rotating() -> xr.Dataset:
    """Five patterns in a first-order autoregression with rotation, on a seasonal cycle: theory gives the error of each lead."""
    rng = np.random.default_rng(1)
    steps = 5 * 731
    turn = [np.exp(0.8j), np.exp(-1.1j)]
    shocks = (rng.normal(size=(steps, 3)) + 1j * rng.normal(size=(steps, 3))) * np.sqrt(1 - np.square(MEMORY))
    shocks[:, 2].imag = 0
    state = np.zeros((steps, 3), complex)
    state[0] = rng.normal(size=3)
    factor = np.array([MEMORY[0] * turn[0], MEMORY[1] * turn[1], MEMORY[2]])
    for i in range(1, steps):
        state[i] = factor * state[i - 1] + shocks[i]
    weights = np.stack([state[:, 0].real, state[:, 0].imag, state[:, 1].real, state[:, 1].imag, state[:, 2].real], axis=1)
    weights *= [POWER[0], POWER[0], POWER[1], POWER[1], POWER[2]]
    fields = np.einsum("tk,kij->tij", weights, patterns())
    fields += 0.01 * rng.normal(size=fields.shape)
    angle = 2 * np.pi * np.arange(steps) / 730.485
    return as_analysis({"2m_temperature": 285 + 8 * np.cos(angle)[:, None, None] + fields}, REGION)


def patterns() -> np.ndarray:
    """Five fields of unit mean square, orthogonal over the points."""
    flat, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(48, 5)))
    return flat.T.reshape(5, *REGION.shape) * np.sqrt(48)


def plan_of(data: xr.Dataset, first: str, count: int, days: float = 2, every: int = 2) -> ForecastPlan:
    times = np.datetime64(first, "ns") + every * STEP * np.arange(count)
    return plan_dates(data, times, days)


@pytest.fixture(scope="module")
def linear(rotating: xr.Dataset) -> xr.Dataset:
    made = baselines.linear(rotating, plan_of(rotating, TEST[0], 360, every=2), TRAINING, VALIDATION, members=20, seed=3)
    return made.compute()


def test_persistence_is_the_analysis_at_every_lead(analysis: xr.Dataset) -> None:
    plan = plan_of(analysis, "2003-05-01", 6, days=10)
    made = baselines.persistence(analysis, plan)
    validate(made, "forecast")
    assert made.sizes["number"] == 1
    assert made.attrs["model"] == "persistence"
    assert made.attrs["training_period"] == ""
    for channel in channels_of(analysis):
        found, start = select(made, channel), select(analysis, channel).sel(time=plan.times)
        assert found.chunks is not None
        for k in range(20):
            np.testing.assert_array_equal(found.values[:, k, 0], start.values)


@pytest.mark.parametrize("window_days", [5, 8])
def test_climatological_members_are_of_the_same_hour_and_season(analysis: xr.Dataset, window_days: int) -> None:
    stamped = analysis[["2m_temperature", "geopotential"]].copy(deep=True)
    hours = ((analysis["time"].values - analysis["time"].values[0]) / np.timedelta64(1, "h")).astype("f4")
    stamped["2m_temperature"][:] = hours[:, None, None]  # each analysis tells its own date
    plan = plan_of(stamped, "2004-12-20", 4, every=1)
    made = baselines.climatology(stamped, plan, TRAINING, window_days)
    validate(made, "forecast")
    assert made["2m_temperature"].chunks is not None
    members = made.sizes["number"]
    assert members >= 30
    assert made.attrs["model"] == f"climatology ({members} members)"
    assert made.attrs["window_days"] == window_days
    assert made.attrs["training_period"] == "2001-01-01T00/2003-12-31T12"
    drawn = made["2m_temperature"].values
    np.testing.assert_array_equal(drawn.min(axis=(3, 4)), drawn.max(axis=(3, 4)))
    for i, time in enumerate(plan.times):
        for k, lead in enumerate(plan.leads):
            valid = pd.Timestamp(time + lead)
            dates = analysis["time"].values[0] + drawn[i, k, :, 0, 0].astype("timedelta64[h]")
            assert len(np.unique(dates)) == members
            assert (dates >= np.datetime64(TRAINING[0])).all()
            assert (dates <= np.datetime64(TRAINING[1])).all()
            for date in pd.DatetimeIndex(dates):
                assert date.hour == valid.hour
                around = [abs(date - valid.replace(year=year)) for year in range(2000, 2006)]
                assert min(around) <= pd.Timedelta(days=window_days)


def test_few_years_widen_the_window_to_thirty_members(analysis: xr.Dataset) -> None:
    made = baselines.climatology(analysis, plan_of(analysis, "2004-03-01", 2), ("2001-01-01", "2001-12-31T12"))
    assert made.sizes["number"] >= 30
    assert made.attrs["window_days"] == 15


@pytest.mark.parametrize("kind", ["climatology", "linear"])
def test_less_than_a_year_of_training_is_too_short(analysis: xr.Dataset, kind: str) -> None:
    plan, short = plan_of(analysis, "2004-03-01", 2), ("2001-01-01", "2001-11-30")
    periods = (short,) if kind == "climatology" else (short, ("2002-01-01", "2002-12-31"))
    with pytest.raises(InputError, match=r"at least one full year.*2001-01-01\.\.2001-11-30"):
        getattr(baselines, kind)(analysis, plan, *periods)


def test_a_short_validation_period_is_refused(analysis: xr.Dataset) -> None:
    with pytest.raises(InputError, match=r"99 analyses in 2004-01-01T00/2004-02-19T00; at least 100"):
        baselines.linear(analysis, plan_of(analysis, "2004-03-01", 2), TRAINING, ("2004-01-01", "2004-02-19T00"))


def test_initialisations_that_the_analysis_lacks_are_counted(analysis: xr.Dataset) -> None:
    plan = plan_of(analysis, "2003-05-01", 6, every=1)
    holed = analysis.drop_sel(time=plan.times[[2, 4]])
    for make in (baselines.persistence, lambda *a: baselines.linear(*a, TRAINING, VALIDATION)):
        with pytest.raises(InputError, match=r"lacks 2 of 6 initialisations, first 2003-05-02T00"):
            make(holed, plan)


def test_leads_between_analyses_are_refused(analysis: xr.Dataset) -> None:
    plan = plan_of(analysis, "2004-03-01", 2)
    odd = ForecastPlan(plan.times, plan.leads + np.timedelta64(6, "h"), (1,), plan.channels, plan.grid)
    with pytest.raises(InputError, match="multiples of the analysis step 12 hours"):
        baselines.linear(analysis, odd, TRAINING, VALIDATION)


@pytest.mark.parametrize(("fault", "message"), [("gap", "missing values"), ("still", "never changes")])
def test_channels_that_cannot_be_regressed_are_named(analysis: xr.Dataset, fault: str, message: str) -> None:
    bad = analysis.copy(deep=True)
    bad["2m_temperature"][:, 0, 0] = np.nan
    if fault == "still":
        bad["2m_temperature"][:] = 280.0
    with pytest.raises(InputError, match=rf"2m_temperature.*{message}"):
        baselines.linear(bad, plan_of(bad, "2004-03-01", 2), TRAINING, VALIDATION)


def theory(lead: int) -> float:
    """Mean squared error of the best forecast `lead` steps ahead: what each pattern has lost of its variance."""
    lost = [power**2 * (1 - memory ** (2 * lead)) for power, memory in zip(POWER, MEMORY, strict=True)]
    return 2 * lost[0] + 2 * lost[1] + lost[2]


def truth_of(data: xr.Dataset, made: xr.Dataset, lead: int) -> np.ndarray:
    return data["2m_temperature"].sel(time=made["time"].values + lead * STEP).values


@pytest.mark.parametrize("lead", [1, 2, 4])
def test_the_linear_baseline_reaches_the_known_predictability(rotating: xr.Dataset, linear: xr.Dataset, lead: int) -> None:
    members = linear["2m_temperature"].values[:, lead - 1]
    error = ((members.mean(axis=1) - truth_of(rotating, linear, lead)) ** 2).mean()
    expected = theory(lead) * (1 + 1 / members.shape[1])
    assert error == pytest.approx(expected, rel=0.08)
    assert error < 0.95 * theory(100)


@pytest.mark.parametrize("lead", [1, 2, 4])
def test_its_spread_matches_its_error(rotating: xr.Dataset, linear: xr.Dataset, lead: int) -> None:
    members = linear["2m_temperature"].values[:, lead - 1]
    error = ((members.mean(axis=1) - truth_of(rotating, linear, lead)) ** 2).mean()
    variance = members.var(axis=1, ddof=1).mean()
    assert np.sqrt((1 + 1 / members.shape[1]) * variance / error) == pytest.approx(1, abs=0.05)


def test_it_beats_persistence_as_far_as_it_should(rotating: xr.Dataset, linear: xr.Dataset) -> None:
    start = rotating["2m_temperature"].sel(time=linear["time"]).values
    held = ((start - truth_of(rotating, linear, 1)) ** 2).mean()
    error = ((linear["2m_temperature"].values[:, 0].mean(axis=1) - truth_of(rotating, linear, 1)) ** 2).mean()
    assert error < 0.6 * held


def test_its_members_keep_the_patterns_of_the_system(linear: xr.Dataset) -> None:
    members = linear["2m_temperature"].isel(time=0, prediction_timedelta=1).values
    anomalies = (members - members.mean(axis=0)).reshape(len(members), -1)
    flat = patterns().reshape(5, -1)
    explained = (anomalies @ flat.T) @ flat / 48
    assert ((anomalies - explained) ** 2).mean() < 1e-3 * (anomalies**2).mean()


def test_fields_outside_the_patterns_are_not_invented(rotating: xr.Dataset) -> None:
    model = baselines.fit_linear(rotating, [Channel("2m_temperature")], [1, 2], TRAINING, VALIDATION)
    np.testing.assert_allclose(model.eofs @ model.eofs.T, np.eye(len(model.eofs)), atol=1e-4)
    leading = model.eofs[:5].reshape(5, -1) / model.scale
    flat = patterns().reshape(5, -1)
    outside = leading - (leading @ flat.T) @ flat / 48
    assert (outside**2).sum() < 1e-3 * (leading**2).sum()
    winter, summer = model.season_at(np.array(["2004-01-01", "2004-07-01"], "datetime64[ns]")) / model.scale
    assert (winter - summer).mean() == pytest.approx(16, abs=0.5)


def options(**changes: Any) -> dict[str, Any]:
    return {"members": 8, "seed": 3, **changes}


def test_members_depend_on_seed_date_and_number_alone(rotating: xr.Dataset) -> None:
    plan = plan_of(rotating, TEST[0], 3)
    made = baselines.linear(rotating, plan, TRAINING, VALIDATION, **options())
    whole = made.compute()
    xr.testing.assert_identical(baselines.linear(rotating, plan, TRAINING, VALIDATION, **options()).compute(), whole)
    xr.testing.assert_identical(made.isel(time=[2]).compute(), whole.isel(time=[2]))
    later = plan_of(rotating, str(plan.times[1]), 2)
    fewer = baselines.linear(rotating, later, TRAINING, VALIDATION, **options(members=4)).compute()
    np.testing.assert_array_equal(fewer["2m_temperature"].values, whole["2m_temperature"].values[1:, :, :4])
    other = baselines.linear(rotating, plan, TRAINING, VALIDATION, **options(seed=4)).compute()
    assert (other["2m_temperature"].values != whole["2m_temperature"].values).mean() > 0.9


def test_it_is_lazy_and_in_the_forecast_schema(analysis: xr.Dataset) -> None:
    plan = plan_of(analysis, "2004-08-01", 4)
    made = baselines.linear(analysis, plan, TRAINING, VALIDATION, **options())
    validate(made, "forecast")
    assert channels_of(made) == channels_of(analysis)
    assert made.sizes["number"] == 8
    assert made["geopotential"].dims == ("time", "prediction_timedelta", "number", "level", "latitude", "longitude")
    for array in made.data_vars.values():
        assert array.chunks is not None
        assert array.chunks[0] == (1, 1, 1, 1)
        assert np.isfinite(array.isel(time=0).values).all()
    assert made.attrs["model"].startswith("linear (")
    assert made.attrs["validation_period"] == "2004-01-01T00/2004-06-30T00"
    assert made.attrs["seed"] == 3
    assert made.attrs["source"] == "a toy world"


def test_levels_that_a_variable_lacks_stay_missing(analysis: xr.Dataset) -> None:
    mixed = analysis[["geopotential"]].reindex(level=[500, 850])
    mixed["temperature"] = mixed["geopotential"].fillna(1.0).assign_attrs(units="K", levels_available=[500, 850])
    mixed["geopotential"].attrs["levels_available"] = [500]
    made = baselines.persistence(mixed, plan_of(mixed, "2003-05-01", 2))
    validate(made, "forecast")
    assert channels_of(made) == channels_of(mixed)
    assert np.isnan(made["geopotential"].sel(level=850).values).all()
    np.testing.assert_array_equal(made["temperature"].sel(level=850).values, 1.0)
