"""Lead intervals: one model steps 12 h or 24 h, each in its own units, from frames as far apart, all through a roll-out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

import plumecast
from data_pipeline.errors import InputError
from data_pipeline.schema import channels_of, stack
from data_pipeline.store import write_dataset
from forecast.rollout import sample as forecast
from models.checkpoint import build, load, save
from models.contract import Generator, Sample, Spec, Stage, flat_noise_size
from models.curriculum import TrainingOptions
from models.recipe import model_section, plan_training
from models.training import train
from tests.toys import GLOBE, advection, network, period, samples_of, spec_of, weather

RAIN = "total_precipitation_12hr"
HOURS = (12, 24)
SPACING = [np.timedelta64(hours, "h") for hours in HOURS]


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return weather()


@pytest.fixture(scope="module")
def spec(data: xr.Dataset) -> Spec:
    return spec_of(data, diagnostic=(RAIN,), intervals=HOURS)


def batch(data: xr.Dataset, spec: Spec, hours: list[int], steps: int = 2) -> Sample:
    apart = np.array(hours) * np.timedelta64(1, "h")
    found = samples_of(data, spec).batch(np.arange(10, 10 + len(hours)), steps, apart)
    return Sample(*(torch.from_numpy(x) for x in (found.frames, found.targets, found.forcings, np.array(hours))))


def noise_for(generator: Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, flat_noise_size(generator.noise_shapes()), generator=torch.Generator().manual_seed(0))


def recipe(data: xr.Dataset, **model: Any) -> dict[str, Any]:
    stage = {"name": "one", "iterations": 1, "batch": 1, "rate": 1e-3, "final_rate": 1e-3}
    periods = {"training": list(period(data, 0, 59)), "validation": list(period(data, 60))}
    return {"name": "job", "periods": periods, "model": {"diagnostic": [RAIN], **model}, "training": {"stages": [stage]}}


@pytest.mark.parametrize("given", [["12h", "24h"], ["24h", "12h", "24h"]])
def test_a_recipe_names_the_intervals_and_each_gets_its_tendency_std(data: xr.Dataset, given: list[str]) -> None:
    spec, _, training, _ = plan_training(recipe(data, intervals=given), data)
    assert spec.intervals == HOURS
    assert training.step == np.timedelta64(12, "h")
    assert spec.tendency_stds[0] == spec.tendency_std
    values = stack(data.isel(time=slice(0, 60)), channels_of(data)).values.astype(np.float64)
    values[:, spec.channels.index(RAIN)] = np.log1p(values[:, spec.channels.index(RAIN)] / 1e-3)
    for apart, row in zip((1, 2), spec.tendency_stds, strict=True):
        change = values[apart:] - values[:-apart]
        mean = (change * GLOBE.area_weights).mean((0, 2, 3), keepdims=True)
        np.testing.assert_allclose(row, np.sqrt(((change - mean) ** 2 * GLOBE.area_weights).mean((0, 2, 3))), rtol=1e-5)


def test_one_interval_alone_is_the_step(data: xr.Dataset) -> None:
    spec, *_ = plan_training(recipe(data, intervals=["12h"]), data)
    plain, *_ = plan_training(recipe(data), data)
    assert spec == plain
    assert (spec.intervals, spec.tendency_stds) == ((), ())


def test_a_model_whose_step_is_longer_than_the_analysis_has_the_tendency_std_of_its_own_step() -> None:
    data = weather(steps=120, step_hours=6)
    spec, *_ = plan_training(recipe(data, step="12h"), data)
    change = data["2m_temperature"].values[:60].astype(np.float64)
    change = change[2:] - change[:-2]
    change -= (change * GLOBE.area_weights).mean()
    expected = np.sqrt((change**2 * GLOBE.area_weights).mean())
    assert spec.tendency_std[spec.channels.index("2m_temperature")] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"intervals": ["24h", "48h"]}, "the shortest must be the step, 12h"),
        ({"intervals": ["12h", "1.5d"]}, "expected whole hours"),
        ({"intervals": ["12h", 24]}, "model.intervals.1"),
    ],
)
def test_intervals_that_do_not_fit_are_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model_section({"name": "job", "model": model})


def test_intervals_that_the_analysis_cannot_give_are_refused(data: xr.Dataset) -> None:
    with pytest.raises(InputError, match="steps of \\[18\\] h are no whole multiples of the analysis step, 12 h"):
        plan_training(recipe(data, intervals=["12h", "18h"]), data)


def test_the_interval_reaches_the_network_as_one_of_several(spec: Spec) -> None:
    increments = build(spec).increments
    (given,) = increments.interval(torch.tensor([24, 12, 24]), 3)
    assert given.tolist() == [[0, 1], [1, 0], [0, 1]]
    (own,) = increments.interval(None, 2)
    assert own.tolist() == [[1, 0], [1, 0]]


@torch.no_grad()
def test_a_step_speaks_in_units_of_the_tendency_of_its_interval(data: xr.Dataset, spec: Spec) -> None:
    generator, sample = build(spec), batch(data, spec, [24, 12])
    generator.net.head.conv.bias.fill_(1.0)
    noise = noise_for(generator, 2)
    start = generator.initial(sample.frames, sample.forcings[:, 0], noise)._replace(hours=sample.hours)
    new = generator.step(start, sample.forcings[:, 0], noise)
    assert torch.equal(new.hours, sample.hours)
    change = (new.frames[:, -1] - sample.frames[:, -1]).mean((-2, -1))
    for i, label in enumerate(spec.channels):
        if label != RAIN:
            expected = [spec.tendency_stds[k][i] / spec.std[i] for k in (1, 0)]
            np.testing.assert_allclose(change[:, i], expected, rtol=1e-4)


def test_a_batch_of_several_intervals_is_the_mean_of_its_samples(data: xr.Dataset, spec: Spec) -> None:
    generator, sample = network(spec), batch(data, spec, [24, 12, 24])
    noise, stage = noise_for(generator, 2, 3, 3), Stage(rollout=2)
    whole = float(generator.loss(sample, noise, stage).total.detach())
    single = []
    for i, hours in enumerate((24, 12, 24)):
        own = Sample(*(x[i : i + 1] for x in sample))
        assert own.hours.tolist() == [hours]
        single.append(float(generator.loss(own, noise[:, i : i + 1], stage).total.detach()))
    assert whole == pytest.approx(np.mean(single), rel=1e-5)
    forgotten = float(generator.loss(sample._replace(hours=None), noise, stage).total.detach())
    assert abs(forgotten - whole) > 1e-3 * whole


@pytest.fixture
def saved(spec: Spec, tmp_path: Path) -> Path:
    return save(tmp_path / "checkpoint.safetensors", spec, network(spec).state_dict(), {})


def test_a_checkpoint_opens_at_any_interval_that_it_learned(saved: Path, spec: Spec) -> None:
    shortest, longer = load(saved), load(saved, step_hours=24)
    assert shortest.spec == load(saved, step_hours=12).spec
    assert (shortest.spec.step_hours, shortest.spec.tendency_std) == (12, spec.tendency_stds[0])
    assert (longer.spec.step_hours, longer.spec.tendency_std) == (24, spec.tendency_stds[1])
    assert longer.sha256 == shortest.sha256
    for name, value in shortest.state_dict().items():
        assert torch.equal(longer.state_dict()[name], value)


def test_an_interval_that_it_did_not_learn_is_refused(saved: Path, data: xr.Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="steps 12 or 24 h; asked for 6 h: train it with that among model.intervals"):
        load(saved, step_hours=6)
    plain = spec_of(data)
    path = save(tmp_path / "plain.safetensors", plain, network(plain).state_dict(), {})
    assert load(path, step_hours=12).spec == load(path).spec
    with pytest.raises(InputError, match="steps 12 h; asked for 24 h"):
        load(path, step_hours=24)


@torch.no_grad()
def test_a_forecast_steps_the_interval_from_frames_as_far_apart(saved: Path, data: xr.Dataset) -> None:
    made = forecast(load(saved, step_hours=24), data, [data["time"].values[11]], days=3, members=2)
    assert (made["prediction_timedelta"].values / np.timedelta64(1, "h")).tolist() == [24, 48, 72]
    changed = data.copy(deep=True)
    changed["2m_temperature"][10] += 5  # 12 h before the initialisation: no frame of a step of 24 h
    again = forecast(load(saved, step_hours=24), changed, [data["time"].values[11]], days=3, members=2)
    xr.testing.assert_equal(again["2m_temperature"], made["2m_temperature"])
    changed["2m_temperature"][9] += 5
    other = forecast(load(saved, step_hours=24), changed, [data["time"].values[11]], days=3, members=2)
    assert not other["2m_temperature"].equals(made["2m_temperature"])


def test_the_command_line_steps_another_interval(saved: Path, data: xr.Dataset, tmp_path: Path) -> None:
    write_dataset(tmp_path / "analysis.zarr", data)
    words = ["forecast", str(tmp_path / "analysis.zarr"), "--checkpoint", str(saved), "--dry-run", "--init", "2001-01-10"]
    for step, leads in (("12h", 6), ("24h", 3)):
        result = CliRunner().invoke(plumecast.application(), [*words, "--days", "3", "--step", step], catch_exceptions=False)
        assert f"x {leads} leads" in result.output
    with pytest.raises(InputError, match="--step '1d': expected whole hours, as 12h or 24h"):
        CliRunner().invoke(plumecast.application(), [*words, "--step", "1d"], catch_exceptions=False)


def test_training_on_both_intervals_teaches_both(tmp_path: Path) -> None:
    """A world that moves one column in 12 h: two columns in 24 h, with the same weights."""
    data = advection(80)
    first, last = period(data, 0, 59), period(data, 60)
    spec = spec_of(data, first, last, forcings=(), intervals=HOURS, noise=1, local_noise=0)
    stage = {"name": "mae", "iterations": 120, "batch": 4, "members": 1, "noise": False, "rate": 1e-2, "final_rate": 1e-3}
    chosen = {"stages": [stage], "validate_every": 120, "validation_inits": 2, "validation_members": 2, "validation_steps": 1}
    options = TrainingOptions.model_validate({**chosen, "ema": 0.9})
    samples = [samples_of(data, spec, inside) for inside in (first, last)]
    path = train(spec, options, *samples, tmp_path, provenance={})
    for hours, apart in zip(HOURS, SPACING, strict=True):
        generator = load(path, step_hours=hours)
        found = samples[1].batch(samples[1].starts(1, apart)[:4], 1, apart)
        frames, targets, forcings = (torch.from_numpy(x) for x in (found.frames, found.targets, found.forcings))
        with torch.no_grad():
            noise = torch.zeros(4, flat_noise_size(generator.noise_shapes()))
            new = generator.fields(generator.step(generator.initial(frames, forcings[:, 0], noise), forcings[:, 0], noise))
        error, change = ((new - targets[:, 0]).abs().mean(), (frames[:, -1] - targets[:, 0]).abs().mean())
        assert error < 0.4 * change
