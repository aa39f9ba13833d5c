"""A table of recipes x history lengths x seeds on one store, beside the LightGBM control and shuffled histories.

    lsm build-sequences benchmarks/datasets/retail.toml --root ../shared/data/retail --out stores/retail
    python benchmarks/accuracy.py --data stores/retail --lengths 50 200 1000 --out benchmarks/results/retail.json

Every run is a process of its own (`lsm train`, then `lsm eval --shuffle-history` for the first seed). Finished entries
of the result file are kept, so that an interrupted table goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lsm_cli import recipe as recipes

LSM = [sys.executable, "-m", "lsm_cli.main"]
KEYS = ("auc", "gauc", "logloss", "calibration")


def run(
    store: Path, recipe: str, length: int, seed: int, threads: int, shuffled: bool, common: list[str]
) -> dict[str, Any]:
    """Train one recipe and test it; metrics of the first target, and of each where there are several. Two towers are
    also asked for every positive among the whole catalogue."""
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/run"
        name, *overrides = recipe.split()
        train = ["train", "-r", name, "--data", store, "--out", out, "--seed", seed, "--json", "-q"]
        train += [f"model.max_len={length}", f"train.threads={threads}", *common, *overrides]
        value = call(train)
        targets = {name: {key: test[key] for key in KEYS} for name, test in value["test"].items()}
        found = dict(next(iter(targets.values())))
        if len(targets) > 1:
            found["targets"] = targets
        found |= {
            key: value[key]
            for key in ("samples_per_second", "scoring_samples_per_second", "peak_memory_bytes", "parameters", "steps")
        }
        if towers(name, overrides):
            asked = call(["eval", out, "--json", "-q"])["test"]
            found["retrieval"] = {target: test["retrieval"] for target, test in asked.items()}
        if shuffled:
            other = next(iter(call(["eval", out, "--shuffle-history", "--json", "-q"])["shuffled"].values()))
            found["shuffled"] = {key: other[key] for key in KEYS}
        shutil.rmtree(out)
    return found


def reads(recipe: str) -> bool:
    """Whether it has a history: else there is no length and nothing to shuffle."""
    name, *overrides = recipe.split()
    return recipes.load(name, overrides).model.sequence != "none"


def towers(name: str, overrides: list[str]) -> bool:
    """Whether it gives vectors of users and items."""
    return recipes.load(name, overrides).model.sequence == "sasrec"


def call(arguments: list[Any]) -> dict[str, Any]:
    done = subprocess.run([*LSM, *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"lsm {' '.join(map(str, arguments))}\n{done.stderr}")
    return json.loads(done.stdout)


def table(results: dict[str, Any]) -> str:
    """Mean (and spread) over seeds, in Markdown."""
    lines = [
        "| recipe | length | target | AUC | GAUC | log loss | shuffled AUC | parameters | samples/s | peak memory |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    metrics = ("auc", "gauc", "logloss")
    for key, entry in results.items():
        recipe, length = key.rsplit("@", 1)
        runs, cost = [entry], [""] * 4
        if "seeds" in entry:
            runs = list(entry["seeds"].values())
            cost = ["".join(f"{one['shuffled']['auc']:.4f}" for one in runs if "shuffled" in one)]
            cost.append(f"{runs[0]['parameters']:,}")
            cost.append(f"{statistics.median(one['samples_per_second'] for one in runs):,.0f}")
            cost.append(f"{max(one['peak_memory_bytes'] for one in runs) / 2**20:,.0f} MiB")
        for target in runs[0].get("targets", [""]):
            each = [one["targets"][target] if target else one for one in runs]
            cells = [spread([one[name] for one in each]) for name in metrics]
            lines.append(f"| {recipe} | {length} | {target} | {' | '.join([*cells, *cost])} |")
    return "\n".join(lines)


def opened(out: Path, threads: int) -> tuple[dict[str, Any], Callable[[], object]]:
    """The results of a file, as far as they are there, and what writes them back."""
    state = json.loads(out.read_text()) if out.exists() else {"results": {}}
    state["command"] = " ".join(["python", *sys.argv])
    state["machine"] = {"cpus": os.cpu_count(), "python": platform.python_version(), "threads": threads}
    out.parent.mkdir(parents=True, exist_ok=True)
    return state["results"], lambda: out.write_text(json.dumps(state, indent=1) + "\n")


def spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.4f}"
    return mean + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", default=["dnn", "mean_pool", "din", "tin", "stacked_tin"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[50, 200])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides for every recipe")
    parser.add_argument("--no-control", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    results, save = opened(arguments.out, arguments.threads)

    for length in arguments.lengths:
        if not arguments.no_control and f"LightGBM control@{length}" not in results:
            command = ["--data", str(arguments.data), "--max-len", str(length), "--threads", str(arguments.threads)]
            script = Path(__file__).with_name("control.py")
            done = subprocess.run([sys.executable, script, *command], capture_output=True, text=True, check=True)
            results[f"LightGBM control@{length}"] = json.loads(done.stdout)
            save()
    jobs = [(s, n, r) for s in arguments.seeds for n in arguments.lengths for r in arguments.recipes]
    for seed, length, recipe in jobs:
        at = length if reads(recipe) else 0
        entry = results.setdefault(f"{recipe}@{at}", {"seeds": {}})
        if str(seed) not in entry["seeds"]:
            shuffled = seed == arguments.seeds[0] and at > 0
            entry["seeds"][str(seed)] = run(
                arguments.data, recipe, at, seed, arguments.threads, shuffled, arguments.set
            )
            save()
            print(recipe, at, seed, entry["seeds"][str(seed)], file=sys.stderr, flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
