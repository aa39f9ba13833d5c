"""`lsm profile` on one store: where the time goes, what the techniques are worth, and whether the estimate holds.

    python benchmarks/profiles.py --data STORE [--device cuda]

Every recipe is profiled and, in a process of its own, estimated. Results go to benchmarks/results/profiles.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from accuracy import call
from reports import heading, write

HERE = Path(__file__).parent
ABLATED = [("stacked_tin", "train", 200), ("stacked_tin", "infer", 200), ("stacked_tin", "train", 1000)]
ESTIMATED = [("stacked_tin", 200), ("stacked_tin", 1000), ("dnn", 0), ("din", 200), ("dare", 1000), ("hier_hard", 50)]


def profiled(recipe: str, phase: str, length: int, more: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """A profile, and the estimate of its peak memory."""
    asked = ["profile", "--recipe", recipe, "--data", str(options.data), "--phase", phase, "--json", "-q"]
    overrides = [f"train.threads={options.threads}", f"train.device={options.device}"]
    overrides += [f"model.max_len={length}"] if length else []
    found = call([*asked, "--steps", options.steps, *more, *overrides])
    expected = call([*asked, "--estimate", *overrides])["estimate"]
    found["memory"].pop("timeline")
    found.pop("environment")
    measured = found["memory"]["peak_allocated"]
    print(
        f"| {recipe} | {phase} | {length} | {found['samples_per_second']:,.0f} | {measured / 2**20:.1f} | "
        f"{expected['peak_allocated'] / 2**20:.1f} | {expected['peak_allocated'] / measured:.3f} |",
        flush=True,
    )
    return {"length": length, **found, "estimate": expected}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--result", type=Path, default=HERE / "results/profiles.json")
    options = parser.parse_args()
    print("| recipe | phase | length | samples/s | peak MiB | estimated | ratio |\n|---|---|---|---|---|---|---|")
    ablate = ["--ablate", "--rounds", str(options.rounds)]
    plan: list[tuple[str, str, int, list[str]]] = [(recipe, "train", length, []) for recipe, length in ESTIMATED]
    plan += [(*asked, ablate) for asked in ABLATED]
    found: list[dict[str, Any]] = []
    for asked in plan:
        found.append(profiled(*asked, options))
        write(options.result, {**heading(), "profiles": found})


if __name__ == "__main__":
    main()
