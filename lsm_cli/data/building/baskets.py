"""What a user took at one moment: no item of it is a negative for another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lsm_cli.data.building.orders import ordered

SHIFT = 32  # bits of an item, or of its place, behind the number of a basket


@dataclass
class Baskets:
    """The positives of one user at one time, where they are of several items.

    Attributes:
        of: int32 [positives], the basket of each; -1 where its item is the only one.
        keys: int64, basket << SHIFT | item, each item of a basket once; ascending.
    """

    of: np.ndarray
    keys: np.ndarray

    @classmethod
    def gather(cls, user: np.ndarray, time: np.ndarray, item: np.ndarray) -> Baskets:
        """From all positives in any order, [positives] each."""
        order = ordered(user, time - time.min())
        first = np.ones(len(order), bool)
        first[1:] = (np.diff(user[order]) != 0) | (np.diff(time[order]) != 0)
        shared = ~first
        shared[:-1] |= ~first[1:]
        rows, number = order[shared], np.cumsum(first[shared]) - 1
        keys = np.unique(number << SHIFT | item[rows])
        several = np.bincount(keys >> SHIFT) > 1
        of = np.full(len(item), -1, np.int32)
        of[rows] = np.where(several[number], number, -1)
        return cls(of, keys[several[keys >> SHIFT]])

    def only(self, basket: np.ndarray) -> np.ndarray:
        """The keys of some baskets, int64, ascending; one may be named several times."""
        basket = np.unique(basket).astype(np.int64)
        start, stop = self.keys.searchsorted(basket << SHIFT), self.keys.searchsorted(basket + 1 << SHIFT)
        size = stop - start
        return self.keys[np.repeat(stop - size.cumsum(), size) + np.arange(size.sum())]

    def hold(self, basket: np.ndarray, item: np.ndarray) -> np.ndarray:
        """bool [n], whether an item lies in a basket; -1 holds none."""
        found = basket >= 0
        key = basket[found].astype(np.int64) << SHIFT | item[found]
        found[found] = self.keys.take(self.keys.searchsorted(key), mode="clip") == key
        return found
