"""The ranking model: embeddings, one reader of the history, context and evidence, one tower, one head per target."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from lsm_cli.data.batches import Batch
from lsm_cli.data.store import Field
from lsm_cli.embedding.bank import Bank, Fetched
from lsm_cli.kernels.ragged import Occurrences, Segments
from lsm_cli.models.evidence import Evidence, MatchBias, match_mask
from lsm_cli.models.history import History, Part
from lsm_cli.models.interest import DIN, TIN, MeanPool, StackedTIN
from lsm_cli.models.numeric import Numeric
from lsm_cli.models.temporal import TemporalEncoding
from lsm_cli.models.tower import Tower
from lsm_cli.recipe import Recipe

HOURS, WEEKDAYS, CALENDAR_DIM = 24, 7, 4


class RankingModel(nn.Module):
    """Scores candidates for every target.

    Args:
        recipe: options.
        fields: side-information fields in order; those of behaviours make the representation ẽ, those of candidates
            make v; where a candidate lacks a field of the behaviours, v has a learned constant there.
        targets: number of optimisation targets.
        statistics: number of point-in-time statistics per sample.
        category_rows: see `Bank`.
    """

    def __init__(
        self, recipe: Recipe, fields: list[Field], targets: int, statistics: int, category_rows: np.ndarray | None
    ) -> None:
        super().__init__()
        options, train = recipe.model, recipe.train
        torch.manual_seed(train.seed)
        reads = options.sequence != "none" and options.max_len > 0
        behaviour = [field.name for field in fields if field.in_history]
        self.behaviour = behaviour if reads else []
        self.candidate = [field.name for field in fields if field.in_sample]
        used = [field for field in fields if field.name in {*self.behaviour, *self.candidate}]
        self.bank = Bank(
            used, category_rows, options.dim, options.init_std, train.table_optimizer, train.unknown, train.seed
        )
        shared = [name for name in behaviour if name in self.candidate]
        self.shared = shared if reads or (options.evidence and options.max_len > 0) else []
        self.constants = nn.ParameterDict(
            {
                name: nn.Parameter(torch.randn(options.dim) * options.init_std)
                for name in self.behaviour
                if name not in shared
            }
        )
        width = options.dim * len(self.behaviour)
        self.reader = _reader(recipe, width) if reads else None
        self.temporal = (
            TemporalEncoding(
                width, options.temporal, {"interval": options.intervals, "rank": options.ranks}, options.init_std
            )
            if reads and options.temporal
            else None
        )
        self.bias = MatchBias(shared) if reads and options.match_bias and options.sequence != "mean" else None
        self.evidence = (
            Evidence(shared, options.half_lives, options.windows) if options.evidence and self.shared else None
        )
        numbers = (statistics if recipe.data.statistics else 0) + (len(self.evidence.names) if self.evidence else 0)
        self.use_statistics = recipe.data.statistics and statistics > 0
        self.numeric = Numeric(numbers, options.bins)
        self.calendar = (
            nn.ModuleList(nn.Embedding(size, CALENDAR_DIM) for size in (HOURS, WEEKDAYS))
            if recipe.data.calendar
            else None
        )
        features = self.numeric.out + (2 * CALENDAR_DIM if self.calendar else 0)
        features += options.dim * len(self.candidate) if options.candidate else 0
        read = cast(int, self.reader.out) if self.reader is not None else 0
        self.feed_candidate = options.candidate
        self.tower = Tower(
            features + read, options.project, options.cross, options.hidden, targets, options.dropout,
            quiet=read if options.quiet else 0,
        )  # fmt: skip

    def fetch(self, batch: Batch) -> dict[str, Fetched]:
        """The embedding rows of a batch; in training mode they are leaves that collect gradients."""
        return self.bank.fetch(batch, history=self.reader is not None)

    def forward(self, batch: Batch, rows: dict[str, Fetched]) -> Tensor:
        """Logits [B, targets]."""
        segments = Segments(batch.offsets, batch.behaviours)
        masks = {name: match_mask(batch, segments, name) for name in self.shared}
        own = {name: _candidate(rows[name]) for name in self.candidate}
        features = [self.numeric(self._numbers(batch, segments, masks))]
        if self.calendar is not None:
            features += [table(batch.calendar[:, place]) for place, table in enumerate(self.calendar)]
        if self.feed_candidate:
            features += list(own.values())
        if self.reader is not None:
            features.append(self.reader(*self._inputs(batch, segments, masks, rows, own)))
        return self.tower(torch.cat(features, 1))

    def numbers(self, batch: Batch) -> Tensor:
        """The raw numeric features of a batch [B, n], to fit their scale before training."""
        segments = Segments(batch.offsets, batch.behaviours)
        return self._numbers(batch, segments, {name: match_mask(batch, segments, name) for name in self.shared})

    def _numbers(self, batch: Batch, segments: Segments, masks: dict[str, Tensor]) -> Tensor:
        found = [batch.statistics] if self.use_statistics else []
        if self.evidence is not None:
            found.append(self.evidence(batch, segments, masks))
        return torch.cat(found, 1) if found else batch.statistics[:, :0]

    def _inputs(
        self,
        batch: Batch,
        segments: Segments,
        masks: dict[str, Tensor],
        rows: dict[str, Fetched],
        own: dict[str, Tensor],
    ) -> tuple[History, Tensor]:
        """What a reader reads: the factored history and the candidate ṽ [B, width]."""
        parts = []
        for name in self.behaviour:
            values = rows[name].rows.values
            parts.append(Part(values, Occurrences(cast(Tensor, rows[name].history), values.shape[0], segments)))
        size = batch.size
        candidate = torch.cat(
            [own[name] if name in own else self.constants[name].expand(size, -1) for name in self.behaviour], 1
        )
        added: list[Part] = []
        if self.temporal is not None:
            added = self.temporal.parts(batch, segments)
            candidate = self.temporal.candidate(candidate)
        bias = self.bias(masks) if self.bias is not None and masks else None
        return History(segments, parts, added, bias), candidate


def _candidate(fetched: Fetched) -> Tensor:
    """The candidates' embeddings of one field, [B, dim]."""
    return fetched.rows.values.index_select(0, cast(Tensor, fetched.target))


def _reader(recipe: Recipe, width: int) -> nn.Module:
    options = recipe.model
    match options.sequence:
        case "mean":
            return MeanPool(width)
        case "din":
            return DIN(width, options.attention_hidden)
        case "tin":
            return TIN(width)
        case _:
            return StackedTIN(width, options.layers, options.stack_output)
