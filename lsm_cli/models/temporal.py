"""Temporal encodings: where in time a behaviour lies, seen from the request (Temporal Interest Network, WWW'24)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lsm_cli.data.batches import Batch
from lsm_cli.kernels.ragged import Occurrences, Segments, shapes_are_fixed
from lsm_cli.models.history import Part

LONGEST_SECONDS = 2 * 365 * 86_400.0
LONGEST_RANK = 1_000_000.0
PACE = 0.3  # of a residual, against that of the table it is added to


class TemporalEncoding(nn.Module):
    """p^τ(·): a learned row per log-spaced bucket of the time to the request, and of the rank from it.

    Row 0 of each table is p^τ(0), the candidate's own place in time. Target-decoupled positional encoding (Tencent,
    arXiv 2510.21714): orders reach back weeks, installs hours, so each optimisation target τ may have tables of its
    own, which start alike: p^τ. Few samples teach a target no table: it then does better with p + `PACE` · r^τ, a
    residual from zero that moves slowly, on a table that all share (`benchmarks/few_shot.py`; at full pace a residual
    was no better than a table).

    Args:
        width: of the representation that the encoding is added to.
        kinds: any of `interval` and `rank`.
        buckets: number of buckets for each of the kinds.
        std: standard deviation of a fresh row. The products of two random encodings, and of one with any side
            information, are as large as those of two rows that match by a few narrow fields: a search by a fresh
            attention then goes by when a behaviour was rather than by what it was. 0 avoids that.
        targets: number of optimisation targets.
        ownership: `shared` by all targets, each its `own`, or a `residual` of each on a shared one.
    """

    def __init__(
        self,
        width: int,
        kinds: Sequence[str],
        buckets: dict[str, int],
        std: float,
        targets: int = 1,
        ownership: str = "shared",
    ) -> None:
        super().__init__()
        first = {kind: torch.randn(buckets[kind] + 1, width) * std for kind in kinds}
        copies = targets if ownership == "own" else 1
        self.tables = nn.ParameterDict(
            {kind: nn.Parameter(table.expand(copies, -1, -1).clone()) for kind, table in first.items()}
        )
        residual = first if ownership == "residual" else {}
        self.residuals = nn.ParameterDict(
            {kind: nn.Parameter(torch.zeros(targets, *table.shape)) for kind, table in residual.items()}
        )

    def table(self, kind: str, target: int | None) -> Tensor:
        """[buckets + 1, width] of one target; None = the mean over the targets, where one answer has to serve all."""
        found = self.tables[kind]
        found = found[target] if target is not None and len(found) > 1 else found.mean(0)
        if kind in self.residuals:
            residual = self.residuals[kind]
            found = found + PACE * (residual.mean(0) if target is None else residual[target])
        return found

    def origin(self, target: int | None) -> Tensor:
        """p^τ(0), summed over the kinds: [width]."""
        return torch.stack([self.table(kind, target)[0] for kind in self.tables]).sum(0)

    def places(self, batch: Batch, segments: Segments) -> dict[str, Occurrences]:
        """Which row of each table belongs to each behaviour: the same for all targets."""
        found = {}
        for kind, table in self.tables.items():
            if kind == "interval":
                ids = log_bucket(batch.age, table.shape[1] - 1, LONGEST_SECONDS) + 1
            else:
                ids = rank_bucket(batch.rank, table.shape[1] - 1) + 1
            found[kind] = Occurrences(ids, table.shape[1], segments)
        return found

    def parts(self, places: dict[str, Occurrences], target: int | None) -> list[Part]:
        """The encodings of all behaviours, to be added to their representation."""
        return [Part(self.table(kind, target), at) for kind, at in places.items()]


def rank_bucket(rank: Tensor, buckets: int) -> Tensor:
    """As `log_bucket`: int64 [N]. On the CPU every rank takes one logarithm, however many histories are as long."""
    unknown = rank.is_cuda or not rank.numel() or shapes_are_fixed()
    last = -1 if unknown else int(rank.max())
    if not 0 < last < rank.numel():
        return log_bucket(rank, buckets, LONGEST_RANK)
    return log_bucket(torch.arange(last + 1), buckets, LONGEST_RANK).index_select(0, rank)


def log_bucket(value: Tensor, buckets: int, longest: float) -> Tensor:
    """Buckets of equal ratio between 1 and `longest`; below and above they are cut: int64, 0 … buckets - 1."""
    scaled = value.to(torch.float32).clamp(min=1.0).log_().mul_(buckets / math.log(longest))
    return scaled.to(torch.int64).clamp_(max=buckets - 1)
