"""Random stores in memory: a random forest of categories, random histories and requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lsm_cli.data.assembling import visible_end
from lsm_cli.data.batches import Queries
from lsm_cli.data.building.orders import ordered
from lsm_cli.data.store import MISSING, Store


def forest(rng: np.random.Generator, depth: int, roots: int, fan: int) -> np.ndarray:
    """int32 [nodes, depth]: depth-first numbered; branches end at different depths."""
    rows: list[list[int]] = [[0] * depth, [MISSING] * depth]

    def grow(path: list[int]) -> None:
        mine = [*path, len(rows)]
        rows.append(mine + [MISSING] * (depth - len(mine)))
        if len(mine) < depth:
            for _ in range(int(rng.integers(0, fan + 1))):
                grow(mine)

    for _ in range(roots):
        grow([])
    return np.array(rows, np.int32)


def random_store(seed: int, users: int = 4, longest: int = 60, depth: int = 3) -> tuple[Store, np.random.Generator]:
    rng = np.random.default_rng(seed)
    ancestors = forest(rng, depth, int(rng.integers(1, 5)), 3)
    lengths = rng.integers(0, longest + 1, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    total, owner = int(offsets[-1]), np.repeat(np.arange(users), lengths)
    time = rng.integers(0, 50, total)
    columns = {
        "time": time[np.lexsort((time, owner))].astype(np.int32),
        "item": rng.integers(1, 12, total).astype(np.int16),
        "category": rng.integers(1, len(ancestors), total).astype(np.int16),
        "scenario": rng.integers(2, 5, total).astype(np.int8),
    }
    both = {"in_history": True, "in_sample": True}
    names = ["item", *(f"category{level}" for level in range(1, depth + 1)), "scenario"]
    manifest = {
        "counts": {"users": users, "events": total, "samples": {}},
        "time": {"ticks_per_second": 1, "base": 0},
        "levels": [{"name": f"c{level}", "trained": len(ancestors)} for level in range(1, depth + 1)],
        "fields": {
            "item": {"ids": 12, "trained": 12, **both},
            "category": {"ids": len(ancestors), "trained": len(ancestors), **both},
            "scenario": {"ids": 5, "trained": 5, **both},
        },
        "index": {"fields": names},
    }
    store = Store(Path("memory"), manifest)
    store.__dict__ |= {"offsets": offsets, "ancestors": ancestors}
    for name in names:
        level = store.fields[name].level
        values = ancestors[columns["category"], level - 1] if level else columns[name]
        order = ordered(owner, values.astype(np.int64)) - offsets[owner]
        columns[f"index/{name}"] = order.astype(np.uint16)
    store._columns = columns
    return store, rng


def random_queries(store: Store, rng: np.random.Generator, size: int) -> Queries:
    """Requests at any time; candidates of any category, missing ones too."""
    user = rng.integers(0, store.users, size)
    time = rng.integers(0, 60, size)
    node = rng.integers(1, len(store.ancestors), size)
    target = {f"category{level + 1}": store.ancestors[node, level] for level in range(store.depth)}
    target |= {"item": rng.integers(1, 14, size), "scenario": rng.integers(1, 6, size)}
    return Queries(user, store.offsets[user], visible_end(store, user, time), time, target)


def value(store: Store, field: str, pointer: int) -> int:
    level = store.fields[field].level
    found = int(store.column("category" if level else field)[pointer])
    return int(store.ancestors[found, level - 1]) if level else found
