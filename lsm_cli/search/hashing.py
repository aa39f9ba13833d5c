"""Hashed soft search: random hyperplanes stand for the inner product.

A behaviour's key is its side information side by side; the sign of its product with a random plane is one bit. On the
CPU the bits lie packed in words, a hash group never across two of them; on a GPU they are compared one by one.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from lsm_cli.kernels.ragged import Occurrences

Keys = list[tuple[Tensor, Occurrences]]  # tables [R, d] and where their rows occur
WORD = 64
CHUNK = 1 << 13  # behaviours projected at a time: what is written stays in the cache


@lru_cache(maxsize=8)
def planes(width: int, bits: int, device: torch.device) -> Tensor:
    """Random hyperplanes, the same for every process: float32 [width, bits]."""
    return torch.randn(width, bits, generator=torch.Generator().manual_seed(bits * 65_537 + width)).to(device)


@torch.no_grad()
def codes(keys: Keys, query: Tensor, hashes: int, hash_bits: int, packed: bool | None = None) -> tuple[Tensor, Tensor]:
    """The SimHashes of the behaviours and of the candidates.

    Args:
        packed: in words; None = on the CPU.

    Returns:
        int64 [N, words] and [B, words], or bool [N, hashes, hash_bits] and [B, hashes, hash_bits].
    """
    packed = not query.is_cuda if packed is None else packed
    through = planes(query.shape[1], hashes * hash_bits, query.device)
    pieces = through.split([table.shape[1] for table, _ in keys])
    projected = [table.float() @ piece for (table, _), piece in zip(keys, pieces, strict=True)]
    total = keys[0][1].ids.numel()
    parts = []
    for start in range(0, max(total, 1), CHUNK if packed else max(total, 1)):
        stop = min(start + CHUNK, total) if packed else total
        sums = projected[0].index_select(0, keys[0][1].ids[start:stop])
        for values, (_, at) in zip(projected[1:], keys[1:], strict=True):
            sums += values.index_select(0, at.ids[start:stop])
        parts.append(_code(sums > 0, hashes, hash_bits, packed))
    return torch.cat(parts), _code(query.float() @ through > 0, hashes, hash_bits, packed)


def _code(bits: Tensor, hashes: int, hash_bits: int, packed: bool) -> Tensor:
    if not packed:
        return bits.view(-1, hashes, hash_bits)
    per_word = WORD // hash_bits
    words = -(-hashes // per_word)
    group, place = np.divmod(np.arange(hashes * hash_bits), hash_bits)
    columns = group // per_word * WORD + group % per_word * hash_bits + place
    spread = np.zeros((len(bits), words * WORD), bool)
    spread[:, columns] = bits.numpy()
    return torch.from_numpy(np.packbits(spread, axis=1, bitorder="little").view("<i8").reshape(-1, words))


def hamming(ours: Tensor, wanted: Tensor) -> Tensor:
    """In how many bits two codes differ: codes that broadcast -> float32."""
    if ours.dtype == torch.bool:
        return (ours != wanted).sum((-2, -1)).float()
    return _count(ours, wanted, None)


def collisions(ours: Tensor, wanted: Tensor, hashes: int, hash_bits: int) -> Tensor:
    """In how many hash groups two codes agree throughout: codes that broadcast -> float32."""
    if ours.dtype == torch.bool:
        return (ours == wanted).all(-1).sum(-1).float()
    return hashes - _count(ours, wanted, hash_bits)


def _count(ours: Tensor, wanted: Tensor, lane: int | None) -> Tensor:
    """Bits, or lanes of `lane` bits, in which words differ, summed over the last axis."""
    total: np.ndarray | None = None
    left, right = ours.numpy().view(np.uint64), wanted.numpy().view(np.uint64)
    for word in range(left.shape[-1]):
        differs = left[..., word] ^ right[..., word]
        if lane is not None and lane > 1:  # the sum carries into a lane's highest bit where any lower one is set
            high = np.uint64(sum(1 << (place + lane - 1) for place in range(0, WORD - lane + 1, lane)))
            low = np.uint64(sum(((1 << (lane - 1)) - 1) << place for place in range(0, WORD - lane + 1, lane)))
            differs = (((differs & low) + low) | differs) & high
        count = np.bitwise_count(differs).astype(np.float32)
        total = count if total is None else total + count
    assert total is not None
    return torch.from_numpy(total)


def eta(ours: Tensor, wanted: Tensor) -> Tensor:
    """ETA (Chen et al., arXiv 2209.12212, §3.2): minus the Hamming distance between the SimHashes."""
    return hamming(ours, wanted).neg_()


def sdim(ours: Tensor, wanted: Tensor, hashes: int, hash_bits: int) -> Tensor:
    """SDIM (Cao et al., arXiv 2205.10249, §3.2): in how many hash groups behaviour and candidate share the bucket.

    Behaviours that share none are not found: -inf.
    """
    shared = collisions(ours, wanted, hashes, hash_bits)
    return shared.masked_fill_(shared == 0, -torch.inf)
