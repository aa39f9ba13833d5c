"""How a history is read for one candidate. Every reader maps (history, candidate ṽ, query) -> [B, out].

ṽ [B, width] is the candidate among the behaviours' representations; the query [B, width of the attention] is ṽ again,
or the candidate in the attention's own space where that is decoupled.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsm_cli.models.history import History


class MeanPool(nn.Module):
    """u = mean_i ẽ_i, whatever the candidate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = width

    def forward(self, history: History, candidate: Tensor, query: Tensor) -> Tensor:
        lengths = history.segments.lengths.clamp(min=1)
        return history.pool((1.0 / lengths).index_select(0, history.segments.row))


class PReLU(nn.PReLU):
    """torch's PReLU with one slope; on the CPU its gradient takes two passes instead of a full tensor of products."""

    def forward(self, value: Tensor) -> Tensor:
        return F.prelu(value, self.weight) if value.is_cuda else _Leak.apply(value, self.weight)


class _Leak(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(value, slope)
        return F.leaky_relu(value, float(slope))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        value, slope = ctx.saved_tensors
        for_slope = torch.dot(value.clamp(max=0).flatten(), grad.flatten()).view_as(slope)
        return torch.ops.aten.leaky_relu_backward(grad, value, float(slope), False), for_slope


class DIN(nn.Module):
    """Deep Interest Network (Zhou et al., KDD'18, arXiv 1706.06978, §4.3): u = Σ_i a(ẽ_i, ṽ) ẽ_i, a not normalised.

    a is a small network on [ẽ, ṽ, ẽ - ṽ, ẽ ⊙ ṽ]. Its first layer is linear in each block, so the blocks of ṽ alone are
    computed once per sample and only ẽ and ẽ ⊙ ṽ per behaviour; on the CPU these two are one product of ẽ with a matrix
    of the sample's own, which halves the arithmetic.
    """

    def __init__(self, width: int, hidden: list[int]) -> None:
        super().__init__()
        self.out = width
        self.first = nn.Linear(4 * width, hidden[0])
        self.rest = nn.Sequential()
        for before, after in zip(hidden, [*hidden[1:], 1], strict=True):
            self.rest.append(PReLU())
            self.rest.append(nn.Linear(before, after))

    def forward(self, history: History, candidate: Tensor, query: Tensor) -> Tensor:
        row = history.segments.row
        behaviour = history.positions()
        key, target, difference, product = self.first.weight.chunk(4, 1)
        per_sample = F.linear(candidate, target - difference, self.first.bias).index_select(0, row)
        if _groups(behaviour, key):
            own = (key + difference).t() + candidate.unsqueeze(2) * product.t()  # [B, width, hidden]
            hidden = F.grouped_mm(behaviour, own, offs=history.segments.offsets[1:].int()) + per_sample
        else:
            pair = torch.cat([behaviour, behaviour * candidate.index_select(0, row)], 1)
            hidden = F.linear(pair, torch.cat([key + difference, product], 1)) + per_sample
        weight = self.rest(hidden).squeeze(1).float()
        return history.pool(weight if history.bias is None else weight * torch.exp(history.bias))


class TIN(nn.Module):
    """Temporal Interest Network (Zhou et al., WWW'24, arXiv 2308.08487, §3): u = (Σ_i α_i ẽ_i) ⊙ ṽ.

    α_i = softmax_i(⟨ẽ_i, ṽ⟩ / √width + match bias): target-aware in the attention and in the representation. With
    decoupled attention α goes by embeddings of its own (DARE, ICLR'25, arXiv 2410.02604, §3).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = width

    def forward(self, history: History, candidate: Tensor, query: Tensor) -> Tensor:
        return history.pool(history.attend(query)) * candidate


def _groups(values: Tensor, weight: Tensor) -> bool:
    """Whether torch multiplies groups of rows by matrices of their own: on the CPU, rows of whole 16 bytes."""
    known = values.device.type == "cpu" and hasattr(F, "grouped_mm")
    return known and values.numel() > 0 and all(size % 4 == 0 for size in weight.shape)


class StackedTIN(nn.Module):
    """Stacked TIN (Tencent, arXiv 2510.21714): layer l carries interactions of order l + 1.

    u⁰ = ṽ;  f^l = Σ_i α_i^l (ẽ_i ⊙ u^{l-1}),  α^l under the query u^{l-1};  u^l = LayerNorm(u^{l-1} + W_l f^l).

    The head sees `states` u¹ … u^L as the paper has it, or only what each layer `found`, f¹ … f^L (one layer is then
    TIN): u^l carries ṽ itself along, by which the head learns single items by heart. With decoupled attention the query
    of layer l is that of the first layer plus A_l u^{l-1}.

    Args:
        attention: width of the attention's own space; 0 = it is the representation's.
    """

    def __init__(self, width: int, layers: int, output: str, attention: int = 0) -> None:
        super().__init__()
        self.out = width * layers
        self.output = output
        mixed = layers if output == "states" else layers - 1
        self.mix = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(mixed))
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(mixed))
        self.ask = nn.ModuleList(nn.Linear(width, attention, bias=False) for _ in range(layers - 1 if attention else 0))
        self.layers = layers

    def forward(self, history: History, candidate: Tensor, query: Tensor) -> Tensor:
        state, first, outputs = candidate, query, []
        for layer in range(self.layers):
            if layer:
                query = (first + self.ask[layer - 1](state)).float() if self.ask else state
            found = history.pool(history.attend(query)) * state
            if layer < len(self.mix):
                state = self.norm[layer](state + self.mix[layer](found)).float()
            outputs.append(state if self.output == "states" else found)
        return torch.cat(outputs, 1)
