"""Why decoupled soft search (DARE) is or is not better than soft search by shared embeddings (TWIN), at equal K.

    lsm build-sequences benchmarks/datasets/retail.toml --root ../shared/data/retail --out stores/retail
    python benchmarks/decoupled.py --data stores/retail --runs runs/decoupled --out benchmarks/results/decoupled.json

Three conditions, as identities can do what attention should: with the match bias of the attention and match evidence in
the head; without the bias; without both, where attention alone has to find and tell, as in the papers. Every contender
may start as shipped, or from what the other was offered too: temporal encodings from zero, wider rows. For each run:

  start, found  matching behaviours among the K found, of those there are (K at most), before training and after it:
                mean over test samples that have any, by field
  shared finds  of the K found, the share that the first contender of its condition finds too
  curve         epochs, training loss, validation AUC

Runs are kept in --runs and results in --out, so that an interrupted table goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import KEYS, call, opened, spread

CONDITIONS = {
    "match bias and evidence": [],
    "no match bias": ["model.match_bias=false"],
    "no match bias, no evidence": ["model.match_bias=false", "model.evidence=false"],
}
CONTENDERS = {
    "twin, random time": ["twin", "model.temporal_start=random"],
    "twin": ["twin", "model.temporal_start=zero"],
    "twin, wider start": ["twin", "model.temporal_start=zero", "model.init_std=0.55"],
    "dare, random time": ["dare", "model.temporal_start=random", "model.attention_std=0"],
    "dare, random time, wider start": ["dare", "model.temporal_start=random", "model.attention_std=0.8"],
    "dare, same start": ["dare", "model.temporal_start=zero", "model.attention_std=0"],
    "dare": ["dare", "model.temporal_start=zero", "model.attention_std=0.8"],
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
        every = np.random.default_rng(0).permutation(len(feed))
        self.samples, self.assembler = np.sort(every[:JUDGED]), feed.assembler
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


def table(results: dict[str, Any]) -> str:
    """Mean (and spread) over seeds, in Markdown."""
    lines = [
        "| condition | K | contender | AUC | GAUC | items found: start | items found | shared finds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in results.values():
        runs = list(entry["seeds"].values())
        cells = [entry["condition"], str(entry["k"]), entry["contender"]]
        cells += [spread([one[key] for one in runs]) for key in ("auc", "gauc")]
        cells += [f"{runs[0][when].get('item', 0):.3f}" for when in ("start", "found")]
        cells.append("".join(f"{one['shared_finds']:.2f}" for one in runs[:1] if "shared_finds" in one))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=list(CONDITIONS))
    parser.add_argument("--contenders", nargs="+", default=["twin", "dare"], choices=list(CONTENDERS))
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
        for contender in arguments.contenders:
            key = f"{contender} | {condition}@{k}"
            entry = results.setdefault(key, {"contender": contender, "condition": condition, "k": k, "seeds": {}})
            common = [f"search.top_k={k}", f"train.threads={arguments.threads}", *TRAIN, *arguments.set]
            entry["options"] = [*CONTENDERS[contender], *CONDITIONS[condition]]
            options = [*entry["options"], *common]
            run = arguments.runs / f"{contender}-{condition}-{k}-{seed}".replace(",", "").replace(" ", "_")
            if str(seed) not in entry["seeds"]:
                value = trained(arguments.data, options, seed, run)
                fresh = Finds(arguments.data, [*options, f"train.seed={seed}"], None)
                made = Finds(arguments.data, options, run)
                value |= {"start": fresh.matching(), "found": made.matching()}
                if first is not None:
                    value["shared_finds"] = made.shared(first)
                entry["seeds"][str(seed)] = value
                save()
                print(key, seed, value, file=sys.stderr, flush=True)
            if contender == arguments.contenders[0] and run.is_dir():
                first = Finds(arguments.data, options, run)
    print(table(results))


if __name__ == "__main__":
    main()
