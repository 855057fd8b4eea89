"""A forecast by the workers of a cluster, and by processes with a share each, is the forecast of one process, to the byte."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import pytest

import forecast
from data_pipeline.errors import GateError, InputError, PlumecastError
from data_pipeline.store import is_store, partial_path, write_dataset
from forecast import cluster as clusters
from forecast.cluster import run_on
from forecast.inputs import Inputs
from forecast.outputs import Outputs, Scores, make
from forecast.plan import ForecastPlan
from forecast.shares import Share, share_of, still_missing, tasks_of
from models.checkpoint import save
from tests.children import contents
from tests.toys import network, spec_of, weather

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    data = weather(steps=60)
    write_dataset(folder / "analysis.zarr", data, data.attrs)
    spec = spec_of(data)
    for seed in (0, 1):
        save(folder / f"{seed}.safetensors", spec, network(spec, seed=seed).state_dict(), {})
    return Inputs(folder / "analysis.zarr", (folder / "0.safetensors",))


def plan_of(inputs: Inputs, members: int = 40, **extra: Any) -> ForecastPlan:
    """Two blocks of 32 and 8 members for each of three initialisations."""
    opened = inputs.open()
    times = opened.analysis["time"].values[[10, 20, 30]]
    return forecast.make_plan(opened.generators, opened.analysis, times, days=1, members=members, **{"seed": 0, **extra})


def lenient(out: Path) -> Outputs:
    """A random network is no physics: the gate only warns."""
    return Outputs(out, strict=False)


def alone(inputs: Inputs, plan: ForecastPlan, out: Path, only: Any = None) -> None:
    make(plan, inputs.open(), lenient(out), only=only)


@pytest.fixture(scope="module")
def whole(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the forecast that one process makes."""
    out = tmp_path_factory.mktemp("whole") / "forecast.zarr"
    alone(inputs, plan_of(inputs), out)
    return contents(out)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of two workers in threads of this process."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0", protocol="tcp://", host="127.0.0.1"
    ) as cluster:
        yield cluster.scheduler_address


# the workers of a cluster


def test_a_cluster_makes_the_bytes_of_one_process(inputs: Inputs, whole: dict[str, bytes], address: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    plan, out = plan_of(inputs), tmp_path / "a.zarr"
    run_on(address, inputs, plan, lenient(out), report=lambda step: seen.append((step.done, step.total)))
    assert contents(out) == whole
    assert not partial_path(out).exists()
    assert seen[-1] == (3 * 40 * 2, 3 * 40 * 2)
    assert seen == sorted(seen)
    assert len(seen) == 6


def test_it_goes_on_where_another_process_was_stopped_and_does_a_finished_one_no_more(
    inputs: Inputs, whole: dict[str, bytes], address: str, tmp_path: Path
) -> None:
    seen: list[int] = []
    plan, out = plan_of(inputs), tmp_path / "a.zarr"
    alone(inputs, plan, out, only=[part.name for part in plan.parts[:4]])
    run_on(address, inputs, plan, lenient(out), report=lambda step: seen.append(step.done))
    assert len(seen) == 2
    assert contents(out) == whole
    run_on("tcp://127.0.0.1:9", inputs, plan, lenient(out))  # nobody is asked
    with pytest.raises(InputError, match=r"seed: 0 -> 3"):
        run_on("tcp://127.0.0.1:9", inputs, plan_of(inputs, seed=3), lenient(out))


def test_several_checkpoints_share_the_members_there_too(inputs: Inputs, address: str, tmp_path: Path) -> None:
    both = replace(inputs, checkpoints=(*inputs.checkpoints, inputs.checkpoints[0].with_name("1.safetensors")))
    plan = plan_of(both)
    assert [len(task) for task in tasks_of(plan, 2)] == [2, 2, 2]
    alone(both, plan, tmp_path / "alone.zarr")
    run_on(address, both, plan, lenient(tmp_path / "there.zarr"))
    assert contents(tmp_path / "there.zarr") == contents(tmp_path / "alone.zarr")


def test_a_part_that_fails_the_gate_ends_the_forecast_with_its_own_error(
    inputs: Inputs, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise GateError("forecast of 2001-01-11T00: member 3 not finite")

    monkeypatch.setattr(clusters, "make", refuse)
    with pytest.raises(GateError, match="member 3 not finite") as caught:
        run_on(address, inputs, plan_of(inputs), lenient(tmp_path / "a.zarr"))
    assert caught.value.exit_code == 4
    assert not is_store(tmp_path / "a.zarr")


def test_a_task_that_always_fails_is_tried_again_twice_and_named(
    inputs: Inputs, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    def fail(*arguments: Any, only: tuple[str, ...], **options: Any) -> None:
        tries.extend(only)
        raise OSError("the disk has gone")

    monkeypatch.setattr(clusters, "make", fail)
    plan = plan_of(inputs)
    one = replace(plan, times=plan.times[:1], members=plan.members[:4])
    with pytest.raises(PlumecastError, match=r"2001-01-06T00\.m0001 failed 3 times .*OSError: the disk has gone") as caught:
        run_on(address, inputs, one, lenient(tmp_path / "a.zarr"))
    assert tries == ["2001-01-06T00.m0001"] * 3
    assert caught.value.exit_code == 1
    assert not is_store(tmp_path / "a.zarr")


def test_workers_that_would_make_another_forecast_are_refused(inputs: Inputs, address: str, tmp_path: Path) -> None:
    plan = plan_of(inputs)
    theirs = json.dumps({**json.loads(plan.attrs["versions"]), "torch": "1.0"})
    with pytest.raises(InputError, match=r'worker tcp://127.* would make another forecast: versions is .*"torch": "1.0"'):
        run_on(address, inputs, replace(plan, attrs={**plan.attrs, "versions": theirs}), lenient(tmp_path / "a.zarr"))
    with pytest.raises(InputError, match="would make another forecast: checkpoint_sha256"):
        run_on(
            address,
            replace(inputs, checkpoints=(inputs.checkpoints[0].with_name("1.safetensors"),)),
            plan,
            lenient(tmp_path / "b.zarr"),
        )


def test_no_scheduler_no_worker_and_too_little_memory_are_said_before_any_work(
    inputs: Inputs, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(inputs)
    monkeypatch.setattr(clusters, "PATIENCE", 0.2)
    options: dict[str, Any] = {"processes": False, "dashboard_address": ":0", "protocol": "tcp://", "host": "127.0.0.1"}
    quick, gone = dask.config.set({"distributed.comm.timeouts.connect": "200ms"}), "no dask scheduler answers there"
    with quick, pytest.raises(InputError, match=f"--cluster tcp://127.0.0.1:9: {gone}"):
        run_on("tcp://127.0.0.1:9", inputs, plan, lenient(tmp_path / "a.zarr"))
    with distributed.LocalCluster(n_workers=0, **options) as cluster, pytest.raises(InputError, match="no worker came within"):
        run_on(cluster.scheduler_address, inputs, plan, lenient(tmp_path / "a.zarr"))
    monkeypatch.setattr(clusters, "PROCESS_BYTES", 10**15)
    with pytest.raises(InputError, match=r"2 of 2 workers have too little memory.* a task needs about 1000000\.0 GB"):
        run_on(address, inputs, plan, lenient(tmp_path / "a.zarr"))


def test_scores_of_the_whole_ensemble_are_not_left_to_workers(inputs: Inputs, tmp_path: Path) -> None:
    wanted = replace(lenient(tmp_path / "a.zarr"), scores=Scores(tmp_path / "a.scores.zarr", inputs.analysis))
    with pytest.raises(InputError, match="scores need all members in one process"):
        run_on("tcp://127.0.0.1:9", inputs, plan_of(inputs), wanted)


# shares of processes that do not talk


@pytest.mark.parametrize(("inits", "members", "count"), [(3, 40, 2), (1, 40, 4), (5, 70, 3), (2, 3, 1)])
def test_every_part_is_in_one_share_and_shares_are_alike(inputs: Inputs, inits: int, members: int, count: int) -> None:
    plan = plan_of(inputs, members)
    plan = replace(plan, times=plan.times[:1] + plan.leads[0] * range(inits))
    tasks = tasks_of(plan, checkpoints=2)
    shares = [Share(number, count).of(tasks) for number in range(1, count + 1)]
    assert [name for share in shares for name in share] == [part.name for part in plan.parts]
    sizes = [sum(set(task) <= set(share) for task in tasks) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_the_last_share_publishes_what_one_process_makes(inputs: Inputs, whole: dict[str, bytes], tmp_path: Path) -> None:
    plan, out = plan_of(inputs), tmp_path / "a.zarr"
    left = []
    for number in (3, 1, 2):
        alone(inputs, plan, out, only=Share(number, 3).of(tasks_of(plan, 1)))
        left.append(still_missing(out))
    assert left == ["2 of 6 parts are there", "4 of 6 parts are there", None]
    assert contents(out) == whole


def test_torchrun_deals_a_share_to_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert share_of(None, "cuda:1") == (None, "cuda:1")
    assert share_of("3/10", "cpu") == (Share(3, 10), "cpu")
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert share_of(None, "cuda") == (Share(6, 8), "cuda:1")
    assert share_of("2/3", "cpu") == (Share(14, 24), "cpu")
    with pytest.raises(InputError, match="use --device cuda"):
        share_of(None, "cuda:0,cuda:1")


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "-1/3", "1/0"])
def test_a_share_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected I/N"):
        share_of(text, "cpu")
