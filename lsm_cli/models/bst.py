"""Behavior Sequence Transformer (Chen et al., Alibaba, DLP-KDD'19, arXiv 1905.06874)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsm_cli.kernels.padded import Layout, head_size
from lsm_cli.models.history import History


class BST(nn.Module):
    """The candidate joins the sequence, and everything attends to everything (§2.2).

    S = LayerNorm(E + MH(E));  F = LayerNorm(S + LeakyReLU(S W₁ + b₁) W₂ + b₂), block upon block, where
    E = [ṽ, ẽ_1 … ẽ_n] and MH is multi-head attention with softmax(Q Kᵀ / √d) V.

    The paper concatenates the outputs at all (20) positions; histories of any length have the candidate's output and
    the mean of the behaviours' instead. Time enters by the temporal encodings, which are added, where the paper
    concatenates. A match adds its bias where the candidate attends. Written out: [b, length + 1, width] of one group of
    similar lengths after the other; the attention's [length, length] never is.
    """

    def __init__(self, width: int, blocks: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.out = 2 * width
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(blocks))

    def forward(self, history: History, candidate: Tensor, query: Tensor) -> Tensor:
        layout = Layout(history.segments, extra=1)
        bias = history.heads[0].bias
        biases = [None] * len(layout.groups) if bias is None else layout.pad(bias.unsqueeze(1))
        found = []
        for group, behaviours, own in zip(layout.groups, layout.pad(history.positions()), biases, strict=True):
            states = torch.cat([candidate.index_select(0, group.rows).unsqueeze(1), behaviours], 1)
            seen = None if group.full else F.pad(group.real, (1, 0), value=True)
            matches = None if own is None else F.pad(own.squeeze(2), (1, 0))
            for block in self.blocks:
                states = block(states, seen, matches)
            count = group.real.sum(1, keepdim=True).clamp(min=1)
            mean = (states[:, 1:] * group.real.unsqueeze(2)).sum(1) / count
            found.append(torch.cat([states[:, 0], mean], 1))
        return layout.join(found)


class Block(nn.Module):
    """One block; the paper gives no hidden width of its feed-forward network: here it is the width."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, size = heads, head_size(width, heads)
        self.project = nn.Linear(width, 3 * heads * size, bias=False)
        self.mix = nn.Linear(heads * size, width, bias=False)
        self.network = nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(), nn.Linear(width, width))
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, seen: Tensor | None, matches: Tensor | None) -> Tensor:
        """[b, n, width] -> the same.

        Args:
            seen: bool [b, n], which positions may be attended to; None = all.
            matches: [b, n], added to the logits of the first position, the candidate.
        """
        query, key, value = self.project(states).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if seen is None else seen[:, None, None]
        attended = F.scaled_dot_product_attention(query, key, value, mask)
        if matches is not None:
            biased = matches if seen is None else matches.masked_fill(~seen, -torch.inf)
            first = F.scaled_dot_product_attention(query[:, :, :1], key, value, biased[:, None, None].to(query.dtype))
            attended = torch.cat([first, attended[:, :, 1:]], 2)
        attended = self.mix(attended.transpose(1, 2).flatten(2))
        states = self.norm[0](states + self.dropout(attended))
        return self.norm[1](states + self.dropout(self.network(states)))
