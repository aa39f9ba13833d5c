"""Hierarchical hard search: the store's index against scanning, queries per second by history length, in one run.

    python benchmarks/search.py --out benchmarks/results/search.json

Three nested levels (20 x 10 x 10 nodes, Zipf leaves) and "any", K = 50, requests at random times in the later half of
each history, one thread. `scan` is a plain padded, vectorised scan; `ragged scan` is the one the searcher itself takes
for short histories; `searcher` chooses between that and the index by length. All must find the same.

Bytes a query must move: a scan reads every behaviour's node (2 bytes each); the index reads two probes a step of a
binary search, 2 x (2 + 2) bytes x log2(length) a level and bound, and the K it returns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lsm_cli.data.batches import Queries, visible_end
from lsm_cli.data.building.orders import _ordered
from lsm_cli.data.store import Store
from lsm_cli.search.found import Found
from lsm_cli.search.hard import ANY, HardOptions, HardSearch
from lsm_cli.search.matches import MatchStatistics

K = 50
LEVELS = ["category3", "category2", "category1", ANY]
EVENTS = 4_000_000  # about, at every length
BUDGET = 1 << 21  # padded cells at once: the scan's arrays stay in the cache's reach


def world(length: int, rng: np.random.Generator) -> Store:
    """A store in memory whose users all have `length` events."""
    rows = [[0] * 3, [1] * 3]
    for _ in range(20):
        root = len(rows)
        rows.append([root, 1, 1])
        for _ in range(10):
            parent = len(rows)
            rows.append([root, parent, 1])
            rows += [[root, parent, parent + 1 + leaf] for leaf in range(10)]
    ancestors = np.array(rows, np.int32)
    leaves = np.flatnonzero(ancestors[:, 2] > 1)
    users = min(EVENTS // length, 20_000)
    popularity = 1 / np.arange(1, len(leaves) + 1)
    chosen = rng.choice(len(leaves), users * length, p=popularity / popularity.sum())
    columns = {
        "time": np.sort(rng.integers(0, 1 << 30, (users, length)), 1).ravel().astype(np.int32),
        "category": rng.permutation(leaves)[chosen].astype(np.int16),
    }
    owner, offsets = np.repeat(np.arange(users), length), np.arange(users + 1) * length
    both = {"in_history": True, "in_sample": True}
    manifest: dict[str, Any] = {
        "counts": {"users": users, "events": users * length, "samples": {}},
        "time": {"ticks_per_second": 1, "base": 0},
        "levels": [{"name": str(level), "trained": 1} for level in range(3)],
        "fields": {"category": {"ids": len(ancestors), "trained": 1, **both}},
        "index": {"fields": LEVELS[:3]},
    }
    dtype = np.uint16 if length <= 1 << 16 else np.uint32
    for level in range(3):
        values = ancestors[columns["category"], level].astype(np.int64)
        columns[f"index/category{level + 1}"] = (_ordered(owner, values) - offsets[owner]).astype(dtype)
    store = Store(Path("memory"), manifest)
    store.__dict__ |= {"offsets": offsets, "ancestors": ancestors}
    store._columns = columns
    return store


def requests(store: Store, rng: np.random.Generator, size: int) -> Queries:
    leaves = np.flatnonzero(store.ancestors[:, 2] > 1)
    user, time_ = rng.integers(0, store.users, size), rng.integers(1 << 29, 1 << 30, size)
    node = rng.choice(leaves, size)
    target = {f"category{level + 1}": store.ancestors[node, level] for level in range(3)}
    return Queries(user, store.offsets[user], visible_end(store, user, time_), time_, target)


def padded_scan(store: Store, queries: Queries) -> Found:
    """Every behaviour's level by comparison, then the K best of a composed key, in padded rows."""
    column, ancestors = store.column("category"), store.ancestors
    tables = [np.ascontiguousarray(ancestors[:, level]) for level in (2, 1, 0)]
    width = int((queries.end - queries.first).max(initial=1))
    chunk, rows, levels, pointers = max(1, BUDGET // width), [], [], []
    for start in range(0, len(queries), chunk):
        part = queries.take(np.arange(start, min(start + chunk, len(queries))))
        pointer = part.end[:, None] - 1 - np.arange(width)  # the most recent first
        inside = pointer >= part.first[:, None]
        node = column.take(pointer, mode="clip")
        level = np.full(node.shape, 3, np.int8)
        for place in (2, 1, 0):
            level[tables[place].take(node) == part.target[LEVELS[place]][:, None]] = place
        level[~inside] = 4
        key = level.astype(np.int32) * width + np.arange(width, dtype=np.int32)
        best = np.argpartition(key, K, 1)[:, :K] if width > K else np.broadcast_to(np.arange(width), key.shape)
        found = np.take_along_axis(level, best, 1)
        real = found < 4
        rows.append(start + np.nonzero(real)[0])
        levels.append(found[real].astype(np.int64))
        pointers.append(np.take_along_axis(pointer, best, 1)[real])
    return Found.ordered(len(queries), *(np.concatenate(parts) for parts in (rows, levels, pointers)))


def rate(work: Callable[[Queries], Any], queries: Queries) -> float:
    """Queries per second, best of three."""
    work(queries.take(np.arange(min(16, len(queries)))))
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        work(queries)
        best = min(best, time.perf_counter() - started)
    return len(queries) / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", nargs="+", type=int, default=[50, 200, 1000, 10_000, 100_000])
    parser.add_argument("--queries", type=int, default=4096)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rng, results = np.random.default_rng(0), {}
    for length in arguments.lengths:
        store = world(length, rng)
        queries = requests(store, rng, arguments.queries)
        few = queries.take(np.arange(max(16, min(len(queries), BUDGET * 4 // length))))
        index, ragged, chooses = (
            HardSearch(store, HardOptions(LEVELS, K, {}, scan_below=below)) for below in (0, 1 << 40, 128)
        )
        for other in (ragged(few), chooses(few), padded_scan(store, few)):
            found = index(few)
            if not (np.array_equal(found.pointer, other.pointer) and np.array_equal(found.level, other.level)):
                sys.exit(f"length {length}: the searches do not agree")
        matches = MatchStatistics(store, LEVELS[:3], [1.0, 30.0], [50])
        results[length] = {
            "scan": rate(lambda part, store=store: padded_scan(store, part), few),
            "ragged scan": rate(ragged, few),
            "index": rate(index, queries),
            "searcher": rate(chooses, queries),
            "match statistics": rate(matches, queries),
        }
        results[length]["searcher / scan"] = results[length]["searcher"] / results[length]["scan"]
        print(length, {name: round(value, 2) for name, value in results[length].items()}, file=sys.stderr, flush=True)
    names = list(next(iter(results.values())))
    print("| events a user | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 1))
    for length, entry in results.items():
        cells = [f"{value:,.1f} x" if " / " in name else f"{value:,.0f}" for name, value in entry.items()]
        print(f"| {length:,} | {' | '.join(cells)} |")
    if arguments.out:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "numpy": np.__version__}
        state = {"command": " ".join(["python", *sys.argv]), "machine": machine, "queries per second": results}
        arguments.out.write_text(json.dumps(state, indent=1) + "\n")


if __name__ == "__main__":
    main()
