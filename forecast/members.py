"""The members of an initialisation in micro-batches of one size, shared out over checkpoints and devices."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.errors import InputError
from forecast import noise
from forecast.boundary import Boundary
from forecast.plan import ForecastPlan, member_block
from forecast.states import joined, rows_of
from models.checkpoint import check_device
from models.contract import Generator, Spec, device_of, flat_noise_size


def micro_batch(spec: Spec) -> int:
    """Members through the network at once: fixed by the grid alone, as matrix products differ in the last bit with it."""
    return member_block(spec.grid)


def check_together(specs: Sequence[Spec]) -> None:
    """Raise InputError, listing everything, unless the checkpoints of one forecast agree in channels, grid and step."""
    first, faults = specs[0], []
    for place, spec in enumerate(specs[1:], 2):
        if spec.channels != first.channels:
            faults.append(f"checkpoint {place} has the channels {', '.join(spec.channels)}; 1 has {', '.join(first.channels)}")
        if not spec.grid.matches(first.grid):
            faults.append(f"checkpoint {place} is on {spec.grid}; 1 on {first.grid}")
        if spec.step_hours != first.step_hours:
            faults.append(f"checkpoint {place} steps {spec.step_hours} h; 1 steps {first.step_hours} h")
    if faults:
        raise InputError("these checkpoints make no common forecast:\n" + "\n".join(f"  - {fault}" for fault in faults))


def share(members: Sequence[int], part: int, parts: int) -> tuple[int, ...]:
    """The members that checkpoint `part` of `parts` makes: member k is checkpoint (k - 1) mod parts, whatever the ensemble."""
    return tuple(member for member in members if (member - 1) % parts == part)


@dataclass
class MicroBatch:
    """Members of one checkpoint that go through its network together, and their state; the other rows of the batch are idle.

    part: number of the checkpoint; places: where its members stand among those that are made together; inside: among the
    checkpoint's; lines: the rows of the batch that are theirs, which depend on the member alone: so do its bits; group: number of
    the batch among the checkpoint's. pieces: in how many the batch goes through the network, for want of memory.
    """

    generator: Generator
    part: int
    members: tuple[int, ...]
    places: list[int]
    inside: list[int]
    lines: list[int]
    scale: float
    group: int = 0
    pieces: int = 1
    state: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.rows, self.device = micro_batch(self.generator.spec), device_of(self.generator)
        self.noise_size = flat_noise_size(self.generator.noise_shapes())

    def begin(self, plan: ForecastPlan, time: np.datetime64, frames: np.ndarray, planes: np.ndarray) -> None:
        """Start at `time`: from frames (F, C, H, W) of one analysis, or (member, F, C, H, W), each member from its own.

        planes: forcing of the first step.
        """
        if frames.ndim == 5:
            frames = frames[self._spread(self.inside)]
        start = torch.from_numpy(frames).to(self.device)
        start, forcing, draw = start.expand(self.rows, *start.shape[-4:]), self._alike(planes), self._noise(plan, time, 0)
        made = [self.generator.initial(start[rows], forcing[rows], draw[rows]) for rows in self._cuts]
        self.state = made[0] if self.pieces == 1 else joined(made)

    def step(
        self, plan: ForecastPlan, time: np.datetime64, k: int, planes: np.ndarray, edge: np.ndarray | None = None,
        boundary: Boundary | None = None,
    ) -> None:  # fmt: skip
        """Step k (from 1), and towards the ring's values `edge` (member or 1, C, H, W) if there is a boundary."""
        forcing, draw = self._alike(planes), self._noise(plan, time, k)
        if self.pieces == 1:
            self.state = self.generator.step(self.state, forcing, draw)
        else:
            self.state = joined(
                [self.generator.step(rows_of(self.state, rows), forcing[rows], draw[rows]) for rows in self._cuts]
            )
        if edge is not None and boundary is not None:
            rings = boundary.for_members(edge, self._spread(list(self.members)))
            target = torch.from_numpy(rings).to(self.device)
            weight = torch.from_numpy(boundary.weight(self.generator.spec.grid)).to(self.device)
            self.state = self.generator.nudge(self.state, target, weight)

    def decoded(self) -> np.ndarray:
        """Normalised fields (member, C, H, W)."""
        if self.pieces == 1:
            fields = self.generator.fields(self.state)
        else:
            fields = torch.cat([self.generator.fields(rows_of(self.state, rows)) for rows in self._cuts])
        return fields[self.lines].float().cpu().numpy()

    @property
    def _cuts(self) -> list[slice]:
        """The rows that go through the network together."""
        size = -(-self.rows // self.pieces)
        return [slice(first, first + size) for first in range(0, self.rows, size)]

    def _spread(self, values: list[int]) -> list[int]:
        """One value a row; idle rows repeat the first."""
        rows = [values[0]] * self.rows
        for line, value in zip(self.lines, values, strict=True):
            rows[line] = value
        return rows

    def _alike(self, planes: np.ndarray) -> Tensor:
        return torch.from_numpy(planes).to(self.device).expand(self.rows, *planes.shape)

    def _noise(self, plan: ForecastPlan, time: np.datetime64, step: int) -> Tensor:
        rows, seed = np.zeros((self.rows, self.noise_size), np.float32), int(plan.attrs["seed"])
        for line, member in zip(self.lines, self.members, strict=True):
            rows[line] = self.scale * noise.draw(seed, time, member, step, self.noise_size)
        return torch.from_numpy(rows).to(self.device)


def share_out(
    lanes: Sequence[Sequence[Generator]], plan: ForecastPlan, members: Sequence[int], pieces: int = 1
) -> list[list[MicroBatch]]:
    """The micro-batches of some members for each device's generators, dealt out in turns."""
    parts = len(lanes[0])
    scales = np.broadcast_to(np.asarray(plan.attrs.get("noise_scale", 1.0), float), parts)
    dealt: list[list[MicroBatch]] = [[] for _ in lanes]
    count = 0
    for part in range(parts):
        rows, groups = micro_batch(lanes[0][part].spec), defaultdict[int, list[tuple[int, int]]](list)
        for inside, member in enumerate(share(members, part, parts)):
            groups[(member - 1) // parts // rows].append((inside, member))
        for number, group in groups.items():
            inside_of, together = zip(*group, strict=True)
            lane, places = count % len(lanes), [members.index(member) for member in together]
            lines = [(member - 1) // parts % rows for member in together]
            batch = MicroBatch(
                lanes[lane][part], part, together, places, list(inside_of), lines, float(scales[part]), number, pieces
            )
            dealt[lane].append(batch)
            count += 1
    return [lane for lane in dealt if lane]


def on_devices(generators: Sequence[Generator], devices: Sequence[str]) -> list[list[Generator]]:
    """The generators on each device: themselves where they lie already, copies elsewhere, so that no two threads share one.

    Without `devices`, where they lie. Raises InputError for a device that is not there.
    """
    if not devices:
        return [list(generators)]
    for device in devices:
        check_device(device)
    lanes, used = [], set()
    for device in devices:
        lane = []
        for part, generator in enumerate(generators):
            stays = device_of(generator) == torch.device(device) and part not in used
            used |= {part} if stays else set()
            lane.append(generator if stays else copy.deepcopy(generator).to(device))
        lanes.append(lane)
    return lanes
