"""What a run keeps on the disk and what it starts from: states by the clock, metrics, targets, warm starts."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

from data_pipeline.batches import Samples
from data_pipeline.errors import GateError, InputError
from models import checkpoint, training
from models.checkpoint import Family, load, read_tensors, save, write_tensors
from models.contract import Loss, Sample, Spec, Stage
from models.crps import CrpsGenerator, CrpsOptions
from models.recipe import json_ready
from models.run_state import Run
from models.validation import Validation
from tests.models.test_training import STAGES, StoppedError, metrics, options, run, state, stop_at
from tests.toys import network, period, samples_of, spec_of, weather


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return weather(steps=80)


@pytest.fixture(scope="module")
def spec(data: xr.Dataset) -> Spec:
    return spec_of(data, period(data, 0, 59), period(data, 60, 79))


class TwoTargets(CrpsGenerator):
    """A family with an autoencoder of one number, statistics of its own, and diagnostics."""

    seen: ClassVar[list[tuple[str, int, bool]]] = []

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.gain = nn.Parameter(torch.zeros(1))
        self.register_buffer("own_mean", torch.zeros(len(spec.channels)))

    def begin(self, stage: Stage, fields: Iterator[Tensor]) -> None:
        every = torch.cat(list(fields))
        self.seen.append((stage.target, len(every), self.training))
        self.own_mean = every.mean((0, 2, 3))

    def loss(self, sample: Sample, noise: Tensor, stage: Stage) -> Loss:
        if stage.target == "forecast":
            return super().loss(sample, noise, stage)
        error = (self.reconstruction(sample.targets) - sample.targets).square().mean()
        return Loss(error, {"reconstruction": float(error.detach())})

    def reconstruction(self, fields: Tensor) -> Tensor:
        return self.gain * fields

    def diagnostics(self, sample: Sample, noise: Tensor) -> dict[str, float]:
        assert noise.shape[:3] == (2, len(sample.frames), 2)
        return {"gain": float(self.gain)}


@pytest.fixture
def two_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    TwoTargets.seen.clear()
    monkeypatch.setitem(checkpoint.FAMILIES, "crps", Family(TwoTargets, CrpsOptions))


PAIR = [STAGES[0] | {"target": "autoencoder", "rate": 1e-1}, STAGES[1]]


def test_an_autoencoder_is_scored_by_its_reconstruction_and_the_checkpoint_is_of_the_last_target(
    data: xr.Dataset, spec: Spec, tmp_path: Path, two_targets: None
) -> None:
    kept = load(run(data, spec, options(stages=PAIR), tmp_path))
    lines = metrics(tmp_path)
    assert [line["target"] for line in lines] == ["autoencoder"] * 2 + ["forecast"] * 3
    first = lines[0]
    assert first["score"] == pytest.approx(np.mean(first["reconstruction_rmse"]))
    assert first["parts"].keys() == {"reconstruction"}
    assert first["diagnostics"] == {}
    assert lines[-1]["diagnostics"]["gain"] == pytest.approx(float(state(tmp_path)["average.gain"]))
    assert lines[2]["best"] == lines[2]["score"]  # scores of different targets are not compared
    assert lines[4]["best"] == min(line["score"] for line in lines[2:])
    assert kept.provenance["target"] == "forecast"
    assert "crps" in kept.provenance["validation"]


def test_a_perfect_reconstruction_scores_0_and_nothing_scores_the_size_of_the_fields(
    data: xr.Dataset, spec: Spec, two_targets: None
) -> None:
    generator, samples = checkpoint.build(spec), training_samples(data, spec)
    starts = np.arange(2, 50)
    nothing = training.validate_autoencoder(generator, samples, starts, 3)
    truth = np.stack([samples.batch(np.array([start]), 3).targets[0] for start in starts])
    size = np.sqrt((truth**2 * spec.grid.area_weights).mean((0, 1, 3, 4))) * np.array(spec.std) / np.array(spec.tendency_std)
    np.testing.assert_allclose(nothing.rmse, size, rtol=1e-5)
    generator.gain.data += 1
    assert training.validate_autoencoder(generator, samples, starts, 3).score == 0


def training_samples(data: xr.Dataset, spec: Spec) -> Samples:
    return samples_of(data, spec, period(data, 0, 59))


def test_a_stage_begins_once_with_every_training_analysis_and_resumed_it_ends_with_the_same_bytes(
    data: xr.Dataset, spec: Spec, tmp_path: Path, two_targets: None
) -> None:
    run(data, spec, options(stages=PAIR), tmp_path / "whole")
    assert TwoTargets.seen == [("autoencoder", 60, False), ("forecast", 60, False)]
    for iteration in (2, 5, 7):
        with pytest.raises(StoppedError):
            run(data, spec, options(stages=PAIR), tmp_path / "stopped", report=stop_at(iteration))
    run(data, spec, options(stages=PAIR), tmp_path / "stopped")
    for name in ("checkpoint.safetensors", "training/state.safetensors", "training/metrics.jsonl"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    own = load(tmp_path / "whole" / "checkpoint.safetensors").state_dict()["own_mean"]
    assert float(own.abs().max()) > 0
    torch.testing.assert_close(own, state(tmp_path / "whole")["average.own_mean"], rtol=1e-3, atol=1e-4)


def test_a_family_without_an_autoencoder_refuses_such_a_stage(data: xr.Dataset, spec: Spec, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="model family 'crps' has no autoencoder; give its stages target = 'forecast'"):
        run(data, spec, options(stages=PAIR), tmp_path)


def test_the_state_is_saved_by_the_clock_too_and_nothing_is_logged_twice(data: xr.Dataset, spec: Spec, tmp_path: Path) -> None:
    often = options(save_seconds=1e-9, validate_every=3)
    for iteration in (2, 4, 5, 8):
        with pytest.raises(StoppedError):
            run(data, spec, often, tmp_path / "often", report=stop_at(iteration))
        header, _ = read_tensors(tmp_path / "often" / "training" / "state.safetensors")
        assert int(header["iteration"]) == iteration
    run(data, spec, often, tmp_path / "often")
    run(data, spec, options(validate_every=3), tmp_path / "rarely")
    for name in ("checkpoint.safetensors", "training/state.safetensors", "training/metrics.jsonl"):
        assert (tmp_path / "often" / name).read_bytes() == (tmp_path / "rarely" / name).read_bytes(), name


def test_lines_of_updates_that_are_done_again_are_taken_away(data: xr.Dataset, spec: Spec, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        run(data, spec, options(), tmp_path, report=stop_at(4))
    path = tmp_path / "training" / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[-1].replace('"iteration": 4', '"iteration": 6') + '\n{"iterat')
    run(data, spec, options(), tmp_path)
    assert [line["iteration"] for line in metrics(tmp_path)] == [2, 4, 6, 8, 9]
    assert path.read_text().startswith(whole)


def test_a_line_holds_rate_gradient_norm_parts_and_what_was_skipped(
    data: xr.Dataset, spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, losses = training.draw_noise, []
    monkeypatch.setattr(training, "draw_noise", lambda seed, k, shape: plain(seed, k, shape) * (math.nan if k == 6 else 1))
    run(data, spec, options(validate_every=4), tmp_path, report=lambda progress: losses.append(progress.loss))
    lines = metrics(tmp_path)
    assert [line["skipped"] for line in lines] == [0, 1, 0]
    assert lines[0]["loss"] == pytest.approx(np.mean(losses[:4]))
    assert lines[1]["loss"] == pytest.approx(np.mean([losses[4], losses[5], losses[7]]))
    assert lines[1]["parts"]["step_1"] > 0
    assert all(line["gradient_norm"] > 0 for line in lines)
    assert lines[2]["rate"] == options().stages[1].rate_at(3)


def test_a_score_that_is_not_finite_is_null_in_the_log_and_ends_the_run(
    data: xr.Dataset, spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "validate", lambda *given, **options: Validation(math.nan, [math.nan], [[1.0]]))
    with pytest.raises(GateError, match="no validation of target 'forecast' gave a finite score"):
        run(data, spec, options(), tmp_path)
    assert metrics(tmp_path)[0]["score"] is None
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_a_state_that_names_fewer_options_is_resumed_with_their_defaults(data: xr.Dataset, spec: Spec, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        run(data, spec, options(), tmp_path, report=stop_at(4))
    path = tmp_path / "training" / "state.safetensors"
    header, tensors = read_tensors(path)
    recipe = json.loads(header["recipe"])
    for name in ("compile", "warm_start", "members_over"):
        recipe["training"].pop(name)
    older = {name: text for name, text in header.items() if name not in ("tally", "start")}
    write_tensors(path, tensors, older | {"recipe": json.dumps(recipe), "fingerprint": "older"})
    run(data, spec, options(), tmp_path)
    assert metrics(tmp_path)[-1]["iteration"] == 9


def test_a_finished_run_goes_on_with_a_stage_that_came_to_its_recipe(data: xr.Dataset, spec: Spec, tmp_path: Path) -> None:
    run(data, spec, options(), tmp_path / "at once")
    run(data, spec, options(stages=STAGES[:1]), tmp_path / "later")
    with pytest.raises(InputError, match=r"training\.stages"):
        run(data, spec, options(stages=[STAGES[0] | {"rate": 1e-4}, STAGES[1]]), tmp_path / "later")
    run(data, spec, options(), tmp_path / "later")
    weights = state(tmp_path / "at once")
    assert all(torch.equal(value, weights[name]) for name, value in state(tmp_path / "later").items())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_recomputing_steps_changes_no_gradient(data: xr.Dataset, spec: Spec, tmp_path: Path, precision: str) -> None:
    made = Run(spec, options(precision=precision), tmp_path, "cpu", {})
    made.model.load_state_dict(network(spec).state_dict())
    batch = training_samples(data, spec).batch(np.array([3, 9]), 3)
    sample = Sample(*(torch.from_numpy(array) for array in (batch.frames, batch.targets, batch.forcings)))
    noise = torch.randn(2, 2, 4, made.model.noise_shapes()["step"][0], generator=torch.Generator().manual_seed(0))
    found = []
    for recompute in (False, True):
        made.gradients(sample, noise, Stage(rollout=3, recompute=recompute))
        found.append({name: value.grad.clone() for name, value in made.model.named_parameters() if value.grad is not None})
    assert found[0].keys() == found[1].keys() == dict(made.model.named_parameters()).keys()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    assert all(value.dtype == torch.float32 for value in found[0].values())


def test_a_warm_start_takes_what_fits_and_leaves_the_rest(data: xr.Dataset, spec: Spec, tmp_path: Path) -> None:
    wider = replace(spec, options=spec.options | {"noise": 6}, training_period="2001-01-05T00/2001-01-20T12")
    other = save(tmp_path / "other.safetensors", wider, network(wider).state_dict(), {"data": "toy"})
    made = Run(spec, options(warm_start=str(other)), tmp_path, "cpu", {"data": "toy"})
    fresh = Run(spec, options(), tmp_path, "cpu", {})
    theirs = load(other).state_dict()
    for name, value in made.model.state_dict().items():
        expected = theirs[name] if theirs[name].shape == value.shape else fresh.model.state_dict()[name]
        assert torch.equal(value, expected), name
    start = made.provenance["warm_start"]
    assert (start["tensors"], start["of"]) == (len(theirs) - 1, len(theirs))
    assert start["sha256"] == load(other).sha256
    assert torch.equal(made.averaged.state_dict()["net.head.conv.weight"], theirs["net.head.conv.weight"])


@pytest.mark.parametrize(
    ("changed", "provenance", "message"),
    [
        ({"training_period": "2001-01-01T00/2001-02-05T00"}, {}, "does not lie in this training period"),
        (
            {"validation_period": "2001-03-01T00/2001-03-09T00"},
            {"recipe": {"periods": {"test": ["2001-03-08", "2001-04-01"]}}},
            "was chosen on 2001-03-01T00/2001-03-09T00, which overlaps the test period 2001-03-08/2001-04-01",
        ),
    ],
)
def test_a_warm_start_that_has_seen_what_must_not_be_seen_is_refused(
    spec: Spec, tmp_path: Path, changed: dict[str, str], provenance: dict[str, Any], message: str
) -> None:
    own = replace(spec, **changed)  # type: ignore[arg-type]
    other = save(tmp_path / "other.safetensors", own, network(own).state_dict(), {})
    with pytest.raises(InputError, match=message):
        Run(spec, options(warm_start=str(other)), tmp_path, "cpu", provenance)


def test_a_run_starts_from_one_checkpoint() -> None:
    with pytest.raises(ValueError, match="initial and warm_start are both given"):
        options(initial="a", warm_start="b")


def test_the_recipe_in_a_checkpoint_names_no_folders() -> None:
    recipe = {
        "name": "a",
        "source": {"path": "there", "kind": "era5"},
        "training": {"warm_start": "here/x.safetensors", "seed": 1},
    }
    assert json_ready(recipe) == {"name": "a", "source": {"kind": "era5"}, "training": {"seed": 1}}
    assert recipe["training"]["warm_start"] == "here/x.safetensors"  # type: ignore[index]


def test_what_a_run_started_from_is_remembered_when_the_file_is_gone(data: xr.Dataset, spec: Spec, tmp_path: Path) -> None:
    other = save(tmp_path / "other.safetensors", spec, network(spec).state_dict(), {})
    sha = load(other).sha256
    with pytest.raises(StoppedError):
        run(data, spec, options(warm_start=str(other)), tmp_path, report=stop_at(4))
    other.unlink()
    assert load(run(data, spec, options(warm_start=str(other)), tmp_path)).provenance["warm_start"]["sha256"] == sha


def test_a_finished_checkpoint_carries_a_sample_forecast_even_if_the_run_died_before_it(
    data: xr.Dataset, spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(path: Path) -> None:
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(training, "attach", dies)
        with pytest.raises(StoppedError):
            run(data, spec, options(), tmp_path)
    assert "proof" not in read_tensors(tmp_path / "checkpoint.safetensors")[0]
    run(data, spec, options(), tmp_path)
    assert "proof" in read_tensors(tmp_path / "checkpoint.safetensors")[0]


def test_tensorboard_events_hold_the_metrics(data: xr.Dataset, spec: Spec, tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(data, spec, options(tensorboard=True), tmp_path)
    events = reading.EventAccumulator(str(tmp_path / "training" / "tensorboard"))
    events.Reload()
    scores = {event.step: event.value for event in events.Scalars("score")}
    assert scores == {line["iteration"]: pytest.approx(line["score"]) for line in metrics(tmp_path)}


def test_without_tensorboard_it_says_what_to_install(
    data: xr.Dataset, spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"needs the package tensorboard: pip install 'plumecast\[tensorboard\]'"):
        run(data, spec, options(tensorboard=True), tmp_path)


def test_weights_of_terms_that_a_loss_does_not_have_are_refused(data: xr.Dataset, spec: Spec, tmp_path: Path) -> None:
    stages = [STAGES[0], STAGES[1] | {"kl": 0.3, "posterior": 1.0}]
    with pytest.raises(InputError, match=r"family 'crps' has a use for bands, spectral, not for:\n.*kl = 0.3\n.*posterior = 1"):
        run(data, spec, options(stages=stages), tmp_path / "kl")
    assert not (tmp_path / "kl").exists()
