"""Training in several processes, started by torchrun: who does what, and one reduction an update.

DistributedDataParallel is not used: it puts a prefix before every name in the state_dict, has to search for the parameters that a
stage leaves out, and its hooks know nothing of weights that are cast to low precision for one call. Here the gradients of the
float32 weights are averaged in one flat buffer after the backward pass, the loss with them. What is lost is their overlap.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.errors import InputError

TIMEOUT = dt.timedelta(hours=2)  # rank 0 gathers statistics of a stage while the others wait


@dataclass(frozen=True)
class Ranks:
    """The place of a process among those that train together.

    members_over: processes in a row that share the members of the same samples, `group` being theirs.
    """

    rank: int = 0
    size: int = 1
    members_over: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    @property
    def samples(self) -> tuple[int, int]:
        """(which, of how many) shares of each batch."""
        return self.rank // self.members_over, self.size // self.members_over

    @property
    def members(self) -> tuple[int, int]:
        """(which, of how many) shares of the members of a sample."""
        return self.rank % self.members_over, self.members_over

    def check(self, name: str, batch: int, members: int) -> None:
        """Raise InputError unless a stage's batch and members can be shared out evenly."""
        for what, count, shares in (("batch", batch, self.samples[1]), ("members", members, self.members_over)):
            if count % shares:
                raise InputError(
                    f"training: stage {name!r} has {what} = {count}, which {shares} of the {self.size} processes cannot share "
                    f"evenly; give a multiple of {shares}"
                )

    def share(self, noise: Tensor) -> Tensor:
        """This process's part of the joint batch's noise (members, batch, ...)."""
        (row, rows), (member, members) = self.samples, self.members
        return noise[member::members, row::rows]

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace float32 tensors by their mean over the processes, in one flat buffer; bitwise the same on every process."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def check_resumed(self, iteration: int, device: torch.device) -> None:
        """Raise InputError unless every process resumes after the same update."""
        if self.size == 1:
            return
        found = torch.zeros(self.size, dtype=torch.int64, device=device)
        found[self.rank] = iteration
        updates = sorted({int(each) for each in self.sum_(found)})
        if len(updates) > 1:
            raise InputError(
                f"training: the processes find states of {' and '.join(map(str, updates))} updates; --out must be one folder "
                f"that all of them see"
            )

    def same_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by those of rank 0."""
        if self.size > 1:
            for tensor in tensors:
                plain = tensor.contiguous()  # weights lie channels last, which collectives refuse
                dist.broadcast(plain, 0)
                tensor.copy_(plain)


ALONE = Ranks()


@contextlib.contextmanager
def joined(device: str, members_over: int = 1) -> Iterator[tuple[Ranks, str]]:
    """(place, device of this process) as torchrun's environment tells: gloo on CPUs, NCCL with one GPU a process.

    Without torchrun a process trains alone. Raises InputError if `members_over` does not divide the processes.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size % members_over:
        raise InputError(
            f"training.members_over = {members_over} does not divide {size} process{'es' if size > 1 else ''}; "
            f"start them with torchrun --nproc-per-node N"
        )
    if size == 1:
        yield ALONE, device
        return
    kind, _, number = device.partition(":")
    if number:
        raise InputError(f"device {device!r}: torchrun gives every process a GPU of its own; use --device {kind}")
    if kind == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        rank = dist.get_rank()
        groups = [dist.new_group(list(each)) for each in np.arange(size).reshape(-1, members_over)] if members_over > 1 else []
        yield Ranks(rank, size, members_over, groups[rank // members_over] if groups else None), device
        dist.barrier()
    finally:
        dist.destroy_process_group()
