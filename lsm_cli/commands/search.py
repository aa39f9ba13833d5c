"""lsm search: what the first stage of a recipe finds, and pointers for training to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lsm_cli import recipe as recipes
from lsm_cli.data.store import Store
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.searching import Searching
from lsm_cli.engine.setup import Setup
from lsm_cli.errors import InputError
from lsm_cli.models.ranking import RankingModel
from lsm_cli.report.console import Console
from lsm_cli.report.html import Page
from lsm_cli.search.files import FoundWriter


def search(
    console: Console,
    recipe: str | None,
    data: Path,
    run: Path | None,
    split: str,
    out: Path | None,
    overrides: list[str],
    overwrite: bool = False,
    sample: int = 5000,
) -> dict[str, Any]:
    """Search a split (or `all`), report on it, write pointers if asked to."""
    store = Store.open(data)
    folder = RunFolder.open(run) if run else None
    if folder is not None:
        folder.check_store(store)
    if recipe is None and folder is None:
        raise InputError("--recipe is missing: name a recipe (`lsm recipes ls`), or give --run for that run's own")
    name = recipe or str(Path(str(run)) / "recipe.toml")
    options = recipes.load(name, [*overrides, "search.from=", "model.evidence=false"])
    soft = options.search.method in ("soft", "eta", "sdim", "hybrid")
    if soft and folder is None:
        raise InputError(
            f"search.method = {options.search.method!r} goes by the attention of a trained model: give --run RUN"
        )
    splits = [kind for kind, n in store.splits.items() if n] if split == "all" else [split]
    for kind in splits:
        store.samples(kind)
    setup = Setup.of(options, store)
    judge = Setup.of(folder.recipe(), store) if folder is not None else None
    model = _trained(judge, folder) if judge is not None and folder is not None else setup.model()
    if soft and judge is not None and judge.recipe.model.attention_dim != options.model.attention_dim:
        options = options.model_copy(update={"model": judge.recipe.model.model_copy(update={"evidence": False})})
        setup = Setup.of(options, store)
    console.say(f"recipe     {options.name}: {options.description}")
    console.say(f"store      {data} ({store.name}): " + ", ".join(f"{store.splits[kind]:,} {kind}" for kind in splits))
    for line in setup.decisions():
        if line.startswith(("history", "search", "device")):
            console.say(line)
    writer = FoundWriter(out, store, overwrite) if out else None
    try:
        with console.progress("search", sum(store.splits[kind] for kind in splits), "queries") as bar:
            searching = Searching(setup, model, bar)
            findings = searching.findings()
            for kind in splits:
                parts = searching.parts(kind, findings)
                if writer is not None:
                    writer.split(kind, parts)
                else:
                    for _ in parts:
                        pass
        shown = splits[-1]
        found = findings.summary(searching.budget, _names(store))
        found["queries_per_second_by_history"] = searching.speed(shown)
        rates = found["queries_per_second_by_history"]
        found["queries_per_second"] = len(rates) / sum(1 / rate for rate in rates.values()) if rates else None
        found |= {"recall_at_k": None, "ndcg_at_k": None}
        if judge is not None:
            console.say(f"judge      attention of {run} over everything in reach, at most {sample:,} {shown} samples")
            found |= searching.agreement(judge, model, shown, sample)
        if writer is not None:
            writer.finish(options.search.model_dump(by_alias=True) | {"run": str(run) if run else None})
    finally:
        if writer is not None:
            writer.drop()
    _show(console, options.name, shown, found)
    if out is not None:
        (out / "report.html").write_text(_page(options.name, store, shown, found).render())
        console.text(f"pointers in {out}, report in {out / 'report.html'}")
        console.next(f"lsm train --recipe {recipe or 'tin'} --data {data} --out runs/{options.name} search.from={out}")
    else:
        console.next(f"lsm train --recipe {recipe or 'tin'} --data {data} --out runs/{options.name}")
    return {"recipe": options.name, "split": split, "out": str(out) if out else None, **found}


def _trained(setup: Setup, folder: RunFolder) -> RankingModel:
    if setup.recipe.model.sequence not in ("tin", "stacked_tin"):
        raise InputError(
            f"{folder.path}: a {setup.recipe.model.sequence} model has no attention to search or judge by; give a run "
            "of tin or stacked_tin"
        )
    model = setup.model()
    model.load_state_dict(folder.load_weights(), strict=False)
    return model


def _names(store: Store) -> dict[str, dict[str, str]]:
    fields = store.manifest["fields"]
    return {kind: fields.get(kind, {}).get("names", {}) for kind in ("domain", "scenario")}


def _rows(found: dict[str, Any]) -> list[list[str]]:
    rows = [
        ["found per sample", f"{found['found_per_sample']:.1f}"],
        ["budget filled", f"{found['filled']:.1%}"],
    ]
    if found["reach_days"] is not None:
        low, high = found["reach_days_p10_p90"]
        rows.append(["days back, p10 / median / p90", f"{low:.1f} / {found['reach_days']:.1f} / {high:.1f}"])
        rows.append(["places back, median", f"{found['reach_rank']:,.0f}"])
    if found["recall_at_k"] is not None:
        rows.append(["recall of attention's own top K", f"{found['recall_at_k']:.3f}"])
        rows.append(["NDCG of attention's own top K", f"{found['ndcg_at_k']:.3f}"])
    return rows


def _tables(found: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    tables = [
        ("finest level shared with the candidate", ["level", "share"], _shares(found["levels"])),
        (
            "queries per second, gathering included",
            ["behaviours before the request", "queries/s"],
            [[name, f"{rate:,.0f}"] for name, rate in found["queries_per_second_by_history"].items()],
        ),
    ]
    for kind in ("domain", "scenario"):
        if len(found.get(kind, {})) > 1:
            tables.append((f"found in {kind}", [kind, "share"], _shares(found[kind])))
    return tables


def _shares(shares: dict[str, float]) -> list[list[str]]:
    return [[name, f"{share:.1%}"] for name, share in shares.items()]


def _show(console: Console, name: str, split: str, found: dict[str, Any]) -> None:
    console.table(f"{name} on the {split} samples", ["", ""], _rows(found))
    for title, head, rows in _tables(found):
        console.table(title, head, rows)


def _page(name: str, store: Store, split: str, found: dict[str, Any]) -> Page:
    page = Page(f"{name} on {store.name}")
    page.paragraph(f"What the search finds for {found['samples']:,} samples; speed measured on the {split} samples.")
    page.table("Finds", ["", ""], _rows(found))
    for title, head, rows in _tables(found):
        page.table(title[:1].upper() + title[1:], head, rows)
    percent = {name: 100 * share for name, share in found["levels"].items()}
    page.bars("Finest level shared with the candidate, % of what was found", percent, " %")
    page.bars("Queries per second by behaviours before the request", found["queries_per_second_by_history"])
    return page
