"""Ragged attention without ever writing [behaviours, width]: one trilinear form and its three partial derivatives.

A batch of B samples has N behaviours in all; behaviour i belongs to sample row_i and names row id_i of a table
T [R, d]. Everything that target attention needs of such a field is in

    L(T, q, w) = Σ_i w_i ⟨T[id_i], q[row_i]⟩

  dot    ∂L/∂w  [N]     scores of the behaviours under a query per sample
  pool   ∂L/∂q  [B, d]  weighted sum of the behaviours of each sample
  spread ∂L/∂T  [R, d]  the gradient that the table receives

so the backward pass of each is made of the other two. Three ways to compute them:

  small      R is not larger than a few mean lengths: work on [B, R] with one matrix product (time buckets, scenarios,
             upper category levels); N enters only as scalars.
  compiled   CPU: sampled matrix product (dot) and embedding bags (pool, spread) read each row from the table once and
             keep the sums in registers. spread sorts the ids once per batch and field, shared by all layers.
  reference  plain gathers; any device; the oracle of the tests.
  own        row i of the table is behaviour i's: gathered before, nothing to look up.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

# torch says once a process that sparse tensors are new and, in 2.11, that it does not check them
warnings.filterwarnings("ignore", message="Sparse (CSR tensor support is in beta|invariant checks are implicitly)")


CHUNK = 512  # behaviours of one sample that one program of a GPU works on

FEW = 64  # rows of a table that is small where shapes are fixed, whatever the batch

_preferred = "auto"
_fixed = False


def prefer(kernels: str) -> None:
    """What this process uses from now on: `auto`, `compiled` (`small` only where it must) or `eager` (reference);
    `triton` is `fused`'s, and `auto` for what that does not do."""
    global _preferred
    _preferred = kernels


def preferred() -> str:
    """What was asked for, see `prefer`."""
    return _preferred


@contextmanager
def fixed_shapes() -> Iterator[None]:
    """Inside, nothing depends on the values of a batch but values: no size, and no way to compute. What is exported or
    captured works so."""
    global _fixed
    before, _fixed = _fixed, True
    try:
        yield
    finally:
        _fixed = before


def shapes_are_fixed() -> bool:
    """Whether this process works inside `fixed_shapes`."""
    return _fixed


class Segments:
    """Which behaviour belongs to which sample: offsets int64 [B + 1], sample b owns offsets[b]:offsets[b + 1]."""

    def __init__(self, offsets: Tensor, total: int | None = None) -> None:
        self.offsets = offsets
        self.size = offsets.numel() - 1
        self.total = int(offsets[-1]) if total is None else total

    @cached_property
    def lengths(self) -> Tensor:
        return self.offsets.diff()

    @cached_property
    def row(self) -> Tensor:
        """int64 [N]: the sample of each behaviour."""
        samples = torch.arange(self.size, device=self.offsets.device)
        return torch.repeat_interleave(samples, self.lengths, output_size=self.total)

    @cached_property
    def reads(self) -> Reads:
        """Every sample reads its own history."""
        return Reads(self)

    def each(self, values: Tensor) -> Tensor:
        """What is known of the behaviours that lie there [M, …], for those that every sample reads [N, …]."""
        return values

    def lies(self, place: Tensor) -> Tensor:
        """Which behaviour of those that lie there each is, of some of those read: int64 [n] -> [n]."""
        return place


class Shared(Segments):
    """The same where samples read histories that they share: N = what all of them read together, M = what lies there.

    Args:
        histories: G of them, M behaviours.
        of: int64 [B], the history of each sample, in ascending order.
        total: N.
    """

    def __init__(self, histories: Segments, of: Tensor, total: int) -> None:
        lengths = histories.lengths.index_select(0, of)
        super().__init__(torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]), total)
        self.histories, self.of = histories, of

    @cached_property
    def apart(self) -> Segments:
        """As if every sample had a history of its own."""
        return Segments(self.offsets, self.total)

    @cached_property
    def place(self) -> Tensor:
        """int64 [N]: which behaviour each of those read is, of those that lie there."""
        first = self.histories.offsets[:-1].index_select(0, self.of) - self.offsets[:-1]
        return first.index_select(0, self.row) + torch.arange(self.total, device=first.device)

    @cached_property
    def reads(self) -> Reads:
        return Reads(self.histories, self.of, self.total)

    def each(self, values: Tensor) -> Tensor:
        return values.index_select(0, self.place)

    def lies(self, place: Tensor) -> Tensor:
        return self.place.index_select(0, place)


class Reads:
    """Which behaviours each of S samples reads, cut into chunks of a bounded number, as programs of a GPU do them.

    Args:
        segments: histories.
        of: int64 [S], the history of each sample, of which several may read the same; None = sample s reads history s.
        total: how many behaviours all samples read together, wanted with `of`; their scores lie sample by sample.
    """

    def __init__(self, segments: Segments, of: Tensor | None = None, total: int | None = None) -> None:
        self.begin, self.until = segments.offsets[:-1], segments.offsets[1:]
        self.lies, self.size, self.total, self.own = self.begin, segments.size, segments.total, of is None
        if of is not None:
            self.begin, self.until = self.begin.index_select(0, of), self.until.index_select(0, of)
            lengths = self.until - self.begin
            self.lies, self.size = lengths.cumsum(0) - lengths, of.numel()
            self.total = int(lengths.sum()) if total is None else total

    @cached_property
    def chunks(self) -> tuple[Tensor, Tensor, Tensor, int]:
        """(sample of each chunk [G], first chunk [S] and number of chunks [S] of each sample, G). G is known without
        asking the device, so that the last chunks may have nothing to do."""
        count = ((self.until - self.begin + CHUNK - 1) // CHUNK).clamp_(min=1)
        ends = count.cumsum(0)
        chunks = self.size + self.total // CHUNK
        every = torch.arange(chunks, device=ends.device)
        return torch.searchsorted(ends, every, right=True).clamp_(max=self.size - 1), ends - count, count, chunks


class Occurrences:
    """Where the rows of one table occur in ragged histories.

    Args:
        ids: int64 [N], rows of a table with `rows` rows.
        segments: whose behaviours they are.
    """

    def __init__(self, ids: Tensor, rows: int, segments: Segments, method: str = "auto") -> None:
        self.ids, self.rows, self.segments = ids, rows, segments
        self.method = _choose(rows, segments, ids) if method == "auto" else method

    @property
    def apart(self) -> Occurrences:
        """The same where every sample has a history of its own."""
        return self._apart if isinstance(self.segments, Shared) else self

    @cached_property
    def _apart(self) -> Occurrences:
        shared = cast(Shared, self.segments)
        if self.method == "own":  # row i of the table is behaviour i's, of those that lie there
            return Occurrences(shared.place, self.rows, shared.apart, "reference")
        return Occurrences(shared.each(self.ids), self.rows, shared.apart, self.method)

    @cached_property
    def cell(self) -> Tensor:
        """int64 [N]: position of (sample, id) in a flattened [B, R]."""
        return self.segments.row * self.rows + self.ids

    @cached_property
    def grouped(self) -> tuple[Tensor, Tensor, Tensor]:
        """(present rows [U], start of each row's group [U], behaviours in group order [N]) by a stable sort."""
        narrow = self.ids.to(torch.int16 if self.rows < 1 << 15 else torch.int32)
        ordered, order = torch.sort(narrow, stable=True)
        present, counts = torch.unique_consecutive(ordered, return_counts=True)
        starts = counts.cumsum(0) - counts
        return present.long(), starts, order

    @cached_property
    def by_row(self) -> tuple[Tensor, Segments]:
        """(behaviours row of the table by row of the table, where those of each row lie): unlike `grouped`, without
        asking the device how many rows occur."""
        ordered, order = torch.sort(self.ids.to(torch.int32), stable=True)
        rows = torch.arange(self.rows + 1, dtype=torch.int32, device=ordered.device)
        return order, Segments(torch.searchsorted(ordered, rows), self.ids.numel())


@dataclass(frozen=True)
class Part:
    """One embedded property of the behaviours: behaviour i shows row `at.ids[i]` of table [R, d]."""

    table: Tensor
    at: Occurrences


def _choose(rows: int, segments: Segments, ids: Tensor) -> str:
    """`small` where [B, R] is no larger than a few times the batch; the sampled product also needs N <= B R."""
    if _fixed:
        return "small" if rows <= FEW else "reference"
    if _preferred == "eager":
        return "reference"
    few = segments.total - 1 if _preferred == "compiled" else 4 * segments.total + 1024
    if rows * segments.size <= few:
        return "small"
    return "reference" if ids.is_cuda else "compiled"


def _dot(table: Tensor, query: Tensor, at: Occurrences) -> Tensor:
    if at.method == "small":
        return (query @ table.t()).view(-1).index_select(0, at.cell)
    if at.method == "compiled":
        segments = at.segments
        pattern = torch.sparse_csr_tensor(
            segments.offsets,
            at.ids,
            torch.zeros(segments.total, dtype=table.dtype),
            (segments.size, at.rows),
            check_invariants=False,
        )
        return torch.sparse.sampled_addmm(pattern, query.contiguous(), table.t(), beta=0.0).values()
    return (_rows(table, at) * query.index_select(0, at.segments.row)).sum(-1)


def _rows(table: Tensor, at: Occurrences) -> Tensor:
    """T[id_i] of every behaviour, [N, d]."""
    return table[: at.ids.numel()] if at.method == "own" else table.index_select(0, at.ids)


def _pool(table: Tensor, weight: Tensor, at: Occurrences, cells: Tensor | None = None) -> Tensor:
    if at.method == "small":
        return (_cells(weight, at) if cells is None else cells) @ table
    if at.method == "compiled":
        starts = at.segments.offsets[:-1]
        return F.embedding_bag(at.ids, table, starts, mode="sum", per_sample_weights=weight.contiguous())
    out = table.new_zeros(at.segments.size, table.shape[1])
    return out.index_add_(0, at.segments.row, _rows(table, at) * weight.unsqueeze(1))


def _spread(query: Tensor, weight: Tensor, at: Occurrences, cells: Tensor | None = None) -> Tensor:
    if at.method == "small":
        return (_cells(weight, at) if cells is None else cells).t() @ query
    out = query.new_zeros(at.rows, query.shape[1])
    if at.method == "compiled":
        present, starts, order = at.grouped
        row, weight = at.segments.row.index_select(0, order), weight.index_select(0, order)
        sums = F.embedding_bag(row, query.contiguous(), starts, mode="sum", per_sample_weights=weight)
        return out.index_copy_(0, present, sums)
    return out.index_add_(0, at.ids, query.index_select(0, at.segments.row) * weight.unsqueeze(1))


def _cells(weight: Tensor, at: Occurrences) -> Tensor:
    """[B, R]: the summed weight of each (sample, id). `pool` and `spread` under the same weights share it."""
    flat = weight.new_zeros(at.segments.size * at.rows).scatter_add_(0, at.cell, weight)
    return flat.view(at.segments.size, at.rows)


class _Dot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, query: Tensor, at: Occurrences) -> Tensor:
        ctx.save_for_backward(table, query)
        ctx.at = at
        return _dot(table, query, at)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        table, query = ctx.saved_tensors
        cells = _cells(grad, ctx.at) if ctx.at.method == "small" else None
        for_table = _spread(query, grad, ctx.at, cells) if ctx.needs_input_grad[0] else None
        for_query = _pool(table, grad, ctx.at, cells) if ctx.needs_input_grad[1] else None
        return for_table, for_query, None


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, weight: Tensor, at: Occurrences) -> Tensor:
        cells = _cells(weight, at) if at.method == "small" else None
        ctx.save_for_backward(table, weight if cells is None else cells)
        ctx.at = at
        return _pool(table, weight, at, cells)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        table, weight = ctx.saved_tensors
        cells = weight if ctx.at.method == "small" else None
        for_table = _spread(grad, weight, ctx.at, cells) if ctx.needs_input_grad[0] else None
        for_weight = _dot(table, grad, ctx.at) if ctx.needs_input_grad[1] else None
        return for_table, for_weight, None


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, at: Occurrences) -> Tensor:
        ctx.at = at
        return F.embedding(at.ids, table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        at = ctx.at
        out = grad.new_zeros(at.rows, grad.shape[1])
        if grad.is_cuda or at.method == "reference":
            return out.index_add_(0, at.ids, grad), None
        present, starts, order = at.grouped
        return out.index_copy_(0, present, F.embedding_bag(order, grad.contiguous(), starts, mode="sum")), None


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, segments: Segments) -> Tensor:
        row = segments.row
        top = logits.new_full((segments.size,), -torch.inf).scatter_reduce_(0, row, logits, "amax")
        weight = (logits - top.index_select(0, row)).exp_()
        total = weight.new_zeros(segments.size).scatter_add_(0, row, weight)
        weight /= total.index_select(0, row)
        ctx.save_for_backward(weight)
        ctx.segments = segments
        return weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        row = ctx.segments.row
        share = weight * grad
        total = share.new_zeros(ctx.segments.size).scatter_add_(0, row, share)
        return share - weight * total.index_select(0, row), None


def _exact(tensor: Tensor) -> Any:
    """Sums over long histories are taken in fp32, whatever the dense layers use."""
    return torch.autocast(tensor.device.type, enabled=False)


def full(tensor: Tensor) -> Tensor:
    """At least float32: what comes out of a dense layer may be narrower."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def dot(table: Tensor, query: Tensor, at: Occurrences) -> Tensor:
    """⟨T[id_i], q[row_i]⟩ for every behaviour: table [R, d], query [B, d] -> [N]."""
    with _exact(table):
        return _Dot.apply(full(table), full(query), at.apart)


def pool(table: Tensor, weight: Tensor, at: Occurrences) -> Tensor:
    """Σ_{i of b} w_i T[id_i] for every sample: table [R, d], weight [N] -> [B, d]; zero for an empty history."""
    with _exact(table):
        return _Pool.apply(full(table), full(weight), at.apart)


def take(table: Tensor, at: Occurrences) -> Tensor:
    """T[id_i] of every behaviour that lies there, written out: [M, d]; for models that need each position (DIN)."""
    if at.method == "own":
        return _rows(table, at)
    return _Take.apply(table, at)


def softmax(logits: Tensor, segments: Segments) -> Tensor:
    """Softmax over the behaviours of each sample: [N] -> [N]."""
    with _exact(logits):
        return _Softmax.apply(full(logits), segments)


def segment_sum(values: Tensor, segments: Segments) -> Tensor:
    """Sum over the behaviours of each sample: [N, k] -> [B, k]."""
    if values.is_cuda or values.requires_grad or _fixed:
        return values.new_zeros(segments.size, values.shape[1]).index_add_(0, segments.row, values)
    every = torch.arange(segments.total)
    return F.embedding_bag(every, values.contiguous(), segments.offsets[:-1], mode="sum")
