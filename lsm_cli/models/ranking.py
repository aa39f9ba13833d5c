"""The ranking model: embeddings, one reader of the history, context and evidence, one tower, one head per target."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from lsm_cli.data.batches import Batch
from lsm_cli.data.store import Field
from lsm_cli.kernels.ragged import Segments
from lsm_cli.models.evidence import Evidence, MatchBias, match_mask, wanted
from lsm_cli.models.history import History, Match, SharedHistory
from lsm_cli.models.interest import DIN, TIN, MeanPool, StackedTIN
from lsm_cli.models.numeric import Numeric
from lsm_cli.models.space import Rows, Space
from lsm_cli.models.tower import Tower
from lsm_cli.recipe import Recipe
from lsm_cli.search.soft import Request

HOURS, WEEKDAYS, CALENDAR_DIM = 24, 7, 4


class RankingModel(nn.Module):
    """Scores candidates for every target.

    Args:
        recipe: options.
        fields: side-information fields in order.
        targets: number of optimisation targets.
        statistics: number of point-in-time statistics per sample.
        category_rows: see `Bank`.
        matches: number of match statistics that come with a batch; 0 = they are taken from the behaviours read.
    """

    def __init__(
        self,
        recipe: Recipe,
        fields: list[Field],
        targets: int,
        statistics: int,
        category_rows: np.ndarray | None,
        matches: int = 0,
    ) -> None:
        super().__init__()
        options, train = recipe.model, recipe.train
        torch.manual_seed(train.seed)
        reads = options.sequence != "none" and options.max_len > 0
        self.space = Space(recipe, fields, category_rows, options.dim, reads, train.seed)
        shared = [field.name for field in fields if field.in_history and field.in_sample]
        self.shared = shared if reads or (options.evidence and options.max_len > 0) else []
        self.attention: Space | None = None
        if reads and options.attention_dim:
            seen = [field for field in fields if field.in_history]
            self.attention = Space(recipe, seen, category_rows, options.attention_dim, True, train.seed + 104_729)
        self.spaces = [self.space] if self.attention is None else [self.space, self.attention]
        self.reader = (
            _reader(recipe, self.space.width, self.attention.width if self.attention else 0) if reads else None
        )
        self.bias = MatchBias(shared) if reads and options.match_bias and options.sequence != "mean" else None
        reads_evidence = options.evidence and bool(self.shared) and not matches
        self.evidence = Evidence(shared, options.half_lives, options.windows) if reads_evidence else None
        self.use_statistics = recipe.data.statistics and statistics > 0
        numbers = (statistics if self.use_statistics else 0) + matches
        numbers += len(self.evidence.names) if self.evidence else 0
        self.numeric = Numeric(numbers, options.bins)
        self.calendar = (
            nn.ModuleList(nn.Embedding(size, CALENDAR_DIM) for size in (HOURS, WEEKDAYS))
            if recipe.data.calendar
            else None
        )
        features = self.numeric.out + (2 * CALENDAR_DIM if self.calendar else 0)
        features += options.dim * len(self.space.candidate) if options.candidate else 0
        read = cast(int, self.reader.out) if self.reader is not None else 0
        self.feed_candidate = options.candidate
        self.tower = Tower(features, read, options, targets)

    def fetch(self, batch: Batch) -> list[Rows]:
        """The embedding rows of a batch, space by space; in training mode they are leaves that collect gradients."""
        return [space.fetch(batch) for space in self.spaces]

    def leaves(self, rows: list[Rows]) -> list[Tensor]:
        """The leaf tensors of a step, for gradient scaling and clipping."""
        return [leaf for space, found in zip(self.spaces, rows, strict=True) for leaf in space.bank.leaves(found)]

    def update(self, rows: list[Rows], lr: float) -> None:
        """Move the rows of one step against their gradients."""
        for space, found in zip(self.spaces, rows, strict=True):
            space.bank.update(found, lr)

    def reset_tables(self) -> None:
        """All tables as they were before the first step."""
        for space in self.spaces:
            space.bank.reset()

    def forward(self, batch: Batch, rows: list[Rows]) -> Tensor:
        """Logits [B, targets]."""
        segments = Segments(batch.offsets, batch.behaviours)
        masks = self._masks(batch, segments)
        features = [self.numeric(self._numbers(batch, segments, masks))]
        if self.calendar is not None:
            features += [table(batch.calendar[:, place]) for place, table in enumerate(self.calendar)]
        if self.feed_candidate:
            features += [self.space.own(rows[0], name) for name in self.space.candidate]
        found = [] if self.reader is None else [self.reader(*self._inputs(batch, segments, masks, rows))]
        return self.tower(torch.cat(features, 1), found)

    def numbers(self, batch: Batch) -> Tensor:
        """The raw numeric features of a batch [B, n], to fit their scale before training."""
        segments = Segments(batch.offsets, batch.behaviours)
        return self._numbers(batch, segments, self._masks(batch, segments))

    @torch.no_grad()
    def keys(self, batch: Batch) -> tuple[History, Tensor]:
        """What attention goes by, to search with: the behaviours' keys and the candidates' queries [B, width]."""
        segments = Segments(batch.offsets, batch.behaviours)
        space = self.spaces[-1]
        rows = space.fetch(batch, frozen=True)
        bias = self._bias(self._masks(batch, segments))
        return space.history(batch, segments, rows, bias), space.target(rows, batch.size)

    @torch.no_grad()
    def shared_keys(
        self, histories: Batch, seen: Batch, candidates: Batch, requests: list[Request]
    ) -> tuple[SharedHistory, Tensor]:
        """The same, each history embedded once for all its candidates.

        Args:
            histories: a history for every user, whatever its candidate.
            seen: the same at the time of every request: offsets, age and rank.
            candidates: all candidates, in the order of the requests, without behaviours.
        """
        space = self.spaces[-1]
        segments = Segments(histories.offsets, histories.behaviours)
        keys = space.history(histories, segments, space.fetch(histories, frozen=True), None)
        if space.temporal is not None and seen is not histories:
            keys.added = space.temporal.parts(seen, Segments(seen.offsets, seen.behaviours))
        query = space.target(space.fetch(candidates, frozen=True), candidates.size)
        matches = []
        if self.bias is not None:
            for weight, name in zip(self.bias.weight, self.shared, strict=True):
                matches.append(Match(histories.history[name], wanted(candidates.target[name]), weight))
        return SharedHistory(keys, matches, requests), query

    def _masks(self, batch: Batch, segments: Segments) -> dict[str, Tensor]:
        wanted = self.shared if self.bias is not None or self.evidence is not None else []
        return {name: match_mask(batch, segments, name) for name in wanted}

    def _bias(self, masks: dict[str, Tensor]) -> Tensor | None:
        return self.bias(masks) if self.bias is not None and masks else None

    def _numbers(self, batch: Batch, segments: Segments, masks: dict[str, Tensor]) -> Tensor:
        found = [batch.statistics] if self.use_statistics else []
        if batch.matches is not None:
            found.append(batch.matches)
        if self.evidence is not None:
            found.append(self.evidence(batch, segments, masks))
        return torch.cat(found, 1) if found else batch.statistics[:, :0]

    def _inputs(
        self, batch: Batch, segments: Segments, masks: dict[str, Tensor], rows: list[Rows]
    ) -> tuple[History, Tensor, Tensor]:
        """What a reader reads: the factored history, the candidate ṽ [B, width] and the attention's query."""
        bias = self._bias(masks)
        history = self.space.history(batch, segments, rows[0], bias)
        candidate = self.space.target(rows[0], batch.size)
        if self.attention is None:
            return history, candidate, candidate
        history.keys = self.attention.history(batch, segments, rows[1], bias)
        return history, candidate, self.attention.target(rows[1], batch.size)


def _reader(recipe: Recipe, width: int, attention: int) -> nn.Module:
    options = recipe.model
    match options.sequence:
        case "mean":
            return MeanPool(width)
        case "din":
            return DIN(width, options.attention_hidden)
        case "tin":
            return TIN(width)
        case _:
            return StackedTIN(width, options.layers, options.stack_output, attention)
