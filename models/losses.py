"""Losses: the almost-fair CRPS with a lean backward, its terms beyond the point, members over processes, the KL divergence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from models import crps_kernels
from models.contract import Stage

MAX_MEMBERS = 8191  # 4 * balance + 2 must fit 16 bits
FEW = 16  # members up to which counting beats sorting on other devices than CPUs


class _AlmostFairCRPS(torch.autograd.Function):
    """Point-wise almost-fair CRPS over dim 0. Its gradient needs ranks and signs alone: one small integer a member and point.

    The integer is 4 * balance + 1 + sign(x - y), balance the members below minus those above: ties share their mean rank.
    """

    @staticmethod
    def forward(ctx: Any, members: Tensor, truth: Tensor, alpha: float) -> Tensor:
        m, double = members.shape[0], torch.float64 in (members.dtype, truth.dtype)
        ctx.dtype, ctx.factor = members.dtype, (1 - (1 - alpha) / m) / (m * (m - 1)) if m > 1 else 0.0
        dtype = torch.float64 if double else torch.float32
        x, y = members.to(dtype), truth.to(dtype).expand(members.shape[1:])
        loss, codes = (_compiled if x.device.type == "cpu" else _plain)(x, y, ctx.factor)
        ctx.save_for_backward(codes)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (codes,), grad = ctx.saved_tensors, grads[0]
        slope = (_compiled_slope if grad.device.type == "cpu" else _plain_slope)(codes, grad, ctx.factor)
        return slope.to(ctx.dtype), None, None


def _compiled(x: Tensor, y: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Loss and codes through the compiled kernels."""
    codes = torch.empty(x.shape, dtype=_code_dtype(len(x)))
    flat, truth = x.contiguous().view(len(x), -1).numpy(), y.contiguous().view(-1).numpy()
    loss = crps_kernels.forward(flat, truth, factor, codes.view(len(x), -1).numpy(), torch.get_num_threads())
    return torch.from_numpy(loss).view(y.shape), codes


def _compiled_slope(codes: Tensor, grad: Tensor, factor: float) -> Tensor:
    flat = codes.view(len(codes), -1).numpy()
    slope = crps_kernels.backward(flat, grad.contiguous().view(-1).numpy(), factor, torch.get_num_threads())
    return torch.from_numpy(slope).view(codes.shape)


def _plain(x: Tensor, y: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """The same in tensor operations alone, for any device; O(M) memory."""
    m, dtype = len(x), _code_dtype(len(x))
    if m <= FEW:
        balance = torch.zeros_like(x, dtype=dtype)
        for other in x:
            balance += (x > other).to(dtype) - (x < other).to(dtype)
    else:
        last = x.movedim(0, -1).contiguous()
        ordered = last.sort(-1).values
        below, not_above = torch.searchsorted(ordered, last), torch.searchsorted(ordered, last, right=True)
        balance = (below + not_above - m).movedim(-1, 0).to(dtype)
    error = x - y
    loss = error.abs().mean(0) - factor * (balance * error).sum(0)
    return loss, 4 * balance + 1 + (x > y).to(dtype) - (x < y).to(dtype)


def _plain_slope(codes: Tensor, grad: Tensor, factor: float) -> Tensor:
    return grad * (((codes & 3) - 1).to(grad.dtype) / len(codes) - factor * (codes >> 2).to(grad.dtype))


def _code_dtype(members: int) -> torch.dtype:
    return torch.int8 if members <= 32 else torch.int16


def almost_fair_crps(members: Tensor, truth: Tensor, alpha: float = 0.95) -> Tensor:
    """Almost-fair CRPS at each point (Lang et al. 2024, eq. 3-4): alpha * fair + (1 - alpha) * ensemble (ecdf) CRPS.

    members: (M, ...), truth: (...), at most 8191 members. Returns (...) in float32, in float64 if either argument is; with one
    member it is the absolute error. Gradient flows to the members only, in their dtype; members that tie share the mean of their
    ranks, one that equals the truth has slope 0 there, as if every pair were differentiated. A point with a missing value is NaN.

    Memory: O(M), and what is kept for backward is one byte a member and point (two above 32 members). CPUs run compiled kernels
    on as many threads as torch has, other devices tensor operations.
    """
    if not 1 <= members.shape[0] <= MAX_MEMBERS:
        raise ValueError(f"almost_fair_crps: {members.shape[0]} members; at least 1 and at most {MAX_MEMBERS}")
    return _AlmostFairCRPS.apply(members, truth, alpha)


def ensemble_loss(members: Tensor, truth: Tensor, weight: Tensor, stage: Stage, group: dist.ProcessGroup | None = None) -> Tensor:
    """Weighted mean almost-fair CRPS of members (M, B, C, H, W) against truth (B, C, H, W), with the stage's scale-aware terms.

    weight: (C, H, W) or (B, C, H, W), area and channel. group: the processes that share the members of these very samples, see
    `gathered`. Returns a scalar: point-wise + stage.bands * banded + stage.spectral * spectral, each a weighted mean in the units
    of the point-wise term, which sees no correlation between points: white noise of the right size scores as well as weather.

    banded: mean CRPS of three bands: of a field minus its 2 x 2 block means, of those minus the 4 x 4 block means, and of these
    (block means weighted by area; incomplete blocks at the edges count by the area they have). Bands, not block means alone,
    because those see mainly the large scales, as the field itself does. spectral: mean CRPS of the magnitudes of the
    Fourier coefficients along each row of latitude, in the orthonormal form, each as often as it occurs among the W coefficients.

    Both transforms are orthogonal (Haar, Fourier), so no band and no coefficient is larger, in the mean square, than the field at
    a point; and as the CRPS scales with its argument, its slope does not, so a band of small amplitude pulls as hard on a point
    as a large one. That is why nothing is rescaled by what the data happen to be, and each term remains a proper score.

    On a region a row does not close: the step between its ends leaks into all wavenumbers, of members and truth alike. The term
    remains proper, but its high wavenumbers see the ends of rows first.
    """
    if group is not None:
        members = gathered(members, group)
    members, truth = members.float(), truth.float()
    loss = _weighted(members, truth, weight, stage.alpha)
    if stage.bands:
        found = [_weighted(x, y, share, stage.alpha) for x, y, share in _bands(members, truth, weight)]
        loss = loss + stage.bands * torch.stack(found).mean()
    if stage.spectral:
        loss = loss + stage.spectral * _spectral(members, truth, weight, stage.alpha)
    return loss


def _weighted(members: Tensor, truth: Tensor, weight: Tensor, alpha: float) -> Tensor:
    return (almost_fair_crps(members, truth, alpha) * weight).mean()


def _bands(members: Tensor, truth: Tensor, weight: Tensor, levels: int = 2) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Fields (..., C, H, W) less their weighted 2 x 2 block means, the same again for these, and what is left; with weights.

    A block weighs as much as its points together, so that the weighted mean of each band is over the same area.
    """
    points = weight.shape[-2:].numel()
    for level in range(levels + 1):
        share = weight * (weight.shape[-2:].numel() / points)
        if level == levels:
            yield members, truth, share
            return
        area = _block_sums(weight)
        means = [_block_sums(x * weight) / area.clamp_min(torch.finfo(area.dtype).tiny) for x in (members, truth)]
        yield members - _spread_out(means[0], members), truth - _spread_out(means[1], truth), share
        members, truth, weight = *means, area


def _block_sums(x: Tensor) -> Tensor:
    """Sums over blocks of 2 x 2 of (..., H, W), incomplete ones at the end included."""
    rows, columns = x.shape[-2:]
    padded = F.pad(x, (0, columns % 2, 0, rows % 2))
    return padded.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).sum((-3, -1))


def _spread_out(means: Tensor, fields: Tensor) -> Tensor:
    """Each block's mean at each of its points."""
    rows, columns = fields.shape[-2:]
    return means.repeat_interleave(2, -2)[..., :rows, :].repeat_interleave(2, -1)[..., :columns]


def _spectral(members: Tensor, truth: Tensor, weight: Tensor, alpha: float) -> Tensor:
    columns = truth.shape[-1]
    one, other = (torch.fft.rfft(x, norm="ortho").abs() for x in (members, truth))
    times = weight.new_full((other.shape[-1],), 2.0)  # all but wavenumber 0 and that of two columns occur twice
    times[0] = 1.0
    if columns % 2 == 0:
        times[-1] = 1.0
    return _weighted(one, other, weight.mean(-1, keepdim=True) * times * (len(times) / columns), alpha)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, members: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.rank, ctx.size, ctx.count = dist.get_rank(group), dist.get_world_size(group), len(members)
        parts = [torch.empty_like(members, memory_format=torch.contiguous_format) for _ in range(ctx.size)]
        dist.all_gather(parts, members.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.size * grads[0][ctx.rank * ctx.count : (ctx.rank + 1) * ctx.count], None


def gathered(members: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The members of all processes of a group, (ranks * M, ...) in the order of ranks, each process holding as many, (M, ...).

    Every process must hold the same samples. Those of others arrive detached; a loss of the whole ensemble, which is then the
    same on all, gives each process the full derivative by its own members, as `almost_fair_crps` differentiates every pair on
    both of its sides. backward multiplies it by the number of ranks and communicates nothing: gradients of the weights that are
    *averaged* over the processes, as DistributedDataParallel does, are those of one process with all members.
    """
    return _Gathered.apply(members, group)


def kl_divergence(mean_q: Tensor, log_var_q: Tensor, mean_p: Tensor, log_var_p: Tensor) -> Tensor:
    """KL(q || p) of diagonal Gaussians in nats, element by element (Kingma and Welling 2014, appendix B, for any p).

    All four broadcast; log_var: logarithm of the variance. Nothing is summed: the caller chooses the reduction that its weight of
    the term means. Computed in float32 at least. Zero where q is p, positive elsewhere.
    """
    mean_q, log_var_q, mean_p, log_var_p = (
        each.float() if each.dtype in (torch.bfloat16, torch.float16) else each for each in (mean_q, log_var_q, mean_p, log_var_p)
    )
    ratio = log_var_q - log_var_p
    return 0.5 * (torch.expm1(ratio) - ratio + (mean_q - mean_p).square() * torch.exp(-log_var_p))
