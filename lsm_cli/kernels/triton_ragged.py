"""Target attention over ragged histories in Triton: one pass forward, one backward. `fused` says what is computed.

Work is cut into chunks of at most CHUNK behaviours of one sample, so that a batch with one long history keeps the whole
device busy; a program does one chunk, block by block, and a second, small kernel joins the chunks of each sample. A
block holds the rows that its behaviours carry in registers: they are read once, for the scores of all heads and for
their sums. Each place in a block sums for itself, with a maximum of its own, so that threads need not wait for each
other before the chunk ends.

Shapes: S samples, H heads, N behaviours, G chunks. Columns are of two kinds: those of gathered tables [R, d], and one
for each row of small tables, of which behaviours carry one each (a mark).
"""

# mypy: ignore-errors
# ruff: noqa: RUF005 (Triton knows no unpacking)

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
def _own(line, AT: tl.constexpr, DIM: tl.constexpr, PAD: tl.constexpr):
    """Columns AT … AT + DIM of one line of numbers: [PAD]."""
    column = tl.arange(0, PAD)
    return tl.load(line + AT + column, mask=column < DIM, other=0.0)


@triton.jit
def _dots(line, rows, marks, inside, AT: tl.constexpr, DIMS: tl.constexpr, PADS: tl.constexpr):
    """What the behaviours carry times one line of numbers, a column each: [block]."""
    total = tl.zeros([inside.shape[0]], tl.float32)
    for part in tl.static_range(len(rows)):
        total += tl.sum(rows[part] * _own(line, AT[part], DIMS[part], PADS[part])[None, :], 1)
    for part in tl.static_range(len(marks)):
        total += tl.load(line + AT[len(rows) + part] + marks[part], mask=inside, other=0.0)
    return total


@triton.jit
def _logits(
    asked, bias, rows, marks, sample, place, inside, total,
    AT: tl.constexpr, DIMS: tl.constexpr, PADS: tl.constexpr, ALL: tl.constexpr, H: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """Head by head [block]; -inf outside. `place` is where the scores of the behaviours lie, of `total` in all."""
    heads = ()
    for head in tl.static_range(H):
        found = _dots(asked + (sample * H + head) * ALL, rows, marks, inside, AT, DIMS, PADS)
        if BIASED:
            found += tl.load(bias + head * total + place, mask=inside, other=0.0)
        heads = heads + (tl.where(inside, found, float("-inf")),)
    return heads


@triton.jit
def _zeros(PADS: tl.constexpr, H: tl.constexpr, BLOCK: tl.constexpr):
    found = ()
    for part in tl.static_range(H * len(PADS)):
        found = found + (tl.zeros([BLOCK, PADS[part % len(PADS)]], tl.float32),)
    return found


@triton.jit
def _added(sums, keeps, weights, rows, marks, PADS: tl.constexpr):
    """sums · keep + weight · what the behaviours carry, place by place: head by head a tuple of [block, PAD]."""
    found = ()
    for head in tl.static_range(len(weights)):
        weight, keep = weights[head][:, None], keeps[head][:, None]
        for part in tl.static_range(len(rows)):
            found = found + (sums[head * len(PADS) + part] * keep + weight * rows[part],)
        for part in tl.static_range(len(marks)):
            mark = marks[part][:, None] == tl.arange(0, PADS[len(rows) + part])[None, :]
            found = found + (sums[head * len(PADS) + len(rows) + part] * keep + tl.where(mark, weight, 0.0),)
    return found


@triton.jit
def _store(out, sums, scales, AT: tl.constexpr, DIMS: tl.constexpr, PADS: tl.constexpr, ALL: tl.constexpr):
    """Write what the places of the block have summed, scaled by `scales`, head by head [block]: out [G, H, ALL]."""
    for head in tl.static_range(len(scales)):
        line = out + (tl.program_id(0).to(tl.int64) * len(scales) + head) * ALL
        for part in tl.static_range(len(PADS)):
            column = tl.arange(0, PADS[part])
            total = tl.sum(sums[head * len(PADS) + part] * scales[head][:, None], 0)
            tl.store(line + AT[part] + column, total, mask=column < DIMS[part])


@triton.jit(do_not_specialize=["total"])
def forward(
    asked, bias, keys, key_ids, key_marks, values, value_ids, value_marks,
    owner, first, begin, until, lies, total, parts, sizes,
    K_AT: tl.constexpr, K_DIMS: tl.constexpr, K_PADS: tl.constexpr, K_STRIDES: tl.constexpr, K_ALL: tl.constexpr,
    V_AT: tl.constexpr, V_DIMS: tl.constexpr, V_PADS: tl.constexpr, V_STRIDES: tl.constexpr, V_ALL: tl.constexpr,
    H: tl.constexpr, SHARED: tl.constexpr, BIASED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One chunk: weighted means of what its behaviours carry, parts [G, H, V_ALL], and log-sum-exp, sizes [G, H]."""
    sample, start, low, high = _chunk(owner, first, begin, until, CHUNK)
    move = tl.load(lies + sample) - start
    tops, masses = (), ()
    for _ in tl.static_range(H):
        tops = tops + (tl.full([BLOCK], float("-inf"), tl.float32),)
        masses = masses + (tl.zeros([BLOCK], tl.float32),)
    sums = _zeros(V_PADS, H, BLOCK)
    while low < high:
        place = low + tl.arange(0, BLOCK)
        inside = place < high
        at, marks = _ids(key_ids, place, inside), _ids(key_marks, place, inside)
        rows = _rows(keys, at, inside, K_DIMS, K_PADS, K_STRIDES)
        logits = _logits(
            asked, bias, rows, marks, sample, place + move, inside, total, K_AT, K_DIMS, K_PADS, K_ALL, H, BIASED
        )
        if not SHARED:
            at, marks = _ids(value_ids, place, inside), _ids(value_marks, place, inside)
            rows = _rows(values, at, inside, V_DIMS, V_PADS, V_STRIDES)
        highest, keeps, weights, grown = (), (), (), ()
        for head in tl.static_range(H):
            top = tl.maximum(tops[head], logits[head])
            shift = tl.where(top == float("-inf"), 0.0, top)
            keep, weight = tl.exp(tops[head] - shift), tl.exp(logits[head] - shift)
            highest, keeps, weights = highest + (top,), keeps + (keep,), weights + (weight,)
            grown = grown + (masses[head] * keep + weight,)
        sums = _added(sums, keeps, weights, rows, marks, V_PADS)
        tops, masses = highest, grown
        low += BLOCK
    scales = ()
    for head in tl.static_range(H):
        top = tl.max(tops[head], 0)
        scale = tl.exp(tops[head] - tl.where(top == float("-inf"), 0.0, top))
        mass = tl.sum(masses[head] * scale, 0)
        mass = tl.where(mass > 0, mass, 1.0)  # nothing read: the sums are 0 and top is -inf
        scales = scales + (scale / mass,)
        tl.store(sizes + tl.program_id(0) * H + head, top + tl.log(mass))
    _store(parts, sums, scales, V_AT, V_DIMS, V_PADS, V_ALL)


@triton.jit(do_not_specialize=["total"])
def backward(
    asked, bias, keys, key_ids, key_marks, values, value_ids, value_marks,
    owner, first, begin, until, lies, total, grad, logsum, delta,
    for_keys, for_values, for_logits, weights, parts,
    K_AT: tl.constexpr, K_DIMS: tl.constexpr, K_PADS: tl.constexpr, K_STRIDES: tl.constexpr, K_ALL: tl.constexpr,
    V_AT: tl.constexpr, V_DIMS: tl.constexpr, V_PADS: tl.constexpr, V_STRIDES: tl.constexpr, V_ALL: tl.constexpr,
    H: tl.constexpr, SHARED: tl.constexpr, BIASED: tl.constexpr, SPREAD: tl.constexpr, KEEP: tl.constexpr,
    K_LEARN: tl.constexpr, V_LEARN: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One chunk of the gradients, from weights that are computed again.

    With α the weights and y = Σ α x: ∂/∂logit_i = α_i (⟨grad, x_i⟩ - ⟨grad, y⟩), the last being `delta` [S, H].
    Writes parts [G, H, K_ALL] of the gradient of `asked`, and if KEEP the gradient of the logits [H, total]. If SPREAD
    the gradients of the tables that LEARN are added to for_keys and for_values, in any order; else the weights
    [H, total] are kept too, for `spread`.
    """
    sample, start, low, high = _chunk(owner, first, begin, until, CHUNK)
    move = tl.load(lies + sample) - start
    ones, sizes, means = (), (), ()
    for head in tl.static_range(H):
        ones = ones + (tl.full([BLOCK], 1.0, tl.float32),)
        sizes = sizes + (tl.load(logsum + sample * H + head),)
        means = means + (tl.load(delta + sample * H + head),)
    sums = _zeros(K_PADS, H, BLOCK)
    asked_line, grad_line = asked + sample * H * K_ALL, grad + sample * H * V_ALL
    while low < high:
        place = low + tl.arange(0, BLOCK)
        inside = place < high
        at, marks = _ids(key_ids, place, inside), _ids(key_marks, place, inside)
        rows = _rows(keys, at, inside, K_DIMS, K_PADS, K_STRIDES)
        logits = _logits(
            asked, bias, rows, marks, sample, place + move, inside, total, K_AT, K_DIMS, K_PADS, K_ALL, H, BIASED
        )
        if SHARED:
            v_at, v_marks, v_rows = at, marks, rows
        else:
            v_at, v_marks = _ids(value_ids, place, inside), _ids(value_marks, place, inside)
            v_rows = _rows(values, v_at, inside, V_DIMS, V_PADS, V_STRIDES)
        alphas, slopes = (), ()
        for head in tl.static_range(H):
            alpha = tl.exp(logits[head] - tl.where(inside, sizes[head], 0.0))
            slope = _dots(grad_line + head * V_ALL, v_rows, v_marks, inside, V_AT, V_DIMS, V_PADS)
            slope = alpha * (slope - means[head])
            alphas, slopes = alphas + (alpha,), slopes + (slope,)
            if KEEP:
                tl.store(for_logits + head * total + place + move, slope, mask=inside)
            if not SPREAD:
                tl.store(weights + head * total + place + move, alpha, mask=inside)
        sums = _added(sums, ones, slopes, rows, marks, K_PADS)
        if SPREAD:
            for part in tl.static_range(len(keys)):
                if K_LEARN[part]:
                    row = tl.zeros([BLOCK, K_PADS[part]], tl.float32)
                    for head in tl.static_range(H):
                        own = _own(asked_line + head * K_ALL, K_AT[part], K_DIMS[part], K_PADS[part])
                        row += slopes[head][:, None] * own[None, :]
                        if SHARED:
                            own = _own(grad_line + head * V_ALL, V_AT[part], V_DIMS[part], V_PADS[part])
                            row += alphas[head][:, None] * own[None, :]
                    to, kept = _where(at[part], inside, K_DIMS[part], K_PADS[part], K_DIMS[part])
                    tl.atomic_add(for_keys[part] + to, row, mask=kept, sem="relaxed")
            if not SHARED:
                for part in tl.static_range(len(values)):
                    if V_LEARN[part]:
                        row = tl.zeros([BLOCK, V_PADS[part]], tl.float32)
                        for head in tl.static_range(H):
                            own = _own(grad_line + head * V_ALL, V_AT[part], V_DIMS[part], V_PADS[part])
                            row += alphas[head][:, None] * own[None, :]
                        to, kept = _where(v_at[part], inside, V_DIMS[part], V_PADS[part], V_DIMS[part])
                        tl.atomic_add(for_values[part] + to, row, mask=kept, sem="relaxed")
        low += BLOCK
    _store(parts, sums, ones, K_AT, K_DIMS, K_PADS, K_ALL)


@triton.jit(do_not_specialize=["ALL"])
def join(parts, sizes, first, count, out, logsum, ALL, H: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):
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


@triton.jit(do_not_specialize=["total"])
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


@triton.jit(do_not_specialize=["total"])
def score(
    asked, bias, keys, key_ids, key_marks, values, value_ids, value_marks,
    owner, first, begin, until, lies, total, out,
    K_AT: tl.constexpr, K_DIMS: tl.constexpr, K_PADS: tl.constexpr, K_STRIDES: tl.constexpr, K_ALL: tl.constexpr,
    V_AT: tl.constexpr, V_DIMS: tl.constexpr, V_PADS: tl.constexpr, V_STRIDES: tl.constexpr, V_ALL: tl.constexpr,
    H: tl.constexpr, SHARED: tl.constexpr, BIASED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The logits of one chunk: out [H, total]."""
    sample, start, low, high = _chunk(owner, first, begin, until, CHUNK)
    move = tl.load(lies + sample) - start
    while low < high:
        place = low + tl.arange(0, BLOCK)
        inside = place < high
        at, marks = _ids(key_ids, place, inside), _ids(key_marks, place, inside)
        rows = _rows(keys, at, inside, K_DIMS, K_PADS, K_STRIDES)
        logits = _logits(
            asked, bias, rows, marks, sample, place + move, inside, total, K_AT, K_DIMS, K_PADS, K_ALL, H, BIASED
        )
        for head in tl.static_range(H):
            tl.store(out + head * total + place + move, logits[head], mask=inside)
        low += BLOCK
