"""Hashed soft search: random hyperplanes stand for the inner product.

A behaviour's key is its side information side by side; the sign of its product with a random plane is one bit.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from lsm_cli.kernels.ragged import Occurrences

Keys = list[tuple[Tensor, Occurrences]]  # tables [R, d] and where their rows occur


@lru_cache(maxsize=8)
def planes(width: int, bits: int, device: torch.device) -> Tensor:
    """Random hyperplanes, the same for every process: float32 [width, bits]."""
    return torch.randn(width, bits, generator=torch.Generator().manual_seed(bits * 65_537 + width)).to(device)


def signs(keys: Keys, query: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Hash bits of the behaviours, bool [N, bits], and of the candidates, bool [B, bits]."""
    width = sum(table.shape[1] for table, _ in keys)
    through = planes(width, bits, query.device)
    projected, start = None, 0
    for table, at in keys:
        stop = start + table.shape[1]
        part = (table @ through[start:stop]).index_select(0, at.ids)
        projected = part if projected is None else projected.add_(part)
        start = stop
    assert projected is not None
    return projected > 0, query @ through > 0


@torch.no_grad()
def eta(keys: Keys, query: Tensor, hashes: int, hash_bits: int) -> Tensor:
    """ETA (Chen et al., arXiv 2209.12212, §3.2): minus the Hamming distance between the SimHashes: float32 [N]."""
    ours, wanted = signs(keys, query, hashes * hash_bits)
    row = keys[0][1].segments.row
    return -(ours != wanted.index_select(0, row)).sum(1).float()


@torch.no_grad()
def sdim(keys: Keys, query: Tensor, hashes: int, hash_bits: int) -> Tensor:
    """SDIM (Cao et al., arXiv 2205.10249, §3.2): in how many hash groups behaviour and candidate share the bucket.

    float32 [N]; behaviours that share none are not found: -inf.
    """
    ours, wanted = signs(keys, query, hashes * hash_bits)
    row = keys[0][1].segments.row
    same = (ours == wanted.index_select(0, row)).view(-1, hashes, hash_bits)
    shared = same.all(2).sum(1).float()
    return shared.masked_fill(shared == 0, -torch.inf)
