"""The search space of a recipe that brings none."""

from __future__ import annotations

from typing import Any

from lsm_cli import recipe as recipes
from lsm_cli.recipe import Recipe


def default(recipe: Recipe) -> dict[str, Any]:
    """A `[tune]` table for a recipe: its variant, its length or K, its widths and its learning rates.

    Every range holds the recipe's own value; rates vary four times up and down.
    """
    model, search, train = recipe.model, recipe.search, recipe.train
    table: dict[str, Any] = {}
    if model.sequence in recipes.ATTENTIVE:
        table["model.sequence"] = list(recipes.ATTENTIVE)
        table["model.layers"] = {"range": f"1:{max(3, model.layers)}", "when": "model.sequence=stacked_tin"}
        table["model.attention_dim"] = sorted({0, 4, 8, model.attention_dim})
    if search.method != "none" and not search.source:
        table["search.top_k"] = _around(search.top_k, 100_000)
    elif model.sequence != "none" and model.max_len and not search.source:
        table["model.max_len"] = _around(model.max_len, 1_000_000)
    table["model.dim"] = _around(model.dim, 1024)
    hidden = [[64], [128], [256, 128]]
    table["model.hidden"] = hidden if model.hidden in hidden else [*hidden, model.hidden]
    table["model.dropout"] = f"0.0:{max(0.3, model.dropout)!r}"
    for key, rate in (("train.lr", train.lr), ("train.table_lr", train.table_lr)):
        table[key] = f"{rate / 4:.3g}:{min(rate * 4, 10):.3g}:log"
    return table


def _around(value: int, most: int) -> list[int]:
    return sorted({max(1, value // 2), value, min(2 * value, most)})
