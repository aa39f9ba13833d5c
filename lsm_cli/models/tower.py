"""The head: feature crossing, a shared tower, one logit per optimisation target."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Cross(nn.Module):
    """DCN-v2 cross layers (Wang et al., WWW'21, arXiv 2008.13535, eq. 1): x_{l+1} = x_0 ⊙ (W_l x_l + b_l) + x_l."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, first: Tensor) -> Tensor:
        value = first
        for layer in self.layers:
            value = first * layer(value) + value
        return value


class Tower(nn.Module):
    """Projection, cross layers, shared hidden layers, one linear head per target: [B, width] -> [B, targets].

    Crossing happens in the projected space: on the wide input (every number has many bins) it would cost more than
    the attention and buys next to nothing.

    Args:
        quiet: the last so many features start with weight zero.
    """

    def __init__(
        self, width: int, project: int, cross: int, hidden: list[int], targets: int, dropout: float, quiet: int
    ) -> None:
        super().__init__()
        first = nn.Linear(width, project)
        if quiet:
            with torch.no_grad():
                first.weight[:, -quiet:] = 0
        layers: list[nn.Module] = [first, Cross(project, cross)]
        for before, after in zip([project, *hidden[:-1]], hidden, strict=True):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
        self.shared = nn.Sequential(*layers)
        self.heads = nn.Linear(hidden[-1], targets)

    def forward(self, features: Tensor) -> Tensor:
        return self.heads(self.shared(features))
