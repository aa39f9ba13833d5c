"""Sampling-based Deep Interest Modeling: attention by hash collisions (Cao et al., CIKM'22, arXiv 2205.10249)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsm_cli.kernels import ragged
from lsm_cli.kernels.ragged import Occurrences, Segments
from lsm_cli.models.history import History
from lsm_cli.search.hashing import planes


class SDIM(nn.Module):
    """u = mean_g ℓ₂(Σ_i [h_g(ẽ_i) = h_g(ṽ)] ẽ_i): in each of `hashes` groups, what shares the candidate's bucket.

    h_g are the signs of `bits` random projections. Two vectors at an angle θ share a bucket with probability (1 -
    θ/π)^bits, so that the mean stands for an attention which nobody computes (§3.2). Nothing is searched: a sample
    reads its whole history. Of the behaviours those in the bucket are read, N · hashes / 2^bits where all are unlike.
    """

    def __init__(self, width: int, hashes: int, bits: int) -> None:
        super().__init__()
        self.out, self.hashes, self.bits = width, hashes, bits

    def forward(self, history: History, candidate: Tensor, query: Tensor) -> Tensor:
        segments, behaviours = history.segments, ragged.full(history.lying())
        with torch.no_grad():
            ours, wanted = self.buckets(behaviours), self.buckets(candidate)
            shares = segments.each(ours) == wanted.index_select(0, segments.row)
            group, place = shares.t().nonzero(as_tuple=True)
            sizes = torch.bincount(group * segments.size + segments.row[place], minlength=self.hashes * segments.size)
            offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        at = Occurrences(segments.lies(place), len(behaviours), Segments(offsets, len(place)))
        found = ragged.pool(behaviours, behaviours.new_ones(len(place)), at)
        return F.normalize(found.view(self.hashes, segments.size, -1), dim=2).mean(0)

    def buckets(self, values: Tensor) -> Tensor:
        """The bucket of each vector in each group: [n, width] -> int64 [n, hashes]."""
        signs = values.float() @ planes(values.shape[1], self.hashes * self.bits, values.device) > 0
        return (signs.view(-1, self.hashes, self.bits) << torch.arange(self.bits, device=values.device)).sum(2)
