"""Embedding tables of which a step reads and writes only the rows that it touches.

The tables are no autograd parameters. A step *fetches* the distinct rows of its batch as small dense leaves, models
compute on these by local ids, and the optimiser writes the rows back: cost depends on the batch, not on the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from lsm_cli.embedding.optimizer import RowOptimizer

PIECE = 1 << 16  # rows that are drawn at once


@dataclass
class Rows:
    """The distinct rows of one table in one batch.

    Attributes:
        index: int64 [U], rows of the table.
        values: float32 [U, d], a leaf that collects the gradient of the rows.
        local: for each requested id tensor, its ids as positions in `index`.
        place: where a cache held them when they were read; None = they are where `index` says, or no longer known.
    """

    index: Tensor
    values: Tensor
    local: tuple[Tensor, ...]
    place: Place | None = None


@dataclass
class Place:
    """Distinct rows and the slots of a cache that hold them, int64 [U] each; `rows` and `slots` on the host."""

    rows: Tensor
    slots: Tensor
    on_device: Tensor


class RowMap(nn.Module):
    """Identities [n] -> embedding rows [n]: untrained values share the last row; category nodes go through a table."""

    mapping: Tensor | None

    def __init__(self, rows: int, mapping: np.ndarray | None = None) -> None:
        super().__init__()
        self.rows = rows
        self.on_host = None if mapping is None else torch.from_numpy(mapping.astype(np.int64))
        self.register_buffer("mapping", self.on_host, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        if self.mapping is None:
            return ids.clamp(max=self.rows - 1)
        here = self.mapping.device == ids.device  # or they are still on their way
        return (self.mapping if here else cast(Tensor, self.on_host)).index_select(0, ids)


class Table(nn.Module):
    """One table [rows, dim]; rows 0 (padding), 1 (missing) and the last (unknown) start at zero.

    Args:
        std: standard deviation of the other rows at the start.
        dtype: how rows are kept; models see them in float32.
        whole: False = a subclass keeps the rows.

    Attributes:
        weight: [rows, dim].
        sparse: False makes a step read and update the whole table, as a dense parameter would be.
    """

    weight: Tensor
    sparse: bool = True

    def __init__(
        self,
        rows: int,
        dim: int,
        std: float,
        seed: int,
        dtype: torch.dtype = torch.float32,
        whole: bool = True,
    ) -> None:
        super().__init__()
        self.rows, self.dim, self.std, self.seed = rows, dim, std, seed
        self._scratch: np.ndarray | None = None
        if whole:
            self.register_buffer("weight", torch.empty(rows, dim, dtype=dtype))
            self.reset()

    def reset(self) -> None:
        """Back to the first weights, which are a function of the seed."""
        self._first(self.weight)

    @torch.no_grad()
    def _first(self, weight: Tensor) -> None:
        """Fill a whole table [rows, dim] with the first weights, a piece after the other: only a piece of them is ever
        held twice. Pieces of whole sixteens are drawn as the whole would be, which a test holds torch to."""
        generator = torch.Generator().manual_seed(self.seed)
        for start in (starts := range(0, max(self.rows - 16, 1), PIECE)):
            stop = start + PIECE if start != starts[-1] else self.rows
            fresh = torch.empty(stop - start, self.dim).normal_(0, self.std, generator=generator)
            weight[start:stop].copy_(fresh)
        weight[[0, min(1, self.rows - 1), self.rows - 1]] = 0

    def fetch(self, *ids: Tensor, grad: bool) -> Rows:
        """Read the distinct rows of all `ids` (int32 or int64, [n] each) as one leaf."""
        sizes = [part.numel() for part in ids]
        every = torch.cat(ids) if len(ids) > 1 else ids[0]
        if grad and not self.sparse:
            whole = torch.arange(self.rows, device=every.device)
            values = self.weight.to(torch.float32, copy=True).requires_grad_()
            return Rows(whole, values, tuple(every.long().split(sizes)))
        if every.is_cuda:
            index, local = torch.unique(every, return_inverse=True)
            index = index.long()
        else:
            index, local = self._distinct(every)
        values, place = self.read(index, grad)
        return Rows(index, values.float().requires_grad_(grad), tuple(local.split(sizes)), place)

    def read(self, index: Tensor, learns: bool) -> tuple[Tensor, Place | None]:
        """Distinct rows int64 [U] -> their values as they are kept, [U, d]."""
        return self.weight.index_select(0, index), None

    def _distinct(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ascending distinct ids and positions, without a sort of all ids: a scatter into a scratch column."""
        flat = ids.numpy()
        if self._scratch is None:
            self._scratch = np.zeros(self.rows, np.int32)
        scratch = self._scratch
        if self.rows <= 4 * len(flat):
            scratch[:] = 0
            scratch[flat] = 1
            index = np.flatnonzero(scratch)
        else:
            scratch[flat] = np.arange(len(flat), dtype=np.int32)
            index = np.sort(flat[scratch[flat] == np.arange(len(flat), dtype=np.int32)])
        scratch[index] = np.arange(len(index), dtype=np.int32)
        return torch.from_numpy(index.astype(np.int64, copy=False)), torch.from_numpy(scratch[flat].astype(np.int64))

    @torch.no_grad()
    def update(self, rows: Rows, optimizer: RowOptimizer, lr: float) -> None:
        """Move the fetched rows against their gradient."""
        grad = rows.values.grad
        if grad is None or not rows.index.numel():
            return
        optimizer.move(self.weight, rows.index, rows.values.detach(), grad, lr)
