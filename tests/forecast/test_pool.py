"""Pools of forecasts: members keep their bits and their origin, shares follow the weights, what differs is told at once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import plumecast
from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.schema import Channel, validate
from data_pipeline.store import open_store, verify_store, write_dataset
from data_pipeline.templates import forecast_dataset
from forecast import pool as pooling
from forecast.pool import largest_remainders, plan_pool, write_pool
from forecast.rollout import sample
from models.checkpoint import build
from models.contract import Generator
from tests import toys

TIMES = np.array(["2007-01-01", "2007-01-11", "2007-01-21"], "datetime64[ns]")
LEADS = (np.arange(1, 5) * np.timedelta64(12, "h")).astype("timedelta64[ns]")
CHANNELS = (Channel("geopotential", 500), Channel("temperature", 850), Channel("2m_temperature"))
GRID = Grid.named("8x4")


def a_forecast(
    draw: int, members: int, *, times: np.ndarray = TIMES, leads: np.ndarray = LEADS, channels: tuple[Channel, ...] = CHANNELS,
    grid: Grid = GRID, first: int = 1, **attrs: object,
) -> xr.Dataset:  # fmt: skip
    shape = (times.size, leads.size, members, len(channels), *grid.shape)
    fields = np.random.default_rng(draw).normal(size=shape).astype("f4")
    data = forecast_dataset(fields, times, leads, list(range(first, first + members)), channels, grid)
    about = {"model": f"model {draw}", "seed": 0, "checkpoint_sha256": f"sha{draw}", "training_period": f"200{draw}/2005"}
    return data.assign_attrs({**about, **attrs})


def test_every_member_keeps_its_bits_and_names_its_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forecast.plan.BATCH_POINTS", 4 * 32)  # chunks of four members
    monkeypatch.setattr("forecast.plan.CHUNK_BYTES", 3 * 4 * 32 * 4)  # and of three leads
    parts = {"a": a_forecast(1, 5), "b": a_forecast(2, 6, first=11), "c": a_forecast(3, 4)}
    plan = plan_pool(list(parts.values()), list(parts), weights=[4, 3, 2], members=9)
    assert plan.shares == (4, 3, 2)
    made = open_store(write_pool(plan, tmp_path / "pool.zarr"))
    assert not verify_store(tmp_path / "pool.zarr")
    validate(made, "forecast")
    assert made["geopotential"].encoding["chunks"][:3] == (1, 3, 4)
    assert made["number"].values.tolist() == list(range(1, 10))
    for k in range(9):
        name, number = str(made["pooled_from"].values[k]), int(made["pooled_number"].values[k])
        for variable in ("geopotential", "temperature", "2m_temperature"):
            own = parts[name][variable].sel(number=number).values
            np.testing.assert_array_equal(made[variable].isel(number=k).values.view("u4"), own.view("u4"))
    taken = list(zip(made["pooled_from"].values.tolist(), made["pooled_number"].values.tolist(), strict=True))
    assert sorted(taken) == [*(("a", k) for k in (1, 2, 3, 4)), *(("b", k) for k in (11, 12, 13)), ("c", 1), ("c", 2)]
    told = json.loads(made.attrs["pooled"])
    assert [each["weight"] for each in told] == [0.444444, 0.333333, 0.222222]
    assert [each["members"] for each in told] == [4, 3, 2]
    assert made.attrs["model"] == "4 a + 3 b + 2 c"
    assert made.attrs["training_period"] == "2001/2005"


@given(st.lists(st.integers(1, 30), min_size=2, max_size=5))
@settings(max_examples=60, deadline=None)
def test_every_first_part_is_balanced(shares: list[int]) -> None:
    """After n members each forecast has n times its weight, to one member or a little more where there are several."""
    one = a_forecast(1, 1)
    plan = pooling.Pool((one,) * len(shares), ("",) * len(shares), (), tuple(shares), TIMES, LEADS, CHANNELS, GRID)
    weights = np.array(shares) / sum(shares)
    counts = np.cumsum(np.eye(len(shares))[[part for part, _ in plan.order]], axis=0)
    off = np.abs(counts - np.arange(1, sum(shares) + 1)[:, None] * weights)
    assert off.max() <= max(1.0, len(shares) / 2)
    assert counts[-1].tolist() == shares
    for part in range(len(shares)):
        assert [place for other, place in plan.order if other == part] == list(range(shares[part]))


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6), st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_shares_are_whole_and_within_one_of_the_weights(weights: list[float], total: int) -> None:
    normed = [weight / sum(weights) for weight in weights]
    shares = largest_remainders(normed, total)
    assert sum(shares) == total
    assert all(abs(share - weight * total) < 1 + 1e-6 for share, weight in zip(shares, normed, strict=True))


def test_known_shares() -> None:
    assert largest_remainders([0.5, 0.25, 0.25], 50) == (25, 13, 12)  # the first of equal remainders
    assert largest_remainders([1 / 3, 1 / 3, 1 / 3], 50) == (17, 17, 16)


def test_without_a_size_the_weights_take_as_many_as_they_can() -> None:
    forecasts = [a_forecast(1, 10), a_forecast(2, 4)]
    assert plan_pool(forecasts, ["a", "b"]).shares == (10, 4)
    assert plan_pool(forecasts, ["a", "b"]).weights == pytest.approx((10 / 14, 4 / 14))
    assert plan_pool(forecasts, ["a", "b"], weights=[1, 1]).shares == (5, 4)
    assert plan_pool(forecasts, ["a", "b"], weights=[3, 1]).shares == (10, 3)
    assert plan_pool(forecasts, ["a", "b"], members=6).shares == (3, 3)


def test_all_that_differs_is_told_at_once_and_what_is_common_can_be_pooled(tmp_path: Path) -> None:
    late = TIMES + np.timedelta64(10, "D")
    other = a_forecast(2, 3, times=late, leads=LEADS[:2], channels=(*CHANNELS[1:], Channel("geopotential", 850)))
    with pytest.raises(InputError) as caught:
        plan_pool([a_forecast(1, 3), other], ["a", "b"])
    for part in (
        "initialisations: a has 1 that not all have (2007-01-01T00)", "initialisations: b has 1",
        "leads: a has 2 that not all have (+36 h, +48 h)", "fields: a has 1 that not all have (geopotential_500)",
        "fields: b has 1 that not all have (geopotential_850)",
    ):  # fmt: skip
        assert part in str(caught.value)
    plan = plan_pool([a_forecast(1, 3), other], ["a", "b"], common=True)
    made = open_store(write_pool(plan, tmp_path / "pool.zarr"))
    assert dict(made.sizes) == {
        "time": 2, "prediction_timedelta": 2, "number": 6, "level": 1, "latitude": 4, "longitude": 8,
    }  # fmt: skip
    np.testing.assert_array_equal(
        made["temperature"].isel(number=1), other["temperature"].sel(level=[850]).isel(time=[0, 1], number=0)
    )


def test_what_can_never_be_pooled() -> None:
    one = a_forecast(1, 3)
    fine = a_forecast(2, 3, grid=Grid.named("16x8"))
    with pytest.raises(InputError, match="grid: a is on 8x4 global.*b on 16x8 global"):
        plan_pool([one, fine], ["a", "b"], common=True)
    with pytest.raises(InputError, match="a and b are the same members"):
        plan_pool([one, a_forecast(1, 5)], ["a", "b"])
    plan_pool([one, a_forecast(1, 5, first=4)], ["a", "b"])  # more members of the same
    plan_pool([one, a_forecast(1, 5, seed=1)], ["a", "b"])
    with pytest.raises(InputError, match="b has 3 members; its share of 8 is 4"):
        plan_pool([a_forecast(1, 9), a_forecast(2, 3)], ["a", "b"], members=8)
    with pytest.raises(InputError, match="b would have no member of 2"):
        plan_pool([a_forecast(1, 9), a_forecast(2, 3)], ["a", "b"], weights=[20, 1], members=2)
    with pytest.raises(InputError, match="expected one above 0 for each of 2 forecasts"):
        plan_pool([one, a_forecast(2, 3)], ["a", "b"], weights=[1, 0])


def test_a_killed_pool_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_pool([a_forecast(1, 2), a_forecast(2, 2)], ["a", "b"])
    whole = open_store(write_pool(plan, tmp_path / "whole.zarr"))
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pool(plan, tmp_path / "again.zarr", stop)
    assert not (tmp_path / "again.zarr").exists()
    blocks: list[str] = []
    real = pooling._block
    monkeypatch.setattr(pooling, "_block", lambda plan, name, *rest: blocks.append(name) or real(plan, name, *rest))
    write_pool(plan, tmp_path / "again.zarr")
    assert len(blocks) == 3  # the three variables of the last initialisation
    xr.testing.assert_identical(open_store(tmp_path / "again.zarr").load(), whole.load())
    with pytest.raises(InputError, match="another recipe"):
        write_pool(plan_pool([a_forecast(1, 2), a_forecast(2, 2)], ["a", "b"], members=2), tmp_path / "again.zarr")


def test_the_command_pools_and_shows_the_shares(tmp_path: Path) -> None:
    for name, seed, members in (("a", 1, 6), ("b", 2, 4)):
        write_dataset(tmp_path / f"{name}.zarr", a_forecast(seed, members))
    words = ["pool", str(tmp_path / "a.zarr"), str(tmp_path / "b.zarr"), "--weight", "0.75", "--weight", "0.25"]
    out = tmp_path / "pool.zarr"
    dry = CliRunner().invoke(plumecast.application(), [*words, "--members", "8", "--out", str(out), "--dry-run"])
    assert "6 of 6 members of a: 0.750 (weight 0.750)" in dry.output
    assert not out.exists()
    done = CliRunner().invoke(plumecast.application(), [*words, "--members", "8", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert open_store(out).sizes["number"] == 8


def generators(data: xr.Dataset) -> list[Generator]:
    """Toys of the three families on the same fields, all with random weights."""
    crps = toys.spec_of(data)
    spec = replace(crps, family="vae", options={**crps.options, "encoder_width": 8, "encoder_layers": 1})
    sizes = {"ae_widths": (8, 8), "ae_blocks": (0, 1), "latents": 12, "bands": 2, "width": 32, "dual": 1, "single": 1}
    options = {**sizes, "conditioning": 16, "levels": 2}
    made = [build(each).eval() for each in (crps, spec, replace(crps, family="latent_diffusion", options=options))]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for generator in made:
            for value in generator.parameters():
                value.add_(0.1 * torch.randn_like(value))
    return made


def test_one_forecast_of_three_families_with_equal_weights_or_repeated_ones() -> None:
    """Member k is made by number (k - 1) mod J of J: the same as alone. A checkpoint named twice has twice the weight."""
    data = toys.weather(steps=12)
    crps, vae, diffusion = generators(data)
    time = data["time"].values[[5]]
    made = sample([crps, vae, diffusion], data, time, days=0.5, members=6)
    assert made.attrs["model"] == "1 crps + 1 vae + 1 latent_diffusion"
    np.testing.assert_allclose(made.attrs["checkpoint_weights"], [1 / 3] * 3, atol=1e-6)
    assert made.attrs["initial_state"] == "one analysis; members of vae perturbed by its prior at lead 0"
    for part, generator in enumerate((crps, vae, diffusion)):
        alone = sample(generator, data, time, days=0.5, members=6)
        for number in (1 + part, 4 + part):
            xr.testing.assert_allclose(made.sel(number=number), alone.sel(number=number), rtol=1e-5)
        assert "checkpoint_weights" not in alone.attrs
    assert float(made["geopotential"].std("number").min()) > 0
    double = sample([crps, crps, vae], data, time, days=0.5, members=6)
    assert double.attrs["checkpoint_weights"] == [0.333333] * 3
    assert double.attrs["model"] == "2 crps + 1 vae"


def test_the_forecast_says_whether_a_checkpoint_perturbs_its_initial_state() -> None:
    data = toys.weather(steps=12)
    crps, vae, _ = generators(data)
    still = build(replace(vae.spec, options={**vae.spec.options, "perturb_initial": False})).eval()
    said = [
        sample(generator, data, data["time"].values[[5]], days=0.5, members=1).attrs["initial_state"]
        for generator in (crps, vae, still)
    ]
    assert said == [
        "one analysis, all members alike", "one analysis; members of vae perturbed by its prior at lead 0",
        "one analysis, all members alike",
    ]  # fmt: skip
