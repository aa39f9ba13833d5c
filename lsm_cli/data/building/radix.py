"""Sorting integers by counting their digits, in pieces that a core's own cache holds.

numpy sorts 16-bit integers by counting (`kind="stable"`), in a tenth of the time that comparing 64-bit integers takes,
as long as what a pass touches stays in the cache.
"""

from __future__ import annotations

import itertools

import numpy as np

PIECE = 1 << 16  # rows whose keys, digits and order fit a second-level cache of 1 MiB
_DIGIT = 16  # bits


def radix_order(key: np.ndarray, bits: int) -> np.ndarray:
    """The rows by (key, row).

    Args:
        key: int64 [n], in [0, 2 ** bits).

    Returns:
        int64 [n].
    """
    if len(key) <= 2 * PIECE:
        return _by_digits(key, bits)
    below = max(bits - min((len(key) // PIECE).bit_length() + 1, _DIGIT), 0)
    top = (key >> below).astype(np.uint16)
    order = top.argsort(kind="stable")
    key = key.take(order)
    for first, last in itertools.pairwise([0, *np.cumsum(np.bincount(top)).tolist()]):
        order[first:last] = order[first:last].take(_by_digits(key[first:last], below))
    return order


def _by_digits(key: np.ndarray, bits: int) -> np.ndarray:
    """The same by the lowest `bits`, where all above are equal: last digits first, each pass keeps the order so far."""
    order = key.astype(np.uint16).argsort(kind="stable")
    for shift in range(_DIGIT, bits, _DIGIT):
        order = order.take((key >> shift).astype(np.uint16).take(order).argsort(kind="stable"))
    return order
