"""Trajectories: every user's events, oldest first, one user after the other, in bounded memory.

The events arrive in the order of the logs. They are spilled, batch by batch, to one file per column, each batch ordered
by bucket (a range of users); then one bucket at a time is read back and sorted. How many events each user has is known
beforehand, so the columns of the store are written front to back, and nothing depends on how many buckets there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from lsm_cli.data.building.radix import radix_order
from lsm_cli.data.building.workspace import ColumnFile, as_bytes

_MAX_ROWS = 1 << 20  # users and the ranks of their times fit one 63-bit sorting key


def bucket_bounds(events: np.ndarray, rows: int) -> np.ndarray:
    """Cut the users into ranges of at most `rows` events (more only where a single user has more).

    Args:
        events: int64 [users], events of each user.

    Returns:
        int64 [buckets + 1], first user of each bucket and the number of users.
    """
    rows = min(rows, _MAX_ROWS)
    ends = np.cumsum(events)
    bounds = [0]
    while bounds[-1] < len(events):
        before = ends[bounds[-1] - 1] if bounds[-1] else 0
        bounds.append(max(int(np.searchsorted(ends, before + rows, side="right")), bounds[-1] + 1))
        if bounds[-1] - bounds[-2] > _MAX_ROWS:  # users without events also take part in the key
            bounds[-1] = bounds[-2] + _MAX_ROWS
    return np.array(bounds, np.int64)


@dataclass
class Spill:
    """Columns of all events, each batch ordered by bucket; in memory where they are few, else on disk.

    Attributes:
        bounds: users, see `bucket_bounds`.
    """

    folder: Path
    dtypes: dict[str, np.dtype]
    bounds: np.ndarray
    on_disk: bool
    rows: int = 0

    def __post_init__(self) -> None:
        buckets = np.repeat(np.arange(len(self.bounds) - 1), np.diff(self.bounds))
        self._bucket = buckets.astype(np.uint16 if len(self.bounds) < 1 << 16 else np.int32)  # 16 bits: a radix sort
        self._starts: list[np.ndarray] = []  # per batch, int64 [buckets + 1], rows of the batch
        self._first: list[int] = []  # per batch, its first row
        self._held: dict[str, list[np.ndarray]] = {name: [] for name in self.dtypes}
        self._files: dict[str, IO[bytes]] = {}
        if self.on_disk:
            self._files = {name: (self.folder / name).open("w+b") for name in self.dtypes}

    def add(self, columns: dict[str, np.ndarray]) -> None:
        """Append a batch; `columns` has "user" and every other column, [rows] each."""
        bucket = self._bucket[columns["user"]]
        starts = np.zeros(len(self.bounds), np.int64)
        np.cumsum(np.bincount(bucket, minlength=len(self.bounds) - 1), out=starts[1:])
        order = np.argsort(bucket, kind="stable") if len(self.bounds) > 2 else None
        self._starts.append(starts)
        self._first.append(self.rows)
        self.rows += len(bucket)
        for name, dtype in self.dtypes.items():
            values = columns[name].astype(dtype, copy=False)
            values = np.ascontiguousarray(values if order is None else values[order])
            if self.on_disk:
                self._files[name].write(as_bytes(values))
            else:
                self._held[name].append(values)

    def read(self, bucket: int) -> dict[str, np.ndarray]:
        """All rows of a bucket in the order in which they came."""
        spans = [(n, int(s[bucket]), int(s[bucket + 1])) for n, s in enumerate(self._starts)]
        if not self.on_disk:
            return {name: np.concatenate([parts[n][a:b] for n, a, b in spans]) for name, parts in self._held.items()}
        found, size = {}, sum(stop - start for _, start, stop in spans)
        for name, file in self._files.items():
            out, done = np.empty(size, self.dtypes[name]), 0
            view, width = as_bytes(out), self.dtypes[name].itemsize
            for number, start, stop in spans:
                if stop > start:
                    file.seek((self._first[number] + start) * width)
                    done += file.readinto(view[done : done + (stop - start) * width])  # type: ignore[attr-defined]
            found[name] = out
        return found

    def close(self) -> None:
        self._held.clear()
        for file in self._files.values():
            file.close()


@dataclass
class Sorted:
    """One bucket, sorted by (user, time, order of arrival)."""

    columns: dict[str, np.ndarray]
    first: int  # its first user
    users: int
    keys: np.ndarray  # (user, time) of each event
    time_bits: int
    times: np.ndarray | None  # distinct times where keys hold their rank, None where they hold the time itself
    start: int  # earliest time

    def before(self, user: np.ndarray, time: np.ndarray) -> np.ndarray:
        """How many of the bucket's events come before (user, time): ties at `time` are not counted."""
        if self.times is None:
            place = np.clip(time - self.start, 0, (1 << self.time_bits) - 1)
        else:
            place = np.searchsorted(self.times, time, side="left")
        key = (user.astype(np.int64) - self.first) << self.time_bits | place
        return np.searchsorted(self.keys, key, side="left")


def sort_bucket(columns: dict[str, np.ndarray], first: int, users: int) -> Sorted:
    """Sort a bucket by one packed key: user and time in 63 bits; times give way to their ranks if need be."""
    time = columns["time"]
    start, last = (int(time.min()), int(time.max())) if len(time) else (0, 0)
    user_bits, time_bits = users.bit_length(), (last - start + 1).bit_length()
    times, place = None, time.astype(np.int64) - start
    if user_bits + time_bits > 63:
        times, place = np.unique(time, return_inverse=True)
        time_bits = (len(times) + 1).bit_length()
    keys = (columns["user"].astype(np.int64) - first) << time_bits | place
    order = radix_order(keys, user_bits + time_bits)
    ordered = {name: values.take(order) for name, values in columns.items() if name != "user"}
    return Sorted(ordered, first, users, keys.take(order), time_bits, times, start)


def sorted_buckets(spill: Spill) -> Iterator[Sorted]:
    """Every bucket in the order of the users; the next is sorted while the caller works on one."""

    def sort(bucket: int) -> Sorted:
        first, last = int(spill.bounds[bucket]), int(spill.bounds[bucket + 1])
        return sort_bucket(spill.read(bucket), first, last - first)

    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(sort, 0)
        for bucket in range(1, len(spill.bounds)):
            current = coming.result()
            if bucket < len(spill.bounds) - 1:
                coming = ahead.submit(sort, bucket)
            yield current


def write_trajectories(
    spill: Spill, files: dict[str, ColumnFile], user: np.ndarray, time: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Write the events' columns and find where each sample's history ends.

    Args:
        files: columns to write, in any order.
        user, time: int [samples], the requests, in any order.

    Yields:
        rows of a bucket, and for the samples of its users their indices and exclusive event pointers.
    """
    order = np.argsort(user, kind="stable")
    edges = np.searchsorted(user[order], spill.bounds)
    done = 0
    for number, bucket in enumerate(sorted_buckets(spill)):
        for name, file in files.items():
            file.append(bucket.columns[name])
        mine = order[edges[number] : edges[number + 1]]
        ends = done + bucket.before(user[mine], time[mine])
        yield len(bucket.keys), mine, ends
        done += len(bucket.keys)
