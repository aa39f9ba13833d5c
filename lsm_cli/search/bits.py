"""Sets of behaviours, a bit for each place of a history, so that 64 are counted or left out at a time.

Sets are uint64 [words, …], a set for each index of what follows: place i is the bit i % 64 of word i // 64.
"""

from __future__ import annotations

import numpy as np

WORD = 64
ONES = np.uint64(2**64 - 1)
HELD = np.bitwise_count(np.arange(256, dtype=np.uint8)).astype(np.int64)  # members of a byte
BITS = np.concatenate([[bit for bit in range(7, -1, -1) if byte >> bit & 1] for byte in range(256)]).astype(np.int64)
STARTS = np.cumsum(HELD) - HELD  # of each byte's members among these


def pack(match: np.ndarray) -> np.ndarray:
    """Of bool [n, width]: [words, n]."""
    packed = np.packbits(match, axis=1, bitorder="little")
    whole = np.zeros((len(match), 8 * words(match.shape[1])), np.uint8)
    whole[:, : packed.shape[1]] = packed
    return np.ascontiguousarray(whole.view("<u8").T)


def words(width: int) -> int:
    return -(-width // WORD)


def since(place: np.ndarray, words: int) -> np.ndarray:
    """All places at or after int [...]: [words, ...]."""
    shift = np.clip(place - WORD * np.arange(words).reshape(-1, *[1] * place.ndim), 0, WORD)
    return np.where(shift == WORD, np.uint64(0), ONES << np.minimum(shift, WORD - 1).astype(np.uint64))


def count(sets: np.ndarray) -> np.ndarray:
    """Members: int64 [...]."""
    return np.bitwise_count(sets).sum(0, dtype=np.int64)


def last(sets: np.ndarray) -> np.ndarray:
    """The last member: int64 [...]; -1 = none."""
    word = len(sets) - 1 - (sets != 0)[::-1].argmax(0)
    found = np.take_along_axis(sets, word[None], 0)[0]
    for step in (1, 2, 4, 8, 16, 32):  # fills all bits below the highest
        found = found | found >> np.uint64(step)
    return np.where(found > 0, WORD * word + np.bitwise_count(found).astype(np.int64) - 1, -1)


def latest(sets: np.ndarray, most: np.ndarray) -> np.ndarray:
    """The last `most` members of sets [words, n] that have as many: most int64 [n], at least 1."""
    behind = np.bitwise_count(sets)[::-1].cumsum(0, dtype=np.int64)[::-1]  # members in this word and after
    word = (behind >= most).sum(0) - 1  # where the earliest of those kept lies
    kept = sets * (np.arange(len(sets))[:, None] >= word)
    each = np.arange(sets.shape[1])
    found = sets[word, each]
    need = np.bitwise_count(found) + most - behind[word, each]
    shift = np.zeros(len(each), np.uint64)
    for step in (32, 16, 8, 4, 2, 1):  # the most low bits that can go
        further = shift + np.uint64(step)
        shift = np.where(np.bitwise_count(found >> further) >= need, further, shift)
    kept[word, each] = found >> shift << shift
    return kept


def members(sets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, level, place) of all members of sets [words, levels, n], row by row, level by level, the last first."""
    words, levels, _ = sets.shape
    backwards = np.ascontiguousarray(sets[::-1].transpose(2, 1, 0))
    held = np.flatnonzero(backwards != 0)  # members are few: first the words that have any, then the bytes
    eights = np.ascontiguousarray(backwards.ravel()[held].astype(">u8", copy=False)).view(np.uint8)
    some = np.flatnonzero(eights != 0)
    byte, at = eights[some], held[some >> 3]
    each = HELD[byte]
    start = np.cumsum(each) - each
    number = np.arange(int(each.sum())) + np.repeat(STARTS[byte] - start, each)
    group, word = np.divmod(at, words)
    row, level = np.divmod(np.repeat(group, each), levels)
    return row, level, np.repeat(WORD * (words - 1 - word) + 8 * (7 - (some & 7)), each) + BITS[number]
