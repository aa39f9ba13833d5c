"""From pointers to batches: histories are gathered from the memory-mapped columns, vectorised and without padding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lsm_cli.data.batches import SECONDS_PER_DAY, Batch, Pointers, Queries, Sharing, Spans
from lsm_cli.data.epochs import changes
from lsm_cli.data.store import Field, Store

SLICE = 384  # mean length from which slices are faster than indices


@dataclass
class Reading:
    """The histories of a batch.

    Attributes:
        read: behaviours of G histories; end: int64 [G], where each ends.
        of: int64 [B], the history of each sample; None = its own.
    """

    read: Pointers | Spans
    end: np.ndarray
    of: np.ndarray | None

    def leaders(self, values: np.ndarray) -> np.ndarray:
        """Of what samples have [B], that of the first one to read each history [G]."""
        return values if self.of is None else values[np.searchsorted(self.of, np.arange(len(self.end)))]

    @property
    def total(self) -> int:
        """How many behaviours all samples read together."""
        lengths = np.diff(self.read.offsets)
        return int((lengths if self.of is None else lengths[self.of]).sum())


class Assembler:
    """Makes batches of one split of a store.

    Args:
        store: where the trajectories lie.
        split: which samples.
        fields: side-information fields to gather.
        targets: label columns, in this order.
        max_len: behaviours within reach of a sample, the most recent ones; 0 = no history.
        statistics: names of the point-in-time statistics.
        shuffle_seed: not None gives every user the history of another one, cut at the same request time: the control
            that shows how much of a result comes from whose history it is.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        fields: list[Field],
        targets: list[str],
        max_len: int,
        statistics: list[str],
        shuffle_seed: int | None = None,
    ) -> None:
        self.store, self.split, self.max_len = store, split, max_len
        samples = store.samples(split)
        self.size = len(samples)
        self.user, self.end, self.time = (samples.column(name) for name in ("user", "end", "time"))
        in_history = [field for field in fields if field.in_history]
        in_sample = [field for field in fields if field.in_sample]
        self.event_columns = {
            field.name: np.asarray(store.column(field.name)) for field in in_history if not field.level
        }
        self.event_levels = {field.name: _level(store, field) for field in in_history if field.level}
        self.event_category = np.asarray(store.column("category")) if self.event_levels else None
        # of a taxonomy of one level the node says it all
        self.plain = {name for name, level in self.event_levels.items() if np.array_equal(level, np.arange(len(level)))}
        self.event_time = np.asarray(store.column("time"))
        self.tick = _tick(store, self.time)
        self.sample_columns = {field.name: samples.column(field.name) for field in in_sample if not field.level}
        self.sample_levels = {field.name: _level(store, field) for field in in_sample if field.level}
        self.sample_category = samples.column("category") if self.sample_levels else None
        self.statistics = [samples.column(f"stat.{name.replace('/', '.')}") for name in statistics]
        self.labels = [samples.column(f"label.{target}") for target in targets]
        self.borrowed = None if shuffle_seed is None else derangement(store.users, shuffle_seed)

    def __len__(self) -> int:
        return self.size

    def lengths(self, index: np.ndarray) -> np.ndarray:
        """Visible history lengths of samples, after truncation: int64 [len(index)]."""
        _, first, end = self.bounds(index)
        return end - first

    def bounds(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Whose history samples read, and where it begins and ends after truncation: int64 [len(index)] each."""
        user = self.user[index].astype(np.int64)
        if self.borrowed is None:
            end = self.end[index]
        else:
            user = self.borrowed[user]
            end = visible_end(self.store, user, self.time[index])
        return user, np.maximum(self.store.offsets[user], end - self.max_len), end

    def queries(self, index: np.ndarray) -> Queries:
        """The samples `index` as a search sees them."""
        target = {name: column[index] for name, column in self.sample_columns.items()}
        if self.sample_category is not None:
            node = self.sample_category[index]
            target |= {name: level.take(node) for name, level in self.sample_levels.items()}
        return Queries(*self.bounds(index), self.time[index], target)

    def side_by_side(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first of the samples of each request that stand side by side, int64 [G], and the request of each, [B]."""
        new = changes(self.user[index], self.end[index], self.time[index])
        return np.flatnonzero(new), np.cumsum(new) - 1

    def reading(self, index: np.ndarray, read: Pointers | Spans | None, share: bool) -> Reading:
        """What the samples `index` read, see `batch`."""
        _, first, end = self.bounds(index)
        of = None
        if read is None:
            if share:
                begins, of = self.side_by_side(index)
                if 2 * (end - first)[begins].sum() > (end - first).sum():
                    of = None  # few share
                else:
                    first, end = first[begins], end[begins]
            offsets = np.zeros(len(first) + 1, np.int64)
            np.cumsum(end - first, out=offsets[1:])
            read = Spans(offsets, first)
        return Reading(read, end, of)

    def batch(self, index: np.ndarray, read: Pointers | Spans | None = None, share: bool = False) -> Batch:
        """Gather the samples `index` (any order, int64 [B]).

        Args:
            read: the behaviours of each sample; the most recent `max_len` if not given.
            share: samples of one request that stand side by side share one history, where that makes the batch at
                least twice as small; only without `read`.
        """
        reading = self.reading(index, read, share)
        read, end = reading.read, reading.end
        offsets = read.offsets
        lengths = np.diff(offsets)
        if isinstance(read, Spans):
            gather: _Taker | _Gatherer = _Gatherer(read.first, read.first + lengths, offsets)
            rank = _rank(offsets, lengths, end - read.first - lengths)
        else:
            gather = _Taker(read.pointer)
            rank = _ranks(end, lengths, read.pointer)
        time = self.time[index]
        age = np.repeat(reading.leaders(time).astype(self.tick), lengths)
        age -= gather(self.event_time, self.tick)
        request = time + self.store.base
        days, ticks = np.divmod(request, SECONDS_PER_DAY * self.store.ticks_per_second)
        hour = ticks // (3600 * self.store.ticks_per_second)
        history = {name: torch.from_numpy(gather(column)) for name, column in self.event_columns.items()}
        target = {name: _ids(column[index]) for name, column in self.sample_columns.items()}
        if self.event_category is not None:
            node = gather(self.event_category)
            for name, level in self.event_levels.items():
                history[name] = torch.from_numpy(node if name in self.plain else level.take(node))
        if self.sample_category is not None:
            node = self.sample_category[index]
            target |= {name: torch.from_numpy(level.take(node)) for name, level in self.sample_levels.items()}
        labels = np.full((len(index), len(self.labels)), np.nan, np.float32)
        for column, label in enumerate(self.labels):
            value = label[index]
            labels[:, column] = np.where(value < 0, np.nan, value)
        statistics = np.empty((len(index), len(self.statistics)), np.float32)
        for column, values in enumerate(self.statistics):
            statistics[:, column] = values[index]
        return Batch(
            offsets=torch.from_numpy(offsets),
            history=history,
            age=torch.from_numpy(_seconds(age, self.store.ticks_per_second)),
            rank=torch.from_numpy(rank),
            target=target,
            calendar=torch.from_numpy(np.stack([hour, (days + 3) % 7], 1)),
            statistics=torch.from_numpy(statistics),
            labels=torch.from_numpy(labels),
            user=torch.from_numpy(self.user[index].astype(np.int64)),
            sharing=None if reading.of is None else Sharing(torch.from_numpy(reading.of), reading.total),
        )


def _level(store: Store, field: Field) -> np.ndarray:
    """int32 [nodes]: node -> its ancestor at the field's level."""
    return store.ancestors[:, field.level - 1].astype(np.int32)


def _tick(store: Store, requests: np.ndarray) -> type[np.signedinteger]:
    """The narrowest type that holds every time and every age."""
    first = store.column("time")[store.offsets[:-1][np.diff(store.offsets) > 0]]
    latest = int(requests.max(initial=0))
    fits = store.column("time").dtype.itemsize <= 4 and latest - int(first.min(initial=0)) < 1 << 31 > latest
    return np.int32 if fits else np.int64


class _Gatherer:
    """Concatenates column[first:end] over the samples.

    Long histories are copied slice by slice; for short ones a slice costs more than an index per behaviour.
    """

    def __init__(self, first: np.ndarray, end: np.ndarray, offsets: np.ndarray) -> None:
        self.total = int(offsets[-1])
        self.slices: list[slice] | None = None
        if self.total >= SLICE * len(first):
            self.slices = [slice(*bounds) for bounds in zip(first.tolist(), end.tolist(), strict=True)]
        else:
            self.pointer = np.arange(self.total)
            self.pointer += np.repeat(first - offsets[:-1], end - first)

    def __call__(self, column: np.ndarray, dtype: type[np.signedinteger] = np.int32) -> np.ndarray:
        """[N] of the given type."""
        if self.slices is None:
            return column.take(self.pointer).astype(dtype, copy=False)
        return np.concatenate([column[part] for part in self.slices], out=np.empty(self.total, dtype))


class _Taker:
    """column[pointer]."""

    def __init__(self, pointer: np.ndarray) -> None:
        self.pointer = pointer

    def __call__(self, column: np.ndarray, dtype: type[np.signedinteger] = np.int32) -> np.ndarray:
        return column.take(self.pointer).astype(dtype, copy=False)


def _seconds(ticks: np.ndarray, per_second: int) -> np.ndarray:
    return (ticks if per_second == 1 else ticks / per_second).astype(np.float32)


def _rank(offsets: np.ndarray, lengths: np.ndarray, after: np.ndarray) -> np.ndarray:
    """int32 [N]: places back from the request, before which `after` behaviours of each sample follow those read."""
    rank = np.arange(0, -offsets[-1], -1, dtype=np.int32)
    rank += np.repeat((offsets[1:] + after).astype(np.int32), lengths)
    return rank


def _ranks(end: np.ndarray, lengths: np.ndarray, pointer: np.ndarray) -> np.ndarray:
    """int32 [N]: places back from the request, whatever was left out between."""
    return (np.repeat(end, lengths) - pointer).astype(np.int32)


def _ids(column: np.ndarray) -> Tensor:
    return torch.from_numpy(column.astype(np.int32))


def visible_end(store: Store, user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Exclusive pointer to the events of `user` before `time` (ticks; ties are future): int64 [n].

    A binary search in all users' ranges at once: log2(longest history) vectorised steps.
    """
    low, high = store.offsets[user].copy(), store.offsets[user + 1].copy()
    times = store.column("time")
    while (open_ := np.flatnonzero(low < high)).size:
        middle = (low[open_] + high[open_]) // 2
        before = times[middle] < time[open_]
        low[open_[before]] = middle[before] + 1
        high[open_[~before]] = middle[~before]
    return low


def derangement(size: int, seed: int) -> np.ndarray:
    """A permutation without fixed points (for size > 1): int64 [size]."""
    order = np.random.default_rng([seed, 77]).permutation(size)
    moved = np.empty(size, np.int64)
    moved[order] = np.roll(order, 1)
    return moved
