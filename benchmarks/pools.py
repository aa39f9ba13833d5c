"""How much memory ragged work takes from the device, and how much of it is in use at the peak, by what the allocator is
told: its own default, expandable segments, sizes in classes, a pool for what stays.

    python benchmarks/pools.py                  # on a GPU, where there is one
    python benchmarks/pools.py --device cpu     # glibc's heap: freed memory kept or given back

Training steps of stacked_tin on a generated store, histories uniform between a tenth of --length and --length, with a
scoring batch of another size after every --every steps. Each variant is a process of its own; all do the same steps.

allocated, reserved   bytes at their peaks. On the CPU: what the process held in memory at most, and what the heap had
                      taken after the last step; what is in use at the peak is `lsm profile --device cpu`'s to say.
utilisation           allocated over reserved (GPU).
ms                    median of the steps after the first tenth.

Results go to benchmarks/results/pools.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from lsm_cli import recipe as recipes
from lsm_cli.data.store import Store
from lsm_cli.engine.device import peak_memory
from lsm_cli.engine.profiling.memory import in_use
from lsm_cli.engine.profiling.work import Work
from lsm_cli.engine.setup import Setup
from reports import heading, write
from stores import write_store

HERE = Path(__file__).parent
VARIANTS = {
    "default": ["engine.memory_pool=false"],
    "kept": [],
    "kept, 8 size classes": ["engine.size_classes=8"],
    "kept, a pool for what stays": ["engine.lasting_pool=true"],
    "kept, both": ["engine.size_classes=8", "engine.lasting_pool=true"],
}


def work(options: argparse.Namespace) -> dict[str, Any]:
    """One variant, in this process."""
    overrides = [f"model.max_len={options.length}", f"train.batch_size={options.batch}", "train.threads=1"]
    overrides += [f"train.device={options.device}", *VARIANTS[options.variant]]
    setup = Setup.of(recipes.load("stacked_tin", overrides), Store.open(options.store))
    training = Work(setup, "train")
    scoring = Work(setup, "infer", training.model)
    groups, sets = training.some(options.steps), scoring.some(options.steps // options.every + 1)
    device, spent = setup.compute.device, []
    for number in range(0, options.steps, options.every):
        for group in groups[number : number + options.every]:
            started = time.perf_counter()
            for _ in training.steps([group]):
                pass
            if device.type == "cuda":
                torch.cuda.synchronize()
            spent.append(time.perf_counter() - started)
        for _ in scoring.steps([sets[number // options.every]]):
            pass
    gpu = device.type == "cuda"
    allocated = peak_memory(device)
    reserved = torch.cuda.max_memory_reserved() if gpu else in_use(device)[1]
    return {
        "allocated": allocated,
        "reserved": reserved,
        "utilisation": round(allocated / reserved, 4) if gpu else None,
        "retries": torch.cuda.memory_stats()["num_alloc_retries"] if gpu else None,
        "ms": round(statistics.median(spent[len(spent) // 10 :]) * 1e3, 2),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """variant -> what its process found."""
    print("| allocator | allocated MiB | reserved MiB | utilisation | reserved over default's | ms a step |")
    print("|---|---|---|---|---|---|")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        samples = {"train": options.batch * 64, "valid": options.batch, "test": options.batch * 16}
        lengths = options.length // 10, options.length
        store = write_store(Path(folder) / "store", options.users, lengths, samples, options.rows, options.rows)
        for variant in VARIANTS if options.device == "cuda" else ("default", "kept"):
            asked = [f"--{key}={getattr(options, key)}" for key in ("device", "length", "batch", "steps", "every")]
            command = [sys.executable, __file__, *asked, f"--variant={variant}", f"--store={store}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{variant}\n{done.stderr}")
            one = found[variant] = json.loads(done.stdout.splitlines()[-1])
            one["of default"] = round(one["reserved"] / found["default"]["reserved"], 3)
            sizes = [f"{one[key] / 2**20:,.0f}" for key in ("allocated", "reserved")]
            print(f"| {variant} | {' | '.join(sizes)} | {one['utilisation']} | {one['of default']} | {one['ms']} |")
    return found


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the item table")
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--variant", choices=list(VARIANTS), help="this one alone, on --store, as JSON")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "pools.json")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is visible; use --device cpu")
    return options


def main() -> None:
    options = parse(sys.argv[1:])
    if options.variant:
        print(json.dumps(work(options)))
        return
    device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    write(options.out, {**heading(device=device, torch=torch.__version__), "variants": measure(options)})
    print(f"\n{options.out}")


if __name__ == "__main__":
    main()
