"""Which behaviours are among the k best of their sample, on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from lsm_cli.kernels import fused
from lsm_cli.kernels.ragged import Segments

BLOCK = 1024  # scores that a program looks at together


def best(value: Tensor, segments: Segments, k: int) -> Tensor:
    """bool [N]: of equal scores the last, -inf never; by one program a sample where Triton runs, else `by_sorting`."""
    if not fused.chosen(value.device.type):
        return by_sorting(value, segments, k)
    from lsm_cli.kernels import triton_topk

    chosen = torch.zeros(value.numel(), dtype=torch.bool, device=value.device)
    if k > 0 and segments.size:
        triton_topk.best[(segments.size,)](value.contiguous(), segments.offsets, k, chosen, BLOCK=BLOCK)
    return chosen


def by_sorting(value: Tensor, segments: Segments, k: int) -> Tensor:
    """The same by two stable sorts, of the scores and of the samples; any device."""
    size = value.numel()
    order = size - 1 - torch.sort(value.flip(0), stable=True, descending=True).indices  # of equals the last comes first
    order = order.index_select(0, torch.sort(segments.row.index_select(0, order), stable=True).indices)
    place = torch.arange(size, device=value.device) - segments.offsets.index_select(0, segments.row)
    chosen = torch.empty(size, dtype=torch.bool, device=value.device)
    chosen[order] = place < k  # each sample's behaviours still fill its own places, now the best first
    return chosen & (value > -torch.inf)
