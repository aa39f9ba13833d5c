"""A generated store of any size, written straight in the store's format, for benchmarks of what comes after a build."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np

CATEGORIES, SCENARIOS, ACTIONS = 1_000, 4, 3
STRIDE = 7_368_787  # a prime: multiplied by it, popular ids lie anywhere in the table
RESERVED = 2  # ids 0 = padding, 1 = missing


def write_store(
    path: Path,
    users: int,
    lengths: tuple[int, int],
    samples: dict[str, int],
    distinct: int = 100_000,
    rows: int | None = None,
    seed: int = 0,
    candidates: int = 1,
) -> Path:
    """Random trajectories and labels; the category is a property of the item.

    Args:
        path: replaced if it exists.
        lengths: events that a sample sees, at least and at most (uniform).
        samples: split -> number of samples.
        distinct: item values that occur, in a Zipf law of exponent 1.
        rows: item values that own an embedding row; None = `distinct`. The occurring ones are spread over them.
        seed: stores that differ in `rows` alone hold the same samples, but for the numbering of the items.
        candidates: samples of one request, which stand side by side.
    """
    shutil.rmtree(path, ignore_errors=True)
    rng = np.random.default_rng(seed)
    rows = rows or distinct
    low, high = lengths
    offsets = np.arange(users + 1, dtype=np.int64) * high
    total = int(offsets[-1])

    def items(size: int) -> tuple[np.ndarray, np.ndarray]:
        """(item ids, category nodes) of `size` draws."""
        rank = np.minimum(distinct ** rng.random(size), distinct - 1).astype(np.int64)
        return (RESERVED + rank * STRIDE % rows).astype(np.int32), (RESERVED + rank % CATEGORIES).astype(np.int16)

    item, category = items(total)
    time = np.sort(rng.integers(0, 10_000_000, (users, high)), axis=1).astype(np.int32)
    nodes = np.arange(RESERVED + CATEGORIES, dtype=np.int32)
    columns: dict[str, np.ndarray] = {
        "events/offsets": offsets,
        "events/time": time.ravel(),
        "events/item": item,
        "events/category": category,
        "events/scenario": rng.integers(RESERVED, RESERVED + SCENARIOS, total).astype(np.int8),
        "events/action": rng.integers(RESERVED, RESERVED + ACTIONS, total).astype(np.int8),
        "taxonomy/ancestors": nodes[:, None],
        "taxonomy/rows": nodes,
    }
    for split, size in samples.items():
        user = rng.integers(0, users, size)
        seen = rng.integers(low, high + 1, size)
        if candidates > 1:
            asked = np.arange(size) // candidates
            user, seen = user[asked], seen[asked]
        item, category = items(size)
        columns |= {
            f"samples/{split}/user": user.astype(np.int32),
            f"samples/{split}/end": offsets[user] + seen,
            f"samples/{split}/time": np.where(seen > 0, time[user, seen - 1], 0).astype(np.int64) + 1,
            f"samples/{split}/item": item,
            f"samples/{split}/category": category,
            f"samples/{split}/scenario": rng.integers(RESERVED, RESERVED + SCENARIOS, size).astype(np.int8),
            f"samples/{split}/label.click": rng.integers(0, 2, size).astype(np.int8),
        }
    files = {}
    for name, values in columns.items():
        file = path / f"{name}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, values)
        files[f"{name}.npy"] = {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}

    def field(values: int, dtype: str, in_sample: bool = True) -> dict[str, object]:
        ids = RESERVED + values
        return {"dtype": dtype, "ids": ids, "trained": ids, "in_history": True, "in_sample": in_sample}

    manifest = {
        "format": 1,
        "name": "generated",
        "time": {"ticks_per_second": 1, "base": 1_700_000_000},
        "counts": {"users": users, "events": total, "samples": samples},
        "levels": [{"name": "category", "nodes": CATEGORIES, "trained": RESERVED + CATEGORIES}],
        "fields": {
            "item": field(rows, "int32"),
            "category": field(CATEGORIES, "int16"),
            "scenario": field(SCENARIOS, "int8"),
            "action": field(ACTIONS, "int8", in_sample=False),
        },
        "targets": ["click"],
        "statistics": [],
        "files": files,
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path
