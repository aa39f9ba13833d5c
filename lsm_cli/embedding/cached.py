"""A table larger than the device: whole in host memory or in a file, its most used rows on the device.

The cache is a small table: weights and optimiser state of some rows, on the device, which optimisers move by slot as
they would move rows of a whole table. So a step does the same arithmetic on the same numbers wherever a row lies, and
its results are those of the whole table to the bit (but for bf16 tables under Triton whose steps do not fit the cache,
where rounding by chance draws other chances). Rows that a step changed are written back when they make room for others
and when the whole table is asked for, as by a checkpoint; a table that is only read writes nothing.

Rows of coming batches are brought ahead on the thread that makes batches (`expect`), on a GPU on a stream of their own.
What must never happen there is that a row is read from its home, then brought in, moved and written back by the step
under way, and then overwritten by what was read. So if anything was written to the home meanwhile, rows are read once
more, while steps wait; and rows for which there is no room are left to be brought when they are asked for.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lsm_cli.embedding.optimizer import RowOptimizer
from lsm_cli.embedding.slots import Slots
from lsm_cli.embedding.tables import Place, Rows, Table
from lsm_cli.embedding.tiers import Counts, Tier


class CachedTable(Table):
    """See `Table`.

    Args:
        optimizer: of the cache: it has as many rows as the cache.
        tier: where the whole table lies.

    Attributes:
        size: rows that the cache holds.
        cache: [size, dim], the rows on the device. There is no `weight`: who wants the whole asks for the `state_dict`.
        homes: the whole table, and the whole of each buffer of its optimiser: [rows, …].
        dirty, early: bool [size], slots that a step changed, and slots brought ahead and not used yet.
        counts: of reads that learn (True), and of others.
    """

    cache: Tensor

    def __init__(
        self,
        rows: int,
        dim: int,
        std: float,
        seed: int,
        dtype: torch.dtype,
        optimizer: RowOptimizer,
        tier: Tier,
    ) -> None:
        super().__init__(rows, dim, std, seed, dtype, whole=False)
        self.tier, self.size = tier, tier.held(rows)
        self.register_buffer("cache", torch.zeros(self.size, dim, dtype=dtype), persistent=False)
        self.optimizer = (optimizer,)  # the bank's
        names = [name for name, _ in optimizer.named_buffers()]
        self.homes = [tier.room((rows, dim), dtype)]
        self.homes += [tier.room((rows, *state.shape[1:]), state.dtype) for state in optimizer.buffers()]
        _keeps_whole(self, self, {"weight": self.homes[0]})
        _keeps_whole(optimizer, self, dict(zip(names, self.homes[1:], strict=True)))
        self.slots = Slots(rows, self.size)
        self.dirty, self.early = torch.zeros(self.size, dtype=torch.bool), torch.zeros(self.size, dtype=torch.bool)
        self.turn = threading.RLock()
        self.expects = False  # whether rows are brought ahead
        self.writes = 0  # times that the homes were written to
        self.stream: Any = None  # for rows brought ahead
        self.touched: Any = None  # when the device is done with the latest use of the cache
        self.counts = {True: Counts(), False: Counts()}
        self._first(self.homes[0])

    @property
    def nbytes(self) -> int:
        """Bytes of the whole table and the state of its optimiser."""
        return sum(home.nbytes for home in self.homes)

    # what a step does

    @torch.no_grad()
    def read(self, index: Tensor, learns: bool) -> tuple[Tensor, Place | None]:
        rows, counts = index.cpu(), self.counts[learns]
        with self._uses():
            counts.asked += len(rows)
            if len(rows) <= self.size:
                slots = self._present(rows, counts)
                at = slots.to(self.cache.device, non_blocking=True)
                return self.cache.index_select(0, at), Place(rows, slots, at)
            counts.pieces += 1
            return self._through(rows, counts), None

    @torch.no_grad()
    def update(self, rows: Rows, optimizer: RowOptimizer, lr: float) -> None:
        grad, place = rows.values.grad, rows.place
        if grad is None or not rows.index.numel():
            return
        values = rows.values.detach()
        with self._uses():
            if place is not None and torch.equal(self.slots.find(place.rows), place.slots):
                optimizer.move(self.cache, place.on_device, values, grad, lr)
                self.dirty.index_fill_(0, place.slots, True)
                return
            pieces = (part.split(self.size) for part in (rows.index.cpu(), values, grad))
            for index, value, slope in zip(*pieces, strict=True):
                slots = self._present(index, Counts())
                optimizer.move(self.cache, slots.to(self.cache.device), value, slope, lr)
                self.dirty.index_fill_(0, slots, True)

    def _present(self, rows: Tensor, counts: Counts) -> Tensor:
        """The slots of distinct rows int64 [n], n <= size; those that lack are brought in."""
        self.slots.begin()
        slots = self.slots.find(rows)
        lacking = (slots < 0).nonzero().squeeze(1)
        if len(lacking):
            missing = rows.index_select(0, lacking)
            counts.waited += len(missing)
            self._make_room(len(missing), slots[slots >= 0])
            slots.index_copy_(0, lacking, self._take(missing, self._copies(missing)))
        if self.expects:
            counts.ahead += int(self.early.index_select(0, slots).sum())
            self.early.index_fill_(0, slots, False)
        self.slots.use(slots)
        return slots

    def _through(self, rows: Tensor, counts: Counts) -> Tensor:
        """The values of more rows than the cache holds: those that lack pass it by, and fill what room there is."""
        slots, device = self.slots.find(rows), self.cache.device
        here, lacking = (slots >= 0).nonzero().squeeze(1), (slots < 0).nonzero().squeeze(1)
        counts.waited += len(lacking)
        missing = rows.index_select(0, lacking)
        copies = self._copies(missing)
        found = self.cache.new_empty(len(rows), self.dim)
        found.index_copy_(0, here.to(device), self.cache.index_select(0, slots[here].to(device)))
        found.index_copy_(0, lacking.to(device), copies[0])
        fits = min(len(self.slots.spare), len(missing))
        self._take(missing[:fits], [copy[:fits] for copy in copies])
        return found

    # rows of coming batches

    @torch.no_grad()
    def expect(self, ids: Tensor, ahead: int) -> None:
        """Bring rows that will be asked for, on another thread than the steps'; or some, or none of them.

        Args:
            ids: int64 [n] on the host, rows of the table, any number of times each.
            ahead: how many reads from now they are wanted.
        """
        with self.turn:
            self.expects = True
            slots = self.slots.find(ids)
            missing, seen = torch.unique(ids[slots < 0]), self.writes
            wanted = slots[slots >= 0]
            self.slots.until.index_fill_(0, wanted, self.slots.now + ahead)
            if not len(missing) or len(missing) > self.size:
                return
            if self.cache.is_cuda and self.stream is None:
                self.stream, self.touched = torch.cuda.Stream(self.cache.device), torch.cuda.Event()
                self.stream.wait_stream(torch.cuda.current_stream(self.cache.device))
        with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            copies = self._copies(missing)
            with self.turn:
                if self.writes != seen:
                    copies = self._copies(missing)
                if self.stream is not None:
                    self.stream.wait_event(self.touched)
                still = (self.slots.find(missing) < 0).nonzero().squeeze(1)
                if self._make_room(len(still), None):
                    at = still.to(self.cache.device)
                    found = self._take(missing[still], [copy.index_select(0, at) for copy in copies], ahead)
                    self.early.index_fill_(0, found, True)

    @contextmanager
    def _uses(self) -> Iterator[None]:
        """A step's turn at the cache; on a GPU after what was brought ahead, and before what will be."""
        with self.turn:
            if self.stream is not None:
                torch.cuda.current_stream(self.cache.device).wait_stream(self.stream)
            yield
            if self.stream is not None:
                self.touched.record()

    # between the cache and the homes

    def _caches(self) -> list[Tensor]:
        """What the device holds of each of `homes`."""
        return [self.cache, *self.optimizer[0].buffers()]

    def _copies(self, rows: Tensor) -> list[Tensor]:
        """Rows int64 [n] of each of the homes, on the device."""
        if not self.cache.is_cuda:
            return [home.index_select(0, rows) for home in self.homes]
        copies = []
        for home in self.homes:
            pinned = torch.empty((len(rows), *home.shape[1:]), dtype=home.dtype, pin_memory=True)
            torch.index_select(home, 0, rows, out=pinned)
            copies.append(pinned.to(self.cache.device, non_blocking=True))
        return copies

    def _make_room(self, count: int, kept: Tensor | None) -> bool:
        """Let go of rows (see `Slots.victims`) until there are slots for `count` more; False = there is no room."""
        lack = count - len(self.slots.spare)
        if lack <= 0:
            return True
        victims = self.slots.victims(lack, kept)
        if len(victims) < lack:
            return False
        self._write_back(victims)
        self.slots.release(victims)
        self.early.index_fill_(0, victims, False)
        return True

    def _take(self, rows: Tensor, copies: list[Tensor], ahead: int = 0) -> Tensor:
        """Put rows [n] into spare slots: int64 [n]."""
        slots = self.slots.take(rows, ahead)
        at = slots.to(self.cache.device)
        for cache, copy in zip(self._caches(), copies, strict=True):
            cache.index_copy_(0, at, copy)
        return slots

    def _write_back(self, slots: Tensor) -> None:
        """Write what steps changed of these slots to the homes."""
        changed = slots[self.dirty.index_select(0, slots)]
        if not len(changed):
            return
        rows, at = self.slots.row.index_select(0, changed), changed.to(self.cache.device)
        for cache, home in zip(self._caches(), self.homes, strict=True):
            home.index_copy_(0, rows, cache.index_select(0, at).cpu())
        self.dirty.index_fill_(0, changed, False)
        self.writes += 1
        self.counts[True].written += len(changed)

    # the whole table

    @torch.no_grad()
    def flush(self) -> None:
        """Make the homes hold what the cache holds."""
        with self._uses():
            self._write_back(self.dirty.nonzero().squeeze(1))

    @torch.no_grad()
    def reset(self) -> None:
        with self._uses():
            self.forget()
            self._first(self.homes[0])
            for state in self.homes[1:]:
                state.zero_()

    def forget(self) -> None:
        """The homes were written to: what the cache holds no longer counts."""
        with self._uses():
            self.writes += 1
            self.slots.clear()
            self.dirty.zero_()
            self.early.zero_()


def _keeps_whole(module: nn.Module, table: CachedTable, homes: dict[str, Tensor]) -> None:
    """Make the `state_dict` of a module hold whole tables in place of what a cache holds of them.

    Args:
        homes: buffer of the module -> the whole of it.
    """
    owner = weakref.proxy(table)  # a cycle would keep memory until Python looks for cycles

    def saved(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        owner.flush()
        state.update({prefix + name: home for name, home in homes.items()})

    def loads(
        module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: list[str],
        unexpected: list[str], errors: list[str],
    ) -> None:  # fmt: skip
        for name, home in homes.items():
            held, given = getattr(module, name, None), state.pop(prefix + name, None)
            if given is None:
                missing += [prefix + name] if held is None else []
                continue
            if held is not None:
                state[prefix + name] = held  # onto itself: what the device holds is filled as rows are asked for
            if given.shape != home.shape:
                errors.append(f"{prefix}{name}: has the shape {tuple(given.shape)}, not {tuple(home.shape)}")
                continue
            owner.flush()
            home.copy_(given)
            owner.forget()

    module.register_state_dict_post_hook(saved)
    module.register_load_state_dict_pre_hook(loads)
