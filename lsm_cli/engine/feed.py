"""Batches of one split as the recipe's search reads them: the most recent behaviours, or those found for a candidate.

A hard search and match statistics need the store alone. A soft search goes by the attention of the model being trained:
everything within reach is scored, and only what is selected goes on, so no gradient passes through the selection.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor

from lsm_cli.data.batches import Batch, Pointers, Queries, Spans
from lsm_cli.data.epochs import Requests
from lsm_cli.data.orders import ragged_arange
from lsm_cli.data.resident import Resident
from lsm_cli.data.views import View
from lsm_cli.engine import trace
from lsm_cli.engine.ahead import ahead
from lsm_cli.engine.fitting import Pieces, out_of_memory
from lsm_cli.engine.pools import lasting
from lsm_cli.engine.replay import Replay
from lsm_cli.engine.ring import Ring
from lsm_cli.engine.setup import Setup
from lsm_cli.errors import InputError, LsmError
from lsm_cli.kernels.ragged import Segments
from lsm_cli.models.history import NARROW, History, SharedHistory
from lsm_cli.models.ranking import RankingModel
from lsm_cli.models.scorer import Scorer
from lsm_cli.options import BY_ATTENTION
from lsm_cli.search import hashing, soft
from lsm_cli.search.files import FoundFile
from lsm_cli.search.found import union
from lsm_cli.search.hard import HardSearch
from lsm_cli.search.matches import MatchStatistics
from lsm_cli.search.scan import Histories
from lsm_cli.search.soft import Shared, share


class Feed:
    """Makes batches.

    Args:
        setup: recipe, store and device.
        split: which samples.
        shuffle_seed: see `Assembler`.
    """

    def __init__(self, setup: Setup, split: str, shuffle_seed: int | None = None) -> None:
        self.file, self.hard = None, None
        if setup.recipe.search.source:
            file = FoundFile(setup.recipe.search.source, setup.store, split)
            if shuffle_seed is None and not isinstance(setup.store, View):
                self.file = file
            else:
                setup = _live(setup, file, "look without them" if shuffle_seed is None else "shuffled control")
        self.options = setup.recipe.search
        self.device = setup.compute.device
        self.assembler = setup.assembler(split, shuffle_seed)
        self.user, self.labels = self.assembler.user, self.assembler.labels
        self.matches: MatchStatistics | None = setup.match_statistics()
        self.histories = Histories(setup.store) if self.matches is None else self.matches.histories
        if self.file is None and self.options.method in ("hard", "hybrid"):
            self.hard = HardSearch(setup.store, setup.hard_options(), setup.recipe.engine.search_index, self.histories)
        self.soft = self.file is None and self.options.method in BY_ATTENTION
        self.hashes = self.options.method in ("eta", "sdim")
        self.plain = self.hashes or self.options.score == "product"  # candidates as they are
        self.shares = setup.recipe.engine.share_histories
        self.ring, self.resident = None, None
        if self.device.type == "cuda" and setup.recipe.engine.pinned:
            self.ring = Ring(self.device, setup.recipe.engine.prefetch + 2)
        if setup.on_device:
            with lasting(self.device, setup.recipe.engine):
                self.resident = self._resident()
        self.replays = setup.replays
        self.replay: Replay | None = None
        # a soft search goes by the model as the step before left it, so its batches cannot be made ahead
        self.depth = 0 if self.soft else setup.recipe.engine.prefetch
        self.gathering, self.scoring = Pieces("gathering of a batch", self.device), Pieces("scoring", self.device)

    def __len__(self) -> int:
        return len(self.assembler)

    def requests(self) -> Requests:
        """Which samples are candidates of one request."""
        of = self.assembler
        return Requests(*(np.asarray(column) for column in (of.user, of.end, of.time)))

    def lengths(self, index: np.ndarray) -> np.ndarray:
        """Behaviours that a batch of these samples gathers at most, int64 [len(index)]."""
        if self.file is not None:
            return self.file.lengths(index)
        reach = self.assembler.lengths(index)
        if self.soft or self.hard is None:
            return reach
        return np.minimum(reach, self.options.top_k + self.options.recent)

    def batch(self, index: np.ndarray, model: Scorer, ahead: int = 0, share: bool = False) -> Batch:
        """The samples `index` on the device, with the behaviours that the model is to read.

        Args:
            ahead: it is made so many batches before it is read; its embedding rows are then brought nearer too.
            share: candidates of one request may share its history, see `Assembler.batch`.
        """

        def gathered(bounds: Sequence[tuple[int, int]]) -> Batch:
            return Batch.join([self._batch(index[low:high], model, ahead, share) for low, high in bounds])

        return self.gathering.run(len(index), gathered)

    def tell(self, hear: Callable[[str], None]) -> None:
        """Who hears what had to be done in pieces."""
        self.gathering.tell = self.scoring.tell = hear

    def _batch(self, index: np.ndarray, model: Scorer, ahead: int, share: bool) -> Batch:
        with torch.no_grad():
            with trace.part(trace.SEARCH):
                asked = self.soft or self.hard is not None or self.matches is not None
                queries = self.assembler.queries(index if asked else index[:0])
                if self.soft:
                    batch = self._softly(index, queries, cast(RankingModel, model))
                else:
                    read = self._pointers(index, queries)
            if not self.soft:
                batch = self._assembled(index, read, model if ahead else None, ahead, share)
            if self.matches is not None:
                with trace.part(trace.NUMBERS):
                    matches = self.matches(self._whole(queries))
                    batch.matches = torch.from_numpy(matches).to(self.device)
            self.histories.forget()
        return batch

    def batches(self, groups: Iterable[np.ndarray], model: Scorer) -> Generator[Batch, None, None]:
        """`batch` of each group of samples, in order; on a thread ahead of their use if the recipe says so."""
        share = self.shares and not self.replays
        return ahead(lambda index: self.batch(index, model, self.depth, share), groups, self.depth)

    def _assembled(
        self,
        index: np.ndarray,
        read: Pointers | Spans | None = None,
        expects: Scorer | None = None,
        ahead: int = 0,
        share: bool = False,
    ) -> Batch:
        if self.resident is not None:  # on a GPU the ids of its behaviours are not known here
            with trace.part(trace.DATA):
                return self.resident.batch(index, read, share)
        with trace.part(trace.DATA):
            batch = self.assembler.batch(index, read, share)
            if expects is not None:
                expects.expect(batch, ahead)
        with trace.part(trace.COPY):
            return batch.to(self.device) if self.ring is None else batch.moved(self.ring.move)

    def _moved(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Host tensors on the device."""
        return [tensor.to(self.device) for tensor in tensors] if self.ring is None else self.ring.move(tensors)

    def _resident(self) -> Resident:
        try:
            return Resident(self.assembler, self.device, self._moved)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        raise LsmError("the store's columns do not fit in the device's memory; set engine.trajectories=host")

    @torch.no_grad()
    def find(self, index: np.ndarray, model: RankingModel | None = None) -> Pointers:
        """What the samples `index` read, for those who want no more than that.

        Args:
            model: whose attention searches; a hard search needs none.
        """
        queries = self.assembler.queries(index)
        if self.soft:
            assert model is not None
            batch = self._softly(index, queries, model)
            offsets, rank = batch.offsets.cpu().numpy(), batch.rank.cpu().numpy()
            return Pointers(offsets, np.repeat(queries.end, np.diff(offsets)) - rank)
        return self._pointers(index, queries) or union(len(index), _newest(queries, len(self.assembler.event_time)))

    @torch.no_grad()
    def scores(self, everything: Batch, model: RankingModel) -> Tensor:
        """What a soft search goes by, for every behaviour of a batch: [N], -inf = never found."""
        return self._scores(*model.keys(everything, self.hashes, self.plain))

    def _whole(self, queries: Queries) -> Queries:
        """The same with all behaviours within reach; the very same where they are, so that what was seen is seen."""
        first = self.assembler.store.offsets[queries.user]
        return queries if np.array_equal(first, queries.first) else replace(queries, first=first)

    def _pointers(self, index: np.ndarray, queries: Queries) -> Pointers | None:
        """What a search of the store alone finds; None = the most recent."""
        if self.file is not None:
            return self.file.take(index)
        if self.hard is None:
            return None
        found = self.hard(queries)
        if not self.options.recent:
            return found.by_time()
        return union(len(index), (found.row, found.pointer), _newest(queries, self.options.recent))

    def _softly(self, index: np.ndarray, queries: Queries, model: RankingModel) -> Batch:
        """Score everything within reach and read the best; a history that several candidates read is read once."""
        shared = share(queries)
        if not (self.shares and shared.pays(model.spaces[-1].dim < NARROW)):
            everything = self._assembled(index)
            keys, query = model.keys(everything, self.hashes, self.plain)
            return everything.select(*self._choose(self._scores(keys, query), keys.segments, queries))
        history, query = self._jointly(index, shared, queries, model)
        segments = Segments(torch.from_numpy(shared.offsets).to(self.device), shared.scores)
        found = self._choose(self._scores(history, query), segments, queries.take(shared.order))
        read = shared.pointers(*(part.cpu().numpy() for part in found))
        return self._assembled(index, read)

    def _jointly(
        self, index: np.ndarray, shared: Shared, queries: Queries, model: RankingModel
    ) -> tuple[SharedHistory, Tensor]:
        """Histories gathered and embedded once, and the queries of all their candidates, request by request."""
        device = self.device
        sample, request = shared.leaders
        histories = seen = self._assembled(index[sample[request]], shared.histories)
        if len(sample) > len(request):  # several requests read one history, each at its own time
            offsets, pointer, rank = shared.seen()
            age = queries.time[sample].repeat(np.diff(offsets)) - self.assembler.event_time.take(pointer)
            age = (age / self.assembler.store.ticks_per_second).astype(np.float32)
            moments = [torch.from_numpy(part) for part in (offsets, age, rank)]
            seen = replace(histories, offsets=moments[0], age=moments[1], rank=moments[2]).to(device)
        nothing = Pointers(np.zeros(len(index) + 1, np.int64), np.empty(0, np.int64))
        candidates = self._assembled(index[shared.order], nothing)
        return model.shared_keys(histories, seen, candidates, shared.requests(), self.hashes, self.plain)

    def _choose(self, scores: Tensor, segments: Segments, queries: Queries) -> tuple[Tensor, Tensor]:
        """The behaviours to read: those that score highest, the most recent, and what a hard search finds."""
        parts, k = [], self.options.top_k
        if self.options.recent:
            parts.append(_newest(queries, self.options.recent))
        if self.hard is not None:
            found = self.hard(queries)
            parts.append((found.row, found.pointer))
            k -= self.options.hard_k
        if not parts:
            return soft.top_k(scores, segments, k)
        keep = np.zeros(scores.numel(), bool)
        first = segments.offsets.cpu().numpy()[:-1] - queries.first
        for row, pointer in parts:
            keep[first[row] + pointer] = True
        return soft.top_k(scores, segments, k, torch.from_numpy(keep).to(scores.device))

    def _scores(self, keys: History | SharedHistory, query: Tensor) -> Tensor:
        options = self.options
        if not self.hashes:
            return keys.scores(query, added=False) if options.score == "product" else keys.combined(query)
        tables = [(part.table, part.at) for part in keys.fields]
        ours, wanted = hashing.codes(tables, query, options.hashes, options.hash_bits)
        if options.method == "eta":
            near = hashing.eta
        else:
            near = partial(hashing.sdim, hashes=options.hashes, hash_bits=options.hash_bits)
        return keys.compare(near, ours, wanted)


def _live(setup: Setup, file: FoundFile, what: str) -> Setup:
    """The same, searching as the file was searched: pointers found for one history say nothing about another's.

    Raises:
        InputError: the file was found by attention, which is another model's.
    """
    if file.search.method != "hard":
        raise InputError(
            f"search.from: {file.path} was found by {file.search.method} search in each user's own whole history, and "
            f"the model that found it is not part of this run, so there is no {what}; train with the "
            "search itself (search.from='')"
        )
    return replace(setup, recipe=setup.recipe.model_copy(update={"search": file.search}))


def _newest(queries: Queries, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, pointer) of the most recent behaviours."""
    first = np.maximum(queries.first, queries.end - count)
    return ragged_arange(first, np.maximum(queries.end - first, 0))
