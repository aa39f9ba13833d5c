"""Match statistics over the whole history, from the store's index, without reading it.

How often a behaviour shares the candidate's item, category level or scenario is the length of a run; how often lately
is a cut of it by binary search. Cost per sample is fields x cuts x log(run), whatever the length of the history.
"""

from __future__ import annotations

import numpy as np

from lsm_cli.data.assembling import visible_end
from lsm_cli.data.batches import SECONDS_PER_DAY, Queries
from lsm_cli.data.orders import Order
from lsm_cli.data.store import Store
from lsm_cli.errors import InputError


class MatchStatistics:
    """Counts of matches, all of them and lately, and the place of the last one.

    Args:
        store: with an index.
        fields: fields that behaviours and candidates share.
        days: counts over the last so many days.
        windows: counts over the last so many behaviours.

    Raises:
        InputError: the store has no index.
    """

    def __init__(self, store: Store, fields: list[str], days: list[float], windows: list[int]) -> None:
        missing = [name for name in fields if name not in store.index]
        if missing:
            raise InputError(
                f"{store.path}: the store has no search index of {', '.join(missing)}; add it with `lsm "
                f"build-sequences --index-only --out {store.path}`, or use model.evidence_from=read"
            )
        self.store, self.fields, self.days, self.windows = store, fields, days, windows
        self.orders = [Order(store, name) for name in fields]
        self.names = matches_names(fields, days, windows)

    def __call__(self, queries: Queries) -> np.ndarray:
        """float32 [n, len(names)]; ages in seconds, ranks from the request, -1 where nothing matches."""
        user, first, end, size = queries.user, queries.first, np.maximum(queries.end, queries.first), len(queries)
        per_day = SECONDS_PER_DAY * self.store.ticks_per_second
        spans = np.array([round(day * per_day) for day in self.days], np.int64)
        since = queries.time[None] - spans[:, None]
        bounds = [visible_end(self.store, np.tile(user, len(spans)), since.ravel())] if len(spans) else []
        bounds += [end - window for window in self.windows]
        cuts = np.concatenate(bounds) if bounds else np.empty(0, np.int64)
        many = len(cuts) // max(size, 1)
        time = self.store.column("time")
        found = np.empty((size, len(self.names)), np.float32)
        column = 0
        for name, order in zip(self.fields, self.orders, strict=True):
            low, high = order.runs(user, queries.target[name], first, end)
            count = high - low
            found[:, column] = count
            some = np.flatnonzero(count)  # most candidates were never met: nothing to cut there
            recent = np.zeros((many, size), np.int64)
            if some.size and many:
                at = np.tile(some, many)
                bound = cuts.reshape(many, size)[:, some].ravel()
                place = order.cut(user[at], low[at], high[at], bound)
                recent[:, some] = (high[at] - place).reshape(many, -1)
            found[:, column + 1 : column + 1 + many] = recent.T
            column += 1 + many
            age, rank = np.full(size, -1.0), np.full(size, -1.0)
            last = order.pointers(user[some], high[some] - 1)
            age[some] = (queries.time[some] - time[last]) / self.store.ticks_per_second
            rank[some] = end[some] - last
            found[:, column], found[:, column + 1] = age, rank
            column += 2
        length = end - first
        found[:, column] = length
        for number, pointer in enumerate((end - 1, first), column + 1):  # the newest, the oldest
            held = np.where(length > 0, pointer, 0)
            age = (queries.time - time[held]) / self.store.ticks_per_second if len(time) else np.zeros(size)
            found[:, number] = np.where(length > 0, age, -1)
        return found


def matches_names(fields: list[str], days: list[float], windows: list[int]) -> list[str]:
    kinds = ["count", *(f"within_{day:g}d" for day in days), *(f"last_{window}" for window in windows), "age", "rank"]
    return [f"{field}.{kind}" for field in fields for kind in kinds] + ["length", "last_age", "first_age"]
