"""Scoring at fixed shapes, so that a GPU can replay it: one launch a batch instead of hundreds (CUDA graphs).

Batches are ragged and no two are alike, so their sizes are rounded up to few classes (at most a quarter more), each
with buffers of its own that a batch is copied into. What is left of the buffers belongs to samples behind the real
ones, which nobody asks for: their ids are those of earlier batches, so nothing has to be cleared. Embedding rows are
gathered for every behaviour, as how many are distinct is not known beforehand. A graph holds addresses, not values: it
stays right while weights are trained in place.

On the CPU the same is computed in the same buffers, without a graph: for tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from lsm_cli.data.batches import Batch
from lsm_cli.embedding.tables import Table
from lsm_cli.engine import trace
from lsm_cli.engine.device import Compute
from lsm_cli.kernels import ragged
from lsm_cli.models.ranking import RankingModel
from lsm_cli.options import SORTING, Recipe

STEPS = 4  # classes of sizes between a power of two and the next
MOST = 16  # graphs kept; the oldest makes room
WARMUP = 3  # runs before a capture, in which libraries and kernels are made ready


def obstacle(recipe: Recipe) -> str | None:
    """Why a recipe's scoring cannot be of fixed shape, in words; None = it can."""
    if recipe.model.sequence in SORTING:
        return f"{recipe.model.sequence} sorts what it reads, which takes the host"
    if recipe.engine.table_tier != "device":
        return "rows of tables that the device holds in part are fetched by the host"
    return None


def size_class(size: int) -> int:
    """The size of the buffers for so many: the next multiple of a quarter of the power of two below."""
    step = max(1, (1 << (max(size, 1).bit_length() - 1)) // STEPS)
    return -(-max(size, 2 * STEPS) // step) * step


class Replay:
    """Scores batches of a model in buffers of few sizes.

    Args:
        compute: device and precision; on a GPU the work is captured.
    """

    def __init__(self, model: RankingModel, compute: Compute) -> None:
        self.model, self.compute = model, compute
        self.captures = compute.device.type == "cuda"
        self.pool = torch.cuda.graph_pool_handle() if self.captures else None
        self.made: dict[tuple[int, int], _Shape] = {}

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Logits, float32 [B, targets]."""
        key = size_class(batch.size + 1), size_class(batch.behaviours)  # a sample owns the behaviours that are left
        if key not in self.made:
            if len(self.made) == MOST:
                del self.made[next(iter(self.made))]
            self.made[key] = self._shape(batch, *key)
        shape = self.made[key]
        shape.fill(batch)
        return shape.run()[: batch.size].clone()

    def _shape(self, batch: Batch, samples: int, behaviours: int) -> _Shape:
        def room(values: Tensor, size: int) -> Tensor:
            return values.new_zeros(size, *values.shape[1:])

        buffers = Batch(
            room(batch.offsets, samples + 1),
            {name: room(ids, behaviours) for name, ids in batch.history.items()},
            room(batch.age, behaviours),
            room(batch.rank, behaviours),
            {name: room(ids, samples) for name, ids in batch.target.items()},
            room(batch.calendar, samples),
            room(batch.statistics, samples),
            room(batch.labels, samples),
            room(batch.user, samples),
            None if batch.matches is None else room(batch.matches, samples),
        )
        shape = _Shape(buffers, lambda: self._score(buffers))
        if self.captures:
            shape.fill(batch)
            with trace.paused():
                shape.run = self._captured(shape.run)
        return shape

    def _score(self, batch: Batch) -> Tensor:
        # a cast of the weights that is kept would be that of the capture's moment
        with ragged.fixed_shapes(), self.compute.autocast(keep_casts=False):
            rows = []
            for space in self.model.spaces:
                stored = [(cast(Table, table).weight, None) for table in space.bank.tables]
                rows.append(space.bank.gather(batch, stored, space.reads))
            return self.model(batch, rows).float()

    def _captured(self, score: Callable[[], Tensor]) -> Callable[[], Tensor]:
        device = self.compute.device
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            for _ in range(WARMUP):
                score()
        torch.cuda.current_stream(device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # thread_local: batches may be moved on another thread meanwhile
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            found = score()

        def replay() -> Tensor:
            graph.replay()
            return found

        return replay


class _Shape:
    """Buffers of one size, and what scores them: found is overwritten by the next run."""

    def __init__(self, buffers: Batch, run: Callable[[], Tensor]) -> None:
        self.buffers, self.run = buffers, run

    def fill(self, batch: Batch) -> None:
        """Take a batch; the sample behind it owns all behaviours that are left."""
        for name, value in vars(batch).items():
            mine = getattr(self.buffers, name)
            if isinstance(value, dict):
                for key, ids in value.items():
                    mine[key][: len(ids)].copy_(ids)
            elif value is not None:
                mine[: len(value)].copy_(value)
        self.buffers.offsets[batch.size + 1 :].fill_(self.buffers.behaviours)
