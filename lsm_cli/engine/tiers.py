"""Tables larger than the device, as a run and a profile speak of them: what was decided, and how often it hit."""

from __future__ import annotations

import tempfile
from typing import Any

from lsm_cli.data.store import Field
from lsm_cli.embedding.tiers import Counts, Tier
from lsm_cli.models.scorer import Scorer
from lsm_cli.options import Recipe, TrainOptions
from lsm_cli.report.console import count, size


def row_bytes(train: TrainOptions, dim: int) -> int:
    """Of a table's row and its optimiser's state."""
    state = 4 if train.table_optimizer == "adagrad" else 8 * dim + 4
    return (2 if train.table_dtype == "bf16" else 4) * dim + state


def decisions(recipe: Recipe, fields: list[Field]) -> list[str]:
    """Where the tables lie that are not whole on the device, a line each."""
    tier, model = Tier.of(recipe.engine), recipe.model
    if tier.kind == "device":
        return []
    lines = []
    for field in fields:
        held = tier.held(field.rows)
        if held == field.rows:
            continue
        dims = [model.dim, *([model.attention_dim] if model.attention_dim and field.in_history else [])]
        a_row = sum(row_bytes(recipe.train, dim) for dim in dims)
        lines.append(
            f"tier       {field.name}: {field.rows:,} rows and their optimiser in {_where(tier.kind)}, "
            f"{size(field.rows * a_row)}; the {held:,} most used on the device, {size(held * a_row)}"
        )
    return lines or ["tier       no table is larger than its cache: all stay on the device"]


def restart(model: Scorer) -> None:
    """Count from here on."""
    for table in model.cached.values():
        table.counts = {True: Counts(), False: Counts()}


def record(model: Scorer, learns: bool) -> dict[str, dict[str, Any]]:
    """What came of the caches in steps that learn, or in others, of this process.

    Returns:
        table -> rows, held (rows on the device), tier, bytes (of the whole), asked (distinct rows, summed over the
        steps), hit, ahead, waited (shares of these: on the device anyway, brought before and when they were asked for),
        written (rows written back), in_pieces (reads larger than the cache); nothing for tables whole on the device.
    """
    found = {}
    for name, table in model.cached.items():
        counts = table.counts[learns]
        asked = max(counts.asked, 1)
        found[name] = {
            "rows": table.rows, "held": table.size, "tier": table.tier.kind, "bytes": table.nbytes,
            "asked": counts.asked, "hit": counts.hit, "ahead": counts.ahead / asked, "waited": counts.waited / asked,
            "written": counts.written, "in_pieces": counts.pieces,
        }  # fmt: skip
    return found


def sentences(found: dict[str, dict[str, Any]]) -> list[str]:
    """A record in words."""
    lines = []
    for name, one in found.items():
        line = (
            f"{name} table: {count(one['rows'])} rows, {size(one['bytes'])} in {_where(one['tier'])}, "
            f"{one['held'] / one['rows']:.1%} of them on the device: {one['hit']:.1%} of the rows that steps asked for "
            f"were there, {one['ahead']:.1%} were brought ahead, {one['waited']:.1%} were waited for"
        )
        if one["in_pieces"]:
            line += (
                f"; {one['in_pieces']:,} times a step asked for more than the cache holds and went in pieces: raise "
                "engine.cache_rows"
            )
        lines.append(line)
    return lines


def _where(kind: str) -> str:
    return "host memory" if kind == "host" else f"a scratch file in {tempfile.gettempdir()}"
