"""The search space of a recipe that brings none: the variant itself, what is read, widths and learning rates."""

from __future__ import annotations

from typing import Any

import numpy as np

from lsm_cli.engine.setup import Setup
from lsm_cli.models.graph import with_graph
from lsm_cli.models.heads import groups
from lsm_cli.options import ATTENTIVE, LAYERED
from lsm_cli.search.hard import ANY

STACKED, SEARCHES, DOES_NOT = "model.sequence=stacked_tin", "search.method!=none", "search.method=none"


def default(setup: Setup) -> dict[str, Any]:
    """A `[tune]` table for a recipe on a store: what both allow to vary, and nothing without effect.

    Every range holds the recipe's own value; rates vary four times up and down. A search is offered where the store has
    an index for it, temporal tables of their own where there are several targets.
    """
    model, train = setup.recipe.model, setup.recipe.train
    table: dict[str, Any] = {}
    if model.sequence != "none" and model.max_len:
        table |= _variant(setup) | _behaviours(setup)
    if model.evidence and _indexed(setup, setup.matched):
        table["model.evidence_from"] = ["read", "history"]
    table["model.dim"] = _around(model.dim, 1024)
    table["model.hidden"] = _with([[64], [128], [256, 128]], model.hidden)
    table["model.dropout"] = f"0.0:{max(0.3, model.dropout)!r}"
    for key, rate in (("train.lr", train.lr), ("train.table_lr", train.table_lr)):
        table[key] = f"{rate / 4:.3g}:{min(rate * 4, 10):.3g}:log"
    return table


def _variant(setup: Setup) -> dict[str, Any]:
    """How the history is read."""
    model = setup.recipe.model
    layers = f"1:{max(3, model.layers)}"
    table: dict[str, Any] = {}
    if model.sequence in ATTENTIVE:
        table["model.sequence"] = list(ATTENTIVE)
        table["model.layers"] = {"range": layers, "when": STACKED}
        table["model.stack_residual"] = {"choices": ["norm", "gate"], "when": STACKED}
        table["model.attention_dim"] = sorted({0, 4, 8, model.attention_dim})
        seen = with_graph([field for field in setup.fields if field.in_history], model.graph_dim)
        several = len(groups("auto", seen, bool(model.temporal))) > 1
        choices = _with([[], "auto"] if several else [[]], model.heads)
        if len(choices) > 1:
            table["model.heads"] = choices
    elif model.sequence in LAYERED:
        table["model.layers"] = layers
    if model.sequence == "sasrec":
        table["train.next_item"] = sorted({0.0, 1.0, setup.recipe.train.next_item})
    if len(setup.targets) > 1 and model.temporal:
        table["model.time_tables"] = ["shared", "own", "residual"]
    return table


def _behaviours(setup: Setup) -> dict[str, Any]:
    """Which behaviours are read: the most recent, or those that a search finds; and how many."""
    model, search = setup.recipe.model, setup.recipe.search
    if search.source:
        return {}
    methods = [search.method]
    if model.sequence != "sasrec" and _indexed(setup, [level for level in setup.hard_options().levels if level != ANY]):
        methods = _with(["none", "hard"], search.method)
    table: dict[str, Any] = {"search.method": methods} if len(methods) > 1 else {}
    longest = int(np.diff(setup.store.offsets).max(initial=0))
    hard = search.hard_k if search.method == "hybrid" else 1
    for key, value, least, most, when in (
        ("search.top_k", search.top_k, hard, 100_000, SEARCHES),
        ("model.max_len", model.max_len, 1, 1_000_000, DOES_NOT),
    ):
        around = [n for n in _around(value, most) if n >= least]
        choices = [n for n in around if n == value or min(n, value) < longest]  # more is all there is
        if len(choices) > 1 and ("none" in methods if when is DOES_NOT else methods != ["none"]):
            table[key] = {"choices": choices, "when": when} if len(methods) > 1 else choices
    return table


def _indexed(setup: Setup, fields: list[str]) -> bool:
    """Whether the store keeps the behaviours in the order of each of the fields, and there are any."""
    return bool(fields) and all(name in setup.store.index for name in fields)


def _with(choices: list[Any], own: Any) -> list[Any]:
    return choices if own in choices else [*choices, own]


def _around(value: int, most: int) -> list[int]:
    return sorted({max(1, value // 2), value, min(2 * value, most)})
