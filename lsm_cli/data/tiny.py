"""A small random store, written straight in the store's format: in a moment, and without what builds stores (polars).

Self-test and tests train on it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np


def write_store(
    path: Path,
    users: int = 60,
    longest: int = 40,
    samples: int = 600,
    items: int = 50,
    seed: int = 0,
    index: bool = False,
) -> Path:
    """Random trajectories in which the label says whether the candidate occurs in the last ten behaviours.

    Two category levels, a scenario, an action that candidates lack, one statistic, targets `click` and `order` (the
    latter observed on half of the samples).

    Args:
        longest: behaviours of a user, at most.
        samples: of the training split; the others have a third of it.
        index: with the orders that searches go by.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest + 1, users)
    lengths[0] = 0
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    total = int(offsets[-1])
    owner = np.repeat(np.arange(users), lengths)
    time = rng.integers(0, 5_000, total)  # few ticks: many ties
    time = time[np.lexsort((time, owner))].astype(np.int32)
    trained = items - 5
    item = rng.integers(1, items, total).astype(np.int16)
    nodes = 2 + 3 + 6  # padding, missing, three roots with two leaves each
    ancestors = np.ones((nodes, 2), np.int32)
    ancestors[0] = 0
    rows = np.zeros(nodes, np.int32)
    rows[1] = 1
    leaves: list[int] = []
    for root in range(3):
        node = 2 + 3 * root
        ancestors[node] = (node, 1)
        rows[node] = 2 + root
        for leaf in (node + 1, node + 2):
            ancestors[leaf] = (node, leaf)
            rows[leaf] = 2 + len(leaves)
            leaves.append(leaf)
    of_item = np.array(leaves)[rng.integers(0, len(leaves), items)].astype(np.int16)
    columns: dict[str, np.ndarray] = {
        "offsets": offsets,
        "time": time,
        "item": item,
        "category": of_item[item],
        "scenario": rng.integers(2, 5, total).astype(np.int8),
        "action": rng.integers(2, 4, total).astype(np.int8),
    }
    for name, values in columns.items():
        _save(path / "events" / f"{name}.npy", values)
    _save(path / "taxonomy" / "ancestors.npy", ancestors)
    _save(path / "taxonomy" / "rows.npy", rows)
    if index:
        levels = {f"category{level}": ancestors[columns["category"], level - 1] for level in (1, 2)}
        for name, values in {"item": item, **levels, "scenario": columns["scenario"]}.items():
            order = np.lexsort((values, owner)) - offsets[owner]  # stable: of one value, the older first
            _save(path / "index" / f"{name}.npy", order.astype(np.uint16))
    counts = {"train": samples, "valid": samples // 3, "test": samples // 3}
    for split, number in counts.items():
        user = rng.integers(0, users, number).astype(np.int32)
        request = np.sort(rng.integers(100, 6_000, number)).astype(np.int64)
        end = np.array(
            [
                offsets[u] + np.searchsorted(time[offsets[u] : offsets[u + 1]], t)
                for u, t in zip(user, request, strict=True)
            ]
        )
        target = rng.integers(2, items, number).astype(np.int16)
        recent = [item[max(e - 10, offsets[u]) : e] for u, e in zip(user, end, strict=True)]
        for row in range(0, number, 2):  # half of the candidates come from the history
            if len(recent[row]):
                target[row] = max(2, recent[row][rng.integers(len(recent[row]))])
        hit = np.array([t in r for t, r in zip(target, recent, strict=True)])
        click = (rng.random(number) < np.where(hit, 0.85, 0.15)).astype(np.int8)
        order = np.where(np.arange(number) % 2 == 0, (rng.random(number) < np.where(hit, 0.6, 0.1)), -1).astype(np.int8)
        made: dict[str, np.ndarray] = {
            "user": user,
            "end": end.astype(np.int64),
            "time": request,
            "item": target,
            "category": of_item[target],
            "scenario": rng.integers(2, 5, number).astype(np.int8),
            "label.click": click,
            "label.order": order,
            "stat.popularity.item.1d": rng.integers(-1, 30, number).astype(np.float32),
        }
        for name, values in made.items():
            _save(path / "samples" / split / f"{name}.npy", values)
    both = {"in_history": True, "in_sample": True}
    manifest: dict[str, Any] = {
        "format": 1,
        "name": "small",
        "time": {"ticks_per_second": 1, "base": 1_600_000_000},
        "counts": {"users": users, "events": total, "samples": counts},
        "levels": [{"name": "c1", "nodes": 3, "trained": 5}, {"name": "c2", "nodes": 6, "trained": 8}],
        "fields": {
            "item": {"dtype": "int16", "ids": items, "trained": trained, **both},
            "category": {"dtype": "int16", "ids": nodes, "trained": nodes, **both},
            "scenario": {"dtype": "int8", "ids": 5, "trained": 5, **both},
            "action": {"dtype": "int8", "ids": 4, "trained": 4, "in_history": True, "in_sample": False},
        },
        "targets": ["click", "order"],
        "statistics": ["popularity/item/1d"],
        "files": _files(path, "events", "samples", "taxonomy"),
    }
    if index:
        manifest["index"] = {"fields": ["item", "category1", "category2", "scenario"], "files": _files(path, "index")}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def _files(path: Path, *folders: str) -> dict[str, dict[str, Any]]:
    return {
        str(file.relative_to(path)): {
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for folder in folders
        for file in sorted((path / folder).rglob("*.npy"))
    }


def _save(file: Path, values: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, values)
