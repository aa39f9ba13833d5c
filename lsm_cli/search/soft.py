"""Soft search: the behaviours that score highest under the candidate, in whatever space the scores were taken."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lsm_cli.kernels.ragged import Segments


@torch.no_grad()
def top_k(scores: Tensor, segments: Segments, k: int, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k best behaviours of each sample; of equal scores the most recent.

    Args:
        scores: float [N], -inf = never.
        keep: bool [N], behaviours that stay in any case and do not count; None = none.

    Returns:
        offsets int64 [B + 1] and positions int64 [n], ascending (oldest first, as behaviours lie).
    """
    row = segments.row.numpy()
    value = scores.float().numpy()
    free = value > -np.inf
    if keep is not None:
        free &= ~keep.numpy()
    at = np.flatnonzero(free)
    order = np.lexsort((-at, -value[at], row[at]))
    place = at[order]
    owner = row[place]
    starts = np.searchsorted(owner, np.arange(segments.size))
    place = place[np.arange(len(place)) - starts[owner] < k]
    if keep is not None:
        place = np.concatenate([place, np.flatnonzero(keep.numpy())])
    place.sort()
    offsets = np.zeros(segments.size + 1, np.int64)
    np.cumsum(np.bincount(row[place], minlength=segments.size), out=offsets[1:])
    return torch.from_numpy(offsets), torch.from_numpy(place)
