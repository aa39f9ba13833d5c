"""Looking at every behaviour: padded rows of the narrow columns, compared as they lie, and a bit for each match.

A behaviour matches if its id is the candidate's or, as a subtree of the taxonomy is one range of ids, if its node lies
between the ends of that range. What is then counted or chosen are sets of bits, 64 behaviours at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from lsm_cli.data.batches import Queries
from lsm_cli.data.orders import EventValues
from lsm_cli.data.store import MISSING, Store
from lsm_cli.search import bits
from lsm_cli.search.found import Found

CELLS = 1 << 20  # behaviours at once
KEPT = 8 * CELLS  # behaviours looked at that are not kept, being too many
SCAN_BELOW = 4096  # longest history that is sooner looked at whole than looked up, where there is an index
ENDLESS = 1 << 40  # the same where there is none
SPARED = 128  # histories of that length that are looked at in the time of the smallest look-up


def scanned(length: np.ndarray, below: int) -> np.ndarray:
    """bool [n], which histories are sooner looked at whole: those up to a length, and all if few are longer."""
    short = length <= below
    few = int(length[~short].sum()) <= below * (np.count_nonzero(~short) + SPARED)
    return np.ones_like(short) if few else short


class Histories:
    """The histories of a store, to be looked at whole.

    What was last looked at is kept until it is forgotten: match statistics and a search go through the same histories
    of a batch.
    """

    def __init__(self, store: Store) -> None:
        self.store, self.events = store, len(store.column("time"))
        self._values: dict[str, EventValues] = {}
        self._last: tuple[Queries, np.ndarray, list[Part]] | None = None

    def values(self, field: str) -> EventValues:
        if field not in self._values:
            self._values[field] = EventValues(self.store, field)
        return self._values[field]

    def parts(self, queries: Queries, rows: np.ndarray) -> Iterable[Part]:
        """Those of some queries whose history holds anything, of about the same length together."""
        if self._last is not None and self._last[0] is queries and np.array_equal(self._last[1], rows):
            return self._last[2]
        if int((queries.end[rows] - queries.first[rows]).sum()) > KEPT:
            return self._cut(queries, rows)
        self._last = queries, rows, list(self._cut(queries, rows))
        return self._last[2]

    def forget(self) -> None:
        self._last = None

    def _cut(self, queries: Queries, rows: np.ndarray) -> Iterator[Part]:
        length = queries.end[rows] - queries.first[rows]
        order = np.argsort(length, kind="stable")
        rows, length = rows[order], length[order]
        at = int(np.searchsorted(length, 1))
        while at < len(rows):
            widest = int(length[at : at + max(1, CELLS // int(length[at]))][-1])
            until = at + max(1, CELLS // widest)
            yield Part(self, rows[at:until], queries.take(rows[at:until]), int(length[at:until][-1]))
            at = until


class Part:
    """Some histories side by side.

    Args:
        rows: int64 [n], which queries these are.
        width: of the longest history.
    """

    def __init__(self, histories: Histories, rows: np.ndarray, queries: Queries, width: int) -> None:
        self.histories, self.rows, self.queries, self.width = histories, rows, queries, width
        # near the end of the columns rows begin before their history
        self.begin = np.minimum(queries.first, histories.events - width)
        self.inside = self.since(queries.first) & ~self.since(queries.end)
        self._windows: dict[str, np.ndarray] = {}
        self._matching: dict[str, np.ndarray] = {}

    def since(self, pointer: np.ndarray) -> np.ndarray:
        """Places at or after event pointers [..., n]: sets [words, ..., n]."""
        return bits.since(pointer - self.begin, bits.words(self.width))

    def matching(self, field: str) -> np.ndarray:
        """Behaviours of the histories that share a field with the candidates: sets [words, n]."""
        if field not in self._matching:
            match = _matches(self._window(field), self.queries.target[field], self.histories.values(field))
            self._matching[field] = bits.pack(match) & self.inside
        return self._matching[field]

    def holding(self, field: str, allowed: np.ndarray) -> np.ndarray:
        """Places whose value of a field is one of those in bool [ids]: sets [words, n]."""
        ids, level = self._window(field), self.histories.values(field).level
        return bits.pack(allowed.take(ids if level is None else level.take(ids)))

    def _window(self, field: str) -> np.ndarray:
        """[n, width] of the column; all levels of the taxonomy are read from one."""
        values = self.histories.values(field)
        column = field if values.level is None else "category"
        if column not in self._windows:
            self._windows[column] = np.lib.stride_tricks.sliding_window_view(values.column, self.width)[self.begin]
        return self._windows[column]


class Scan:
    """Hard search without an index.

    Args:
        histories: of the store.
        levels: fields, finest first; None = every behaviour matches.
        budgets: most behaviours that each level may contribute.
        top_k: behaviours to find.
        filters: field -> bool [ids], which values a behaviour may have.
    """

    def __init__(
        self,
        histories: Histories,
        levels: Sequence[str | None],
        budgets: Sequence[int],
        top_k: int,
        filters: Mapping[str, np.ndarray],
    ) -> None:
        self.histories, self.levels, self.budgets, self.top_k = histories, levels, budgets, top_k
        self.filters = filters

    def __call__(self, queries: Queries, rows: np.ndarray) -> Found:
        """Up to K behaviours of some of the queries, best first; cost grows with the length of the histories."""
        finds = []
        for part in self.histories.parts(queries, rows):
            row, level, place = bits.members(self._choose(part))
            finds.append((part.rows[row], level, part.begin[row] + place))
        return Found.gathered(len(queries), finds)

    def _choose(self, part: Part) -> np.ndarray:
        """The chosen places: sets [words, levels, n]."""
        left, wanted, found = np.full(len(part.rows), self.top_k), [], []
        open_ = part.inside
        for name, allowed in self.filters.items():
            open_ = open_ & part.holding(name, allowed)
        for field, budget in zip(self.levels, self.budgets, strict=True):
            found.append(open_ if field is None else open_ & part.matching(field))
            wanted.append(np.minimum(np.minimum(left, budget), bits.count(found[-1])))
            left = left - wanted[-1]
            if not left.any():
                break
            open_ = open_ & ~found[-1]
        sets, most = np.stack(found, 1), np.stack(wanted)
        sets *= most > 0
        level, row = np.nonzero((most > 0) & (most < bits.count(sets)))
        sets[:, level, row] = bits.latest(sets[:, level, row], most[level, row])
        return sets


def _matches(ids: np.ndarray, target: np.ndarray, values: EventValues) -> np.ndarray:
    """bool [n, width]: is the id the target's, or if it is a node, below the target?"""
    known = (target > MISSING) & (target <= np.iinfo(ids.dtype).max)
    wanted = np.where(known, target, -1).astype(ids.dtype)[:, None]
    span = np.where(known, values.sizes.take(target, mode="clip"), 0) if values.sizes is not None else known
    if span.max(initial=0) <= 1:
        return (ids == wanted) & known[:, None]
    unsigned = np.dtype(f"u{ids.dtype.itemsize}")
    return (ids - wanted).view(unsigned) < span.astype(unsigned)[:, None]
