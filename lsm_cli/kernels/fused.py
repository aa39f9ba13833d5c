"""Target attention over ragged histories as one operation that never writes [behaviours, width].

Behaviour i of sample s is the sum of what it carries: ẽ_i has the rows of its fields side by side, plus rows of tables
that span the whole width (places in time). For every head h

    α_i = softmax_i(⟨ẽᴷ_i, q_h⟩ + bias_hi),    found_h = Σ_i α_i ẽⱽ_i

where keys ẽᴷ and values ẽⱽ are the same, or have tables of their own (decoupled attention, DARE). Softmax runs online
and the backward pass computes α again from one log-sum-exp per sample and head (FlashAttention, arXiv 2205.14135), here
for gathered rows and a query of length one.

Small tables are multiplied out: q_h Tᵀ [S, H, R] before, weights summed by row [S, H, R] times T after. Behaviours then
carry a *mark*, a one-hot row that need not be read, and the gradient of a table that everybody carries (32 time
buckets) is a matrix product instead of N · width additions to the same few rows.

What must move, in bytes, for N behaviours with F gathered fields of width d, K marks, H heads, b bytes a number:

    forward    N (F (8 + b d) + 8 K + 4 H [bias])           each row once, whatever the number of heads
    backward   the same, and N (4 F d [additions to rows] + 8 H [bias])
    unfused    N H (F (8 + 3 b d) + …): every step of every head reads and writes N numbers, the gathers N d

Rows that histories share come from the L2 cache; so does a history that several samples read (`Reads`).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lsm_cli.kernels import ragged
from lsm_cli.kernels.ragged import Occurrences, Part, Reads

FEW = 64  # rows of a table that is multiplied out, at least; else up to twice its width
TILE = 8192  # numbers that a block sums, over all heads and columns: what 4 warps hold in registers
WARPS = 4
MOST_HEADS = 8  # kernels are written out head by head


def available(device: str) -> bool:
    """Whether Triton runs on this type of device: compiled on a GPU, on the CPU only in its interpreter."""
    return _installed() and (device == "cuda" or os.environ.get("TRITON_INTERPRET") == "1")


def chosen(device: str) -> bool:
    """Whether attention goes this way: asked for, or left open on a GPU."""
    wanted = ragged.preferred()
    return wanted == "triton" or (wanted == "auto" and device == "cuda" and available(device))


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@dataclass(frozen=True)
class Side:
    """Keys or values: the tables of the fields, side by side, and those that are added."""

    fields: Sequence[Part]
    added: Sequence[Part]

    @property
    def width(self) -> int:
        return sum(part.table.shape[1] for part in self.fields)

    @cached_property
    def slices(self) -> list[tuple[Part, slice | None]]:
        """Every table with its columns; None = all of them."""
        found: list[tuple[Part, slice | None]] = []
        start = 0
        for part in self.fields:
            found.append((part, slice(start, start + part.table.shape[1])))
            start += part.table.shape[1]
        return found + [(part, None) for part in self.added]

    @cached_property
    def gathered(self) -> list[Part]:
        return [part for part, _ in self.slices if not _small(part)]

    @cached_property
    def marked(self) -> list[Part]:
        return [part for part, _ in self.slices if _small(part)]

    def asks(self, for_fields: Tensor, for_added: Tensor) -> Tensor:
        """Queries [S, H, width] -> what each column is multiplied with, [S, H, columns]: gathered, then marks."""
        rows, marks = [], []
        for part, at in self.slices:
            query = for_added if at is None else for_fields[..., at]
            if _small(part):
                marks.append(query @ _multiplied(part).t())
            else:
                rows.append(query)
        return torch.cat(rows + marks, 2)

    def whole(self, found: Tensor) -> Tensor:
        """The weighted sums of all columns [S, H, columns] -> of ẽ, [S, H, width]."""
        sizes = [part.table.shape[1] for part in self.gathered] + [_pad(part.at.rows) for part in self.marked]
        pieces = found.split(sizes, 2)
        rows, marks = iter(pieces[: len(self.gathered)]), iter(pieces[len(self.gathered) :])
        fields: list[Tensor] = []
        added: list[Tensor] = []
        for part, at in self.slices:
            piece = next(marks) @ _multiplied(part) if _small(part) else next(rows)
            (added if at is None else fields).append(piece)
        total = torch.cat(fields, 2)
        for piece in added:
            total = total + piece
        return total


def _small(part: Part) -> bool:
    return part.at.rows <= max(FEW, 2 * part.table.shape[1])


def _multiplied(part: Part) -> Tensor:
    """A small table with rows of zeros up to a power of two, so that few kernels do for all batches."""
    return F.pad(part.table.float(), (0, 0, 0, _pad(part.at.rows) - part.at.rows))


def _pad(rows: int) -> int:
    return max(8, _power(rows))


def _power(number: int) -> int:
    """The smallest power of two that is not smaller."""
    return 1 << max(number - 1, 0).bit_length()


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
        call = _Call(_Columns.of(keys), None if values is None else _Columns.of(values), reads, asked.shape[1])
        sides = [keys] if values is None else [keys, values]
        tables = [part.table for side in sides for part in side.gathered]
        bias = None if bias is None else bias.float().contiguous()
        return given.whole(_Attend.apply(asked, bias, call, *tables))


@torch.no_grad()
def scores(keys: Side, for_fields: Tensor, for_added: Tensor, reads: Reads, bias: Tensor | None = None) -> Tensor:
    """The logits that `attend` goes by, to search with: float32 [H, total]."""
    found = for_fields.new_empty(for_fields.shape[1], reads.total, dtype=torch.float32)
    if reads.total:
        asked = keys.asks(for_fields.float(), for_added.float())
        tables = [_row_major(part.table) for part in keys.gathered]
        _Call(_Columns.of(keys), None, reads, asked.shape[1]).score(asked, bias, tables, found)
    return found


@dataclass(frozen=True)
class _Columns:
    """Where the columns of one side lie, for kernels that are compiled for it: gathered tables, then marks.

    Attributes:
        at, dims, pads: first column, number of columns and the power of two above.
        rows, marks: what behaviours carry of each table.
    """

    at: tuple[int, ...]
    dims: tuple[int, ...]
    pads: tuple[int, ...]
    rows: tuple[Occurrences, ...]
    marks: tuple[Occurrences, ...]

    @classmethod
    def of(cls, side: Side) -> _Columns:
        dims = [part.table.shape[1] for part in side.gathered] + [_pad(part.at.rows) for part in side.marked]
        at = [sum(dims[:part]) for part in range(len(dims))]
        rows, marks = (tuple(part.at for part in kind) for kind in (side.gathered, side.marked))
        return cls(tuple(at), tuple(dims), tuple(map(_power, dims)), rows, marks)

    @property
    def all(self) -> int:
        return sum(self.dims)

    @property
    def ids(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """[N] each, of gathered tables and of small ones."""
        rows, marks = (tuple(at.ids.contiguous() for at in kind) for kind in (self.rows, self.marks))
        return rows, marks

    def constants(self, letter: str, tables: Sequence[Tensor]) -> dict[str, Any]:
        found = {"AT": self.at, "DIMS": self.dims, "PADS": self.pads, "ALL": self.all}
        found["STRIDES"] = tuple(table.stride(0) for table in tables)
        return {f"{letter}_{name}": value for name, value in found.items()}


@dataclass(frozen=True)
class _Call:
    """One attention over one batch: launches the kernels, forward and backward."""

    keys: _Columns
    values: _Columns | None
    reads: Reads
    heads: int

    @property
    def given(self) -> _Columns:
        return self.values or self.keys

    def split(self, tables: Sequence[Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """The tables of the keys and of the values."""
        cut = len(self.keys.rows)
        return tuple(tables[:cut]), tuple(tables if self.values is None else tables[cut:])

    def arguments(self, asked: Tensor, bias: Tensor | None, tables: Sequence[Tensor]) -> tuple[Any, ...]:
        """What all kernels begin with."""
        owner, first, _, _ = self.reads.chunks
        keys, values = self.split(tables)
        sides = (keys, *self.keys.ids, values, *self.given.ids)
        reads = self.reads
        return asked, asked if bias is None else bias, *sides, owner, first, reads.begin, reads.until, reads.lies, (
            reads.total
        )  # fmt: skip

    def constants(self, bias: Tensor | None, tables: Sequence[Tensor]) -> dict[str, Any]:
        """What they are compiled for."""
        keys, values = self.split(tables)
        columns = self.heads * max(sum(self.keys.pads), sum(self.given.pads))
        return {
            **self.keys.constants("K", keys),
            **self.given.constants("V", values),
            "H": self.heads,
            "SHARED": self.values is None,
            "BIASED": bias is not None,
            "CHUNK": ragged.CHUNK,
            "BLOCK": min(64, max(8, TILE // _power(columns))),
            "num_warps": WARPS,
        }

    def score(self, asked: Tensor, bias: Tensor | None, tables: Sequence[Tensor], out: Tensor) -> None:
        """Write the logits, [H, total]."""
        _kernels().score[(self.reads.chunks[3],)](
            *self.arguments(asked, bias, tables), out, **self.constants(bias, tables)
        )

    def forward(self, asked: Tensor, bias: Tensor | None, tables: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Weighted sums of all columns [S, H, V_ALL] and the log-sum-exp [S, H]."""
        chunks = self.reads.chunks[3]
        parts, sizes = asked.new_empty(chunks, self.heads, self.given.all), asked.new_empty(chunks, self.heads)
        _kernels().forward[(chunks,)](
            *self.arguments(asked, bias, tables), parts, sizes, **self.constants(bias, tables)
        )
        return _join(parts, sizes, self.reads)

    def backward(
        self,
        asked: Tensor,
        bias: Tensor | None,
        tables: Sequence[Tensor],
        found: Tensor,
        logsum: Tensor,
        grad: Tensor,
        learn: Sequence[bool],
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """Gradients of `asked`, of the logits [H, total] if there is a bias, and of the tables that learn; in fp32."""
        chunks = self.reads.chunks[3]
        ordered = torch.are_deterministic_algorithms_enabled() and self.reads.own
        keep = ordered or bias is not None
        parts = asked.new_empty(chunks, self.heads, self.keys.all)
        slope = asked.new_empty(self.heads, self.reads.total if keep else 0)
        weights = torch.empty_like(slope) if ordered else slope
        sums: list[Tensor | None] = [None] * len(tables)
        if not ordered:
            sums = [asked.new_zeros(table.shape) if one else None for table, one in zip(tables, learn, strict=True)]
        to_keys, to_values = self.split([asked if one is None else one for one in sums])
        keys_learn, values_learn = self.split(learn)
        _kernels().backward[(chunks,)](
            *self.arguments(asked, bias, tables), grad, logsum, (grad * found).sum(2), to_keys, to_values,
            slope, weights, parts, **self.constants(bias, tables), SPREAD=not ordered, KEEP=keep,
            K_LEARN=keys_learn, V_LEARN=values_learn,
        )  # fmt: skip
        if ordered:
            sums = self.spread(slope, weights, asked, grad, learn)
        return _join(parts, None, self.reads)[0], slope, sums

    def spread(
        self, slope: Tensor, weights: Tensor, asked: Tensor, grad: Tensor, learn: Sequence[bool]
    ) -> list[Tensor | None]:
        """Gradients of the tables, added in the same order every time: a sort of the ids, kept for all layers."""
        shared, found = self.values is None, list[Tensor | None]()
        for side, key, value in ((self.keys, True, shared), (self.given, False, True))[: 1 if shared else 2]:
            for part, at in enumerate(side.rows):
                if not learn[len(found)]:
                    found.append(None)
                    continue
                order, rows = at.by_row
                owner, first, _, chunks = rows.reads.chunks
                parts = asked.new_empty(chunks, 1, side.dims[part])
                _kernels().spread[(chunks,)](
                    order, at.segments.row, slope, weights, asked, grad, owner, first, rows.reads.begin,
                    rows.reads.until, self.reads.total, parts, K_AT=side.at[part], K_ALL=self.keys.all,
                    V_AT=side.at[part], V_ALL=self.given.all, DIM=side.dims[part], PAD=side.pads[part], H=self.heads,
                    KEY=key, VALUE=value, CHUNK=ragged.CHUNK, BLOCK=32,
                )  # fmt: skip
                found.append(_join(parts, None, rows.reads)[0].squeeze(1))
        return found


def _join(parts: Tensor, sizes: Tensor | None, reads: Reads) -> tuple[Tensor, Tensor]:
    """Chunks to samples: [G, H, columns] -> [S, H, columns]; of means with log-sum-exp `sizes`, also its [S, H]."""
    _, first, count, _ = reads.chunks
    _, heads, columns = parts.shape
    out, logsum = parts.new_empty(reads.size, heads, columns), parts.new_empty(reads.size, heads)
    block = min(1024, _power(columns))
    _kernels().join[(reads.size, heads, -(-columns // block))](
        parts, parts if sizes is None else sizes, first, count, out, logsum, columns,
        H=heads, WEIGHTED=sizes is not None, BLOCK=block,
    )  # fmt: skip
    return out, logsum


def _kernels() -> Any:
    from lsm_cli.kernels import triton_ragged

    return triton_ragged


def _row_major(table: Tensor) -> Tensor:
    return table if table.stride(1) == 1 else table.contiguous()


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, asked: Tensor, bias: Tensor | None, call: _Call, *tables: Tensor) -> Tensor:
        rows = [_row_major(table) for table in tables]
        found, logsum = call.forward(asked, bias, rows)
        ctx.call, ctx.biased = call, bias is not None
        ctx.save_for_backward(asked, found, logsum, *([] if bias is None else [bias]), *rows)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        asked, found, logsum, *rest = ctx.saved_tensors
        bias, tables = (rest[0], rest[1:]) if ctx.biased else (None, rest)
        learn = ctx.needs_input_grad[3:]
        for_asked, slope, sums = ctx.call.backward(asked, bias, tables, found, logsum, grad.contiguous(), learn)
        narrow = [None if one is None else one.to(table.dtype) for one, table in zip(sums, tables, strict=True)]
        return for_asked, slope if ctx.biased else None, None, *narrow
