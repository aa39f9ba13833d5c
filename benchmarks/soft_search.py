"""What soft search costs: narrow against wide keys, histories read once for all candidates against once for each.

    python benchmarks/soft_search.py --out benchmarks/results/soft_search.json

A query is one candidate whose whole history is scored and whose best 50 behaviours are selected. The generated store
has a million items and three category levels of 10, 100 and 1,000 nodes; keys are these four fields, 4 or 16 wide each.
Batches hold requests of 1, 4 or 16 candidates of one user. Three units:

  search   the whole first stage as training and evaluation run it: read the columns, embed, score, select, gather
  score    scores alone, the histories read and embedded: attention logits, with time and matches
  product  inner products of keys and queries alone, where the width is all that counts

`shared` reads a user's history once for all candidates, `single` once for each; ETA (32 bits) and SDIM (12 groups of 3
bits) hash the 64-wide keys. All take turns on one thread, so that a busy machine slows all; medians count, of CPU
seconds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lsm_cli import recipe as recipes
from lsm_cli.data.store import Store
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.setup import Setup
from lsm_cli.models.ranking import RankingModel
from lsm_cli.search import soft
from reports import heading, write
from stores import RESERVED, write_store

ITEMS, PER_USER, TOP_K = 1_000_000, 16, 50
NODES = (10, 100, 1_000)
SCORED = 1 << 19  # behaviours scored per batch, at most
SAMPLES = 512  # per batch, at most
SEARCHES = {
    "width 16": ("dare", "model.attention_dim=4"),
    "width 64": ("dare", "model.attention_dim=16"),
    "eta": ("eta",),
    "sdim": ("sdim",),
}
WAYS = {"shared": 0, "single": 1 << 60}


def requests_store(path: Path, users: int, length: int) -> Store:
    """Every user asks once, for sixteen candidates; three category levels."""
    write_store(path, users, (length, length), {"train": users * PER_USER}, ITEMS)
    folder = path / "samples/train"
    user = np.repeat(np.arange(users), PER_USER)
    np.save(folder / "user.npy", user.astype(np.int32))
    np.save(folder / "end.npy", (user + 1).astype(np.int64) * length)
    np.save(folder / "time.npy", np.full(len(user), 10_000_001))
    leaf = np.arange(NODES[2])
    top, middle = RESERVED + NODES[2], RESERVED + NODES[2] + NODES[0]
    ancestors = np.ones((RESERVED + sum(NODES), 3), np.int32)
    ancestors[0] = 0
    ancestors[RESERVED : RESERVED + NODES[2]] = np.stack([top + leaf // 100, middle + leaf // 10, RESERVED + leaf], 1)
    rows = np.arange(RESERVED + sum(NODES), dtype=np.int32)
    for first, size in ((top, NODES[0]), (middle, NODES[1])):
        rows[first : first + size] = RESERVED + np.arange(size)
    np.save(path / "taxonomy/ancestors.npy", ancestors)
    np.save(path / "taxonomy/rows.npy", rows)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["levels"] = [{"name": f"level {k}", "nodes": n, "trained": RESERVED + n} for k, n in enumerate(NODES, 1)]
    (path / "manifest.json").write_text(json.dumps(manifest))
    return Store.open(path)


def batches(users: int, candidates: int, length: int, count: int) -> list[np.ndarray]:
    """Samples of `count` batches, user by user, as many as fit; other users in every batch where there are enough."""
    size = max(min(SAMPLES, SCORED // length) // candidates, 1)
    asked = np.arange(size * count).reshape(count, size) % users
    return [(one[:, None] * PER_USER + np.arange(candidates)).ravel() for one in asked]


def made(store: Store, name: str, *overrides: str) -> tuple[Feed, RankingModel]:
    fields = 'data.fields=["item", "category1", "category2", "category3"]'
    options = [fields, f"search.top_k={TOP_K}", "train.device=cpu", "train.threads=1", *overrides]
    setup = Setup.of(recipes.load(name, options), store)
    return Feed(setup, "train"), setup.model().eval()


def scorers(feed: Feed, model: RankingModel, index: np.ndarray) -> dict[str, dict[str, Callable[[], object]]]:
    """unit -> way -> what to time, on histories that are read and embedded."""
    asked = feed.assembler.queries(index)
    shared = soft.share(asked)
    joint, query = feed._jointly(index, shared, asked, model)
    single, queries = model.keys(feed.assembler.batch(index))
    return {
        "score": {"shared": lambda: feed._scores(joint, query), "single": lambda: feed._scores(single, queries)},
        "product": {"shared": lambda: joint.scores(query, False), "single": lambda: single.scores(queries, False)},
    }


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


@torch.no_grad()
def compare(store: Store, length: int, candidates: int, rounds: int) -> dict[str, dict[str, dict[str, int]]]:
    """unit -> way -> search -> queries per CPU second."""
    users = len(store.offsets) - 1
    taken: dict[tuple[str, str, str], list[float]] = {}
    sides = {name: made(store, *recipe) for name, recipe in SEARCHES.items()}
    orders = batches(users, candidates, length, rounds + 1)
    for number, index in enumerate(orders):  # the first round only reads the files into memory
        for name, (feed, model) in sides.items():
            work: dict[str, dict[str, Callable[[], object]]] = {
                "search": {way: lambda feed=feed, model=model, index=index: feed.batch(index, model) for way in WAYS}
            }
            if name.startswith("width"):
                work |= scorers(feed, model, index)
            for unit, ways in work.items():
                for way, call in ways.items():
                    soft.PAYS = WAYS[way]
                    spent = seconds(call)
                    if number:
                        taken.setdefault((unit, way, name), []).append(len(index) / spent)
    found: dict[str, dict[str, dict[str, int]]] = {}
    for (unit, way, name), rates in taken.items():
        found.setdefault(unit, {}).setdefault(way, {})[name] = round(statistics.median(rates))
    return found


def rows(length: int, candidates: int, found: dict[str, dict[str, dict[str, int]]]) -> list[str]:
    lines = []
    for unit, ways in found.items():
        for way, rates in ways.items():
            cells = [f"{rates[name]:,}" if name in rates else "" for name in SEARCHES]
            cells.append(f"{rates['width 16'] / rates['width 64']:.1f}")
            cells.append(f"{rates['width 16'] / ways['single']['width 16']:.1f}")
            lines.append(f"| {length:,} | {candidates} | {unit} | {way} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=[200, 1_000, 10_000])
    parser.add_argument("--candidates", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("build/benchmark-soft-search"))
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    print(f"| history | candidates | unit | reading | {' | '.join(SEARCHES)} | 16 / 64 | shared / single |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for length in options.lengths:
        store = requests_store(options.work / "store", min(SAMPLES, SCORED // length), length)
        for candidates in options.candidates:
            one = compare(store, length, candidates, options.rounds)
            found.setdefault(str(length), {})[str(candidates)] = one
            print("\n".join(rows(length, candidates, one)), flush=True)
    shutil.rmtree(options.work)
    report = {
        **heading(),
        "unit": "queries per CPU second", "items": ITEMS, "categories": NODES, "top_k": TOP_K, "threads": 1,
        "lengths": found,
    }  # fmt: skip
    if options.out:
        write(options.out, report)


if __name__ == "__main__":
    main()
