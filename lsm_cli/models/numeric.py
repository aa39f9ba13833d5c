"""Numbers of very different scales (counts, ages) made fit for a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Numeric(nn.Module):
    """log(1 + x), standardised with the moments of the training data; -1 means unknown and gets a flag of its own.

    [B, n] -> [B, 2 n]: the standardised logarithms (0 where unknown), then the flags.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.out = size, 2 * size
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Take mean and spread from raw training values [n, size]; unknown ones do not count."""
        known = values >= 0
        logs = torch.log1p(values.clamp(min=0)).double()
        number = known.sum(0).clamp(min=1)
        mean = (logs * known).sum(0) / number
        spread = (((logs - mean).square() * known).sum(0) / number).sqrt()
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(spread > 1e-6, 1 / spread, 1.0))

    def forward(self, values: Tensor) -> Tensor:
        known = values >= 0
        standard = (torch.log1p(values.clamp(min=0)) - self.mean) * self.scale
        return torch.cat([(standard * known).clamp(-8, 8), (~known).to(values.dtype)], 1)
