"""The gains and offsets with which long roll-outs have the climate's power and global means (`models.climate_correction`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from data_pipeline.errors import GateError
from models.checkpoint import PROOF, build, load, read_tensors, write_tensors
from models.climate_correction import ClimateCorrection
from models.contract import Generator, Sample, Spec, flat_noise_size
from models.precision import Precision, lower
from models.validation import samples_of

FIRST_WAVE = 4  # longer waves are the circulation itself, and a year or two of them a small sample
LIMITS = (0.02, 3.0)  # of a gain
RATES = (0.01, 0.1, 0.5)  # of gains, least, first, most: one of every step acts many times
ONCE = 0.5  # the first rate of gains that act on what is decoded, once
OFFSET_RATES = (0.002, 0.02, 0.2)  # the same of offsets: a drift goes within some ten days
CLOSE = 0.03  # log power ratio that is left alone
TOGETHER = 8  # roll-outs at once


@dataclass(frozen=True)
class Departure:
    """Of members from the truth in the second half of roll-outs: power, log of the ratio (channel, wavenumber); mean (channel,),
    of the global means, normalised; usual (channel,), the std of the truth's global means about their seasonal march."""

    power: Tensor
    mean: Tensor
    usual: Tensor

    @property
    def drift(self) -> Tensor:
        """mean / usual."""
        return self.mean / self.usual

    @property
    def typical_factor(self) -> float:
        """By which power is off, geometric mean over channels and wavenumbers."""
        return float(self.power[:, FIRST_WAVE:].abs().mean().exp())

    @property
    def worst_factor(self) -> float:
        """The largest one."""
        return float(self.power[:, FIRST_WAVE:].abs().max().exp())

    @property
    def typical_drift(self) -> float:
        """Mean over channels of |drift|."""
        return float(self.drift.abs().mean())

    @property
    def worst_drift(self) -> float:
        """The largest |drift|."""
        return float(self.drift.abs().max())

    @property
    def miss(self) -> float:
        """One number for both: what the best round has least of."""
        return float(self.power[:, FIRST_WAVE:].abs().mean()) + 0.1 * self.typical_drift


def fit_climate(
    checkpoint: Path, analysis: xr.Dataset, out: Path, *, conserve: Sequence[str] = (), inits: int = 16, days: float = 60.0,
    rounds: int = 12, seed: int = 1, precision: Precision = "float32",
    report: Callable[[int, Departure], None] = lambda done, found: None,
) -> Path:  # fmt: skip
    """Write `out`: the checkpoint with a climate correction, with which members have the power by wavenumber and the global means
    of the analyses in the second half of roll-outs of `days`.

    One member from each of `inits` dates spread over the training period, compared with the truth at the same valid times; after
    each of `rounds` roll-outs gains and offsets move against what was found. The best round is kept. Diagnostic channels are left
    alone (gains of rain made its CRPS on the planet's validation dates 1.7 % worse), conserved ones get no offset. conserve:
    channels whose global mean is kept from now on, see `FieldOptions`. The noise is scaled as the checkpoint says. What was
    fitted stands in the provenance; a sample forecast is dropped, as it is another forecast now. Raises InputError if the period
    is not in the analysis, GateError if a roll-out is not finite.
    """
    header, tensors = read_tensors(checkpoint)
    source = load(checkpoint, precision=precision)
    options = {**source.spec.options, "climate_correction": True}
    options["conserve"] = list(conserve or options.get("conserve", ()))
    spec = replace(source.spec, options=options)
    generator, name, correction = _corrected(spec, source, precision)
    steps = round(days * 24 / spec.step_hours)
    sample, scale = _sample(spec, analysis, steps, inits), float(source.provenance.get("noise_scale", 1.0))
    truth = _Climate.of(spec, sample.targets[:, steps // 2 :])
    # of what is decoded, an offset would shift the first lead as much as the last
    shifted = torch.tensor(
        [generator.steps_fields and label not in (*spec.diagnostic, *spec.options["conserve"]) for label in spec.channels]
    )
    shaped = torch.tensor([label not in spec.diagnostic for label in spec.channels])
    fit = _Fit(correction, shaped, shifted, RATES[1] if generator.steps_fields else ONCE)
    for done in range(1, rounds + 1):
        found = truth.departure(_Climate.of(spec, _late(generator, sample, seed, scale)))
        if not np.isfinite(found.miss):
            raise GateError(f"{checkpoint}: round {done} of the climate fit is not finite; nothing was written")
        report(done, found)
        fit.update(found)
    provenance = json.loads(header["provenance"])
    provenance["climate_fit"] = {
        "checkpoint_sha256": source.sha256, "inits": inits, "days": days, "rounds": rounds, "seed": seed, "precision": precision,
        "noise_scale": scale, "misses": fit.misses,
    }  # fmt: skip
    kept = {key: value for key, value in tensors.items() if not key.startswith(PROOF)} | fit.best_tensors(name)
    new = {key: value for key, value in header.items() if key != "proof"}
    new |= {"spec": json.dumps(spec.as_dict(), sort_keys=True), "provenance": json.dumps(provenance, sort_keys=True)}
    return write_tensors(out, kept, new)


def _corrected(spec: Spec, source: Generator, precision: Precision) -> tuple[Generator, str, ClimateCorrection]:
    """A generator with the weights of `source`, its correction, and that one's name among the tensors."""
    generator = build(spec)
    generator.load_state_dict({**generator.state_dict(), **source.state_dict()})
    lower(generator, precision)
    generator.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    name, correction = next(each for each in generator.named_modules() if isinstance(each[1], ClimateCorrection))
    return generator, name, correction


@dataclass(frozen=True)
class _Climate:
    """power (channel, wavenumber): mean zonal power in physical units; means (date, time, channel): global means, normalised."""

    power: Tensor
    means: Tensor

    @classmethod
    def of(cls, spec: Spec, fields: Tensor) -> _Climate:
        """Of normalised fields (date, time, C, H, W)."""
        area = torch.from_numpy(spec.grid.area_weights)
        means = torch.stack([(each.double() * area).mean((-2, -1)) for each in fields])
        power = torch.stack([_power(spec, each) for each in fields]).mean(0)
        return cls(power, means)

    def departure(self, other: _Climate) -> Departure:
        """Of `other` from this one, the truth."""
        usual = (self.means - self.means.mean(1, keepdim=True)).std((0, 1))
        return Departure((other.power / self.power).log(), (other.means - self.means).mean((0, 1)), usual)


class _Fit:
    """Gains and offsets moved against departures, each at its own rate: it grows while the sign stays, and halves at a turn."""

    def __init__(self, correction: ClimateCorrection, shaped: Tensor, shifted: Tensor, rate: float) -> None:
        self.correction, self.shaped, self.shifted, self.misses = correction, shaped, shifted, list[float]()
        self.rates = [torch.full_like(correction.gain, rate), torch.full_like(correction.offset, OFFSET_RATES[1])]
        self.before = [torch.zeros_like(rate) for rate in self.rates]
        self.best = (correction.gain.clone(), correction.offset.clone())

    def update(self, found: Departure) -> None:
        """After a roll-out with the present gains and offsets."""
        gain, offset = self.correction.gain, self.correction.offset
        self.misses.append(found.miss)
        if found.miss == min(self.misses):
            self.best = (gain.clone(), offset.clone())
        power, mean = found.power.float(), found.mean.float()
        self._adapt(0, power, RATES)
        self._adapt(1, mean, OFFSET_RATES)
        moved = gain.log() - torch.where(power.abs() > CLOSE, self.rates[0] * power.clamp(-2, 2), 0.0)
        moved[:, :FIRST_WAVE], moved[~self.shaped] = 0.0, 0.0
        gain.copy_(moved.exp().clamp(*LIMITS))
        offset.sub_(torch.where(self.shifted, self.rates[1] * mean, 0.0))

    def _adapt(self, i: int, now: Tensor, limits: tuple[float, float, float]) -> None:
        factor = 1 + 0.4 * (now * self.before[i] > 0).float() - 0.5 * (now * self.before[i] < 0).float()
        self.rates[i] = (self.rates[i] * factor).clamp(limits[0], limits[2])
        self.before[i] = now

    def best_tensors(self, name: str) -> dict[str, Tensor]:
        """The best round's, by name among the generator's tensors."""
        return {f"{name}.gain": self.best[0], f"{name}.offset": self.best[1]}


def _sample(spec: Spec, analysis: xr.Dataset, steps: int, inits: int) -> Sample:
    samples = samples_of(spec, analysis, spec.training_period)
    starts = samples.starts(steps)
    batch = samples.batch(starts[np.linspace(0, len(starts) - 1, inits).astype(int)], steps)
    return Sample(*(torch.from_numpy(array) for array in (batch.frames, batch.targets, batch.forcings)))


@torch.inference_mode()
def _late(generator: Generator, sample: Sample, seed: int, scale: float) -> Tensor:
    """Normalised fields (date, time, C, H, W) of one member a date in the second half of the roll-outs."""
    size, steps = flat_noise_size(generator.noise_shapes()), sample.targets.shape[1]
    found = torch.empty_like(sample.targets[:, steps // 2 :])
    for first in range(0, len(sample.frames), TOGETHER):
        own = slice(first, first + TOGETHER)
        frames, forcings = sample.frames[own], sample.forcings[own]
        draws = np.random.Generator(np.random.Philox(key=seed, counter=[0, 2, 2, first]))

        def noise(draws: np.random.Generator = draws, rows: int = len(frames)) -> Tensor:
            return scale * torch.from_numpy(draws.standard_normal((rows, size), dtype=np.float32))

        state = generator.initial(frames, forcings[:, 0], noise())
        for k in range(steps):
            state = generator.step(state, forcings[:, k], noise())
            if k >= steps // 2:
                found[own, k - steps // 2] = generator.fields(state)
    return found


def _power(spec: Spec, fields: Tensor) -> Tensor:
    """Mean zonal power (channel, wavenumber) of normalised fields (N, C, H, W), in physical units, area-weighted; float64."""
    physical = torch.from_numpy(spec.denormalise(fields.numpy())).double()
    weight = torch.from_numpy(spec.grid.area_weights)[:, :1]
    return ((torch.fft.rfft(physical).abs() ** 2) * weight).mean((0, -2))
