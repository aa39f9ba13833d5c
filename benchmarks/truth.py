"""How much of the distance between no sequence and the truth a recipe covers, on a world whose truth is known.

lsm synth --out build/world && lsm build-sequences build/world/dataset.toml --out build/world-store
python benchmarks/truth.py --data build/world-store --out benchmarks/results/truth.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LSM = [sys.executable, "-m", "lsm_cli.main"]


def trained(store: Path, recipe: str, seed: int) -> dict[str, Any]:
    """Metrics of the test samples per target, and those of the world's own probabilities."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["train", "-r", recipe, "--data", store, "--out", f"{folder}/run", "--seed", seed, "--json", "-q"]
        done = subprocess.run([*LSM, *map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)["test"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", default=["mean_pool", "din", "tin", "stacked_tin"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    found: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "results": {}}
    print("| recipe | seed | target | AUC | without sequence | truth | gap closed |\n|---|---|---|---|---|---|---|")
    for seed in arguments.seeds:
        plain = trained(arguments.data, "dnn", seed)
        for recipe in arguments.recipes:
            for target, entry in trained(arguments.data, recipe, seed).items():
                low, high = plain[target]["auc"], entry["truth"]["auc"]
                closed = (entry["auc"] - low) / (high - low)
                found["results"][f"{recipe}@{seed}/{target}"] = {
                    "auc": entry["auc"],
                    "without_sequence": low,
                    "truth": high,
                    "gap_closed": closed,
                }
                cells = f"{entry['auc']:.4f} | {low:.4f} | {high:.4f} | {closed:.1%}"
                print(f"| {recipe} | {seed} | {target} | {cells} |", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
