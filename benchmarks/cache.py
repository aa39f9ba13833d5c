"""Tables larger than the device: how often a cache hits, and what it costs a step, on ids of a Zipf law.

    python benchmarks/cache.py                  # the device is this machine's memory, the tables lie in a file
    python benchmarks/cache.py --device cuda    # tables in host memory and in a file, caches on the GPU

hits        one table alone, exponent 1: steps fetch rows and move them. Share of a step's distinct rows, and of all
            its look-ups, that were on the device, for caches of 1, 5, 10 and 20 % of the rows; counted after --fill
            other steps. Time of fetching and moving against a whole table on the device, in turns.
steps       training steps of stacked_tin on a generated store, caches of --share of the rows, against tables whole on
            the device: blocks of steps in turns, with and without a thread that brings the next batches' rows. Caches
            are filled before by fetching, all rows in them being as changed as they are after a long training.

Medians; one thread on the CPU. A file that fits the memory stays in the system's page cache: times are those of mapped
pages and not of the disk. Results go to benchmarks/results/cache.json.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsm_cli import recipe as recipes
from lsm_cli.data.store import Store
from lsm_cli.embedding.cached import CachedTable
from lsm_cli.embedding.optimizer import RowOptimizer, row_optimizer
from lsm_cli.embedding.tables import Table
from lsm_cli.embedding.tiers import Tier
from lsm_cli.engine import tiers
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.setup import Setup
from lsm_cli.engine.train import Trainer
from reports import heading, write
from stores import STRIDE, write_store

HERE = Path(__file__).parent
DIM = 16


def clock(device: str) -> tuple[float, float]:
    """Seconds by the clock, and of the CPU."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def zipf(rows: int, size: int, seed: int) -> Iterator[Tensor]:
    """Endless steps of `size` ids, popular ones anywhere in the table."""
    rng = np.random.default_rng(seed)
    while True:
        rank = np.minimum(rows ** rng.random(size), rows - 1).astype(np.int64)
        yield torch.from_numpy(rank * STRIDE % rows)


# hits


def one_step(table: Table, optimizer: RowOptimizer, ids: Tensor, device: str) -> tuple[float, float]:
    """Fetch and move: (seconds, CPU seconds)."""
    started, worked = clock(device)
    rows = table.fetch(ids, grad=True)
    rows.values.grad = torch.ones_like(rows.values)
    table.update(rows, optimizer, 0.05)
    ended, done = clock(device)
    return ended - started, done - worked


def hits(share: float, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(options.device)
    tier = Tier(kind, share)
    small, large = row_optimizer("adagrad", tier.held(options.rows), DIM), row_optimizer("adagrad", options.rows, DIM)
    cached = CachedTable(options.rows, DIM, 0.3, 0, torch.float32, small, tier).to(device)
    whole = Table(options.rows, DIM, 0.3, 0).to(device)
    small.to(device), large.to(device)
    ids = zipf(options.rows, options.ids, 1)
    for _ in range(options.fill):
        one_step(cached, small, next(ids).to(device), options.device)
    start, counts, looked, times = vars(cached.counts[True]).copy(), cached.counts[True], [], []
    for _ in range(options.counted):
        found = next(ids)
        looked.append(float((cached.slots.find(found) >= 0).float().mean()))
        found = found.to(device)
        pair = [one_step(cached, small, found, options.device), one_step(whole, large, found, options.device)]
        times.append([*pair[0], *pair[1]])
    asked, waited, written = (getattr(counts, name) - start[name] for name in ("asked", "waited", "written"))
    middle = np.median(times, axis=0) * 1e3
    return {
        "share": share, "tier": kind, "full": bool(start["written"]),
        "distinct rows a step": round(asked / options.counted),
        "hit": round(1 - waited / asked, 4), "hit of look-ups": round(statistics.mean(looked), 4),
        "written back a step": round(written / options.counted),
        "ms": round(middle[0], 2), "cpu_ms": round(middle[1], 2),
        "whole ms": round(middle[2], 2), "whole cpu_ms": round(middle[3], 2),
        "times as long": round(middle[0] / middle[2], 2), "times the CPU": round(middle[1] / middle[3], 2),
    }  # fmt: skip


# steps


def trainer(path: Path, out: Path, options: argparse.Namespace, *engine: str) -> Trainer:
    overrides = [f"train.device={options.device}", "train.threads=1", "train.precision=fp32", *engine]
    overrides += [f"model.max_len={options.length}", f"train.batch_size={options.batch}"]
    recipe, store = recipes.load("stacked_tin", overrides), Store.open(path)
    return Trainer(Setup.of(recipe, store), RunFolder.start(out, recipe, store, resume=False))


def fill(made: Trainer) -> None:
    """Fill the caches by what an epoch fetches, all of it changed."""
    made.model.train()
    for group in made.plan.batches(0):
        if not any(len(table.slots.spare) for table in made.model.cached.values()):
            break
        made.model.fetch(made.train.batch(group, made.model))
    for table in made.model.cached.values():
        table.dirty |= table.slots.row >= 0


def steps(options: argparse.Namespace) -> dict[str, Any]:
    """variant -> milliseconds a step, ratios to tables whole on the device, what became of the rows."""
    samples = {"train": options.batch * options.epoch, "valid": 100}
    lengths = options.length * 7 // 10, options.length
    path = write_store(options.work / "store", options.users, lengths, samples, options.rows, options.rows)
    variants: dict[str, list[str]] = {"device": []}
    for kind in options.tiers:
        cached = [f"engine.table_tier={kind}", f"engine.cache_rows={options.share}"]
        variants |= {kind: cached, f"{kind}, brought ahead": [*cached, "engine.prefetch=2"]}
    variants["device, batches made ahead"] = ["engine.prefetch=2"]
    made = {
        name: trainer(path, options.work / f"run{place}", options, *engine)
        for place, (name, engine) in enumerate(variants.items())
    }
    groups = made["device"].plan.batches(0)
    rng = np.random.default_rng(0)
    for one in made.values():
        fill(one)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
    for number in range(options.rounds + 1):
        chosen = [groups[place] for place in rng.choice(len(groups), options.block, replace=False)]
        for name, one in made.items():
            started, worked = clock(options.device)
            for _ in one.updates(chosen):
                pass
            ended, done = clock(options.device)
            if number:  # the first round warms
                taken[name].append((ended - started, done - worked))
            else:
                tiers.restart(one.model)
    found = {}
    for name, spent in taken.items():
        base = taken["device, batches made ahead" if "ahead" in name else "device"]
        found[name] = {
            "ms": round(1e3 * statistics.median(one[0] for one in spent) / options.block, 1),
            "cpu_ms": round(1e3 * statistics.median(one[1] for one in spent) / options.block, 1),
            "speed": round(statistics.median(b[0] / a[0] for a, b in zip(spent, base, strict=True)), 3),
            "speed by CPU": round(statistics.median(b[1] / a[1] for a, b in zip(spent, base, strict=True)), 3),
            "tiers": tiers.record(made[name].model, learns=True),
        }
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both parts, shown as they are done."""
    print("| tier | share | distinct rows a step | hit | hit of look-ups | ms | CPU ms | times as long, CPU |")
    print("|---|---|---|---|---|---|---|---|")
    report: dict[str, Any] = {"hits": []}
    for kind in options.tiers:
        for share in options.shares:
            one = hits(share, kind, options)
            report["hits"].append(one)
            names = ("distinct rows a step", "hit", "hit of look-ups", "ms", "cpu_ms", "times the CPU")
            print(f"| {kind} | {share:.0%} | " + " | ".join(str(one[name]) for name in names) + " |", flush=True)
    print("\n| tables | ms a step | CPU ms | speed | speed by CPU | hit | ahead | waited |")
    print("|---|---|---|---|---|---|---|---|")
    report["steps"] = steps(options)
    for name, one in report["steps"].items():
        rates = [f"{one['tiers']['item'][key]:.1%}" for key in ("hit", "ahead", "waited")] if one["tiers"] else [""] * 3
        cells = [one["ms"], one["cpu_ms"], one["speed"], one["speed by CPU"], *rates]
        print(f"| {name} | " + " | ".join(map(str, cells)) + " |", flush=True)
    shutil.rmtree(options.work)
    return report


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.05, 0.1, 0.2])
    parser.add_argument("--ids", type=int, default=50_000, help="look-ups of a step, of the table alone")
    parser.add_argument("--fill", type=int, default=300, help="steps that fill a cache, of the table alone")
    parser.add_argument("--counted", type=int, default=30, help="steps that count, of the table alone")
    parser.add_argument("--share", type=float, default=0.1, help="of the rows that caches hold in training steps")
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--epoch", type=int, default=120, help="steps of an epoch, with which caches are filled")
    parser.add_argument("--block", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", type=Path, default=Path("build/benchmark-cache"))
    parser.add_argument("--result", type=Path, default=HERE / "results/cache.json")
    options = parser.parse_args(arguments)
    options.tiers = ["host", "file"] if options.device == "cuda" else ["file"]
    return options


def main() -> None:
    options = parse(sys.argv[1:])
    torch.set_num_threads(1)
    device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU, one thread"
    report = {
        **heading(device=device, torch=torch.__version__),
        "rows": options.rows, "dim": DIM, "length": options.length, "batch": options.batch, **measure(options),
    }  # fmt: skip
    write(options.result, report)
    print(f"\n{options.result}")


if __name__ == "__main__":
    main()
