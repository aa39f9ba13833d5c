"""Numbers of very different scales (counts, ages) made fit for a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLIP = 5.0
SMALL = 0.01  # share of the positive values that may lie below a number's offset
LEAST_OFFSET = 1e-4
LOWEST = -1e30  # below all edges


class Numeric(nn.Module):
    """log(offset + x), standardised, beside its piecewise-linear encoding over quantile bins of the training data.

    A tree cuts a number anywhere at no cost; a network needs the cuts given (Gorishniy et al., NeurIPS'22,
    arXiv 2203.05556, §3.1): bin k contributes 0 below it, 1 above it, the share of it passed within. The offset is a
    small value that the number takes, at most 1: log(1 + x) of whole counts, while decayed counts far below 1 keep
    their spread. Numbers beyond those of the training data (many grow with time) count as its extremes. -1 means
    unknown: all zeros and a flag.

    What no training sample moves is left out: bins of a number with fewer values than bins, the flag of one that is
    always known. On real logs that is a third of the features, and of what the head multiplies them with.

    [B, n] -> [B, out].

    Attributes:
        kept: int64 [out], which of the n values, n flags and n x bins these are, ascending; all before `fit`.
    """

    offset: Tensor
    low: Tensor
    high: Tensor
    mean: Tensor
    scale: Tensor
    edge: Tensor
    slope: Tensor
    kept: Tensor
    valued: Tensor
    flagged: Tensor
    binned: Tensor

    def __init__(self, size: int, bins: int) -> None:
        super().__init__()
        self.size, self.bins = size, bins
        self.register_buffer("offset", torch.ones(size))
        for name in ("low", "high", "mean", "scale"):
            self.register_buffer(name, torch.zeros(size))
        self.register_buffer("edge", torch.zeros(size, bins))
        self.register_buffer("slope", torch.zeros(size, bins))
        self.register_buffer("kept", torch.arange(size * (2 + bins)))
        for name in ("valued", "flagged", "binned"):  # the parts of `kept`, counted from 0 each
            self.register_buffer(name, None, persistent=False)
        self.keep(self.kept)

    @property
    def out(self) -> int:
        return len(self.kept)

    @torch.no_grad()
    def fit(self, values: Tensor) -> Tensor:
        """Take offsets, moments and quantiles from raw training values [n, size]; unknown ones do not count.

        Returns:
            int64, places of the features that are left among those that there were.
        """
        for column in range(self.size):
            known = values[:, column].double()
            known = known[known >= 0]
            if not known.numel():
                continue
            positive = known[known > 0]
            if positive.numel():
                self.offset[column] = torch.quantile(positive, SMALL).clamp(LEAST_OFFSET, 1.0)
            known = (known + self.offset[column]).log()
            self.low[column], self.high[column] = known.min(), known.max()
            spread = known.std(correction=0)
            self.mean[column] = known.mean()
            self.scale[column] = 1 / spread if spread > 1e-6 else 0.0
            if not self.bins:
                continue
            edges = torch.quantile(known, torch.linspace(0, 1, self.bins + 1, dtype=known.dtype, device=known.device))
            edges = torch.unique(edges)
            self.edge[column, : len(edges) - 1] = edges[:-1]
            self.slope[column, : len(edges) - 1] = 1 / edges.diff().clamp(min=1e-6)
        unknown = (values < 0).any(0).to(self.scale.device)
        moved = torch.cat([self.scale > 0, unknown, self.slope.flatten() > 0])
        return self.keep(moved.nonzero().squeeze(1))

    def keep(self, kept: Tensor) -> Tensor:
        """Leave out all features but these, of those that are there; returns their places among them."""
        kept = kept.to(self.kept.device)
        places = torch.searchsorted(self.kept, kept)
        self.kept, size = kept, self.size
        self.valued = kept[kept < size]
        self.flagged = kept[(kept >= size) & (kept < 2 * size)] - size
        self.binned = kept[kept >= 2 * size] - 2 * size
        return places

    def forward(self, values: Tensor) -> Tensor:
        unknown = values < 0
        logs = (values.clamp(min=0) + self.offset).log().clamp(self.low, self.high)
        standard = ((logs - self.mean) * self.scale).clamp(-CLIP, CLIP).masked_fill(unknown, 0.0)
        found = [standard.index_select(1, self.valued), unknown.index_select(1, self.flagged).to(logs.dtype)]
        if self.bins:
            edge, slope = (table.flatten().index_select(0, self.binned) for table in (self.edge, self.slope))
            passed = logs.masked_fill(unknown, LOWEST).index_select(1, self.binned // self.bins)
            found.append(passed.sub_(edge).mul_(slope).clamp_(0, 1))  # what is unknown passes nothing
        return torch.cat(found, 1)
