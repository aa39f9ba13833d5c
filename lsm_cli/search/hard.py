"""Hierarchical hard search (Tencent, arXiv 2510.21714): by the finest taxonomy level shared with the candidate.

A behaviour belongs to the finest level at which it matches: the candidate's leaf, else its parent's subtree, and so on
up to "any". Levels are filled in this order, the most recent first within a level, until K are found. The item itself
may stand below the leaf: a busy leaf then cannot crowd out the very item. With the leaf alone this is SIM's hard search
(arXiv 2006.05639, §3.2.1), with "any" alone the most recent K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lsm_cli.data.assembling import visible_end
from lsm_cli.data.batches import Queries
from lsm_cli.data.orders import Order, ragged_arange
from lsm_cli.data.store import MISSING, Store
from lsm_cli.search.found import Found
from lsm_cli.search.scan import ENDLESS, SCAN_BELOW, Histories, Scan, scanned

ANY = "any"


@dataclass(frozen=True)
class HardOptions:
    """How to search.

    Attributes:
        levels: fields, finest first; "any" = every behaviour.
        top_k: behaviours to find.
        budgets: level -> most behaviours it may contribute; the others get what it leaves.
        within: only behaviours of the last so many ticks; 0 = all.
        only: field -> ids of which a behaviour must have one.
        scan_below: histories up to this length are scanned, longer ones go by the store's index; a few longer ones in a
            batch are scanned too.
    """

    levels: Sequence[str]
    top_k: int
    budgets: dict[str, int]
    within: int = 0
    only: dict[str, np.ndarray] | None = None
    scan_below: int = SCAN_BELOW


class HardSearch:
    """Searches the trajectories of one store; without an index, or unless `by_index`, every history is scanned.

    Args:
        histories: of the store, where others look at them too.
    """

    def __init__(
        self, store: Store, options: HardOptions, by_index: bool = True, histories: Histories | None = None
    ) -> None:
        self.store, self.options = store, options
        self.budgets = [min(options.budgets.get(level, options.top_k), options.top_k) for level in options.levels]
        self.indexed = by_index and all(level in store.index for level in options.levels if level != ANY)
        self.orders = [Order(store, level) if self.indexed and level != ANY else None for level in options.levels]
        # within one taxonomy the level just below tells: whatever matches further down matches there too
        self.finer = [_telling(store, options.levels[:place]) for place in range(len(options.levels))]
        self.filters = {
            field: np.isin(np.arange(_size(store, field)), ids) for field, ids in (options.only or {}).items()
        }
        self.histories = histories or Histories(store)
        levels = [None if level == ANY else level for level in options.levels]
        self.scan = Scan(self.histories, levels, self.budgets, options.top_k, self.filters)

    def __call__(self, queries: Queries) -> Found:
        """Up to K behaviours for each query, before its request; cost grows with log(length), not with the length."""
        if self.options.within:
            first = visible_end(self.store, queries.user, queries.time - self.options.within)
            first = np.minimum(np.maximum(queries.first, first), queries.end)
            queries = replace(queries, first=first)
        short = scanned(queries.end - queries.first, self.options.scan_below if self.indexed else ENDLESS)
        near, far = np.flatnonzero(short), np.flatnonzero(~short)
        if not near.size:
            return Found.ordered(len(queries), *self._look_up(queries))
        found = self.scan(queries, near)
        if not far.size:
            return found
        row, level, pointer = self._look_up(queries.take(far))
        row = np.concatenate([found.row, far[row]])
        level, pointer = np.concatenate([found.level, level]), np.concatenate([found.pointer, pointer])
        return Found.ordered(len(queries), row, level, pointer)

    def _allowed(self, pointer: np.ndarray) -> np.ndarray | None:
        found: np.ndarray | None = None
        for name, allowed in self.filters.items():
            ok = allowed.take(self.histories.values(name).at(pointer))
            found = ok if found is None else found & ok
        return found

    # by the index

    def _look_up(self, queries: Queries) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        need = np.full(len(queries), self.options.top_k)
        finds: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for level, (name, order) in enumerate(zip(self.options.levels, self.orders, strict=True)):
            rows = np.flatnonzero(need)
            if not rows.size:
                break
            open_ = queries.take(rows)
            if order is None:
                low, high = open_.first, open_.end
            else:
                low, high = order.runs(open_.user, open_.target[name], open_.first, open_.end)
            for row, pointer in self._tail(open_, level, low, high, np.minimum(need[rows], self.budgets[level])):
                finds.append((rows[row], np.full(len(row), level), pointer))
                need -= np.bincount(rows[row], minlength=len(need))
        return _joined(finds)

    def _tail(
        self, queries: Queries, level: int, low: np.ndarray, high: np.ndarray, need: np.ndarray
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """The last `need` behaviours of each run [low, high) that no finer level has: (row, pointer) parts.

        While finer levels were emptied, the last K of a run hold enough. Where a cap or a filter leaves too few, twice
        as many are looked at next.
        """
        parts, order, chunk = [], self.orders[level], self.options.top_k
        rows = np.arange(len(queries))
        high, need = high.copy(), need.copy()
        while (rows := rows[(need[rows] > 0) & (high[rows] > low[rows])]).size:
            start = np.maximum(low[rows], high[rows] - chunk)
            row, place = ragged_arange(start, high[rows] - start)
            row = rows[row]
            pointer = place if order is None else order.pointers(queries.user[row], place)
            fresh = self._fresh(queries, level, row, pointer)
            if fresh is not None:
                row, pointer = row[fresh], pointer[fresh]
            last = _last(row, need)
            row, pointer = row[last], pointer[last]
            parts.append((row, pointer))
            need -= np.bincount(row, minlength=len(need))
            high[rows] = start
            chunk *= 2
        return parts

    def _fresh(self, queries: Queries, level: int, row: np.ndarray, pointer: np.ndarray) -> np.ndarray | None:
        """bool [n]: allowed by the filters and matched by no finer level; None = all are."""
        ok = self._allowed(pointer)
        for finer in self.finer[level]:
            name = self.options.levels[finer]
            target = queries.target[name]
            new = self.histories.values(name).at(pointer) != np.where(target > MISSING, target, -1)[row]
            ok = new if ok is None else ok & new
        return ok


def _last(row: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Indices of the last most[r] elements of each row r; rows are ascending or, within one, contiguous."""
    if not len(row):
        return np.empty(0, np.int64)
    ends = np.flatnonzero(np.append(row[1:] != row[:-1], True))
    lengths = np.diff(ends, prepend=-1)
    left = np.repeat(ends, lengths) - np.arange(len(row))  # elements of the same row behind this one
    return np.flatnonzero(left < most[row])


def _joined(finds: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not finds:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64)
    row, level, pointer = (np.concatenate(column) for column in zip(*finds, strict=True))
    return row, level, pointer


def _telling(store: Store, finer: Sequence[str]) -> list[int]:
    """Which of the finer levels together say whether a behaviour was matched by any of them."""
    every = range(len(finer))
    nested = [place for place in every if store.fields[finer[place]].level]
    spared = nested[:-1] if _descends(store, finer) else []
    return [place for place in every if place not in spared]


def _descends(store: Store, levels: Sequence[str]) -> bool:
    """Whether the category levels among these come from fine to coarse."""
    found = [store.fields[name].level for name in levels if store.fields[name].level]
    return found == sorted(found, reverse=True)


def _size(store: Store, field: str) -> int:
    return store.manifest["fields"]["category" if store.fields[field].level else field]["ids"]
