"""What a batch is: samples and their histories, ragged; and the pointers it is made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

SECONDS_PER_DAY = 86_400


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
        matches: float32 [B, K], match statistics over all that lies before the request, from the store's index;
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
