"""The head: feature crossing beside a shared tower, one logit per optimisation target."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Cross(nn.Module):
    """DCN-v2 cross layers of low rank (Wang et al., WWW'21, arXiv 2008.13535, §3.2).

    x_{l+1} = x_0 ⊙ (U_l V_l x_l + b_l) + x_l: [B, width] -> [B, width].
    """

    def __init__(self, width: int, layers: int, rank: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width)) for _ in range(layers)
        )

    def forward(self, first: Tensor) -> Tensor:
        value = first
        for layer in self.layers:
            value = first * layer(value) + value
        return value


class Tower(nn.Module):
    """Cross layers and shared hidden layers side by side, one linear head per target: [B, width] -> [B, targets]."""

    def __init__(
        self, width: int, cross: int, cross_rank: int, hidden: list[int], targets: int, dropout: float
    ) -> None:
        super().__init__()
        self.cross = Cross(width, cross, min(cross_rank, width)) if cross else None
        layers: list[nn.Module] = []
        for before, after in zip([width, *hidden[:-1]], hidden, strict=True):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
        self.shared = nn.Sequential(*layers)
        self.heads = nn.Linear(hidden[-1] + (width if cross else 0), targets)

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.shared(features)
        if self.cross is not None:
            hidden = torch.cat([hidden, self.cross(features)], 1)
        return self.heads(hidden)
