"""One embedding space in which behaviours and candidates meet: tables, and where in time a behaviour lies."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from lsm_cli.data.batches import Batch
from lsm_cli.data.store import Field
from lsm_cli.embedding.bank import Bank, Fetched
from lsm_cli.embedding.tiers import Tier
from lsm_cli.kernels.ragged import Occurrences, Segments
from lsm_cli.models.graph import GRAPH, GraphField, ItemVectors
from lsm_cli.models.heads import Heads
from lsm_cli.models.history import History, Part
from lsm_cli.models.temporal import TemporalEncoding
from lsm_cli.options import Recipe

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
        targets: optimisation targets, each of which may have temporal encodings of its own.
        groups: fields that each head of the attention sees, if there is an attention that goes by this space.
        items: the item graph's vectors, a further field of behaviours and candidates; None = without it.
        std: standard deviation of fresh side information; 0 = the recipe's `init_std`.
        timeless: its temporal encodings start at zero.
    """

    def __init__(
        self,
        recipe: Recipe,
        fields: list[Field],
        category_rows: np.ndarray | None,
        dim: int,
        reads: bool,
        seed: int,
        targets: int = 1,
        groups: list[list[str]] | None = None,
        items: ItemVectors | None = None,
        std: float = 0.0,
        timeless: bool = False,
    ) -> None:
        super().__init__()
        options, train = recipe.model, recipe.train
        std = std or options.init_std
        self.dim, self.reads = dim, reads
        self.behaviour = [field.name for field in fields if field.in_history and reads]
        self.candidate = [field.name for field in fields if field.in_sample]
        used = [field for field in fields if field.name in {*self.behaviour, *self.candidate}]
        dtype = torch.bfloat16 if train.table_dtype == "bf16" else torch.float32
        self.bank = Bank(
            used, category_rows, dim, std, train.table_optimizer, train.unknown, seed, dtype,
            Tier.of(recipe.engine),
        )  # fmt: skip
        lacking = [name for name in self.behaviour if name not in self.candidate]
        shared = [name for name in self.behaviour if name in self.candidate]
        self.graph = GraphField(items, dim, std) if items is not None else None
        if self.graph is not None:
            self.behaviour += [GRAPH] if reads else []
            self.candidate.append(GRAPH)
        self.width = dim * len(self.behaviour)
        self.constants = nn.ParameterDict({name: nn.Parameter(torch.randn(dim) * std) for name in lacking})
        buckets = {"interval": options.intervals, "rank": options.ranks}
        self.temporal = (
            TemporalEncoding(
                self.width,
                options.temporal,
                buckets,
                0.0 if timeless else options.init_std,
                targets,
                options.time_tables,
            )
            if self.width and options.temporal
            else None
        )
        self.heads = Heads(groups, self.behaviour, dim, shared, options.match_bias) if groups is not None else None

    def fetch(self, batch: Batch, frozen: bool = False) -> Rows:
        """The embedding rows of a batch; in training mode, and not frozen, leaves that collect gradients."""
        return self.bank.fetch(batch, history=self.reads, frozen=frozen)

    def expect(self, batch: Batch, ahead: int) -> None:
        """Bring the rows of a batch that is still on the host nearer, see `Bank.expect`."""
        self.bank.expect(batch, ahead, history=self.reads)

    def places(self, batch: Batch, segments: Segments) -> dict[str, Occurrences]:
        """Where in time the behaviours lie, see `TemporalEncoding.places`."""
        return self.temporal.places(batch, segments) if self.temporal is not None else {}

    def looked_up(self, batch: Batch, segments: Segments, distinct: bool) -> list[Part]:
        """The side information of every behaviour, only to look at.

        Args:
            distinct: of each table only the rows that occur, each once, for those who compute something for every row.
        """
        if distinct or self.graph is not None or not self.bank.looks:
            return self.parts(segments, self.fetch(batch, frozen=True))
        found = (self.bank.look(name, batch.history[name]) for name in self.behaviour)
        return [Part(table, Occurrences(rows, len(table), segments)) for table, rows in found]

    def parts(self, segments: Segments, rows: Rows) -> list[Part]:
        """The side information of every behaviour."""
        parts: dict[str, Part] = {}
        for name in self.behaviour:
            if name == GRAPH:
                parts[name] = Part(cast(GraphField, self.graph)(rows["item"].rows.index), parts["item"].at)
                continue
            values, method = rows[name].rows.values, "own" if rows[name].gathered else "auto"
            ids = cast(Tensor, rows[name].history)
            parts[name] = Part(values, Occurrences(ids, values.shape[0], segments, method))
        return list(parts.values())

    def history(
        self,
        segments: Segments,
        parts: list[Part],
        places: dict[str, Occurrences],
        masks: dict[str, Tensor],
        target: int | None,
        extra: Tensor | None = None,
    ) -> History:
        """ẽ of every behaviour, factored, as one target sees it.

        Args:
            parts, places: side information and places in time of the behaviours; the same for all targets.
            masks: field -> bool [N], where behaviours share it with their candidate; none = no matches.
            target: whose temporal encodings; None = their mean.
            extra: [N], added to the attention's logits.
        """
        temporal = self.temporal
        added = temporal.parts(places, target) if temporal is not None else []
        if self.heads is None:
            return History(segments, parts, added, [])
        origin = temporal.origin(target) if temporal is not None else None
        return History(segments, parts, added, self.heads(masks, origin, extra))

    def target(self, rows: Rows, size: int) -> Tensor:
        """v of every candidate: [B, width]; a learned constant where it lacks a field of the behaviours."""
        parts = [
            self.own(rows, name) if name in self.candidate else self.constants[name].expand(size, -1)
            for name in self.behaviour
        ]
        return torch.cat(parts, 1)

    def placed(self, candidate: Tensor, target: int | None) -> Tensor:
        """ṽ = v + p(0), as one target sees it: [B, width]."""
        return candidate if self.temporal is None else candidate + self.temporal.origin(target)

    def own(self, rows: Rows, name: str) -> Tensor:
        """The candidates' embeddings of one field: [B, dim]."""
        if name == GRAPH:
            item = rows["item"]
            return cast(GraphField, self.graph)(item.rows.index.index_select(0, cast(Tensor, item.target)))
        return rows[name].rows.values.index_select(0, cast(Tensor, rows[name].target))
