"""The first stage by itself: what a search finds, how far back, how fast, and what attention would have chosen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from lsm_cli.data.assembling import Assembler
from lsm_cli.data.batches import Batch
from lsm_cli.data.orders import ragged_arange
from lsm_cli.data.store import Store
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.setup import EVERYTHING, Setup, visible_lengths
from lsm_cli.engine.slices import LENGTH_EDGES, length_names
from lsm_cli.errors import InputError
from lsm_cli.kernels.ragged import Segments
from lsm_cli.models.ranking import RankingModel
from lsm_cli.options import BY_ATTENTION, SEARCHING, Recipe, SearchOptions
from lsm_cli.report.console import Progress, Silent
from lsm_cli.search import soft
from lsm_cli.search.figures import Figures, Levels, agreement
from lsm_cli.search.files import FoundWriter
from lsm_cli.search.hard import ANY
from lsm_cli.search.plan import hard_options

CHUNK, REACH = 2048, 1 << 19  # samples and behaviours per batch, at most
TIMED, ROUNDS = 2048, 3  # samples per length bucket whose search is timed, and how often
KEPT = 1 << 21  # scores from which percentiles are taken
PERCENTILES = (1, 10, 50, 90, 99)


@dataclass
class Judge:
    """A trained model with an attention: it leads a soft search, and tells what any search should have found."""

    setup: Setup
    model: RankingModel

    @classmethod
    def of(cls, run: RunFolder, recipe: Recipe, store: Store) -> Judge:
        """The model of a run, on the device that `recipe` asks for.

        Raises:
            InputError: it does not fit the store, or has no attention.
        """
        run.check_store(store)
        own = run.recipe()
        if own.model.sequence not in SEARCHING:
            raise InputError(
                f"{run.path}: a model with model.sequence = {own.model.sequence!r} has no attention to search or judge "
                "by; give --run a run of tin, stacked_tin or mhta"
            )
        where = {name: getattr(recipe.train, name) for name in ("device", "precision", "threads")}
        own = own.model_copy(update={"train": own.train.model_copy(update=where)})
        setup = Setup.of(own, store)
        model = cast(RankingModel, setup.model())
        run.fill(model)
        return cls(setup, model.eval())


class Searching:
    """Runs a recipe's search over splits of a store.

    Args:
        recipe: whose search.
        store: where.
        judge: whose attention leads a soft search and judges any; a hard search does without.

    Raises:
        InputError: the recipe reads no history, reads what another search found, or goes by an attention that is not
            there.
    """

    def __init__(self, recipe: Recipe, store: Store, judge: Judge | None = None) -> None:
        search, model = recipe.search, recipe.model
        if search.source:
            raise InputError(
                f"search.from = {search.source!r}: `lsm search` finds behaviours itself; leave this key out, or set "
                "search.from="
            )
        if not _reads(recipe):
            raise InputError(
                f"{recipe.name}: this recipe reads no history (model.sequence = {model.sequence!r}, model.max_len = "
                f"{model.max_len}), so there is nothing to search; name another --recipe"
            )
        if search.method in BY_ATTENTION:
            if judge is None:
                raise InputError(
                    f"search.method = {search.method!r} goes by the attention of a trained model: give --run RUN"
                )
            recipe = recipe.model_copy(update={"model": judge.setup.recipe.model, "data": judge.setup.recipe.data})
        self.recent = search.method == "none"
        # match statistics are the model's affair; the store need not have an index of them
        model = recipe.model.model_copy(update={"evidence_from": "read"})
        self.setup = Setup.of(recipe.model_copy(update={"model": model}), store)
        self.store, self.judge = store, judge
        self.model = judge.model if judge is not None else None
        self.top_k = model.max_len if self.recent else search.top_k
        self.budget = self.top_k + (0 if self.recent else search.recent)
        options = hard_options(search, store, [field.name for field in self.setup.fields], self.top_k)
        self.levels = Levels(store, options.levels)
        self.asked = _asked(search, list(options.levels), self.top_k)

    def decisions(self) -> list[str]:
        """What was decided and why, a line each."""
        lines = [line for line in self.setup.decisions() if line.startswith(("device", "history", "search"))]
        if self.recent:
            lines.append(f"search     none: the most recent {self.top_k:,}, which is a search by `any` alone")
        return lines

    def run(
        self, splits: list[str], sample: int, writer: FoundWriter | None = None, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Search whole splits, then time and judge on some of their samples.

        Args:
            sample: samples on which the search is judged and what lies within reach is looked at; drawn at random.
            writer: where the pointers go.

        Returns:
            what `lsm search --json` prints: see `Figures.summary`; queries per second, overall and by behaviours
            before the request; recall, NDCG and percentiles of the scores, None without a judge or a soft search.
        """
        progress = progress or Silent()
        feeds = {split: Feed(self.setup, split) for split in splits}
        figures = Figures(
            self.store, self.levels.names, self.budget, dict(zip(length_names(), LENGTH_EDGES, strict=True))
        )
        seconds = 0.0
        for split, feed in feeds.items():
            if writer is None:
                seconds += self._search(split, feed, figures, None, progress)
            else:
                with writer.split(split) as part:
                    seconds += self._search(split, feed, figures, part.add, progress)
        progress.note("judging")
        judged = self._judge(feeds, figures, sample)
        progress.note("timing")
        largest = max(splits, key=lambda split: len(feeds[split]))
        return {
            **figures.summary(),
            "queries_per_second": figures.samples / seconds if seconds else None,
            "queries_per_second_by_history": self._speed(largest, feeds[largest]),
            **judged,
        }

    def _search(
        self,
        split: str,
        feed: Feed,
        figures: Figures,
        write: Callable[..., None] | None,
        progress: Progress,
    ) -> float:
        """Seconds spent in the search itself."""
        seconds = 0.0
        reach = self._reach(split, self.setup)
        for index in _chunks(feed.lengths(np.arange(len(feed)))):
            started = time.perf_counter()
            read = feed.find(index, self.model)
            seconds += time.perf_counter() - started
            queries = reach.queries(index)
            level = self.levels(queries, read)
            figures.add(queries, read, level)
            if write is not None:
                write(read, level)
            progress.advance(len(index))
        return seconds

    def _reach(self, split: str, setup: Setup) -> Assembler:
        """All that a search may look at, whatever it finds."""
        assembler = setup.assembler(split)
        assembler.max_len = self.setup.recipe.search.reach or EVERYTHING
        return assembler

    def _speed(self, split: str, feed: Feed) -> dict[str, float]:
        """Queries per second by history length: neighbouring samples, the best of some rounds with warm caches."""
        rates = {}
        bucket = np.searchsorted(LENGTH_EDGES, visible_lengths(self.store, split), side="right") - 1
        for place, name in enumerate(length_names()):
            rows = np.flatnonzero(bucket == place)
            rows = rows[max(0, len(rows) - TIMED) // 2 :][:TIMED]
            chunks = [rows[part] for part in _chunks(feed.lengths(rows))]
            if not place or not chunks:
                continue
            for index in chunks[:1]:
                feed.find(index, self.model)
            best = np.inf
            for _ in range(ROUNDS):
                started = time.perf_counter()
                for index in chunks:
                    feed.find(index, self.model)
                best = min(best, time.perf_counter() - started)
            rates[name] = len(rows) / best
        return rates

    def _judge(self, feeds: dict[str, Feed], figures: Figures, sample: int) -> dict[str, Any]:
        """Recall and NDCG against the attention over everything in reach; scores; what lies within reach."""
        picks = _picks({split: len(feed) for split, feed in feeds.items()}, sample)
        reaches = {split: self._reach(split, self.judge.setup if self.judge else self.setup) for split in picks}
        lengths = {split: reaches[split].lengths(index) for split, index in picks.items()}
        keep = min(1.0, KEPT / max(sum(int(part.sum()) for part in lengths.values()), 1))
        rng = np.random.default_rng(0)
        recalls, gains, scores = [np.empty(0)], [np.empty(0)], _Scores()
        for split, index in picks.items():
            for part in _chunks(lengths[split]):
                chunk = index[part]
                queries = reaches[split].queries(chunk)
                figures.add_reach(ragged_arange(queries.first, np.maximum(queries.end - queries.first, 0))[1])
                if self.judge is None:
                    continue
                read = feeds[split].find(chunk, self.model)
                everything = reaches[split].batch(chunk).to(self.judge.setup.compute.device)
                row, rank, best = _choice(self.judge.model, everything, self.top_k)
                recall, gain = agreement(row, rank, queries.first[row] + best, read, queries.end)
                recalls.append(recall)
                gains.append(gain)
                if feeds[split].soft:
                    score = feeds[split].scores(everything, self.judge.model).float().cpu().numpy()
                    offsets = everything.offsets.cpu().numpy()[:-1]
                    owner = np.repeat(np.arange(len(chunk)), np.diff(read.offsets))
                    scores.add(score, score[offsets[owner] + read.pointer - queries.first[owner]], keep, rng)
        recall, gain = np.concatenate(recalls), np.concatenate(gains)
        return {
            "recall_at_k": float(recall.mean()) if len(recall) else None,
            "ndcg_at_k": float(gain.mean()) if len(gain) else None,
            "k": self.top_k,
            "judged_samples": len(recall),
            "scores": scores.summary(),
        }


class _Scores:
    """Scores of everything in reach and of what was found."""

    def __init__(self) -> None:
        self.parts: dict[str, list[np.ndarray]] = {"within_reach": [], "found": []}

    def add(self, every: np.ndarray, found: np.ndarray, keep: float, rng: np.random.Generator) -> None:
        for name, values in (("within_reach", every), ("found", found)):
            self.parts[name].append(values[np.isfinite(values) & (rng.random(len(values)) < keep)])

    def summary(self) -> dict[str, dict[str, float]] | None:
        joined = {name: np.concatenate(parts) for name, parts in self.parts.items() if parts}
        if not joined or not all(len(values) for values in joined.values()):
            return None
        return {
            name: {f"p{q}": float(v) for q, v in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)}
            for name, values in joined.items()
        }


@torch.no_grad()
def _choice(model: RankingModel, everything: Batch, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k behaviours of each sample that its attention weighs most.

    Returns:
        row, rank by weight from 1, and position within the sample's reach: int64 [n] each.
    """
    keys, query = model.keys(everything)
    scores = keys.combined(query).float()
    best = soft.top_k(scores, Segments(everything.offsets, everything.behaviours), k)
    score = scores.index_select(0, best[1]).cpu().numpy()
    offsets, place = (part.cpu().numpy() for part in best)
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((-place, -score, row))
    rank = np.arange(len(row)) - offsets[row] + 1
    return row, rank, place[order] - everything.offsets.cpu().numpy()[row]


def _reads(recipe: Recipe) -> bool:
    if recipe.model.sequence == "none" and not (recipe.model.evidence and recipe.model.evidence_from == "read"):
        return False
    return recipe.search.method != "none" or recipe.model.max_len > 0


def _asked(search: SearchOptions, levels: list[str], top_k: int) -> SearchOptions:
    """What finds the same again, whatever the defaults: its levels by name, the most recent as a search by `any`."""
    if search.method == "none":
        return SearchOptions(method="hard", levels=[ANY], top_k=top_k)
    return search.model_copy(update={"levels": levels, "min_level": ""})


def _picks(sizes: dict[str, int], sample: int) -> dict[str, np.ndarray]:
    """Random samples of all splits together, ascending within each."""
    ends = np.cumsum(list(sizes.values()))
    total = int(ends[-1])
    drawn = np.sort(np.random.default_rng(0).choice(total, min(sample, total), replace=False, shuffle=False))
    parts = np.split(drawn, np.searchsorted(drawn, ends[:-1]))
    return {
        split: part - end + size
        for (split, size), part, end in zip(sizes.items(), parts, ends.tolist(), strict=True)
        if len(part)
    }


def _chunks(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Places of samples with these many behaviours, in batches of bounded size."""
    ends, start = np.cumsum(lengths), 0
    while start < len(lengths):
        used = ends[start - 1] if start else 0
        stop = max(start + 1, min(start + CHUNK, int(np.searchsorted(ends, used + REACH, side="right"))))
        yield np.arange(start, stop)
        start = stop
