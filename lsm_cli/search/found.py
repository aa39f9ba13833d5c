"""What a search finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lsm_cli.data.batches import Pointers

NONE = np.empty(0, np.int64)
PLACE_BITS = 40  # event pointers in sorting keys: 10^12 events


@dataclass
class Found:
    """Behaviours found for n samples, most useful first.

    Attributes:
        offsets: int64 [n + 1]; sample b owns the places offsets[b]:offsets[b + 1] of the others.
        pointer: int64 [N], event pointers, never twice the same in a sample.
        level: uint8 [N], by which level each was found.
    """

    offsets: np.ndarray
    pointer: np.ndarray
    level: np.ndarray

    @property
    def row(self) -> np.ndarray:
        """int64 [N]."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    @classmethod
    def ordered(cls, samples: int, row: np.ndarray, level: np.ndarray, pointer: np.ndarray) -> Found:
        """Put finds in order: by sample, then level, the most recent first."""
        levels = int(level.max(initial=0)) + 1
        last = (1 << PLACE_BITS) - 1
        key = (row * levels + level) << PLACE_BITS | (last - pointer)
        key.sort()
        group, pointer = key >> PLACE_BITS, last - (key & last)
        row, level = np.divmod(group, levels)
        return cls(_offsets(row, samples), pointer, level.astype(np.uint8))

    @classmethod
    def gathered(cls, samples: int, parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Found:
        """Put (row, level, pointer) parts together, each in the order of its rows' finds."""
        row, level, pointer = (np.concatenate([part[place] for part in parts]) if parts else NONE for place in range(3))
        offsets, ends = _offsets(row, samples), np.flatnonzero(np.append(row[1:] != row[:-1], True)[: len(row)])
        count = np.diff(ends, prepend=-1)
        place = np.arange(len(row)) + np.repeat(offsets[row[ends]] - (ends + 1 - count), count)
        found = cls(offsets, np.empty(len(row), np.int64), np.empty(len(row), np.uint8))
        found.pointer[place], found.level[place] = pointer, level
        return found

    def by_time(self) -> Pointers:
        """The same behaviours, oldest first, as models read them."""
        key = self.row << PLACE_BITS | self.pointer
        key.sort()
        return Pointers(self.offsets, key & ((1 << PLACE_BITS) - 1))


def union(samples: int, *parts: tuple[np.ndarray, np.ndarray]) -> Pointers:
    """Behaviours of any of several (row [n], pointer [n]), each once, oldest first."""
    key = np.concatenate([row << PLACE_BITS | pointer for row, pointer in parts])
    key.sort()
    if len(key):
        key = key[np.concatenate([[True], key[1:] != key[:-1]])]
    return Pointers(_offsets(key >> PLACE_BITS, samples), key & ((1 << PLACE_BITS) - 1))


def _offsets(row: np.ndarray, samples: int) -> np.ndarray:
    offsets = np.zeros(samples + 1, np.int64)
    np.cumsum(np.bincount(row, minlength=samples), out=offsets[1:])
    return offsets
