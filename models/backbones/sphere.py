"""Padding that knows the shape of the domain: the sphere has no edge, a region has four."""

from __future__ import annotations

import torch
from torch import Tensor


def pad_globe(fields: Tensor, pole_signs: Tensor | None = None, polar_rows: bool = False) -> Tensor:
    """One ring around (B, C, H, W) fields on a global grid: circular in longitude, and across each pole.

    The row beyond a pole is the row before it, half a turn away: row 0 rolled by W/2 columns (W must be even). Components of
    vectors change sign there; `pole_signs` (C,) holds -1 for them. On a grid with points on the poles (`polar_rows`) it is the
    row before that: the polar row is not repeated.
    """
    south = _across_pole(fields.flip(-2), 1, pole_signs, polar_rows)
    north = _across_pole(fields, 1, pole_signs, polar_rows)
    tall = torch.cat([south, fields, north], -2)
    return torch.cat([tall[..., -1:], tall, tall[..., :1]], -1)


def _across_pole(fields: Tensor, rows: int, pole_signs: Tensor | None, polar_rows: bool) -> Tensor:
    """The `rows` rows that follow the last one on the way across its pole."""
    last = fields.shape[-2] - polar_rows
    beyond = torch.roll(fields[..., last - rows : last, :].flip(-2), fields.shape[-1] // 2, -1)
    return beyond if pole_signs is None else beyond * pole_signs.to(fields.dtype).view(-1, 1, 1)


def pad_region(fields: Tensor, pole_signs: Tensor | None = None) -> Tensor:
    """One ring around (B, C, H, W) fields on a regional grid: the edge values repeated."""
    return torch.nn.functional.pad(fields, (1, 1, 1, 1), mode="replicate")


def extend_globe(fields: Tensor, rows: int, pole_signs: Tensor | None = None, polar_rows: bool = False) -> Tensor:
    """Append `rows` beyond the north pole so that a U-Net can halve the grid; the caller crops them off again."""
    return torch.cat([fields, _across_pole(fields, rows, pole_signs, polar_rows)], -2) if rows else fields


def extend_region(fields: Tensor, rows: int, columns: int) -> Tensor:
    """Append copies of the last row and column so that a U-Net can halve the grid; the caller crops them off again."""
    return torch.nn.functional.pad(fields, (0, columns, 0, rows), mode="replicate") if rows or columns else fields
