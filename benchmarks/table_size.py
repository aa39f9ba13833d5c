"""Training step time of Stacked TIN with a small and a large item table, and of nn.Embedding with torch's Adam.

    python benchmarks/table_size.py

The stores hold the same samples: `small` and `large` differ in the numbering of the items alone (a Zipf law over as
many values as the small table has rows, spread over 100 k or 5 M rows), so that only the size of the table differs.
`wide` draws its items from all 5 M rows: a step then touches more distinct rows, which costs what they cost. One
thread; the tables take turns step by step, so that a busy machine slows all of them; medians count, of CPU-seconds as
well as of seconds. Results go to benchmarks/results/table_size.json.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lsm_cli import recipe as recipes
from lsm_cli.data.store import Store
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.setup import Setup
from lsm_cli.engine.train import Trainer
from reports import heading, write
from stores import write_store

HERE = Path(__file__).parent


def trainer(path: Path, optimizer: str, options: argparse.Namespace, out: Path) -> Trainer:
    overrides = [f"train.table_optimizer={optimizer}", "train.device=cpu", "train.threads=1", "train.precision=fp32"]
    overrides += [f"model.max_len={options.length}", f"train.batch_size={options.batch}"]
    recipe = recipes.load("stacked_tin", overrides)
    store = Store.open(path)
    return Trainer(Setup.of(recipe, store), RunFolder.start(out, recipe, store, resume=False))


def step(made: Trainer, order: np.ndarray, number: int) -> tuple[float, float, int]:
    """One batch and one update: (seconds, CPU seconds, distinct rows of the item table)."""
    size = made.options.batch_size
    started, worked = time.perf_counter(), time.process_time()
    batch = made.train.batch(order[number * size : (number + 1) * size], made.model)
    made._step(batch)
    spent = time.perf_counter() - started, time.process_time() - worked
    return *spent, len(torch.unique(torch.cat([batch.history["item"], batch.target["item"]])))


def compare(paths: dict[str, Path], optimizer: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """name of the store -> medians over the steps, and their ratios to the small table's."""
    with tempfile.TemporaryDirectory() as folder:
        made = {name: trainer(path, optimizer, options, Path(folder) / name) for name, path in paths.items()}
        order = np.random.default_rng(0).permutation(len(made["small"].train))
        steps: dict[str, list[tuple[float, float, int]]] = {name: [] for name in made}
        for number in range(options.steps + 2):
            for name, one in made.items():
                taken = step(one, order, number)
                if number >= 2:  # the first steps only bring memory in
                    steps[name].append(taken)
    found = {}
    for name, taken in steps.items():
        pairs = list(zip(taken, steps["small"], strict=True))
        found[name] = {
            "ms": round(1e3 * statistics.median(one[0] for one in taken), 1),
            "cpu_ms": round(1e3 * statistics.median(one[1] for one in taken), 1),
            "distinct_rows": round(statistics.mean(one[2] for one in taken)),
            "ratio": round(statistics.median(one[0] / base[0] for one, base in pairs), 2),
            "cpu_ratio": round(statistics.median(one[1] / base[1] for one, base in pairs), 2),
        }
    return found


def contrast(path: Path, options: argparse.Namespace, steps: int = 3) -> dict[str, float]:
    """The update of the item table alone, as nn.Embedding under torch.optim.Adam: look-up, sum, backward, step."""
    store = Store.open(path)
    field = store.fields["item"]
    table = nn.Embedding(field.rows, 16)
    adam = torch.optim.Adam(table.parameters())
    ids = torch.from_numpy(store.column("item")[: options.batch * options.length].astype(np.int64))
    taken = []
    for _ in range(steps):
        started, worked = time.perf_counter(), time.process_time()
        adam.zero_grad(set_to_none=True)
        table(ids).square().sum().backward()
        adam.step()
        taken.append((time.perf_counter() - started, time.process_time() - worked))
    return {"ms": round(1e3 * min(one[0] for one in taken), 1), "cpu_ms": round(1e3 * min(one[1] for one in taken), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=100_000, help="rows")
    parser.add_argument("--large", type=int, default=5_000_000, help="rows")
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--work", type=Path, default=Path("build/benchmark-table-size"))
    parser.add_argument("--result", type=Path, default=HERE / "results/table_size.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    splits = {"train": options.batch * (options.steps + 2), "valid": 1_000}
    lengths = (options.length * 7 // 10, options.length)
    stores = {"small": (options.small, options.small), "large": (options.small, options.large)}
    stores["wide"] = (options.large, options.large)
    paths = {
        name: write_store(options.work / name, 2_000, lengths, splits, distinct, rows)
        for name, (distinct, rows) in stores.items()
    }
    found: dict[str, Any] = {}
    print("| optimiser | table | rows | distinct rows a step | ms a step | CPU ms | ratio | ratio of CPU |")
    print("|---|---|---|---|---|---|---|---|")
    for optimizer in ("adagrad", "adam"):
        found[optimizer] = compare(paths, optimizer, options)
        for name, one in found[optimizer].items():
            values = (f"{stores[name][1]:,}", f"{one['distinct_rows']:,}", one["ms"], one["cpu_ms"])
            cells = (*values, one["ratio"], one["cpu_ratio"])
            print(f"| {optimizer} | {name} | {' | '.join(map(str, cells))} |", flush=True)
    dense = {name: contrast(paths[name], options) for name in ("small", "large")}
    for name, one in dense.items():
        ratios = (round(one[key] / dense["small"][key], 1) for key in ("ms", "cpu_ms"))
        cells = (f"{stores[name][1]:,}", "", one["ms"], one["cpu_ms"], *ratios)
        print(f"| nn.Embedding + Adam, the table alone | {name} | {' | '.join(map(str, cells))} |")
    report = {
        **heading(),
        "length": options.length, "mean_length": sum(lengths) / 2, "batch": options.batch, "threads": 1,
        "stores": {name: {"distinct": value[0], "rows": value[1]} for name, value in stores.items()},
        "steps": found, "nn.Embedding + Adam": dense,
    }  # fmt: skip
    write(options.result, report)
    shutil.rmtree(options.work)


if __name__ == "__main__":
    main()
