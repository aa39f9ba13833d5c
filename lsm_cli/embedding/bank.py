"""The embedding tables of all fields of a model, and their optimisers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lsm_cli.data.batches import Batch
from lsm_cli.data.store import Field
from lsm_cli.embedding.optimizer import row_optimizer
from lsm_cli.embedding.tables import RowMap, Rows, Table


@dataclass
class Fetched:
    """The rows of one field for one batch.

    Attributes:
        rows: distinct rows of the field's table.
        history: int64 [N], positions in `rows` of the behaviours; None if the behaviours lack the field.
        target: int64 [B], the same for the candidates.
    """

    rows: Rows
    history: Tensor | None
    target: Tensor | None


class Bank(nn.Module):
    """One table per field.

    Args:
        fields: the fields in model order.
        category_rows: int32 [nodes], category node -> row in the table of its level.
        dim: embedding width.
        std: standard deviation of fresh rows.
        optimizer: `adagrad` or `adam`.
        unknown: share of ids shown as unknown in training.
    """

    def __init__(
        self,
        fields: list[Field],
        category_rows: np.ndarray | None,
        dim: int,
        std: float,
        optimizer: str,
        unknown: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.names = [field.name for field in fields]
        self.dim, self.unknown = dim, unknown
        self.maps = nn.ModuleDict()
        self.tables = nn.ModuleDict()
        self.optimizers = nn.ModuleDict()
        for position, field in enumerate(fields):
            self.maps[field.name] = RowMap(field.rows, category_rows if field.level else None)
            self.tables[field.name] = Table(field.rows, dim, std, seed * 1009 + position)
            self.optimizers[field.name] = row_optimizer(optimizer, field.rows, dim)

    def fetch(self, batch: Batch, history: bool = True) -> dict[str, Fetched]:
        """Read the rows of one batch; in training mode they collect gradients and some ids are hidden.

        Args:
            history: also the rows of the behaviours; without them only candidates are looked up.
        """
        return {
            name: self._fetch(name, batch.history.get(name) if history else None, batch.target.get(name))
            for name in self.names
        }

    def _fetch(self, name: str, history: Tensor | None, target: Tensor | None) -> Fetched:
        found = [self._hide(self.maps[name](ids), name) for ids in (history, target) if ids is not None]
        rows = self.tables[name].fetch(*found, grad=self.training)
        local = iter(rows.local)
        return Fetched(rows, None if history is None else next(local), None if target is None else next(local))

    def _hide(self, rows: Tensor, name: str) -> Tensor:
        count = int(rows.numel() * self.unknown)
        if not self.training or not count:
            return rows
        where = torch.randint(rows.numel(), (count,), device=rows.device)
        return rows.index_fill(0, where, self.tables[name].rows - 1)

    def leaves(self, fetched: dict[str, Fetched]) -> list[Tensor]:
        """The leaf tensors of a step, for gradient scaling and clipping."""
        return [item.rows.values for item in fetched.values()]

    def update(self, fetched: dict[str, Fetched], lr: float, scale: float = 1.0) -> None:
        """Write the rows of one step back."""
        for name, item in fetched.items():
            self.tables[name].update(item.rows, self.optimizers[name], lr, scale)
