"""Hierarchical Sequential Transduction Unit, compact (Zhai et al., Meta, ICML'24, arXiv 2402.17152)."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lsm_cli.kernels.padded import Layout
from lsm_cli.models.history import History
from lsm_cli.models.temporal import LONGEST_RANK, LONGEST_SECONDS, log_bucket

CELLS = 1 << 22  # pairs of positions and heads that are written out at a time


class HSTU(nn.Module):
    """Pointwise attention in place of softmax, over the behaviours in order and the candidate behind them (§3.2).

    U, V, Q, K = split(SiLU(W₁ LN(x)));  A = SiLU(Q Kᵀ + rab) / n, causal;  x ← x + W₂ (LN(A V) ⊙ U)

    rab_ij = b_p(i - j) + b_t(t_i - t_j), the relative attention bias, by distance and time between two positions; both
    tables have log-spaced buckets here (the paper's distances are exact). n counts the positions seen, where the paper
    divides by a constant: the norm that follows makes them one but for its ε. What acts on a behaviour is side
    information here; the paper gives actions positions of their own, and trains on every position. A match adds its
    bias where the candidate attends. The candidate's last state is what the head sees.

    SiLU is no softmax, so no fused kernel: A is written out, `CELLS` of it at a time, and made again in the backward
    pass.
    """

    def __init__(self, width: int, layers: int, heads: int, intervals: int, ranks: int, dropout: float) -> None:
        super().__init__()
        self.out = width
        self.heads, self.intervals, self.ranks = heads, intervals, ranks
        self.layers = nn.ModuleList(Unit(width, heads, intervals, ranks, dropout) for _ in range(layers))

    def forward(self, history: History, candidate: Tensor, query: Tensor) -> Tensor:
        layout = Layout(history.segments, extra=1, cells=CELLS // self.heads, last=True)
        age, bias = history.segments.each(cast(Tensor, history.age)), history.heads[0].bias
        moments = torch.stack([age, torch.zeros_like(age) if bias is None else bias], 1)
        found = []
        padded = zip(layout.groups, layout.pad(history.positions()), layout.pad(moments), strict=True)
        for group, behaviours, own in padded:
            states = torch.cat([behaviours, candidate.index_select(0, group.rows).unsqueeze(1)], 1)
            age, matches = F.pad(own, (0, 0, 0, 1)).unbind(2)
            where = self._where(group.real, age)
            for layer in self.layers:
                if torch.is_grad_enabled():
                    states = checkpoint(layer, states, *where, matches, use_reentrant=False)
                else:
                    states = layer(states, *where, matches)
            found.append(states[:, -1])
        return layout.join(found)

    @torch.no_grad()
    def _where(self, real: Tensor, age: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """With what weight is seen what from where [b, n, n]; buckets of distance [n, n] and of time [b, n, n]."""
        place = torch.arange(age.shape[1], device=age.device)
        distance = place.unsqueeze(1) - place
        seen = F.pad(real, (0, 1), value=True).unsqueeze(1) & (distance >= 0)
        weight = seen / seen.sum(2, keepdim=True).clamp(min=1)
        apart = age.unsqueeze(1) - age.unsqueeze(2)
        return (
            weight.to(age.dtype),
            log_bucket(distance + 1, self.ranks, LONGEST_RANK),
            log_bucket(apart, self.intervals, LONGEST_SECONDS),
        )


class Unit(nn.Module):
    """One layer: [b, n, width] -> the same."""

    def __init__(self, width: int, heads: int, intervals: int, ranks: int, dropout: float) -> None:
        super().__init__()
        self.heads, size = heads, -(-width // heads)
        self.project = nn.Linear(width, 4 * heads * size)
        self.mix = nn.Linear(heads * size, width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attended = nn.LayerNorm(heads * size, elementwise_affine=False)
        self.by_distance = nn.Parameter(torch.zeros(ranks))
        self.by_time = nn.Parameter(torch.zeros(intervals))
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, weight: Tensor, distance: Tensor, time: Tensor, matches: Tensor) -> Tensor:
        """
        Args:
            weight: [b, n, n], 0 where a position is not seen.
            distance, time: buckets, int64 [n, n] and [b, n, n].
            matches: [b, n], added where the last position, the candidate, attends.
        """
        gate, value, query, key = F.silu(self.project(self.norm(states))).chunk(4, 2)
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        bias = _look_up(self.by_distance, distance) + _look_up(self.by_time, time)
        bias = torch.cat([bias[:, :-1], bias[:, -1:] + matches.unsqueeze(1)], 1)
        logits = query @ key.transpose(2, 3) + bias.unsqueeze(1)
        attended = ((F.silu(logits) * weight.unsqueeze(1)).to(value.dtype) @ value).transpose(1, 2).flatten(2)
        return states + self.dropout(self.mix(self.attended(attended) * gate))


def _look_up(table: Tensor, ids: Tensor) -> Tensor:
    """table[ids]; the gradient of a gather is summed by a scatter, that of an index by a sort."""
    return table.gather(0, ids.flatten()).view_as(ids)
