"""What comes next, guessed at every behaviour: how SASRec trains (Kang & McAuley, ICDM'18, arXiv 1808.09781, §3.5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lsm_cli.kernels.ragged import Segments

NEGATIVES = 128


@dataclass
class Successors:
    """The behaviours of a batch that have a successor, and what it is to be told from.

    loss = mean_i log(1 + Σ_j exp(⟨z_i, v_j⟩ - ⟨z_i, v_{i+1}⟩))

    where z_i is read from the state of behaviour i, and j runs over up to NEGATIVES behaviours, drawn for the whole
    batch from its histories, but for those of the successor's own item. The paper draws one item for each behaviour;
    many under one softmax are what makes SASRec strong (Klenitskiy & Vasilev, RecSys'23, arXiv 2309.07602). Items that
    share the unknown row are neither guessed nor told from others.

    Attributes:
        at: int64 [n], which of the behaviours that are read.
        own: [n, width of v], their successors.
        others: [k, width of v].
        same: bool [n, k], where the other is of the successor's item.
    """

    at: Tensor
    own: Tensor
    others: Tensor
    same: Tensor

    @classmethod
    def of(cls, segments: Segments, item: Tensor, vectors: Tensor, unknown: int) -> Successors:
        """
        Args:
            item: int64 [M], row in the item table of the behaviours that lie there.
            vectors: [M, width of v], of their items.
            unknown: the row of items that have none.
        """
        place = segments.each(torch.arange(len(item), device=item.device))
        follows = (segments.row[1:] == segments.row[:-1]) & (item.index_select(0, place[1:]) != unknown)
        at = follows.nonzero().squeeze(1)
        successor = place.index_select(0, at + 1)
        known = (item != unknown).nonzero().squeeze(1)
        other = known[torch.randperm(len(known), device=item.device)[:NEGATIVES]]
        same = item.index_select(0, successor).unsqueeze(1) == item.index_select(0, other)
        return cls(at, vectors.index_select(0, successor), vectors.index_select(0, other), same)

    def loss(self, states: Tensor, readout: Tensor) -> Tensor:
        """
        Args:
            states: [N, width], of all behaviours that are read.
            readout: [width, width of v], makes z of them.
        """
        if not len(self.at):
            return readout.new_zeros(())
        asked = (states.index_select(0, self.at) @ readout).to(self.own.dtype)
        with torch.autocast(asked.device.type, enabled=False):
            right = (asked * self.own).sum(1)
            wrong = (asked @ self.others.t()).masked_fill_(self.same, torch.finfo(asked.dtype).min).logsumexp(1)
            return F.softplus(wrong - right).mean()
