"""Hierarchical Sequential Transduction Unit, compact (Zhai et al., Meta, ICML'24, arXiv 2402.17152)."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lsm_cli.kernels import ragged
from lsm_cli.kernels.padded import Layout
from lsm_cli.kernels.ragged import Occurrences, Shared
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

    The weights of queries and keys start alike, their biases by chance, so that like attends to like from the first
    step on; it takes an epoch to find out otherwise. Retail, one seed, last 50, whole requests: GAUC .714 so, .641 with
    chance in both.

    No behaviour sees a candidate: those of a request share its states (M-FALCON, §3.4), and in the last layer only
    candidates ask. SiLU is no softmax, so no fused kernel: among behaviours A is written out, `CELLS` of it at a time,
    and made again in the backward pass.
    """

    def __init__(self, width: int, layers: int, heads: int, intervals: int, ranks: int, dropout: float) -> None:
        super().__init__()
        self.out, self.heads = width, heads
        self.layers = nn.ModuleList(Unit(width, heads, intervals, ranks, dropout) for _ in range(layers))

    def forward(self, history: History, candidate: Tensor, query: Tensor) -> Tensor:
        behaviours, asked, past = history.lying(), _Asked(history), _Past(history, self.heads)
        *before, last = cast(list[Unit], list(self.layers))
        for unit in before:
            own, made = unit.make(candidate), unit.make(behaviours)
            candidate = unit.step(candidate, own, unit.ask(own, made.value, made.key, asked))
            behaviours = unit.step(behaviours, made, unit.remember(made, past))
        own = last.make(candidate)
        return last.step(candidate, own, last.ask(own, *last.answers(behaviours), asked))


class _Asked:
    """Behaviours as candidates see them: from behind the last, at the time of the request.

    Attributes:
        at: where they are read.
        distance: int64 [N], positions to the candidate.
        age: [N], seconds to the request.
        bias: [N], what matches add; None = nothing.
        seen: [B, 1], positions that a candidate sees, its own with them.
    """

    def __init__(self, history: History) -> None:
        segments, age = history.segments, cast(Tensor, history.age)
        every = torch.arange(len(age), device=age.device)
        self.at = Occurrences(every, len(age), segments, "own" if ragged.shapes_are_fixed() else "auto")
        end = segments.offsets[1:].index_select(0, segments.row)
        self.distance = end - torch.arange(segments.total, device=age.device)
        self.age, self.bias = segments.each(age), history.heads[0].bias
        self.seen = (segments.lengths + 1).unsqueeze(1)


class _Past:
    """Behaviours as later ones see them, history by history, each once: [M] in rectangles."""

    def __init__(self, history: History, heads: int) -> None:
        segments, self.age = history.segments, cast(Tensor, history.age)
        self.segments = segments.histories if isinstance(segments, Shared) else segments
        self.cells = CELLS // heads

    @cached_property
    def layout(self) -> Layout:
        return Layout(self.segments, cells=self.cells)

    @cached_property
    def ages(self) -> list[Tensor]:
        """[b, n] of every group."""
        return [age.squeeze(2) for age in self.layout.pad(self.age.unsqueeze(1))]


class Made(NamedTuple):
    """What a layer makes of n states: [n, heads * size] each."""

    gate: Tensor
    value: Tensor
    query: Tensor
    key: Tensor


class Unit(nn.Module):
    """One layer, of behaviours and candidates alike."""

    def __init__(self, width: int, heads: int, intervals: int, ranks: int, dropout: float) -> None:
        super().__init__()
        self.heads, size = heads, -(-width // heads)
        self.project = nn.Linear(width, 4 * heads * size)
        with torch.no_grad():
            query, key = self.project.weight.chunk(4)[2:]
            key.copy_(query)
        self.mix = nn.Linear(heads * size, width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attended = nn.LayerNorm(heads * size, elementwise_affine=False)
        self.by_distance = nn.Parameter(torch.zeros(ranks))
        self.by_time = nn.Parameter(torch.zeros(intervals))
        self.dropout = nn.Dropout(dropout)

    def make(self, states: Tensor) -> Made:
        return Made(*F.silu(self.project(self.norm(states))).chunk(4, 1))

    def answers(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Their values and keys, where they ask nothing."""
        states, weights, biases = self.norm(states), self.project.weight.chunk(4), self.project.bias.chunk(4)
        value, key = (F.silu(F.linear(states, weights[part], biases[part])) for part in (1, 3))
        return value, key

    def step(self, states: Tensor, made: Made, attended: Tensor) -> Tensor:
        """States after the layer: [n, width] -> the same."""
        return states + self.dropout(self.mix(self.attended(attended) * made.gate))

    def ask(self, own: Made, value: Tensor, key: Tensor, asked: _Asked) -> Tensor:
        """Candidates over their behaviours and themselves: [B, heads * size]."""
        bias = self._bias(asked.distance, asked.age)
        bias = bias if asked.bias is None else bias + asked.bias
        mine, query, at_itself = (self._by_head(part) for part in own[1:])
        itself = F.silu((query * at_itself).sum(2, keepdim=True) + self.by_distance[0] + self.by_time[0]) * mine
        found = []
        for asks, values, keys in zip(query, self._by_head(value), self._by_head(key), strict=True):
            weight = F.silu(ragged.dot(keys, asks, asked.at) + bias)
            found.append(ragged.pool(values, weight, asked.at))
        return (torch.stack(found) + itself).transpose(0, 1).flatten(1) / asked.seen

    def remember(self, made: Made, past: _Past) -> Tensor:
        """Behaviours over those before them and themselves: [M, heads * size]."""
        states, found = past.layout.pad(torch.cat(made[1:], 1)), []
        for group, age in zip(states, past.ages, strict=True):
            if torch.is_grad_enabled():
                found.append(checkpoint(self._causal, group, age, use_reentrant=False))
            else:
                found.append(self._causal(group, age))
        return past.layout.lay(found)

    def _causal(self, states: Tensor, age: Tensor) -> Tensor:
        """Values, queries and keys [b, n, 3 heads * size] at ages [b, n] -> [b, n, heads * size]; padding comes last,
        where nothing but padding sees it."""
        value, query, key = states.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        place = torch.arange(age.shape[1], device=age.device)
        distance = place.unsqueeze(1) - place
        share = (distance >= 0) / (place + 1).unsqueeze(1)
        bias = self._bias(distance, age.unsqueeze(1) - age.unsqueeze(2))
        weight = F.silu(query @ key.transpose(2, 3) + bias.unsqueeze(1)) * share
        return (weight.to(value.dtype) @ value).transpose(1, 2).flatten(2)

    def _bias(self, distance: Tensor, seconds: Tensor) -> Tensor:
        """rab of pairs that lie so far apart."""
        by_distance = _look_up(self.by_distance, log_bucket(distance + 1, len(self.by_distance), LONGEST_RANK))
        return by_distance + _look_up(self.by_time, log_bucket(seconds, len(self.by_time), LONGEST_SECONDS))

    def _by_head(self, values: Tensor) -> Tensor:
        """[n, heads * size] -> [heads, n, size]."""
        return values.unflatten(1, (self.heads, -1)).transpose(0, 1)


def _look_up(table: Tensor, ids: Tensor) -> Tensor:
    """table[ids]; the gradient of a gather is summed by a scatter, that of an index by a sort."""
    return table.gather(0, ids.flatten()).view_as(ids)
