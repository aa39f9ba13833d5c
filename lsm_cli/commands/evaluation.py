"""lsm eval, and how results are shown wherever a model was tested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lsm_cli.commands import towers
from lsm_cli.data.store import Store
from lsm_cli.engine.device import peak_memory
from lsm_cli.engine.evaluate import evaluate
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.setup import Setup
from lsm_cli.models.two_tower import TwoTower
from lsm_cli.recipe import Recipe
from lsm_cli.report import html
from lsm_cli.report.console import Console, count

HEADLINE = ("auc", "gauc", "logloss", "calibration", "n", "positives")


def eval_run(
    console: Console,
    run_path: Path,
    data: Path | None,
    split: str,
    shuffle_history: bool,
    seed: int = 0,
    vectors: Path | None = None,
) -> dict[str, Any]:
    """Score one split of a store with a trained run; of two towers, also retrieve, and write vectors if asked."""
    run = RunFolder.open(run_path)
    recipe = run.recipe()
    store = Store.open(data or Path(run.data()["path"]))
    run.check_store(store)
    setup = Setup.of(recipe, store)
    model = setup.model()
    run.fill(model)
    if vectors is not None:
        towers.check(run_path, recipe, vectors)
    console.say(f"run        {run_path}: {recipe.name}")
    console.say(f"store      {store.path} ({store.name}), split {split}: {len(store.samples(split)):,} samples")
    console.say(f"device     {setup.compute.describe()}")
    with console.progress(f"score {split}", len(store.samples(split)), "samples") as bar:
        found = evaluate(setup, model, split, progress=bar)
    result: dict[str, Any] = {
        "run": str(run_path),
        split: found["targets"],
        "samples_per_second": found["samples_per_second"],
        "peak_memory_bytes": peak_memory(setup.compute.device),
    }
    if shuffle_history:
        console.say("control    every user gets another user's history, cut at the same request time")
        with console.progress("score shuffled", len(store.samples(split)), "samples") as bar:
            result["shuffled"] = evaluate(setup, model, split, shuffle_seed=seed, progress=bar)["targets"]
    if isinstance(model, TwoTower):
        result |= towers.retrieval(console, setup, model, split, found["targets"])
        if vectors is not None:
            result["vectors"] = towers.write_vectors(console, setup, model, split, vectors, run_path)
    show(console, f"{recipe.name} on the {split} samples of {store.name}", found["targets"], result.get("shuffled"))
    for target, entry in found["targets"].items():
        show_slices(console, target, entry["slices"])
    if isinstance(model, TwoTower):
        towers.show(console, split, result)
    console.text(f"{count(found['samples_per_second'])} scored samples/s")
    if not shuffle_history:
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


def show_slices(console: Console, target: str, slices: dict[str, Any]) -> None:
    for kind, groups in slices.items():
        title = {"history": "behaviours before the request"}.get(kind, kind)
        rows = [[name, *_cells(entry)] for name, entry in groups.items()]
        console.table(
            f"{target} by {title}", [title, "AUC", "GAUC", "log loss", "calibration", "samples", "positives"], rows
        )


def show_curve(console: Console, recipe: Recipe, history: list[dict[str, Any]]) -> None:
    metric = recipe.train.metric
    rows = [
        [
            f"{line['epoch']:.2f}",
            f"{line['train_loss']:.4f}",
            f"{abs(line['metric']):.4f}",
            "best" if line["best"] else "",
        ]
        for line in history
    ]
    console.table("Learning curve", ["epoch", "train loss", f"valid {metric}", ""], rows)


def write_report(
    run: RunFolder,
    recipe: Recipe,
    history: list[dict[str, Any]],
    split: str,
    targets: dict[str, Any],
    result: dict[str, Any],
) -> None:
    """report.html of a run: result, learning curve, slices, recipe; one file, no network."""
    page = html.Page(f"{recipe.name} · {run.path.name}")
    page.paragraph(recipe.description)
    columns = ["", "AUC", "GAUC", "log loss", "calibration", "samples", "positives"]
    rows = []
    for target, entry in targets.items():
        rows.append([target, *_cells(entry)])
        if "truth" in entry:
            rows.append(["the truth (the probabilities that drew the labels)", *_cells(entry["truth"])])
    page.table(f"Result on the {split} samples", columns, rows)
    page.paragraph(
        f"{count(result['samples_per_second'])} training samples/s · {count(result['parameters'])} parameters · "
        f"{result['steps']:,} steps"
    )
    page.lines(
        f"Validation {recipe.train.metric} by epoch",
        {recipe.train.metric: [(line["epoch"], abs(line["metric"])) for line in history]},
    )
    page.lines("Training loss by epoch", {"loss": [(line["epoch"], line["train_loss"]) for line in history]})
    for target, entry in targets.items():
        for kind, groups in entry["slices"].items():
            page.table(f"{target} by {kind}", columns, [[name, *_cells(part)] for name, part in groups.items()])
    page.code("Recipe", recipe.to_toml())
    run.write_text("report.html", page.render())


def _cells(entry: dict[str, Any]) -> list[str | None]:
    numbers = [None if entry[name] is None else f"{entry[name]:.4f}" for name in ("auc", "gauc", "logloss")]
    calibration = None if entry["calibration"] is None else f"{entry['calibration']:.3f}"
    return [*numbers, calibration, f"{entry['n']:,}", f"{entry['positives']:,}"]
