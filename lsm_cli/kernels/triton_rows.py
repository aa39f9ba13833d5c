"""Updates of the embedding rows that a step touches, in Triton: one launch for a table, each number read and written
once. `embedding.optimizer` has the same in torch, and says what is computed."""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _block(index, count, DIM: tl.constexpr, PAD: tl.constexpr, BLOCK: tl.constexpr):
    """(rows of the table [BLOCK], which exist, offsets in what is dense, offsets in the table, which exist) of a block
    of distinct rows."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = place < count
    row = tl.load(index + place, mask=known, other=0)
    column = tl.arange(0, PAD)[None, :]
    return row, known, place[:, None] * DIM + column, row[:, None] * DIM + column, known[:, None] & (column < DIM)


@triton.jit
def _write(weight, at, to, value, seed, kept, ROUND: tl.constexpr):
    """Store, in bfloat16 rounded up or down by chance, so that on average nothing is lost."""
    if ROUND:
        bits = value.to(tl.uint32, bitcast=True) + (tl.randint(seed, at) & 0xFFFF).to(tl.uint32)
        value = (bits & 0xFFFF0000).to(tl.float32, bitcast=True).to(tl.bfloat16)
    tl.store(weight + to, value, mask=kept)


@triton.jit(do_not_specialize=["count", "seed"])
def adagrad(
    weight, total, index, values, grad, count, lr, eps, seed,
    DIM: tl.constexpr, PAD: tl.constexpr, ROUND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Row-wise Adagrad: weight [R, DIM] and total [R] change at index [count]; values, grad [count, DIM]."""
    row, known, at, to, kept = _block(index, count, DIM, PAD, BLOCK)
    slope = tl.load(grad + at, mask=kept, other=0.0)
    mass = tl.load(total + row, mask=known, other=0.0) + tl.sum(slope * slope, 1) / DIM
    tl.store(total + row, mass, mask=known)
    step = slope * (lr / (tl.sqrt(mass) + eps))[:, None]
    _write(weight, at, to, tl.load(values + at, mask=kept, other=0.0) - step, seed, kept, ROUND)


@triton.jit(do_not_specialize=["count", "seed"])
def adam(
    weight, first, second, steps, index, values, grad, count, lr, fast, slow, eps, seed,
    DIM: tl.constexpr, PAD: tl.constexpr, ROUND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Lazy Adam: weight, first and second [R, DIM] and steps [R] change at index [count]."""
    row, known, at, to, kept = _block(index, count, DIM, PAD, BLOCK)
    slope = tl.load(grad + at, mask=kept, other=0.0)
    done = tl.load(steps + row, mask=known, other=0.0) + 1
    mean = tl.load(first + to, mask=kept, other=0.0)
    mean += (slope - mean) * (1 - fast)
    square = tl.load(second + to, mask=kept, other=0.0) * slow + slope * slope * (1 - slow)
    tl.store(steps + row, done, mask=known)
    tl.store(first + to, mean, mask=kept)
    tl.store(second + to, square, mask=kept)
    lack_fast = (1 - tl.exp(done * tl.log(fast)))[:, None]
    lack_slow = (1 - tl.exp(done * tl.log(slow)))[:, None]
    step = mean / (tl.sqrt(square / lack_slow) + eps) * (lr / lack_fast)
    _write(weight, at, to, tl.load(values + at, mask=kept, other=0.0) - step, seed, kept, ROUND)
