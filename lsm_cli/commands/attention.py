"""lsm eval --attention: where a run's attention goes, as tables and as a page of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lsm_cli.data.store import Store
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.setup import Setup
from lsm_cli.judging.attention import attention
from lsm_cli.models.scorer import Scorer
from lsm_cli.report.console import Console
from lsm_cli.report.html import Page

PAGE = "attention.html"
TITLES = {
    "age": "time from the behaviour to the request",
    "rank": "rank from the request",
    "match": "finest field shared with the candidate",
}
SHOWN = 12  # buckets of a field in a table; the rest make one row


def inspect(console: Console, run: RunFolder, setup: Setup, model: Scorer, split: str, sample: int) -> dict[str, Any]:
    """Look at a sample of the split, show what was seen, write the page; returns what --json prints."""
    size = min(sample, len(setup.store.samples(split)))
    with console.progress(f"attention on {split}", size, "samples") as bar:
        found = attention(setup, model, split, sample, progress=bar)
    _show(console, found)
    _page(setup.recipe.name, setup.store, split, found, run)
    console.text(f"pictures in {run.path / PAGE}")
    return {**found, "page": str(run.path / PAGE)}


def marginals(found: dict[str, Any], view: str) -> dict[str, dict[str, list[float]]]:
    """Kind (`target`, `layer`, `head`) -> its entry -> attention per bucket, in the mean over the other kinds; kinds
    with one entry are left out. Under `attention` the mean over everything."""
    shares = np.array(found["views"][view]["attention"])
    made = {"attention": {"attention": shares.mean(0).tolist()}}
    for kind in ("target", "layer", "head"):
        entries = [one[kind] for one in found["series"]]
        distinct = list(dict.fromkeys(entries))
        if len(distinct) > 1:
            made[kind] = {
                f"layer {entry}" if kind == "layer" else entry: shares[[one == entry for one in entries]]
                .mean(0)
                .tolist()
                for entry in distinct
            }
    return made


def _show(console: Console, found: dict[str, Any]) -> None:
    console.text(
        f"attention on {found['samples']:,} samples, {found['empty']:,} of them without behaviours; the others read "
        f"{found['behaviours']:.1f} in the mean"
    )
    console.table(
        "How many behaviours attention is spread over (exp of its entropy)",
        ["target", "layer", "head", "behaviours"],
        [[one["target"], one["layer"], one["head"], f"{one['effective']:.1f}"] for one in found["series"]],
    )
    for view, entry in _telling(found).items():
        kinds = marginals(found, view)
        mean = kinds.pop("attention")["attention"]
        columns = [name for kind in kinds.values() for name in kind]
        series = [values for kind in kinds.values() for values in kind.values()]
        rows = [
            [name, _percent(there), _percent(share), _lift(share, there), *map(_percent, others)]
            for name, there, share, *others in _buckets(view, entry, [mean, *series])
        ]
        console.table(
            f"Attention by {TITLES.get(view, view)}", [view, "behaviours", "attention", "lift", *columns], rows
        )
    console.text("lift = attention / behaviours: above 1 the model looks for them, below 1 away from them")


def _page(name: str, store: Store, split: str, found: dict[str, Any], run: RunFolder) -> None:
    page = Page(f"Attention of {name} · {run.path.name}")
    page.paragraph(
        f"{found['samples']:,} {split} samples of {store.name}; {found['empty']:,} of them have no behaviours, the "
        f"others {found['behaviours']:.1f} in the mean. Every sample counts the same. Behaviours: the share of "
        "behaviours that lie in a bucket, which is what attention would be if it weighed all alike."
    )
    for view, entry in _telling(found).items():
        for kind, shares in marginals(found, view).items():
            names = [row[0] for row in _buckets(view, entry, [])]
            table = {"behaviours": [row[1] for row in _buckets(view, entry, [])]}
            for column, values in shares.items():
                table[column] = [row[2] for row in _buckets(view, entry, [values])]
            split_by = "" if kind == "attention" else f", {kind} by {kind}"
            page.groups(
                f"By {TITLES.get(view, view)}{split_by}, %",
                {column: {n: 100 * v for n, v in zip(names, values, strict=True)} for column, values in table.items()},
            )
    page.table(
        "Behaviours that attention is spread over (exp of its entropy)",
        ["target", "layer", "head", "behaviours"],
        [[one["target"], one["layer"], one["head"], f"{one['effective']:.1f}"] for one in found["series"]],
    )
    run.write_text(PAGE, page.render())


def _telling(found: dict[str, Any]) -> dict[str, Any]:
    """The views in which not all behaviours are alike."""
    return {name: entry for name, entry in found["views"].items() if len(entry["buckets"]) > 1}


def _buckets(view: str, entry: dict[str, Any], series: Sequence[Sequence[float]]) -> list[tuple[Any, ...]]:
    """(bucket, behaviours, every series) row by row; of a field with many values the most frequent and the rest."""
    rows = list(zip(entry["buckets"], entry["behaviours"], *series, strict=True))
    if view in TITLES or len(rows) <= SHOWN:
        return rows
    rows.sort(key=lambda row: -row[1])
    rest = [sum(values) for values in zip(*(row[1:] for row in rows[SHOWN - 1 :]), strict=True)]
    return [*rows[: SHOWN - 1], (f"{len(rows) - SHOWN + 1} others", *rest)]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _lift(share: float, there: float) -> str:
    return f"{share / there:.2f}"
