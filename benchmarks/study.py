"""A real study: variants of TIN on one store, two workers, killed with `kill -9` in the middle and resumed by the same
command; then the best recipe against the shipped one on the test samples, which the study never looked at.

The space holds what the reader is (TIN or stacked, shared or own heads, decoupled attention), how far it looks (the
last behaviours, or a search of the whole history) and the rates. Because searching alone can decide such a study, the
best trial that sees no more than the shipped recipe does is tested too.

    lsm build-sequences benchmarks/datasets/retail.toml --root ../shared/data/retail --out stores/retail
    python benchmarks/study.py --data stores/retail --out benchmarks/results/study.json

`--study` holds the study (journal, trials, best.toml, report); the table, report and charts are copied beside --out. A
benchmark that is stopped goes on with the same command: finished trials and tests are kept. For a look at it on a small
budget: `--trials 4 --set train.epochs=1 model.max_len=20 --seeds 0`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from accuracy import LSM, call
from lsm_cli.tuning.plan import PLAN, Plan
from lsm_cli.tuning.results import ranked, recipe_of

SPACE = {
    "model.sequence": "tin,stacked_tin",
    "model.layers": "2:4 when model.sequence=stacked_tin",
    "model.heads": "[],auto",
    "model.attention_dim": "0,4,8",
    "search.method": "none,hard",
    "search.top_k": "20,50,100 when search.method=hard",
    "model.evidence_from": "history when search.method=hard",
    "model.max_len": "50,100,200 when search.method=none",
    "model.dim": "8,16,32",
    "model.hidden": "[64],[128],[256],[256,128]",
    "model.dropout": "0:0.3",
    "train.lr": "5e-4:1e-2:log",
    "train.table_lr": "0.01:0.2:log",
}
CHARTS = ("report.html", "history.png", "parallel.png", "importances.png")


def trials_of(journal: Path) -> list[Any]:
    """Every trial of the study, as Optuna holds it."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    if not journal.exists():
        return []
    held = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
    studies = optuna.study.get_all_study_names(held)
    return optuna.load_study(study_name=studies[0], storage=held).get_trials(deepcopy=False) if studies else []


def states(journal: Path) -> list[tuple[int, str]]:
    """(number, state) of every trial."""
    return [(trial.number, trial.state.name) for trial in trials_of(journal)]


def best_without_search(study: Path) -> Path | None:
    """A recipe file of the best complete trial that reads the last behaviours only, or None if there is none."""
    plan = Plan.of_json(json.loads((study / PLAN).read_text()), str(study / PLAN))
    for trial in ranked(plan, trials_of(study / "journal.log")):
        recipe = recipe_of(plan, trial)
        if recipe.search.method == "none":
            file = study / "best_without_search.toml"
            file.write_text(recipe.to_toml())
            return file
    return None


def finished(journal: Path) -> list[int]:
    return [number for number, state in states(journal) if state in ("COMPLETE", "PRUNED", "FAIL")]


def killed_in_the_middle(command: list[str], journal: Path, after: int) -> dict[str, Any]:
    """Start the study, kill -9 everything of it once `after` trials have ended; what stood then."""
    process = subprocess.Popen([*LSM, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(finished(journal)) < after:
        time.sleep(2)
    if process.poll() is not None:
        sys.exit(
            f"the study ended with {process.returncode} before it was killed; run `lsm {' '.join(command)}` by hand"
        )
    workers = [int(file.name) for file in Path("/proc").glob("[0-9]*") if parent(file) == process.pid]
    for pid in (process.pid, *workers):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    return {"finished": finished(journal), "running": [n for n, state in states(journal) if state == "RUNNING"]}


def parent(folder: Path) -> int:
    try:
        return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def test(store: Path, recipe: str, seed: int, options: list[str], folder: Path) -> dict[str, Any]:
    """Train a recipe and test it; metrics of the first target."""
    out = folder / f"{Path(recipe).stem}-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    value = call(["train", "-r", recipe, "--data", store, "--out", out, "--seed", seed, "--json", "-q", *options])
    found = next(iter(value["test"].values()))
    return {key: found[key] for key in ("auc", "gauc", "logloss", "calibration")} | {
        key: value[key] for key in ("samples_per_second", "peak_memory_bytes", "parameters", "best_validation")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipe", default="stacked_tin")
    parser.add_argument("--study", type=Path, default=Path("studies/retail"))
    parser.add_argument("--trials", type=int, default=36)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pruner", default="median")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="of the runs that are tested")
    parser.add_argument("--set", nargs="*", default=["train.epochs=2"], metavar="KEY=VALUE", help="of the study")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    threads = ["train.threads=1"]
    options = [*arguments.set, *threads]
    state = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    state["command"] = " ".join(["python", *sys.argv])
    state["machine"] = {"cpus": os.cpu_count(), "python": platform.python_version(), "threads": 1}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        arguments.out.write_text(json.dumps(state, indent=1) + "\n")

    spaces = [word for key, spec in SPACE.items() for word in ("--space", f"{key}={spec}")]
    command = ["tune", "-r", arguments.recipe, "--data", str(arguments.data), "--out", str(arguments.study), *spaces]
    command += ["--trials", str(arguments.trials), "--workers", str(arguments.workers), "--pruner", arguments.pruner]
    command += options
    journal = arguments.study / "journal.log"
    if "killed" not in state:
        state["killed"] = killed_in_the_middle(command, journal, arguments.trials // 2)
        save()
    if "study" not in state:
        state["study"] = call([*command, "--json", "-q"])
        again = finished(journal)
        assert set(state["killed"]["finished"]) <= set(again) and len(again) == len(set(again))
        save()
        for name in CHARTS:
            if (arguments.study / name).exists():
                shutil.copy(arguments.study / name, arguments.out.with_name(f"{arguments.out.stem}_{name}"))
    tested = state.setdefault("test", {})
    recipes = [(arguments.recipe, arguments.recipe, threads), ("best.toml", str(arguments.study / "best.toml"), [])]
    if (alike := best_without_search(arguments.study)) is not None:
        recipes.append((alike.name, str(alike), []))
    for name, recipe, own in recipes:
        for seed in arguments.seeds:
            entry = tested.setdefault(name, {})
            if str(seed) not in entry:
                entry[str(seed)] = test(arguments.data, recipe, seed, own, arguments.study / "tested")
                save()
                print(name, seed, entry[str(seed)], file=sys.stderr, flush=True)
    print(table(state))


def table(state: dict[str, Any]) -> str:
    """Best trials of the study and the test, in Markdown."""
    study = state["study"]
    counts = ", ".join(f"{number} {name}" for name, number in study["trials"].items() if number)
    lines = [f"{counts}; killed after {len(state['killed']['finished'])}", ""]
    lines += ["| recipe | valid GAUC | test AUC | test GAUC | test log loss |", "|---|---|---|---|---|"]
    for name, seeds in state["test"].items():
        cells = [
            statistics.mean(run[key] for run in seeds.values()) for key in ("best_validation", "auc", "gauc", "logloss")
        ]
        lines.append(f"| {name} | " + " | ".join(f"{cell:.4f}" for cell in cells) + " |")
    lines += ["", "best: " + " ".join(f"{key}={value}" for key, value in study["best"]["params"].items())]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
