"""The training loop: it learns, it resumes bit for bit, it refuses another recipe, and it survives what it must survive."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from data_pipeline.errors import GateError, InputError
from data_pipeline.recipe import section
from models import training
from models.checkpoint import load, read_tensors
from models.contract import Spec
from models.curriculum import StageOptions, TrainingOptions, disturbed, draw_noise
from models.run_state import Run
from models.training import Progress, train
from models.validation import Validation
from tests.toys import GLOBE, advection, as_analysis, period, samples_of, spec_of, weather

STAGES = (
    {"name": "warm start", "iterations": 5, "batch": 3, "members": 1, "noise": False, "rate": 1e-3, "final_rate": 5e-4},
    {"name": "crps", "iterations": 4, "batch": 2, "members": 2, "rollout": 2, "rate": 5e-4, "final_rate": 1e-4},
)


class StoppedError(Exception):
    """What ends a run in the middle."""


def options(**changes: Any) -> TrainingOptions:
    small = {"stages": STAGES, "validate_every": 2, "validation_inits": 3, "validation_members": 2, "validation_steps": 2}
    return TrainingOptions.model_validate({**small, **changes})


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return weather(steps=80)


@pytest.fixture(scope="module")
def spec(data: xr.Dataset) -> Spec:
    return spec_of(data, period(data, 0, 59), period(data, 60, 79), diagnostic=("total_precipitation_12hr",), dropout=0.1)


def run(data: xr.Dataset, spec: Spec, chosen: TrainingOptions, out: Path, **extra: Any) -> Path:
    inside = samples_of(data, spec, period(data, 0, 59)), samples_of(data, spec, period(data, 60, 79))
    return train(spec, chosen, *inside, out, provenance={"data": "toy"}, **extra)


def stop_at(iteration: int) -> Any:
    def report(progress: Progress) -> None:
        if progress.iteration == iteration:
            raise StoppedError

    return report


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "training" / "metrics.jsonl").read_text().splitlines()]


def state(out: Path) -> dict[str, torch.Tensor]:
    return read_tensors(out / "training" / "state.safetensors")[1]


@pytest.fixture(scope="module")
def finished(data: xr.Dataset, spec: Spec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never interrupted."""
    out = tmp_path_factory.mktemp("whole")
    run(data, spec, options(), out)
    return out


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_stopped_again_and_again_it_ends_with_the_same_bytes(
    data: xr.Dataset, spec: Spec, tmp_path: Path, finished: Path, precision: str
) -> None:
    """Dropout, the optimiser's moments, the average and the best score included."""
    chosen, whole = options(precision=precision), finished
    if precision != "float32":
        whole = tmp_path / "whole"
        run(data, spec, chosen, whole)
    out = tmp_path / "stopped"
    for iteration in (1, 3, 5, 8):
        with pytest.raises(StoppedError):
            run(data, spec, chosen, out, report=stop_at(iteration))
    run(data, spec, chosen, out)
    for name in ("checkpoint.safetensors", "training/state.safetensors", "training/metrics.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_how_often_it_validates_does_not_change_the_weights(data: xr.Dataset, spec: Spec, finished: Path, tmp_path: Path) -> None:
    run(data, spec, options(validate_every=100), tmp_path)
    assert len(metrics(tmp_path)) == 1
    assert all(torch.equal(value, state(finished)[name]) for name, value in state(tmp_path).items())


def test_another_seed_gives_other_weights(data: xr.Dataset, spec: Spec, finished: Path, tmp_path: Path) -> None:
    run(data, spec, options(seed=1), tmp_path)
    assert not torch.equal(state(tmp_path)["model.net.head.conv.weight"], state(finished)["model.net.head.conv.weight"])


def test_a_finished_run_is_left_alone(data: xr.Dataset, spec: Spec, finished: Path) -> None:
    def contents() -> dict[str, tuple[int, bytes]]:
        files = [file for file in finished.rglob("*") if file.is_file()]
        return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}

    before = contents()
    reports: list[Progress] = []
    assert run(data, spec, options(), finished, report=reports.append) == finished / "checkpoint.safetensors"
    assert contents() == before
    assert reports == []


def test_another_recipe_in_the_same_place_is_refused_with_the_difference(data: xr.Dataset, spec: Spec, finished: Path) -> None:
    with pytest.raises(InputError) as error:
        run(data, spec, options(seed=3, clip=0.5), finished)
    assert "  - training.clip: 1.0 -> 0.5" in str(error.value)
    assert "  - training.seed: 0 -> 3" in str(error.value)
    assert "give another --out, or delete it" in str(error.value)


def test_the_checkpoint_is_the_average_of_the_best_validation(
    data: xr.Dataset, spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.9, 0.5, 0.7, 0.5, 0.6])
    averages: list[dict[str, torch.Tensor]] = []

    def scored(generator: Any, *rest: Any, **others: Any) -> Validation:
        averages.append({name: value.clone() for name, value in generator.state_dict().items()})
        return Validation(next(scores), [0.0], [[1.0]])

    monkeypatch.setattr(training, "validate", scored)
    kept = load(run(data, spec, options(), tmp_path))
    assert kept.provenance["iteration"] == 4
    assert kept.provenance["validation"]["score"] == 0.5
    assert kept.provenance["data"] == "toy"
    assert all(torch.equal(value, averages[1][name]) for name, value in kept.state_dict().items())
    assert [line["iteration"] for line in metrics(tmp_path)] == [2, 4, 6, 8, 9]
    assert [line["best"] for line in metrics(tmp_path)] == [0.9, 0.5, 0.5, 0.5, 0.5]


def test_the_average_lags_behind_the_weights_and_starts_afresh_with_a_stage(data: xr.Dataset, spec: Spec, tmp_path: Path) -> None:
    """Warm average: decay min(ema, (1 + k) / (10 + k)), k counted from the start of the stage."""
    weights: list[torch.Tensor] = []
    chosen = options(validate_every=1, stages=[STAGES[0] | {"rate": 1e-2}, STAGES[1] | {"iterations": 2}])

    def watch(progress: Progress) -> None:
        weights.append(state(tmp_path)["model.net.head.conv.weight"])

    run(data, spec, chosen, tmp_path, report=watch)
    average = weights[4]  # the weights that entered the second stage
    for position, value in enumerate(weights[5:]):
        decay = (1 + position) / (10 + position)
        average = decay * average + (1 - decay) * value
    torch.testing.assert_close(state(tmp_path)["average.net.head.conv.weight"], average, rtol=0, atol=1e-7)


def test_a_single_bad_batch_is_skipped(data: xr.Dataset, spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, losses = training.draw_noise, []
    monkeypatch.setattr(training, "draw_noise", lambda seed, k, shape: plain(seed, k, shape) * (math.nan if k == 6 else 1))
    run(data, spec, options(), tmp_path, report=lambda progress: losses.append(progress.loss))
    assert [i for i, loss in enumerate(losses) if not math.isfinite(loss)] == [6]
    assert all(torch.isfinite(value).all() for value in state(tmp_path).values())


def test_a_loss_that_stays_non_finite_ends_the_run(data: xr.Dataset, spec: Spec, tmp_path: Path) -> None:
    inside = samples_of(data, spec, period(data, 0, 59))
    assert inside._memory is not None
    inside._memory[:] = np.inf
    long = options(stages=[STAGES[0] | {"iterations": 50}])
    with pytest.raises(GateError, match=r"not finite 20 times in a row at iteration 19 \(stage warm start\)"):
        train(spec, long, inside, samples_of(data, spec, period(data, 60, 79)), tmp_path, provenance={})
    assert all(torch.isfinite(value).all() for value in state(tmp_path).values())


def refused_on_the_gpu() -> None:
    raise torch.OutOfMemoryError("12 GiB")


def refused_on_the_cpu() -> None:
    torch.empty(1 << 50)


def refused_to_python() -> None:
    raise MemoryError


@pytest.mark.parametrize("refused", [refused_on_the_gpu, refused_on_the_cpu, refused_to_python])
def test_out_of_memory_says_what_to_lower(
    data: xr.Dataset, spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[[], None]
) -> None:
    def explode(self: Any, *rest: Any) -> None:
        refused()

    monkeypatch.setattr(Run, "gradients", explode)
    with pytest.raises(InputError, match=r"out of memory on cpu in stage 'warm start'; lower its batch \(3\), members \(1\)"):
        run(data, spec, options(), tmp_path)


def test_the_rate_warms_up_and_falls_on_a_cosine() -> None:
    stage = StageOptions(name="s", iterations=100, batch=1, rate=1.0, final_rate=0.1, warmup=10)
    rates = [stage.rate_at(position) for position in range(100)]
    assert rates[0] == pytest.approx(0.1, rel=1e-3)
    assert max(rates) == pytest.approx(1.0, abs=0.03)
    assert rates[50] == pytest.approx(0.55)
    assert rates[99] == pytest.approx(0.1, abs=1e-3)
    assert all(before > after for before, after in itertools.pairwise(rates[10:]))


def test_noise_depends_on_the_seed_and_the_iteration_alone() -> None:
    one, again = draw_noise(0, 3, (2, 5)), draw_noise(0, 3, (2, 5))
    assert torch.equal(one, again)
    others = [draw_noise(0, 4, (2, 5)), draw_noise(1, 3, (2, 5))]
    assert not any(torch.equal(one, other) for other in others)
    wide = draw_noise(0, 0, (1000, 100))
    assert abs(float(wide.mean())) < 0.02
    assert float(wide.std()) == pytest.approx(1, abs=0.02)


def test_input_noise_disturbs_the_frames_alone_in_units_of_the_tendency(data: xr.Dataset, spec: Spec) -> None:
    batch = samples_of(data, spec).batch(np.arange(3, 40), 1)
    moved = disturbed(batch, spec, 0.5, 0, 7)
    assert moved.targets is batch.targets
    added = (moved.frames - batch.frames).std((0, 1, 3, 4))
    np.testing.assert_allclose(added, 0.5 * np.array(spec.tendency_std) / np.array(spec.std), rtol=0.02)
    np.testing.assert_array_equal(moved.frames, disturbed(batch, spec, 0.5, 0, 7).frames)


def test_weight_decay_leaves_the_noise_awake(data: xr.Dataset, spec: Spec, tmp_path: Path) -> None:
    made = Run(spec, options(weight_decay=0.3), tmp_path, "cpu", {})
    names = {id(value): name for name, value in made.model.named_parameters()}
    decayed, rest = ({names[id(value)] for value in group["params"]} for group in made.optimizer.param_groups)
    assert len(decayed) + len(rest) == len(names)
    assert "net.head.conv.weight" in decayed
    assert all("to_local" in name or "position" in name or made.model.get_parameter(name).dim() == 1 for name in rest)
    assert [group["weight_decay"] for group in made.optimizer.param_groups] == [0.3, 0.0]


def test_faults_of_the_training_section_are_all_listed() -> None:
    bad = {
        "stages": [], "seed": -1, "validation_members": 1, "validate_every": 0, "epochs": 3, "clip": 0, "ema": 1.0,
        "betas": [0.9, 1.0], "weight_decay": -0.1,
    }  # fmt: skip
    with pytest.raises(InputError) as error:
        section({"name": "job", "training": bad}, "training", TrainingOptions)
    for key in (*(f"training.{name}" for name in bad if name != "epochs"), "training.epochs: unknown key"):
        assert key in str(error.value)


def test_it_learns_to_move_a_pattern(tmp_path: Path) -> None:
    """next = the field one column further west; persistence misses by 0.8 tendency stds, a convolution can be exact."""
    data = advection(100)
    spec = spec_of(data, frames=1, forcings=())
    stage = {"name": "all", "iterations": 150, "batch": 8, "members": 1, "rate": 1e-2, "final_rate": 1e-3, "noise": False}
    chosen = options(stages=[stage], validate_every=150, validation_steps=3, validation_members=2)
    samples = samples_of(data, spec)
    train(spec, chosen, samples, samples, tmp_path, provenance={})
    truth = samples.batch(samples.starts(3), 3)
    persistence = np.abs(truth.targets - truth.frames[:, -1:]).mean((0, 2, 3, 4)) * spec.std[0] / spec.tendency_std[0]
    assert persistence[0] > 0.5
    assert metrics(tmp_path)[-1]["crps"][0] < 0.2 * persistence[0]
    assert metrics(tmp_path)[-1]["crps"][2] < 0.3 * persistence[2]


@pytest.mark.campaign
def test_it_learns_the_spread_of_a_known_gaussian_world(tmp_path: Path) -> None:
    """x' = 0.6 x + 0.8 e pattern: one random number a step moves the whole field; the spread is to be learned from pairs."""
    rng = np.random.default_rng(2)
    amplitude = np.zeros(400)
    for i in range(1, 400):
        amplitude[i] = 0.6 * amplitude[i - 1] + 0.8 * rng.normal()
    pattern = 1 + 0.5 * np.cos(np.deg2rad(GLOBE.longitude))[None, :] * np.cos(np.deg2rad(GLOBE.latitude))[:, None]
    data = as_analysis({"2m_temperature": 280 + 5 * amplitude[:, None, None] * pattern}, GLOBE)
    spec = spec_of(data, frames=1, forcings=(), local_noise=0)
    stages = [
        {"name": "warm", "iterations": 40, "batch": 16, "members": 1, "rate": 5e-3, "final_rate": 5e-3, "noise": False},
        {"name": "crps", "iterations": 160, "batch": 32, "members": 2, "rate": 5e-3, "final_rate": 5e-4},
    ]
    chosen = options(stages=stages, validate_every=200, validation_inits=150, validation_members=8, validation_steps=1)
    samples = samples_of(data, spec)
    train(spec, chosen, samples, samples, tmp_path, provenance={})
    found = metrics(tmp_path)[-1]
    assert found["ssr"][0][0] == pytest.approx(1, abs=0.2)
    best = 0.8 / math.sqrt(math.pi) * 5 * float((pattern * GLOBE.area_weights).mean()) / spec.tendency_std[0]
    assert found["crps"][0] < 1.15 * best


def test_fine_tuning_starts_from_the_weights_of_the_checkpoint_and_names_it(data: xr.Dataset, spec: Spec, tmp_path: Path) -> None:
    first = run(data, spec, options(), tmp_path / "first")
    still = [{"name": "still", "iterations": 2, "batch": 2, "rate": 1e-30, "final_rate": 1e-30}]
    second = run(data, spec, options(stages=still, initial=str(first)), tmp_path / "second")
    weights, tuned = read_tensors(first)[1], read_tensors(second)[1]
    assert weights.keys() == tuned.keys()
    assert all(torch.equal(weights[name], tuned[name]) for name in weights)
    assert load(second).provenance["initial"]["sha256"] == load(first).sha256


def test_fine_tuning_on_other_periods_is_refused_because_the_checkpoint_would_forget_years_it_has_seen(
    data: xr.Dataset, spec: Spec, tmp_path: Path
) -> None:
    first = run(data, spec, options(), tmp_path / "first")
    later = replace(spec, training_period="2001-01-05T00/2001-01-30T12")
    with pytest.raises(InputError, match=r"does not fit this recipe:\n  - training_period: '2001-01-01T00"):
        run(data, later, options(initial=str(first)), tmp_path / "second")
    assert not (tmp_path / "second").exists()
