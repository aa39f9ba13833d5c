"""Does the log foretell who earns more? Off-line GMV lift against a closed loop, on worlds whose truth is known.

Each world logs slates with propensities in its test days. Recipes are trained on it, and they, random, popularity and
the truth serve the same users; for pairs of them the lift that the log foretold, with its interval, stands beside the
lift that came about. `lsm simulate` does the same for one pair.

    python benchmarks/gmv.py --work build/gmv --out benchmarks/results/gmv.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lsm_cli.data.store import Store
from lsm_cli.data.synth.again import redraw
from lsm_cli.judging.contenders import Contender
from lsm_cli.judging.gmv import worth
from lsm_cli.judging.simulate import SPLIT, Outcome, Simulation

LSM = [sys.executable, "-m", "lsm_cli.main"]
RECIPES = ("dnn", "mean_pool", "tin")
PAIRS = (
    ("tin", "dnn"),
    ("tin", "mean_pool"),
    ("mean_pool", "dnn"),
    ("dnn", "random"),
    ("tin", "popularity"),
    ("tin", "truth"),
)


def lsm(*arguments: object) -> None:
    done = subprocess.run([*LSM, *map(str, arguments), "--json", "-q"], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)


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


def served(world: Path, data: Path, runs: Path) -> dict[str, dict[str, Any]]:
    """pair -> lift foretold by the log, as expected and as drawn in the world, and whether the former held."""
    store = Store.open(data)
    simulation = Simulation(redraw(world), store)
    paid = simulation.drawn.world.paid
    outcomes: dict[str, Outcome] = {}
    logged: dict[str, np.ndarray] = {}
    for name in sorted({name for pair in PAIRS for name in pair}):
        if name in RECIPES:
            contender = Contender.of(runs / name, store)
            policy, logged[name] = simulation.ranked_by(contender, paid), contender.scores(SPLIT).by_target[paid]
        else:
            policy, logged[name] = simulation.known(name)
        outcomes[name] = simulation.live(policy)
    found = {}
    for ours, theirs in PAIRS:
        foretold = worth(store, SPLIT, paid, (logged[ours], logged[theirs]))
        real = simulation.lifts(outcomes[ours], outcomes[theirs], 1000, 0)
        lift, truth = foretold["lift"], real["expected"]
        found[f"{ours} against {theirs}"] = {
            "foretold": lift.entry(),
            **{name: one.entry() for name, one in real.items()},
            "support": foretold["support"],
            "alike": float(np.mean(outcomes[ours].shown == outcomes[theirs].shown)),
            "sign_agrees": bool(np.sign(lift.value) == np.sign(truth.value)),
            "within": bool(lift.low <= truth.value <= lift.high),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--impressions", type=int, default=60)
    parser.add_argument("--slate", type=int, default=4)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    found: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "worlds": {}}
    print("| world | pair | foretold by the log | came about | as drawn | sign | within |\n|" + "---|" * 7, flush=True)
    for seed in given.seeds:
        world, store = prepared(given.work, given.users, given.impressions, given.slate, seed, given.threads)
        found["worlds"][seed] = served(world, store, given.work / f"runs{seed}")
        for pair, one in found["worlds"][seed].items():
            cells = [
                f"{one[kind]['lift']:+.1%} ({one[kind]['low']:+.1%}…{one[kind]['high']:+.1%})"
                for kind in ("foretold", "expected", "earned")
            ]
            agree = " | ".join("yes" if one[key] else "no" for key in ("sign_agrees", "within"))
            print(f"| {seed} | {pair} | {' | '.join(cells)} | {agree} |", flush=True)
    every = [one for pairs in found["worlds"].values() for one in pairs.values()]
    for key in ("sign_agrees", "within"):
        found[key] = f"{sum(one[key] for one in every)} of {len(every)}"
    told = [one for one in every if one["foretold"]["word"] != "unclear"]
    found["sign_agrees_where_told_apart"] = f"{sum(one['sign_agrees'] for one in told)} of {len(told)}"
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
