"""Histories of a thousand to a hundred thousand events, built and trained end to end: step time by length.

    python benchmarks/long.py --work DIR

Logs with the same number of events, so that only the length of the histories differs, from the generator of
benchmarks/build.py (their labels are random: this measures time and memory, not accuracy). Each is built by `lsm
build-sequences` and trained by `lsm train --recipe hier_hard` for one epoch: every sample searches its whole history
by the index, counts matches in all of it and reads the K found. All lengths are trained in turn; the fastest run of
each counts. Results go to benchmarks/results/long.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from accuracy import LSM, call
from build import generate
from reports import heading, write

HERE = Path(__file__).parent


def build(logs: Path, store: Path, memory: str) -> dict[str, Any]:
    """Seconds and peak resident bytes of the build, and what is in the store."""
    command = [
        *LSM,
        "build-sequences",
        str(logs / "dataset.toml"),
        "--out",
        str(store),
        "--memory",
        memory,
        "--json",
        "-q",
    ]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    said = json.loads(child.stdout.read())
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"the build of {logs} failed")
    return {
        "events": said["counts"]["events"], "users": said["counts"]["users"], "samples": said["counts"]["samples"],
        "history": said["history"], "bytes_per_event": said["bytes_per_event"],
        "index_bytes_per_event": said["index_bytes_per_event"], "build_s": said["build"]["seconds"],
        "build_peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }  # fmt: skip


def train(store: Path, out: Path, options: argparse.Namespace) -> dict[str, float]:
    shutil.rmtree(out, ignore_errors=True)
    overrides = [
        "train.epochs=1",
        f"train.batch_size={options.batch}",
        f"train.threads={options.threads}",
        *options.set,
    ]
    found = call(["train", "-r", options.recipe, "--data", store, "--out", out, "--json", "-q", *overrides])
    rate = found["samples_per_second"]
    return {
        "samples_per_second": round(rate), "step_ms": round(1000 * options.batch / rate, 1), "steps": found["steps"],
        "peak_bytes": found["peak_memory_bytes"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", nargs="+", type=int, default=[1_000, 10_000, 100_000], help="mean events a user")
    parser.add_argument("--events", type=int, default=8_000_000, help="in every store")
    parser.add_argument("--impressions", type=int, default=25_000)
    parser.add_argument("--recipe", default="hier_hard")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", default="2GiB", help="of the build")
    parser.add_argument("--runs", type=int, default=2, help="of the training at each length, in turn")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the recipe")
    parser.add_argument("--work", type=Path, default=Path("build/benchmark-long"))
    parser.add_argument("--out", type=Path, default=HERE / "results/long.json")
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    results: dict[int, dict[str, Any]] = {}
    for length in options.lengths:
        logs = options.work / "logs"
        generate(logs, options.events, options.impressions, per_user=length)
        results[length] = build(logs, options.work / f"store-{length}", options.memory) | {"runs": []}
        shutil.rmtree(logs)
        print(length, results[length], file=sys.stderr, flush=True)
    for _ in range(options.runs):
        for length, entry in results.items():
            entry["runs"].append(train(options.work / f"store-{length}", options.work / "run", options))
            print(length, entry["runs"][-1], file=sys.stderr, flush=True)
    print(
        "| mean events a user | history p50 / max | samples/s | step | peak memory | build peak |\n" + "|---" * 6 + "|"
    )
    for length, entry in results.items():
        entry |= max(entry["runs"], key=lambda run: run["samples_per_second"])
        entry["step_ratio"] = round(entry["step_ms"] / results[options.lengths[0]]["step_ms"], 2)
        cells = [f"{length:,}", f"{entry['history']['p50']:,} / {entry['history']['max']:,}"]
        cells += [f"{entry['samples_per_second']:,}", f"{entry['step_ms']} ms ({entry['step_ratio']} x)"]
        cells += [f"{entry[key] / 2**20:,.0f} MiB" for key in ("peak_bytes", "build_peak_bytes")]
        print(f"| {' | '.join(cells)} |")
    report = {
        **heading(numpy=np.__version__),
        "recipe": options.recipe, "batch": options.batch, "threads": options.threads,
        "lengths": results,
    }  # fmt: skip
    write(options.out, report)
    shutil.rmtree(options.work)


if __name__ == "__main__":
    main()
