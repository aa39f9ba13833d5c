"""Target attention over ragged histories as one operation that never writes [behaviours, width].

Behaviour i of sample s is the sum of what it carries: ẽ_i has the rows of its fields side by side, plus rows of tables
that span the whole width (places in time). For every head h

    α_i = softmax_i(⟨ẽᴷ_i, q_h⟩ + bias_hi),    found_h = Σ_i α_i ẽⱽ_i

where keys ẽᴷ and values ẽⱽ are the same, or have tables of their own (decoupled attention, DARE). Softmax runs online
and the backward pass computes α again from one log-sum-exp per sample and head (FlashAttention, arXiv 2205.14135), here
for gathered rows and a query of length one.

Small tables are multiplied out first: q_h Tᵀ [S, H, R] before, weights summed by row [S, H, R] times T after. Behaviours
then carry a *mark*, a one-hot row that need not be read, and the gradient of a table that everybody carries (32 time
buckets) is a matrix product instead of N · width additions to the same few rows.

What must move, in bytes, for N behaviours with F gathered fields of width d, K marks, H heads, b bytes a number:

    forward    N (F (8 + b d) + 8 K + 4 H [bias])           each row once, whatever the number of heads
    backward   the same, and N (4 F d [additions to rows] + 8 H [bias])
    unfused    N H (F (8 + 3 b d) + …): every step of every head reads and writes N numbers, the gathers N d

Rows that histories share come from the L2 cache; so does a history that several samples read (`Reads`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from lsm_cli.kernels.ragged import Segments

FEW = 64  # rows of a table that is multiplied out, at least; else up to twice its width
CHUNK = 512  # behaviours per program
TILE = 8192  # numbers in the largest product of a block: what 4 warps hold in registers


@lru_cache
def available(device: str = "cuda") -> bool:
    """Whether Triton runs on this type of device: compiled on a GPU, by its interpreter on the CPU."""
    try:
        import triton
    except ImportError:
        return False
    return (device == "cuda" and torch.cuda.is_available()) or bool(triton.knobs.runtime.interpret)


class Reads:
    """Which behaviours each sample reads, cut into chunks of a bounded number of them.

    Args:
        segments: histories.
        of: int64 [S], the history of each sample, of which several may read the same; None = sample s reads history s.
        total: how many behaviours all samples read, needed with `of`; their scores lie sample by sample.
    """

    def __init__(self, segments: Segments, of: Tensor | None = None, total: int | None = None) -> None:
        self.segments = segments
        self.begin, self.until = segments.offsets[:-1], segments.offsets[1:]
        self.size, self.total = segments.size, segments.total
        self.lies = self.begin
        if of is not None:
            self.begin, self.until = self.begin.index_select(0, of), self.until.index_select(0, of)
            self.size = of.numel()
            lengths = self.until - self.begin
            self.lies = lengths.cumsum(0) - lengths
            self.total = int(lengths.sum()) if total is None else total

    @cached_property
    def chunks(self) -> tuple[Tensor, Tensor, Tensor, int]:
        """(sample of each chunk [G], first chunk and number of chunks of each sample [S], G); some of G may be idle,
        so that it is known without asking the device."""
        count = ((self.until - self.begin + CHUNK - 1) // CHUNK).clamp_(min=1)
        ends = count.cumsum(0)
        chunks = self.size + self.total // CHUNK
        every = torch.arange(chunks, device=ends.device)
        return torch.searchsorted(ends, every, right=True).clamp_(max=self.size - 1), ends - count, count, chunks


@dataclass(frozen=True)
class Carried:
    """One table [R, d] and the row of it that each behaviour carries: ids, any integer type [N]."""

    table: Tensor
    ids: Tensor

    @property
    def small(self) -> bool:
        return self.table.shape[0] <= max(FEW, 2 * self.table.shape[1])


@dataclass(frozen=True)
class Side:
    """Keys or values: the tables of the fields, side by side, and those that are added."""

    fields: Sequence[Carried]
    added: Sequence[Carried]

    @property
    def width(self) -> int:
        return sum(part.table.shape[1] for part in self.fields)

    @property
    def slices(self) -> list[tuple[Carried, slice | None]]:
        """Every table with its columns; None = all of them."""
        found: list[tuple[Carried, slice | None]] = []
        start = 0
        for part in self.fields:
            found.append((part, slice(start, start + part.table.shape[1])))
            start += part.table.shape[1]
        return found + [(part, None) for part in self.added]

    @property
    def gathered(self) -> list[Carried]:
        return [part for part, _ in self.slices if not part.small]

    @property
    def marked(self) -> list[Carried]:
        return [part for part, _ in self.slices if part.small]

    def asks(self, for_fields: Tensor, for_added: Tensor) -> Tensor:
        """Queries [S, H, width] -> what each column is multiplied with, [S, H, columns]: gathered, then marks."""
        rows, marks = [], []
        for part, at in self.slices:
            query = for_added if at is None else for_fields[..., at]
            if part.small:
                marks.append(query @ part.table.float().t())
            else:
                rows.append(query)
        return torch.cat(rows + marks, 2)

    def whole(self, found: Tensor) -> Tensor:
        """The weighted sums of all columns [S, H, columns] -> of ẽ, [S, H, width]."""
        sizes = [part.table.shape[1] for part in self.gathered] + [part.table.shape[0] for part in self.marked]
        pieces = found.split(sizes, 2)
        rows, marks = iter(pieces[: len(self.gathered)]), iter(pieces[len(self.gathered) :])
        fields, added = [], []
        for part, at in self.slices:
            piece = next(marks) @ part.table.float() if part.small else next(rows)
            (added if at is None else fields).append(piece)
        total = torch.cat(fields, 2)
        for piece in added:
            total = total + piece
        return total


def attend(
    keys: Side,
    for_fields: Tensor,
    for_added: Tensor,
    reads: Reads,
    bias: Tensor | None = None,
    values: Side | None = None,
) -> Tensor:
    """What every head finds in the history of every sample.

    Args:
        keys: what attention goes by; tables in fp32, bf16 or fp16. All sums are taken in fp32.
        for_fields, for_added: what the fields and what is added are multiplied with, [S, H, width of the keys]; the
            scale of the logits is in them.
        bias: [H, total], added to the logits.
        values: what is found; None = the keys.

    Returns:
        float32 [S, H, width of the values]; zero for an empty history.
    """
    given = values or keys
    if not reads.size:
        return for_fields.new_zeros(0, for_fields.shape[1], given.width)
    with torch.autocast(for_fields.device.type, enabled=False):
        asked = keys.asks(for_fields.float(), for_added.float())
        call = _Call.of(keys, values, reads, asked)
        sides = [keys] if values is None else [keys, values]
        tables = [part.table for side in sides for part in side.gathered]
        return given.whole(_Attend.apply(asked, None if bias is None else bias.float(), call, *tables))


@torch.no_grad()
def scores(keys: Side, for_fields: Tensor, for_added: Tensor, reads: Reads, bias: Tensor | None = None) -> Tensor:
    """The logits that `attend` goes by, to search with: float32 [H, total]."""
    found = for_fields.new_empty(for_fields.shape[1], reads.total, dtype=torch.float32)
    if reads.total:
        asked = keys.asks(for_fields.float(), for_added.float())
        call = _Call.of(keys, None, reads, asked)
        call.score(asked, bias, [part.table for part in keys.gathered], found)
    return found


@dataclass(frozen=True)
class _Columns:
    """Where the columns of one side lie, for kernels that are compiled for it.

    Attributes:
        at, dims, pads: first column, number of columns and the power of two above, for gathered tables, then marks.
        ids, marks: [N] for each gathered table and each small one.
    """

    at: tuple[int, ...]
    dims: tuple[int, ...]
    pads: tuple[int, ...]
    ids: tuple[Tensor, ...]
    marks: tuple[Tensor, ...]

    @classmethod
    def of(cls, side: Side) -> _Columns:
        dims = [part.table.shape[1] for part in side.gathered] + [part.table.shape[0] for part in side.marked]
        at = [sum(dims[:part]) for part in range(len(dims))]
        ids, marks = ([part.ids.contiguous() for part in kind] for kind in (side.gathered, side.marked))
        return cls(tuple(at), tuple(dims), tuple(map(_power, dims)), tuple(ids), tuple(marks))

    @property
    def all(self) -> int:
        return sum(self.dims)

    def constants(self, letter: str, tables: Sequence[Tensor]) -> dict[str, Any]:
        found = {"AT": self.at, "DIMS": self.dims, "PADS": self.pads, "ALL": self.all}
        found["STRIDES"] = tuple(table.stride(0) for table in tables)
        return {f"{letter}_{name}": value for name, value in found.items()}


@dataclass(frozen=True)
class _Call:
    """One attention over one batch, forward and backward."""

    keys: _Columns
    values: _Columns | None
    reads: Reads
    heads: int

    @classmethod
    def of(cls, keys: Side, values: Side | None, reads: Reads, asked: Tensor) -> _Call:
        return cls(_Columns.of(keys), _Columns.of(values) if values else None, reads, asked.shape[1])

    @property
    def given(self) -> _Columns:
        return self.values or self.keys

    def arguments(self, asked: Tensor, bias: Tensor | None, tables: Sequence[Tensor]) -> tuple[Any, ...]:
        """What all kernels begin with."""
        keys, given, reads = self.keys, self.given, self.reads
        owner, first, _, _ = reads.chunks
        k_tables, v_tables = self.split(tables)
        return (
            asked, asked if bias is None else bias, k_tables, keys.ids, keys.marks, v_tables, given.ids, given.marks,
            owner, first, reads.begin, reads.until, reads.lies, reads.total,
        )  # fmt: skip

    def constants(self, bias: Tensor | None, tables: Sequence[Tensor]) -> dict[str, Any]:
        k_tables, v_tables = self.split(tables)
        columns = self.heads * max(sum(self.keys.pads), sum(self.given.pads))
        return {
            **self.keys.constants("K", k_tables),
            **self.given.constants("V", v_tables),
            "H": self.heads,
            "SHARED": self.values is None,
            "BIASED": bias is not None,
            "CHUNK": CHUNK,
            "BLOCK": min(64, max(8, TILE // _power(columns))),
        }

    def split(self, tables: Sequence[Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """The tables of the keys and of the values."""
        cut = len(self.keys.ids)
        return tuple(tables[:cut]), tuple(tables if self.values is None else tables[cut:])

    def forward(self, asked: Tensor, bias: Tensor | None, tables: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Weighted sums of all columns [S, H, V_ALL] and the log-sum-exp [S, H]."""
        from lsm_cli.kernels import triton_ragged as kernels

        chunks, all_columns = self.reads.chunks[3], self.given.all
        parts = asked.new_empty(chunks, self.heads, all_columns)
        sizes = asked.new_empty(chunks, self.heads)
        kernels.forward[(chunks,)](
            *self.arguments(asked, bias, tables), parts, sizes, **self.constants(bias, tables)
        )  # fmt: skip
        return self.join(parts, sizes)

    def backward(
        self, asked: Tensor, bias: Tensor | None, tables: Sequence[Tensor], found: Tensor, logsum: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Gradients of `asked`, of the logits [H, total] and of the tables, in fp32."""
        from lsm_cli.kernels import triton_ragged as kernels

        chunks = self.reads.chunks[3]
        delta = (grad * found).sum(2)
        parts = asked.new_empty(chunks, self.heads, self.keys.all)
        keep = bias is not None
        slope = asked.new_empty(self.heads, self.reads.total if keep else 0)
        sums = [torch.zeros(table.shape, dtype=torch.float32, device=table.device) for table in tables]
        kernels.backward[(chunks,)](
            *self.arguments(asked, bias, tables), grad, logsum, delta, *self.split(sums), slope, slope, parts,
            **self.constants(bias, tables), SPREAD=True, KEEP=keep,
        )  # fmt: skip
        return self.join(parts, None)[0], slope, sums

    def join(self, parts: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
        """Chunks to samples: [G, H, columns] -> [S, H, columns] and, of means with log-sum-exp `sizes`, its [S, H]."""
        from lsm_cli.kernels import triton_ragged as kernels

        _, first, count, _ = self.reads.chunks
        shape = (self.reads.size, self.heads)
        out, logsum = parts.new_empty(*shape, parts.shape[2]), parts.new_empty(shape)
        block = min(1024, _power(parts.shape[2]))
        kernels.join[(*shape, -(-parts.shape[2] // block))](
            parts, parts if sizes is None else sizes, first, count, out, logsum,
            self.heads, parts.shape[2], sizes is not None, block,
        )  # fmt: skip
        return out, logsum


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, asked: Tensor, bias: Tensor | None, call: _Call, *tables: Tensor) -> Tensor:
        rows = [table if table.stride(1) == 1 else table.contiguous() for table in tables]
        bias = None if bias is None else bias.contiguous()
        found, logsum = call.forward(asked, bias, rows)
        ctx.call, ctx.biased = call, bias is not None
        ctx.save_for_backward(asked, found, logsum, *([] if bias is None else [bias]), *rows)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        asked, found, logsum, *rest = ctx.saved_tensors
        bias, tables = (rest[0], rest[1:]) if ctx.biased else (None, rest)
        for_asked, slope, sums = ctx.call.backward(asked, bias, tables, found, logsum, grad.contiguous())
        sums = [total.to(table.dtype) for total, table in zip(sums, tables, strict=True)]
        return for_asked, slope if ctx.biased else None, None, *sums


def _power(number: int) -> int:
    """The smallest power of two that is not smaller."""
    return 1 << max(number - 1, 0).bit_length()
