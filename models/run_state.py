"""The mutable state of one training run, and its files: checkpoint, state to resume from, metrics."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline.errors import GateError, InputError
from data_pipeline.recipe import differences, fingerprint
from models.checkpoint import build, read_tensors, save, write_tensors
from models.contract import Generator, Loss, Sample, Spec, Stage
from models.curriculum import TrainingOptions, Update
from models.distributed import ALONE, Ranks
from models.metrics import MetricsLog, Tally
from models.precision import loss_and_gradients
from models.starting_weights import start_from
from models.validation import Reconstruction, Validation


class Run:
    """Model, average, optimiser, tally and files of a run. Every process holds one; the files are rank 0's.

    Raises InputError if `out` holds a run of another spec or of options that would give other numbers, or not the same for all
    processes.
    """

    def __init__(
        self, spec: Spec, options: TrainingOptions, out: Path, device: str, provenance: Mapping[str, Any], ranks: Ranks = ALONE
    ) -> None:
        torch.manual_seed(options.seed)
        self.spec, self.options, self.device, self.ranks = spec, options, torch.device(device), ranks
        self.provenance = dict(provenance)
        self.checkpoint, self.folder = out / "checkpoint.safetensors", out / "training"
        self.state = self.folder / "state.safetensors"
        self.model = build(spec).to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        _check_terms(self.model, options)
        self.start: dict[str, Any] = {}
        if not self.state.exists():
            self.start = start_from(self.model, options, self.provenance)
        self.averaged = copy.deepcopy(self.model).eval()
        self.optimizer = torch.optim.AdamW(self._groups(), lr=1e-3, betas=options.betas)
        self.iteration, self.best, self.tally, self.saved = 0, math.inf, Tally(), time.monotonic()
        self.recipe = {"spec": spec.as_dict(), "training": options.decisive()}
        self._resume()
        ranks.check_resumed(self.iteration, self.device)
        self.provenance |= self.start
        self.model.members_group = ranks.group
        if options.compile:
            for part in self.model.children():
                part.compile()
        if ranks.leads:
            self.metrics = MetricsLog(self.folder, self.iteration, tensorboard=options.tensorboard)

    def gradients(self, sample: Sample, noise: Tensor, stage: Stage) -> Loss:
        """The loss in the precision asked for, and its gradients in the float32 weights."""
        self.optimizer.zero_grad(set_to_none=True)
        return loss_and_gradients(self.model, sample, noise, stage, self.options.precision)

    def step(self, loss: Loss, rate: float) -> float:
        """Mean of the gradients over the processes, clipping, update. Returns the loss, the same on every process.

        Nothing is changed if it or the norm of the gradient is not finite: then NaN is returned.
        """
        found, parts = loss.total.detach().float(), torch.tensor(list(loss.parts.values()), device=self.device)
        weights = [value for value in self.model.parameters() if value.grad is not None]
        self.ranks.mean_([found, parts, *[value.grad for value in weights if value.grad is not None]])
        norm = float(torch.nn.utils.clip_grad_norm_(weights, self.options.clip))
        value = float(found)
        if not (math.isfinite(value) and math.isfinite(norm)):
            self.tally.skip()
            return math.nan
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.tally.add(value, norm, dict(zip(loss.parts, parts.tolist(), strict=True)))
        return value

    def begin(self, update: Update) -> None:
        """The average starts afresh from the weights that enter a stage, the best score if another target is learned."""
        self.ranks.same_(list(self.model.state_dict().values()))
        self.averaged.load_state_dict(self.model.state_dict())
        if update.new_target:
            self.best = math.inf

    @torch.no_grad()
    def average_weights(self, position: int) -> None:
        """Warm exponential average: decay min(ema, (1 + k) / (10 + k)) after k updates of the stage."""
        decay = min(self.options.ema, (1 + position) / (10 + position))
        for average, value in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
            average.lerp_(value, 1 - decay)

    def keep(self, measured: Validation | Reconstruction, update: Update, diagnostics: Mapping[str, float]) -> dict[str, Any]:
        """Log a validation, write the checkpoint if it is the best so far, and the state to resume from; returns the line."""
        better = measured.score < self.best
        if better:
            self.best = measured.score
        line = {
            "iteration": self.iteration, "stage": update.stage.name, "target": update.stage.target,
            "rate": update.stage.rate_at(update.position), **self.tally.means(), "best": self.best, **measured.as_dict(),
            "diagnostics": dict(diagnostics),
        }  # fmt: skip
        self.tally = self.tally.renewed()
        if self.ranks.leads:
            if better:
                scores = {"iteration": self.iteration, "target": update.stage.target, "validation": measured.as_dict()}
                dtype = getattr(torch, self.options.checkpoint_dtype)
                save(self.checkpoint, self.spec, self.averaged.state_dict(), {**self.provenance, **scores}, dtype)
            self.metrics.write(line)
            self.save_state()
        return line

    def save_if_due(self) -> None:
        """Save the state if that was last done `save_seconds` ago."""
        if self.ranks.leads and time.monotonic() - self.saved >= self.options.save_seconds:
            self.save_state()

    def save_state(self) -> None:
        """Everything that decides the numbers to come: complete on the disk or not at all."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.averaged.state_dict().items()}
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in moments.items()}
        header = {
            "iteration": str(self.iteration), "best": repr(self.best), "tally": json.dumps(self.tally.as_dict()),
            "start": json.dumps(self.start, sort_keys=True), "recipe": json.dumps(self.recipe, sort_keys=True),
            "fingerprint": fingerprint(self.recipe),
        }  # fmt: skip
        write_tensors(self.state, tensors, header)
        self.saved = time.monotonic()

    def finish(self) -> Path:
        """The checkpoint. Raises GateError if no validation of the last target gave a finite score."""
        if not math.isfinite(self.best):
            raise GateError(f"training: no validation of target {self.options.stages[-1].target!r} gave a finite score")
        return self.checkpoint

    def _groups(self) -> list[dict[str, Any]]:
        """Weight decay for matrices and kernels only: on the noise maps' biases and gains it would put the noise to sleep."""
        groups: dict[bool, list[Tensor]] = {True: [], False: []}
        for name, value in self.model.named_parameters():
            groups[value.dim() > 1 and "to_local" not in name and "position" not in name].append(value)
        return [
            {"params": groups[True], "weight_decay": self.options.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ]

    def _resume(self) -> None:
        if not self.state.exists():
            return
        header, tensors = read_tensors(self.state)
        if header["fingerprint"] != fingerprint(self.recipe):
            plain = json.loads(json.dumps(self.recipe))
            old = _lengthened(_with_defaults(json.loads(header["recipe"])), plain["training"]["stages"])
            changed = "\n".join(f"  - {line}" for line in differences(old, plain))
            if changed:
                raise InputError(
                    f"{self.folder} holds a run of another recipe; give another --out, or delete it. Changed:\n{changed}"
                )
        self.iteration, self.best = int(header["iteration"]), float(header["best"])
        self.tally, self.start = Tally(**json.loads(header.get("tally", "{}"))), json.loads(header.get("start", "{}"))
        self.model.load_state_dict(_below(tensors, "model."))
        self.averaged.load_state_dict(_below(tensors, "average."))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _below(tensors, "optimizer.").items():
            index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})


def _check_terms(model: Generator, options: TrainingOptions) -> None:
    """Raise InputError for weights of terms that the family's loss does not have: they would be ignored."""
    faults = [
        f"stage {stage.name!r}: {term} = {getattr(stage, term):g}"
        for stage in options.stages
        for term in ("bands", "spectral", "kl", "posterior")
        if getattr(stage, term) and term not in model.terms
    ]
    if faults:
        raise InputError(
            f"training: model family {model.spec.family!r} has a use for {', '.join(model.terms) or 'none of them'}, not for:\n"
            + "\n".join(f"  - {fault}" for fault in faults)
        )


def _with_defaults(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a state, options that it does not name yet at their defaults: those are what it was trained with."""
    options = {key: value for key, value in recipe["training"].items() if key in TrainingOptions.model_fields}
    return {**recipe, "training": {**recipe["training"], **TrainingOptions.model_validate(options).decisive()}}


def _lengthened(recipe: dict[str, Any], stages: list[dict[str, Any]]) -> dict[str, Any]:
    """The recipe of a state with the stages that came to its own at the end: nothing that was computed depends on them."""
    own = recipe["training"]["stages"]
    return {**recipe, "training": {**recipe["training"], "stages": stages}} if stages[: len(own)] == own else recipe


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
