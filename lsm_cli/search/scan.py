"""Hard search by looking at every behaviour: padded rows, a key per behaviour, a partition.

Histories are copied out of the narrow columns in rows of one width. A behaviour's level is found by comparison: its id
with the candidate's, or, as a subtree of the taxonomy is one range of ids, its node with the ends of that range. Level
and place make one narrow key, of which the K greatest are what is searched.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lsm_cli.data.batches import Queries
from lsm_cli.data.orders import EventValues
from lsm_cli.data.store import MISSING
from lsm_cli.search.found import Found

CELLS = 1 << 18  # behaviours at once: what is made of them stays in the cache


class Scan:
    """Hard search without an index.

    Args:
        names: fields of the levels, finest first.
        values: of the same levels; None = every behaviour matches.
        budgets: most behaviours that each level may contribute.
        top_k: behaviours to find.
        filters: (bool [ids], field) that a behaviour must pass.
    """

    def __init__(
        self,
        names: Sequence[str],
        values: Sequence[EventValues | None],
        budgets: Sequence[int],
        top_k: int,
        filters: Sequence[tuple[np.ndarray, EventValues]],
    ) -> None:
        self.names, self.values, self.budgets, self.top_k, self.filters = names, values, budgets, top_k, filters
        known = {_column(name, one): one.column for name, one in zip(names, values, strict=True) if one is not None}
        self.columns = [*known.values()]
        self.place = [
            None if one is None else [*known].index(_column(name, one)) for name, one in zip(names, values, strict=True)
        ]
        self.sizes = [None if one is None or one.level is None else _sizes(one.level) for one in values]

    def __call__(self, queries: Queries) -> Found:
        """Up to K behaviours of each query, best first; cost grows with the length of the histories."""
        length = np.maximum(queries.end - queries.first, 0)
        widest = int(length.max(initial=0))
        bits, levels = widest.bit_length(), len(self.names)
        dtype = np.min_scalar_type(-(((levels + 1) << bits) + 1))
        best = np.zeros((len(queries), min(self.top_k, widest)), dtype)
        start = queries.first.copy()
        order = np.argsort(length, kind="stable")  # rows of about the same length together
        at = int(np.searchsorted(length[order], 1))
        while at < len(order):
            rows = order[at : at + max(1, CELLS // int(length[order[at]]))]
            rows = rows[: max(1, CELLS // int(length[rows[-1]]))]
            key = self._keys(queries.take(rows), length[rows], start, rows, bits, dtype)
            most = min(best.shape[1], key.shape[1])
            if most < key.shape[1]:
                key.partition(key.shape[1] - most, axis=1)
                key = key[:, key.shape[1] - most :]
            key.sort(axis=1)
            best[rows, :most] = key[:, ::-1]
            at += len(rows)
        real = best >= 1 << bits
        row, _ = np.nonzero(real)
        key = best[real].astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(real.sum(1))])
        pointer = start[row] + (key & ((1 << bits) - 1)) - 1
        return Found(offsets, pointer, (levels - (key >> bits)).astype(np.uint8))

    def _keys(
        self, queries: Queries, length: np.ndarray, start: np.ndarray, rows: np.ndarray, bits: int, dtype: np.dtype
    ) -> np.ndarray:
        """[rows, width]: (levels - level) << bits | place + 1, below 1 << bits for what does not match.

        Places count from `start`, which is filled in: rows near the end of the columns begin before their history.
        """
        width = int(length[-1])
        total = len(self.columns[0]) if self.columns else int(queries.end.max())
        begin = np.minimum(queries.first, total - width)
        start[rows] = begin
        place = np.arange(width, dtype=dtype)
        after = (queries.first - begin).astype(dtype)[:, None]
        inside = place < (queries.end - begin).astype(dtype)[:, None]
        if after.any():
            inside &= place >= after
        for allowed, values in self.filters:
            ids = _rows(values.column, begin, width)
            inside &= allowed.take(ids if values.level is None else values.level.take(ids))
        windows = [_rows(column, begin, width) for column in self.columns]
        score = np.zeros((len(rows), width), np.uint8)
        for rank, (name, at, size) in enumerate(reversed([*zip(self.names, self.place, self.sizes, strict=True)]), 1):
            if at is None:
                score[:] = rank
                continue
            match = _matches(windows[at], queries.target[name], size)
            np.maximum(score, match.view(np.uint8) * np.uint8(rank), out=score)
        score *= inside.view(np.uint8)
        for level, budget in enumerate(self.budgets):
            if budget < min(self.top_k, width):
                match = score == len(self.names) - level
                newer = np.cumsum(match[:, ::-1], axis=1, dtype=np.int32)[:, ::-1]
                score[match & (newer > budget)] = 0
        key = score.astype(dtype)
        key <<= bits
        key += place + dtype.type(1)
        return key


def _column(name: str, values: EventValues) -> str:
    """Levels of the taxonomy are read from one column."""
    return name if values.level is None else "category"


def _sizes(level: np.ndarray) -> np.ndarray:
    """[nodes], how many nodes the subtree has; nodes are numbered depth first, so they follow their root."""
    return np.bincount(level, minlength=len(level))


def _rows(column: np.ndarray, begin: np.ndarray, width: int) -> np.ndarray:
    """[n, width]: column[b : b + width] of each b."""
    return np.lib.stride_tricks.sliding_window_view(column, width)[begin]


def _matches(ids: np.ndarray, target: np.ndarray, size: np.ndarray | None) -> np.ndarray:
    """bool [n, width]: is the id the target's, or with sizes of subtrees, below the target?"""
    known = (target > MISSING) & (target <= np.iinfo(ids.dtype).max)
    wanted = np.where(known, target, -1).astype(ids.dtype)[:, None]
    if size is None:
        return ids == wanted
    unsigned = np.dtype(f"u{ids.dtype.itemsize}")
    span = np.where(known, size.take(target, mode="clip"), 0).astype(unsigned)[:, None]
    return (ids - wanted).view(unsigned) < span
