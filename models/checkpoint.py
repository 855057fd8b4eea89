"""Checkpoints: one safetensors file, tensors plus a JSON header. No pickle, so a file from a stranger can be opened."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from data_pipeline.disk import sha256
from data_pipeline.errors import InputError
from data_pipeline.recipe import Section
from data_pipeline.store import version
from models.contract import Generator, Spec
from models.crps import CrpsGenerator, CrpsOptions
from models.latent_diffusion import LatentDiffusionGenerator, LatentDiffusionOptions
from models.precision import Precision, lower
from models.vae import VaeGenerator, VaeOptions

FORMAT = "plumecast-checkpoint-1"
PROOF = "proof."  # tensors of the sample forecast, see `models.proof`: no weights


class Family(NamedTuple):
    """The class of a family, and its settings in [model.options]."""

    generator: type[Generator]
    options: type[Section]


FAMILIES = {
    "crps": Family(CrpsGenerator, CrpsOptions),
    "vae": Family(VaeGenerator, VaeOptions),
    "latent_diffusion": Family(LatentDiffusionGenerator, LatentDiffusionOptions),
}


def build(spec: Spec) -> Generator:
    """An untrained generator of the spec's family. Raises InputError for a family that does not exist."""
    if spec.family not in FAMILIES:
        raise InputError(f"model family {spec.family!r} is not known; choose from {', '.join(FAMILIES)}")
    return FAMILIES[spec.family].generator(spec)


def save(
    path: str | Path,
    spec: Spec,
    weights: Mapping[str, Tensor],
    provenance: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a checkpoint atomically. provenance: plain data (recipe, data, scores, versions)."""
    header = {
        "format": FORMAT,
        "spec": json.dumps(spec.as_dict(), sort_keys=True),
        "provenance": json.dumps({**provenance, "plumecast": version(), "torch": torch.__version__}, sort_keys=True),
    }
    return write_tensors(path, {name: value.detach().to(dtype) for name, value in weights.items()}, header)


def load(path: str | Path, device: str = "cpu", *, step_hours: int | None = None, precision: Precision = "float32") -> Generator:
    """The generator of a checkpoint, in evaluation mode.

    step_hours: the lead interval that it steps, one of those that it was trained on (`Spec.intervals`); the spec's step unless
    given. Weights, and knobs fitted on validation, are the same for all. precision: of the networks; states stay in float32.

    Sets `.provenance` (dict) and `.sha256` on it. Raises InputError for a missing file, another format, tensors that do not fit
    the spec or are not finite, an interval that it was not trained on, or a device that is not there.
    """
    path = Path(path)
    check_device(device)
    _check_there(path)
    header, everything = read_tensors(path)
    tensors = {name: value for name, value in everything.items() if not name.startswith(PROOF)}
    generator = build(_spec_of(header, step_hours, path))
    try:
        generator.load_state_dict({name: value.float() for name, value in tensors.items()})
    except RuntimeError as error:
        raise InputError(f"checkpoint {path} does not fit its own spec: {error}") from None
    bad = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise InputError(f"checkpoint {path}: tensor {bad[0]} holds values that are not finite")
    generator.provenance = json.loads(header["provenance"])
    generator.sha256 = sha256(path)
    lower(generator, precision)
    return generator.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def outline(path: str | Path, *, step_hours: int | None = None, precision: Precision = "float32") -> Generator:
    """The generator of a checkpoint with arbitrary weights: what a forecast's plan and its checks need.

    Only the header of the file is decoded. Raises InputError for a missing file, another format, or an interval that it was not
    trained on.
    """
    path = Path(path)
    _check_there(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as safetensors ({error}); it may be cut short") from None
    generator = build(_spec_of(header, step_hours, path))
    generator.provenance = json.loads(header["provenance"])
    generator.sha256 = sha256(path)
    lower(generator, precision)
    return generator.eval()


def _check_there(path: Path) -> None:
    if not path.exists():
        raise InputError(
            f"checkpoint {path} not found; train one with `plumecast train RECIPE`, or leave it out for the shipped one"
        )


def _spec_of(header: Mapping[str, str], step_hours: int | None, path: Path) -> Spec:
    if header.get("format") != FORMAT:
        raise InputError(f"{path} is not a plumecast checkpoint (format {header.get('format')!r}, expected {FORMAT!r})")
    spec = Spec.from_dict(json.loads(header["spec"]))
    return spec if step_hours is None else _stepping(spec, step_hours, path)


def _stepping(spec: Spec, hours: int, path: Path) -> Spec:
    """The spec of the same weights with another step."""
    rows = dict(zip(spec.intervals, spec.tendency_stds, strict=True)) or {spec.step_hours: spec.tendency_std}
    if hours not in rows:
        raise InputError(
            f"checkpoint {path} steps {' or '.join(map(str, rows))} h; asked for {hours} h: train it with that among "
            f"model.intervals"
        )
    return replace(spec, step_hours=hours, tendency_std=rows[hours])


def check_device(device: str) -> None:
    """Raise InputError unless torch can put a tensor on `device`."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {device!r} cannot be used here ({reason}); use --device cpu") from None


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> Path:
    """Write named tensors and a string header to one safetensors file: complete or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(_ordered(to_bytes({name: value.contiguous().cpu() for name, value in tensors.items()}, dict(header))))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return path


def _ordered(content: bytes) -> bytes:
    """A safetensors file with its metadata in alphabetical order: the library's is random, and equal files must hash alike."""
    size = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + size])
    entries["__metadata__"] = dict(sorted(entries["__metadata__"].items()))
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def read_tensors(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """(header, tensors) of a safetensors file. Raises InputError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as safetensors ({error}); it may be cut short") from None
