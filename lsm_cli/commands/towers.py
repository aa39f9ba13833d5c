"""What `lsm eval` adds for a model with two towers: retrieval from the catalogue, and vectors for elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lsm_cli.engine.setup import Setup
from lsm_cli.errors import InputError
from lsm_cli.judging.retrieval import CUTS, Catalogue, retrieve
from lsm_cli.judging.vectors import check_free, export
from lsm_cli.models.two_tower import TwoTower
from lsm_cli.options import Recipe
from lsm_cli.report.console import Console


def check(run: Path, recipe: Recipe, out: Path) -> None:
    """Raise InputError, before any work, if there are no vectors to write or something is in their way."""
    if recipe.model.sequence != "sasrec":
        raise InputError(
            f"{run}: a model with model.sequence = {recipe.model.sequence!r} has no user vectors, it scores users and "
            "items together; leave out --user-vectors, or give a run of sasrec"
        )
    check_free(out)


def retrieval(console: Console, setup: Setup, model: TwoTower, split: str, targets: dict[str, Any]) -> dict[str, Any]:
    """Add what was retrieved to the results of the targets, and say of what; see `retrieve`."""
    catalogue = Catalogue.of(setup.store)
    items = len(catalogue.item)
    console.say(
        f"retrieval  every positive is looked for among {items:,} items: those of the training vocabulary that were a "
        "candidate in training"
    )
    with console.progress(f"retrieve {split}", None, "samples") as bar:
        found = retrieve(setup, model, catalogue, split, bar)
    for target, entry in found.items():
        targets[target]["retrieval"] = entry
    return {"catalogue": {"items": items, "what": "items of the training vocabulary that were a candidate in training"}}


def show(console: Console, split: str, result: dict[str, Any]) -> None:
    """One row per target, and one for what the most popular items would have found; of vectors, where they are."""
    rows, outside, items = [], [], f"{result['catalogue']['items']:,} items"
    for target, metrics in result[split].items():
        entry = metrics["retrieval"]
        rows.append([target, *_cells(entry), f"{entry['n']:,}"])
        rows.append(["  most popular", *_cells(entry["popularity"]), None])
        outside.append(f"{entry['outside']:,} of {target}")
    console.table(
        f"Recall R and NDCG N of the {split} positives among {items}, by the towers alone",
        ["target", *(f"R@{cut}" for cut in CUTS), *(f"N@{cut}" for cut in CUTS), "positives"],
        rows,
        note=f"not among the items, and so never found: {', '.join(outside)}",
    )
    if "vectors" in result:
        written = result["vectors"]
        console.text(
            f"vectors of {written['users']:,} users x {len(written['targets'])} targets and of {written['items']:,} "
            f"items, {written['width']} wide, in {written['path']}"
        )


def write_vectors(console: Console, setup: Setup, model: TwoTower, split: str, out: Path, run: Path) -> dict[str, Any]:
    with console.progress("user vectors", None, "users") as bar:
        return export(setup, model, split, out, run, bar)


def _cells(entry: dict[str, Any]) -> list[str | None]:
    values = [entry[name][str(cut)] for name in ("recall", "ndcg") for cut in CUTS]
    return [None if value is None else f"{value:.4f}" for value in values]
