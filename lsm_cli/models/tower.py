"""The head: feature crossing, what the targets share of the tower and what is their own, a logit for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lsm_cli.options import ModelOptions


class Cross(nn.Module):
    """DCN-v2 cross layers of low rank (Wang et al., WWW'21, arXiv 2008.13535, eq. 2): [B, width] -> [B, width].

    x_{l+1} = x_0 ⊙ (U_l V_l x_l + b_l) + x_l. The input is wide (every number has many bins) and its interactions are
    few, so rank 16 loses nothing measurable on 64 and costs a fraction of the attention. Crossing a projection of the
    input instead, at full rank, mixes the bins before they can interact and loses .007 AUC on `retail` (numbers alone,
    one seed).

    Args:
        quiet: the last so many features start without a say in the others.
    """

    def __init__(self, width: int, layers: int, rank: int, quiet: int = 0) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(width, rank, bias=False) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(rank, width) for _ in range(layers))
        for layer in self.down:
            _silence(layer, quiet)

    def keep(self, columns: Tensor) -> None:
        for down, up in zip(self.down, self.up, strict=True):
            _keep_inputs(cast(nn.Linear, down), columns)
            _keep_outputs(cast(nn.Linear, up), columns)

    def forward(self, first: Tensor) -> Tensor:
        value = first
        for down, up in zip(self.down, self.up, strict=True):
            value = torch.addcmul(value, first, up(down(value)))
        return value


class Experts(nn.Module):
    """Multi-gate mixture of experts (Ma et al., KDD'18, doi 10.1145/3219819.3220007, eq. 6–7).

    Target τ sees Σ_k g^τ_k(x) f_k(x): f_k are networks of the same form and g^τ = softmax(W^τ x).

    Args:
        hidden: widths of each expert.
        quiet: the last so many features start without a say, in experts and gates.
    """

    def __init__(self, width: int, hidden: list[int], experts: int, targets: int, dropout: float, quiet: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(*_layers(width, hidden, dropout)) for _ in range(experts))
        self.gates = nn.Linear(width, targets * experts, bias=False)
        for first in (self.gates, *(cast(nn.Sequential, expert)[0] for expert in self.experts)):
            _silence(first, quiet)

    def keep(self, columns: Tensor) -> None:
        for first in (self.gates, *(cast(nn.Sequential, expert)[0] for expert in self.experts)):
            _keep_inputs(cast(nn.Linear, first), columns)

    def forward(self, features: Tensor) -> Tensor:
        """What every target sees of its own input, or of the one that they share.

        features [targets, B, width] or [1, B, width] -> [targets, B, hidden].
        """
        opinions = torch.stack([expert(features) for expert in self.experts], -2)  # [targets or 1, B, experts, hidden]
        matrices = self.gates.weight.view(-1, len(self.experts), features.shape[-1])
        gates = torch.softmax(features @ matrices.transpose(1, 2), -1)  # [targets, B, experts]
        return (gates.unsqueeze(-2) @ opinions).squeeze(-2)


class Tower(nn.Module):
    """Cross layers and hidden layers that the targets share, then a linear head per target.

    In place of the hidden layers a mixture of experts may stand, and each target may put layers of its own before its
    head. Where the history was read for every target by itself, each target's own input takes this same way.

    Args:
        common: width of what every target sees; found: of what was read from the history.
        options: `hidden`, `experts`, `target_hidden`, …; with `quiet` what was found starts with weight zero.
    """

    def __init__(self, common: int, found: int, options: ModelOptions, targets: int) -> None:
        super().__init__()
        width, quiet, dropout = common + found, found if options.quiet else 0, options.dropout
        self.width = width
        layers: list[nn.Module] = [Cross(width, options.cross, options.cross_rank, quiet)] if options.cross else []
        self.experts: Experts | None = None
        if options.experts:
            self.experts = Experts(width, options.hidden, options.experts, targets, dropout, quiet)
        else:
            hidden = _layers(width, options.hidden, dropout)
            _silence(hidden[0], quiet)
            layers += hidden
        self.shared = nn.Sequential(*layers)
        own = options.target_hidden
        self.own = nn.ModuleList(
            nn.Sequential(*_layers(options.hidden[-1], own, dropout)) for _ in range(targets if own else 0)
        )
        self.heads = nn.Linear([*options.hidden, *own][-1], targets)

    @torch.no_grad()
    def start(self, rates: Tensor) -> None:
        """Let every head begin at the log-odds of its target's rate (in (0, 1), [targets]).

        A rare target's first hundreds of steps would otherwise go into learning that it is rare, through the layers
        that the targets share. With .7% of positives beside 11%, in a world whose truth is known, the rare target gains
        .003 to .004 AUC and .005 nats (two seeds); the frequent one neither gains nor loses.
        """
        self.heads.bias.copy_(torch.logit(rates))

    def keep(self, places: Tensor, of: int) -> None:
        """Leave out all of the first `of` inputs but those at these places: weights that no input moves."""
        columns = torch.cat([places, torch.arange(of, self.width, device=places.device)])
        self.width = len(columns)
        for layer in (*self.shared, self.experts):
            if isinstance(layer, Cross | Experts):
                layer.keep(columns)
            elif isinstance(layer, nn.Linear):
                _keep_inputs(layer, columns)
                break

    def forward(self, common: Sequence[Tensor], found: Sequence[Tensor]) -> Tensor:
        """Logits [B, targets].

        Args:
            common: [B, common] side by side.
            found: [B, found] each: one reading of the history for all targets, one per target in their order, or none.
        """
        inputs = [torch.cat([*common, part], 1) for part in found] or [torch.cat([*common], 1)]
        seen = self.shared(inputs[0].unsqueeze(0) if len(inputs) == 1 else torch.stack(inputs))  # [targets or 1, B, …]
        if self.experts is not None:
            seen = self.experts(seen)
        if self.own:
            each = seen.expand(len(self.own), *seen.shape[1:])
            seen = torch.stack([layers(part) for layers, part in zip(self.own, each, strict=True)])
        if len(seen) == 1:
            return self.heads(seen[0])
        return torch.einsum("tbh,th->bt", seen, self.heads.weight) + self.heads.bias


def _layers(width: int, hidden: list[int], dropout: float) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in zip([width, *hidden[:-1]], hidden, strict=True):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
    return layers


def _keep_inputs(layer: nn.Linear, columns: Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight.detach().index_select(1, columns))
    layer.in_features = len(columns)


def _keep_outputs(layer: nn.Linear, columns: Tensor) -> None:
    layer.weight, layer.bias = (nn.Parameter(p.detach().index_select(0, columns)) for p in (layer.weight, layer.bias))
    layer.out_features = len(columns)


def _silence(layer: nn.Module, last: int) -> None:
    """Give the last so many inputs of a linear layer weight zero."""
    assert isinstance(layer, nn.Linear)
    if last:
        with torch.no_grad():
            layer.weight[:, -last:] = 0
