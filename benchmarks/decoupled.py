"""Why decoupled soft search (DARE) is or is not better than soft search by shared embeddings (TWIN), at equal K.

    lsm build-sequences benchmarks/datasets/retail.toml --root ../shared/data/retail --out stores/retail
    python benchmarks/decoupled.py --data stores/retail --runs runs/decoupled --out benchmarks/results/decoupled.json

Three conditions, as identities can do what attention should: with the match bias of the attention and match evidence in
the head; without the bias; without both, where attention alone has to find and tell. `--recipes` takes overrides, as in
"twin model.temporal_start=zero", so that one can start from what the other does. For each run:

  start, found  matching behaviours among the K found, of those there are (K at most), before training and after it:
                mean over test samples that have any, by field
  shared finds  of the K found, the share that the first recipe of the condition finds too
  curve         epochs, training loss, validation AUC

Runs are kept in --runs and results in --out, so that an interrupted table goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from accuracy import KEYS, call, opened, spread

CONDITIONS = {
    "bias and evidence": [],
    "no bias": ["model.match_bias=false"],
    "neither": ["model.match_bias=false", "model.evidence=false"],
}
TRAIN = ["train.epochs=1", "train.evaluations=4", "train.valid_samples=8000"]
FIELDS = ("item", "category4", "category3", "category2")
JUDGED, CHUNK = 3_000, 500  # test samples whose finds are looked at, and how many at a time


class Finds:
    """What a model finds for some test samples.

    Attributes:
        pointers: its finds; samples: the test samples.
    """

    def __init__(self, store: Path, options: list[str], run: Path | None) -> None:
        from lsm_cli import recipe as recipes
        from lsm_cli.data.batches import Pointers
        from lsm_cli.data.store import Store
        from lsm_cli.engine.feed import Feed
        from lsm_cli.engine.run import RunFolder
        from lsm_cli.engine.setup import Setup

        self.setup = Setup.of(recipes.load(options[0], options[1:]), Store.open(store))
        model = self.setup.model()
        if run is not None:
            RunFolder.open(run).fill(model)
        feed = Feed(self.setup, "test")
        drawn = np.random.default_rng(0).choice(len(feed), min(JUDGED, len(feed)), replace=False)
        self.samples, self.assembler = np.sort(drawn), feed.assembler
        parts = [feed.find(self.samples[at : at + CHUNK], model.eval()) for at in range(0, len(self.samples), CHUNK)]
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        self.pointers = Pointers(offsets, np.concatenate([part.pointer for part in parts]))

    def matching(self) -> dict[str, float]:
        """Field -> share of the matching behaviours that were found."""
        from lsm_cli.data.batches import Pointers
        from lsm_cli.data.orders import ragged_arange

        queries = self.assembler.queries(self.samples)
        lengths = queries.end - queries.first
        _, pointer = ragged_arange(queries.first, lengths)
        everything = Pointers(np.concatenate([[0], np.cumsum(lengths)]), pointer)
        found, there = self._matches(self.pointers), self._matches(everything)
        k = self.setup.recipe.search.top_k
        return {
            name: float((found[name] / np.minimum(there[name], k).clip(1))[there[name] > 0].mean()) for name in found
        }

    def _matches(self, read: Any) -> dict[str, np.ndarray]:
        """Field -> behaviours of `read` that match their sample's candidate, int64 [samples]."""
        batch = self.assembler.batch(self.samples, read)
        row = np.repeat(np.arange(len(self.samples)), np.diff(read.offsets))
        return {
            name: np.bincount(
                row[batch.history[name].numpy() == batch.target[name].numpy()[row]], minlength=len(self.samples)
            )
            for name in FIELDS
            if name in batch.history
        }

    def shared(self, other: Finds) -> float:
        """Share of the finds that another model made too."""
        ours, theirs = ((np.diff(f.pointers.offsets), f.pointers.pointer) for f in (self, other))
        pairs = [np.stack([np.repeat(self.samples, lengths), pointer], 1) for lengths, pointer in (ours, theirs)]
        keys = [part[:, 0] * (1 << 40) + part[:, 1] for part in pairs]
        return float(np.isin(keys[0], keys[1]).mean())


def trained(store: Path, options: list[str], seed: int, run: Path) -> dict[str, Any]:
    """Train, or go on, and test."""
    name, *overrides = options
    command = ["train", "-r", name, "--data", store, "--out", run, "--seed", seed, "--json", "-q", "--resume"]
    value = call([*command, *overrides])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    curve = [
        [line["epoch"], round(line["train_loss"], 4), round(next(iter(line["valid"].values()))["auc"], 4)]
        for line in lines
    ]
    test = next(iter(value["test"].values()))
    return {**{key: test[key] for key in KEYS}, "curve": curve}


def looked_at(store: Path, options: list[str], seed: int, run: Path, first: Finds | None) -> dict[str, Any]:
    """What the model finds when fresh and when trained, and what of it the first recipe finds too."""
    fresh, made = Finds(store, [*options, f"train.seed={seed}"], None), Finds(store, options, run)
    shares = {} if first is None else {"shared_finds": made.shared(first)}
    return {"start": fresh.matching(), "found": made.matching(), **shares}


def table(results: dict[str, Any]) -> str:
    """Mean (and spread) over seeds, in Markdown."""
    lines = [
        "| condition | K | recipe | AUC | GAUC | items found: start | items found | shared finds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in results.values():
        runs = list(entry["seeds"].values())
        cells = [entry["condition"], str(entry["k"]), entry["recipe"]]
        cells += [spread([one[key] for one in runs]) for key in ("auc", "gauc")]
        cells += [f"{runs[0][when].get('item', 0):.3f}" for when in ("start", "found")]
        cells.append("".join(f"{one['shared_finds']:.2f}" for one in runs[:1] if "shared_finds" in one))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=list(CONDITIONS))
    parser.add_argument("--recipes", nargs="+", default=["twin", "dare"])
    parser.add_argument("--top-k", nargs="+", type=int, default=[50])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides for every run")
    parser.add_argument("--runs", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    results, save = opened(arguments.out, arguments.threads)
    jobs = [(s, k, c) for s in arguments.seeds for k in arguments.top_k for c in arguments.conditions]
    for seed, k, condition in jobs:
        first: Finds | None = None
        for recipe in arguments.recipes:
            key = f"{recipe} | {condition}@{k}"
            entry = results.setdefault(key, {"recipe": recipe, "condition": condition, "k": k, "seeds": {}})
            options = [*recipe.split(), *CONDITIONS[condition], f"search.top_k={k}", *TRAIN, *arguments.set]
            options.append(f"train.threads={arguments.threads}")
            run = arguments.runs / re.sub(r"[^\w.=-]+", "_", f"{key}-{seed}")
            if str(seed) not in entry["seeds"]:
                value = trained(arguments.data, options, seed, run)
                entry["seeds"][str(seed)] = value | looked_at(arguments.data, options, seed, run, first)
                save()
                print(key, seed, entry["seeds"][str(seed)], file=sys.stderr, flush=True)
            if recipe == arguments.recipes[0] and run.is_dir():
                first = Finds(arguments.data, options, run)
    print(table(results))


if __name__ == "__main__":
    main()
