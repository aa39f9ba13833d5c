"""Point-in-time statistics: what was known about a sample's item and categories just before the request.

Every count is a difference of ranks: with all events ordered by (id, time), the events of one id in [t - w, t) are
those between the ranks of (id, t - w) and (id, t). Ties with the request are future, as everywhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lsm_cli.data.building.encoding import Encoded
from lsm_cli.data.building.samples import Sampled
from lsm_cli.data.building.workspace import Workspace
from lsm_cli.data.description import SPLITS, seconds

LEAST_ROWS = 1 << 16  # events in memory at once
_CHUNK = 1 << 21


@dataclass
class Clock:
    """Times as numbers of few bits, so that they fit into one sorting key behind an id.

    Attributes:
        start: earliest event, ticks.
        bits: places are below 2 ** bits.
        distinct: the events' distinct times, where only their ranks are narrow enough.
    """

    start: int
    bits: int
    distinct: np.ndarray | None = None

    @classmethod
    def of(cls, time: np.ndarray, ids: int) -> Clock:
        """For all events' times, beside ids below `ids`."""
        parts = [np.asarray(time[start : start + _CHUNK]) for start in range(0, len(time), _CHUNK)]
        low, high = min(int(part.min()) for part in parts), max(int(part.max()) for part in parts)
        bits = (high - low + 1).bit_length()
        if bits + ids.bit_length() <= 63:
            return cls(low, bits)
        distinct = np.unique(np.concatenate([np.unique(part) for part in parts])).astype(np.int64)
        return cls(low, (len(distinct) + 1).bit_length(), distinct)

    def place(self, time: np.ndarray) -> np.ndarray:
        """int64; (events before a time) = (events with a smaller place)."""
        if self.distinct is not None:
            return np.searchsorted(self.distinct, time, side="left")
        return np.clip(time.astype(np.int64) - self.start, 0, (1 << self.bits) - 1)

    def moment(self, key: np.ndarray) -> np.ndarray:
        """Ticks of the event whose key this is."""
        place = key & ((1 << self.bits) - 1)
        return place + self.start if self.distinct is None else self.distinct[np.minimum(place, len(self.distinct) - 1)]


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
    clock: Clock
    translate: Callable[[np.ndarray], np.ndarray]

    def pieces(self) -> Iterator[np.ndarray]:
        """Keys: the id, and the place of its time."""
        for start in range(0, len(self.time), _CHUNK):
            part = slice(start, start + _CHUNK)
            ids = self.translate(np.asarray(self.ids[part])).astype(np.int64)
            yield ids << self.clock.bits | self.clock.place(np.asarray(self.time[part]))


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
    clock = Clock.of(time, max(field.size for field in encoded.vocabularies.values()))
    everything = np.full(len(sampled.user), 2)
    columns = [
        ("any", EventColumn(item, time, clock, lambda ids: np.full(len(ids), 2)), everything),
        ("item", EventColumn(item, time, clock, lambda ids: ids), _read_back(work, sampled, "item")),
    ]
    if encoded.tree is not None and plan.categories_in_history:
        node = np.load(work.folder / "events/category.npy", mmap_mode="r")
        sample_node = _read_back(work, sampled, "category")
        clock = Clock.of(time, encoded.tree.nodes)
        for level in range(encoded.tree.depth):
            ancestor = encoded.tree.ancestors[:, level]
            events = EventColumn(node, time, clock, ancestor.__getitem__)
            columns.append((f"category{level + 1}", events, ancestor[sample_node]))
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
    clock = events.clock
    zero, at = np.zeros(len(time), np.int64), clock.place(time)
    lower = [zero if window is None else clock.place(time - window) for window in windows]
    order = np.argsort(ids << clock.bits | at, kind="stable")  # which orders (id, t - w) as well
    moments = [moment[order] for moment in (at, *lower, zero)]
    ranks, last, first = _ranks(events, ids[order], moments, rows)
    for found in (*ranks, last, first):
        found[order] = found.copy()
    real = ids > 1
    counts = [np.where(real, ranks[0] - below, 0).astype(np.float32) for below in ranks[1 : 1 + len(windows)]]
    if ages:
        seen = real & (ranks[0] > ranks[-1])
        counts += [np.where(seen, time - clock.moment(key), -1).astype(np.float32) for key in (first, last)]
    return counts


def _ranks(
    events: EventColumn, ids: np.ndarray, moments: list[np.ndarray], rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many events come before each (id, moment); the last event before the first of the moments, and the first
    event not before the last of them.

    The key space is cut at quantiles so that each piece of it fits in memory; the events are read once per piece.

    Args:
        ids, moments: int64 [samples] each, so ordered that every (id, moment) ascends.

    Returns:
        int64 [moments, samples]; and keys, int64 [samples] each, -1 where there is none.
    """
    bits = events.clock.bits
    ranks = np.zeros((len(moments), len(ids)), np.int64)
    before, after = np.full(len(ids), -1, np.int64), np.full(len(ids), -1, np.int64)
    done, last, waiting = 0, -1, np.zeros(0, np.int64)
    for low, high in itertools.pairwise(_edges(events, rows)):
        keys = _keys_between(events, low, high)
        keys.sort()
        for number, moment in enumerate(moments):
            queries = ids << bits | moment
            part = slice(*np.searchsorted(queries, [low, high]))
            place = np.searchsorted(keys, queries[part], side="left")
            ranks[number, part] = place + done
            if number == 0:
                before[part] = np.append(keys, last)[place - 1]  # 0 - 1 is the last: what came before this piece
            if number == len(moments) - 1 and len(keys):
                after[waiting] = keys[0]  # their first event is in a later piece than they are
                after[part] = keys[np.minimum(place, len(keys) - 1)]
                waiting = np.arange(part.start, part.stop)[place == len(keys)]
            elif number == len(moments) - 1:
                waiting = np.append(waiting, np.arange(part.start, part.stop))
        done += len(keys)
        last = int(keys[-1]) if len(keys) else last
    return ranks, before, after


def _edges(events: EventColumn, rows: int) -> list[int]:
    end = np.iinfo(np.int64).max
    pieces = -(-len(events.time) // max(rows, 1))
    if pieces <= 1:
        return [0, end]
    step = max(1, len(events.time) // (1 << 20))
    sample = np.sort(np.concatenate([keys[::step] for keys in events.pieces()]))
    inner = np.unique(sample[np.linspace(0, len(sample), pieces + 1)[1:-1].astype(int)])
    return [0, *(int(edge) for edge in inner if edge > 0), end]


def _keys_between(events: EventColumn, low: int, high: int) -> np.ndarray:
    if low == 0 and high == np.iinfo(np.int64).max:
        found, done = np.empty(len(events.time), np.int64), 0
        for keys in events.pieces():
            found[done : done + len(keys)] = keys
            done += len(keys)
        return found
    return np.concatenate([keys[(keys >= low) & (keys < high)] for keys in events.pieces()])
