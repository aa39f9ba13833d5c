"""Numbers of very different scales (counts, ages) made fit for a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLIP = 5.0


class Numeric(nn.Module):
    """log(1 + x), standardised, beside its piecewise-linear encoding over quantile bins of the training data.

    A tree cuts a number anywhere at no cost; a network needs the cuts given (Gorishniy et al., NeurIPS'22,
    arXiv 2203.05556, §3.1): bin k contributes 0 below it, 1 above it, the share of it passed within. Both forms are
    bounded, so that numbers beyond the training data (counts grow with time) do not run away. -1 means unknown: all
    zeros and a flag.

    [B, n] -> [B, n (2 + bins)].
    """

    mean: Tensor
    scale: Tensor
    edge: Tensor
    slope: Tensor

    def __init__(self, size: int, bins: int) -> None:
        super().__init__()
        self.size, self.bins = size, bins
        self.out = size * (2 + bins)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.zeros(size))
        self.register_buffer("edge", torch.zeros(size, bins))
        self.register_buffer("slope", torch.zeros(size, bins))

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Take moments and quantiles from raw training values [n, size]; unknown ones do not count."""
        for column in range(self.size):
            known = values[:, column]
            known = torch.log1p(known[known >= 0]).double()
            if not known.numel():
                continue
            spread = known.std(correction=0)
            self.mean[column] = known.mean()
            self.scale[column] = 1 / spread if spread > 1e-6 else 0.0
            if not self.bins:
                continue
            edges = torch.quantile(known, torch.linspace(0, 1, self.bins + 1, dtype=known.dtype, device=known.device))
            edges = torch.unique(edges)
            self.edge[column, : len(edges) - 1] = edges[:-1]
            self.slope[column, : len(edges) - 1] = 1 / edges.diff().clamp(min=1e-6)

    def forward(self, values: Tensor) -> Tensor:
        unknown = values < 0
        logs = torch.log1p(values.clamp(min=0))
        standard = ((logs - self.mean) * self.scale).clamp(-CLIP, CLIP).masked_fill(unknown, 0.0)
        found = [standard, unknown.to(logs.dtype)]
        if self.bins:
            passed = ((logs.unsqueeze(2) - self.edge) * self.slope).clamp(0, 1)
            found.append(passed.masked_fill(unknown.unsqueeze(2), 0.0).flatten(1))
        return torch.cat(found, 1)
