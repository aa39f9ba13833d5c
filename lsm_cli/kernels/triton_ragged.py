"""Target attention over ragged histories in Triton: one pass forward, one backward. `fused` says what is computed.

Work is cut into chunks of at most CHUNK behaviours of one sample, so that a batch with one long history keeps the whole
device busy; a program does one chunk, block by block, and a second, small kernel joins the chunks of each sample. A
block holds the rows that its behaviours carry in registers: they are read once, for the scores of all heads and for
their sums.

Shapes: S samples, H heads, N behaviours, G chunks. Columns are of two kinds: those of gathered tables [R, d], and one
for each row of small tables, of which behaviours carry one each (a mark).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _chunk(owner, first, begin, until, CHUNK: tl.constexpr):
    """The sample of this program and the behaviours that it reads, from low to high; none for a program too many."""
    sample = tl.load(owner + tl.program_id(0)).to(tl.int64)
    start = tl.load(begin + sample)
    low = start + (tl.program_id(0) - tl.load(first + sample)) * CHUNK
    return sample, start, low, tl.minimum(low + CHUNK, tl.load(until + sample))


@triton.jit
def _ids(ids, place, inside):
    """What the behaviours at `place` carry of every table: a tuple of [block]."""
    found = ()
    for part in tl.static_range(len(ids)):
        found = found + (tl.load(ids[part] + place, mask=inside, other=0).to(tl.int64),)
    return found


@triton.jit
def _where(ids, inside, DIM: tl.constexpr, PAD: tl.constexpr, STRIDE: tl.constexpr):
    """Offsets [block, PAD] of the rows `ids` in their table, and which of them exist."""
    column = tl.arange(0, PAD)
    kept = inside[:, None] & (column < DIM)[None, :] if DIM < PAD else inside[:, None]
    return ids[:, None] * STRIDE + column[None, :], kept


@triton.jit
def _rows(tables, ids, inside, DIMS: tl.constexpr, PADS: tl.constexpr, STRIDES: tl.constexpr):
    """The rows `ids` of every table: a tuple of float32 [block, PAD]."""
    found = ()
    for part in tl.static_range(len(tables)):
        at, kept = _where(ids[part], inside, DIMS[part], PADS[part], STRIDES[part])
        found = found + (tl.load(tables[part] + at, mask=kept, other=0.0).to(tl.float32),)
    return found


@triton.jit
def _own(values, sample, heads, AT: tl.constexpr, DIM: tl.constexpr, PAD: tl.constexpr, ALL, H: tl.constexpr):
    """Columns AT … AT + DIM of a sample's [H, ALL]: float32 [heads, PAD]."""
    column = tl.arange(0, PAD)
    kept = (heads < H)[:, None] & (column < DIM)[None, :]
    return tl.load(values + (sample * H + heads[:, None]) * ALL + AT + column[None, :], mask=kept, other=0.0)


@triton.jit
def _dots(
    values, rows, marks, sample, inside, heads,
    AT: tl.constexpr, DIMS: tl.constexpr, PADS: tl.constexpr, ALL: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """What the behaviours carry times a sample's values [H, ALL]: float32 [block, heads]."""
    total = tl.zeros([inside.shape[0], heads.shape[0]], tl.float32)
    for part in tl.static_range(len(rows)):
        own = _own(values, sample, heads, AT[part], DIMS[part], PADS[part], ALL, H)
        total += tl.sum(rows[part][:, None, :] * own[None, :, :], 2)
    kept = inside[:, None] & (heads < H)[None, :]
    line = values + (sample * H + heads[None, :]) * ALL
    for part in tl.static_range(len(marks)):
        at = AT[len(rows) + part]
        total += tl.load(line + at + marks[part][:, None], mask=kept, other=0.0)
    return total


@triton.jit
def _zeros(PADS: tl.constexpr, HEADS: tl.constexpr):
    found = ()
    for part in tl.static_range(len(PADS)):
        found = found + (tl.zeros([HEADS, PADS[part]], tl.float32),)
    return found


@triton.jit
def _summed(sums, keep, weight, rows, marks, PADS: tl.constexpr):
    """sums · keep + Σ weight · what the behaviours carry: a tuple of [heads, PAD]; weight [block, heads]."""
    found = ()
    for part in tl.static_range(len(rows)):
        found = found + (sums[part] * keep[:, None] + tl.sum(weight[:, :, None] * rows[part][:, None, :], 0),)
    for part in tl.static_range(len(marks)):
        mark = marks[part][:, None, None] == tl.arange(0, PADS[len(rows) + part])[None, None, :]
        found = found + (
            sums[len(rows) + part] * keep[:, None] + tl.sum(tl.where(mark, weight[:, :, None], 0.0), 0),
        )  # fmt: skip
    return found


@triton.jit
def _store(
    out, sums, scale, heads,
    AT: tl.constexpr, DIMS: tl.constexpr, PADS: tl.constexpr, ALL: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """Write the sums of this program, [H, ALL]."""
    for part in tl.static_range(len(sums)):
        column = tl.arange(0, PADS[part])
        kept = (heads < H)[:, None] & (column < DIMS[part])[None, :]
        at = (tl.program_id(0) * H + heads[:, None]).to(tl.int64) * ALL + AT[part] + column[None, :]
        tl.store(out + at, sums[part] * scale[:, None], mask=kept)


@triton.jit
def _logits(
    asked, bias, rows, marks, sample, place, inside, heads, total,
    AT: tl.constexpr, DIMS: tl.constexpr, PADS: tl.constexpr, ALL: tl.constexpr, H: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """[block, heads]; -inf outside. `place` is where the scores of the behaviours lie, of `total` in all."""
    found = _dots(asked, rows, marks, sample, inside, heads, AT, DIMS, PADS, ALL, H)
    if BIASED:
        kept = inside[:, None] & (heads < H)[None, :]
        found += tl.load(bias + heads[None, :] * total + place[:, None], mask=kept, other=0.0)
    return tl.where(inside[:, None], found, float("-inf"))


@triton.jit
def forward(
    asked, bias, keys, key_ids, key_marks, values, value_ids, value_marks,
    owner, first, begin, until, lies, total, parts, sizes,
    K_AT: tl.constexpr, K_DIMS: tl.constexpr, K_PADS: tl.constexpr, K_STRIDES: tl.constexpr, K_ALL: tl.constexpr,
    V_AT: tl.constexpr, V_DIMS: tl.constexpr, V_PADS: tl.constexpr, V_STRIDES: tl.constexpr, V_ALL: tl.constexpr,
    H: tl.constexpr, HEADS: tl.constexpr, SHARED: tl.constexpr, BIASED: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One chunk: weighted means of what its behaviours carry, parts [G, H, V_ALL], and log-sum-exp, sizes [G, H]."""
    heads = tl.arange(0, HEADS)
    sample, start, low, high = _chunk(owner, first, begin, until, CHUNK)
    move = tl.load(lies + sample) - start
    top = tl.full([HEADS], float("-inf"), tl.float32)
    size = tl.zeros([HEADS], tl.float32)
    sums = _zeros(V_PADS, HEADS)
    while low < high:
        place = low + tl.arange(0, BLOCK)
        inside = place < high
        at, marks = _ids(key_ids, place, inside), _ids(key_marks, place, inside)
        rows = _rows(keys, at, inside, K_DIMS, K_PADS, K_STRIDES)
        logits = _logits(
            asked, bias, rows, marks, sample, place + move, inside, heads, total,
            K_AT, K_DIMS, K_PADS, K_ALL, H, BIASED,
        )  # fmt: skip
        if not SHARED:
            at, marks = _ids(value_ids, place, inside), _ids(value_marks, place, inside)
            rows = _rows(values, at, inside, V_DIMS, V_PADS, V_STRIDES)
        higher = tl.maximum(top, tl.max(logits, 0))
        weight = tl.exp(logits - higher[None, :])
        keep = tl.exp(top - higher)
        size = size * keep + tl.sum(weight, 0)
        sums = _summed(sums, keep, weight, rows, marks, V_PADS)
        top = higher
        low += BLOCK
    size = tl.where(size > 0, size, 1.0)  # nothing read: sums are 0 and top is -inf
    _store(parts, sums, 1.0 / size, heads, V_AT, V_DIMS, V_PADS, V_ALL, H)
    tl.store(sizes + tl.program_id(0) * H + heads, top + tl.log(size), mask=heads < H)


@triton.jit
def backward(
    asked, bias, keys, key_ids, key_marks, values, value_ids, value_marks,
    owner, first, begin, until, lies, total, grad, logsum, delta,
    for_keys, for_values, for_logits, weights, parts,
    K_AT: tl.constexpr, K_DIMS: tl.constexpr, K_PADS: tl.constexpr, K_STRIDES: tl.constexpr, K_ALL: tl.constexpr,
    V_AT: tl.constexpr, V_DIMS: tl.constexpr, V_PADS: tl.constexpr, V_STRIDES: tl.constexpr, V_ALL: tl.constexpr,
    H: tl.constexpr, HEADS: tl.constexpr, SHARED: tl.constexpr, BIASED: tl.constexpr,
    SPREAD: tl.constexpr, KEEP: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One chunk of the gradients, from weights that are computed again.

    With α the weights and y = Σ α x: ∂/∂logit_i = α_i (⟨grad, x_i⟩ - ⟨grad, y⟩), the last being `delta` [S, H].
    Writes parts [G, H, K_ALL] of the gradient of `asked`, and if KEEP the gradient of the logits [H, total]. If SPREAD
    the gradients of the tables are added to for_keys and for_values, in any order; else the weights [H, total] are
    kept too, for `spread`.
    """
    heads = tl.arange(0, HEADS)
    sample, start, low, high = _chunk(owner, first, begin, until, CHUNK)
    move = tl.load(lies + sample) - start
    own = sample * H + heads
    known = heads < H
    size = tl.load(logsum + own, mask=known, other=0.0)
    mean = tl.load(delta + own, mask=known, other=0.0)
    ones = tl.full([HEADS], 1.0, tl.float32)
    sums = _zeros(K_PADS, HEADS)
    while low < high:
        place = low + tl.arange(0, BLOCK)
        inside = place < high
        at, marks = _ids(key_ids, place, inside), _ids(key_marks, place, inside)
        rows = _rows(keys, at, inside, K_DIMS, K_PADS, K_STRIDES)
        logits = _logits(
            asked, bias, rows, marks, sample, place + move, inside, heads, total,
            K_AT, K_DIMS, K_PADS, K_ALL, H, BIASED,
        )  # fmt: skip
        weight = tl.where(inside[:, None] & known[None, :], tl.exp(logits - size[None, :]), 0.0)
        if SHARED:
            slope = _dots(grad, rows, marks, sample, inside, heads, V_AT, V_DIMS, V_PADS, V_ALL, H)
        else:
            v_at, v_marks = _ids(value_ids, place, inside), _ids(value_marks, place, inside)
            v_rows = _rows(values, v_at, inside, V_DIMS, V_PADS, V_STRIDES)
            slope = _dots(grad, v_rows, v_marks, sample, inside, heads, V_AT, V_DIMS, V_PADS, V_ALL, H)
        slope = weight * (slope - mean[None, :])
        sums = _summed(sums, ones, slope, rows, marks, K_PADS)
        if KEEP:
            kept = inside[:, None] & known[None, :]
            line = heads[None, :] * total + (place + move)[:, None]
            tl.store(for_logits + line, slope, mask=kept)
            if not SPREAD:
                tl.store(weights + line, weight, mask=kept)
        if SPREAD:
            for part in tl.static_range(len(keys)):
                asks = _own(asked, sample, heads, K_AT[part], K_DIMS[part], K_PADS[part], K_ALL, H)
                row = tl.sum(slope[:, :, None] * asks[None, :, :], 1)
                if SHARED:
                    wants = _own(grad, sample, heads, V_AT[part], V_DIMS[part], V_PADS[part], V_ALL, H)
                    row += tl.sum(weight[:, :, None] * wants[None, :, :], 1)
                to, kept = _where(at[part], inside, K_DIMS[part], K_PADS[part], K_DIMS[part])
                tl.atomic_add(for_keys[part] + to, row, mask=kept, sem="relaxed")
            if not SHARED:
                for part in tl.static_range(len(values)):
                    wants = _own(grad, sample, heads, V_AT[part], V_DIMS[part], V_PADS[part], V_ALL, H)
                    row = tl.sum(weight[:, :, None] * wants[None, :, :], 1)
                    to, kept = _where(v_at[part], inside, V_DIMS[part], V_PADS[part], V_DIMS[part])
                    tl.atomic_add(for_values[part] + to, row, mask=kept, sem="relaxed")
        low += BLOCK
    _store(parts, sums, ones, heads, K_AT, K_DIMS, K_PADS, K_ALL, H)


@triton.jit
def join(parts, sizes, first, count, out, logsum, H: tl.constexpr, ALL, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):
    """The chunks of one sample and head: means by their log-sum-exp if WEIGHTED, else sums; parts [G, H, ALL]."""
    sample, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    part = tl.load(first + sample)
    end = part + tl.load(count + sample)
    top = float("-inf")
    size = 0.0
    total = tl.zeros([BLOCK], tl.float32)
    while part < end:
        at = part * H + head
        found = tl.load(parts + at * ALL + column, mask=column < ALL, other=0.0)
        if WEIGHTED:
            own = tl.load(sizes + at)
            higher = tl.maximum(top, own)
            shift = tl.where(higher == float("-inf"), 0.0, higher)
            keep, weight = tl.exp(top - shift), tl.exp(own - shift)
            size = size * keep + weight
            total = total * keep + found * weight
            top = higher
        else:
            total += found
        part += 1
    at = sample * H + head
    if WEIGHTED:
        size = tl.where(size > 0, size, 1.0)
        total = total / size
        if tl.program_id(2) == 0:
            tl.store(logsum + at, top + tl.log(size))
    tl.store(out + at * ALL + column, total, mask=column < ALL)


@triton.jit
def spread(
    order, row, slope, weights, asked, grad, owner, first, begin, until, total, parts,
    K_AT: tl.constexpr, K_ALL: tl.constexpr, V_AT: tl.constexpr, V_ALL: tl.constexpr, DIM: tl.constexpr,
    PAD: tl.constexpr, H: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One chunk of the gradient of one table, in a fixed order: parts [G, DIM].

    `order` lists behaviours row of the table by row of the table; `row` is the sample of each; those of one table row
    are cut into chunks, as histories are.
    """
    _, _, low, high = _chunk(owner, first, begin, until, CHUNK)
    column = tl.arange(0, PAD)
    found = tl.zeros([PAD], tl.float32)
    while low < high:
        place = low + tl.arange(0, BLOCK)
        inside = place < high
        at = tl.load(order + place, mask=inside, other=0)
        sample = tl.load(row + at, mask=inside, other=0)
        kept = inside[:, None] & (column < DIM)[None, :]
        for head in tl.static_range(H):
            line = (sample * H + head)[:, None]
            if KEY:
                scale = tl.load(slope + head * total + at, mask=inside, other=0.0)
                own = tl.load(asked + line * K_ALL + K_AT + column[None, :], mask=kept, other=0.0)
                found += tl.sum(own * scale[:, None], 0)
            if VALUE:
                scale = tl.load(weights + head * total + at, mask=inside, other=0.0)
                own = tl.load(grad + line * V_ALL + V_AT + column[None, :], mask=kept, other=0.0)
                found += tl.sum(own * scale[:, None], 0)
        low += BLOCK
    tl.store(parts + tl.program_id(0).to(tl.int64) * DIM + column, found, mask=column < DIM)


@triton.jit
def score(
    asked, bias, keys, key_ids, key_marks, values, value_ids, value_marks,
    owner, first, begin, until, lies, total, out,
    K_AT: tl.constexpr, K_DIMS: tl.constexpr, K_PADS: tl.constexpr, K_STRIDES: tl.constexpr, K_ALL: tl.constexpr,
    V_AT: tl.constexpr, V_DIMS: tl.constexpr, V_PADS: tl.constexpr, V_STRIDES: tl.constexpr, V_ALL: tl.constexpr,
    H: tl.constexpr, HEADS: tl.constexpr, SHARED: tl.constexpr, BIASED: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The logits of one chunk: out [H, total]."""
    heads = tl.arange(0, HEADS)
    sample, start, low, high = _chunk(owner, first, begin, until, CHUNK)
    move = tl.load(lies + sample) - start
    while low < high:
        place = low + tl.arange(0, BLOCK)
        inside = place < high
        at, marks = _ids(key_ids, place, inside), _ids(key_marks, place, inside)
        rows = _rows(keys, at, inside, K_DIMS, K_PADS, K_STRIDES)
        found = _logits(
            asked, bias, rows, marks, sample, place + move, inside, heads, total,
            K_AT, K_DIMS, K_PADS, K_ALL, H, BIASED,
        )  # fmt: skip
        kept = inside[:, None] & (heads < H)[None, :]
        tl.store(out + heads[None, :] * total + (place + move)[:, None], found, mask=kept)
        low += BLOCK
