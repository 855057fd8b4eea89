"""The sample forecast that a checkpoint carries: any installation can prove that it still computes the same.

Its input needs no data: smooth random frames in the checkpoint's own normalised space, drawn from a fixed seed and rounded to
1/1024, so that the last bit of a cosine does not matter. The checkpoint keeps the SHA-256 of the whole forecast, a part of its
values, and what it was computed with.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.errors import GateError, InputError
from models.checkpoint import PROOF, load, read_tensors, write_tensors
from models.contract import Generator, device_of, flat_noise_size

SEED, MEMBERS, STEPS = 1979, 2, 2
VALUES = 1 << 16  # kept at most: a quarter of a MB
WAVES = 4  # smooth fields hold zonal and meridional wavenumbers below this


@dataclass(frozen=True)
class Verdict:
    """What a second computation found: the same bytes, or the largest difference in units of the tendency std."""

    identical: bool
    difference: float
    tolerance: float
    made_with: dict[str, Any]

    def __str__(self) -> str:
        if self.identical:
            return "bit-identical"
        return f"equal within {self.difference:.2g} of the tendency std (tolerance {self.tolerance:g})"


def attach(path: Path) -> None:
    """Compute the sample forecast of a checkpoint and write it into the file, unless it has one already."""
    header, tensors = read_tensors(path)
    if "proof" in header:
        return
    forecast = sample_forecast(load(path))
    about = {"sha256": _sha256(forecast), "seed": SEED, "members": MEMBERS, "steps": STEPS, **_installation()}
    kept = {**tensors, f"{PROOF}fields": _part(forecast)}
    write_tensors(path, kept, {**header, "proof": json.dumps(about, sort_keys=True)})


def prove(path: Path, device: str = "cpu") -> Verdict:
    """Compute the sample forecast again and compare it with the one in the file.

    Raises InputError if the file has none, GateError if the forecasts differ by more than the tolerance: 0.01 of the tendency std
    on a CPU, 0.05 elsewhere, where convolutions may round their inputs to 10 bits (TF32).
    """
    header, tensors = read_tensors(path)
    if "proof" not in header:
        raise InputError(
            f"{path} carries no sample forecast; `plumecast checkpoint {path} --add-proof` adds what is computed here"
        )
    about = json.loads(header["proof"])
    generator = load(path, device)
    forecast = sample_forecast(generator, seed=about["seed"], members=about["members"], steps=about["steps"])
    spec = generator.spec
    unit = torch.tensor(np.array(spec.std) / np.array(spec.tendency_std), dtype=torch.float64)[:, None]
    difference = float(((_part(forecast).double() - tensors[f"{PROOF}fields"].double()) * unit).abs().max())
    tolerance = 0.01 if torch.device(device).type == "cpu" else 0.05
    verdict = Verdict(_sha256(forecast) == about["sha256"], difference, tolerance, about)
    if not verdict.identical and not difference <= tolerance:
        raise GateError(
            f"{path} does not compute what it did: its sample forecast differs by {difference:.3g} of the tendency std "
            f"(tolerance {tolerance:g}). It was made with {installation_text(about)}; here: {installation_text(_installation())}"
        )
    return verdict


@torch.inference_mode()
def sample_forecast(generator: Generator, *, seed: int = SEED, members: int = MEMBERS, steps: int = STEPS) -> Tensor:
    """Normalised fields (steps, members, C, H, W), float32 on the CPU, from smooth random frames, forcings and noise."""
    spec, device = generator.spec, device_of(generator)
    draws = np.random.Generator(np.random.Philox(key=seed))
    latest, change = (_smooth(draws, len(spec.channels), spec.grid.shape) for _ in range(2))
    relative = (np.array(spec.tendency_std) / np.array(spec.std))[:, None, None]
    frames = np.stack([latest - k * relative * change for k in reversed(range(spec.frames))])
    planes = np.stack([_smooth(draws, spec.n_planes, spec.grid.shape) for _ in range(steps)])
    start = _rounded(frames).to(device).expand(members, *frames.shape)
    forcings = _rounded(planes).to(device)[:, None].expand(steps, members, *planes.shape[1:])
    size = flat_noise_size(generator.noise_shapes())
    noise = torch.from_numpy(draws.standard_normal((steps + 1, members, size), dtype=np.float32)).to(device)
    state = generator.initial(start, forcings[0], noise[0])
    out = []
    for k in range(steps):
        state = generator.step(state, forcings[k], noise[k + 1])
        out.append(generator.fields(state).float().cpu())
    return torch.stack(out)


def installation_text(about: dict[str, Any]) -> str:
    """What a forecast was computed with, in a few words."""
    return f"torch {about['torch']}, numpy {about['numpy']}, {about['threads']} threads, {about['cpu']} on {about['machine']}"


def _installation() -> dict[str, Any]:
    return {
        "torch": torch.__version__, "numpy": np.__version__, "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(), "machine": platform.machine(),
    }  # fmt: skip


def _smooth(draws: np.random.Generator, count: int, shape: tuple[int, int]) -> np.ndarray:
    """`count` smooth random fields of about unit variance, periodic along the second axis."""
    amplitude = draws.standard_normal((2, count, WAVES, WAVES)) / WAVES * math.sqrt(2)
    across = np.cos(np.pi * np.arange(WAVES)[:, None] * (np.arange(shape[0]) + 0.5) / shape[0])
    angle = 2 * np.pi * np.arange(WAVES)[:, None] * np.arange(shape[1]) / shape[1]
    cosine, sine = (np.einsum("ckl,ky,lx->cyx", own, across, wave) for own, wave in zip(amplitude, _waves(angle), strict=True))
    return np.asarray(cosine + sine)


def _waves(angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.cos(angle), np.sin(angle)


def _rounded(values: np.ndarray) -> Tensor:
    return torch.from_numpy((np.round(values * 1024) / 1024).astype(np.float32))


def _part(forecast: Tensor) -> Tensor:
    """Every n-th point, so that at most VALUES numbers are kept; (steps, members, C, points)."""
    points = forecast.flatten(-2)
    return points[..., :: max(1, math.ceil(points.numel() / VALUES))].contiguous()


def _sha256(forecast: Tensor) -> str:
    return hashlib.sha256(forecast.contiguous().numpy().tobytes()).hexdigest()
