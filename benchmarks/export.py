"""What an exported model costs and keeps: samples/s, AUC and size of a run's eager model and of its exported forms.

    python benchmarks/export.py RUN [--batch 64] [--rounds 7]

Every form scores the same batches of test samples, which are made before, one thread, in turns: eager (as `lsm eval`
does), the program of torch.export, and what AOTInductor compiled of it, with tables in fp32, bf16 and int8. Times are
medians over the rounds, with the CPU seconds beside; AUC is over the whole test split. Results go to
benchmarks/results/export.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lsm_cli.data.store import Store
from lsm_cli.engine import evaluate
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.setup import Setup
from lsm_cli.serving import folder, program

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--batch", type=int, default=64, help="samples scored at a time")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quality", type=int, default=20_000, help="test samples on which the AUC is taken")
    parser.add_argument("--result", type=Path, default=HERE / "results" / "export.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = RunFolder.open(options.run)
    store = Store.open(run.data()["path"])
    setup = Setup.of(folder.on_cpu(run.recipe()), store)
    torch.set_num_threads(1)
    eager = setup.model()
    run.fill(eager)
    eager.eval()
    feed = Feed(setup, "test")
    draw = np.random.default_rng(0).permutation(len(feed))[: options.batch * options.batches]
    batches = [feed.batch(index, eager) for index in draw.reshape(options.batches, -1)]
    forms: dict[str, Any] = {"eager": eager}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        for dtype in program.DTYPES:
            out = Path(place) / dtype
            started = time.perf_counter()
            done = folder.write(run, setup, out, dtype, folder.has_compiler(), False, lambda text: None)
            for name, compiled in (("exported", False), ("compiled", True))[: 1 + folder.has_compiler()]:
                forms[f"{name} {dtype}"] = folder.Exported(out, compiled)
                found[f"{name} {dtype}"] = {
                    "largest difference": done["difference"], "seconds to export": time.perf_counter() - started,
                    "bytes of tables": done["bytes"]["tables.safetensors"],
                    "bytes of program": done["bytes"]["compiled.pt2" if compiled else "program.pt2"],
                }  # fmt: skip
        taken = _turns({name: _scores(form, batches) for name, form in forms.items()}, options.rounds)
        index = np.sort(np.random.default_rng(1).permutation(len(feed))[: options.quality])
        for name, form in forms.items():
            logits = evaluate.score(form, feed, setup.compute, index)
            auc = {
                target: entry["auc"] for target, entry in evaluate.validate(logits, feed, index, setup.targets).items()
            }
            seconds, worked = taken[name]
            rates = {"samples/s": len(draw) / seconds, "samples/s of CPU": len(draw) / worked}
            found[name] = {**found.get(name, {}), **rates, "auc": auc}
    report = {
        "command": f"python benchmarks/export.py RUN --batch {options.batch} --batches {options.batches} "
        f"--rounds {options.rounds} --quality {options.quality}",
        "recipe": setup.recipe.name, "store": store.name, "seed": setup.recipe.train.seed,
        "behaviours per sample": round(sum(batch.behaviours for batch in batches) / len(draw), 1),
        "machine": {
            "cpus": os.cpu_count(), "threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 1),
            "torch": torch.__version__, "python": platform.python_version(),
        },
        "forms": found,
    }  # fmt: skip
    print("| form | samples/s | of CPU time | to eager | AUC - eager's | tables |\n|---|---|---|---|---|---|")
    base = found["eager"]
    for name, form in found.items():
        apart = {target: round(form["auc"][target] - value, 5) for target, value in base["auc"].items()}
        tables = f"{form['bytes of tables'] / 2**20:.2f} MiB" if "bytes of tables" in form else ""
        times = form["samples/s of CPU"] / base["samples/s of CPU"]
        rates = f"{form['samples/s']:,.0f} | {form['samples/s of CPU']:,.0f}"
        print(f"| {name} | {rates} | {times:.2f} | {apart} | {tables} |")
    options.result.parent.mkdir(parents=True, exist_ok=True)
    options.result.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{options.result}")


def _scores(model: Any, batches: list[Any]) -> Callable[[], None]:
    @torch.no_grad()
    def one() -> None:
        for batch in batches:
            model(batch, model.fetch(batch))

    return one


def _turns(work: dict[str, Callable[[], None]], rounds: int) -> dict[str, tuple[float, float]]:
    """name -> median seconds by the clock and of the CPU."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, one in work.items():
            started, worked = time.perf_counter(), time.process_time()
            one()
            if number:  # the first round warms
                taken[name].append((time.perf_counter() - started, time.process_time() - worked))
    return {name: tuple(map(statistics.median, zip(*values, strict=True))) for name, values in taken.items()}


if __name__ == "__main__":
    main()
