"""What each idea is worth where its cause is planted, and what it costs where there is none.

    python benchmarks/worlds.py --out benchmarks/results/worlds.json

For every seed s and every world of `lsm synth` with a planted cause: the world is drawn with seed s, its store built,
then plain TIN and the idea that should win there are trained with seed s, alike in everything but the idea: the same
samples, widths, steps and learning rates (COMMON). In the control world every idea is trained. The share of the gap is
(idea - TIN) / (truth - TIN) in test AUC, the mean over targets.

Match evidence and match bias are off for both. They are features made by hand of exactly what these worlds plant
(counts, decayed counts and ages of matches per field, a weight per field in the attention): with them plain TIN would
be told what it is to find out. Item ids mean nothing in these worlds and are left out, as are other fields and the
time where neither plays a part (`Idea.settings`, CONTROL), to save time and to keep chance out of the difference: all
models of a world see the same.

Finished entries of the result file are kept, so that an interrupted table goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accuracy import opened
from lsm_cli.commands.build import build_sequences
from lsm_cli.commands.synth import synth
from lsm_cli.commands.train import train
from lsm_cli.data.store import Store
from lsm_cli.report.console import Console

USERS = 3000
COMMON = [
    "model.evidence=false",
    "model.match_bias=false",
    "model.max_len=200",
    "model.dim=8",
    "model.init_std=0.3",
    "model.temporal=['interval']",
    "model.intervals=28",  # the widest holds all ages above 16 days: the test meets none that training has not
    "data.statistics=false",
    "data.calendar=false",
    "train.epochs=3",
    "train.fresh_tables=false",
    "train.batch_size=256",
    "train.lr=0.01",
    "train.evaluations=1",
    "train.ema=0",  # a thousand steps are too few to average over a thousand
    "train.metric=auc",
]


@dataclass(frozen=True)
class Idea:
    """What differs from plain TIN on everything: the recipe with its overrides, or the logs that plain TIN lacks."""

    name: str
    recipe: str = "tin"
    rival: str = "dataset"  # description that plain TIN is trained on
    settings: tuple[str, ...] = ()  # for both, in the idea's own world


IDEAS = {
    "tempos": Idea(
        "temporal encodings of each target",
        "tin model.time_tables=own",
        settings=(
            "data.fields=['category1']",
            "model.intervals=224",  # fine enough to tell weekdays two weeks ago
            "train.epochs=4",
        ),
    ),
    "noise": Idea(
        "heads with fields of their own (DSI-TIN)",
        "tin model.heads=auto",
        settings=(
            "data.fields=['brand','category2','scenario','action']",
            "model.temporal=[]",
            "model.init_std=1.0",
        ),
    ),
    "third_order": Idea(
        "stacked TIN",
        "stacked_tin model.layers=2",
        settings=(
            "data.fields=['category2','action','channel']",
            "model.temporal=[]",  # time says nothing there
            "model.init_std=1.0",
            "train.epochs=6",
        ),
    ),
    "disagree": Idea(
        "decoupled attention (DARE)",
        "tin model.attention_dim=8",
        settings=("data.fields=['category2']", "model.temporal=[]", "model.init_std=1.0", "train.epochs=8"),
    ),
    "domains": Idea("unified trajectories, aligned", "tin", rival="ads_only"),
}
PLAIN = "tin"
CONTROL = ("data.fields=['category2','domain','scenario','action']",)  # what tells, and what DSI-TIN has heads for


class Worlds:
    """Stores of drawn worlds, built when first asked for, and what the truth scores in them."""

    def __init__(self, folder: Path, users: int) -> None:
        self.folder, self.users = folder, users

    def scores(self, world: str, seed: int) -> dict[str, Any]:
        """{target: {split: scores}} of the true probabilities and of those without history."""
        out = self.folder / f"{world}-{seed}"
        if not out.exists():
            synth(quiet(), out, world, self.users, seed)
        return json.loads((out / "truth.json").read_text())["scores"]

    def store(self, world: str, seed: int, description: str) -> Path:
        out = self.folder / f"{world}-{seed}-{description}-store"
        if not out.exists():
            self.scores(world, seed)
            build_sequences(
                quiet(), str(self.folder / f"{world}-{seed}" / f"{description}.toml"), out, None, "1GiB", index=False
            )
        return out


def quiet() -> Console:
    return Console(json=True, quiet=True)


def measured(store: Path, recipe: str, settings: tuple[str, ...], seed: int, threads: int) -> dict[str, Any]:
    """Train and test: the mean AUC over targets, and each."""
    fields = [name for name in Store.open(store).fields if name != "item"]
    name, *overrides = recipe.split()
    common = [*COMMON, f"data.fields={fields}", f"train.threads={threads}", f"train.seed={seed}"]
    with tempfile.TemporaryDirectory() as folder:
        found = train(quiet(), name, store, Path(folder) / "run", [*common, *settings, *overrides])
    each = {target: entry["auc"] for target, entry in found["test"].items()}
    return {
        "auc": statistics.mean(each.values()),
        "targets": each,
        **{key: found[key] for key in ("parameters", "steps", "samples_per_second")},
    }


def table(results: dict[str, Any], seeds: list[int]) -> str:
    """TIN, idea and the share of the gap closed in the planted worlds; what the ideas cost in the control world."""

    def runs(world: str, model: str) -> list[float]:
        return [found[key]["auc"] for seed in seeds if (key := f"{world}/{model}@{seed}") in found]

    found = results
    lines = [
        "| world | idea | no history | plain TIN | with the idea | truth | share of the gap closed |",
        "|---|---|---|---|---|---|---|",
    ]
    for world, idea in IDEAS.items():
        plain, better, truth, base = (runs(world, model) for model in (PLAIN, world, "truth", "no history"))
        if not better:
            continue
        shares = [(b - p) / (t - p) for p, b, t in zip(plain, better, truth, strict=False)]
        cells = [spread(base), spread(plain), spread(better), spread(truth), spread(shares, ".0%")]
        lines.append(f"| {world} | {idea.name} | {' | '.join(cells)} |")
    lines += ["", "| in the control world | plain TIN | with the idea | difference |", "|---|---|---|---|"]
    for world, idea in IDEAS.items():
        plain, other = runs("control", rival(idea)), runs("control", own(world))
        if other:
            gains = [o - p for p, o in zip(plain, other, strict=False)]
            lines.append(f"| {idea.name} | {spread(plain)} | {spread(other)} | {spread(gains, '+.4f')} |")
    return "\n".join(lines)


def spread(values: list[float], form: str = ".4f") -> str:
    mean = format(statistics.mean(values), form)
    return mean + (f" ± {format(statistics.stdev(values), form.lstrip('+'))}" if len(values) > 1 else "")


def jobs(seed: int) -> list[tuple[str, str, str, str]]:
    """(world, name of the entry, recipe, description) of all trainings with one seed."""
    planted = [
        (world, name, recipe, description)
        for world, idea in IDEAS.items()
        for name, recipe, description in ((PLAIN, PLAIN, idea.rival), (world, idea.recipe, "dataset"))
    ]
    control = {}
    for world, idea in IDEAS.items():
        control[rival(idea)] = ("control", rival(idea), PLAIN, idea.rival)
        control[own(world)] = ("control", own(world), idea.recipe, "dataset")
    return [*planted, *control.values()]


def rival(idea: Idea) -> str:
    """The entry of the control world that an idea is compared with."""
    return PLAIN if idea.rival == "dataset" else f"{PLAIN} on {idea.rival}"


def own(world: str) -> str:
    """The entry of the control world that has the idea: plain TIN where the idea is in the logs."""
    return PLAIN if IDEAS[world].recipe == PLAIN else world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--worlds", nargs="+", default=[*IDEAS, "control"], choices=[*IDEAS, "control"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    results, save = opened(arguments.out, arguments.threads)
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            worlds = Worlds(Path(folder), arguments.users)
            for world, name, recipe, description in jobs(seed):
                key = f"{world}/{name}@{seed}"
                if world not in arguments.worlds or key in results:
                    continue
                scores = [splits["test"] for splits in worlds.scores(world, seed).values()]
                for entry, of in (("truth", "true"), ("no history", "without_history")):
                    results[f"{world}/{entry}@{seed}"] = {"auc": statistics.mean(score[of]["auc"] for score in scores)}
                store = worlds.store(world, seed, description)
                settings = IDEAS[world].settings if world in IDEAS else CONTROL
                results[key] = measured(store, recipe, settings, seed, arguments.threads)
                save()
                print(key, results[key], file=sys.stderr, flush=True)
    print(table(results, arguments.seeds))


if __name__ == "__main__":
    main()
