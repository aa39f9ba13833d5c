"""The embedding tables of all fields of a model, and their optimisers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from lsm_cli.data.batches import Batch
from lsm_cli.data.store import Field
from lsm_cli.embedding.optimizer import RowOptimizer, row_optimizer
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
        dtype: of the tables.
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
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.names = [field.name for field in fields]
        self.dim, self.unknown = dim, unknown
        self.maps = nn.ModuleList()
        self.tables = nn.ModuleList()
        self.optimizers = nn.ModuleList()
        for position, field in enumerate(fields):
            self.maps.append(RowMap(field.rows, category_rows if field.level else None))
            self.tables.append(Table(field.rows, dim, std, seed * 1009 + position, dtype))
            self.optimizers.append(row_optimizer(optimizer, field.rows, dim))

    def fetch(self, batch: Batch, history: bool = True, frozen: bool = False) -> dict[str, Fetched]:
        """Read the rows of one batch; in training mode they collect gradients and some ids are hidden.

        Args:
            history: also the rows of the behaviours; without them only candidates are looked up.
            frozen: only to look at, even in training mode.
        """
        learns = self.training and not frozen
        found = {}
        for name, rows_of, table in zip(self.names, self.maps, self.tables, strict=True):
            behaviours = batch.history.get(name) if history else None
            target = batch.target.get(name)
            ids = [rows_of(ids) for ids in (behaviours, target) if ids is not None]
            if not ids:  # a field that candidates lack, and nobody asks for behaviours
                continue
            if learns:
                ids = [self._hide(part, cast(Table, table)) for part in ids]
            rows = cast(Table, table).fetch(*ids, grad=learns)
            local = iter(rows.local)
            found[name] = Fetched(
                rows, None if behaviours is None else next(local), None if target is None else next(local)
            )
        return found

    def look(self, name: str, ids: Tensor) -> tuple[Tensor, Tensor]:
        """One field's table [R, d], only to look at, and the rows in it of some ids: int64 [n]."""
        place = self.names.index(name)
        return cast(Table, self.tables[place]).weight, self.maps[place](ids).long()

    @property
    def looks(self) -> bool:
        """Whether to look into the tables costs less than to fetch distinct rows: on the CPU, where these are searched
        for and copied."""
        weights = [cast(Table, table).weight for table in self.tables]
        return all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)

    def reset(self) -> None:
        """All tables and the state of their optimisers as they were before the first step."""
        for table, optimizer in zip(self.tables, self.optimizers, strict=True):
            cast(Table, table).reset()
            for state in optimizer.buffers():
                state.zero_()

    def _hide(self, rows: Tensor, table: Table) -> Tensor:
        count = int(rows.numel() * self.unknown)
        if not count:
            return rows
        where = torch.randint(rows.numel(), (count,), device=rows.device)
        return rows.index_fill(0, where, table.rows - 1)

    def leaves(self, fetched: dict[str, Fetched]) -> list[Tensor]:
        """The leaf tensors of a step, for gradient scaling and clipping."""
        return [item.rows.values for item in fetched.values()]

    def update(self, fetched: dict[str, Fetched], lr: float) -> None:
        """Move the rows of one step against their gradients and write them back."""
        for item, table, optimizer in zip(fetched.values(), self.tables, self.optimizers, strict=True):
            cast(Table, table).update(item.rows, cast(RowOptimizer, optimizer), lr)
