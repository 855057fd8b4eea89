"""The gain of each channel and zonal wavenumber with which long roll-outs have the climate's power (`models.spectral_gain`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from data_pipeline.batches import Samples
from data_pipeline.errors import GateError
from data_pipeline.forcings import Forcings, standardised_static
from models.checkpoint import PROOF, build, load, read_tensors, write_tensors
from models.contract import Generator, Sample, Spec, flat_noise_size
from models.precision import Precision, lower
from models.spectral_gain import SpectralGain

FIRST_WAVE = 4  # longer waves are the circulation itself, and a year or two of them a small sample
LIMITS = (0.02, 3.0)  # of a gain
RATE = (0.01, 0.1, 0.5)  # of the update, least, first, most: a gain of every step acts many times, one at the output once
CLOSE = 0.03  # log power ratio that is left alone


def fit_spectrum(
    checkpoint: Path, analysis: xr.Dataset, out: Path, *, conserve: Sequence[str] = (), inits: int = 24, days: float = 60.0,
    rounds: int = 12, seed: int = 1, precision: Precision = "float32",
    report: Callable[[int, np.ndarray], None] = lambda done, ratio: None,
) -> Path:  # fmt: skip
    """Write `out`: the checkpoint with a spectral gain, with which members have the power of the analyses in the second half of
    roll-outs of `days`.

    One member from each of `inits` dates spread over the training period, its valid times the truth's sample; after each of
    `rounds` roll-outs log gain moves against the log of the power ratio (channel, wavenumber), which `report` gets. The best
    round is kept. conserve: channels whose global mean is kept from now on, see `FieldOptions`. What was fitted and left stands
    in the provenance; noise scale and post-processing are dropped: both are to be fitted anew. Raises InputError if the period
    is not in the analysis, GateError if a roll-out is not finite.
    """
    header, tensors = read_tensors(checkpoint)
    source = load(checkpoint, precision=precision)
    options = {
        **source.spec.options,
        "spectral_gain": True,
        "conserve": list(conserve) or source.spec.options.get("conserve", []),
    }
    spec = replace(source.spec, options=options)
    generator = build(spec)
    generator.load_state_dict({**generator.state_dict(), **source.state_dict()})
    lower(generator, precision)
    generator.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    filter_ = next(module for module in generator.modules() if isinstance(module, SpectralGain))
    steps = round(days * 24 / spec.step_hours)
    sample = _sample(spec, analysis, steps, inits)
    truth = _power(spec, sample.targets[:, steps // 2 :].flatten(0, 1))
    fitted = _Fit(filter_.gain)
    for done in range(1, rounds + 1):
        ratio = _late_power(generator, sample, seed) / truth
        if not bool(torch.isfinite(ratio).all()):
            raise GateError(f"{checkpoint}: round {done} of the spectral fit is not finite; nothing was written")
        report(done, ratio.numpy())
        fitted.update(ratio.log())
    filter_.gain.copy_(fitted.best)
    provenance = json.loads(header["provenance"])
    for knob in ("noise_scale", "calibration"):
        provenance.pop(knob, None)
    provenance["spectrum_fit"] = {
        "checkpoint_sha256": source.sha256, "inits": inits, "days": days, "rounds": rounds, "seed": seed, "precision": precision,
        "mean_abs_log_ratio": fitted.misses,
    }  # fmt: skip
    name = next(name for name in generator.state_dict() if name.endswith("gain.gain"))
    kept = {key: value for key, value in tensors.items() if not key.startswith(PROOF)}
    kept[name] = filter_.gain
    new = {key: value for key, value in header.items() if key != "proof"}
    new |= {"spec": json.dumps(spec.as_dict(), sort_keys=True), "provenance": json.dumps(provenance, sort_keys=True)}
    return write_tensors(out, kept, new)


class _Fit:
    """Gains moved against log power ratios, each at its own rate: it grows while the sign stays, and halves when it turns."""

    def __init__(self, gain: Tensor) -> None:
        self.gain, self.best = gain, gain.clone()
        self.rate, self.before = torch.full_like(gain, RATE[1]), torch.zeros_like(gain)
        self.misses: list[float] = []

    def update(self, ratio: Tensor) -> None:
        """After a roll-out with `gain`: ratio, the log of members' power over the truth's (channel, wavenumber)."""
        ratio = ratio.float()
        self.misses.append(float(ratio[:, FIRST_WAVE:].abs().mean()))
        if self.misses[-1] == min(self.misses):
            self.best = self.gain.clone()
        turned = ratio * self.before < 0
        self.rate = torch.where(turned, self.rate / 2, torch.where(self.before == 0, self.rate, self.rate * 1.4)).clamp(
            RATE[0], RATE[2]
        )
        moved = self.gain.log() - torch.where(ratio.abs() > CLOSE, self.rate * ratio.clamp(-2, 2), 0.0)
        moved[:, :FIRST_WAVE] = 0.0
        self.gain.copy_(moved.exp().clamp(*LIMITS))
        self.before = ratio


def _sample(spec: Spec, analysis: xr.Dataset, steps: int, inits: int) -> Sample:
    first, _, last = spec.training_period.partition("/")
    moments = xr.Dataset({"mean": ("channel", list(spec.mean)), "std": ("channel", list(spec.std))})
    forcings = Forcings(spec.forcings, spec.grid, spec.step, standardised_static(analysis, spec.forcings))
    samples = Samples(analysis, spec.parsed_channels, moments, forcings, (first, last), step=spec.step, frames=spec.frames)
    starts = samples.starts(steps)
    batch = samples.batch(starts[np.linspace(0, len(starts) - 1, inits).astype(int)], steps)
    return Sample(*(torch.from_numpy(array) for array in (batch.frames, batch.targets, batch.forcings)))


@torch.inference_mode()
def _late_power(generator: Generator, sample: Sample, seed: int, rows: int = 8) -> Tensor:
    """Mean zonal power (channel, wavenumber) of members in the second half of the roll-outs."""
    size, steps = flat_noise_size(generator.noise_shapes()), sample.targets.shape[1]
    found = []
    for first in range(0, len(sample.frames), rows):
        own = slice(first, first + rows)
        frames, forcings = sample.frames[own], sample.forcings[own]
        draws = np.random.Generator(np.random.Philox(key=seed, counter=[0, 2, 2, first]))
        state = generator.initial(frames, forcings[:, 0], _noise(draws, len(frames), size))
        for k in range(steps):
            state = generator.step(state, forcings[:, k], _noise(draws, len(frames), size))
            if k >= steps // 2:
                found.append(_power(generator.spec, generator.fields(state)) * len(frames))
    return torch.stack(found).sum(0) / (len(sample.frames) * (steps - steps // 2))


def _noise(draws: np.random.Generator, rows: int, size: int) -> Tensor:
    return torch.from_numpy(draws.standard_normal((rows, size), dtype=np.float32))


def _power(spec: Spec, fields: Tensor) -> Tensor:
    """Mean zonal power (channel, wavenumber) of normalised fields (N, C, H, W), in physical units, area-weighted; float64."""
    found = torch.zeros(len(spec.channels), len(spec.longitude) // 2 + 1, dtype=torch.float64)
    weight = torch.from_numpy(spec.grid.area_weights)[:, :1]
    for few in fields.split(64):
        physical = torch.from_numpy(spec.denormalise(few.numpy())).double()
        found += ((torch.fft.rfft(physical).abs() ** 2) * weight).mean(-2).sum(0)
    return found / len(fields)
