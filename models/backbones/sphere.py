"""Padding that knows the shape of the domain: the sphere has no edge, a region has four."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.grid import Grid

Pad = Callable[[Tensor, Tensor | None], Tensor]


def pad_globe(fields: Tensor, pole_signs: Tensor | None = None, polar_rows: bool = False) -> Tensor:
    """One ring around (B, C, H, W) fields on a global grid: circular in longitude, and across each pole.

    The row beyond a pole is the row before it, half a turn away: row 0 rolled by W/2 columns (W must be even). Components of
    vectors change sign there; `pole_signs` (C,) holds -1 for them. On a grid with points on the poles (`polar_rows`) it is the
    row before that: the polar row is not repeated.
    """
    padded: Tensor = _Ring.apply(fields, pole_signs, polar_rows)
    return padded


class _Ring(torch.autograd.Function):
    """One copy each way: slices and concatenations would cost the U-Net's backward a quarter of its time in zero-filled sums."""

    @staticmethod
    def forward(ctx: Any, fields: Tensor, pole_signs: Tensor | None, polar_rows: bool) -> Tensor:
        b, c, h, w = fields.shape
        channels_last = fields.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        out = torch.empty((b, c, h + 2, w + 2), dtype=fields.dtype, device=fields.device, memory_format=layout)
        out[..., 1:-1, 1:-1] = fields
        ctx.signs, ctx.polar_rows, ctx.layout = pole_signs, polar_rows, layout
        for outer, inner in _pole_rows(h, polar_rows):
            out[..., outer, 1:-1] = _half_turn(fields[..., inner, :], pole_signs)
        out[..., 0], out[..., -1] = out[..., -2], out[..., 1]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        tall = grad[..., 1:-1].clone(memory_format=ctx.layout)
        tall[..., -1] += grad[..., 0]
        tall[..., 0] += grad[..., -1]
        fields = tall[..., 1:-1, :]
        for outer, inner in _pole_rows(fields.shape[-2], ctx.polar_rows):
            fields[..., inner, :] += _half_turn(tall[..., outer, :], ctx.signs)
        return fields, None, None


def _pole_rows(height: int, polar_rows: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    """(row of the padded field, row of the field that it repeats), south and north."""
    return (0, int(polar_rows)), (-1, height - 1 - int(polar_rows))


def _half_turn(row: Tensor, pole_signs: Tensor | None) -> Tensor:
    turned = torch.roll(row, row.shape[-1] // 2, -1)
    return turned if pole_signs is None else turned * pole_signs.to(row.dtype).view(-1, 1)


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


def extended(
    fields: Tensor, extra: tuple[int, ...], *, is_global: bool, pole_signs: Tensor | None = None, polar_rows: bool = False
) -> Tensor:
    """(B, C, H, W) fields with `extra` (rows, columns) appended as the domain goes on; a globe takes no columns."""
    rows, columns = extra
    return extend_globe(fields, rows, pole_signs, polar_rows) if is_global else extend_region(fields, rows, columns)


def padding(is_global: bool, polar_rows: bool = False) -> Pad:
    """The ring of a domain; polar_rows: on a grid whose first and last row lie on the poles."""
    return partial(pad_globe, polar_rows=polar_rows) if is_global else pad_region


def has_polar_rows(grid: Grid) -> bool:
    """Whether the first and the last row of a global grid lie on the poles."""
    return grid.is_global and bool(np.isclose(grid.latitude[-1], 90))
