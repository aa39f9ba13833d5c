"""The embedding tables of all fields of a model, and their optimisers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from lsm_cli.data.batches import Batch
from lsm_cli.data.store import Field
from lsm_cli.embedding.cached import CachedTable
from lsm_cli.embedding.optimizer import RowOptimizer, row_optimizer
from lsm_cli.embedding.tables import RowMap, Rows, Table
from lsm_cli.embedding.tiers import ON_DEVICE, Tier
from lsm_cli.kernels import ragged


@dataclass
class Fetched:
    """The rows of one field for one batch.

    Attributes:
        rows: distinct rows of the field's table.
        history: int64 [N], positions in `rows` of the behaviours; None if the behaviours lack the field.
        target: int64 [B], the same for the candidates.
        gathered: whether row i of `rows` is behaviour i's, and the candidates' follow: then `rows` are not distinct.
    """

    rows: Rows
    history: Tensor | None
    target: Tensor | None
    gathered: bool = False

    def part(self, behaviours: slice, samples: slice) -> Fetched:
        """The same rows for some samples of the batch."""
        history = None if self.history is None else self.history[behaviours]
        return Fetched(self.rows, history, None if self.target is None else self.target[samples])


def _widened(rows: Tensor, scale: Tensor | None) -> Tensor:
    return rows.float() if scale is None else rows.float() * scale.unsqueeze(1)


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
        tier: where tables lie that are larger than their cache.
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
        tier: Tier = ON_DEVICE,
    ) -> None:
        super().__init__()
        self.names = [field.name for field in fields]
        self.dim, self.unknown = dim, unknown
        self.maps = nn.ModuleList()
        self.tables = nn.ModuleList()
        self.optimizers = nn.ModuleList()
        for position, field in enumerate(fields):
            self.maps.append(RowMap(field.rows, category_rows if field.level else None))
            held = tier.held(field.rows)
            moves = row_optimizer(optimizer, held, dim)
            of_table = (field.rows, dim, std, seed * 1009 + position, dtype)
            whole = held == field.rows
            self.tables.append(Table(*of_table) if whole else CachedTable(*of_table, moves, tier))
            self.optimizers.append(moves)

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

    @property
    def cached(self) -> dict[str, CachedTable]:
        """The tables that the device holds in part."""
        found = zip(self.names, self.tables, strict=True)
        return {name: table for name, table in found if isinstance(table, CachedTable)}

    def expect(self, batch: Batch, ahead: int, history: bool = True) -> None:
        """Bring the rows of a coming batch into the caches, so many batches before it is read; on the thread that makes
        batches, and without waiting for a device if the batch is still on the host."""
        for name, table in self.cached.items():
            rows_of = cast(RowMap, self.maps[self.names.index(name)])
            parts = [batch.history.get(name) if history else None, batch.target.get(name)]
            table.expect(torch.cat([rows_of(ids).long().cpu() for ids in parts if ids is not None]), ahead)

    def gather(
        self, batch: Batch, tables: Sequence[tuple[Tensor, Tensor | None]], history: bool = True
    ) -> dict[str, Fetched]:
        """As `fetch`, only to look at, with a row for every behaviour and candidate: nothing depends on how many are
        distinct. Tables of few rows come as they are.

        Args:
            tables: of every field the rows [R, d], and what each is multiplied with [R]; None = nothing.
        """
        found = {}
        for name, rows_of, (weight, scale) in zip(self.names, self.maps, tables, strict=True):
            behaviours = batch.history.get(name) if history else None
            target = batch.target.get(name)
            ids = [None if part is None else rows_of(part).long() for part in (behaviours, target)]
            if len(weight) <= ragged.FEW:
                every = torch.arange(len(weight), device=weight.device)
                found[name] = Fetched(Rows(every, _widened(weight, scale), ()), ids[0], ids[1])
                continue
            index = torch.cat([part for part in ids if part is not None])
            rows = _widened(weight.index_select(0, index), None if scale is None else scale.index_select(0, index))
            first = 0 if behaviours is None else batch.behaviours
            own, candidates = (torch.arange(n, device=weight.device) for n in (first, batch.size))
            found[name] = Fetched(
                Rows(index, rows, ()),
                None if behaviours is None else own,
                None if target is None else candidates + first,
                gathered=True,
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
        if self.cached:
            return False
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
