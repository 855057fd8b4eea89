"""Losses: the almost-fair CRPS with a lean backward, and its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.contract import Stage


class _AlmostFairCRPS(torch.autograd.Function):
    """Point-wise almost-fair CRPS over dim 0. Its gradient needs ranks and signs alone, so int8 codes are all that is kept."""

    @staticmethod
    def forward(ctx: Any, members: Tensor, truth: Tensor, alpha: float) -> Tensor:
        m = members.shape[0]
        error = (members - truth).float()
        skill = error.abs().mean(0)
        if m == 1:
            ctx.save_for_backward(error.sign().to(torch.int8))
            ctx.factor, ctx.dtype = 0.0, members.dtype
            return skill
        factor = (1 - (1 - alpha) / m) / (m * (m - 1))
        ordered, _ = error.sort(0)
        rank = torch.arange(m, device=members.device, dtype=torch.float32).view(-1, *[1] * (error.dim() - 1))
        spread = ((2 * rank + 1 - m) * ordered).sum(0)
        balance = torch.zeros_like(error, dtype=torch.int8)  # members below minus members above: ties share their mean rank
        for other in error:
            balance += (error > other).to(torch.int8) - (error < other).to(torch.int8)
        ctx.save_for_backward(error.sign().to(torch.int8), balance)
        ctx.factor, ctx.dtype = factor, members.dtype
        return skill - factor * spread

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        grad = grads[0]
        sign, *balance = ctx.saved_tensors
        slope = sign.float() / sign.shape[0]
        if balance:
            slope = slope - ctx.factor * balance[0].float()
        return (slope * grad).to(ctx.dtype), None, None


def almost_fair_crps(members: Tensor, truth: Tensor, alpha: float = 0.95) -> Tensor:
    """Almost-fair CRPS at each point (Lang et al. 2024, eq. 3-4): alpha * fair + (1 - alpha) * ensemble (ecdf) CRPS.

    members: (M, ...), truth: (...), at most 127 members. Returns (...) in float32; with one member it is the absolute error.
    Gradient flows to the members only; members that tie share the mean of their ranks. Backward keeps 2 M bytes a point.
    """
    if members.shape[0] > 127:
        raise ValueError(f"almost_fair_crps: {members.shape[0]} members; at most 127")
    return _AlmostFairCRPS.apply(members, truth, alpha)


def ensemble_loss(members: Tensor, truth: Tensor, weight: Tensor, stage: Stage) -> Tensor:
    """Weighted mean almost-fair CRPS of members (M, B, C, H, W) against truth (B, C, H, W), with the stage's scale-aware terms.

    weight: (C, H, W) or (B, C, H, W), area and channel. Returns a scalar.
    """
    return (almost_fair_crps(members, truth, stage.alpha) * weight).mean()


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
