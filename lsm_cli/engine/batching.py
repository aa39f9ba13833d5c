"""Which samples make which step, by count or by behaviours: a function of (seed, epoch), so that runs can resume."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np

from lsm_cli.data.epochs import Requests, epoch_order
from lsm_cli.options import Recipe

MOST = 8  # times train.batch_size: samples per step at most, however short their histories


class Plan:
    """The steps of a whole training.

    Args:
        recipe: batch size, token budget, seed and epochs.
        lengths: int [samples], behaviours that each gathers; None = batches by count.
        requests: whose samples stay together; None = samples in any order.

    Attributes:
        start: int [epochs + 1], the step with which each epoch begins; the last is the number of steps.
    """

    def __init__(
        self, recipe: Recipe, samples: int, lengths: np.ndarray | None = None, requests: Requests | None = None
    ) -> None:
        self.options, self.budget = recipe.train, recipe.engine.token_budget
        self.samples, self.lengths, self.requests = samples, lengths if self.budget else None, requests
        self.batches = lru_cache(1)(self._batches)
        counts = [self._count(epoch) for epoch in range(self.options.epochs)]
        self.start = [0, *np.cumsum(counts).tolist()]

    @property
    def total(self) -> int:
        return self.start[-1]

    def steps(self, epoch: int) -> int:
        return self.start[epoch + 1] - self.start[epoch]

    def _batches(self, epoch: int) -> list[np.ndarray]:
        """The samples of each step of an epoch, int64 [B]; every sample occurs once."""
        order = self._order(epoch)
        edges = self._edges(order)
        return [order[low:high] for low, high in pairwise(edges)]

    def _count(self, epoch: int) -> int:
        if self.lengths is None:
            return -(-self.samples // self.options.batch_size)
        return len(self._edges(self._order(epoch))) - 1

    def _order(self, epoch: int) -> np.ndarray:
        if self.requests is None:
            return epoch_order(self.samples, self.options.seed, epoch)
        return self.requests.epoch_order(self.options.seed, epoch)

    def _edges(self, order: np.ndarray) -> list[int]:
        """Where each step begins in the order, and its end."""
        if self.lengths is None:
            return [*range(0, len(order), self.options.batch_size), len(order)]
        ends = np.cumsum(self.lengths[order], dtype=np.int64)
        edges, most = [0], MOST * self.options.batch_size
        while (start := edges[-1]) < len(order):
            used = int(ends[start - 1]) if start else 0
            fits = int(np.searchsorted(ends, used + self.budget, side="right"))
            edges.append(max(start + 1, min(fits, start + most, len(order))))
        return edges
