"""From pointers to batches: histories are gathered from the memory-mapped columns, vectorised and without padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsm_cli.data.orders import ragged_arange
from lsm_cli.data.store import Field, Store

SECONDS_PER_DAY = 86_400
SLICE = 384  # mean length from which slices are faster than indices


@dataclass
class Sharing:
    """Samples that read the same histories.

    Attributes:
        of: int64 [B], the history of each sample, ascending.
        reads: how many behaviours all samples read together.
    """

    of: Tensor
    reads: int


@dataclass
class Batch:
    """B samples and their histories. Ids are identities: equal ids are the same thing, trained or not.

    Every sample has a history of its own, or the candidates of one request share one.

    Attributes:
        offsets: int64 [G + 1]; history g owns behaviours offsets[g]:offsets[g + 1] of M, oldest first.
        history: field -> int32 [M].
        age: float32 [M], seconds from behaviour to request, > 0.
        rank: int32 [M], 1 = the most recent behaviour of its history.
        target: field -> int32 [B].
        calendar: int64 [B, 2], hour of day and day of week (Monday = 0) of the request, UTC.
        statistics: float32 [B, S], point-in-time statistics; -1 = not known.
        labels: float32 [B, targets], NaN where the target was not observed.
        user: int64 [B].
        matches: float32 [B, M], match statistics over all that lies before the request, from the store's index;
            None where the model takes them from the behaviours it reads. -1 = no match.
        sharing: who reads which history; None = sample b has history b.
    """

    offsets: Tensor
    history: dict[str, Tensor]
    age: Tensor
    rank: Tensor
    target: dict[str, Tensor]
    calendar: Tensor
    statistics: Tensor
    labels: Tensor
    user: Tensor
    matches: Tensor | None = None
    sharing: Sharing | None = None

    @property
    def size(self) -> int:
        return self.offsets.numel() - 1 if self.sharing is None else self.sharing.of.numel()

    @property
    def behaviours(self) -> int:
        """M."""
        return self.age.numel()

    def to(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self
        return self.moved(lambda tensors: [tensor.to(device, non_blocking=True) for tensor in tensors])

    def moved(self, move: Callable[[Sequence[Tensor]], Sequence[Tensor]]) -> Batch:
        """With other tensors in the place of its own, which `move` is given all at once."""
        flat: list[Tensor] = []
        for value in vars(self).values():
            if isinstance(value, dict):
                flat += value.values()
            elif value is not None:
                flat.append(value.of if isinstance(value, Sharing) else value)
        moved = iter(move(flat))

        def placed(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: next(moved) for name in value}
            if isinstance(value, Sharing):
                return replace(value, of=next(moved))
            return None if value is None else next(moved)

        return Batch(**{name: placed(value) for name, value in vars(self).items()})

    def part(self, low: int, high: int) -> Batch:
        """Samples low … high - 1, which share memory with the batch."""
        first, last = self.span(low, high)
        begin, end = self._histories(low, high)
        sharing = None
        if self.sharing is not None:
            of = self.sharing.of[low:high]
            sharing = Sharing(of - begin, int(self.offsets.diff()[of].sum()))
        return Batch(
            self.offsets[begin : end + 1] - first,
            {name: ids[first:last] for name, ids in self.history.items()},
            self.age[first:last],
            self.rank[first:last],
            {name: ids[low:high] for name, ids in self.target.items()},
            self.calendar[low:high],
            self.statistics[low:high],
            self.labels[low:high],
            self.user[low:high],
            None if self.matches is None else self.matches[low:high],
            sharing,
        )

    def span(self, low: int, high: int) -> tuple[int, int]:
        """Where the behaviours of samples low … high - 1 begin and end; waits for the device."""
        first, last = self.offsets[[*self._histories(low, high)]].tolist()
        return first, last

    def _histories(self, low: int, high: int) -> tuple[int, int]:
        """Which histories samples low … high - 1 read: the first, and the one behind the last."""
        if self.sharing is None or low == high:
            return low, high
        first, last = self.sharing.of[[low, high - 1]].tolist()
        return first, last + 1

    @staticmethod
    def join(parts: Sequence[Batch]) -> Batch:
        """All samples of several batches, in order."""
        if len(parts) == 1:
            return parts[0]

        def each(name: str) -> Any:
            values = [getattr(part, name) for part in parts]
            if isinstance(values[0], dict):
                return {key: torch.cat([value[key] for value in values]) for key in values[0]}
            return None if values[0] is None else torch.cat(values)

        lengths = torch.cat([part.offsets.diff() for part in parts])
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        found = {name: each(name) for name in vars(parts[0]) if name not in ("offsets", "sharing")}
        if all(part.sharing is None for part in parts):
            return Batch(offsets, **found)
        each_of = [part.sharing or Sharing(torch.arange(part.size), part.behaviours) for part in parts]
        before = np.cumsum([0, *(part.offsets.numel() - 1 for part in parts[:-1])]).tolist()
        of = torch.cat([one.of.to(offsets.device) + first for one, first in zip(each_of, before, strict=True)])
        return Batch(offsets, **found, sharing=Sharing(of, sum(one.reads for one in each_of)))

    def select(self, offsets: Tensor, where: Tensor) -> Batch:
        """The same samples with some of their behaviours: int64 [B + 1], and positions int64 [n], ascending."""
        history = {name: ids.index_select(0, where) for name, ids in self.history.items()}
        age, rank = self.age.index_select(0, where), self.rank.index_select(0, where)
        return replace(self, offsets=offsets, history=history, age=age, rank=rank)


@dataclass
class Queries:
    """What a search over histories needs to know of n samples.

    Attributes:
        user: int64 [n], whose history; end: int64 [n], exclusive event pointer; first: int64 [n], where it begins.
        time: int64 [n], ticks of the request.
        target: field -> int [n], ids of the candidate.
    """

    user: np.ndarray
    first: np.ndarray
    end: np.ndarray
    time: np.ndarray
    target: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray) -> Queries:
        target = {name: ids[rows] for name, ids in self.target.items()}
        return Queries(self.user[rows], self.first[rows], self.end[rows], self.time[rows], target)


@dataclass
class Pointers:
    """Behaviours of n samples: sample b owns pointer[offsets[b]:offsets[b + 1]] (int64), oldest first."""

    offsets: np.ndarray
    pointer: np.ndarray


@dataclass
class Spans:
    """Behaviours of n samples without gaps: sample b owns the events from first[b] on, offsets[b + 1] - offsets[b] of
    them."""

    offsets: np.ndarray
    first: np.ndarray


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

    def sharing(self, of: Tensor | None) -> Sharing | None:
        """The same on whatever device `of` is."""
        if self.of is None or of is None:
            return None
        return Sharing(of, int(np.diff(self.read.offsets)[self.of].sum()))


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

    def requests(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first of the samples of each request that stand side by side, int64 [G], and the request of each, [B]."""
        new = changes(self.user[index], self.end[index], self.time[index])
        return np.flatnonzero(new), np.cumsum(new) - 1

    def reading(self, index: np.ndarray, read: Pointers | Spans | None, share: bool) -> Reading:
        """What the samples `index` read, see `batch`."""
        _, first, end = self.bounds(index)
        of = None
        if read is None:
            if share:
                begins, of = self.requests(index)
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
            sharing=None if reading.of is None else reading.sharing(torch.from_numpy(reading.of)),
        )


def changes(*columns: np.ndarray) -> np.ndarray:
    """bool [n]: differs from the one before in one of the columns; the first does."""
    new = np.ones(len(columns[0]), bool)
    new[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return new


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


def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the samples in one epoch, a function of (seed, epoch) only: a resumed run finds its place."""
    return np.random.default_rng([seed, epoch]).permutation(size)


class Requests:
    """The samples of a split, request by request: int64 [n + 1] `offsets` of each into `order` [samples]."""

    def __init__(self, user: np.ndarray, end: np.ndarray, time: np.ndarray) -> None:
        self.order = np.lexsort((time, end, user))
        begins = np.flatnonzero(changes(*(column[self.order] for column in (user, end, time))))
        self.offsets = np.append(begins, len(user))

    def epoch_order(self, seed: int, epoch: int) -> np.ndarray:
        """As `epoch_order`, of whole requests, whose samples stand side by side."""
        requests = epoch_order(len(self.offsets) - 1, seed, epoch)
        first = self.offsets[requests]
        lengths = self.offsets[requests + 1] - first
        return self.order[ragged_arange(first, lengths)[1]]
