"""Match statistics over the whole history, without making a model read it.

How often a behaviour shares the candidate's item, category level or scenario is in a long history the length of a run
of the store's index; how often lately is a cut of it by binary search. Short ones are looked at whole, and all if the
store has no index.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from lsm_cli.data.assembling import visible_end
from lsm_cli.data.batches import SECONDS_PER_DAY, Queries
from lsm_cli.data.orders import Order
from lsm_cli.data.store import Store
from lsm_cli.search import bits
from lsm_cli.search.scan import ENDLESS, SCAN_BELOW, Histories, scanned


class MatchStatistics:
    """Counts of matches, all of them and lately, and the place of the last one.

    Args:
        fields: fields that behaviours and candidates share.
        days: counts over the last so many days.
        windows: counts over the last so many behaviours.
        scan_below: histories up to this length are looked at whole, longer ones go by the index.
    """

    def __init__(
        self,
        store: Store,
        fields: list[str],
        days: list[float],
        windows: list[int],
        scan_below: int = SCAN_BELOW,
    ) -> None:
        indexed = all(name in store.index for name in fields)
        self.store, self.fields, self.days, self.windows = store, fields, days, windows
        self.scan_below = scan_below if indexed else ENDLESS
        self.orders = [Order(store, name) for name in fields if indexed]
        self.histories = Histories(store)
        self.names = matches_names(fields, days, windows)

    def __call__(self, queries: Queries) -> np.ndarray:
        """float32 [n, len(names)]; ages in seconds, ranks from the request, -1 where nothing matches."""
        length, cuts = queries.end - queries.first, self._cuts(queries)
        found = np.empty((len(queries), len(self.names)), np.float32)
        short = scanned(length, self.scan_below)
        for rows, count in ((np.flatnonzero(short), self._scan), (np.flatnonzero(~short), self._look_up)):
            if rows.size and self.fields:
                found[rows, :-3] = self._columns(queries, rows, count(queries, rows, cuts))
        time, held = self.store.column("time"), length > 0
        found[:, -3] = length
        for number, pointer in ((-2, queries.end - 1), (-1, queries.first)):  # the newest, the oldest
            found[:, number] = -1
            found[held, number] = (queries.time[held] - time[pointer[held]]) / self.store.ticks_per_second
        return found

    def _cuts(self, queries: Queries) -> np.ndarray:
        """Where the days and the windows begin: event pointers, int64 [days + windows, n]."""
        per_day = SECONDS_PER_DAY * self.store.ticks_per_second
        spans = np.array([round(day * per_day) for day in self.days], np.int64)
        since = queries.time[None] - spans[:, None]
        found = np.empty((len(self.days) + len(self.windows), len(queries)), np.int64)
        if len(spans):
            user = np.tile(queries.user, len(spans))
            found[: len(spans)] = visible_end(self.store, user, since.ravel()).reshape(since.shape)
        for place, window in enumerate(self.windows, len(spans)):
            found[place] = queries.end - window
        return found

    def _columns(
        self, queries: Queries, rows: np.ndarray, counted: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> np.ndarray:
        """Of the counts [1 + cuts, rows] and the last match [rows] of each field: the columns of its names."""
        time, now, end = self.store.column("time"), queries.time[rows], queries.end[rows]
        columns = []
        for counts, pointer in counted:
            some = np.flatnonzero(counts[0])
            age, rank = np.full(len(rows), -1.0), np.full(len(rows), -1.0)
            age[some] = (now[some] - time[pointer[some]]) / self.store.ticks_per_second
            rank[some] = end[some] - pointer[some]
            columns += [*counts, age, rank]
        return np.stack(columns, 1)

    def _scan(self, queries: Queries, rows: np.ndarray, cuts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """By looking at every behaviour."""
        counts = np.zeros((len(self.fields), 1 + len(cuts), len(queries)), np.int64)
        last = np.zeros((len(self.fields), len(queries)), np.int64)
        for part in self.histories.parts(queries, rows):
            match = np.stack([part.matching(name) for name in self.fields], 1)
            lately = part.since(cuts[:, part.rows])
            counts[:, 0, part.rows] = bits.count(match)
            counts[:, 1:, part.rows] = bits.count(match[:, :, None] & lately[:, None])
            last[:, part.rows] = part.begin + bits.last(match)
        return zip(counts[..., rows], last[:, rows], strict=True)

    def _look_up(self, queries: Queries, rows: np.ndarray, cuts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """By the index: cost per field and cut is log(run), whatever the length of the history."""
        queries, cuts = queries.take(rows), cuts[:, rows]
        for name, order in zip(self.fields, self.orders, strict=True):
            low, high = order.runs(queries.user, queries.target[name], queries.first, queries.end)
            some = np.flatnonzero(high > low)  # most candidates were never met: nothing to cut there
            counts, last = np.zeros((1 + len(cuts), len(rows)), np.int64), np.zeros(len(rows), np.int64)
            counts[0] = high - low
            at, user = np.tile(some, len(cuts)), queries.user
            place = order.cut(user[at], low[at], high[at], cuts[:, some].ravel())
            counts[1:, some] = (high[at] - place).reshape(len(cuts), len(some))
            last[some] = order.pointers(user[some], high[some] - 1)
            yield counts, last


def matches_names(fields: list[str], days: list[float], windows: list[int]) -> list[str]:
    kinds = ["count", *(f"within_{day:g}d" for day in days), *(f"last_{window}" for window in windows), "age", "rank"]
    return [f"{field}.{kind}" for field in fields for kind in kinds] + ["length", "last_age", "first_age"]
