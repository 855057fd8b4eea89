"""What a training needs, before anything is bought: parameters, operations, memory and hours, from the recipe alone.

The model is built on the meta device, where tensors have shapes and no values: any grid can be planned on any machine. A stage's
loss runs there once, forward and backward, on the share of one GPU: operations are counted by `torch.utils.flop_counter`,
activations are what autograd keeps between the two.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor
from torch.fx.experimental import _config as symbolic
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from data_pipeline.errors import InputError
from data_pipeline.grid import Grid
from data_pipeline.plan import AnalysisSection
from data_pipeline.recipe import section
from data_pipeline.region import grid_inside
from data_pipeline.schema import Channel
from models.checkpoint import build
from models.contract import Generator, Sample, Spec, flat_noise_size
from models.curriculum import StageOptions, TrainingOptions
from models.distributed import Ranks
from models.precision import Precision, loss_and_gradients
from models.recipe import make_spec, model_section


@dataclass(frozen=True)
class StagePlan:
    """One stage on one GPU. flops: of an update on all GPUs; activations: bytes kept for the backward pass on one."""

    stage: StageOptions
    flops: float
    activations: int

    @property
    def pass_flops(self) -> float:
        """Operations of one step of one member of one sample, forward and backward."""
        return self.flops / self.stage.passes


@dataclass(frozen=True)
class TrainingPlan:
    """Bytes are those on one GPU: weights, their average, gradients (and the buffer they are averaged in), moments of AdamW."""

    spec: Spec
    gpus: int
    parameters: int
    weights: int
    average: int
    gradients: int
    moments: int
    stages: tuple[StagePlan, ...]

    @property
    def fixed(self) -> int:
        """Bytes that every stage needs."""
        return self.weights + self.average + self.gradients + self.moments

    @property
    def peak(self) -> int:
        """Bytes of the largest stage, without temporaries and the library's own."""
        return self.fixed + max(stage.activations for stage in self.stages)

    @property
    def flops(self) -> float:
        """Operations of the whole training."""
        return sum(plan.flops * plan.stage.iterations for plan in self.stages)

    def hours(self, tflops: float, utilisation: float) -> float:
        """Hours at `tflops` 1e12 operations a second and GPU, of which `utilisation` is reached; validations not counted."""
        return self.flops / (self.gpus * tflops * 1e12 * utilisation) / 3600


def planned_spec(recipe: Mapping[str, Any], grid: Grid | None = None) -> Spec:
    """The spec of a recipe's model with statistics that mean nothing: no analysis is needed.

    grid: in place of that of the recipe. Raises InputError if neither names one.
    """
    analysis = section(recipe, "analysis", AnalysisSection)
    model = model_section(recipe)
    if grid is None:
        if analysis.grid == "native":
            raise InputError("the recipe keeps the grid of its source, which a plan does not open; give --grid, as 240x121")
        grid = Grid.named(analysis.grid) if analysis.region is None else grid_inside(Grid.named(analysis.grid), analysis.region)
    labels = [Channel.parse(label).label for label in analysis.channels]
    numbers = {name: ("channel", np.full(len(labels), value)) for name, value in (("mean", 0.0), ("std", 1.0))}
    hours = model.interval_hours
    by_step = {"tendency_std_by_step": (("step", "channel"), np.ones((len(hours), len(labels))))}
    return make_spec(
        xr.Dataset(coords=grid.coords()), xr.Dataset({**numbers, **by_step}, {"channel": labels, "step": list(hours)}),
        family=model.family, diagnostic=model.diagnostic, forcings=model.forcings, step_hours=model.step_hours,
        frames=model.frames, training_period="", validation_period="", options=model.options.filled(), intervals=hours,
    )  # fmt: skip


def plan_run(spec: Spec, options: TrainingOptions, *, gpus: int = 1, device: str = "cuda") -> TrainingPlan:
    """The plan of a training on `gpus` GPUs, or on as many processes of a CPU (`device="cpu"`).

    Raises InputError if a stage's batch or members cannot be shared out evenly.
    """
    ranks = Ranks(0, gpus, options.members_over)
    for stage in options.stages:
        ranks.check(stage.name, stage.batch, stage.members)
    with torch.device("meta"):
        model = build(spec).train()
    parameters = list(model.parameters())
    count = sum(value.numel() for value in parameters)
    return TrainingPlan(
        spec=spec, gpus=gpus, parameters=count, weights=4 * count, average=4 * count,
        gradients=4 * count * (2 if gpus > 1 else 1), moments=8 * count + 4 * len(parameters),
        stages=tuple(_plan_stage(model, stage, options, ranks, device) for stage in options.stages),
    )  # fmt: skip


def _plan_stage(model: Generator, stage: StageOptions, options: TrainingOptions, ranks: Ranks, device: str) -> StagePlan:
    share = stage.model_copy(update={"batch": stage.batch // ranks.samples[1], "members": stage.members // ranks.members[1]})
    with FlopCounterMode(display=False) as counter:
        kept = kept_bytes(model, share, options.precision, device, "meta")
    if stage.recompute:  # what one step keeps comes back while its gradient is computed
        single = share.model_copy(update={"rollout": 1, "recompute": False})
        kept += kept_bytes(model, single, options.precision, device, "meta")
    return StagePlan(stage, float(counter.get_total_flops()) * ranks.size, kept)


def kept_bytes(model: Generator, stage: StageOptions, precision: Precision, device: str, where: str) -> int:
    """Bytes that autograd keeps for the backward pass of one loss, which is also run; parameters are not counted.

    device: where the training is to run, "cpu" or "cuda". where: where to count, "meta", or "cpu" with a model that has values.
    """
    spec = model.spec
    shape = (stage.batch, spec.frames, len(spec.channels), *spec.grid.shape)
    with torch.device(where):
        sample = Sample(
            torch.randn(shape), torch.randn(shape[0], stage.rollout, *shape[2:]),
            torch.randn(shape[0], stage.rollout, spec.n_planes, *shape[3:]),
            torch.full(shape[:1], spec.step_hours) if spec.intervals else None,
        )  # fmt: skip
        noise = torch.randn(stage.members, stage.batch, stage.rollout + 1, flat_noise_size(model.noise_shapes()))
    known = {_storage(value) for value in (*model.parameters(), *model.buffers())}
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(value: Tensor) -> Tensor:
        if _storage(value) not in known:
            kept[_storage(value)] = (value.untyped_storage().nbytes(), value.detach())
        return value

    automatic = precision == "bfloat16" and device != "cpu"
    modes: list[Any] = [torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value)]
    if where == "meta":  # a mask without values is taken to choose everything
        modes += [_Blind(), symbolic.patch(meta_nonzero_assume_all_nonzero=True)]  # type: ignore[attr-defined]
    modes += [_Autocast()] if automatic else []
    with contextlib.ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        loss_and_gradients(model, sample, noise, stage.as_stage(stage.iterations // 2), "float32" if automatic else precision)
    model.zero_grad(set_to_none=True)
    return sum(size for size, _ in kept.values())


class _Blind(TorchDispatchMode):
    """Numbers read from tensors without values are 0: the named parts of a loss, for instance."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0
        return func(*args, **(kwargs or {}))


class _Autocast(TorchFunctionMode):
    """What CUDA autocast does, for the meta device, which has none: products in bfloat16, norms and softmax in float32."""

    LOW = (F.conv2d, F.conv_transpose2d, F.linear, F.scaled_dot_product_attention, torch.matmul, Tensor.matmul, torch.bmm)
    HIGH = (F.group_norm, F.layer_norm, F.softmax, torch.softmax)

    def __init__(self) -> None:
        super().__init__()
        self.weights: dict[int, Tensor] = {}  # each is cast once

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        dtype = torch.bfloat16 if func in self.LOW else torch.float32 if func in self.HIGH else None
        kwargs = kwargs or {}
        if dtype is not None:
            args = tuple(self._cast(value, dtype) for value in args)
            kwargs = {name: self._cast(value, dtype) for name, value in kwargs.items()}
        return func(*args, **kwargs)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not isinstance(value, torch.nn.Parameter):
            return value.to(dtype)
        return self.weights.setdefault(id(value), value.to(dtype))


def _storage(value: Tensor) -> int:
    return value.untyped_storage()._cdata


def with_preset(recipe: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """The recipe with another size: what the preset fills in is left to it."""
    out = copy.deepcopy(dict(recipe))
    model = out.setdefault("model", {})
    options = {key: value for key, value in model.get("options", {}).items() if key not in ("widths", "blocks", "patch")}
    model["options"] = {**options, "preset": preset}
    return out
