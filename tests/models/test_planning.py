"""Plans of trainings: held to what the presets that run here take, and to operations counted by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.recipe import read_recipe
from models import commands
from models.checkpoint import build
from models.contract import Sample, Spec, flat_noise_size
from models.curriculum import TrainingOptions
from models.planning import plan_run, planned_spec, with_preset
from models.run_state import Run
from tests.toys import spec_of, weather

STAGES = (
    {"name": "one step", "iterations": 10, "batch": 4, "members": 2, "rate": 1e-3, "final_rate": 1e-4},
    {"name": "two steps", "iterations": 30, "batch": 2, "members": 2, "rollout": 2, "rate": 1e-3, "final_rate": 1e-4},
)

RECIPE = """
[analysis]
channels = ["geopotential_500", "2m_temperature", "total_precipitation_12hr"]
grid = "64x32"
step = "12h"
[model]
diagnostic = ["total_precipitation_12hr"]
[model.options]
preset = "tiny"
[[training.stages]]
name = "crps"
iterations = 4
batch = 2
rate = 1e-3
final_rate = 1e-4
"""


def options(**changes: Any) -> TrainingOptions:
    return TrainingOptions.model_validate({"stages": STAGES, **changes})


@pytest.fixture(scope="module")
def spec() -> Spec:
    return spec_of(weather(steps=20), widths=(32, 48), blocks=1, noise=32, local_noise=4, position=8)


def batch_of(spec: Spec, stage: Any, noise_size: int) -> tuple[Sample, torch.Tensor]:
    shape = (stage.batch, spec.frames, len(spec.channels), *spec.grid.shape)
    planes = torch.randn(stage.batch, stage.rollout, spec.n_planes, *spec.grid.shape)
    sample = Sample(torch.randn(shape), torch.randn(stage.batch, stage.rollout, *shape[2:]), planes)
    return sample, torch.randn(stage.members, stage.batch, stage.rollout + 1, noise_size)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_bytes_are_those_of_a_run(spec: Spec, tmp_path: Path, precision: str) -> None:
    chosen = options(precision=precision)
    plan = plan_run(spec, chosen, device="cpu")
    run = Run(spec, chosen, tmp_path, "cpu", {})
    parameters = list(run.model.parameters())
    for planned in plan.stages:
        kept: dict[int, torch.Tensor] = {}

        def keep(value: torch.Tensor, kept: dict[int, torch.Tensor] = kept) -> torch.Tensor:
            kept[value.untyped_storage().data_ptr()] = value
            return value

        sample, noise = batch_of(spec, planned.stage, flat_noise_size(run.model.noise_shapes()))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            loss = run.gradients(sample, noise, planned.stage.as_stage(0))
        own = {value.data_ptr() for value in (*parameters, *run.model.buffers())}
        measured = sum(value.untyped_storage().nbytes() for pointer, value in kept.items() if pointer not in own)
        assert planned.activations == pytest.approx(measured, rel=0.15)
        run.step(loss, 1e-3)
    moments = [value for state in run.optimizer.state.values() for value in state.values()]
    assert plan.parameters == sum(value.numel() for value in parameters)
    assert plan.moments == sum(value.numel() * value.element_size() for value in moments)
    assert plan.gradients == sum(value.grad.numel() * 4 for value in parameters if value.grad is not None)
    assert plan.average == sum(value.numel() * 4 for value in run.averaged.parameters())


def test_operations_are_those_counted_by_hand(spec: Spec) -> None:
    """Twice each multiplication; backward takes two products for one forward, but none for the planes that come in."""
    model, counted = build(spec), []

    def convolution(module: nn.Module, given: Any, out: torch.Tensor) -> None:
        counted.append(2 * out.numel() * module.weight[0].numel())  # type: ignore[index, union-attr]

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(convolution)
    plan = plan_run(spec, options())
    stage = plan.stages[0].stage
    sample, noise = batch_of(spec, stage, flat_noise_size(model.noise_shapes()))
    model.loss(sample, noise, stage.as_stage(0))
    forward = sum(counted)
    assert 2.8 * forward < plan.stages[0].flops <= 3 * forward
    assert plan.flops == 10 * plan.stages[0].flops + 30 * plan.stages[1].flops
    assert plan.hours(2.0, 0.5) == pytest.approx(plan.flops / 1e12 / 3600)


def test_several_gpus_share_samples_or_members(spec: Spec) -> None:
    one, two = plan_run(spec, options()), plan_run(spec, options(), gpus=2)
    members = plan_run(spec, options(members_over=2), gpus=2)
    assert two.flops == pytest.approx(one.flops) == members.flops
    assert two.hours(1, 1) == one.hours(1, 1) / 2
    for whole, half, other in zip(one.stages, two.stages, members.stages, strict=True):
        assert half.activations == pytest.approx(whole.activations / 2, rel=0.05)
        assert other.activations == pytest.approx(whole.activations / 2, rel=0.15)
    assert two.gradients == 2 * one.gradients  # the buffer in which they are averaged
    with pytest.raises(InputError, match=r"stage 'two steps' has batch = 2, which 4 of the 4 processes"):
        plan_run(spec, options(), gpus=4)


def test_recomputing_keeps_about_one_step_and_costs_a_pass_more(spec: Spec) -> None:
    plain, lean = (
        plan_run(spec, options(stages=[STAGES[1] | {"rollout": 6, "recompute": recompute}])).stages[0]
        for recompute in (False, True)
    )
    assert lean.activations < 0.35 * plain.activations
    assert lean.flops == pytest.approx(4 / 3 * plain.flops, rel=0.05)


def test_low_precision_keeps_less_and_autocast_is_between(spec: Spec) -> None:
    full = plan_run(spec, options()).stages[0].activations
    cast, automatic = (
        plan_run(spec, options(precision="bfloat16"), device=device).stages[0].activations for device in ("cpu", "cuda")
    )
    assert 0.4 * full < cast < automatic < full


@pytest.fixture
def recipe(work_folder: Path) -> Path:
    (work_folder / "job.toml").write_text(RECIPE)
    return work_folder / "job.toml"


def test_the_grid_is_that_of_the_recipe_a_region_of_it_or_another_one(recipe: Path) -> None:
    assert planned_spec(read_recipe(recipe)).grid.matches(Grid.named("64x32"))
    assert planned_spec(read_recipe(recipe), Grid.named("240x121")).grid.shape == (121, 240)
    region = planned_spec(read_recipe(recipe, ["analysis.region=[30.0, 60.0, 0.0, 40.0]"]))
    assert not region.grid.is_global
    assert region.grid.latitude.min() >= 30
    with pytest.raises(InputError, match="the recipe keeps the grid of its source, .* give --grid, as 240x121"):
        planned_spec(read_recipe(recipe, ["analysis.grid=native"]))


def test_another_preset_takes_its_own_sizes(recipe: Path) -> None:
    own = read_recipe(recipe, ["model.options.widths=[8, 8]"])
    assert planned_spec(own).options["widths"] in ([8, 8], (8, 8))
    larger = planned_spec(with_preset(own, "small"))
    assert list(larger.options["widths"]) == [96, 128, 192]
    assert own["model"]["options"]["widths"] == [8, 8]


def test_the_command_plans_a_quarter_degree_without_an_analysis(recipe: Path) -> None:
    app = typer.Typer()
    commands.register(app)
    app.callback()(lambda: None)
    arguments = ["train", str(recipe), "--plan", "--gpus", "2", "--grid", "1440x721"]
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False).output
    assert "preset tiny" in shown
    assert "3 channels on 1440x721" in shown
    assert "on each of 2 GPUs: weights" in shown
    assert "crps: 4 updates of 2 samples x 2 members x 1 steps" in shown
    assert "at 30% of 989 TFLOP/s" in shown
    sizes = {line.split()[0]: line for line in shown.splitlines()}
    counts = [int(sizes[preset].split()[1].replace(",", "")) for preset in ("tiny", "small", "base", "large")]
    assert counts == sorted(counts)
    assert math.prod(counts) > 0
    assert not (recipe.parent / "runs").exists()
