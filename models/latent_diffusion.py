"""The latent diffusion family: an autoencoder, and a diffusion model of the change of its latents from one step to the next.

The roll-out stays in latent space; fields are decoded where they are wanted. Trained in stages: `target = "autoencoder"`
without noise (encoder and decoder), then with noise (the decoder alone, on noisy latents), then `target = "forecast"`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from data_pipeline.errors import InputError
from data_pipeline.forcings import plane_names
from data_pipeline.schema import Channel
from models.autoencoder import Autoencoder, AutoencoderOptions, reconstruction_loss
from models.backbones.conditioning import cell_centres
from models.backbones.denoiser import Context, Denoiser, DenoiserOptions
from models.backbones.sphere import padding
from models.contract import Generator, Loss, Sample, Spec, Stage
from models.increments import VECTORS_ACROSS_POLE, FieldOptions, Increments
from models.losses import ensemble_loss, gathered
from models.samplers import Churn, dpm_solver_2m, heun, levels, preconditioning, regression_target

SCALARS = ("season", "hour")  # forcings that the whole network is told, not the tokens
SMALLEST = 1e-4  # latents and their changes are divided by a standard deviation that is at least this
LEVEL_EDGES = (0.1, 0.3, 1.0, 3.0)  # of the bins of sigma in which the loss is reported


class LatentDiffusionOptions(AutoencoderOptions, DenoiserOptions, FieldOptions):
    """Settings of the family, in units of a latent's standard deviation.

    latent_noise: on latents while the decoder is trained alone. past_noise: on the past latents in training. sigma_mean,
    sigma_std: of ln(sigma) in training. sampler, levels, sigma_max, sigma_min, rho, churn and its range: of sampling; they may be
    changed after training. Few levels widen what is sampled: 15 make a Gaussian 5 % too wide from sigma 80, 3 % from 20.
    one_pass: no diffusion; one evaluation turns noise into a forecast, trained on the CRPS of latents.
    """

    latent_noise: float = Field(default=0.07, ge=0)
    past_noise: float = Field(default=0.05, ge=0)
    sigma_mean: float = -0.5
    sigma_std: float = Field(default=1.2, gt=0)
    sampler: Literal["heun", "dpm2m"] = "dpm2m"
    levels: int = Field(default=15, ge=2)
    sigma_max: float = Field(default=20.0, gt=0)
    sigma_min: float = Field(default=0.03, gt=0)
    rho: float = Field(default=7.0, gt=0)
    churn: float = Field(default=0.0, ge=0)
    churn_above: float = Field(default=0.75, ge=0)
    churn_noise: float = Field(default=1.05, gt=0)
    one_pass: bool = False

    @model_validator(mode="after")
    def _sampling(self) -> LatentDiffusionOptions:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min:g} is not below sigma_max {self.sigma_max:g}")
        if self.churn and self.sampler != "heun":
            raise ValueError(f'churn = {self.churn:g} needs sampler = "heun": a multistep method must not be disturbed')
        return self

    def filled(self) -> dict[str, object]:
        """The options as plain data."""
        return self.model_dump(mode="json")


class LatentState(NamedTuple):
    """The last latents (B, F, k, h, w), oldest first, z-scored; means (B, C, 1, 1): the analysis' own of conserved fields."""

    latents: Tensor
    means: Tensor


class LatentDiffusionGenerator(Generator):
    """z(t + dt) = z(t) + s * d, d a sample of the diffusion model given z(t - dt), z(t) and the forcing; s the std of changes.

    Latents are z-scored by `mean` and `std`, changes by `change`, each (k, 1, 1), computed from the training analyses when a
    stage begins; the data of the diffusion then have unit variance in every channel.
    """

    steps_fields = False
    mean: Tensor
    std: Tensor
    change: Tensor

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.options = options = LatentDiffusionOptions.model_validate(spec.options)
        if len(spec.intervals) > 1:
            raise InputError("model: the family latent_diffusion steps latents by one interval; it takes no intervals")
        names = [Channel.parse(label).name for label in spec.channels]
        signs = torch.tensor([-1.0 if name.endswith(VECTORS_ACROSS_POLE) else 1.0 for name in names])
        grid, planes = spec.grid, plane_names(spec.forcings)
        self.increments = Increments(spec, options)
        self.terms = ("bands", "spectral") if options.one_pass else ()
        unit = self.increments.scale(None) / self.increments.weight.clamp_min(SMALLEST).sqrt()
        self.autoencoder = Autoencoder(len(names), grid, options, unit=unit, pole_signs=signs if grid.is_global else None)
        k, height, width = self.autoencoder.latent_shape
        self.scalars = [i for i, name in enumerate(planes) if name.startswith(SCALARS)]
        self.planes = [i for i in range(len(planes)) if i not in self.scalars]
        latitude, longitude = (
            cell_centres(axis, n, self.autoencoder.cell) for axis, n in ((grid.latitude, height), (grid.longitude, width))
        )
        self.net = Denoiser(
            (k, height, width), spec.frames * k, len(self.planes), len(self.scalars), options,
            pad=padding(grid.is_global), latitude=latitude, longitude=longitude,
        )  # fmt: skip
        self.sigmas = levels(options.levels, sigma_max=options.sigma_max, sigma_min=options.sigma_min, rho=options.rho)
        self.churn = Churn(options.churn, options.churn_above, options.sigma_max, options.churn_noise)
        for name, value in (("mean", 0.0), ("std", 1.0), ("change", 1.0)):
            self.register_buffer(name, torch.full((k, 1, 1), value))

    def noise_shapes(self) -> dict[str, tuple[int, ...]]:
        shape, frames = self.autoencoder.latent_shape, self.spec.frames
        size = int(np.prod(shape))
        draws = 1 if self.options.one_pass else 1 + self.churn.draws(self.sigmas)
        return {"initial": (0,), "step": (draws * size,), "loss": (1 + (1 + frames) * size,)}

    def initial(self, frames: Tensor, forcing: Tensor, noise: Tensor) -> LatentState:
        return LatentState(self._encoded(frames), self._means(frames[:, -1]))

    def _means(self, fields: Tensor) -> Tensor:
        return (fields * self.increments.area).mean((-2, -1), keepdim=True) * self.increments.conserved

    def step(self, state: LatentState, forcing: Tensor, noise: Tensor) -> LatentState:
        context = self._context(state.latents, forcing)
        draws = noise[:, : self.noise_shapes()["step"][0]].unflatten(1, (-1, *self.autoencoder.latent_shape)).transpose(0, 1)
        if self.options.one_pass:
            change = self._network(draws[0], draws.new_zeros(len(noise)), context)
        else:
            change = self._sampled(draws, context)
        new = state.latents[:, -1] + self.change * change
        return state._replace(latents=torch.cat([state.latents[:, 1:], new.unsqueeze(1)], 1))

    def fields(self, state: LatentState) -> Tensor:
        decoded, increments = self._decoded(state.latents[:, -1]), self.increments
        if increments.conserves:
            decoded = decoded + (state.means - self._means(decoded))
        return decoded if increments.correction is None else increments.correction(decoded)

    def nudge(self, state: LatentState, target: Tensor, weight: Tensor) -> LatentState:
        new = torch.lerp(self.fields(state), target, weight.expand_as(target))
        return state._replace(latents=torch.cat([state.latents[:, :-1], self._encoded(new.unsqueeze(1))], 1))

    def reconstruction(self, fields: Tensor) -> Tensor:
        """Fields (B, C, H, W) through the autoencoder and back: the floor of every score of this family."""
        return self.autoencoder.decode(self.autoencoder.encode(fields, self.compute_dtype), self.compute_dtype)

    @torch.no_grad()
    def begin(self, stage: Stage, fields: Iterator[Tensor]) -> None:
        """The climate of the fields before the autoencoder is trained; the moments of latents before anything that needs them."""
        if stage.target == "autoencoder" and not stage.noise:
            self.autoencoder.fit(fields)
        else:
            self._set_moments(self.autoencoder.encode(batch.to(self.mean.device)).cpu() for batch in fields)

    def loss(self, sample: Sample, noise: Tensor, stage: Stage) -> Loss:
        """Of the reconstruction, of the denoiser or, one_pass, of members of latents: always one step. Raises InputError for a
        stage of more, and for a forecast without noise: there would be nothing to learn from."""
        if stage.rollout > 1 or (stage.target == "forecast" and not stage.noise):
            raise InputError(
                f"model family 'latent_diffusion' learns one step at a time, and forecasts from noise; a stage has target = "
                f"{stage.target!r}, rollout = {stage.rollout}, noise = {str(stage.noise).lower()}: give rollout = 1, noise = true"
            )
        if stage.target == "autoencoder":
            return self._reconstruction_loss(sample, noise, stage)
        with torch.no_grad():
            series = torch.cat([sample.frames, sample.targets[:, :1]], 1)
            latents = self._encoded(series).expand(len(noise), *(-1,) * 5)
        if self.options.one_pass:
            return self._one_pass_loss(latents, sample, noise, stage)
        return self._denoising_loss(latents, sample, noise)

    def _reconstruction_loss(self, sample: Sample, noise: Tensor, stage: Stage) -> Loss:
        """Of the analyses that follow the frames. With noise the encoder is left alone and the decoder gets noisy latents."""
        fields = sample.targets[:, 0]
        if stage.noise:
            with torch.no_grad():
                latents = self._encoded(fields.unsqueeze(1))[:, 0]
            draw = noise[0, :, 1, : latents[0].numel()].view_as(latents)
            rebuilt = self._decoded(latents + self.options.latent_noise * draw)
        else:
            rebuilt = self.reconstruction(fields)
        total = reconstruction_loss(rebuilt, fields, self.increments.loss_weight())
        return Loss(total, {"reconstruction": float(total.detach())})

    def _denoising_loss(self, latents: Tensor, sample: Sample, noise: Tensor) -> Loss:
        """EDM's loss of the change of the latents (M, B, F + 1, k, h, w); every member has a noise level of its own."""
        draws = noise[:, :, 1].flatten(0, 1)
        size = latents[0, 0, 0].numel()
        sigma = (self.options.sigma_mean + self.options.sigma_std * draws[:, :1, None, None]).exp()
        past, clean = self._disturbed(latents.flatten(0, 1), draws[:, 1 + size :])
        noisy = clean + sigma * draws[:, 1 : 1 + size].view_as(clean)
        factors = preconditioning(sigma)
        context = self._context(past, sample.forcings[:, 0].repeat(len(latents), 1, 1, 1))
        out = self._network(factors.into * noisy, factors.level.flatten(), context)
        squared = (out - regression_target(clean, noisy, sigma)).square() * self._weight()
        by_sample = squared.mean((1, 2, 3))
        return Loss(
            by_sample.mean(), _in_bins(by_sample.detach(), sigma.flatten(), self.options.sigma_mean, self.options.sigma_std)
        )

    def _one_pass_loss(self, latents: Tensor, sample: Sample, noise: Tensor, stage: Stage) -> Loss:
        """Almost-fair CRPS of the members' latents one step on, in units of the change (AtlasCRPS).

        All members of a sample, also those of other processes, leave from the same noisy past: that noise is no spread.
        """
        m, b = latents.shape[:2]
        draws = noise[:, :, 1].flatten(0, 1)
        size = latents[0, 0, 0].numel()
        shared = draws[:b] if self.members_group is None else gathered(draws[:b], self.members_group)[:b]
        past, clean = self._disturbed(latents.flatten(0, 1), shared[:, 1 + size :].repeat(m, 1))
        context = self._context(past, sample.forcings[:, 0].repeat(m, 1, 1, 1))
        members = self._network(draws[:, 1 : 1 + size].view_as(clean), draws.new_zeros(m * b), context)
        total = ensemble_loss(members.unflatten(0, (m, b)), clean[:b], self._weight(), stage, self.members_group)
        return Loss(total, {"step_1": float(total.detach())})

    def _weight(self) -> Tensor:
        """Of a squared error of changes (k, h, w): area, and the std of a channel's change before z-scoring, of mean 1.

        A latent channel is a share of all fields in units in which they count alike: one that hardly moves matters little.
        """
        size = self.std * self.change
        return self.autoencoder.area * size / size.mean()

    def _disturbed(self, latents: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy past latents (n, F, k, h, w), and the change that leads from the last of them to the true next ones.

        The change takes the noise back: what a roll-out adds by mistake is mended a step later.
        """
        past = latents[:, :-1]
        past = past + self.options.past_noise * draws[:, : past[0].numel()].view_as(past)
        return past, (latents[:, -1] - past[:, -1]) / self.change

    def _sampled(self, draws: Tensor, context: Context) -> Tensor:
        """A change (B, k, h, w) from draws (1 + churn, B, k, h, w) of noise."""

        def denoise(x: Tensor, sigma: float) -> Tensor:
            factors = preconditioning(x.new_full((len(x), 1, 1, 1), sigma))
            return factors.skip * x + factors.out * self._network(factors.into * x, factors.level.flatten(), context)

        x = self.sigmas[0] * draws[0]
        if self.options.sampler == "dpm2m":
            return dpm_solver_2m(denoise, x, self.sigmas)
        return heun(denoise, x, self.sigmas, churn=self.churn, noise=draws[1:])

    def _context(self, past: Tensor, forcing: Tensor) -> Context:
        """Past latents (B, F, k, h, w) and the forcing of the step for the network: planes pooled, season and hour as scalars.

        The season is the same everywhere; the hour is that at the first longitude.
        """
        planes = self.autoencoder.pooled(forcing[:, self.planes])
        scalars = forcing[:, self.scalars, 0, 0]
        dtype = self.compute_dtype
        return self.net.context(past.flatten(1, 2).to(dtype), planes.to(dtype), scalars.to(dtype))

    def _network(self, noisy: Tensor, level: Tensor, context: Context) -> Tensor:
        out: Tensor = self.net(noisy.to(self.compute_dtype), level, context)
        return out.float()

    def _encoded(self, series: Tensor) -> Tensor:
        """Fields (B, n, C, H, W) to z-scored latents (B, n, k, h, w)."""
        latents = self.autoencoder.encode(series.flatten(0, 1), self.compute_dtype)
        return ((latents - self.mean) / self.std).unflatten(0, series.shape[:2])

    def _decoded(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(self.mean + self.std * latents, self.compute_dtype)

    def _set_moments(self, latents: Iterable[Tensor]) -> None:
        """Mean and std of latents, and the std of their changes, from all analyses in the order of time; area-weighted."""
        area = (self.autoencoder.area / self.autoencoder.area.mean()).cpu().double()
        sums, counts, last = torch.zeros(3, len(self.mean), dtype=torch.float64), [0, 0], None
        for batch in latents:
            series = batch.double() if last is None else torch.cat([last, batch.double()])
            own, changes = series[-len(batch) :], series.diff(dim=0)
            sums += torch.stack([(x * area).mean((2, 3)).sum(0) for x in (own, own.square(), changes.square())])
            counts, last = [counts[0] + len(own), counts[1] + len(changes)], series[-1:]
        mean, square, change = sums / torch.tensor([[counts[0]], [counts[0]], [counts[1]]])
        std = (square - mean.square()).clamp_min(0).sqrt().clamp_min(SMALLEST)
        for buffer, value in ((self.mean, mean), (self.std, std), (self.change, (change.sqrt() / std).clamp_min(SMALLEST))):
            buffer.copy_(value.view_as(buffer))


def _in_bins(loss: Tensor, sigma: Tensor, mean: float, std: float) -> dict[str, float]:
    """Mean loss in bins of sigma, ln(sigma) ~ N(mean, std^2): sums over a bin's samples by their expected number.

    A bin is named in every batch, empty or not, so that its values may be averaged over batches and processes.
    """
    edges = [-math.inf, *(math.log(edge) for edge in LEVEL_EDGES), math.inf]
    below = [0.5 * (1 + math.erf((edge - mean) / std / math.sqrt(2))) for edge in edges]
    names = [f"sigma_below_{edge:g}" for edge in LEVEL_EDGES] + [f"sigma_above_{LEVEL_EDGES[-1]:g}"]
    bins = torch.bucketize(sigma.log(), torch.tensor(edges[1:-1], device=sigma.device))
    return {name: float(loss[bins == i].sum()) / len(loss) / max(below[i + 1] - below[i], 1e-9) for i, name in enumerate(names)}
