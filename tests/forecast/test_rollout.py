"""Members are reproducible one by one, inputs are checked before work, and a bad field stops the run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import xarray as xr

import forecast
from data_pipeline.errors import GateError, InputError
from data_pipeline.schema import validate
from forecast.rollout import make_plan, micro_batch, run
from forecast.sinks import MemorySink
from models.crps import CrpsGenerator
from tests import toys


@pytest.fixture(scope="module")
def analysis() -> xr.Dataset:
    return toys.weather()


@pytest.fixture(scope="module")
def generator(analysis: xr.Dataset) -> CrpsGenerator:
    return toys.network(toys.spec_of(analysis, diagnostic=("total_precipitation_12hr",)))


def ensemble(
    generator: CrpsGenerator, analysis: xr.Dataset, rows: Sequence[int], members: int, *, seed: int = 0, days: float = 2
) -> xr.Dataset:
    times = analysis["time"].values[list(rows)]
    return forecast.sample(generator, analysis, times, days=days, members=members, seed=seed)


@pytest.mark.parametrize("size", [1, 4, 33, 50])
def test_member_k_has_the_same_bits_whatever_the_size_of_the_ensemble(
    size: int, generator: CrpsGenerator, analysis: xr.Dataset
) -> None:
    small, large = ensemble(generator, analysis, [5], size), ensemble(generator, analysis, [5], 70)
    for name, array in small.items():
        assert array.values.tobytes() == large[name].isel(number=slice(0, size)).values.tobytes(), name


def test_an_initialisation_has_the_same_bits_alone_and_among_others_in_any_order(
    generator: CrpsGenerator, analysis: xr.Dataset
) -> None:
    alone, among = ensemble(generator, analysis, [9], 3), ensemble(generator, analysis, [20, 9, 4], 3)
    xr.testing.assert_identical(alone.drop_attrs(), among.sel(time=alone["time"]).drop_attrs())


def test_seed_member_and_step_each_change_the_numbers(generator: CrpsGenerator, analysis: xr.Dataset) -> None:
    first, second = (ensemble(generator, analysis, [5], 2, seed=seed)["2m_temperature"].values for seed in (0, 1))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first[:, :, 0], first[:, :, 1])


def test_the_forecast_is_in_the_schema_and_says_where_it_comes_from(generator: CrpsGenerator, analysis: xr.Dataset) -> None:
    made = ensemble(generator, analysis, [5, 7], 2, days=1.5)
    validate(made, "forecast")
    assert (made["prediction_timedelta"].values == np.array([12, 24, 36], "timedelta64[h]")).all()
    assert made.attrs["training_period"] == generator.spec.training_period
    assert made.attrs["seed"] == 0
    assert float(made["total_precipitation_12hr"].min()) >= 0


def test_a_zero_noise_scale_makes_all_members_alike_and_the_checkpoint_s_own_is_the_default(
    generator: CrpsGenerator, analysis: xr.Dataset
) -> None:
    times = analysis["time"].values[[5]]
    plan = make_plan(generator, analysis, times, days=1, members=3, seed=0, noise_scale=0.0)
    sink = MemorySink()
    run(generator, analysis, plan, [sink])
    assert float(sink.dataset["2m_temperature"].std("number").max()) < 1e-4
    generator.provenance = {"noise_scale": 1.2}
    try:
        assert make_plan(generator, analysis, times, days=1, members=3, seed=0).attrs["noise_scale"] == 1.2
    finally:
        del generator.provenance


def test_everything_that_is_missing_is_listed_before_any_work(generator: CrpsGenerator, analysis: xr.Dataset) -> None:
    other = toys.weather(toys.REGION).drop_vars("2m_temperature")
    with pytest.raises(InputError) as caught:
        forecast.sample(generator, other, ["2031-01-01"], days=1, members=1)
    for part in ("regional", "2m_temperature", "2030-12-31T12"):
        assert part in str(caught.value)


def test_the_first_frame_of_an_initialisation_is_needed_too(generator: CrpsGenerator, analysis: xr.Dataset) -> None:
    with pytest.raises(InputError, match="1 of 2 input times are not in the analysis, first 2000-12-31T12"):
        ensemble(generator, analysis, [0], 1)


def test_a_value_that_is_not_finite_stops_the_run_and_names_member_and_lead(analysis: xr.Dataset) -> None:
    broken = toys.network(toys.spec_of(analysis))
    with torch.no_grad():
        broken.net.head.conv.bias[0] = torch.nan
    with pytest.raises(GateError, match=r"member 1, .* at \+12 h \(3 of 3 members"):
        ensemble(broken, analysis, [5], 3)


def test_the_micro_batch_depends_on_the_grid_alone(generator: CrpsGenerator) -> None:
    assert micro_batch(generator.spec) == 32
    assert micro_batch(toys.spec_of(toys.weather(toys.Grid.named("64x32"), steps=6))) == 8
