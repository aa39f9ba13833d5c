"""How a history is read for one candidate. Every reader maps (history, candidate ṽ, query) -> [B, out].

ṽ [B, width] is the candidate among the behaviours' representations; the query [B, width of the attention] is ṽ again,
or the candidate in the attention's own space where that is decoupled.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsm_cli.kernels.ragged import full, shapes_are_fixed
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
        known = value.is_cuda or shapes_are_fixed()
        return F.prelu(value, self.weight) if known else _Leak.apply(value, self.weight)


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
        weight = full(self.rest(hidden).squeeze(1))
        bias = history.heads[0].bias
        return history.pool(weight if bias is None else weight * torch.exp(bias))


class TIN(nn.Module):
    """Temporal Interest Network (Zhou et al., WWW'24, arXiv 2308.08487, §3): u = (Σ_i α_i ẽ_i) ⊙ ṽ.

    α_i = softmax_i(⟨ẽ_i, ṽ⟩ / √width + match bias): target-aware in the attention and in the representation. With
    decoupled attention α goes by embeddings of its own (DARE, ICLR'25, arXiv 2410.02604, §3); with several heads each
    has its own α, and what they find stands side by side (DSI-TIN, arXiv 2510.21714).
    """

    def __init__(self, width: int, heads: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.out = width * heads

    def forward(self, history: History, candidate: Tensor, query: Tensor) -> Tensor:
        return history.read(query) * candidate.repeat(1, self.heads)


def _groups(values: Tensor, weight: Tensor) -> bool:
    """Whether torch multiplies groups of rows by matrices of their own: on the CPU, float32 rows of whole 16 bytes."""
    known = values.device.type == "cpu" and values.dtype == torch.float32 and hasattr(F, "grouped_mm")
    return known and not shapes_are_fixed() and values.numel() > 0 and all(size % 4 == 0 for size in weight.shape)


class StackedTIN(nn.Module):
    """Stacked TIN (Tencent, arXiv 2510.21714): layer l carries interactions of order l + 1.

    u⁰ = ṽ;  f^l = Σ_i α_i^l (ẽ_i ⊙ u^{l-1}) of every head,  α^l under the query u^{l-1};  u^l as `Step` has it.

    The head of the model sees the `states` u¹ … u^L as the paper has it, the `last` of them, or only what each layer
    `found`, f¹ … f^L (one layer is then TIN): u^l carries ṽ itself along, by which the head learns single items by
    heart. With decoupled attention the query of layer l is that of the first layer plus A_l u^{l-1}.

    Args:
        output: `found`, `states` or `last`.
        residual: `norm` or `gate`, see `Step`.
        feed_forward: hidden width of the feed-forward network after each step, as a multiple of the width; 0 = none.
        attention: width of the attention's own space; 0 = it is the representation's.
        heads: of the attention.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        output: str = "found",
        residual: str = "norm",
        feed_forward: int = 0,
        attention: int = 0,
        heads: int = 1,
    ) -> None:
        super().__init__()
        self.layers, self.output, self.heads = layers, output, heads
        self.out = {"found": width * heads * layers, "states": width * layers, "last": width}[output]
        steps = layers - 1 if output == "found" else layers
        self.steps = nn.ModuleList(Step(width, width * heads, residual, feed_forward) for _ in range(steps))
        self.ask = nn.ModuleList(nn.Linear(width, attention, bias=False) for _ in range(layers - 1 if attention else 0))

    def forward(self, history: History, candidate: Tensor, query: Tensor) -> Tensor:
        state, first, found, states = candidate, query, [], []
        for layer in range(self.layers):
            if layer:
                query = full(first + self.ask[layer - 1](state)) if self.ask else state
            found.append(history.read(query) * state.repeat(1, self.heads))
            if layer < len(self.steps):
                state = full(self.steps[layer](state, found[-1]))
                states.append(state)
        return torch.cat({"found": found, "states": states, "last": states[-1:]}[self.output], 1)


class Step(nn.Module):
    """From u^{l-1} and what was found under it to u^l: [B, width], [B, found] -> [B, width].

    norm: LayerNorm(u + W f), the paper's;  gate: u + σ(G [u, f]) ⊙ W f, which a layer of no use can close. Then, if
    asked for, u + F(u) with a feed-forward network F of one hidden layer, normed the same way.
    """

    def __init__(self, width: int, found: int, residual: str, feed_forward: int) -> None:
        super().__init__()
        self.mix = nn.Linear(found, width, bias=False)
        self.norm = nn.LayerNorm(width) if residual == "norm" else None
        self.gate = nn.Linear(width + found, width) if residual == "gate" else None
        hidden = width * feed_forward
        self.network = (
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
            if hidden
            else None
        )

    def forward(self, state: Tensor, found: Tensor) -> Tensor:
        step = self.mix(found)
        if self.gate is not None:
            step = torch.sigmoid(self.gate(torch.cat([state, found], 1))) * step
        state = state + step
        if self.norm is not None:
            state = self.norm(state)
        return state if self.network is None else state + self.network(state)
