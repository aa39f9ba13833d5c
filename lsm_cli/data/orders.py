"""Where a value occurs in a user's history: runs of the store's search index, found by binary search."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from lsm_cli.data.store import MISSING, Store


class Order:
    """One field's order of every user's events by (value, time).

    Args:
        store: a store with an index.
        field: one of `store.index`.
    """

    def __init__(self, store: Store, field: str) -> None:
        self.offsets = store.offsets
        self.order = store.order(field)
        self.values = EventValues(store, field)

    def runs(
        self, user: np.ndarray, value: np.ndarray, first: np.ndarray, end: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The run of a value within a part of the history.

        Args:
            user: int64 [n].
            value: int [n]; padding and missing values occur nowhere.
            first, end: event pointers, int64 [n] each: the part.

        Returns:
            (low, high): int64 [n], the places low:high of the order hold the events of the part with this value,
            oldest first.
        """
        known, last = value > MISSING, len(self.order) - 1
        start = np.tile(self.offsets[user], 2)
        wanted, bound = np.tile(np.where(known, value, 0), 2), np.concatenate([first, end])
        low, high = start.copy(), np.tile(np.where(known, self.offsets[user + 1], self.offsets[user]), 2)
        for _ in range(int((high - low).max(initial=0)).bit_length()):
            middle = np.minimum((low + high) >> 1, last)  # searches that are done may point behind their user
            pointer = np.minimum(start + self.order.take(middle), last)
            found = self.values.at(pointer)
            less = (found < wanted) | ((found == wanted) & (pointer < bound))
            less &= low < high
            low = np.where(less, middle + 1, low)
            high = np.where(less, high, middle)
        return low[: len(user)], low[len(user) :]

    def cut(self, user: np.ndarray, low: np.ndarray, high: np.ndarray, bound: np.ndarray) -> np.ndarray:
        """Within runs low:high, the place of the first event at or after pointer `bound`: int64 [n]."""
        start = self.offsets[user]
        for _ in range(int((high - low).max(initial=0)).bit_length()):
            middle = np.minimum((low + high) >> 1, len(self.order) - 1)
            less = (start + self.order.take(middle) < bound) & (low < high)
            low, high = np.where(less, middle + 1, low), np.where(less, high, middle)
        return low

    def pointers(self, user: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Event pointers of places in the order: int64 [n]."""
        return self.offsets[user] + self.order.take(place)


class EventValues:
    """A field of single events: a column, or a level above the category column."""

    def __init__(self, store: Store, field: str) -> None:
        level = store.fields[field].level
        self.column = np.asarray(store.column("category" if level else field))
        self.level = np.ascontiguousarray(store.ancestors[:, level - 1]) if level else None

    @cached_property
    def sizes(self) -> np.ndarray | None:
        """[nodes], how many nodes the subtree of each node of the level has; numbered depth first, they follow it."""
        return None if self.level is None else np.bincount(self.level, minlength=len(self.level))

    def at(self, pointer: np.ndarray) -> np.ndarray:
        """int [n]."""
        found = self.column.take(pointer)
        return found if self.level is None else self.level.take(found)


def ragged_arange(first: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row of each element, first[row], first[row] + 1, …): int64 [sum of lengths] both."""
    row = np.repeat(np.arange(len(first)), lengths)
    starts = np.cumsum(lengths) - lengths
    return row, np.arange(len(row)) + (first - starts)[row]
