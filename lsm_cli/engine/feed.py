"""Batches of one split as the recipe's search reads them: the most recent behaviours, or those found for a candidate.

A hard search and match statistics need the store alone. A soft search goes by the attention of the model being trained:
everything within reach is scored, and only what is selected goes on, so no gradient passes through the selection.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lsm_cli.data.batches import Batch, Pointers, Queries
from lsm_cli.data.orders import ragged_arange
from lsm_cli.engine.setup import Setup
from lsm_cli.errors import InputError
from lsm_cli.models.history import History
from lsm_cli.models.ranking import RankingModel
from lsm_cli.search import hashing, soft
from lsm_cli.search.files import FoundFile
from lsm_cli.search.found import union
from lsm_cli.search.hard import HardSearch
from lsm_cli.search.matches import MatchStatistics


class Feed:
    """Makes batches.

    Args:
        setup: recipe, store and device.
        split: which samples.
        shuffle_seed: see `Assembler`.
    """

    def __init__(self, setup: Setup, split: str, shuffle_seed: int | None = None) -> None:
        self.options = setup.recipe.search
        self.device = setup.compute.device
        self.assembler = setup.assembler(split, shuffle_seed)
        self.user, self.labels = self.assembler.user, self.assembler.labels
        self.matches: MatchStatistics | None = setup.match_statistics()
        self.file, self.hard = None, None
        live = not self.options.source
        if not live and shuffle_seed is None:
            self.file = FoundFile(self.options.source, setup.store, split)
        elif not live and self.options.method != "hard":
            raise InputError(
                "search.from: pointers found for one history say nothing about another's, so this run has no shuffled "
                "control; train it with the search itself (search.from='')"
            )
        if self.file is None and self.options.method in ("hard", "hybrid"):
            self.hard = HardSearch(setup.store, setup.hard_options())
        self.soft = self.file is None and self.options.method in ("soft", "eta", "sdim", "hybrid")

    def __len__(self) -> int:
        return len(self.assembler)

    def lengths(self, index: np.ndarray) -> np.ndarray:
        """Behaviours that a batch of these samples gathers at most, int64 [len(index)]."""
        reach = self.assembler.lengths(index)
        if self.soft or (self.file is None and self.hard is None):
            return reach
        return np.minimum(reach, self.options.top_k + self.options.recent)

    def batch(self, index: np.ndarray, model: RankingModel) -> Batch:
        """The samples `index` on the device, with the behaviours that the model is to read."""
        with torch.no_grad():
            if self.soft:
                batch = self._softly(index, model)
            else:
                batch = self.assembler.batch(index, self._pointers(index)).to(self.device)
            if self.matches is not None:
                queries = self.assembler.queries(index)
                whole = replace(queries, first=self.assembler.store.offsets[queries.user])
                found = self.matches(whole)
                batch.matches = torch.from_numpy(found).to(self.device)
        return batch

    def _pointers(self, index: np.ndarray) -> Pointers | None:
        """What a search of the store alone finds; None = the most recent."""
        if self.file is not None:
            return self.file.take(index)
        if self.hard is None:
            return None
        queries = self.assembler.queries(index)
        found = self.hard(queries)
        if not self.options.recent:
            return found.by_time()
        return union(len(index), (found.row, found.pointer), _newest(queries, self.options.recent))

    def _softly(self, index: np.ndarray, model: RankingModel) -> Batch:
        everything = self.assembler.batch(index).to(self.device)
        keys, query = model.keys(everything)
        scores = self._scores(keys, query, model)
        keep = everything.rank <= self.options.recent if self.options.recent else None
        k = self.options.top_k
        if self.hard is not None:
            queries = self.assembler.queries(index)
            found = self.hard(queries)
            row = found.row
            place = everything.offsets.cpu().numpy()[row] + found.pointer - queries.first[row]
            hard = torch.zeros(everything.behaviours, dtype=torch.bool)
            hard[torch.from_numpy(place)] = True
            keep = hard.to(self.device) if keep is None else keep | hard.to(self.device)
            k -= self.options.hard_k
        return everything.select(*soft.top_k(scores, keys.segments, k, keep))

    def _scores(self, keys: History, query: Tensor, model: RankingModel) -> Tensor:
        options = self.options
        if options.method in ("eta", "sdim"):
            tables = [(part.table, part.at) for part in keys.fields]
            score = hashing.eta if options.method == "eta" else hashing.sdim
            return score(tables, query, options.hashes, options.hash_bits)
        return keys.scores(query, added=False) if options.score == "product" else keys.logits(query)


def _newest(queries: Queries, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, pointer) of the most recent behaviours."""
    first = np.maximum(queries.first, queries.end - count)
    return ragged_arange(first, np.maximum(queries.end - first, 0))
