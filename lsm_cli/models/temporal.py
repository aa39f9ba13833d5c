"""Temporal encodings: where in time a behaviour lies, seen from the request (Temporal Interest Network, WWW'24)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lsm_cli.data.batches import Batch
from lsm_cli.kernels.ragged import Occurrences, Segments
from lsm_cli.models.history import Part

LONGEST_SECONDS = 2 * 365 * 86_400.0
LONGEST_RANK = 1_000_000.0


class TemporalEncoding(nn.Module):
    """p(·): a learned row per log-spaced bucket of the time to the request, and of the rank from it.

    Row 0 of each table is p(0), the candidate's own place in time.

    Args:
        width: of the representation that the encoding is added to.
        kinds: any of `interval` and `rank`.
        buckets: number of buckets for each of the kinds.
    """

    def __init__(self, width: int, kinds: Sequence[str], buckets: dict[str, int], std: float) -> None:
        super().__init__()
        self.tables = nn.ParameterDict(
            {kind: nn.Parameter(torch.randn(buckets[kind] + 1, width) * std) for kind in kinds}
        )

    def candidate(self, value: Tensor) -> Tensor:
        """v + p(0): [B, width] -> [B, width]."""
        for table in self.tables.values():
            value = value + table[0]
        return value

    def parts(self, batch: Batch, segments: Segments) -> list[Part]:
        """The encodings of all behaviours, to be added to their representation."""
        found = []
        for kind, table in self.tables.items():
            value, longest = (batch.age, LONGEST_SECONDS) if kind == "interval" else (batch.rank, LONGEST_RANK)
            ids = log_bucket(value, table.shape[0] - 1, longest) + 1
            found.append(Part(table, Occurrences(ids, table.shape[0], segments)))
        return found


def log_bucket(value: Tensor, buckets: int, longest: float) -> Tensor:
    """Buckets of equal ratio between 1 and `longest`; below and above they are cut: int64, 0 … buckets - 1."""
    scaled = value.to(torch.float32).clamp(min=1.0).log_().mul_(buckets / math.log(longest))
    return scaled.to(torch.int64).clamp_(max=buckets - 1)
