"""Embedding tables of which a step reads and writes only the rows that it touches.

The tables are no autograd parameters. A step *fetches* the distinct rows of its batch as small dense leaves, models
compute on these by local ids, and the optimiser writes the rows back: cost depends on the batch, not on the table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lsm_cli.embedding.optimizer import RowOptimizer


@dataclass
class Rows:
    """The distinct rows of one table in one batch.

    Attributes:
        index: int64 [U], rows of the table.
        values: float32 [U, d], a leaf that collects the gradient of the rows.
        local: for each requested id tensor, its ids as positions in `index`.
    """

    index: Tensor
    values: Tensor
    local: tuple[Tensor, ...]


class RowMap(nn.Module):
    """Identity -> embedding row: untrained values share the last row; category nodes go through a table."""

    mapping: Tensor | None

    def __init__(self, rows: int, mapping: np.ndarray | None = None) -> None:
        super().__init__()
        self.rows = rows
        self.register_buffer(
            "mapping", None if mapping is None else torch.from_numpy(mapping.astype(np.int64)), persistent=False
        )

    def forward(self, ids: Tensor) -> Tensor:
        return ids.clamp(max=self.rows - 1) if self.mapping is None else self.mapping.index_select(0, ids)


class Table(nn.Module):
    """One table [rows, dim]; rows 0 (padding), 1 (missing) and the last (unknown) start at zero.

    Args:
        std: standard deviation of the other rows at the start.
        dtype: how rows are kept; models see them in float32.

    Attributes:
        sparse: False makes a step read and update the whole table, as a dense parameter would be.
    """

    weight: Tensor
    sparse: bool = True

    def __init__(self, rows: int, dim: int, std: float, seed: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.std, self.seed = std, seed
        self.register_buffer("weight", torch.empty(rows, dim, dtype=dtype))
        self.reset()
        self._scratch: np.ndarray | None = None

    @torch.no_grad()
    def reset(self) -> None:
        """Back to the first weights, which are a function of the seed."""
        rows, dim = self.weight.shape
        fresh = torch.empty(rows, dim).normal_(0, self.std, generator=torch.Generator().manual_seed(self.seed))
        fresh[[0, min(1, rows - 1), rows - 1]] = 0
        self.weight.copy_(fresh)

    @property
    def rows(self) -> int:
        return self.weight.shape[0]

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
        else:
            index, local = self._distinct(every)
        values = self.weight.index_select(0, index).float().requires_grad_(grad)
        return Rows(index, values, tuple(local.split(sizes)))

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
