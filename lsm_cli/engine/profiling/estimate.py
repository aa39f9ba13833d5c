"""What a recipe will need on a store, without running it: no table of it is made and none of its steps is taken.

The lengths of the histories say which step of the epoch is the heaviest and how much it reads. How much memory it takes
for each sample is rehearsed: two small draws of that step, of the same mean length, go through the same code with
tables of a few rows. Memory of a step is linear in its size; what the real tables hold, and the rows that the real step
touches, are counted. So the estimate follows any change of the models by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lsm_cli.data.orders import ragged_arange
from lsm_cli.embedding.tiers import Tier
from lsm_cli.engine import tiers
from lsm_cli.engine.profiling import memory, roofline
from lsm_cli.engine.profiling.work import Phase, Work
from lsm_cli.engine.setup import Setup
from lsm_cli.models.graph import ItemVectors

FEW_ROWS = 2048  # of a rehearsal's tables; those of category levels are as they are
SHARES = (8, 4)  # a rehearsal takes one in so many samples
SCRATCH, MAP, SLOT = 4, 4, 22  # bytes: of a row in a step's scratch and in the map to slots, of what a slot knows
LEAST = 16  # samples of a rehearsal, at least


def estimate(setup: Setup, phase: Phase) -> dict[str, Any]:
    """Memory and traffic of the epoch's heaviest step.

    Returns:
        peak_allocated (bytes), moved_bytes, samples, behaviours, rows: {field: distinct rows}, tables (bytes of tables
        and the state of their optimisers, of what the device holds of them).
    """
    few = [field if field.level else replace(field, rows=min(field.rows, FEW_ROWS)) for field in setup.fields]
    before = memory.baseline(setup.compute.device)
    work = Work(replace(setup, fields=few), phase)
    group = work.heaviest()
    draws = [_draw(work, group, share) for share in SHARES]
    for _ in work.steps(draws):  # what libraries keep from their first calls on is no part of the slope
        pass
    rehearsals = [_rehearse(work, draw, before) for draw in draws]
    touched, size = _distinct(setup, work, group), _size(work, group)
    training = phase == "train"
    peak = rehearsals[0].resting + max(
        _extended([(one.size, one.parts[name]) for one in rehearsals], size) for name in rehearsals[0].parts
    )  # each part of a step grows on a line of its own
    moved = _extended([(one.size, one.moved) for one in rehearsals], size)
    tables, tier = 0, Tier.of(setup.recipe.engine)
    for space in work.model.spaces:
        dim, names = space.dim, space.bank.names
        a_row = (12 if training else 4) * dim + 8  # values, their gradient, their step; the row's number
        for field, small in zip(setup.fields, few, strict=True):
            if field.name in names:
                tables += tier.held(field.rows) * tiers.row_bytes(setup.recipe.train, dim)
                peak += _kept(setup, field.rows, dim) - _kept(setup, small.rows, dim)
                peak += touched[field.name] * a_row
                moved += touched[field.name] * (8 * dim if not training else 24 * dim)
    items = getattr(work.model, "items", None)
    if isinstance(items, ItemVectors):  # the item graph's vectors, a row for every item
        real, fewer = (next(field.rows for field in fields if field.name == "item") for fields in (setup.fields, few))
        peak += (real - fewer) * sum(vectors.nbytes for vectors in items.buffers()) / fewer
    return {
        "peak_allocated": int(peak),
        "moved_bytes": int(moved),
        "samples": len(group),
        "behaviours": work.behaviours(group),
        "rows": touched,
        "tables": tables,
    }


def _kept(setup: Setup, rows: int, dim: int) -> int:
    """Bytes of a table, its optimiser and what finds its rows, as `memory` counts them: on a GPU what lies there, on
    the CPU all but a file."""
    tier, a_row = Tier.of(setup.recipe.engine), tiers.row_bytes(setup.recipe.train, dim)
    held = tier.held(rows)
    on_host = SCRATCH * rows
    if held < rows:
        on_host += SLOT * held + MAP * rows + (rows * a_row if tier.kind == "host" else 0)
    return held * a_row + (on_host if setup.compute.device.type == "cpu" else 0)


@dataclass
class Rehearsal:
    """A small step, without what its distinct rows take.

    Attributes:
        size: see `_size`.
        resting: bytes held between steps; parts: peak bytes beyond them, by part of the step; moved: bytes.
    """

    size: int
    resting: int
    parts: dict[str, float]
    moved: float


def _rehearse(work: Work, group: np.ndarray, before: int) -> Rehearsal:
    training, rows_take = work.phase == "train", 0
    watched = memory.watch_step(work, before, group)
    moved, _ = roofline.tally(work, group)
    batch = work.feed.batch(group, work.model)
    for leaf in work.model.leaves(work.model.fetch(batch)):
        rows, dim = leaf.shape
        rows_take += rows * ((12 if training else 4) * dim + 8)
        moved -= rows * (24 if training else 8) * dim
    resting = watched["resting"]
    parts = {name: peak - resting - rows_take for name, peak in watched["parts"].items()}
    return Rehearsal(_size(work, group), resting, parts, moved)


def _size(work: Work, group: np.ndarray) -> int:
    """What a step grows with: its samples and what they read."""
    return len(group) + work.behaviours(group)


def _extended(rehearsals: list[tuple[int, float]], size: int) -> float:
    """The line through two rehearsals, at the size of the real step."""
    (small, low), (large, high) = rehearsals
    return high + (high - low) / max(large - small, 1) * (size - large)


def _draw(work: Work, group: np.ndarray, share: int) -> np.ndarray:
    """One in so many samples of a step, evenly over the lengths of their histories; candidates of a request that stand
    side by side, and may share its history, stay together: then evenly over their number, too."""
    begins, _ = work.feed.assembler.side_by_side(group)
    sizes = np.diff(begins, append=len(group))
    ordered = np.lexsort((work.feed.lengths(group[begins]), sizes))
    count = min(len(group), max(len(group) // share, LEAST * SHARES[0] // share))
    runs = max(round(count * len(begins) / max(len(group), 1)), min(count, 1))
    chosen = ordered[((np.arange(runs) + 0.5) * len(begins) / max(runs, 1)).astype(np.int64)]
    return group[ragged_arange(begins[chosen], sizes[chosen])[1]]


def _distinct(setup: Setup, work: Work, group: np.ndarray) -> dict[str, int]:
    """Distinct rows of each field's real table that a step touches."""
    batch = work.feed.batch(group, work.model)
    found = {}
    for field in setup.fields:
        ids = [part[field.name].numpy(force=True) for part in (batch.history, batch.target) if field.name in part]
        found[field.name] = min(len(np.unique(np.concatenate(ids))), field.rows) if ids else 0
    return found
