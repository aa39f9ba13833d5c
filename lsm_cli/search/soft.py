"""Soft search: the behaviours that score highest under the candidate, in whatever space the scores were taken."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lsm_cli.data.batches import Pointers, Queries
from lsm_cli.data.orders import ragged_arange
from lsm_cli.errors import InputError
from lsm_cli.kernels.ragged import Segments

PAYS = 1_024  # behaviours scored per request, on average, from which one matrix product each beats scoring them singly


def top_k(scores: Tensor, segments: Segments, k: int, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k best behaviours of each sample; of equal scores the most recent.

    Args:
        scores: float [N], -inf = never.
        keep: bool [N], behaviours that stay in any case and do not count; None = none.

    Returns:
        offsets int64 [B + 1] and positions int64 [n], ascending (oldest first, as behaviours lie), on the device of
        the scores.

    Raises:
        InputError: a score is not a number.
    """
    value = scores.detach().float()
    if bool(value.isnan().any()):
        raise InputError(
            "search: the attention's scores are not numbers, so nothing can be chosen by them; train with a smaller "
            "train.lr or train.table_lr, or train.precision=fp32"
        )
    if keep is not None:
        value = value.masked_fill(keep, -torch.inf)
    if k <= 0 or not value.numel():
        chosen = torch.zeros_like(value, dtype=torch.bool)
    elif value.is_cuda:
        chosen = by_sorting(value, segments, k)
    else:
        chosen = torch.from_numpy(by_threshold(value.numpy(), segments.offsets.numpy(), k))
    place = (chosen if keep is None else chosen | keep).nonzero().squeeze(1)
    return torch.searchsorted(place, segments.offsets), place


def by_sorting(value: Tensor, segments: Segments, k: int) -> Tensor:
    """bool [N]: among the k best of its sample. Two stable sorts, by score and by sample; any device."""
    order = torch.sort(value.flip(0), stable=True, descending=True).indices
    order = value.numel() - 1 - order  # of equal scores the most recent came first
    row = segments.row.index_select(0, order)
    order = order.index_select(0, torch.sort(row, stable=True).indices)
    # grouped by sample as before, so the place within a group is the place in the order less the sample's first
    best = torch.arange(value.numel(), device=value.device) - segments.offsets.index_select(0, segments.row) < k
    chosen = torch.empty_like(best)
    chosen[order] = best
    return chosen & (value > -torch.inf)


def by_threshold(value: np.ndarray, offsets: np.ndarray, k: int) -> np.ndarray:
    """bool [N]: among the k best of its sample. The k-th best score of each sample divides them; CPU.

    Samples of at most k behaviours keep them all; the others are partitioned side by side with those of about the same
    length, which costs a few instructions per behaviour where sorting costs dozens.
    """
    lengths = np.diff(offsets)
    bar = np.full(len(lengths), -np.inf, np.float32)
    long = np.flatnonzero(lengths > k)
    size = np.frexp(lengths[long])[1]  # lengths from one power of two to the next
    for alike in np.unique(size):
        rows = long[size == alike]
        width = int(lengths[rows].max())
        where = (offsets[rows + 1] - width)[:, None] + np.arange(width)
        beside = lengths[rows].min() < width
        table = value.take(where, mode="clip")
        if beside:  # the places before a shorter history's first behaviour belong to another sample
            table[where < offsets[rows][:, None]] = -np.inf
        table.partition(width - k, axis=1)
        bar[rows] = table[:, width - k]
    chosen = value > np.repeat(bar, lengths)
    _break_ties(chosen, value, bar, offsets, k)
    return chosen


def _break_ties(chosen: np.ndarray, value: np.ndarray, bar: np.ndarray, offsets: np.ndarray, k: int) -> None:
    """Fill up with behaviours that score as the k-th best does, the most recent first."""
    tied = np.flatnonzero(value == np.repeat(np.where(bar > -np.inf, bar, np.nan), np.diff(offsets)))
    bounds = np.searchsorted(tied, offsets)
    above = np.diff(np.searchsorted(np.flatnonzero(chosen), offsets))
    first = np.maximum(bounds[:-1], bounds[1:] - np.maximum(k - above, 0))
    _, last = ragged_arange(first, bounds[1:] - first)
    chosen[tied[last]] = True
