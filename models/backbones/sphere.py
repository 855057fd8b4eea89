"""Padding that knows the shape of the domain: the sphere has no edge, a region has four."""

from __future__ import annotations

import torch
from torch import Tensor


def pad_globe(fields: Tensor, pole_signs: Tensor | None = None) -> Tensor:
    """One ring around (B, C, H, W) fields on a global grid: circular in longitude, and across each pole.

    The row beyond a pole is the row before it, half a turn away: row 0 rolled by W/2 columns (W must be even). Components of
    vectors change sign there; `pole_signs` (C,) holds -1 for them. On a grid with points on the poles the polar row is not
    repeated.
    """
    half = fields.shape[-1] // 2
    south, north = fields[..., :1, :], fields[..., -1:, :]
    south, north = torch.roll(south, half, -1), torch.roll(north, half, -1)
    if pole_signs is not None:
        signs = pole_signs.to(fields.dtype).view(-1, 1, 1)
        south, north = south * signs, north * signs
    tall = torch.cat([south, fields, north], -2)
    return torch.cat([tall[..., -1:], tall, tall[..., :1]], -1)


def pad_region(fields: Tensor, pole_signs: Tensor | None = None) -> Tensor:
    """One ring around (B, C, H, W) fields on a regional grid: the edge values repeated."""
    return torch.nn.functional.pad(fields, (1, 1, 1, 1), mode="replicate")


def extend(fields: Tensor, extra: tuple[int, ...], is_global: bool) -> Tensor:
    """Append `extra` = (rows, columns) so that a U-Net can halve the grid; the caller crops them off again.

    Rows continue across the north pole on a globe and repeat the edge in a region; columns wrap or repeat likewise.
    """
    rows, columns = extra
    if rows:
        beyond = torch.roll(fields[..., -rows:, :].flip(-2), fields.shape[-1] // 2, -1)
        fields = torch.cat([fields, beyond if is_global else fields[..., -1:, :].expand(-1, -1, rows, -1)], -2)
    if columns:
        beyond = fields[..., :columns] if is_global else fields[..., -1:].expand(-1, -1, -1, columns)
        fields = torch.cat([fields, beyond], -1)
    return fields
