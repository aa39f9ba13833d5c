"""Stacked target-to-history cross attention (Guan et al., ByteDance, 2025, arXiv 2511.06077)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsm_cli.kernels import ragged
from lsm_cli.kernels.ragged import Occurrences
from lsm_cli.models.history import History


class STCA(nn.Module):
    """The candidate asks the history again and again, each time knowing what it found before; cost is linear in length.

    X^i = LN(SwiGLU_i(X));  o^i = MHA(q^i, X^i);  q^{i+1} = LN(SwiGLU([ṽ, o^1, …, o^i] C_i)),  q^1 = LN(SwiGLU(ṽ)),
    where X are the behaviours ẽ; behaviours never attend to each other. The head sees q^{L+1}, which holds all of it.

    A head's logits are ⟨X_j W_K, q W_Q⟩ = ⟨X_j, W_K (q W_Q)⟩ and its output is (Σ_j α_j X_j) W_V, so that neither keys
    nor values are made (§3.2): of the history only X^i is written out, [N, width], without padding. The hidden width of
    SwiGLU, which the paper leaves open, is the width. A match adds its bias to every head's logit.
    """

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.out = width
        self.refine = nn.ModuleList(SwiGLU(width, width) for _ in range(layers))
        self.attend = nn.ModuleList(CrossAttention(width, heads) for _ in range(layers))
        self.fuse = nn.ModuleList(SwiGLU(width * (1 + before), width) for before in range(layers + 1))

    def forward(self, history: History, candidate: Tensor, query: Tensor) -> Tensor:
        segments, behaviours, bias = history.segments, history.lying(), history.heads[0].bias
        each = torch.arange(len(behaviours), device=behaviours.device)
        at = Occurrences(each, len(behaviours), segments, "own" if ragged.shapes_are_fixed() else "auto")
        found = [candidate]
        for refine, attend, fuse in zip(self.refine, self.attend, self.fuse[:-1], strict=True):
            found.append(attend(fuse(torch.cat(found, 1)), refine(behaviours), at, bias))
        return self.fuse[-1](torch.cat(found, 1))


class CrossAttention(nn.Module):
    """One query per sample over its behaviours: [B, width], [M, width] -> [B, width]; zero for an empty history."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        size = -(-width // heads)
        self.query = nn.Linear(width, heads * size, bias=False)
        self.key, self.value = (nn.Parameter(torch.randn(heads, size, width) * width**-0.5) for _ in range(2))
        self.mix = nn.Linear(heads * size, width, bias=False)

    def forward(self, query: Tensor, behaviours: Tensor, at: Occurrences, bias: Tensor | None) -> Tensor:
        heads, size, _ = self.key.shape
        asked = torch.einsum("bhs,hsw->hbw", self.query(query).unflatten(1, (heads, size)), self.key) / size**0.5
        pooled = []
        for own in asked:
            logits = ragged.dot(behaviours, own, at)
            weight = ragged.softmax(logits if bias is None else logits + bias, at.segments)
            pooled.append(ragged.pool(behaviours, weight, at))
        return self.mix(torch.einsum("hbw,hsw->bhs", torch.stack(pooled), self.value).flatten(1))


class SwiGLU(nn.Module):
    """LN((SiLU(x W_1) ⊙ x W_2) W_3), first brought to `width`: [n, given] -> [n, width]."""

    def __init__(self, given: int, width: int) -> None:
        super().__init__()
        self.join = nn.Identity() if given == width else nn.Linear(given, width, bias=False)
        self.gate, self.up, self.down = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.norm = nn.LayerNorm(width)

    def forward(self, value: Tensor) -> Tensor:
        value = self.join(value)
        return self.norm(self.down(F.silu(self.gate(value)) * self.up(value)))
