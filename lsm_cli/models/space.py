"""One embedding space in which behaviours and candidates meet: tables, and where in time a behaviour lies."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from lsm_cli.data.batches import Batch
from lsm_cli.data.store import Field
from lsm_cli.embedding.bank import Bank, Fetched
from lsm_cli.kernels.ragged import Occurrences, Segments
from lsm_cli.models.history import History, Part
from lsm_cli.models.temporal import TemporalEncoding
from lsm_cli.recipe import Recipe

Rows = dict[str, Fetched]


class Space(nn.Module):
    """ẽ_i = the behaviour's side information side by side + p(Δt_i);  ṽ = the candidate's + p(0).

    Args:
        recipe: options.
        fields: side information in order; that of behaviours makes ẽ and ṽ.
        category_rows: see `Bank`.
        dim: width per field.
        reads: whether behaviours are read at all.
        seed: of the tables.
    """

    def __init__(
        self, recipe: Recipe, fields: list[Field], category_rows: np.ndarray | None, dim: int, reads: bool, seed: int
    ) -> None:
        super().__init__()
        options, train = recipe.model, recipe.train
        self.dim, self.reads = dim, reads
        self.behaviour = [field.name for field in fields if field.in_history and reads]
        self.candidate = [field.name for field in fields if field.in_sample]
        used = [field for field in fields if field.name in {*self.behaviour, *self.candidate}]
        self.bank = Bank(used, category_rows, dim, options.init_std, train.table_optimizer, train.unknown, seed)
        self.width = dim * len(self.behaviour)
        lacking = [name for name in self.behaviour if name not in self.candidate]
        self.constants = nn.ParameterDict({name: nn.Parameter(torch.randn(dim) * options.init_std) for name in lacking})
        buckets = {"interval": options.intervals, "rank": options.ranks}
        self.temporal = (
            TemporalEncoding(self.width, options.temporal, buckets, options.init_std)
            if self.width and options.temporal
            else None
        )

    def fetch(self, batch: Batch, frozen: bool = False) -> Rows:
        """The embedding rows of a batch; in training mode, and not frozen, leaves that collect gradients."""
        return self.bank.fetch(batch, history=self.reads, frozen=frozen)

    def history(self, batch: Batch, segments: Segments, rows: Rows, bias: Tensor | None) -> History:
        """ẽ of every behaviour, factored."""
        parts = []
        for name in self.behaviour:
            values = rows[name].rows.values
            parts.append(Part(values, Occurrences(cast(Tensor, rows[name].history), values.shape[0], segments)))
        added = self.temporal.parts(batch, segments) if self.temporal is not None else []
        return History(segments, parts, added, bias)

    def target(self, rows: Rows, size: int) -> Tensor:
        """ṽ of every candidate: [B, width]; a learned constant where it lacks a field of the behaviours."""
        parts = [
            self.own(rows, name) if name in self.candidate else self.constants[name].expand(size, -1)
            for name in self.behaviour
        ]
        joined = torch.cat(parts, 1)
        return joined if self.temporal is None else self.temporal.candidate(joined)

    def own(self, rows: Rows, name: str) -> Tensor:
        """The candidates' embeddings of one field: [B, dim]."""
        return rows[name].rows.values.index_select(0, cast(Tensor, rows[name].target))
