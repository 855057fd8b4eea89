"""Networks in low precision: to sample with, and for the gradients of a loss. States and losses stay in float32."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from models.contract import Generator, Loss, Sample, Stage

Precision = Literal["float32", "bfloat16"]


def lower(generator: Generator, precision: Precision) -> None:
    """Cast the weights of the networks, in place, for sampling; scales and moments are buffers and stay in float32."""
    generator.compute_dtype = getattr(torch, precision)
    for value in generator.parameters():
        value.data = value.data.to(generator.compute_dtype)


def loss_and_gradients(model: Generator, sample: Sample, noise: Tensor, stage: Stage, precision: Precision) -> Loss:
    """The loss; its gradients are added to those of the float32 weights.

    On a GPU bfloat16 is autocast. On a CPU the weights are cast once, which is faster there: autocast casts at every layer.
    """
    if precision == "float32":
        return _backward(model.loss(sample, noise, stage))
    if noise.device.type not in ("cpu", "meta"):
        with torch.autocast(noise.device.type, torch.bfloat16):
            found = model.loss(sample, noise, stage)
        return _backward(found)
    before, model.compute_dtype = model.compute_dtype, torch.bfloat16
    low = {f"model.{name}": value.to(torch.bfloat16) for name, value in model.named_parameters()}
    try:
        found = torch.func.functional_call(_WithBackward(model), low, (sample, noise, stage))
    finally:
        model.compute_dtype = before
    return found


class _WithBackward(nn.Module):
    """The loss and its backward pass in one call: a step that is computed again there must find the weights as they were."""

    def __init__(self, model: Generator) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Sample, noise: Tensor, stage: Stage) -> Loss:
        return _backward(self.model(sample, noise, stage))


def _backward(found: Loss) -> Loss:
    found.total.backward()
    return found
