"""Batches gathered on the device, from a store's columns that lie in its memory.

Of a batch only pointers move there: 32 bytes a sample, for which it is and where its history begins, ends and lies in
the batch, or 8 for each behaviour that a search found, whatever the number of fields. With the device "cpu" the columns
are in RAM and everything else is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsm_cli.data.assembling import Assembler
from lsm_cli.data.batches import SECONDS_PER_DAY, Batch, Pointers, Sharing, Spans

SIGNED = {np.dtype(np.uint16): np.int32, np.dtype(np.uint32): np.int64}  # for which torch has few operations


class Resident:
    """Makes the batches of an assembler, on a device.

    Args:
        assembler: whose store and split; its event columns are shared by all assemblers of one store object.
        device: where the columns go.
        move: brings host tensors there, in order; all at once.
    """

    def __init__(
        self, assembler: Assembler, device: torch.device, move: Callable[[Sequence[Tensor]], Sequence[Tensor]]
    ) -> None:
        self.of, self.device, self.move = assembler, device, move
        kept = assembler.store.resident

        def shared(name: str, column: np.ndarray) -> Tensor:
            key = f"{name} on {device}"
            if key not in kept:
                kept[key] = self._place(column)
            return kept[key]

        self.time = shared("time", assembler.event_time)
        self.events = {name: shared(name, column) for name, column in assembler.event_columns.items()}
        self.levels = {name: shared(f"level {name}", level) for name, level in assembler.event_levels.items()}
        self.category = None if assembler.event_category is None else shared("category", assembler.event_category)
        self.user, self.requests = self._place(assembler.user), self._place(assembler.time)
        self.candidates = {name: self._place(column) for name, column in assembler.sample_columns.items()}
        self.own_levels = {name: shared(f"level {name}", level) for name, level in assembler.sample_levels.items()}
        node = assembler.sample_category
        self.node = None if node is None else self._place(node)
        self.labels = [self._place(label) for label in assembler.labels]
        self.statistics = [self._place(values) for values in assembler.statistics]

    def _place(self, column: np.ndarray) -> Tensor:
        values = np.ascontiguousarray(column, SIGNED.get(column.dtype, column.dtype))
        return torch.tensor(values, device=self.device)

    def batch(self, index: np.ndarray, read: Pointers | Spans | None = None, share: bool = False) -> Batch:
        """The same as `Assembler.batch`, on the device."""
        reading = self.of.reading(index, read, share)
        read = reading.read
        total = int(read.offsets[-1])
        where = read.first if isinstance(read, Spans) else read.pointer
        index = index.astype(np.int64, copy=False)
        moved = [index, read.offsets, reading.end, where]
        if reading.of is not None:
            moved += [reading.leaders(index), reading.of]
        placed = self.move([torch.from_numpy(np.ascontiguousarray(part)) for part in moved])
        rows, bounds, end_at, given = placed[:4]
        leaders, of = placed[4:] or (rows, None)
        lengths = bounds.diff()

        def repeated(values: Tensor) -> Tensor:
            return torch.repeat_interleave(values, lengths, output_size=total)

        pointer = given
        if isinstance(read, Spans):
            pointer = torch.arange(total, device=self.device) + repeated(given - bounds[:-1])
        time = self.requests.index_select(0, rows).long()
        per_second = self.of.store.ticks_per_second
        age = repeated(self.requests.index_select(0, leaders).long()) - self.time.index_select(0, pointer)
        request = time + self.of.store.base
        day = torch.div(request, SECONDS_PER_DAY * per_second, rounding_mode="floor")
        ticks = request - day * (SECONDS_PER_DAY * per_second)
        history = {name: column.index_select(0, pointer).int() for name, column in self.events.items()}
        target = {name: column.index_select(0, rows).int() for name, column in self.candidates.items()}
        if self.category is not None:
            nodes = self.category.index_select(0, pointer).long()
            history |= {name: level.index_select(0, nodes) for name, level in self.levels.items()}
        if self.node is not None:
            nodes = self.node.index_select(0, rows).long()
            target |= {name: level.index_select(0, nodes) for name, level in self.own_levels.items()}
        labels = self._columns(self.labels, rows)
        return Batch(
            offsets=bounds,
            history=history,
            age=(age if per_second == 1 else age.double() / per_second).float(),
            rank=(repeated(end_at) - pointer).int(),
            target=target,
            calendar=torch.stack([ticks // (3600 * per_second), (day + 3) % 7], 1),
            statistics=self._columns(self.statistics, rows),
            labels=labels.masked_fill(labels < 0, torch.nan),
            user=self.user.index_select(0, rows).long(),
            sharing=None if of is None else Sharing(of, reading.total),
        )

    def _columns(self, columns: list[Tensor], rows: Tensor) -> Tensor:
        """float32 [B, columns]."""
        found = [column.index_select(0, rows).float() for column in columns]
        return torch.stack(found, 1) if found else torch.empty(len(rows), 0, device=self.device)


def resident_bytes(assembler: Assembler) -> int:
    """What the columns of a split take, those of the events included."""
    of = assembler
    columns: list[Any] = [of.event_time, of.user, of.time, *of.labels, *of.statistics]
    columns += [*of.event_columns.values(), *of.sample_columns.values()]
    columns += [column for column in (of.event_category, of.sample_category) if column is not None]
    return sum(column.nbytes for column in columns)
