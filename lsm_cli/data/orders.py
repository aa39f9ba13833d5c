"""Where a value occurs in a user's history: runs of the store's search index, found by binary search."""

from __future__ import annotations

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

    def runs(self, user: np.ndarray, value: np.ndarray, *bounds: np.ndarray) -> list[np.ndarray]:
        """Cut the run of a value at positions in the history.

        Args:
            user: int64 [n].
            value: int [n]; padding and missing values occur nowhere.
            bounds: event pointers, int64 [n] each.

        Returns:
            for each bound, the place in the order (int64 [n]) of the first event with this value at or after it:
            between two of these lie the events with the value between the two bounds, oldest first.
        """
        known = value > MISSING
        first = self.offsets[user]
        count = len(bounds)
        bound = np.concatenate(bounds)
        wanted, start = np.tile(np.where(known, value, 0), count), np.tile(first, count)
        low, high = start.copy(), np.tile(np.where(known, self.offsets[user + 1], first), count)
        for _ in range(int((high - low).max(initial=0)).bit_length()):
            middle = np.minimum((low + high) >> 1, len(self.order) - 1)
            pointer = start + self.order.take(middle)
            found = self.values.at(pointer)
            less = (found < wanted) | ((found == wanted) & (pointer < bound))
            less &= low < high
            low = np.where(less, middle + 1, low)
            high = np.where(less, high, middle)
        return np.split(low, count)

    def pointers(self, user: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Event pointers of places in the order: int64 [n]."""
        return self.offsets[user] + self.order.take(place)


class EventValues:
    """A field of single events: a column, or a level above the category column."""

    def __init__(self, store: Store, field: str) -> None:
        level = store.fields[field].level
        self.column = np.asarray(store.column("category" if level else field))
        self.level = np.ascontiguousarray(store.ancestors[:, level - 1]) if level else None

    def at(self, pointer: np.ndarray) -> np.ndarray:
        """int [n]."""
        found = self.column.take(pointer)
        return found if self.level is None else self.level.take(found)


def ragged_arange(first: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row of each element, first[row], first[row] + 1, …): int64 [sum of lengths] both."""
    row = np.repeat(np.arange(len(first)), lengths)
    starts = np.cumsum(lengths) - lengths
    return row, np.arange(len(row)) + (first - starts)[row]
