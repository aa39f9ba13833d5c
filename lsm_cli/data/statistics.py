"""Point-in-time statistics: what was known about a sample's item and categories just before the request.

Every count is a difference of ranks: with all events ordered by (id, time), the events of one id in [t - w, t) are
those between the ranks of (id, t - w) and (id, t). Ties with the request are future, as everywhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lsm_cli.data.description import SPLITS, seconds
from lsm_cli.data.encoding import Encoded
from lsm_cli.data.samples import Sampled
from lsm_cli.data.workspace import Workspace

LEAST_ROWS = 1 << 16  # events in memory at once
_CHUNK = 1 << 21


@dataclass
class EventColumn:
    """Ids and times of all events, read in pieces.

    Attributes:
        ids: int [events], memory-mapped.
        time: int [events], ticks since the store's base, memory-mapped.
        translate: applied to each piece of ids: identity, or a node's ancestor.
    """

    ids: np.ndarray
    time: np.ndarray
    translate: Callable[[np.ndarray], np.ndarray]

    def pieces(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(self.time), _CHUNK):
            part = slice(start, start + _CHUNK)
            yield (
                self.translate(np.asarray(self.ids[part])).astype(np.int64),
                np.asarray(self.time[part]).astype(np.int64),
            )


def write_statistics(encoded: Encoded, sampled: Sampled, work: Workspace) -> list[str]:
    """Popularity of the sample's item and categories beside all events', and the item's age and recency in seconds.

    Returns:
        names of what was written, "stat.<name>" each.
    """
    plan, wanted = encoded.plan, encoded.plan.description.samples.statistics
    if wanted is None:
        return []
    per_second = plan.resolution // encoded.divisor
    lengths = [seconds(window) for window in wanted.popularity]
    windows = [None if length is None else length * per_second for length in lengths]
    time = np.load(work.folder / "events/time.npy", mmap_mode="r")
    item = np.load(work.folder / "events/item.npy", mmap_mode="r")
    rows = max(plan.memory // 64, LEAST_ROWS)
    columns = [("any", EventColumn(item, time, lambda ids: np.full(len(ids), 2)), np.full(len(sampled.user), 2))]
    columns.append(("item", EventColumn(item, time, lambda ids: ids), _read_back(work, sampled, "item")))
    if encoded.tree is not None and plan.categories_in_history:
        node = np.load(work.folder / "events/category.npy", mmap_mode="r")
        sample_node = _read_back(work, sampled, "category")
        for level in range(encoded.tree.depth):
            ancestor = encoded.tree.ancestors[:, level]
            columns.append(
                (f"category{level + 1}", EventColumn(node, time, ancestor.__getitem__), ancestor[sample_node])
            )
    names: list[str] = []
    for name, events, ids in columns:
        ages = name == "item"
        found = popularity(events, ids.astype(np.int64), sampled.time, windows, rows, ages)
        labels = [f"popularity.{name}.{window}" for window in wanted.popularity]
        labels += ["age.item", "recency.item"] if ages else []
        for label, values in zip(labels, found, strict=True):
            if label.startswith(("age", "recency")):
                values = np.where(values < 0, -1, values / per_second).astype(np.float32)
            for code, split in enumerate(SPLITS):
                work.array(f"samples/{split}/stat.{label}.npy", values[sampled.split == code])
        names += labels
    return names


def _read_back(work: Workspace, sampled: Sampled, name: str) -> np.ndarray:
    """A column of all samples, in the order of the files."""
    parts = [np.load(work.folder / f"samples/{split}/{name}.npy") for split in SPLITS]
    out = np.empty(len(sampled.split), parts[0].dtype)
    for code, part in enumerate(parts):
        out[sampled.split == code] = part
    return out


def popularity(
    events: EventColumn, ids: np.ndarray, time: np.ndarray, windows: list[int | None], rows: int, ages: bool = False
) -> list[np.ndarray]:
    """Events of a sample's id in each window before the request.

    Args:
        ids, time: int64 [samples]; ids of 1 (missing) and below count nothing.
        windows: lengths in ticks; None reaches back to the beginning.
        rows: how many events may be in memory at once.
        ages: also say how long ago the id was first and last seen.

    Returns:
        float32 [samples] for each window; then, with `ages`, ticks since the id's first and last event, -1 if none.
    """
    start, bits = _time_bits(events, time)
    ceiling = (1 << bits) - 1
    clipped = np.clip(time - start, 0, ceiling)
    zero = np.zeros_like(clipped)
    lower = [zero if window is None else np.clip(time - window - start, 0, ceiling) for window in windows]
    order = np.argsort(ids << bits | clipped, kind="stable")  # which orders (id, t - w) as well
    moments = [moment[order] for moment in (clipped, *lower, zero)]
    ranks, previous = _ranks(events, ids[order], moments, start, bits, rows)
    ranks[:, order], previous[order] = ranks.copy(), previous.copy()
    real = ids > 1
    found = [np.where(real, ranks[0] - below, 0).astype(np.float32) for below in ranks[1 : 1 + len(windows)]]
    if ages:
        seen = real & (ranks[0] > ranks[-1])
        first = _first_times(events, int(ids.max(initial=0)) + 1)
        last = (previous & ceiling) + start
        found.append(np.where(seen, time - first[ids], -1).astype(np.float32))
        found.append(np.where(seen, time - last, -1).astype(np.float32))
    return found


def _time_bits(events: EventColumn, time: np.ndarray) -> tuple[int, int]:
    low = high = 0
    for number, (_, times) in enumerate(events.pieces()):
        low = int(times.min()) if not number else min(low, int(times.min()))
        high = int(times.max()) if not number else max(high, int(times.max()))
    return low, (high - low + 1).bit_length()


def _ranks(
    events: EventColumn, ids: np.ndarray, moments: list[np.ndarray], start: int, bits: int, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """How many events come before each (id, moment), and the last event before the first of the moments.

    The key space is cut at quantiles so that each piece of it fits in memory; the events are read once per piece.

    Args:
        ids, moments: int64 [samples] each, so ordered that every (id, moment) ascends.

    Returns:
        int64 [moments, samples]; and keys, int64 [samples], -1 where there is none.
    """
    ranks, before = np.zeros((len(moments), len(ids)), np.int64), np.full(len(ids), -1, np.int64)
    done, last = 0, -1
    for low, high in itertools.pairwise(_edges(events, start, bits, rows)):
        keys = _keys_between(events, start, bits, low, high)
        keys.sort()
        for number, moment in enumerate(moments):
            queries = ids << bits | moment
            part = slice(*np.searchsorted(queries, [low, high]))
            place = np.searchsorted(keys, queries[part], side="left")
            ranks[number, part] = place + done
            if number == 0:
                before[part] = np.append(keys, last)[place - 1]  # 0 - 1 is the last: what came before this piece
        done += len(keys)
        last = int(keys[-1]) if len(keys) else last
    return ranks, before


def _edges(events: EventColumn, start: int, bits: int, rows: int) -> list[int]:
    end = np.iinfo(np.int64).max
    pieces = -(-len(events.time) // max(rows, 1))
    if pieces <= 1:
        return [0, end]
    step = max(1, len(events.time) // (1 << 20))
    keys = [(ids[::step] << bits | (time[::step] - start)) for ids, time in events.pieces()]
    sample = np.sort(np.concatenate(keys))
    inner = np.unique(sample[np.linspace(0, len(sample), pieces + 1)[1:-1].astype(int)])
    return [0, *(int(edge) for edge in inner), end]


def _keys_between(events: EventColumn, start: int, bits: int, low: int, high: int) -> np.ndarray:
    if low == 0 and high == np.iinfo(np.int64).max:
        keys, done = np.empty(len(events.time), np.int64), 0
        for ids, time in events.pieces():
            keys[done : done + len(ids)] = ids << bits | (time - start)
            done += len(ids)
        return keys
    found = []
    for ids, time in events.pieces():
        keys = ids << bits | (time - start)
        found.append(keys[(keys >= low) & (keys < high)])
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _first_times(events: EventColumn, size: int) -> np.ndarray:
    first = np.full(size, np.iinfo(np.int64).max, np.int64)
    for ids, time in events.pieces():
        known = ids < size
        np.minimum.at(first, ids[known], time[known])
    return first
