"""lsm eval, and how results are shown wherever a model was tested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lsm_cli.commands import towers
from lsm_cli.commands.attention import inspect
from lsm_cli.commands.comparison import show_calibration
from lsm_cli.data.store import Store
from lsm_cli.engine import slices, tiers
from lsm_cli.engine.device import peak_memory
from lsm_cli.engine.evaluate import evaluate
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.setup import Setup
from lsm_cli.judging.attention import check
from lsm_cli.models.two_tower import TwoTower
from lsm_cli.report.console import Console, count

HEADLINE = ("auc", "gauc", "logloss", "calibration", "n", "positives")


def eval_run(
    console: Console,
    run_path: Path,
    data: Path | None,
    split: str,
    shuffle_history: bool,
    seed: int = 0,
    attention: int = 0,
    vectors: Path | None = None,
) -> dict[str, Any]:
    """Score one split of a store with a trained run; of two towers, also retrieve.

    Args:
        attention: samples on which to look at the attention; 0 = none.
        vectors: folder for the vectors of users and items of two towers; None = do not write them.
    """
    run = RunFolder.open(run_path)
    recipe = run.recipe()
    store = Store.open(data or Path(run.data()["path"]))
    run.check_store(store)
    if attention:
        check(recipe)
    setup = Setup.of(recipe, store)
    model = setup.model()
    run.fill(model)
    if vectors is not None:
        towers.check(run_path, recipe, vectors)
    console.say(f"run        {run_path}: {recipe.name}")
    console.say(f"store      {store.path} ({store.name}), split {split}: {len(store.samples(split)):,} samples")
    console.say(f"device     {setup.compute.describe()}")
    for line in tiers.decisions(recipe, setup.fields):
        console.say(line)
    with console.progress(f"score {split}", len(store.samples(split)), "samples") as bar:
        found = evaluate(setup, model, split, progress=bar)
    result: dict[str, Any] = {
        "run": str(run_path),
        split: found["targets"],
        "samples_per_second": found["samples_per_second"],
        "peak_memory_bytes": peak_memory(setup.compute.device),
    }
    if model.cached:
        result["tiers"] = tiers.record(model, learns=False)
    if shuffle_history:
        console.say("control    every user gets another user's history, cut at the same request time")
        with console.progress("score shuffled", len(store.samples(split)), "samples") as bar:
            result["shuffled"] = evaluate(setup, model, split, shuffle_seed=seed, progress=bar)["targets"]
    if isinstance(model, TwoTower):
        result |= towers.retrieval(console, setup, model, split, found["targets"])
        if vectors is not None:
            result["vectors"] = towers.write_vectors(console, setup, model, split, vectors, run_path)
    for target, entry in found["targets"].items():
        show_slices(console, target, entry["slices"])
        show_calibration(console, target, {recipe.name: entry})
    # last, where the reader looks first
    show(console, f"{recipe.name} on the {split} samples of {store.name}", found["targets"], result.get("shuffled"))
    if isinstance(model, TwoTower):
        towers.show(console, split, result)
    for line in tiers.sentences(result.get("tiers", {})):
        console.text(line)
    console.text(f"{count(found['samples_per_second'])} scored samples/s")
    if attention:
        result["attention"] = inspect(console, run, setup, model, split, attention)
    if not shuffle_history and setup.reads_history:
        console.next(f"lsm eval {run_path} --shuffle-history")
    return result


def headline(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in HEADLINE}


def show(console: Console, title: str, targets: dict[str, Any], shuffled: dict[str, Any] | None = None) -> None:
    """One row per target; with the truth of a synthetic world and the shuffled-history control where they exist."""
    rows = []
    for target, entry in targets.items():
        rows.append([target, *_cells(entry)])
        if "truth" in entry:
            rows.append(["  the truth", *_cells(entry["truth"])])
        if shuffled:
            rows.append(["  shuffled histories", *_cells(shuffled[target])])
    console.table(title, ["target", "AUC", "GAUC", "log loss", "calibration", "samples", "positives"], rows)
    if shuffled:
        for target, entry in targets.items():
            real, other = entry["gauc"], shuffled[target]["gauc"]
            if real is not None and other is not None:
                console.text(
                    f"{target}: whose history it is, is worth {real - other:+.4f} GAUC ({other:.4f} when shuffled)"
                )


def show_slices(console: Console, target: str, sliced: dict[str, Any]) -> None:
    for kind, groups in sliced.items():
        title = slices.title(kind)
        rows = [[name, *_cells(entry)] for name, entry in groups.items()]
        console.table(
            f"{target} by {title}", [title, "AUC", "GAUC", "log loss", "calibration", "samples", "positives"], rows
        )


def _cells(entry: dict[str, Any]) -> list[str | None]:
    numbers = [None if entry[name] is None else f"{entry[name]:.4f}" for name in ("auc", "gauc", "logloss")]
    calibration = None if entry["calibration"] is None else f"{entry['calibration']:.3f}"
    return [*numbers, calibration, f"{entry['n']:,}", f"{entry['positives']:,}"]
