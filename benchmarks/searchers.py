"""What each search is worth, and what it costs: every searcher with the same second stage, at equal K.

    lsm build-sequences benchmarks/datasets/retail.toml --root ../shared/data/retail --out stores/retail
    python benchmarks/searchers.py --data stores/retail --top-k 20 50 100 --out benchmarks/results/searchers.json

The second stage is `tin` with match evidence over what was found, so that a searcher is judged by its finds alone;
`hier_hard + index` also counts matches over the whole history by the store's index. `recent` is no search: the last K.
Finished entries of the result file are kept, so that an interrupted table goes on where it stopped.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from accuracy import opened, run, spread

SEARCHERS = {
    "recent": "tin",
    "sim_hard": 'tin search.method=hard search.levels=["leaf"]',
    "hier_hard, categories only": 'hier_hard model.evidence_from=read search.levels=["leaf","category1","any"]',
    "hier_hard": "hier_hard model.evidence_from=read",
    "hier_hard + index": "hier_hard",
    "sim_soft": "tin search.method=soft search.score=product",
    "eta": "tin search.method=eta",
    "sdim": "tin search.method=sdim search.hashes=12 search.hash_bits=3",
    "twin": "tin search.method=soft",
    "dare": "tin search.method=soft model.attention_dim=4 model.attention_std=0.8 model.temporal_start=zero",
    "hybrid": "hybrid search.recent=0",
}
PROBE = 20  # batches timed for the share of the step that goes into making them


def batch_seconds(store: Path, recipe: str, overrides: list[str]) -> float:
    """Seconds per sample to search, count matches and assemble, with a fresh model."""
    import torch

    from lsm_cli import recipe as recipes
    from lsm_cli.data.epochs import epoch_order
    from lsm_cli.data.store import Store
    from lsm_cli.engine.feed import Feed
    from lsm_cli.engine.setup import Setup

    torch.set_num_threads(1)
    name, *own = recipe.split()
    setup = Setup.of(recipes.load(name, [*overrides, *own, "train.threads=1"]), Store.open(store))
    feed, model = Feed(setup, "train"), setup.model()
    size = setup.recipe.train.batch_size
    order = epoch_order(len(feed), 0, 0)
    batches = [order[at * size : (at + 1) * size] for at in range(min(PROBE, len(order) // size))]
    feed.batch(batches[0], model)
    taken = []
    for index in batches:
        started = time.perf_counter()
        feed.batch(index, model)
        taken.append(time.perf_counter() - started)
    return float(np.median(taken)) / size


def table(results: dict[str, Any]) -> str:
    """Mean (and spread) over seeds, in Markdown."""
    lines = [
        "| searcher | K | AUC | GAUC | shuffled AUC | samples/s | making batches | peak memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, entry in results.items():
        name, k = key.rsplit("@", 1)
        runs = list(entry["seeds"].values())
        rate = statistics.median(one["samples_per_second"] for one in runs)
        cells = [spread([one[metric] for one in runs]) for metric in ("auc", "gauc")]
        cells.append("".join(f"{one['shuffled']['auc']:.3f}" for one in runs if "shuffled" in one))
        cells += [f"{rate:,.0f}", f"{min(1.0, entry['batch_seconds'] * rate):.0%}"]
        cells.append(f"{max(one['peak_memory_bytes'] for one in runs) / 2**20:,.0f} MiB")
        lines.append(f"| {name} | {k} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--searchers", nargs="+", default=list(SEARCHERS), choices=list(SEARCHERS))
    parser.add_argument("--top-k", nargs="+", type=int, default=[20, 50, 100])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shuffled", action="store_true", help="also the shuffled-history control, first seed")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides for every searcher")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    results, save = opened(arguments.out, arguments.threads)
    for seed in arguments.seeds:
        for k in arguments.top_k:
            for name in arguments.searchers:
                entry = results.setdefault(f"{name}@{k}", {"seeds": {}})
                if str(seed) in entry["seeds"]:
                    continue
                options = [f"search.top_k={k}", f"search.hard_k={min(25, k // 2)}", *arguments.set]
                shuffled = arguments.shuffled and seed == arguments.seeds[0]
                entry["batch_seconds"] = batch_seconds(
                    arguments.data, SEARCHERS[name], [f"model.max_len={k}", *options]
                )
                entry["seeds"][str(seed)] = run(
                    arguments.data, SEARCHERS[name], k, seed, arguments.threads, shuffled, options
                )
                save()
                print(name, k, seed, entry["seeds"][str(seed)], file=sys.stderr, flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
