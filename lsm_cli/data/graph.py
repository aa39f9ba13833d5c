"""The item graph: in how many trajectories of the training period two items occur close together.

Of each user only behaviours before the last training request count, and before their own first request of validation or
test: whatever a model learns from the graph, it learns from no event that a validation or test sample could tell about.
Users are counted, not pairs of behaviours, so that it is known what a pair is worth without any one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lsm_cli.data.store import MISSING, Store

EVENTS = 1 << 20  # of a chunk of users
PAIRS = 1 << 24  # that a pass over the events collects, about
MOST = 256  # neighbours of an item that are kept


@dataclass(frozen=True)
class Graph:
    """Items and their neighbours, symmetric and without loops: item i owns edges offsets[i]:offsets[i + 1].

    Attributes:
        offsets: int64 [rows + 1], rows of the item table.
        neighbour: int32 [edges], ascending within an item.
        count: int64 [edges], users in whose trajectories the two are neighbours, at least 2.
    """

    offsets: np.ndarray
    neighbour: np.ndarray
    count: np.ndarray


def training_ends(store: Store) -> np.ndarray:
    """Ticks, int64 [users], where each user's training period ends: at the last training request of all, or at their
    own first request of validation or test. That is earlier only where the split is not by time."""
    never = np.iinfo(np.int64).min  # ticks of a long span of time begin below zero
    ends = np.full(store.users, store.samples("train").column("time").max(initial=never))
    for split, rows in store.splits.items():
        if split != "train" and rows:
            samples = store.samples(split)
            np.minimum.at(ends, samples.column("user"), samples.column("time"))
    return ends


def item_graph(store: Store, window: int, pairs: int = PAIRS, most: int = MOST) -> Graph:
    """Count the users of every pair of different items at most `window` behaviours apart in one trajectory.

    A pair that one user made is left out: it says nothing about anybody else.

    The events are read once for every range of items whose pairs fit in memory, so counts are exact and memory does
    not grow with the logs.

    Args:
        window: behaviours; 1 = only neighbours in the trajectory.
        pairs: about how many to hold at a time.
        most: neighbours kept of an item, the most frequent ones (of equals, the smaller id); an edge stays if either
            of its items keeps it.
    """
    rows, ends = store.fields["item"].rows, training_ends(store)
    occurrences = np.zeros(rows, np.int64)
    for item, _ in _trajectories(store, rows, ends):
        occurrences += np.bincount(item, minlength=rows)
    reach = np.cumsum(occurrences * 2 * window)
    edges, first = [], 0
    while first < rows:
        before = reach[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(reach, before + pairs, side="right")))
        edges.append(_strongest(*_count(store, rows, ends, window, first, last), rows, most))
        first = last
    key, count = (np.concatenate(parts) for parts in zip(*edges, strict=True))
    return _symmetric(key, count, rows)


def _trajectories(store: Store, rows: int, ends: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(item, user) of the training behaviours with a known item, int64 [n] each, chunk by chunk of whole users, which
    are numbered from 0 and so few that a pair of items and a user make one 64-bit key."""
    offsets, items, times = store.offsets, store.column("item"), store.column("time")
    first, most = 0, max(1, (1 << 62) // rows**2)
    while first < store.users:
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + EVENTS, side="right")) - 1)
        last = min(last, first + most)
        part = slice(offsets[first], offsets[last])
        item = items[part].astype(np.int64)
        user = np.repeat(np.arange(last - first), np.diff(offsets[first : last + 1]))
        known = (item > MISSING) & (item < rows - 1)  # the last row is that of unknown items
        known &= times[part] < ends[first + user]
        yield item[known], user[known]
        first = last


def _count(
    store: Store, rows: int, ends: np.ndarray, window: int, first: int, last: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (item * rows + neighbour) of several users, with items in [first, last), ascending, and their users."""
    keys, counts = [], []
    for item, user in _trajectories(store, rows, ends):
        found, users = [], int(user[-1]) + 1 if len(user) else 1
        for lag in range(1, window + 1):
            left, right = item[:-lag], item[lag:]
            pair = (user[:-lag] == user[lag:]) & (left != right)
            for one, other in ((left, right), (right, left)):
                inside = pair & (one >= first) & (one < last)
                found.append((one[inside] * rows + other[inside]) * users + user[:-lag][inside])
        key, count = np.unique(np.unique(np.concatenate(found)) // users, return_counts=True)
        keys.append(key)
        counts.append(count)
    every = np.concatenate(keys) if keys else np.empty(0, np.int64)
    order = np.argsort(every, kind="stable")
    key, count = _sums(every[order], (np.concatenate(counts) if counts else every)[order])
    return key[count > 1], count[count > 1]


def _sums(key: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equal neighbouring keys made one, with the sum of their counts."""
    start = np.flatnonzero(np.r_[True, key[1:] != key[:-1]]) if len(key) else np.empty(0, np.int64)
    return key[start], np.add.reduceat(count, start) if len(key) else count


def _strongest(key: np.ndarray, count: np.ndarray, rows: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The `most` most frequent pairs of each item."""
    order = np.lexsort((key, -count, key // rows))
    item = key[order] // rows
    start = np.flatnonzero(np.r_[True, item[1:] != item[:-1]]) if len(item) else np.empty(0, np.int64)
    place = np.arange(len(item)) - np.repeat(start, np.diff(np.r_[start, len(item)]))
    kept = np.sort(order[place < most])
    return key[kept], count[kept]


def _symmetric(key: np.ndarray, count: np.ndarray, rows: int) -> Graph:
    item, other = key // rows, key % rows
    both = np.concatenate([key, other * rows + item])
    both, where = np.unique(both, return_index=True)  # an edge counts the same from either end
    item = both // rows
    offsets = np.zeros(rows + 1, np.int64)
    np.cumsum(np.bincount(item, minlength=rows), out=offsets[1:])
    return Graph(offsets, (both % rows).astype(np.int32), np.concatenate([count, count])[where])
