"""lsm search: what the first stage of a recipe finds, and pointers for training to read."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lsm_cli import recipe as recipes
from lsm_cli.data.store import Store
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.searching import Judge, Searching
from lsm_cli.errors import InputError
from lsm_cli.options import BY_ATTENTION, Recipe
from lsm_cli.report.console import Console, count
from lsm_cli.report.html import Page
from lsm_cli.search.files import writing

Table = tuple[str, list[str], list[list[str | None]]]


def search(
    console: Console,
    recipe: str | None,
    data: Path | None,
    run: Path | None,
    split: str,
    out: Path | None,
    overrides: list[str],
    overwrite: bool = False,
    sample: int = 5000,
) -> dict[str, Any]:
    """Search a split (or `all`), report on it, write pointers if asked to.

    Args:
        recipe: whose search; None = the run's own.
        data: the store; None = the run's own.
        run: whose attention searches (soft) and judges.
        out: folder of the result.
        sample: samples to judge on.

    Returns:
        what --json prints.
    """
    folder = RunFolder.open(run) if run else None
    options, name = _recipe(recipe, folder, overrides)
    if data is None:
        if folder is None:
            raise InputError("--data is missing: name a store made by `lsm build-sequences`")
        data = Path(folder.data()["path"])
    store = Store.open(data)
    splits = _splits(store, split)
    judge = Judge.of(folder, options, store) if folder is not None else None
    searching = Searching(options, store, judge)
    total = sum(store.splits[kind] for kind in splits)
    console.say(f"recipe     {options.name}: {options.description}")
    console.say(f"store      {store.path} ({store.name})")
    console.say("samples    " + ", ".join(f"{store.splits[kind]:,} {kind}" for kind in splits))
    for line in searching.decisions():
        console.say(line)
    if judge is not None:
        console.say(
            f"judge      the attention of {run} over everything in reach: its own {searching.top_k} for "
            + (f"{sample:,} of the samples, drawn at random" if sample < total else "every sample")
        )
    with writing(out, store, overwrite) if out else nullcontext() as writer:
        with console.progress("search", total, "queries") as bar:
            found = searching.run(splits, sample, writer, bar)
        title = f"{options.name} on the {split} samples of {store.name}".replace("the all", "all")
        result = {"recipe": options.name, "split": split, "out": str(out) if out else None, **found}
        if writer is not None:
            writer.text("report.html", _page(title, options, found).render())
            writer.text("result.json", json.dumps(result, indent=1) + "\n")
            writer.finish(searching.asked, searching.levels.names, recipe=options.name, run=str(run) if run else None)
    console.table(title, ["", ""], _rows(found))
    for table in _tables(found):
        console.table(*table)
    trained = f"lsm train --recipe {name} --data {store.path} --out runs/{options.name}"
    if out is not None:
        console.text(f"pointers in {out}, report in {out / 'report.html'}")
    if out is not None and {"train", "valid"} <= set(splits):
        console.next(f"{trained} search.from={out}")
    else:
        asked = f"--recipe {recipe} " * (recipe is not None) + f"--data {store.path} " + f"--run {run} " * bool(run)
        console.next(" ".join([f"lsm search {asked}--split all --out found/{options.name}", *map(_quoted, overrides)]))
    return result


def _recipe(recipe: str | None, folder: RunFolder | None, overrides: list[str]) -> tuple[Recipe, str]:
    """The recipe whose search is wanted, and its name."""
    if recipe is None and folder is None:
        raise InputError("--recipe is missing: name a recipe (`lsm recipes ls`), or give --run for that run's own")
    name = recipe if recipe is not None or folder is None else str(folder.path / "recipe.toml")
    assert name is not None
    options = recipes.load(name, overrides)
    fixed = [text for text in overrides if text.strip().startswith(("model.", "data."))]
    if fixed and folder is not None and (recipe is None or options.search.method in BY_ATTENTION):
        raise InputError(f"{fixed[0]}: the model of {folder.path} is trained; only search.* and train.* may be changed")
    return options, name


def _splits(store: Store, split: str) -> list[str]:
    splits = [kind for kind, n in store.splits.items() if n] if split == "all" else [split]
    if not sum(len(store.samples(kind)) for kind in splits):
        raise InputError(f"{store.path}: no {split} samples in the store; it has {', '.join(store.splits)}")
    return splits


def _quoted(text: str) -> str:
    return text if text.isascii() and not set(text) & set(" '\"[]{}()*?<>|&;$\\") else "'" + text + "'"


def _rows(found: dict[str, Any]) -> list[list[str | None]]:
    """What matters most, a line each."""
    reach = found["in_reach"]
    rows: list[list[str | None]] = [
        ["behaviours in reach, p10 / median / p90", _three(reach, ",")],
        ["found per sample", f"{found['found_per_sample']:.1f} of {found['budget']:,}"],
        ["budget filled", _percent(found["filled"])],
        ["  of what the history allows", _percent(found["filled_of_possible"])],
        ["samples with nothing found", _percent(found["nothing_found"])],
        ["queries per second", f"{found['queries_per_second']:,.0f}"],
    ]
    if found["reach_days"] is not None:
        low, high = found["reach_days_p10_p90"]
        rows.insert(-1, ["days back, p10 / median / p90", f"{low:.3g} / {found['reach_days']:.3g} / {high:.3g}"])
        rows.insert(-1, ["places back, median", f"{found['reach_rank']:,}"])
    if found["recall_at_k"] is not None:
        rows.append([f"recall@{found['k']} of the attention's own", f"{found['recall_at_k']:.3f}"])
        rows.append([f"NDCG@{found['k']}", f"{found['ndcg_at_k']:.3f}"])
    return rows


def _tables(found: dict[str, Any]) -> list[Table]:
    """(title, columns, rows) of what was found, part by part."""
    tables: list[Table] = [
        (
            "by the finest level shared with the candidate",
            ["level", "share", "days back, p10 / median / p90", "places back"],
            [
                [name, _percent(entry["share"]), _three(entry["days"], ".3g"), _number(entry["rank"]["p50"])]
                for name, entry in found["by_level"].items()
            ],
        ),
        (
            "by behaviours before the request",
            ["behaviours", "samples", "in reach", "found", "filled", "queries/s"],
            [
                [
                    name,
                    _number(entry["samples"]),
                    f"{entry['in_reach']:,.0f}",
                    f"{entry['found_per_sample']:.1f}",
                    _percent(entry["filled"]),
                    _rate(found["queries_per_second_by_history"].get(name)),
                ]
                for name, entry in found["by_history"].items()
            ],
        ),
    ]
    for kind in ("domain", "scenario"):
        there = found["within_reach"].get(kind, {})
        names = sorted({*there, *found.get(kind, {})}, key=lambda name: -there.get(name, 0))
        if len(names) > 1:
            rows = [[name, _percent(found[kind].get(name, 0)), _percent(there.get(name, 0))] for name in names]
            tables.append((f"by {kind} of the behaviours", [kind, "of those found", "of those in reach"], rows))
    if found["scores"] is not None:
        quantiles = list(found["scores"]["found"])
        rows = [
            [label, *(f"{found['scores'][kind][q]:.3g}" for q in quantiles)]
            for kind, label in (("found", "found"), ("within_reach", "in reach"))
        ]
        tables.append(("scores", ["", *quantiles], rows))
    return tables


def _page(title: str, options: Recipe, found: dict[str, Any]) -> Page:
    page = Page(title)
    page.paragraph(options.description)
    page.table("What the search finds", ["", ""], _rows(found))
    percent = {name: 100 * (share or 0) for name, share in found["levels"].items()}
    page.bars("Finest level shared with the candidate, % of what was found", percent, " %")
    ages = {
        level: {label: 100 * (share or 0) for label, share in shares.items()}
        for level, shares in found["by_age"].items()
    }
    page.stacks("How far back, % of what was found", ages, " %")
    rates = found["queries_per_second_by_history"]
    page.bars("Queries per second by behaviours before the request", rates)
    for name, head, rows in _tables(found):
        page.table(name[:1].upper() + name[1:], head, rows)
    if found["recall_at_k"] is not None:
        page.paragraph(
            f"Recall and NDCG: how much of the {found['k']} behaviours that the run's attention weighs most, of all in "
            f"reach, was found; means over {found['judged_samples']:,} samples drawn at random, NDCG with the r-th of "
            "them discounted by 1 / log2(r + 1)."
        )
    page.code("Recipe", options.to_toml())
    return page


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def _number(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"


def _rate(value: float | None) -> str | None:
    return None if value is None else count(value)


def _three(values: dict[str, Any], form: str) -> str | None:
    return None if values["p50"] is None else " / ".join(f"{values[q]:{form}}" for q in ("p10", "p50", "p90"))
