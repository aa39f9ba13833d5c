"""Ragged sequences in rectangles, for operations that need every pair of positions (self-attention).

Samples are sorted by length and cut into groups, so that little of a rectangle is padding; padding is zero, and the
mask says where it is. Both ways, into the rectangles and for the gradient back, are plain gathers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsm_cli.kernels.ragged import Segments

WASTE = 0.25  # largest share of padding in a group
ALIGNED = 8  # widths of attention heads that fused kernels take as they are


def head_size(width: int, heads: int) -> int:
    """Width of each attention head so that all together hold `width`, rounded up for the fused kernels."""
    return -(-width // (heads * ALIGNED)) * ALIGNED


@dataclass
class Group:
    """Samples of similar length.

    Attributes:
        rows: int64 [b], which samples.
        real: bool [b, length], False at padding.
        full: whether nothing is padding.
    """

    rows: Tensor
    real: Tensor
    full: bool


class Layout:
    """Where the behaviours of a batch lie in the rectangles; making it waits for the device once.

    Args:
        segments: whose behaviours they are.
        extra: positions that the caller adds to every sample; they count as real.
        cells: most rows * (length + extra)² of a group, but for one row; 0 = any number.
    """

    def __init__(self, segments: Segments, extra: int = 0, cells: int = 0) -> None:
        device = segments.offsets.device
        self.total = segments.total
        lengths = segments.lengths.cpu().numpy()
        order = np.argsort(-lengths, kind="stable")
        self.sizes = _cut(lengths[order] + extra, cells)
        self.groups: list[Group] = []
        first = np.empty(len(lengths), np.int64)  # cell of each sample's first behaviour
        start = cell = 0
        for number, size in enumerate(self.sizes):
            rows, longest = order[start : start + size], int(lengths[order[start]])
            self.sizes[number] = size * longest
            first[rows] = cell + longest * np.arange(size)
            place = torch.arange(longest, device=device)
            own = torch.from_numpy(lengths[rows]).to(device).unsqueeze(1)
            full = int(lengths[rows[-1]]) == longest
            self.groups.append(Group(torch.from_numpy(rows).to(device), place < own, full))
            start, cell = start + size, cell + size * longest
        self.order = torch.from_numpy(np.argsort(order)).to(device)
        shift = torch.from_numpy(first).to(device) - segments.offsets[:-1]
        behaviour = torch.arange(segments.total, device=device)
        self.cell = behaviour + shift.index_select(0, segments.row)
        self.source = behaviour.new_zeros(cell).index_copy_(0, self.cell, behaviour)
        self.padding = torch.ones(cell, dtype=torch.bool, device=device).index_fill_(0, self.cell, False)

    def pad(self, values: Tensor) -> list[Tensor]:
        """[N, k] -> for every group [b, length, k], zero at padding."""
        pieces = _Pad.apply(values, self).split(self.sizes)
        return [
            piece.view(*group.real.shape, values.shape[1]) for piece, group in zip(pieces, self.groups, strict=True)
        ]

    def lay(self, pieces: list[Tensor]) -> Tensor:
        """The way back, from every group [b, length, k]: [N, k]."""
        return _Lay.apply(torch.cat([piece.flatten(0, 1) for piece in pieces]), self)

    def join(self, found: list[Tensor]) -> Tensor:
        """For every group [b, k] -> [B, k], in the order of the samples."""
        return torch.cat(found).index_select(0, self.order)


def _cut(lengths: np.ndarray, cells: int) -> list[int]:
    """Samples in each group: lengths descend, and the mean length of a group is near its longest."""
    sizes, start = [], 0
    while start < len(lengths):
        longest = int(lengths[start])
        mean = np.cumsum(lengths[start:]) / np.arange(1, len(lengths) - start + 1)
        size = int(np.searchsorted(-mean, -(1 - WASTE) * longest, side="right"))
        if cells and longest:
            size = min(size, max(cells // longest**2, 1))
        sizes.append(size)
        start += size
    return sizes


class _Pad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return _into(values, layout)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad.index_select(0, ctx.layout.cell), None


class _Lay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cells: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return cells.index_select(0, layout.cell)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _into(grad, ctx.layout), None


def _into(values: Tensor, layout: Layout) -> Tensor:
    """[N, k] -> the cells of all rectangles."""
    if not layout.total:
        return values.new_zeros(0, values.shape[1])
    return values.index_select(0, layout.source).masked_fill_(layout.padding.unsqueeze(1), 0)
