"""The k best of each sample, in Triton: one program a sample, whose scores stay in the cache while they are counted.

Sorting N scores twice (by score, then by sample) moves them log N times. Here 32 counts bound the k-th best from below,
bit by bit of its order among all float32, and one last pass marks what is above it: 34 reads of 4 N bytes, all but the
first from the cache, and N bytes written.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load(scores, place, inside):
    """(integers in the order of the scores, which may be found at all) of a block."""
    value = tl.load(scores + place, mask=inside, other=float("-inf")) + 0.0  # of two zeros none is larger
    bits = value.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64), inside & (value > float("-inf"))


@triton.jit
def _count(scores, begin, until, wanted, BLOCK: tl.constexpr):
    """How many scores of a sample are `wanted` or more."""
    found = tl.zeros([BLOCK], tl.int32)
    low = begin
    while low < until:
        place = low + tl.arange(0, BLOCK)
        order, known = _load(scores, place, place < until)
        found += (known & (order >= wanted)).to(tl.int32)
        low += BLOCK
    return tl.sum(found, 0)


@triton.jit(do_not_specialize=["k"])
def best(scores, offsets, k, chosen, BLOCK: tl.constexpr):
    """Mark the k best of a sample, of equals the last: scores float32 [N], offsets int64 [B + 1], chosen bool [N]."""
    begin, until = tl.load(offsets + tl.program_id(0)), tl.load(offsets + tl.program_id(0) + 1)
    step = tl.full([], 1 << 31, tl.int64)
    bar = -step
    while step > 0:
        enough = _count(scores, begin, until, bar + step, BLOCK) >= k
        bar = tl.where(enough, bar + step, bar)
        step = step // 2
    room = k - _count(scores, begin, until, bar + 1, BLOCK)
    skipped = _count(scores, begin, until, bar, BLOCK) - k  # of those that score as the k-th best does, the oldest
    low = begin
    while low < until:
        place = low + tl.arange(0, BLOCK)
        order, known = _load(scores, place, place < until)
        tied = (known & (order == bar)).to(tl.int32)
        late = tl.cumsum(tied, 0) > skipped
        tl.store(chosen + place, known & ((order > bar) | ((tied > 0) & late & (room > 0))), mask=place < until)
        skipped -= tl.sum(tied, 0)
        low += BLOCK
