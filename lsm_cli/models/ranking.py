"""The ranking model: embeddings, one reader of the history, context and evidence, one tower, one head per target."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from lsm_cli.data.batches import Batch
from lsm_cli.data.store import Field
from lsm_cli.kernels.ragged import Segments
from lsm_cli.models import heads
from lsm_cli.models.bst import BST
from lsm_cli.models.evidence import ActionBias, Evidence, match_mask, wanted
from lsm_cli.models.graph import ItemVectors, with_graph
from lsm_cli.models.heads import Heads
from lsm_cli.models.history import NARROW, History, Match, SharedHistory, segments_of
from lsm_cli.models.hstu import HSTU
from lsm_cli.models.interest import DIN, TIN, MeanPool, StackedTIN
from lsm_cli.models.mhta import MHTA
from lsm_cli.models.numeric import Numeric
from lsm_cli.models.scorer import Scorer
from lsm_cli.models.sdim import SDIM
from lsm_cli.models.space import Rows, Space
from lsm_cli.models.stca import STCA
from lsm_cli.models.tower import Tower
from lsm_cli.options import Recipe
from lsm_cli.search.soft import Request

HOURS, WEEKDAYS, CALENDAR_DIM = 24, 7, 4


class RankingModel(Scorer):
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
        attentive = reads and options.sequence not in ("mean", "sdim")
        seen = [field for field in fields if field.in_history]
        visible = with_graph(seen, options.graph_dim)
        self.items = ItemVectors(visible[-1].rows, options.graph_dim) if options.graph_dim else None
        groups = heads.groups(options.heads, visible, bool(options.temporal)) if attentive else None
        if groups and options.sequence == "mhta":
            groups *= options.block_heads
        decoupled = attentive and options.attention_dim > 0
        timeless = options.temporal_start == "zero"
        self.space = Space(
            recipe, fields, category_rows, options.dim, reads, train.seed, targets, None if decoupled else groups,
            self.items, timeless=timeless and not decoupled,
        )  # fmt: skip
        shared = [field.name for field in fields if field.in_history and field.in_sample]
        self.shared = shared if reads or (options.evidence and options.max_len > 0) else []
        self.attention: Space | None = None
        if decoupled:
            seed = train.seed + 104_729
            self.attention = Space(
                recipe, seen, category_rows, options.attention_dim, True, seed, targets, groups, self.items,
                options.attention_std, timeless,
            )  # fmt: skip
        self.spaces = [self.space] if self.attention is None else [self.space, self.attention]
        self.reader = (
            _reader(recipe, self.space.width, self.attention.width if self.attention else 0, len(groups or [[]]))
            if reads
            else None
        )
        self.matching = attentive and options.match_bias
        rows = {field.name: field.rows for field in seen}
        self.actions = ActionBias(rows["action"]) if attentive and options.action_bias else None
        own_times = options.time_tables != "shared" and self.space.temporal is not None
        self.readings: list[int | None] = list(range(targets)) if own_times and targets > 1 else [None]
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
        self.tower: Tower = Tower(features, read, options, targets)

    def start(self, rates: Tensor, item_vectors: Callable[[], Tensor]) -> None:
        self.tower.start(rates)
        if self.items is not None:
            self.items.fill(item_vectors())

    def forward(self, batch: Batch, rows: list[Rows]) -> Tensor:
        """Logits [B, targets]."""
        segments = segments_of(batch)
        masks = self._masks(batch, segments)
        features = [self.numeric(self._numbers(batch, segments, masks))]
        if self.calendar is not None:
            features += [table(batch.calendar[:, place]) for place, table in enumerate(self.calendar)]
        if self.feed_candidate:
            features += [self.space.own(rows[0], name) for name in self.space.candidate]
        found = []
        if self.reader is not None:
            found = [self.reader(*inputs) for inputs in self._inputs(batch, segments, masks, rows)]
        return self.tower(features, found)

    @torch.no_grad()
    def weights(self, batch: Batch) -> list[list[list[Tensor]]]:
        """How attention weighs the behaviours: for every reading (one, or one per target), layer and head, [N]."""
        segments = segments_of(batch)
        rows = [space.fetch(batch, frozen=True) for space in self.spaces]
        found = []
        for history, candidate, query in self._inputs(batch, segments, self._masks(batch, segments), rows):
            history.watched = []
            cast(nn.Module, self.reader)(history, candidate, query)
            found.append(history.watched)
        return found

    def numbers(self, batch: Batch) -> Tensor:
        """The raw numeric features of a batch [B, n], to fit their scale before training."""
        segments = segments_of(batch)
        return self._numbers(batch, segments, self._masks(batch, segments))

    @torch.no_grad()
    def keys(self, batch: Batch, distinct: bool = False, plain: bool = False) -> tuple[History, Tensor]:
        """What attention goes by, to search with: the behaviours' keys and the candidates' queries, [B, width] or,
        where heads ask for different things, [B, heads, width].

        Args:
            distinct: see `Space.looked_up`.
            plain: candidates as they are, not as attention asks with them.
        """
        segments = Segments(batch.offsets, batch.behaviours)
        space = self.spaces[-1]
        places, masks = space.places(batch, segments), self._masks(batch, segments) if self.matching else {}
        distinct = distinct or space.dim < NARROW  # whole tables are not to be widened
        parts, extra = space.looked_up(batch, segments, distinct), self._by_action(batch)
        keys = space.history(segments, parts, places, masks, None, extra)
        return keys, self._queries(batch, plain)

    @torch.no_grad()
    def shared_keys(
        self,
        histories: Batch,
        seen: Batch,
        candidates: Batch,
        requests: list[Request],
        distinct: bool = False,
        plain: bool = False,
    ) -> tuple[SharedHistory, Tensor]:
        """The same, each history embedded once for all its candidates.

        Args:
            histories: a history for every user, whatever its candidate.
            seen: the same at the time of every request: offsets, age and rank.
            candidates: all candidates, in the order of the requests, without behaviours.
            distinct, plain: see `keys`.
        """
        space = self.spaces[-1]
        segments, moments = (Segments(part.offsets, part.behaviours) for part in (histories, seen))
        parts = space.looked_up(histories, segments, distinct)
        keys = space.history(segments, parts, space.places(seen, moments), {}, None)
        matches = [
            Match(histories.history[name], wanted(candidates.target[name]), weight)
            for name, weight in cast(Heads, space.heads).match_weights().items()
        ]
        return SharedHistory(keys, matches, requests, self._by_action(histories)), self._queries(candidates, plain)

    def _queries(self, candidates: Batch, plain: bool) -> Tensor:
        """What attention asks with, to search, see `keys`."""
        space = self.spaces[-1]
        rows = space.bank.fetch(candidates, history=False, frozen=True)
        query = space.placed(space.target(rows, candidates.size), None)
        return self.reader.asks(query) if isinstance(self.reader, MHTA) and not plain else query

    def _masks(self, batch: Batch, segments: Segments) -> dict[str, Tensor]:
        wanted = self.shared if self.matching or self.evidence is not None else []
        return {name: match_mask(batch, segments, name) for name in wanted}

    def _matching(self, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """The matches that attention sees."""
        return masks if self.matching else {}

    def _by_action(self, batch: Batch) -> Tensor | None:
        """What the behaviours' actions add to the attention's logits: [M]."""
        return None if self.actions is None else self.actions(batch.history["action"])

    def _numbers(self, batch: Batch, segments: Segments, masks: dict[str, Tensor]) -> Tensor:
        found = [batch.statistics] if self.use_statistics else []
        if batch.matches is not None:
            found.append(batch.matches)
        if self.evidence is not None:
            found.append(self.evidence(batch, segments, masks))
        return torch.cat(found, 1) if found else batch.statistics[:, :0]

    def _inputs(
        self, batch: Batch, segments: Segments, masks: dict[str, Tensor], rows: list[Rows]
    ) -> Iterator[tuple[History, Tensor, Tensor]]:
        """What a reader reads: the factored history, the candidate ṽ [B, width] and the attention's query.

        Once for all targets, or target by target where each has temporal encodings of its own.
        """
        matching, extra = self._matching(masks), self._by_action(batch)
        extra = None if extra is None else segments.each(extra)
        prepared = []
        for space, found in zip(self.spaces, rows, strict=True):
            parts, places = space.parts(segments, found), space.places(batch, segments)
            prepared.append((space, parts, places, space.target(found, batch.size)))
        for target in self.readings:
            seen = [
                (space.history(segments, parts, places, matching, target, extra), space.placed(candidate, target))
                for space, parts, places, candidate in prepared
            ]
            (history, candidate), (keys, query) = seen[0], seen[-1]
            history.age = batch.age
            if keys is not history:
                history.keys = keys
            yield history, candidate, query


def _reader(recipe: Recipe, width: int, attention: int, heads: int) -> nn.Module:
    options = recipe.model
    match options.sequence:
        case "mean":
            return MeanPool(width)
        case "din":
            return DIN(width, options.attention_hidden)
        case "tin":
            return TIN(width, heads)
        case "mhta":
            return MHTA(width, options.block_heads)
        case "sdim":
            return SDIM(width, recipe.search.hashes, recipe.search.hash_bits)
        case "bst":
            return BST(width, options.layers, options.block_heads, options.dropout)
        case "stca":
            return STCA(width, options.layers, options.block_heads)
        case "hstu":
            return HSTU(width, options.layers, options.block_heads, options.intervals, options.ranks, options.dropout)
        case _:
            return StackedTIN(
                width,
                options.layers,
                options.stack_output,
                options.stack_residual,
                options.stack_feed_forward,
                attention,
                heads,
            )
