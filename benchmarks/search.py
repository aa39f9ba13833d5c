"""Hierarchical hard search: the store's index against scanning, queries per second by history length, in one run.

    python benchmarks/search.py --out benchmarks/results/search.json

Three nested levels (20 x 10 x 10 nodes, Zipf leaves) and "any", K = 50, requests at random times in the later half of
each history, one thread. `textbook` scans as one would write it down: padded rows, ancestors looked up, argpartition.
`narrow` is the fastest such scan found: 16-bit levels in padded matrices made beforehand (not timed), comparison, one
narrow key, an in-place partition. `stepwise` reads the same matrices query by query, a level at a time, and stops where
K are found: the fastest on very long histories. `scan` is the searcher's own, from the store's columns; `searcher`
chooses between it and the index by length. All must find the same.

Seconds are those of the CPU, so that other work on the machine changes little; all take turns, the best of the rounds
counts. Ratios are of the same run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lsm_cli.data.assembling import visible_end
from lsm_cli.data.batches import Queries
from lsm_cli.data.building.orders import ordered
from lsm_cli.data.store import Store
from lsm_cli.search.found import Found
from lsm_cli.search.hard import ANY, HardOptions, HardSearch
from lsm_cli.search.matches import MatchStatistics
from reports import heading, write

K = 50
LEVELS = ["category3", "category2", "category1", ANY]
EVENTS = 4_000_000  # about, at every length
BUDGET = 1 << 21  # padded cells at once of the textbook scan
CELLS = 1 << 17  # of the narrow one


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
        columns[f"index/category{level + 1}"] = (ordered(owner, values) - offsets[owner]).astype(dtype)
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


class NarrowScan:
    """Every user's history as a padded row, a matrix for each level: the store at its best for scanning."""

    def __init__(self, store: Store) -> None:
        lengths = np.diff(store.offsets)
        node = np.zeros((store.users, int(lengths.max())), np.int16)
        node[np.arange(node.shape[1]) < lengths[:, None]] = store.column("category")
        self.levels = [np.ascontiguousarray(store.ancestors[:, level].astype(np.int16))[node] for level in range(3)]
        self.offsets = store.offsets

    def __call__(self, queries: Queries) -> Found:
        end = (queries.end - queries.first).astype(np.int32)
        bits = int(self.levels[0].shape[1]).bit_length()
        dtype = np.dtype(np.int16 if bits <= 12 else np.int32)
        best = np.zeros((len(queries), K), dtype)
        chunk = max(1, CELLS // self.levels[0].shape[1])
        for start in range(0, len(queries), chunk):
            here = slice(start, start + chunk)
            width = max(int(end[here].max()), 1)
            user, place = queries.user[here], np.arange(width, dtype=dtype)
            score = np.ones((len(user), width), np.uint8)
            for level, rows in enumerate(self.levels):
                target = queries.target[f"category{level + 1}"][here].astype(np.int16)
                score += (rows[user, :width] == target[:, None]).view(np.uint8)
            score *= (place < end[here].astype(dtype)[:, None]).view(np.uint8)
            key = score.astype(dtype)
            key <<= bits
            key += place
            most = min(K, width)
            key.partition(width - most, axis=1)
            key = key[:, width - most :]
            key.sort(axis=1)
            best[here, :most] = key[:, ::-1]
        real = best >= 1 << bits
        row, key = np.nonzero(real)[0], best[real].astype(np.int64)
        pointer = queries.first[row] + (key & ((1 << bits) - 1))
        offsets = np.concatenate([[0], np.cumsum(real.sum(1))])
        return Found(offsets, pointer, (4 - (key >> bits)).astype(np.uint8))


class StepwiseScan(NarrowScan):
    """Level by level, each only where the finer ones did not find K."""

    def __call__(self, queries: Queries) -> Found:
        first, end = queries.first.tolist(), (queries.end - queries.first).tolist()
        targets = np.stack([queries.target[f"category{level}"] for level in (1, 2, 3)], 1).tolist()
        pointers, levels, counts = [], [], []
        for start, stop, user, target in zip(first, end, queries.user.tolist(), targets, strict=True):
            missing = K
            finer = None
            for found_by, level in enumerate((2, 1, 0, None)):
                if level is None:
                    at = np.flatnonzero(self.levels[0][user, :stop] != target[0])
                else:
                    at = np.flatnonzero(self.levels[level][user, :stop] == target[level])
                    if finer is not None:
                        at = at[self.levels[finer][user].take(at) != target[finer]]
                    finer = level
                at = at[: -missing - 1 : -1]
                pointers.append(start + at)
                levels.append(np.full(len(at), found_by, np.uint8))
                missing -= len(at)
                if not missing:
                    break
            counts.append(K - missing)
        return Found(np.concatenate([[0], np.cumsum(counts)]), np.concatenate(pointers), np.concatenate(levels))


def rates(works: dict[str, tuple[Callable[[Queries], Any], Queries]], seconds: float) -> dict[str, float]:
    """Queries per CPU-second of each, the best of as many rounds as fit, three at least."""
    best = dict.fromkeys(works, float("inf"))
    rounds, begun = 0, time.process_time()
    while rounds < 3 or time.process_time() - begun < seconds:
        for name, (work, queries) in works.items():
            started = time.process_time()
            work(queries)
            best[name] = min(best[name], (time.process_time() - started) / len(queries))
        rounds += 1
    return {name: 1 / spent for name, spent in best.items()}


RATIOS = [(ours, theirs) for ours in ("index", "searcher") for theirs in ("textbook", "narrow", "stepwise")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", nargs="+", type=int, default=[50, 200, 1000, 10_000, 100_000])
    parser.add_argument("--queries", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=5, help="of the CPU, at each length")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rng, results = np.random.default_rng(0), {}
    for length in arguments.lengths:
        store = world(length, rng)
        queries = requests(store, rng, arguments.queries)
        few = queries.take(np.arange(max(16, min(len(queries), BUDGET * 4 // length))))
        options = HardOptions(LEVELS, K, {})
        index, scan, searcher = (
            HardSearch(store, replace(options, scan_below=below)) for below in (0, 1 << 40, options.scan_below)
        )
        narrow, stepwise = NarrowScan(store), StepwiseScan(store)
        found = index(few)
        for other in (scan(few), searcher(few), padded_scan(store, few), narrow(few), stepwise(few)):
            for name, expected in vars(found).items():
                if not np.array_equal(expected, getattr(other, name)):
                    sys.exit(f"length {length}: the searches do not agree")
        matches = MatchStatistics(store, LEVELS[:3], [1.0, 30.0], [50])
        works = {
            "textbook": (lambda part, store=store: padded_scan(store, part), few),
            "narrow": (narrow, few),
            "stepwise": (stepwise, few.take(np.arange(min(len(few), 512)))),
            "scan": (scan, few),
            "index": (index, queries),
            "searcher": (searcher, queries),
            "match statistics": (matches, queries),
        }
        entry = rates(works, arguments.seconds)
        entry = {name: round(value) for name, value in entry.items()}
        entry |= {f"{ours} / {theirs}": round(entry[ours] / entry[theirs], 2) for ours, theirs in RATIOS}
        results[length] = entry
        print(length, entry, file=sys.stderr, flush=True)
    names = list(next(iter(results.values())))
    print("| events a user | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 1))
    for length, entry in results.items():
        cells = [f"{value:,.1f} x" if " / " in name else f"{value:,}" for name, value in entry.items()]
        print(f"| {length:,} | {' | '.join(cells)} |")
    if arguments.out:
        write(arguments.out, {**heading(numpy=np.__version__), "queries per CPU-second": results})


if __name__ == "__main__":
    main()
