"""What a training step costs with different recipes: CPU time and clock, in turns, in one process.

    python benchmarks/steps.py --data stores/retail --out benchmarks/results/steps.json \\
        "tin model.max_len=50" hier_hard "stacked_tin model.max_len=100000"

Every round takes some steps of each recipe on samples of its own epoch order, or of the test split (--phase infer),
batch making included; the first round does not count. Medians; the ratios are to the first recipe named.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from lsm_cli import recipe as recipes
from lsm_cli.data.store import Store
from lsm_cli.engine.profiling.work import Work
from lsm_cli.engine.setup import Setup, parameters
from reports import heading, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="name, or 'name key=value …'")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--phase", choices=("train", "infer"), default="train")
    parser.add_argument("--steps", type=int, default=5, help="per round")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    store = Store.open(arguments.data)
    works: dict[str, Work] = {}
    for text in arguments.recipes:
        name, *overrides = text.split()
        setup = Setup.of(recipes.load(name, [*overrides, "train.threads=1", "train.device=cpu"]), store)
        works[text] = Work(setup, arguments.phase)
    spent: dict[str, dict[str, list[float]]] = {text: {"cpu": [], "clock": []} for text in works}
    for number in range(arguments.rounds + 1):
        for text, work in works.items():
            part = work.groups[number * arguments.steps :][: arguments.steps]
            started = time.process_time(), time.perf_counter()
            for _ in work.steps(part):
                pass
            if number:
                spent[text]["cpu"].append((time.process_time() - started[0]) / len(part) * 1e3)
                spent[text]["clock"].append((time.perf_counter() - started[1]) / len(part) * 1e3)
    found = {text: {f"{kind}_ms": statistics.median(v) for kind, v in kinds.items()} for text, kinds in spent.items()}
    first = found[arguments.recipes[0]]
    for entry in found.values():
        entry |= {f"{kind}_ratio": entry[f"{kind}_ms"] / first[f"{kind}_ms"] for kind in ("cpu", "clock")}
    for text, work in works.items():
        found[text]["parameters"] = parameters(work.model)
    write(arguments.out, {**heading(), "threads": 1, "steps": found})
    for text, entry in found.items():
        print(f"{text}: {entry['cpu_ms']:.1f} ms CPU a step, {entry['cpu_ratio']:.2f} x")


if __name__ == "__main__":
    main()
