"""Does the log foretell who earns more? Off-line GMV lift against a closed loop, on worlds whose truth is known.

Each world logs slates with propensities in its test days. Recipes are trained on it, and pairs of them (or of a recipe
and random, popularity or the truth) serve the same users; the lift that the log foretold, with its interval, stands
beside the lift that came about.

    python benchmarks/gmv.py --work build/gmv --out benchmarks/results/gmv.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LSM = [sys.executable, "-m", "lsm_cli.main"]
RECIPES = ("dnn", "mean_pool", "tin", "stacked_tin")
PAIRS = (
    ("stacked_tin", "dnn"),
    ("tin", "mean_pool"),
    ("mean_pool", "dnn"),
    ("stacked_tin", "tin"),
    ("stacked_tin", "popularity"),
    ("truth", "stacked_tin"),
)


def lsm(*arguments: object) -> dict[str, Any]:
    done = subprocess.run([*LSM, *map(str, arguments), "--json", "-q"], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def prepared(work: Path, users: int, impressions: int, slate: int, seed: int, threads: int) -> tuple[Path, Path]:
    """(world, store) with every recipe trained; what is there already stays."""
    world, store = work / f"world{seed}", work / f"store{seed}"
    if not store.is_dir():
        size = ["--users", users, "--impressions", impressions, "--slate", slate]
        lsm("synth", "--out", world, "--seed", seed, *size, "--overwrite")
        lsm("build-sequences", world / "dataset.toml", "--out", store)
    for recipe in RECIPES:
        run = work / f"runs{seed}" / recipe
        if not (run / "result.json").is_file():
            resume = ["--resume"] if run.is_dir() else []
            lsm("train", "-r", recipe, "--data", store, "--out", run, *resume, f"train.threads={threads}")
    return world, store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--users", type=int, default=3000)
    parser.add_argument("--impressions", type=int, default=60)
    parser.add_argument("--slate", type=int, default=5)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    found: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "pairs": {}}
    print("| world | pair | foretold by the log | earned (expected) | earned (drawn) | sign | within |\n|" + "---|" * 7)
    for seed in arguments.seeds:
        world, store = prepared(
            arguments.work, arguments.users, arguments.impressions, arguments.slate, seed, arguments.threads
        )
        for pair in PAIRS:
            names = [arguments.work / f"runs{seed}" / name if name in RECIPES else name for name in pair]
            one = lsm("simulate", names[0], "--baseline", names[1], "--world-dir", world, "--data", store)
            found["pairs"][f"{pair[0]} against {pair[1]}, world {seed}"] = one
            cells = [
                f"{lift['lift']:+.1%} ({lift['low']:+.1%}…{lift['high']:+.1%})"
                for lift in (one["offline"]["lift"], one["real"]["expected"], one["real"]["earned"])
            ]
            agree = " | ".join("yes" if one[key] else "no" for key in ("sign_agrees", "within"))
            print(f"| {seed} | {pair[0]} against {pair[1]} | {' | '.join(cells)} | {agree} |", flush=True)
    for key in ("sign_agrees", "within"):
        found[key] = sum(one[key] for one in found["pairs"].values()) / len(found["pairs"])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
