"""Which rows of a table lie in which slots of its cache, and which make room for others.

A map with an entry for every row finds the slots: 4 bytes a row, in host memory, and one gather for a whole step. Tags
in sets would take 8 bytes a slot, .8 a row where a cache holds a tenth of them; but they need a probe for every way of
a set, and a step whose rows crowd in one set finds no room in a cache that has it. With the map any row may lie in any
slot, and what it takes is little beside the row itself (68 bytes at width 16 with row-wise Adagrad, 196 with Adam).

The least frequently used go first, uses counted by steps and halved every `HALVE` of them, so that yesterday's fame
fades. On Zipf ids with caches of 5, 10 and 20 % this hits 39, 52 and 64 % of a step's distinct rows, where the least
recently used first hit 31, 44 and 59 %, and counts of all rows for ever 40, 54 and 66 % (500 k rows, exponent 1, 50 k
ids a step). Many are let go at once: a look at all counts for every `SHARE`-th part of the slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

HALVE = 16  # reads after which uses count half
SHARE = 16  # one in so many slots is freed at once


class Slots:
    """The directory of a cache, on the host.

    Args:
        rows: of the table; size: slots of the cache.

    Attributes:
        row: int64 [size], the row that a slot holds; -1 = none.
        now: the number of the latest read.
        until: int64 [size], the last read for which a slot is known to be wanted.
    """

    def __init__(self, rows: int, size: int) -> None:
        self.size, self.now = size, 0
        self.of = torch.empty(rows, dtype=torch.int32)
        self.row, self.until = torch.empty(size, dtype=torch.int64), torch.empty(size, dtype=torch.int64)
        self.uses = torch.empty(size)
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.of.fill_(-1)
        self.row.fill_(-1)
        self.until.fill_(-1)
        self.uses.zero_()
        self.spare = torch.arange(self.size)

    def find(self, rows: Tensor) -> Tensor:
        """Rows int64 [n] -> their slots, int64 [n]; -1 = not here."""
        return self.of.index_select(0, rows).long()

    def begin(self) -> None:
        """A new read."""
        self.now += 1
        if not self.now % HALVE:
            self.uses.mul_(0.5)

    def use(self, slots: Tensor) -> None:
        """The latest read uses these distinct slots."""
        self.uses.index_copy_(0, slots, self.uses.index_select(0, slots).add_(1))
        self.until.index_fill_(0, slots, self.now)

    def victims(self, count: int, kept: Tensor | None = None) -> Tensor:
        """Slots to let go of, in the order of their rows, so that these are written from one end to the other.

        Args:
            count: how many are needed; there may be more, or fewer if there are no more.
            kept: all may go but these; None = all that no read wants from the latest on.
        """
        idle = (self.row >= 0) if kept is not None else (self.row >= 0) & (self.until < self.now)
        if kept is not None:
            idle.index_fill_(0, kept, False)
        slots, count = idle.nonzero().squeeze(1), max(count, self.size // SHARE)
        if count < len(slots):
            slots = slots[self.uses.index_select(0, slots).topk(count, largest=False, sorted=False).indices]
        return slots[self.row.index_select(0, slots).argsort()]

    def release(self, slots: Tensor) -> None:
        """Their rows are no longer here."""
        self.of.index_fill_(0, self.row.index_select(0, slots), -1)
        self.row.index_fill_(0, slots, -1)
        self.spare = torch.cat([self.spare, slots])

    def take(self, rows: Tensor, ahead: int = 0) -> Tensor:
        """Spare slots for distinct rows [n] that are not here: int64 [n].

        Args:
            ahead: the rows are wanted that many reads after the latest.
        """
        slots, self.spare = self.spare[: len(rows)], self.spare[len(rows) :]
        self.row.index_copy_(0, slots, rows)
        self.of.index_copy_(0, rows, slots.int())
        self.uses.index_fill_(0, slots, 1)
        self.until.index_fill_(0, slots, self.now + ahead)
        return slots
