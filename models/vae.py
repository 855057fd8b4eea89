"""The variational family: the network of the CRPS family, its noise a latent whose distribution is learned (after FuXi-ENS).

The latent z is one vector for all points and coarse fields. A prior p(z | frames, forcing) draws it in a forecast; a posterior
q(z | frames, next, forcing) that has seen the answer draws it beside the prior in training. Both are diagonal Gaussians. The same
prior perturbs the initial state: Zhong et al. 2024, arXiv 2405.05925; coarse latents as Hu et al. 2023, arXiv 2205.13158.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.backbones.latents import Domain, Encoder, Perturbation
from models.contract import Loss, Sample, Spec, Stage
from models.crps import CrpsGenerator, CrpsOptions, CrpsState
from models.losses import almost_fair_crps, ensemble_loss, kl_divergence

LOG_VARIANCE = (-8.0, 4.0)
WARM_UP = 0.25  # share of a stage over which the weight of the KL divergence rises from 0
ACTIVE = 0.01  # variance over the data above which a latent carries information (Burda et al. 2016, section 2)


class VaeOptions(CrpsOptions):
    """Settings of the family: the latent is `noise` numbers for all points and `local_noise` coarse fields.

    encoder_width, encoder_layers: size of prior and posterior. free_bits: nats a latent number below which a channel's KL
    divergence is not lowered further (Kingma et al. 2016, eq. 15). perturb_initial: members leave from perturbed frames.
    """

    local_noise: int = Field(default=8, ge=1)
    encoder_width: int = Field(default=64, gt=0, multiple_of=8)
    encoder_layers: int = Field(default=3, ge=1)
    free_bits: float = Field(default=0.02, ge=0)
    perturb_initial: bool = True


class Gaussian(NamedTuple):
    """Means and log-variances (B, n) of a latent."""

    mean: Tensor
    log_variance: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """The latent that standard normal noise (..., B, n) stands for."""
        return self.mean + self.deviation(noise)

    def deviation(self, noise: Tensor) -> Tensor:
        """The same without the mean."""
        return torch.exp(self.log_variance / 2) * noise


class VaeGenerator(CrpsGenerator):
    """x(t + dt) = x(t) + s * f(x(t - dt), x(t), forcing, z), z ~ p(z | x(t - dt), x(t), forcing).

    At lead 0 the prior knows no forcing (all zeros) and the shortest interval, whichever is stepped then; the deviation of its
    coarse fields from their mean, mapped linearly, is added to every frame alike: on average members leave from the analysis,
    with its own tendency.
    """

    terms = ("bands", "spectral", "kl", "posterior")

    def __init__(self, spec: Spec) -> None:
        options = VaeOptions.model_validate(spec.options)
        super().__init__(spec, options)
        self.free_bits = options.free_bits
        inc, domain = self.increments, Domain.of(spec.grid, self.net)
        n_in, fields = len(inc.planes) + inc.n_scalars, len(inc.prognostic)
        known = answer = turning = None
        if inc.pole_signs is not None:
            turning = inc.pole_signs[:fields]
            known = torch.cat([inc.pole_signs, torch.ones(inc.n_scalars)])
            answer = torch.cat([known, torch.ones(len(spec.channels)).index_put((inc.prognostic,), turning)])
        sizes = {"vector": options.noise, "local": options.local_noise}
        sizes |= {"width": options.encoder_width, "layers": options.encoder_layers}
        self.prior_net = Encoder(n_in, domain, known, **sizes)
        self.posterior_net = Encoder(n_in + len(spec.channels), domain, answer, **sizes)
        self.perturbation = Perturbation(options.local_noise, fields, domain, turning) if options.perturb_initial else None

    @property
    def latent_size(self) -> int:
        """How many numbers z has."""
        return self.vector + math.prod(self.net.local_shape)

    @property
    def perturbs_initial(self) -> bool:
        return self.perturbation is not None

    def noise_shapes(self) -> dict[str, tuple[int, ...]]:
        n = self.latent_size
        return {"initial": (n,), "step": (n,), "loss": (2 * n,)}

    def prior(self, frames: Tensor, forcing: Tensor, hours: Tensor | None = None) -> Gaussian:
        """p(z | frames, forcing); near N(0, 1) at the start of training."""
        mean, log_variance = self.prior_net(self._known(frames, forcing, hours)).unbind(1)
        return Gaussian(mean, log_variance.clamp(*LOG_VARIANCE))

    def posterior(
        self, prior: Gaussian, frames: Tensor, target: Tensor, forcing: Tensor, hours: Tensor | None = None
    ) -> Gaussian:
        """q(z | frames, target, forcing): an offset to the prior in units of its std (Vahdat and Kautz 2020, section 3.2)."""
        increment = (target - frames[:, -1] * self.increments.carried) / self.increments.scale(hours)
        planes = torch.cat([self._known(frames, forcing, hours), increment.to(self.compute_dtype)], 1)
        mean, log_variance = self.posterior_net(planes).unbind(1)
        return Gaussian(prior.draw(mean), (prior.log_variance + log_variance).clamp(*LOG_VARIANCE))

    def _known(self, frames: Tensor, forcing: Tensor, hours: Tensor | None) -> Tensor:
        planes = self.increments.inputs(frames, forcing)
        scalars = [
            one[..., None, None].expand(-1, -1, *planes.shape[-2:]) for one in self.increments.interval(hours, len(planes))
        ]
        return torch.cat([planes, *scalars], 1).to(self.compute_dtype)

    def initial(self, frames: Tensor, forcing: Tensor, noise: Tensor) -> CrpsState:
        if self.perturbation is None:
            return CrpsState(frames)
        inc = self.increments
        shortest = inc.intervals[:1].expand(len(frames))
        latent = self.prior(frames, torch.zeros_like(forcing), shortest).deviation(noise[:, : self.latent_size])
        out = self.perturbation(latent[:, self.vector :].unflatten(1, self.net.local_shape))
        out = out - inc.conserved[inc.prognostic] * (out * inc.area).mean((-2, -1), keepdim=True)
        out = (inc.scales[0][inc.prognostic] * out).unsqueeze(1).expand(-1, frames.shape[1], -1, -1, -1)
        return CrpsState(frames.index_add(2, inc.prognostic, out))

    def step(self, state: CrpsState, forcing: Tensor, noise: Tensor) -> CrpsState:
        latent = self.prior(state.frames, forcing, state.hours).draw(noise[:, : self.latent_size])
        return self.decode(state, forcing, latent)

    def decode(self, state: CrpsState, forcing: Tensor, latent: Tensor) -> CrpsState:
        """The state one step later under a latent (B, n)."""
        return super().step(state, forcing, latent)

    def loss(self, sample: Sample, noise: Tensor, stage: Stage) -> Loss:
        """CRPS of prior members over the roll-out + posterior * CRPS of posterior members + kl * KL divergence.

        Both scores are almost-fair, means over points and fields in units of the tendency std. The KL divergence counts in nats
        a point and field too: summed over the latent, divided by their number; its weight rises over the first quarter of a
        stage. Posterior members take the first step from the analysis itself. The perturbation of the initial state learns from
        the first score: where the steps alone spread too little it grows, where members spread too much it shrinks.
        """
        own = super().loss(sample, noise, stage)
        if not stage.noise or not (stage.posterior or stage.kl):
            return own
        prior, posterior = self._encode(sample)
        latent = posterior.draw(noise[:, :, 1, self.latent_size : 2 * self.latent_size])
        members = self._first_step(sample, latent, recompute=stage.recompute)
        found = ensemble_loss(members, sample.targets[:, 0], self.increments.loss_weight(sample.hours), stage, self.members_group)
        by_channel, sizes = self._kl_by_channel(prior, posterior)
        held = (by_channel.clamp(min=self.free_bits) * sizes).sum() / sample.targets[0, 0].numel()
        weight = stage.kl * min(1.0, stage.progress / WARM_UP)
        nats = float((by_channel.detach() * sizes).sum())
        total = own.total + stage.posterior * found + weight * held
        return Loss(total, {**own.parts, "posterior": float(found.detach()), "kl": nats})

    @torch.no_grad()
    def diagnostics(self, sample: Sample, noise: Tensor) -> dict[str, float]:
        """What tells a living latent from a collapsed one, after the first step; noise as in `loss`, 2 members at least.

        kl_mean, kl_max: KL divergence in nats a latent number, mean and largest of the channels. active_units: share of latent
        numbers with Var E_q[z] > 0.01 over the samples; E_q[z] is counted from the prior's mean in units of its std, as what the
        prior knows already is no information. sensitivity: std over prior draws of z, initial_spread: of the perturbed initial
        state, both over the tendency std. crps_gap: fair CRPS of prior members less that of posterior members, per tendency std,
        area- and channel-weighted. ssr: spread over error of prior members, mean over channels.
        """
        n, truth, m = self.latent_size, sample.targets[:, 0], len(noise)
        prior, posterior = self._encode(sample)
        by_channel, _ = self._kl_by_channel(prior, posterior)
        known = (posterior.mean - prior.mean) * torch.exp(-prior.log_variance / 2)
        rows, forcing = sample.frames.repeat(m, 1, 1, 1, 1), sample.forcings[:, 0].repeat(m, 1, 1, 1)
        start = self.initial(rows, forcing, noise[:, :, 0].flatten(0, 1))
        start = start._replace(hours=None if sample.hours is None else sample.hours.repeat(m))
        members = self.fields(self.step(start, forcing, noise[:, :, 1].flatten(0, 1))).unflatten(0, noise.shape[:2])
        informed = self._first_step(sample, posterior.draw(noise[:, :, 1, n : 2 * n]))
        alike = self._first_step(sample, prior.draw(noise[:, :, 1, :n]))
        weight, area = self.increments.loss_weight(sample.hours), self.increments.area
        unit = area / self.increments.scale(sample.hours)
        crps, seen = ((almost_fair_crps(each, truth, 1.0) * weight).mean() for each in (members, informed))
        variance, error = ((each * area).mean((0, 2, 3)) for each in (members.var(0), (members.mean(0) - truth) ** 2))
        found = {
            "kl_mean": by_channel.mean(),
            "kl_max": by_channel.max(),
            "active_units": (known.var(0, correction=0) > ACTIVE).float().mean(),
            "sensitivity": (alike.std(0) * unit).mean(),
            "initial_spread": (self.fields(start).unflatten(0, noise.shape[:2]).std(0) * unit).mean(),
            "crps_prior": crps,
            "crps_posterior": seen,
            "crps_gap": crps - seen,
            "ssr": ((m + 1) / m * variance / error).sqrt().mean(),
        }
        return {name: float(value) for name, value in found.items()}

    def _encode(self, sample: Sample) -> tuple[Gaussian, Gaussian]:
        forcing = sample.forcings[:, 0]
        prior = self.prior(sample.frames, forcing, sample.hours)
        return prior, self.posterior(prior, sample.frames, sample.targets[:, 0], forcing, sample.hours)

    def _first_step(self, sample: Sample, latent: Tensor, recompute: bool = False) -> Tensor:
        """Fields (M, B, C, H, W) one step after the analysis itself under latents (M, B, n)."""
        m = len(latent)
        hours = None if sample.hours is None else sample.hours.repeat(m)
        state, forcing = CrpsState(sample.frames.repeat(m, 1, 1, 1, 1), hours), sample.forcings[:, 0].repeat(m, 1, 1, 1)
        args = (state, forcing, latent.flatten(0, 1))
        new = checkpoint(self.decode, *args, use_reentrant=False) if recompute else self.decode(*args)
        return self.fields(new).unflatten(0, latent.shape[:2])

    def _kl_by_channel(self, prior: Gaussian, posterior: Gaussian) -> tuple[Tensor, Tensor]:
        """KL divergence in nats a latent number, mean over samples and places; and how many numbers each channel has."""
        nats = kl_divergence(posterior.mean, posterior.log_variance, prior.mean, prior.log_variance)
        k, places = self.net.local_shape[0], math.prod(self.net.local_shape[1:])
        local = nats[:, self.vector :].unflatten(1, (k, places)).mean((0, 2))
        sizes = torch.cat([local.new_ones(self.vector), local.new_full((k,), places)])
        return torch.cat([nats[:, : self.vector].mean(0), local]), sizes
