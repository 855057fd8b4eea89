"""The roll-out: member k is member k, leads and forcings are where they belong, and inputs are checked before anything runs."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import forecast
from data_pipeline.errors import GateError, InputError, PlumecastError
from data_pipeline.forcings import Forcings
from data_pipeline.grid import Grid
from data_pipeline.schema import validate
from forecast import noise, rollout, sampler
from forecast.boundary import Boundary
from forecast.initial_states import InitialStates
from forecast.members import MicroBatch, share
from forecast.plan import ForecastPlan
from models.checkpoint import build
from models.contract import Generator
from models.crps import CrpsGenerator
from tests.toys import GLOBE, REGION, ensemble_of, network, period, spec_of, weather

RAIN = "total_precipitation_12hr"


@pytest.fixture(scope="module")
def analysis() -> xr.Dataset:
    return weather(steps=60)


@pytest.fixture(scope="module")
def generator(analysis: xr.Dataset) -> CrpsGenerator:
    return network(spec_of(analysis, diagnostic=(RAIN,)))


@pytest.fixture(scope="module")
def times(analysis: xr.Dataset) -> np.ndarray:
    return analysis["time"].values[[10, 25, 40]]


def same(one: xr.Dataset, other: xr.Dataset) -> bool:
    """Bit for bit."""
    return all(one[name].values.tobytes() == other[name].values.tobytes() for name in one.data_vars)


def test_a_forecast_satisfies_the_schema_and_names_what_it_is(
    generator: CrpsGenerator, analysis: xr.Dataset, times: np.ndarray
) -> None:
    made = forecast.sample(generator, analysis, times, days=2, members=3, seed=4)
    validate(made, "forecast")
    assert made["prediction_timedelta"].values.tolist() == [h * 3600 * 10**9 for h in (12, 24, 36, 48)]
    assert made["number"].values.tolist() == [1, 2, 3]
    assert (made["valid_time"].values[1] == times[1] + made["prediction_timedelta"].values).all()
    assert (made.attrs["seed"], made.attrs["boundary"], made.attrs["source"]) == (4, "none", "a toy world")
    assert made.attrs["training_period"] == generator.spec.training_period
    assert (made[RAIN] >= 0).all()


@pytest.mark.parametrize("grid", [GLOBE, REGION], ids=["globe", "region"])
def test_member_k_is_the_same_in_ensembles_of_1_4_33_and_50(grid: Grid) -> None:
    data = weather(grid, steps=20)
    made = network(spec_of(data))
    sizes = {m: forecast.sample(made, data, data["time"].values[[5]], days=1.5, members=m) for m in (1, 4, 33, 50)}
    assert all(same(few, sizes[50].sel(number=few["number"])) for few in sizes.values())
    assert float(sizes[50]["2m_temperature"].std("number").min()) > 0


def test_a_forecast_does_not_depend_on_the_others_or_their_order(
    generator: CrpsGenerator, analysis: xr.Dataset, times: np.ndarray
) -> None:
    together = forecast.sample(generator, analysis, times[::-1], days=1, members=3)
    for time in times:
        alone = forecast.sample(generator, analysis, [time], days=1, members=3)
        assert same(alone, together.sel(time=[time]))
    longer = forecast.sample(generator, analysis, times[:1], days=2, members=3)
    assert same(together.sel(time=times[:1]), longer.isel(prediction_timedelta=slice(2)))


def test_rows_that_pad_a_batch_leave_no_trace(
    generator: CrpsGenerator, analysis: xr.Dataset, times: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = forecast.sample(generator, analysis, times[:1], days=1, members=3)
    plain = MicroBatch._noise

    def littered(self: MicroBatch, *address: Any) -> torch.Tensor:
        rows = plain(self, *address)
        rows[len(self.members) :] = 7.0
        return rows

    monkeypatch.setattr(MicroBatch, "_noise", littered)
    assert same(forecast.sample(generator, analysis, times[:1], days=1, members=3), clean)


def test_seeds_inits_and_steps_bring_noise_of_their_own(generator: CrpsGenerator, times: np.ndarray) -> None:
    """From an analysis that never changes, without forcings: whatever differs is the noise."""
    data = weather(steps=60)
    still = data.copy(deep=True)
    for name in ("geopotential", "2m_temperature", "10m_v_component_of_wind", RAIN):
        still[name][:] = still[name][0].values
    made = network(spec_of(data, forcings=(), diagnostic=(RAIN,)))
    field = "2m_temperature"
    base = forecast.sample(made, still, times[:2], days=1, members=2, seed=0)[field]
    other = forecast.sample(made, still, times[:2], days=1, members=2, seed=1)[field]
    drawn = [base[0, 0, 0], base[0, 0, 1], base[1, 0, 0], other[0, 0, 0]]
    for i, one in enumerate(drawn):
        assert all(float(abs(one - two).max()) > 1e-3 for two in drawn[i + 1 :])


def test_without_noise_all_members_are_one(generator: CrpsGenerator, analysis: xr.Dataset, times: np.ndarray) -> None:
    plan = forecast.make_plan(generator, analysis, times[:1], days=1, members=3, seed=0, noise_scale=0.0)
    sink = rollout.MemorySink()
    forecast.run(generator, analysis, plan, [sink])
    assert float(sink.dataset["2m_temperature"].std("number").max()) == 0
    assert sink.dataset.attrs["noise_scale"] == 0.0


def test_lead_k_is_k_steps_on(analysis: xr.Dataset, times: np.ndarray) -> None:
    """A network that always answers 1 adds one tendency std a step."""
    spec = spec_of(analysis, diagnostic=(RAIN,))
    made = build(spec).eval()
    with torch.no_grad():
        made.net.head.conv.bias.fill_(1.0)
    found = forecast.sample(made, analysis, times, days=2, members=1)["2m_temperature"][:, :, 0]
    start = analysis["2m_temperature"].sel(time=times)
    rise = spec.tendency_std[spec.channels.index("2m_temperature")]
    for k in range(4):
        np.testing.assert_allclose(found[:, k], start + (k + 1) * rise, rtol=1e-5)


def test_each_step_gets_the_forcing_of_the_time_it_ends_at(
    analysis: xr.Dataset, times: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = network(spec_of(analysis))
    seen: list[torch.Tensor] = []
    plain = made.step
    monkeypatch.setattr(made, "step", lambda state, forcing, noise: (seen.append(forcing[0]), plain(state, forcing, noise))[1])
    forecast.sample(made, analysis, times[:1], days=1.5, members=1)
    planes = Forcings(made.spec.forcings, GLOBE, np.timedelta64(12, "h"))
    for k, forcing in enumerate(seen):
        np.testing.assert_array_equal(forcing, planes.at(times[0] + np.timedelta64(12 * (k + 1), "h")))
    assert len(seen) == 3


def test_each_member_and_step_gets_the_noise_of_its_address(
    analysis: xr.Dataset, times: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = network(spec_of(analysis))
    seen: list[torch.Tensor] = []
    plain = made.step
    monkeypatch.setattr(made, "step", lambda state, forcing, rows: (seen.append(rows), plain(state, forcing, rows))[1])
    plan = forecast.make_plan(made, analysis, times[:1], days=1, members=40, seed=6, noise_scale=0.5)
    forecast.run(made, analysis, plan, [rollout.MemorySink()])
    assert len(seen) == 4  # two micro-batches of 32 rows, two steps each
    for step in (1, 2):
        rows = torch.cat([seen[step - 1], seen[step + 1]])[:40].numpy()
        expected = [0.5 * noise.draw(6, times[0], member, step, rows.shape[1]) for member in range(1, 41)]
        np.testing.assert_array_equal(rows, expected)


def test_progress_counts_leads_and_what_a_sink_holds_already(
    generator: CrpsGenerator, analysis: xr.Dataset, times: np.ndarray
) -> None:
    class Holding(rollout.MemorySink):
        def open(self, plan: Any) -> Any:
            super().open(plan)
            held = np.zeros((3, 2, 1), bool)
            held[0] = True
            return held

    seen = []
    plan = forecast.make_plan(generator, analysis, times, days=1, members=1, seed=0)
    forecast.run(generator, analysis, plan, [Holding()], report=seen.append)
    assert [(step.done, step.total) for step in seen] == [(3, 6), (4, 6), (5, 6), (6, 6)]


def test_everything_that_is_missing_is_listed_at_once(generator: CrpsGenerator) -> None:
    other = weather(REGION, steps=10).drop_vars("2m_temperature")
    with pytest.raises(InputError) as error:
        forecast.sample(generator, other, ["2001-01-01T00", "2009-01-01"], days=1)
    text = str(error.value)
    assert "the analysis is on 11x10 regional" in text
    assert "the checkpoint needs 16x8 global" in text
    assert "the analysis lacks 2m_temperature" in text
    assert "3 of 4 input times are not in the analysis, first 2000-12-31T12" in text
    assert "2 frames, 12 h apart" in text


@pytest.mark.parametrize("changes", [{"days": 0.2}, {"members": 0}, {"times": []}])
def test_a_forecast_of_nothing_is_refused(
    generator: CrpsGenerator, analysis: xr.Dataset, times: np.ndarray, changes: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="the step is 12 h"):
        forecast.sample(generator, analysis, changes.pop("times", times), **{"days": 1, "members": 1, **changes})


def test_a_value_that_is_not_finite_names_member_channel_and_lead(
    analysis: xr.Dataset, times: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = network(spec_of(analysis))
    plain, calls = made.fields, []

    def broken(state: Any) -> torch.Tensor:
        calls.append(1)
        fields = plain(state).clone()
        if len(calls) == 2:
            fields[2, 1, 0, 0], fields[4, 0, 0, 0] = torch.nan, torch.inf
        return fields

    monkeypatch.setattr(made, "fields", broken)
    with pytest.raises(GateError) as error:
        forecast.sample(made, analysis, times[:1], days=2, members=5)
    assert "2001-01-06T00: member 3, 2m_temperature not finite at +24 h (2 of 5 members affected)" in str(error.value)


def test_the_noise_scale_of_the_checkpoint_is_the_default(analysis: xr.Dataset, times: np.ndarray) -> None:
    made = network(spec_of(analysis))
    made.provenance = {"noise_scale": 1.2}
    assert forecast.make_plan(made, analysis, times, days=1, members=3, seed=0).attrs["noise_scale"] == 1.2
    assert forecast.make_plan(made, analysis, times, days=1, members=3, seed=0, noise_scale=0.9).attrs["noise_scale"] == 0.9


def test_the_micro_batch_depends_on_the_grid_alone(generator: CrpsGenerator) -> None:
    assert rollout.micro_batch(generator.spec) == 32
    assert rollout.micro_batch(spec_of(weather(Grid.named("64x32"), steps=6))) == 8


def test_members_that_start_apart_stay_themselves_whatever_the_ensemble(generator: CrpsGenerator, analysis: xr.Dataset) -> None:
    init = analysis["time"].values[10]
    states = InitialStates(ensemble_of(analysis, init, *range(8), frames=generator.spec.frames))
    seven, three = (
        forecast.sample(generator, analysis, [init], days=1, members=count, seed=4, initial=states) for count in (7, 3)
    )
    assert same(seven.sel(number=[1, 2, 3]), three)
    alike = forecast.sample(generator, analysis, [init], days=1, members=3, seed=4)
    assert not same(three, alike)
    first = forecast.sample(generator, analysis, [init], days=1, members=3, seed=4, initial=InitialStates(states.data, number=0))
    assert same(first, alike)


@pytest.fixture(scope="module")
def trio(analysis: xr.Dataset) -> list[Generator]:
    """Checkpoints that agree in nothing but channels, grid and step: seeds, frames, forcings, statistics, noise scales."""
    one = network(spec_of(analysis, diagnostic=(RAIN,)), seed=1)
    two = network(spec_of(analysis, period(analysis, 0, 29), diagnostic=(RAIN,), forcings=(), frames=1), seed=2)
    three = network(spec_of(analysis, diagnostic=(RAIN,), noise=8), seed=3)
    for number, (made, scale) in enumerate(((one, 1.0), (two, 1.0), (three, 1.3))):
        made.sha256, made.provenance = f"{number}" * 64, {"noise_scale": scale}
    return [one, two, three]


def test_several_checkpoints_share_out_the_members_of_one_forecast(
    trio: list[Generator], analysis: xr.Dataset, times: np.ndarray
) -> None:
    """Member k is that of checkpoint (k - 1) mod 3 alone, in an ensemble of any size."""
    together = forecast.sample(trio, analysis, times[:2], days=1, members=40, seed=5)
    validate(together, "forecast")
    for part, made in enumerate(trio):
        alone = forecast.sample(made, analysis, times[:2], days=1, members=40, seed=5)
        own = list(share(range(1, 41), part, 3))
        assert own == list(range(part + 1, 41, 3))
        for number in own[:2] + own[-1:]:  # another row of another micro-batch: equal to rounding
            for field in together.data_vars:
                np.testing.assert_allclose(
                    together[field].sel(number=number), alone[field].sel(number=number), rtol=1e-5, atol=1e-6
                )
    for size in (1, 2, 7):
        assert same(forecast.sample(trio, analysis, times[:2], days=1, members=size, seed=5), together.isel(number=slice(size)))


def test_a_forecast_of_several_checkpoints_names_them_all(trio: list[Generator], analysis: xr.Dataset, times: np.ndarray) -> None:
    attrs = forecast.make_plan(trio, analysis, times, days=1, members=3, seed=0).attrs
    assert attrs["checkpoint_sha256"] == ",".join(digit * 64 for digit in "012")
    assert (attrs["model"], attrs["noise_scale"]) == ("3 crps", [1.0, 1.0, 1.3])
    assert attrs["training_period"] == trio[0].spec.training_period, "the span of all"
    assert forecast.make_plan(trio, analysis, times, days=1, members=3, seed=0, noise_scale=0.9).attrs["noise_scale"] == 0.9
    alone = forecast.make_plan([trio[2]], analysis, times, days=1, members=3, seed=0).attrs
    assert dict(alone) == dict(forecast.make_plan(trio[2], analysis, times, days=1, members=3, seed=0).attrs)
    assert (alone["model"], alone["checkpoint_sha256"], alone["noise_scale"]) == ("crps", "2" * 64, 1.3)


def test_checkpoints_that_do_not_fit_together_are_refused_with_all_reasons(analysis: xr.Dataset, times: np.ndarray) -> None:
    other = weather(REGION, steps=60, step_hours=6).drop_vars("2m_temperature")
    with pytest.raises(InputError) as error:
        forecast.make_plan(
            [network(spec_of(analysis)), network(spec_of(other))], analysis, times, days=1, members=2, seed=0,
        )  # fmt: skip
    text = str(error.value)
    assert "checkpoint 2 has the channels geopotential_500, 10m_v_component_of_wind" in text
    assert "checkpoint 2 is on 11x10 regional" in text
    assert "checkpoint 2 steps 6 h; 1 steps 12 h" in text


@pytest.mark.parametrize("devices", [("cpu",), ("cpu", "cpu"), ("cpu", "cpu", "cpu", "cpu", "cpu", "cpu", "cpu", "cpu")])
def test_devices_share_the_work_and_the_numbers_are_the_same(
    trio: list[Generator], analysis: xr.Dataset, times: np.ndarray, devices: tuple[str, ...]
) -> None:
    for made in (trio[0], trio):
        plan = forecast.make_plan(made, analysis, times[:2], days=1, members=70, seed=2)
        found = []
        for chosen in ((), devices):
            sink = rollout.MemorySink()
            forecast.run(made, analysis, plan, [sink], devices=chosen)
            found.append(sink.dataset)
        assert same(*found)


def test_a_fault_on_one_of_several_devices_ends_the_forecast(
    trio: list[Generator], analysis: xr.Dataset, times: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = forecast.make_plan(trio, analysis, times[:1], days=1, members=6, seed=2)
    with pytest.raises(InputError, match="device 'cuda:9' cannot be used here"):
        forecast.run(trio, analysis, plan, [rollout.MemorySink()], devices=("cpu", "cuda:9"))

    def broken(*_: Any) -> Any:
        raise MemoryError("a device is full")

    monkeypatch.setattr(trio[1], "step", broken)
    with pytest.raises(PlumecastError, match=r"not even one member at a time fits the memory \(a device is full\)"):
        forecast.run(
            trio, analysis, plan, [rollout.MemorySink()], devices=("cpu", "cpu"), remark=lambda text: None,
        )  # fmt: skip


class Weighing:
    """Takes nothing but the memory in use at the leads `at`: bytes of live tensors, and of numpy's arrays."""

    whole = True

    def __init__(self, *at: int) -> None:
        self.at, self.seen = at, 0
        self.found: dict[int, tuple[int, int]] = {}

    def open(self, plan: ForecastPlan) -> None:
        pass

    def take(self, *_: Any) -> None:
        self.seen += 1
        if self.seen in self.at:
            alive = [each.untyped_storage() for each in gc.get_objects() if type(each) is torch.Tensor]
            tensors = sum({storage.data_ptr(): storage.nbytes() for storage in alive}.values())
            self.found[self.seen] = (tensors, tracemalloc.get_traced_memory()[0])

    def close(self) -> None:
        pass


def test_memory_does_not_grow_with_the_leads(analysis: xr.Dataset, generator: CrpsGenerator, times: np.ndarray) -> None:
    plan = forecast.make_plan(generator, analysis, times[:1], days=12, members=64, seed=0)
    sink = Weighing(2, 24)
    tracemalloc.start()
    try:
        forecast.run(generator, analysis, plan, [sink])
    finally:
        tracemalloc.stop()
    early, late = (np.array(sink.found[lead]) for lead in (2, 24))
    assert early[0] >= 2 * plan.lead_bytes, "the states, two frames each, are seen"
    assert early[1] >= plan.lead_bytes, "and so are the fields of the lead"
    assert (late - early < plan.lead_bytes).all(), "22 leads more"


def test_the_boundary_is_read_in_blocks_of_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    data = weather(REGION, steps=40)
    made = network(spec_of(data))
    ring = Boundary(data, 3)
    whole = forecast.sample(made, data, data["time"].values[[10]], days=4, members=3, boundary=ring)
    seen: list[int] = []
    plain = Boundary.load
    monkeypatch.setattr(
        Boundary, "load", lambda self, spec, init, leads: (seen.append(len(leads)), plain(self, spec, init, leads))[1]
    )
    monkeypatch.setattr(sampler, "BUFFER_BYTES", 3 * 4 * 4 * REGION.areas.size + 10)
    assert same(forecast.sample(made, data, data["time"].values[[10]], days=4, members=3, boundary=ring), whole)
    assert seen == [3, 3, 2]
