"""The first stage by itself: what a search finds, how far back, how fast, and what attention would have chosen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lsm_cli.data.batches import SECONDS_PER_DAY, Batch
from lsm_cli.data.store import MISSING
from lsm_cli.engine.evaluate import LENGTH_EDGES, length_names
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.setup import EVERYTHING, Setup, visible_lengths
from lsm_cli.kernels.ragged import Segments
from lsm_cli.models.ranking import RankingModel
from lsm_cli.report.console import Progress, Silent
from lsm_cli.search import soft
from lsm_cli.search.hard import ANY
from lsm_cli.search.plan import hard_options

CHUNK, REACH = 2048, 1 << 19  # samples and behaviours in reach per batch, at most
TIMED = 2048  # samples per length bucket whose search is timed
AGES = 200_000  # found behaviours from which percentiles are taken


@dataclass
class Findings:
    """Sums over the samples searched so far.

    Attributes:
        levels: names, finest first; counts: int64 [levels], finds by the finest level shared with the candidate.
        places: domain|scenario -> int64 [ids], finds by their own.
    """

    levels: list[str]
    counts: np.ndarray
    samples: int = 0
    found: int = 0
    places: dict[str, np.ndarray] = field(default_factory=dict)
    ages: list[np.ndarray] = field(default_factory=list)
    ranks: list[np.ndarray] = field(default_factory=list)

    def add(self, batch: Batch, level: np.ndarray, rng: np.random.Generator) -> None:
        """Take in one batch of finds, `level` uint8 [N]."""
        self.samples += batch.size
        self.found += batch.behaviours
        self.counts += np.bincount(level, minlength=len(self.counts))
        some = rng.random(batch.behaviours) < 0.05 if self.found > AGES else slice(None)
        self.ages.append(batch.age.numpy()[some])
        self.ranks.append(batch.rank.numpy()[some])
        for name in ("domain", "scenario"):
            if name in batch.history:
                count = np.bincount(batch.history[name].numpy())
                before = self.places.get(name, np.zeros(0, np.int64))
                both = np.zeros(max(len(count), len(before)), np.int64)
                both[: len(count)] += count
                both[: len(before)] += before
                self.places[name] = both

    def summary(self, budget: int, names: dict[str, dict[str, str]]) -> dict[str, Any]:
        """What `lsm search --json` prints of the finds."""
        days = np.concatenate(self.ages) / SECONDS_PER_DAY if self.ages else np.empty(0)
        ranks = np.concatenate(self.ranks) if self.ranks else np.empty(0)
        found = max(self.found, 1)
        return {
            "samples": self.samples,
            "found_per_sample": self.found / max(self.samples, 1),
            "filled": self.found / max(self.samples * budget, 1),
            "levels": {name: int(n) / found for name, n in zip(self.levels, self.counts, strict=True)},
            "reach_days": float(np.median(days)) if len(days) else None,
            "reach_days_p10_p90": [float(x) for x in np.percentile(days, [10, 90])] if len(days) else None,
            "reach_rank": float(np.median(ranks)) if len(ranks) else None,
            **{
                kind: {names[kind].get(str(i), f"#{i}"): int(n) / found for i, n in enumerate(count) if n}
                for kind, count in self.places.items()
            },
        }


class Searching:
    """Runs a recipe's search over a split.

    Args:
        setup: recipe and store; match statistics are left out.
        model: whose attention searches, for soft methods; else any.
    """

    def __init__(self, setup: Setup, model: RankingModel, progress: Progress | None = None) -> None:
        self.setup, self.model, self.progress = setup, model.eval(), progress or Silent()
        search = setup.recipe.search
        options = hard_options(search, setup.store, [item.name for item in setup.fields], search.top_k)
        self.levels = [*options.levels, *([] if ANY in options.levels else [ANY])]
        self.budget = setup.recipe.model.max_len if search.method == "none" else search.top_k + search.recent

    def findings(self) -> Findings:
        return Findings(self.levels, np.zeros(len(self.levels), np.int64))

    @torch.no_grad()
    def parts(self, split: str, into: Findings) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Search a whole split: (found per sample, event pointers, levels), chunk by chunk."""
        feed, rng = Feed(self.setup, split), np.random.default_rng(0)
        for index in _chunks(feed, np.arange(len(feed))):
            batch = feed.batch(index, self.model).to(torch.device("cpu"))
            lengths = np.diff(batch.offsets.numpy())
            level = self._levels(batch)
            into.add(batch, level, rng)
            pointer = np.repeat(feed.assembler.queries(index).end, lengths) - batch.rank.numpy()
            yield lengths, pointer, level
            self.progress.advance(len(index))

    def _levels(self, batch: Batch) -> np.ndarray:
        """uint8 [N]: the finest level that each behaviour shares with its candidate."""
        row = Segments(batch.offsets, batch.behaviours).row
        level = np.full(batch.behaviours, self.levels.index(ANY), np.uint8)
        for place, name in reversed([*enumerate(self.levels)]):
            if name != ANY:
                target = batch.target[name][row]
                level[((batch.history[name] == target) & (target > MISSING)).numpy()] = place
        return level

    @torch.no_grad()
    def speed(self, split: str) -> dict[str, float]:
        """Queries per second by history length, gathering of what was found included."""
        feed, rates = Feed(self.setup, split), {}
        visible = visible_lengths(self.setup.store, split)
        bucket = np.searchsorted(LENGTH_EDGES, visible, side="right") - 1
        for place, name in enumerate(length_names()):
            rows = np.flatnonzero(bucket == place)[:TIMED]
            if len(rows):
                chunks = list(_chunks(feed, rows))
                feed.batch(chunks[0], self.model)  # pages and caches are warm in training, too
                started = time.perf_counter()
                for index in chunks:
                    feed.batch(index, self.model)
                rates[name] = len(rows) / (time.perf_counter() - started)
        return rates

    @torch.no_grad()
    def agreement(self, judge: Setup, model: RankingModel, split: str, samples: int) -> dict[str, Any]:
        """Recall@K and NDCG@K of the finds against the K that a model's attention weighs most among all in reach.

        Means over samples with a history; NDCG discounts the r-th of attention's own choice by 1 / log2(r + 1).
        """
        feed, exhaustive, k = Feed(self.setup, split), judge.assembler(split), self.setup.recipe.search.top_k
        exhaustive.max_len = EVERYTHING
        every = np.arange(len(feed))
        index = np.sort(np.random.default_rng(0).permutation(every)[:samples])
        recalls, gains = [], []
        model.eval()
        for chunk in _chunks(feed, index, exhaustive.lengths):
            everything = exhaustive.batch(chunk).to(judge.compute.device)
            keys, query = model.keys(everything)
            scores = keys.logits(query).cpu()
            segments = Segments(everything.offsets.cpu(), everything.behaviours)
            offsets, best = soft.top_k(scores, segments, k)
            row = Segments(offsets, len(best)).row.numpy()
            order = np.lexsort((-best.numpy(), -scores[best].numpy(), row))
            best_rank = everything.rank.cpu().numpy()[best.numpy()][order]
            place = np.arange(len(best)) - offsets.numpy()[row] + 1
            batch = feed.batch(chunk, self.model).to(torch.device("cpu"))
            owner = Segments(batch.offsets, batch.behaviours).row.numpy()
            ranks = int(max(best_rank.max(initial=0), batch.rank.numpy().max(initial=0))) + 1
            hit = np.isin(row * ranks + best_rank, owner * ranks + batch.rank.numpy())
            discount = 1 / np.log2(place + 1)
            count, size = np.bincount(row, minlength=len(chunk)), len(chunk)
            some = count > 0
            recalls.append(np.bincount(row, hit, size)[some] / count[some])
            gains.append(np.bincount(row, hit * discount, size)[some] / np.bincount(row, discount, size)[some])
        recall, gain = np.concatenate(recalls), np.concatenate(gains)
        return {
            "recall_at_k": float(recall.mean()) if len(recall) else None,
            "ndcg_at_k": float(gain.mean()) if len(gain) else None,
            "judged_samples": len(recall),
        }


def _chunks(feed: Feed, index: np.ndarray, lengths: Any = None) -> Iterator[np.ndarray]:
    """Cut samples into batches of bounded reach."""
    ends = np.cumsum((lengths or feed.lengths)(index)) if len(index) else np.empty(0, np.int64)
    start = 0
    while start < len(index):
        used = ends[start - 1] if start else 0
        stop = max(start + 1, min(start + CHUNK, int(np.searchsorted(ends, used + REACH, side="right"))))
        yield index[start:stop]
        start = stop
